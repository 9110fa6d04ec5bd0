"""Catalogues: plain intake opens them, selection is exact, and code is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mrhdata
from mrhdata.datasets import build, catalog
from mrhdata.errors import CatalogError
from mrhdata.volume.construct import from_array

CATALOGS = Path(__file__).parents[2] / "catalogs"


@pytest.fixture
def two_subjects(tmp_path):
    """Write a catalogue of two subjects with two roles each; each volume has its own value."""
    entries = {}
    for i, subject in enumerate(("1", "10")):
        for j, role in enumerate(("t2w", "af")):
            path = f"{subject}_{role}.zarr"
            mrhdata.write(from_array(np.full((2, 3, 4), 10 * i + j), spacing=(1, 1, 1), name=role), tmp_path / path)
            entries[f"sub_{subject}_{role}"] = (path, {"subject": subject, "role": role})
    catalog.write(tmp_path / "catalog.yaml", "Two", entries)
    return tmp_path / "catalog.yaml"


def test_select_matches_exactly(two_subjects):
    """Subject 1 is not subject 10; the error for an unknown value lists the existing ones."""
    cat = mrhdata.open_catalog(two_subjects)
    group = cat.select(subject="1")
    assert {name: int(v.max()) for name, v in group.items()} == {"t2w": 0, "af": 1}
    assert {name: int(v.max()) for name, v in cat.select(subject="10").items()} == {"t2w": 10, "af": 11}
    assert sorted(cat.select(role="af")) == ["sub_10_af", "sub_1_af"]
    with pytest.raises(CatalogError, match=r"\{'subject': \['1', '10'\]\}"):
        cat.select(subject="01")


def test_missing_name_in_a_group_raises_a_key_error_that_lists_the_names(two_subjects):
    """The message names the group; otherwise a group behaves like a dict."""
    cat = mrhdata.open_catalog(two_subjects)
    group = cat.select(subject="1")
    with pytest.raises(CatalogError) as caught:
        group["T2w"]
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == "subject '1' has no 'T2w'; it has 't2w', 'af'"
    assert (group.get("T2w"), "T2w" in group, isinstance(group, dict)) == (None, False, True)
    with pytest.raises(KeyError, match=r"catalog\.yaml has no '01'; it has '1', '10'"):
        cat.subjects()["01"]


def test_plain_intake_opens_a_catalogue(two_subjects):
    """Volume, subject and geometry are correct without an import of mrhdata."""
    code = (
        f"import intake; c = intake.open_catalog({str(two_subjects)!r}); v = c.sub_10_af.read();"
        "print(int(v.max()), v.mrh.spacing.tolist(), c.sub_10_af.metadata['subject'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "11 [1.0, 1.0, 1.0] 10"


def test_shipped_catalogue_opens(shared):
    """Every entry opens with plain intake; the data folder is next to the project."""
    import intake

    catalog.check(CATALOGS / "mouse.yaml")
    cat = intake.open_catalog(str(CATALOGS / "mouse.yaml"))
    assert len(list(cat)) == 6
    for name in cat:
        volume = cat[name].read()
        assert volume.mrh.space == cat[name].metadata["space"]
        assert volume.mrh.grid.shape


def nearest_values(volume, like):
    """Return the nearest values of a volume at the voxels of another, 0 outside."""
    points_mm = like.mrh.grid.world(np.moveaxis(np.indices(like.shape), 0, -1))
    index = np.rint(volume.mrh.grid.index(points_mm)).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(-1)
    values = np.zeros(like.shape, volume.dtype)
    values[inside] = volume.values[tuple(index[inside].T)]
    return values


def test_header_overrides_align_allen_and_minc_volumes(shared):
    """Allen's annotation, read with the options of its entry, covers the brain of the MINC volumes: Dice >= 0.95."""
    cat = mrhdata.open_catalog(CATALOGS / "mouse.yaml")
    annotation = cat["annotation"].read().compute()
    template = mrhdata.read(shared / "mouse-mri-histology/average_template_200um_mask.mnc", kind="mask").compute()
    for mask in (template, cat["mask"].read().compute()):
        covered, brain = nearest_values(annotation, mask) > 0, mask.values > 0
        dice = 2 * (covered & brain).sum() / (covered.sum() + brain.sum())
        assert dice >= 0.95


def test_left_and_right_of_the_projection_density(shared):
    """Allen injects the right hemisphere: density is highest at X > 0.

    The MINC volumes are nearly symmetric (r = 0.996 with their mirror images), so values cannot distinguish their
    left from their right; this test fixes the side of Allen's volumes only.
    """
    cat = mrhdata.open_catalog(CATALOGS / "mouse.yaml")
    density = cat["projection"].read().compute()
    index = np.stack(np.nonzero(density.values > 0.5 * density.values.max()), -1)
    assert density.mrh.world(index)[:, 0].mean() > 0.5


GOOD = "sources: {a: {driver: mrh_volume, args: {urlpath: '{{ CATALOG_DIR }}/a.nii'}}}"


