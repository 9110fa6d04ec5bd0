"""Training, validation and test sets that share no voxel: by subject, or by blocks with a gap between them.

Neighbouring voxels are similar, so patches drawn at random from one brain do not test each other. The two hemispheres
are similar too: blocks along x put mirror images on both sides.
"""

from __future__ import annotations

import itertools
import logging
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mrhdata._runtime.arguments import described
from mrhdata.errors import ParameterError
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
    """Return the patches of each part by index.

    Parameters
    ----------
    patches : Patches
    sizes : sequence of float
        Fraction of each part: of the subjects, or of each subject's patches along the axis (less those in a gap), so
        that a mask leaves no part empty.
    by : {"subject", "z", "y", "x"}
    guard : int, optional
        Least number of voxels between patches of two parts, of input or target; the longest side of a patch by
        default. Add the receptive field of a network that sees beyond its patch.
    seed : int
        Random seed of the order of subjects.
    """
    if not all(isinstance(size, numbers.Real) for size in sizes):
        raise ParameterError(f"sizes must be a number for each part; got {described(sizes)}. Pass for example [4, 1]")
    if by == "subject":
        return _by_subject(patches, sizes, seed)
    axis = _split_axis(by)
    ends = np.cumsum(np.asarray(sizes, dtype=np.float64)) / np.sum(sizes)
    edges = [0.0, *ends.tolist()]
    return [_patches_between(patches, axis, guard, a, b) for a, b in itertools.pairwise(edges)]


def folds_of(patches: PatchSet, k: int, by: str, guard: int | None, seed: int) -> list[tuple[Ints, Ints]]:
    """Return the training and test patches of each fold by index; patches in the guard of the test are in neither."""
    if k < 2:
        raise ParameterError(f"k must be 2 folds or more; got {k}")
    if by == "subject":
        parts = _by_subject(patches, [1.0] * k, seed)
        return [(np.sort(np.concatenate(parts[:i] + parts[i + 1 :])), part) for i, part in enumerate(parts)]
    axis = _split_axis(by)
    folds = []
    for i in range(k):
        test = _patches_between(patches, axis, 0, i / k, (i + 1) / k)
        training = [
            _patches_between(patches, axis, guard, a, b, half=False)
            for a, b in ((0.0, i / k), ((i + 1) / k, 1.0))
            if a < b
        ]
        folds.append((np.sort(np.concatenate(training)), test))
    return folds


def labelled(parts: Sequence[PatchSet], by: str, like: xr.DataArray) -> xr.DataArray:
    """Return a label volume of the parts of one subject along an axis: labels from 1, 0 between parts.

    Parameters
    ----------
    parts : sequence of Patches
        Parts of one subject, from :meth:`mrhdata.patching.dataset.Patches.split`.
    by : {"z", "y", "x"}
    like : volume
        First input of the subject.
    """
    axis = _split_axis(by)
    labels = np.zeros([like.sizes[d] for d in SPATIAL], dtype=np.uint8)
    for number, part in enumerate(parts, start=1):
        starts = part.positions[:, axis]
        planes = slice(int(starts.min()), int(starts.max()) + part.shape[axis])
        labels[(*(slice(None),) * axis, planes)] = number
    like = like.isel(c=0, drop=True) if "c" in like.dims else like
    return describe(like.copy(data=labels), kind="labels", units="1").rename("parts")


def _by_subject(patches: PatchSet, sizes: Sequence[float], seed: int) -> list[Ints]:
    subjects = np.unique(patches.subject)
    counts = shares(len(subjects), sizes)
    empty = [i for i, (n, size) in enumerate(zip(counts, sizes, strict=True)) if not n and size]
    if empty:
        raise ParameterError(
            f"sizes must give every part a subject; got {list(sizes)} for {len(subjects)} subjects, which leaves part "
            f"{empty[0]} empty"
        )
    order = np.random.default_rng(seed).permutation(subjects)
    groups = np.split(order, np.cumsum(counts)[:-1])
    return [np.flatnonzero(np.isin(patches.subject, group)) for group in groups]


