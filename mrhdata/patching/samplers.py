"""Samplers of patch positions, for ``mrhdata.patches(sampler=...)``.

A sampler draws positions for one subject at a time, by arithmetic (`mrhdata.patching.positions`) or from an index of a
volume (`mrhdata.patching.class_index`). All samplers respect the mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.arguments import check_whole, described
from mrhdata.errors import DataError, GridError, NameMissingError, ParameterError
from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.patching.class_index import Index, index_labels, index_weights
from mrhdata.patching.positions import Ints, about, centre_voxels, fraction_inside, shares, shell, strided, uniform
from mrhdata.patching.sources import one_grid
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import source_of

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Least voxels along an axis of the tiles in which a mask is read.
_MASK_TILE = 64
#: Draws per patch after which a mask counts as too small.
_MAX_DRAWS_PER_PATCH = 200


class SamplingSpace:
    """Space in which patches of one subject are sampled: the grid that positions refer to, the patch shape, the mask.

    Parameters
    ----------
    reference : volume
        First volume of the subject.
    sources : sequence of TensorSource
        Sources of the tensors of a patch; the first is `reference`.
    mask : volume, optional
    share : float, optional
        Fraction of a patch's voxels that must lie in the mask. By default only the centre voxel must.
    overhang : bool
        Patches may reach beyond the volume.
    resample : bool
        The mask, labels and weights may lie on another grid.
    volumes : mapping of volumes, optional
        Volumes that labels and weights may name.
    """

    def __init__(
        self,
        reference: xr.DataArray,
        sources: Sequence[TensorSource],
        mask: xr.DataArray | None,
        share: float | None,
        overhang: bool,
        resample: bool,
        volumes: Mapping[str, xr.DataArray] | None = None,
    ) -> None:
        self.reference, self.shape, self.overhang = reference, sources[0].shape, overhang
        self._sources = sources
        self.grid = reference.mrh.grid
        self._resample, self._min_mask_fraction = resample, share
        self._volumes = dict(volumes or {})
        self._mask = None if mask is None else self.source("mask", mask.assign_attrs(kind="mask"))

    def volume(self, volume: Any, subject: int, role: str) -> xr.DataArray:
        """Return labels or weights of this subject: by the name of one of its volumes, or from one per subject."""
        if not isinstance(volume, str):
            return _item_of_subject(volume, subject)
        if volume not in self._volumes:
            raise NameMissingError(
                f"{role} must name a volume of every subject; got {volume!r}, and subject {subject} has "
                f"{list(self._volumes)}"
            )
        return self._volumes[volume]

    def source(self, name: str, volume: xr.DataArray) -> TensorSource:
        """Return a volume on this subject's grid as a source that is read tile by tile."""
        return one_grid({name: volume}, (_MASK_TILE,) * 3, self.reference, self._resample, exact=True)

    def fits(self, positions: Ints) -> NDArray[np.bool_]:
        """Return a mask of the patches that lie within all volumes, or may reach beyond them: (n,)."""
        mask = np.ones(len(positions), dtype=bool)
        for source in () if self.overhang else self._sources:
            mask &= source.holds(source.starts(positions))
        return mask

    def keep(self, positions: Ints) -> NDArray[np.bool_]:
        """Return a mask of the patches that lie within all volumes and in the mask: (n,). It reads box by box."""
        accepted = self.fits(positions)
        if self._mask is not None and accepted.any():
            accepted[accepted] = self._in_mask(self._mask, positions[accepted])
        return accepted

    def _in_mask(self, mask: TensorSource, positions: Ints) -> NDArray[np.bool_]:
        low, high = positions, positions + self.shape
        if self._min_mask_fraction is None:
            low = centre_voxels(positions, self.shape)
            high = low + 1
        accepted = np.zeros(len(positions), dtype=bool)
        top = np.array(self.grid.shape)
        touching = np.flatnonzero(((low < top) & (high > 0)).all(axis=1))
        home_tile = mask.home_tiles(low[touching])
        by = np.argsort(home_tile, kind="stable")
        for indices in np.split(touching[by], np.flatnonzero(np.diff(home_tile[by])) + 1):
            if len(indices):
                accepted[indices] = self._in_mask_of_tile(mask, low[indices], high[indices])
        return accepted

    def _in_mask_of_tile(self, mask: TensorSource, low: Ints, high: Ints) -> NDArray[np.bool_]:
        # Voxels outside the volume count as outside the mask.
        first, last = low.min(axis=0), high.max(axis=0)
        begin, end = np.clip(first, 0, None), np.minimum(last, self.grid.shape)
        inside = np.zeros(last - first, dtype=bool)
        box = Box.of(begin, end)
        values = mask.voxels(box)[0]
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(
                f"mask voxels must not be NaN; got {np.isnan(values).sum()} of {values.size} between {begin.tolist()} "
                f"and {end.tolist()}. Set them to 0"
            )
        inside[box.within(first.tolist())] = values != 0
        if self._min_mask_fraction is None:
            return np.asarray(inside[tuple((low - first).T)])
        return np.asarray(fraction_inside(inside, low - first, self.shape) >= self._min_mask_fraction)

    def accepted(self, n: int, draw: Callable[[int], Ints]) -> Ints:
        """Draw positions until `n` of them lie in the mask: (n, 3)."""
        accepted: list[Ints] = []
        missing, tried = n, 0
        while missing:
            drawn = draw(2 * missing + 16 if accepted else missing)
            tried += len(drawn)
            drawn = drawn[self.keep(drawn)][:missing]
            accepted.append(drawn)
            missing -= len(drawn)
            if missing and tried > _MAX_DRAWS_PER_PATCH * n + 10_000:
                raise DataError(
                    f"too few positions lie in all volumes and in the mask; got {n - missing} of {tried} drawn. Check "
                    "that the mask is not nearly empty and lies over the inputs"
                )
        return np.concatenate(accepted) if accepted else np.empty((0, 3), dtype=np.int64)

    def about(self, points: Ints | NDArray[np.float64]) -> Ints:
        """Return positions of patches around points in voxels, moved inside the volume if they may not overhang."""
        return about(points, self.grid.shape, self.shape, inside=not self.overhang)


