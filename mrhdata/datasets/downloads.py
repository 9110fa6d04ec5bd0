"""Downloads that resume, and archives that are unpacked member by member.

A part of a file is continued only if the server states that the file is still the same one (its ETag or date), or if
the published hash will show it. Whatever is refused is removed, so that the next run asks the server again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests
import urllib3
from tqdm.auto import tqdm

from mrhdata._runtime.atomic import atomic_write, remove
from mrhdata._runtime.locks import locked
from mrhdata.datasets.addresses import check_address
from mrhdata.errors import CatalogError, DataError, MrhdataError

log = logging.getLogger("mrhdata")

_ATTEMPTS = 5
#: Pause before the second attempt; it doubles before each further one.
_PAUSE_S = 1.0
_TIMEOUT_S = 60
#: Status codes from 400 to 499 that are worth another attempt; the others are final.
_TEMPORARY_ERRORS = (requests.codes.request_timeout, requests.codes.too_many_requests)
#: Small, because a block is lost if the connection drops in the middle of it.
_BLOCK_BYTES = 64_000
#: Bytes of a file whose size neither the catalogue nor the server states.
_MAX_BYTES = 100_000_000_000
#: Characters of a number in a header.
_NUMBER = r"\d{1,18}"
_CONTENT_RANGE = re.compile(rf"bytes (?:({_NUMBER})-{_NUMBER}|\*)/({_NUMBER}|\*)")
_HASHES = ("md5", "sha1", "sha256", "sha512")
#: Bounds of a member of an archive: its bytes, and its size relative to its compressed form.
_MAX_MEMBER_BYTES, _MAX_RATIO = 1_000_000_000, 200


@dataclass(frozen=True)
class PublishedFile:
    """A file to download, as the catalogue describes it.

    Attributes
    ----------
    url, name : str
        Address, and name on the disk.
    size : int or None
        Number of bytes.
    hash : str or None
        Hash, such as ``"md5:..."``; SHA-256 if it names no algorithm.
    """

    url: str
    name: str
    size: int | None = None
    hash: str | None = None

    def check(self, path: Path) -> None:
        """Raise `DataError` if a downloaded file has another size or hash."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            raise DataError(f"{self.url} differs from the published file: it has {size} bytes instead of {self.size}")
        if self.hash is None:
            return
        algorithm, _, digest = self.hash.rpartition(":")
        actual = pooch.file_hash(str(path), alg=algorithm or "sha256")
        if actual.lower() != digest.lower():
            raise DataError(
                f"{self.url} differs from the published file: its {algorithm or 'sha256'} is {actual[:16]} instead of "
                f"{digest[:16]}"
            )


def published_file(url: str, download: Mapping[str, Any]) -> PublishedFile:
    """Return the file of an entry's metadata ``download``.

    Raises
    ------
    CatalogError
        If the address, the name, the size or the hash cannot be one.

    Examples
    --------
    >>> published_file("https://example.org/a.nii?v=2", {"bytes": 352})
    PublishedFile(url='https://example.org/a.nii?v=2', name='a.nii', size=352, hash=None)
    """
    if not url.startswith(("http://", "https://")):
        raise CatalogError(f"the address of a download must begin with http:// or https://; got {url!r}")
    check_address("the address of a download", url)
    name = str(download.get("name") or re.split(r"[?#]", url)[0].rstrip("/").rpartition("/")[2])
    if not re.fullmatch(r"\w[^/\\\x00-\x1f]{0,200}", name):
        raise CatalogError(f"the name of a download must be one file name; got {name!r}. Correct download.name")
    size, known_hash = download.get("bytes"), download.get("hash")
    if size is not None and (type(size) is not int or size < 0):
        raise CatalogError(f"download.bytes of {url} must be a whole number; got {size!r}")
    if known_hash is not None and not re.fullmatch(rf"(({'|'.join(_HASHES)}):)?[0-9a-fA-F]+", str(known_hash)):
        raise CatalogError(f"download.hash of {url} must be md5:... or sha256:...; got {known_hash!r}")
    return PublishedFile(url, name, size, None if known_hash is None else str(known_hash))


