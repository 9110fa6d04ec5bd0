"""Rigid, similarity, affine and B-spline registration with SimpleITK and Mattes' mutual information.

Mattes et al. 2003, IEEE Trans. Med. Imaging 22:120. One thread and one seed, so that the same volumes give the same
transform on every machine: several threads would add up sums in a different order in each run.
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
from mrhdata.registration.images import LevelImage, pulled
from mrhdata.registration.transforms import Displacement, Transform
from mrhdata.volume.grid import Floats

_MODELS: dict[str, Any] = {
    "rigid": sitk.Euler3DTransform,
    "similarity": sitk.Similarity3DTransform,
    "affine": partial(sitk.AffineTransform, 3),
}
MODELS = tuple(_MODELS)
#: Maximum number of points of the fixed image that the metric samples.
_SAMPLES = 20_000
_BINS = 32
#: Distance between the control points of a B-spline, as a share of the longest axis.
_CONTROL_SHARE = 1 / 7


@dataclass(frozen=True)
class Search:
    """Settings of a search: its random seed, maximum number of iterations, and sampled points of the fixed image."""

    seed: int = 0
    iterations: int = 100
    samples: int = _SAMPLES


def fit(fixed: LevelImage, moving: LevelImage, model: str, start: Floats, search: Search) -> Floats:
    """Search near `start` for the best matrix (4, 4) from fixed to moving world; return `start` if none is better.

    Parameters
    ----------
    fixed, moving : Picture
        Images of one level.
    model : {"rigid", "similarity", "affine"}
        Degrees of freedom of the change of `start`.
    start : (4, 4) array
    search : Search
    """
    fixed, moving = fixed.thick(), moving.thick()
    change = _MODELS[model]()
    change.SetCenter(itk.points(fixed.centre()).tolist())
    method = _set_up(fixed, moving, search)
    # The change is applied before `start`.
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
    return start @ itk.from_itk(change).affine() if _search_improves(method, fixed, moving) else start


def fit_splines(fixed: LevelImage, moving: LevelImage, start: Transform, search: Search) -> Displacement:
    """Fit cubic B-splines to apply before `start`.

    Rueckert et al. 1999, IEEE Trans. Med. Imaging 18:712. Control points are a seventh of the longest axis apart.
    """
    fixed, moving = fixed.thick(), moving.thick()
    extent = np.array(fixed.grid.shape) * fixed.grid.spacing
    mesh = np.maximum(1, np.rint(extent / (extent.max() * _CONTROL_SHARE))).astype(int)
    image = itk.image(fixed.values, fixed.grid)
    change = sitk.BSplineTransformInitializer(image, mesh[::-1].tolist(), 3)
    # ITK cannot differentiate through another B-spline, so the moving image is resampled through `start` first.
    moving = pulled(moving, fixed, start)
    method = _set_up(fixed, moving, search)
    method.SetInitialTransform(change, True)
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5,
        numberOfIterations=search.iterations,
        maximumNumberOfFunctionEvaluations=search.iterations + 10,
    )
    if not _search_improves(method, fixed, moving):
        change.SetParameters([0.0] * change.GetNumberOfParameters())
    return itk.from_itk(change).steps[0]  # type: ignore[return-value]


def _set_up(fixed: LevelImage, moving: LevelImage, search: Search) -> Any:
    """Return ITK's registration method with its metric, its sampling and the masks."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    # Sample between voxels even if there are few: at voxels, the metric peaks when the two grids coincide, which biases
    # the result by up to a quarter of a voxel (Tsao 2003, IEEE Trans. Med. Imaging 22:854).
    method.SetMetricSamplingStrategy(method.RANDOM)
    # ITK takes a seed of 0 from the clock.
    method.SetMetricSamplingPercentage(min(1.0, search.samples / fixed.values.size), search.seed % 2**31 + 1)
    if not fixed.inside.all():
        method.SetMetricFixedMask(itk.image(fixed.inside.astype(np.uint8), fixed.grid))
    if not moving.inside.all():
        method.SetMetricMovingMask(itk.image(moving.inside.astype(np.uint8), moving.grid))
    return method


def _search_improves(method: Any, fixed: LevelImage, moving: LevelImage) -> bool:
    """Run the search and return whether the metric improved; on noise a search may diverge and leave the volume."""
    pair = itk.image(fixed.values, fixed.grid), itk.image(moving.values, moving.grid)
    with _one_thread():
        try:
            before = method.MetricEvaluate(*pair)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[-160:]
            raise DataError(
                "the volumes must overlap inside their masks to be compared. Check masks and orientation, or pass "
                f"start='moments' ({detail})"
            ) from error
        try:
            method.Execute(*pair)
        except RuntimeError:
            return False
    return bool(method.GetMetricValue() <= before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Set ITK's global number of threads, the only setting that its metrics use, to 1; restore it afterwards."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
