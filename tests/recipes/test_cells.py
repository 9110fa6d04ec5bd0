"""Detection of cells: labels from annotations, training on complete and incomplete annotations, and verification."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError
from mrhdata.inference.detector import detect, stored_peaks
from mrhdata.metrics.detection import detection
from mrhdata.models.spec import IGNORE_INDEX
from mrhdata.recipes import cell_verification, cells
from mrhdata.volume.construct import from_array

UM = 0.001
SHAPE = (48, 72, 76)


def brain(seed, missing=0.0):
    """Return a brain at 2 um with cells of 10 um among bright specks, annotated in part, and all its cells."""
    rng = np.random.default_rng(seed)
    image, centres = np.zeros(SHAPE), []
    while len(centres) < 40:
        centre = rng.uniform(6, np.array(SHAPE) - 7)
        if all(np.linalg.norm(centre - other) > 9 for other in centres):
            centres.append(centre)
    box = np.moveaxis(np.indices((7, 7, 7)), 0, -1)
    for centre in centres:
        index = box + np.floor(centre).astype(int) - 3
        near = index[np.linalg.norm(index - centre, axis=-1) < 2.5]
        image[tuple(near.T)] += rng.uniform(0.6, 1.6)
    image[tuple(rng.integers(0, SHAPE, (60, 3)).T)] += 25
    values = 300 * gaussian_filter(image, 1) + 100 + rng.normal(0, 15, SHAPE)
    volume = from_array(values.clip(0).astype(np.uint16), spacing=(2 * UM,) * 3, name="signal")
    truth = volume.mrh.world(np.array(centres))
    annotated = truth[rng.random(len(truth)) >= missing]
    return Subject(f"{seed:02d}", {"signal": volume}, points=annotated, points_complete=not missing), truth


def quick_recipe(**changes):
    """Return a recipe that trains within seconds."""
    recipe = cells.recommended_recipe(2 * UM)
    training = replace(recipe.training, epochs=5, batch_size=8)
    small = {"config": {"widths": (12, 12, 12, 24)}, "patch_size": 9, "patches_per_brain": 60}
    return replace(recipe, training=training, again=replace(recipe.again, epochs=2), **{**small, **changes})


def test_annotation_labels_depend_on_distance_in_mm():
    """The label of each score depends on its distance from the nearest annotation in mm, at any spacing."""
    volume = from_array(np.zeros((40, 50, 60), np.uint16), spacing=(4 * UM, 2 * UM, 2 * UM))
    annotations = volume.mrh.world(np.random.default_rng(0).uniform(4, 36, (12, 3)))
    subject = Subject("01", {"signal": volume}, points=annotations)
    rules = cells.AnnotationRules(4 * UM, 12 * UM, 40 * UM)
    labels = cells.annotation_labels(subject, rules)
    assert labels.shape == (15, 20, 25)
    centres = labels.mrh.world(np.indices(labels.shape).reshape(3, -1).T)
    assert np.allclose(volume.mrh.index(centres[0]), 5.5)
    distance = cKDTree(annotations).query(centres)[0].reshape(labels.shape)
    expected = np.where(distance <= 4 * UM, 1, np.where(distance <= 12 * UM, IGNORE_INDEX, 0))
    expected[distance > 40 * UM] = IGNORE_INDEX
    nearest = np.rint(labels.mrh.index(annotations)).astype(int)
    nearest = nearest[((nearest >= 0) & (nearest < labels.shape)).all(axis=1)]
    expected[tuple(nearest.T)] = 1
    assert np.array_equal(labels.values, expected)
    thinned = cells.annotation_labels(subject, replace(rules, negatives=10.0))
    assert (thinned.values == 0).sum() == 10 * (thinned.values == 1).sum()
    assert (thinned.values[labels.values != 0] == labels.values[labels.values != 0]).all()


def test_possible_cells_of_incomplete_brains_are_ignored():
    """High scores without an annotation are ignored in an incomplete brain, and background in a complete one."""
    incomplete, _ = brain(0, missing=0.3)
    rules = quick_recipe().rules
    labels = cells.annotation_labels(incomplete, rules)
    scores = labels.copy(data=np.where(labels.values == 0, 200, 0).astype(np.uint8))
    assert not (cells.annotation_labels(incomplete, rules, scores=scores).values == 0).any()
    complete = replace(incomplete, points_complete=True)
    assert np.array_equal(cells.annotation_labels(complete, rules, scores=scores).values, labels.values)


@pytest.mark.full
def test_trained_network_detects_cells_of_another_brain(tmp_path):
    """The network finds cells of a test brain; a second run resumes from the checkpoint with equal weights."""
    brains_and_truth = [brain(seed) for seed in range(4)]
    recipe = quick_recipe(rounds=1)
    brains = [b for b, _ in brains_and_truth]
    trained = cells.train(recipe, brains[:2], brains[2:3], radius_mm=12 * UM, folder=tmp_path / "run", progress=False)
    table = detect(trained.model, brains[3].inputs, tmp_path / "brain", progress=False)
    scores = detection(brains_and_truth[3][1], table[["X", "Y", "Z"]].to_numpy(), 12 * UM)
    assert scores.f1 > 0.9
    assert scores.median_distance_mm < 2 * UM
    truth, score = cells.patch_scores(trained.model, brains[3], shell_mm=(12 * UM, 40 * UM))
    assert truth.mean() == pytest.approx(1 / 11)
    assert np.mean(score[truth == 1][:, None] > score[truth == 0][None]) > 0.98
    again = cells.train(recipe, brains[:2], brains[2:3], radius_mm=12 * UM, folder=tmp_path / "run", progress=False)
    assert len(again.model.state_dict()) > 0
    assert stored_peaks(again.model.spec) == stored_peaks(trained.model.spec)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(again.model.state_dict().values(), trained.model.state_dict().values(), strict=True)
    )


def test_train_refuses_leaks_missing_annotations_and_small_volumes():
    """Each message names the subject."""
    one, _ = brain(0)
    with pytest.raises(DataError, match=r"\['00'\] are in training and in validation"):
        cells.train(quick_recipe(), [one], [one], radius_mm=0.01, progress=False)
    without_annotations = replace(one, id="07", points=np.empty((0, 3)))
    with pytest.raises(DataError, match=r"\['07'\] have no annotated cells"):
        cells.train(quick_recipe(), [one], [without_annotations], radius_mm=0.01, progress=False)
    flat = {"signal": next(iter(one.inputs.values())).isel(z=slice(0, 8))}
    with pytest.raises(DataError, match=r"09 has \(8, 72, 76\) voxels"):
        cells.train(quick_recipe(), [one], [replace(one, id="09", inputs=flat)], radius_mm=0.01, progress=False)


@pytest.mark.full
def test_second_network_keeps_true_cells_among_candidates(tmp_path):
    """The candidates that pass the second network are cells, and its patches are centred on scores."""
    brains_and_truth = [brain(seed) for seed in range(4)]
    brains = [b for b, _ in brains_and_truth]
    recipe = quick_recipe()
    first = cells.train(recipe, brains[:2], brains[2:3], radius_mm=12 * UM, progress=False).model
    settings = replace(cell_verification.TRAINING, epochs=6, batch_size=16)
    second, history = cell_verification.train(
        first, brains[:2], brains[2:3], recipe.rules, radius_mm=12 * UM, settings=settings, progress=False
    )
    assert len(history.training) == 6
    candidates = cell_verification.screen(first, brains[3].inputs, tmp_path / "all")
    verified = cell_verification.detect_twice(first, second, brains[3].inputs, tmp_path / "brain")
    assert len(verified) <= len(candidates)
    assert detection(brains_and_truth[3][1], verified[["X", "Y", "Z"]].to_numpy(), 12 * UM).f1 > 0.85
    scores = cell_verification.look(second, candidates, brains[3].inputs)
    assert sorted(verified["score"]) == sorted(scores[scores >= stored_peaks(second.spec).threshold])
    assert len(cell_verification.look(second, candidates[:0], brains[3].inputs)) == 0
    starts = cell_verification._starts(candidates)
    centres = candidates[["z", "y", "x"]].to_numpy()
    assert np.abs(starts + np.array([7.5, 9.5, 9.5]) - centres).max() <= 1
    assert not (starts % 2).any()