class Sampler(Protocol):
    """Sampler of patch positions."""

    @property
    def num_patches(self) -> int | None:
        """Total number of patches of all subjects; None if it depends on the subjects."""

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints | None]:
        """Return positions of one subject, and the class that each was drawn for."""


@dataclass(frozen=True)
class Grid:
    """A regular grid of positions that covers the volume; the last ones end at the edge.

    Attributes
    ----------
    stride : tuple of int
        Voxels along z, y, x.
    """

    stride: tuple[int, int, int]
    num_patches: None = None

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Return the positions of the grid that lie in the mask."""
        positions = strided(space.grid.shape, space.shape, self.stride, overhang=space.overhang)
        return positions[space.keep(positions)], None


@dataclass(frozen=True)
class Uniform:
    """Positions drawn uniformly, with replacement.

    Attributes
    ----------
    num_patches : int
        Total number of patches of all subjects.
    """

    num_patches: int

    def __post_init__(self) -> None:
        check_whole("num_patches", self.num_patches)

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Draw positions at which the patch fits; with padding, positions whose centre lies in the volume."""

        def anywhere(count: int) -> Ints:
            if space.overhang:
                return space.about(rng.integers(0, space.grid.shape, (count, 3)))
            # Raises GridError if the patch does not fit.
            strided(space.grid.shape, space.shape, space.grid.shape)
            return uniform(space.grid.shape, space.shape, count, rng)

        return space.accepted(n, anywhere), None


