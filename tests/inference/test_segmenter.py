"""Segment volumes on any grid and in any format, train by recipe, and validate by subject."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import mrhdata
from mrhdata import models
from mrhdata.datasets.subjects import Subject, find_subjects
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.segmenter import score_labels, segment
from mrhdata.models.spec import IGNORE_INDEX, IntensityScale
from mrhdata.recipes import dgm, segmentation, tissue2d
from mrhdata.recipes.cross_validation import cross_validate, folds
from mrhdata.registration.resampling import resample
from mrhdata.training.mining import hard_negatives
from mrhdata.training.settings import TrainingConfig
from mrhdata.viz import plots
from mrhdata.volume.file_arrays import file_of

#: Label values that are neither consecutive nor small.
VALUES = (0, 3, 40)


def head(seed, shape=(10, 36, 32), spacing=(3.0, 1.0, 1.0), place=(0.0, 0.0, 0.0)):
    """A bright ball (40) within a grey one (3), with noise and a random gain."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * s - p for n, s, p in zip(shape, spacing, place, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    labels = np.where(distance < 6, 40, np.where(distance < 12, 3, 0)).astype(np.uint8)
    values = np.select([labels == 40, labels == 3], [2.0, 1.0], 0.1) + rng.normal(0, 0.1, shape)
    values = (values * rng.uniform(50, 200)).astype(np.float32)
    image = mrhdata.volume.from_array(values, spacing=spacing, kind="image")
    truth = mrhdata.volume.from_array(labels, spacing=spacing, kind="labels")
    return Subject(f"{seed:02d}", {"t1w": image.rename("t1w")}, truth)


def quick(recipe, epochs=6, **changes):
    """Return a recipe with few epochs."""
    stages = tuple(replace(t, epochs=epochs, **changes) for t in recipe.training)
    return replace(recipe, training=stages)


STEPS = (("upright", {"spacing_mm": [3.0, 1.0, 1.0]}), ("normalise", {"how": "percentile"}))
RECIPE = replace(quick(tissue2d.slices("tissue2d"), 6, learning_rate=2e-2), prepare=STEPS, config={"widths": (8, 8, 8)})


@pytest.fixture(scope="module")
def trained():
    """A small network trained on three heads."""
    cases = [head(i) for i in range(3)]
    return segmentation.train(RECIPE, cases, [head(9)], labels=VALUES, progress=False)


def dice(case, model):
    """Return the mean Dice of both labels."""
    return score_labels(case, segment(model, case.inputs, progress=False), VALUES).dice.mean()


def test_labels_are_learned_and_keep_their_values(trained):
    """On a held-out subject."""
    case = head(20)
    labels = segment(trained.model, case.inputs, progress=False)
    assert set(np.unique(labels)) == set(VALUES)
    assert labels.attrs["kind"] == "labels"
    assert dice(case, trained.model) > 0.9
    history = trained.histories[0][0]
    assert len(history.dice) == len(history.validation)
    assert not history.rmse
    assert 0 < history.waited < history.seconds


def test_labels_lie_on_the_grid_of_the_input(trained):
    """Flipped axes, another spacing, a crop or an oblique grid lower the Dice by less than 0.08.

    Most of the loss comes from resampling the ground truth by nearest neighbour.
    """
    case = head(21, shape=(12, 44, 44))
    plain = dice(case, trained.model)
    grid = case.target.mrh.grid
    angle = np.deg2rad(12)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = np.eye(4)
    oblique[:3, :3] = rotation @ grid.affine[:3, :3]
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    oblique[:3, 3] = middle + rotation @ (grid.affine[:3, 3] - middle)
    changes = [
        lambda v: v.isel(z=slice(None, None, -1), x=slice(None, None, -1)),
        lambda v: resample(v, spacing_mm=(3, 0.8, 0.8)),
        lambda v: v.isel(z=slice(1, -1), y=slice(6, -3), x=slice(4, -6)),
        lambda v: resample(v, mrhdata.volume.Grid(grid.shape, oblique)),
    ]
    for change in changes:
        moved = replace(case, inputs={"t1w": change(case.inputs["t1w"])}, target=change(case.target))
        labels = segment(trained.model, moved.inputs, progress=False)
        assert labels.mrh.grid.same_as(moved.target.mrh.grid)
        assert score_labels(moved, labels, VALUES).dice.mean() > plain - 0.08


