"""The voxels for which a prediction is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError
from mrhdata.patching.sources import one_grid
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box
from mrhdata.volume.groups import stack

if TYPE_CHECKING:
    import xarray as xr


class RegionOfInterest:
    """Where a map is wanted: everywhere, in a mask of any grid, or where voxels were ever stored.

    Parameters
    ----------
    where : mask volume, "stored" or None
    first : volume
        Whose voxels count.
    stream : Stream
        The inputs.
    """

    def __init__(self, where: xr.DataArray | str | None, first: xr.DataArray, stream: TensorSource) -> None:
        self._shape, self._stored = stream.grid.shape, None
        self._mask: TensorSource | None = None
        self._coarse: NDArray[np.bool_] | None = None
        if isinstance(where, str):
            if where != "stored":
                raise DataError(f"where is a mask or 'stored', not {where!r}")
            self._stored = stream.stored
        elif where is not None:
            where = where.assign_attrs(kind="mask")
            self._mask = one_grid({"mask": where}, stream.shape, first, True, exact=True)
            if not where.mrh.grid.same_as(first.mrh.grid):
                # A mask of a coarser grid is small, and says in one look where there is nothing.
                self._coarse = np.asarray(stack({"mask": where}).isel(c=0).data) != 0
                self._turn = np.linalg.solve(where.mrh.grid.affine, first.mrh.grid.affine)
            self._check()

    def _check(self) -> None:
        """A mask that covers nothing is a mistake."""
        mask = self._mask
        assert mask is not None
        for place in np.ndindex(*mask.tiles):
            low = [i * t for i, t in zip(place, mask.tile, strict=True)]
            tile = Box.of(low, [b + t for b, t in zip(low, mask.tile, strict=True)])
            if self.of(tile.clip(mask.grid.shape)).any():
                return
        raise DataError("the mask is empty; give one that covers part of the volumes")

    def any(self, box: Box) -> bool:
        """Whether some of a box is wanted."""
        inside = box.clip(self._shape)
        if self._stored is not None:
            return self._stored(inside)
        if self._mask is None:
            return True
        if self._coarse is not None and not self._near(inside):
            return False
        return bool(self.of(inside).any())

    def of(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of a box within the volume are wanted: (z, y, x)."""
        if self._mask is None:
            return np.ones(box.shape, dtype=bool)
        values = self._mask.voxels(box)[0]
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(f"{np.isnan(values).sum()} mask voxels from {box.start} on are NaN; set them to 0")
        return np.asarray(values != 0)

    def outside(self, box: Box, jump: Sequence[float], first: Sequence[float]) -> NDArray[np.bool_] | None:
        """Which voxels of a box of another grid are not wanted: those whose nearest voxel is not; None for none."""
        if self._mask is None:
            return None
        rows = zip(box.start, box.stop, jump, first, self._shape, strict=True)
        near = [np.clip(np.floor(np.arange(a, b) * j + f + 0.5).astype(int), 0, n - 1) for a, b, j, f, n in rows]
        low = [int(axis[0]) for axis in near]
        wanted = self.of(Box.of(low, [int(axis[-1]) + 1 for axis in near]))
        return ~wanted[np.ix_(*(axis - b for axis, b in zip(near, low, strict=True)))]

    def _near(self, box: Box) -> bool:
        """Whether a mask of another grid has voxels about a box."""
        assert self._coarse is not None
        ends = np.array(list(itertools.product(*zip(box.start, [h - 1 for h in box.stop], strict=True))))
        places = ends @ self._turn[:3, :3].T + self._turn[:3, 3]
        low = np.maximum(np.floor(places.min(axis=0)).astype(int) - 1, 0)
        high = np.ceil(places.max(axis=0)).astype(int) + 2
        return bool(self._coarse[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))].any())
