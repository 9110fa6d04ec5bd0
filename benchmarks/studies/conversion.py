"""Convert a synthetic uint16 TIFF stack of 4 GB to a sharded OME-Zarr pyramid, also with ngff-zarr and ome-zarr-py.

All three write the same codec, level, chunks, shards and mean downsampling, and read the same
slabs; runs alternate. The other tools are installed in a separate environment
(``pip install -r benchmarks/requirements-conversion.txt``), whose Python is `--rivals`.

    python benchmarks/studies/conversion.py --rivals /path/to/venv/bin/python
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import tifffile
import zarr
from scipy.ndimage import gaussian_filter

HERE = Path(__file__).parent
#: The second also notes the SHA-256 of every plane, which is the default.
OURS = ("mrhdata", "mrhdata-checksums")
RIVALS = ("ngff-zarr", "ome-zarr-py")


def stack(folder, planes, edge):
    """Smooth structure with noise, as a light-sheet microscope sees it: it packs to two thirds."""
    rng = np.random.default_rng(0)
    block = gaussian_filter(rng.normal(size=(16, edge, edge)).astype(np.float32), 3)
    block = (block / block.std() * 300 + 1000 + rng.normal(size=block.shape) * 20).astype(np.uint16)
    folder.mkdir(parents=True)
    for i in range(planes):
        tifffile.imwrite(folder / f"plane_{i}.tif", np.roll(block[i % 16], 7 * i))
    return folder


def convert(python, tool, source, store):
    """Run one tool in a process of its own; what it printed."""
    shutil.rmtree(store, ignore_errors=True)
    command = [python, str(HERE / "converters.py"), tool, str(source), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def arrays(store):
    """Arrays of a pyramid, the finest first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(store, mode="r")
    return [group[d["path"]] for d in group.attrs["ome"]["multiscales"][0]["datasets"]]


def same(a, b):
    """Whether two stores hold one pyramid: shapes, chunks, shards, codecs; voxels of the finest level."""
    first, second = arrays(a), arrays(b)
    layout = [(x.shape, x.chunks, x.shards) for x in first] == [(x.shape, x.chunks, x.shards) for x in second]

    def middle(array):
        return array[tuple(slice(n // 2 - 50, n // 2 + 50) for n in array.shape)].astype(int)

    apart = int(np.abs(middle(first[1]) - middle(second[1])).max())
    return {
        "same_layout": layout,
        "finest_equal": bool((middle(first[0]) == middle(second[0])).all()),
        "next_level_differs_by_at_most": apart,
    }


def main():
    """Make the stack, run all tools in turn, compare what they wrote, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", help="Python of the environment with the other tools")
    parser.add_argument("--planes", type=int, default=2000)
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the stack and the stores are made; temporary by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source = stack(folder / "stack", args.planes, args.edge)
        runs = []
        for _ in range(args.repeats):
            for tool in (*OURS, *(RIVALS if args.rivals else ())):
                python = sys.executable if tool in OURS else args.rivals
                runs.append(convert(python, tool, source, folder / f"{tool}.zarr"))
                print(runs[-1], flush=True)
        best = {t: min(r["seconds"] for r in runs if r["tool"] == t) for t in {r["tool"] for r in runs}}
        checks = {t: same(folder / "mrhdata.zarr", folder / f"{t}.zarr") for t in best if t != "mrhdata"}
        for tool in best:
            shutil.rmtree(folder / f"{tool}.zarr")
        deep = folder / "deep"
        deep.mkdir()
        for i in range(2 * args.planes):
            os.link(source / f"plane_{i % args.planes}.tif", deep / f"plane_{i}.tif")
        twice = convert(sys.executable, "mrhdata", deep, folder / "deep.zarr")
        print("twice as deep", twice, flush=True)
    result = {
        "task": f"{args.planes} x {args.edge} x {args.edge} uint16 TIFF planes to OME-Zarr 0.5 with pyramid",
        "chunks": [64, 64, 64],
        "shards": [128, 256, 256],
        "codec": "blosc zstd 3 bitshuffle",
        "budget_mb": 1000,
        "cpu_threads": os.cpu_count(),
        "python": platform.python_version(),
        "gigabytes": args.planes * args.edge**2 * 2 / 1e9,
        "seconds_best": best,
        "times_slower_than_mrhdata": {t: round(s / best["mrhdata"], 2) for t, s in best.items()},
        "peak_mb_less_imports": {t: max(r["peak_mb"] for r in runs if r["tool"] == t) for t in best},
        "twice_as_deep": twice,
        "checks": checks,
        "runs": runs,
    }
    text = json.dumps(result, indent=2)
    (HERE.parent / "results" / "conversion.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
