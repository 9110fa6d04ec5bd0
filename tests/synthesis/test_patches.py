"""Synthetic patches: the same for a seed, other ones in each epoch, about labels, and divided among processes."""

import dataclasses
import itertools

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import ParameterError
from mrhdata.synthesis import Anatomy, SynthesisConfig, Synthesizer, SyntheticPatches
from mrhdata.synthesis.mixed_patches import MixedPatches
from mrhdata.training import TrainingConfig

SHAPE = (8, 8, 8)


@pytest.fixture(scope="module")
def synthesizer():
    """Eight cuboids, and a single voxel of the label 9."""
    labels = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2).repeat(16, 0).repeat(16, 1).repeat(16, 2)
    labels[20, 21, 22] = 9
    return Synthesizer([labels], anatomy=Anatomy.of_labels(range(1, 10)), spacing_mm=(1, 1, 1))


def batches(patches, epoch=0, **options):
    """Return the indices and arrays of all batches of an epoch."""
    return list(patches.batches(4, epoch=epoch, **options))


def test_epochs_differ_and_repeat(synthesizer):
    """The last batch is short."""
    patches = SyntheticPatches(synthesizer, SHAPE, 10)
    first, again, second = batches(patches), batches(patches), batches(patches, epoch=1)
    assert [len(indices) for indices, _ in first] == [4, 4, 2]
    for (_, a), (_, b), (_, c) in zip(first, again, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a[0], c[0])
    np.testing.assert_array_equal(patches.gather([5])[0], first[1][1][0][1:2])


def test_a_run_resumes_after_any_batch(synthesizer):
    patches = SyntheticPatches(synthesizer, SHAPE, 10)
    np.testing.assert_array_equal(batches(patches, start=2)[0][1], batches(patches)[2][1])


def test_processes_share_every_batch(synthesizer):
    """Together they have each patch once; a process without one gets the first of the batch."""
    patches = SyntheticPatches(synthesizer, SHAPE, 9)
    parts = [batches(patches, part=(rank, 2)) for rank in range(2)]
    assert [[indices.tolist() for indices, _ in part] for part in parts] == [
        [[0, 2], [4, 6], [8]],
        [[1, 3], [5, 7], [8]],
    ]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_patches_lie_about_each_label_as_often(synthesizer, share):
    """The single voxel is in a ninth of the patches, and else in almost none."""
    config = SynthesisConfig.exact()
    exact = Synthesizer(synthesizer.maps, config, synthesizer.anatomy)
    patches = SyntheticPatches(exact, SHAPE, 200, label_share=share)
    _, labels = patches.gather(range(200))
    frequency = (labels == 9).any(axis=(1, 2, 3, 4)).mean()
    assert (0.06 < frequency < 0.17) if share else frequency < 0.05


def test_ranges_change_with_the_epoch(synthesizer):
    """The schedule of this test draws images without noise in the first epoch, and noisy ones in the second."""
    exact = Synthesizer(synthesizer.maps, SynthesisConfig.exact(), synthesizer.anatomy)
    patches = SyntheticPatches(
        exact, SHAPE, 4, label_share=0.0, schedule=lambda epoch: SynthesisConfig.exact(noise=0.5 * epoch)
    )
    plain = SyntheticPatches(exact, SHAPE, 4, label_share=0.0)
    first, second = (batches(patches, epoch)[0][1] for epoch in range(2))
    np.testing.assert_array_equal(first[0], batches(plain)[0][1][0])
    values = [np.unique(image[0][image[1] == 5]) for image in (first, second)]
    assert len(values[0]) < 50 < len(values[1])


def test_coarse_labels_are_those_of_some_voxels(synthesizer):
    """Labels of every second voxel along each axis, from a first one that differs between patches."""
    fine, coarse = (SyntheticPatches(synthesizer, SHAPE, 8, label_step=step).gather(range(8)) for step in (1, 2))
    np.testing.assert_array_equal(fine[0], coarse[0])
    starts = set()
    for whole, part in zip(fine[1][:, 0], coarse[1][:, 0], strict=True):
        assert part.shape == (4, 4, 4)
        equal = [
            start
            for start in itertools.product(range(2), repeat=3)
            if np.array_equal(whole[tuple(slice(first, None, 2) for first in start)], part)
        ]
        assert equal
        starts.add(equal[0])
    assert len(starts) > 1


