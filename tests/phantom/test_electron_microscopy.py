"""The neuropil phantom: its structures lie in their processes, and its image follows from them."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_filter, label

from mrhdata import phantom
from mrhdata.errors import GridError
from mrhdata.phantom import STRUCTURES, electron_microscopy


@pytest.fixture(scope="module")
def block():
    """Return one block of 0.4 x 1.6 x 1.6 um."""
    return {name: v.compute() for name, v in phantom.neuropil((40, 160, 160), seed=3).items()}


def mask_of(block, *names):
    """Return the mask of some structures."""
    return np.isin(block["structure"].values, [STRUCTURES[n][0] for n in names])


def test_neuropil_is_deterministic_for_a_seed():
    """The same seed gives the same block, another seed another one."""
    first, again, other = (phantom.neuropil((6, 48, 40), seed=s) for s in (1, 1, 2))
    assert len(first) == 4
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["structure"], other["structure"])
    assert abs(np.corrcoef(first["em"].values.ravel(), other["em"].values.ravel())[0, 1]) < 0.2


def test_geometry_and_dtype(block):
    """The image has 8 bits and 10 nm, and all volumes share one grid."""
    assert block["em"].dtype == np.uint8
    assert block["em"].dims == ("z", "y", "x")
    for volume in block.values():
        assert volume.mrh.grid.same_as(block["em"].mrh.grid)
        np.testing.assert_allclose(volume.mrh.spacing, 1e-5)
    thin = phantom.neuropil((1, 30, 20), spacing_mm=2e-5)
    assert thin["em"].shape == (1, 30, 20)


def test_mitochondria_lie_inside_single_processes(block):
    """The block has all structures; mitochondria do not touch borders, and each lies in one process."""
    assert set(np.unique(block["structure"])) == {row[0] for row in STRUCTURES.values()}
    mitochondria = mask_of(block, "mitochondrion", "crista")
    shell = binary_dilation(mitochondria) & ~mitochondria
    assert mask_of(block, "membrane")[shell].mean() < 0.05
    components, count = label(binary_erosion(mitochondria))
    assert count >= 2
    process = block["process"].values
    assert all(len(np.unique(process[components == k])) == 1 for k in range(1, count + 1))


def test_membranes_lie_on_the_borders_of_processes(block):
    """Faces between processes are membrane or density, and membrane voxels are near such a face."""
    process = block["process"].values
    border = np.zeros(process.shape, dtype=bool)
    for axis in range(3):
        change = np.diff(process, axis=axis) != 0
        border[tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))] |= change
    dark = mask_of(block, "membrane", "density")
    assert dark[border].mean() > 0.97
    # Voxels near the faces of the block may belong to borders outside of it.
    distance = distance_transform_edt(~border)[6:-6, 6:-6, 6:-6]
    assert np.quantile(distance[mask_of(block, "membrane")[6:-6, 6:-6, 6:-6]], 0.98) <= 4


def test_membrane_width_is_volume_over_area(block):
    """Membrane volume over border area is the width of a border, to 20 % because of the bend."""
    process = block["process"].values
    # Voxel faces overstate the area of randomly oriented surfaces 1.5-fold on average.
    faces = sum((np.diff(process, axis=axis) != 0).sum() for axis in range(3))
    width = 10 * mask_of(block, "membrane", "density").sum() / (faces / 1.5)
    assert width == pytest.approx(2 * electron_microscopy._HALF_BORDER, rel=0.2)


def test_image_is_the_blurred_clean_image_with_noise(block):
    """The residual has the variance of the noise model; structures have their grey values."""
    clean = block["em_clean"].values.astype(float)
    blurred = gaussian_filter(clean, 0.1 * electron_microscopy._BEAM)
    residual = block["em"].values / 255 - blurred
    assert abs(residual.mean()) < 1e-3
    assert residual.var() == pytest.approx(
        electron_microscopy._NOISE[0] + electron_microscopy._NOISE[1] * blurred.mean(), rel=0.05
    )
    for name in ("membrane", "mitochondrion", "crista", "density"):
        assert np.median(clean[mask_of(block, name)]) == pytest.approx(STRUCTURES[name][1], abs=0.08), name
    assert clean[mask_of(block, "cytoplasm")].mean() == pytest.approx(STRUCTURES["cytoplasm"][1], abs=0.05)


@pytest.mark.full
def test_membrane_share_does_not_depend_on_the_spacing():
    """The shares of membrane at 20 nm and at 10 nm agree to 15 % (three blocks each)."""
    shares = {
        spacing: np.mean([phantom.neuropil((n, n, n), spacing, seed)["structure"].values == 1 for seed in range(3)])
        for n, spacing in ((40, 2e-5), (80, 1e-5))
    }
    assert shares[2e-5] == pytest.approx(shares[1e-5], rel=0.15)


def test_vesicles_cluster_at_densities(block):
    """Vesicles are nearer to a density than cytoplasm is; their membranes are dark, though thinner than a voxel."""
    density = mask_of(block, "density")
    distance = distance_transform_edt(~density)
    vesicles = mask_of(block, "vesicle")
    membranes = block["em_clean"].values[mask_of(block, "vesicle membrane")]
    assert membranes.mean() < STRUCTURES["cytoplasm"][1] - 0.15
    assert vesicles.sum() > 50
    assert np.median(distance[vesicles]) < 0.6 * np.median(distance[mask_of(block, "cytoplasm")])


def test_random_fields_have_zero_mean_and_unit_deviation():
    """Mean and deviation hold over 60 seeds."""
    values = np.array(
        [electron_microscopy._Block((4, 12, 12), 10.0, np.random.default_rng(s)).field(60.0) for s in range(60)]
    )
    assert values.std() == pytest.approx(1, rel=0.1)
    assert abs(values.mean()) < 0.15


def test_neuropil_rejects_invalid_shape_and_spacing():
    """Errors contain the shape of two lengths, or the spacing of 1 mm."""
    with pytest.raises(GridError, match=r"\(8, 8\) at 1e-05"):
        phantom.neuropil((8, 8))
    with pytest.raises(GridError, match="at 1 mm"):
        phantom.neuropil((8, 8, 8), spacing_mm=1.0)
