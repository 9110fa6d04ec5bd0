"""Behaviour that all formats share: voxels, geometry, errors."""

import gzip
import importlib
import inspect
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from scipy.io import netcdf_file

import mrhdata
from mrhdata.errors import DataError, FormatError, ParameterError
from mrhdata.io.formats import FORMATS, Options
from mrhdata.io.reader import Reader
from mrhdata.volume.construct import describe, from_array
from tests.conftest import oblique_affine

WRITABLE = [".nii", ".nii.gz", ".mnc", ".nrrd", ".mha", ".ome.tif", ".zarr"]


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("origin", [(1.0, -2.0, 3.0), (-203.123456789, 187.7, 99.9)])
@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
def test_write_and_read_keep_voxels_geometry_and_axis_order(tmp_path, ending, flip, origin, order):
    """Voxels, dims, axis order and world points (to 1e-6 mm) survive; for oblique, flipped and distant volumes."""
    values = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.uint16)
    affine = oblique_affine(angles=(33, -21, 12), flip=flip, origin=origin)[:, [*order, 3]]
    v = from_array(values, affine=affine, name="t2w")
    path = tmp_path / f"a{ending}"
    mrhdata.write(v, path)
    back = mrhdata.read(path)
    assert back.dims == v.dims
    np.testing.assert_array_equal(back, v)
    assert back.mrh.grid.distance(v.mrh.grid) < 1e-6
    assert back.attrs["source_axes"] == v.attrs["source_axes"] == [("x", "y", "z")[i] for i in order]


@pytest.mark.parametrize("ending", WRITABLE)
def test_labels_are_read_back_as_the_same_integers(tmp_path, ending):
    """Scaling and float storage never change labels."""
    labels = np.random.default_rng(0).choice([0, 1, 997, 1009], (5, 6, 7)).astype(np.int32)
    v = from_array(labels, affine=oblique_affine(), kind="labels", name="atlas")
    mrhdata.write(v, tmp_path / f"a{ending}")
    back = mrhdata.read(tmp_path / f"a{ending}", kind="labels")
    assert back.dtype.kind in "iu"
    np.testing.assert_array_equal(back, v)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".zarr"])
def test_volume_with_channels_is_read_back(tmp_path, ending):
    """Channel volumes keep their dims and values."""
    values = np.random.default_rng(0).random((3, 5, 6, 7), dtype=np.float32)
    v = from_array(values, affine=oblique_affine(), dims=("c", "x", "y", "z"))
    mrhdata.write(v, tmp_path / f"a{ending}")
    back = mrhdata.read(tmp_path / f"a{ending}")
    assert back.dims == ("c", "z", "y", "x")
    np.testing.assert_array_equal(back, v)


