"""Construction of volumes: plain ``xarray.DataArray`` that keep their geometry.

A volume has the dims ``t, c, z, y, x`` (any subset, in this order). The coordinates ``z``, ``y`` and
``x`` are the distances of the voxel centres along the array axes in millimetres, and
``attrs["affine"]`` maps those distances ``(z, y, x, 1)`` to world ``(X, Y, Z, 1)`` millimetres, RAS+.
The coordinates contain the spacing and the affine the direction, so slicing, striding, reversing and
``sel`` keep the geometry. `accessor` registers :class:`Geometry` as ``volume.mrh``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from mrhdata.errors import GridError, ParameterError
from mrhdata.volume.grid import Floats, check_affine, nearest_axes

DIMS = ("t", "c", "z", "y", "x")


SPATIAL = ("z", "y", "x")


KINDS = ("image", "labels", "mask")


#: Most voxels along an axis. Coordinates take 8 bytes each, also of voxels that exist only in a damaged header.
LONGEST_AXIS = 10_000_000


#: Anatomical plane -> axis that is constant in it.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


#: Affine of a stack without orientation: z, y, x lie along world Z, Y, X.
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
    """Make a volume from an array and its geometry.

    Parameters
    ----------
    array : NumPy or Dask array
        Values, which are not copied.
    spacing : sequence of float, one per spatial axis
        Millimetres between voxel centres, for an array without orientation: its axes are kept and
        lie along world Z, Y, X.
    affine : (4, 4) array-like
        Matrix from the voxel index along the array's three spatial axes, in the array's order, to world
        millimetres, RAS+. The axes are permuted (never flipped) so that ``z``, ``y``, ``x`` are those
        nearest world S, A, R; ``attrs["source_axes"]`` records their original order.
    dims : sequence of str, optional
        Names of the array's axes; by default the last ones of ``t, c, z, y, x``. With an affine,
        the names of the three spatial axes only mark which axes are spatial.
    space : str
        Name of the world space: ``"scanner"``, ``"MNI152"``, ``"CCFv3"``.
    kind : {"image", "labels", "mask"}
        Kind of the values.
    name : str, optional
    **attrs
        Further attributes, such as ``units`` (of the values), ``modality``, ``provenance``.

    Returns
    -------
    volume : xarray.DataArray

    Raises
    ------
    GridError
        Neither or both of `spacing` and `affine` are passed, or they do not fit the array.
    ParameterError
        `kind` is unknown.

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
    if not hasattr(array, "ndim"):
        array = np.asarray(array)
    dims = tuple(dims) if dims is not None else DIMS[len(DIMS) - array.ndim :]
    if len(dims) != array.ndim or len(set(dims)) != len(dims) or not set(dims) <= set(DIMS):
        raise GridError(f"dims must name each axis of the array of shape {array.shape} once, from {DIMS}; got {dims}")
    if (spacing is None) == (affine is None):
        raise GridError("pass either spacing (no orientation) or affine (orientation and spacing), not both or neither")
    if affine is None:
        return _from_spacing(array, np.asarray(spacing, dtype=np.float64), dims, space, kind, name, attrs)
    spatial = [d for d in dims if d in SPATIAL]
    if len(spatial) != 3:
        raise GridError(f"an affine needs three spatial axes; got {spatial}. Add axes of length 1")
    matrix = check_affine(affine)
    order = nearest_axes(matrix[:3, :3])
    renamed = {spatial[axis]: name for axis, name in zip(order, SPATIAL, strict=True)}
    file_dims = [renamed.get(d, d) for d in dims]
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    axis_affine = np.eye(4)
    axis_affine[:3, :3] = (matrix[:3, :3] / steps)[:, order]
    axis_affine[:3, 3] = matrix[:3, 3]
    wanted = [d for d in DIMS if d in file_dims]
    # Even an identity transpose would hide the file behind a Dask array.
    data = array if wanted == file_dims else array.transpose([file_dims.index(d) for d in wanted])
    attrs["source_axes"] = file_dims
    return place(data, wanted, steps[list(order)], axis_affine, space=space, kind=kind, name=name, **attrs)


