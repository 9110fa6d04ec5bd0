"""Planes of one or several series: which ones make a volume, and where it lies."""

import numpy as np
import pytest

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.volume.assumptions import assumed
from tests.io.dicom.files import AXIAL, CORONAL, SAGITTAL, enhanced, numbered, place, plane, series, world_of


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_frames_of_an_enhanced_file_lie_where_their_groups_say(tmp_path, order):
    """Frames are sorted by position along the normal, whatever their order in the file."""
    enhanced(tmp_path / "a.dcm", numbered(4), [place((-10, -20, 3 * k)) for k in order])
    volume = mrhdata.read(tmp_path / "a.dcm")
    np.testing.assert_allclose(volume.mrh.spacing, (3, 2, 2))
    for i, k in enumerate(order):
        np.testing.assert_allclose(world_of(volume, 100 + i), (4, 16, 3 * k))


def test_groups_for_all_frames_are_used(tmp_path):
    """Orientation and slope may stand once for all frames, and slope and intercept per frame."""
    shared = {"PlaneOrientationSequence": {"ImageOrientationPatient": list(CORONAL)}}
    scales = [{"RescaleSlope": 0.5, "RescaleIntercept": 1}, {"RescaleSlope": 2, "RescaleIntercept": 0}]
    places = [
        {"PlanePositionSequence": {"ImagePositionPatient": [0, 5 * k, 0]}, "PixelValueTransformationSequence": scale}
        for k, scale in enumerate(scales)
    ]
    enhanced(tmp_path / "a.dcm", np.full((2, 8, 9), 10), places, shared)
    volume = mrhdata.read(tmp_path / "a.dcm")
    assert volume.mrh.grid.orientation[1] in "AP"
    planes = volume.transpose("y", "z", "x").values[:, 0, 0]
    assert planes.tolist() == [6, 20]


@pytest.mark.parametrize("gap", [True, False])
def test_a_gap_is_refused(tmp_path, gap):
    """Missing slices are counted in the message, in a series and in an enhanced file."""
    z = [0, 3, 6, 12, 15] if gap else [0, 3, 6, 9, 12]
    series(tmp_path / "s", z)
    enhanced(tmp_path / "e.dcm", numbered(5), [place((0, 0, v)) for v in z])
    for source in (tmp_path / "s", tmp_path / "e.dcm"):
        if gap:
            with pytest.raises(FormatError, match=r"1 of 6 are missing"):
                mrhdata.read(source)
        else:
            assert mrhdata.read(source).sizes["z"] == 5


def test_orientations_are_never_stacked(tmp_path):
    """A localizer of three orientations lists its stacks, and one of them can be chosen."""
    frames = [place((0, 0, 0), AXIAL), place((0, 0, 3), SAGITTAL), place((0, 0, 6), CORONAL)]
    enhanced(tmp_path / "a.dcm", numbered(3), frames, SeriesNumber=4)
    with pytest.raises(FormatError, match=r"dataset=: '4/1': .*axial; '4/2': .*sagittal; '4/3': .*coronal"):
        mrhdata.read(tmp_path / "a.dcm")
    assert mrhdata.read(tmp_path / "a.dcm", dataset="4/2").values.max() == 101
    series(tmp_path / "s", [0, 3, 6])
    plane(tmp_path / "s" / "scout.dcm", np.zeros((8, 9)), (0, 0, 9), SAGITTAL, 9)
    with pytest.raises(FormatError, match="2 stacks"):
        mrhdata.read(tmp_path / "s")
    plane(tmp_path / "s" / "scout.dcm", np.zeros((4, 9)), (0, 0, 9), number=9)
    with pytest.raises(FormatError, match=r"3 images of 8 x 9, 2 x 2 mm, axial; .*1 images of 4 x 9"):
        mrhdata.read(tmp_path / "s")


def test_stack_ids_and_segments_are_kept_apart(tmp_path):
    """Frames of two stacks, or of two segments, are two volumes."""
    ids = [place((0, 0, z), FrameContentSequence={"StackID": s}) for s in "12" for z in (0, 3)]
    enhanced(tmp_path / "a.dcm", numbered(4), ids)
    assert mrhdata.read(tmp_path / "a.dcm", dataset="1.2.3/2").values.max() == 103
    ids = [
        place((0, 0, z), SegmentIdentificationSequence={"ReferencedSegmentNumber": s}) for s in (1, 2) for z in (0, 3)
    ]
    enhanced(tmp_path / "b.dcm", numbered(4), ids)
    with pytest.raises(FormatError, match="segment 1"):
        mrhdata.read(tmp_path / "b.dcm")