def write_minc1(path, values, affine):
    """Write a MINC 1 file (netCDF-3) of unscaled floats; axes of `values` are z, y, x."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / steps
    start = np.linalg.solve(cosines, affine[:3, 3])
    with netcdf_file(path, "w") as file:
        for i, (name, n) in enumerate(zip(("zspace", "yspace", "xspace"), values.shape, strict=True)):
            file.createDimension(name, n)
            axis = file.createVariable(name, "i4", ())
            axis.start, axis.step, axis.length = float(start[i]), float(steps[i]), n
            axis.direction_cosines, axis.spacing = cosines[:, i], "regular__"
        image = file.createVariable("image", "f8", ("zspace", "yspace", "xspace"))
        image[:] = values
        image.signtype = "signed__"
        image.valid_range = np.array([values.min(), values.max()])
        for name, bound in (("image-min", values.min()), ("image-max", values.max())):
            file.createVariable(name, "f8", ("zspace",))[:] = float(bound)


def test_all_formats_give_the_same_world_points(tmp_path):
    """MINC 1, MINC 2, NIfTI, ANALYZE, NRRD, MHA and OME-Zarr give one world point per voxel, to 1e-6 mm."""
    values = np.random.default_rng(0).integers(0, 255, (7, 6, 5)).astype(np.float64)
    v = from_array(values, affine=oblique_affine()[:, [2, 1, 0, 3]], name="t2w")
    files = [tmp_path / f"a{ending}" for ending in (".nii", ".mnc", ".nrrd", ".mha", ".zarr")]
    for file in files:
        mrhdata.write(v, file)
    write_minc1(tmp_path / "one.mnc", values, v.mrh.grid.affine)
    data, affine = v.mrh.in_order("xyz")
    # ANALYZE itself has no orientation; SPM's .mat file has.
    nib.Spm99AnalyzeImage(np.asarray(data, np.float32), affine).to_filename(tmp_path / "b.img")
    points = []
    for file in [*files, tmp_path / "one.mnc", tmp_path / "b.img"]:
        back = mrhdata.read(file)
        np.testing.assert_array_equal(back, v, err_msg=file.name)
        points.append(back.mrh.grid.corners())
        assert np.abs(points[-1] - v.mrh.grid.corners()).max() < 1e-6, file.name
    assert len(points) == 7


def nibabel_world_values(path, n=200):
    """Return world points and values of random voxels, read with nibabel only."""
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    spatial = (
        data[0] if "Minc" in type(image).__name__ and data.ndim == 4 else data.reshape(*data.shape[:3], -1)[..., 0]
    )
    index = np.stack([np.random.default_rng(0).integers(0, s, n) for s in spatial.shape], -1)
    return nib.affines.apply_affine(image.affine, index), spatial[tuple(index.T)]


@pytest.mark.parametrize(
    "name",
    [
        "formats/minc1/T1.mnc",
        "formats/minc2/mincex_diff-FA.mnc",
        "formats/nibabel/small.mnc",
        "formats/nibabel/minc2_4d.mnc",
        "formats/nibabel/minc2-4d-d.mnc",
        "formats/oro.nifti/avg152T1.img",
        "formats/oro.nifti/avg152T1.hdr.gz",
        "formats/oro.nifti/zstat1.nii.gz",
        "formats/nibabel/example4d.nii.gz",
        "formats/nibabel/example_nifti2.nii.gz",
        "human-t1-tissue/sub-01_T1w.nii.gz",
        "human-t1-whole/bet.nii.gz",
        "mouse-mri-histology/DSURQE_CCFv3_average_200um.mnc",
    ],
)
def test_real_files_agree_with_nibabel(shared, name):
    """Both nibabel and mrhdata read the same value at the same world point."""
    points, values = nibabel_world_values(shared / name)
    v = mrhdata.read(shared / name)
    v = (v.isel(t=0) if "t" in v.dims else v).compute()
    index = v.mrh.index(points)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    np.testing.assert_array_equal(v.values[tuple(np.rint(index).astype(int).T)], values)


def test_file_axes_are_reordered_to_z_y_x(shared):
    """Slabs stored P, S, R get z along S, y along A (here backwards) and x along R."""
    v = mrhdata.read(shared / "human-t1-tissue/sub-01_T1w.nii.gz")
    assert v.attrs["source_axes"] == ["y", "z", "x"]
    assert v.sizes == {"z": 18, "y": 217, "x": 182}
    assert v.mrh.grid.orientation == "SPR"
    axial = v.isel(z=9)
    assert axial.dims == ("y", "x")
    step = axial.mrh.world([0, 0, 1]) - axial.mrh.world([0, 0, 0])
    np.testing.assert_allclose(step, [1, 0, 0], atol=1e-6)
    coronal = v.isel(y=100)
    np.testing.assert_allclose(coronal.mrh.world([1, 0, 0]) - coronal.mrh.world([0, 0, 0]), [0, 0, 1], atol=1e-6)


def test_units_of_length_become_millimetres(tmp_path):
    """A NIfTI in micrometres is placed in millimetres."""
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([10, 20, 30, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.nii").mrh.spacing, [0.03, 0.02, 0.01])


def test_big_endian_and_scaled_values(tmp_path):
    """Scaling is applied, byte order is native, and the stored dtype is kept without scaling."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.eye(4), header)
    nib.save(image, tmp_path / "big.nii")
    v = mrhdata.read(tmp_path / "big.nii")
    assert v.dtype == np.int16
    assert v.dtype.isnative
    np.testing.assert_array_equal(v.transpose("x", "y", "z"), np.arange(24).reshape(2, 3, 4))
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii")
    scaled = mrhdata.read(tmp_path / "scaled.nii")
    np.testing.assert_array_equal(scaled, np.asarray(nib.load(tmp_path / "scaled.nii").dataobj).T)


