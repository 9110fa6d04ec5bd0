"""Print what becomes of mutated sources: ``python -m tests.attack [COPIES [NAME ...]]``."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.attack.attack import attack, faults
from tests.attack.sources import SOURCES

if __name__ == "__main__":
    copies = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    columns = ("equal", "changed", "refused", "crash", "hang", "foreign", "memory")
    print("| source |", " | ".join(columns), "| faults |")
    print("|---" * (len(columns) + 2) + "|")
    lines: list[str] = []
    for name in sys.argv[2:] or SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = attack(name, Path(folder), copies)
            faulty = faults(name, Path(folder), outcomes)
        counts = Counter(outcome.result for outcome in outcomes)
        lines += faulty
        row = [str(counts[column]) for column in columns]
        print("|", " | ".join([name, *row, str(len(faulty))]), "|", flush=True)
    print("\n".join(["", *lines]))
