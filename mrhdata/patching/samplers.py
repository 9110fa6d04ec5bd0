"""Ways to choose where patches are taken: what is given to ``mrhdata.patches(sampler=...)``.

Each draws positions for one subject at a time, from arithmetic (`sampling`) or from an index of a
volume (`index`). A mask given with them holds for all.
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

from mrhdata.errors import DataError, GridError, NameMissingError
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

#: Voxels along an axis of the boxes that a mask is read in, at least.
_MASK_BOX = 64
#: Draws per patch before a mask is called too small.
_TRIES = 200


class SamplingSpace:
    """One subject: the grid that positions count, the patch, and the mask.

    Parameters
    ----------
    reference : volume
        The subject's first.
    streams : sequence of Stream
        What patches are cut from; the first is `reference`.
    mask : volume, optional
    share : float, optional
        Of a patch's voxels that must lie in the mask; the centre voxel where None.
    overhang : bool
        Patches may leave the volume.
    resample : bool
        The mask, labels and weights may lie on another grid.
    """

    def __init__(
        self,
        reference: xr.DataArray,
        streams: Sequence[TensorSource],
        mask: xr.DataArray | None,
        share: float | None,
        overhang: bool,
        resample: bool,
        volumes: Mapping[str, xr.DataArray] | None = None,
    ) -> None:
        self.reference, self.shape, self.overhang = reference, streams[0].shape, overhang
        self._streams = streams
        self.grid = reference.mrh.grid
        self._resample, self._share = resample, share
        self._volumes = dict(volumes or {})
        self._mask = None if mask is None else self.source("mask", mask.assign_attrs(kind="mask"))

    def volume(self, given: Any, subject: int, role: str) -> xr.DataArray:
        """Return labels or weights of this subject: by the name of one of its volumes, or from one per subject."""
        if not isinstance(given, str):
            return _of_subject(given, subject)
        if given not in self._volumes:
            raise NameMissingError(
                f"{role} must name a volume of every subject; got {given!r}, and subject {subject} has "
                f"{list(self._volumes)}"
            )
        return self._volumes[given]

    def source(self, name: str, volume: xr.DataArray) -> TensorSource:
        """A volume on this subject's grid, to be read tile by tile."""
        return one_grid({name: volume}, (_MASK_BOX,) * 3, self.reference, self._resample, exact=True)

    def fits(self, positions: Ints) -> NDArray[np.bool_]:
        """Which patches lie within all volumes, or may leave them: (n,)."""
        kept = np.ones(len(positions), dtype=bool)
        for stream in () if self.overhang else self._streams:
            kept &= stream.holds(stream.starts(positions))
        return kept

    def keep(self, positions: Ints) -> NDArray[np.bool_]:
        """Which patches lie within all volumes and in the mask: (n,). The mask is read box by box."""
        kept = self.fits(positions)
        if self._mask is not None and kept.any():
            kept[kept] = self._in_mask(self._mask, positions[kept])
        return kept

    def _in_mask(self, mask: TensorSource, positions: Ints) -> NDArray[np.bool_]:
        low, high = positions, positions + self.shape
        if self._share is None:
            low = centre_voxels(positions, self.shape)
            high = low + 1
        kept = np.zeros(len(positions), dtype=bool)
        top = np.array(self.grid.shape)
        fitting = np.flatnonzero(((low < top) & (high > 0)).all(axis=1))
        cell = mask.cells(low[fitting])
        by = np.argsort(cell, kind="stable")
        for rows in np.split(fitting[by], np.flatnonzero(np.diff(cell[by])) + 1):
            if len(rows):
                kept[rows] = self._kept(mask, low[rows], high[rows])
        return kept

    def _kept(self, mask: TensorSource, low: Ints, high: Ints) -> NDArray[np.bool_]:
        # What lies outside the volume lies outside the mask.
        first, last = low.min(axis=0), high.max(axis=0)
        begin, end = np.clip(first, 0, None), np.minimum(last, self.grid.shape)
        inside = np.zeros(last - first, dtype=bool)
        box = Box.of(begin, end)
        values = mask.voxels(box)[0]
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(
                f"{np.isnan(values).sum()} of {values.size} mask voxels are NaN between {begin.tolist()} and "
                f"{end.tolist()}; set them to 0"
            )
        inside[box.within(first.tolist())] = values != 0
        if self._share is None:
            return np.asarray(inside[tuple((low - first).T)])
        return np.asarray(fraction_inside(inside, low - first, self.shape) >= self._share)

    def accepted(self, n: int, draw: Callable[[int], Ints]) -> Ints:
        """As many of the positions that `draw` gives as lie in the mask: (n, 3)."""
        found: list[Ints] = []
        missing, tried = n, 0
        while missing:
            drawn = draw(2 * missing + 16 if found else missing)
            tried += len(drawn)
            drawn = drawn[self.keep(drawn)][:missing]
            found.append(drawn)
            missing -= len(drawn)
            if missing and tried > _TRIES * n + 10_000:
                raise DataError(
                    f"of {tried} places drawn {n - missing} lie in all volumes and in the mask; is it nearly empty, "
                    "or elsewhere?"
                )
        return np.concatenate(found) if found else np.empty((0, 3), dtype=np.int64)

    def about(self, places: Ints | NDArray[np.float64]) -> Ints:
        """Positions of patches about places in voxels; moved inside where they may not overhang."""
        return about(places, self.grid.shape, self.shape, inside=not self.overhang)