def test_reading_is_lazy(tmp_path):
    """An uncompressed file is read when its values are computed."""
    v = from_array(np.zeros((40, 400, 400), np.float32), spacing=(1, 1, 1))
    mrhdata.write(v, tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    back = mrhdata.read(tmp_path / "a.nii")
    assert back.chunks is not None
    with (tmp_path / "a.nii").open("r+b") as file:
        file.seek(image.dataobj.offset)
        file.write(np.float32(7).tobytes())
    # The value was written after read() returned, so read() did not load it.
    assert float(back.isel(z=0, y=0, x=0)) == 7


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mnc", ".nrrd", ".mha"])
def test_truncated_file_raises_with_its_path(tmp_path, oblique, ending):
    """A truncated file raises FormatError with its path, when it is opened or computed."""
    path = tmp_path / f"a{ending}"
    mrhdata.write(from_array(np.random.default_rng(0).random((40, 40, 40)), affine=oblique_affine()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match="a" + ending):
        mrhdata.read(path).compute()


@pytest.mark.parametrize("ending", [".nii", ".mnc", ".nrrd", ".mha", ".hdr"])
def test_text_file_with_image_ending_raises(tmp_path, ending):
    """A text file with an image's ending raises FormatError."""
    (tmp_path / f"a{ending}").write_text("not an image\n" * 100)
    with pytest.raises(FormatError, match="cannot be read"):
        mrhdata.read(tmp_path / f"a{ending}").compute()


def test_missing_unknown_and_existing_files_raise(tmp_path, oblique):
    """Messages name the path and the remedy; nothing is overwritten by default."""
    with pytest.raises(FormatError, match=r"gone.nii does not exist"):
        mrhdata.read(tmp_path / "gone.nii")
    (tmp_path / "a.xyz").write_bytes(b"?")
    with pytest.raises(FormatError, match=r"a.xyz has no known ending; known endings are .*.nii.gz"):
        mrhdata.read(tmp_path / "a.xyz")
    with pytest.raises(FormatError, match=r"a.img cannot be written; endings that can be written are"):
        mrhdata.write(oblique, tmp_path / "a.img")
    # An unknown ending lists the endings that can be written, not those that can only be read.
    with pytest.raises(FormatError, match=r"a.nifti cannot be written; endings that .* are .nii.gz, ") as caught:
        mrhdata.write(oblique, tmp_path / "a.nifti")
    assert ".par" not in str(caught.value)
    mrhdata.write(oblique, tmp_path / "a.nii")
    with pytest.raises(FormatError, match="exists; choose another name, or overwrite it"):
        mrhdata.write(oblique, tmp_path / "a.nii")
    mrhdata.write(oblique + np.uint16(1), tmp_path / "a.nii", overwrite=True)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.nii"), oblique + 1)
    with pytest.raises(FormatError, match="does not exist; create it first"):
        mrhdata.write(oblique, tmp_path / "no" / "a.nii")


@pytest.mark.parametrize("ending", WRITABLE)
def test_failed_write_leaves_no_file_and_keeps_an_old_one(tmp_path, ending):
    """Values that fail while they are computed leave neither a file nor a draft; an existing file is kept."""
    import dask.array as da

    def fail(block):
        raise RuntimeError("disk on fire")

    good = from_array(np.ones((4, 4, 4), np.float32), spacing=(1, 1, 1))
    bad = good.copy(
        data=da.ones((4, 4, 4), dtype=np.float32).map_blocks(fail, dtype=np.float32, meta=np.empty((0,) * 3))
    )
    with pytest.raises(Exception, match="disk on fire"):
        mrhdata.write(bad, tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []
    mrhdata.write(good, tmp_path / f"a{ending}")
    with pytest.raises(Exception, match="disk on fire"):
        mrhdata.write(bad, tmp_path / f"a{ending}", overwrite=True)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / f"a{ending}"), good)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ending}"]


