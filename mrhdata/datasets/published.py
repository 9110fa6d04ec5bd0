"""Published data sets: download, check, convert, and list them in a local catalogue.

``catalogs/*.yaml`` describe them. An entry whose file must be downloaded has metadata ``download``: ``bytes`` and
``hash`` if the source states them, and ``member`` if the file is in a zip archive.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch

from mrhdata._runtime.atomic import remove
from mrhdata._runtime.locks import locked
from mrhdata.datasets import catalog
from mrhdata.datasets.downloads import PublishedFile, download, extract_member, published_file
from mrhdata.datasets.validation import read_catalogs
from mrhdata.errors import CatalogError, DataError, FormatError, MrhdataError
from mrhdata.io.conversion import convert

if TYPE_CHECKING:
    import xarray as xr


def published(folder: str | os.PathLike[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the entries of the catalogues of published data by name, each with ``args`` and ``metadata``.

    Parameters
    ----------
    folder : path, optional
        Folder of catalogues, by default the one of the package.

    Examples
    --------
    >>> published()["ccfv3-template-25um"]["metadata"]["modality"]
    'histology'
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(folder) if folder is not None else _package_catalogs()).glob("public*.yaml")):
        for name, entry in next(iter(read_catalogs(path).values())).entries.items():
            entries[name] = asdict(entry)
    return entries


def fetch(
    name: str,
    into: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
    entries: Mapping[str, Mapping[str, Any]] | None = None,
) -> xr.DataArray:
    """Download a published volume, check it, convert it to OME-Zarr, and list it in a catalogue.

    Parameters
    ----------
    name : str
        Name of an entry of :func:`published`.
    into : path, optional
        Folder of the stores and of their ``catalog.yaml``; by default ``$MRHDATA_DATA``, or
        ``mrhdata`` in the user's cache.
    progress : bool
        Whether to show bytes per second and the time left.
    entries : mapping, optional
        Entries to choose from, by default :func:`published`.

    Returns
    -------
    volume : xarray.DataArray
        Volume of the local store. Interrupted downloads and conversions resume.

    Raises
    ------
    CatalogError
        If the name is unknown, or if a program may not fetch the data; the message states the reason.
    DataError
        If the server fails or sends other bytes than published; these are removed.
    """
    available = published() if entries is None else entries
    if name not in available:
        raise CatalogError(f"name must be a published volume; got {name!r}. There are {', '.join(sorted(available))}")
    entry = available[name]
    metadata, args = dict(entry["metadata"]), dict(entry["args"])
    if "restricted" in metadata:
        raise CatalogError(f"{name} cannot be fetched: {metadata['restricted']}")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise CatalogError(f"name must have letters, digits, '.', '_' and '-' only; got {name!r}. Rename the entry")
    home = Path(into or os.environ.get("MRHDATA_DATA") or pooch.os_cache("mrhdata"))
    home.mkdir(parents=True, exist_ok=True)
    store = home / f"{name}.zarr"
    with locked(store):
        if not store.exists():
            _make_store(store, args, metadata, progress)
    with locked(home / "catalog.yaml"):
        catalog.add(home / "catalog.yaml", "Published volumes, fetched", name, store.name, metadata)
    return catalog.open_catalog(home / "catalog.yaml")[name].to_dask()


def _make_store(store: Path, args: dict[str, Any], metadata: Mapping[str, Any], progress: bool) -> None:
    """Convert a published volume; what was downloaded and cannot be read is removed."""
    url = args.pop("urlpath")
    if "download" not in metadata:
        convert(url, store, progress=progress, **args)
        return
    file = published_file(url, metadata["download"])
    # A folder for each address: files of two publishers may have one name.
    folder = store.parent / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:12]
    try:
        path = download(file, folder, progress)
        if "member" in metadata["download"]:
            path = extract_member(path, str(metadata["download"]["member"]))
        convert(path, store, progress=progress, **args)
    except (DataError, FormatError) as error:
        if str(store) in str(error):
            # The store cannot be written; the download is not at fault.
            raise
        if file.hash is None:
            remove(folder)
        raise _with_address(error, file) from error
    finally:
        _remove_if_empty(folder)


def _with_address(error: MrhdataError, file: PublishedFile) -> DataError:
    """Return the error of a file with the address that it came from."""
    text = str(error)
    removed = "" if file.hash is not None else "; the download was removed, and the next run asks the server again"
    return DataError(text if file.url in text else f"{file.url} sent a file that cannot be read{removed}: {text}")


def _remove_if_empty(folder: Path) -> None:
    for path in (folder, folder.parent):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _package_catalogs() -> Path:
    here = Path(__file__).parent
    return here / "catalogs" if (here / "catalogs").is_dir() else here.parents[1] / "catalogs"