def test_series_are_chosen_by_number_description_or_uid(tmp_path):
    """Several series of a folder are listed with their descriptions; an ambiguous name lists those that match."""
    for number, words in ((3, "T1 axial"), (5, "T2"), (6, "T2")):
        uid = f"1.2.{number}"
        tags = {"SeriesNumber": number, "SeriesDescription": words, "SeriesInstanceUID": uid}
        for z in range(number):
            plane(tmp_path / f"{number}-{z}", np.full((8, 9), number), (0, 0, z), number=z + 10 * number, **tags)
    with pytest.raises(FormatError, match=r"3 series; choose one with dataset=: '3' \(T1 axial\): 3 images of 8 x 9"):
        mrhdata.read(tmp_path)
    assert [mrhdata.read(tmp_path, dataset=name).sizes["z"] for name in ("3", "T1 axial", "1.2.6")] == [3, 3, 6]
    with pytest.raises(FormatError, match=r"'5' \(T2\).*'6' \(T2\)"):
        mrhdata.read(tmp_path, dataset="T2")
    with pytest.raises(FormatError, match="no series 9; dataset= must be one of '3'"):
        mrhdata.read(tmp_path, dataset="9")


def test_tilted_and_descending_slices_keep_their_positions(tmp_path):
    """Steps between slices come from their positions: sideways for a tilted gantry, or downwards."""
    for name, step in (("tilted", (0, -1.5, 3)), ("down", (0, 0, -3))):
        for i in range(4):
            path = tmp_path / name / f"{i}.dcm"
            plane(path, numbered(4)[i], np.array(step) * i, number=i + 1, SpacingBetweenSlices=-3)
        volume = mrhdata.read(tmp_path / name)
        for i in range(4):
            expected = (np.array([6, 4, 0]) + np.array(step) * i) * (-1, -1, 1)
            np.testing.assert_allclose(world_of(volume, 100 + i), expected, atol=1e-9)


def test_planes_next_to_each_other_are_refused(tmp_path):
    """Tiles of one plane, and slices that move only sideways, make no volume."""
    plane(tmp_path / "a.dcm", np.zeros((8, 9)), (0, 0, 0), number=1)
    plane(tmp_path / "b.dcm", np.zeros((8, 9)), (50, 0, 0), number=2)
    with pytest.raises(FormatError, match="next to it"):
        mrhdata.read(tmp_path)


def test_a_copy_of_a_slice_is_left_out(tmp_path, caplog):
    """A file that repeats another one gives a warning; another image at the same position is an error."""
    series(tmp_path, [0, 3, 6])
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "IM0001.dcm").read_bytes())
    assert mrhdata.read(tmp_path).sizes["z"] == 3
    assert "repeats" in caplog.text
    plane(tmp_path / "copy.dcm", np.zeros((8, 9)), (0, 0, 3), number=2)
    with pytest.raises(FormatError, match=r"2 positions have 1 and one has 2 \(IM0001.dcm, copy.dcm\)"):
        mrhdata.read(tmp_path)


def test_missing_geometry_is_assumed_and_told(tmp_path, caplog):
    """A picture without pixel size and position is read with a warning, and options state both."""
    plane(tmp_path / "a.dcm", np.zeros((8, 9)), None, None, PixelSpacing=None)
    assert assumed(mrhdata.read(tmp_path / "a.dcm")) == ("spacing", "orientation")
    assert "no voxel size" in caplog.text
    assert assumed(mrhdata.read(tmp_path / "a.dcm", spacing=1, axes="LPS")) == ()
    plane(tmp_path / "b.dcm", np.zeros((8, 9)), None, None, PixelSpacing=None, ImagerPixelSpacing=[0.5, 0.25])
    volume = mrhdata.read(tmp_path / "b.dcm")
    assert "detector only (ImagerPixelSpacing)" in caplog.text
    np.testing.assert_allclose(volume.mrh.spacing[1:], (0.5, 0.25))


def test_images_without_position_are_ordered_by_number(tmp_path):
    """InstanceNumber orders them if it has no gaps; the step is assumed unless the file states it."""
    for number in (3, 1, 2):
        plane(tmp_path / f"{number}.dcm", np.full((8, 9), number), None, number=number)
    volume = mrhdata.read(tmp_path)
    assert volume.values[:, 0, 0].tolist() == [1, 2, 3]
    assert assumed(volume) == ("spacing", "orientation")
    (tmp_path / "2.dcm").unlink()
    plane(tmp_path / "4.dcm", np.full((8, 9), 4), None, number=4)
    with pytest.raises(FormatError, match="without gaps"):
        mrhdata.read(tmp_path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "ImageOrientationPatient must be two orthogonal unit vectors"),
        ({"position": (0, 0)}, "ImagePositionPatient must be 3 finite numbers"),
    ],
)
def test_impossible_geometry_is_refused(tmp_path, tags, message):
    """The message names the element and the file."""
    plane(tmp_path / "a.dcm", np.zeros((8, 9)), **tags)
    with pytest.raises(FormatError, match=rf"a\.dcm: {message}"):
        mrhdata.read(tmp_path / "a.dcm")