def download(file: PublishedFile, folder: Path, progress: bool) -> Path:
    """Return the path of a file in a folder, downloaded and checked. A second process waits for the first.

    Raises
    ------
    DataError
        If the server fails, or sends another file than published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name
    with locked(target):
        if target.exists() and _is_as_published(file, target):
            return target
        part = _Part(folder / f".{file.name}.part", file)
        _receive(file, part, progress)
        remove(_members_folder(target))
        os.replace(part.path, target)
        part.remove()
    return target


def _is_as_published(file: PublishedFile, path: Path) -> bool:
    try:
        file.check(path)
    except DataError as error:
        log.warning("%s; downloading it again", error)
        remove(path)
        return False
    return True


class _Part:
    """The part of a file that was received, and a note of the version that it belongs to."""

    def __init__(self, path: Path, file: PublishedFile) -> None:
        self.path, self._note, self._file = path, path.with_name(path.name + ".json"), file

    def size_and_version(self) -> tuple[int, str | None]:
        """Return the bytes that may be continued and the version that they belong to."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            same = note["url"] == self._file.url and (note["version"] is not None or self._file.hash is not None)
            version = None if note["version"] is None else str(note["version"])
            return (self.path.stat().st_size, version) if same else (0, None)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return 0, None

    def begin(self, version: str | None) -> None:
        """Start again with a version of the file."""
        self.remove()
        self._note.write_text(json.dumps({"url": self._file.url, "version": version}), encoding="utf-8")

    def remove(self) -> None:
        """Remove the part and its note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _receive(file: PublishedFile, part: _Part, progress: bool) -> None:
    """Request a file until the part is complete and as published."""
    last_error: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            log.info("%s: %s; trying again", file.url, last_error)
            time.sleep(2 ** (attempt - 1) * _PAUSE_S)
        resumed = part.size_and_version()[0] > 0
        try:
            _request(file, part, progress)
            file.check(part.path)
        except DataError as error:
            part.remove()
            if not resumed:
                raise
            last_error = error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _is_final(error):
                raise DataError(
                    f"{file.url} cannot be downloaded ({_short(error)}); check its address in the catalogue"
                ) from error
            last_error = error
        except OSError as error:
            raise DataError(f"{part.path} cannot be written ({error.strerror}); free disk space") from error
        else:
            return
    if isinstance(last_error, DataError):
        raise last_error
    raise DataError(f"{file.url} cannot be downloaded ({_short(last_error)}); run it again to resume") from last_error


def _is_final(error: Exception) -> bool:
    """Return whether the server refused the file for good, or the address cannot be one."""
    if isinstance(error, ValueError | requests.TooManyRedirects):
        return True
    response = error.response if isinstance(error, requests.HTTPError) else None
    return response is not None and 400 <= response.status_code < 500 and response.status_code not in _TEMPORARY_ERRORS


def _request(file: PublishedFile, part: _Part, progress: bool) -> None:
    """Request the missing bytes once; return when the part is complete."""
    present, version = part.size_and_version()
    headers = {"Accept-Encoding": "identity"}
    if present:
        headers |= {"Range": f"bytes={present}-"} | ({"If-Range": version} if version is not None else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and present:
            if _range_of(response)[1] == present:
                return
            part.remove()
            raise requests.RequestException("the partial file is larger than the published one; starting again")
        response.raise_for_status()
        _check_redirects(file, response)
        resumed = response.status_code == requests.codes.partial_content
        if resumed and not _continues(response, present, version):
            part.remove()
            raise requests.RequestException("the server continues another file; starting again")
        if not resumed:
            _check_answer(file, response)
            part.begin(_version_of(response))
        first = present if resumed else 0
        length = _whole_number(response.headers.get("Content-Length"))
        total = None if length is None else first + length
        if file.size is not None and total is not None and total != file.size:
            raise DataError(f"{file.url} differs from the published file: {total} bytes instead of {file.size}")
        _store(file, part.path, response, first, total, progress)


def _store(
    file: PublishedFile, path: Path, response: requests.Response, first: int, total: int | None, progress: bool
) -> None:
    """Append the body of an answer to a part, until it is complete or longer than stated."""
    expected = file.size if file.size is not None else total
    limit = _MAX_BYTES if expected is None else expected
    received = first
    bar = tqdm(total=expected, initial=first, unit="B", unit_scale=True, disable=not progress, desc=file.name)
    with path.open("ab" if first else "wb") as out, bar:
        for block in _blocks(file, response, first):
            received += len(block)
            if received > limit:
                raise DataError(f"{file.url} differs from the published file: it is longer than {limit} bytes")
            out.write(block)
            bar.update(len(block))
    if expected is not None and received < expected:
        raise requests.ConnectionError(f"the connection ended after {received} of {expected} bytes")


def _blocks(file: PublishedFile, response: requests.Response, first: int) -> Iterator[bytes]:
    """Yield the bytes that were sent, not unpacked; raise `DataError` for a web page."""
    for number, block in enumerate(response.raw.stream(_BLOCK_BYTES, decode_content=False)):
        if (
            number == 0
            and first == 0
            and re.match(rb"\s*(<!doctype html|<html|<head|<body)", block[:512], re.IGNORECASE)
        ):
            raise _web_page(file)
        yield block


def _check_answer(file: PublishedFile, response: requests.Response) -> None:
    """Raise `DataError` if a whole answer is a web page or no answer with content."""
    if response.status_code != requests.codes.ok:
        raise DataError(f"{file.url} cannot be downloaded (status {response.status_code}); check its address")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise _web_page(file)


def _web_page(file: PublishedFile) -> DataError:
    return DataError(
        f"{file.url} cannot be downloaded: the server sends a web page in place of the file, for example a page to log "
        "in. Open the address in a browser"
    )


def _check_redirects(file: PublishedFile, response: requests.Response) -> None:
    """Raise `DataError` if a file without a published hash was redirected from https to http."""
    schemes = [answer.url.partition("://")[0] for answer in (*response.history, response)]
    if file.hash is None and "https" in schemes and schemes[-1] != "https":
        raise DataError(f"{file.url} is redirected from https to {response.url}, which anybody could change on its way")


def _continues(response: requests.Response, present: int, version: str | None) -> bool:
    """Return whether a partial answer begins where the part ends, in the same version of the file."""
    first, total = _range_of(response)
    stated = _version_of(response)
    same_version = version is None or stated is None or stated == version
    return bool(present) and first == present and same_version and (total is None or total > present)


def _range_of(response: requests.Response) -> tuple[int | None, int | None]:
    """Return the first byte and the total size of ``Content-Range``."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return (_whole_number(match[1]), _whole_number(match[2])) if match else (None, None)


