"""Volumes: plain ``xarray.DataArray`` whose geometry stays true.

A volume has the dims ``t, c, z, y, x`` (any subset, in this order). The coordinates ``z``, ``y`` and
``x`` are the distances of the voxel centres along the array axes in millimetres, and
``attrs["affine"]`` maps those distances ``(z, y, x, 1)`` to world ``(X, Y, Z, 1)`` millimetres, RAS+.
Spacing lives in the coordinates and direction in the affine, so slicing, striding, reversing and
``sel`` keep the geometry without our help. `accessor` makes ``volume.mrh`` of :class:`Geometry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from mrhdata.errors import GridError
from mrhdata.volume.grid import Floats, check_affine, nearest_axes

DIMS = ("t", "c", "z", "y", "x")


SPATIAL = ("z", "y", "x")


KINDS = ("image", "labels", "mask")


#: The axis that each anatomical plane holds fixed.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


#: A stack without orientation: z, y, x lie along world Z, Y, X.
UNORIENTED = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def from_array(
    array: Any,
    *,
    spacing: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    dims: Sequence[str] | None = None,
    space: str = "scanner",
    kind: str = "image",
    name: str | None = None,
    **attrs: Any,
) -> xr.DataArray:
    """Make a volume of an array and its geometry.

    Parameters
    ----------
    array : NumPy or Dask array
        Never copied.
    spacing : sequence of float, one per spatial axis
        Millimetres between voxel centres, for an array without orientation: its axes are kept and
        lie along world Z, Y, X.
    affine : (4, 4) array-like
        Maps the voxel index along the array's three spatial axes, in the array's own order, to world
        millimetres, RAS+. The axes are permuted (never flipped) so that ``z``, ``y``, ``x`` are those
        nearest world S, A, R; ``attrs["source_axes"]`` remembers the order they had.
    dims : sequence of str, optional
        Names of the array's axes; by default the last ones of ``t, c, z, y, x``. Where an affine is
        given, the names of the three spatial axes only say which they are.
    space : str
        Name of the world space: ``"scanner"``, ``"MNI152"``, ``"CCFv3"``.
    kind : {"image", "labels", "mask"}
    name : str, optional
    **attrs
        Further attributes, such as ``units`` (of the values), ``modality``, ``provenance``.

    Returns
    -------
    volume : xarray.DataArray

    Raises
    ------
    GridError
        Neither or both of `spacing` and `affine` are given, or they do not fit the array.

    Examples
    --------
    >>> v = from_array(np.zeros((2, 3, 4)), spacing=(0.5, 0.1, 0.1))
    >>> v.mrh.world([1, 0, 2]).round(9).tolist()
    [0.2, 0.0, 0.5]

    A file stored right, anterior, superior becomes z, y, x:

    >>> v = from_array(np.zeros((4, 3, 2)), affine=np.diag([1, 2, 3, 1]))
    >>> v.dims, v.shape, v.attrs["source_axes"]
    (('z', 'y', 'x'), (2, 3, 4), ['x', 'y', 'z'])
    """
    dims = tuple(dims) if dims is not None else DIMS[len(DIMS) - array.ndim :]
    if len(dims) != array.ndim or len(set(dims)) != len(dims) or not set(dims) <= set(DIMS):
        raise GridError(f"the array has shape {array.shape} but dims are {dims}; name each axis once, from {DIMS}")
    if (spacing is None) == (affine is None):
        raise GridError("give either spacing (no orientation) or affine (orientation and spacing), not both or neither")
    if affine is None:
        return _from_spacing(array, np.asarray(spacing, dtype=np.float64), dims, space, kind, name, attrs)
    spatial = [d for d in dims if d in SPATIAL]
    if len(spatial) != 3:
        raise GridError(f"an affine places three spatial axes, but the array has {spatial}; add axes of length 1")
    matrix = check_affine(affine)
    order = nearest_axes(matrix[:3, :3])
    renamed = {spatial[axis]: name for axis, name in zip(order, SPATIAL, strict=True)}
    file_dims = [renamed.get(d, d) for d in dims]
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    axis_affine = np.eye(4)
    axis_affine[:3, :3] = (matrix[:3, :3] / steps)[:, order]
    axis_affine[:3, 3] = matrix[:3, 3]
    wanted = [d for d in DIMS if d in file_dims]
    # A Dask array that is transposed to itself no longer shows the file that it is.
    data = array if wanted == file_dims else array.transpose([file_dims.index(d) for d in wanted])
    attrs["source_axes"] = file_dims
    return place(data, wanted, steps[list(order)], axis_affine, space=space, kind=kind, name=name, **attrs)


def _from_spacing(
    array: Any, spacing: Floats, dims: tuple[str, ...], space: str, kind: str, name: str | None, attrs: dict[str, Any]
) -> xr.DataArray:
    """Place an array whose axes keep their order; a 2D one becomes the plane z = 0."""
    spatial = [d for d in dims if d in SPATIAL]
    if spacing.shape != (len(spatial),):
        raise GridError(f"spacing {spacing.tolist()} does not fit the axes {spatial}; give one number for each")
    if list(dims) != [d for d in DIMS if d in dims]:
        raise GridError(f"without an affine the axes are ordered {DIMS}, not {dims}; transpose the array first")
    # An absent axis is one voxel thick, as thick as the finest of the others.
    steps = [spacing[spatial.index(d)] if d in spatial else spacing.min() for d in SPATIAL]
    return place(array, dims, steps, UNORIENTED, space=space, kind=kind, name=name, **attrs)


def place(
    data: Any,
    dims: Sequence[str],
    spacing: ArrayLike,
    affine: ArrayLike,
    *,
    space: str,
    start: ArrayLike = (0.0, 0.0, 0.0),
    kind: str = "image",
    name: str | None = None,
    **attrs: Any,
) -> xr.DataArray:
    """Make a volume of data whose axes are already ``t, c, z, y, x`` in order.

    Parameters
    ----------
    data : NumPy or Dask array
    dims : sequence of str
        Its axes; a spatial axis that is missing becomes a scalar coordinate.
    spacing : (3,) array-like
        Millimetres along z, y, x, positive.
    affine : (4, 4) array-like
        Maps axis distances ``(z, y, x, 1)`` in mm to world mm: ``attrs["affine"]``.
    start : (3,) array-like
        Axis distance of the first voxel along z, y, x, in mm.
    space, kind, name, **attrs
        As for :func:`from_array`.

    Examples
    --------
    >>> place(np.zeros((2, 2)), "yx", (1, 1, 1), np.eye(4), space="scanner").mrh.grid.shape
    (1, 2, 2)
    """
    steps = np.asarray(spacing, dtype=np.float64)
    if steps.shape != (3,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise GridError(f"spacing along z, y, x is three positive numbers of mm, not {steps.tolist()}")
    if kind not in KINDS:
        raise GridError(f"kind is one of {KINDS}, not {kind!r}")
    matrix, sizes = check_affine(affine), dict(zip(dims, data.shape, strict=True))
    coords: dict[str, Any] = {}
    for dim, step, first in zip(SPATIAL, steps, np.asarray(start, dtype=np.float64), strict=True):
        distance = first + np.arange(sizes[dim]) * step if dim in sizes else first
        coords[dim] = (dim if dim in sizes else (), distance, {"spacing_mm": float(step), "units": "mm"})
    # As `with_frame` does, in one step: each change of coordinates would cost as much as all of this.
    coords["frame"] = _frame(matrix, space)
    attrs = {"kind": kind, **attrs, "affine": matrix.tolist(), "space": space}
    # Renamed, because without a name xarray takes that of the Dask graph.
    return xr.DataArray(data, dims=tuple(dims), coords=coords, attrs=attrs).rename(name)


def describe(volume: xr.DataArray, **attrs: Any) -> xr.DataArray:
    """Return the volume with attributes set; ``name`` and ``space`` too; None leaves one as it is.

    Examples
    --------
    >>> v = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> describe(v, space="CCFv3", modality="histology").mrh.space
    'CCFv3'
    """
    given = {key: value for key, value in attrs.items() if value is not None}
    space = given.pop("space", None)
    volume = volume.rename(given.pop("name", volume.name)).assign_attrs(given)
    return volume if space is None else with_frame(volume, volume.mrh.affine, space)


def with_frame(volume: xr.DataArray, affine: Floats, space: str) -> xr.DataArray:
    """Set affine and space, and a coordinate that changes with them.

    Where volumes of two frames are joined, xarray keeps the first one's attrs without a word, but not
    a scalar coordinate: ``frame`` then becomes an array or disappears, and ``.mrh`` refuses.
    """
    volume = volume.assign_attrs(affine=affine.tolist(), space=space)
    return volume.assign_coords(frame=_frame(affine, space))


def _frame(affine: Floats, space: str) -> str:
    # Adding 0 turns -0.0, which equals 0.0, into it.
    return f"{space}:{hashlib.blake2s((affine + 0.0).tobytes(), digest_size=4).hexdigest()}"
