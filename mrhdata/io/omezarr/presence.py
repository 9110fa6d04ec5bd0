"""Which shards of an array were written: a map of bits that tells a missing file from voxels that are all 0."""

from __future__ import annotations

import base64
import itertools
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mrhdata.errors import FormatError


class Presence:
    """Shards (or chunks, without shards) of an array that have a file.

    Parameters
    ----------
    written : numpy.ndarray of bool
        One element for each shard.

    Examples
    --------
    >>> presence = Presence(np.array([[True, True], [False, True]]))
    >>> presence.count, presence.holds((1, 0)), Presence.decode(presence.encode(), (2, 2)).count
    (3, False, 3)
    """

    def __init__(self, written: np.ndarray) -> None:
        self.written = written

    @property
    def count(self) -> int:
        """Number of shards that have a file."""
        return int(self.written.sum())

    def holds(self, index: Sequence[int]) -> bool:
        """Return whether a shard has a file."""
        return bool(self.written[tuple(index)])

    def encode(self) -> str:
        """Return the bits in C order, compressed, as text."""
        return base64.b64encode(zlib.compress(np.packbits(self.written).tobytes(), 9)).decode()

    @classmethod
    def full(cls, counts: Sequence[int]) -> Presence:
        """Return the presence of all of `counts` shards along each axis."""
        return cls(np.ones(tuple(counts), bool))

    @classmethod
    def decode(cls, text: str, counts: Sequence[int]) -> Presence:
        """Return the shards of a text, for an array of `counts` shards along each axis.

        Raises
        ------
        ValueError
            The text is not that of an array with so many shards.
        """
        total = math.prod(counts)
        length = -(-total // 8)
        decoder = zlib.decompressobj()
        content = decoder.decompress(base64.b64decode(text, validate=True), length + 1)
        if len(content) != length:
            raise ValueError(f"the list of shards must have {total} bits; got {8 * len(content)}")
        return cls(np.unpackbits(np.frombuffer(content, np.uint8), count=total).astype(bool).reshape(counts))


def shard_counts(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the number of shards (of chunks, without shards) along each axis."""
    return tuple(-(-n // s) for n, s in zip(array.shape, array.shards or array.chunks, strict=True))


def present_files(array: zarr.Array[Any]) -> Presence:
    """Return which shards of a local array have a file."""
    folder, counts = str(folder_of(array)), shard_counts(array)
    key = array.metadata.encode_chunk_key
    files = (os.path.isfile(f"{folder}/{key(index)}") for index in itertools.product(*map(range, counts)))
    return Presence(np.fromiter(files, bool, math.prod(counts)).reshape(counts))


def indices(presence: Presence) -> Iterator[tuple[int, ...]]:
    """Yield the indices of the shards that have a file, in C order."""
    for index in np.argwhere(presence.written):
        yield tuple(index.tolist())


def folder_of(array: zarr.Array[Any]) -> Path:
    """Return the folder of an array on the local disk."""
    root = getattr(array.store, "root", None)
    if root is None:
        raise FormatError(f"{array.store_path} does not lie on the local disk; download it first")
    return Path(str(root)) / array.path