def _version_of(response: requests.Response) -> str | None:
    """Return what identifies the version of a file: its strong ETag, or the date of its last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(_NUMBER, text, re.ASCII) else None


def _members_folder(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.members")


def extract_member(archive: Path, member: str) -> Path:
    """Extract one file of a zip archive, and nothing else, into a folder next to the archive.

    Raises
    ------
    CatalogError
        If the name leads out of the archive.
    DataError
        If the archive is damaged, encrypted or has no such file, or if the file is far larger than its compressed form.
    """
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or re.search(r"[\\:\x00-\x1f]", member) or not name.name:
        raise CatalogError(f"download.member must be the path of a file within the archive; got {member!r}")
    target = _members_folder(archive) / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened, atomic_write(target) as draft:
            _check_member(archive, opened.getinfo(member))
            with opened.open(member) as source, draft.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK_BYTES)
    except MrhdataError:
        raise
    except Exception as error:
        # zipfile and its decompressors have a dozen of exceptions for damaged archives.
        raise DataError(f"{archive.name} must be a zip archive that holds {member} ({_short(error)})") from error
    return target


def _check_member(archive: Path, info: zipfile.ZipInfo) -> None:
    """Raise `DataError` for folders, links, encrypted members and sizes that a volume does not have."""
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{info.filename} of {archive.name} must be a file; got a folder or a link")
    if info.flag_bits & 1:
        raise DataError(f"{info.filename} of {archive.name} is encrypted; extract it by hand")
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > _MAX_MEMBER_BYTES and ratio > _MAX_RATIO:
        raise DataError(
            f"{info.filename} of {archive.name} is {ratio:.0f} times larger than in the archive; is it data?"
        )
    if info.file_size > shutil.disk_usage(archive.parent).free:
        raise DataError(f"{info.filename} of {archive.name} needs {info.file_size} bytes; free disk space")


def _short(error: Exception | None) -> str:
    return " ".join(str(error).split())[:300]
