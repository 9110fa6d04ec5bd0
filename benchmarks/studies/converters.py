"""Convert a TIFF stack to a sharded OME-Zarr pyramid with one tool; run by conversion.py.

Chunks (64, 64, 64), shards (128, 256, 256), Blosc (zstd 3, bit shuffle), levels averaged by two
until no axis is longer than 64. Prints JSON: seconds, and the peak resident memory minus the memory after the imports.

    python benchmarks/studies/converters.py {mrhdata,ngff-zarr,ome-zarr-py} STACK STORE
"""

import glob
import json
import re
import resource
import sys
import time

CHUNKS, SHARDS = (64, 64, 64), (128, 256, 256)


def mrhdata_(checksum=False):
    """Import the tool; return its conversion. The others compute no checksums of the source."""
    import zarrs  # noqa: F401

    import mrhdata
    import mrhdata.io.conversion
    import mrhdata.io.omezarr.writer
    import mrhdata.io.tiff

    return lambda source, store: mrhdata.convert(source, store, spacing=1.8, unit="um", checksum=checksum)


def _files(source):
    return sorted(glob.glob(f"{source}/*.tif"), key=lambda p: int(re.findall(r"\d+", p)[-1]))


def _stack(source):
    """The stack as both other tools take it: a Dask array, read by tifffile in slabs of a shard's depth."""
    import dask.array as da
    import numpy as np
    import tifffile

    files = _files(source)
    first = tifffile.imread(files[0])

    def slab(block_info=None):
        low, high = block_info[None]["array-location"][0]
        return np.stack([tifffile.imread(f) for f in files[low:high]])

    depths = [min(SHARDS[0], len(files) - i) for i in range(0, len(files), SHARDS[0])]
    return da.map_blocks(
        slab, chunks=(tuple(depths), *first.shape), dtype=first.dtype, meta=np.empty((0, 0, 0), first.dtype)
    )


def _factors(shape):
    found = []
    while max(shape) // 2 ** len(found) > 64:
        found.append(2 ** (len(found) + 1))
    return found


def ngff_zarr_():
    """Import the tool; return its conversion."""
    import ngff_zarr as nz
    import tifffile  # noqa: F401
    from zarr.codecs import BloscCodec

    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)
    method = nz.Methods.DASK_BIN_SHRINK

    def convert(source, store):
        data = _stack(source)
        image = nz.to_ngff_image(
            data, dims=("z", "y", "x"), scale=dict.fromkeys("zyx", 1.8), axes_units=dict.fromkeys("zyx", "micrometer")
        )
        factors = [dict.fromkeys("zyx", f) for f in _factors(data.shape)]
        scales = nz.to_multiscales(
            image, scale_factors=factors, method=method, chunks=dict(zip("zyx", CHUNKS, strict=True))
        )
        per_shard = {d: s // c for d, s, c in zip("zyx", SHARDS, CHUNKS, strict=True)}
        nz.to_ome_zarr(store, scales, version="0.5", chunks_per_shard=per_shard, compressors=[codec])

    return convert


def ome_zarr_py_():
    """Import the tool; return its conversion."""
    import tifffile  # noqa: F401
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image
    from zarr.codecs import BloscCodec

    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")

    def convert(source, store):
        data = _stack(source)
        factors = _factors(data.shape)
        options = [
            {
                "chunks": tuple(min(c, n // f) for c, n in zip(CHUNKS, data.shape, strict=True)),
                "shards": tuple(
                    min(c, n // f) * min(s // c, -(-(n // f) // c))
                    for s, c, n in zip(SHARDS, CHUNKS, data.shape, strict=True)
                ),
                "compressors": codec,
            }
            for f in [1, *factors]
        ]
        write_image(
            data,
            store,
            scale_factors=[dict.fromkeys("zyx", f) for f in factors],
            method=Methods.LOCAL_MEAN,
            axes=["z", "y", "x"],
            scale=dict.fromkeys("zyx", 1.8),
            axes_units=dict.fromkeys("zyx", "micrometer"),
            storage_options=options,
        )

    return convert


def main(tool, source, store):
    """Convert, and print what it took."""
    convert = {
        "mrhdata": mrhdata_,
        "mrhdata-checksums": lambda: mrhdata_(True),
        "ngff-zarr": ngff_zarr_,
        "ome-zarr-py": ome_zarr_py_,
    }[tool]()
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun = time.perf_counter()
    convert(source, store)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tool": tool, "seconds": round(seconds, 2), "peak_mb": round((peak - imports) / 1e6)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
