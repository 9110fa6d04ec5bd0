"""Fetching published volumes from a loopback server that drops connections and sends wrong bytes."""

import hashlib
import http.server
import io
import threading
import zipfile

import numpy as np
import pytest

import mrhdata
from mrhdata.datasets import catalog, published
from mrhdata.errors import CatalogError, DataError
from mrhdata.volume.construct import from_array


class Server(http.server.ThreadingHTTPServer):
    """Serve `files` after the status codes of `errors`; break the first `drops` connections.

    `ranges` allows range requests, and `requested_ranges` records them.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.errors = []
        self.drops = 0
        self.ranges = True
        self.requested_ranges = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content = server.files.get(self.path.lstrip("/"))
        if server.errors or content is None:
            self.send_error(server.errors.pop() if server.errors else 404)
            return
        byte_range = self.headers.get("Range")
        server.requested_ranges.append(byte_range)
        first = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range and server.ranges else 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        if server.drops:
            server.drops -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Start a server with one volume and the entry that describes it."""
    monkeypatch.setattr(published, "_PAUSE_S", 0.01)
    (tmp_path / "source").mkdir()
    values = np.random.default_rng(0).integers(0, 9999, (60, 80, 100)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1), name="t1"), tmp_path / "source" / "t1.nii")
    content = (tmp_path / "source" / "t1.nii").read_bytes()
    with Server() as server:
        server.files["t1.nii"] = content
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        download = {"bytes": len(content), "hash": "md5:" + hashlib.md5(content).hexdigest()}
        server.entry = {
            "args": {"urlpath": server.url + "/t1.nii", "space": "CCFv3"},
            "metadata": {"modality": "mri", "subject": "1", "licence": "CC0", "download": download},
        }
        server.values = values
        yield server
        server.shutdown()


def fetch(web, home):
    return published.fetch("t1", home, entries={"t1": web.entry})


def test_fetch_converts_and_lists_a_volume(web, tmp_path):
    """The catalogue keeps the licence; a second call sends no request."""
    volume = fetch(web, tmp_path / "home")
    np.testing.assert_array_equal(volume, web.values)
    assert volume.mrh.space == "CCFv3"
    cat = mrhdata.open_catalog(tmp_path / "home" / "catalog.yaml")
    assert cat["t1"].metadata["licence"] == "CC0"
    requests_before = len(web.requested_ranges)
    fetch(web, tmp_path / "home")
    assert len(web.requested_ranges) == requests_before


def test_dropped_connections_resume(web, tmp_path):
    """After each of two drops the next request asks for the missing bytes only."""
    web.drops = 2
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert web.requested_ranges[0] is None
    assert [byte_range is not None for byte_range in web.requested_ranges[1:]] == [True, True]


def test_server_without_range_requests_sends_the_whole_file_again(web, tmp_path):
    """The second answer replaces the partial file instead of being appended to it."""
    web.drops, web.ranges = 2, False
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)


def test_failed_download_resumes_in_the_next_call(web, tmp_path):
    """The partial file is kept when all attempts have failed."""
    web.drops = 100
    with pytest.raises(DataError, match="run it again to resume"):
        fetch(web, tmp_path / "home")
    assert not list((tmp_path / "home").glob("*.zarr"))
    assert not (tmp_path / "home" / "catalog.yaml").exists()
    web.drops = 0
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert int(web.requested_ranges[-1].removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize("wrong", ["hash", "bytes"])
def test_files_that_differ_from_the_published_ones_are_refused(web, tmp_path, wrong):
    """No file, store or entry is left, and the right file can be fetched afterwards."""
    good = dict(web.entry["metadata"]["download"])
    web.entry["metadata"]["download"] = good | {wrong: {"hash": "md5:" + "0" * 32, "bytes": 17}[wrong]}
    with pytest.raises(DataError, match="differs from the published file"):
        fetch(web, tmp_path / "home")
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    web.entry["metadata"]["download"] = good
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)


def test_missing_file_and_missing_server_raise_a_data_error(web, tmp_path):
    """The file answers with 404, the server with a closed port."""
    for url in (web.url + "/gone.nii", "http://127.0.0.1:9/t1.nii"):
        web.entry["args"]["urlpath"] = url
        with pytest.raises(DataError, match="cannot be downloaded"):
            fetch(web, tmp_path / "home")


def test_temporary_server_errors_are_retried(web, tmp_path):
    """Status codes 503 and 429 lead to another attempt; 403 is final after one request."""
    web.errors = [429, 503]
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    web.errors = [503, 403]
    with pytest.raises(DataError, match=r"403.*check its address"):
        fetch(web, tmp_path / "other")
    assert web.errors == [503]


def test_only_the_named_member_of_an_archive_is_extracted(web, tmp_path):
    """A member with a path outside the folder is never written."""
    archive_bytes = io.BytesIO()
    with zipfile.ZipFile(archive_bytes, "w") as archive:
        archive.writestr("set/t1.nii", web.files["t1.nii"])
        archive.writestr("../../evil.txt", "out")
    web.files["a.zip"] = archive_bytes.getvalue()
    web.entry["args"]["urlpath"] = web.url + "/a.zip"
    web.entry["metadata"]["download"] = {"member": "set/t1.nii"}
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert not list(tmp_path.rglob("evil.txt"))
    web.entry["metadata"]["download"] = {"member": "set/t2.nii"}
    with pytest.raises(DataError, match=r"holds set/t2\.nii"):
        published.fetch("t2", tmp_path / "home", entries={"t2": web.entry})


def test_published_entries_are_complete():
    """Every entry has licence, citation and modality; restricted ones state the reason and an address."""
    entries = published.published()
    for name, entry in entries.items():
        metadata, urlpath = entry["metadata"], entry["args"]["urlpath"]
        assert {"licence", "citation", "modality", "role"} <= metadata.keys(), name
        is_store = urlpath.startswith("s3://") or "/zarr/" in urlpath
        assert "restricted" in metadata or "download" in metadata or is_store, name
        if "restricted" in metadata:
            assert "http" in metadata["restricted"] or "doi" in metadata["restricted"], name
    mouse = ("ccfv3-template", "ccfv3-annotation", "ara-nissl", "allen-reference", "mrhnet-", "smartspim", "dandi")
    for prefix in (*mouse, "openorganelle", "cremi", "pssr", "qsm-challenge-2016", "musus100", "cit168"):
        assert any(name.startswith(prefix) for name in entries), prefix
    for prefix in ("fcon1000", "ds000001", "icbm152", "dsurqe"):
        assert any(name.startswith(prefix) for name in entries), prefix


def test_restricted_and_unknown_names_are_refused(tmp_path):
    """The error of a restricted data set states the reason; nothing is downloaded."""
    with pytest.raises(CatalogError, match="agreement"):
        published.fetch("oasis1", tmp_path)
    with pytest.raises(CatalogError, match="must be a published volume; got 'brain'"):
        published.fetch("brain", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetch_copies_a_store_that_needs_no_download(web, tmp_path):
    """An OME-Zarr is converted from its place, and the resulting catalogue passes the check."""
    local = tmp_path / "source" / "t1.zarr"
    mrhdata.convert(tmp_path / "source" / "t1.nii", local)
    entry = {"args": {"urlpath": str(local)}, "metadata": {"modality": "mri"}}
    volume = published.fetch("copy", tmp_path / "home", entries={"copy": entry})
    np.testing.assert_array_equal(volume, web.values)
    catalog.check(tmp_path / "home" / "catalog.yaml")
