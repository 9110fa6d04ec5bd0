"""The server for viewers sends files of its stores, and nothing else."""

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
def server_and_store(tmp_path):
    """Return a running server of one store with links inside and out, next to a secret file."""
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


def request(server, path, headers=None, method="GET"):
    """Return status, headers and body; the path is sent unchanged."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for key, value in {"Host": f"127.0.0.1:{server.server_port}", **(headers or {})}.items():
        if value is not None:
            connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def test_files_and_ranges_are_sent_unchanged(server_and_store):
    """Requests may ask for whole files, parts, suffixes or the header."""
    server, store = server_and_store
    path = next(p for p in store.rglob("c/*/*/*") if p.is_file())
    content = path.read_bytes()
    url = "/brain/" + str(path.relative_to(store))
    assert request(server, url)[::2] == (200, content)
    assert request(server, url, {"Range": "bytes=3-9"})[::2] == (206, content[3:10])
    assert request(server, url, {"Range": "bytes=-20"})[::2] == (206, content[-20:])
    status, headers, body = request(server, url, {"Range": f"bytes=5-{len(content) * 9}"})
    assert (status, body) == (206, content[5:])
    assert headers["Content-Range"] == f"bytes 5-{len(content) - 1}/{len(content)}"
    status, headers, body = request(server, url, method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(content)))
    assert request(server, "/brain/inside.json")[0] == 200


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
def test_paths_outside_the_store_are_refused(server_and_store, path):
    """The answer is 404 without a body."""
    status, _, body = request(server_and_store[0], path)
    assert status == 404
    assert body == b""


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "", None]
)
def test_another_host_is_refused(server_and_store, host):
    """A foreign page whose name points to the server (DNS rebinding) gets no data."""
    server, _ = server_and_store
    host = host and host.format(port=server.server_port)
    for method in ("GET", "HEAD", "OPTIONS"):
        status, _, body = request(server, "/brain/zarr.json", {"Host": host}, method)
        assert (status, body) == (403, b"")


@pytest.mark.parametrize(
    "header",
    [
        "bytes=99999999-",
        "bytes=5-2",
        "bytes=-0",
        "bytes=-",
        "lines=1-2",
        "bytes=0-1,4-5",
        *(form.replace("N", "9" * 5000) for form in ("bytes=N-", "bytes=-N", "bytes=0-N")),
    ],
    ids=lambda header: header[:12],
)
def test_invalid_ranges_are_refused(server_and_store, header):
    """The answer is 416 without a body."""
    status, headers, body = request(server_and_store[0], "/brain/zarr.json", {"Range": header})
    assert (status, body) == (416, b"")
    assert headers["Content-Range"].startswith("bytes */")


def test_only_pages_of_the_viewer_may_read(server_and_store):
    """The server allows the origin of the viewer and no other, and refuses to write."""
    server, _ = server_and_store
    assert request(server, "/brain/zarr.json", {"Origin": VIEWER})[1]["Access-Control-Allow-Origin"] == VIEWER
    assert (
        "Access-Control-Allow-Origin" not in request(server, "/brain/zarr.json", {"Origin": "https://evil.example"})[1]
    )
    assert request(server, "/brain/zarr.json", {"Origin": VIEWER}, "OPTIONS")[0] == 204
    for method in ("PUT", "POST", "DELETE"):
        assert request(server, "/brain/zarr.json", method=method)[0] == 501


def test_invalid_requests_do_not_stop_the_server(server_and_store):
    """Incomplete requests and random bytes are ignored."""
    server, _ = server_and_store
    for content in (b"\x00\xff\r\n\r\n", b"GET", b"GET /brain/zarr.json HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
            connection.sendall(content)
    assert request(server, "/brain/zarr.json")[0] == 200


def test_link_has_each_store_with_a_grey_window(server_and_store):
    """The state of Neuroglancer has one layer with its source on the server and the range of its values."""
    server, _ = server_and_store
    assert server.server_address[0] == "127.0.0.1"
    state = json.loads(urllib.parse.unquote(server.link().partition("#!")[2]))
    (layer,) = state["layers"]
    assert layer["source"] == f"zarr://{server.url}/brain"
    low, high = layer["shaderControls"]["normalized"]["range"]
    assert 0 <= low < high <= 999


def test_folders_that_are_not_stores_are_refused(tmp_path):
    """The server does not start."""
    with pytest.raises(FormatError):
        Server({"all": tmp_path})


@pytest.mark.full
def test_command_line_stops_on_interrupt(server_and_store, tmp_path):
    """`view --serve` prints the link, and Ctrl-C ends it without an error."""
    command = [
        sys.executable,
        "-c",
        "from mrhdata.cli import main; main()",
        "view",
        str(server_and_store[1]),
        "--serve",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert "serving brain" in child.stdout.readline()
    assert child.stdout.readline().startswith(VIEWER)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out.strip(), err) == (0, "stopped", "")


def test_a_second_host_and_silence_are_refused(server_and_store, monkeypatch):
    """Two names in one request are ambiguous; a connection that sends nothing is closed."""
    server, _ = server_and_store
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
    own = f"Host: 127.0.0.1:{server.server_port}\r\n"
    for text, answer in ((f"GET /brain/zarr.json HTTP/1.1\r\n{own}Host: evil.example\r\n\r\n", b"403"), ("GET /", b"")):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
            connection.sendall(text.encode())
            assert connection.recv(100)[9:12] == answer
