"""Volumes on other grids, read at their own voxels or resampled, with patches around the same world points."""

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

import mrhdata
from mrhdata.errors import DataError, GridError, ParameterError
from mrhdata.io.omezarr.chunks import Chunks
from mrhdata.patching.samplers import ClassBalanced, Points, Uniform
from mrhdata.volume.construct import from_array
from tests.conftest import FULL
from tests.patching.test_dataset import padded_with_numpy

#: Directions of the axes z, y, x (columns) along world Z, Y, X.
PLAIN = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])


def placed(values, spacing=(1, 1, 1), centre=(0, 0, 0), flips=(False,) * 3, turn=0, chunks=None, **attrs):
    """Return a volume centred on a world point; its axes run along Z, Y, X, or are flipped, or turned by degrees."""
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", (turn, turn / 2, -turn), degrees=True).as_matrix() @ PLAIN
    affine[:3, :3] = turned * np.where(flips, -1, 1) * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(values.shape) - 1) / 2)
    return from_array(values if chunks is None else da.from_array(values, chunks), affine=affine, **attrs)


def numbered(shape, seed=0):
    """Return distinct values that float32 holds exactly."""
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(np.float32)


def ramp(points):
    """Return values that are linear in the world coordinates."""
    return 5 + points @ np.array([1.0, -2.0, 3.0])


def world_of(volume):
    """Return the world points of all voxels: (z, y, x, 3)."""
    return volume.mrh.world(np.moveaxis(np.indices(volume.shape), 0, -1))


def filled(volume, function):
    """Return a volume on the same grid whose values are a function of world points."""
    return volume.copy(data=function(world_of(volume)).astype(np.float32))


def cut_patches(values, positions, shape):
    """Return patches by plain slicing of a (z, y, x) array: (n, 1, z, y, x)."""
    z, y, x = shape
    return np.stack([values[None, a : a + z, b : b + y, c : c + x] for a, b, c in positions])


def all_batches(p, batch_size=4):
    """Return the tensors of all patches, read in batches and sorted in the order of `positions`."""
    batches = list(p.batches(batch_size, seed=1))
    order = np.argsort(np.concatenate([indices for indices, _ in batches]))
    return [np.concatenate(tensor)[order] for tensor in zip(*(arrays for _, arrays in batches), strict=True)]


