"""Every patch equals the plain slice of the volume, whatever the chunks, the padding and the way of access."""

import pickle
import re

import dask.array as da
import numcodecs
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import mrhdata
from mrhdata.errors import DataError, FormatError, GridError, ParameterError
from mrhdata.io.omezarr.chunks import Chunks
from mrhdata.patching.prefetch import ReadAhead
from mrhdata.patching.samplers import Uniform
from mrhdata.volume.construct import from_array
from tests.conftest import FULL, oblique_affine


def volume(shape=(9, 8, 7), channels=None, chunks=None, seed=0, affine=None, dtype=np.uint16):
    """Return a volume of distinct values in random order."""
    full = shape if channels is None else (channels, *shape)
    values = np.random.default_rng(seed).permutation(np.prod(full)).reshape(full).astype(dtype)
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    dims = "zyx" if channels is None else "czyx"
    geometry = {"spacing": (0.1, 0.2, 0.3)} if affine is None else {"affine": affine}
    return from_array(data, dims=dims, **geometry)


def naive_patch(source, position, shape):
    """Return a patch by plain slicing, (C, z, y, x) float32."""
    values = source.values if source.ndim == 4 else source.values[None]
    z, y, x = position
    return values[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]].astype(np.float32)


def naive_patches(source, positions, shape):
    """Return many patches by plain slicing, (n, C, z, y, x) float32."""
    loaded = source.compute()
    return np.stack([naive_patch(loaded, position, shape) for position in positions])


def assert_all_access_paths_yield(p, expected):
    """Assert that indexing, gathering, the loader, Dask and xarray all yield the expected arrays, one per tensor."""
    names = list(p.tensor_shapes)
    for gathered, array in zip(p.gather(np.arange(len(p))), expected, strict=True):
        np.testing.assert_array_equal(gathered, array)
    batches = list(p.batches(7, seed=3))
    indices = np.concatenate([r for r, _ in batches])
    np.testing.assert_array_equal(np.sort(indices), np.arange(len(p)))
    dataset = p.to_xarray()
    for i, (name, array) in enumerate(zip(names, expected, strict=True)):
        np.testing.assert_array_equal(np.concatenate([arrays[i] for _, arrays in batches]), array[indices])
        np.testing.assert_array_equal(dataset[name], array)
    patch = p[len(p) // 2]
    first = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(first, torch.Tensor):
        np.testing.assert_array_equal(first, expected[0][len(p) // 2])
        (batch,) = (
            [x for x, *_ in p.loader(len(p), shuffle=False)]
            if len(names) > 1
            else list(p.loader(len(p), shuffle=False))
        )
        np.testing.assert_array_equal(batch, expected[0][next(p.batches(len(p), shuffle=False))[0]])


@settings(max_examples=200 if FULL else 15)
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(1 if FULL else 4, 9)] * 3),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64]),
)
def test_every_patch_equals_the_plain_slice(shape, stride, chunks, channels, dtype):
    """All ways of access agree for any shape, stride, chunks, channels and dtype."""
    source = volume(channels=channels, chunks=chunks if channels is None else (1, *chunks), dtype=dtype)
    target = volume(seed=1)
    p = mrhdata.patches(source, target, shape=shape, stride=stride)
    assert_all_access_paths_yield(p, [naive_patches(v, p.positions, shape) for v in (source, target)])


def padded_with_numpy(values, position, shape, mode):
    """Return a patch of a volume that NumPy padded on all sides."""
    wide = np.pad(values, 12, mode="reflect" if mode == "reflect" else mode)
    z, y, x = position + 12
    return wide[z : z + shape[0], y : y + shape[1], x : x + shape[2]].astype(np.float32)[None]


