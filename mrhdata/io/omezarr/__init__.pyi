from . import (
    chunks,
    pyramid,
    resumable,
    store,
    write_blocks,
    writer,
)
from .store import OPTIONS, codec, create, finish, forward, image_metadata, level_for, level_path, plan, read, write

__all__ = [
    "OPTIONS",
    "chunks",
    "codec",
    "create",
    "finish",
    "forward",
    "image_metadata",
    "level_for",
    "level_path",
    "plan",
    "pyramid",
    "read",
    "resumable",
    "store",
    "write",
    "write_blocks",
    "writer",
]
