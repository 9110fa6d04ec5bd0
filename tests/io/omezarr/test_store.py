"""OME-Zarr stores: levels, metadata, compatibility with other libraries."""

import numpy as np
import pytest
import xarray as xr
import zarr
from ome_zarr_models import open_ome_zarr

import mrhdata
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import omezarr
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


@pytest.fixture
def store(tmp_path):
    """Path of a two-channel, oblique, two-level store, and its volume."""
    values = np.random.default_rng(0).integers(0, 60000, (2, 70, 66, 30)).astype(np.uint16)
    volume = from_array(values, affine=oblique_affine(spacing=(0.1, 0.1, 0.15)), dims="cxyz", name="mri")
    volume = volume.assign_coords(c=["t2", "mt"])
    mrhdata.write(volume, tmp_path / "a.zarr")
    return tmp_path / "a.zarr", volume


def test_metadata_is_valid(store):
    """ome-zarr-models accepts the store as version 0.5."""
    path, _ = store
    image = open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(image).__module__.startswith("ome_zarr_models.v05")


def test_xarray_opens_a_level(store):
    """Plain xarray opens a level through its dimension names and the scaleN layout."""
    path, volume = store
    opened = xr.open_zarr(path, group="scale0", consolidated=False)["mri"]
    assert opened.dims == volume.dims
    np.testing.assert_array_equal(opened, volume)


def test_channel_names_are_read_back(store):
    """Channel names are stored and read back."""
    path, _ = store
    assert mrhdata.read(path).c.values.tolist() == ["t2", "mt"]


def test_coarse_voxels_are_means_at_the_right_position(store):
    """A coarse voxel is the mean of eight voxels and lies in their middle."""
    path, volume = store
    coarse = omezarr.read(path, level=1)
    assert coarse.shape == (2, 15, 33, 35)
    np.testing.assert_allclose(coarse.mrh.world([1, 2, 3]), volume.mrh.world([2.5, 4.5, 6.5]))
    box = volume.isel(z=slice(2, 4), y=slice(4, 6), x=slice(6, 8)).mean(("z", "y", "x"))
    np.testing.assert_allclose(coarse.isel(z=1, y=2, x=3), np.rint(box))


def test_anisotropic_axis_is_halved_when_the_others_are_as_coarse(tmp_path):
    """With spacing 0.4, 0.1, 0.1, z is first halved when the planes have spacing 0.4."""
    mrhdata.write(from_array(np.zeros((20, 300, 300), np.uint8), spacing=(0.4, 0.1, 0.1)), tmp_path / "a.zarr")
    assert [omezarr.read(tmp_path / "a.zarr", level=n).shape for n in range(4)] == [
        (20, 300, 300),
        (20, 150, 150),
        (20, 75, 75),
        (10, 37, 37),
    ]


def test_labels_are_never_averaged(tmp_path):
    """Coarse labels are the most frequent ones, compared with counts."""
    labels = np.random.default_rng(0).choice([0, 7, 1009], (40, 66, 70)).astype(np.uint16)
    mrhdata.write(from_array(labels, spacing=(1, 1, 1), kind="labels"), tmp_path / "a.zarr")
    coarse = omezarr.read(tmp_path / "a.zarr", level=1)
    assert coarse.attrs["kind"] == "labels"
    values = coarse.values
    for z, y, x in np.random.default_rng(1).integers(0, values.shape, (200, 3)):
        box = labels[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        counts = np.bincount(box)
        assert counts[values[z, y, x]] == counts.max()


def test_irregular_dask_chunks_are_written_as_whole_shards(tmp_path):
    """An array with irregular Dask chunks is written in whole shards without loss."""
    import dask.array as da

    values = np.random.default_rng(0).random((150, 140, 130), dtype=np.float32)
    mrhdata.write(from_array(da.from_array(values, chunks=(37, 61, 130)), spacing=(1, 1, 1)), tmp_path / "a.zarr")
    array = zarr.open_array(tmp_path / "a.zarr" / "scale0" / "image", mode="r")
    assert array.chunks == (64, 64, 64)
    assert array.shards == (128, 192, 192)
    np.testing.assert_array_equal(array[:], values)


def test_reversed_and_cropped_volumes_keep_their_position(store, tmp_path):
    """A part that xarray selected is stored at its world position."""
    _, volume = store
    cropped = volume.isel(z=slice(None, 4, -3), y=5, c=1)
    mrhdata.write(cropped, tmp_path / "cropped.zarr")
    back = mrhdata.read(tmp_path / "cropped.zarr")
    assert back.dims == ("z", "x")
    np.testing.assert_allclose(back.mrh.world([0, 0, 2]), cropped.mrh.world([cropped.sizes["z"] - 1, 0, 2]))
    np.testing.assert_array_equal(back, cropped.isel(z=slice(None, None, -1)))


def test_transposed_volume_is_stored_as_c_z_y_x(tmp_path):
    """A transposed volume is stored in the order t, c, z, y, x."""
    volume = from_array(np.random.default_rng(0).random((2, 3, 4, 5)), spacing=(1, 2, 3), dims="czyx")
    mrhdata.write(volume.transpose("x", "c", "z", "y"), tmp_path / "a.zarr")
    back = mrhdata.read(tmp_path / "a.zarr")
    assert back.dims == ("c", "z", "y", "x")
    np.testing.assert_array_equal(back, volume)


def test_nifti_header_array(store):
    """The stored NIfTI header maps x, y, z indices to the same world points."""
    import nibabel as nib

    path, volume = store
    header = nib.Nifti1Header(zarr.open_array(path / "nifti", mode="r")[:].tobytes())
    np.testing.assert_allclose(header.get_best_affine() @ [3, 2, 1, 1], [*volume.mrh.world([1, 2, 3]), 1], atol=1e-5)


def test_stores_of_other_software_are_read(shared, tmp_path):
    """Images of versions 0.5 and 0.4 without mrhdata's attributes are placed by their scale; plain groups raise."""
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


def test_level_out_of_range_raises(store):
    """The message names the existing levels."""
    with pytest.raises(ParameterError, match=r"level must be 0 to 1 for .*a\.zarr; got 5"):
        omezarr.read(store[0], level=5)
