"""The section of a report that says which files, program and command it was made from."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mrhdata.io.fingerprint import file_state
from mrhdata.viz.report import Section
from mrhdata.volume.grid import length

if TYPE_CHECKING:
    import xarray as xr

#: Bytes of a file up to which its contents are read for the checksum.
_READ_BYTES = 4_000_000_000
_BIBTEX = """@software{{mrhdata,
  title = {{mrhdata: training sets, maps and scores of brain volumes}},
  author = {{{{The mrhdata developers}}}},
  version = {{{version}}},
  year = {{{year}}}
}}"""


@dataclass(frozen=True)
class ReportFile:
    """A volume of a report: its role, such as histology, its name, its file and itself."""

    role: str
    name: str
    file: str
    volume: xr.DataArray


def provenance_section(sources: Iterable[ReportFile]) -> Section:
    """Build a section with the files of a report, its program, command and date, and a reference to cite.

    Parameters
    ----------
    sources : iterable of ReportFile
        Volumes in the order of the table.

    Examples
    --------
    >>> import mrhdata, numpy as np, tempfile
    >>> file = tempfile.mkdtemp() + "/af.nii"
    >>> volume = mrhdata.from_array(np.zeros((2, 3, 4), np.float32), spacing=(1, 1, 2))
    >>> mrhdata.write(volume, file)
    >>> section = provenance_section([ReportFile("histology", "AF", file, volume)])
    >>> section.table[["role", "name", "voxels", "spacing"]].values.tolist()
    [['histology', 'AF', '2 x 3 x 4', '1 mm x 1 mm x 2 mm']]
    """
    rows = []
    for source in sources:
        grid = source.volume.mrh.grid
        rows.append(
            {
                "role": source.role,
                "name": source.name,
                "file": source.file,
                "checksum": checksum(source.file),
                "voxels": " x ".join(map(str, grid.shape)),
                "spacing": " x ".join(length(float(s)) for s in grid.spacing),
                "orientation": grid.orientation if "source_axes" in source.volume.attrs else "not stated",
                "space": source.volume.mrh.space,
            }
        )
    now, number = datetime.now(UTC), version("mrhdata")
    text = [
        f"Made by mrhdata {number} with Python {sys.version.partition(' ')[0]} on {now:%Y-%m-%d %H:%M} UTC.",
        f"Command: {shlex.join(['mrhdata', *sys.argv[1:]])}",
        "Checksums are the first 16 digits of SHA-256: of the contents of a file, or (marked *) of the names, sizes "
        "and times of the files of a folder. Voxels and spacing are along z, y, x.",
        f"To cite: {' '.join(_BIBTEX.format(version=number, year=now.year).split())}",
    ]
    return Section("Files and program", text, pd.DataFrame(rows))


def checksum(file: str) -> str:
    """Return the first 16 digits of the SHA-256 of a file, or of the state of a folder or a very large file.

    Examples
    --------
    >>> checksum("https://example.org/brain.zarr")
    'remote'
    """
    if "://" in file:
        return "remote"
    path = Path(file)
    if path.is_dir() or path.stat().st_size > _READ_BYTES:
        return hashlib.sha256(file_state(path).encode()).hexdigest()[:16] + " *"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