@pytest.mark.parametrize(
    "text",
    [
        "plugins: {source: [{module: antigravity}]}\n" + GOOD,
        "sources: {a: {driver: os.system, args: {urlpath: x}}}",
        "sources: {a: {driver: mrhdata.datasets.catalog.VolumeSource, args: {urlpath: x}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: \"{{ cycler.__init__.__globals__.os.popen('id') }}\"}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: '{{ env(HOME) }}/a'}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: '{% set x = 1 %}a'}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: x}, metadata: {k: ['{{ shell(id) }}']}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: x}, parameters: {p: {type: str, default: shell(id)}}}}",
        "sources: {a: {driver: [mrh_volume], args: {urlpath: x}}}",
        "sources: {a: !!python/object/apply:os.system [id]}",
        "sources: &a {b: *a}",
        "sources: [1, 2]",
        "sources: {a: 3}",
        "- 1",
        "{",
        "\x00",
        "metadata: {title: '{{ shell(id) }}'}\n" + GOOD,
        "sources: {a: {driver: mrh_volume, args: {urlpath: 'reference://x'}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: 'ssh://x/y.zarr'}}}",
        "sources: {a: {driver: zarr, args: {urlpath: 'simplecache::s3://b/x.zarr'}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: [x]}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: 's3://b/x.zarr', storage_options: {fo: y}}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: x, storage_options: {client_kwargs: {verify: x}}}}}",
        "sources: {a: {driver: mrh_volume, args: {urlpath: '{{ p }}'}, parameters: {p: {default: ../../etc}}}}",
        "sources: {a: {driver: yaml_file_cat, args: {path: 'github://x:y@/c.yaml'}}}",
    ],
)
def test_catalogues_that_could_run_code_are_refused(tmp_path, text, monkeypatch):
    """The error is raised before intake is called."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    monkeypatch.setattr(catalog.Catalog, "__init__", lambda *_: pytest.fail("intake was called"))
    with pytest.raises(CatalogError, match=r"c\.yaml"):
        mrhdata.open_catalog(path)


def test_nested_catalogues_are_checked_too(tmp_path):
    """One bad nested catalogue is enough for an error; a cycle of catalogues ends."""
    (tmp_path / "top.yaml").write_text(
        "sources: {n: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/leaf.yaml'}}}"
    )
    (tmp_path / "leaf.yaml").write_text(
        "sources: {n: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/top.yaml'}}}"
    )
    catalog.check(tmp_path / "top.yaml")
    (tmp_path / "leaf.yaml").write_text("plugins: {}\n" + GOOD)
    with pytest.raises(CatalogError, match=r"leaf\.yaml: sections \['plugins'\]"):
        catalog.check(tmp_path / "top.yaml")
    with pytest.raises(CatalogError, match="does not exist"):
        catalog.check(tmp_path / "gone.yaml")


def test_plain_intake_raises_an_error_for_an_unknown_subject(two_subjects):
    """The driver does not accept a subject as an option and return the first one."""
    import intake

    cat = intake.open_catalog(str(two_subjects))
    with pytest.raises(CatalogError, match="no \\['subject'\\]"):
        cat["sub_1_t2w"](subject="10").read()
    with pytest.raises(KeyError):
        cat["sub_2_t2w"]


def test_one_world_point_is_one_tissue_in_five_modalities(five_modalities):
    """MRI, QSM, histology, cleared tissue and EM have five spacings and three orientations in one world space."""
    path, tissue, back = five_modalities
    group = mrhdata.open_catalog(path).select(subject="01")
    assert sorted(group) == ["cleared", "em", "histology", "mri", "qsm"]
    assert len({float(v.mrh.spacing[0].round(6)) for v in group.values()}) == 5
    assert len({v.mrh.grid.orientation for v in group.values()}) >= 3
    volumes = {name: v.compute() for name, v in group.items()}
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.28, 0.28, (3000, 3))
    # Points at least 0.11 mm inside one tissue, so that the voxels of coarse modalities do not cross its edge.
    around = points[:, None] + rng.uniform(-0.11, 0.11, (1, 200, 3))
    interior = (tissue(around) == tissue(points)[:, None]).all(1)
    assert interior.sum() > 100
    for name, volume in volumes.items():
        index = np.rint(volume.mrh.index(points[interior])).astype(int)
        labels = back[name](volume.values[tuple(index.T)].astype(float))
        np.testing.assert_allclose(labels, tissue(points[interior]), atol=1e-5)


def test_build_stores_names_overrides_licence_checksum_and_split(tmp_path, caplog):
    """BIDS names are parsed exactly, an unreadable file is left out, and a second build writes the same text."""
    study = tmp_path / "study"
    (study / "sub-1" / "anat").mkdir(parents=True)
    (study / "dataset_description.json").write_text('{"Name": "A study", "License": "CC0", "DatasetDOI": "doi:1"}')
    for subject in ("1", "10", "2", "3", "4"):
        (study / f"sub-{subject}" / "anat").mkdir(parents=True, exist_ok=True)
        for suffix, kind in (("T1w", "image"), ("dseg", "labels")):
            values = np.full((2, 3, 4), int(subject), np.int16)
            volume = from_array(values, spacing=(1, 1, 1), kind=kind)
            mrhdata.write(volume, study / f"sub-{subject}" / "anat" / f"sub-{subject}_ses-a_{suffix}.nii.gz")
    (study / "sub-1" / "anat" / "sub-1_T2w.nii.gz").write_bytes(b"no volume")
    path = build.build(study, split={"train": 0.6, "test": 0.4}, unit="um")
    assert "sub-1_T2w.nii.gz" in caplog.text
    cat = mrhdata.open_catalog(path)
    assert {int(v.max()) for v in cat.select(subject="1").values()} == {1}
    assert list(cat.select(subject="10")) == ["T1w", "dseg"]
    np.testing.assert_allclose(cat.select(subject="1")["T1w"].mrh.spacing, 0.001)
    metadata, _ = cat.find(subject="1", role="dseg")["sub_1_ses_a_dseg"]
    assert {key: metadata[key] for key in ("session", "modality", "kind", "licence")} == {
        "session": "a",
        "modality": "labels",
        "kind": "labels",
        "licence": "CC0",
    }
    assert (metadata["citation"], len(metadata["sha256"])) == ("doi:1", 64)
    parts = {s: {m["split"] for m, _ in cat.find(subject=s).values()} for s in ("1", "10", "2", "3", "4")}
    assert all(len(p) == 1 for p in parts.values())
    assert sorted(p for (p,) in parts.values()) == ["test", "test", "train", "train", "train"]
    assert set(cat.subjects(split="test")) == {s for s, p in parts.items() if p == {"test"}}
    first_text = path.read_text("utf-8")
    build.build(study, split={"train": 0.6, "test": 0.4}, unit="um")
    assert path.read_text("utf-8") == first_text


def test_select_includes_nested_catalogues(two_subjects, tmp_path):
    """Plain intake reads the same nested entry."""
    import intake

    (tmp_path / "top").mkdir()
    text = f"sources: {{mice: {{driver: yaml_file_cat, args: {{path: '{two_subjects}'}}}}}}"
    (tmp_path / "top" / "c.yaml").write_text(text)
    group = mrhdata.open_catalog(tmp_path / "top" / "c.yaml").select(role="af", subject="10")
    assert int(group["af"].max()) == 11
    assert int(intake.open_catalog(str(tmp_path / "top" / "c.yaml")).mice.sub_1_af.read().max()) == 1


@pytest.fixture
def http_address(tmp_path, two_subjects):
    """Serve the folder of the two subjects over http on loopback."""
    import functools
    import http.server
    import threading

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(QuietHandler, directory=two_subjects.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # aiohttp's session ends with the interpreter
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_catalogue_over_http(http_address, two_subjects):
    """A remote catalogue is checked and opened; its entries may not refer to local files."""
    cat = mrhdata.open_catalog(http_address + "/catalog.yaml")
    volume = cat.select(subject="10")["af"]
    assert volume.mrh.grid.shape == (2, 3, 4)
    (two_subjects.parent / "bad.yaml").write_text("sources: {a: {driver: mrh_volume, args: {urlpath: /etc/passwd}}}")
    with pytest.raises(CatalogError, match="leads out"):
        mrhdata.open_catalog(http_address + "/bad.yaml")
    up = "sources: {a: {driver: mrh_volume, args: {urlpath: '{{ CATALOG_DIR }}/../x.zarr'}}}"
    (two_subjects.parent / "bad.yaml").write_text(up)
    with pytest.raises(CatalogError, match="leads out"):
        mrhdata.open_catalog(http_address + "/bad.yaml")
    with pytest.raises(CatalogError, match=r"does not exist|cannot be read"):
        mrhdata.open_catalog(http_address + "/gone.yaml")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_catalogue_on_s3(two_subjects, monkeypatch):
    """A catalogue and its volumes are read anonymously from an S3-compatible server on loopback."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        files = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=endpoint)
        files.mkdir("volumes", acl="public-read")
        files.put(str(two_subjects.parent / "10_af.zarr"), "volumes/10_af.zarr", recursive=True)
        text = (
            "sources: {af: {driver: mrh_volume, args: {urlpath: '{{ CATALOG_DIR }}/10_af.zarr', storage_options: "
            f"{{anon: true, endpoint_url: '{endpoint}'}}}}, metadata: {{subject: '10'}}}}}}"
        )
        with files.open("volumes/catalog.yaml", "w") as file:
            file.write(text)
        options = {"anon": True, "endpoint_url": endpoint}
        cat = mrhdata.open_catalog("s3://volumes/catalog.yaml", storage_options=options)
        assert int(cat.select(subject="10")["af"].max()) == 11
    finally:
        server.stop()
