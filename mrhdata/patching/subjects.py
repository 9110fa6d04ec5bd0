"""Subjects of a training set: their inputs, target and mask from any form of argument, and names from file paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from mrhdata.errors import NameMissingError, ParameterError
from mrhdata.volume.checks import check_volume

#: Name of the person in a path that follows BIDS.
_SUBJECT = re.compile(r"(?:^|[/\\])(sub-[A-Za-z0-9]+)")


@dataclass(frozen=True)
class SubjectVolumes:
    """Volumes of one subject by their role.

    Attributes
    ----------
    inputs : volume or mapping of volumes
    target : volume, mapping of volumes, or None
    mask : volume or None
    volumes : mapping of volumes
        All volumes with a name, whatever their role. Samplers look up labels and weights in it.
    """

    inputs: Any
    target: Any
    mask: Any
    volumes: Mapping[str, xr.DataArray]


def describe_subjects(inputs: Any, target: Any, mask: Any) -> list[SubjectVolumes]:
    """Return the subjects that the arguments of :func:`mrhdata.patches` describe.

    Parameters
    ----------
    inputs : volume, mapping, subject, or a sequence of them
    target, mask : volume, mapping, a sequence of them, the name of one of the inputs, or None

    Examples
    --------
    >>> import numpy as np
    >>> from mrhdata.volume.construct import from_array
    >>> t1w, seg = (from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1)) for _ in range(2))
    >>> (subject,) = describe_subjects({"t1w": t1w, "seg": seg}, "seg", None)
    >>> list(subject.inputs), subject.target is seg
    (['t1w'], True)
    """
    subjects = [_subject(item) for item in _per_subject(inputs)]
    if not subjects:
        raise ParameterError("inputs must have at least one volume; got none")
    subjects = _with_role(subjects, "target", target)
    return _with_role(subjects, "mask", mask)


def _subject(item: Any) -> SubjectVolumes:
    """Return a volume, a mapping or a subject with `inputs`, `target` and `mask` by role."""
    if isinstance(item, xr.DataArray | Mapping):
        return SubjectVolumes(item, None, None, _by_name(item))
    inputs, target, mask = (getattr(item, role, None) for role in ("inputs", "target", "mask"))
    if not isinstance(inputs, Mapping):
        check_volume("inputs", item, "a mapping of names to volumes, or a subject")
    named = {"target": target, "mask": mask, **dict(inputs or {})}
    return SubjectVolumes(inputs, target, mask, {name: volume for name, volume in named.items() if volume is not None})


def _with_role(subjects: Sequence[SubjectVolumes], role: str, argument: Any) -> list[SubjectVolumes]:
    """Return the subjects with a target or mask from an argument; a name moves one of their inputs."""
    if argument is None:
        return list(subjects)
    if isinstance(argument, str):
        return [_move_input(subject, number, role, argument) for number, subject in enumerate(subjects)]
    items = _per_subject(argument)
    if len(items) != len(subjects):
        raise ParameterError(f"{role} must have one item per subject; got {len(items)} for {len(subjects)} subjects")
    for item in items:
        if item is not None and not isinstance(item, Mapping):
            check_volume(role, item, "or the name of an input")
    if role == "target":
        items = _one_name(items)
    return [
        replace(subject, **{role: item}, volumes={**subject.volumes, **_by_name(item)})
        for subject, item in zip(subjects, items, strict=True)
    ]


def _move_input(subject: SubjectVolumes, number: int, role: str, name: str) -> SubjectVolumes:
    """Return a subject with one of its inputs as its target or mask."""
    if not isinstance(subject.inputs, Mapping) or name not in subject.inputs:
        names = list(subject.inputs) if isinstance(subject.inputs, Mapping) else [subject.inputs.name]
        raise NameMissingError(
            f"{role} must name a volume of every subject; got {name!r}, and subject {number} has {names}"
        )
    inputs = {key: volume for key, volume in subject.inputs.items() if key != name}
    return replace(subject, inputs=inputs, **{role: subject.inputs[name]})


def _per_subject(items: Any) -> list[Any]:
    return list(items) if isinstance(items, Sequence) and not isinstance(items, str) else [items]


def _one_name(targets: list[Any]) -> list[Any]:
    """Rename single targets to one name, since their files have different names."""
    if any(target is None or isinstance(target, Mapping) for target in targets):
        return targets
    return [target.rename(targets[0].name) for target in targets]


def _by_name(volumes: Any) -> dict[str, xr.DataArray]:
    """Return the volumes of a mapping, or a single volume if it has a name."""
    if isinstance(volumes, Mapping):
        return dict(volumes)
    return {str(volumes.name): volumes} if volumes is not None and volumes.name is not None else {}


def subject_name(paths: Iterable[str]) -> str | None:
    """Return the BIDS subject in file paths, such as ``sub-01``, or None if they name several or no subject."""
    names = {matches[-1] for path in paths if (matches := _SUBJECT.findall(path))}
    return names.pop() if len(names) == 1 else None
