"""Rigid, similar and affine registration, and B-splines, through SimpleITK and Mattes' mutual information.

Mattes et al. 2003, IEEE Trans. Med. Imaging 22:120. One thread and one seed, so that the same volumes give
the same transform on every machine: sums over threads come out in another order each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk

from mrhdata.errors import DataError
from mrhdata.registration import itk
from mrhdata.registration.images import Picture, pulled
from mrhdata.registration.transforms import Displacement, Transform
from mrhdata.volume.grid import Floats

_MODELS: dict[str, Any] = {
    "rigid": sitk.Euler3DTransform,
    "similarity": sitk.Similarity3DTransform,
    "affine": partial(sitk.AffineTransform, 3),
}
MODELS = tuple(_MODELS)
#: Points of the fixed picture that the metric looks at; as many as there are voxels where those are fewer.
_SAMPLES = 20_000
_BINS = 32
#: Distance of a B-spline's control points, as a share of the longest axis.
_CONTROL_SHARE = 1 / 7


@dataclass(frozen=True)
class Search:
    """Where a search looks and how long: points of the fixed picture, drawn by the seed, and iterations."""

    seed: int = 0
    iterations: int = 100
    samples: int = _SAMPLES


def fit(fixed: Picture, moving: Picture, model: str, start: Floats, search: Search) -> Floats:
    """The matrix (4, 4) from fixed to moving world that fits best, near `start`; `start` itself where none fits better.

    Parameters
    ----------
    fixed, moving : Picture
        At one level.
    model : {"rigid", "similarity", "affine"}
        What may change against `start`.
    start : (4, 4) array
    search : Search
    """
    fixed, moving = fixed.thick(), moving.thick()
    change = _MODELS[model]()
    change.SetCenter(itk.points(fixed.centre()).tolist())
    method = _method(fixed, moving, search)
    # The change comes first and leads to where `start` begins.
    method.SetMovingInitialTransform(itk.matrix_to_itk(start))
    method.SetInitialTransform(change, True)
    method.SetOptimizerAsConjugateGradientLineSearch(
        learningRate=1.0,
        numberOfIterations=search.iterations,
        convergenceMinimumValue=1e-6,
        convergenceWindowSize=8,
        estimateLearningRate=method.EachIteration,
        maximumStepSizeInPhysicalUnits=float(fixed.grid.spacing.max()),
    )
    method.SetOptimizerScalesFromPhysicalShift()
    return start @ itk.from_itk(change).affine() if _better(method, fixed, moving) else start


def fit_splines(fixed: Picture, moving: Picture, start: Transform, search: Search) -> Displacement:
    """Cubic B-splines to go before `start`.

    Rueckert et al. 1999, IEEE Trans. Med. Imaging 18:712; control points a seventh of the longest axis apart.
    """
    fixed, moving = fixed.thick(), moving.thick()
    extent = np.array(fixed.grid.shape) * fixed.grid.spacing
    mesh = np.maximum(1, np.rint(extent / (extent.max() * _CONTROL_SHARE))).astype(int)
    picture = itk.image(fixed.values, fixed.grid)
    change = sitk.BSplineTransformInitializer(picture, mesh[::-1].tolist(), 3)
    # ITK cannot differentiate through an earlier B-spline: the moving picture goes through it beforehand.
    moving = pulled(moving, fixed, start)
    method = _method(fixed, moving, search)
    method.SetInitialTransform(change, True)
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5,
        numberOfIterations=search.iterations,
        maximumNumberOfFunctionEvaluations=search.iterations + 10,
    )
    if not _better(method, fixed, moving):
        change.SetParameters([0.0] * change.GetNumberOfParameters())
    return itk.from_itk(change).steps[0]  # type: ignore[return-value]


def _method(fixed: Picture, moving: Picture, search: Search) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    # Points between the voxels also where there are few: at voxels, the two grids on each other would be the sharpest
    # picture, and pull the result by up to a quarter of a voxel (Tsao 2003, IEEE Trans. Med. Imaging 22:854).
    method.SetMetricSamplingStrategy(method.RANDOM)
    # ITK takes 0 for "by the clock".
    method.SetMetricSamplingPercentage(min(1.0, search.samples / fixed.values.size), search.seed % 2**31 + 1)
    if not fixed.inside.all():
        method.SetMetricFixedMask(itk.image(fixed.inside.astype(np.uint8), fixed.grid))
    if not moving.inside.all():
        method.SetMetricMovingMask(itk.image(moving.inside.astype(np.uint8), moving.grid))
    return method


def _better(method: Any, fixed: Picture, moving: Picture) -> bool:
    """Search; whether it ended better than it began. On noise a search may run off and lose sight of the volume."""
    pair = itk.image(fixed.values, fixed.grid), itk.image(moving.values, moving.grid)
    with _one_thread():
        try:
            before = method.MetricEvaluate(*pair)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[-160:]
            raise DataError(
                f"the volumes cannot be compared where they overlap: check masks and orientation, or use "
                f"start='moments' ({detail})"
            ) from error
        try:
            method.Execute(*pair)
        except RuntimeError:
            return False
    return bool(method.GetMetricValue() <= before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK's metrics take their threads from the global default alone; it is put back afterwards."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
