from . import (
    bids,
    build,
    catalog,
    nnunet,
    published,
    splits,
    validation,
)
from .catalog import Catalog, open_catalog
from .published import fetch

__all__ = [
    "Catalog",
    "bids",
    "build",
    "catalog",
    "fetch",
    "nnunet",
    "open_catalog",
    "published",
    "splits",
    "validation",
]
