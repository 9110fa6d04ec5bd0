from . import (
    bids,
    brainglobe,
    build,
    catalog,
    nnunet,
    published,
    splits,
    subjects,
    validation,
)
from .brainglobe import Atlas, read_atlas
from .catalog import Catalog, open_catalog
from .published import fetch
from .subjects import Subject, find_subjects

__all__ = [
    "Atlas",
    "Catalog",
    "Subject",
    "bids",
    "brainglobe",
    "build",
    "catalog",
    "fetch",
    "find_subjects",
    "nnunet",
    "open_catalog",
    "published",
    "read_atlas",
    "splits",
    "subjects",
    "validation",
]
