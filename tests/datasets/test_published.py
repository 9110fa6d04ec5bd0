"""Fetching published volumes from a loopback server that drops connections and sends wrong bytes."""

import hashlib
import http.server
import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mrhdata
from mrhdata.datasets import catalog, downloads, published
from mrhdata.errors import CatalogError, DataError
from mrhdata.volume.construct import from_array


class Server(http.server.ThreadingHTTPServer):
    """Serve `files` after the status codes of `errors`; break the first `drops` connections.

    `ranges` allows range requests, `requested_ranges` and `requested_versions` record them. `headers` replace those
    that are sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.errors = []
        self.drops = 0
        self.ranges = True
        self.requested_ranges = []
        self.requested_versions = []
        self.headers = {}


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
        server.requested_versions.append(self.headers.get("If-Range"))
        self.send_response(206 if first else 200)
        headers = {"Content-Length": str(len(content) - first)}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        for key, value in (headers | server.headers).items():
            self.send_header(key, value)
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
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.01)
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


def without_hash(web, **download):
    """Return the entry of the server's file without a published hash."""
    return {"t1": {"args": dict(web.entry["args"]), "metadata": {"download": download}}}


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_errors_of_the_network_are_not_told_as_other_bytes(web, tmp_path):
    """Status codes are in the message, which does not speak of a published file."""
    for status in (404, 500):
        web.errors = [status] * 9
        with pytest.raises(DataError, match=f"cannot be downloaded.*{status}") as caught:
            fetch(web, tmp_path / "home")
        assert "differs" not in str(caught.value)
    assert files_in(tmp_path / "home") == []


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"<html>please log in</html>", {}),
        (b"\n <!DOCTYPE html><p>log in", {}),
        (b"please log in", {"Content-Type": "text/html; charset=utf-8"}),
        (b"not a volume", {}),
    ],
)
def test_a_page_to_log_in_is_told_and_not_kept(web, tmp_path, content, headers):
    """The next call asks the server again and gets the file."""
    good, web.files["t1.nii"], web.headers = web.files["t1.nii"], content, headers
    with pytest.raises(DataError, match=r"web page|cannot be read; the download was removed"):
        published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    assert files_in(tmp_path / "home") == []
    web.files["t1.nii"], web.headers = good, {}
    volume = published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    np.testing.assert_array_equal(volume, web.values)


@pytest.mark.parametrize("version", [{}, {"ETag": '"1"'}, {"ETag": 'W/"1"'}, {"Last-Modified": "yesterday"}])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_part_is_continued_with_the_same_file_only(web, tmp_path, version, conditional):
    """A file that changes after a dropped connection is taken from its start, also if the server ignores If-Range."""
    web.headers = dict(version)
    web.drops = 99
    with pytest.raises(DataError, match="run it again"):
        published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    other = from_array(web.values + 1, spacing=(1, 1, 1))
    mrhdata.write(other, tmp_path / "other.nii")
    web.files["t1.nii"] = (tmp_path / "other.nii").read_bytes()
    web.headers = {key: value.replace("1", "2").replace("yester", "to") for key, value in version.items()}
    web.drops, web.ranges = 0, not conditional
    volume = published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    np.testing.assert_array_equal(volume, other)


def test_a_part_is_continued_if_the_server_states_its_version(web, tmp_path):
    """The condition of the range is the strong ETag of the first answer."""
    web.headers, web.drops = {"ETag": '"1"'}, 1
    volume = published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    np.testing.assert_array_equal(volume, web.values)
    assert web.requested_versions == [None, '"1"']


@pytest.mark.parametrize(
    "content_range", ["bytes 0-9/10", "bytes " + "9" * 5000 + "-9/10", "bytes */" + "9" * 5000, "", "items 1-2/3"]
)
def test_answers_to_ranges_that_make_no_sense_start_again(web, tmp_path, content_range):
    """A wrong begin and numbers of thousands of digits are not believed."""
    web.headers = {"ETag": '"1"', "Content-Range": content_range}
    web.drops = 99
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        published.fetch("t1", tmp_path / "home", entries=without_hash(web))
    assert "\n" not in str(caught.value)
    web.drops = 0
    np.testing.assert_array_equal(published.fetch("t1", tmp_path / "home", entries=without_hash(web)), web.values)


def test_a_body_longer_than_stated_is_cut_off(web, tmp_path):
    """A stated size that differs is refused before the body, and a body without a size after it."""
    size = len(web.files["t1.nii"])
    web.files["t1.nii"] += bytes(3_000_000)
    for headers in ({}, {"Content-Length": "9" * 5000, "Connection": "close"}):
        web.headers = headers
        with pytest.raises(DataError, match="differs from the published file"):
            published.fetch("t1", tmp_path / "home", entries=without_hash(web, bytes=size))
        assert files_in(tmp_path / "home") == []


