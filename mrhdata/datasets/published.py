"""Published data sets: downloaded, checked, converted, listed in a catalogue of one's own.

``catalogs/*.yaml`` describe them. An entry whose file must be downloaded says so in its metadata, under
``download``: ``bytes`` and ``hash`` where the source prints them, and ``member`` where the file is one of
a zip archive.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch
import requests
from tqdm.auto import tqdm

from mrhdata._runtime.atomic import appearing
from mrhdata.datasets import catalog
from mrhdata.datasets.validation import load
from mrhdata.errors import CatalogError, DataError
from mrhdata.io.conversion import convert

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

_TRIES = 5
#: Before the second try; twice as long before each that follows.
_PAUSE_S = 1.0
_TIMEOUT_S = 60
#: Answers of 400 to 499 that may be others a moment later; the rest are final.
_PASSING = (requests.codes.request_timeout, requests.codes.too_many_requests)
#: Small, because a part that breaks off in the middle is not kept.
_PART_BYTES = 64_000


def published(folder: str | os.PathLike[str] | None = None) -> dict[str, dict[str, Any]]:
    """Entries of the catalogues of published data, by name: ``args`` and ``metadata``.

    Parameters
    ----------
    folder : path, optional
        Of catalogues; those that come with the package by default.

    Examples
    --------
    >>> published()["ccfv3-template-25um"]["metadata"]["modality"]
    'histology'
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(folder) if folder is not None else _shipped()).glob("public*.yaml")):
        catalog.check(path)
        for name, entry in load(str(path), {})["sources"].items():
            found[str(name)] = {"args": {}, "metadata": {}, **entry}
    return found


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
        Of an entry of :func:`published`.
    into : path, optional
        Folder of the stores and of their ``catalog.yaml``; by default ``$MRHDATA_DATA``, or
        ``mrhdata`` in the user's cache.
    progress : bool
        Show bytes per second and the time left.
    entries : mapping, optional
        To choose from, instead of :func:`published`.

    Returns
    -------
    volume : xarray.DataArray
        Of the local store. Downloads that broke off, and conversions, go on where they were.

    Raises
    ------
    CatalogError
        There is no such entry, or its data may not be fetched by a program: the message says why.
    DataError
        The server fails, or sends other bytes than it should; nothing of them is kept.
    """
    known = published() if entries is None else entries
    if name not in known:
        raise CatalogError(f"there is no published volume {name!r}; there are {', '.join(sorted(known))}")
    entry = known[name]
    held, args = dict(entry["metadata"]), dict(entry["args"])
    if "restricted" in held:
        raise CatalogError(f"{name} cannot be fetched: {held['restricted']}")
    home = Path(into or os.environ.get("MRHDATA_DATA") or pooch.os_cache("mrhdata"))
    home.mkdir(parents=True, exist_ok=True)
    store = home / f"{name}.zarr"
    if not store.exists():
        url = args.pop("urlpath")
        source = _download(url, held.get("download", {}), home, progress) if "download" in held else url
        convert(source, store, progress=progress, **args)
    return _listed(home, name, store, held)


def _shipped() -> Path:
    here = Path(__file__).parent
    return here / "catalogs" if (here / "catalogs").is_dir() else here.parents[1] / "catalogs"


def _listed(home: Path, name: str, store: Path, held: dict[str, Any]) -> xr.DataArray:
    """Add a store that is complete to the catalogue of the folder."""
    path = home / "catalog.yaml"
    sources = load(str(path), {})["sources"] if path.exists() else {}
    kept = {n: (Path(e["args"]["urlpath"]).name, e["metadata"]) for n, e in sources.items()}
    catalog.write(path, "Published volumes, fetched", {**kept, name: (store.name, held)})
    return catalog.open_catalog(path)[name].to_dask()


def _download(url: str, about: Mapping[str, Any], home: Path, progress: bool) -> Path:
    """The file of a URL in the downloads folder, complete and checked."""
    folder = home / "downloads"
    name = str(about.get("name") or url.partition("?")[0].rstrip("/").rpartition("/")[2])
    size = about.get("bytes")

    def resuming(address: str, target: str, _: Any) -> None:
        _resume(address, Path(target), folder / f".{name}.part", size, progress)

    try:
        path = Path(pooch.retrieve(url, known_hash=about.get("hash"), fname=name, path=folder, downloader=resuming))
    except ValueError as error:
        raise DataError(
            f"{url}: the bytes are not those that were published ({' '.join(str(error).split())[:300]})"
        ) from error
    return _member(path, str(about["member"])) if "member" in about else path


def _resume(url: str, target: Path, part: Path, size: int | None, progress: bool) -> None:
    """Download to `part`, going on behind what is there, and move it to `target` when it is complete."""
    last: Exception | None = None
    for attempt in range(_TRIES):
        if attempt:
            log.info("%s: %s; trying again", url, last)
            time.sleep(2 ** (attempt - 1) * _PAUSE_S)
        try:
            total = _request(url, part, progress)
        except (requests.RequestException, OSError) as error:
            if _final(error):
                raise DataError(f"{url} cannot be downloaded ({error}); check its address in the catalogue") from error
            last = error
            continue
        expected = size or total
        there = part.stat().st_size
        if expected is not None and there != expected:
            part.unlink()
            raise DataError(f"{url} sent {there} bytes instead of {expected}; it is another file than was published")
        os.replace(part, target)
        return
    raise DataError(f"{url} cannot be downloaded ({last}); run it again and it goes on where it is") from last


def _final(error: Exception) -> bool:
    """Whether a server said that the file is not to be had."""
    response = error.response if isinstance(error, requests.HTTPError) else None
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in _PASSING


def _request(url: str, part: Path, progress: bool) -> int | None:
    """One try. Returns the size that the server states, if it does."""
    there = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={there}-", "Accept-Encoding": "identity"} if there else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and there:
            stated = response.headers.get("Content-Range", "").rpartition("/")[2]
            if stated == str(there):
                return there
            part.unlink()
            raise requests.RequestException("the part that is there does not fit; beginning again")
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        length = response.headers.get("Content-Length")
        total = int(length) + (there if resumed else 0) if length is not None else None
        # A server without Range sends everything again.
        with part.open("ab" if resumed else "wb") as file:
            bar = tqdm(
                total=total,
                initial=there if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=not progress,
                desc=part.name,
            )
            with bar:
                for chunk in response.iter_content(_PART_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")
    return total


def _member(archive: Path, name: str) -> Path:
    """One file of a zip archive, beside it; nothing else is unpacked."""
    target = archive.with_name(Path(name).name)
    if target.exists():
        return target
    try:
        with zipfile.ZipFile(archive) as held, appearing(target) as draft:
            _copy(held, name, draft)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name} is no zip archive that holds {name} ({error})") from error
    return target


def _copy(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    with archive.open(name) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _PART_BYTES)
