"""Verification of OME-Zarr stores: every chunk of every level is decoded and compared with its checksum."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from mrhdata._runtime.progress import Progress, ProgressLabel, progress_bar
from mrhdata.errors import FormatError
from mrhdata.io.omezarr.arrays import open_level
from mrhdata.io.omezarr.chunks import ZarrReader
from mrhdata.io.omezarr.decoders import has_checksum, stored_codecs
from mrhdata.io.omezarr.images import Image, open_image
from mrhdata.io.omezarr.integrity import own_metadata, presence_of
from mrhdata.io.omezarr.presence import Presence, present_files, shard_counts
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import DAMAGE

_VERIFYING = ProgressLabel("verify", 1, "shard")
#: Entries of the metadata of a Zarr 3 group.
_GROUP_ENTRIES = {"attributes", "zarr_format", "node_type", "consolidated_metadata"}


@dataclass(frozen=True)
class ArrayReport:
    """Result of the verification of one array of a store.

    Parameters
    ----------
    name : str
        Path of the array in the store.
    files : int
        Shards (chunks, without shards) that have a file.
    total : int
        Shards of the array. The voxels of a shard without a file are the fill value.
    listed : bool
        Whether the store lists the shards that were written.
    checksums : bool
        Whether chunks have checksums; otherwise damage is found only if it keeps a chunk from being unpacked.
    damage : tuple of str
        A sentence for each damaged or missing file.
    """

    name: str
    files: int
    total: int
    listed: bool
    checksums: bool
    damage: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line about the array."""
        notes = [f"{len(self.damage)} damaged or missing" if self.damage else "intact"]
        if not self.checksums:
            notes.append("changed voxels cannot be found, because chunks have no checksums")
        if self.files < self.total and not self.listed:
            notes.append("missing files cannot be found, because the store does not list its files")
        return f"{self.name}: {self.files} of {self.total} shards, {'; '.join(notes)}"


@dataclass(frozen=True)
class VerificationReport:
    """Result of the verification of a store: a report for each array, and damage of metadata.

    Parameters
    ----------
    store : str
    arrays : tuple of ArrayReport
    metadata : tuple of str
        A sentence for each damaged file of metadata.
    """

    store: str
    arrays: tuple[ArrayReport, ...]
    metadata: tuple[str, ...] = ()

    @property
    def damage(self) -> list[str]:
        """All sentences about damage."""
        return [*self.metadata, *(sentence for array in self.arrays for sentence in array.damage)]

    def raise_for_damage(self) -> None:
        """Raise FormatError that names what is damaged, if anything is."""
        if self.damage:
            listed = "; ".join(self.damage[:20])
            more = f"; and {len(self.damage) - 20} more" if len(self.damage) > 20 else ""
            raise FormatError(f"{self.store} is damaged: {listed}{more}. Copy the store again, or write it again")


def verify(
    store: str | os.PathLike[str], *, dataset: str | None = None, progress: Progress = False
) -> VerificationReport:
    """Read every chunk of every level of a local OME-Zarr, and report what is damaged or missing.

    Stores of mrhdata have a checksum for each chunk and for their metadata, and list their shards; in others some
    damage cannot be found, and the report says what was not checked.

    Parameters
    ----------
    store : path
    dataset : str, optional
        Image in a store that contains several.
    progress : bool or callable
        Whether to show a bar, or a function of (shards done, all shards).

    Returns
    -------
    report : VerificationReport

    Raises
    ------
    mrhdata.errors.FormatError
        The store is not an OME-Zarr on the local disk, or its metadata cannot be read at all.

    Examples
    --------
    >>> import tempfile, mrhdata
    >>> path = tempfile.mkdtemp() + "/a.zarr"
    >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1), name="t2w"), path)
    >>> for array in verify(path).arrays:
    ...     print(array)
    scale0/t2w: 1 of 1 shards, intact
    nifti: 1 of 1 shards, intact
    """
    if "://" in os.fspath(store):
        raise FormatError(f"{store} is a URL; verify reads stores on the local disk. Download it first")
    path = Path(store)
    image = open_image(path, dataset, None)
    records = dict((own_metadata(image, path) or {}).get("arrays", {}))
    names = list(dict.fromkeys([*(str(d["path"]) for d in image.metadata["datasets"]), *records]))
    opened = [_opened(image, name, records.get(name), path) for name in names]
    total = sum(array.total for array in opened if isinstance(array, _Opened))
    with progress_bar(progress, total, 0, _VERIFYING) as step, ThreadPoolExecutor(os.cpu_count()) as threads:
        reports = [array.report(step, threads) if isinstance(array, _Opened) else array for array in opened]
    return VerificationReport(str(path), tuple(reports), tuple(_group_damage(path, names) if records else ()))


