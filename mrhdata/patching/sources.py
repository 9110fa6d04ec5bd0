"""Tensor sources of one subject: volumes on one grid, each on its own grid, or resampled to the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from mrhdata._runtime.arguments import check_choice
from mrhdata.errors import GridError, ParameterError
from mrhdata.patching.readers import ResampledReader, VolumeReader, VoxelReader
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.assumptions import GEOMETRY, assumed, warn_of_assumed
from mrhdata.volume.checks import check_volume
from mrhdata.volume.construct import PLANES, SPATIAL
from mrhdata.volume.grid import Grid
from mrhdata.volume.groups import group, on_grid_of, stack

if TYPE_CHECKING:
    import xarray as xr

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

#: Ways to treat the grids of one subject's volumes.
GRIDS = ("same", "native", "resample")
#: Axes are parallel if they turn by less than this part of a voxel over half a patch.
_MAX_TURN_VOXELS = 0.5
#: Remedy in messages about grids that differ.
_RESAMPLE_REMEDY = "or pass grids='resample'"


class PatchShapes:
    """Patch shapes of inputs and target by name; a plane makes one length 1."""

    def __init__(self, shape: Any, target_shape: Any, plane: str | None, context_slices: int = 0) -> None:
        if context_slices < 0 or (context_slices and plane is None):
            raise ParameterError(
                "context_slices must be the number of slices on each side of a plane, 0 or more, and needs plane=; "
                f"got {context_slices} with plane={plane!r}"
            )
        self._plane, self._context_slices = plane, context_slices
        self._input, self._target = self._by_input(shape, "shape"), self._by_input(target_shape, "target_shape")

    def _by_input(self, size: Any, argument: str) -> Any:
        """Return the shape of an argument, or a mapping of input names to shapes."""
        if size is None:
            return None
        if isinstance(size, Mapping) and not size.keys() <= set(SPATIAL):
            return {name: lengths(item, self._plane, argument) for name, item in size.items()}
        return lengths(size, self._plane, argument)

    def of_first(self, name: str) -> tuple[int, int, int]:
        """Return the shape of the first input."""
        shape = self._input.get(name) if isinstance(self._input, dict) else self._input
        if shape is None:
            raise ParameterError(f"shape must have an item for the first input {name!r}; got {list(self._input)}")
        return self._with_context_slices(shape)

    def _with_context_slices(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if self._plane is None or not self._context_slices:
            return shape
        voxels = list(shape)
        voxels[PLANES[self._plane]] = 1 + 2 * self._context_slices
        return (voxels[0], voxels[1], voxels[2])

    def of_input(self, name: str) -> tuple[int, int, int] | None:
        """Return the shape of another input; None if it follows from the first."""
        return self._input.get(name) if isinstance(self._input, dict) else None

    def of_target(self, name: str | None = None) -> tuple[int, int, int] | None:
        """Return the shape of the target; None if it follows from the first input."""
        if self._target is None and self._context_slices and not isinstance(self._input, dict):
            return self._input
        return self._target.get(name) if isinstance(self._target, dict) else self._target


def tensor_sources(
    inputs: Inputs, target: Inputs | None, shapes: PatchShapes, grids: str
) -> tuple[TensorNames, list[TensorSource]]:
    """Return the names of the tensors of one subject, and their sources."""
    volumes = volumes_by_name(inputs)
    first_name, first = next(iter(volumes.items()), (None, None))
    if first_name is None or first is None:
        raise ParameterError("inputs must have at least one volume; got none")
    shape = shapes.of_first(first_name)
    if grids != "native":
        resample = grids == "resample"
        sources = [one_grid(inputs, shape, None, resample)]
        if target is not None:
            sources.append(one_grid(target, shapes.of_target() or shape, first, resample, about=shape))
        return TensorNames(None, None if target is None else ()), sources
    sources = [one_grid({first_name: first}, shape, None, False)]
    for name, volume in list(volumes.items())[1:]:
        sources.append(own_grid(name, volume, shapes.of_input(name), sources[0], first))
    targets = {} if target is None else volumes_by_name(target)
    for name, volume in targets.items():
        sources.append(own_grid(name, volume, shapes.of_target(name), sources[0], first))
    input_names = None if not isinstance(inputs, Mapping) else tuple(volumes)
    target_names = None if target is None else tuple(targets) if isinstance(target, Mapping) else ()
    return TensorNames(input_names, target_names), sources


@dataclass(frozen=True)
class TensorNames:
    """Names of the tensors of a patch.

    Attributes
    ----------
    inputs : tuple of str or None
        Names of the input tensors; None for a single tensor.
    target : tuple of str or None
        Names of the target tensors; () for a single tensor, None without a target.
    """

    inputs: tuple[str, ...] | None
    target: tuple[str, ...] | None

    def flat(self) -> list[str]:
        """Return a name for every tensor."""
        target = [] if self.target is None else [f"target_{n}" for n in self.target] or ["target"]
        return [*(["input"] if self.inputs is None else [f"input_{n}" for n in self.inputs]), *target]

    def apart(self, sources: Sequence[TensorSource]) -> tuple[list[str], list[str]]:
        """Return the channels of the inputs and of the target."""
        count = 1 if self.inputs is None else len(self.inputs)
        inputs, target = ([c for s in group for c in s.channels] for group in (sources[:count], sources[count:]))
        return inputs, target

    def arranged(self, tensors: Sequence[Any]) -> Any:
        """Return tensors as a patch delivers them: input, or (input, target)."""
        count = 1 if self.inputs is None else len(self.inputs)
        inputs: Any = tensors[0] if self.inputs is None else dict(zip(self.inputs, tensors[:count], strict=True))
        if self.target is None:
            return inputs
        return inputs, dict(zip(self.target, tensors[count:], strict=True)) if self.target else tensors[count]


def lengths(size: Any, plane: str | None, name: str) -> tuple[int, int, int]:
    """Return a size as voxels along z, y, x; it may be one number, three numbers, or a mapping by dimension.

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
        voxels = list(size) if isinstance(size, Iterable) and not isinstance(size, str) else [size] * 3
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
    """Return a source of volumes on one grid, stacked on channels.

    Parameters
    ----------
    volumes : volume or mapping of volumes
    shape : sequence of int
        Voxels of a patch along z, y, x.
    like : volume, optional
        Volume whose grid they must have; the first of `volumes` by default.
    resample : bool
        Read volumes of other grids at the voxels of `like`; otherwise they raise `GridError`.
    about : sequence of int, optional
        Patch shape of the first input, if these patches have another shape.
    exact : bool
        Keep types that are wider than float32.
    """
    named = volumes_by_name(volumes)
    first = next(iter(named.values())) if like is None else like
    placed = {}
    readers: list[VoxelReader] = []
    reference = next(iter(named)) if like is None else "the first input"
    label = repr(reference) if like is None else reference
    for name, volume in named.items():
        if resample and not _on_same_grid(volume, first):
            readers.append(ResampledReader(volume, first.mrh.grid))
            placed[name] = _empty_on_grid(name, volume, reference, first)
        else:
            if volume is not first:
                like_grid = _without_channels(first, volume)
                placed[name] = on_grid_of(name, volume, label, like_grid, remedy=_RESAMPLE_REMEDY)
            else:
                placed[name] = volume
            readers.append(VolumeReader(volume))
    channels = [str(c) for c in stack(placed).c.values]
    grid = first.mrh.grid
    about_first = None if about is None else (grid, about)
    return TensorSource(readers, channels, grid, shape, about_first, exact, **_stated_facts(named))


