"""The patch contract: every patch is the naive slice, whatever the blocks."""

import pickle

import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.volume import from_array

from .conftest import FULL, oblique_affine


def volume(shape=(9, 8, 7), channels=None, chunks=None, seed=0, affine=None, dtype=np.uint16):
    """A volume of distinct values in z, y, x order."""
    full = shape if channels is None else (channels, *shape)
    values = np.random.default_rng(seed).permutation(np.prod(full)).reshape(full).astype(dtype)
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    dims = "zyx" if channels is None else "czyx"
    geometry = {"spacing": (0.1, 0.2, 0.3)} if affine is None else {"affine": affine}
    return from_array(data, dims=dims, **geometry)


def naive(source, position, shape):
    """The patch by plain slicing, (C, z, y, x) float32."""
    values = source.values if source.ndim == 4 else source.values[None]
    z, y, x = position
    return values[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]].astype(np.float32)


@settings(max_examples=200 if FULL else 30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(1 if FULL else 4, 9)] * 3),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64]),
)
def test_every_patch_is_the_naive_slice(shape, stride, chunks, channels, dtype):
    """Shapes, strides, chunks, channels and dtypes: indexing, batches, the loader and Dask agree."""
    source = volume(channels=channels, chunks=chunks if channels is None else (1, *chunks), dtype=dtype)
    target = volume(seed=1)
    p = mrhdata.patches(source, target, shape=shape, stride=stride)
    expected = [naive(source, c, shape) for c in p.positions], [naive(target, c, shape) for c in p.positions]
    x, y = p.gather(np.arange(len(p)))
    np.testing.assert_array_equal(x, expected[0])
    np.testing.assert_array_equal(y, expected[1])
    one_x, one_y = p[len(p) // 2]
    np.testing.assert_array_equal(one_x, expected[0][len(p) // 2])
    np.testing.assert_array_equal(one_y, expected[1][len(p) // 2])
    lazy_x, lazy_y = p.to_dask()
    np.testing.assert_array_equal(lazy_x, expected[0])
    np.testing.assert_array_equal(lazy_y, expected[1])
    np.testing.assert_array_equal(torch.cat([b[0] for b in p.loader(7, shuffle=False)]), expected[0])


def test_positions_are_plain_integers_made_before_reading():
    """Planning computes no voxel of the inputs."""

    def fail(block):
        raise AssertionError("a voxel was read")

    data = da.zeros((8, 8, 8), chunks=4).map_blocks(fail, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    p = mrhdata.patches(from_array(data, spacing=(1, 1, 1)), shape=4)
    assert p.positions.dtype == np.int64
    assert sorted(map(tuple, p.positions.tolist())) == [(z, y, x) for z in (0, 4) for y in (0, 4) for x in (0, 4)]


def test_tensors_are_float32_c_z_y_x():
    """Input and target, or the input alone; flat axes go only when asked."""
    v = volume()
    x, y = mrhdata.patches(v, v, shape=3, plane="coronal")[0]
    assert x.dtype == y.dtype == torch.float32
    assert tuple(x.shape) == (1, 3, 1, 3)
    assert tuple(mrhdata.patches(v, shape=3, plane="coronal", squeeze=True)[0].shape) == (1, 3, 3)
    assert tuple(mrhdata.patches(v, shape=1, squeeze=True)[0].shape) == (1,)


@pytest.mark.parametrize(("plane", "shape"), [("axial", (1, 3, 3)), ("coronal", (3, 1, 3)), ("sagittal", (3, 3, 1))])
def test_planes_fix_their_axis(plane, shape):
    """Length and stride 1 on the axis that the plane is named for."""
    p = mrhdata.patches(volume(), shape=3, stride=2, plane=plane)
    assert p.shape == shape
    fixed = shape.index(1)
    assert len(np.unique(p.positions[:, fixed])) == (9, 8, 7)[fixed]


def test_masks_keep_centres_or_shares():
    """Centre voxel by default, a share of the patch where asked: both by brute force."""
    v = volume()
    mask = from_array(np.random.default_rng(3).random((9, 8, 7)) > 0.6, spacing=(0.1, 0.2, 0.3), kind="mask")
    everywhere = mrhdata.patches(v, shape=3, stride=1).positions
    by_centre = {tuple(c) for c in everywhere if mask.values[tuple(c + 1)]}
    assert {tuple(c) for c in mrhdata.patches(v, shape=3, stride=1, where=mask).positions} == by_centre
    share = {tuple(c) for c in everywhere if naive(mask, c, (3, 3, 3)).mean() >= 0.5}
    assert {tuple(c) for c in mrhdata.patches(v, shape=3, stride=1, where=mask, inside=0.5).positions} == share


def test_several_subjects_and_epochs():
    """Every patch of every subject once an epoch, other orders in other epochs, the same for the same seed."""
    subjects = [volume(chunks=4), volume(seed=5, chunks=3), volume((4, 4, 4), seed=6)]
    p = mrhdata.patches(subjects, subjects, shape=2)
    assert p.subject.tolist() == sorted(p.subject.tolist())
    for i in (0, len(p) // 2, len(p) - 1):
        np.testing.assert_array_equal(p[i][0], naive(subjects[p.subject[i]], p.positions[i], p.shape))
    orders = [np.concatenate(list(p.batches(8, shuffle=True, seed=s, epoch=e))) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(len(p)))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    loader = p.loader(8, seed=0)
    first = torch.cat([x for x, _ in loader])
    second = torch.cat([x for x, _ in loader])
    np.testing.assert_array_equal(first, p.gather(orders[0])[0])
    np.testing.assert_array_equal(second, p.gather(orders[1])[0])
    assert len(loader) == -(-len(p) // 8) == len(list(loader))


def test_memory_budget_holds_and_changes_nothing():
    """A budget of one block: the same patches, and never more resident than the budget and one block."""
    v = volume((8, 8, 8), chunks=4)
    p = mrhdata.patches(v, v, shape=2, stride=1, memory=2_500)
    batches = torch.cat([x for x, _ in p.loader(32, seed=1)])
    assert len(batches) == len(p)
    assert p._resident_bytes() <= 2_500
    order = np.concatenate(list(p.batches(32, shuffle=True, seed=1)))
    np.testing.assert_array_equal(batches, [naive(v, c, (2, 2, 2)) for c in p.positions[order]])


def test_any_dataloader_may_use_it_as_a_map():
    """Map-style, pickled to workers started anew."""
    v = volume()
    p = pickle.loads(pickle.dumps(mrhdata.patches(v, v, shape=2)))
    loader = DataLoader(p, batch_size=5, num_workers=1, multiprocessing_context="forkserver")
    got = torch.cat([x for x, _ in loader])
    np.testing.assert_array_equal(got, p.gather(np.arange(len(p)))[0])


def test_stored_volumes_give_the_same_patches(tmp_path):
    """From OME-Zarr with oblique geometry, block by block of its shards."""
    v = volume((140, 70, 30), affine=oblique_affine(spacing=(0.3, 0.2, 0.1))[:, [2, 1, 0, 3]])
    mrhdata.write(v, tmp_path / "a.zarr")
    p = mrhdata.patches(mrhdata.read(tmp_path / "a.zarr"), shape=(5, 3, 4), stride=(9, 11, 7))
    assert "2 blocks" in repr(p)
    np.testing.assert_array_equal(p.gather(np.arange(len(p)))[0], [naive(v, c, p.shape) for c in p.positions])


def test_dask_graph_has_one_gather_per_block():
    """Blocks, not patches, are tasks."""
    p = mrhdata.patches(volume(chunks=4), shape=2)
    lazy = p.to_dask()
    assert lazy.numblocks[0] == len(p._starts) - 1 == 2 * 2 * 2


class TestRefusals:
    """One sentence with both values and the remedy."""

    def test_grids_that_differ(self):
        """Target of another shape, other space, flipped file."""
        v = volume()
        with pytest.raises(GridError, match=r"\(9, 8, 6\) and \(9, 8, 7\)|\(9, 8, 7\) and \(9, 8, 6\)"):
            mrhdata.patches(v, v.isel(x=slice(6)), shape=2)
        with pytest.raises(GridError, match=r"spaces differ"):
            mrhdata.patches(v, mrhdata.volume.describe(v, space="CCFv3"), shape=2)
        straight = volume(affine=oblique_affine()[:, [2, 1, 0, 3]])
        flipped = volume(affine=oblique_affine(flip=(-1, 1, 1))[:, [2, 1, 0, 3]])
        with pytest.raises(GridError, match="mm apart"):
            mrhdata.patches({"a": straight, "b": flipped}, shape=2)

    def test_masks_that_are_empty(self):
        """Nothing to look at is an error, not an empty set."""
        with pytest.raises(DataError, match="mask is empty"):
            mrhdata.patches(volume(), shape=2, where=volume() * 0)
        with pytest.raises(DataError, match="504 of 504 mask voxels are NaN"):
            mrhdata.patches(volume(), shape=2, where=volume() * np.nan)
        corner = volume() * 0
        corner[0, 0, 0] = 1
        with pytest.raises(DataError, match="leaves no patch"):
            mrhdata.patches(volume(), shape=3, where=corner)

    def test_counts_and_channels_that_differ(self):
        """Subjects without a target, or with other channels."""
        v = volume()
        with pytest.raises(GridError, match="2 subjects of inputs, 1 of targets"):
            mrhdata.patches([v, v], [v], shape=2)
        with pytest.raises(GridError, match="different inputs"):
            mrhdata.patches([{"a": v}, {"b": v}], shape=2)

    def test_shapes_that_make_no_sense(self):
        """Too large, two numbers, unknown planes, rows beyond the end."""
        v = volume()
        with pytest.raises(GridError, match="does not fit"):
            mrhdata.patches(v, shape=10)
        with pytest.raises(GridError, match="one number or three"):
            mrhdata.patches(v, shape=(2, 2))
        with pytest.raises(GridError, match="axial, coronal, sagittal"):
            mrhdata.patches(v, shape=2, plane="frontal")
        with pytest.raises(IndexError):
            mrhdata.patches(v, shape=2)[10_000]