def test_saved_network_segments_like_the_original(trained, tmp_path):
    """Its folder holds the steps, labels and scales."""
    models.save(trained.model, tmp_path / "net")
    again = models.load(tmp_path / "net")
    assert again.spec.prepare == trained.model.spec.prepare
    assert again.spec.labels == VALUES
    case = head(22)
    np.testing.assert_array_equal(
        segment(again, case.inputs, progress=False), segment(trained.model, case.inputs["t1w"], progress=False)
    )


@pytest.mark.full
def test_interrupted_cross_validation_resumes(tmp_path, monkeypatch):
    """Scores equal those of an uninterrupted run, and finished folds are not repeated."""
    # Drawing would take longer than the rest of the test.
    monkeypatch.setattr(plots, "montage", lambda *_: None)
    cases = [head(i, shape=(6, 20, 20)) for i in range(4)]
    recipe = quick(RECIPE, epochs=2)
    calls = []

    def train(training, stopping, folder):
        calls.append((sorted(c.id for c in training), [c.id for c in stopping]))
        if len(calls) in (2, 3):
            raise KeyboardInterrupt
        return segmentation.train(recipe, training, stopping, labels=VALUES, folder=folder, progress=False).model

    settings = {"k": 2, "seed": 3, "progress": False}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cross_validate(train, cases, tmp_path / "a", **settings)
    table = cross_validate(train, cases, tmp_path / "a", **settings)
    assert len(calls) == 4
    pd.testing.assert_frame_equal(table, cross_validate(train, cases, tmp_path / "b", **settings))
    assert sorted(table.subject.unique()) == ["00", "01", "02", "03"]
    used = [set(t) | set(s) for t, s in calls]
    for fold, seen in zip(folds(cases, 2, 3), (used[0], used[3]), strict=True):
        assert not {c.id for c in fold} & seen
    assert mrhdata.read(tmp_path / "a" / "fold-1" / "labels" / f"sub-{folds(cases, 2, 3)[0][0].id}.nii.gz").sizes["z"]
    with pytest.raises(DataError, match="other subjects, files or settings"):
        cross_validate(train, cases[:3], tmp_path / "a", **settings)


def test_sessions_of_a_person_stay_in_one_fold():
    """Training refuses a person in both training and validation."""
    cases = [Subject(f"{who}_ses-{n}", {}) for who in "abcd" for n in (1, 2)]
    for fold in folds(cases, 3):
        people = {c.person for c in fold}
        assert {c.id for c in fold} == {f"{p}_ses-{n}" for p in people for n in (1, 2)}
    with pytest.raises(DataError, match="in training and in validation"):
        segmentation.train(RECIPE, cases[:1], cases[1:2], labels=VALUES)
    with pytest.raises(DataError, match="folds"):
        folds(cases, 5)


