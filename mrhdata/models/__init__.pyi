from . import (
    cards,
    cells3d,
    ensemble,
    export,
    fcn3d,
    layers,
    matlab,
    mrhnet,
    pssr,
    receptive_field,
    registry,
    restorer,
    spec,
    storage,
    tissue2d,
    unet,
)
from .cards import Card, Cards, list
from .matlab import load_matlab
from .registry import copy, create, networks
from .spec import IntensityScale, ModelSpec
from .storage import load, save

__all__ = [
    "Card",
    "Cards",
    "IntensityScale",
    "ModelSpec",
    "cards",
    "cells3d",
    "copy",
    "create",
    "ensemble",
    "export",
    "fcn3d",
    "layers",
    "list",
    "load",
    "load_matlab",
    "matlab",
    "mrhnet",
    "networks",
    "pssr",
    "receptive_field",
    "registry",
    "restorer",
    "save",
    "spec",
    "storage",
    "tissue2d",
    "unet",
]
