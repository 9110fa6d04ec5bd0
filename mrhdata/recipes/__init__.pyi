from . import (
    cell_verification,
    cells,
    cross_validation,
    demo,
    dgm,
    mrhnet,
    restoration,
    segmentation,
    tissue2d,
    virtual_histology,
    watch_folder,
)

__all__ = [
    "cell_verification",
    "cells",
    "cross_validation",
    "demo",
    "dgm",
    "mrhnet",
    "restoration",
    "segmentation",
    "tissue2d",
    "virtual_histology",
    "watch_folder",
]
