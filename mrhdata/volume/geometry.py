"""Accessor ``.mrh``: geometry of a volume in world space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from mrhdata.errors import GridError
from mrhdata.volume.assumptions import assumed
from mrhdata.volume.checks import check_volume
from mrhdata.volume.construct import SPATIAL, _frame, with_frame
from mrhdata.volume.grid import Floats, Grid, check_affine, length
from mrhdata.volume.selection import crop, nearest

#: Relative difference that steps along an axis may have, for coordinates that passed through text.
_STEP_TOLERANCE = 1e-6


#: Remedy in messages about two grids that differ.
RESAMPLE_REMEDY = "resample one first (mrhdata.resample(a, like=b), or mrhdata resample on the command line)"


class Geometry:
    """Geometry of a volume in world space: ``volume.mrh``."""

    def __init__(self, volume: xr.DataArray) -> None:
        self._volume = volume

    @property
    def affine(self) -> Floats:
        """Affine (4, 4) from axis distances (z, y, x, 1) in mm to world (X, Y, Z, 1) in mm, RAS+."""
        volume = self._volume
        if "affine" not in volume.attrs:
            raise GridError(
                f"volume {volume.name!r} has no affine: it was not made by mrhdata, or two volumes with different "
                "affines were combined; use .mrh.like(other) or resample before combining"
            )
        affine = check_affine(volume.attrs["affine"])
        if "frame" not in volume.coords:
            raise GridError(
                f"volume {volume.name!r} has no frame: volumes with two geometries were combined, or coordinates "
                "were dropped; use .mrh.like(other) or resample before combining, or make the volume with "
                "mrhdata.volume.from_array"
            )
        if volume.frame.size != 1:
            raise GridError(f"volume {volume.name!r} combines volumes of the frames {np.unique(volume.frame).tolist()}")
        if volume.frame.item() != _frame(affine, self.space):
            raise GridError(
                f"volume {volume.name!r} has the affine of frame {_frame(affine, self.space)} but voxels of "
                f"{volume.frame.item()}; make it with mrhdata.volume.from_array"
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
        """Return world points (..., 3) mm, RAS+, of voxel indices (..., 3) in z, y, x."""
        return self.grid.world(index)

    def index(self, world: ArrayLike) -> Floats:
        """Return voxel indices (..., 3) in z, y, x, not rounded, of world points (..., 3) mm, RAS+."""
        return self.grid.index(world)

    def like(self, other: xr.DataArray, tolerance_mm: float | None = None) -> xr.DataArray:
        """Return this volume with exactly the coordinates and affine of `other`.

        Arithmetic between the two is then safe: xarray aligns by axis distance, and would drop voxels whose
        coordinates differ in the last bit.

        Parameters
        ----------
        other : xarray.DataArray
        tolerance_mm : float, optional
            Largest distance between corners; a thousandth of the smallest spacing by default.

        Raises
        ------
        GridError
            The two are not on one grid of one space.
        """
        check_volume("other", other)
        mine, theirs = self.grid, other.mrh.grid
        if self.space != other.mrh.space:
            raise GridError(f"spaces differ: {self.space!r} and {other.mrh.space!r}; register one to the other first")
        if mine.shape != theirs.shape:
            raise GridError(f"shapes differ along z, y, x: {mine.shape} and {theirs.shape}; {RESAMPLE_REMEDY}")
        if not mine.same_as(theirs, tolerance_mm):
            raise GridError(
                f"grids of one shape {mine.shape} lie up to {mine.distance(theirs):.6g} mm apart "
                f"({mine.orientation} and {theirs.orientation}); {RESAMPLE_REMEDY}"
            )
        volume = self._volume.assign_coords({d: other.coords[d] for d in SPATIAL if d in self._volume.dims})
        return with_frame(volume, other.mrh.affine, self.space)

    def sel(self, **point: float) -> xr.DataArray:
        """Return the voxel, line or plane nearest to world coordinates X, Y, Z in mm.

        See :func:`mrhdata.volume.selection.nearest`. The coordinates ``z``, ``y``, ``x`` of a volume are distances
        along its axes, which xarray's own ``sel`` selects by.
        """
        return nearest(self._volume, point)

    def crop(self, **ranges: tuple[float, float]) -> xr.DataArray:
        """Return the box of voxels within ranges of world coordinates in mm, such as ``X=(-10, 10)``.

        See :func:`mrhdata.volume.selection.crop`.
        """
        return crop(self._volume, ranges)

    def resample(self, like: xr.DataArray | Any, **options: Any) -> xr.DataArray:
        """Return the volume on the grid of another one: :func:`mrhdata.resample`."""
        import mrhdata

        return mrhdata.resample(self._volume, like, **options)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the volume to a file: :func:`mrhdata.write`."""
        import mrhdata

        mrhdata.write(self._volume, path, overwrite=overwrite)

    def patches(self, target: Any = None, **options: Any) -> Any:
        """Plan patches of the volume: :func:`mrhdata.patches`."""
        import mrhdata

        return mrhdata.patches(self._volume, target, **options)

    def plot(self, **options: Any) -> Any:
        """Return a figure of three orthogonal slices: :func:`mrhdata.viz.plots.slices`."""
        import mrhdata

        name = "volume" if self._volume.name is None else str(self._volume.name)
        return mrhdata.viz.plots.slices({name: self._volume}, **options)

    def in_order(self, dims: Sequence[str]) -> tuple[Any, Floats]:
        """Return the data with its axes in the order of `dims`, and the affine from that index to world mm."""
        volume, grid = self._volume, self.grid
        missing = [d for d in dims if d not in volume.dims]
        data = volume.expand_dims(missing).transpose(*dims).data
        columns = [SPATIAL.index(d) for d in dims if d in SPATIAL]
        return data, grid.affine[:, [*columns, 3]]

    def _facts(self, grid: Grid) -> dict[str, str]:
        """Return the geometry as text, by name."""
        volume, extent = self._volume, np.array(grid.shape) * grid.spacing
        return {
            "shape": ", ".join(f"{dim} {n}" for dim, n in volume.sizes.items()),
            "voxel": ", ".join(f"{dim} {length(s)}" for dim, s in zip(SPATIAL, grid.spacing, strict=True)),
            "extent": ", ".join(f"{dim} {mm:.4g} mm" for dim, mm in zip(SPATIAL, extent, strict=True)),
            "orientation": f"{grid.orientation} (directions of z, y, x)"
            if "source_axes" in volume.attrs
            else "none known",
            "space": self.space,
            "values": f"{volume.dtype}, {volume.attrs.get('kind', 'image')}, {volume.nbytes / 1e6:.4g} MB",
            **({"assumed": ", ".join(names)} if (names := assumed(volume)) else {}),
        }

    def __repr__(self) -> str:
        name = self._volume.name
        try:
            facts = self._facts(self.grid)
        except GridError as error:
            return f"no valid geometry: {error}"
        width = max(map(len, facts))
        rows = (f"  {key:{width}}  {value}" for key, value in facts.items())
        return "\n".join(["geometry" if name is None else f"{name}: geometry", *rows])

    def _repr_html_(self) -> str:
        from mrhdata._runtime import html

        volume = self._volume
        try:
            grid = self.grid
        except GridError as error:
            return html.panel(f"{volume.name}: no valid geometry", str(error))
        facts = self._facts(grid) | {"index to world, mm": html.matrix(grid.affine[:3])}
        extent = np.array(grid.shape) * grid.spacing
        title = "geometry" if volume.name is None else f"{volume.name}: geometry"
        box = html.solid(grid.corners(), SPATIAL, f"box of {length(extent.max())}, orientation {grid.orientation}")
        return html.panel(title, html.facts(facts), box)

    def _axis(self, dim: str) -> tuple[float, float, int]:
        """Return start, step (mm, negative if reversed) and length of one axis."""
        if dim not in self._volume.coords:
            raise GridError(f"axis {dim!r} has no coordinate, so its position is unknown; slice without drop=True")
        coord = self._volume.coords[dim]
        values = np.atleast_1d(np.asarray(coord, dtype=np.float64))
        if values.size == 0:
            raise GridError(f"axis {dim!r} is empty; the selection lies outside the volume")
        if values.size == 1:
            if "spacing_mm" not in coord.attrs:
                raise GridError(f"axis {dim!r} of one voxel has no spacing_mm in its attrs; set it in mm")
            return float(values[0]), float(coord.attrs["spacing_mm"]), 1
        step = (values[-1] - values[0]) / (values.size - 1)
        deviation = np.abs(np.diff(values) - step).max()
        if not deviation <= _STEP_TOLERANCE * abs(step):
            raise GridError(
                f"steps along {dim!r} are unequal: {step:.6g} mm on average, with deviations up to {deviation:.3g} mm"
            )
        return float(values[0]), float(step), values.size
