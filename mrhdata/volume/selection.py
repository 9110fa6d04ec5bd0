"""Parts of a volume by world points in mm instead of voxels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata.errors import GridError, ParameterError
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.groups import nonzero

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats, Grid

#: World axes in the order of points (X, Y, Z): right, anterior, superior.
AXES = ("X", "Y", "Z")
#: Largest cosine between a world axis and another voxel axis for which planes of voxels are planes of the world.
_ALIGNED = 1e-3
#: Voxels by which a point may lie beyond the centres of the outermost ones: half of one, and rounding.
_EDGE = 0.5 + 1e-6


def nearest(volume: xr.DataArray, point: Mapping[str, float]) -> xr.DataArray:
    """Return the voxel, line or plane of voxels nearest to world coordinates.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume with a geometry.
    point : mapping of {"X", "Y", "Z"} to float
        World coordinates in mm. In an oblique volume all three are needed, because a plane of the world crosses planes
        of voxels there.

    Returns
    -------
    xarray.DataArray
        Part without the axes that the point fixes.

    Raises
    ------
    GridError
        If the point lies outside of the volume, or the volume is oblique and a coordinate is missing.
    ParameterError
        If an axis is unknown or no number is passed.

    Examples
    --------
    >>> import mrhdata
    >>> volume = mrhdata.from_array(np.arange(24).reshape(2, 3, 4), spacing=(1, 1, 1))
    >>> int(nearest(volume, {"X": 2.2, "Y": 0.9, "Z": 0})), nearest(volume, {"Z": 1}).dims
    (6, ('y', 'x'))
    """
    numbers = {axis: _number(axis, value) for axis, value in _known(point).items()}
    grid = volume.mrh.grid
    if len(numbers) == len(AXES):
        index = grid.index([numbers[axis] for axis in AXES])
        fixed = dict(zip(SPATIAL, index, strict=True))
    else:
        fixed = dict(_along_axis(grid, axis, value) for axis, value in numbers.items())
    selected = {}
    for dim, value in fixed.items():
        n = grid.shape[SPATIAL.index(dim)]
        if not -_EDGE <= value <= n - 1 + _EDGE:
            at = ", ".join(f"{axis} {value:g}" for axis, value in numbers.items())
            raise GridError(f"the point must lie in the volume, {_extent(grid)}; got {at}. Pass a point inside")
        selected[dim] = min(max(round(value), 0), n - 1)
    return volume.isel({dim: index for dim, index in selected.items() if dim in volume.dims})


def crop(volume: xr.DataArray, ranges: Mapping[str, Any]) -> xr.DataArray:
    """Return the smallest box of voxels with all voxel centres within ranges of world coordinates.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume with a geometry.
    ranges : mapping of {"X", "Y", "Z"} to (low, high)
        Range in mm along each world axis; axes that are absent are not cropped. The box of an oblique volume contains
        further voxels.

    Raises
    ------
    GridError
        If no voxel lies within the ranges.
    ParameterError
        If an axis is unknown, or a range is not a pair of numbers, low before high.

    Examples
    --------
    >>> import mrhdata
    >>> volume = mrhdata.from_array(np.zeros((5, 6, 7)), spacing=(1, 1, 2))
    >>> part = crop(volume, {"X": (3, 8), "Z": (-10, 1)})
    >>> part.shape, part.mrh.world([0, 0, 0]).tolist()
    ((2, 6, 3), [4.0, 0.0, 0.0])
    """
    bounds = {axis: _range(axis, value) for axis, value in _known(ranges).items()}
    grid = volume.mrh.grid
    corners = grid.corners()
    low = [bounds.get(axis, (value, 0))[0] for axis, value in zip(AXES, corners.min(0), strict=True)]
    high = [bounds.get(axis, (0, value))[1] for axis, value in zip(AXES, corners.max(0), strict=True)]
    # Beyond the volume the corners of the ranges of an oblique one would widen the box for nothing.
    low, high = np.maximum(low, corners.min(0)), np.minimum(high, corners.max(0))
    indices = grid.index(np.array(list(itertools.product(*zip(low, high, strict=True)))))
    start = np.maximum(np.ceil(indices.min(0) - 1e-6), 0).astype(int)
    stop = np.minimum(np.floor(indices.max(0) + 1e-6) + 1, grid.shape).astype(int)
    if (low > high + 1e-6).any() or (start >= stop).any():
        asked = ", ".join(f"{axis} {a:g} to {b:g}" for axis, (a, b) in bounds.items())
        raise GridError(f"ranges must contain voxels of the volume, {_extent(grid)}; got {asked}. Pass others")
    return _part(volume, Box.of(start, stop))


def crop_to(volume: xr.DataArray, mask: xr.DataArray, margin_mm: float = 0.0) -> xr.DataArray:
    """Return the smallest box of a volume that contains a mask of the same world space, and a margin.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume with a geometry.
    mask : xarray.DataArray
        Mask or labels on any grid; voxels other than 0 count.
    margin_mm : float
        Width of the margin.

    Raises
    ------
    GridError
        If the spaces differ, the mask is empty, or it lies outside of the volume.
    ParameterError
        If the margin is negative.

    Examples
    --------
    >>> import mrhdata
    >>> volume = mrhdata.from_array(np.zeros((5, 6, 7)), spacing=(1, 1, 1))
    >>> mask = volume.copy(data=np.pad([[[1]]], ((2, 2), (3, 2), (1, 5))))
    >>> crop_to(volume, mask, margin_mm=1).shape
    (3, 3, 3)
    """
    if not margin_mm >= 0:
        raise ParameterError(f"margin_mm must be 0 or more; got {margin_mm}. Pass a width in mm")
    if volume.mrh.space != mask.mrh.space:
        raise GridError(
            f"volume and mask must be in one space; got {volume.mrh.space!r} and {mask.mrh.space!r}. Register one to "
            "the other first"
        )
    first, last = _ends(mask)
    corners = np.array(list(itertools.product(*zip(first, last, strict=True))))
    grid = volume.mrh.grid
    indices = grid.index(mask.mrh.grid.world(corners))
    margin = margin_mm / grid.spacing
    start = np.floor(indices.min(0) - margin + 1e-6).astype(int)
    stop = np.ceil(indices.max(0) + margin - 1e-6).astype(int) + 1
    box = Box.of(start, stop).intersect(Box((0, 0, 0), grid.shape))
    if box is None:
        raise GridError(f"the mask must lie in the volume, {_extent(grid)}; got one outside. Pass another mask")
    return _part(volume, box)


def _ends(mask: xr.DataArray) -> tuple[list[int], list[int]]:
    """Return the first and the last voxel of a mask along z, y, x; it need not fit in memory."""
    inside = mask.copy(data=da.map_blocks(nonzero, da.asarray(mask.data), dtype=bool))
    lines = [inside.any([d for d in inside.dims if d != dim]) if dim in inside.dims else None for dim in SPATIAL]
    places = [[0] if line is None else np.flatnonzero(line) for line in da.compute(*lines)]
    if not all(len(place) for place in places):
        raise GridError("the mask must have a voxel other than 0; got none. Pass another mask")
    return [int(place[0]) for place in places], [int(place[-1]) for place in places]


def _part(volume: xr.DataArray, box: Box) -> xr.DataArray:
    """Return the voxels of a box."""
    return volume.isel({d: s for d, s in zip(SPATIAL, box.slices, strict=True) if d in volume.dims})


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping whose axes are checked."""
    unknown = [axis for axis in values if axis not in AXES]
    if unknown or not values:
        raise ParameterError(
            f"world axes must be some of X (right), Y (anterior), Z (superior); got {unknown or 'none'}. Pass X=, Y= "
            "or Z= in mm"
        )
    return values


