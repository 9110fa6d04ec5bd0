"""The check of catalogues: what an entry may say, and that intake uses only what was checked."""

import http.server
import inspect
import threading

import numpy as np
import pytest
import yaml

import mrhdata
from mrhdata.datasets import catalog
from mrhdata.datasets.drivers import DRIVERS
from mrhdata.datasets.validation import check
from mrhdata.errors import CatalogError
from mrhdata.io.formats import Options
from mrhdata.volume.construct import from_array

#: A parameter of intake whose default is a shell command.
COMMAND = {"p": {"type": "str", "default": "shell(touch FLAG)"}}
VOLUME = {"driver": "mrh_volume", "args": {"urlpath": "{{ CATALOG_DIR }}/a.nii"}}


def nested(**args):
    """Return an entry for a nested catalogue with more arguments."""
    return {"driver": "yaml_file_cat", "args": {"path": "{{ CATALOG_DIR }}/inner.yaml", **args}}


def volume(**args):
    """Return an entry of a volume with more arguments."""
    return {"driver": "mrh_volume", "args": {**VOLUME["args"], **args}}


def write_yaml(path, sources, **sections):
    path.write_text(yaml.safe_dump({"sources": sources, **sections}, sort_keys=False))
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a volume and a catalogue ``inner.yaml``."""
    mrhdata.write(from_array(np.ones((2, 3, 4), np.uint8), spacing=(1, 1, 1)), tmp_path / "a.nii")
    write_yaml(tmp_path / "inner.yaml", {"a": VOLUME})
    return tmp_path


@pytest.mark.parametrize(
    "entry",
    [
        nested(getshell=True, user_parameters=COMMAND),
        nested(getenv=True),
        nested(text="sources: {}"),
        nested(fs={"a": 1}),
        nested(entries={}),
        nested(autoreload=True),
        nested(storage_options={"anon": True}),
        {"driver": "yaml_file_cat", "args": {}},
        {"driver": "yaml_file_cat", "args": {"path": []}},
        {"driver": "mrh_volume", "args": {}},
        {"driver": "mrh_volume"},
        {"driver": "mrh_volume", "args": {"urlpath": ""}},
        {"driver": "mrh_volume", "args": {"urlpath": "a\0b.nii"}},
        {**VOLUME, "metadata": {"parameters": COMMAND}},
        {**VOLUME, "parameters": COMMAND},
        {**VOLUME, "cache": []},
        {**VOLUME, "description": 3},
        {"driver": {"a": {"class": "os.system"}}, "args": VOLUME["args"]},
        {"driver": ["mrh_volume"], "args": VOLUME["args"]},
        volume(metadata={}),
        volume(subject="1"),
        volume(axes=5),
        volume(unit=["um"]),
        volume(spacing="1 1 1"),
        volume(spacing=[1, 1]),
        volume(origin=3),
        volume(level=True),
        volume(time=0.5),
        volume(storage_options=[1]),
        volume(storage_options={"anon": True}),
        {"driver": "ndzarr", "args": {"urlpath": "a.zarr", "chunks": 3}},
        {"driver": "ndzarr", "args": {"urlpath": ["a.zarr"]}},
    ],
)
def test_arguments_that_are_not_on_the_list_of_a_driver_are_refused(folder, entry):
    """Options of intake that run commands, unknown ones and wrong types are errors of one line."""
    path = write_yaml(folder / "c.yaml", {"n": entry})
    with pytest.raises(CatalogError, match=r"c\.yaml, entry 'n'") as caught:
        mrhdata.open_catalog(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [{"parameters": COMMAND}, {"plugins": {}}, {"user_parameters": COMMAND}, {"version": 2}, {"version": "1"}, [1]],
)
@pytest.mark.parametrize("name", ["c.yaml", "inner.yaml"])
def test_metadata_that_intake_executes_is_refused(folder, metadata, name):
    """Shared parameters are part of the metadata, also in a nested catalogue; version 2 of intake is code."""
    write_yaml(folder / "c.yaml", {"n": nested()})
    check(folder / "c.yaml")
    write_yaml(folder / name, {"n": VOLUME}, metadata=metadata)
    with pytest.raises(CatalogError, match=name.replace(".", r"\.")):
        mrhdata.open_catalog(folder / "c.yaml")


@pytest.mark.parametrize("name", [1, None, "", True])
def test_names_of_entries_are_text(folder, name):
    """A number as a name is refused, because intake refuses it later."""
    with pytest.raises(CatalogError, match="names of entries must be text"):
        check(write_yaml(folder / "c.yaml", {name: VOLUME}))


def test_options_of_read_are_allowed_unless_they_are_permissions():
    """A catalogue may correct a header; it may not switch off a check."""
    options = {name for name, kind in Options.__annotations__.items() if "bool" not in str(kind)}
    assert set(DRIVERS["mrh_volume"]) - {"urlpath"} == options >= {"axes", "unit", "spacing", "kind", "time"}


def test_no_template_is_expanded_when_an_entry_is_opened(folder):
    """A folder whose name is a template is not code."""
    trap = folder / "{{ cycler.__init__.__globals__.os.mkdir('trap') }}"
    trap.mkdir()
    (folder / "a.nii").rename(trap / "a.nii")
    path = write_yaml(trap / "c.yaml", {"a": VOLUME})
    assert mrhdata.open_catalog(path)["a"].read().shape == (2, 3, 4)
    assert not list(folder.rglob("trap"))


def test_a_catalogue_is_used_as_it_was_read(folder):
    """Later changes of the files, also of a nested one, change neither entries nor selections."""
    cat = mrhdata.open_catalog(write_yaml(folder / "c.yaml", {"n": nested(), "a": VOLUME}))
    evil = {"b": {"driver": "mrh_volume", "args": {"urlpath": "/etc/passwd"}}}
    write_yaml(folder / "c.yaml", evil)
    (folder / "inner.yaml").unlink()
    cat.force_reload()
    assert list(cat) == ["n", "a"]
    assert list(cat["n"]) == list(cat["n"]()) == ["a"]
    assert list(cat.find()) == ["n.a", "a"]
    assert cat["n.a"].read().shape == cat["n", "a"].read().shape == (2, 3, 4)


def test_a_directory_of_catalogues_that_list_each_other_is_bounded(folder, monkeypatch):
    """Ten catalogues that list the next one twenty times would have 20^10 entries."""
    monkeypatch.setattr(catalog, "_MAX_VISITS", 1000)
    for level in range(10):
        path = "{{ CATALOG_DIR }}/" + f"{level + 1}.yaml"
        entries = {f"n{i}": {"driver": "yaml_file_cat", "args": {"path": path}} for i in range(20)}
        write_yaml(folder / f"{level}.yaml", entries)
    write_yaml(folder / "10.yaml", {"a": VOLUME})
    cat = mrhdata.open_catalog(folder / "0.yaml")
    with pytest.raises(CatalogError, match="lists more than"):
        cat.find()


def test_a_long_chain_of_catalogues_is_refused(folder):
    """Each catalogue lists the next one."""
    for level in range(60):
        path = "{{ CATALOG_DIR }}/" + f"{level + 1}.yaml"
        write_yaml(folder / f"{level}.yaml", {"n": {"driver": "yaml_file_cat", "args": {"path": path}}})
    with pytest.raises(CatalogError, match="within each other"):
        check(folder / "0.yaml")


class Answers(http.server.ThreadingHTTPServer):
    """Serve the next of a list of answers (code, headers, body) at each request for a path; the last one repeats."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        answers = self.server.answers[self.path]
        code, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    """Start a server on loopback."""
    with Answers() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def remote(urlpath, driver="mrh_volume", **args):
    """Return an answer with a catalogue of one entry."""
    key = "path" if driver == "yaml_file_cat" else "urlpath"
    return (200, {}, yaml.safe_dump({"sources": {"a": {"driver": driver, "args": {key: urlpath, **args}}}}).encode())


