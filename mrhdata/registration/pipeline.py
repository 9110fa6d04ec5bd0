"""Registration: the transform that lays one volume on another, in steps from stiff to soft and from coarse to fine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import DataError, GridError
from mrhdata.registration import initialize, linear
from mrhdata.registration.demons import Deformation, deform
from mrhdata.registration.images import Picture, finest, levels, picture
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

STEPS = (*linear.MODELS, "bspline", "deform")
#: Linear steps see no more than so many voxels of the fixed volume: finer ones tell them nothing new.
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
    """Find the transform that lays `moving` on `fixed`.

    Parameters
    ----------
    moving, fixed : volume
        One channel each; any spacing and orientation. Voxels that are not finite take no part.
    kind : str
        Steps joined by ``+``, each going on from the one before: ``"rigid"``, ``"similarity"``, ``"affine"``
        (mutual information; affine begins with a rigid search), ``"bspline"`` (mutual information) and
        ``"deform"`` (local correlation, diffeomorphic).
    moving_mask, fixed_mask : volume, optional
        Where voxels count; on any grid of the volume's space.
    start : {"auto", "world", "geometry", "moments"} or Transform
        As the headers say, grid centres or centres of the foreground on each other; ``"auto"`` tries these
        and takes the best. A Transform from fixed to moving is taken as it is.
    orientations : {False, "rotations", True}
        Whether axes may be permuted and flipped: not, in the 24 ways that do not mirror, or in all 48.
    spacing_mm : float, optional
        Of the finest level; that of the coarser volume, but at most 1.5 million voxels, by default.
    deformation : Deformation, optional
        How stiff ``"deform"`` is.
    seed : int
        Of the points that mutual information is measured at.

    Returns
    -------
    transform : Transform
        From world points of `fixed` to those of `moving`, for :func:`mrhdata.resample`.

    Raises
    ------
    DataError
        Several channels, labels, no contrast, or nothing in common.
    GridError
        A mask lies in another space, a volume is a single plane, or an argument is none of its choices.

    Examples
    --------
    >>> import mrhdata
    >>> brain = mrhdata.phantom.mouse_brain(spacing_mm=0.6)["t2w"]
    >>> shift = Transform([Affine([[1, 0, 0, 0.7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])])
    >>> moved = mrhdata.resample(brain, brain, shift.inverse())
    >>> found = mrhdata.register(moved, brain, "rigid")
    >>> found.points([0, 0, 0]).round(1).tolist()
    [0.7, 0.0, 0.0]
    """
    steps = _steps(kind)
    spacing = finest(fixed, moving, spacing_mm)
    still, loose = picture(fixed, fixed_mask, spacing, "fixed"), picture(moving, moving_mask, spacing, "moving")
    for name, seen in (("fixed", still), ("moving", loose)):
        if min(seen.grid.shape) < 2:
            raise GridError(f"{name} is a plane of {seen.grid.shape} voxels; use mrhdata.registration.sections")
    transform = _begin(still, loose, start, orientations, seed)
    spacings = levels(still.grid, spacing)
    for step in steps:
        transform = _go(step, still, loose, transform, spacings, deformation or Deformation(), seed)
    return Transform(transform.steps, fixed.mrh.space, moving.mrh.space)


def rank_orientations(
    moving: xr.DataArray, fixed: xr.DataArray, *, mirrored: bool = True, seed: int = 0
) -> list[initialize.Start]:
    """The ways in which axes may be permuted and flipped, ranked by how well `moving` then fits `fixed`.

    Parameters
    ----------
    moving, fixed : volume
    mirrored : bool
        Whether mirror images are among them: 48 ways, or 24.
    seed : int

    Returns
    -------
    ranking : list of Start
        The best first.
    """
    spacing = max(float((np.array(v.mrh.grid.shape) * v.mrh.spacing).max()) / 48 for v in (moving, fixed))
    still, loose = picture(fixed, None, spacing, "fixed"), picture(moving, None, spacing, "moving")
    return initialize.rank(still, loose, "moments", True if mirrored else "rotations", seed)


def _steps(kind: str) -> list[str]:
    steps = kind.split("+")
    unknown = [s for s in steps if s not in STEPS]
    if unknown:
        raise GridError(f"kind joins steps of {', '.join(STEPS)} with '+', such as 'affine+deform', not {kind!r}")
    if "affine" in steps and "rigid" not in steps:
        steps.insert(steps.index("affine"), "rigid")
    return steps


def _begin(fixed: Picture, moving: Picture, start: str | Transform, turned: bool | str, seed: int) -> Transform:
    if isinstance(start, Transform):
        return start
    return Transform([Affine(initialize.rank(fixed, moving, start, turned, seed)[0].matrix)])


def _go(
    step: str,
    fixed: Picture,
    moving: Picture,
    transform: Transform,
    spacings: list[float],
    how: Deformation,
    seed: int,
) -> Transform:
    """One step more."""
    if step == "deform":
        return Transform([deform(fixed, moving, transform, spacings, how), *transform.steps])
    few = [s for s in spacings if np.prod(fixed.at(s).grid.shape) <= _LINEAR_VOXELS] or spacings[:1]
    if step == "bspline":
        at = few[-1]
        splines = linear.fit_splines(fixed.at(at), moving.at(at), transform, linear.Search(seed, 25))
        return Transform([splines, *transform.steps])
    if any(not isinstance(s, Affine) for s in transform.steps):
        raise GridError(f"the step {step!r} comes after a deformable one; put linear steps first")
    matrix: Floats = transform.affine()
    for spacing in few:
        matrix = linear.fit(fixed.at(spacing), moving.at(spacing), step, matrix, linear.Search(seed))
    if not np.linalg.det(matrix[:3, :3]):
        raise DataError("the volumes shrink to nothing on each other; check orientation and masks")
    return Transform([Affine(matrix)])
