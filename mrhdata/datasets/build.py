"""Build a catalogue of the volumes in a folder, one entry for each subject and modality.

Subject, session and contrast of a file come from its name if the name follows BIDS.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from mrhdata._runtime.child_process import ChildReader
from mrhdata.datasets import bids, catalog
from mrhdata.datasets.splits import assign_parts
from mrhdata.errors import CatalogError, MrhdataError
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
        Folder to search, with all its subfolders; an OME-Zarr or a folder of planes is one volume.
    path : path, optional
        Path of the catalogue, by default ``catalog.yaml`` in the folder.
    title, licence, citation : str, optional
        Metadata of the catalogue, by default from the folder's ``dataset_description.json``.
    split : mapping of str to float, optional
        Shares, such as ``{"train": 0.8, "test": 0.2}``. Whole subjects are assigned, so no subject is in two parts.
    seed : int
        Random seed of the split.
    checksum : bool
        Whether to store the SHA-256 of each file.
    **options
        Options of :func:`mrhdata.read` for all volumes, stored in each entry.

    Returns
    -------
    path : pathlib.Path
        Path of the catalogue.

    Raises
    ------
    CatalogError
        If the folder has no readable volume. Files that cannot be read, or that end the process that reads their
        header, are left out with a warning.

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
        raise CatalogError(f"{folder} is not a folder; pass the folder of the volumes")
    description = _read_description(folder)
    target = Path(path) if path is not None else folder / "catalog.yaml"
    entries: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for volume_path, metadata in _describe_all(folder, options, checksum):
        relative = os.path.relpath(volume_path.absolute(), target.absolute().parent)
        name = re.sub(r"\W+", "_", bids.stem(volume_path))
        while name in entries:
            name += "_"
        read_options = {key: value for key, value in options.items() if value is not None}
        entries[name] = (relative, metadata, {**read_options, "kind": metadata["kind"]})
    if not entries:
        raise CatalogError(f"{folder} has no readable volume")
    if split is not None:
        with_subject = [metadata for _, metadata, _ in entries.values() if "subject" in metadata]
        part_of = assign_parts([metadata["subject"] for metadata in with_subject], split, seed)
        for metadata in with_subject:
            metadata["split"] = part_of[metadata["subject"]]
    description |= {k: v for k, v in {"licence": licence, "citation": citation}.items() if v is not None}
    for _, metadata, _ in entries.values():
        metadata.update({key: description[key] for key in ("licence", "citation") if key in description})
    description["title"] = title or description.get("title", folder.absolute().name)
    catalog.write(target, entries=entries, **description)
    return target


def _describe_all(folder: Path, options: Options, checksum: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield path and metadata of each readable volume below a folder; files that cannot be read are named."""
    with ChildReader("mrhdata.datasets.headers:describe") as reader:
        for path in find_volumes(folder):
            try:
                metadata = reader.read(path, options)
                sums = source_checksum(path, checksum)
            except MrhdataError as error:
                log.warning("left out: %s", error)
                continue
            yield path, metadata | {key: value for key, value in sums.items() if key != "source"}


def find_volumes(folder: Path) -> Iterator[Path]:
    """Yield paths below a folder that could be volumes, the header only of a header and voxel file pair."""
    voxel_files = (".img", ".img.gz", ".brik", ".brik.gz", ".rec")
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name.startswith("."):
            continue
        if path.is_dir():
            if is_volume_folder(path):
                yield path
            else:
                yield from find_volumes(path)
        elif any(name.endswith(ending) for ending in FORMATS) and not name.endswith(voxel_files):
            yield path


def is_volume_folder(folder: Path) -> bool:
    """Return whether a folder is one volume: an OME-Zarr, a stack of planes or a DICOM series."""
    is_zarr = folder.name.lower().endswith(".zarr") or any((folder / f).exists() for f in ("zarr.json", ".zattrs"))
    return is_zarr or _is_stack(folder)


def _is_stack(folder: Path) -> bool:
    """Return whether a folder is one stack: planes whose names differ only in numbers, or DICOM files."""
    names = [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    planes = [n for n in names if n.lower().endswith((".tif", ".tiff", ".png")) and ".ome." not in n.lower()]
    if len(planes) > 1 and len({re.sub(r"\d+", "", n) for n in planes}) == 1:
        return True
    return len(names) > 1 and all(n.lower().endswith((".dcm", ".ima")) for n in names)


def _read_description(folder: Path) -> dict[str, str]:
    """Read title, licence and citation from the BIDS file ``dataset_description.json``."""
    path = folder / "dataset_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        content = content if isinstance(content, dict) else {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s)", path, error)
        content = {}
    fields = {"title": "Name", "licence": "License", "citation": "HowToAcknowledge"}
    description = {
        key: content[field] for key, field in fields.items() if isinstance(content.get(field), str) and content[field]
    }
    if "citation" not in description and isinstance(content.get("DatasetDOI"), str):
        description["citation"] = content["DatasetDOI"]
    return description
