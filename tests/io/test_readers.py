"""Readers compared with the libraries that they use, on real and on synthetic files."""

import glob
import logging
import os
import warnings

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
import SimpleITK as sitk
import tifffile
import xarray as xr

import mrhdata
from mrhdata.errors import FormatError, MrhdataError, ParameterError
from mrhdata.volume.construct import from_array
from tests.conftest import SHARED, oblique_affine

FILES = sorted(
    path
    for path in glob.glob(str(SHARED / "formats" / "**" / "*"), recursive=True)
    if os.path.isfile(path) and "omezarr" not in path
)

#: Headers without voxels, damaged files, and an unsupported format -> part of the message.
REFUSED = {
    "analyze.hdr": "keep header and image together",
    "nifti1.hdr": "keep header and image together",
    "nifti2.hdr": "keep header and image together",
    "example4d+orig.HEAD": "keep header and image together",
    "bad_attribute+orig.HEAD": "improper type casting",
    "bad_datatype+orig.HEAD": "multiple data types",
    "phantom_truncated.PAR": "Header inconsistency",
    "phantom_truncated.REC": "Header inconsistency",
    "tinypet.v": "no known ending",
    "ARzs_CW_avvr.DEL+orig.HEAD": "IJK_TO_DICOM_REAL",
    "0.dcm": "a mosaic of 48 planes must have 7 x 7 tiles",
    "1.dcm": "a mosaic of 48 planes must have 7 x 7 tiles",
    "ARzs_CW_avvr.DEL+orig.BRIK": "IJK_TO_DICOM_REAL",
}


@pytest.mark.skipif(not FILES, reason=f"the real volumes are not at {SHARED}")
@pytest.mark.filterwarnings("ignore:.*REC:pytest.PytestUnraisableExceptionWarning")  # nibabel leaves it open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_real_files_are_read_as_by_their_library_or_raise(path):
    """Voxels and affine equal those of the library, or the message has one line."""
    name = os.path.basename(path)
    if name in REFUSED:
        with pytest.raises(MrhdataError, match=REFUSED[name]) as error:
            mrhdata.read(path).compute()
        assert "\n" not in str(error.value)
        return
    volume = mrhdata.read(path).compute()
    if name.endswith((".tif", ".tiff")):
        np.testing.assert_array_equal(volume.values.squeeze(), tifffile.imread(path).squeeze())
    else:
        check_against_nibabel(volume, path)


