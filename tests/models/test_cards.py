"""Networks that are shipped: what their cards say is so, and weights that are not theirs are refused."""

import json
import shutil

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata import models, phantom
from mrhdata.bench.api import KINDS
from mrhdata.degrade import PUBLISHED
from mrhdata.errors import ModelError
from mrhdata.inference.segmenter import Case, scored, segment
from mrhdata.metrics.detection import detection
from mrhdata.models.cards import WEIGHTS, Card, read_card
from mrhdata.recipes import restoration
from mrhdata.recipes.restoration import degraded
from mrhdata.registration.resampling import resample

NAMES = [card.name for card in models.list()]


def test_listed_by_kind_of_task():
    assert {card.task for card in models.list()} == set(KINDS)
    assert [card.name for card in models.list("cells")] == [c.name for c in models.list() if c.task == "cells"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_is_so(name):
    card, network = read_card(WEIGHTS / name / "card.json"), models.load(name)
    assert card.network == network.spec.name
    assert card.inputs == tuple(network.spec.channels)
    assert card.spacing_mm == tuple(network.spec.spacing_mm)
    assert card.parameters == sum(p.numel() for p in network.parameters())
    size = (WEIGHTS / name / "model.safetensors").stat().st_size / 1e6
    assert card.megabytes == pytest.approx(size)
    assert size <= 5
    for held in (card.score, card.baseline):
        assert held["low"] <= held["value"] <= held["high"]
    assert len(card.limits) > 1
    assert not set(map(str, card.split["training"])) & set(map(str, card.split["test"]))
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_the_list_shows_itself():
    shown = models.list()
    assert all(name in repr(shown) and name in shown._repr_html_() for name in NAMES)


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(WEIGHTS / NAMES[0], tmp_path / "network")
    return tmp_path / "network"


def test_weights_of_another_are_refused(copied):
    weights = copied / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    with pytest.raises(ModelError, match="its card says"):
        models.load(copied)


@pytest.mark.parametrize("text", ["{}", "[]", "{", json.dumps({"score": 1, "nothing": 2})])
def test_what_is_no_card(copied, text):
    (copied / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"is not a model card|has unknown fields"):
        models.load(copied)


def test_cards_are_written_as_they_are_read(tmp_path):
    card = models.list()[0]
    card.write(tmp_path)
    assert read_card(tmp_path / "card.json") == card
    assert isinstance(card, Card)


@pytest.mark.full
def test_histology_is_predicted_out_of_the_box(tmp_path):
    """In a brain of another seed than those of the card, as are those below."""
    network, brain = models.load("phantom-nf"), phantom.mouse_brain(0.2, seed=999)
    maps, slab = phantom.mouse_maps(brain), {"y": slice(30, 32)}
    inputs = {name: maps[name].isel(slab).rename(name) for name in network.spec.channels}
    inside = brain["mask"].isel(slab)
    found = mrhdata.predict(network, inputs, tmp_path / "nf.zarr", where=inside, progress=False)
    pair = [v.values[inside.values > 0] for v in (found, brain["nf"].isel(slab))]
    assert np.corrcoef(pair)[0, 1] > 0.85


@pytest.mark.full
def test_tissue_is_labelled_out_of_the_box():
    """A slab of a head at other voxels than those of the card."""
    head = {name: v.isel(z=slice(13, 15)) for name, v in phantom.deep_grey(999, spacing_mm=(6, 3, 3)).items()}
    found = segment(models.load("phantom-tissue"), head["t1w"])
    case = Case("999", {"t1w": head["t1w"]}, head["tissue"])
    assert scored(case, found, (0, 1, 2, 3)).dice.mean() > 0.8


@pytest.mark.full
def test_nuclei_are_labelled_out_of_the_box():
    """The middle of a head, where they are."""
    head = phantom.deep_grey(999, spacing_mm=(3.0, 1.0, 1.0))
    middle = {d: slice(n // 4, n - n // 4) for d, n in zip("zyx", head["qsm"].shape, strict=True)}
    qsm, labels = (head[name].isel(middle) for name in ("qsm", "labels"))
    network = models.load("phantom-nuclei")
    table = scored(Case("999", {"qsm": qsm}, labels), segment(network, qsm), network.spec.labels)
    assert table.dice.mean() > 0.75


def test_scans_are_restored_out_of_the_box(tmp_path):
    """Nearer to the good image than the enlarged scan."""
    good = phantom.neuropil((6, 128, 128), seed=999)["em"].compute()
    scan = degraded(good, PUBLISHED["em_AG_D_sameas_preprint"], 999)
    found = restoration.restore(models.load("phantom-em"), scan, tmp_path / "r.zarr", progress=False)
    plain = resample(scan.astype(np.float32), good)
    error, before = (float(np.mean((v.values.astype(float) - good.values) ** 2)) for v in (found, plain))
    assert error < 0.8 * before


def test_cells_are_found_out_of_the_box(tmp_path):
    """The table of cells with its scores."""
    brain = phantom.cleared((96, 128, 128), seed=999)
    found = mrhdata.detect(models.load("phantom-cells"), {"signal": brain.volume}, tmp_path / "found", progress=False)
    table = brain.cells[["X", "Y", "Z"]]
    assert detection(table, found[["X", "Y", "Z"]], radius_mm=0.012).f1 > 0.85
