from . import (
    contact_sheets,
    neuroglancer,
    plots,
    provenance,
    report,
    review_page,
)
from .contact_sheets import contact_sheet
from .plots import montage, picture, slices

__all__ = [
    "contact_sheet",
    "contact_sheets",
    "montage",
    "neuroglancer",
    "picture",
    "plots",
    "provenance",
    "report",
    "review_page",
    "slices",
]
