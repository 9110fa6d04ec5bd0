"""Check that a catalogue only describes data and cannot run code.

intake treats a catalogue as code: opening one can import modules, and a template or a parameter in an entry can run
commands. Here each catalogue is read once and parsed safely; sections, drivers, their arguments and addresses must be
among those that only describe data. What was checked is handed on to intake, which reads nothing itself.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mrhdata.datasets.addresses import TEMPLATE, check_address, check_host, check_within, host_of, is_remote, resolve
from mrhdata.datasets.documents import MAX_BYTES, parse, read_text
from mrhdata.datasets.drivers import DRIVERS, NESTED
from mrhdata.errors import CatalogError

_STORAGE_OPTIONS = {"anon": bool, "endpoint_url": str, "client_kwargs": dict}
_CLIENT_KWARGS = ("region_name", "endpoint_url")
#: Metadata in which intake looks for parameters, whose defaults can run commands, and for code to import.
_CODE = ("parameters", "user_parameters", "plugins", "getshell", "getenv")
#: Version of catalogues that intake reads as descriptions; it reads a version 2 as code.
_VERSION = 1
_MAX_CATALOGUES = 1000
MAX_NESTING = 20
_MAX_TOTAL_BYTES = 5 * MAX_BYTES


@dataclass(frozen=True)
class Entry:
    """A checked entry.

    Attributes
    ----------
    driver, description : str
    args : dict
        Arguments of the driver, with the folder of the catalogue in place of ``{{ CATALOG_DIR }}``.
    metadata : dict
    """

    driver: str
    description: str
    args: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """Checked content of one catalogue, as it was read.

    Attributes
    ----------
    uri : str
    storage_options : dict
        Options with which it was read.
    metadata : dict
    entries : dict of str to Entry
    """

    uri: str
    storage_options: dict[str, Any]
    metadata: dict[str, Any]
    entries: dict[str, Entry]


def check(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise `CatalogError` unless a catalogue and all nested ones only describe data.

    The check accepts lists of what is allowed: sections, drivers, the arguments of each driver and their types, one
    template (``{{ CATALOG_DIR }}``), and the protocols ``http``, ``https`` and ``s3``. It refuses YAML tags and
    aliases, and local paths and private addresses in a remote catalogue.

    Parameters
    ----------
    uri : path or URL
    storage_options : dict, optional
        Options of fsspec for a URL, such as ``{"anon": True}``.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "c.yaml"
    >>> _ = path.write_text("sources: {a: {driver: os.system, args: {urlpath: x}}}")
    >>> try:
    ...     check(path)
    ... except CatalogError as error:
    ...     print(str(error).removeprefix(f"driver of {path}, "))
    entry 'a' must be one of mrh_volume, zarr, ndzarr, yaml_file_cat; got 'os.system'
    """
    read_catalogs(uri, storage_options)