@pytest.mark.parametrize(
    ("name", "url", "download"),
    [
        ("../escaped", None, {}),
        ("/escaped", None, {}),
        (".hidden", None, {}),
        ("t1", None, {"name": "../escaped.nii"}),
        ("t1", None, {"name": ".."}),
        ("t1", None, {"member": "../escaped.nii"}),
        ("t1", None, {"member": "/escaped.nii"}),
        ("t1", None, {"hash": "crc:12"}),
        ("t1", None, {"hash": "md5:../x"}),
        ("t1", None, {"bytes": "many"}),
        ("t1", "file:///etc/passwd", {}),
        ("t1", "http://127.0.0.1/..", {}),
    ],
)
def test_names_and_addresses_that_lead_out_are_refused(web, tmp_path, name, url, download):
    """Nothing is written outside of the folder."""
    entry = without_hash(web, **download)["t1"]
    entry["args"]["urlpath"] = url or entry["args"]["urlpath"]
    with pytest.raises(CatalogError):
        published.fetch(name, tmp_path / "home" / "inner", entries={name: entry})
    assert not [path for path in files_in(tmp_path) if "source" not in path.parts and "downloads" not in path.parts]


def zip_bytes(change=None, **members):
    """Return a zip archive; `change` edits its bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(
                data if isinstance(data, zipfile.ZipInfo) else f"{name}.nii",
                *([data] if isinstance(data, bytes) else [b"far"]),
            )
    content = bytearray(content.getvalue())
    if change is not None:
        change(content)
    return bytes(content)


def encrypt(content):
    content[content.rfind(b"PK\1\2") + 8] |= 1


def unknown_method(content):
    content[content.rfind(b"PK\1\2") + 10] = 77


def damage(content):
    content[60] ^= 255


def link():
    info = zipfile.ZipInfo("t1.nii")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("change", [encrypt, unknown_method, damage, "link", "bomb"])
def test_archives_that_cannot_be_unpacked_are_told(web, tmp_path, monkeypatch, change):
    """Encrypted, damaged and unknown archives, links and bombs are one sentence, and nothing of them is kept."""
    web.entry["args"]["urlpath"] = web.url + "/a.zip"
    if change == "bomb":
        monkeypatch.setattr(downloads, "_MAX_MEMBER_BYTES", 1_000_000)
        web.files["a.zip"] = zip_bytes(t1=bytes(2_000_000))
    elif change == "link":
        web.files["a.zip"] = zip_bytes(t1=link())
    else:
        web.files["a.zip"] = zip_bytes(change, t1=web.files["t1.nii"])
    with pytest.raises(DataError, match=r"a\.zip") as caught:
        published.fetch("t1", tmp_path / "home", entries=without_hash(web, member="t1.nii"))
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path / "home") == []


def test_two_files_of_one_name_are_kept_apart(web, tmp_path):
    """Archives and their members have folders of their own."""
    other = from_array(web.values + 1, spacing=(1, 1, 1))
    mrhdata.write(other, tmp_path / "other.nii")
    web.files["a/x.nii"], web.files["b/x.nii"] = web.files["t1.nii"], (tmp_path / "other.nii").read_bytes()
    for name, expected in (("a", web.values), ("b", other)):
        entry = {"args": {"urlpath": f"{web.url}/{name}/x.nii"}, "metadata": {"download": {}}}
        np.testing.assert_array_equal(published.fetch(name, tmp_path / "home", entries={name: entry}), expected)


def test_fetches_at_the_same_time_list_all_volumes(web, tmp_path):
    """Four fetches, two of them of the same volume, leave one catalogue with all three."""
    names, home = ["a", "b", "c", "a"], tmp_path / "home"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: published.fetch(name, home, entries={name: web.entry}), names))
    assert sorted(mrhdata.open_catalog(home / "catalog.yaml")) == ["a", "b", "c"]
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


def test_an_entry_is_added_without_a_change_of_others(tmp_path):
    """Options, drivers and nested catalogues of a catalogue that somebody edited are kept."""
    path = tmp_path / "catalog.yaml"
    catalog.write(path, "Mine", {"a": ("sub/a.nii", {"subject": "01"}, {"unit": "um"})}, licence="CC0")
    before = mrhdata.open_catalog(path)
    catalog.add(path, "Other", "b", "b.nii", {})
    after = mrhdata.open_catalog(path)
    assert list(after) == ["a", "b"]
    assert after.metadata == before.metadata
    assert (after["a"].urlpath, after["a"].options) == (before["a"].urlpath, {"unit": "um"})
