"""Catalogues: opened by plain intake, selected exactly, and never code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mrhdata
from mrhdata import catalog
from mrhdata.errors import CatalogError
from mrhdata.volume import from_array

SHIPPED = sorted((Path(__file__).parents[1] / "catalogs").glob("*.yaml"))


@pytest.fixture
def two_subjects(tmp_path):
    """Two subjects, two roles, values that tell them apart."""
    entries = {}
    for i, subject in enumerate(("1", "10")):
        for j, role in enumerate(("t2w", "af")):
            path = f"{subject}_{role}.zarr"
            mrhdata.write(from_array(np.full((2, 3, 4), 10 * i + j), spacing=(1, 1, 1), name=role), tmp_path / path)
            entries[f"sub_{subject}_{role}"] = (path, {"subject": subject, "role": role})
    catalog.write(tmp_path / "catalog.yaml", "Two", entries)
    return tmp_path / "catalog.yaml"


def test_select_matches_exactly(two_subjects):
    """Subject 1 is not subject 10; a wrong name is an error that names the right ones."""
    cat = mrhdata.open_catalog(two_subjects)
    group = cat.select(subject="1")
    assert {name: int(v.max()) for name, v in group.items()} == {"t2w": 0, "af": 1}
    assert {name: int(v.max()) for name, v in cat.select(subject="10").items()} == {"t2w": 10, "af": 11}
    assert sorted(cat.select(role="af")) == ["sub_10_af", "sub_1_af"]
    with pytest.raises(CatalogError, match=r"\{'subject': \['1', '10'\]\}"):
        cat.select(subject="01")


def test_plain_intake_opens_it(two_subjects):
    """Without importing us: right volume, right subject, right geometry."""
    code = (
        f"import intake; c = intake.open_catalog({str(two_subjects)!r}); v = c.sub_10_af.read();"
        "print(int(v.max()), v.mrh.spacing.tolist(), c.sub_10_af.metadata['subject'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "11 [1.0, 1.0, 1.0] 10"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_catalogues_open(path, shared):
    """Every entry opens with plain intake in its place beside the project."""
    import intake

    catalog.check(path)
    cat = intake.open_catalog(str(path))
    assert list(cat)
    for name in cat:
        volume = cat[name].read()
        assert volume.mrh.space == cat[name].metadata["space"]
        assert volume.mrh.grid.shape


GOOD = "sources: {a: {driver: mrh_volume, args: {urlpath: '{{ CATALOG_DIR }}/a.nii'}}}"


@pytest.mark.parametrize(
    "text",
    [
        "plugins: {source: [{module: antigravity}]}\n" + GOOD,
        "sources: {a: {driver: os.system, args: {urlpath: x}}}",
        "sources: {a: {driver: mrhdata.catalog.VolumeSource, args: {urlpath: x}}}",
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
    ],
)
def test_catalogues_that_could_run_code_are_refused(tmp_path, text, monkeypatch):
    """Refused before intake is called."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    monkeypatch.setattr(catalog.Catalog, "__init__", lambda *_: pytest.fail("intake was called"))
    with pytest.raises(CatalogError, match=r"c\.yaml"):
        mrhdata.open_catalog(path)


def test_nested_catalogues_are_checked_too(tmp_path):
    """One bad leaf spoils the tree; a loop of catalogues ends."""
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
