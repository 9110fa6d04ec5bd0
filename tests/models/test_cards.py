"""Shipped networks: their cards are correct, altered weights are refused, and predictions are good."""

import json
import shutil

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata import models, phantom
from mrhdata.bench.api import KINDS
from mrhdata.datasets.subjects import Subject
from mrhdata.degrade import PUBLISHED
from mrhdata.errors import ModelError
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.metrics.detection import detection
from mrhdata.models.cards import WEIGHTS, Card, read_card
from mrhdata.recipes import restoration
from mrhdata.recipes.restoration import degrade_stack
from mrhdata.registration.resampling import resample

NAMES = [card.name for card in models.list()]


def test_list_selects_by_task():
    assert {card.task for card in models.list()} == set(KINDS)
    assert [card.name for card in models.list("cells")] == [c.name for c in models.list() if c.task == "cells"]


@pytest.mark.parametrize("name", NAMES)
def test_card_agrees_with_its_network(name):
    card, network = read_card(WEIGHTS / name / "card.json"), models.load(name)
    assert card.network == network.spec.name
    assert card.inputs == tuple(network.spec.channels)
    assert card.spacing_mm == tuple(network.spec.spacing_mm)
    assert card.parameters == sum(p.numel() for p in network.parameters())
    size = (WEIGHTS / name / "model.safetensors").stat().st_size / 1e6
    assert card.megabytes == pytest.approx(size)
    assert size <= 5
    # Only networks of others, whose test data are not public, have no score.
    assert bool(card.score) == (not card.source)
    for score in filter(None, (card.score, card.baseline)):
        assert score["low"] <= score["value"] <= score["high"]
    assert len(card.limits) > 1
    assert not set(map(str, card.split["training"])) & set(map(str, card.split["test"]))
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_list_prints_as_a_table():
    cards = models.list()
    assert len(NAMES) == 9
    assert all(name in repr(cards) and name in cards._repr_html_() for name in NAMES)


@pytest.fixture
def copied_network(tmp_path):
    shutil.copytree(WEIGHTS / NAMES[0], tmp_path / "network")
    return tmp_path / "network"


def test_weights_that_differ_from_the_card_are_refused(copied_network):
    weights = copied_network / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="its card says"):
        models.load(copied_network)


@pytest.mark.parametrize("text", ["{}", "[]", "{", json.dumps({"score": 1, "nothing": 2})])
def test_malformed_cards_are_refused(copied_network, text):
    (copied_network / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"is not a model card|has unknown fields"):
        models.load(copied_network)


def test_unknown_field_of_a_card_is_named_once(copied_network):
    """The message is not wrapped in that of another kind of damage."""
    path = copied_network / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    with pytest.raises(ModelError, match=r"card\.json has unknown fields \['colour'\]; save the network again$"):
        read_card(path)


def test_card_survives_writing_and_reading(tmp_path):
    card = models.list()[0]
    card.write(tmp_path)
    assert read_card(tmp_path / "card.json") == card
    assert isinstance(card, Card)


@pytest.mark.full
def test_histology_is_predicted_out_of_the_box(tmp_path):
    """The seed of the brain, as of all phantoms below, is not among those of the card."""
    network, brain = models.load("phantom-nf"), phantom.mouse_brain(0.2, seed=999)
    maps, slab = phantom.mouse_maps(brain), {"y": slice(30, 32)}
    inputs = {name: maps[name].isel(slab).rename(name) for name in network.spec.channels}
    mask = brain["mask"].isel(slab)
    predicted = mrhdata.predict(network, inputs, tmp_path / "nf.zarr", mask=mask, progress=False)
    pair = [v.values[mask.values > 0] for v in (predicted, brain["nf"].isel(slab))]
    assert np.corrcoef(pair)[0, 1] > 0.85


@pytest.mark.full
def test_tissue_is_labelled_out_of_the_box():
    """The voxel size of the head differs from that of the card."""
    head = {name: v.isel(z=slice(13, 15)) for name, v in phantom.deep_grey(999, spacing_mm=(6, 3, 3)).items()}
    predicted = segment(models.load("phantom-tissue"), head["t1w"])
    case = Subject("999", {"t1w": head["t1w"]}, head["tissue"])
    assert score_labels(case, predicted, (0, 1, 2, 3)).dice.mean() > 0.8


@pytest.mark.full
def test_nuclei_are_labelled_out_of_the_box():
    """The test volume is the middle of a head, which contains the nuclei."""
    head = phantom.deep_grey(999, spacing_mm=(3.0, 1.0, 1.0))
    middle = {d: slice(n // 4, n - n // 4) for d, n in zip("zyx", head["qsm"].shape, strict=True)}
    qsm, labels = (head[name].isel(middle) for name in ("qsm", "labels"))
    network = models.load("phantom-nuclei")
    table = score_labels(Subject("999", {"qsm": qsm}, labels), segment(network, qsm), network.spec.labels)
    assert table.dice.mean() > 0.75


def test_scans_are_restored_out_of_the_box(tmp_path):
    """The result is closer to the good image than the interpolated scan is."""
    good = phantom.neuropil((6, 128, 128), seed=999)["em"].compute()
    scan = degrade_stack(good, PUBLISHED["em_AG_D_sameas_preprint"], 999)
    restored = restoration.restore(models.load("phantom-em"), scan, tmp_path / "r.zarr", progress=False)
    interpolated = resample(scan.astype(np.float32), good)
    error, baseline = (float(np.mean((v.values.astype(float) - good.values) ** 2)) for v in (restored, interpolated))
    assert error < 0.8 * baseline
    assert restored.attrs["unfamiliar"] < 0.25


@pytest.mark.full
def test_cells_are_found_out_of_the_box(tmp_path):
    """Detected cells match the true ones with F1 > 0.85."""
    brain = phantom.cleared((96, 128, 128), seed=999)
    network = models.load("phantom-cells")
    detected = mrhdata.detect(network, {"signal": brain.volume}, tmp_path / "detected", progress=False)
    assert detected.attrs["unfamiliar"] < 0.25
    true_cells = brain.cells[["X", "Y", "Z"]]
    assert detection(true_cells, detected[["X", "Y", "Z"]], radius_mm=0.012).f1 > 0.85
