"""Registration: find the transform that aligns two volumes, in steps from rigid to deformable and coarse to fine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import DataError, GridError
from mrhdata.registration import initialize, linear
from mrhdata.registration.demons import Deformation, deform
from mrhdata.registration.images import LevelImage, finest, levels, picture
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.assumptions import LENGTHS, require_stated, warn_of_assumed
from mrhdata.volume.checks import check_volume
from mrhdata.volume.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

STEPS = (*linear.MODELS, "bspline", "deform")
#: Maximum number of voxels of the fixed volume in linear steps, which finer levels do not improve.
_LINEAR_VOXELS = 400_000


def register(
    moving: xr.DataArray,
    fixed: xr.DataArray,
    kind: str = "affine+deform",
    *,
    moving_mask: xr.DataArray | None = None,
    fixed_mask: xr.DataArray | None = None,
    start: str | Transform = "auto",
    orientations: bool | str = False,
    spacing_mm: float | None = None,
    deformation: Deformation | None = None,
    seed: int = 0,
) -> Transform:
    """Find the transform that aligns `moving` with `fixed`.

    Parameters
    ----------
    moving, fixed : volume
        Volumes of one channel each, of any spacing and orientation. Voxels that are not finite are ignored.
    kind : str
        Steps joined by ``+``, each starting from the result of the previous one: ``"rigid"``, ``"similarity"``,
        ``"affine"`` (mutual information; affine begins with a rigid search), ``"bspline"`` (mutual information) and
        ``"deform"`` (local correlation, diffeomorphic).
    moving_mask, fixed_mask : volume, optional
        Masks of the voxels that count, on any grid of the volume's space.
    start : {"auto", "world", "geometry", "moments"} or Transform
        Initial alignment by the headers, by the grid centres, or by the centroids of the foreground; ``"auto"`` tries
        all three and uses the best. A Transform from fixed to moving is used as it is.
    orientations : {False, "rotations", True}
        Permutations and flips of the axes to try: none, the 24 that do not mirror, or all 48.
    spacing_mm : float, optional
        Spacing of the finest level; by default that of the coarser volume, limited to 1.5 million voxels.
    deformation : Deformation, optional
        Settings of ``"deform"``.
    seed : int
        Random seed of the points at which mutual information is sampled.

    Returns
    -------
    transform : Transform
        Transform from world points of `fixed` to those of `moving`, for :func:`mrhdata.resample`.

    Raises
    ------
    DataError
        A volume has several channels, holds labels or has no contrast, or the volumes do not overlap.
    GridError
        A mask is in another space, a volume is a single plane, an argument has an unknown value, or the file of a
        volume states no voxel size or unit. An orientation that is not stated is a warning: `orientations` tries all.

    Examples
    --------
    >>> import mrhdata
    >>> brain = mrhdata.phantom.mouse_brain(spacing_mm=0.6)["t2w"]
    >>> shift = Transform([Affine([[1, 0, 0, 0.7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])])
    >>> moved = mrhdata.resample(brain, brain, shift.inverse())
    >>> transform = mrhdata.register(moved, brain, "rigid")
    >>> transform.points([0, 0, 0]).round(1).tolist()
    [0.7, 0.0, 0.0]
    """
    steps = _parse_steps(kind)
    for role, volume in (("moving", moving), ("fixed", fixed)):
        check_volume(role, volume)
        # Smoothing, levels and a rigid transform are in mm.
        require_stated(volume, role, *LENGTHS)
    if not orientations:
        warn_of_assumed({"moving": moving, "fixed": fixed}, "register", "orientation")
    spacing = finest(fixed, moving, spacing_mm)
    fixed_image = picture(fixed, fixed_mask, spacing, "fixed")
    moving_image = picture(moving, moving_mask, spacing, "moving")
    for name, image in (("fixed", fixed_image), ("moving", moving_image)):
        if min(image.grid.shape) < 2:
            raise GridError(
                f"{name} must have two voxels or more along each axis; got {image.grid.shape}. For planes, use "
                "mrhdata.registration.sections."
            )
    transform = _initial_transform(fixed_image, moving_image, start, orientations, seed)
    spacings = levels(fixed_image.grid, spacing)
    for step in steps:
        transform = _run_step(step, fixed_image, moving_image, transform, spacings, deformation or Deformation(), seed)
    return Transform(transform.steps, fixed.mrh.space, moving.mrh.space)


def rank_orientations(
    moving: xr.DataArray, fixed: xr.DataArray, *, mirrored: bool = True, seed: int = 0
) -> list[initialize.Start]:
    """Rank all permutations and flips of the axes by how well `moving` then matches `fixed`.

    Parameters
    ----------
    moving, fixed : volume
    mirrored : bool
        Whether to include mirror images: 48 orientations instead of 24.
    seed : int
        Random seed of the points at which mutual information is sampled.

    Returns
    -------
    ranking : list of Start
        Starts, best first.
    """
    spacing = max(float((np.array(v.mrh.grid.shape) * v.mrh.spacing).max()) / 48 for v in (moving, fixed))
    fixed_image = picture(fixed, None, spacing, "fixed")
    moving_image = picture(moving, None, spacing, "moving")
    return initialize.rank(fixed_image, moving_image, "moments", True if mirrored else "rotations", seed)


def _parse_steps(kind: str) -> list[str]:
    steps = kind.split("+")
    unknown = [s for s in steps if s not in STEPS]
    if unknown:
        raise GridError(
            f"kind must be steps from {', '.join(STEPS)} joined by '+', such as 'affine+deform'; got {kind!r}"
        )
    if "affine" in steps and "rigid" not in steps:
        steps.insert(steps.index("affine"), "rigid")
    return steps


def _initial_transform(
    fixed: LevelImage, moving: LevelImage, start: str | Transform, orientations: bool | str, seed: int
) -> Transform:
    if isinstance(start, Transform):
        return start
    return Transform([Affine(initialize.rank(fixed, moving, start, orientations, seed)[0].matrix)])


def _run_step(
    step: str,
    fixed: LevelImage,
    moving: LevelImage,
    transform: Transform,
    spacings: list[float],
    deformation: Deformation,
    seed: int,
) -> Transform:
    """Improve a transform by one step of a registration."""
    if step == "deform":
        return Transform([deform(fixed, moving, transform, spacings, deformation), *transform.steps])
    linear_spacings = [s for s in spacings if np.prod(fixed.at(s).grid.shape) <= _LINEAR_VOXELS] or spacings[:1]
    if step == "bspline":
        finest_spacing = linear_spacings[-1]
        search = linear.Search(seed, 25)
        splines = linear.fit_splines(fixed.at(finest_spacing), moving.at(finest_spacing), transform, search)
        return Transform([splines, *transform.steps])
    if any(not isinstance(s, Affine) for s in transform.steps):
        raise GridError(f"the step {step!r} must come before deformable steps; put linear steps first")
    matrix: Floats = transform.affine()
    for spacing in linear_spacings:
        matrix = linear.fit(fixed.at(spacing), moving.at(spacing), step, matrix, linear.Search(seed))
    if not np.linalg.det(matrix[:3, :3]):
        raise DataError("the registration collapsed to a singular matrix; check orientation and masks")
    return Transform([Affine(matrix)])