def check_against_nibabel(volume, path):
    """Check that values and affine equal nibabel's, in nibabel's order of axes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.load(path)
    listed = [d for d in volume.attrs["source_axes"] if d in "zyx"]
    extra = [d for d in volume.dims if d not in "zyx"]
    order = [*extra, *listed[::-1]] if path.endswith(".mnc") else [*listed, *extra]
    data, affine = volume.mrh.in_order(order)
    np.testing.assert_array_equal(data, np.asarray(image.dataobj).reshape(data.shape))
    np.testing.assert_allclose(affine, image.affine, atol=1e-9)


def test_nifti_keeps_the_affine_in_double_precision(tmp_path):
    """An oblique grid 200 mm from the origin is read back to 1e-6 mm, though NIfTI-1 stores single precision."""
    affine = oblique_affine(angles=(33, -21, 12), spacing=(0.7, 0.81, 1.13), origin=(-203.123456789, 187.7, -99.9))
    volume = from_array(np.zeros((4, 5, 6), np.int16), affine=affine, space="CCFv3", units="ppm", modality="qsm")
    mrhdata.write(volume, tmp_path / "a.nii.gz")
    back = mrhdata.read(tmp_path / "a.nii.gz")
    assert back.mrh.grid.distance(volume.mrh.grid) < 1e-6
    assert (back.mrh.space, back.attrs["units"], back.attrs["modality"]) == ("CCFv3", "ppm", "qsm")


def test_changed_sform_overrides_the_stored_affine(tmp_path):
    """If another program edits the sform, it replaces the affine that mrhdata stored."""
    mrhdata.write(from_array(np.zeros((4, 5, 6)), affine=oblique_affine()), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    image.set_sform(np.diag([2, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "b.nii")
    assert mrhdata.read(tmp_path / "b.nii").mrh.spacing.tolist() == [2, 2, 2]


@pytest.mark.parametrize("nm", [4.8, 4.0004])
def test_changed_sform_in_nanometres_overrides_the_stored_affine(tmp_path, nm):
    """Changes of 0.01 percent are found at voxels of 4 nm."""
    mrhdata.write(from_array(np.ones((3, 4, 5), np.float32), spacing=(4e-6, 4e-6, 4e-6)), tmp_path / "em.nii")
    image = nib.load(tmp_path / "em.nii")
    image.set_sform(np.diag([nm * 1e-6] * 3 + [1]), 1)
    nib.save(image, tmp_path / "changed.nii")
    np.testing.assert_allclose(mrhdata.read(tmp_path / "changed.nii").mrh.spacing, nm * 1e-6, rtol=1e-6)


def test_options_override_a_wrong_header(tmp_path):
    """Axes, unit, spacing and origin are those of the options; world positions follow."""
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    mrhdata.write(from_array(values.T, affine=np.diag([100, 100, 100, 1]), dims="zyx"), tmp_path / "a.nrrd")
    listed = mrhdata.read(tmp_path / "a.nrrd").attrs["source_axes"]
    volume = mrhdata.read(tmp_path / "a.nrrd", axes="PIR", unit="um", space="CCFv3", origin=(-300, 200, 100))
    assert volume.mrh.space == "CCFv3"
    np.testing.assert_allclose(volume.mrh.spacing, 0.1)
    assert volume.mrh.grid.orientation == "IPR"
    data, affine = volume.mrh.in_order(volume.attrs["source_axes"])
    plain, _ = mrhdata.read(tmp_path / "a.nrrd").mrh.in_order(listed)
    np.testing.assert_array_equal(data, plain)
    np.testing.assert_allclose(affine @ [1, 2, 3, 1], [-0.3 + 0.3, 0.2 - 0.1, 0.1 - 0.2, 1], atol=1e-12)


def test_invalid_options_raise(tmp_path):
    """Invalid axes, unit, spacing, origin, kind, dataset and option names are named in the message."""
    mrhdata.write(from_array(np.zeros((2, 3, 4)), spacing=(1, 1, 1)), tmp_path / "a.nii")
    for options, message in (
        ({"axes": "PIP"}, "three letters"),
        ({"unit": "parsec"}, "unit must be one of"),
        ({"spacing": (1, 2)}, "three finite numbers"),
        ({"spacing": (1, -2, 1)}, "positive"),
        ({"origin": "abc"}, "three finite numbers"),
        ({"kind": "picture"}, "image, labels, mask"),
        ({"dataset": "x"}, "without dataset="),
    ):
        with pytest.raises((ParameterError, FormatError), match=message):
            mrhdata.read(tmp_path / "a.nii", **options)
    with pytest.raises(TypeError, match="no options"):
        mrhdata.read(tmp_path / "a.nii", subject="01")


def test_unit_option_replaces_the_unit_of_the_header(tmp_path):
    """The unit of the options replaces that of the header and does not multiply it."""
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.diag([25, 25, 25, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.nii").mrh.spacing, 0.025)
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.nii", unit="nm").mrh.spacing, 25e-6)
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.nii", spacing=2, unit="um").mrh.spacing, 0.002)


def test_colours_are_channels(tmp_path):
    """RGBA NIfTI, such as CIT168's labels, opens as four channels."""
    colours = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])
    colours["G"] = 7
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    volume = mrhdata.read(tmp_path / "a.nii")
    assert volume.sizes == {"c": 4, "z": 5, "y": 4, "x": 3}
    assert volume.c.values.tolist() == ["R", "G", "B", "A"]
    assert volume.sel(c="G").values.min() == 7
    assert volume.sel(c="A").values.max() == 0


def test_complex_values_are_read_as_magnitude(tmp_path, caplog):
    """Complex values are read as their magnitude, with a warning."""
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), 3 + 4j, np.complex64), np.eye(4)), tmp_path / "a.nii")
    with caplog.at_level(logging.WARNING):
        assert mrhdata.read(tmp_path / "a.nii").values.max() == 5
    assert "magnitude" in caplog.text


