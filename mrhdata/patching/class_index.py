"""Where a volume's classes or weights lie: one pass over its tiles, kept beside the data.

The index holds one number per tile and class, never the volume. Voxels are drawn from it by choosing
tiles first and reading only those again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import DataError
from mrhdata.io.fingerprint import digest, file_state
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.box import Box

log = logging.getLogger("mrhdata")

#: Range of labels that are counted in one array.
_DENSE = 1_000_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Index:
    """How much of each class lies in each tile.

    Attributes
    ----------
    classes : list of int
        Label values; ``[1]`` for a map of weights.
    mass : (tiles, classes) float64 array
        Voxels of each class, or sums of weights.
    """

    def __init__(self, stream: TensorSource, classes: list[int], mass: Floats, weights: bool) -> None:
        self._stream, self.classes, self.mass, self._weights = stream, classes, mass, weights

    def draw(self, kind: int, n: int, rng: np.random.Generator) -> Ints:
        """Voxels (n, 3) drawn with replacement: uniformly from one class, or in proportion to weight.

        Each tile that holds one of them is read once.
        """
        mass = self.mass[:, self.classes.index(kind)]
        total = mass.sum()
        if not total:
            raise DataError(f"there is no voxel of class {kind}")
        counts = rng.multinomial(n, mass / total)
        found = []
        for number in np.flatnonzero(counts):
            low, values = _tile(self._stream, int(number))
            weight = values.ravel() if self._weights else (values == kind).ravel()
            ends = np.cumsum(weight, dtype=np.float64)
            at = np.searchsorted(ends, rng.random(counts[number]) * ends[-1], side="right")
            found.append(low + np.stack(np.unravel_index(at, values.shape), axis=1))
        # Tiles come in order; the order of what is drawn should not show them.
        return rng.permutation(np.concatenate(found)) if found else np.empty((0, 3), dtype=np.int64)


def index_labels(stream: TensorSource, path: Path | None = None, dataset: str | None = None) -> Index:
    """Count the voxels of every class in every tile, or take the counts kept beside the data.

    Parameters
    ----------
    stream : Stream
        Of one label volume.
    path : path, optional
        The store that the labels lie in. The counts are kept in ``NAME.index.json`` beside it and
        counted again when the store has changed.
    dataset : str, optional
        Which image of the store they are; ``NAME.DATASET.index.json`` then.
    """
    names = [] if path is None else [path.name, *([] if dataset is None else [dataset.replace("/", "-")])]
    kept = None if path is None else path.with_name(".".join([*names, "index.json"]))
    grid = stream.grid
    mark = None if path is None else digest([grid.shape, grid.affine.tolist(), stream.tile, dataset, file_state(path)])
    if kept is not None and kept.is_file():
        found = _read(kept, mark, int(np.prod(stream.tiles)))
        if found is not None:
            return Index(stream, *found, False)
    per_tile: list[dict[int, int]] = []
    for values in _each(stream):
        if values.dtype.kind not in "biu":
            raise DataError(f"labels are integers, not {values.dtype}; read them with kind='labels'")
        per_tile.append(_counts(values))
    classes = sorted({name for tile in per_tile for name in tile})
    mass = np.array([[tile.get(name, 0) for name in classes] for tile in per_tile], dtype=np.float64)
    if kept is not None:
        _keep(kept, {"store": mark, "classes": classes, "tiles": [list(map(list, t.items())) for t in per_tile]})
    return Index(stream, classes, mass, False)


def index_weights(stream: TensorSource) -> Index:
    """Sum a map of weights in every tile."""

    def total(values: np.ndarray) -> float:
        if not np.isfinite(values).all() or (values < 0).any():
            raise DataError("weights are finite and 0 or more; clip or fill the map first")
        return float(values.sum(dtype=np.float64))

    mass = np.array([[total(values)] for values in _each(stream)])
    if not mass.sum():
        raise DataError("the map of weights is 0 everywhere")
    return Index(stream, [1], mass, True)


def _counts(values: np.ndarray) -> dict[int, int]:
    """Voxels of each label: by counting where labels are dense, by sorting where they are far apart."""
    low, high = int(values.min()), int(values.max())
    if high - low < _DENSE and high <= np.iinfo(np.int64).max:
        counts = np.bincount(values.ravel().astype(np.int64) - low)
        found = np.flatnonzero(counts)
        return dict(zip((found + low).tolist(), counts[found].tolist(), strict=True))
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _each(stream: TensorSource) -> Iterator[np.ndarray]:
    for number in range(int(np.prod(stream.tiles))):
        yield _tile(stream, number)[1]


def _tile(stream: TensorSource, number: int) -> tuple[Ints, np.ndarray]:
    low = np.array(np.unravel_index(number, stream.tiles)) * stream.tile
    return low, stream.voxels(Box.of(low, np.minimum(low + stream.tile, stream.grid.shape)))[0]


def _read(kept: Path, mark: str | None, tiles: int) -> tuple[list[int], Floats] | None:
    try:
        content = json.loads(kept.read_text("utf-8"))
        if content["store"] != mark or len(content["tiles"]) != tiles:
            return None
        classes = [int(c) for c in content["classes"]]
        per_tile = [dict(tile) for tile in content["tiles"]]
        return classes, np.array([[float(tile.get(c, 0)) for c in classes] for tile in per_tile])
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever it is, it is no index: count again.
        return None


def _keep(kept: Path, content: dict[str, Any]) -> None:
    try:
        with atomic_write(kept, overwrite=True) as draft:
            draft.write_text(json.dumps(content))
    except OSError as error:
        log.info("the index of %s is not kept: %s", kept.name, error)
