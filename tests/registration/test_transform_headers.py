"""Transform files that would end the process in ITK, or take bytes of other files, are refused."""

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from mrhdata.errors import FormatError, MrhdataError
from mrhdata.registration import itk
from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.grid import Grid

GRID = Grid((4, 5, 6), np.diag([1.0, 1, 1, 1]))


@pytest.fixture
def transform():
    """Return an affine and a displacement field."""
    field = np.random.default_rng(0).random((3, *GRID.shape)).astype(np.float32)
    return Transform([Affine(np.diag([1.0, 2, 3, 1])), Displacement(field, GRID.affine, 1)])


@pytest.mark.parametrize("ending", [".tfm", ".txt", ".h5", ".mha", ".nrrd", ".nii.gz"])
def test_written_transforms_are_read(tmp_path, transform, ending):
    """Every kind of file that is written passes the checks."""
    path = tmp_path / f"a{ending}"
    itk.write(transform, path, like=GRID)
    points = np.array([[2.0, 2, 2], [1, 3, 2]])
    if ending in (".tfm", ".txt", ".h5"):
        np.testing.assert_allclose(itk.read(path).points(points), transform.points(points), atol=1e-5)
    else:
        assert itk.read(path).steps[0].field.shape == (3, 4, 5, 6)


@pytest.mark.parametrize("size", ["100000 100000 100000", "-1 5 5", "nan 1 1", "x 1 1", ""])
@pytest.mark.parametrize("kind", ["BSplineTransform_double_3_3", "DisplacementFieldTransform_double_3_3"])
def test_grids_without_their_parameters_are_refused(tmp_path, kind, size):
    """A grid of 10^15 nodes, or of none, raises before ITK allocates it."""
    path = tmp_path / "a.tfm"
    path.write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\nParameters: 0\n"
        f"FixedParameters: {size} 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n"
    )
    with pytest.raises(FormatError, match=r"a\.tfm"):
        itk.read(path)


def test_hdf5_grids_without_their_parameters_are_refused(tmp_path):
    """The same sizes in an HDF5 file raise, also under another ending, because ITK looks at the content."""
    good = sitk.BSplineTransform([sitk.Image(5, 5, 5, sitk.sitkFloat64)] * 3, 3)
    sitk.WriteTransform(good, str(tmp_path / "a.h5"))
    assert len(itk.read(tmp_path / "a.h5").steps) == 1
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        fixed = next(name for name in file["TransformGroup/0"] if name.endswith("FixedParameters"))
        file[f"TransformGroup/0/{fixed}"][:3] = 100000
    (tmp_path / "b.tfm").write_bytes((tmp_path / "a.h5").read_bytes())
    for name in ("a.h5", "b.tfm"):
        with pytest.raises(FormatError, match=rf"{name}: BSplineTransform.*for each node"):
            itk.read(tmp_path / name)


@pytest.mark.parametrize("way", ["link", "soft", "external"])
def test_transforms_in_other_files_are_refused(tmp_path, transform, way):
    """Links and external storage of an HDF5 file are not followed."""
    itk.write(transform, tmp_path / "secret.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if way == "external":
            file.create_dataset("TransformGroup/0/x", (10,), "u1", external=[(str(tmp_path / "secret.h5"), 0, 10)])
        else:
            link = h5py.ExternalLink("secret.h5", "TransformGroup") if way == "link" else h5py.SoftLink("/other")
            file["TransformGroup"] = link
    with pytest.raises(FormatError, match=r"a\.h5 must hold its transforms itself"):
        itk.read(tmp_path / "a.h5")


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz"])
def test_damaged_vectors_are_refused(tmp_path, transform, ending):
    """A flipped bit in the compressed vectors raises, or changes nothing; ITK reads most of them as other vectors."""
    path, rng = tmp_path / f"a{ending}", np.random.default_rng(0)
    itk.write(transform, path, like=GRID)
    good, right = path.read_bytes(), itk.read(path).steps[0].field
    for position in rng.integers(len(good) // 2, len(good) - 8, 30):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(itk.read(path).steps[0].field, right)
        except MrhdataError:
            continue


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"LOCAL\n", b"%n%n 1 7 1\n"),
        (".mha", b"LOCAL\n", b"secret\n"),
        (".mha", b"NDims = 3", b"NDims = -1"),
        (".mha", b"ElementNumberOfChannels = 3", b"ElementNumberOfChannels = 3000000000"),
        (".mha", b"ElementDataFile", b"elementdatafile"),
        (".nrrd", b"encoding: gzip", b"encoding: gzip\ndata file: secret"),
        (".nrrd", b"dimension: 4", b"dimension: 17"),
        (".nrrd", b"sizes: 3 6 5 4", b"sizes: 3 600000 500000 400000"),
    ],
)
def test_headers_of_fields_are_checked(tmp_path, transform, ending, old, new):
    """Images of displacements name no other file, and no more voxels than they hold."""
    path = tmp_path / f"a{ending}"
    itk.write(transform, path, like=GRID)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(FormatError, match=path.name):
        itk.read(path)


def test_truncated_fields_are_refused(tmp_path, transform):
    """ITK prints a message and fills the rest with zeros."""
    path = tmp_path / "a.nii.gz"
    itk.write(transform, path, like=GRID)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"a\.nii\.gz cannot be read.*ends before its checksum"):
        itk.read(path)


def test_text_of_hdf5_without_a_size_is_refused(tmp_path, transform):
    """HDF5 would look for the end of the text for ever."""
    path = tmp_path / "a.h5"
    itk.write(transform, path)
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.h5 cannot be read: the text at byte \d+ is damaged"):
        itk.read(path)
