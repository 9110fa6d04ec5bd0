"""The grid that a network was trained on: upright, of its spacing, and of a fixed extent where it wants one."""

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
    """The grid along world S, A, R at a spacing that holds all of another one.

    Where that one is upright itself, and of this spacing, their voxels are the same (in another order, if its
    axes point elsewhere).

    Parameters
    ----------
    grid : Grid
    spacing_mm : (3,) sequence of float
        Along z, y, x.

    Examples
    --------
    >>> mirrored = Grid((2, 3, 4), np.array([[0, 0, -1, 3.0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]))
    >>> upright(mirrored, (1, 1, 1)).affine[:3, 3].tolist(), upright(mirrored, (1, 1, 2)).shape
    ([0.0, 0.0, 0.0], (2, 3, 2))
    """
    step = np.asarray(spacing_mm, dtype=np.float64)
    ends = list(itertools.product(*[(-0.5, n - 0.5) for n in grid.shape]))
    corners = grid.world(np.array(ends))  # (8, 3) X, Y, Z
    low, high = corners.min(axis=0)[::-1], corners.max(axis=0)[::-1]  # z, y, x
    counts = np.maximum(1, np.ceil((high - low) / step - 1e-3)).astype(int)
    # About one middle, so that what a coarser grid reaches over is the same on both sides; but where the
    # spacing is the same, on the voxels themselves.
    start = low + step / 2 + ((high - low) - counts * step) / 2
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = step
    affine[:3, 3], affine[3, 3] = start[::-1], 1.0
    return Grid(_three(counts), affine)


def fitted(grid: Grid, shape: Sequence[int]) -> Grid:
    """The grid cut or extended to a shape about its middle.

    Examples
    --------
    >>> grid = Grid((4, 4, 4), np.eye(4)[[2, 1, 0, 3]])
    >>> fitted(grid, (2, 4, 8)).world((0, 0, 0)).tolist()
    [-2.0, 0.0, 1.0]
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"a shape has three lengths along z, y, x, not {tuple(shape)}")
    first = [(n - m) // 2 for n, m in zip(grid.shape, shape, strict=True)]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.world(np.array(first, dtype=np.float64))
    return Grid(_three(shape), affine)


def on_grid(volumes: dict[str, xr.DataArray], grid: Grid) -> dict[str, xr.DataArray]:
    """All volumes of a group at the voxels of one grid, images by cubic B-splines; beyond them lies 0.

    Linear interpolation blurs: labels of a volume at other spacing lose another half percent of Dice to it
    (``benchmarks/studies/tissue.py``).
    """
    return {name: resample(volume, grid, order=3) for name, volume in volumes.items()}


def _three(shape: Any) -> tuple[int, int, int]:
    z, y, x = (int(n) for n in shape)
    return (z, y, x)
