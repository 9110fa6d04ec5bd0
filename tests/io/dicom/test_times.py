"""Several planes at one position: times, echoes, diffusion directions."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError
from tests.io.dicom.files import enhanced, numbered, place, plane


def repeated(folder, times, tags, slices=3):
    """Write slices at each time, with values 10 * time + slice; `tags` returns elements of a time and a slice."""
    for t in range(times):
        for i in range(slices):
            more = tags(t, i)
            path = folder / f"{t}-{i}.dcm"
            plane(
                path, np.full((8, 9), 10 * t + i), (0, 0, 3 * i), number=more.pop("number", 0), uid=f"{t}.{i}", **more
            )
    return folder


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("TemporalPositionIdentifier", lambda t, i: {"TemporalPositionIdentifier": t + 1}),
        ("EchoTime", lambda t, i: {"EchoTime": 5.0 * (t + 1)}),
        ("AcquisitionNumber", lambda t, i: {"AcquisitionNumber": t + 1}),
        ("TriggerTime", lambda t, i: {"TriggerTime": 20.0 * t}),
        ("AcquisitionTime", lambda t, i: {"AcquisitionTime": f"1200{10 * t + i:02}"}),
        ("InstanceNumber", lambda t, i: {"number": 3 * t + i + 1}),
        ("InstanceNumber", lambda t, i: {"number": 4 * i + t + 1}),
    ],
)
def test_times_of_a_series_become_an_axis(tmp_path, name, tags):
    """The element that differs at each position orders the times, and the attributes name it."""
    volume = mrhdata.read(repeated(tmp_path, 4, tags))
    assert volume.dims == ("t", "z", "y", "x")
    assert volume.values[..., 0, 0].tolist() == [[10 * t + i for i in range(3)] for t in range(4)]
    assert list(volume.attrs["t_values"]) == [name]
    assert mrhdata.read(tmp_path, time=2).values[1, 0, 0] == 21


def test_nothing_that_tells_times_apart_is_refused(tmp_path):
    """The message has the number of images at each position, and what differs."""
    repeated(tmp_path, 2, lambda t, i: {"number": 1, "ContentTime": "120000"})
    with pytest.raises(FormatError, match="3 positions have 2 images each, and no element tells times apart"):
        mrhdata.read(tmp_path)


def test_a_missing_time_is_refused(tmp_path):
    """One slice of one time is missing."""
    repeated(tmp_path, 3, lambda t, i: {"AcquisitionNumber": t + 1})
    (tmp_path / "1-1.dcm").unlink()
    with pytest.raises(FormatError, match=r"2 positions have 3 and one has 2"):
        mrhdata.read(tmp_path)


def test_magnitude_and_phase_are_two_images(tmp_path):
    """ImageType splits planes at the same positions, and so do echoes of each time."""
    repeated(tmp_path / "a", 2, lambda t, i: {"ImageType": ["ORIGINAL", "PRIMARY", "MP"[t]], "SeriesNumber": 7})
    with pytest.raises(FormatError, match=r"'7/1': .*PRIMARY\\M; '7/2': .*PRIMARY\\P"):
        mrhdata.read(tmp_path / "a")
    assert mrhdata.read(tmp_path / "a", dataset="7/2").values.min() == 10
    repeated(tmp_path / "b", 4, lambda t, i: {"EchoTime": 5.0 * (1 + t % 2), "AcquisitionNumber": 1 + t // 2})
    with pytest.raises(FormatError, match=r"6 images .*EchoTime 5; .*EchoTime 10"):
        mrhdata.read(tmp_path / "b")
    assert mrhdata.read(tmp_path / "b", dataset="1.2.3/2").values[:, 0, 0, 0].tolist() == [10, 30]


def test_frames_of_an_enhanced_file_by_time_and_by_diffusion(tmp_path):
    """Indices of times, and b-values with directions, order the frames of each position."""
    places = [place((0, 0, 3 * i), FrameContentSequence={"TemporalPositionIndex": t}) for i in (0, 1) for t in (2, 1)]
    enhanced(tmp_path / "a.dcm", numbered(4), places)
    assert mrhdata.read(tmp_path / "a.dcm").values[:, :, 2, 3].tolist() == [[101, 103], [100, 102]]
    directions = [None, [1.0, 0, 0], [0, 1.0, 0]]
    places = [
        place(
            (0, 0, 3 * i),
            MRDiffusionSequence={
                "DiffusionBValue": 1000.0,
                "DiffusionGradientDirectionSequence": {"DiffusionGradientOrientation": d},
            }
            if d
            else {"DiffusionBValue": 0.0},
        )
        for d in directions
        for i in (0, 1)
    ]
    enhanced(tmp_path / "b.dcm", numbered(6), places)
    volume = mrhdata.read(tmp_path / "b.dcm")
    assert volume.values[:, 0, 2, 3].tolist() == [100, 104, 102]
    assert volume.attrs["t_values"]["DiffusionBValue"][1] == [1000.0, [0.0, 1.0, 0.0]]


def test_frames_of_a_film_are_times(tmp_path):
    """FrameIncrementPointer names the time between frames."""
    values = numbered(4)
    plane(tmp_path / "a.dcm", values, NumberOfFrames=4, FrameIncrementPointer=0x00181063, FrameTime=40)
    volume = mrhdata.read(tmp_path / "a.dcm")
    assert dict(volume.sizes) == {"t": 4, "z": 1, "y": 8, "x": 9}
    np.testing.assert_array_equal(volume.values[:, 0], values)
