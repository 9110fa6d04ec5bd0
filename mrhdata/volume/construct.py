"""Volumes: plain ``xarray.DataArray`` whose geometry stays true.

A volume has the dims ``t, c, z, y, x`` (any subset, in this order). The coordinates ``z``, ``y`` and
``x`` are the distances of the voxel centres along the array axes in millimetres, and
``attrs["affine"]`` maps those distances ``(z, y, x, 1)`` to world ``(X, Y, Z, 1)`` millimetres, RAS+.
Spacing lives in the coordinates and direction in the affine, so slicing, striding, reversing and
``sel`` keep the geometry without our help. `accessor` makes ``volume.mrh`` of :class:`Geometry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.volume.grid import Floats, Grid, check_affine, length, nearest_axes

DIMS = ("t", "c", "z", "y", "x")
SPATIAL = ("z", "y", "x")
KINDS = ("image", "labels", "mask")
#: The axis that each anatomical plane holds fixed.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}

#: A stack without orientation: z, y, x lie along world Z, Y, X.
UNORIENTED = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)

#: Steps along an axis may differ by this part of a step, for coordinates that passed through text.
_STEP_TOLERANCE = 1e-6

#: The remedy where two grids differ.
_RESAMPLE = "resample one first (mrhdata.resample(a, like=b), or mrhdata resample on the command line)"


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
    # As `_framed` does, in one step: each change of coordinates would cost as much as all of this.
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
    return volume if space is None else _framed(volume, volume.mrh.affine, space)


def on_grid_of(
    name: str, volume: xr.DataArray, reference: str, other: xr.DataArray, *, remedy: str = ""
) -> xr.DataArray:
    """A volume with exactly the coordinates of another; where their grids differ, the error names both.

    Parameters
    ----------
    name : str
        Of the volume.
    reference : str
        The other in words, such as ``"the first input"``.
    volume, other : xarray.DataArray
    remedy : str
        What else helps where grids of one space differ, such as ``"or give align='first'"``.

    Examples
    --------
    >>> a = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> on_grid_of("t2w", a + 1, "the first input", a).mrh.grid.same_as(a.mrh.grid)
    True
    """
    one_space = volume.mrh.space == other.mrh.space
    # A volume without a true geometry has no grid to compare.
    _ = volume.mrh.grid, other.mrh.grid
    try:
        return volume.mrh.like(other)
    except GridError as error:
        also = f", {remedy}" if remedy and one_space else ""
        raise GridError(f"{_said(name)} does not lie on the grid of {reference}: {error}{also}") from error


def _said(name: str) -> str:
    """A name in quotes, without the NUL that keeps names of our own apart from those of users."""
    return repr(name.lstrip("\0"))


def _framed(volume: xr.DataArray, affine: Floats, space: str) -> xr.DataArray:
    """Set affine and space, and a coordinate that changes with them.

    Where volumes of two frames are joined, xarray keeps the first one's attrs without a word, but not
    a scalar coordinate: ``frame`` then becomes an array or disappears, and ``.mrh`` refuses.
    """
    volume = volume.assign_attrs(affine=affine.tolist(), space=space)
    return volume.assign_coords(frame=_frame(affine, space))


def _frame(affine: Floats, space: str) -> str:
    # Adding 0 turns -0.0, which equals 0.0, into it.
    return f"{space}:{hashlib.blake2s((affine + 0.0).tobytes(), digest_size=4).hexdigest()}"


def group(volumes: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Check that volumes lie in one world space and return them as a co-registered group.

    Grids may differ in spacing, extent and orientation.

    Parameters
    ----------
    volumes : mapping of str to xarray.DataArray

    Returns
    -------
    group : dict

    Raises
    ------
    GridError
        A volume has no true geometry, or two name different spaces.

    Examples
    --------
    >>> a = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> list(group({"mri": a, "histology": a}))
    ['mri', 'histology']
    """
    spaces = {name: volume.mrh.space for name, volume in volumes.items()}
    for volume in volumes.values():
        _ = volume.mrh.grid
    first = next(iter(spaces), None)
    for name, space in spaces.items():
        if first is not None and space != spaces[first]:
            raise GridError(
                f"{_said(first)} lies in space {spaces[first]!r} but {_said(name)} in {space!r}; "
                "register one to the other, or correct a wrong name with describe(volume, space=...)"
            )
    return dict(volumes)


