"""Scores from the command line equal those of independent formulas, and no case is lost."""

import json

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import structural_similarity

import mrhdata
from mrhdata.analysis import scores
from mrhdata.errors import DataError
from mrhdata.io.cell_tables import write_points
from mrhdata.volume.construct import describe, from_array
from tests.conftest import command as run

SHAPE = (12, 14, 16)


def labels_of(seed):
    """Smooth label regions 0 to 3."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [n // 2 for n in SHAPE])
    return from_array(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2).astype(np.uint8), spacing=(1, 1, 2), kind="labels")


@pytest.fixture
def folders(tmp_path):
    """Two folders of three cases, whose files have other endings."""
    for number in range(3):
        truth, other = labels_of(number), labels_of(10 + number)
        prediction = truth.copy(data=np.where(np.indices(SHAPE)[0] < 6, truth, other))
        for folder, volume, ending in (("truth", truth, "nii.gz"), ("network", prediction, "mha")):
            (tmp_path / folder).mkdir(exist_ok=True)
            mrhdata.write(volume, tmp_path / folder / f"sub-0{number}_seg.{ending}")
    return tmp_path


def test_labels_of_folders_are_scored_and_pooled(folders):
    """Dice equals the formula for each case and label; names come from the table of a folder."""
    (folders / "network" / "dseg.tsv").write_text("index\tname\tcolor\n1\tcortex\t#ff0000\n2\twhite matter\t#fff\n")
    out = folders / "scores.csv"
    code, printed, error = run("score", "labels", folders / "truth", folders / "network", "-o", out)
    assert (code, error) == (0, "")
    table = pd.read_csv(out)
    assert table.subject.unique().tolist() == [f"sub-0{i}_seg" for i in range(3)]
    assert table.name.unique().tolist() == ["cortex", "white matter", "3"]
    for row in table.itertuples():
        number = row.subject[5]
        a = mrhdata.read(folders / "truth" / f"sub-0{number}_seg.nii.gz").values == row.label
        b = mrhdata.read(folders / "network" / f"sub-0{number}_seg.mha").values == row.label
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert row.true_volume_mm3 == a.sum() * 2
    line = next(line for line in printed.splitlines() if "cortex" in line)
    mean = table[table.label == 1].dice.mean()
    assert line.split()[:3] == ["cortex", "3", f"{mean:.3f}"]
    assert str(out) in printed


def test_a_label_of_one_side_only_counts_as_missed(tmp_path):
    """Its Dice is 0; one that neither has gives no row, so that it cannot lift a mean."""
    truth = labels_of(0)
    mrhdata.write(truth, tmp_path / "a_seg.nii")
    mrhdata.write(truth.where(truth != 3, 9).astype(np.uint8).assign_attrs(truth.attrs), tmp_path / "b_seg.nii")
    words = ("score", "labels", tmp_path / "a_seg.nii", tmp_path / "b_seg.nii", "-o", tmp_path / "s.csv", "--json")
    rows = pd.DataFrame(json.loads(run(*words)[1])["scores"])
    assert dict(zip(rows.label, rows.dice, strict=True)) == {1: 1.0, 2: 1.0, 3: 0.0, 9: 0.0}


def test_no_case_is_left_out(folders):
    """A missing prediction is named, and so are two different things."""
    (folders / "network" / "sub-01_seg.mha").unlink()
    words = ("-o", folders / "s.csv")
    code, _, error = run("score", "labels", folders / "truth", folders / "network", *words)
    assert code == 2
    assert "both folders must have the same cases; got 3 and 2" in error
    assert "sub-01_seg" in error
    code, _, error = run("score", "labels", folders / "truth", folders / "truth" / "sub-00_seg.nii.gz", *words)
    assert (code, "two files or two folders" in error) == (2, True)
    code, _, error = run("score", "labels", folders / "truth" / "sub-00_seg.nii.gz", folders / "nothing.nii", *words)
    assert (code, "nothing.nii" in error) == (2, True)
    assert not (folders / "s.csv").exists()


def test_other_grids_are_refused_or_resampled(folders):
    """A prediction on a finer grid that lies on the truth."""
    truth = mrhdata.read(folders / "truth" / "sub-00_seg.nii.gz")
    mrhdata.write(mrhdata.resample(truth, spacing_mm=0.5), folders / "fine_seg.nii")
    words = ("score", "labels", folders / "truth" / "sub-00_seg.nii.gz", folders / "fine_seg.nii")
    code, _, error = run(*words, "-o", folders / "s.csv")
    assert (code, "pass --grids resample" in error) == (2, True)
    assert run(*words, "-o", folders / "s.csv", "--grids", "resample")[0] == 0
    assert pd.read_csv(folders / "s.csv").dice.tolist() == [1.0, 1.0, 1.0]


def test_images_are_scored_as_by_other_libraries(tmp_path):
    """R2 lies in its interval, and is that of the formula; SSIM is that of scikit-image."""
    rng = np.random.default_rng(0)
    truth = from_array(rng.random((20, 24, 28)).cumsum(2).astype(np.float32), spacing=(1, 1, 1))
    other = truth.copy(data=truth.values + rng.normal(0, 2, truth.shape).astype(np.float32))
    mask = describe(truth.copy(data=(np.indices(truth.shape)[0] > 9).astype(np.uint8)), kind="mask")
    for name, volume in (("a", truth), ("b", other), ("mask", mask)):
        mrhdata.write(volume, tmp_path / f"{name}.nii")
    words = ("score", "images", tmp_path / "a.nii", tmp_path / "b.nii", "-o", tmp_path / "s.csv", "--overwrite")
    assert run(*words)[0] == 0
    (row,) = pd.read_csv(tmp_path / "s.csv").itertuples()
    error = (truth.values - other.values).astype(float)
    assert row.r2 == pytest.approx(1 - (error**2).sum() / ((truth.values - truth.values.mean()) ** 2).sum(), rel=1e-4)
    assert row.r2_low < row.r2 < row.r2_high
    assert row.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert row.psnr == pytest.approx(20 * np.log10(np.ptp(truth.values) / row.rmse), rel=1e-4)
    planes = [
        structural_similarity(a, b, data_range=float(np.ptp(truth.values)))
        for a, b in zip(truth.values, other.values, strict=True)
    ]
    assert row.ssim == pytest.approx(np.mean(planes), abs=0.01)
    assert run(*words, "--mask", tmp_path / "mask.nii")[0] == 0
    (masked,) = pd.read_csv(tmp_path / "s.csv").itertuples()
    assert masked.voxels == 10 * 24 * 28
    assert np.isnan(masked.ssim)


def test_images_with_channels_are_refused():
    """Nothing is scored that was not asked for."""
    volume = from_array(np.zeros((2, 4, 4, 4), np.float32), spacing=(1, 1, 1), dims="czyx")
    with pytest.raises(DataError, match="truth must have one time and one channel; got axes c of 2"):
        scores.image_scores("a", volume, volume)


def test_cells_are_scored_with_intervals(tmp_path):
    """Counts by hand: of four marks three are detected, and one detection is false; the threshold drops it."""
    marks = pd.DataFrame({"X": [0.0, 1.0, 2.0, 3.0], "Y": 0.0, "Z": 0.0})
    detected = pd.DataFrame({"X": [0.001, 1.0, 2.0, 8.0], "Y": 0.0, "Z": 0.0, "score": [0.9, 0.8, 0.7, 0.2]})
    write_points(marks, tmp_path / "marks.csv")
    write_points(detected, tmp_path / "cells.csv")
    words = ("score", "cells", tmp_path / "marks.csv", tmp_path / "cells.csv", "-o", tmp_path / "s.csv", "--overwrite")
    words = (*words, "--radius-um", "10", "--json")
    (row,) = json.loads(run(*words)[1])["scores"]
    assert (row["true_positives"], row["false_positives"], row["misses"]) == (3, 1, 1)
    assert (row["precision"], row["recall"], row["f1"], row["count_error"]) == (0.75, 0.75, 0.75, 0)
    # Wilson's interval of 3 of 4, with z = 1.959964.
    assert (row["recall_low"], row["recall_high"]) == pytest.approx((0.3006418, 0.9544127), abs=1e-6)
    (row,) = json.loads(run(*words, "--min-score", "0.5")[1])["scores"]
    assert (row["precision"], row["detections"]) == (1.0, 3)
    write_points(marks.rename(columns={"X": "z", "Y": "y", "Z": "x"}), tmp_path / "voxels.csv")
    code, _, error = run("score", "cells", tmp_path / "voxels.csv", tmp_path / "cells.csv", *words[4:])
    assert (code, "must have world points X, Y, Z" in error, "(--volume)" in error) == (2, True, True)


def test_cases_of_cells_are_found_in_folders(tmp_path):
    """Tables of one name."""
    for folder in ("marks", "cells"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b"):
            write_points(pd.DataFrame({"X": [0.0, 1.0], "Y": 0.0, "Z": 0.0}), tmp_path / folder / f"{case}.csv")
    words = ("score", "cells", tmp_path / "marks", tmp_path / "cells", "-o", tmp_path / "s.csv", "--radius-um", "1")
    code, printed, _ = run(*words)
    assert code == 0
    assert pd.read_csv(tmp_path / "s.csv").f1.tolist() == [1.0, 1.0]
    assert "1.000 [1.000, 1.000]" in printed
