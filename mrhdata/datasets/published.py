"""Published data sets: download, check, convert, and list them in a local catalogue.

``catalogs/*.yaml`` describe them. An entry whose file must be downloaded has metadata ``download``: ``bytes`` and
``hash`` if the source states them, and ``member`` if the file is in a zip archive.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch
import requests
from tqdm.auto import tqdm

from mrhdata._runtime.atomic import atomic_write
from mrhdata.datasets import catalog
from mrhdata.datasets.validation import read_catalogs
from mrhdata.errors import CatalogError, DataError
from mrhdata.io.conversion import convert

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

_ATTEMPTS = 5
#: Pause before the second attempt; it doubles before each further one.
_PAUSE_S = 1.0
_TIMEOUT_S = 60
#: Status codes from 400 to 499 that are worth another attempt; the others are final.
_TEMPORARY_ERRORS = (requests.codes.request_timeout, requests.codes.too_many_requests)
#: Small, because a block is lost if the connection drops in the middle of it.
_BLOCK_BYTES = 64_000


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
    home = Path(into or os.environ.get("MRHDATA_DATA") or pooch.os_cache("mrhdata"))
    home.mkdir(parents=True, exist_ok=True)
    store = home / f"{name}.zarr"
    if not store.exists():
        url = args.pop("urlpath")
        source = _download(url, metadata["download"], home, progress) if "download" in metadata else url
        convert(source, store, progress=progress, **args)
    return _add_to_catalog(home, name, store, metadata)


def _package_catalogs() -> Path:
    here = Path(__file__).parent
    return here / "catalogs" if (here / "catalogs").is_dir() else here.parents[1] / "catalogs"


def _add_to_catalog(home: Path, name: str, store: Path, metadata: dict[str, Any]) -> xr.DataArray:
    """Add a complete store to the catalogue of its folder and return its volume."""
    path = home / "catalog.yaml"
    listed = next(iter(read_catalogs(path).values())).entries if path.exists() else {}
    entries = {n: (Path(e.args["urlpath"]).name, e.metadata) for n, e in listed.items()}
    catalog.write(path, "Published volumes, fetched", {**entries, name: (store.name, metadata)})
    return catalog.open_catalog(path)[name].to_dask()


def _download(url: str, download: Mapping[str, Any], home: Path, progress: bool) -> Path:
    """Return the path of a file in the downloads folder, downloaded and checked."""
    folder = home / "downloads"
    name = str(download.get("name") or url.partition("?")[0].rstrip("/").rpartition("/")[2])
    size = download.get("bytes")

    def downloader(address: str, target: str, _: Any) -> None:
        _download_resumable(address, Path(target), folder / f".{name}.part", size, progress)

    try:
        path = Path(
            pooch.retrieve(url, known_hash=download.get("hash"), fname=name, path=folder, downloader=downloader)
        )
    except ValueError as error:
        raise DataError(f"{url} differs from the published file ({' '.join(str(error).split())[:300]})") from error
    return _extract_member(path, str(download["member"])) if "member" in download else path


def _download_resumable(url: str, target: Path, partial: Path, size: int | None, progress: bool) -> None:
    """Download to `partial`, resuming an interrupted download, and rename it to `target` when it is complete."""
    last_error: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            log.info("%s: %s; trying again", url, last_error)
            time.sleep(2 ** (attempt - 1) * _PAUSE_S)
        try:
            total = _request(url, partial, progress)
        except (requests.RequestException, OSError) as error:
            if _is_final(error):
                raise DataError(f"{url} cannot be downloaded ({error}); check its address in the catalogue") from error
            last_error = error
            continue
        expected = size or total
        received = partial.stat().st_size
        if expected is not None and received != expected:
            partial.unlink()
            raise DataError(f"{url} differs from the published file: it has {received} bytes instead of {expected}")
        os.replace(partial, target)
        return
    raise DataError(f"{url} cannot be downloaded ({last_error}); run it again to resume") from last_error


def _is_final(error: Exception) -> bool:
    """Return whether the server refused the file for good."""
    response = error.response if isinstance(error, requests.HTTPError) else None
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in _TEMPORARY_ERRORS


def _request(url: str, partial: Path, progress: bool) -> int | None:
    """Request the missing bytes once and return the total size, or None if the server does not state it."""
    present = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and present:
            total_size = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total_size == str(present):
                return present
            partial.unlink()
            raise requests.RequestException("the partial file is larger than the published one; starting again")
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        length = response.headers.get("Content-Length")
        total = int(length) + (present if resumed else 0) if length is not None else None
        # A server without range requests sends the whole file again.
        with partial.open("ab" if resumed else "wb") as file:
            bar = tqdm(
                total=total,
                initial=present if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=not progress,
                desc=partial.name,
            )
            with bar:
                for block in response.iter_content(_BLOCK_BYTES):
                    file.write(block)
                    bar.update(len(block))
    if total is not None and partial.stat().st_size < total:
        raise requests.ConnectionError(f"the connection ended after {partial.stat().st_size} of {total} bytes")
    return total


def _extract_member(path: Path, name: str) -> Path:
    """Extract one file of a zip archive, and nothing else, into the folder of the archive."""
    target = path.with_name(Path(name).name)
    if target.exists():
        return target
    try:
        with zipfile.ZipFile(path) as archive, atomic_write(target) as draft:
            _copy_member(archive, name, draft)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} must be a zip archive that holds {name} ({error})") from error
    return target


def _copy_member(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    with archive.open(name) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _BLOCK_BYTES)