def test_big_endian_scaled_and_wide_labels(tmp_path):
    """Scale factors are applied, byte order is native, uint32 labels stay exact."""
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.eye(4), header)
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii")
    volume = mrhdata.read(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.mrh.in_order("xyz")[0], stored.get_fdata())
    assert volume.dtype.isnative
    ids = from_array(np.array([[[0, 614454277, 4294967295]]], np.uint32), spacing=(1, 1, 1), kind="labels")
    for ending in (".nii", ".nrrd", ".zarr", ".mha", ".tif"):
        mrhdata.write(ids, tmp_path / f"ids{ending}")
        np.testing.assert_array_equal(mrhdata.read(tmp_path / f"ids{ending}", kind="labels").squeeze(), ids.squeeze())


@pytest.fixture
def planes(tmp_path):
    """Folder and values of twelve planes whose names sort wrongly as text."""
    values = np.random.default_rng(0).integers(0, 60000, (12, 9, 10)).astype(np.uint16)
    (tmp_path / "planes").mkdir()
    for i, plane in enumerate(values):
        tifffile.imwrite(tmp_path / "planes" / f"p_{i}.tif", plane)
    return tmp_path / "planes", values


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_stack_is_read_by_folder_and_pattern_in_natural_order(tmp_path, planes, compression):
    """Compressed and uncompressed planes give the same voxels, whole and in part."""
    folder, values = planes
    for i, plane in enumerate(values):
        tifffile.imwrite(folder / f"p_{i}.tif", plane, compression=compression, byteorder="<>"[i % 2])
    for source in (folder, folder / "p_*.tif"):
        volume = mrhdata.read(source, spacing=(5, 2, 2), unit="um")
        np.testing.assert_array_equal(volume, values)
        np.testing.assert_allclose(volume.mrh.spacing, (0.005, 0.002, 0.002))
        np.testing.assert_array_equal(volume[10:2:-3, 4, 1:9:2], values[10:2:-3, 4, 1:9:2])


def test_invalid_stacks_raise(planes, tmp_path):
    """A plane of another size, a truncated plane, several kinds, and a pattern without files are named."""
    folder, values = planes
    tifffile.imwrite(folder / "p_3.tif", values[3][:5])
    with pytest.raises(
        FormatError, match=r"p_3.tif must be uint16 of shape \(9, 10\), .* got uint16 of shape \(5, 10\)"
    ):
        mrhdata.read(folder).compute()
    tifffile.imwrite(folder / "p_3.tif", values[3])
    content = (folder / "p_4.tif").read_bytes()
    (folder / "p_4.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"p_4.tif is truncated"):
        mrhdata.read(folder).compute()
    with pytest.raises(FormatError, match="no TIFF or PNG file matches"):
        mrhdata.read(folder / "q_*.tif")
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(FormatError, match="several kinds"):
        mrhdata.read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="contains neither"):
        mrhdata.read(tmp_path / "empty")


@pytest.mark.parametrize(("missing", "warned"), [(3, True), (0, False), (None, False)])
def test_missing_plane_gives_a_warning(tmp_path, caplog, missing, warned):
    """A gap in the numbers of planes gives a warning that names the plane before it."""
    for i in range(6):
        if i != missing:
            tifffile.imwrite(tmp_path / f"s1_z{i:04}.tif", np.zeros((4, 5), np.uint8))
    mrhdata.read(tmp_path, spacing=1)
    assert ("planes are missing after s1_z0002.tif" in caplog.text) == warned


def test_stack_without_a_voxel_size_warns(planes, caplog):
    """A stack without voxel size warns that 1 mm is used; spacing= prevents the warning."""
    with caplog.at_level(logging.WARNING):
        mrhdata.read(planes[0])
    assert "states no voxel size" in caplog.text
    caplog.clear()
    mrhdata.read(planes[0], spacing=1)
    assert caplog.text == ""


