"""Subjects shared out among the parts of a split."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from mrhdata.errors import DataError


def shared_out(names: Iterable[str], split: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each name, such as a subject, drawn at random; every part gets one while there are any.

    Raises
    ------
    DataError
        Shares do not sum to 1, or there are fewer names than parts.

    Examples
    --------
    >>> shared_out("abcd", {"train": 0.5, "test": 0.5}, seed=0)
    {'c': 'train', 'a': 'train', 'b': 'test', 'd': 'test'}
    """
    if not split or min(split.values()) <= 0 or abs(sum(split.values()) - 1) > 1e-6:
        raise DataError(f"split={dict(split)}: give positive shares that sum to 1, such as train=0.8, test=0.2")
    people = sorted(set(names))
    if len(people) < len(split):
        raise DataError(f"there are {len(people)} subjects for {len(split)} parts; name files sub-01_..., or use fewer")
    random.Random(seed).shuffle(people)
    total, placed = 0.0, 0
    part_of: dict[str, str] = {}
    for i, (part, fraction) in enumerate(split.items()):
        total += fraction
        last = max(placed + 1, min(round(total * len(people)), len(people) - (len(split) - i - 1)))
        part_of |= dict.fromkeys(people[placed:last], part)
        placed = last
    return part_of
