"""A network that is trained only on label maps segments an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata import models
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError, ModelError
from mrhdata.recipes import synthetic
from mrhdata.synthesis import Anatomy, Structure, SynthesisConfig
from mrhdata.volume.construct import from_array

ANATOMY = Anatomy((Structure(1, "left ball", "white"), Structure(2, "right ball", "white"), Structure(3, "body")))
RECIPE = synthetic.SyntheticRecipe(
    targets={1: 1, 2: 1, 3: 2},
    config={"widths": (6, 12), "details": 4, "head": 8},
    shape=(16, 16, 16),
    patches=48,
    coarse_share=0.5,
    hardening=(2.0, 3.0),  # never, in so short a training
    validation_maps=1,
    validation_patches=4,
    quality_volumes=0,
    synthesis=SynthesisConfig(
        random_share=0.0,
        modalities=("t1w",),
        noise=0.02,
        bias=0.1,
        gamma=0.1,
        slice_probability=0.0,
        coarse_probability=0.0,
        smoothing_probability=0.0,
        cluster_probability=0.0,
        view_probability=0.0,
        partial_volume=(0.0, 0.5),
        surroundings={"drawn": 1},
    ),
    training=replace(synthetic.SyntheticRecipe().training, epochs=16, batch_size=4, learning_rate=0.003),
)


def label_map(seed, spacing=1.0):
    """Return two balls in a body, at random places."""
    rng = np.random.default_rng(seed)
    grid = np.indices((24, 24, 32))
    labels = np.zeros(grid.shape[1:], np.uint8)
    labels[3:21, 3:21, 3:29] = 3
    for label, x in ((1, 9), (2, 22)):
        centre = np.array([12, 12, x]) + rng.integers(-2, 3, 3)
        labels[((grid - centre[:, None, None, None]) ** 2).sum(0) < 25] = label
    return from_array(labels, spacing=(spacing,) * 3, kind="labels")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Network after a short training, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("synthetic") / "run"
    maps = {str(seed): label_map(seed) for seed in range(4)}
    model, _ = synthetic.train(
        replace(RECIPE, quality_volumes=24, names={1: "ball"}), maps, anatomy=ANATOMY, folder=folder, progress=False
    )
    return model, folder


def test_labels_of_an_image_are_found(trained):
    """The network has seen no image but synthetic ones; the values have another range."""
    labels = label_map(9).values
    values = np.array([0, 250, 250, 170.0])[labels] + np.random.default_rng(0).normal(0, 5, labels.shape)
    image = from_array(np.abs(values).astype(np.float32), spacing=(1, 1, 1), name="any")
    result = mrhdata.segment(trained[0], {"image": image}, progress=False).values
    truth = np.array([0, 1, 1, 2])[labels]
    overlaps = [
        2 * ((result == label) & (truth == label)).sum() / ((result == label).sum() + (truth == label).sum())
        for label in (1, 2)
    ]
    assert np.mean(overlaps) > 0.75
    assert min(overlaps) > 0.6


def test_predicted_dice_is_high_for_an_easy_image_and_low_for_noise(trained):
    labels = label_map(9).values
    noise = np.random.default_rng(0).normal(0, 5, labels.shape)
    values = np.array([0, 250, 250, 170.0])[labels] + noise
    easy = from_array(np.abs(values).astype(np.float32), spacing=(1, 1, 1))
    good = mrhdata.segment(trained[0], easy, progress=False).attrs["quality"]
    assert set(good) == {"predicted_dice", "error", "labels", "unusual_extents", "contrast"}
    assert good["predicted_dice"] > 0.6
    assert set(good["labels"]) == {"ball", "2"}
    pure_noise = easy.copy(data=np.abs(noise).astype(np.float32))
    with pytest.raises(DataError, match=r"(must be of a kind that the network knows|must resemble the volumes)"):
        mrhdata.segment(trained[0], pure_noise, progress=False)
    assert mrhdata.segment(trained[0], pure_noise, force=True, progress=False).shape == labels.shape


def test_network_is_saved_and_loaded_with_its_steps(trained, tmp_path):
    models.save(trained[0], tmp_path / "network")
    spec = models.load(tmp_path / "network").spec
    assert spec.quality == trained[0].spec.quality
    assert spec.labels == (0, 1, 2)
    # Both stages have the same scale.
    assert spec.inputs == models.IntensityScale((0.5,), (0.25,))
    assert spec.names == {1: "ball", 2: "2"}
    assert len(spec.quality.weights) == 2
    assert [name for name, _ in spec.prepare] == ["upright", "normalise"]
    assert {path.name for path in trained[1].iterdir()} == {"coarse.pt", "fine.pt"}


def test_a_training_of_coarse_scores_alone_leaves_a_whole_network():
    """Scores are of every voxel afterwards, and the history has the epochs of all stages."""
    recipe = replace(RECIPE, patches=4, training=replace(RECIPE.training, epochs=2))
    for share, epochs in ((1.0, 2), (0.5, 2)):
        maps = {str(seed): label_map(seed) for seed in range(2)}
        model, history = synthetic.train(replace(recipe, coarse_share=share), maps, anatomy=ANATOMY, progress=False)
        assert len(history.training) == len(history.validation) == epochs
        assert model(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)


def real_subject(seed, depth=24, name="t1w", factor=1):
    """Return a real image of a contrast that no prior has."""
    labels = label_map(seed).isel(z=slice((24 - depth) // 2, (24 + depth) // 2))
    labels = labels.copy(data=np.array([0, 1, 1, 2], np.uint8)[labels.values] * factor)
    image = labels.copy(data=np.array([0, 5, 90], np.float32)[np.minimum(labels.values, 2)]).assign_attrs(kind="image")
    return Subject(str(seed), {name: image.rename(name)}, labels)


def test_real_images_are_mixed_with_synthetic_ones():
    """Thin ones too; the network has the name of their channel, and begins with the weights of another one."""
    recipe = replace(RECIPE, patches=8, training=replace(RECIPE.training, epochs=1, learning_rate=1e-9))
    maps = {str(seed): label_map(seed) for seed in range(2)}
    start = models.create("half_unet3d", seed=5, classes=9, **RECIPE.config)
    model, history = synthetic.train(
        recipe,
        maps,
        subjects=[real_subject(3, depth=8)],
        validation=[real_subject(4)],
        start=start,
        anatomy=ANATOMY,
        progress=False,
    )
    assert len(history.dice) == 1
    assert model.spec.channels == ("t1w",)
    assert model.spec.smallest == RECIPE.shape
    assert torch.allclose(model.enter.conv.weight, start.enter.conv.weight, atol=1e-6)
    assert model.answer.weight.shape[0] == 3


def test_validation_is_on_real_images():
    """Other real images give other scores."""
    recipe = replace(RECIPE, patches=4, training=replace(RECIPE.training, epochs=1, learning_rate=1e-9))
    maps = {str(seed): label_map(seed) for seed in range(2)}
    losses = [
        synthetic.train(recipe, maps, validation=validation, anatomy=ANATOMY, progress=False)[1].validation
        for validation in ([], [real_subject(4)], [real_subject(4)])
    ]
    assert losses[1] == losses[2] != losses[0]


@pytest.mark.parametrize(
    ("subjects", "sentence"),
    [
        ([real_subject(3), real_subject(4, name="t2w")], r"real images must have one channel.*; got \['t1w', 't2w'\]"),
        ([real_subject(3, factor=3)], r"3 must have the labels \(0, 1, 2\); got also \[3, 6\]. Renumber its labels"),
    ],
)
def test_unfit_real_images_are_refused(subjects, sentence):
    maps = {str(seed): label_map(seed) for seed in range(2)}
    with pytest.raises(DataError, match=sentence):
        synthetic.train(RECIPE, maps, subjects=subjects, anatomy=ANATOMY, progress=False)


def test_a_network_of_another_kind_is_no_start():
    maps = {str(seed): label_map(seed) for seed in range(2)}
    with pytest.raises(ModelError, match="start must be a network of the kind that is trained"):
        synthetic.train(RECIPE, maps, start=models.create("tissue2d"), anatomy=ANATOMY, progress=False)


def test_images_become_harder():
    """Artefacts and random contrasts are as frequent as the recipe says at the end, and rare at the begin."""
    recipe = synthetic.SyntheticRecipe(training=replace(RECIPE.training, epochs=10))
    first, last = recipe.ranges(0), recipe.ranges(9)
    assert last == recipe.synthesis
    assert first.random_share == 0
    assert first.noise == pytest.approx(0.1 * last.noise)
    shares = [recipe.ranges(epoch).random_share for epoch in range(10)]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        ({"a": label_map(0)}, "label maps must be more than the 1 of validation; got 1"),
        ({"a": label_map(0), "b": label_map(1, 2.0)}, "label maps must have one voxel size"),
    ],
)
def test_unfit_label_maps_are_refused(maps, sentence):
    with pytest.raises(DataError, match=sentence):
        synthetic.train(RECIPE, maps, anatomy=ANATOMY, progress=False)
