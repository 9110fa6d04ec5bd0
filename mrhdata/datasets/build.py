"""A catalogue of the volumes in a folder, one entry for each subject and modality.

Names that follow BIDS, such as ``sub-01_ses-02_T1w.nii.gz``, say which subject, session and contrast a
file holds. They are read exactly: ``sub-1`` is never ``sub-10``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from mrhdata.datasets import bids, catalog
from mrhdata.datasets.splits import shared_out
from mrhdata.errors import CatalogError, MrhdataError
from mrhdata.io import formats
from mrhdata.io.conversion import source_checksum
from mrhdata.io.formats import FORMATS, Options

log = logging.getLogger("mrhdata")


def build(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    licence: str | None = None,
    citation: str | None = None,
    split: Mapping[str, float] | None = None,
    seed: int = 0,
    checksum: bool = True,
    **options: Unpack[Options],
) -> Path:
    """Write a catalogue of every volume below a folder.

    Parameters
    ----------
    folder : path
        Searched with all folders in it; an OME-Zarr or a folder of planes is one volume.
    path : path, optional
        ``catalog.yaml`` in the folder by default.
    title, licence, citation : str, optional
        From the folder's ``dataset_description.json`` where they are not given.
    split : mapping of str to float, optional
        Shares, such as ``{"train": 0.8, "test": 0.2}``. Whole subjects are shared out, so that none is
        in two parts.
    seed : int
        Of the split.
    checksum : bool
        Note the SHA-256 of each file.
    **options
        As for :func:`mrhdata.read`, for all volumes; each entry carries them.

    Returns
    -------
    path : pathlib.Path

    Raises
    ------
    CatalogError
        The folder holds no volume that can be read. One that cannot is left out, with a warning.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "sub-01_T2w.nii")
    >>> cat = mrhdata.open_catalog(build(folder, licence="CC0-1.0"))
    >>> list(cat), list(cat.select(subject="01", modality="mri"))
    (['sub_01_T2w'], ['T2w'])
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CatalogError(f"{folder} is no folder; give the one that holds the volumes")
    about = _description(folder)
    target = Path(path) if path is not None else folder / "catalog.yaml"
    entries: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for place in volumes_in(folder):
        try:
            held = _metadata(place, options, checksum)
        except MrhdataError as error:
            log.warning("left out: %s", error)
            continue
        relative = os.path.relpath(place.absolute(), target.absolute().parent)
        name = re.sub(r"\W+", "_", bids.stem(place))
        while name in entries:
            name += "_"
        kept = {key: value for key, value in options.items() if value is not None}
        entries[name] = (relative, held, {**kept, "kind": held["kind"]})
    if not entries:
        raise CatalogError(f"{folder} holds no volume that can be read")
    if split is not None:
        known = [held for _, held, _ in entries.values() if "subject" in held]
        part_of = shared_out([held["subject"] for held in known], split, seed)
        for held in known:
            held["split"] = part_of[held["subject"]]
    about |= {k: v for k, v in {"licence": licence, "citation": citation}.items() if v is not None}
    for _, held, _ in entries.values():
        held.update({key: about[key] for key in ("licence", "citation") if key in about})
    about["title"] = title or about.get("title", folder.absolute().name)
    catalog.write(target, entries=entries, **about)
    return target


def volumes_in(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder that could be volumes; header and voxels of a pair count once."""
    # The voxels of these lie beside a header that is listed itself.
    second = (".img", ".img.gz", ".brik", ".brik.gz", ".rec")
    for place in sorted(folder.iterdir()):
        name = place.name.lower()
        if name.startswith("."):
            continue
        if place.is_dir():
            if (
                name.endswith(".zarr")
                or (place / "zarr.json").exists()
                or (place / ".zattrs").exists()
                or _is_stack(place)
            ):
                yield place
            else:
                yield from volumes_in(place)
        elif any(name.endswith(ending) for ending in FORMATS) and not name.endswith(second):
            yield place


def _is_stack(folder: Path) -> bool:
    """Whether a folder holds one stack: planes whose names differ only in numbers, or DICOM files."""
    names = [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    planes = [n for n in names if n.lower().endswith((".tif", ".tiff", ".png")) and ".ome." not in n.lower()]
    if len(planes) > 1 and len({re.sub(r"\d+", "", n) for n in planes}) == 1:
        return True
    return len(names) > 1 and all(n.lower().endswith((".dcm", ".ima")) for n in names)


def _metadata(place: Path, options: Options, checksum: bool) -> dict[str, Any]:
    parsed = bids.parse(place.name)
    suffix = parsed.pop("suffix", None)
    modality, kind = bids.SUFFIXES.get(suffix or "", (None, None))
    asked: Options = {**options}
    if kind is not None and asked.get("kind") is None:
        asked["kind"] = kind
    volume = formats.read(place, **asked)
    grid = volume.mrh.grid
    held: dict[str, Any] = {**parsed, "role": suffix or bids.stem(place), "kind": volume.attrs["kind"]}
    held["modality"] = volume.attrs.get("modality") or modality or "unknown"
    if "units" in volume.attrs:
        held["units"] = volume.attrs["units"]
    held |= {
        "space": volume.mrh.space,
        "spacing_mm": [float(f"{step:.6g}") for step in grid.spacing],
        "shape": {str(d): int(n) for d, n in volume.sizes.items()},
        "orientation": grid.orientation,
        **{key: value for key, value in source_checksum(place, checksum).items() if key != "source"},
    }
    return held


def _description(folder: Path) -> dict[str, str]:
    """Title, licence and citation from BIDS' description of a data set."""
    path = folder / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        content = content if isinstance(content, dict) else {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s)", path, error)
        content = {}
    names = {"title": "Name", "licence": "License", "citation": "HowToAcknowledge"}
    found = {key: content[name] for key, name in names.items() if isinstance(content.get(name), str) and content[name]}
    if "citation" not in found and isinstance(content.get("DatasetDOI"), str):
        found["citation"] = content["DatasetDOI"]
    return found
