"""Training, validation and test that share nothing: by subject, or by blocks with a gap between.

Neighbouring voxels are alike, so patches drawn at random from one brain are no test of each other. The
two hemispheres are alike too: blocks along x put mirror images on both sides.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mrhdata.errors import DataError, GridError
from mrhdata.patching.patch_set import PatchSet
from mrhdata.patching.positions import Ints, shares
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.construct import SPATIAL, describe
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr

#: First and last faces of many boxes, (n, 3) each.
Faces = tuple[NDArray[np.float64], NDArray[np.float64]]

log = logging.getLogger("mrhdata")


def parts_of(patches: PatchSet, sizes: Sequence[float], by: str, guard: int | None, seed: int) -> list[Ints]:
    """Rows of each part.

    Parameters
    ----------
    patches : Patches
    sizes : sequence of float
        Share of each part: of the subjects, or of each subject's patches along the axis (less those that a gap
        takes), so that a mask leaves no part empty.
    by : {"subject", "z", "y", "x"}
    guard : int, optional
        Voxels that at least lie between patches of two parts, of input or target; the longest patch by
        default. The receptive field of a network that sees beyond its patch comes on top.
    seed : int
        Of the order of subjects.
    """
    if by == "subject":
        return _by_subject(patches, sizes, seed)
    axis = _axis(by)
    ends = np.cumsum(np.asarray(sizes, dtype=np.float64)) / np.sum(sizes)
    edges = [0.0, *ends.tolist()]
    return [_between(patches, axis, guard, a, b) for a, b in itertools.pairwise(edges)]


def folds_of(patches: PatchSet, k: int, by: str, guard: int | None, seed: int) -> list[tuple[Ints, Ints]]:
    """Rows of training and test of each fold; patches within the guard of the test are in neither."""
    if k < 2:
        raise DataError(f"there are two folds or more, not {k}")
    if by == "subject":
        parts = _by_subject(patches, [1.0] * k, seed)
        return [(np.sort(np.concatenate(parts[:i] + parts[i + 1 :])), part) for i, part in enumerate(parts)]
    axis = _axis(by)
    folds = []
    for i in range(k):
        test = _between(patches, axis, 0, i / k, (i + 1) / k)
        beside = [
            _between(patches, axis, guard, a, b, half=False) for a, b in ((0.0, i / k), ((i + 1) / k, 1.0)) if a < b
        ]
        folds.append((np.sort(np.concatenate(beside)), test))
    return folds


def labelled(parts: Sequence[PatchSet], by: str, like: xr.DataArray) -> xr.DataArray:
    """Where the patches of each part of one subject lie along an axis: labels from 1 on, 0 between parts.

    Parameters
    ----------
    parts : sequence of Patches
        From :meth:`mrhdata.patching.dataset.Patches.split`, of one subject.
    by : {"z", "y", "x"}
    like : volume
        The first input.
    """
    axis = _axis(by)
    labels = np.zeros([like.sizes[d] for d in SPATIAL], dtype=np.uint8)
    for number, part in enumerate(parts, start=1):
        at = part.positions[:, axis]
        planes = slice(int(at.min()), int(at.max()) + part.shape[axis])
        labels[(*(slice(None),) * axis, planes)] = number
    like = like.isel(c=0, drop=True) if "c" in like.dims else like
    return describe(like.copy(data=labels), kind="labels", units="1").rename("parts")


def _by_subject(patches: PatchSet, sizes: Sequence[float], seed: int) -> list[Ints]:
    subjects = np.unique(patches.subject)
    counts = shares(len(subjects), sizes)
    empty = [i for i, (n, size) in enumerate(zip(counts, sizes, strict=True)) if not n and size]
    if empty:
        raise DataError(f"{len(subjects)} subjects do not make parts of {list(sizes)}: part {empty[0]} would be empty")
    order = np.random.default_rng(seed).permutation(subjects)
    groups = np.split(order, np.cumsum(counts)[:-1])
    return [np.flatnonzero(np.isin(patches.subject, group)) for group in groups]


def _axis(by: str) -> int:
    if by not in SPATIAL:
        raise GridError(f"a split is by subject, z, y or x, not {by!r}")
    if by == "x":
        log.warning("parts along x: left and right of a brain are mirror images, and may lie in different parts")
    return SPATIAL.index(by)


def _guard(patches: PatchSet, guard: int | None) -> int:
    if guard is not None and guard < 0:
        raise GridError(f"guard is a number of voxels, 0 or more, not {guard}")
    return max(patches.shape) if guard is None else guard


def _between(patches: PatchSet, axis: int, guard: int | None, low: float, high: float, half: bool = True) -> Ints:
    """Rows whose patches, input and target, lie between two parts of the axis of their subject.

    The guard is kept half by each neighbour, or whole by this part.
    """
    gap = _guard(patches, guard)
    keep = np.zeros(len(patches.positions), dtype=bool)
    for number, streams in enumerate(patches.sources):
        rows = np.flatnonzero(patches.subject == number)
        start, stop = _extent(streams, patches.positions[rows], axis)
        # In voxels of the first stream; borders of the volume need no guard.
        cuts = np.quantile((start + stop) / 2, [low, high]).round() if len(rows) else np.zeros(2)
        first = cuts[0] + (0 if low <= 0 else (gap + 1) // 2 if half else gap)
        last = cuts[1] - (0 if high >= 1 else gap // 2 if half else gap)
        inside = ((start >= first) | (low <= 0)) & ((stop <= last) | (high >= 1))
        keep[rows] = inside
    return np.flatnonzero(keep)


def _extent(streams: Sequence[TensorSource], positions: Ints, axis: int) -> Faces:
    """First voxel of each patch along an axis and the one after its last, over all streams, in voxels of the first."""
    boxes = [_faces(stream, positions, streams[0].grid) for stream in streams]
    low, high = np.array(boxes)[..., axis].transpose(1, 0, 2)
    return low.min(axis=0), high.max(axis=0)


def _faces(stream: TensorSource, positions: Ints, grid: Grid) -> Faces:
    """Outer faces of patches of a stream, low and high (n, 3), in voxels of a grid whose first voxel is 0 to 1."""
    starts = stream.starts(positions)
    # All corners: the axes of the streams may be turned.
    corners = [np.array(c) * stream.shape - 0.5 for c in np.ndindex(2, 2, 2)]
    places = np.array([grid.index(stream.grid.world(starts + corner)) + 0.5 for corner in corners])
    return places.min(axis=0).round(6), places.max(axis=0).round(6)


def shared_with(mine: PatchSet, other: PatchSet) -> NDArray[np.bool_]:
    """Which patches of one set share a voxel with a patch of another: (n,).

    Volumes are the same where they come from one file or one array, sliced or not.
    """
    shared = np.zeros(len(mine.positions), dtype=bool)
    for a, streams in enumerate(mine.sources):
        rows = np.flatnonzero(mine.subject == a)
        for b, others in enumerate(other.sources):
            theirs = other.positions[other.subject == b]
            for s, t in itertools.product(streams, others):
                if len(rows) and len(theirs) and s.origins & t.origins:
                    grid = streams[0].grid
                    shared[rows] |= _overlapping(_faces(s, mine.positions[rows], grid), _faces(t, theirs, grid))
    return shared


def _overlapping(mine: Faces, other: Faces) -> NDArray[np.bool_]:
    """Which boxes overlap any of the others: all of one list have one size, so the nearest centre decides."""
    centres = [(low + high) / 2 for low, high in (mine, other)]
    reach = (mine[1][0] - mine[0][0] + other[1][0] - other[0][0]) / 2
    distance, _ = cKDTree(centres[1] / reach).query(centres[0] / reach, p=np.inf)
    return np.asarray(distance < 1 - 1e-9)
