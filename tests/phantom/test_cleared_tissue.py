"""The cleared-brain phantom: independence of chunks, agreement of voxels and cell list, cost of large brains."""

import pickle

import dask
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

from mrhdata import phantom
from mrhdata.errors import DataError, GridError
from mrhdata.phantom import ClearedSettings
from mrhdata.phantom.cleared_scene import REGIONS, TILE
from tests.conftest import FULL

#: Two tiles and a part of a third along y, to cover borders of tiles and of the volume.
SHAPE = (96, 150, 128)


@pytest.fixture(scope="module")
def brain():
    """Return a small brain with its voxels in memory."""
    brain = phantom.cleared(SHAPE, seed=3)
    brain.volume.load()
    return brain


@pytest.fixture(scope="module")
def signal(brain):
    """Return the counts of the brain without the offset of the camera."""
    return brain.volume.values.astype(float) - brain.settings.offset


def test_voxels_do_not_depend_on_chunks(brain):
    """Odd chunks, or chunks one voxel larger than a tile, give the voxels of the default chunks."""
    region = (slice(30, 70), slice(60, 150), slice(0, 90))
    expected, labels = brain.volume[region].compute(), brain.regions.compute()
    for chunks in ((40, 77, 128), TILE + 1)[: 2 if FULL else 1]:
        other = phantom.cleared(SHAPE, seed=3, chunks=chunks)
        np.testing.assert_array_equal(other.volume[region], expected)
        np.testing.assert_array_equal(other.regions, labels)


def test_indexing_a_pickled_lazy_volume_gives_its_voxels(brain):
    """Slices with steps and integers of a pickled graph equal those of the whole volume."""
    lazy = phantom.cleared(SHAPE, seed=3).volume[10:70, 130:60:-3, 65]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).values, brain.volume.values[10:70, 130:60:-3, 65])


def test_cleared_is_deterministic_for_a_seed(brain, signal):
    """The same seed gives the same brain, another seed other cells and other noise."""
    region = (slice(0, 64),) * 3
    again, other = (phantom.cleared(SHAPE, seed=s) for s in (3, 4))
    pd.testing.assert_frame_equal(again.cells, brain.cells)
    np.testing.assert_array_equal(again.volume[region], brain.volume[region])
    assert not set(other.cells.z) & set(brain.cells.z)
    # The corner is outside the tissue and has only noise.
    corner = (slice(0, 5),) * 3
    noise = [b.volume[corner].values.ravel() for b in (brain, other)]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.4


def test_geometry_of_volume_regions_and_cells_agrees(brain):
    """Voxels are 2 um; world points and voxel indices of the cells fit the volume."""
    assert brain.volume.dims == ("z", "y", "x")
    assert brain.regions.mrh.grid.same_as(brain.volume.mrh.grid)
    np.testing.assert_allclose(brain.volume.mrh.spacing, 2e-3)
    np.testing.assert_allclose(brain.volume.mrh.index(brain.cells[["X", "Y", "Z"]]), brain.cells[["z", "y", "x"]])


def test_cells_are_brighter_than_their_surroundings(brain, signal):
    """More than 95 % of cells stand out (a few touch a vessel or brighter cell), but under half of random points do."""
    grid = np.stack(np.meshgrid(*[np.arange(-10, 11)] * 3, indexing="ij"))
    distance = np.linalg.norm(grid, axis=0)

    def stands_out(centre):
        index = [np.clip(np.rint(c) + g, 0, n - 1).astype(int) for c, g, n in zip(centre, grid, SHAPE, strict=True)]
        cube = signal[tuple(index)]
        return cube[distance < 2].mean() > 1.1 * np.median(cube[(distance > 8) & (distance < 10)])

    centres = brain.cells[["z", "y", "x"]].to_numpy()
    assert len(centres) > 40
    assert np.mean([stands_out(c) for c in centres]) > 0.95
    shifted = (centres + np.array([0, 75, 64])) % SHAPE
    assert np.mean([stands_out(c) for c in shifted]) < 0.5


def test_cell_regions_agree_with_labels_and_densities():
    """The region of a cell is the label of its voxel, and the dense layer has more cells per voxel."""
    brain = phantom.cleared((192, 192, 192), seed=5)
    labels = brain.regions.values
    index = tuple(np.rint(brain.cells[["z", "y", "x"]].to_numpy()).astype(int).T)
    np.testing.assert_array_equal(labels[index], brain.cells.region)
    assert set(np.unique(labels)) == set(range(len(REGIONS)))
    assert (brain.cells.region > 0).all()
    assert labels[0].max() == labels[:, -1].max() == 0
    density = np.bincount(brain.cells.region, minlength=6) / np.bincount(labels.ravel())
    assert density[2] > 1.3 * density[1] > 0


def test_cells_keep_their_distance():
    """With `apart` 1 no two cells overlap, also across tiles; with `apart` 0 some do."""

    def overlaps(apart):
        cells = phantom.cleared(SHAPE, 1, ClearedSettings(cells_per_mm3=1e5, apart=apart)).cells
        distance = squareform(pdist(cells[["X", "Y", "Z"]]))
        np.fill_diagonal(distance, np.inf)
        radii = cells.radius_mm.to_numpy()
        return int((distance < np.add.outer(radii, radii)).sum()), len(cells)

    assert overlaps(1.0)[0] == 0
    assert overlaps(0.0)[0] > 10
    assert overlaps(0.0)[1] > overlaps(1.0)[1] > 100


