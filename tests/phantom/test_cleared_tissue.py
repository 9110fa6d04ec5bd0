"""The cleared brain: voxels do not depend on chunks, cells lie where the list says, size costs nothing."""

import pickle

import dask
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

from mrhdata import phantom
from mrhdata.errors import DataError, GridError
from mrhdata.phantom import Cleared
from mrhdata.phantom.cleared_scene import REGIONS, TILE
from tests.conftest import FULL

#: Two tiles and a part of a third along y: borders of tiles and of the volume are met.
SHAPE = (96, 150, 128)


@pytest.fixture(scope="module")
def brain():
    """A small brain, its voxels in memory."""
    brain = phantom.cleared(SHAPE, seed=3)
    brain.volume.load()
    return brain


@pytest.fixture(scope="module")
def voxels(brain):
    """Its counts over the camera's offset."""
    return brain.volume.values.astype(float) - brain.settings.offset


def test_chunks_change_no_voxel(brain):
    """Whole tiles, odd blocks, or one voxel more than a tile."""
    part = (slice(30, 70), slice(60, 150), slice(0, 90))
    expected, regions = brain.volume[part].compute(), brain.regions.compute()
    for chunks in ((40, 77, 128), TILE + 1)[: 2 if FULL else 1]:
        other = phantom.cleared(SHAPE, seed=3, chunks=chunks)
        np.testing.assert_array_equal(other.volume[part], expected)
        np.testing.assert_array_equal(other.regions, regions)


def test_a_box_is_that_part_of_the_whole(brain):
    """Also where it was computed elsewhere, from a pickled graph."""
    lazy = phantom.cleared(SHAPE, seed=3).volume[10:70, 130:60:-3, 65]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).values, brain.volume.values[10:70, 130:60:-3, 65])


def test_the_seed_is_the_brain(brain, voxels):
    """Same seed, same brain; another seed, other cells, and noise that is not the same."""
    part = (slice(0, 64),) * 3
    again, other = (phantom.cleared(SHAPE, seed=s) for s in (3, 4))
    pd.testing.assert_frame_equal(again.cells, brain.cells)
    np.testing.assert_array_equal(again.volume[part], brain.volume[part])
    assert not set(other.cells.z) & set(brain.cells.z)
    # Outside the tissue there is noise alone.
    corner = (slice(0, 5),) * 3
    both = [b.volume[corner].values.ravel() for b in (brain, other)]
    assert abs(np.corrcoef(both)[0, 1]) < 0.4


def test_geometry(brain):
    """2 um voxels without orientation; world points of the cells are those of the volume."""
    assert brain.volume.dims == ("z", "y", "x")
    assert brain.regions.mrh.grid.same_as(brain.volume.mrh.grid)
    np.testing.assert_allclose(brain.volume.mrh.spacing, 2e-3)
    np.testing.assert_allclose(brain.volume.mrh.index(brain.cells[["X", "Y", "Z"]]), brain.cells[["z", "y", "x"]])


def test_cells_are_brighter_than_what_is_around_them(brain, voxels):
    """Nearly all: a few lie on a vessel or beside a brighter cell. And so at random places is one in two."""
    grid = np.stack(np.meshgrid(*[np.arange(-10, 11)] * 3, indexing="ij"))
    away = np.linalg.norm(grid, axis=0)

    def stands_out(at):
        inside = [np.clip(np.rint(a) + g, 0, n - 1).astype(int) for a, g, n in zip(at, grid, SHAPE, strict=True)]
        cut = voxels[tuple(inside)]
        return cut[away < 2].mean() > 1.1 * np.median(cut[(away > 8) & (away < 10)])

    places = brain.cells[["z", "y", "x"]].to_numpy()
    assert len(places) > 40
    assert np.mean([stands_out(p) for p in places]) > 0.95
    moved = (places + np.array([0, 75, 64])) % SHAPE
    assert np.mean([stands_out(p) for p in moved]) < 0.5


def test_regions_hold_the_cells_that_say_so():
    """By label, and by density: the list's region is that of the voxel, and dense regions are denser."""
    brain = phantom.cleared((192, 192, 192), seed=5)
    labels = brain.regions.values
    at = tuple(np.rint(brain.cells[["z", "y", "x"]].to_numpy()).astype(int).T)
    np.testing.assert_array_equal(labels[at], brain.cells.region)
    assert set(np.unique(labels)) == set(range(len(REGIONS)))
    assert (brain.cells.region > 0).all()
    assert labels[0].max() == labels[:, -1].max() == 0
    density = np.bincount(brain.cells.region, minlength=6) / np.bincount(labels.ravel())
    assert density[2] > 1.3 * density[1] > 0


