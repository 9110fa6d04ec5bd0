"""The store: levels, metadata, what other libraries see."""

import numpy as np
import pytest
import xarray as xr
import zarr
from ome_zarr_models import open_ome_zarr

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io import omezarr
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def store(tmp_path):
    """A two-channel, oblique, two-level store and the volume it holds."""
    values = np.random.default_rng(0).integers(0, 60000, (2, 70, 66, 30)).astype(np.uint16)
    volume = from_array(values, affine=oblique_affine(spacing=(0.1, 0.1, 0.15)), dims="cxyz", name="mri")
    volume = volume.assign_coords(c=["t2", "mt"])
    mrhdata.write(volume, tmp_path / "a.zarr")
    return tmp_path / "a.zarr", volume


def test_metadata_is_valid(store):
    """The specification's own models accept it as version 0.5."""
    path, _ = store
    image = open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(image).__module__.startswith("ome_zarr_models.v05")


def test_plain_xarray_opens_a_level(store):
    """Dimension names and the scaleN layout are enough for xarray alone."""
    path, volume = store
    opened = xr.open_zarr(path, group="scale0", consolidated=False)["mri"]
    assert opened.dims == volume.dims
    np.testing.assert_array_equal(opened, volume)


def test_channel_names_come_back(store):
    """Channels are named in the store."""
    path, _ = store
    assert mrhdata.read(path).c.values.tolist() == ["t2", "mt"]


def test_levels_are_means_in_the_right_place(store):
    """A coarse voxel is the mean of its eight and lies in their middle."""
    path, volume = store
    coarse = omezarr.read(path, level=1)
    assert coarse.shape == (2, 15, 33, 35)
    np.testing.assert_allclose(coarse.mrh.world([1, 2, 3]), volume.mrh.world([2.5, 4.5, 6.5]))
    box = volume.isel(z=slice(2, 4), y=slice(4, 6), x=slice(6, 8)).mean(("z", "y", "x"))
    np.testing.assert_allclose(coarse.isel(z=1, y=2, x=3), np.rint(box))


def test_anisotropic_axes_are_halved_when_the_others_have_caught_up(tmp_path):
    """Spacing 0.4, 0.1, 0.1: z waits until the planes are as coarse."""
    mrhdata.write(from_array(np.zeros((20, 300, 300), np.uint8), spacing=(0.4, 0.1, 0.1)), tmp_path / "a.zarr")
    assert [omezarr.read(tmp_path / "a.zarr", level=n).shape for n in range(4)] == [
        (20, 300, 300),
        (20, 150, 150),
        (20, 75, 75),
        (10, 37, 37),
    ]


def test_labels_are_never_averaged(tmp_path):
    """Coarse labels are the most frequent ones, checked against counting."""
    labels = np.random.default_rng(0).choice([0, 7, 1009], (40, 66, 70)).astype(np.uint16)
    mrhdata.write(from_array(labels, spacing=(1, 1, 1), kind="labels"), tmp_path / "a.zarr")
    coarse = omezarr.read(tmp_path / "a.zarr", level=1)
    assert coarse.attrs["kind"] == "labels"
    values = coarse.values
    for z, y, x in np.random.default_rng(1).integers(0, values.shape, (200, 3)):
        box = labels[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        counts = np.bincount(box)
        assert counts[values[z, y, x]] == counts.max()


def test_shards_hold_whole_blocks(tmp_path):
    """Chunks of an awkward Dask array are made whole shards, and no voxel is lost."""
    import dask.array as da

    values = np.random.default_rng(0).random((150, 140, 130), dtype=np.float32)
    mrhdata.write(from_array(da.from_array(values, chunks=(37, 61, 130)), spacing=(1, 1, 1)), tmp_path / "a.zarr")
    array = zarr.open_array(tmp_path / "a.zarr" / "scale0" / "image", mode="r")
    assert array.chunks == (64, 64, 64)
    assert array.shards == (128, 192, 192)
    np.testing.assert_array_equal(array[:], values)


def test_reversed_and_cut_volumes_keep_their_place(store, tmp_path):
    """What xarray cut out is stored where it was."""
    _, volume = store
    cut = volume.isel(z=slice(None, 4, -3), y=5, c=1)
    mrhdata.write(cut, tmp_path / "cut.zarr")
    back = mrhdata.read(tmp_path / "cut.zarr")
    assert back.dims == ("z", "x")
    np.testing.assert_allclose(back.mrh.world([0, 0, 2]), cut.mrh.world([cut.sizes["z"] - 1, 0, 2]))
    np.testing.assert_array_equal(back, cut.isel(z=slice(None, None, -1)))


def test_transposed_volumes_are_stored_in_our_order(tmp_path):
    """A user may transpose a volume; a store has t, c, z, y, x."""
    volume = from_array(np.random.default_rng(0).random((2, 3, 4, 5)), spacing=(1, 2, 3), dims="czyx")
    mrhdata.write(volume.transpose("x", "c", "z", "y"), tmp_path / "a.zarr")
    back = mrhdata.read(tmp_path / "a.zarr")
    assert back.dims == ("c", "z", "y", "x")
    np.testing.assert_array_equal(back, volume)


def test_nifti_header_array(store):
    """The header beside it maps x, y, z indices to the same world."""
    import nibabel as nib

    path, volume = store
    header = nib.Nifti1Header(zarr.open_array(path / "nifti", mode="r")[:].tobytes())
    np.testing.assert_allclose(header.get_best_affine() @ [3, 2, 1, 1], [*volume.mrh.world([1, 2, 3]), 1], atol=1e-5)


def test_stores_of_others(shared, tmp_path):
    """A 0.5 image without our attributes is placed by its scale; 0.4 alike; plain groups are refused clearly."""
    other = omezarr.read(shared / "formats/omezarr/v0.5")
    assert other.dims[-3:] == ("z", "y", "x")
    assert (other.mrh.spacing > 0).all()
    older = omezarr.read(shared / "formats/omezarr/v0.4")
    np.testing.assert_array_equal(older, zarr.open_array(shared / "formats/omezarr/v0.4/0", mode="r")[:])
    np.testing.assert_allclose(older.mrh.grid.affine, other.mrh.grid.affine)
    labels = omezarr.read(shared / "formats/omezarr/v0.4", dataset="labels/nuclei")
    assert labels.attrs["kind"] == "labels"
    zarr.open_group(tmp_path / "plain.zarr", mode="w", zarr_format=3)
    with pytest.raises(FormatError, match="without OME-Zarr multiscales"):
        mrhdata.read(tmp_path / "plain.zarr")


def test_levels_out_of_range(store):
    """The levels that exist are named."""
    with pytest.raises(FormatError, match="levels 0 to 1, not 5"):
        omezarr.read(store[0], level=5)
