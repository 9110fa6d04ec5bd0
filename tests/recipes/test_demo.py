"""The main job in small: every step runs, on the phantom and on real volumes."""

import dataclasses
import functools
import html
import itertools
import re

import pandas as pd
import pytest

from mrhdata import phantom
from mrhdata.inference.voxelwise import predict_rows
from mrhdata.metrics.bootstrap import Bootstrap
from mrhdata.recipes import demo, mrhnet
from tests.conftest import FULL


@pytest.fixture
def quick(monkeypatch):
    """Coarse brains and a single short training: the path, not the figures."""
    brain = phantom.mouse_brain
    monkeypatch.setattr(phantom, "mouse_brain", lambda seed: brain(0.7, seed=seed))
    short = dataclasses.replace(mrhnet.RECOMMENDED, epochs=1)
    monkeypatch.setattr(mrhnet, "CORRECTED", short)
    few = functools.partial(demo.sensitivity, bootstrap=Bootstrap(50))
    monkeypatch.setattr(demo, "sensitivity", few)
    monkeypatch.setattr(mrhnet, "VOXELWISE", dataclasses.replace(mrhnet.VOXELWISE, epochs=1, batch_size=1024))


def test_phantom_path(quick, tmp_path):
    """Raw files, stores, catalogue, model, map, table and report are there; a second run (long form) replaces them."""
    report = demo.run(tmp_path, seed=1)
    made = tmp_path / "phantom"
    assert (made / "sub-01" / "raw" / "mt_on.mnc").exists()
    assert (made / "sub-04" / "af.zarr" / "zarr.json").exists()
    assert (made / "mrhnet" / "model.safetensors").exists()
    table = pd.read_csv(made / "sensitivity.csv")
    assert (table["model"] == "single").sum() == 67 + 4
    assert table["contrast"].iloc[0] == "true tissue"
    page = html.unescape(report.read_text("utf-8"))
    assert "AUC of MRH-Net less that of" in page
    assert len(re.findall("<img", page)) == 2
    if FULL:
        assert demo.run(tmp_path, seed=1) == report
        pd.testing.assert_frame_equal(pd.read_csv(made / "sensitivity.csv"), table)


@pytest.mark.full
def test_real_path(quick, tmp_path, shared):
    """The same on the real mouse volumes and the published pairs."""
    page = demo.run(tmp_path, data=shared).read_text("utf-8")
    assert "r = 0.32" in page
    assert "stored along y, z, x; as a volume its axes z, y, x run to S, P, R and hold 18, 217, 182" in page
    table = pd.read_csv(tmp_path / "mouse" / "sensitivity.csv").set_index("contrast")
    assert {"T2w", "quadratic in T2w", "cubic in T2w", "MRH-Net"} == set(table.index)
    assert {"MRH-Net ensemble", "linear", "quadratic", "FA"} <= set(
        pd.read_csv(tmp_path / "pairs" / "sensitivity.csv")["contrast"]
    )


def test_coronal_blocks_keep_their_distance():
    """Blocks of different roles lie at least a patch apart, and all roles are there."""
    regions = demo._coronal_blocks(67)
    for (_, _, end), (_, start, _) in itertools.pairwise(regions):
        assert start - end >= max(mrhnet.PATCH)
    assert {role for role, *_ in regions} == {"train", "validation", "test"}
    assert regions[-1][2] == 67


def test_rows_are_voxels(quick):
    """A table trains and predicts row by row; every fold of the ensemble holds out its own rows."""
    table = pd.DataFrame({"a": [i / 200 for i in range(200)], "b": [i % 7 for i in range(200)]})
    networks = mrhnet.fold_ensemble(table, 3 * table["a"].to_numpy(), mrhnet.VOXELWISE, folds=2, progress=False)
    assert len(networks) == 2
    predicted = predict_rows(networks[0], table.to_numpy(), batch_size=64)
    assert predicted.shape == (200,)
    assert networks[0].spec.channels == ("a", "b")
