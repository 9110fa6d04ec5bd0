from . import (
    class_index,
    create,
    dataset,
    export,
    extract,
    loader,
    order,
    patch_set,
    plan,
    positions,
    prefetch,
    samplers,
    sources,
    splits,
    subjects,
    summary,
    tiles,
)
from .create import patches
from .dataset import Patches
from .loader import Batches, Loader
from .summary import Diagnosis, Explanation

__all__ = [
    "Batches",
    "Diagnosis",
    "Explanation",
    "Loader",
    "Patches",
    "class_index",
    "create",
    "dataset",
    "export",
    "extract",
    "loader",
    "order",
    "patch_set",
    "patches",
    "plan",
    "positions",
    "prefetch",
    "samplers",
    "sources",
    "splits",
    "subjects",
    "summary",
    "tiles",
]
