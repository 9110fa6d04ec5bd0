"""Where a registration starts: the world as the headers say, centres laid on each other, axes in any order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.image import check_same_shape
from mrhdata.registration.images import Picture
from mrhdata.registration.linear import Search, fit
from mrhdata.volume.grid import Floats

STARTS = ("auto", "world", "geometry", "moments")
ORIENTATIONS = {False: 1, "rotations": 24, True: 48}
#: Voxels along the longest axis of the pictures with which starts are compared, and how many go to the second
#: round, and at how many points that looks.
_COARSE, _SECOND_ROUND, _SAMPLES = 24, 12, 4_000
_BINS = 24


@dataclass(frozen=True)
class Start:
    """A place to start from.

    Attributes
    ----------
    name : str
        ``"world"``, ``"geometry"`` or ``"moments"``, and the axes: where world R, A and S of the fixed volume
        lie in the moving one (``"RAS"`` where nothing turns).
    score : float
        Normalised mutual information of the pictures that lie so: 1 for none, higher is better.
    matrix : (4, 4) array
        Fixed to moving world.
    """

    name: str
    score: float
    matrix: Floats


def turns(orientations: bool | str) -> list[Floats]:
    """Matrices (3, 3) that permute and flip the axes: the identity first; 24 without mirror images, or 48.

    Examples
    --------
    >>> len(turns(True)), len(turns("rotations")), len(turns(False))
    (48, 24, 1)
    """
    if orientations not in ORIENTATIONS:
        raise GridError(f"orientations is one of {list(ORIENTATIONS)}, not {orientations!r}")
    signed = itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    found = [np.eye(3)[list(order)] * np.array(signs)[:, None] for order, signs in signed]
    if orientations == "rotations":
        found = [m for m in found if np.linalg.det(m) > 0]
    return found if orientations else found[:1]


def rank(fixed: Picture, moving: Picture, start: str, orientations: bool | str, seed: int) -> list[Start]:
    """Starts, the best first, at a coarse level: compared as they are, then the best twelve after a rigid search.

    A brain is nearly its own mirror image: with ``orientations=True`` the second score may be close to the
    first, and ``"rotations"`` is the better question where the volume is known not to be mirrored.
    """
    if start not in STARTS:
        raise GridError(f"start is a Transform or one of {', '.join(STARTS)}, not {start!r}")
    fixed, moving = _coarse(fixed), _coarse(moving)
    first = [replace(c, score=score(fixed, moving, c.matrix)) for c in _candidates(fixed, moving, start, orientations)]
    if len(first) == 1:
        return first
    first.sort(key=lambda s: -s.score)
    again = [_searched(fixed, moving, c, Search(seed, 30, _SAMPLES)) for c in first[:_SECOND_ROUND]]
    return sorted(again, key=lambda s: -s.score) + first[_SECOND_ROUND:]


def _coarse(picture: Picture) -> Picture:
    return picture.at(float((np.array(picture.grid.shape) * picture.grid.spacing).max()) / _COARSE)


def _candidates(fixed: Picture, moving: Picture, start: str, orientations: bool | str) -> list[Start]:
    middles = {
        "world": (np.zeros(3), np.zeros(3)),
        "geometry": (_middle(fixed), _middle(moving)),
        "moments": (fixed.centre(), moving.centre()),
    }
    found = []
    for name in [n for n in middles if n == start] or middles:
        for turn in turns(orientations):
            # Axes turn about the middle of the brain; about the world's origin they would lead anywhere.
            if name != "moments" and start == "auto" and not np.array_equal(turn, np.eye(3)):
                continue
            here, there = middles[name]
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = turn, there - turn @ here
            found.append(Start(f"{name} {letters(turn)}", 0.0, matrix))
    return found


def _middle(picture: Picture) -> Floats:
    return picture.grid.world((np.array(picture.grid.shape) - 1) / 2)


def letters(turn: Floats) -> str:
    """Where R, A and S go: ``"RAS"`` for the identity, ``"LAS"`` for a mirror image."""
    names = ("RL", "AP", "SI")
    axes = np.abs(turn).argmax(axis=0)
    return "".join(names[a][int(turn[a, i] < 0)] for i, a in enumerate(axes))


def _searched(fixed: Picture, moving: Picture, start: Start, search: Search) -> Start:
    try:
        matrix = fit(fixed, moving, "rigid", start.matrix, search)
    except DataError:
        matrix = start.matrix
    scores = [(score(fixed, moving, m), m) for m in (matrix, start.matrix)]
    best = max(scores, key=lambda s: s[0])
    return Start(start.name, best[0], best[1])


def score(fixed: Picture, moving: Picture, matrix: Floats) -> float:
    """Normalised mutual information over the whole fixed picture; beyond the moving one it is dark.

    So a start cannot win by having little in common with the fixed volume (Studholme et al. 1999,
    Pattern Recognit. 32:71).
    """
    where = np.linalg.solve(moving.grid.affine, matrix @ fixed.grid.affine)
    values = ndimage.affine_transform(
        np.where(moving.inside, moving.values, 0), where[:3, :3], where[:3, 3], fixed.grid.shape, order=1
    )
    return normalised_information(fixed.values[fixed.inside], values[fixed.inside])


def normalised_information(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """``(H(A) + H(B)) / H(A, B)`` of values from 0 to 1: from 1 to 2.

    Examples
    --------
    >>> values = np.linspace(0, 1, 240)
    >>> round(normalised_information(values, 1 - values), 6), normalised_information(values, 0 * values)
    (2.0, 1.0)
    """
    a, b = check_same_shape(a, b)
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=_BINS, range=((0, 1), (0, 1)))
    p = joint / joint.sum()
    both = _entropy(p)
    return float((_entropy(p.sum(axis=0)) + _entropy(p.sum(axis=1))) / both) if both > 0 else 1.0


def _entropy(p: NDArray[np.floating]) -> float:
    held = p[p > 0]
    return float(-(held * np.log(held)).sum())