@pytest.mark.full
def test_second_round_removes_false_positives():
    """Blobs that resemble the nucleus lie outside the tiles with labels, so the first round labels them."""

    def case(seed):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 0.05, (9, 32, 32)).astype(np.float32)
        labels = np.zeros(values.shape, np.int16)
        values[3:6, 5:10, 5:10] += 1
        labels[3:6, 5:10, 5:10] = 6
        # A blob as bright as the nucleus, with a dark neighbour.
        values[3:6, 22:27, 22:27] += 1
        values[3:6, 17:21, 22:27] -= 1
        image, truth = (mrhdata.volume.from_array(v, spacing=(3, 1, 1)) for v in (values, labels))
        return Subject(str(seed), {"qsm": image.rename("qsm")}, truth.assign_attrs(kind="labels"))

    recipe = dgm.published(core=(9, 18, 18))
    settings = replace(recipe.training[0], epochs=8, batch_size=1, learning_rate=5e-3, loss="dice+cross-entropy")
    small = {"widths": (6, 8, 8), "joined": (12, 8)}
    recipe = replace(recipe, prepare=(), finish=(), scale=None, config=small, training=(settings,), again=(settings,))
    trained = segmentation.train(recipe, [case(1), case(2), case(3)], [case(4)], progress=False)
    first, second = (model.spec.inputs for model in trained.rounds)
    assert first == second
    test = case(5)
    predictions = [segment(model, test.inputs, progress=False).values for model in trained.rounds]
    false_positives = [int(((p != 0) & (test.target.values == 0)).sum()) for p in predictions]
    scores = [2 * ((p == 6) & (test.target.values == 6)).sum() / ((p == 6).sum() + 75) for p in predictions]
    assert false_positives[0] > 50
    assert false_positives[1] < false_positives[0] / 3
    assert scores[1] > max(0.8, scores[0])


@pytest.mark.parametrize(
    ("shape", "box"), [((10, 36, 33), (8, 32, 32)), ((16, 96, 96), (16, 96, 96)), ((20, 100, 90), (16, 96, 88))]
)
def test_crops_of_small_brains_are_multiples_of_the_strides(shape, box):
    """Crops are shorter than requested only if a case is."""
    crops = segmentation.Crops((16, 96, 96), each=2)
    for drawn in (True, False):
        assert crops([head(0, shape)], training=drawn, seed=0).shape == box
    with pytest.raises(DataError, match=r"at least \[4, 8, 8\] voxels .*got \[3, 36, 32\]"):
        crops([head(0, (3, 36, 32))], training=True, seed=0)


