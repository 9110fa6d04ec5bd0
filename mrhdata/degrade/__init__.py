"""Good images made worse on purpose: pairs to train restoration on.

``steps``: what happens to a plane. ``chain``: steps one after another, over images of any kind.
``published``: the known "crappifiers". ``fitting``: a degradation from a few real pairs. ``raster``: how long
a scan takes. Arrays in, arrays out; torch is not needed.

Every step acts on single planes of values from 0 (black) to 1 (white) and takes a random generator; every
plane draws from a generator of its own, so that it becomes the same one in NumPy, in Dask with any chunks,
and in a batch of tensors. A number of a step may be `Between` two, drawn anew for each plane.
"""

from mrhdata.degrade.degradation import Degradation
from mrhdata.degrade.fit import Fitted, fit_degradation
from mrhdata.degrade.published import PUBLISHED
from mrhdata.degrade.scan_time import scan_speedup
from mrhdata.degrade.steps import (
    Area,
    Between,
    Blur,
    Charging,
    Clip,
    Gain,
    Gaussian,
    IntensityGaussian,
    KeepMax,
    LineShift,
    Points,
    Poisson,
    Reduction,
    Rescale,
    SaltPepper,
    Speckle,
    Step,
    Stretch,
    Triangle,
    Zoom,
)

__all__ = [
    "PUBLISHED",
    "Area",
    "Between",
    "Blur",
    "Charging",
    "Clip",
    "Degradation",
    "Fitted",
    "Gain",
    "Gaussian",
    "IntensityGaussian",
    "KeepMax",
    "LineShift",
    "Points",
    "Poisson",
    "Reduction",
    "Rescale",
    "SaltPepper",
    "Speckle",
    "Step",
    "Stretch",
    "Triangle",
    "Zoom",
    "fit_degradation",
    "scan_speedup",
]
