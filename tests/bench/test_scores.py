"""Scores of answers whose worth is known."""

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.bench.manifest import Manifest
from mrhdata.bench.scores import BOOTSTRAP, score_answers
from mrhdata.bench.tasks import Task
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError
from mrhdata.metrics.overlap import overlap

SHAPE = (8, 12, 12)
BLOCKS = [[0, 0, 0, 0, 4, 12, 12], [0, 4, 0, 0, 8, 12, 12]]


def task(kind, **settings):
    """A task of a kind."""
    return Task("test", "A test", kind, {}, {}, (4, 0, 0), settings)


def volume(data, kind="image"):
    """On a grid of 1 mm."""
    return mrhdata.volume.from_array(np.asarray(data), spacing=(1, 1, 1), kind=kind)


def verdict(how, truth, answer, threshold=None, blocks=BLOCKS, **inputs):
    """What the judge says of one subject."""
    first = truth if hasattr(truth, "dims") else inputs.pop("image")
    subject = Subject("a", {"image": first}, truth)
    return score_answers(how, [subject], [answer], Manifest("test", {}, blocks, {}, threshold))


@pytest.fixture
def rng():
    """Seeded."""
    return np.random.default_rng(0)


def test_values(rng):
    """The truth is perfect, its negative ranks all wrong way round, and a constant ranks nothing."""
    truth = volume(rng.random(SHAPE))
    how = task("histology", positive="above", percentile=70)
    best = verdict(how, truth, truth.copy(), 0.7)
    assert best.estimates == {"AUC": 1.0, "sensitivity": 1.0, "R2": 1.0}
    assert verdict(how, truth, -truth, 0.7).estimates["AUC"] == 0.0
    assert verdict(how, truth, truth * 0, 0.7).estimates["AUC"] == 0.5
    below = task("histology", positive="below", percentile=30)
    assert verdict(below, truth, truth.copy(), 0.3).estimates["AUC"] == 1.0


def test_only_the_mask_counts(rng):
    """Nonsense outside of it costs nothing."""
    truth, mask = volume(rng.random(SHAPE)), np.ones(SHAPE, np.uint8)
    mask[:, :6] = 0
    answer = truth.where(mask > 0, 100.0)
    subject = Subject("a", {"image": truth}, truth, volume(mask, "mask"))
    how = task("histology", positive="above", percentile=70)
    assert score_answers(how, [subject], [answer], Manifest("t", {}, BLOCKS, {}, 0.5)).estimates["R2"] == 1.0


def test_labels_are_scored_as_elsewhere(rng):
    """Dice of all blocks together is that of the whole volume, and blocks alone are those of their parts."""
    truth, answer = (volume(rng.integers(0, 3, SHAPE).astype(np.uint8), "labels") for _ in range(2))
    found = verdict(task("tissue", labels={"A": 1, "B": 2}), truth, answer)
    table = overlap(truth.values, answer.values, labels=(1, 2)).set_index("label")["dice"]
    assert found.estimates["Dice A"] == pytest.approx(table[1])
    assert found.estimates["mean Dice"] == pytest.approx(table.mean())
    first = overlap(truth.values[:4], answer.values[:4], labels=(1, 2))["dice"].mean()
    assert found.blocks[0] == pytest.approx(first)
    assert len(found.replicates["mean Dice"]) == BOOTSTRAP.replicates


def test_a_label_that_nobody_has_is_left_out(rng):
    """No score, rather than a perfect or a failed one."""
    truth = volume((rng.random(SHAPE) > 0.5).astype(np.uint8), "labels")
    found = verdict(task("nuclei", labels={"A": 1, "B": 2}), truth, truth.copy())
    assert found.estimates["mean Dice"] == 1.0
    assert np.isnan(found.estimates["Dice B"])


def test_stacks(rng):
    """Noise costs decibels; the more of it, the more."""
    truth = volume((rng.random((8, 32, 32)) * 255).astype(np.uint8))
    blocks = [[0, 0, 0, 0, 4, 32, 32], [0, 4, 0, 0, 8, 32, 32]]
    noisy = [truth.astype(np.float32) + rng.normal(0, sd, truth.shape) for sd in (5, 20)]
    little, much = (verdict(task("restoration"), truth, n, blocks=blocks).estimates for n in noisy)
    assert little["PSNR"] > much["PSNR"] + 8
    assert little["SSIM"] > much["SSIM"]


def test_cells():
    """Pairs, misses and false ones count in the block they lie in; blocks add up to the whole."""
    image = volume(np.zeros(SHAPE))
    truth = pd.DataFrame(image.mrh.world([[1, 2, 2], [1, 9, 9], [6, 5, 5]]), columns=["X", "Y", "Z"])
    found = pd.DataFrame(image.mrh.world([[1, 2, 2.4], [6, 5, 5], [6, 10, 10]]), columns=["X", "Y", "Z"])
    what = verdict(task("cells", radius_mm=1.0), truth, found, image=image)
    assert what.estimates == pytest.approx({"F1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "count error": 0.0})
    assert what.blocks == pytest.approx([2 / 3, 2 / 3])
    nothing = verdict(task("cells", radius_mm=1.0), truth, found.iloc[:0], image=image)
    assert nothing.estimates["F1"] == 0.0


@pytest.mark.parametrize("answer", ["shape", "grid", "nan", "kind"])
def test_answers_that_cannot_be_scored(rng, answer):
    """Another shape, another place, no number, no volume."""
    truth = volume(rng.random(SHAPE))
    wrong = {
        "shape": truth.isel(z=slice(0, 4)),
        "grid": mrhdata.volume.from_array(truth.values, spacing=(2, 1, 1)),
        "nan": truth.where(truth > 0.1),
        "kind": pd.DataFrame(),
    }
    with pytest.raises((DataError, mrhdata.errors.GridError)):
        verdict(task("histology", positive="above", percentile=70), truth, wrong[answer], 0.5)
    if answer == "kind":
        with pytest.raises(DataError, match="columns X, Y, Z"):
            verdict(task("cells", radius_mm=1.0), truth, truth)
