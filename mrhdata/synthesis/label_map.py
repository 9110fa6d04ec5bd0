"""Label maps in memory: indices of structures, cropped to the tissue, with axes towards superior, anterior, right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mrhdata.errors import DataError, GridError
from mrhdata.synthesis.structures import Anatomy

if TYPE_CHECKING:
    import xarray as xr

#: Number of brain voxels that are kept as possible centres of patches.
_CENTRES = 4096


@dataclass(frozen=True)
class LabelMap:
    """A label map as a tensor.

    Attributes
    ----------
    indices : (z, y, x) tensor
        Index of the structure of each voxel, without empty planes around the tissue.
    spacing_mm : (3,) tuple of float
        Voxel size along z, y, x.
    start : (3,) tuple of int
        First plane of the indices along each axis of the whole map.
    centres : (n, 3) tensor
        Brain voxels, spread evenly over the brain.
    brain_bottom : float
        Lowest plane of the brain, in voxels.

    Examples
    --------
    >>> labels = np.zeros((6, 6, 6), np.uint8)
    >>> labels[2:5, 2:4, 1:4] = 7
    >>> LabelMap.make(labels, Anatomy.of_labels([7]), (1, 1, 1)).indices.shape
    torch.Size([3, 2, 3])
    """

    indices: Tensor
    spacing_mm: tuple[float, float, float]
    start: tuple[int, int, int]
    centres: Tensor
    brain_bottom: float

    @classmethod
    def make(
        cls,
        labels: Any,
        anatomy: Anatomy,
        spacing_mm: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> LabelMap:
        """Make a map of a label volume, or of an array (z, y, x) and its spacing.

        A volume with an orientation is reversed along axes that run towards inferior, posterior or left.

        Raises
        ------
        GridError
            If an array has no spacing or not three axes.
        DataError
            If the map is empty or has labels that the anatomy does not list.
        """
        if hasattr(labels, "mrh"):
            spacing_mm = labels.mrh.spacing if spacing_mm is None else spacing_mm
            labels = _upright(labels)
        if spacing_mm is None or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise GridError(f"spacing_mm must be three lengths above 0; got {spacing_mm}. Pass spacing_mm=(z, y, x).")
        values = np.asarray(labels)
        if values.ndim != 3 or values.dtype.kind not in "biu":
            raise GridError(
                f"labels must be whole numbers with the axes z, y, x; got {values.dtype} with {values.ndim} axes. "
                'Read them with kind="labels".'
            )
        box = _tissue_box(values)
        indices = torch.from_numpy(_structure_indices(values[box], anatomy))
        brain = anatomy.in_brain[indices.int()].nonzero()
        brain = brain if len(brain) else (indices > 0).nonzero()
        centres = brain[torch.linspace(0, len(brain) - 1, min(_CENTRES, len(brain))).long()]
        sizes = tuple(float(length) for length in spacing_mm)
        start = tuple(int(planes.start) for planes in box)
        return cls(indices.to(device), sizes, start, centres, float(brain[:, 0].min()))  # type: ignore[arg-type]


def _upright(volume: xr.DataArray) -> np.ndarray:
    """Return the values of a volume with axes that run towards superior, anterior and right."""
    steps = tuple(slice(None, None, -1 if letter in "IPL" else 1) for letter in volume.mrh.grid.orientation)
    return np.ascontiguousarray(volume.values[steps])


def _tissue_box(values: np.ndarray) -> tuple[slice, ...]:
    """Return the planes of each axis between the first and the last that are not all 0."""
    box = []
    for axis in range(3):
        planes = np.flatnonzero(values.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(planes):
            raise DataError("labels must have a voxel above 0; got an empty map. Pass a map with tissue.")
        box.append(slice(planes[0], planes[-1] + 1))
    return tuple(box)


def _structure_indices(values: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Return the index of each voxel's structure in the anatomy."""
    order = np.argsort(anatomy.labels)
    places = np.searchsorted(anatomy.labels, values, sorter=order).clip(max=len(order) - 1)
    indices = order[places]
    if (unknown := anatomy.labels[indices] != values).any():
        listed = np.unique(values[unknown]).tolist()
        raise DataError(f"labels must be listed in the anatomy; got {listed[:9]}. Add their structures to it.")
    return indices.astype(np.uint8 if len(order) <= 256 else np.int16)
