"""Stacks of planes: parallel planes of one series that make a volume, their choice, and their grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.io.dicom.frames import Frame, Series
from mrhdata.io.dicom.times import Times, in_order, split

if TYPE_CHECKING:
    from mrhdata.volume.grid import Floats

log = logging.getLogger("mrhdata")

#: Deviation from even steps that planes may have, as a fraction of their mean distance.
_MAX_DEVIATION = 0.01
#: Distance of planes at one position, and of rounding, as a fraction of a pixel.
_SAME = 0.01
#: Difference of the directions of parallel planes, and of the spacing of equal grids as a fraction.
_PARALLEL, _EQUAL = 1e-3, 1e-3
_LISTED = 20


@dataclass(frozen=True)
class Stack:
    """Planes of one series with the same size and direction."""

    series: Series
    #: Number of the stack in its series, from 1, or 0 if it is the only one.
    number: int
    #: What tells the stack from others at the same positions, such as ``"EchoTime 4.9"``.
    shows: str
    frames: Sequence[Frame]

    @property
    def names(self) -> list[str]:
        """Names by which `dataset=` chooses the stack: number, description and UID of its series."""
        ending = f"/{self.number}" if self.number else ""
        known = (self.series.number, self.series.description, self.series.uid)
        return [name + ending for name in known if name] or ([ending] if ending else [])

    def __str__(self) -> str:
        rows, columns = self.frames[0].shape
        spacing = self.frames[0].spacing
        size = "pixel size not stated" if spacing is None else f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"
        words = [f"{len(self.frames)} images of {rows} x {columns}", size, _plane(self.frames[0])]
        segment = self.frames[0].facts.get("ReferencedSegmentNumber")
        return ", ".join([*words, *filter(None, [self.shows, f"segment {segment:g}" if segment else ""])])


@dataclass(frozen=True)
class Placed:
    """A volume: planes by time and position, affine of column, row and plane to world mm (RAS+), assumed properties."""

    times: Times
    affine: Floats
    assumed: frozenset[str]


def stacks_of(frames: Iterable[Frame]) -> list[Stack]:
    """Return the stacks of planes, in order of their series."""
    by_series: dict[Series, list[Frame]] = {}
    for frame in frames:
        by_series.setdefault(frame.series, []).append(frame)
    stacks = []
    for series, members in sorted(by_series.items(), key=lambda item: (_as_number(item[0].number), item[0].uid)):
        groups = [part for group in _grids(members) for part in _images(group)]
        stacks += [Stack(series, k if len(groups) > 1 else 0, *group) for k, group in enumerate(groups, 1)]
    return stacks


def choose(stacks: Sequence[Stack], dataset: str | None, path: Path) -> Stack:
    """Return the stack that `dataset` names, or the only one.

    Raises
    ------
    FormatError
        There are several, or none of this name.
    """
    matching = [s for s in stacks if dataset is None or dataset in s.names or dataset in _series_names(s)]
    exact = [s for s in matching if dataset in s.names]
    matching = exact if len(exact) == 1 else matching
    if len(matching) == 1:
        return matching[0]
    listed = "; ".join(line(s, stacks) for s in (matching or stacks)[:_LISTED])
    more = "" if len(matching or stacks) <= _LISTED else f"; and {len(matching or stacks) - _LISTED} more"
    series = len({s.series for s in matching})
    if dataset is not None and not matching:
        raise FormatError(f"{path} has no series {dataset}; dataset= must be one of {listed}{more}")
    kind = f"{series} series" if series > 1 else f"{len(matching)} stacks that make no common volume"
    raise FormatError(f"{path} holds {kind}; choose one with dataset=: {listed}{more}")


def line(stack: Stack, stacks: Sequence[Stack]) -> str:
    """Return the name by which `dataset=` chooses one of some stacks, and a description of it."""
    return f"{_unique_name(stack, stacks)!r}{_title(stack)}: {stack}"


def placed(stack: Stack) -> Placed:
    """Return the planes of a stack in order, and its grid.

    Raises
    ------
    FormatError
        Planes are missing, duplicate, or not evenly spaced.
    """
    first = stack.frames[0]
    assumed = frozenset(name for frame in stack.frames for name in frame.assumed)
    if any(frame.position is None for frame in stack.frames):
        return _unplaced(stack, assumed)
    positions = in_planes(stack.frames)
    _check_sideways(positions)
    times = in_order(positions)
    origins = np.array([shared[0].position for shared in positions])
    first = positions[0][0]
    return Placed(times, _affine(first, origins[0], _step(origins, first)), assumed)


def in_planes(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the planes by their position along the normal, from the first to the last."""
    normal = frames[0].normal
    pixel = 1.0 if frames[0].spacing is None else float(min(frames[0].spacing))
    along = [float(normal @ frame.position) for frame in frames if frame.position is not None]
    order = sorted(range(len(along)), key=along.__getitem__)
    positions: list[list[Frame]] = []
    last = -np.inf
    for k in order:
        if along[k] - last > _SAME * pixel:
            positions.append([])
            last = along[k]
        positions[-1].append(frames[k])
    return positions


