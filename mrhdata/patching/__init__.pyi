from . import (
    class_index,
    dataset,
    export,
    extract,
    loader,
    order,
    plan,
    positions,
    prefetch,
    samplers,
    sources,
    splits,
    summary,
    tiles,
)
from .dataset import Patches, patches
from .loader import Batches, Loader
from .summary import Diagnosis, Explanation

__all__ = [
    "Batches",
    "Diagnosis",
    "Explanation",
    "Loader",
    "Patches",
    "class_index",
    "dataset",
    "export",
    "extract",
    "loader",
    "order",
    "patches",
    "plan",
    "positions",
    "prefetch",
    "samplers",
    "sources",
    "splits",
    "summary",
    "tiles",
]
