from . import codecs, colours, deflated, frames, groups, headers, images, mosaic, reader, same, stacks, times
from .headers import files_of, holds
from .reader import OPTIONS, contents, read

__all__ = [
    "OPTIONS",
    "codecs",
    "colours",
    "contents",
    "deflated",
    "files_of",
    "frames",
    "groups",
    "headers",
    "holds",
    "images",
    "mosaic",
    "read",
    "reader",
    "same",
    "stacks",
    "times",
]
