import dataclasses
import itertools

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import ParameterError
from mrhdata.synthesis import FREESURFER, Anatomy, SynthesisConfig, Synthesizer
from mrhdata.volume.construct import from_array

SHAPE = (20, 24, 28)
#: All intensity steps at full strength, without any change of shape or field of view.
INTENSITY_ONLY = {
    "rotation_degrees": 0.0,
    "scaling": 0.0,
    "shearing": 0.0,
    "translation_mm": 0.0,
    "elastic_mm": 0.0,
    "flip_probability": 0.0,
    "neck_probability": 0.0,
    "view_probability": 0.0,
    "surroundings": {"drawn": 1.0},
}
#: Steps that are drawn seldom.
ARTEFACTS = {
    "motion_probability": 1.0,
    "ringing_probability": 1.0,
    "slice_probability": 1.0,
    "cluster_probability": 1.0,
    "smoothing_probability": 1.0,
}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_seed_gives_the_same_sample(synthesizer):
    """The same seed twice, and a generator of that seed; another seed differs."""
    sample = synthesizer.sample(5, SHAPE)
    assert equal(sample, synthesizer.sample(5, SHAPE))
    assert equal(sample, synthesizer.sample(torch.Generator().manual_seed(5), SHAPE))
    assert not equal(sample, synthesizer.sample(6, SHAPE))


def test_a_generator_continues(synthesizer):
    """Two samples of one generator differ."""
    generator = torch.Generator().manual_seed(0)
    assert not equal(synthesizer.sample(generator, SHAPE), synthesizer.sample(generator, SHAPE))


def test_samples_are_finite_and_in_range(synthesizer):
    """Forty samples, all steps among them."""
    for seed in range(40):
        image, labels = synthesizer.sample(seed, (17, 16, 19))
        assert image.shape == (1, 17, 16, 19)
        assert image.dtype == torch.float32
        assert labels.dtype == torch.int16
        assert bool(torch.isfinite(image).all())
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_images_fade_and_labels_end_where_the_field_of_view_does():
    """A plane of which a share lies in view has that share of its intensity, and labels from a half on."""
    config = SynthesisConfig.exact(
        view_probability=1.0, view_share=(0.5, 0.5), partial_edge_probability=1.0, modalities=("t1w",)
    )
    synthesizer = Synthesizer([np.full((40, 40, 40), 3, np.uint8)], config, FREESURFER, spacing_mm=(1, 1, 1))
    labelled = []
    for seed in range(20):
        image, labels = synthesizer.sample(seed, (8, 20, 20))
        planes = image[0, :, 10, 10]
        assert torch.equal(planes == 1, planes == planes.max())
        partial = (planes > 0) & (planes < 1)
        assert int(partial.sum()) == 2
        assert torch.equal(labels[:, 10, 10] == 3, planes >= 0.5)
        labelled += (labels[:, 10, 10] == 3)[partial].tolist()
    assert 0 < sum(labelled) < len(labelled)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 32, 32), (2, 3, 80)])
def test_shapes(synthesizer, shape):
    """Planes, single voxels and patches larger than the map."""
    for seed in range(12):
        image, labels = synthesizer.sample(seed, shape)
        assert image.shape[1:] == labels.shape == shape
        assert bool(torch.isfinite(image).all())


def test_a_batch_equals_single_samples(synthesizer):
    """Images and labels of a batch are those of its seeds."""
    images, labels = synthesizer.batch([3, 1, 4], SHAPE)
    for row, seed in enumerate((3, 1, 4)):
        assert equal((images[row], labels[row]), synthesizer.sample(seed, SHAPE))


def test_batches_resume(synthesizer):
    """The second batch is the first of an iterator that starts there, and the seed matters."""
    first, second = itertools.islice(synthesizer.batches(2, SHAPE, seed=7), 2)
    assert equal(second, next(synthesizer.batches(2, SHAPE, seed=7, start=1)))
    assert not equal(first, second)
    assert not equal(first, next(synthesizer.batches(2, SHAPE, seed=8)))


@pytest.mark.parametrize("seed", range(8))
def test_intensity_steps_leave_labels_exact(labels, seed):
    """With all intensity steps and no change of shape, labels are the crop of the map bit for bit."""
    config = SynthesisConfig(
        **INTENSITY_ONLY,
        motion_probability=1.0,
        ringing_probability=1.0,
        slice_probability=1.0,
        cluster_probability=1.0,
    )
    synthesizer = Synthesizer([labels], config, spacing_mm=(1, 1, 1))
    image, patch = synthesizer.sample(seed, SHAPE, position=(9, 12, 7))
    np.testing.assert_array_equal(patch, labels[9:29, 12:36, 7:35])
    assert float(image.std()) > 0


