"""Order of planes that share a position: times, echoes and diffusion directions along one axis."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrhdata.errors import FormatError
from mrhdata.io.dicom.frames import Frame

#: Elements with the same values at every position, one or a pair, in order of preference.
_FACTORS = (
    ("TemporalPositionIndex",),
    ("TemporalPositionIdentifier",),
    ("FrameNumber",),
    ("DiffusionBValue", "DiffusionGradientOrientation"),
    ("EffectiveEchoTime",),
    ("EchoTime",),
    ("EchoNumbers",),
    ("InversionTimes",),
    ("InversionTime",),
    ("NominalCardiacTriggerDelayTime",),
    ("TriggerTime",),
    ("FrameAcquisitionNumber",),
    ("AcquisitionNumber",),
)
#: Elements with a time of its own for each plane, whose order at a position is that of the times.
_CLOCKS = ("FrameAcquisitionDateTime", "AcquisitionDateTime", "TriggerTime", "AcquisitionTime", "ContentTime")
#: Elements whose values show other things: magnitude and phase are not two times.
_KINDS = ("ComplexImageComponent", "ImageType")
#: Elements that split planes into images of their own, unless they are enough to tell them apart.
_PHYSICS = ("EffectiveEchoTime", "EchoTime", "InversionTimes", "InversionTime")


@dataclass(frozen=True)
class Times:
    """Planes in order.

    Parameters
    ----------
    frames : list of list of Frame
        Planes of each time, in order of position.
    name : str
        Element that tells the times apart, empty for one time.
    values : list
        Its value at each time, from the first position.
    """

    frames: list[list[Frame]]
    name: str
    values: list[Any]


def split(positions: Sequence[Sequence[Frame]]) -> list[tuple[str, list[Frame]]]:
    """Return the planes of images that share positions but are not times of each other, with what they show."""
    frames = [frame for shared in positions for frame in shared]
    most = max(len(shared) for shared in positions)
    if most == 1:
        return [("", frames)]
    for name in (*_KINDS, *_PHYSICS):
        values = [{_value(frame, (name,)) for frame in shared} for shared in positions]
        several = max(len(v) for v in values) > 1
        if several and (name in _KINDS or max(len(v) for v in values) < most):
            kinds = sorted({_value(frame, (name,)) for frame in frames}, key=_key)
            return [(f"{name} {_text(kind[0])}", [f for f in frames if _value(f, (name,)) == kind]) for kind in kinds]
    return [("", frames)]


def in_order(positions: Sequence[Sequence[Frame]]) -> Times:
    """Return the planes by time, and by position.

    Raises
    ------
    FormatError
        Positions have different numbers of planes, or nothing tells the planes of a position apart.
    """
    counts = Counter(len(shared) for shared in positions)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(shared for shared in positions if len(shared) != usual)
        raise FormatError(
            f"every position must have as many images as the others; {counts[usual]} positions have {usual} and one "
            f"has {len(odd)} ({_listed(odd)}). Remove what is duplicate, or add what is missing"
        )
    (count,) = counts
    if count == 1:
        return Times([[shared[0] for shared in positions]], "", [])
    for factor in _FACTORS:
        values = [sorted({_value(f, factor) for f in shared}, key=_key) for shared in positions]
        if len(values[0]) == count and all(v == values[0] for v in values):
            return _sorted(positions, factor)
    for clock in _CLOCKS:
        if all(len({_value(f, (clock,)) for f in shared} - {(None,)}) == count for shared in positions):
            return _sorted(positions, (clock,))
    if _numbered(positions, count):
        return _sorted(positions, ("InstanceNumber",))
    raise FormatError(
        f"{len(positions)} positions have {count} images each, and no element tells times apart; they differ in "
        f"{', '.join(_differing(positions)) or 'nothing'}. Split the series into one folder for each time"
    )


def _sorted(positions: Sequence[Sequence[Frame]], factor: tuple[str, ...]) -> Times:
    ordered = [sorted(shared, key=lambda f: _key(_value(f, factor))) for shared in positions]
    count = len(ordered[0])
    values = [_plain(_value(frame, factor)) for frame in ordered[0]]
    return Times(
        [[shared[t] for shared in ordered] for t in range(count)],
        factor[0],
        [v[0] if len(v) == 1 else v for v in values],
    )


def _plain(value: Any) -> Any:
    """Return tuples as lists, as stores keep them."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _value(frame: Frame, factor: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(frame.facts.get(name) for name in factor)


def _key(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a key that sorts missing values first, and numbers before texts."""
    return tuple((v is not None, isinstance(v, str), isinstance(v, tuple), 0 if v is None else v) for v in value)


def _numbered(positions: Sequence[Sequence[Frame]], count: int) -> bool:
    """Return whether InstanceNumber counts time after time, or position after position, without gaps."""
    numbers = [sorted(f.facts.get("InstanceNumber") or 0 for f in shared) for shared in positions]
    if len({n for shared in numbers for n in shared}) != count * len(positions):
        return False
    blocks = [[shared[t] for shared in numbers] for t in range(count)]
    times = all(max(a) < min(b) for a, b in itertools.pairwise(blocks))
    in_turn = sorted(numbers)
    return times or all(a[-1] < b[0] for a, b in itertools.pairwise(in_turn))


def _differing(positions: Sequence[Sequence[Frame]]) -> list[str]:
    names = sorted({name for shared in positions for f in shared for name in f.facts} - {"SOPInstanceUID"})
    return [n for n in names if any(len({_value(f, (n,)) for f in shared}) > 1 for shared in positions)]


def _listed(frames: Sequence[Frame]) -> str:
    names = [frame.path.name for frame in frames[:4]]
    return ", ".join(names) + (", ..." if len(frames) > 4 else "")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "\\".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