def test_batches_of_several_sizes(synthesizer):
    """Each size has its share of the batches, all patches of a batch have one, and processes agree on it."""
    shares = {(4, 12, 12): 0.3, (12, 4, 12): 0.2}
    patches = SyntheticPatches(synthesizer, SHAPE, 400, other_shapes=shares)
    parts = [batches(patches, part=(rank, 2)) for rank in range(2)]
    sizes = [[images.shape[2:] for _, (images, _) in part] for part in parts]
    assert sizes[0] == sizes[1]
    counts = {size: sizes[0].count(size) for size in set(sizes[0])}
    assert set(counts) == {SHAPE, *shares}
    for size, share in {SHAPE: 0.5, **shares}.items():
        assert counts[size] / 100 == pytest.approx(share, abs=0.15)
    assert patches.batch_bytes(2) == 2 * 2 * 4 * 576
    with pytest.raises(ParameterError, match=r"other_shapes must have shares of at most 1 in all; got .*0.9"):
        SyntheticPatches(synthesizer, SHAPE, 4, other_shapes={(4, 12, 12): 0.9, (12, 4, 12): 0.2})


@pytest.mark.parametrize("step", [1, 2])
def test_batches_of_real_images(synthesizer, step):
    """They have their share, the labels of their voxels, and are the same for a seed."""
    image = mrhdata.from_array(np.random.default_rng(0).random((16, 16, 16)) + 5, spacing=(1, 1, 1))
    labels = image.copy(data=(image.values * 100).round().astype(np.int16)).assign_attrs(kind="labels")
    real = mrhdata.patches(image.astype(np.float32), target=labels, shape=8)
    patches, again = (
        MixedPatches(synthesizer, SHAPE, 200, real=real, real_share=0.3, label_step=step) for _ in range(2)
    )
    drawn = [arrays for _, arrays in batches(patches)]
    for (images, labels), (other, _) in zip(drawn, (arrays for _, arrays in batches(again)), strict=True):
        np.testing.assert_array_equal(images, other)
        assert images.shape == (4, 1, *SHAPE)
        assert labels.shape[2:] == tuple(n // step for n in SHAPE)
    of_real = [(images, labels) for images, labels in drawn if images.min() > 1]
    assert len(of_real) / len(drawn) == pytest.approx(0.3, abs=0.15)
    for images, labels in of_real:
        rounded = (images * 100).round()
        starts = itertools.product(range(step), repeat=3)
        assert any(np.array_equal(rounded[:, :, z::step, y::step, x::step].round(), labels) for z, y, x in starts)
    assert len({images.tobytes() for images, _ in of_real}) > 1
    with pytest.raises(ParameterError, match=r"real_share must be from 0 to 1; got 1\.5"):
        MixedPatches(synthesizer, SHAPE, 4, real=real, real_share=1.5)


def test_a_training_on_synthetic_patches_resumes(synthesizer, tmp_path):
    """A run that was interrupted ends with the same weights."""
    patches, validation = (SyntheticPatches(synthesizer, SHAPE, 8, seed=seed) for seed in (0, 1))
    settings = TrainingConfig(epochs=3, batch_size=4, loss="dice+cross-entropy", normalization="none")

    def network():
        model = mrhdata.models.create("half_unet3d", widths=(4, 6), details=2, head=4, classes=10)
        model.spec = dataclasses.replace(model.spec, labels=tuple(range(10)))
        return model

    def train(model, checkpoint=None, progress=False):
        return mrhdata.fit(model, patches, validation, settings, checkpoint=checkpoint, progress=progress)

    def interrupt(done, total):
        raise KeyboardInterrupt

    whole, resumed = network(), network()
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "run.pt", interrupt)
    train(resumed, tmp_path / "run.pt")
    for a, b in itertools.zip_longest(whole.state_dict().values(), resumed.state_dict().values()):
        assert bool((a == b).all())


def test_a_number_below_one_is_refused(synthesizer):
    with pytest.raises(ParameterError, match="number must be 1 or more; got 0"):
        SyntheticPatches(synthesizer, SHAPE, 0)
