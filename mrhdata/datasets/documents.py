"""Text of catalogues: read once, within limits of size, depth and time, and parsed as plain YAML."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin

import yaml

from mrhdata.datasets.addresses import check_address, check_host, host_of, is_remote
from mrhdata.errors import CatalogError

#: Bytes of a catalogue.
MAX_BYTES = 10_000_000
#: Lists and mappings within each other. Work per token grows with this depth, so it is checked first.
_MAX_DEPTH = 50
#: Characters of a number: whole numbers of many digits, and those with base 60, take quadratic time.
_MAX_DIGITS = 100
_TIMEOUT_S = 60
_MAX_REDIRECTS = 5
_BLOCK_BYTES = 64_000
#: Tags of plain values. Other safe ones make sets and bytes, which no catalogue needs.
_TAGS = (
    None,
    "!",
    *(f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")),
)

#: PyYAML's own errors, and those that its constructors let through for values that do not fit their tag.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Loader of plain values that refuses long numbers and repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and (key.tag, str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        if len(node.value) > _MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number has too many digits", node.start_mark)
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _number in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_number}", _Loader.construct_number)


def parse(text: str, uri: str) -> dict[str, Any]:
    """Return the content of a catalogue, parsed as YAML of plain values.

    Raises
    ------
    CatalogError
        If the text is other YAML, uses aliases, or is nested too deeply.

    Examples
    --------
    >>> parse("sources: {a: 1}", "c.yaml")
    {'sources': {'a': 1}}
    """
    try:
        _check_structure(text, uri)
        content = yaml.load(text, Loader=_Loader)
    except CatalogError:
        raise
    except _YAML_ERRORS as error:
        raise CatalogError(f"{uri} is not plain YAML ({_short(error)}). Correct it, or copy it again") from error
    if not isinstance(content, dict):
        raise CatalogError(f"{uri} must be a mapping with metadata and sources; got {type(content).__name__}")
    return content


def _check_structure(text: str, uri: str) -> None:
    """Raise `CatalogError` for aliases, tags and deep nesting, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            # A few nested aliases can expand to billions of values.
            raise CatalogError(f"{uri} uses YAML aliases; write each entry out")
        tag = getattr(event, "tag", None)
        if tag not in _TAGS:
            raise CatalogError(f"{uri} is not plain YAML (it has the tag {tag}); remove the tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise CatalogError(f"{uri} is not a catalogue: it nests more than {_MAX_DEPTH} lists or mappings")


def read_text(uri: str, storage_options: Mapping[str, Any], max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a catalogue, which is read or downloaded once.

    Raises
    ------
    CatalogError
        If the file is missing, larger than `max_bytes`, or not text.
    """
    try:
        content = b"".join(_limited(_blocks(uri, storage_options), uri, min(max_bytes, MAX_BYTES)))
    except FileNotFoundError as error:
        raise CatalogError(f"the catalogue {uri} does not exist; check the path") from error
    except CatalogError:
        raise
    except Exception as error:
        # Each file system of fsspec has its own exceptions.
        raise CatalogError(f"the catalogue {uri} cannot be read ({_short(error)})") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{uri} is not plain YAML (it is not UTF-8 text). Copy it again") from error


def _limited(blocks: Iterator[bytes], uri: str, max_bytes: int) -> Iterator[bytes]:
    size, start = 0, time.monotonic()
    for block in blocks:
        size += len(block)
        if size > max_bytes:
            raise CatalogError(f"{uri} is not a catalogue: it is larger than {max_bytes / 1e6:.3g} MB")
        if time.monotonic() - start > _TIMEOUT_S:
            raise CatalogError(f"the catalogue {uri} takes longer than {_TIMEOUT_S} s to read; try again later")
        yield block


def _blocks(uri: str, storage_options: Mapping[str, Any]) -> Iterator[bytes]:
    if not is_remote(uri):
        with open(uri, "rb") as file:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
        return
    check_address("the catalogue", uri)
    if uri.startswith("s3://"):
        import fsspec

        with fsspec.open(uri, "rb", **storage_options) as file:
            yield file.read(MAX_BYTES + 1)
        return
    yield from _http_blocks(uri, _http_headers(uri, storage_options))


def _http_headers(uri: str, storage_options: Mapping[str, Any]) -> dict[str, str]:
    """Return the request headers among options of fsspec."""
    options = dict(storage_options)
    headers = options.pop("headers", None) or options.pop("client_kwargs", {}).get("headers", {})
    if options:
        raise CatalogError(f"storage_options of {uri} must be headers; got {sorted(options)}")
    return {"Accept-Encoding": "identity", **headers}


def _http_blocks(uri: str, headers: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the body of one answer; redirects are followed here, so that each address is checked."""
    import requests

    address = uri
    for _ in range(_MAX_REDIRECTS + 1):
        own = headers if host_of(address) == host_of(uri) else {"Accept-Encoding": "identity"}
        with requests.get(address, headers=own, stream=True, timeout=_TIMEOUT_S, allow_redirects=False) as response:
            if response.status_code == requests.codes.not_found:
                raise FileNotFoundError(address)
            if not response.is_redirect:
                response.raise_for_status()
                yield from response.iter_content(_BLOCK_BYTES)
                return
            address = _redirected(uri, address, response.headers["Location"])
    raise CatalogError(f"the catalogue {uri} is redirected more than {_MAX_REDIRECTS} times; check its address")


def _redirected(uri: str, address: str, location: str) -> str:
    """Return the address that a server redirects to; a redirect may only lead from http to https."""
    target = urljoin(address, location)
    schemes = (address.partition("://")[0], target.partition("://")[0])
    if schemes[0] != schemes[1] and schemes != ("http", "https"):
        raise CatalogError(f"the catalogue {uri} is redirected from {schemes[0]} to {target!r}; check its address")
    check_address(f"the redirect of {uri}", target)
    check_host(f"the redirect of {uri}", target, uri)
    return target


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
