"""Scores of answers with known results."""

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
    """Return a task of a kind."""
    return Task("test", "A test", kind, {}, {}, (4, 0, 0), settings)


def volume(data, kind="image"):
    """Return a volume on a grid of 1 mm."""
    return mrhdata.volume.from_array(np.asarray(data), spacing=(1, 1, 1), kind=kind)


def score_one(question, truth, answer, threshold=None, blocks=BLOCKS, image=None):
    """Score the answer for one subject, whose truth is a volume or an array of points on an image."""
    on_image = image is not None
    subject = Subject("a", {"image": image}, points=truth) if on_image else Subject("a", {"image": truth}, truth)
    return score_answers(question, [subject], [answer], Manifest("test", {}, blocks, {}, threshold))


@pytest.fixture
def rng():
    """Return a seeded generator."""
    return np.random.default_rng(0)


def test_histology_scores_of_perfect_inverted_and_constant_answers(rng):
    """The truth has perfect scores, its negative an AUC of 0, and a constant an AUC of 0.5."""
    truth = volume(rng.random(SHAPE))
    above = task("histology", positive="above", percentile=70)
    best = score_one(above, truth, truth.copy(), 0.7)
    assert best.estimates == {"AUC": 1.0, "sensitivity": 1.0, "R2": 1.0}
    assert score_one(above, truth, -truth, 0.7).estimates["AUC"] == 0.0
    assert score_one(above, truth, truth * 0, 0.7).estimates["AUC"] == 0.5
    below = task("histology", positive="below", percentile=30)
    assert score_one(below, truth, truth.copy(), 0.3).estimates["AUC"] == 1.0


def test_voxels_outside_the_mask_do_not_count(rng):
    """Wrong values outside the mask leave R2 at 1."""
    truth, mask = volume(rng.random(SHAPE)), np.ones(SHAPE, np.uint8)
    mask[:, :6] = 0
    answer = truth.where(mask > 0, 100.0)
    subject = Subject("a", {"image": truth}, truth, volume(mask, "mask"))
    question = task("histology", positive="above", percentile=70)
    assert score_answers(question, [subject], [answer], Manifest("t", {}, BLOCKS, {}, 0.5)).estimates["R2"] == 1.0


def test_dice_matches_metrics_overlap(rng):
    """Dice over all blocks is that of the whole volume, and Dice of a block that of the same part."""
    truth, answer = (volume(rng.integers(0, 3, SHAPE).astype(np.uint8), "labels") for _ in range(2))
    scores = score_one(task("tissue", labels={"A": 1, "B": 2}), truth, answer)
    table = overlap(truth.values, answer.values, labels=(1, 2)).set_index("label")["dice"]
    assert scores.estimates["Dice A"] == pytest.approx(table[1])
    assert scores.estimates["mean Dice"] == pytest.approx(table.mean())
    first = overlap(truth.values[:4], answer.values[:4], labels=(1, 2))["dice"].mean()
    assert scores.blocks[0] == pytest.approx(first)
    assert len(scores.replicates["mean Dice"]) == BOOTSTRAP.replicates


def test_labels_absent_from_truth_and_answer_have_no_dice(rng):
    """The score is NaN, and does not change the mean."""
    truth = volume((rng.random(SHAPE) > 0.5).astype(np.uint8), "labels")
    scores = score_one(task("nuclei", labels={"A": 1, "B": 2}), truth, truth.copy())
    assert scores.estimates["mean Dice"] == 1.0
    assert np.isnan(scores.estimates["Dice B"])


def test_restoration_scores_decrease_with_noise(rng):
    """More noise lowers PSNR and SSIM."""
    truth = volume((rng.random((8, 32, 32)) * 255).astype(np.uint8))
    blocks = [[0, 0, 0, 0, 4, 32, 32], [0, 4, 0, 0, 8, 32, 32]]
    noisy = [truth.astype(np.float32) + rng.normal(0, sd, truth.shape) for sd in (5, 20)]
    little, much = (score_one(task("restoration"), truth, n, blocks=blocks).estimates for n in noisy)
    assert little["PSNR"] > much["PSNR"] + 8
    assert little["SSIM"] > much["SSIM"]


def test_cells_count_in_their_blocks():
    """Matches, misses and false positives count in the block of each point, and blocks add up to the whole."""
    image = volume(np.zeros(SHAPE))
    truth = image.mrh.world([[1, 2, 2], [1, 9, 9], [6, 5, 5]])
    detections = pd.DataFrame(image.mrh.world([[1, 2, 2.4], [6, 5, 5], [6, 10, 10]]), columns=["X", "Y", "Z"])
    scores = score_one(task("cells", radius_mm=1.0), truth, detections, image=image)
    assert scores.estimates == pytest.approx({"F1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "count error": 0.0})
    assert scores.blocks == pytest.approx([2 / 3, 2 / 3])
    no_detections = score_one(task("cells", radius_mm=1.0), truth, detections.iloc[:0], image=image)
    assert no_detections.estimates["F1"] == 0.0


@pytest.mark.parametrize("answer", ["shape", "grid", "nan", "kind"])
def test_unsuitable_answers_are_refused(rng, answer):
    """An answer with another shape or grid, with NaN, or of another type raises an error."""
    truth = volume(rng.random(SHAPE))
    wrong = {
        "shape": truth.isel(z=slice(0, 4)),
        "grid": mrhdata.volume.from_array(truth.values, spacing=(2, 1, 1)),
        "nan": truth.where(truth > 0.1),
        "kind": pd.DataFrame(),
    }
    with pytest.raises((DataError, mrhdata.errors.GridError)):
        score_one(task("histology", positive="above", percentile=70), truth, wrong[answer], 0.5)
    if answer == "kind":
        with pytest.raises(DataError, match="columns X, Y, Z"):
            score_one(task("cells", radius_mm=1.0), truth, truth)
