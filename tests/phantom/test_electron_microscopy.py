"""The digital neuropil: its edges lie where it says, its image follows from its structures."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_filter, label

from mrhdata import phantom
from mrhdata.errors import GridError
from mrhdata.phantom import STRUCTURES, electron_microscopy


@pytest.fixture(scope="module")
def block():
    """One block of 0.4 x 1.6 x 1.6 um."""
    return {name: v.compute() for name, v in phantom.neuropil((40, 160, 160), seed=3).items()}


def where(block, *names):
    """Voxels of some structures."""
    return np.isin(block["structure"].values, [STRUCTURES[n][0] for n in names])


def test_blocks_differ_and_repeat():
    """The seed is the block."""
    first, again, other = (phantom.neuropil((6, 48, 40), seed=s) for s in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["structure"], other["structure"])
    assert abs(np.corrcoef(first["em"].values.ravel(), other["em"].values.ravel())[0, 1]) < 0.2


def test_geometry_and_types(block):
    """Eight bits at 10 nm, on one grid with the truth."""
    assert block["em"].dtype == np.uint8
    assert block["em"].dims == ("z", "y", "x")
    for volume in block.values():
        assert volume.mrh.grid.same_as(block["em"].mrh.grid)
        np.testing.assert_allclose(volume.mrh.spacing, 1e-5)
    thin = phantom.neuropil((1, 30, 20), spacing_mm=2e-5)
    assert thin["em"].shape == (1, 30, 20)


def test_everything_is_there_and_in_its_place(block):
    """All structures; mitochondria keep off the borders, and each lies within one process."""
    assert set(np.unique(block["structure"])) == {row[0] for row in STRUCTURES.values()}
    mitochondria = where(block, "mitochondrion", "crista")
    shell = binary_dilation(mitochondria) & ~mitochondria
    assert where(block, "membrane")[shell].mean() < 0.05
    pieces, number = label(binary_erosion(mitochondria))
    assert number >= 2
    process = block["process"].values
    assert all(len(np.unique(process[pieces == k])) == 1 for k in range(1, number + 1))


def test_membranes_lie_on_the_borders_of_processes(block):
    """Every face between two processes is dark, and every membrane voxel is near one."""
    process = block["process"].values
    border = np.zeros(process.shape, dtype=bool)
    for axis in range(3):
        change = np.diff(process, axis=axis) != 0
        border[tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))] |= change
    on = where(block, "membrane", "density")
    assert on[border].mean() > 0.97
    # Borders beyond the block's faces are not seen.
    distance = distance_transform_edt(~border)[6:-6, 6:-6, 6:-6]
    assert np.quantile(distance[where(block, "membrane")[6:-6, 6:-6, 6:-6]], 0.98) <= 4


def test_membranes_have_their_width(block):
    """The volume of membrane over the area of the borders is twice half the width, within what bending does."""
    process = block["process"].values
    # Faces between voxels overstate the area of a surface that lies anyhow by 1.5 on average.
    faces = sum((np.diff(process, axis=axis) != 0).sum() for axis in range(3))
    width = 10 * where(block, "membrane", "density").sum() / (faces / 1.5)
    assert width == pytest.approx(2 * electron_microscopy._BORDER, rel=0.2)


def test_the_image_is_the_clean_one_behind_beam_and_noise(block):
    """What is left of the image has the noise's variance; structures have their grey."""
    clean = block["em_clean"].values.astype(float)
    seen = gaussian_filter(clean, 0.1 * electron_microscopy._BEAM)
    left = block["em"].values / 255 - seen
    assert abs(left.mean()) < 1e-3
    assert left.var() == pytest.approx(
        electron_microscopy._NOISE[0] + electron_microscopy._NOISE[1] * seen.mean(), rel=0.05
    )
    for name in ("membrane", "mitochondrion", "crista", "density"):
        assert np.median(clean[where(block, name)]) == pytest.approx(STRUCTURES[name][1], abs=0.08), name
    assert clean[where(block, "cytoplasm")].mean() == pytest.approx(STRUCTURES["cytoplasm"][1], abs=0.05)


@pytest.mark.full
def test_there_is_as_much_membrane_at_a_coarser_grid():
    """Edges belong to the tissue, not to voxels: 20 nm against 10, several blocks each."""
    shares = {
        spacing: np.mean([phantom.neuropil((n, n, n), spacing, seed)["structure"].values == 1 for seed in range(3)])
        for n, spacing in ((40, 2e-5), (80, 1e-5))
    }
    assert shares[2e-5] == pytest.approx(shares[1e-5], rel=0.15)


def test_vesicles_crowd_at_densities(block):
    """They are nearer to a density than cytoplasm is; their walls are dark, though thinner than a voxel."""
    density = where(block, "density")
    distance = distance_transform_edt(~density)
    vesicles = where(block, "vesicle")
    walls = block["em_clean"].values[where(block, "vesicle membrane")]
    assert walls.mean() < STRUCTURES["cytoplasm"][1] - 0.15
    assert vesicles.sum() > 50
    assert np.median(distance[vesicles]) < 0.6 * np.median(distance[where(block, "cytoplasm")])


def test_fields_have_unit_deviation():
    """At every voxel, whatever the width: over many seeds."""
    values = np.array(
        [electron_microscopy._Block((4, 12, 12), 10.0, np.random.default_rng(s)).field(60.0) for s in range(60)]
    )
    assert values.std() == pytest.approx(1, rel=0.1)
    assert abs(values.mean()) < 0.15


def test_what_cannot_be_drawn():
    """Two lengths, or a millimetre."""
    with pytest.raises(GridError, match=r"\(8, 8\) at 1e-05"):
        phantom.neuropil((8, 8))
    with pytest.raises(GridError, match="at 1 mm"):
        phantom.neuropil((8, 8, 8), spacing_mm=1.0)
