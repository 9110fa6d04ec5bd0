"""Check that a catalogue only describes data and cannot run code.

intake treats a catalogue as code: opening one can import modules, and a template in an entry can run commands.
The check parses the YAML safely, before intake opens it, and accepts descriptions of data only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from mrhdata.errors import CatalogError

#: Drivers that only read data.
DRIVERS = ("mrh_volume", "zarr", "ndzarr", "yaml_file_cat")

#: The only template allowed in entries; intake's others can run code and read the environment.
TEMPLATE = re.compile(r"\{\{ ?CATALOG_DIR ?\}\}")

#: Protocols of remote data. Others of fsspec unpack archives, follow references or open shells.
_PROTOCOLS = ("http", "https", "s3")
_STORAGE_OPTIONS = {"anon": bool, "endpoint_url": str, "client_kwargs": dict}
_CLIENT_KWARGS = ("region_name", "endpoint_url")
_MAX_BYTES = 20_000_000
_MAX_CATALOGUES = 1000


def check(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise `CatalogError` unless a catalogue and all nested ones only describe data.

    The check refuses YAML tags and aliases, plugins, drivers other than `DRIVERS`, user parameters, templates
    other than ``{{ CATALOG_DIR }}``, protocols other than ``http``, ``https`` and ``s3``, and local paths in a
    remote catalogue.

    Parameters
    ----------
    uri : path or URL
    storage_options : dict, optional
        Options of fsspec for a URL, such as ``{"anon": True}``.
    """
    _check(os.fspath(uri), dict(storage_options or {}), seen=set())


def _check(uri: str, options: dict[str, Any], seen: set[str]) -> None:
    location = uri if "://" in uri else os.path.realpath(uri)
    if location in seen:
        return
    seen.add(location)
    if len(seen) > _MAX_CATALOGUES:
        raise CatalogError(f"{uri} nests more than {_MAX_CATALOGUES} catalogues; open a nested one instead")
    content = load(uri, options)
    if set(content) - {"metadata", "sources"}:
        extra = sorted(map(str, set(content) - {"metadata", "sources"}))
        raise CatalogError(f"{uri}: sections {extra} may run code; remove them")
    _check_strings(uri, "metadata", content.get("metadata"))
    sources = content.get("sources")
    if not isinstance(sources, Mapping):
        raise CatalogError(f"{uri} is not a catalogue: it has no mapping called sources")
    for name, entry in sources.items():
        _check_entry(uri, str(name), entry)
        if entry["driver"] == "yaml_file_cat":
            nested = str(entry.get("args", {}).get("path", ""))
            _check(resolve(nested, uri), options, seen)


def resolve(path: str, catalogue: str) -> str:
    """Replace ``{{ CATALOG_DIR }}`` in a path by the folder of the catalogue."""
    folder = catalogue.rpartition("/")[0] if "://" in catalogue else os.path.dirname(os.path.abspath(catalogue))
    return TEMPLATE.sub(lambda _: folder, path)


def load(uri: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a catalogue, parsed as safe YAML."""
    text = _read_text(uri, storage_options)
    try:
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CatalogError(f"{uri} is not plain YAML ({' '.join(str(error).split())[:200]})") from error
    if aliased:
        # A few nested aliases can expand to billions of values.
        raise CatalogError(f"{uri} uses YAML aliases; write each entry out")
    if not isinstance(content, dict):
        raise CatalogError(f"{uri} must be a mapping with metadata and sources; got {type(content).__name__}")
    return content


def _read_text(uri: str, storage_options: Mapping[str, Any]) -> str:
    try:
        if "://" in uri:
            _check_protocol("the catalogue", uri)
            import fsspec

            with fsspec.open(uri, "rb", **storage_options) as file:
                content: bytes = file.read(_MAX_BYTES + 1)
        else:
            with open(uri, "rb") as file:
                content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise CatalogError(f"the catalogue {uri} does not exist; check the path") from error
    except CatalogError:
        raise
    except Exception as error:
        # Each file system of fsspec has its own exceptions.
        raise CatalogError(f"the catalogue {uri} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if len(content) > _MAX_BYTES:
        raise CatalogError(f"{uri} is not a catalogue: it is larger than {_MAX_BYTES // 1_000_000} MB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{uri} is not plain YAML (it is not UTF-8 text)") from error


def _check_entry(uri: str, name: str, entry: Any) -> None:
    label = f"{uri}, entry {name!r}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args", {}), Mapping):
        raise CatalogError(f"{label} must be a mapping with driver and args")
    if set(entry) - {"driver", "args", "description", "metadata"}:
        extra = sorted(map(str, set(entry) - {"driver", "args", "description", "metadata"}))
        raise CatalogError(f"{label} must have driver, args, description and metadata only; got {extra}")
    if entry.get("driver") not in DRIVERS:
        raise CatalogError(f"driver of {label} must be one of {', '.join(DRIVERS)}; got {entry.get('driver')!r}")
    if not isinstance(entry.get("metadata", {}), Mapping):
        raise CatalogError(f"metadata of {label} must be a mapping; got {type(entry['metadata']).__name__}")
    _check_strings(uri, name, entry)
    args = entry.get("args", {})
    _check_storage_options(label, args.get("storage_options"))
    for key in ("urlpath", "path"):
        if key in args:
            _check_path(uri, label, args[key])


def _check_path(uri: str, label: str, path: Any) -> None:
    if not isinstance(path, str):
        raise CatalogError(f"path of {label} must be one string; got {path!r}")
    target = resolve(path, uri)
    if "::" in target:
        raise CatalogError(f"{label}: {path!r} chains protocols; write a plain path or URL")
    if "://" in target:
        _check_protocol(label, target)
    if "://" in uri and ("://" not in target or ".." in target.split("/")):
        raise CatalogError(
            f"{label}: {path!r} leads out of the server of the catalogue; write a full URL, or a path below "
            "{{ CATALOG_DIR }}"
        )


def _check_protocol(label: str, target: str) -> None:
    if target.partition("://")[0] not in _PROTOCOLS or "::" in target:
        raise CatalogError(f"{label} must be a path, or a URL of {', '.join(_PROTOCOLS)}; got {target!r}")


def _check_storage_options(label: str, options: Any) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping) or any(
        key not in _STORAGE_OPTIONS or not isinstance(value, _STORAGE_OPTIONS[key]) for key, value in options.items()
    ):
        raise CatalogError(f"storage_options of {label} must be among {', '.join(_STORAGE_OPTIONS)}; got {options}")
    if set(options.get("client_kwargs", {})) - set(_CLIENT_KWARGS):
        raise CatalogError(
            f"client_kwargs of {label} must be among {', '.join(_CLIENT_KWARGS)}; got {options['client_kwargs']}"
        )


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
