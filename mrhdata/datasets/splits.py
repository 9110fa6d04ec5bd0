"""Random splits by subject."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from mrhdata.errors import DataError


def assign_parts(names: Iterable[str], split: Mapping[str, float], seed: int) -> dict[str, str]:
    """Assign each name, such as a subject, to a part of a split at random; every part gets at least one name.

    Parameters
    ----------
    names : iterable of str
        Names; repeated ones count once.
    split : mapping of str to float
        Share of each part; shares sum to 1.
    seed : int
        Random seed.

    Returns
    -------
    part_of : dict of str to str
        Part of each name.

    Raises
    ------
    DataError
        If shares do not sum to 1, or if there are fewer names than parts.

    Examples
    --------
    >>> assign_parts("abcd", {"train": 0.5, "test": 0.5}, seed=0)
    {'c': 'train', 'a': 'train', 'b': 'test', 'd': 'test'}
    """
    if not split or min(split.values()) <= 0 or abs(sum(split.values()) - 1) > 1e-6:
        raise DataError(f"split must be positive shares that sum to 1, such as train=0.8, test=0.2; got {dict(split)}")
    subjects = sorted(set(names))
    if len(subjects) < len(split):
        raise DataError(
            f"a split into {len(split)} parts needs at least {len(split)} subjects; got {len(subjects)}. Name files "
            "sub-01_..., or use fewer parts"
        )
    random.Random(seed).shuffle(subjects)
    part_of: dict[str, str] = {}
    cumulative_share = 0.0
    start = 0
    for i, (part, share) in enumerate(split.items()):
        cumulative_share += share
        left_for_others = len(split) - i - 1
        stop = max(start + 1, min(round(cumulative_share * len(subjects)), len(subjects) - left_for_others))
        part_of |= dict.fromkeys(subjects[start:stop], part)
        start = stop
    return part_of
