"""Siemens mosaics: planes of a volume as tiles of one picture."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError
from tests.io.dicom.files import mosaic, numbered, world_of


@pytest.mark.parametrize("up", [1, -1])
def test_tiles_lie_along_the_normal_of_the_siemens_header(tmp_path, up):
    """The corner is that of the first plane, and planes follow in the direction that the header states."""
    mosaic(tmp_path / "a.dcm", numbered(5), (-20, -30, 7), side=3, normal=(0, 0, up))
    volume = mrhdata.read(tmp_path / "a.dcm")
    assert dict(volume.sizes) == {"z": 5, "y": 8, "x": 9}
    for k in range(5):
        expected = np.array([-20 + 3 * 2, -30 + 2 * 2, 7 + up * 3 * k]) * (-1, -1, 1)
        np.testing.assert_allclose(world_of(volume, 100 + k), expected)


def test_mosaics_of_a_series_are_times(tmp_path):
    """Each file is one time."""
    for t in range(3):
        mosaic(tmp_path / f"{t}.dcm", numbered(4) + 10 * t, (0, 0, 0), 2, number=t + 1, AcquisitionNumber=t + 1)
    volume = mrhdata.read(tmp_path)
    assert volume.values[:, :, 2, 3].tolist() == [[100 + 10 * t + k for k in range(4)] for t in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal": None}, "lacks SliceNormalVector"),
        ({"SpacingBetweenSlices": None}, "lacks SpacingBetweenSlices"),
        ({"normal": (1, 0, 0)}, "SliceNormalVector must be normal to the planes"),
        ({"side": 4}, "a mosaic of 5 planes must have 3 x 3 tiles"),
    ],
)
def test_incomplete_mosaics_are_refused(tmp_path, options, message):
    """Without the direction of its planes a mosaic is not read, because half of them are the other way."""
    mosaic(tmp_path / "a.dcm", numbered(5), (0, 0, 0), **({"side": 3} | options))
    with pytest.raises(FormatError, match=message):
        mrhdata.read(tmp_path / "a.dcm")
