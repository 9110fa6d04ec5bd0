"""Cost of the checksums of chunks: MB of voxels per second with and without a CRC-32C behind Blosc.

Run: python benchmarks/studies/checksums.py [--voxels 256]

Writing is encoding of a volume in memory by zarrs on two threads, reading is decoding of all chunks on one thread, as
patches are read. Both forms alternate; the best of five runs of each counts, because other processes only slow a run.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from mrhdata.io.omezarr import codec
from mrhdata.io.omezarr.chunks import chunks_of
from mrhdata.io.omezarr.writer import open_array

RUNS = 5


def volume(kind: str, edge: int) -> np.ndarray:
    """Return smooth values with noise, which compress like those of an MRI or of a float map."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.add.outer(*[np.sin(np.arange(edge) / 20)] * 2), np.sin(np.arange(edge) / 20))
    values = 1000 + 200 * smooth + rng.normal(0, 20, smooth.shape)
    return values.astype(kind)


def run(folder: Path, values: np.ndarray, checked: bool) -> tuple[float, float, int]:
    """Return the seconds of writing and reading, and the bytes of the files."""
    checks = (Crc32cCodec(),) if checked else ()
    shards = (128, *[min(256, values.shape[1])] * 2)
    zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(64, 64, 64),
        shards=shards,
        compressors=(codec(values.dtype), *checks),
        overwrite=True,
    )
    begin = time.perf_counter()
    open_array(folder, 2)[...] = values
    written = time.perf_counter()
    chunks = chunks_of(zarr.open_array(folder, mode="r"))
    out = np.empty(chunks.chunk, chunks.dtype)
    for index in itertools.product(*(range(-(-n // 64)) for n in values.shape)):
        chunks.read(index, out)
    read = time.perf_counter()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return written - begin, read - written, size


def main() -> None:
    """Print one line for each type and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=256, help="Edge of the cube of voxels.")
    edge = parser.parse_args().voxels
    for kind in ("uint16", "float32"):
        values = volume(kind, edge)
        with tempfile.TemporaryDirectory() as folder:
            results = {checked: [] for checked in (False, True)}
            for _, checked in itertools.product(range(RUNS), results):
                results[checked].append(run(Path(folder, "a.zarr"), values, checked))
        for checked, runs in results.items():
            write, read, size = (min(column) for column in zip(*runs, strict=True))
            speeds = f"writing {values.nbytes / write / 1e6:.0f} MB/s, reading {values.nbytes / read / 1e6:.0f} MB/s"
            print(f"{kind}, {'CRC-32C' if checked else 'no checksum'}: {speeds}, {size} bytes")


if __name__ == "__main__":
    main()
