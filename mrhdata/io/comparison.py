"""Differences between two volumes in world space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import GridError
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr


def difference(first: xr.DataArray, second: xr.DataArray) -> dict[str, Any]:
    """Compare two volumes at the voxels of the first that lie in both, in world space.

    If the grids differ, the second volume is interpolated at the voxels of the first, linearly (labels and
    masks: nearest neighbour).

    Parameters
    ----------
    first, second : xarray.DataArray
        Volumes in one world space.

    Returns
    -------
    differences : dict
        ``same`` says whether geometry and values are equal. ``compared`` is the fraction of the first
        volume's voxels that lie in the second; over these voxels are ``max_difference``,
        ``mean_difference``, ``different`` (number of voxels) and ``correlation``.

    Raises
    ------
    GridError
        They lie in different spaces, have different channels, or do not overlap.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> a = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> difference(a, a[::-1])["same"], difference(a, a + 1)["max_difference"]
    (True, 1.0)
    """
    if first.mrh.space != second.mrh.space:
        raise GridError(f"spaces differ: {first.mrh.space!r} and {second.mrh.space!r}; register one to the other first")
    first_grid, second_grid = first.mrh.grid, second.mrh.grid
    a, b = (v.expand_dims([d for d in SPATIAL if d not in v.dims]).transpose(..., *SPATIAL) for v in (first, second))
    extra = a.shape[:-3]
    if extra != b.shape[:-3]:
        raise GridError(f"times and channels differ: {extra} and {b.shape[:-3]}; select one of each first")
    order = 0 if {"labels", "mask"} & {first.attrs["kind"], second.attrs["kind"]} else 1
    to_second = np.linalg.inv(second_grid.affine) @ first_grid.affine
    total = _Differences()
    values = np.asarray(b.data)
    for z in range(first_grid.shape[0]):
        plane = np.asarray(a.isel(z=z).data)
        total.add(*_paired_values(plane, values, to_second, z, order))
    if not total.compared:
        raise GridError("the volumes do not overlap in world space; is one header wrong?")
    same_grid = first_grid.shape == second_grid.shape and bool(
        np.allclose(np.sort(first_grid.corners(), 0), np.sort(second_grid.corners(), 0), atol=1e-6)
    )
    voxels = int(np.prod(first_grid.shape)) * int(np.prod(extra))
    return {
        "same": same_grid and total.different == 0 and total.compared == voxels,
        "same_grid": same_grid,
        "orientation": [first_grid.orientation, second_grid.orientation],
        "spacing_mm": [first_grid.spacing.round(9).tolist(), second_grid.spacing.round(9).tolist()],
        "dtype": [str(first.dtype), str(second.dtype)],
        "compared": total.compared / max(1, voxels),
        **total.scores(),
    }


def _paired_values(
    plane: np.ndarray, values: np.ndarray, to_second: np.ndarray, z: int, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a plane (..., y, x) of the first volume and of the second at the same world points.

    Points outside of the second volume are left out.
    """
    from scipy.ndimage import map_coordinates

    y, x = np.indices(plane.shape[-2:])
    index = np.stack([np.full(y.shape, z), y, x, np.ones(y.shape)], axis=-1) @ to_second[:3].T
    # Grids that differ only in the order of axes meet at whole indices; then nothing is interpolated.
    whole = np.rint(index)
    index = np.where(np.abs(index - whole) < 1e-4, whole, index)
    inside = ((index >= 0) & (index <= np.array(values.shape[-3:]) - 1)).all(-1)
    points = index[inside].T
    flat = values.reshape(-1, *values.shape[-3:])
    if (points == np.rint(points)).all():
        voxels = tuple(points.astype(int))
        paired = np.stack([volume[voxels] for volume in flat])
    else:
        paired = np.stack([map_coordinates(volume, points, order=order, output=np.float64) for volume in flat])
    return plane.reshape(-1, *plane.shape[-2:])[:, inside].ravel(), paired.ravel()


class _Differences:
    """Sums over voxels, from which the differences are computed."""

    def __init__(self) -> None:
        self.compared = self.different = 0
        self._largest = 0.0
        self._absolute_sum = 0.0
        #: Count and sums of x, y, xx, yy, xy.
        self._moments = np.zeros(6)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.compared += a.size
        both_missing = np.zeros(a.shape, bool)
        if a.dtype.kind == "f" and b.dtype.kind == "f":
            both_missing = np.isnan(a) & np.isnan(b)
        self.different += int(((a != b) & ~both_missing).sum())
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        distance = np.abs(x - y)
        self._largest = max(self._largest, float(distance.max(initial=0.0)))
        self._moments += [x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        self._absolute_sum += float(distance.sum())

    def scores(self) -> dict[str, Any]:
        n, x, y, xx, yy, xy = self._moments
        spread = max(0.0, n * xx - x * x) * max(0.0, n * yy - y * y)
        return {
            "different": self.different,
            "max_difference": self._largest,
            "mean_difference": float(self._absolute_sum / max(1.0, n)),
            "correlation": float((n * xy - x * y) / np.sqrt(spread)) if spread > 0 else None,
        }
