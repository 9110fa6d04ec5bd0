"""Degradation of good images, to make training pairs for restoration.

``steps``: noise, blur, distortion and reduction of a plane. ``degradation``: a sequence of steps for NumPy, Dask and
torch. ``published``: the known "crappifiers". ``fit``: a degradation estimated from a few real pairs. ``scan_time``:
the time of a raster scan. Torch is not needed.

Every step acts on single planes of values from 0 (black) to 1 (white) and takes a random generator. Every plane has
its own generator, so that the result is the same in NumPy, in Dask with any chunks, and in a batch of tensors. A
parameter of a step may be a `Between`, which is drawn anew for each plane.
"""

from mrhdata.degrade.degradation import Degradation
from mrhdata.degrade.fit import FittedDegradation, fit_degradation
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
    "FittedDegradation",
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
