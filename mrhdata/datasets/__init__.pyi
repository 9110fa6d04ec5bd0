from . import (
    bids,
    build,
    catalog,
    nnunet,
    published,
    splits,
    subjects,
    validation,
)
from .catalog import Catalog, open_catalog
from .published import fetch
from .subjects import Subject, find_subjects

__all__ = [
    "Catalog",
    "Subject",
    "bids",
    "build",
    "catalog",
    "fetch",
    "find_subjects",
    "nnunet",
    "open_catalog",
    "published",
    "splits",
    "subjects",
    "validation",
]