def test_cells_of_tiling_boxes_are_those_of_the_brain(brain):
    """Every cell lies in one of the boxes, whose borders are not those of tiles."""
    tables = [
        brain.cells_within((z, y, 0), (z + 48, y + 50, SHAPE[2])) for z in range(0, 96, 48) for y in range(0, 150, 50)
    ]
    joined = pd.concat(tables).sort_values("z", ignore_index=True)
    pd.testing.assert_frame_equal(joined, brain.cells.sort_values("z", ignore_index=True))
    assert len(brain.cells_within((300, 0, 0), (400, 150, 128))) == 0
    assert len(brain.cells_within((-90, -90, -90), (0, 0, 0))) == 0


def test_missing_removes_a_random_share_of_annotations():
    """A larger share removes further annotations; the voxels do not change."""
    brains = [phantom.cleared(SHAPE, 3, ClearedSettings(cells_per_mm3=1e5), missing=m) for m in (0.0, 0.3, 0.6, 1.0)]
    annotated = np.array([b.cells.annotated for b in brains])
    np.testing.assert_allclose(annotated.mean(axis=1), [1, 0.7, 0.4, 0], atol=0.08)
    assert (annotated[:-1] >= annotated[1:]).all()
    region = (slice(40, 60),) * 3
    np.testing.assert_array_equal(brains[0].volume[region], brains[2].volume[region])


def test_camera_noise_and_fading_light(signal):
    """Outside the tissue there are only offset and read noise; the light fades along x."""
    outside = signal[:4, :4, :4]
    assert abs(outside.mean()) < 2
    assert outside.std() == pytest.approx(
        ClearedSettings().read_noise_e / ClearedSettings().electrons_per_count, rel=0.3
    )
    only_neuropil = ClearedSettings(
        cells_per_mm3=0, vessels_per_mm3=0, specks_per_mm3=0, haze_per_mm3=0, shadows_per_mm2=0
    )
    light = phantom.cleared((64, 64, 256), 0, only_neuropil).volume.values[20:44, 20:44].mean(axis=(0, 1)) - 100
    assert light[206:230].mean() / light[26:50].mean() == pytest.approx(0.5 ** (180 / 256), rel=0.15)


def test_point_spread_is_longer_along_z():
    """The autocorrelation of an image of specks falls more slowly along z, and alike along y and x."""
    settings = ClearedSettings(
        cells_per_mm3=0, vessels_per_mm3=0, haze_per_mm3=0, shadows_per_mm2=0, neuropil_e=0, speck_e=2e4
    )
    image = phantom.cleared((64, 128, 128), 0, settings).volume.values - 100.0
    spectrum = np.abs(np.fft.fftn(image)) ** 2
    autocorrelation = np.fft.ifftn(spectrum).real
    at_2_voxels = [autocorrelation[2, 0, 0], autocorrelation[0, 2, 0], autocorrelation[0, 0, 2]]
    assert at_2_voxels[0] > 1.5 * max(at_2_voxels[1:])
    assert at_2_voxels[1] == pytest.approx(at_2_voxels[2], rel=0.3)


def test_a_block_of_a_terabyte_brain_is_made_from_few_tasks():
    """One block and its cells of a brain of 10,000^3 voxels (2 TB) are made on their own."""
    brain = phantom.cleared((10_000, 10_000, 10_000), seed=2, chunks=TILE)
    assert brain.volume.nbytes == 2e12
    low = np.array([5000 // TILE * TILE, 2000 // TILE * TILE, 3000 // TILE * TILE])
    (lazy,) = dask.optimize(brain.volume[tuple(slice(a, a + TILE) for a in low)])
    assert len(lazy.__dask_graph__()) < 5
    block = lazy.values
    cells = brain.cells_within(low, low + TILE)
    assert block.shape == (TILE,) * 3
    assert block.mean() > 150
    assert ((cells[["z", "y", "x"]] >= low) & (cells[["z", "y", "x"]] < low + TILE)).all(axis=None)


def test_cleared_rejects_invalid_settings():
    """Errors contain the name and the value."""
    with pytest.raises(GridError, match=r"\(8, 8\)"):
        phantom.cleared((8, 8))
    with pytest.raises(DataError, match=r"missing 1\.5"):
        phantom.cleared((8, 8, 8), missing=1.5)
    with pytest.raises(DataError, match="got seed -1"):
        phantom.cleared((8, 8, 8), seed=-1)
    for settings, message in (
        ({"cell_e": -1.0}, "cell_e"),
        ({"diameter_um": (16.0, 8.0)}, r"\[16.0, 8.0\]"),
        ({"spacing_um": 0.0}, "spacing_um must be above 0; got 0"),
        ({"fading": 0.0}, "fading must be .* got 0"),
        ({"electrons_per_count": 0.0}, "electrons_per_count"),
    ):
        with pytest.raises(DataError, match=message):
            ClearedSettings(**settings)
