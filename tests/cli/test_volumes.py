"""Commands on single volumes: info, convert, view, register, resample."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import mrhdata
from mrhdata.volume.construct import describe, from_array
from tests.conftest import command as run


def test_installed_command_prints_and_ends_as_the_function(files):
    """A process of its own has the exit code, the output and the error of a run in this process."""
    installed = Path(sys.executable).with_name("mrhdata")
    for words in (("info", files / "t2.nii", "--json"), ("info", files / "nothing.nii")):
        process = subprocess.run([installed, *words], capture_output=True, text=True, check=False)
        assert (process.returncode, process.stdout, process.stderr) == run(*words)


def test_convert_keeps_the_geometry_that_info_prints(files):
    code, out, _ = run("info", files / "t2.nii", "--json")
    first = json.loads(out)
    assert code == 0
    assert first["shape"] == {"z": 20, "y": 20, "x": 20}
    assert first["orientation"] == "SAR"
    code, out, _ = run("convert", files / "t2.nii", "-o", files / "t2.zarr", "--space", "CCFv3", "--modality", "mri")
    assert code == 0
    second = json.loads(run("info", files / "t2.zarr", "--json")[1])
    assert second["space"] == "CCFv3"
    assert second["corner_mm"] == first["corner_mm"]
    assert run("convert", files / "t2.zarr", "--out", files / "back.mnc")[0] == 0
    assert "spacing_mm" in run("info", files / "back.mnc")[1]


def test_spacing_and_origin_are_numbers_with_commas(tmp_path):
    """Three numbers hold for the axes of the file, one number for all; negative numbers need no quotes."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4, 5), np.uint8), photometric="minisblack")
    words = ["info", tmp_path / "a.tif", "--json", "--unit", "um", "--orientation", "SAR"]
    answer = json.loads(run(*words, "--spacing", "2,1.8,1.5", "--origin", "-5,0,2.5")[1])
    assert answer["spacing_mm"] == {"z": 0.002, "y": 0.0018, "x": 0.0015}
    assert [round(v, 6) for v in answer["corner_mm"]["first"]] == [-0.005, 0, 0.0025]
    assert json.loads(run(*words, "--spacing", "2")[1])["spacing_mm"] == {"z": 0.002, "y": 0.002, "x": 0.002}
    for option, value, expected in [
        ("--spacing", "2,1.8", "--spacing must be one number, or three with commas such as 2,1.8,1.8; got '2,1.8'"),
        ("--spacing", "thin", "--spacing must be one number, or three with commas such as 2,1.8,1.8; got 'thin'"),
        ("--origin", "5", "--origin must be three numbers with commas, such as 2,1.8,1.8; got '5'"),
    ]:
        assert run(*words, option, value) == (2, "", f"mrhdata: {expected}\n")


def test_orientation_takes_the_origins_of_brainglobe(tmp_path):
    """Origins anterior, superior, right are axes to posterior, inferior, left."""
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    words = ["convert", tmp_path / "a.tif", "--spacing", "1", "--orientation"]
    for letters, name in (("bg:asr", "origins"), ("PIL", "directions"), ("pil", "small")):
        assert run(*words, letters, "-o", tmp_path / f"{name}.zarr")[0] == 0
    volumes = [mrhdata.read(tmp_path / f"{name}.zarr") for name in ("origins", "directions", "small")]
    assert all(volume.mrh.grid.same_as(volumes[0].mrh.grid) for volume in volumes)
    # Steps along the file's axes move the world point by -1 mm along Y (anterior), Z (superior) and X (right).
    order = [list(volumes[0].attrs["source_axes"]).index(d) for d in ("z", "y", "x")]
    steps = np.eye(3, dtype=int)[order]
    world = volumes[0].mrh.world([[0, 0, 0], *steps.T])
    np.testing.assert_allclose(world[1:] - world[0], [[0, -1, 0], [0, 0, -1], [-1, 0, 0]], atol=1e-12)
    for letters in ("bg:xyz", "PIX", "as", "bg:aar", "nii:asr"):
        code, _, err = run(*words, letters, "-o", tmp_path / "wrong.zarr")
        assert (code, "--orientation must be three letters" in err, letters in err) == (2, True, True), err