@dataclass(frozen=True)
class ClassBalanced:
    """Patches around voxels of each class of a label volume, in chosen ratios.

    The volume is read once, tile by tile. Its counts are stored next to it if it is an OME-Zarr store.

    Attributes
    ----------
    num_patches : int
        Total number of patches of all subjects.
    labels : volume, one per subject, or str
        Label volume; a name selects one of each subject's volumes.
    ratios : mapping of int to float, optional
        Weight of each class. The key ``"rest"`` stands for all other classes, drawn by their size; ``{1: 1, "rest":
        3}`` is one positive to three negatives. By default all classes that occur have equal weights.
    allow_missing : bool
        Subjects may lack some of the classes in `ratios`; the other classes then replace them.
    """

    num_patches: int
    labels: Any
    ratios: Mapping[int | str, float] | None = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        check_whole("num_patches", self.num_patches)

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Draw positions, and return the class of the voxel in the middle of each patch.

        A patch at the edge is moved inside, and its voxel then lies off the middle.
        """
        labels = space.volume(self.labels, subject, "labels")
        index = index_labels(space.source("labels", labels.assign_attrs(kind="labels")), *_store_of(labels))
        counts = self._patches_per_class(index, n)
        positions = [space.accepted(m, self._positions_of_class(space, index, c, rng)) for c, m in counts]
        classes = np.repeat([c for c, _ in counts], [m for _, m in counts])
        return np.concatenate(positions), classes.astype(np.int64)

    def _positions_of_class(
        self, space: SamplingSpace, index: Index, kind: int, rng: np.random.Generator
    ) -> Callable[[int], Ints]:
        return lambda count: space.about(index.draw(kind, count, rng))

    def _patches_per_class(self, index: Index, n: int) -> list[tuple[int, int]]:
        weights: dict[Any, float] = dict(self.ratios) if self.ratios is not None else dict.fromkeys(index.classes, 1.0)
        rest = weights.pop("rest", 0.0)
        others = [c for c in index.classes if c not in weights]
        if rest and not others and not self.allow_missing:
            raise DataError(f"the labels must have classes other than {list(weights)} for 'rest'; got {index.classes}")
        if rest and others:
            sizes = [float(index.mass[:, index.classes.index(c)].sum()) for c in others]
            weights |= {c: rest * size / sum(sizes) for c, size in zip(others, sizes, strict=True)}
        missing = [c for c in weights if c not in index.classes]
        if self.allow_missing:
            weights = {c: weight for c, weight in weights.items() if c not in missing}
        elif missing:
            raise DataError(
                f"the labels must have voxels of class {missing}; got {index.classes}. Pass allow_missing=True if some "
                "subjects lack classes"
            )
        classes = [int(c) for c in weights]
        counts = shares(n, list(weights.values()))
        return [(c, count) for c, count in zip(classes, counts, strict=True) if count]


@dataclass(frozen=True)
class Weighted:
    """Patches around voxels drawn in proportion to a map of weights, such as registration quality.

    Attributes
    ----------
    num_patches : int
        Total number of patches of all subjects.
    weights : volume, one per subject, or str
        0 or more; a name selects one of each subject's volumes.
    """

    num_patches: int
    weights: Any

    def __post_init__(self) -> None:
        check_whole("num_patches", self.num_patches)

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Draw positions whose middle voxels are in proportion to the weights."""
        index = index_weights(space.source("weights", space.volume(self.weights, subject, "weights")))
        return space.accepted(n, lambda count: space.about(index.draw(1, count, rng))), None


