"""A network that is trained only on label maps segments an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata import models
from mrhdata.errors import DataError
from mrhdata.recipes import synthetic
from mrhdata.synthesis import Anatomy, Structure, SynthesisConfig
from mrhdata.volume.construct import from_array

ANATOMY = Anatomy((Structure(1, "left ball", "white"), Structure(2, "right ball", "white"), Structure(3, "body")))
RECIPE = synthetic.SyntheticRecipe(
    targets={1: 1, 2: 1, 3: 2},
    config={"widths": (6, 12), "details": 4, "head": 8},
    shape=(16, 16, 16),
    patches=48,
    coarse_share=0.2,
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
    training=replace(synthetic.SyntheticRecipe().training, epochs=12, batch_size=4, learning_rate=0.003),
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
    folder = tmp_path_factory.mktemp("synthetic")
    maps = {str(seed): label_map(seed) for seed in range(4)}
    model, _ = synthetic.train(
        replace(RECIPE, quality_volumes=24, names={1: "ball"}), maps, anatomy=ANATOMY, folder=folder, progress=False
    )
    return model, folder


def test_labels_of_an_image_are_found(trained):
    """The network has seen no image but synthetic ones; the values have another range."""
    labels = label_map(9).values
    values = np.array([0, 250, 250, 170.0])[labels] + np.random.default_rng(0).normal(0, 5, labels.shape)
    image = from_array(values.astype(np.float32), spacing=(1, 1, 1), name="any")
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
    easy = from_array((np.array([0, 250, 250, 170.0])[labels] + noise).astype(np.float32), spacing=(1, 1, 1))
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