@settings(max_examples=100 if FULL else 12)
@given(
    st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.37, 2.1])] * 3),
    st.tuples(*[st.floats(-1, 1)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.sampled_from([None, (3, 3, 3), (2, 4, 5)]),
    st.sampled_from([None, 13]),
)
def test_native_patches_have_the_same_centre_in_the_world(spacing, centre, flips, shape, target_shape, chunks):
    """For any spacing, position and flip, patches are plain slices of the flipped volume, centred to half a voxel."""
    first = placed(numbered((9, 8, 10)), chunks=4)
    lengths = np.ceil(np.array([18, 18, 18]) / spacing).astype(int)
    other = placed(numbered(lengths, seed=1), spacing, centre, flips, chunks=chunks)
    p = mrhdata.patches(first, other, shape=shape, target_shape=target_shape, stride=4, grids="native")
    x, y = p.gather(np.arange(len(p)))
    for gathered, batched in zip((x, y), all_batches(p), strict=True):
        np.testing.assert_array_equal(gathered, batched)
    np.testing.assert_array_equal(x, cut_patches(first.values, p.positions, shape))
    wanted = np.maximum(1, np.rint(np.array(shape) / spacing)) if target_shape is None else target_shape
    assert y.shape[2:] == tuple(wanted)
    direction, values = np.where(flips, -1, 1), other.values
    for position, patch in zip(p.positions, y[:, 0], strict=True):
        first_voxel = np.argwhere(values == patch[0, 0, 0])[0]
        steps = np.moveaxis(np.indices(patch.shape), 0, -1) * direction
        np.testing.assert_array_equal(patch, values[tuple(np.moveaxis(first_voxel + steps, -1, 0))])
        middle = first_voxel + direction * (np.array(patch.shape) - 1) / 2
        expected = other.mrh.index(first.mrh.world(position + (np.array(shape) - 1) / 2))
        assert np.abs(middle - expected).max() <= 0.5 + 1e-6


def test_larger_inputs_share_the_centre_of_the_target():
    """Inputs of 5 x 7 x 7 voxels around targets of 3 x 3 x 3 have the same middle voxels in both modes."""
    v = placed(numbered((12, 12, 12)), chunks=5)
    for grids in ("same", "native"):
        x, y = mrhdata.patches(v, v, shape=(5, 7, 7), target_shape=3, stride=2, grids=grids).gather(np.arange(9))
        np.testing.assert_array_equal(x[:, :, 1:4, 2:5, 2:5], y)


def test_each_volume_may_have_its_own_shape():
    """A mapping sets shapes by name; other volumes cover the extent of the first patch."""
    a = placed(numbered((12, 12, 12)))
    b = placed(numbered((30, 30, 30)), (0.5, 0.5, 0.5))
    p = mrhdata.patches(
        {"a": a, "b": b, "c": b}, {"t": b}, shape={"a": 3, "b": (5, 7, 7)}, target_shape={"t": 1}, grids="native"
    )
    assert {name: tensor_shape[1:] for name, tensor_shape in p.tensor_shapes.items()} == {
        "input_a": (3, 3, 3),
        "input_b": (5, 7, 7),
        "input_c": (6, 6, 6),
        "target_t": (1, 1, 1),
    }
    inputs, target = p[3]
    assert sorted(inputs) == ["a", "b", "c"]
    assert tuple(target["t"].shape) == (1, 1, 1, 1)
    assert float(inputs["b"][0, 2, 3, 3]) == float(target["t"])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_native_patches_beyond_their_volume_are_padded(mode):
    """Patches of a block within the first volume equal patches of the block padded by NumPy."""
    first = placed(numbered((16, 16, 16)))
    block = placed(numbered((9, 9, 9), seed=1), centre=(0.2, -0.3, 0.1), chunks=4)
    p = mrhdata.patches(first, block, shape=3, stride=2, grids="native", padding=mode)
    starts = np.rint(block.mrh.index(first.mrh.world(p.positions))).astype(int)
    touching = ((starts > -3) & (starts < 9)).all(axis=1)
    assert 50 < touching.sum() < len(p)
    expected = np.stack([padded_with_numpy(block.values, s, (3, 3, 3), mode) for s in starts[touching]])
    np.testing.assert_array_equal(p.gather(np.flatnonzero(touching))[1], expected)
    np.testing.assert_array_equal(all_batches(p)[1][touching], expected)
    if mode == "constant":
        assert not p.gather(np.flatnonzero(~touching))[1].any()


def test_patches_lie_within_all_volumes_without_padding():
    """The grid drops positions outside a smaller volume or a larger target; user positions there raise an error."""
    first = placed(numbered((9, 9, 9)))
    block = mrhdata.patches(first, placed(numbered((4, 4, 4))), shape=3, stride=1, grids="native")
    assert sorted(map(tuple, block.positions)) == [tuple(i + 2) for i in np.array(list(np.ndindex(2, 2, 2)))]
    large = mrhdata.patches(first, first, shape=3, target_shape=5)
    assert large.positions.tolist() == [[3, 3, 3]]
    np.testing.assert_array_equal(large[0][1][0], first.values[2:7, 2:7, 2:7])
    drawn = mrhdata.patches(first, placed(numbered((4, 4, 4))), shape=3, sampler=Uniform(50), grids="native")
    assert len(drawn) == 50
    assert set(drawn.positions.ravel().tolist()) == {2, 3}
    with pytest.raises(GridError, match=r"1 positions do not, the first at \[4, 2, 2\]"):
        mrhdata.patches(
            first, placed(numbered((4, 4, 4))), shape=3, sampler=np.array([[2, 2, 2], [4, 2, 2]]), grids="native"
        )
    with pytest.raises(DataError, match="no patch lies within all volumes"):
        mrhdata.patches(first, first, shape=3, target_shape=11)


def test_subjects_of_different_spacing_need_an_explicit_shape():
    """Shapes that follow from the spacing differ between subjects and raise an error; explicit shapes do not."""
    first = placed(numbered((9, 9, 9)))
    targets = [placed(numbered((9, 9, 9))), placed(numbered((6, 6, 6)), (2, 2, 2))]
    with pytest.raises(GridError, match="shape"):
        mrhdata.patches([first, first], targets, shape=4, grids="native", padding="edge")
    p = mrhdata.patches([first, first], targets, shape=4, target_shape=3, grids="native", padding="edge")
    assert p.gather(np.arange(len(p)))[1].shape == (len(p), 1, 3, 3, 3)


def test_native_grids_refuse_rotated_volumes():
    """A rotation of 30 degrees raises an error that names grids='resample'; 0.5 degrees does not."""
    first = placed(numbered((12, 12, 12)))
    turned = placed(numbered((12, 12, 12)), turn=30)
    with pytest.raises(GridError, match=r"axes parallel to those of the first volume.*Pass grids='resample'"):
        mrhdata.patches({"a": first, "b": turned}, shape=5, grids="native")
    slightly = placed(numbered((20, 20, 20)), turn=0.5)
    assert len(mrhdata.patches({"a": first, "b": slightly}, shape=5, grids="native")) == 27


@pytest.mark.parametrize(
    "other",
    [
        placed(numbered((9, 9, 9)), (1, 1, 1.5)),
        placed(numbered((9, 9, 9)), centre=(0.1, 0, 0)),
        placed(numbered((9, 9, 9)), flips=(False, True, False)),
        placed(numbered((9, 9, 8))),
    ],
)
def test_different_grids_raise_grid_error_by_default(other):
    """The spacing, position, direction or shape differs, in an input, the target or the mask."""
    first = placed(numbered((9, 9, 9)))
    for call in (
        lambda: mrhdata.patches({"a": first, "b": other}, shape=3),
        lambda: mrhdata.patches(first, other, shape=3),
        lambda: mrhdata.patches(first, shape=3, mask=other),
    ):
        with pytest.raises(GridError, match="resample one"):
            call()
    with pytest.raises(ParameterError, match="grids must be one of same, native, resample; got 'nearest'"):
        mrhdata.patches(first, shape=3, grids="nearest")


@pytest.mark.parametrize("grids", ["native", "resample"])
def test_different_spaces_raise_grid_error(grids):
    """World points of different spaces cannot be compared."""
    first = placed(numbered((9, 9, 9)))
    with pytest.raises(GridError, match="space"):
        mrhdata.patches(first, mrhdata.volume.describe(first, space="CCFv3"), shape=3, grids=grids)


class TestResampled:
    """Volumes are resampled to the voxels of the first volume."""

    @pytest.mark.parametrize("turn", [0, 3, 30, -40])
    @pytest.mark.parametrize("chunks", [None, 5])
    def test_linear_ramp_is_preserved(self, turn, chunks):
        """A ramp in world coordinates has the same values at the reference's voxels, and 0 outside the volume."""
        first = filled(placed(np.zeros((17, 14, 15)), (1, 1.2, 0.8), turn=7), ramp)
        other = filled(placed(np.zeros((14, 15, 16)), (0.7, 0.9, 1.1), (0.3, 0.2, 0.1), turn=turn), ramp)
        if chunks is not None:
            other = other.chunk(chunks)
        p = mrhdata.patches(first, other, shape=3, stride=2, grids="resample")
        x, y = p.gather(np.arange(len(p)))
        for gathered, batched in zip((x, y), all_batches(p), strict=True):
            np.testing.assert_array_equal(gathered, batched)
        index = other.mrh.index(world_of(first))
        top = np.array(other.shape) - 1
        between = cut_patches(((index >= 0) & (index <= top)).all(-1), p.positions, p.shape)
        outside = cut_patches(((index < -0.501) | (index > top + 0.501)).any(-1), p.positions, p.shape)
        assert between.sum() > 500
        assert outside.sum() > 500
        np.testing.assert_allclose(y[between], x[between], atol=1e-4)
        assert not y[outside].any()

    @settings(max_examples=40 if FULL else 10)
    @given(st.floats(-50, 50), st.tuples(*[st.floats(0.4, 2.2)] * 3), st.integers(0, 99), st.sampled_from([None, 6]))
    def test_labels_come_from_the_nearest_voxel(self, turn, spacing, seed, chunks):
        """Labels are not interpolated, and are 0 outside the volume."""
        rng = np.random.default_rng(seed)
        first = placed(np.zeros((11, 12, 13)))
        values = rng.choice(np.array([3, 200, 70_000]), (9, 8, 10))
        labels = placed(values, spacing, rng.uniform(-1, 1, 3), turn=turn, chunks=chunks, kind="labels")
        p = mrhdata.patches(first, labels, shape=(4, 5, 6), stride=3, grids="resample")
        index = labels.mrh.index(world_of(first))
        # Halfway between two voxels either label is correct.
        clear = (np.abs(index - np.floor(index) - 0.5) > 1e-6).all(-1)
        nearest = np.rint(index).astype(int)
        inside = ((nearest >= 0) & (nearest < labels.shape)).all(-1)
        expected = np.zeros(first.shape)
        expected[inside] = labels.values[tuple(nearest[inside].T)]
        target = p.gather(np.arange(len(p)))[1]
        compared = cut_patches(clear, p.positions, p.shape)
        np.testing.assert_array_equal(target[compared], cut_patches(expected, p.positions, p.shape)[compared])

    @pytest.mark.parametrize("memory", ["1 GB", 950_000])
    @pytest.mark.parametrize("shape", [3, 17])
    def test_resampling_does_not_depend_on_tiles(self, memory, shape):
        """Patches equal slices of the whole volume resampled by SciPy, for any tiles."""
        first = placed(np.zeros((40, 36, 44), np.float32), chunks=7)
        values = np.random.default_rng(0).normal(size=(30, 32, 28)).astype(np.float32)
        other = placed(values, (1.1, 1.3, 0.9), (2.1, 1.2, -0.7), turn=25, chunks=6)
        to_other = np.linalg.solve(other.mrh.grid.affine, first.mrh.grid.affine)
        whole = ndimage.affine_transform(values, to_other, output_shape=first.shape, order=1, mode="nearest")
        index = other.mrh.index(world_of(first))
        whole[((index < -0.5) | (index > np.array(values.shape) - 0.5)).any(-1)] = 0
        p = mrhdata.patches(first, other, shape=shape, sampler=Uniform(60), grids="resample", memory=memory)
        expected = cut_patches(whole, p.positions, p.shape)
        for target in (p.gather(np.arange(len(p)))[1], all_batches(p, 2)[1]):
            np.testing.assert_allclose(target, expected, atol=1e-4)

    @pytest.mark.parametrize(("spacing", "level"), [(1.9, 130), (2.0, 65), (3.9, 65), (4.0, 32)])
    def test_coarsest_level_as_fine_as_the_grid_is_read(self, tmp_path, monkeypatch, spacing, level):
        """A pyramid of 1, 2 and 4 mm is read only at its coarsest level that is as fine as the reference."""
        fine = filled(placed(np.zeros((130, 130, 130), np.float32)), ramp)
        mrhdata.write(fine, tmp_path / "fine.zarr")
        n = int(60 / spacing)
        reference = filled(placed(np.zeros((n, n, n)), (spacing,) * 3), ramp)
        read = set()
        plain = Chunks.read
        monkeypatch.setattr(Chunks, "read", lambda self, at, out=None: read.add(self.shape) or plain(self, at, out))
        p = mrhdata.patches(
            reference, mrhdata.read(tmp_path / "fine.zarr"), shape=3, sampler=Uniform(5), grids="resample"
        )
        x, y = p.gather(np.arange(5))
        assert read == {(level,) * 3}
        # A voxel of a coarser level is the mean of the voxels that it covers, so the ramp is unchanged.
        np.testing.assert_allclose(y, x, atol=1e-3)

    @pytest.mark.parametrize("change", ["none", "kind", "shift", "odd"])
    def test_stored_levels_yield_the_patches_of_the_volume_in_memory(self, tmp_path, change):
        """Patches of a store equal those of its voxels in memory: read as labels, shifted, or of odd length."""
        values = np.full((129, 6, 6), 10, np.float32)
        if change != "odd":
            values = values[1:]
            values[np.arange(128) % 4 != 3] = 0
        mrhdata.write(from_array(values, spacing=(0.1, 1, 1)), tmp_path / "fine.zarr")
        fine = mrhdata.read(tmp_path / "fine.zarr", kind="labels" if change == "kind" else None)
        if change == "shift":
            fine = fine.assign_coords(z=fine.z + 0.2)
        start = 0 if change == "odd" else 0.15
        affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [0.4, 0, 0, start], [0, 0, 0, 1]])
        reference = from_array(np.zeros((33, 6, 6), np.float32), affine=affine)
        p = mrhdata.patches(reference, fine, shape=(1, 3, 3), grids="resample")
        target = p.gather(np.arange(len(p)))[1]
        if change == "none":
            inside = p.positions[:, 0] < 32
            np.testing.assert_allclose(target[inside], 2.5)
            assert not target[~inside].any()
            return
        # The values are constant, so the voxel that a pyramid drops from an odd length equals its neighbour.
        loaded = mrhdata.patches(reference, fine.load(), shape=(1, 3, 3), grids="resample")
        np.testing.assert_array_equal(target, loaded.gather(np.arange(len(p)))[1])

    def test_labels_within_the_store_of_their_image(self, tmp_path):
        """The labels' own levels are read, not those of the image at the root of the store."""
        import zarr

        image = placed(np.full((96, 20, 20), 777, np.uint16), (0.1, 1, 1))
        mrhdata.write(image, tmp_path / "img.zarr")
        (tmp_path / "img.zarr" / "labels").mkdir()
        zarr.open_group(tmp_path / "img.zarr" / "labels", mode="a", zarr_format=3)
        half = np.repeat([0, 1], 48).astype(np.uint8)[:, None, None] * np.ones((1, 20, 20), np.uint8)
        nuclei = image.copy(data=half).assign_attrs(kind="labels").rename("nuclei")
        mrhdata.write(nuclei, tmp_path / "nuclei.zarr")
        (tmp_path / "nuclei.zarr").rename(tmp_path / "img.zarr" / "labels" / "nuclei")
        labels = mrhdata.read(tmp_path / "img.zarr", dataset="labels/nuclei")
        coarse = placed(np.zeros((24, 20, 20), np.float32), (0.4, 1, 1), (0.15, 0, 0))
        p = mrhdata.patches(coarse, labels, shape=1, grids="resample")
        np.testing.assert_array_equal(p.gather(np.arange(len(p)))[1].ravel(), p.positions[:, 0] >= 12)

    def test_masks_and_labels_may_lie_on_other_grids(self):
        """A coarse mask and coarse labels are read at the voxel nearest to each voxel of the first grid."""
        first = placed(np.zeros((20, 20, 20)))
        values = np.random.default_rng(0).integers(0, 3, (7, 7, 7)).astype(np.uint8)
        labels = placed(values, (2.9, 2.9, 2.9), (0.2, 0.1, 0.3), kind="labels")
        mask = labels.copy(data=(values > 0).astype(np.uint8)).assign_attrs(kind="mask")
        for grids in ("native", "resample"):
            p = mrhdata.patches(first, shape=1, sampler=ClassBalanced(90, labels, {1: 1, 2: 2}), mask=mask, grids=grids)
            nearest = np.rint(labels.mrh.index(first.mrh.world(p.positions))).astype(int)
            np.testing.assert_array_equal(values[tuple(nearest.T)], p.classes)
            assert np.bincount(p.classes).tolist() == [0, 30, 60]
        with pytest.raises(GridError, match="resample one"):
            mrhdata.patches(first, shape=1, sampler=ClassBalanced(90, labels))

    def test_masks_without_a_kind_do_not_grow(self):
        """A comparison such as `volume > 5` has the kind of the image, but is read as a mask."""
        first = placed(np.zeros((22, 22, 22)))
        values = np.arange(8) > 3
        mask = placed(values[:, None, None] & np.ones((8, 8, 8), bool), (3, 3, 3))
        p = mrhdata.patches(first, shape=1, mask=mask, grids="resample")
        inside = np.unique(p.positions[:, 0])
        index = mask.mrh.index(first.mrh.world(np.stack([inside, inside * 0, inside * 0], axis=1)))[:, 0]
        assert index.min() >= 3.5