def test_random_places_are_crops_of_the_map(labels):
    """Without a change of shape each sample occurs in the map."""
    synthesizer = Synthesizer([labels], SynthesisConfig(**INTENSITY_ONLY), spacing_mm=(1, 1, 1))
    windows = np.lib.stride_tricks.sliding_window_view(labels, (6, 7, 8)).reshape(-1, 6 * 7 * 8)
    for seed in range(5):
        patch = synthesizer.sample(seed, (6, 7, 8))[1].numpy().reshape(-1)
        assert (windows == patch).all(1).any()


def test_voxels_of_the_sample_larger_than_those_of_the_map(labels):
    """Labels are those at the centres of the output's voxels, and the image is their mean."""
    synthesizer = Synthesizer([labels], SynthesisConfig.exact(slice_fill=(1.0, 1.0)), spacing_mm=(1, 1, 1))
    thick, patch = synthesizer.sample(0, (8, 24, 28), spacing_mm=(3, 1, 1), position=(9, 12, 7))
    np.testing.assert_array_equal(patch, labels[10:33:3, 12:36, 7:35])
    fine, _ = synthesizer.sample(0, (24, 24, 28), position=(9, 12, 7))
    means = fine[0].reshape(8, 3, 24, 28).mean(1)
    assert np.corrcoef(means.flatten(), thick.flatten())[0, 1] > 0.9999


def test_each_structure_has_one_value_without_disturbances(synthesizer_of):
    """The plain config gives the intensities of the prior: left and right are equal, fluid is darker than cortex."""
    image, labels = synthesizer_of(modalities=("t1w",)).sample(0, (48, 48, 48), position=(0, 0, 0))
    values = {label: image[0][labels == label] for label in (24, 3, 42, 2, 41)}
    assert all(float(v.std(correction=0)) < 1e-6 for v in values.values())
    fluid, left, right, white, _ = (float(v[0]) for v in values.values())
    assert left == right
    assert fluid < left < white


def test_a_mirror_image_keeps_sides_true(labels, synthesizer_of):
    """Left and right are exchanged with the image, unless their names stay with the voxels."""
    position = {"position": (4, 4, 4)}
    image, plain = synthesizer_of().sample(0, (40, 40, 40), **position)
    mirrored, swapped = synthesizer_of(flip_probability=1.0).sample(0, (40, 40, 40), **position)
    _, kept = synthesizer_of(flip_probability=1.0, swap_sides=False).sample(0, (40, 40, 40), **position)
    np.testing.assert_allclose(mirrored, image.flip(-1))
    np.testing.assert_array_equal(kept, plain.flip(-1))
    partner = {
        s.label: next(p.label for p in FREESURFER.structures if p.name == s.partner) for s in FREESURFER.structures
    }
    np.testing.assert_array_equal(swapped, np.vectorize(partner.get)(kept.numpy()))
    # The head is symmetric, so its mirror image has its labels.
    np.testing.assert_array_equal(swapped, plain)


def test_targets_replace_labels(labels):
    """Labels that are not listed become 0."""
    synthesizer = Synthesizer(
        [labels],
        SynthesisConfig.exact(),
        spacing_mm=(1, 1, 1),
        targets=FREESURFER.tissue_targets({"grey": 2, "white": 3}),
    )
    patch = synthesizer.sample(0, (48, 48, 48), position=(0, 0, 0))[1].numpy()
    np.testing.assert_array_equal(patch, 2 * np.isin(labels, (3, 42)) + 3 * np.isin(labels, (2, 41)))


def test_contrast_width_of_one_sample(synthesizer_of):
    """The width of the call replaces that of the config."""
    image, _ = synthesizer_of(random_share=1.0, contrast_width=(1.0, 1.0)).sample(0, SHAPE)
    assert torch.equal(image, synthesizer_of().sample(0, SHAPE, contrast_width=1.0)[0])
    assert not torch.equal(image, synthesizer_of().sample(0, SHAPE)[0])


def test_map_index_chooses_the_map(labels):
    """A number chooses the map; without one, all maps occur."""
    maps = [np.full((8, 8, 8), label, np.uint8) for label in (3, 42)]
    synthesizer = Synthesizer(maps, SynthesisConfig.exact(), spacing_mm=(1, 1, 1))
    assert int(synthesizer.sample(0, (2, 2, 2), map_index=1)[1][0, 0, 0]) == 42
    assert {int(synthesizer.sample(seed, (2, 2, 2))[1][0, 0, 0]) for seed in range(20)} == {3, 42}