def test_cells_keep_their_distance():
    """No two overlap, within a box or across tiles; without the rule they do."""

    def overlaps(apart):
        cells = phantom.cleared(SHAPE, 1, Cleared(cells_per_mm3=1e5, apart=apart)).cells
        distance = squareform(pdist(cells[["X", "Y", "Z"]]))
        np.fill_diagonal(distance, np.inf)
        radii = cells.radius_mm.to_numpy()
        return int((distance < np.add.outer(radii, radii)).sum()), len(cells)

    assert overlaps(1.0)[0] == 0
    assert overlaps(0.0)[0] > 10
    assert overlaps(0.0)[1] > overlaps(1.0)[1] > 100


def test_cells_of_boxes_are_those_of_the_whole(brain):
    """Cut where tiles are not: every cell in one box."""
    parts = [
        brain.cells_within((z, y, 0), (z + 48, y + 50, SHAPE[2])) for z in range(0, 96, 48) for y in range(0, 150, 50)
    ]
    together = pd.concat(parts).sort_values("z", ignore_index=True)
    pd.testing.assert_frame_equal(together, brain.cells.sort_values("z", ignore_index=True))
    assert len(brain.cells_within((300, 0, 0), (400, 150, 128))) == 0
    assert len(brain.cells_within((-90, -90, -90), (0, 0, 0))) == 0


def test_missing_annotations():
    """A share at random, the more the more are missing; voxels and cells stay."""
    brains = [phantom.cleared(SHAPE, 3, Cleared(cells_per_mm3=1e5), missing=m) for m in (0.0, 0.3, 0.6, 1.0)]
    marks = np.array([b.cells.annotated for b in brains])
    np.testing.assert_allclose(marks.mean(axis=1), [1, 0.7, 0.4, 0], atol=0.08)
    assert (marks[:-1] >= marks[1:]).all()
    part = (slice(40, 60),) * 3
    np.testing.assert_array_equal(brains[0].volume[part], brains[2].volume[part])


def test_the_camera_and_the_light(voxels):
    """Read noise and offset where there is nothing; less light at high x; a point is longer along z."""
    outside = voxels[:4, :4, :4]
    assert abs(outside.mean()) < 2
    assert outside.std() == pytest.approx(Cleared().read_noise_e / Cleared().electrons_per_count, rel=0.3)
    even = Cleared(cells_per_mm3=0, vessels_per_mm3=0, specks_per_mm3=0, haze_per_mm3=0, shadows_per_mm2=0)
    light = phantom.cleared((64, 64, 256), 0, even).volume.values[20:44, 20:44].mean(axis=(0, 1)) - 100
    assert light[206:230].mean() / light[26:50].mean() == pytest.approx(0.5 ** (180 / 256), rel=0.15)


def test_points_are_longer_along_the_axis():
    """Of specks alone, the second moments are those of speck and optics."""
    settings = Cleared(cells_per_mm3=0, vessels_per_mm3=0, haze_per_mm3=0, shadows_per_mm2=0, neuropil_e=0, speck_e=2e4)
    image = phantom.cleared((64, 128, 128), 0, settings).volume.values - 100.0
    spectrum = np.abs(np.fft.fftn(image)) ** 2
    alike = np.fft.ifftn(spectrum).real
    fall = [alike[2, 0, 0], alike[0, 2, 0], alike[0, 0, 2]]
    assert fall[0] > 1.5 * max(fall[1:])
    assert fall[1] == pytest.approx(fall[2], rel=0.3)


def test_a_terabyte_costs_what_a_block_costs():
    """One block and its cells of 10,000^3 voxels, 2 TB."""
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


def test_what_cannot_be_made():
    """Each with its value and what to give instead."""
    with pytest.raises(GridError, match=r"\(8, 8\)"):
        phantom.cleared((8, 8))
    with pytest.raises(DataError, match=r"missing 1\.5"):
        phantom.cleared((8, 8, 8), missing=1.5)
    with pytest.raises(DataError, match="seed is -1"):
        phantom.cleared((8, 8, 8), seed=-1)
    for wrong, message in (
        ({"cell_e": -1.0}, "cell_e"),
        ({"diameter_um": (16.0, 8.0)}, r"\[16.0, 8.0\]"),
        ({"spacing_um": 0.0}, "spacing_um is 0"),
        ({"fading": 0.0}, "fading is 0"),
        ({"electrons_per_count": 0.0}, "electrons_per_count"),
    ):
        with pytest.raises(DataError, match=message):
            Cleared(**wrong)