def test_a_remote_catalogue_is_downloaded_once(web):
    """A server that answers the second request otherwise cannot have code run or local files read."""
    good = remote("{{ CATALOG_DIR }}/inner.yaml", "yaml_file_cat")
    web.answers = {
        "/c.yaml": [good, remote("{{ cycler.__init__.__globals__.os.system('id') }}")],
        "/inner.yaml": [remote("{{ CATALOG_DIR }}/a.zarr"), remote("/etc/passwd")],
    }
    cat = mrhdata.open_catalog(web.url + "/c.yaml")
    assert {n: v.urlpath for n, (_, v) in cat.find().items()} == {"a.a": web.url + "/a.zarr"}
    assert cat["a"]["a"].urlpath == cat["a.a"].urlpath == web.url + "/a.zarr"
    assert [path for path, _ in web.requests] == ["/c.yaml", "/inner.yaml"]


@pytest.mark.parametrize(
    "urlpath",
    [
        "/etc/passwd",
        "a.zarr",
        "file:///etc/passwd",
        "memory://a.zarr",
        "{{ CATALOG_DIR }}/%2e%2e/a.zarr",
        "http://169.254.169.254/latest/a.zarr",
        "http://[fe80::1]/a.zarr",
        "http://[::ffff:169.254.169.254]/a.zarr",
        "http://2852039166/a.zarr",
        "http://localhost/a.zarr",
        "http://127.1/a.zarr",
        "http://metadata.google.internal/a.zarr",
        "http://user:word@example.org/a.zarr",
        "http://example.org\\@127.0.0.2/a.zarr",
        "http:///a.zarr",
    ],
)
@pytest.mark.parametrize("driver", ["mrh_volume", "yaml_file_cat", "ndzarr"])
def test_a_remote_catalogue_names_public_addresses_only(web, urlpath, driver):
    """Local paths, this machine, its network and other protocols are refused; nothing of them is requested."""
    web.answers["/c.yaml"] = [remote(urlpath, driver)]
    with pytest.raises(CatalogError, match=r"c\.yaml, entry 'a'"):
        check(web.url + "/c.yaml")
    assert len(web.requests) == 1


