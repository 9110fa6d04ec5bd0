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
from .loader import PatchIterableDataset, PatchLoader
from .summary import CostReport, SampleReport

__all__ = [
    "CostReport",
    "PatchIterableDataset",
    "PatchLoader",
    "Patches",
    "SampleReport",
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
