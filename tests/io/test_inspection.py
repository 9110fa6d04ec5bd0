"""Description of files and comparison of volumes."""

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile

import mrhdata
from mrhdata.datasets import build
from mrhdata.errors import GridError
from mrhdata.io import comparison, inspection
from mrhdata.volume.construct import from_array
from mrhdata.volume.times import with_times
from tests.conftest import command, oblique_affine
from tests.io.dicom.files import CORONAL, plane, series
from tests.io.omezarr.images import write_image


def warnings_about(volume, path, **options):
    """Write a volume and return the warnings about its file as one string."""
    mrhdata.write(volume, path, overwrite=True)
    return " ".join(inspection.inspect(path, **options)["suspicious"])


def test_inspect_correct_file_has_no_warnings(tmp_path, oblique):
    """A correct file has no warnings, and its geometry and range are reported."""
    mrhdata.write(oblique, tmp_path / "a.nii")
    description = inspection.inspect(tmp_path / "a.nii")
    assert description["suspicious"] == []
    assert description["orientation"] == "SAR"
    assert description["spacing"] == {"z": "300 um", "y": "200 um", "x": "100 um"}
    assert description["range"] == {"low": float(oblique.min()), "high": float(oblique.max())}


def test_spacing_is_reported_without_single_precision_noise(tmp_path):
    """Headers store spacing in single precision; reports and catalogues round it to six digits."""
    volume = from_array(np.random.default_rng(0).random((4, 5, 6), np.float32), spacing=(0.150000006, 0.1, 0.1))
    mrhdata.write(volume, tmp_path / "a.nrrd")
    assert mrhdata.read(tmp_path / "a.nrrd").mrh.spacing[0] > 0.150000005
    assert inspection.inspect(tmp_path / "a.nrrd")["spacing_mm"] == {"z": 0.15, "y": 0.1, "x": 0.1}
    listed = mrhdata.open_catalog(build.build(tmp_path)).find()
    assert [entry["spacing_mm"] for entry, _ in listed.values()] == [[0.15, 0.1, 0.1]]


