"""Fetching from a server on loopback that drops, lies and forgets."""

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
    """Sends `files`; before them errors of `refuse`; `drop` connections break; `ranges` says whether parts are sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.drop, self.ranges, self.asked, self.refuse = {}, 0, True, [], []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content = server.files.get(self.path.lstrip("/"))
        if server.refuse or content is None:
            self.send_error(server.refuse.pop() if server.refuse else 404)
            return
        asked = self.headers.get("Range")
        server.asked.append(asked)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        part = content[first:]
        if server.drop:
            server.drop -= 1
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server with one volume, and the entry that describes it."""
    monkeypatch.setattr(published, "_PAUSE_S", 0.01)
    (tmp_path / "made").mkdir()
    values = np.random.default_rng(0).integers(0, 9999, (60, 80, 100)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1), name="t1"), tmp_path / "made" / "t1.nii")
    content = (tmp_path / "made" / "t1.nii").read_bytes()
    with Server() as server:
        server.files["t1.nii"] = content
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        about = {"bytes": len(content), "hash": "md5:" + hashlib.md5(content).hexdigest()}
        server.entry = {
            "args": {"urlpath": server.url + "/t1.nii", "space": "CCFv3"},
            "metadata": {"modality": "mri", "subject": "1", "licence": "CC0", "download": about},
        }
        server.values = values
        yield server
        server.shutdown()


def fetch(web, home):
    return published.fetch("t1", home, entries={"t1": web.entry})


def test_fetched_converted_and_listed(web, tmp_path):
    """The volume is a local store, in a catalogue with its licence; a second call asks no server."""
    volume = fetch(web, tmp_path / "home")
    np.testing.assert_array_equal(volume, web.values)
    assert volume.mrh.space == "CCFv3"
    cat = mrhdata.open_catalog(tmp_path / "home" / "catalog.yaml")
    assert cat["t1"].metadata["licence"] == "CC0"
    asked = len(web.asked)
    fetch(web, tmp_path / "home")
    assert len(web.asked) == asked


def test_a_dropped_connection_is_taken_up(web, tmp_path):
    """Twice broken off, each time gone on with behind what was there."""
    web.drop = 2
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert web.asked[0] is None
    assert [a is not None for a in web.asked[1:]] == [True, True]


def test_a_server_without_range_sends_all_again(web, tmp_path):
    """What it sends from the start is not put behind the half that is there."""
    web.drop, web.ranges = 2, False
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)


def test_a_session_that_ended_is_taken_up_by_the_next(web, tmp_path):
    """The part outlives the process that gave up."""
    web.drop = 100
    with pytest.raises(DataError, match="goes on where it is"):
        fetch(web, tmp_path / "home")
    assert not list((tmp_path / "home").glob("*.zarr"))
    assert not (tmp_path / "home" / "catalog.yaml").exists()
    web.drop = 0
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert int(web.asked[-1].removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize("wrong", ["hash", "bytes"])
def test_other_bytes_than_published_are_refused(web, tmp_path, wrong):
    """Neither file nor store nor entry is left, and the right file can be fetched afterwards."""
    good = dict(web.entry["metadata"]["download"])
    web.entry["metadata"]["download"] = good | {wrong: {"hash": "md5:" + "0" * 32, "bytes": 17}[wrong]}
    with pytest.raises(DataError, match="published"):
        fetch(web, tmp_path / "home")
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    web.entry["metadata"]["download"] = good
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)


def test_a_missing_file_and_a_missing_server(web, tmp_path):
    """404 and a closed port end in one sentence."""
    for url in (web.url + "/gone.nii", "http://127.0.0.1:9/t1.nii"):
        web.entry["args"]["urlpath"] = url
        with pytest.raises(DataError, match="cannot be downloaded"):
            fetch(web, tmp_path / "home")


def test_a_server_that_is_busy_is_asked_again(web, tmp_path):
    """503 and 429 pass; 403 is the last word, after one request."""
    web.refuse = [429, 503]
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    web.refuse = [503, 403]
    with pytest.raises(DataError, match=r"403.*check its address"):
        fetch(web, tmp_path / "other")
    assert web.refuse == [503]


def test_one_file_of_an_archive(web, tmp_path):
    """The named member only; other names are never unpacked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("set/t1.nii", web.files["t1.nii"])
        archive.writestr("../../evil.txt", "out")
    web.files["a.zip"] = packed.getvalue()
    web.entry["args"]["urlpath"] = web.url + "/a.zip"
    web.entry["metadata"]["download"] = {"member": "set/t1.nii"}
    np.testing.assert_array_equal(fetch(web, tmp_path / "home"), web.values)
    assert not list(tmp_path.rglob("evil.txt"))
    web.entry["metadata"]["download"] = {"member": "set/t2.nii"}
    with pytest.raises(DataError, match=r"holds set/t2\.nii"):
        published.fetch("t2", tmp_path / "home", entries={"t2": web.entry})


def test_published_entries_are_complete():
    """Every entry has licence, citation and modality; what cannot be fetched says why and where."""
    entries = published.published()
    for name, entry in entries.items():
        held = entry["metadata"]
        assert {"licence", "citation", "modality", "role"} <= held.keys(), name
        place = entry["args"]["urlpath"]
        assert "restricted" in held or "download" in held or place.startswith("s3://") or "/zarr/" in place, name
        if "restricted" in held:
            assert "http" in held["restricted"] or "doi" in held["restricted"], name
    wanted = ("ccfv3-template", "ccfv3-annotation", "ara-nissl", "allen-reference", "mrhnet-", "smartspim", "dandi")
    for start in (*wanted, "openorganelle", "cremi", "pssr", "qsm-challenge-2016", "musus100", "cit168"):
        assert any(name.startswith(start) for name in entries), start
    for start in ("fcon1000", "ds000001", "icbm152", "dsurqe"):
        assert any(name.startswith(start) for name in entries), start


def test_restricted_sets_are_refused_with_the_reason(tmp_path):
    """Nothing is asked of any server."""
    with pytest.raises(CatalogError, match="agreement"):
        published.fetch("oasis1", tmp_path)
    with pytest.raises(CatalogError, match="there is no published volume 'brain'"):
        published.fetch("brain", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_elsewhere_is_copied_level_by_level(web, tmp_path):
    """An entry that is read in place needs no download; fetching it converts it."""
    local = tmp_path / "made" / "t1.zarr"
    mrhdata.convert(tmp_path / "made" / "t1.nii", local)
    entry = {"args": {"urlpath": str(local)}, "metadata": {"modality": "mri"}}
    volume = published.fetch("copy", tmp_path / "home", entries={"copy": entry})
    np.testing.assert_array_equal(volume, web.values)
    catalog.check(tmp_path / "home" / "catalog.yaml")