def test_one_volume_of_a_time_series_is_converted(tmp_path):
    """Commands on single volumes name the remedy, and --time takes one."""
    values = np.random.default_rng(0).random((3, 4, 5, 6), np.float32)
    mrhdata.write(from_array(values, spacing=(1, 1, 1), dims=("t", "z", "y", "x")), tmp_path / "a.nii")
    words = ["sensitivity", tmp_path / "a.nii", "--histology", tmp_path / "a.nii", "--threshold", "50%"]
    code, _, err = run(*words, "--positive", "above")
    assert (code, "mrhdata convert --time 0" in err) == (2, True), err
    for ending in ("zarr", "nii.gz"):
        assert run("convert", tmp_path / "a.nii", "-o", tmp_path / f"one.{ending}", "--time", 1)[0] == 0
        one = mrhdata.read(tmp_path / f"one.{ending}")
        np.testing.assert_array_equal(one, values[1])
        assert one.mrh.grid.same_as(mrhdata.read(tmp_path / "a.nii").mrh.grid)
    code, _, err = run("convert", tmp_path / "a.nii", "-o", tmp_path / "b.zarr", "--time", 3)
    assert (code, "time must be 0 to 2" in err) == (2, True), err


def test_view_draws_slices_through_a_world_point(files):
    """The picture of another point differs; a wrong point and an existing file are one sentence."""
    first, second = files / "first.png", files / "second.png"
    assert run("view", files / "t2.nii", files / "af.nii", "-o", first, "--at", "1,-2,3")[0] == 0
    assert run("view", files / "t2.nii", files / "af.nii", "-o", second, "--at", "1.9,-1,4")[0] == 0
    assert first.read_bytes() != second.read_bytes()
    code, _, err = run("view", files / "t2.nii", "-o", first)
    assert (code, "first.png exists" in err) == (2, True), err
    code, _, err = run("view", files / "t2.nii", "-o", files / "third.png", "--at", "0,0")
    assert (code, "--at must be three numbers" in err) == (2, True), err


def test_resample_to_a_spacing(files):
    code, out, err = run(
        "resample", files / "t2.nii", "-o", files / "half.nii", "--spacing-mm", "0.6,0.4,0.2", "--json"
    )
    assert code == 0, err
    np.testing.assert_allclose(mrhdata.read(files / "half.nii").mrh.spacing, (0.6, 0.4, 0.2))
    assert json.loads(out)["shape"] == {"z": 10, "y": 10, "x": 10}


def damaged(files, kind):
    """Words of a command that must fail, and a part of its sentence."""
    score = ["sensitivity", files / "t2.nii", "--histology", files / "af.nii", "--threshold", "0.3"]
    t2 = mrhdata.read(files / "t2.nii").compute()
    bad = files / "bad.nii"
    score_bad = ["sensitivity", bad, *score[2:]]
    if kind == "missing":
        return ["info", files / "gone.nii"], "does not exist"
    if kind == "truncated":
        bad.write_bytes((files / "t2.nii").read_bytes()[:1000])
        return ["convert", bad, "-o", files / "out.zarr"], "truncated"
    if kind == "unknown format":
        (files / "a.xyz").write_bytes(b"?")
        return ["info", files / "a.xyz"], "no known ending"
    if kind == "shapes":
        mrhdata.write(t2.isel(x=slice(5)), bad)
        return [*score, "--mask", bad], "shapes differ"
    if kind == "spaces":
        mrhdata.write(describe(t2, space="MNI152"), bad)
        return score_bad, "lies in space"
    if kind == "NaN":
        mrhdata.write(t2.where(t2 > 10), bad)
        return score_bad, "not finite"
    if kind == "empty mask":
        mrhdata.write((t2 * 0).assign_attrs(t2.attrs), bad)
        return [*score, "--mask", bad], "mask is empty"
    if kind == "no real data":
        return [
            "demo",
            "--data",
            files,
            "-o",
            files / "out.zarr",
        ], "does not exist. mouse-mri-histology (DSURQE and CCFv3 at 0.2 mm) is in"
    return ["catalog", "check", files / "gone.yaml"], "does not exist"


@pytest.mark.parametrize(
    "kind",
    ["missing", "truncated", "unknown format", "shapes", "spaces", "NaN", "empty mask", "catalogue"],
)
def test_user_errors_end_in_one_sentence(files, kind):
    """Exit code 2, one line on stderr, no traceback, no incomplete output."""
    words, sentence = damaged(files, kind)
    before = sorted(files.rglob("*"))
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mrhdata: ")
    assert sorted(files.rglob("*")) == before


def test_demo_names_missing_data(files):
    """The message comes before anything is computed."""
    words, sentence = damaged(files, "no real data")
    code, _, err = run(*words)
    assert code == 2
    assert sentence in err


def test_image_and_level_of_a_tiff_are_chosen(tmp_path):
    """``--series`` and ``--level`` choose one of several images and one level of a pyramid."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for name, depth in (("left", 3), ("right", 5)):
            file.write(np.zeros((depth, 32, 32), np.uint8), subifds=1, metadata={"axes": "ZYX", "Name": name})
            file.write(np.zeros((depth, 16, 16), np.uint8), subfiletype=1)
    answer = json.loads(run("info", tmp_path / "a.ome.tif", "--series", "right", "--level", "-1", "--json")[1])
    assert answer["shape"] == {"z": 5, "y": 16, "x": 16}