def read_catalogs(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> dict[str, Contents]:
    """Read a catalogue and all nested ones once and return their checked contents by location, this one first."""
    contents: dict[str, Contents] = {}
    waiting = deque([(os.fspath(uri), dict(storage_options or {}), 0)])
    bytes_left = _MAX_TOTAL_BYTES
    while waiting:
        address, options, depth = waiting.popleft()
        if location(address) in contents:
            continue
        if len(contents) == _MAX_CATALOGUES or depth > MAX_NESTING:
            limit = f"{_MAX_CATALOGUES} catalogues, or {MAX_NESTING} within each other"
            raise CatalogError(f"{uri} nests more than {limit}; open a nested one instead")
        text = read_text(address, options, bytes_left)
        bytes_left -= len(text)
        checked = check_content(parse(text, address), address, options)
        contents[location(address)] = checked
        nested = [entry.args["path"] for entry in checked.entries.values() if entry.driver == NESTED]
        waiting += [(path, _options_for(path, checked), depth + 1) for path in nested]
    return contents


def location(uri: str) -> str:
    """Return one spelling of the address of a catalogue."""
    return uri if is_remote(uri) else os.path.abspath(uri)


def check_content(content: Mapping[str, Any], uri: str, storage_options: Mapping[str, Any]) -> Contents:
    """Return the checked content of a catalogue that was parsed already."""
    extra = set(content) - {"metadata", "sources"}
    if extra:
        raise CatalogError(f"{uri}: sections {sorted(map(str, extra))} may run code; remove them")
    metadata, sources = content.get("metadata") or {}, content.get("sources")
    _check_strings(uri, "metadata", metadata)
    _check_metadata(f"metadata of {uri}", metadata)
    version = metadata.get("version", _VERSION)
    if type(version) is not int or version != _VERSION:
        raise CatalogError(f"metadata of {uri} must have version {_VERSION}; got {version!r}")
    if not isinstance(sources, Mapping):
        raise CatalogError(
            f"{uri} is not a catalogue: it has no mapping called sources. Write it with mrhdata catalog build"
        )
    checked = Contents(uri, dict(storage_options), dict(metadata), {})
    for name, entry in sources.items():
        if not isinstance(name, str) or not name:
            raise CatalogError(f"{uri}: names of entries must be text; got {name!r}. Write it in quotes")
        _check_strings(uri, name, [name, entry])
        checked.entries[name] = _checked_entry(checked, name, entry)
    return checked


def _checked_entry(catalogue: Contents, name: str, entry: Any) -> Entry:
    label = f"{catalogue.uri}, entry {name!r}"
    if not isinstance(entry, Mapping):
        raise CatalogError(f"{label} must be a mapping with driver and args")
    if set(entry) - {"driver", "args", "description", "metadata"}:
        extra = sorted(map(str, set(entry) - {"driver", "args", "description", "metadata"}))
        raise CatalogError(f"{label} must have driver, args, description and metadata only; got {extra}")
    driver = entry.get("driver")
    if not isinstance(driver, str) or driver not in DRIVERS:
        raise CatalogError(f"driver of {label} must be one of {', '.join(DRIVERS)}; got {driver!r}")
    description, args = entry.get("description") or "", entry.get("args")
    if not isinstance(description, str):
        raise CatalogError(f"description of {label} must be text; got {type(description).__name__}")
    metadata = entry.get("metadata") or {}
    _check_metadata(f"metadata of {label}", metadata)
    if not isinstance(args, Mapping):
        raise CatalogError(f"{label} must be a mapping with driver and args")
    return Entry(driver, description, _checked_args(catalogue, label, driver, args), dict(metadata))


def _check_metadata(label: str, metadata: Any) -> None:
    if not isinstance(metadata, Mapping):
        raise CatalogError(f"{label} must be a mapping; got {type(metadata).__name__}")
    code = sorted(str(key) for key in metadata if key in _CODE)
    if code:
        raise CatalogError(f"{label}: {code} may run code in intake; remove or rename them")


def _checked_args(catalogue: Contents, label: str, driver: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a driver, checked by its list, with a full path and the options to read it."""
    rules = DRIVERS[driver]
    path_key = "path" if driver == NESTED else "urlpath"
    if set(args) - set(rules):
        extra = sorted(map(str, set(args) - set(rules)))
        raise CatalogError(f"{label}: args of {driver} must be among {', '.join(rules)}; got {extra}")
    if path_key not in args:
        raise CatalogError(f"{label} must have {path_key}, the path of its data")
    for key, value in args.items():
        if value is not None or key == path_key:
            expected, is_valid = rules[key]
            if not is_valid(value):
                raise CatalogError(f"{key} of {label} must be {expected}; got {str(value)[:200]!r}")
    path = _checked_path(catalogue, label, args[path_key])
    resolved = {**args, path_key: location(path) if driver == NESTED else path}
    options = args.get("storage_options")
    if options is not None:
        _check_storage_options(catalogue, label, path, options)
    elif path_key == "urlpath" and is_remote(path) and TEMPLATE.search(args["urlpath"]) and catalogue.storage_options:
        resolved["storage_options"] = catalogue.storage_options
    return resolved


def _checked_path(catalogue: Contents, label: str, path: str) -> str:
    target = resolve(path, catalogue.uri)
    if "::" in target:
        raise CatalogError(f"{label}: {path!r} chains protocols; write a plain path or URL")
    if is_remote(target):
        check_address(label, target)
    if is_remote(catalogue.uri):
        check_within(label, target, catalogue.uri)
    return target


def _check_storage_options(catalogue: Contents, label: str, path: str, options: Mapping[str, Any]) -> None:
    if any(k not in _STORAGE_OPTIONS or not isinstance(v, _STORAGE_OPTIONS[k]) for k, v in options.items()):
        raise CatalogError(f"storage_options of {label} must be among {', '.join(_STORAGE_OPTIONS)}; got {options}")
    client = options.get("client_kwargs", {})
    if any(key not in _CLIENT_KWARGS or not isinstance(value, str) for key, value in client.items()):
        raise CatalogError(f"client_kwargs of {label} must be among {', '.join(_CLIENT_KWARGS)}; got {client}")
    if options and not path.startswith("s3://"):
        raise CatalogError(f"{label}: storage_options are for addresses of s3; got {path!r}. Remove them")
    for endpoint in (options.get("endpoint_url"), client.get("endpoint_url")):
        if endpoint is None:
            continue
        check_address(f"endpoint_url of {label}", endpoint)
        if is_remote(catalogue.uri):
            check_host(f"endpoint_url of {label}", endpoint, _server_of(catalogue))
            if options.get("anon") is not True:
                # Otherwise the keys of the reader would sign requests to a server of the author's choice.
                raise CatalogError(f"storage_options of {label} must have anon: true with an endpoint_url")


def _server_of(catalogue: Contents) -> str:
    """Return the address of the server that a catalogue was read from: for s3 the endpoint that the user passed."""
    options = catalogue.storage_options
    return str(options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url") or catalogue.uri)


def _options_for(path: str, parent: Contents) -> dict[str, Any]:
    """Return the options for a nested catalogue: those of its parent, if it is at the same place."""
    scheme = path.partition("://")[0]
    if not is_remote(path) or scheme != parent.uri.partition("://")[0]:
        return {}
    return parent.storage_options if scheme == "s3" or host_of(path) == host_of(parent.uri) else {}


def _check_strings(uri: str, name: str, value: Any) -> None:
    """Raise `CatalogError` if a string at any depth has a template other than ``{{ CATALOG_DIR }}``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_strings(uri, name, key)
            _check_strings(uri, name, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_strings(uri, name, item)
    elif isinstance(value, str) and re.search(r"\{\{|\{%|\{#", TEMPLATE.sub("", value)):
        raise CatalogError(
            f"{uri}, {name!r}: the template {value!r} may run code; only {{{{ CATALOG_DIR }}}} is allowed"
        )