def test_a_catalogue_nested_in_a_remote_one_is_remote(web, tmp_path):
    """Rules for remote catalogues hold further down, also if the first catalogue is a file."""
    path = write_yaml(tmp_path / "c.yaml", {"n": {"driver": "yaml_file_cat", "args": {"path": web.url + "/n.yaml"}}})
    web.answers["/n.yaml"] = [remote("{{ CATALOG_DIR }}/m.yaml", "yaml_file_cat")]
    web.answers["/m.yaml"] = [remote("/etc/passwd")]
    with pytest.raises(CatalogError, match=r"m\.yaml, entry 'a'.*leads out"):
        check(path)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/c.yaml", "http://localhost:9/c.yaml", "http://169.254.1.1/c"]
)
def test_redirects_to_other_protocols_and_networks_are_refused(web, location):
    """A redirect within the server is followed."""
    web.answers = {"/c.yaml": [(302, {"Location": "/d.yaml"}, b"")], "/d.yaml": [(302, {"Location": location}, b"")]}
    with pytest.raises(CatalogError, match="redirect"):
        check(web.url + "/c.yaml")
    web.answers["/d.yaml"] = [remote("{{ CATALOG_DIR }}/a.zarr")]
    check(web.url + "/c.yaml")


def test_endless_redirects_and_answers_end(web, monkeypatch):
    """Loops of redirects, too long bodies and server errors are one sentence each."""
    monkeypatch.setattr("mrhdata.datasets.documents.MAX_BYTES", 1000)
    web.answers["/c.yaml"] = [(302, {"Location": "/c.yaml"}, b"")]
    with pytest.raises(CatalogError, match="redirected more than"):
        check(web.url + "/c.yaml")
    web.answers["/c.yaml"] = [(200, {}, b"#" * 100_000)]
    with pytest.raises(CatalogError, match="larger than"):
        check(web.url + "/c.yaml")
    web.answers["/c.yaml"] = [(500, {}, b"")]
    with pytest.raises(CatalogError, match="cannot be read"):
        check(web.url + "/c.yaml")


def test_headers_of_the_user_go_to_the_host_of_the_catalogue_only(web):
    """A nested catalogue of the same host gets them; one on another host does not, and other options are refused."""
    web.answers = {
        "/c.yaml": [remote("{{ CATALOG_DIR }}/n.yaml", "yaml_file_cat")],
        "/n.yaml": [remote("https://127.0.0.1.example.org/a.zarr")],
    }
    cat = mrhdata.open_catalog(web.url + "/c.yaml", {"headers": {"Authorization": "secret"}})
    assert [headers.get("Authorization") for _, headers in web.requests] == ["secret", "secret"]
    assert cat["a"]["a"].options == {}
    with pytest.raises(CatalogError, match="must be headers"):
        check(web.url + "/c.yaml", {"anon": True})


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "http://169.254.169.254", "anon": True},
        {"endpoint_url": "file:///etc", "anon": True},
        {"endpoint_url": "http://10.0.0.1", "anon": True, "client_kwargs": {}},
        {"client_kwargs": {"endpoint_url": "http://[::1]"}, "anon": True},
        {"client_kwargs": {"endpoint_url": 3}},
        {"client_kwargs": {"verify": "x"}},
        {"endpoint_url": "https://example.org"},
        {"key": "a", "secret": "b"},
    ],
)
def test_storage_options_of_a_remote_catalogue(web, options):
    """Endpoints are public, and requests to them are not signed with keys of the reader."""
    web.answers["/c.yaml"] = [remote("s3://bucket/a.zarr", storage_options=options)]
    if options.get("endpoint_url") == "http://10.0.0.1":
        # Allowed in a catalogue that lies in a private network itself.
        check(web.url + "/c.yaml")
        return
    with pytest.raises(CatalogError, match=r"c\.yaml, entry 'a'"):
        check(web.url + "/c.yaml")


def test_an_entry_below_an_s3_catalogue_is_read_with_its_options():
    """Options of the user are passed on to paths below the catalogue, and to no other address."""
    from mrhdata.datasets.validation import check_content

    sources = {"a": volume(urlpath="{{ CATALOG_DIR }}/a.zarr"), "b": volume(urlpath="s3://other/b.zarr")}
    entries = check_content({"sources": sources}, "s3://bucket/c.yaml", {"anon": True}).entries
    assert entries["a"].args == {"urlpath": "s3://bucket/a.zarr", "storage_options": {"anon": True}}
    assert entries["b"].args == {"urlpath": "s3://other/b.zarr"}


def test_the_catalogue_class_checks_what_it_is_given(folder):
    """The class opened directly checks too, and takes none of intake's options that run code."""
    path = write_yaml(folder / "c.yaml", {"n": nested(getshell=True)})
    with pytest.raises(CatalogError, match="among path"):
        catalog.Catalog(str(path))
    assert not {"getshell", "getenv", "text", "fs"} & set(inspect.signature(catalog.Catalog.__init__).parameters)