def test_fractions_read_as_labels_raise(tmp_path, oblique):
    """Fractions read with kind="labels" raise DataError instead of being rounded."""
    mrhdata.write((oblique / 7.0).assign_attrs(oblique.attrs), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"labels of .* must be whole numbers"):
        mrhdata.read(tmp_path / "a.nii", kind="labels").compute()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sub-03_seg.nii.gz", "labels"),
        ("annotation_25.nrrd", "labels"),
        ("DSURQE_CCFv3_mask_200um.nrrd", "mask"),
        ("mask.mha", "mask"),
        ("sub-03_desc-seg_T1w.nii", "image"),
        ("masked.nii", "image"),
        ("25.nii", "image"),
    ],
)
def test_kind_of_whole_numbers_follows_the_file_name(tmp_path, name, kind):
    """Whole numbers are labels or a mask by their file's name, unless kind is passed; fractions are always an image."""
    values = np.arange(24).reshape(2, 3, 4)
    mrhdata.write(from_array(values.astype(np.int16), spacing=(1, 1, 1)), tmp_path / name)
    assert mrhdata.read(tmp_path / name).attrs["kind"] == kind
    assert mrhdata.read(tmp_path / name, kind="image").attrs["kind"] == "image"
    mrhdata.write(from_array(values / 7, spacing=(1, 1, 1)), tmp_path / name, overwrite=True)
    assert mrhdata.read(tmp_path / name).attrs["kind"] == "image"
    # Many programs store labels as floating-point numbers.
    if not name.endswith(".mha"):
        mrhdata.write(from_array(values.astype(np.float32), spacing=(1, 1, 1)), tmp_path / name, overwrite=True)
        assert mrhdata.read(tmp_path / name).attrs["kind"] == kind
        assert mrhdata.read(tmp_path / name).dtype.kind == ("f" if kind == "image" else "iu"[kind == "mask"])


def test_unsupported_content_raises_on_writing(tmp_path):
    """Shear, a time axis, complex values and half precision raise FormatError if the format cannot hold them."""
    sheared = oblique_affine()
    sheared[0, 1] += 0.1
    with pytest.raises(FormatError, match="shear"):
        mrhdata.write(from_array(np.zeros((2, 2, 2)), affine=sheared), tmp_path / "a.mha")
    with pytest.raises(FormatError, match="without a time axis"):
        mrhdata.write(from_array(np.zeros((2, 2, 2, 2)), spacing=(1, 1, 1), dims="tzyx"), tmp_path / "a.nrrd")
    for ending in (".mnc", ".mha", ".nrrd"):
        with pytest.raises(FormatError, match="complex64 values; take their magnitude"):
            mrhdata.write(from_array(np.zeros((2, 2, 2), np.complex64), spacing=(1, 1, 1)), tmp_path / f"c{ending}")
    with pytest.raises(FormatError, match="float16"):
        mrhdata.write(from_array(np.zeros((2, 2, 2), np.float16), spacing=(1, 1, 1)), tmp_path / "a.nrrd")


def test_axis_order_of_the_source_is_written_back(shared, tmp_path):
    """A file stored P, S, R is written P, S, R again, with equal affine and voxels."""
    source = shared / "human-t1-tissue/sub-01_tissue.nii.gz"
    mrhdata.write(mrhdata.read(source), tmp_path / "back.nii.gz")
    first, back = nib.load(source), nib.load(tmp_path / "back.nii.gz")
    assert first.shape == back.shape
    np.testing.assert_allclose(first.affine, back.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(back.dataobj))


def test_compressed_file_that_ends_in_its_header_raises(tmp_path):
    """A compressed file whose stream ends in the header raises FormatError."""
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(bytes(100))
    with pytest.raises(FormatError):
        mrhdata.read(tmp_path / "a.nii.gz")


def test_conversion_keeps_voxels_geometry_and_attributes(tmp_path, oblique):
    """Conversion to OME-Zarr keeps voxels and geometry and adds the passed attributes and provenance."""
    mrhdata.write(oblique, tmp_path / "t2w.mnc")
    v = mrhdata.convert(tmp_path / "t2w.mnc", tmp_path / "t2w.zarr", modality="mri", space="phantom", units="1")
    np.testing.assert_array_equal(v, oblique)
    assert v.mrh.grid.distance(oblique.mrh.grid) < 1e-6
    assert (v.attrs["modality"], v.mrh.space, v.attrs["units"]) == ("mri", "phantom", "1")
    assert len(v.attrs["provenance"]["sha256"]) == 64
    shutil.rmtree(tmp_path / "t2w.zarr")
    with pytest.raises(FormatError):
        mrhdata.convert(tmp_path / "nothing.mnc", tmp_path / "t2w.zarr")
    assert not (tmp_path / "t2w.zarr").exists()
    assert describe(v, name="other").name == "other"