def test_png_stack_of_a_real_em_cube(shared):
    """250 planes of 10 nm voxels equal those of another decoder."""
    from matplotlib.image import imread

    volume = mrhdata.read(shared / "em-fibsem" / "cube-a", spacing=10, unit="nm", modality="em")
    assert volume.shape == (250, 250, 250)
    first = sorted((shared / "em-fibsem" / "cube-a").glob("*.png"))[0]
    np.testing.assert_array_equal(volume[0], np.rint(imread(first) * 255).astype(np.uint8))
    np.testing.assert_allclose(volume.mrh.spacing, 1e-5)


def test_metadata_of_imagej_and_ome_tiff_are_read(tmp_path):
    """Voxel sizes, units and channel names come from the metadata, also in BigTIFF."""
    values = np.random.default_rng(0).integers(0, 255, (5, 3, 8, 9)).astype(np.uint8)
    meta = {"axes": "ZCYX", "spacing": 4.0, "unit": "um"}
    tifffile.imwrite(tmp_path / "ij.tif", values, imagej=True, resolution=(2, 2), metadata=meta)
    volume = mrhdata.read(tmp_path / "ij.tif")
    np.testing.assert_array_equal(volume, values.transpose(1, 0, 2, 3))
    np.testing.assert_allclose(volume.mrh.spacing, (0.004, 0.0005, 0.0005))
    sizes = {f"PhysicalSize{a}": s for a, s in zip("ZYX", (3.0, 2.0, 1.0), strict=True)}
    ome = {"axes": "ZCYX", **sizes, "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(tmp_path / "o.ome.tif", values, metadata=ome, bigtiff=True, tile=(16, 16), compression="zlib")
    volume = mrhdata.read(tmp_path / "o.ome.tif")
    np.testing.assert_array_equal(volume[1, 2:4, 3:], values.transpose(1, 0, 2, 3)[1, 2:4, 3:])
    np.testing.assert_allclose(volume.mrh.spacing, (0.003, 0.002, 0.001))
    assert volume.c.values.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("dims", ["zyx", "czyx", "tzyx", "yx"])
def test_tiff_keeps_an_oblique_affine(tmp_path, dims):
    """An oblique affine is stored in OME-TIFF and read back to 1e-6 mm."""
    values = np.random.default_rng(0).integers(0, 999, (3, 4, 5, 6)[-len(dims) :]).astype(np.int16)
    if dims == "yx":
        volume = from_array(values[None], affine=oblique_affine(), dims="zyx")
        volume = volume.isel({d: 0 for d in volume.dims if volume.sizes[d] == 1})
    else:
        volume = from_array(values, affine=oblique_affine(), dims=dims, space="CCFv3")
    mrhdata.write(volume, tmp_path / "a.ome.tif")
    back = mrhdata.read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(back.squeeze(), volume.squeeze())
    assert back.mrh.grid.same_as(volume.mrh.grid, 1e-6)


def write_dicom(folder, image, series):
    """Write a series with one file per slice."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for i in range(image.GetDepth()):
        plane = image[:, :, i]
        position = image.TransformIndexToPhysicalPoint((0, 0, i))
        cosines = [direction[k] for k in (0, 3, 6, 1, 4, 7)]
        tags = {
            "0008|0060": "MR",
            "0020|000e": series,
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(map(str, cosines)),
            "0020|0013": str(i),
            "0008|0018": f"{series}.{i + 1}",
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}-{image.GetDepth() - i}.dcm"))
        writer.Execute(plane)


def test_dicom_series(tmp_path):
    """An oblique series is ordered by slice positions; several series, and missing slices, raise."""
    values = np.random.default_rng(0).integers(0, 999, (5, 6, 7)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.5, 2.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, 0, s, 0, 1, 0, -s, 0, c))
    write_dicom(tmp_path, image, "1.2.3")
    volume = mrhdata.read(tmp_path)
    data, affine = volume.mrh.in_order([d for d in volume.attrs["source_axes"] if d in "zyx"])
    np.testing.assert_array_equal(np.asarray(data).T, values)
    world = np.array(image.TransformIndexToPhysicalPoint((6, 5, 4))) * [-1, -1, 1]
    np.testing.assert_allclose((affine @ [6, 5, 4, 1])[:3], world, atol=1e-3)
    write_dicom(tmp_path, image, "1.2.4")
    with pytest.raises(FormatError, match=r"2 series; choose one with dataset=: .*1\.2\.4"):
        mrhdata.read(tmp_path)
    assert mrhdata.read(tmp_path, dataset="1.2.4").shape == volume.shape
    for path in sorted(tmp_path.glob("1.2.4-*"))[1:2] + sorted(tmp_path.glob("1.2.3-*"))[1:2]:
        path.unlink()
    with pytest.raises(FormatError, match="1 of 5 are missing"):
        mrhdata.read(tmp_path, dataset="1.2.4")


def test_hdf5_and_matlab(tmp_path):
    """Arrays are read by name, spacing from attributes, and MATLAB's rows, columns, planes in both versions."""
    values = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=values, chunks=(2, 5, 6))
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        file.create_dataset("volumes/labels", data=values)
        file.create_dataset("table", data=np.zeros(5))
    volume = mrhdata.read(tmp_path / "a.h5", dataset="volumes/raw")
    np.testing.assert_array_equal(volume, values)
    np.testing.assert_allclose(volume.mrh.spacing, (40e-6, 4e-6, 4e-6))
    with pytest.raises(FormatError, match=r"choose with dataset=: .*volumes/labels"):
        mrhdata.read(tmp_path / "a.h5")
    with pytest.raises(FormatError, match="no array of numbers 'nope'"):
        mrhdata.read(tmp_path / "a.h5", dataset="nope")
    rows_first = values.transpose(1, 2, 0)
    scipy.io.savemat(tmp_path / "v5.mat", {"brain": rows_first, "n": 3, "s": {"a": 1}})
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:
        file.create_dataset("brain", data=rows_first.T)
    for name in ("v5.mat", "v73.mat"):
        volume = mrhdata.read(tmp_path / name, spacing=(1, 2, 3), unit="um")
        np.testing.assert_array_equal(volume, values)
        np.testing.assert_allclose(volume.mrh.spacing, (0.003, 0.001, 0.002))


