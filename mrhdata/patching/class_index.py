"""Index of a volume's classes or weights by tile, computed in one pass and stored next to the data.

The index holds one number per tile and class, never the volume. To draw voxels, tiles are drawn first and only those
are read again.
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

#: Largest range of labels that are counted in one array.
_DENSE_LABEL_RANGE = 1_000_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Index:
    """Voxels of each class, or sum of weights, in each tile.

    Attributes
    ----------
    classes : list of int
        Label values; ``[1]`` for a map of weights.
    mass : (tiles, classes) float64 array
        Voxels of each class, or sums of weights.
    """

    def __init__(self, source: TensorSource, classes: list[int], mass: Floats, weights: bool) -> None:
        self._source, self.classes, self.mass, self._weights = source, classes, mass, weights

    def draw(self, kind: int, n: int, rng: np.random.Generator) -> Ints:
        """Draw voxels (n, 3) with replacement: uniformly from one class, or in proportion to weight.

        Each tile that holds one of the voxels is read once.
        """
        mass = self.mass[:, self.classes.index(kind)]
        total = mass.sum()
        if not total:
            raise DataError(f"the labels must have voxels of class {kind}; got none")
        counts = rng.multinomial(n, mass / total)
        voxels = []
        for number in np.flatnonzero(counts):
            low, values = _read_tile(self._source, int(number))
            weight = values.ravel() if self._weights else (values == kind).ravel()
            ends = np.cumsum(weight, dtype=np.float64)
            drawn = np.searchsorted(ends, rng.random(counts[number]) * ends[-1], side="right")
            voxels.append(low + np.stack(np.unravel_index(drawn, values.shape), axis=1))
        # Voxels are in the order of tiles: shuffle them, so that any first part is a sample of all.
        return rng.permutation(np.concatenate(voxels)) if voxels else np.empty((0, 3), dtype=np.int64)


def index_labels(source: TensorSource, path: Path | None = None, dataset: str | None = None) -> Index:
    """Count the voxels of every class in every tile, or read the counts of an earlier call.

    Parameters
    ----------
    source : TensorSource
        One label volume.
    path : path, optional
        Store that holds the labels. The counts are written to ``NAME.index.json`` next to it, and counted again when
        the store has changed.
    dataset : str, optional
        Name of the image within the store. The counts are then written to ``NAME.DATASET.index.json``.
    """
    names = [] if path is None else [path.name, *([] if dataset is None else [dataset.replace("/", "-")])]
    index_file = None if path is None else path.with_name(".".join([*names, "index.json"]))
    grid = source.grid
    fingerprint = None
    if path is not None:
        fingerprint = digest([grid.shape, grid.affine.tolist(), source.tile, dataset, file_state(path)])
    if index_file is not None and index_file.is_file():
        stored = _read_index(index_file, fingerprint, int(np.prod(source.tiles)))
        if stored is not None:
            return Index(source, *stored, False)
    per_tile: list[dict[int, int]] = []
    for values in _tile_values(source):
        if values.dtype.kind not in "biu":
            raise DataError(f"labels must be integers; got {values.dtype}. Read them with kind='labels'")
        per_tile.append(_count_labels(values))
    classes = sorted({name for tile in per_tile for name in tile})
    mass = np.array([[tile.get(name, 0) for name in classes] for tile in per_tile], dtype=np.float64)
    if index_file is not None:
        tiles = [list(map(list, tile.items())) for tile in per_tile]
        _write_index(index_file, {"store": fingerprint, "classes": classes, "tiles": tiles})
    return Index(source, classes, mass, False)


def index_weights(source: TensorSource) -> Index:
    """Sum a map of weights in every tile."""

    def total(values: np.ndarray) -> float:
        if not np.isfinite(values).all() or (values < 0).any():
            raise DataError("weights must be finite and 0 or more. Clip or fill the map first")
        return float(values.sum(dtype=np.float64))

    mass = np.array([[total(values)] for values in _tile_values(source)])
    if not mass.sum():
        raise DataError("the map of weights must be positive somewhere; it is 0 everywhere")
    return Index(source, [1], mass, True)


def _count_labels(values: np.ndarray) -> dict[int, int]:
    """Count the voxels of each label: in one array if labels are dense, by sorting if they are far apart."""
    low, high = int(values.min()), int(values.max())
    if high - low < _DENSE_LABEL_RANGE and high <= np.iinfo(np.int64).max:
        counts = np.bincount(values.ravel().astype(np.int64) - low)
        present = np.flatnonzero(counts)
        return dict(zip((present + low).tolist(), counts[present].tolist(), strict=True))
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _tile_values(source: TensorSource) -> Iterator[np.ndarray]:
    for number in range(int(np.prod(source.tiles))):
        yield _read_tile(source, number)[1]


def _read_tile(source: TensorSource, number: int) -> tuple[Ints, np.ndarray]:
    low = np.array(np.unravel_index(number, source.tiles)) * source.tile
    return low, source.voxels(Box.of(low, np.minimum(low + source.tile, source.grid.shape)))[0]


def _read_index(index_file: Path, fingerprint: str | None, tiles: int) -> tuple[list[int], Floats] | None:
    try:
        content = json.loads(index_file.read_text("utf-8"))
        if content["store"] != fingerprint or len(content["tiles"]) != tiles:
            return None
        classes = [int(c) for c in content["classes"]]
        per_tile = [dict(tile) for tile in content["tiles"]]
        return classes, np.array([[float(tile.get(c, 0)) for c in classes] for tile in per_tile])
    except (OSError, ValueError, KeyError, TypeError):
        # Not a valid index: count again.
        return None


def _write_index(index_file: Path, content: dict[str, Any]) -> None:
    try:
        with atomic_write(index_file, overwrite=True) as draft:
            draft.write_text(json.dumps(content))
    except OSError as error:
        log.info("the index %s was not written: %s", index_file.name, error)