class Sampler(Protocol):
    """A way to choose positions."""

    @property
    def num_patches(self) -> int | None:
        """Patches of all subjects together; None where the subject decides."""

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints | None]:
        """Positions of one subject, and the class that each was drawn for."""


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
        """All positions of the grid that lie in the mask."""
        positions = strided(space.grid.shape, space.shape, self.stride, overhang=space.overhang)
        return positions[space.keep(positions)], None


@dataclass(frozen=True)
class Uniform:
    """Positions drawn uniformly, with replacement.

    Attributes
    ----------
    num_patches : int
        Patches of all subjects together.
    """

    num_patches: int

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Positions at which the patch fits (with padding: whose centre lies in the volume)."""

        def anywhere(many: int) -> Ints:
            if space.overhang:
                return space.about(rng.integers(0, space.grid.shape, (many, 3)))
            strided(space.grid.shape, space.shape, space.grid.shape)
            return uniform(space.grid.shape, space.shape, many, rng)

        return space.accepted(n, anywhere), None


@dataclass(frozen=True)
class ClassBalanced:
    """Patches about voxels of each class of a label volume, in given shares.

    The volume is read once, tile by tile, and its counts are kept beside it where it is a store.

    Attributes
    ----------
    num_patches : int
        Patches of all subjects together.
    labels : volume, one per subject, or str
        Label volume; a name selects one of each subject's volumes.
    ratios : mapping of int to float, optional
        Of each class; the key ``"rest"`` stands for all other classes, drawn by their size. Equal
        shares for every class that occurs where it is not given. ``{1: 1, "rest": 3}`` is one
        positive to three negatives.
    allow_missing : bool
        Subjects may lack some of the classes in `ratios`; the others then have their part.
    """

    num_patches: int
    labels: Any
    ratios: Mapping[int | str, float] | None = None
    allow_missing: bool = False

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Positions, and the class of the voxel in the middle of each patch.

        At the edge the patch is moved inside, and the voxel no longer lies in its middle.
        """
        labels = space.volume(self.labels, subject, "labels")
        index = index_labels(space.source("labels", labels.assign_attrs(kind="labels")), *_store(labels))
        quotas = self._quotas(index, n)
        found = [space.accepted(m, self._drawing(space, index, c, rng)) for c, m in quotas]
        classes = np.repeat([c for c, _ in quotas], [m for _, m in quotas])
        return np.concatenate(found), classes.astype(np.int64)

    def _drawing(
        self, space: SamplingSpace, index: Index, kind: int, rng: np.random.Generator
    ) -> Callable[[int], Ints]:
        return lambda many: space.about(index.draw(kind, many, rng))

    def _quotas(self, index: Index, n: int) -> list[tuple[int, int]]:
        wanted: dict[Any, float] = dict(self.ratios) if self.ratios is not None else dict.fromkeys(index.classes, 1.0)
        rest = wanted.pop("rest", 0.0)
        others = [c for c in index.classes if c not in wanted]
        if rest and not others and not self.allow_missing:
            raise DataError(f"the labels hold no class but {index.classes}, so there is no rest to draw from")
        if rest and others:
            sizes = [float(index.mass[:, index.classes.index(c)].sum()) for c in others]
            wanted |= {c: rest * size / sum(sizes) for c, size in zip(others, sizes, strict=True)}
        missing = [c for c in wanted if c not in index.classes]
        if self.allow_missing:
            wanted = {c: share for c, share in wanted.items() if c not in missing}
        elif missing:
            raise DataError(f"the labels hold no voxel of class {missing}; they hold {index.classes}")
        names = [int(c) for c in wanted]
        return [q for q in zip(names, shares(n, list(wanted.values())), strict=True) if q[1]]


