from . import (
    cleared_scene,
    cleared_tissue,
    electron_microscopy,
    head,
    head_anatomy,
    mouse,
    qsm,
    rasterize,
)
from .cleared_tissue import ClearedBrain, ClearedSettings, cleared
from .electron_microscopy import STRUCTURES, neuropil
from .mouse import TISSUES, Protocol, directions, mouse_brain, mouse_maps
from .qsm import MATTER, ROIS, Scan, deep_grey

__all__ = [
    "MATTER",
    "ROIS",
    "STRUCTURES",
    "TISSUES",
    "ClearedBrain",
    "ClearedSettings",
    "Protocol",
    "Scan",
    "cleared",
    "cleared_scene",
    "cleared_tissue",
    "deep_grey",
    "directions",
    "electron_microscopy",
    "head",
    "head_anatomy",
    "mouse",
    "mouse_brain",
    "mouse_maps",
    "neuropil",
    "qsm",
    "rasterize",
]