def _grids(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the planes by size, direction, spacing, and the stack or segment that they name."""
    grids: list[list[Frame]] = []
    for frame in frames:
        same = next((grid for grid in grids if _same_grid(grid[0], frame)), None)
        if same is None:
            grids.append([frame])
        else:
            same.append(frame)
    return grids


def _same_grid(a: Frame, b: Frame) -> bool:
    if a.shape != b.shape or a.image.channels != b.image.channels:
        return False
    if any(a.facts.get(name) != b.facts.get(name) for name in ("StackID", "ReferencedSegmentNumber")):
        return False
    return _near(a.orientation, b.orientation, _PARALLEL) and _near(a.spacing, b.spacing, _EQUAL * _size(a.spacing))


def _size(spacing: Floats | None) -> float:
    return 0.0 if spacing is None else float(min(spacing))


def _near(a: Floats | None, b: Floats | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(a - b).max() <= tolerance)


def _images(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Return what planes of one grid show, and the planes: magnitude and phase, or echoes of each time."""
    if any(frame.position is None for frame in frames):
        return [("", frames)]
    parts = split(in_planes(frames))
    if len(parts) == 1:
        return parts
    return [
        (", ".join(filter(None, (shows, deeper))), part)
        for shows, members in parts
        for deeper, part in _images(members)
    ]


def _check_sideways(positions: Sequence[Sequence[Frame]]) -> None:
    """Raise FormatError if planes at one distance along the normal lie next to each other."""
    for shared in positions:
        places = np.array([frame.position for frame in shared])
        if np.linalg.norm(places - places[0], axis=1).max() > _SAME * (_size(shared[0].spacing) or 1.0) * 2:
            raise FormatError(f"planes must lie behind each other; {shared[0].path.name} has others next to it")


def _step(origins: Floats, first: Frame) -> Floats:
    """Return the vector from a plane to the next one."""
    if len(origins) == 1:
        in_plane = _size(first.spacing) or 1.0
        return first.normal * (first.thickness or in_plane)
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    steps = np.diff(origins, axis=0)
    length = float(np.linalg.norm(step))
    deviation = float(np.linalg.norm(steps - step, axis=1).max())
    if not deviation <= _MAX_DEVIATION * length:
        usual = float(np.median(np.linalg.norm(steps, axis=1)))
        missing = round(length * (len(origins) - 1) / usual) + 1 - len(origins)
        count = f"{missing} of {missing + len(origins)} " if 0 < missing < len(origins) else ""
        raise FormatError(
            f"slices lie {length:.4g} mm apart on average but deviate by up to {deviation:.3g} mm; {count or 'some '}"
            "are missing, or several series are mixed"
        )
    if abs(step @ first.normal) < 0.1 * length:
        raise FormatError(f"slices must lie behind each other; they are moved sideways by {length:.4g} mm each")
    return step


def _unplaced(stack: Stack, assumed: frozenset[str]) -> Placed:
    """Return planes without position, in the order of their numbers."""
    frames = sorted(stack.frames, key=_number)
    repeated = len({_number(f) for f in frames}) < len(frames)
    if repeated or any(frame.position is not None for frame in frames):
        raise FormatError(
            "images must state ImagePositionPatient, or InstanceNumber, which differs; they do not. Pass one file"
        )
    counted = np.diff([_number(frame)[0] for frame in frames])
    if counted.any() and (counted != counted[0]).any():
        raise FormatError("images without position must be counted by InstanceNumber without gaps; some are missing")
    first = frames[0]
    between = abs(first.facts.get("SpacingBetweenSlices") or 0) if len(frames) > 1 else first.thickness
    unknown = {"spacing"} if len(frames) > 1 and not between else set()
    affine = _affine(first, np.zeros(3), first.normal * (between or 1.0))
    if "FrameNumber" in first.facts:
        values = [frame.facts["FrameNumber"] for frame in frames]
        return Placed(Times([[frame] for frame in frames], "FrameNumber", values), affine, assumed)
    return Placed(Times([frames], "", []), affine, assumed | unknown)


def _number(frame: Frame) -> tuple[float, int]:
    number = frame.facts.get("InstanceNumber")
    return (number if isinstance(number, float) else 0.0, frame.index)


def _affine(frame: Frame, origin: Floats, step: Floats) -> Floats:
    """Return the affine from column, row and plane to world mm, RAS+."""
    directions = np.array([1.0, 0, 0, 0, 1, 0]) if frame.orientation is None else frame.orientation
    spacing = np.ones(2) if frame.spacing is None else frame.spacing
    affine = np.eye(4)
    affine[:3] = np.column_stack([directions[:3] * spacing[1], directions[3:] * spacing[0], step, origin])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _plane(frame: Frame) -> str:
    if frame.orientation is None:
        return "orientation not stated"
    nearest = ("sagittal", "coronal", "axial")[int(np.abs(frame.normal).argmax())]
    return nearest if np.abs(frame.normal).max() > 1 - 1e-3 else f"near {nearest}"


def _as_number(text: str) -> tuple[float, str]:
    return (float(text), "") if text.isdigit() else (np.inf, text)


def _series_names(stack: Stack) -> tuple[str, ...]:
    return stack.series.number, stack.series.description, stack.series.uid


def _unique_name(stack: Stack, stacks: Sequence[Stack]) -> str:
    others = {name for other in stacks if other is not stack for name in other.names}
    return next((name for name in stack.names if name not in others), stack.names[-1] if stack.names else "")


def _title(stack: Stack) -> str:
    return f" ({stack.series.description})" if stack.series.description else ""