def stack(volumes: Mapping[str, xr.DataArray] | xr.DataArray) -> xr.DataArray:
    """Stack volumes of one grid along ``c``; coordinate ``c`` names the channels.

    Examples
    --------
    >>> v = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> stack({"t2": v, "mt": v}).c.values.tolist()
    ['t2', 'mt']
    """
    if isinstance(volumes, xr.DataArray):
        volumes = {"image" if volumes.name is None else str(volumes.name): volumes}
    if not volumes:
        raise GridError("there is no volume to stack; give at least one")
    volumes = group(volumes)
    reference, first = next(iter(volumes.items()))
    parts = []
    for name, volume in volumes.items():
        same = volume if volume is first else on_grid_of(name, volume, _said(reference), first)
        if "t" in same.dims:
            raise GridError(
                f"{name!r} has a time axis of {same.sizes['t']}; take one time first, by "
                "volume.isel(t=0) or mrhdata convert --time 0"
            )
        missing = {d: 1 for d in SPATIAL if d not in same.dims}
        same = same.expand_dims([*(["c"] if "c" not in same.dims else []), *missing]).transpose("c", *SPATIAL)
        parts.append(same.assign_coords(c=_channel_names(name, volume)))
    joined = xr.concat(parts, "c", join="exact", combine_attrs="drop_conflicts", coords="minimal", compat="equals")
    return joined.assign_attrs(affine=first.attrs["affine"], space=first.mrh.space)


def mask_on(where: xr.DataArray | None, volume: xr.DataArray) -> NDArray[np.bool_]:
    """The mask as a (z, y, x) bool array on the grid of `volume`: True where it is not zero.

    Without a mask all voxels are inside.

    Raises
    ------
    GridError
        The mask lies on another grid.
    DataError
        It holds NaN, or is empty.

    Examples
    --------
    >>> v = from_array(np.arange(8).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> int(mask_on(v > 4, v).sum())
    3
    """
    like = stack(volume).isel(c=0)
    if where is None:
        return np.ones(like.shape, dtype=bool)
    inside = nonzero(on_grid_of("mask", stack({"mask": where}).isel(c=0), "the volume", like).data)
    if not inside.any():
        raise DataError("the mask is empty; give one that covers part of the volumes")
    return inside


def nonzero(mask: ArrayLike) -> NDArray[np.bool_]:
    """Which voxels of a mask are inside.

    Raises
    ------
    DataError
        It holds NaN.

    Examples
    --------
    >>> nonzero([0, 2, -1]).tolist()
    [False, True, True]
    """
    values = np.asarray(mask)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError(f"{np.isnan(values).sum()} of {values.size} mask voxels are NaN; set them to 0")
    return np.asarray(values != 0)


def _channel_names(name: str, volume: xr.DataArray) -> list[str]:
    if "c" not in volume.dims:
        return [name]
    if volume.c.dtype.kind in "UTO" and "c" in volume.coords:
        return [str(c) for c in volume.c.values]
    return [f"{name}:{i}" for i in range(volume.sizes["c"])]