@settings(max_examples=100 if FULL else 15)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.sampled_from(["constant", "edge", "reflect"]), st.integers(0, 99))
def test_padding_equals_numpy_pad(shape, mode, seed):
    """Patches at user positions may reach beyond one side, two sides or the whole volume."""
    v = volume(chunks=4)
    positions = np.random.default_rng(seed).integers(1 - np.array(shape), v.shape, (6, 3))
    p = mrhdata.patches(v, shape=shape, sampler=positions, padding=mode)
    np.testing.assert_array_equal(p.positions, positions[p.draw_index])
    values = v.values
    assert_all_access_paths_yield(p, [np.stack([padded_with_numpy(values, c, shape, mode) for c in p.positions])])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a volume, and the same volume as Zarr 2 and sharded Zarr 3 in chunks smaller than a large patch."""
    folder = tmp_path_factory.mktemp("stores")
    v = volume((90, 70, 50))
    (folder / "v2.zarr").mkdir()
    group = zarr.open_group(folder / "v2.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=v.values, chunks=(32, 16, 20), compressors=numcodecs.Blosc("zstd"))
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    scale = [{"type": "scale", "scale": [0.1, 0.2, 0.3]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["multiscales"] = [image]
    mrhdata.write(v, folder / "sharded.zarr")
    return v, {name: mrhdata.read(folder / f"{name}.zarr") for name in ("v2", "sharded")}


@pytest.mark.parametrize("store", ["v2", "sharded"])
@pytest.mark.parametrize(
    ("shape", "stride"), [((17, 20, 21), (15, 13, 11)), ((40, 40, 40), (7, 9, 5)), ((1, 1, 1), 30)]
)
@pytest.mark.parametrize("memory", ["1 GB", 4_500_000])
def test_stored_volumes_yield_the_same_patches(stores, store, shape, stride, memory):
    """Patches within one chunk and over many, from Zarr 2 and from shards, in memory and within a small budget."""
    v, stored = stores
    p = mrhdata.patches(stored[store], shape=shape, stride=stride, memory=memory)
    expected = naive_patches(v, p.positions, p.shape)
    np.testing.assert_array_equal(p.gather(np.arange(len(p)))[0], expected)
    for shuffle in (True, False):
        batches = list(p.batches(2, shuffle=shuffle))
        indices = np.concatenate([r for r, _ in batches])
        np.testing.assert_array_equal(np.sort(indices), np.arange(len(p)))
        np.testing.assert_array_equal(np.concatenate([x for _, (x,) in batches]), expected[indices])


def test_each_chunk_in_memory_is_decoded_once_in_two_epochs(stores, monkeypatch):
    """A volume that fits in memory is read once, also over several epochs."""
    read = []
    plain = Chunks.read
    monkeypatch.setattr(Chunks, "read", lambda self, at, out=None: read.append(tuple(at)) or plain(self, at, out))
    p = mrhdata.patches(stores[1]["v2"], shape=(20, 16, 20), stride=9)
    for epoch in range(2):
        list(p.batches(8, epoch=epoch))
    assert len(read) == len(set(read)) == 3 * 5 * 3


def test_planning_computes_integer_positions_without_reading_voxels():
    """A Dask array that fails on computing is planned without an error."""

    def fail(block):
        raise AssertionError("a voxel was read")

    data = da.zeros((8, 8, 8), chunks=4).map_blocks(fail, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    p = mrhdata.patches(from_array(data, spacing=(1, 1, 1)), shape=4)
    assert p.positions.dtype == np.int64
    assert sorted(map(tuple, p.positions.tolist())) == [(z, y, x) for z in (0, 4) for y in (0, 4) for x in (0, 4)]


def test_tensors_are_float32_in_c_z_y_x_order():
    """Input and target, or only the input; axes of length 1 are dropped only with `squeeze`."""
    v = volume()
    x, y = mrhdata.patches(v, v, shape=3, plane="coronal")[0]
    assert x.dtype == y.dtype == torch.float32
    assert tuple(x.shape) == (1, 3, 1, 3)
    assert tuple(mrhdata.patches(v, shape=3, plane="coronal", squeeze=True)[0].shape) == (1, 3, 3)
    assert tuple(mrhdata.patches(v, shape=1, squeeze=True)[0].shape) == (1,)


@pytest.mark.parametrize(("plane", "shape"), [("axial", (1, 3, 3)), ("coronal", (3, 1, 3)), ("sagittal", (3, 3, 1))])
def test_plane_fixes_length_and_stride_of_its_axis(plane, shape):
    """Length and stride are 1 on the axis across the plane."""
    p = mrhdata.patches(volume(), shape=3, stride=2, plane=plane)
    assert p.shape == shape
    fixed = shape.index(1)
    assert len(np.unique(p.positions[:, fixed])) == (9, 8, 7)[fixed]


@pytest.mark.parametrize(("plane", "axis"), [("axial", 0), ("coronal", 1), ("sagittal", 2)])
@pytest.mark.parametrize("channels", [None, 2])
def test_context_slices_are_channels(plane, axis, channels):
    """2.5D: slices on both sides of the middle one are channels, and the flat target lies at the middle slice."""
    v, target = volume(channels=channels, chunks=4 if channels is None else (2, 4, 4, 4)), volume(seed=1)
    p = mrhdata.patches(v, target, shape=4, stride=2, plane=plane, context_slices=1)
    names = ["image"] if channels is None else ["image:0", "image:1"]
    assert p.channels == [f"{n}{k}" for n in names for k in ("-1", "", "+1")]
    expected = []
    for thick in naive_patches(v, p.positions, p.shape):
        planes = np.moveaxis(thick, axis + 1, 1).reshape(-1, *np.delete(thick.shape[1:], axis))
        expected.append(np.expand_dims(planes, axis + 1))
    flat = [
        naive_patch(target, c + np.eye(3, dtype=int)[axis], np.where(np.arange(3) == axis, 1, 4)) for c in p.positions
    ]
    assert_all_access_paths_yield(p, [np.stack(expected), np.stack(flat)])
    assert p.tensor_shapes["input"] == expected[0].shape
    np.testing.assert_allclose(p.affine(), p.affine(stream=1))
    middle = v.mrh.world(p.positions + (np.array(p.shape) - 1) / 2)
    np.testing.assert_allclose(p.to_xarray().centre_mm, middle, atol=1e-9)
    with pytest.raises(ParameterError, match="context_slices must be the number of slices on each side of a plane"):
        mrhdata.patches(v, shape=4, context_slices=1)


def test_masks_select_by_centre_or_by_fraction():
    """By default the centre voxel decides, with `min_mask_fraction` a fraction of the patch; both by brute force."""
    v = volume()
    mask = from_array(np.random.default_rng(3).random((9, 8, 7)) > 0.6, spacing=(0.1, 0.2, 0.3), kind="mask")
    everywhere = mrhdata.patches(v, shape=3, stride=1).positions
    by_centre = {tuple(c) for c in everywhere if mask.values[tuple(c + 1)]}
    assert {tuple(c) for c in mrhdata.patches(v, shape=3, stride=1, mask=mask).positions} == by_centre
    by_fraction = {tuple(c) for c in everywhere if naive_patch(mask, c, (3, 3, 3)).mean() >= 0.5}
    assert {
        tuple(c) for c in mrhdata.patches(v, shape=3, stride=1, mask=mask, min_mask_fraction=0.5).positions
    } == by_fraction


@pytest.mark.parametrize("memory", ["1 GB", 60_000])
def test_subjects_of_one_chunk_and_of_many_chunks_together(memory):
    """A small subject comes before a larger one, in memory and within a small budget."""
    subjects = [volume((6, 6, 6), chunks=6), volume((30, 20, 10), seed=2, chunks=6, dtype=np.float32)]
    p = mrhdata.patches(subjects, shape=3, stride=2, memory=memory)
    loaded = [v.compute() for v in subjects]
    for indices, (x,) in p.batches(8, seed=1):
        expected = [
            naive_patch(loaded[s], c, p.shape) for s, c in zip(p.subject[indices], p.positions[indices], strict=True)
        ]
        np.testing.assert_array_equal(x, expected)


def test_each_epoch_has_every_patch_once_in_another_order():
    """Three subjects: orders differ between epochs and seeds, and are equal for equal seeds."""
    subjects = [volume(chunks=4), volume(seed=5, chunks=3), volume((4, 4, 4), seed=6)]
    p = mrhdata.patches(subjects, subjects, shape=2)
    assert p.subject.tolist() == sorted(p.subject.tolist())
    for i in (0, len(p) // 2, len(p) - 1):
        np.testing.assert_array_equal(p[i][0], naive_patch(subjects[p.subject[i]], p.positions[i], p.shape))
    orders = [np.concatenate([r for r, _ in p.batches(8, seed=s, epoch=e)]) for s, e in [(0, 0), (0, 1), (1, 0)]]
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


def test_memory_budget_is_kept_and_does_not_change_patches(monkeypatch):
    """Decoded tiles, joined copies and batches stay within the budget; a budget below one batch raises an error."""
    v = volume((64, 64, 64), chunks=8, dtype=np.float32)
    p = mrhdata.patches(v, shape=9, sampler=Uniform(300), memory=450_000)
    tile_bytes = []
    plain = ReadAhead.wait_for

    def recording(self, batch):
        plain(self, batch)
        tile_bytes.append(sum(t.nbytes for t in self._tiles.values()))

    monkeypatch.setattr(ReadAhead, "wait_for", recording)
    batches = list(p.batches(4, seed=1))
    indices = np.concatenate([r for r, _ in batches])
    np.testing.assert_array_equal(np.sort(indices), np.arange(300))
    np.testing.assert_array_equal(
        np.concatenate([x for _, (x,) in batches]), naive_patches(v, p.positions[indices], p.shape)
    )
    assert max(tile_bytes) + 4 * p.batch_bytes(4) <= 450_000 < v.nbytes
    with pytest.raises(ParameterError, match=r"memory must hold 4 batches of 466560 bytes; got 450000 bytes"):
        next(p.batches(160))
    with pytest.raises(DataError, match=r"a batch of 4 patches must fit \d+ bytes for voxels; it needs \d+. Pass more"):
        next(mrhdata.patches(v, shape=9, sampler=Uniform(300), memory=150_000).batches(4))


def test_patches_work_as_map_style_data_set_in_a_dataloader():
    """Patches are pickled to a fresh worker process."""
    v = volume()
    p = pickle.loads(pickle.dumps(mrhdata.patches(v, v, shape=2)))
    loader = DataLoader(p, batch_size=5, num_workers=1, multiprocessing_context="forkserver")
    inputs = torch.cat([x for x, _ in loader])
    np.testing.assert_array_equal(inputs, p.gather(np.arange(len(p)))[0])


def test_patches_of_oblique_stores_have_their_affine(tmp_path):
    """Patches of an OME-Zarr store with oblique geometry, and the affine of each patch."""
    v = volume((140, 70, 30), affine=oblique_affine(spacing=(0.3, 0.2, 0.1))[:, [2, 1, 0, 3]])
    mrhdata.write(v, tmp_path / "a.zarr")
    p = mrhdata.patches(mrhdata.read(tmp_path / "a.zarr"), shape=(5, 3, 4), stride=(9, 11, 7))
    assert "6 chunks" in repr(p)
    np.testing.assert_array_equal(p.gather(np.arange(len(p)))[0], naive_patches(v, p.positions, p.shape))
    np.testing.assert_allclose(p.affine()[:, :3, 3], v.mrh.world(p.positions), atol=1e-9)
    np.testing.assert_allclose(p.to_xarray().centre_mm, v.mrh.world(p.positions + np.array([2, 1, 1.5])), atol=1e-9)


def test_dask_graph_has_one_task_per_chunk():
    """Tasks are chunks, not patches."""
    p = mrhdata.patches(volume(chunks=4), shape=2)
    lazy = p.to_dask()
    tasks = [key for key in lazy.dask if str(key).startswith("_gather_range")]
    assert lazy.numblocks[0] == len(tasks) == 2 * 2 * 2


def test_to_zarr_writes_the_patches_of_an_epoch(tmp_path):
    """Plain xarray reads the values, the order and the positions."""
    v = volume(chunks=4)
    p = mrhdata.patches(v, v, shape=(3, 2, 2), stride=1)
    p.to_zarr(tmp_path / "frozen.zarr", seed=5)
    frozen = xr.open_zarr(tmp_path / "frozen.zarr", consolidated=False)
    indices = np.concatenate([r for r, _ in p.batches(len(p), seed=5)])
    np.testing.assert_array_equal(frozen.row, indices)
    for name in ("input", "target"):
        np.testing.assert_array_equal(frozen[name], naive_patches(v, p.positions[indices], (3, 2, 2)))
    np.testing.assert_array_equal(frozen.position, p.positions[indices])
    with pytest.raises(FormatError, match="exists"):
        p.to_zarr(tmp_path / "frozen.zarr")


class TestRefusals:
    """Error messages have both values and the remedy."""

    def test_different_grids_raise_grid_error(self):
        """The target has another shape, another space, or flipped axes."""
        v = volume()
        with pytest.raises(GridError, match=r"\(9, 8, 6\) and \(9, 8, 7\)|\(9, 8, 7\) and \(9, 8, 6\)"):
            mrhdata.patches(v, v.isel(x=slice(6)), shape=2)
        with pytest.raises(GridError, match=r"spaces differ"):
            mrhdata.patches(v, mrhdata.volume.describe(v, space="CCFv3"), shape=2)
        straight = volume(affine=oblique_affine()[:, [2, 1, 0, 3]])
        flipped = volume(affine=oblique_affine(flip=(-1, 1, 1))[:, [2, 1, 0, 3]])
        with pytest.raises(GridError, match="mm apart"):
            mrhdata.patches({"a": straight, "b": flipped}, shape=2)

    def test_grid_error_names_subject_volume_and_remedies(self, tmp_path):
        """The message names one of several subjects by number, and by name if its files have it."""
        for name, cut in {"sub-01_T1w": 7, "sub-01_T2w": 7, "sub-02_T1w": 7, "sub-02_T2w": 6}.items():
            mrhdata.write(volume().isel(x=slice(cut)), tmp_path / f"{name}.nii")
        subjects = [
            {kind: mrhdata.read(tmp_path / f"sub-{who}_{kind}.nii") for kind in ("T1w", "T2w")} for who in ("01", "02")
        ]
        with pytest.raises(GridError) as caught:
            mrhdata.patches(subjects, shape=2)
        assert str(caught.value) == (
            "subject 1 (sub-02): 'T2w' does not lie on the grid of 'T1w': shapes differ along z, y, x: (9, 8, 6) and "
            "(9, 8, 7); resample one first (mrhdata.resample(a, like=b), or mrhdata resample on the command line), "
            "or pass grids='resample'"
        )
        v, mask = volume(), volume().isel(x=slice(6))
        with pytest.raises(GridError, match=r"^subject 1: 'mask' does not lie on the grid of the first input: "):
            mrhdata.patches([v, v], shape=2, mask=[v, mask])
        # Resampling does not repair a different space.
        with pytest.raises(GridError, match=r"^'b' does not lie.* register one to the other first$"):
            mrhdata.patches({"a": v, "b": mrhdata.volume.describe(v, space="CCFv3")}, shape=2)

    def test_masks_without_a_patch_raise_data_error(self):
        """An empty mask, a mask of NaN, and a mask that no patch fits."""
        with pytest.raises(DataError, match=r"the mask leaves no patch\. Check that it is not empty"):
            mrhdata.patches(volume(), shape=2, mask=volume() * 0)
        with pytest.raises(DataError, match=r"mask voxels must not be NaN; got \d+ of \d+ between"):
            mrhdata.patches(volume(), shape=2, mask=volume() * np.nan)
        corner = volume() * 0
        corner[0, 0, 0] = 1
        with pytest.raises(DataError, match="leaves no patch"):
            mrhdata.patches(volume(), shape=3, mask=corner)

    def test_subjects_with_different_targets_or_channels_raise_errors(self):
        """Subjects without a target, or with other channels than the first."""
        v = volume()
        with pytest.raises(ParameterError, match="target must have one item per subject; got 1 for 2 subjects"):
            mrhdata.patches([v, v], [v], shape=2)
        for inputs, target, message in [
            ([{"a": v}, {"b": v}], None, "different inputs: ['a'] and ['b']. Pass mappings with the same names"),
            ([{"a": v, "b": v}, {"b": v, "a": v}], None, "inputs: ['a', 'b'] and ['b', 'a']. Pass all mappings in one"),
            ([{"a": v}] * 2, [{"h1": v}, {"h2": v}], 'targets: [\'h1\'] and [\'h2\']. Pass mappings with the same '
             'names for all subjects, such as {"h1": volume}'),
            ([{"a": v}] * 2, [v, None], "targets: ['image'] and []"),
        ]:  # fmt: skip
            with pytest.raises(GridError, match=re.escape(message)):
                mrhdata.patches(inputs, target, shape=2)
        with pytest.raises(GridError, match=re.escape("different inputs: ['a', 'b'] and ['a']. Pass mappings")):
            mrhdata.patches([{"a": v, "b": v}, {"a": v}], [v, v], shape=2, grids="native")

    def test_single_targets_of_subjects_may_have_different_names(self):
        """Files are often named after their subject."""
        v = volume()
        targets = [v.rename("sub-01_histo"), volume(seed=1).rename("sub-02_histo")]
        p = mrhdata.patches([{"a": v}, {"a": v}], targets, shape=3, stride=3)
        expected = mrhdata.patches([{"a": v}] * 2, [{"h": t} for t in targets], shape=3, stride=3)
        np.testing.assert_array_equal(p.gather(np.arange(len(p)))[1], expected.gather(np.arange(len(p)))[1])

    def test_invalid_shapes_and_planes_raise_errors(self):
        """A shape that is too large or has two numbers, an unknown plane, an index beyond the end."""
        v = volume()
        with pytest.raises(GridError, match="must fit a volume"):
            mrhdata.patches(v, shape=10)
        with pytest.raises(ParameterError, match="shape must be a whole number of voxels, three of them"):
            mrhdata.patches(v, shape=(2, 2))
        with pytest.raises(ParameterError, match="axial, coronal, sagittal"):
            mrhdata.patches(v, shape=2, plane="frontal")
        with pytest.raises(IndexError):
            mrhdata.patches(v, shape=2)[10_000]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("channels", [1, 2])
def test_small_patches_of_a_volume_of_one_chunk_equal_the_voxels(tmp_path, stored, dtype, channels):
    """A single channel of a single chunk has an axis without a stride; the loader yields its voxels all the same."""
    names, rng = "ab"[:channels], np.random.default_rng(0)
    arrays = {n: (1000 * rng.random((9, 10, 11))).astype(dtype) for n in names}
    volumes = {n: mrhdata.volume.from_array(a, spacing=(1, 1, 1), name=n) for n, a in arrays.items()}
    if stored:
        for name, stored_volume in volumes.items():
            mrhdata.write(stored_volume, tmp_path / f"{name}.zarr")
        volumes = {n: mrhdata.read(tmp_path / f"{n}.zarr") for n in names}
    positions = rng.integers(0, (7, 10, 9), (40, 3))
    drawn = mrhdata.patches(volumes, {"target": volumes["a"]}, shape=(3, 1, 3), sampler=[positions])
    expected = {tuple(np.concatenate([a[p[0] : p[0] + 3, p[1], p[2] : p[2] + 3].ravel() for a in arrays.values()]))
              for p in positions.tolist()}  # fmt: skip
    pairs = [(x, y) for inputs, target in drawn.loader(16) for x, y in zip(inputs.numpy(), target.numpy(), strict=True)]
    assert len(pairs) == 40
    assert {tuple(x.ravel()) for x, _ in pairs} == expected
    assert all(np.array_equal(x[:1], y) for x, y in pairs)


@pytest.mark.parametrize("dtype", ["uint32", "int64"])
@pytest.mark.parametrize("stored", [False, True])
def test_labels_beyond_the_precision_of_float32_raise_data_error(tmp_path, dtype, stored):
    """Atlas ids above 2^24 would merge in float32; smaller ids of the same dtype are exact."""
    ids = np.array([312782546, 312782550, 5, 2**24])
    labels = np.repeat(ids, 64).reshape(4, 8, 8).astype(dtype)
    volume = from_array(labels, spacing=(1, 1, 1), kind="labels", name="atlas")
    if stored:
        mrhdata.write(volume, tmp_path / "a.zarr")
        volume = mrhdata.read(tmp_path / "a.zarr")
    with pytest.raises(DataError, match=r"must be at most 16777216, .*; got 3127825[56]0. Renumber them"):
        mrhdata.patches(volume, shape=4)[0]
    small_labels = mrhdata.patches(volume.isel(z=slice(2, 4)), shape=(1, 8, 8)).gather(np.arange(2))[0]
    assert small_labels.max(axis=(1, 2, 3, 4)).tolist() == [5, 2**24]


@pytest.mark.parametrize("shape", [4, 20])
def test_budget_below_the_smallest_part_of_a_file_is_refused_with_the_figure_that_would_do(tmp_path, shape):
    """A compressed file is read as a whole, next to the tile that it becomes."""
    values = np.random.default_rng(0).integers(0, 9, (100, 200, 200)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii.gz")
    volume = mrhdata.read(tmp_path / "a.nii.gz")
    with pytest.raises(ParameterError, match=r"memory must be at least (\d+) MB for .*a\.nii\.gz") as caught:
        mrhdata.patches(volume, shape=shape, memory="15 MB")
    # Batches come on top.
    figure = int(re.search(r"at least (\d+) MB", str(caught.value))[1]) + 3
    patches = mrhdata.patches(volume, shape=shape, memory=f"{figure} MB")
    batch = next(iter(patches.loader(4, prefetch=0)))
    assert tuple(batch.shape) == (4, 1, shape, shape, shape)
    assert patches.explain(4).needed_bytes <= figure * 1e6
