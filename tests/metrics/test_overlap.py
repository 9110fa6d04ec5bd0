"""Segmentation scores against counts of voxels and masks of known shape."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mrhdata.errors import DataError
from mrhdata.metrics.overlap import accuracy, agreement, hausdorff95, overlap, pool_over_subjects, roi_table

LABELS = arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


@given(LABELS, LABELS)
def test_dice_and_precision_agree_with_sets_of_voxels(truth, prediction):
    """Each label has a row whose scores follow from the sets of its voxels."""
    table = overlap(truth, prediction, [1, 2, 3])
    assert len(table) == 3
    for row in table.itertuples():
        a, b = (set(np.flatnonzero(v == row.label)) for v in (truth, prediction))
        assert row.dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
        assert np.isnan(row.precision) if not b else row.precision == pytest.approx(len(a & b) / len(b))
        assert row.volume_mm3 - row.true_volume_mm3 == len(b) - len(a)


@given(LABELS)
def test_scores_of_the_truth_itself_are_perfect(truth):
    """Dice is 1 also for labels without voxels."""
    table = overlap(truth, truth, [1, 2, 3])
    assert (table.dice == 1).all()
    assert set(table.hd95_mm.dropna()) <= {0.0}
    assert accuracy(truth, truth) == 1


def test_hausdorff95_of_shifted_boxes_is_the_shift():
    """The shift is along an anisotropic axis, in mm; all voxels of the two faces are that far apart."""
    a, b = np.zeros((2, 20, 12, 12), bool)
    a[5:10, 3:9, 3:9] = b[7:12, 3:9, 3:9] = True
    assert hausdorff95(a, b, (3.0, 1.0, 1.0)) == pytest.approx(6.0)
    assert hausdorff95(a, b, (3.0, 1.0, 1.0)) == hausdorff95(b, a, (3.0, 1.0, 1.0))
    assert np.isnan(hausdorff95(a, np.zeros_like(a)))


def test_pooled_counts_a_missing_dice_as_0():
    """The mean includes subjects whose label was not found."""
    table = pd.DataFrame({"subject": list("aabb"), "label": [1, 2, 1, 2], "dice": [0.8, 0.6, 0.0, np.nan]})
    intervals = pool_over_subjects(table, "dice")
    assert (intervals[1].estimate, intervals[2].estimate) == (0.4, 0.3)
    assert intervals[1].low < 0.4 < intervals[1].high
    assert pool_over_subjects(table, "dice", by=None)["all"].estimate == pytest.approx(0.35)


def test_pooled_rejects_a_missing_distance():
    """A distance of 0 mm would be perfect, so a missing distance is not replaced by 0."""
    table = pd.DataFrame({"subject": list("ab"), "label": [1, 1], "hd95_mm": [4.0, np.nan]})
    with pytest.raises(DataError, match="1 of 2 rows have no hd95_mm"):
        pool_over_subjects(table, "hd95_mm")
    assert pool_over_subjects(table.fillna(10.0), "hd95_mm")[1].estimate == 7.0


def test_roi_table_of_known_values():
    """The table has means, population standard deviations and volumes in mm3; absent labels are NaN."""
    values, labels = np.array([1.0, 3.0, 5.0, 100.0]), np.array([2, 2, 3, 0])
    table = roi_table(values, labels, {2: "RN left", 3: "RN right", 4: "SN left"}, voxel_mm3=3.0)
    assert table["mean"].tolist()[:2] == [2.0, 5.0]
    assert table.sd.tolist()[:2] == [1.0, 0.0]
    assert table.volume_mm3.tolist() == [6.0, 3.0, 0.0]
    assert table.iloc[2].isna().sum() == 3


def test_agreement_is_mean_difference_and_limits():
    """The limits are 1.96 sample standard deviations from the mean difference."""
    result = agreement([1.0, 2.0, 3.0, 4.0], [1.1, 1.9, 3.2, 4.2])
    differences = np.array([0.1, -0.1, 0.2, 0.2])
    assert result.bias == pytest.approx(differences.mean())
    assert result.high - result.bias == pytest.approx(1.96 * differences.std(ddof=1))


def test_segmentation_scores_reject_different_shapes():
    """The error says to resample one volume to the other."""
    with pytest.raises(DataError, match="resample"):
        overlap(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)), [1])
    with pytest.raises(DataError, match="resample"):
        roi_table(np.zeros(3), np.zeros(4), {1: "a"})
