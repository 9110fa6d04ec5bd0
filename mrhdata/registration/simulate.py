"""Random misregistration: volumes moved by smooth displacement fields of known size.

As MRH-Net's authors simulated it (Liang et al. 2022, eLife 11:e72331, figure 1, supplement 1): Gaussian
displacements at the points of a 1 mm grid in the coronal plane, B-splines between them. The two components
are normal, so the length of a displacement follows a Rayleigh distribution; 0.65 to 0.8 voxels is the
mismatch that they saw (70 % within one voxel, 95 % within two).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mrhdata.errors import DataError, GridError
from mrhdata.volume.construct import PLANES, SPATIAL

Floats = NDArray[np.float64]


def displacement(
    volume: xr.DataArray, size: float, *, seed: int, grid_mm: float = 1.0, plane: str | None = "coronal"
) -> Floats:
    """Draw a smooth random displacement for every voxel.

    Parameters
    ----------
    volume : volume
        Of whose grid.
    size : float
        Root mean square of each component in voxels: the scale of the Rayleigh distribution. The root of
        the mean squared length is ``sqrt(2)`` times it in a plane, ``sqrt(3)`` times in space.
    seed : int
    grid_mm : float
        Between the points at which displacements are drawn.
    plane : {"coronal", "axial", "sagittal"} or None
        Voxels move within this plane, each plane by a field of its own, as sections do. None: in space.

    Returns
    -------
    field : (3, z, y, x) array
        Voxels along z, y, x from where a voxel is to where its value is taken.

    Raises
    ------
    DataError
        A size below 0 or a grid finer than the voxels.
    GridError
        An unknown plane.

    Notes
    -----
    Fields whose size nears the distance of the grid's points fold: some voxels change places.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.zeros((4, 3, 50), np.float32), spacing=(0.1, 0.1, 0.1))
    >>> field = displacement(v, 0.7, seed=0)
    >>> field.shape, field[1].any().item(), np.sqrt((field**2).mean(axis=(1, 2, 3))).round(2).tolist()
    ((3, 4, 3, 50), False, [0.7, 0.0, 0.7])
    """
    if plane is not None and plane not in PLANES:
        raise GridError(f"plane is one of {', '.join(PLANES)}, or None for all directions, not {plane!r}")
    if size < 0:
        raise DataError(f"a displacement of {size} voxels has no meaning; give 0 or more")
    shape, steps = volume.mrh.grid.shape, grid_mm / np.asarray(volume.mrh.spacing)
    fixed = None if plane is None else PLANES[plane]
    if (steps[[axis for axis in range(3) if axis != fixed]] < 1).any():
        raise DataError(
            f"a grid of {grid_mm} mm is finer than voxels of {volume.mrh.spacing.tolist()} mm; use a coarser one"
        )
    field, rng = np.zeros((3, *shape)), np.random.default_rng(seed)
    if not size:
        return field
    for axis in range(3):
        if fixed is None:
            field[axis] = _smooth(shape, steps, rng)
        elif axis != fixed:
            flat, flat_steps = np.delete(shape, fixed), np.delete(steps, fixed)
            planes = [_smooth(flat, flat_steps, rng) for _ in range(shape[fixed])]
            field[axis] = np.stack(planes, axis=fixed)
    rms = np.sqrt((field**2).mean(axis=(1, 2, 3), keepdims=True))
    return np.divide(size * field, rms, out=np.zeros_like(field), where=rms > 0)


def _smooth(shape: NDArray[np.int64] | tuple[int, ...], steps: Floats, rng: np.random.Generator) -> Floats:
    """Normal values at points `steps` voxels apart, and cubic B-splines between them."""
    counts = [int(np.ceil((n - 1) / step)) + 3 for n, step in zip(shape, steps, strict=True)]
    # One point beyond each border, and the grid begins anywhere.
    axes = [(np.arange(n) / step) + 0.5 + rng.random() for n, step in zip(shape, steps, strict=True)]
    return np.asarray(
        map_coordinates(rng.standard_normal(counts), np.meshgrid(*axes, indexing="ij"), order=3, mode="mirror")
    )


def displaced(volume: xr.DataArray, field: Floats) -> xr.DataArray:
    """Move the values of a volume; where it lies stays as it is.

    Parameters
    ----------
    volume : volume
        Images are interpolated linearly, labels and masks taken from the nearest voxel; beyond the border
        the nearest voxel is repeated. Read into memory.
    field : (3, z, y, x) array
        From :func:`displacement`; one field may move several volumes of a grid.

    Returns
    -------
    volume : xarray.DataArray
        In memory, same coordinates and attributes; images of integers are rounded.

    Raises
    ------
    GridError
        The field has another shape.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(4.0).reshape(1, 1, 4), spacing=(1, 1, 1))
    >>> shift = np.zeros((3, 1, 1, 4))
    >>> shift[2] = 0.5
    >>> displaced(v, shift).values.ravel().tolist()
    [0.5, 1.5, 2.5, 3.0]
    """
    shape = tuple(volume.sizes.get(dim, 1) for dim in SPATIAL)
    if field.shape != (3, *shape):
        raise GridError(f"the field has shape {field.shape} but the volume needs {(3, *shape)}; draw one on its grid")
    where = np.indices(shape) + field
    labels = volume.attrs.get("kind") in ("labels", "mask")
    values = np.asarray(volume.data)
    moved = []
    for part in values.reshape(-1, *shape):
        found = map_coordinates(
            part if labels else part.astype(np.float64), where, order=0 if labels else 1, mode="nearest"
        )
        moved.append(np.rint(found) if values.dtype.kind in "iu" else found)
    return volume.copy(data=np.stack(moved).astype(values.dtype).reshape(values.shape))