def test_inspect_warns_about_values_lengths_and_units(tmp_path):
    """NaN, constant planes, lengths in metres, ppm against ppb and 1 mm voxels of a microscope give warnings."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 9, 10)).astype(np.float32)
    broken = values.copy()
    broken[2, 3, 4] = np.nan
    broken[5] = 1
    path = tmp_path / "a.nii"
    warnings = warnings_about(from_array(broken, spacing=(2, 2, 2)), path)
    assert "1 of 720 values are NaN" in warnings
    assert "1 planes between others" in warnings
    assert "m long" in warnings_about(from_array(values, spacing=(500, 500, 500)), path)
    assert "looks like ppm" in warnings_about(
        from_array(0.1 * values, spacing=(1, 1, 1), name="qsm"), tmp_path / "qsm.nii"
    )
    stated = from_array(80 * values, spacing=(1, 1, 1), name="qsm", units="ppm")
    assert "stated in ppm but looks like ppb" in warnings_about(stated, tmp_path / "qsm.nii")
    assert "unit um?" in warnings_about(from_array(values, spacing=(1, 1, 1), modality="em"), path)
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 99, (4, 5, 6)).astype(np.uint8), photometric="minisblack")
    assert "no voxel size" in " ".join(inspection.inspect(tmp_path / "a.tif")["suspicious"])


def test_inspect_warns_about_qform_and_sform(tmp_path):
    """A NIfTI whose qform and sform differ gives a warning, and so does one without either."""
    image = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32), np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.diag([1, 1, 1, 1]) + np.array([[0, 0, 0, 5]] + [[0] * 4] * 3), 1)
    nib.save(image, tmp_path / "a.nii")
    assert "qform and sform disagree by up to 5 mm" in inspection.inspect(tmp_path / "a.nii")["suspicious"][0]
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "b.nii")
    assert "states no orientation" in inspection.inspect(tmp_path / "b.nii")["suspicious"][0]


def test_inspect_tells_what_is_assumed(tmp_path):
    """An orientation is suspicious where the format has one, and only listed where it has none."""
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    nib.save(nib.AnalyzeImage(values, np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.mha").write_bytes(
        b"NDims = 3\nDimSize = 6 5 4\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n" + values.tobytes()
    )
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    for name, suspicious in (("a.hdr", True), ("a.mha", True), ("a.tif", False)):
        description = inspection.inspect(tmp_path / name)
        assert "orientation" in description["assumed"]
        assert any("orientation" in sentence for sentence in description["suspicious"]) == suspicious
    assert "assumed" in repr(mrhdata.read(tmp_path / "a.mha").mrh)
    assert "assumed" in mrhdata.read(tmp_path / "a.mha").mrh._repr_html_()


def test_inspect_tells_channels_and_times(tmp_path):
    """Names of channels and the time step are listed if the file states them."""
    series = with_times(from_array(np.random.default_rng(0).random((3, 4, 5, 6)), spacing=(1, 1, 1), dims="tzyx"), 2.5)
    mrhdata.write(series, tmp_path / "a.nii")
    assert inspection.inspect(tmp_path / "a.nii")["time_step_s"] == 2.5
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "b.nii")
    assert inspection.inspect(tmp_path / "b.nii")["channels"] == ["R", "G", "B"]


def test_inspect_warns_about_atlas_with_wrong_unit(shared):
    """annotation_100.nrrd states voxels of 100 mm; the right options give no warning."""
    path = shared / "mouse-mri-histology" / "annotation_100.nrrd"
    assert "13.2 m long" in " ".join(inspection.inspect(path)["suspicious"])
    assert inspection.inspect(path, axes="PIR", unit="um", kind="labels")["suspicious"] == []


def test_difference_ignores_format_and_axis_order(tmp_path, oblique):
    """Formats, flips and axis orders give no difference; a changed voxel and a cropped volume do."""
    for ending in (".nii", ".mnc", ".nrrd", ".zarr"):
        mrhdata.write(oblique, tmp_path / f"a{ending}")
        assert comparison.difference(oblique, mrhdata.read(tmp_path / f"a{ending}"))["same"], ending
    flipped = oblique.isel(y=slice(None, None, -1))
    assert comparison.difference(oblique, flipped)["same"]
    changed = oblique.copy()
    changed[2, 3, 1] += 5
    differences = comparison.difference(oblique, changed)
    assert (differences["same"], differences["different"], differences["max_difference"]) == (False, 1, 5.0)
    cropped = comparison.difference(oblique, oblique.isel(z=slice(2, 5)))
    assert (cropped["same"], cropped["different"]) == (False, 0)
    assert cropped["compared"] == pytest.approx(3 / 7)


def test_difference_on_another_grid():
    """A linear field is the same on a finer, rotated grid, up to the rounding of the interpolation."""
    coarse, fine = oblique_affine(spacing=(1, 1, 1)), oblique_affine(angles=(0, 0, 0), spacing=(0.3, 0.4, 0.5))
    volumes = []
    for affine, shape in ((coarse, (6, 6, 6)), (fine, (40, 40, 40))):
        points_mm = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        volumes.append(from_array(points_mm @ [1.0, 2.0, 3.0], affine=affine))
    differences = comparison.difference(*volumes)
    assert not differences["same_grid"]
    assert differences["max_difference"] < 1e-9
    assert differences["correlation"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["labels", "mask"])
@pytest.mark.parametrize("swapped", [True, False])
def test_labels_and_masks_are_never_interpolated(kind, swapped):
    """On either side: voxels of another grid differ by a whole value or not at all."""
    image = from_array(np.zeros((4, 4, 4), np.uint8), spacing=(1, 1, 1))
    values = np.zeros((8, 8, 8), np.uint8)
    values[4:] = 3
    pair = [image, from_array(values, spacing=(0.6, 0.6, 0.6), kind=kind)]
    first, second = reversed(pair) if swapped else pair
    differences = comparison.difference(first, second)
    compared = differences["compared"] * first.size
    assert 0 < differences["different"] < compared
    assert differences["mean_difference"] * compared == pytest.approx(3 * differences["different"])


def test_difference_of_other_spaces_or_disjoint_volumes_raises(oblique):
    """Volumes in different spaces, and volumes that do not overlap, raise GridError."""
    from mrhdata.volume.construct import describe

    with pytest.raises(GridError, match="spaces differ"):
        comparison.difference(oblique, describe(oblique, space="MNI152"))
    far = from_array(oblique.values, affine=oblique_affine(origin=(900, 0, 0))[:, [2, 1, 0, 3]])
    with pytest.raises(GridError, match="do not overlap"):
        comparison.difference(oblique, far)


def several_in_tiff(folder):
    """Write an OME-TIFF of two images, the second with a pyramid."""
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as file:
        file.write(np.zeros((3, 16, 17), np.uint16), metadata={"axes": "ZYX", "Name": "signal"})
        file.write(np.zeros((20, 30), np.uint8), metadata={"axes": "YX", "Name": "over/view"}, subifds=1)
        file.write(np.zeros((10, 15), np.uint8), subfiletype=1)
    return folder / "a.ome.tif", {"series": 0}


def several_in_dicom(folder):
    """Write two series, of which the second has two directions."""
    series(folder, [0, 3, 6], SeriesNumber=2, SeriesDescription="T2w")
    for i, orientation in enumerate([(1, 0, 0, 0, 1, 0), CORONAL]):
        tags = {"SeriesNumber": 3, "SeriesInstanceUID": "1.2.4", "uid": f"9{i}"}
        plane(folder / f"L{i}.dcm", np.zeros((8, 9)), orientation=orientation, **tags)
    return folder, {"dataset": "T2w"}


def several_in_zarr(folder):
    """Write an image with labels below it."""
    for name in ("", "labels/cells"):
        write_image(folder / "a.zarr" / name, np.zeros((2, 3, 4), np.uint8))
    (folder / "a.zarr" / "labels" / ".zgroup").write_text('{"zarr_format": 2}')
    return folder / "a.zarr", {"dataset": "labels/cells"}


def several_in_hdf5(folder):
    """Write two arrays, and a vector, which is not a volume."""
    with h5py.File(folder / "a.h5", "w") as file:
        for name, shape in (("one", (2, 3, 4)), ("two/deep", (5, 6)), ("vector", (7,))):
            file[name] = np.zeros(shape)
    return folder / "a.h5", {"dataset": "one"}


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (
            several_in_tiff,
            ["series=0 ('signal'): 3 x 16 x 17 ZYX, uint16", "series=1 ('over/view'): 20 x 30 YX, uint8, 2 levels"],
        ),
        (
            several_in_dicom,
            [
                "dataset='2' (T2w): 3 images of 8 x 9, 2 x 2 mm, axial",
                "dataset='3/1': 1 images of 8 x 9, 2 x 2 mm, axial",
                "dataset='3/2': 1 images of 8 x 9, 2 x 2 mm, coronal",
            ],
        ),
        (several_in_zarr, ["dataset='brain'", "dataset='labels/cells'"]),
        (several_in_hdf5, ["dataset='one': 2 x 3 x 4", "dataset='two/deep': 5 x 6"]),
    ],
)
def test_inspect_lists_the_images_of_a_file_of_several(tmp_path, write, expected):
    """Each line begins with the option that chooses the image, and `mrhdata info` prints a line for each."""
    path, choice = write(tmp_path)
    assert inspection.inspect(path, **choice)["images"] == expected
    words = [word for key, value in choice.items() for word in (f"--{key}", str(value))]
    code, out, _ = command("info", path, *words)
    lines = out.splitlines()
    assert code == 0
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("image ")] == expected
    assert lines[0].startswith("file")


def test_inspect_lists_no_images_of_a_file_of_one(tmp_path, oblique):
    """One image needs no list, in any format."""
    for name in ("a.nii", "a.ome.tif", "a.zarr"):
        mrhdata.write(oblique, tmp_path / name)
        assert "images" not in inspection.inspect(tmp_path / name)
