from . import (
    base,
    dense,
    network,
    patch_centre,
    sliding_window,
)

__all__ = [
    "base",
    "dense",
    "network",
    "patch_centre",
    "sliding_window",
]