def test_real_matlab_file(shared):
    """The published prediction of MRH-Net has 3 x 3 patches along the fourth axis."""
    path = shared / "mrhnet" / "YPred_auto.mat"
    volume = mrhdata.read(path, dataset="YPred")
    assert volume.sizes == {"t": 24948, "z": 1, "y": 3, "x": 3}
    np.testing.assert_array_equal(volume, scipy.io.loadmat(path)["YPred"].transpose(3, 2, 0, 1))


def test_xarray_engine_reads_files_with_options(tmp_path, oblique):
    """xarray.open_dataset reads a file with engine="mrhdata" or by its ending, and passes options on."""
    mrhdata.write(oblique, tmp_path / "a.nii.gz")
    volume = xr.open_dataset(tmp_path / "a.nii.gz", engine="mrhdata")["a"]
    np.testing.assert_array_equal(volume, oblique)
    assert volume.mrh.grid.same_as(oblique.mrh.grid)
    assert xr.open_dataset(tmp_path / "a.nii.gz", engine="mrhdata", chunks={})["a"].chunks is not None
    by_ending = xr.open_dataset(tmp_path / "a.nii.gz", spacing=2)
    assert by_ending["a"].mrh.spacing.tolist() == [2, 2, 2]


def test_opening_a_stack_of_10_gb_takes_little_memory(tmp_path):
    """A stack of 10 GB is opened and a corner read within 50 MB of memory."""
    import tracemalloc

    plane = np.full((1000, 1000), 7, np.uint16)
    with tifffile.TiffWriter(tmp_path / "big.tif", bigtiff=True) as file:
        file.write(plane, contiguous=False)
    stack = tmp_path / "planes"
    stack.mkdir()
    for i in range(5000):
        os.link(tmp_path / "big.tif", stack / f"p{i}.tif")
    tracemalloc.start()
    volume = mrhdata.read(stack, spacing=1)
    corner = volume[2500:2503, :8, :8].compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert volume.nbytes == 10_000_000_000
    assert corner.values.max() == 7
    assert peak < 50_000_000
