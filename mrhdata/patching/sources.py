"""Volumes of one subject as streams of patches: on one grid, each on its own, or resampled to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata._runtime.arguments import check_choice
from mrhdata.errors import GridError, ParameterError
from mrhdata.patching.readers import ResampledReader, VolumeReader, VoxelReader
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.construct import PLANES, SPATIAL
from mrhdata.volume.grid import Grid
from mrhdata.volume.groups import group, on_grid_of, stack

if TYPE_CHECKING:
    import xarray as xr

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

#: How volumes of one subject may lie to each other.
GRIDS = ("same", "native", "resample")
#: Axes that turn by more than this part of a voxel over half a patch are not parallel.
_TURNED_VOXELS = 0.5
#: What else helps where grids differ.
_ALIGN = "or pass grids='resample'"


class PatchShapes:
    """Patch lengths of inputs and target by name; a plane makes one of them 1."""

    def __init__(self, shape: Any, target_shape: Any, plane: str | None, neighbours: int = 0) -> None:
        if neighbours < 0 or (neighbours and plane is None):
            raise GridError(f"neighbours is a number of planes on each side of plane=, not {neighbours}")
        self._plane, self._neighbours = plane, neighbours
        self._input, self._target = self._read(shape, "shape"), self._read(target_shape, "target_shape")

    def _read(self, given: Any, what: str) -> Any:
        if given is None:
            return None
        if isinstance(given, Mapping) and not given.keys() <= set(SPATIAL):
            return {name: lengths(item, self._plane, what) for name, item in given.items()}
        return lengths(given, self._plane, what)

    def of_first(self, name: str) -> tuple[int, int, int]:
        """Of the first input, which must have one."""
        found = self._input.get(name) if isinstance(self._input, dict) else self._input
        if found is None:
            raise GridError(f"shape has no item for the first input {name!r}; it has {list(self._input)}")
        return self._with_neighbours(found)

    def _with_neighbours(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if self._plane is None or not self._neighbours:
            return shape
        found = list(shape)
        found[PLANES[self._plane]] = 1 + 2 * self._neighbours
        return (found[0], found[1], found[2])

    def of_input(self, name: str) -> tuple[int, int, int] | None:
        """Of another input; None where it follows from the first."""
        return self._input.get(name) if isinstance(self._input, dict) else None

    def of_target(self, name: str | None = None) -> tuple[int, int, int] | None:
        """Of the target; None where it follows from the first input."""
        if self._target is None and self._neighbours and not isinstance(self._input, dict):
            return self._input
        return self._target.get(name) if isinstance(self._target, dict) else self._target


def tensor_sources(
    inputs: Inputs, target: Inputs | None, shapes: PatchShapes, grids: str
) -> tuple[TensorNames, list[TensorSource]]:
    """Streams of one subject, and what their tensors are called."""
    given = volumes_by_name(inputs)
    first_name, first = next(iter(given.items()), (None, None))
    if first_name is None or first is None:
        raise GridError("there is no volume to take patches from; give at least one")
    shape = shapes.of_first(first_name)
    if grids != "native":
        resample = grids == "resample"
        streams = [one_grid(inputs, shape, None, resample)]
        if target is not None:
            streams.append(one_grid(target, shapes.of_target() or shape, first, resample, about=shape))
        return TensorNames(None, None if target is None else ()), streams
    streams = [one_grid({first_name: first}, shape, None, False)]
    for name, volume in list(given.items())[1:]:
        streams.append(own_grid(name, volume, shapes.of_input(name), streams[0], first))
    targets = {} if target is None else volumes_by_name(target)
    for name, volume in targets.items():
        streams.append(own_grid(name, volume, shapes.of_target(name), streams[0], first))
    names = None if not isinstance(inputs, Mapping) else tuple(given)
    of_target = None if target is None else tuple(targets) if isinstance(target, Mapping) else ()
    return TensorNames(names, of_target), streams


@dataclass(frozen=True)
class TensorNames:
    """Names of the tensors: of the inputs (None for one tensor), of the target (None without one, () for one)."""

    inputs: tuple[str, ...] | None
    target: tuple[str, ...] | None

    def flat(self) -> list[str]:
        """A name for every tensor."""
        target = [] if self.target is None else [f"target_{n}" for n in self.target] or ["target"]
        return [*(["input"] if self.inputs is None else [f"input_{n}" for n in self.inputs]), *target]

    def apart(self, streams: Sequence[TensorSource]) -> tuple[list[str], list[str]]:
        """Channels of the inputs and of the target."""
        count = 1 if self.inputs is None else len(self.inputs)
        inputs, target = ([c for s in part for c in s.channels] for part in (streams[:count], streams[count:]))
        return inputs, target

    def arranged(self, parts: Sequence[Any]) -> Any:
        """Tensors as they are handed out: input, or (input, target)."""
        count = 1 if self.inputs is None else len(self.inputs)
        given: Any = parts[0] if self.inputs is None else dict(zip(self.inputs, parts[:count], strict=True))
        if self.target is None:
            return given
        return given, dict(zip(self.target, parts[count:], strict=True)) if self.target else parts[count]


def lengths(size: int | Sequence[int] | Mapping[str, int], plane: str | None, name: str) -> tuple[int, int, int]:
    """Return voxels along z, y, x of a size that is one number, three, or a mapping by dimension.

    Examples
    --------
    >>> lengths(16, "axial", "shape"), lengths({"z": 1, "y": 16, "x": 8}, None, "shape")
    ((1, 16, 16), (1, 16, 8))
    """
    if plane is not None:
        check_choice("plane", plane, tuple(PLANES))
    fixed = None if plane is None else PLANES[plane]
    if isinstance(size, Mapping):
        voxels: list[Any] = [size.get(dim, 1 if axis == fixed else 0) for axis, dim in enumerate(SPATIAL)]
    else:
        voxels = [size] * 3 if isinstance(size, int | np.integer) else list(size)
    if len(voxels) != 3 or not all(isinstance(n, int | np.integer) and n >= 1 for n in voxels):
        raise ParameterError(
            f"{name} must be a whole number of voxels, three of them along z, y, x, or a mapping of 'z', 'y', 'x'; "
            f"got {size!r}"
        )
    if fixed is not None:
        voxels[fixed] = 1
    return (int(voxels[0]), int(voxels[1]), int(voxels[2]))


def one_grid(
    volumes: Inputs,
    shape: Sequence[int],
    like: xr.DataArray | None,
    resample: bool,
    *,
    about: Sequence[int] | None = None,
    exact: bool = False,
) -> TensorSource:
    """Volumes stacked on channels: on the grid of `like` (the first of them where None).

    Parameters
    ----------
    volumes : volume or mapping of volumes
    shape : sequence of int
        Of a patch.
    like : volume, optional
    resample : bool
        Read volumes of other grids at the voxels of `like`; otherwise they are refused.
    about : sequence of int, optional
        Patch shape of the first input, where these patches have another.
    exact : bool
        Keep types that are wider than float32.
    """
    given = volumes_by_name(volumes)
    first = next(iter(given.values())) if like is None else like
    placed = {}
    parts: list[VoxelReader] = []
    reference = next(iter(given)) if like is None else "the first input"
    said = repr(reference) if like is None else reference
    for name, volume in given.items():
        if resample and not _same(volume, first):
            parts.append(ResampledReader(volume, first.mrh.grid))
            placed[name] = _shell(name, volume, reference, first)
        else:
            alike = volume is first
            placed[name] = volume if alike else on_grid_of(name, volume, said, _bare(first, volume), remedy=_ALIGN)
            parts.append(VolumeReader(volume))
    channels = [str(c) for c in stack(placed).c.values]
    grid = first.mrh.grid
    return TensorSource(parts, channels, grid, shape, None if about is None else (grid, about), exact)


def own_grid(
    name: str, volume: xr.DataArray, shape: Sequence[int] | None, first: TensorSource, reference: xr.DataArray
) -> TensorSource:
    """A volume at its own resolution; its patches lie about the same world points as those of `first`.

    Raises
    ------
    GridError
        Its axes are not parallel to those of the first volume.
    """
    group({"the first input": reference, name: volume})
    grid = volume.mrh.grid
    turn = np.linalg.solve(grid.affine[:3, :3], first.grid.affine[:3, :3])
    off = np.abs(turn - np.diag(np.diag(turn))) @ (np.array(first.shape) / 2)
    if off.max() > _TURNED_VOXELS:
        raise GridError(
            f"{name!r} has axes that turn against those of the first volume by {off.max():.1f} of its voxels over "
            f"half a patch of {first.shape}; pass grids='resample' to resample it"
        )
    if shape is None:
        shape = np.maximum(1, np.rint(np.array(first.shape) * first.grid.spacing / grid.spacing)).astype(int).tolist()
    flips = tuple(bool(f) for f in np.diag(turn) < 0)
    part = VolumeReader(volume, flips)
    channels = [str(c) for c in stack({name: volume}).c.values]
    return TensorSource([part], channels, _flipped(grid, flips), shape, about=(first.grid, first.shape))


def volumes_by_name(volumes: Inputs) -> dict[str, Any]:
    """Volumes by name, also where there is one without."""
    if isinstance(volumes, Mapping):
        return dict(volumes)
    return {"image" if volumes.name is None else str(volumes.name): volumes}


def _same(volume: xr.DataArray, first: xr.DataArray) -> bool:
    return bool(volume.mrh.grid.same_as(first.mrh.grid))


def _bare(first: xr.DataArray, volume: xr.DataArray) -> xr.DataArray:
    """The grid of `first`, without its channels."""
    return first.isel(c=0, drop=True) if "c" in first.dims and "c" not in volume.dims else first


def _shell(name: str, volume: xr.DataArray, reference: str, first: xr.DataArray) -> xr.DataArray:
    """No voxels, but the channels of `volume` on the grid of `first`."""
    group({reference: first, name: volume})
    like = first.isel(c=0, drop=True) if "c" in first.dims else first
    empty = like.copy(data=da.zeros(like.shape, dtype=volume.dtype)).rename(volume.name)
    return (
        empty
        if "c" not in volume.dims
        else empty.expand_dims(c=volume.c.values if "c" in volume.coords else volume.sizes["c"])
    )


def _flipped(grid: Grid, flips: Sequence[bool]) -> Grid:
    turn = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            turn[axis, axis], turn[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ turn)
