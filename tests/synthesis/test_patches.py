"""Synthetic patches: the same for a seed, other ones in each epoch, about labels, and divided among processes."""

import dataclasses
import itertools

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import ParameterError
from mrhdata.synthesis import Anatomy, SynthesisConfig, Synthesizer, SyntheticPatches
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


def test_random_contrasts_become_more_frequent(synthesizer):
    """The width that each epoch draws is 0 or 1, as often as the schedule says."""
    widths = []

    class Recorded(Synthesizer):
        def sample(self, *args, contrast_width, **options):
            widths.append(contrast_width)
            return super().sample(*args, contrast_width=contrast_width, **options)

    recorded = Recorded(synthesizer.maps, anatomy=synthesizer.anatomy)
    patches = SyntheticPatches(recorded, SHAPE, 60, random_share=lambda epoch: 0.5 * epoch)
    shares = []
    for epoch in range(3):
        widths.clear()
        batches(patches, epoch)
        assert set(widths) <= {0.0, 1.0}
        shares.append(np.mean(widths))
    assert shares[0] == 0
    assert 0.3 < shares[1] < 0.7
    assert shares[2] == 1


def test_a_network_learns_from_synthetic_patches(synthesizer, tmp_path):
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
    history = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "run.pt", interrupt)
    train(resumed, tmp_path / "run.pt")
    assert history.training[-1] < history.training[0]
    for a, b in itertools.zip_longest(whole.state_dict().values(), resumed.state_dict().values()):
        assert bool((a == b).all())


def test_a_number_below_one_is_refused(synthesizer):
    with pytest.raises(ParameterError, match="number must be 1 or more; got 0"):
        SyntheticPatches(synthesizer, SHAPE, 0)
