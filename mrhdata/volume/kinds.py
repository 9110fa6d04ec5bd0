"""Signs that the values of a volume are labels: whole numbers in connected regions.

Many programs store labels as floating-point numbers, and few formats have a field that says what values are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

#: Places of the planes that are read, as shares of the first spatial axis.
_PLANES = (0.3, 0.5, 0.7)
#: Share of voxels above 0 whose neighbour has the same value, from which values are labels. It is at most 0.32 in eight
#: integer images of MRI and microscopes, and at least 0.49 in label maps of tissues, nuclei and mouse regions.
_ALIKE = 0.4
#: Distance from a whole number up to which a value counts as one: scaled files round.
TOLERANCE = 1e-3


def some_planes(volume: xr.DataArray) -> np.ndarray:
    """Return a few planes of a volume, in memory.

    Examples
    --------
    >>> import mrhdata
    >>> some_planes(mrhdata.from_array(np.zeros((9, 4, 5)), spacing=(1, 1, 1))).shape
    (3, 4, 5)
    """
    axis = volume.dims.index("z") if "z" in volume.dims else 0
    n = volume.shape[axis]
    indices = sorted({int(share * n) for share in _PLANES})
    return np.asarray(da.take(da.asarray(volume.data), indices, axis=axis).compute(scheduler="threads"))


def are_whole(values: np.ndarray) -> bool:
    """Return whether all values are finite whole numbers.

    Examples
    --------
    >>> are_whole(np.array([0.0, 2.0])), are_whole(np.array([0.5])), are_whole(np.array([np.nan]))
    (True, False, False)
    """
    if values.dtype.kind in "iub":
        return True
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values - np.rint(values)) < TOLERANCE).all())


def look_like_labels(values: np.ndarray) -> bool:
    """Return whether values are whole numbers in connected regions, as labels are and images hardly ever.

    Examples
    --------
    >>> regions = np.repeat([[0.0, 3.0, 7.0]], 8, axis=1)
    >>> look_like_labels(regions), look_like_labels(np.arange(24.0))
    (True, False)
    """
    if not are_whole(values):
        return False
    whole = values if values.dtype.kind in "iu" else np.rint(values)
    first, second = whole[..., :-1], whole[..., 1:]
    inside = first > 0
    return bool(inside.any() and np.ptp(whole) > 0 and (first == second)[inside].mean() > _ALIKE)


def warning_of_labels(volume: xr.DataArray, values: np.ndarray | None = None) -> list[str]:
    """Return a sentence if the values of an image look like labels.

    Parameters
    ----------
    volume : xarray.DataArray
        Volume of any kind.
    values : array, optional
        Its values, or a part of them; by default a few planes are read.

    Examples
    --------
    >>> import mrhdata
    >>> regions = np.repeat(np.repeat([[[1.0, 2.0]]], 4, axis=2), 3, axis=0)
    >>> warning_of_labels(mrhdata.from_array(regions, spacing=(1, 1, 1)))[0].partition(";")[0]
    'values are whole numbers in connected regions, as labels are, but the volume counts as an image'
    """
    if volume.attrs.get("kind") != "image":
        return []
    looked_at: Any = some_planes(volume) if values is None else values
    if not look_like_labels(looked_at):
        return []
    return [
        "values are whole numbers in connected regions, as labels are, but the volume counts as an image; pass "
        'kind="labels" (--kind labels) or kind="mask" if they are'
    ]
