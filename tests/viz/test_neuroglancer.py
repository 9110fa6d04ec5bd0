"""The server for viewers: what it sends, and what it never sends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.viz.neuroglancer import VIEWER, Server
from mrhdata.volume.construct import from_array


@pytest.fixture
def served(tmp_path):
    """One store, a secret beside it, links within and out, on a running server."""
    values = np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.uint16)
    store = tmp_path / "brain.zarr"
    mrhdata.write(from_array(values, spacing=(1, 1, 1), name="t2w"), store)
    (tmp_path / "secret.txt").write_text("secret")
    (store / "out.txt").symlink_to(tmp_path / "secret.txt")
    (store / "up").symlink_to(tmp_path)
    (store / "inside.json").symlink_to(store / "zarr.json")
    (tmp_path / "brain.zarr-other").mkdir()
    (tmp_path / "brain.zarr-other" / "x").write_text("secret")
    with Server({"brain": store}) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server, store
        server.shutdown()


def ask(server, path, headers=None, method="GET"):
    """Status, headers and body; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for key, value in {"Host": f"127.0.0.1:{server.server_port}", **(headers or {})}.items():
        if value is not None:
            connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_files_and_ranges(served):
    """Whole files, parts, suffixes, HEAD; as the files are."""
    server, store = served
    path = next(p for p in store.rglob("c/*/*/*") if p.is_file())
    content = path.read_bytes()
    url = "/brain/" + str(path.relative_to(store))
    assert ask(server, url)[::2] == (200, content)
    assert ask(server, url, {"Range": "bytes=3-9"})[::2] == (206, content[3:10])
    assert ask(server, url, {"Range": "bytes=-20"})[::2] == (206, content[-20:])
    status, headers, body = ask(server, url, {"Range": f"bytes=5-{len(content) * 9}"})
    assert (status, body) == (206, content[5:])
    assert headers["Content-Range"] == f"bytes 5-{len(content) - 1}/{len(content)}"
    status, headers, body = ask(server, url, method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(content)))
    assert ask(server, "/brain/inside.json")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/brain/../secret.txt",
        "/brain/%2e%2e/secret.txt",
        "/brain/%2E%2e%2fsecret.txt",
        "/brain/..%2fsecret.txt",
        "/brain/scale0/../../secret.txt",
        "/brain/%252e%252e/secret.txt",
        "/brain/..\\secret.txt",
        "/brain/..%5csecret.txt",
        "/brain//etc/passwd",
        "/brain/%2fetc%2fpasswd",
        "//etc/passwd",
        "/etc/passwd",
        "/secret.txt",
        "/brain/out.txt",
        "/brain/up/secret.txt",
        "/brain/scale0",
        "/brain/",
        "/brain",
        "/",
        "/../secret.txt",
        "/brain.zarr-other/x",
        "/brain/../brain.zarr-other/x",
        "/brain/zarr.json%00.txt",
        "/brain/./zarr.json",
        "/brain/C:/secret.txt",
        "/brain/" + "a" * 5000,
    ],
)
def test_nothing_outside_the_store(served, path):
    """Refused, and no byte of the secret is sent."""
    status, _, body = ask(served[0], path)
    assert status == 404
    assert body == b""


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "", None]
)
def test_another_host_is_refused(served, host):
    """A page elsewhere that made its name point here gets nothing."""
    server, _ = served
    host = host and host.format(port=server.server_port)
    for method in ("GET", "HEAD", "OPTIONS"):
        status, _, body = ask(server, "/brain/zarr.json", {"Host": host}, method)
        assert (status, body) == (403, b"")


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=5-2", "bytes=-0", "bytes=-", "lines=1-2", "bytes=0-1,4-5"])
def test_ranges_that_are_none(served, asked):
    """416, without a body."""
    status, headers, body = ask(served[0], "/brain/zarr.json", {"Range": asked})
    assert (status, body) == (416, b"")
    assert headers["Content-Range"].startswith("bytes */")


def test_only_the_viewer_may_read(served):
    """Its origin is allowed by name, no other; nothing can be written."""
    server, _ = served
    assert ask(server, "/brain/zarr.json", {"Origin": VIEWER})[1]["Access-Control-Allow-Origin"] == VIEWER
    assert "Access-Control-Allow-Origin" not in ask(server, "/brain/zarr.json", {"Origin": "https://evil.example"})[1]
    assert ask(server, "/brain/zarr.json", {"Origin": VIEWER}, "OPTIONS")[0] == 204
    for method in ("PUT", "POST", "DELETE"):
        assert ask(server, "/brain/zarr.json", method=method)[0] == 501


def test_garbage_does_not_stop_it(served):
    """Half a request, and no request."""
    server, _ = served
    for content in (b"\x00\xff\r\n\r\n", b"GET", b"GET /brain/zarr.json HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
            connection.sendall(content)
    assert ask(server, "/brain/zarr.json")[0] == 200


def test_the_link_names_each_store_with_a_grey_window(served):
    """Neuroglancer's state: one layer, its source here, its range from the values."""
    server, _ = served
    assert server.server_address[0] == "127.0.0.1"
    state = json.loads(urllib.parse.unquote(server.link().partition("#!")[2]))
    (layer,) = state["layers"]
    assert layer["source"] == f"zarr://{server.url}/brain"
    low, high = layer["shaderControls"]["normalized"]["range"]
    assert 0 <= low < high <= 999


def test_what_is_no_store_is_not_served(tmp_path):
    """A folder of anything else is refused at the start."""
    with pytest.raises(FormatError):
        Server({"all": tmp_path})


def test_command_line_stops_on_interrupt(served, tmp_path):
    """`view --serve` prints the link, and Ctrl-C ends it quietly."""
    command = [sys.executable, "-c", "from mrhdata.cli import main; main()", "view", str(served[1]), "--serve"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert "serving brain" in child.stdout.readline()
    assert child.stdout.readline().startswith(VIEWER)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out.strip(), err) == (0, "stopped", "")