@dataclass(frozen=True)
class _Opened:
    """An array whose metadata could be read, and the shards that its store lists."""

    name: str
    array: zarr.Array[Any]
    presence: Presence | None

    @property
    def total(self) -> int:
        return int(np.prod(shard_counts(self.array), dtype=object))

    def report(self, step: Any, threads: ThreadPoolExecutor) -> ArrayReport:
        """Decode all chunks."""
        present = present_files(self.array)
        expected = present if self.presence is None else Presence(present.written | self.presence.written)
        damage = []
        for sentence in threads.map(self._damage, map(tuple, np.argwhere(expected.written).tolist())):
            step(1)
            damage += [sentence] if sentence else []
        codecs = stored_codecs(self.array)
        inner = codecs[0]["configuration"]["codecs"] if codecs and codecs[0]["name"] == "sharding_indexed" else codecs
        return ArrayReport(
            self.name, present.count, self.total, self.presence is not None, has_checksum(inner), tuple(damage)
        )

    def _damage(self, shard: tuple[int, ...]) -> str | None:
        """Return a sentence about the first chunk of a shard that cannot be decoded, or None."""
        key = f"{self.name}/{self.array.metadata.encode_chunk_key(shard)}"
        if self.presence is not None and not self.presence.holds(shard):
            return f"{key} is not listed by the store"
        reader = ZarrReader(self.array, None, self.presence)
        try:
            for index in _chunks_of_shard(self.array, shard):
                if reader.chunks is not None:
                    reader.chunks.read(index)
                    continue
                start = [i * c for i, c in zip(index, self.array.chunks, strict=True)]
                ends = zip(start, self.array.chunks, self.array.shape, strict=True)
                reader(Box(tuple(start), tuple(min(a + c, n) for a, c, n in ends)))
        except DAMAGE as error:
            return f"{key} ({' '.join(str(error).split())[:200]})"
        return None


def _chunks_of_shard(array: zarr.Array[Any], shard: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the indices of the chunks of a shard that lie in the array."""
    shape = array.shards or array.chunks
    ranges = []
    for i, size, chunk, n in zip(shard, shape, array.chunks, array.shape, strict=True):
        ranges.append(range(i * size // chunk, -(-min((i + 1) * size, n) // chunk)))
    return itertools.product(*ranges)


def _opened(image: Image, name: str, record: Mapping[str, Any] | None, path: Path) -> _Opened | ArrayReport:
    """Open an array, or report that its metadata is damaged."""
    try:
        array = open_level(image.group, name, path, complete=record is not None)
        if not isinstance(array.store, LocalStore):
            raise FormatError(f"{path} does not lie on the local disk")
        return _Opened(name, array, presence_of(array, record, path))
    except DAMAGE as error:
        return ArrayReport(name, 0, 0, record is not None, False, (f"{name} ({' '.join(str(error).split())[:200]})",))


def _group_damage(path: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each damaged group between the root of a store of mrhdata and its arrays."""
    groups = sorted({"", *(str(parent) for name in names for parent in Path(name).parents if str(parent) != ".")})
    for name in groups:
        file = path / name / "zarr.json"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                zarr.open_group(path / name, mode="r", use_consolidated=False)
            unknown = set(json.loads(file.read_bytes())) - _GROUP_ENTRIES
        except DAMAGE as error:
            yield f"{Path(name, 'zarr.json')} ({' '.join(str(error).split())[:200]})"
            continue
        if unknown:
            yield f"{Path(name, 'zarr.json')} (unknown entries {sorted(unknown)})"
