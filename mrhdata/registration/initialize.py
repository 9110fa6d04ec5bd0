"""Initial transforms of a registration: from the headers, from aligned centres, and with permuted or flipped axes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata.errors import DataError, GridError
from mrhdata.metrics.image import check_same_shape
from mrhdata.registration.images import LevelImage
from mrhdata.registration.linear import Search, fit
from mrhdata.volume.grid import Floats

STARTS = ("auto", "world", "geometry", "moments")
ORIENTATIONS = {False: 1, "rotations": 24, True: 48}
#: Voxels along the longest axis of the images that starts are compared on.
_COARSE = 24
#: Number of best starts that are refined by a rigid search, and the points that its metric samples.
_REFINED, _SAMPLES = 12, 4_000
_BINS = 24


@dataclass(frozen=True)
class Start:
    """Initial transform of a registration, with its score.

    Attributes
    ----------
    name : str
        ``"world"``, ``"geometry"`` or ``"moments"``, and the directions in the moving volume of world R, A and S of
        the fixed one (``"RAS"`` if no axis turns).
    score : float
        Normalised mutual information of the images in this alignment: 1 for none, higher is better.
    matrix : (4, 4) array
        Matrix from fixed to moving world.
    """

    name: str
    score: float
    matrix: Floats


def turns(orientations: bool | str) -> list[Floats]:
    """Return matrices (3, 3) that permute and flip the axes, the identity first: 48, or 24 without mirror images.

    Examples
    --------
    >>> len(turns(True)), len(turns("rotations")), len(turns(False))
    (48, 24, 1)
    """
    if orientations not in ORIENTATIONS:
        raise GridError(f"orientations must be one of {list(ORIENTATIONS)}; got {orientations!r}")
    signed_orders = itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    matrices = [np.eye(3)[list(order)] * np.array(signs)[:, None] for order, signs in signed_orders]
    if orientations == "rotations":
        matrices = [m for m in matrices if np.linalg.det(m) > 0]
    return matrices if orientations else matrices[:1]


def rank(fixed: LevelImage, moving: LevelImage, start: str, orientations: bool | str, seed: int) -> list[Start]:
    """Rank the starts at a coarse level, best first; the best twelve are refined by a rigid search and ranked again.

    A brain is nearly its own mirror image: with ``orientations=True`` the second score may be close to the
    first. Use ``"rotations"`` if the volume is known not to be mirrored.
    """
    if start not in STARTS:
        raise GridError(f"start must be a Transform or one of {', '.join(STARTS)}; got {start!r}")
    fixed, moving = _coarsen(fixed), _coarsen(moving)
    starts = [replace(c, score=score(fixed, moving, c.matrix)) for c in _candidates(fixed, moving, start, orientations)]
    if len(starts) == 1:
        return starts
    starts.sort(key=lambda s: -s.score)
    refined = [_refine(fixed, moving, s, Search(seed, 30, _SAMPLES)) for s in starts[:_REFINED]]
    return sorted(refined, key=lambda s: -s.score) + starts[_REFINED:]


def _coarsen(picture: LevelImage) -> LevelImage:
    return picture.at(float((np.array(picture.grid.shape) * picture.grid.spacing).max()) / _COARSE)


def _candidates(fixed: LevelImage, moving: LevelImage, start: str, orientations: bool | str) -> list[Start]:
    centres = {
        "world": (np.zeros(3), np.zeros(3)),
        "geometry": (_grid_centre(fixed), _grid_centre(moving)),
        "moments": (fixed.centre(), moving.centre()),
    }
    starts = []
    for name in [n for n in centres if n == start] or centres:
        for turn in turns(orientations):
            # Axes turn about the centre of the brain; a turn about the world's origin could move it anywhere.
            if name != "moments" and start == "auto" and not np.array_equal(turn, np.eye(3)):
                continue
            fixed_centre, moving_centre = centres[name]
            matrix = np.eye(4)
            matrix[:3, :3], matrix[:3, 3] = turn, moving_centre - turn @ fixed_centre
            starts.append(Start(f"{name} {letters(turn)}", 0.0, matrix))
    return starts


def _grid_centre(picture: LevelImage) -> Floats:
    return picture.grid.world((np.array(picture.grid.shape) - 1) / 2)


def letters(turn: Floats) -> str:
    """Name the directions that R, A and S turn to: ``"RAS"`` for the identity, ``"LAS"`` for a mirror image."""
    names = ("RL", "AP", "SI")
    axes = np.abs(turn).argmax(axis=0)
    return "".join(names[a][int(turn[a, i] < 0)] for i, a in enumerate(axes))


def _refine(fixed: LevelImage, moving: LevelImage, start: Start, search: Search) -> Start:
    try:
        matrix = fit(fixed, moving, "rigid", start.matrix, search)
    except DataError:
        matrix = start.matrix
    scores = [(score(fixed, moving, m), m) for m in (matrix, start.matrix)]
    best = max(scores, key=lambda s: s[0])
    return Start(start.name, best[0], best[1])


def score(fixed: LevelImage, moving: LevelImage, matrix: Floats) -> float:
    """Compute normalised mutual information over the whole fixed image, with 0 outside the moving one.

    The outside counts, so that a start with little overlap cannot win (Studholme et al. 1999, Pattern
    Recognit. 32:71).
    """
    index_matrix = np.linalg.solve(moving.grid.affine, matrix @ fixed.grid.affine)
    values = ndimage.affine_transform(
        np.where(moving.inside, moving.values, 0), index_matrix[:3, :3], index_matrix[:3, 3], fixed.grid.shape, order=1
    )
    return normalised_information(fixed.values[fixed.inside], values[fixed.inside])


def normalised_information(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Compute ``(H(A) + H(B)) / H(A, B)`` of values from 0 to 1; the result is between 1 and 2.

    Examples
    --------
    >>> values = np.linspace(0, 1, 240)
    >>> round(normalised_information(values, 1 - values), 6), normalised_information(values, 0 * values)
    (2.0, 1.0)
    """
    a, b = check_same_shape(a, b)
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=_BINS, range=((0, 1), (0, 1)))
    p = joint / joint.sum()
    joint_entropy = _entropy(p)
    return float((_entropy(p.sum(axis=0)) + _entropy(p.sum(axis=1))) / joint_entropy) if joint_entropy > 0 else 1.0


def _entropy(p: NDArray[np.floating]) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