def test_patches_of_five_modalities_have_one_tissue_in_the_middle(five_modalities):
    """At its own voxels the middle of every patch has the tissue of the phantom at that world point."""
    path, tissue, to_tissue = five_modalities
    group = mrhdata.open_catalog(path).select(subject="01")
    group = {name: group[name] for name in ("mri", "qsm", "histology", "cleared", "em")}
    assert len({float(v.mrh.spacing[0].round(6)) for v in group.values()}) == 5
    assert len({v.mrh.grid.orientation for v in group.values()}) >= 3
    # MRI voxels deep within one tissue, so that the nearest voxels of the other modalities lie in it too.
    mri = group["mri"]
    voxels = np.stack(np.meshgrid(*[np.arange(10, 15)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = mri.mrh.world(voxels)
    around = points[:, None] + np.random.default_rng(0).uniform(-0.061, 0.061, (1, 300, 3))
    points = points[(tissue(around) == tissue(points)[:, None]).all(1)]
    assert len(points) > 10
    shape = {"mri": 3, "qsm": 3, "histology": 5, "cleared": 7, "em": (3, 5, 7)}
    p = mrhdata.patches(group, shape=shape, sampler=Points(points), grids="native")
    assert len(p) == len(points)
    assert len(np.unique(tissue(p.to_xarray().centre_mm.values))) > 1
    seen = 0
    for inputs, metadata in p.loader(4, return_metadata=True):
        centres = (metadata["affine"].numpy() @ [1, 1, 1, 1])[:, :3]
        for name, patch in inputs.items():
            assert patch.shape[2:] == tuple(np.broadcast_to(shape[name], 3))
            middle = patch.numpy()[:, 0, *((n - 1) // 2 for n in patch.shape[2:])]
            np.testing.assert_allclose(to_tissue[name](middle.astype(float)), tissue(centres), atol=1e-5)
        seen += len(centres)
    assert seen == len(points)