@pytest.mark.full
@pytest.mark.parametrize("ending", [".zarr", ".nii.gz"])
def test_killed_write_leaves_no_file_or_a_complete_one(tmp_path, ending):
    """After SIGKILL at ten moments the file is absent or complete."""
    values = np.random.default_rng(0).random((120, 120, 120), dtype=np.float32)
    v = from_array(values, spacing=(1, 1, 1))
    mrhdata.write(v, tmp_path / "source.nii")
    target = tmp_path / f"a{ending}"
    source = str(tmp_path / "source.nii")
    code = f"import mrhdata; print('go', flush=True); mrhdata.write(mrhdata.read({source!r}), {str(target)!r})"
    existed = set()
    for moment in np.linspace(0.02, 1.5, 10):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(moment)
            process.kill()
        existed.add(target.exists())
        if target.exists():
            np.testing.assert_array_equal(mrhdata.read(target), values)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert False in existed


@pytest.mark.parametrize(("value", "dtype"), [(1, "u1"), (0, "u1"), (5, "i2"), (-3, "i2"), (5, "f4")])
def test_minc_with_constant_values_is_read(tmp_path, value, dtype):
    """A constant MINC file keeps its value although its valid range is empty."""
    mrhdata.write(from_array(np.full((3, 4, 5), value, dtype), spacing=(1, 1, 1)), tmp_path / "a.mnc")
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.mnc"), np.full((3, 4, 5), value))


def test_channels_in_minc_raise(tmp_path):
    """Channels would be read back as times, in another order."""
    volume = from_array(np.zeros((2, 3, 4, 5), np.float32), spacing=(1, 1, 1), dims=("c", "z", "y", "x"))
    with pytest.raises(FormatError, match="without channels"):
        mrhdata.write(volume, tmp_path / "a.mnc")


@pytest.mark.parametrize("ending", [".nii", ".mnc", ".nrrd", ".mha", ".zarr", ".ome.tif"])
def test_big_endian_arrays_are_written(tmp_path, ending):
    """Big-endian arrays are read back with equal values."""
    values = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / f"a{ending}")
    np.testing.assert_array_equal(mrhdata.read(tmp_path / f"a{ending}"), values)


def test_large_values_read_as_labels_or_mask_do_not_overflow(tmp_path):
    """Floats read as a mask become 0 or 1; labels outside of the integer type raise DataError."""
    values = np.array([0, 1, 256, 512, 3e9], np.float32).reshape(5, 1, 1) * np.ones((5, 3, 3), np.float32)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii", kind="mask").values[:, 0, 0].tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(DataError, match=r"labels of .* must lie between"):
        mrhdata.read(tmp_path / "a.nii", kind="labels").compute()


@pytest.mark.parametrize("module", sorted({module for module, _ in FORMATS.values()} | {"dicom", "omezarr.store"}))
def test_every_format_module_is_a_reader(module):
    """Each module of FORMATS declares the options that its read function accepts, all with defaults."""
    reader = importlib.import_module(f"mrhdata.io.{module}")
    assert isinstance(reader, Reader)
    path, *options = inspect.signature(reader.read).parameters.values()
    assert path.name == "path"
    assert {option.name for option in options} == set(reader.OPTIONS) <= set(Options.__annotations__)
    assert all(option.default is not option.empty for option in options)


def test_invalid_kind_and_unused_options_raise(tmp_path, oblique):
    """Unknown kinds and options that a reader does not accept are named in the message; level 0 is always valid."""
    mrhdata.write(oblique, tmp_path / "a.nii")
    with pytest.raises(ParameterError, match="kind must be one of image, labels, mask; got 'atlas'"):
        mrhdata.read(tmp_path / "a.nii", kind="atlas")
    with pytest.raises(FormatError, match=r"a.nii is read without level or dataset=; leave it out"):
        mrhdata.read(tmp_path / "a.nii", level=1, dataset="t2w")
    for level in (0, -1):
        np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.nii", level=level), oblique)