@dataclass(frozen=True)
class Weighted:
    """Patches about voxels drawn in proportion to a map, such as how well a registration fits.

    Attributes
    ----------
    num_patches : int
        Patches of all subjects together.
    weights : volume, one per subject, or str
        0 or more; a name selects one of each subject's volumes.
    """

    num_patches: int
    weights: Any

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Positions whose middle voxels were drawn by weight."""
        index = index_weights(space.source("weights", space.volume(self.weights, subject, "weights")))
        return space.accepted(n, lambda many: space.about(index.draw(1, many, rng))), None


@dataclass(frozen=True)
class Points:
    """Patches about points, such as cells, and about places beside them.

    Attributes
    ----------
    points_mm : (m, 3) array, or one per subject
        World points X, Y, Z, RAS+.
    negatives_per_point : float
        Patches beside a point for each patch about one.
    negative_distance_mm : tuple of float
        Least and greatest distance of a negative from the point that it lies beside; none lies nearer
        than the least to any point.
    num_patches : int, optional
        Patches of all subjects together; each point once where None.
    """

    points_mm: Any
    negatives_per_point: float = 0.0
    negative_distance_mm: tuple[float, float] = (0.0, 0.0)
    num_patches: int | None = None

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Positions, class 1 about points and 0 beside them."""
        points = np.asarray(_of_subject(self.points_mm, subject, ndim=2), dtype=np.float64).reshape(-1, 3)
        places = space.grid.index(points)
        within = self._within(places, space)
        if not within.any():
            raise DataError(f"none of {len(points)} points lies in the volume of subject {subject}; are they world mm?")
        if not within.all():
            log.warning("%d of %d points of subject %d lie outside its volume", (~within).sum(), len(points), subject)
        about = space.about(places[within])
        about = about[space.keep(about)]
        if self.num_patches is not None:
            wanted, beside = shares(n, [1.0, self.negatives_per_point])
            if not len(about):
                raise DataError(f"none of {within.sum()} points of subject {subject} lies in the mask")
            about = about[rng.integers(0, len(about), wanted)]
        else:
            beside = round(len(about) * self.negatives_per_point)
        negative = space.accepted(beside, lambda many: self._beside(points, space, many, rng))
        classes = np.repeat([1, 0], [len(about), len(negative)])
        return np.concatenate([about, negative]), classes.astype(np.int64)

    def _beside(self, points: NDArray[np.float64], space: SamplingSpace, many: int, rng: np.random.Generator) -> Ints:
        half = (np.array(space.shape) - 1) / 2

        def on_centres(places: NDArray[np.float64]) -> NDArray[np.float64]:
            centres = space.about(space.grid.index(places)) + half
            return space.grid.world(centres[self._within(centres, space)])

        # A patch's centre comes first, since it may lie too near where the place does not.
        places = shell(points, many, self.negative_distance_mm, rng, on_centres)
        return space.about(space.grid.index(places))

    @staticmethod
    def _within(places: NDArray[np.float64], space: SamplingSpace) -> NDArray[np.bool_]:
        """Which places lie in the volume's voxels."""
        return np.asarray(((places >= -0.5) & (places < np.array(space.grid.shape) - 0.5)).all(axis=1))


@dataclass(frozen=True)
class Fixed:
    """Positions of the user's own.

    Attributes
    ----------
    positions : (n, 3) int array, or one per subject
        First voxel of each patch, z, y, x.
    """

    positions: Any
    num_patches: None = None

    def draw(self, space: SamplingSpace, subject: int, n: int, rng: np.random.Generator) -> tuple[Ints, None]:
        """Those of the subject, checked."""
        given = np.asarray(_of_subject(self.positions, subject, ndim=2))
        given = given.reshape(-1, 3) if not given.size else given
        if given.ndim != 2 or given.shape[1] != 3 or (given.size and given.dtype.kind not in "iu"):
            raise GridError(f"positions are whole numbers (n, 3) along z, y, x, not {given.dtype} {given.shape}")
        positions = given.astype(np.int64)
        touches = ((positions + space.shape > 0) & (positions < space.grid.shape)).all(axis=1)
        bad = np.flatnonzero(~(touches & space.fits(positions)))
        if len(bad):
            raise GridError(
                f"{len(bad)} positions do not fit, the first being {positions[bad[0]].tolist()}: a patch of "
                f"{space.shape} in a volume of {space.grid.shape}; give padding= where they may reach beyond the edge"
            )
        return positions[space.keep(positions)], None


def as_sampler(at: Any, stride: Sequence[int]) -> Sampler:
    """What `at` stands for."""
    if at is None:
        return Grid((int(stride[0]), int(stride[1]), int(stride[2])))
    return at if hasattr(at, "draw") else Fixed(at)


def _of_subject(given: Any, subject: int, ndim: int | None = None) -> Any:
    """The item of one subject, from a sequence of them or the one there is."""
    if isinstance(given, Sequence) and len(given) and (ndim is None or np.ndim(given[0]) >= ndim):
        if subject >= len(given):
            raise GridError(f"there are {len(given)} items for {subject + 1} or more subjects; give one for each")
        return given[subject]
    return given


def _store(volume: xr.DataArray) -> tuple[Path | None, str | None]:
    """The local store that a volume is and its name within, None where it is something else."""
    source = source_of(volume.data) if isinstance(volume.data, da.Array) else None
    part = None if source is None else source.part
    if source is None or not isinstance(part, ZarrReader) or part.chunks is None:
        return None, None
    return source.path.absolute(), None if part.place is None else part.place["dataset"]