def _number(axis: str, value: Any) -> float:
    """Return a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise ParameterError(f"{axis} must be a number in mm; got {value!r}. For a range use .mrh.crop")
    return number


def _range(axis: str, value: Any) -> tuple[float, float]:
    """Return two finite numbers, low before high."""
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not low <= high:
        raise ParameterError(f"{axis} must be a range (low, high) in mm; got {value!r}. Put the lower number first")
    return low, high


def _along_axis(grid: Grid, axis: str, value: float) -> tuple[str, float]:
    """Return the dim whose planes have one world coordinate, and the index of such a plane."""
    directions: Floats = grid.affine[:3, :3] / grid.spacing
    cosines = np.abs(directions[AXES.index(axis)])
    dim = int(np.argmax(cosines))
    if np.delete(cosines, dim).max() > _ALIGNED:
        raise GridError(
            f"{axis} must be passed with the two other world axes, because the volume is oblique ({grid.orientation}, "
            f"{np.degrees(np.arccos(min(1.0, cosines[dim]))):.1f} degrees). Pass X, Y and Z, or resample it upright"
        )
    row = grid.affine[AXES.index(axis)]
    return SPATIAL[dim], float((value - row[3]) / row[dim])


def _extent(grid: Grid) -> str:
    """Return the world coordinates that a volume covers."""
    corners = grid.corners()
    ranges = zip(AXES, corners.min(0), corners.max(0), strict=True)
    return ", ".join(f"{axis} {low:.4g} to {high:.4g} mm" for axis, low, high in ranges)
