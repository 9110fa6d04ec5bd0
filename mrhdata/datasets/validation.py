"""What a catalogue may hold: data described, nothing that runs.

A catalogue is code to intake: opening one can import modules, and touching an entry can run commands
out of a template. The check reads the YAML safely, before intake sees it, and lets through only what
describes data.
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

#: The one template that entries may use; intake's others can run code and read the environment.
TEMPLATE = re.compile(r"\{\{ ?CATALOG_DIR ?\}\}")

#: Where data may come from. fsspec's other protocols unpack, run references or open shells.
_PROTOCOLS = ("http", "https", "s3")
_STORAGE_OPTIONS = {"anon": bool, "endpoint_url": str, "client_kwargs": dict}
_CLIENT_KWARGS = ("region_name", "endpoint_url")
_MAX_BYTES = 20_000_000
_MAX_CATALOGUES = 1000


def check(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise `CatalogError` unless a catalogue, and every one nested in it, only describes data.

    Refused are YAML tags and aliases, plugins, drivers other than `DRIVERS`, user parameters, any
    template but ``{{ CATALOG_DIR }}``, protocols other than ``http``, ``https`` and ``s3``, and, in a
    catalogue from elsewhere, local paths.

    Parameters
    ----------
    uri : path or URL
    storage_options : dict, optional
        For a URL, such as ``{"anon": True}``.
    """
    _check(os.fspath(uri), dict(storage_options or {}), seen=set())


def _check(uri: str, options: dict[str, Any], seen: set[str]) -> None:
    place = uri if "://" in uri else os.path.realpath(uri)
    if place in seen:
        return
    seen.add(place)
    if len(seen) > _MAX_CATALOGUES:
        raise CatalogError(f"{uri} nests more than {_MAX_CATALOGUES} catalogues; open one of them alone")
    content = load(uri, options)
    if set(content) - {"metadata", "sources"}:
        extra = sorted(map(str, set(content) - {"metadata", "sources"}))
        raise CatalogError(f"{uri}: sections {extra} may run code; remove them")
    _check_strings(uri, "metadata", content.get("metadata"))
    sources = content.get("sources")
    if not isinstance(sources, Mapping):
        raise CatalogError(f"{uri} has no mapping called sources; it is no catalogue")
    for name, entry in sources.items():
        _check_entry(uri, str(name), entry)
        if entry["driver"] == "yaml_file_cat":
            nested = str(entry.get("args", {}).get("path", ""))
            _check(resolve(nested, uri), options, seen)


def resolve(path: str, catalogue: str) -> str:
    """A path of an entry, with the folder of its catalogue put in."""
    folder = catalogue.rpartition("/")[0] if "://" in catalogue else os.path.dirname(os.path.abspath(catalogue))
    return TEMPLATE.sub(lambda _: folder, path)


def load(uri: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a catalogue, from safe YAML."""
    text = _text(uri, storage_options)
    try:
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CatalogError(f"{uri} is not plain YAML ({' '.join(str(error).split())[:200]})") from error
    if aliased:
        # A few nested aliases stand for billions of values.
        raise CatalogError(f"{uri} uses YAML aliases; write each entry out")
    if not isinstance(content, dict):
        raise CatalogError(f"{uri} holds no mapping; a catalogue has metadata and sources")
    return content


def _text(uri: str, storage_options: Mapping[str, Any]) -> str:
    try:
        if "://" in uri:
            _check_protocol(uri, "the catalogue", uri)
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
        # fsspec's file systems each have exceptions of their own.
        raise CatalogError(f"the catalogue {uri} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if len(content) > _MAX_BYTES:
        raise CatalogError(f"{uri} is larger than {_MAX_BYTES // 1_000_000} MB; it is no catalogue")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{uri} is not plain YAML (it is not UTF-8 text)") from error


def _check_entry(uri: str, name: str, entry: Any) -> None:
    where = f"{uri}, entry {name!r}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args", {}), Mapping):
        raise CatalogError(f"{where} is no mapping with driver and args")
    if set(entry) - {"driver", "args", "description", "metadata"}:
        extra = sorted(map(str, set(entry) - {"driver", "args", "description", "metadata"}))
        raise CatalogError(f"{where} has {extra}; an entry has driver, args, description and metadata only")
    if entry.get("driver") not in DRIVERS:
        raise CatalogError(f"{where} has driver {entry.get('driver')!r}; allowed are {', '.join(DRIVERS)}")
    if not isinstance(entry.get("metadata", {}), Mapping):
        raise CatalogError(f"{where} has metadata that are no mapping")
    _check_strings(uri, name, entry)
    args = entry.get("args", {})
    _check_storage_options(where, args.get("storage_options"))
    for key in ("urlpath", "path"):
        if key in args:
            _check_place(uri, where, args[key])


def _check_place(uri: str, where: str, place: Any) -> None:
    if not isinstance(place, str):
        raise CatalogError(f"{where} has the path {place!r}; give one string")
    target = resolve(place, uri)
    if "::" in target:
        raise CatalogError(f"{where}: {place!r} chains protocols; give a plain path or URL")
    if "://" in target:
        _check_protocol(uri, where, target)
    if "://" in uri and ("://" not in target or ".." in target.split("/")):
        raise CatalogError(
            f"{where}: {place!r} leads out of the catalogue's own server; give a URL below it or another"
        )


def _check_protocol(uri: str, where: str, target: str) -> None:
    if target.partition("://")[0] not in _PROTOCOLS or "::" in target:
        raise CatalogError(f"{where}: {target!r} is not read; a place is a path, or a URL of {', '.join(_PROTOCOLS)}")


def _check_storage_options(where: str, options: Any) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping) or any(
        key not in _STORAGE_OPTIONS or not isinstance(value, _STORAGE_OPTIONS[key]) for key, value in options.items()
    ):
        raise CatalogError(f"{where} has storage_options {options}; allowed are {', '.join(_STORAGE_OPTIONS)}")
    if set(options.get("client_kwargs", {})) - set(_CLIENT_KWARGS):
        raise CatalogError(
            f"{where} has client_kwargs {options['client_kwargs']}; allowed are {', '.join(_CLIENT_KWARGS)}"
        )


def _check_strings(uri: str, name: str, value: Any) -> None:
    """No string anywhere may hold a template."""
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