def _from_spacing(
    array: Any, spacing: Floats, dims: tuple[str, ...], space: str, kind: str, name: str | None, attrs: dict[str, Any]
) -> xr.DataArray:
    """Place an array whose axes keep their order; a 2D one becomes the plane z = 0."""
    spatial = [d for d in dims if d in SPATIAL]
    if spacing.shape != (len(spatial),):
        raise GridError(f"spacing must be one number for each of the axes {spatial}; got {spacing.tolist()}")
    if list(dims) != [d for d in DIMS if d in dims]:
        raise GridError(f"dims must be in the order {DIMS} without an affine; got {dims}. Transpose the array first")
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
    """Make a volume from data whose axes are already in the order ``t, c, z, y, x``.

    Parameters
    ----------
    data : NumPy or Dask array
    dims : sequence of str
        Names of the axes; a missing spatial axis becomes a scalar coordinate.
    spacing : (3,) array-like
        Positive millimetres along z, y, x.
    affine : (4, 4) array-like
        Matrix from axis distances ``(z, y, x, 1)`` in mm to world mm: ``attrs["affine"]``.
    start : (3,) array-like
        Axis distance of the first voxel along z, y, x, in mm.
    space, kind, name, **attrs
        Attributes, as for :func:`from_array`.

    Examples
    --------
    >>> place(np.zeros((2, 2)), "yx", (1, 1, 1), np.eye(4), space="scanner").mrh.grid.shape
    (1, 2, 2)
    """
    steps = np.asarray(spacing, dtype=np.float64)
    if steps.shape != (3,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise GridError(f"spacing must be three positive numbers of mm, along z, y, x; got {steps.tolist()}")
    if kind not in KINDS:
        raise ParameterError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    matrix, sizes = check_affine(affine), dict(zip(dims, data.shape, strict=True))
    if max(data.shape, default=0) > LONGEST_AXIS:
        raise GridError(
            f"an axis must have at most {LONGEST_AXIS} voxels; got {list(data.shape)}. Is the header damaged?"
        )
    coords: dict[str, Any] = {}
    for dim, step, first in zip(SPATIAL, steps, np.asarray(start, dtype=np.float64), strict=True):
        distance = first + np.arange(sizes[dim]) * step if dim in sizes else first
        coords[dim] = (dim if dim in sizes else (), distance, {"spacing_mm": float(step), "units": "mm"})
    # All coordinates in one step: `with_frame` would double the time.
    coords["frame"] = _frame(matrix, space)
    attrs = {"kind": kind, **attrs, "affine": matrix.tolist(), "space": space}
    # Renamed, because xarray would otherwise use the name of the Dask graph.
    return xr.DataArray(data, dims=tuple(dims), coords=coords, attrs=attrs).rename(name)


def describe(volume: xr.DataArray, **attrs: Any) -> xr.DataArray:
    """Return the volume with attributes set, also ``name`` and ``space``; None leaves one unchanged.

    Examples
    --------
    >>> v = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> describe(v, space="CCFv3", modality="histology").mrh.space
    'CCFv3'
    """
    changes = {key: value for key, value in attrs.items() if value is not None}
    space = changes.pop("space", None)
    volume = volume.rename(changes.pop("name", volume.name)).assign_attrs(changes)
    return volume if space is None else with_frame(volume, volume.mrh.affine, space)


def with_frame(volume: xr.DataArray, affine: Floats, space: str) -> xr.DataArray:
    """Return the volume with affine, space, and a scalar coordinate ``frame`` that identifies both.

    If volumes of two frames are joined, xarray silently keeps the attributes of the first, but ``frame``
    becomes an array or disappears, and ``.mrh`` raises an error.
    """
    volume = volume.assign_attrs(affine=affine.tolist(), space=space)
    return volume.assign_coords(frame=_frame(affine, space))


def _frame(affine: Floats, space: str) -> str:
    # Adding 0 turns -0.0 into 0.0, so that equal affines have equal frames.
    return f"{space}:{hashlib.blake2s((affine + 0.0).tobytes(), digest_size=4).hexdigest()}"