def test_hard_negatives_equal_a_loop_over_tiles():
    """Tiles with a label or a false positive are kept; ignored voxels stay ignored."""
    rng = np.random.default_rng(4)
    values = (rng.random((7, 12, 13)) > 0.985).astype(np.int16) * 5
    values[0] = IGNORE_INDEX
    predicted = np.where(rng.random(values.shape) > 0.99, 5, 0).astype(np.int16)
    truth, prediction = (mrhdata.volume.from_array(v, spacing=(1, 1, 1), kind="labels") for v in (values, predicted))
    for tile, stride in (((3, 4, 5), (3, 4, 5)), ((3, 4, 5), (2, 3, 1)), ((1, 2, 2), (1, 2, 2))):
        expected = np.zeros(values.shape, bool)
        for z, y, x in np.ndindex(*(-(-n // s) for n, s in zip(values.shape, stride, strict=True))):
            box = tuple(slice(a * s, a * s + n) for a, s, n in zip((z, y, x), stride, tile, strict=True))
            expected[box] |= bool(((values[box] == 5) | ((values[box] == 0) & (predicted[box] == 5))).any())
        labels = hard_negatives(truth, prediction, tile=tile, stride=stride).values
        np.testing.assert_array_equal(labels, np.where(expected, values, IGNORE_INDEX))


def test_find_subjects_matches_exact_names(tmp_path, caplog):
    """Incomplete subjects are named in the log; ambiguous and unmatched patterns are refused."""
    blank = mrhdata.volume.from_array(np.zeros((2, 3, 4), np.uint8), spacing=(1, 1, 1))
    for name in ("sub-1_T1w", "sub-1_seg", "sub-10_T1w", "sub-10_seg", "sub-2_T1w", "loose_T1w"):
        (tmp_path / name.split("_")[0]).mkdir(exist_ok=True)
        mrhdata.write(blank, tmp_path / name.split("_")[0] / f"{name}.nii.gz")
    assert [c.id for c in find_subjects(tmp_path, {"t1w": "*T1w*"}, "*seg*")] == ["1", "10"]
    assert caplog.messages == ["left out for want of target ('*seg*'): 2 (1)"]
    caplog.clear()
    assert [c.id for c in find_subjects(tmp_path, {"t1w": "T1w"})] == ["1", "10", "2"]
    assert caplog.messages == []
    with pytest.raises(DataError, match="no file"):
        find_subjects(tmp_path, {"t1w": "T2w"})
    mrhdata.write(blank, tmp_path / "sub-1" / "sub-1_acq2_T1w.nii.gz")
    with pytest.raises(DataError, match="narrow"):
        find_subjects(tmp_path, {"t1w": "T1w"})


def test_segmentation_of_minc_files(trained, tmp_path):
    """In a folder laid out as for minc_keras: labels on the same grid, exact values."""
    case = head(23)
    path = tmp_path / "sub-01" / "sub-01_task-01_ses-01_T1w_anat_rsl.mnc"
    path.parent.mkdir()
    mrhdata.write(case.inputs["t1w"], path)
    mrhdata.write(case.target, path.with_name("sub-01_task-01_ses-01_variant-seg_rsl.mnc"))
    (subject,) = find_subjects(tmp_path, {"t1w": "*T1w_anat*"}, "*seg*")
    labels = segment(trained.model, subject.inputs, progress=False)
    mrhdata.write(labels, tmp_path / "labels.mnc")
    written = mrhdata.read(tmp_path / "labels.mnc", kind="labels")
    assert written.mrh.grid.same_as(subject.inputs["t1w"].mrh.grid)
    np.testing.assert_array_equal(written.values, labels.values)
    assert set(np.unique(written)) == set(VALUES)


def test_unsuitable_labels_and_networks_are_refused(trained):
    """Unknown labels, a regression network, another channel name, a target with fractions."""
    case = head(24, shape=(4, 12, 12))
    unknown_label = replace(case, target=case.target.where(case.target != 3, 9))
    with pytest.raises(DataError, match="not among those"):
        segmentation.train(
            quick(RECIPE, 1), [unknown_label], [head(25, shape=(4, 12, 12))], labels=VALUES, progress=False
        )
    with pytest.raises(ModelError, match="was not trained on labels"):
        segment(models.create("tissue2d"), case.inputs)
    with pytest.raises(ModelError, match="mapping with the names of training"):
        segment(trained.model, {"flair": case.inputs["t1w"]})
    p = mrhdata.patches(case.inputs["t1w"], case.inputs["t1w"], shape=4)
    settings = TrainingConfig(epochs=1, loss="cross-entropy")
    with pytest.raises(DataError, match="target must hold integer labels"):
        mrhdata.fit(models.create("unet3d", widths=(2, 4), classes=3), p, p, settings, progress=False)


def test_predict_with_argmax_writes_label_values(trained, tmp_path):
    """Not class numbers, and equal to the labels of segment."""
    case = head(26)
    image = mrhdata.preprocessing.pipeline.prepare(case.inputs, STEPS)["t1w"].compute()
    options = {"mode": "dense", "output": mrhdata.inference.output.Output(argmax=True), "progress": False}
    with pytest.raises(ModelError, match=r"Use mrhdata\.segment"):
        mrhdata.predict(trained.model, case.inputs, tmp_path / "raw.zarr", **options)
    labels = mrhdata.predict(trained.model, {"t1w": image}, tmp_path / "labels.zarr", preprocessed=True, **options)
    np.testing.assert_array_equal(labels.values, segment(trained.model, case.inputs, progress=False).values)


@pytest.mark.full
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unet_learns_with_augmentation_and_deep_supervision(precision):
    """On balanced crops, in both precisions; the same seed gives the same weights."""
    recipe = replace(
        quick(tissue2d.unet(), 4, learning_rate=1e-2),
        prepare=STEPS,
        sampling=segmentation.Crops((8, 24, 24), each=6),
        config={"widths": (6, 12, 16), "strides": ((1, 2, 2), 2), "supervision": True},
    )
    recipe = replace(recipe, training=tuple(replace(t, precision=precision) for t in recipe.training))
    cases, validation = [head(i) for i in range(3)], [head(9)]
    networks = [segmentation.train(recipe, cases, validation, labels=VALUES, progress=False).model for _ in range(2)]
    for a, b in zip(*(m.state_dict().values() for m in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert dice(head(27), networks[0]) > 0.75


def test_location_channels_reach_the_second_generation_network():
    """They hold the voxel's position in training and in prediction, not zeros."""
    model = models.create("fcn3d_aniso", classes=2, seed=1).eval()
    recipe = dgm.published("fcn3d_aniso")
    spec = replace(
        model.spec,
        labels=(0, 2),
        channels=("qsm", "x", "y", "z"),
        prepare=recipe.prepare[-1:],
        inputs=IntensityScale((127.0,) * 4, (128.0,) * 4),
        target=IntensityScale((0.0,) * 2, (1.0,) * 2),
    )
    model.spec = spec
    values = np.random.default_rng(0).random((9, 21, 21), dtype=np.float32) + 1
    case = Subject("1", {"qsm": mrhdata.volume.from_array(values, spacing=(3, 1, 1)).rename("qsm")})
    fine_channels = []
    model.fine.register_forward_pre_hook(lambda layer, args: fine_channels.append(args[0].shape[1]))
    locations = []
    model.joined.register_forward_pre_hook(
        lambda layer, args: locations.append(args[0][:, -3:].abs().amax((0, 2, 3, 4)))
    )
    segment(segmentation.whole(model), case.inputs, progress=False)
    prepared = mrhdata.preprocessing.pipeline.prepare(case.inputs, spec.prepare)
    assert list(prepared) == ["qsm", "x", "y", "z"]
    model(torch.from_numpy(np.stack([v.values for v in prepared.values()]))[None])
    assert fine_channels == [1]
    assert (locations[0] > 0).all()


def test_patterns_match_whole_words_of_file_names(tmp_path):
    """MT does not match MTR, and an ambiguous T2w is refused."""
    for name in ("sub-1_MT.nii", "sub-1_MTR.nii", "sub-1_T2wa.nii", "sub-1_T2wb.nii"):
        mrhdata.write(mrhdata.volume.from_array(np.zeros((2, 2, 2), np.uint8), spacing=(1, 1, 1)), tmp_path / name)
    (case,) = find_subjects(tmp_path, {"mt": "MT", "mtr": "MTR"})
    assert [file_of(v.data).path.name for v in case.inputs.values()] == ["sub-1_MT.nii", "sub-1_MTR.nii"]
    with pytest.raises(DataError, match=r"make the pattern narrower, such as '\*_T2w\.\*'"):
        find_subjects(tmp_path, {"t2w": "T2w"})


def test_voxels_without_ground_truth_do_not_count_in_scores():
    """Neither in the overlap nor in the accuracy; a subject without any ground truth is refused."""
    truth, predicted = (np.zeros((4, 4, 4), np.int16) for _ in range(2))
    truth[:2], predicted[:2] = 3, 3
    truth[3], predicted[3] = IGNORE_INDEX, 3
    volumes = [mrhdata.volume.from_array(v, spacing=(1, 1, 1), kind="labels") for v in (truth, predicted)]
    scores = score_labels(Subject("01", {}, volumes[0]), volumes[1], (0, 3))
    assert scores[["dice", "accuracy", "accuracy_inside"]].to_numpy().tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(DataError, match="01 has no voxel with ground truth"):
        score_labels(Subject("01", {}, volumes[0].isel(z=[3])), volumes[1].isel(z=[3]), (0, 3))