def test_maps_of_a_mouse_at_its_own_scale():
    """Voxels of 0.1 mm, labels without names, ranges scaled to the size of a mouse."""
    blocks = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((12, 12, 12), np.uint8)).astype(np.uint16)
    config = SynthesisConfig(modalities=("mouse t2w",)).scaled(0.08)
    synthesizer = Synthesizer([blocks], config, Anatomy.of_labels(range(1, 9)), spacing_mm=(0.1, 0.1, 0.1))
    images, labels = synthesizer.batch(range(4), (16, 16, 16))
    assert bool(torch.isfinite(images).all())
    assert set(labels.unique().tolist()) <= set(range(9))


def test_labels_of_more_than_16_bits():
    """Identifiers of the Allen atlas reach hundreds of millions."""
    values = np.where(np.arange(512).reshape(8, 8, 8) % 2, 614454277, 997).astype(np.uint32)
    anatomy = Anatomy.of_labels([997, 614454277])
    synthesizer = Synthesizer([values], SynthesisConfig.exact(), anatomy, spacing_mm=(1, 1, 1))
    patch = synthesizer.sample(0, (8, 8, 8), position=(0, 0, 0))[1]
    assert patch.dtype == torch.int64
    np.testing.assert_array_equal(patch, values)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_samples(labels, synthesizer):
    """Random numbers come from the processor only; the twin is `test_a_seed_gives_the_same_sample`."""
    on_gpu = Synthesizer([labels], spacing_mm=(1, 1, 1), device="cuda")
    for seed in range(8):
        image, patch = synthesizer.sample(seed, SHAPE)
        other, other_patch = on_gpu.sample(seed, SHAPE)
        assert float((image - other.cpu()).abs().max()) < 1e-3
        assert float((patch != other_patch.cpu()).float().mean()) < 1e-3
    with pytest.raises(ParameterError, match="seed must be a generator on the processor; got one on cuda"):
        on_gpu.sample(torch.Generator("cuda"), SHAPE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: Synthesizer([]), "maps must have a label map; got none"),
        (lambda s: s.sample(0, (4, 4)), r"shape must be three sizes of 1 or more; got \(4, 4\)"),
        (lambda s: s.sample(0, (4, 0, 4)), "shape must be three sizes"),
        (lambda s: s.sample(0, (4, 4, 4), spacing_mm=(1, 0, 1)), "spacing_mm must be three lengths above 0"),
        (lambda s: s.sample(0, (4, 4, 4), position=(1, 2)), r"position must be three whole numbers; got \(1, 2\)"),
        (lambda s: s.sample(0, (4, 4, 4), map_index=9), "map_index must be from 0 to 0; got 9"),
        (lambda s: s.sample(0, (4, 4, 4), contrast_width=2.0), "contrast_width must be from 0 to 1; got 2"),
        (lambda s: s.batch([], (4, 4, 4)), "seeds must have a number; got none"),
    ],
)
def test_bad_arguments(synthesizer, call, message):
    """Each message has the expected value, the actual one and the remedy."""
    with pytest.raises(ParameterError, match=message):
        call(synthesizer)


def test_real_label_maps(shared):
    """A whole head: sides are true in world space, and most samples show the brain."""
    labels = mrhdata.read(shared / "label-maps" / "training_seg_01.nii.gz", kind="labels")
    synthesizer = Synthesizer([labels], SynthesisConfig.exact())
    label_map = synthesizer.maps[0]
    left, right = (
        float((label_map.indices == FREESURFER.labels.tolist().index(value)).nonzero()[:, 2].float().mean())
        for value in (2, 41)
    )
    assert left < right
    sampler = Synthesizer([label_map])
    shares = [float((sampler.sample(seed, (32, 32, 32))[1] > 0).float().mean()) for seed in range(6)]
    assert np.median(shares) > 0.5


def test_upright_volumes(labels):
    """A volume whose axes run towards inferior, posterior and left is reversed."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    plain = from_array(labels, affine=affine, kind="labels")
    reverse = affine.copy()
    reverse[:3, :3] *= -1
    turned = from_array(np.ascontiguousarray(labels[::-1, ::-1, ::-1]), affine=reverse, kind="labels")
    a, b = (Synthesizer([volume], SynthesisConfig.exact()) for volume in (plain, turned))
    assert equal(a.sample(0, SHAPE), b.sample(0, SHAPE))


def test_the_config_is_frozen():
    """A range cannot be changed after the checks."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        SynthesisConfig().noise = 1.0
