"""Addresses in catalogues: which protocols are read, and which hosts a remote catalogue may name."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import unicodedata
from urllib.parse import unquote, urlsplit

from mrhdata.errors import CatalogError

#: Protocols of remote data. Others of fsspec unpack archives, follow references or open shells.
PROTOCOLS = ("http", "https", "s3")

#: The only template allowed in entries; intake's others can run code and read the environment.
TEMPLATE = re.compile(r"\{\{ ?CATALOG_DIR ?\}\}")

#: Reserved names -> kind of host. Data centres serve the keys of their machines at the second.
_RESERVED = {
    r"(.*\.)?(localhost|localdomain)": "loopback",
    r"metadata\.google\.internal": "link-local",
    r"(.*\.)?(internal|local|lan)": "private",
}


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def folder_of(catalogue: str) -> str:
    """Return the folder of a catalogue, without a slash at its end.

    Examples
    --------
    >>> folder_of("https://example.org/study/catalog.yaml?version=2")
    'https://example.org/study'
    """
    if is_remote(catalogue):
        return re.split(r"[?#]", catalogue)[0].rpartition("/")[0]
    return os.path.dirname(os.path.abspath(catalogue))


def resolve(path: str, catalogue: str) -> str:
    """Replace ``{{ CATALOG_DIR }}`` in a path by the folder of the catalogue."""
    return TEMPLATE.sub(lambda _: folder_of(catalogue), path)


def check_address(label: str, address: str) -> None:
    """Raise `CatalogError` unless a URL has a known protocol, one host and no name or password.

    Examples
    --------
    >>> check_address("entry 'a'", "ftp://example.org/a.zarr")
    Traceback (most recent call last):
    mrhdata.errors.CatalogError: entry 'a' must be a path, or a URL of http, https, s3; got 'ftp://example.org/a.zarr'
    """
    if address.partition("://")[0] not in PROTOCOLS or "::" in address:
        raise CatalogError(f"{label} must be a path, or a URL of {', '.join(PROTOCOLS)}; got {address!r}")
    if re.search(r"[\x00-\x1f\x7f\\]", address) or not host_of(address) or "@" in _netloc(address):
        raise CatalogError(f"{label} must be a URL with one host, without name or password; got {address!r}")
    if not address.startswith("s3://") and _kind_of_host(host_of(address)) == "link-local":
        raise CatalogError(f"{label}: {address!r} is an address of the machine's own network; remove it")


def check_within(label: str, address: str, catalogue: str) -> None:
    """Raise `CatalogError` unless an address in a remote catalogue is a public URL, or one of the catalogue's host."""
    if not is_remote(address) or ".." in unquote(address).split("/"):
        raise CatalogError(
            f"{label}: {address!r} leads out of the server of the catalogue; write a full URL, or a path below "
            "{{ CATALOG_DIR }}"
        )
    check_host(label, address, catalogue)


def check_host(label: str, address: str, catalogue: str) -> None:
    """Raise `CatalogError` if a remote catalogue names this machine or a private network, unless it lies there."""
    if address.startswith("s3://"):
        return
    kind, own = _kind_of_host(host_of(address)), host_of(catalogue)
    from_private = not catalogue.startswith("s3://") and _kind_of_host(own) in ("private", "loopback")
    if host_of(address) == own or kind == "public" or (kind == "private" and from_private):
        return
    raise CatalogError(
        f"{label}: {address!r} leads into a {kind} network; save the catalogue to a file if you trust the address"
    )


def host_of(address: str) -> str:
    """Return the host of a URL in lower case, or an empty string.

    Examples
    --------
    >>> host_of("https://Example.org:8080/a.zarr")
    'example.org'
    """
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return ""
    return unicodedata.normalize("NFKC", host).lower().rstrip(".")


def _netloc(address: str) -> str:
    return address.partition("://")[2].partition("/")[0]


def _kind_of_host(host: str) -> str:
    """Return whether a host is public, private, loopback or link-local; names are public unless they are reserved.

    Examples
    --------
    >>> [_kind_of_host(host) for host in ("example.org", "localhost", "127.1", "2852039166", "10.0.0.1", "fe80::1")]
    ['public', 'loopback', 'loopback', 'link-local', 'private', 'link-local']
    """
    for pattern, kind in _RESERVED.items():
        if re.fullmatch(pattern, host):
            return kind
    ip = _ip_of(host)
    if ip is None:
        return "public"
    if ip.is_link_local:
        return "link-local"
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    return "public" if ip.is_global else "private"


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is written as, or None for a name."""
    try:
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            # The C library also reads 127.1, 0x7f000001 and 2130706433 as addresses.
            ip = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return ip if mapped is None else mapped
