"""The voxels for which a prediction is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrhdata.errors import DataError, ParameterError
from mrhdata.patching.sources import one_grid
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box
from mrhdata.volume.groups import stack

if TYPE_CHECKING:
    import xarray as xr


class RegionOfInterest:
    """Voxels for which a prediction is wanted: all, those of a mask on any grid, or those that were ever stored.

    Parameters
    ----------
    mask : mask volume, "stored" or None
        Mask, stored chunks of the first input, or the whole volume.
    reference : volume
        Volume whose grid the boxes refer to.
    source : TensorSource
        Inputs.

    Raises
    ------
    ParameterError
        If the mask is another word.
    DataError
        If the mask covers no voxel.
    """

    def __init__(self, mask: xr.DataArray | str | None, reference: xr.DataArray, source: TensorSource) -> None:
        self._shape, self._stored = source.grid.shape, None
        self._mask: TensorSource | None = None
        self._coarse: NDArray[np.bool_] | None = None
        if isinstance(mask, str):
            if mask != "stored":
                raise ParameterError(f"mask must be a mask volume or 'stored'; got {mask!r}")
            self._stored = source.stored
        elif mask is not None:
            mask = mask.assign_attrs(kind="mask")
            self._mask = one_grid({"mask": mask}, source.shape, reference, True, exact=True)
            if not mask.mrh.grid.same_as(reference.mrh.grid):
                # A mask on a coarser grid fits in memory, and one lookup in it rules out a whole box.
                self._coarse = np.asarray(stack({"mask": mask}).isel(c=0).data) != 0
                self._to_mask = np.linalg.solve(mask.mrh.grid.affine, reference.mrh.grid.affine)
            self._check_not_empty()

    def _check_not_empty(self) -> None:
        """Raise DataError if the mask covers no voxel."""
        mask = self._mask
        assert mask is not None
        for index in np.ndindex(*mask.tiles):
            low = [i * t for i, t in zip(index, mask.tile, strict=True)]
            tile = Box.of(low, [b + t for b, t in zip(low, mask.tile, strict=True)])
            if self.of(tile.clip(mask.grid.shape)).any():
                return
        raise DataError("the mask is empty. Pass a mask that covers part of the volumes")

    def any(self, box: Box) -> bool:
        """Return whether a box has a wanted voxel."""
        clipped = box.clip(self._shape)
        if self._stored is not None:
            return self._stored(clipped)
        if self._mask is None:
            return True
        if self._coarse is not None and not self._may_overlap(clipped):
            return False
        return bool(self.of(clipped).any())

    def of(self, box: Box) -> NDArray[np.bool_]:
        """Return the wanted voxels (z, y, x) of a box within the volume."""
        if self._mask is None:
            return np.ones(box.shape, dtype=bool)
        values = self._mask.voxels(box)[0]
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(f"{np.isnan(values).sum()} mask voxels from {box.start} on are NaN; set them to 0")
        return np.asarray(values != 0)

    def outside(self, box: Box, stride: Sequence[float], offset: Sequence[float]) -> NDArray[np.bool_] | None:
        """Return the unwanted voxels of a box on an output grid, by the nearest input voxel; None without a mask.

        Parameters
        ----------
        box : Box
            Box on the output grid.
        stride, offset : (3,) sequence of float
            Input voxels from one output voxel to the next, and input position of the first output voxel.
        """
        if self._mask is None:
            return None
        rows = zip(box.start, box.stop, stride, offset, self._shape, strict=True)
        nearest = [np.clip(np.floor(np.arange(a, b) * s + o + 0.5).astype(int), 0, n - 1) for a, b, s, o, n in rows]
        low = [int(axis[0]) for axis in nearest]
        wanted = self.of(Box.of(low, [int(axis[-1]) + 1 for axis in nearest]))
        return ~wanted[np.ix_(*(axis - b for axis, b in zip(nearest, low, strict=True)))]

    def _may_overlap(self, box: Box) -> bool:
        """Return whether a mask on another grid has voxels near a box."""
        assert self._coarse is not None
        corners = np.array(list(itertools.product(*zip(box.start, [h - 1 for h in box.stop], strict=True))))
        indices = corners @ self._to_mask[:3, :3].T + self._to_mask[:3, 3]
        low = np.maximum(np.floor(indices.min(axis=0)).astype(int) - 1, 0)
        high = np.ceil(indices.max(axis=0)).astype(int) + 2
        return bool(self._coarse[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))].any())
