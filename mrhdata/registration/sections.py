"""One section laid into a volume: which plane it is, how it lies in it, and how it is tilted."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import DataError, GridError
from mrhdata.registration import initialize, linear
from mrhdata.registration.images import Picture, finest, levels, picture
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.volume.construct import PLANES, SPATIAL
from mrhdata.volume.grid import Floats

if TYPE_CHECKING:
    import xarray as xr

#: Voxels along the longest axis of the pictures in which planes are compared, and how many starts go on.
_COARSE, _SECOND_ROUND = 48, 12


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
    """Find where in a volume a section was cut.

    Every plane is tried with the section's axes in every order and direction, the centres of what is bright
    on each other; the best twelve are searched in all six or twelve degrees of freedom, so an oblique cut is found.

    Parameters
    ----------
    section : volume
        One voxel thick along one axis, such as a stained slide; its spacing must be true within a third or so.
    volume : volume
    plane : {"axial", "coronal", "sagittal"}
        Nearest which the section was cut.
    kind : {"rigid", "similarity", "affine"}
        What may change in the end.
    flips : bool
        Whether the section may be mirrored (a slide lies either side up).
    section_mask, volume_mask : volume, optional
        Where voxels count.
    spacing_mm : float, optional
        Of the finest level, as for :func:`mrhdata.register`.
    seed : int

    Returns
    -------
    transform : Transform
        From world points of the section to those of the volume:
        ``mrhdata.resample(volume, section, transform)`` is the plane that belongs to the section.

    Raises
    ------
    DataError, GridError
        As for :func:`mrhdata.register`; the section is no plane.

    Examples
    --------
    >>> import mrhdata
    >>> brain = mrhdata.phantom.mouse_brain(spacing_mm=0.4)["t2w"]
    >>> found = register_section(brain.isel(y=18), brain, "coronal", "rigid", flips=False)
    >>> at = brain.isel(y=18).mrh.world([0, 0, 0]) * [0, 1, 0]
    >>> bool(abs(found.points(at) - at)[1] < 0.15)
    True
    """
    if plane not in PLANES:
        raise GridError(f"plane is one of {', '.join(PLANES)}, not {plane!r}")
    if kind not in linear.MODELS:
        raise GridError(f"kind is one of {', '.join(linear.MODELS)}, not {kind!r}")
    section = section.expand_dims([d for d in SPATIAL if d not in section.dims]).transpose(..., *SPATIAL)
    spacing = finest(section, volume, spacing_mm)
    still, loose = picture(section, section_mask, spacing, "section"), picture(volume, volume_mask, spacing, "volume")
    if sum(n > 1 for n in still.grid.shape) != 2:
        raise GridError(f"a section is one voxel thick along one axis, not {still.grid.shape}; cut one with isel")
    matrix = _place(still, loose, PLANES[plane], flips, seed)
    for model in dict.fromkeys(("rigid", kind)):
        for step in levels(still.grid, spacing):
            matrix = linear.fit(still.at(step), loose.at(step), model, matrix, linear.Search(seed))
    return Transform([Affine(matrix)], section.mrh.space, volume.mrh.space)


def _place(section: Picture, volume: Picture, axis: int, flips: bool, seed: int) -> Floats:
    coarse = float((np.array(volume.grid.shape) * volume.grid.spacing).max()) / _COARSE
    section, volume = section.at(coarse), volume.at(coarse)
    starts = [(initialize.score(section, volume, m), i, m) for i, m in enumerate(_starts(section, volume, axis, flips))]
    if not starts:
        raise DataError("the volume holds nothing brighter than its background; check it and its mask")
    starts.sort(key=lambda s: (-s[0], s[1]))
    tried = []
    for _, i, start in starts[:_SECOND_ROUND]:
        try:
            found = linear.fit(section, volume, "rigid", start, linear.Search(seed, 40, 4_000))
        except DataError:
            found = start
        tried.append((initialize.score(section, volume, found), i, found))
    return max(tried, key=lambda t: (t[0], -t[1]))[2]


def _starts(section: Picture, volume: Picture, axis: int, flips: bool) -> list[Floats]:
    """Section to volume world: each plane, each order and direction of the axes."""
    bright = volume.foreground()
    thin = section.grid.shape.index(1)
    own = _unit(section)[:, [thin, *(a for a in range(3) if a != thin)]]
    axes = _unit(volume)
    rows = [a for a in range(3) if a != axis]
    here = section.centre()
    found = []
    for position in range(volume.grid.shape[axis]):
        places = np.argwhere(bright.take(position, axis=axis))
        if not len(places):
            continue
        index = np.insert(places.mean(axis=0), axis, position)
        for order, signs in itertools.product(itertools.permutations(rows), itertools.product((1, -1), repeat=2)):
            theirs = np.stack([axes[:, axis], *(s * axes[:, a] for s, a in zip(signs, order, strict=True))], axis=1)
            turn = theirs @ np.linalg.inv(own)
            # Within a plane, a mirror image is a turn about an axis of it; the thin axis tells the two apart.
            mirrored = bool(np.linalg.det(turn) < 0)
            if mirrored and flips:
                theirs[:, 0] *= -1
                turn = theirs @ np.linalg.inv(own)
            elif mirrored:
                continue
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = turn, volume.grid.world(index) - turn @ here
            found.append(matrix)
    return found


def _unit(of: Picture) -> Floats:
    """World directions (3, 3) of the axes z, y, x in columns."""
    return of.grid.affine[:3, :3] / of.grid.spacing
