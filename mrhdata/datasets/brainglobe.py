"""Atlases that BrainGlobe has downloaded: their annotation as a label volume, and where their structures table lies.

An atlas is a folder ``NAME_vX.Y`` with ``metadata.json``, ``annotation.tiff`` and ``structures.json``. BrainGlobe's
letters name the origin of each axis; ours name the direction, so ``asr`` is read as ``PIL``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrhdata.errors import FormatError
from mrhdata.io import formats

if TYPE_CHECKING:
    import xarray as xr

#: Folder in which BrainGlobe keeps atlases.
HOME = Path.home() / ".brainglobe"
_OPPOSITE = str.maketrans("apsirl", "PAISLR")


@dataclass(frozen=True)
class Atlas:
    """An atlas on disk.

    Attributes
    ----------
    name : str
    annotation : volume
        Labels of structures, lazy.
    structures : path
        Table for :func:`mrhdata.analysis.region_counts.read_ontology`.
    """

    name: str
    annotation: xr.DataArray
    structures: Path


def directions(origins: str) -> str:
    """Return the directions of axes from BrainGlobe's letters, which name where each axis begins.

    Examples
    --------
    >>> directions("asr")
    'PIL'
    """
    return origins.lower().translate(_OPPOSITE)


def read_atlas(name: str, folder: str | os.PathLike[str] | None = None) -> Atlas:
    """Read an atlas that BrainGlobe has downloaded; nothing is downloaded here.

    Parameters
    ----------
    name : str
        Such as ``allen_mouse_25um``. The newest version is read.
    folder : path, optional
        Folder of the atlases; ``~/.brainglobe`` by default.

    Raises
    ------
    FormatError
        The atlas is not there, or a file of it is missing or damaged.
    """
    root = HOME if folder is None else Path(folder)
    versions = sorted((p for p in root.glob(f"{name}_v*") if p.is_dir()), key=_version)
    if not versions:
        atlases = sorted({re.sub(r"_v[\d.]+$", "", p.name) for p in root.glob("*_v*") if p.is_dir()})
        raise FormatError(
            f"atlas must be one in {root}; got {name!r}, and there are {', '.join(atlases) or 'none'}. Download it "
            f"with 'brainglobe install -a {name}'"
        )
    path = versions[-1]
    try:
        metadata = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
        spacing, origins = [float(n) for n in metadata["resolution"]], str(metadata["orientation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}/metadata.json cannot be read ({error}); install the atlas again") from error
    annotation = formats.read(
        path / "annotation.tiff", axes=directions(origins), spacing=spacing, unit="um", space=name, kind="labels"
    )
    structures = path / "structures.json"
    if not structures.is_file():
        raise FormatError(f"{structures} does not exist; install the atlas again")
    return Atlas(name, annotation, structures)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.name.rpartition("_v")[2]))