def _split_axis(by: str) -> int:
    if by not in SPATIAL:
        raise ParameterError(f"by must be one of subject, z, y, x; got {by!r}")
    if by == "x":
        log.warning("parts along x: left and right of a brain are mirror images, and may lie in different parts")
    return SPATIAL.index(by)


def _guard_voxels(patches: PatchSet, guard: int | None) -> int:
    if guard is not None and guard < 0:
        raise ParameterError(f"guard must be 0 voxels or more; got {guard}")
    return max(patches.shape) if guard is None else guard


def _patches_between(
    patches: PatchSet, axis: int, guard: int | None, low: float, high: float, half: bool = True
) -> Ints:
    """Return the patches, by index, whose inputs and targets lie between two fractions of the axis of their subject.

    Each of two neighbours keeps half of the guard; without `half` this part keeps all of it.
    """
    gap = _guard_voxels(patches, guard)
    keep = np.zeros(len(patches.positions), dtype=bool)
    for number, sources in enumerate(patches.sources):
        indices = np.flatnonzero(patches.subject == number)
        start, stop = _extent(sources, patches.positions[indices], axis)
        # Cuts are in voxels of the first source. Borders of the volume need no guard.
        cuts = np.quantile((start + stop) / 2, [low, high]).round() if len(indices) else np.zeros(2)
        first = cuts[0] + (0 if low <= 0 else (gap + 1) // 2 if half else gap)
        last = cuts[1] - (0 if high >= 1 else gap // 2 if half else gap)
        inside = ((start >= first) | (low <= 0)) & ((stop <= last) | (high >= 1))
        keep[indices] = inside
    return np.flatnonzero(keep)


def _extent(sources: Sequence[TensorSource], positions: Ints, axis: int) -> Faces:
    """Return the first voxel of each patch along an axis and the voxel after the last, in voxels of the first source.

    They enclose the patches of all sources.
    """
    boxes = [_faces(source, positions, sources[0].grid) for source in sources]
    low, high = np.array(boxes)[..., axis].transpose(1, 0, 2)
    return low.min(axis=0), high.max(axis=0)


def _faces(source: TensorSource, positions: Ints, grid: Grid) -> Faces:
    """Return the outer faces of patches, low and high (n, 3), in voxels of a grid whose first voxel is 0 to 1."""
    starts = source.starts(positions)
    # All corners are needed: the axes of the two grids may be rotated against each other.
    corners = [np.array(c) * source.shape - 0.5 for c in np.ndindex(2, 2, 2)]
    points = np.array([grid.index(source.grid.world(starts + corner)) + 0.5 for corner in corners])
    return points.min(axis=0).round(6), points.max(axis=0).round(6)


def shared_with(patches: PatchSet, other: PatchSet) -> NDArray[np.bool_]:
    """Return a mask of the patches of one set that share a voxel with a patch of another: (n,).

    Volumes are the same if they come from one file or one array, sliced or not.
    """
    shared = np.zeros(len(patches.positions), dtype=bool)
    for a, sources in enumerate(patches.sources):
        indices = np.flatnonzero(patches.subject == a)
        for b, others in enumerate(other.sources):
            other_positions = other.positions[other.subject == b]
            for s, t in itertools.product(sources, others):
                if len(indices) and len(other_positions) and s.origins & t.origins:
                    grid = sources[0].grid
                    shared[indices] |= _overlaps_any(
                        _faces(s, patches.positions[indices], grid), _faces(t, other_positions, grid)
                    )
    return shared


def _overlaps_any(boxes: Faces, others: Faces) -> NDArray[np.bool_]:
    """Return a mask of the boxes that overlap any of the others.

    All boxes of a list have one size, so the nearest centre decides.
    """
    centres = [(low + high) / 2 for low, high in (boxes, others)]
    reach = (boxes[1][0] - boxes[0][0] + others[1][0] - others[0][0]) / 2
    distance, _ = cKDTree(centres[1] / reach).query(centres[0] / reach, p=np.inf)
    return np.asarray(distance < 1 - 1e-9)