class Geometry:
    """``volume.mrh``: where the voxels of a volume are."""

    def __init__(self, volume: xr.DataArray) -> None:
        self._volume = volume

    @property
    def affine(self) -> Floats:
        """Axis distances (z, y, x, 1) in mm to world (X, Y, Z, 1) in mm, RAS+: (4, 4)."""
        volume = self._volume
        if "affine" not in volume.attrs:
            raise GridError(
                f"volume {volume.name!r} has no affine: it was never placed, or two volumes with different "
                "affines were combined; use .mrh.like(other) or resample before combining"
            )
        affine = check_affine(volume.attrs["affine"])
        if "frame" not in volume.coords:
            raise GridError(
                f"volume {volume.name!r} has lost its frame: it joins volumes of two places, or its coordinates were "
                "dropped; use .mrh.like(other) or resample before combining, or place it with mrhdata.volume.from_array"
            )
        if volume.frame.size != 1:
            raise GridError(f"volume {volume.name!r} joins volumes of the frames {np.unique(volume.frame).tolist()}")
        if volume.frame.item() != _frame(affine, self.space):
            raise GridError(
                f"volume {volume.name!r} has the affine of frame {_frame(affine, self.space)} but voxels of "
                f"{volume.frame.item()}; give it its own with mrhdata.volume.from_array"
            )
        return affine

    @property
    def space(self) -> str:
        """Name of the world space."""
        return str(self._volume.attrs.get("space", "scanner"))

    @property
    def grid(self) -> Grid:
        """Shape and affine from voxel index to world; a dropped axis has length 1.

        Raises
        ------
        GridError
            The affine is missing or not of these voxels, steps are unequal, or an axis was dropped
            together with its coordinate.
        """
        axes = [self._axis(dim) for dim in SPATIAL]
        shape = tuple(n for _, _, n in axes)
        to_distance = np.eye(4)
        to_distance[:3, 3] = [start for start, _, _ in axes]
        to_distance[range(3), range(3)] = [step for _, step, _ in axes]
        return Grid((shape[0], shape[1], shape[2]), self.affine @ to_distance)

    @property
    def spacing(self) -> Floats:
        """Millimetres between voxel centres along z, y, x: (3,)."""
        return self.grid.spacing

    def world(self, index: ArrayLike) -> Floats:
        """World points (..., 3) mm, RAS+, of voxel indices (..., 3) in z, y, x."""
        return self.grid.world(index)

    def index(self, world: ArrayLike) -> Floats:
        """Voxel indices (..., 3) in z, y, x, not rounded, of world points (..., 3) mm, RAS+."""
        return self.grid.index(world)

    def like(self, other: xr.DataArray, tolerance_mm: float | None = None) -> xr.DataArray:
        """Return this volume with exactly the coordinates and affine of `other`.

        After it, arithmetic between the two is safe: xarray aligns by axis distance, and would drop
        voxels whose coordinates differ in the last bit.

        Parameters
        ----------
        other : xarray.DataArray
        tolerance_mm : float, optional
            How far corners may lie apart; a thousandth of the smallest spacing by default.

        Raises
        ------
        GridError
            The two are not on one grid of one space.
        """
        mine, theirs = self.grid, other.mrh.grid
        if self.space != other.mrh.space:
            raise GridError(f"spaces differ: {self.space!r} and {other.mrh.space!r}; register one to the other first")
        if mine.shape != theirs.shape:
            raise GridError(f"shapes differ along z, y, x: {mine.shape} and {theirs.shape}; {_RESAMPLE}")
        if not mine.same_as(theirs, tolerance_mm):
            raise GridError(
                f"grids of one shape {mine.shape} lie up to {mine.distance(theirs):.6g} mm apart "
                f"({mine.orientation} and {theirs.orientation}); {_RESAMPLE}"
            )
        volume = self._volume.assign_coords({d: other.coords[d] for d in SPATIAL if d in self._volume.dims})
        return _framed(volume, other.mrh.affine, self.space)

    def in_order(self, dims: Sequence[str]) -> tuple[Any, Floats]:
        """Data with its axes in the order of `dims`, and the affine from that index to world mm."""
        volume, grid = self._volume, self.grid
        missing = [d for d in dims if d not in volume.dims]
        data = volume.expand_dims(missing).transpose(*dims).data
        columns = [SPATIAL.index(d) for d in dims if d in SPATIAL]
        return data, grid.affine[:, [*columns, 3]]

    def _facts(self, grid: Grid) -> dict[str, str]:
        """What a person wants to know, by name."""
        volume, extent = self._volume, np.array(grid.shape) * grid.spacing
        return {
            "shape": ", ".join(f"{dim} {n}" for dim, n in volume.sizes.items()),
            "voxel": ", ".join(f"{dim} {length(s)}" for dim, s in zip(SPATIAL, grid.spacing, strict=True)),
            "extent": ", ".join(f"{dim} {mm:.4g} mm" for dim, mm in zip(SPATIAL, extent, strict=True)),
            "orientation": f"{grid.orientation} (where z, y, x point)"
            if "source_axes" in volume.attrs
            else "none known",
            "space": self.space,
            "values": f"{volume.dtype}, {volume.attrs.get('kind', 'image')}, {volume.nbytes / 1e6:.4g} MB",
        }

    def __repr__(self) -> str:
        name = self._volume.name
        try:
            facts = self._facts(self.grid)
        except GridError as error:
            return f"no true geometry: {error}"
        width = max(map(len, facts))
        rows = (f"  {key:{width}}  {value}" for key, value in facts.items())
        return "\n".join(["geometry" if name is None else f"{name}: geometry", *rows])

    def _repr_html_(self) -> str:
        from mrhdata._runtime import html

        volume = self._volume
        try:
            grid = self.grid
        except GridError as error:
            return html.block(f"{volume.name}: no true geometry", str(error))
        given = self._facts(grid) | {"index to world, mm": html.matrix(grid.affine[:3])}
        extent = np.array(grid.shape) * grid.spacing
        title = "geometry" if volume.name is None else f"{volume.name}: geometry"
        box = html.solid(grid.corners(), SPATIAL, f"box of {length(extent.max())}, orientation {grid.orientation}")
        return html.block(title, html.facts(given), box)

    def _axis(self, dim: str) -> tuple[float, float, int]:
        """Start, step (mm, negative where reversed) and length of one axis."""
        if dim not in self._volume.coords:
            raise GridError(f"axis {dim!r} has no coordinate, so its place is lost; slice without drop=True")
        coord = self._volume.coords[dim]
        values = np.atleast_1d(np.asarray(coord, dtype=np.float64))
        if values.size == 0:
            raise GridError(f"axis {dim!r} is empty; the selection lies outside the volume")
        if values.size == 1:
            if "spacing_mm" not in coord.attrs:
                raise GridError(f"axis {dim!r} of one voxel has no spacing_mm in its attrs; set it in mm")
            return float(values[0]), float(coord.attrs["spacing_mm"]), 1
        step = (values[-1] - values[0]) / (values.size - 1)
        off = np.abs(np.diff(values) - step).max()
        if not off <= _STEP_TOLERANCE * abs(step):
            raise GridError(f"steps along {dim!r} are unequal: {step:.6g} mm on average, up to {off:.3g} mm off")
        return float(values[0]), float(step), values.size
