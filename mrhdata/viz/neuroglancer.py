"""Read-only HTTP server of OME-Zarr stores on the loopback address, for viewers in the browser.

It sends only files inside its stores. It refuses ``..`` in any spelling, links that lead out of a store, requests
that name another host (as a foreign page would with DNS rebinding), and pages of other origins than the viewer's.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, unquote

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.io import omezarr

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Origin of the viewer, whose pages may read from the server.
VIEWER = "https://neuroglancer-demo.appspot.com"
#: Numbers of more than 18 digits are beyond any file.
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_COPY_BYTES = 1_000_000


class Server(ThreadingHTTPServer):
    """HTTP server of stores at ``http://127.0.0.1:<port>/<name>/``.

    Parameters
    ----------
    stores : mapping of str to path
        Names in the address, and OME-Zarr folders.
    port : int
        Port; 0 selects a free one.
    viewer : str
        Origin of the pages that may read from the server, such as ``https://neuroglancer-demo.appspot.com``.

    Examples
    --------
    >>> import tempfile, urllib.request, mrhdata
    >>> path = tempfile.mkdtemp() + "/a.zarr"
    >>> mrhdata.write(mrhdata.volume.from_array(np.zeros((2, 3, 4)), spacing=(1, 1, 1)), path)
    >>> import threading
    >>> with Server({"a": path}) as server:
    ...     threading.Thread(target=server.serve_forever, daemon=True).start()
    ...     status = urllib.request.urlopen(server.url + "/a/zarr.json").status
    ...     server.shutdown()
    >>> status
    200
    """

    daemon_threads = True

    def __init__(self, stores: Mapping[str, str | os.PathLike[str]], port: int = 0, viewer: str = VIEWER) -> None:
        self.stores = {name: Path(os.path.realpath(path)) for name, path in stores.items()}
        for name, path in self.stores.items():
            omezarr.read(path)
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise FormatError(
                    f"the name of a store must have letters, digits, '.', '_' and '-' only; got {name!r}. Rename it"
                )
        self.viewer = viewer
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_port}"

    def link(self) -> str:
        """Return the address of the viewer with all stores as layers and grey windows from percentiles."""
        layers = [self._layer(name, omezarr.read(path, level=_coarsest(path))) for name, path in self.stores.items()]
        state = {"layers": layers, "layout": "4panel"}
        return f"{self.viewer}/#!{quote(json.dumps(state), safe='')}"

    def _layer(self, name: str, coarse: xr.DataArray) -> dict[str, Any]:
        source = f"zarr://{self.url}/{name}"
        if coarse.attrs["kind"] != "image":
            return {"type": "segmentation", "source": source, "name": name}
        values = np.asarray(coarse.data, dtype=np.float64)
        low, high = (float(v) for v in np.nanpercentile(values, (1, 99.5)))
        window = {"normalized": {"range": [low, high if high > low else low + 1]}}
        return {"type": "image", "source": source, "name": name, "shaderControls": window}


def _coarsest(path: Path) -> int:
    group = omezarr.image_metadata(path)
    return len(group["datasets"]) - 1


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    #: Seconds after which a connection that sends nothing is closed.
    timeout = 60

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_OPTIONS(self) -> None:
        if not self._own_host():
            return
        self.send_response(HTTPStatus.NO_CONTENT)
        self._allow()
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self.send_header("Access-Control-Allow-Private-Network", "true")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _answer(self, send: bool) -> None:
        if not self._own_host():
            return
        path = self._file()
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            with path.open("rb") as file:
                self._send(file, os.fstat(file.fileno()).st_size, send)
        except (BrokenPipeError, ConnectionResetError):
            # The viewer closed the connection.
            self.close_connection = True
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _own_host(self) -> bool:
        """Return whether the request names this server; refuse other names, which point to DNS rebinding."""
        port = self.server.server_port
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and hosts[0] in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN)
        return False

    def _file(self) -> Path | None:
        """Return the requested file if it lies within a store."""
        raw = self.path.partition("?")[0].partition("#")[0]
        name, *parts = raw.removeprefix("/").split("/")
        parts = [unquote(part) for part in parts]
        root = self.server.stores.get(unquote(name))
        # A decoded part must be one name, without separators, drives or steps upwards.
        if root is None or not parts or any(p in ("", ".", "..") or re.search(r"[/\\\0:]", p) for p in parts):
            return None
        try:
            path = Path(os.path.realpath(root.joinpath(*parts), strict=True))
        except (OSError, ValueError):
            return None
        return path if path.is_relative_to(root) and path.is_file() else None

    def _send(self, file: BinaryIO, size: int, send: bool) -> None:
        first, last, status = 0, size - 1, HTTPStatus.OK
        requested = self.headers.get("Range")
        if requested is not None:
            limits = _parse_range(requested, size)
            if limits is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
                return
            first, last = limits
            status = HTTPStatus.PARTIAL_CONTENT
        self.send_response(status)
        self._allow()
        self.send_header("Accept-Ranges", "bytes")
        self.send_header(
            "Content-Type", "application/json" if self.path.endswith(".json") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(last - first + 1))
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if not send:
            return
        file.seek(first)
        left = last - first + 1
        while left > 0:
            part = file.read(min(left, _COPY_BYTES))
            if not part:
                self.close_connection = True
                return
            self.wfile.write(part)
            left -= len(part)

    def _allow(self) -> None:
        origin = self.headers.get("Origin")
        if origin in (self.server.viewer, self.server.url):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length, Accept-Ranges")
        self.send_header("Vary", "Origin")

    def _refuse(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self._allow()
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of one range; None if the header is not a range of the file.

    Examples
    --------
    >>> [_parse_range(header, 10) for header in ("bytes=2-4", "bytes=-3", "bytes=5-", "bytes=10-", "bytes=3-2")]
    [(2, 4), (7, 9), (5, 9), None, None]
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        count = min(int(match[2]), size)
        return (size - count, size - 1) if count else None
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    return (first, last) if first <= last else None