def own_grid(
    name: str, volume: xr.DataArray, shape: Sequence[int] | None, first: TensorSource, reference: xr.DataArray
) -> TensorSource:
    """Return a source of a volume at its own voxels; patches have their centres at the world points of `first`'s.

    Raises
    ------
    GridError
        The axes of the volume are not parallel to those of the first volume.
    """
    group({"the first input": reference, name: volume})
    grid = volume.mrh.grid
    turn = np.linalg.solve(grid.affine[:3, :3], first.grid.affine[:3, :3])
    offset = np.abs(turn - np.diag(np.diag(turn))) @ (np.array(first.shape) / 2)
    if offset.max() > _MAX_TURN_VOXELS:
        raise GridError(
            f"{name!r} must have axes parallel to those of the first volume; they turn by {offset.max():.1f} of its "
            f"voxels over half a patch of {first.shape}. Pass grids='resample' to resample it"
        )
    if shape is None:
        shape = np.maximum(1, np.rint(np.array(first.shape) * first.grid.spacing / grid.spacing)).astype(int).tolist()
    flips = tuple(bool(f) for f in np.diag(turn) < 0)
    reader = VolumeReader(volume, flips)
    channels = [str(c) for c in stack({name: volume}).c.values]
    about = (first.grid, first.shape)
    return TensorSource([reader], channels, _flip_axes(grid, flips), shape, about, **_stated_facts({name: volume}))


def _stated_facts(volumes: Mapping[str, xr.DataArray]) -> dict[str, Any]:
    """Return the units of each channel, and the properties that the files of volumes do not state."""
    units = [volume.attrs.get("units") for volume in volumes.values() for _ in range(volume.sizes.get("c", 1))]
    return {"units": units, "assumed": {name for volume in volumes.values() for name in assumed(volume)}}


def warn_of_assumed_grids(volumes: Mapping[str, xr.DataArray], step: str) -> None:
    """Warn of volumes whose place next to the first is decided by a geometry that their files do not state."""
    first = next(iter(volumes.values()))
    if any(not _on_same_grid(volume, first) for volume in volumes.values()):
        warn_of_assumed(volumes, step, *GEOMETRY)


def volumes_by_name(volumes: Inputs) -> dict[str, Any]:
    """Return volumes by name; a single volume without a name is called ``image``."""
    if isinstance(volumes, Mapping):
        for name, volume in volumes.items():
            check_volume(f"input {name!r}", volume)
        return dict(volumes)
    check_volume("input", volumes, "or a mapping of volumes")
    return {"image" if volumes.name is None else str(volumes.name): volumes}


def _on_same_grid(volume: xr.DataArray, first: xr.DataArray) -> bool:
    return bool(volume.mrh.grid.same_as(first.mrh.grid))


def _without_channels(first: xr.DataArray, volume: xr.DataArray) -> xr.DataArray:
    """Return `first` without channels if `volume` has none."""
    return first.isel(c=0, drop=True) if "c" in first.dims and "c" not in volume.dims else first


def _empty_on_grid(name: str, volume: xr.DataArray, reference: str, first: xr.DataArray) -> xr.DataArray:
    """Return an empty volume with the channels of `volume` on the grid of `first`."""
    group({reference: first, name: volume})
    like = first.isel(c=0, drop=True) if "c" in first.dims else first
    empty = like.copy(data=da.zeros(like.shape, dtype=volume.dtype)).rename(volume.name)
    return (
        empty
        if "c" not in volume.dims
        else empty.expand_dims(c=volume.c.values if "c" in volume.coords else volume.sizes["c"])
    )


def _flip_axes(grid: Grid, flips: Sequence[bool]) -> Grid:
    turn = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            turn[axis, axis], turn[axis, 3] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ turn)