@dataclass(frozen=True)
class Points:
    """Patches around points, such as cells, and around negatives at a distance from them.

    Attributes
    ----------
    points_mm : (m, 3) array, or one per subject
        World points X, Y, Z, RAS+.
    negatives_per_point : float
        Number of negative patches for each patch around a point.
    negative_distance_mm : tuple of float
        Least and greatest distance of a negative from its point. No negative lies nearer than the least distance to
        any point.
    num_patches : int, optional
        Total number of patches of all subjects; by default each point is the middle of one patch.
    """

    points_mm: Any
    negatives_per_point: float = 0.0
    negative_distance_mm: tuple[float, float] = (0.0, 0.0)
    num_patches: int | None = None

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Draw positions; their class is 1 around points and 0 for negatives."""
        points = np.asarray(_item_of_subject(self.points_mm, subject, ndim=2), dtype=np.float64).reshape(-1, 3)
        voxels = space.grid.index(points)
        within = self._within(voxels, space)
        if not within.any():
            raise DataError(
                f"points must lie in the volume; none of {len(points)} lies in that of subject {subject}. Check that "
                "they are world points in mm"
            )
        if not within.all():
            log.warning("%d of %d points of subject %d lie outside its volume", (~within).sum(), len(points), subject)
        positives = space.about(voxels[within])
        positives = positives[space.keep(positives)]
        if self.num_patches is not None:
            num_positives, num_negatives = shares(n, [1.0, self.negatives_per_point])
            if not len(positives):
                raise DataError(f"points must lie in the mask; none of {within.sum()} of subject {subject} does")
            positives = positives[rng.integers(0, len(positives), num_positives)]
        else:
            num_negatives = round(len(positives) * self.negatives_per_point)
        negatives = space.accepted(num_negatives, lambda count: self._draw_negatives(points, space, count, rng))
        classes = np.repeat([1, 0], [len(positives), len(negatives)])
        return np.concatenate([positives, negatives]), classes.astype(np.int64)

    def _draw_negatives(
        self, points: NDArray[np.float64], space: SamplingSpace, count: int, rng: np.random.Generator
    ) -> Ints:
        half = (np.array(space.shape) - 1) / 2

        def to_patch_centres(samples: NDArray[np.float64]) -> NDArray[np.float64]:
            centres = space.about(space.grid.index(samples)) + half
            return space.grid.world(centres[self._within(centres, space)])

        # Distances hold for the patch centres, which differ from the samples by up to half a voxel.
        centres = shell(points, count, self.negative_distance_mm, rng, to_patch_centres)
        return space.about(space.grid.index(centres))

    @staticmethod
    def _within(voxels: NDArray[np.float64], space: SamplingSpace) -> NDArray[np.bool_]:
        """Return a mask of the voxel coordinates that lie in the volume."""
        return np.asarray(((voxels >= -0.5) & (voxels < np.array(space.grid.shape) - 0.5)).all(axis=1))


@dataclass(frozen=True)
class Fixed:
    """Positions chosen by the user.

    Attributes
    ----------
    positions : (n, 3) int array, or one per subject
        First voxel of each patch, z, y, x.
    """

    positions: Any
    num_patches: None = None

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Check and return the positions of the subject that lie in the mask."""
        array = np.asarray(_item_of_subject(self.positions, subject, ndim=2))
        array = array.reshape(-1, 3) if not array.size else array
        if array.ndim != 2 or array.shape[1] != 3 or (array.size and array.dtype.kind not in "iu"):
            raise ParameterError(
                f"positions must be whole numbers (n, 3) along z, y, x; got {array.dtype} of shape {array.shape}"
            )
        positions = array.astype(np.int64)
        touches = ((positions + space.shape > 0) & (positions < space.grid.shape)).all(axis=1)
        bad = np.flatnonzero(~(touches & space.fits(positions)))
        if len(bad):
            raise GridError(
                f"patches of {space.shape} must lie within all volumes, the first of {space.grid.shape}; {len(bad)} "
                f"positions do not, the first at {positions[bad[0]].tolist()}. Pass padding= if patches may reach "
                "beyond the edge"
            )
        return positions[space.keep(positions)], None


def as_sampler(sampler: Any, stride: Sequence[int]) -> Sampler:
    """Return the sampler of an argument: a sampler, positions, or None for a grid."""
    if sampler is None:
        return Grid((int(stride[0]), int(stride[1]), int(stride[2])))
    if isinstance(sampler, str | type):
        raise ParameterError(
            f"sampler must be a sampler or positions (n, 3); got {described(sampler)}. Pass for example "
            "mrhdata.samplers.Uniform(1000)"
        )
    return sampler if hasattr(sampler, "draw") else Fixed(sampler)


def _item_of_subject(items: Any, subject: int, ndim: int | None = None) -> Any:
    """Return the item of one subject, from a sequence of one per subject or a single item."""
    if isinstance(items, Sequence) and len(items) and (ndim is None or np.ndim(items[0]) >= ndim):
        if subject >= len(items):
            raise ParameterError(f"pass one item for each subject; got {len(items)} for {subject + 1} or more subjects")
        return items[subject]
    return items


def _store_of(volume: xr.DataArray) -> tuple[Path | None, str | None]:
    """Return the path of the store that holds a volume and its name within; None for other volumes."""
    file = source_of(volume.data) if isinstance(volume.data, da.Array) else None
    part = None if file is None else file.part
    if file is None or not isinstance(part, ZarrReader) or part.chunks is None:
        return None, None
    return file.path.absolute(), None if part.place is None else part.place["dataset"]
