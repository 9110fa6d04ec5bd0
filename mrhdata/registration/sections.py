"""Registration of one section to a volume: its plane, its position in the plane, and its tilt."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import DataError, GridError
from mrhdata.registration import initialize, linear
from mrhdata.registration.images import LevelImage, finest, levels, picture
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.construct import PLANES, SPATIAL
from mrhdata.volume.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

#: Voxels along the longest axis of the images that planes are compared on, and number of starts that are refined.
_COARSE, _REFINED = 48, 12


def register_section(
    section: xr.DataArray,
    volume: xr.DataArray,
    plane: str = "coronal",
    kind: str = "affine",
    *,
    flips: bool = True,
    section_mask: xr.DataArray | None = None,
    volume_mask: xr.DataArray | None = None,
    spacing_mm: float | None = None,
    seed: int = 0,
) -> Transform:
    """Find the plane of a volume from which a section was cut.

    Every plane is tried with the section's axes in every order and direction and with the foreground centroids
    aligned; the best twelve are refined in all six or twelve degrees of freedom, so an oblique cut is found.

    Parameters
    ----------
    section : volume
        Section of one voxel along one axis, such as a stained slide; its spacing must be correct within about a third.
    volume : volume
    plane : {"axial", "coronal", "sagittal"}
        Plane nearest to the cut.
    kind : {"rigid", "similarity", "affine"}
        Degrees of freedom of the last step.
    flips : bool
        Whether the section may be mirrored (either side of a slide may face up).
    section_mask, volume_mask : volume, optional
        Masks of the voxels that count.
    spacing_mm : float, optional
        Spacing of the finest level, as for :func:`mrhdata.register`.
    seed : int
        Random seed of the points at which mutual information is sampled.

    Returns
    -------
    transform : Transform
        Transform from world points of the section to those of the volume:
        ``mrhdata.resample(volume, section, transform)`` is the plane that matches the section.

    Raises
    ------
    DataError, GridError
        As for :func:`mrhdata.register`; GridError also if the section is not a plane.

    Examples
    --------
    >>> import mrhdata
    >>> brain = mrhdata.phantom.mouse_brain(spacing_mm=0.4)["t2w"]
    >>> transform = register_section(brain.isel(y=18), brain, "coronal", "rigid", flips=False)
    >>> point = brain.isel(y=18).mrh.world([0, 0, 0]) * [0, 1, 0]
    >>> bool(abs(transform.points(point) - point)[1] < 0.15)
    True
    """
    if plane not in PLANES:
        raise GridError(f"plane must be one of {', '.join(PLANES)}; got {plane!r}")
    if kind not in linear.MODELS:
        raise GridError(f"kind must be one of {', '.join(linear.MODELS)}; got {kind!r}")
    section = section.expand_dims([d for d in SPATIAL if d not in section.dims]).transpose(..., *SPATIAL)
    spacing = finest(section, volume, spacing_mm)
    section_image = picture(section, section_mask, spacing, "section")
    volume_image = picture(volume, volume_mask, spacing, "volume")
    shape = section_image.grid.shape
    if sum(n > 1 for n in shape) != 2:
        raise GridError(f"a section must be one voxel thick along one axis; got {shape}. Cut one with isel.")
    matrix = _find_start(section_image, volume_image, PLANES[plane], flips, seed)
    for model in dict.fromkeys(("rigid", kind)):
        for level in levels(section_image.grid, spacing):
            matrix = linear.fit(section_image.at(level), volume_image.at(level), model, matrix, linear.Search(seed))
    return Transform([Affine(matrix)], section.mrh.space, volume.mrh.space)


def _find_start(section: LevelImage, volume: LevelImage, axis: int, flips: bool, seed: int) -> Floats:
    spacing = float((np.array(volume.grid.shape) * volume.grid.spacing).max()) / _COARSE
    section, volume = section.at(spacing), volume.at(spacing)
    starts = [(initialize.score(section, volume, m), i, m) for i, m in enumerate(_starts(section, volume, axis, flips))]
    if not starts:
        raise DataError("the volume has no voxel brighter than its background; check it and its mask")
    starts.sort(key=lambda s: (-s[0], s[1]))
    refined = []
    for _, i, start in starts[:_REFINED]:
        try:
            matrix = linear.fit(section, volume, "rigid", start, linear.Search(seed, 40, 4_000))
        except DataError:
            matrix = start
        refined.append((initialize.score(section, volume, matrix), i, matrix))
    return max(refined, key=lambda r: (r[0], -r[1]))[2]


def _starts(section: LevelImage, volume: LevelImage, axis: int, flips: bool) -> list[Floats]:
    """Return matrices from section to volume world for each plane and each order and direction of the axes."""
    foreground = volume.foreground()
    thin = section.grid.shape.index(1)
    section_axes = _directions(section)[:, [thin, *(a for a in range(3) if a != thin)]]
    volume_axes = _directions(volume)
    plane_axes = [a for a in range(3) if a != axis]
    section_centre = section.centre()
    matrices = []
    for position in range(volume.grid.shape[axis]):
        bright = np.argwhere(foreground.take(position, axis=axis))
        if not len(bright):
            continue
        centroid = np.insert(bright.mean(axis=0), axis, position)
        for order, signs in itertools.product(itertools.permutations(plane_axes), itertools.product((1, -1), repeat=2)):
            signed = (sign * volume_axes[:, a] for sign, a in zip(signs, order, strict=True))
            target_axes = np.stack([volume_axes[:, axis], *signed], axis=1)
            turn = target_axes @ np.linalg.inv(section_axes)
            # A mirror image within the plane equals a turn that also reverses the thin axis.
            mirrored = bool(np.linalg.det(turn) < 0)
            if mirrored and flips:
                target_axes[:, 0] *= -1
                turn = target_axes @ np.linalg.inv(section_axes)
            elif mirrored:
                continue
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = turn, volume.grid.world(centroid) - turn @ section_centre
            matrices.append(matrix)
    return matrices


def _directions(image: LevelImage) -> Floats:
    """Return the world directions of the axes z, y, x as columns of (3, 3)."""
    return image.grid.affine[:3, :3] / image.grid.spacing
