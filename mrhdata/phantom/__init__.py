"""Digital brains of known truth, one kind per file.

``mouse``: tissue fractions, multi-contrast MRI and histology. ``qsm``: a human head's susceptibility, deep
nuclei and all, as a scanner maps it; its anatomy is ``head``. ``em``: neuropil in the electron microscope.
``cleared``: labelled cells in the light-sheet microscope, brains of any size; what lies in their tissue is
``labelled``, drawn by ``painting``.
"""

from mrhdata.phantom.cleared import Brain, Cleared, cleared
from mrhdata.phantom.em import STRUCTURES, neuropil
from mrhdata.phantom.mouse import TISSUES, Protocol, directions, mouse_brain, mouse_maps
from mrhdata.phantom.qsm import MATTER, ROIS, Scan, deep_grey

__all__ = [
    "MATTER", "ROIS", "STRUCTURES", "TISSUES", "Brain", "Cleared", "Protocol", "Scan", "cleared", "deep_grey",
    "directions", "mouse_brain", "mouse_maps", "neuropil",
]  # fmt: skip
