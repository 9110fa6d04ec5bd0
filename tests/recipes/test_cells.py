"""Cells: what marks teach, that a small network finds them, and that incomplete marks do not teach it otherwise."""

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
    """Cells 10 um across among bright specks, at 2 um; its marks, and all cells."""
    rng = np.random.default_rng(seed)
    image, places = np.zeros(SHAPE), []
    while len(places) < 40:
        place = rng.uniform(6, np.array(SHAPE) - 7)
        if all(np.linalg.norm(place - other) > 9 for other in places):
            places.append(place)
    box = np.moveaxis(np.indices((7, 7, 7)), 0, -1)
    for place in places:
        index = box + np.floor(place).astype(int) - 3
        near = index[np.linalg.norm(index - place, axis=-1) < 2.5]
        image[tuple(near.T)] += rng.uniform(0.6, 1.6)
    image[tuple(rng.integers(0, SHAPE, (60, 3)).T)] += 25
    values = 300 * gaussian_filter(image, 1) + 100 + rng.normal(0, 15, SHAPE)
    volume = from_array(values.clip(0).astype(np.uint16), spacing=(2 * UM,) * 3, name="signal")
    truth = volume.mrh.world(np.array(places))
    marked = truth[rng.random(len(truth)) >= missing]
    return Subject(f"{seed:02d}", {"signal": volume}, points=marked, points_complete=not missing), truth


def quick(**changes):
    """A recipe of seconds."""
    made = cells.recommended_recipe(2 * UM)
    training = replace(made.training, epochs=5, batch_size=8)
    small = {"config": {"widths": (12, 12, 12, 24)}, "box": 9, "each": 60}
    return replace(made, training=training, again=replace(made.again, epochs=2), **{**small, **changes})


def test_marks_as_labels():
    """Each score is taught by its distance from the nearest mark, in mm, whatever the spacing."""
    volume = from_array(np.zeros((40, 50, 60), np.uint16), spacing=(4 * UM, 2 * UM, 2 * UM))
    marks = volume.mrh.world(np.random.default_rng(0).uniform(4, 36, (12, 3)))
    marking = cells.Marking(4 * UM, 12 * UM, 40 * UM)
    labels = cells.taught(Subject("01", {"signal": volume}, points=marks), marking)
    assert labels.shape == (15, 20, 25)
    places = labels.mrh.world(np.indices(labels.shape).reshape(3, -1).T)
    assert np.allclose(volume.mrh.index(places[0]), 5.5)
    apart = cKDTree(marks).query(places)[0].reshape(labels.shape)
    expected = np.where(apart <= 4 * UM, 1, np.where(apart <= 12 * UM, IGNORE_INDEX, 0))
    expected[apart > 40 * UM] = IGNORE_INDEX
    own = np.rint(labels.mrh.index(marks)).astype(int)
    own = own[((own >= 0) & (own < labels.shape)).all(axis=1)]
    expected[tuple(own.T)] = 1
    assert np.array_equal(labels.values, expected)
    few = cells.taught(Subject("01", {"signal": volume}, points=marks), replace(marking, negatives=10.0))
    assert (few.values == 0).sum() == 10 * (few.values == 1).sum()
    assert (few.values[labels.values != 0] == labels.values[labels.values != 0]).all()


def test_what_has_no_mark_in_an_incomplete_brain():
    """Where an earlier round found a cell, nothing is taught; in a complete brain it is background."""
    given, _ = brain(0, missing=0.3)
    labels = cells.taught(given, quick().marking)
    scores = labels.copy(data=np.where(labels.values == 0, 200, 0).astype(np.uint8))
    assert not (cells.taught(given, quick().marking, found=scores).values == 0).any()
    whole = replace(given, complete=True)
    assert np.array_equal(cells.taught(whole, quick().marking, found=scores).values, labels.values)


def test_cells_are_found_in_another_brain(tmp_path):
    """With the threshold of the brain that training was watched on; a second run from the checkpoint is the same."""
    parts = [brain(seed) for seed in range(4)]
    recipe = quick(rounds=1)
    given = [b for b, _ in parts]
    trained = cells.train(recipe, given[:2], given[2:3], radius_mm=12 * UM, folder=tmp_path / "run", progress=False)
    found = detect(trained.model, given[3].inputs, tmp_path / "brain", progress=False)
    held = detection(parts[3][1], found[["X", "Y", "Z"]].to_numpy(), 12 * UM)
    assert held.f1 > 0.9
    assert held.median_distance_mm < 2 * UM
    truth, score = cells.patch_scores(trained.model, given[3], shell_mm=(12 * UM, 40 * UM))
    assert truth.mean() == pytest.approx(1 / 11)
    assert np.mean(score[truth == 1][:, None] > score[truth == 0][None]) > 0.98
    again = cells.train(recipe, given[:2], given[2:3], radius_mm=12 * UM, folder=tmp_path / "run", progress=False)
    assert stored_peaks(again.model.spec) == stored_peaks(trained.model.spec)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(again.model.state_dict().values(), trained.model.state_dict().values(), strict=True)
    )


def test_refusals():
    """Leaks and missing marks, in one sentence each."""
    one, _ = brain(0)
    with pytest.raises(DataError, match=r"\['00'\] are in training and in validation"):
        cells.train(quick(), [one], [one], radius_mm=0.01, progress=False)
    bare = replace(one, subject="07", cells=np.empty((0, 3)))
    with pytest.raises(DataError, match=r"\['07'\] have no marked cells"):
        cells.train(quick(), [one], [bare], radius_mm=0.01, progress=False)
    flat = {"signal": next(iter(one.inputs.values())).isel(z=slice(0, 8))}
    with pytest.raises(DataError, match=r"09 has \(8, 72, 76\) voxels"):
        cells.train(quick(), [one], [replace(one, subject="09", inputs=flat)], radius_mm=0.01, progress=False)


@pytest.mark.full
def test_a_second_look(tmp_path):
    """What the second network lets pass of the candidates are the cells; its patches lie where scores do."""
    parts = [brain(seed) for seed in range(4)]
    given = [b for b, _ in parts]
    first = cells.train(quick(), given[:2], given[2:3], radius_mm=12 * UM, progress=False).model
    settings = replace(cell_verification.TRAINING, epochs=6, batch_size=16)
    second, history = cell_verification.train(
        first, given[:2], given[2:3], quick().marking, radius_mm=12 * UM, settings=settings, progress=False
    )
    assert len(history.training) == 6
    candidates = cell_verification.screen(first, given[3].inputs, tmp_path / "all")
    kept = cell_verification.detect_twice(first, second, given[3].inputs, tmp_path / "brain")
    assert len(kept) <= len(candidates)
    assert detection(parts[3][1], kept[["X", "Y", "Z"]].to_numpy(), 12 * UM).f1 > 0.85
    scores = cell_verification.look(second, candidates, given[3].inputs)
    assert sorted(kept["score"]) == sorted(scores[scores >= stored_peaks(second.spec).threshold])
    assert len(cell_verification.look(second, candidates[:0], given[3].inputs)) == 0
    starts = cell_verification._starts(candidates)
    centres = candidates[["z", "y", "x"]].to_numpy()
    assert np.abs(starts + np.array([7.5, 9.5, 9.5]) - centres).max() <= 1
    assert not (starts % 2).any()
