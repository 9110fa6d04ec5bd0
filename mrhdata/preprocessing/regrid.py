"""Grids for networks: upright, at the spacing of training and, if needed, of a fixed shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import GridError
from mrhdata.registration.resampling import resample
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr


def upright(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """Return a grid along world S, A, R at a new spacing that covers `grid`.

    If `grid` is upright and has this spacing, both grids have the same voxels (in another order if its axes point
    in other directions).

    Parameters
    ----------
    grid : Grid
    spacing_mm : (3,) sequence of float
        Spacing along z, y, x.

    Examples
    --------
    >>> mirrored = Grid((2, 3, 4), np.array([[0, 0, -1, 3.0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    >>> upright(mirrored, (1, 1, 1)).affine[:3, 3].tolist(), upright(mirrored, (1, 1, 2)).shape
    ([0.0, 0.0, 0.0], (2, 3, 2))
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    corner_indices = list(itertools.product(*[(-0.5, n - 0.5) for n in grid.shape]))
    corners = grid.world(np.array(corner_indices))  # (8, 3) X, Y, Z
    low, high = corners.min(axis=0)[::-1], corners.max(axis=0)[::-1]  # z, y, x
    shape = np.maximum(1, np.ceil((high - low) / spacing - 1e-3)).astype(int)
    # Both grids have one centre, so that a coarser grid extends equally beyond both sides; at the same spacing, the
    # voxels coincide.
    start = low + spacing / 2 + ((high - low) - shape * spacing) / 2
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[:3, 3], affine[3, 3] = start[::-1], 1.0
    return Grid(_to_shape(shape), affine)


def crop_or_pad(grid: Grid, shape: Sequence[int]) -> Grid:
    """Crop or extend a grid to a shape about its centre.

    Examples
    --------
    >>> grid = Grid((4, 4, 4), np.eye(4)[[2, 1, 0, 3]])
    >>> crop_or_pad(grid, (2, 4, 8)).world((0, 0, 0)).tolist()
    [-2.0, 0.0, 1.0]
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"shape must be three positive lengths along z, y, x; got {tuple(shape)}")
    first = [(n - m) // 2 for n, m in zip(grid.shape, shape, strict=True)]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(np.array(first, dtype=np.float64))
    return Grid(_to_shape(shape), affine)


def resample_group(volumes: dict[str, xr.DataArray], grid: Grid) -> dict[str, xr.DataArray]:
    """Resample all volumes of a group to one grid, images by cubic B-splines; voxels outside a volume become 0.

    Linear interpolation blurs, which costs another 0.5 % of Dice in labels of a volume at another spacing
    (``benchmarks/studies/tissue.py``).
    """
    return {
        name: volume if volume.mrh.grid.same_as(grid) else resample(volume, grid, order=3)
        for name, volume in volumes.items()
    }


def _to_shape(shape: Any) -> tuple[int, int, int]:
    z, y, x = (int(n) for n in shape)
    return (z, y, x)
