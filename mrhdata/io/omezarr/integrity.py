"""Checks of a store of mrhdata: digests of its metadata, the list of its shards, and a look at what was written.

The group's ``mrh`` attributes have a ``digest`` of themselves and of the OME-Zarr metadata, and ``arrays``: for each
array a digest of its metadata and the number of its shards. Chunks have a CRC-32C each. Stores of earlier versions
have none of them and are read without checks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore

from mrhdata.errors import FormatError
from mrhdata.io.omezarr.images import Image
from mrhdata.io.omezarr.presence import Presence, present_files, shard_counts

#: Name of the program in the metadata of an image.
METHOD = "mrhdata"
#: Largest number of shards whose presence is kept in memory.
_MOST_SHARDS = 100_000_000


def own_metadata(image: Image, path: Path | str) -> dict[str, Any] | None:
    """Return the ``mrh`` attributes of an image, or None for a store of another program.

    Raises
    ------
    FormatError
        They do not match their digest.
    """
    stored = image.attrs.get("mrh")
    note = image.metadata.get("metadata")
    ours = isinstance(note, Mapping) and note.get("method") == METHOD
    if stored is None and not ours:
        return None
    checked = isinstance(stored, Mapping) and ("digest" in stored or "arrays" in stored)
    intact = isinstance(stored, Mapping) and stored.get("digest") == metadata_digest(image.attrs)
    if not isinstance(stored, Mapping) or ((ours or checked) and not intact):
        raise FormatError(
            f"{path}: its metadata does not match its digest, so it was damaged or edited. Copy the store again; after "
            "an edit on purpose, remove 'digest' and 'arrays' from its mrh attributes, and 'metadata' from its image"
        )
    return dict(stored)


def metadata_digest(attrs: Mapping[str, Any]) -> str:
    """Return the digest of a group's attributes, without those that other programs may add."""
    ome, stored = attrs.get("ome", {}), attrs.get("mrh", {})
    own = {key: value for key, value in stored.items() if key != "digest"}
    return _digest([ome.get("version"), ome.get("multiscales"), own])


def array_record(array: zarr.Array[Any]) -> dict[str, Any]:
    """Return what the metadata of a store keep of a complete local array."""
    presence = present_files(array)
    bits = {} if presence.written.all() else {"shard_bits": presence.encode()}
    return {"metadata": array_digest(array), "shards": presence.count, **bits}


def array_digest(array: zarr.Array[Any]) -> str:
    """Return the digest of an array's metadata without attributes, which xarray and others may set."""
    content = sync((array.store_path / "zarr.json").get())
    document = {} if content is None else json.loads(content.to_bytes())
    return _digest({key: value for key, value in document.items() if key != "attributes"})


def presence_of(array: zarr.Array[Any], record: Mapping[str, Any] | None, path: Path | str) -> Presence | None:
    """Return which shards of an array were written; None if its store does not say.

    Raises
    ------
    FormatError
        The metadata of the array, or its list of shards, are damaged.
    """
    if record is None:
        return None
    counts = shard_counts(array)
    total = math.prod(counts)
    if total > _MOST_SHARDS or (isinstance(array.store, LocalStore) and array_digest(array) != record["metadata"]):
        raise FormatError(
            f"{path}: the metadata of array {array.path!r} does not match its digest; copy the store again"
        )
    presence = Presence.full(counts) if record["shards"] == total else Presence.decode(record["shard_bits"], counts)
    if presence.count != record["shards"]:
        raise FormatError(f"{path}: array {array.path!r} must list {record['shards']} shards; got {presence.count}")
    return presence


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
