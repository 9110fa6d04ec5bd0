"""Checksums of a report are those that other programs print."""

import hashlib

import numpy as np

import mrhdata
from mrhdata.viz.provenance import checksum
from mrhdata.volume.construct import from_array


def test_checksum_of_a_file_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"brain" * 1000)
    assert checksum(str(tmp_path / "a.bin")) == hashlib.sha256(b"brain" * 1000).hexdigest()[:16]


def test_checksum_of_a_store_changes_with_its_files(tmp_path):
    """It is marked, because it covers names, sizes and times and not the contents."""
    volume = from_array(np.zeros((2, 3, 4), np.float32), spacing=(1, 1, 1))
    mrhdata.write(volume, tmp_path / "a.zarr")
    first = checksum(str(tmp_path / "a.zarr"))
    assert first == checksum(str(tmp_path / "a.zarr"))
    assert first.endswith(" *")
    mrhdata.write(volume + 1, tmp_path / "a.zarr", overwrite=True)
    assert checksum(str(tmp_path / "a.zarr")) != first
