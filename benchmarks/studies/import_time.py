"""CPU time of ``import mrhdata`` in a fresh interpreter with compiled bytecode; median of nine.

Run: python benchmarks/studies/import_time.py
"""

import statistics
import subprocess
import sys

CODE = "import time; t = time.process_time(); import mrhdata, sys; print(time.process_time() - t)"
HEAVY = "import mrhdata, sys; print([m for m in ('torch', 'zarr', 'dask', 'xarray', 'numpy') if m in sys.modules])"


def run(code):
    """Return what a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    times = sorted(float(run(CODE)) for _ in range(9))
    print(f"import mrhdata: {statistics.median(times):.2f} s of CPU (median of 9, {times[0]:.2f} to {times[-1]:.2f})")
    print(f"heavy modules imported: {run(HEAVY)}")
