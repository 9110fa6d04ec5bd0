"""The demo in small: every step runs, on the phantom and on real volumes."""

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
from mrhdata.recipes import demo, demo_real, mrhnet
from tests.conftest import FULL


@pytest.fixture
def quick_demo(monkeypatch):
    """Patch the demo to coarse brains, one epoch and few resamplings."""
    brain = phantom.mouse_brain
    monkeypatch.setattr(phantom, "mouse_brain", lambda seed: brain(0.7, seed=seed))
    one_epoch = dataclasses.replace(mrhnet.RECOMMENDED, epochs=1)
    monkeypatch.setattr(mrhnet, "RECOMMENDED", one_epoch)
    few_resamplings = functools.partial(demo.sensitivity, bootstrap=Bootstrap(50))
    for module in (demo, demo_real):
        monkeypatch.setattr(module, "sensitivity", few_resamplings)
    monkeypatch.setattr(mrhnet, "VOXELWISE", dataclasses.replace(mrhnet.VOXELWISE, epochs=1, batch_size=1024))


@pytest.mark.full
def test_demo_on_phantom_writes_all_outputs(quick_demo, tmp_path):
    """Raw files, stores, catalogue, model, map, table and report exist; a second run (full tests) replaces them."""
    report = demo.run(tmp_path, seed=1)
    folder = tmp_path / "phantom"
    assert (folder / "sub-01" / "raw" / "mt_on.mnc").exists()
    assert (folder / "sub-04" / "af.zarr" / "zarr.json").exists()
    assert (folder / "mrhnet" / "model.safetensors").exists()
    table = pd.read_csv(folder / "sensitivity.csv")
    assert (table["model"] == "single").sum() == 67 + 4
    assert table["contrast"].iloc[0] == "true tissue"
    page = html.unescape(report.read_text("utf-8"))
    assert "AUC of MRH-Net minus AUC of" in page
    assert len(re.findall("<img", page)) == 2
    if FULL:
        assert demo.run(tmp_path, seed=1) == report
        pd.testing.assert_frame_equal(pd.read_csv(folder / "sensitivity.csv"), table)


@pytest.mark.full
def test_demo_on_real_volumes_writes_report_and_tables(quick_demo, tmp_path, shared):
    """The report and the tables of the real mouse brain, the published pairs and the slab are complete."""
    page = demo.run(tmp_path, data=shared).read_text("utf-8")
    assert "r = 0.32" in page
    assert "stored along y, z, x. The volume has axes z, y, x that point to S, P, R, with 18, 217, 182" in page
    table = pd.read_csv(tmp_path / "mouse" / "sensitivity.csv").set_index("contrast")
    assert {"T2w", "quadratic in T2w", "cubic in T2w", "MRH-Net"} == set(table.index)
    assert {"MRH-Net ensemble", "linear", "quadratic", "FA"} <= set(
        pd.read_csv(tmp_path / "pairs" / "sensitivity.csv")["contrast"]
    )


def test_coronal_blocks_have_gaps_and_all_roles():
    """Neighbouring blocks are at least a patch apart, and every role occurs."""
    blocks = demo_real._coronal_blocks(67)
    assert len(blocks) == 6
    for (_, _, end), (_, start, _) in itertools.pairwise(blocks):
        assert start - end >= max(mrhnet.PATCH)
    assert {role for role, *_ in blocks} == {"train", "validation", "test"}
    assert blocks[-1][2] == 67


def test_fold_ensemble_trains_and_predicts_on_table_rows(quick_demo):
    """A table trains one network per fold, which predicts a value per row."""
    table = pd.DataFrame({"a": [i / 200 for i in range(200)], "b": [i % 7 for i in range(200)]})
    networks = mrhnet.fold_ensemble(table, 3 * table["a"].to_numpy(), mrhnet.VOXELWISE, folds=2, progress=False)
    assert len(networks) == 2
    predicted = predict_rows(networks[0], table.to_numpy(), batch_size=64)
    assert predicted.shape == (200,)
    assert networks[0].spec.channels == ("a", "b")
