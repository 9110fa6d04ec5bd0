"""Scores of labels against masks of known shape."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mrhdata.errors import DataError
from mrhdata.metrics.overlap import accuracy, agreement, hausdorff95, overlap, pooled, roi_table

LABELS = arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


@given(LABELS, LABELS)
def test_dice_and_precision_by_counting(truth, found):
    """Against sets of voxels."""
    table = overlap(truth, found, [1, 2, 3])
    for row in table.itertuples():
        a, b = (set(np.flatnonzero(v == row.label)) for v in (truth, found))
        assert row.dice == pytest.approx(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
        assert np.isnan(row.precision) if not b else row.precision == pytest.approx(len(a & b) / len(b))
        assert row.volume_mm3 - row.true_volume_mm3 == len(b) - len(a)


@given(LABELS)
def test_the_truth_itself_is_perfect(truth):
    """Whatever it holds."""
    table = overlap(truth, truth, [1, 2, 3])
    assert (table.dice == 1).all()
    assert set(table.hd95_mm.dropna()) <= {0.0}
    assert accuracy(truth, truth) == 1


def test_surfaces_of_shifted_boxes_are_as_far_as_the_shift():
    """In millimetres along an anisotropic axis; every voxel of the two faces is that far."""
    a, b = np.zeros((2, 20, 12, 12), bool)
    a[5:10, 3:9, 3:9] = b[7:12, 3:9, 3:9] = True
    assert hausdorff95(a, b, (3.0, 1.0, 1.0)) == pytest.approx(6.0)
    assert hausdorff95(a, b, (3.0, 1.0, 1.0)) == hausdorff95(b, a, (3.0, 1.0, 1.0))
    assert np.isnan(hausdorff95(a, np.zeros_like(a)))


def test_a_label_that_was_not_found_counts():
    """A mean over subjects does not leave out those where nothing was found."""
    table = pd.DataFrame({"subject": list("aabb"), "label": [1, 2, 1, 2], "dice": [0.8, 0.6, 0.0, np.nan]})
    found = pooled(table, "dice")
    assert (found[1].estimate, found[2].estimate) == (0.4, 0.3)
    assert found[1].low < 0.4 < found[1].high
    assert pooled(table, "dice", by=None)["all"].estimate == pytest.approx(0.35)


def test_a_label_that_was_not_found_has_no_distance():
    """It is not at 0 mm, which would be perfect."""
    table = pd.DataFrame({"subject": list("ab"), "label": [1, 1], "hd95_mm": [4.0, np.nan]})
    with pytest.raises(DataError, match="1 of 2 rows have no hd95_mm"):
        pooled(table, "hd95_mm")
    assert pooled(table.fillna(10.0), "hd95_mm")[1].estimate == 7.0


def test_values_within_labels():
    """Population standard deviation and volumes in mm3."""
    values, labels = np.array([1.0, 3.0, 5.0, 100.0]), np.array([2, 2, 3, 0])
    table = roi_table(values, labels, {2: "RN left", 3: "RN right", 4: "SN left"}, voxel_mm3=3.0)
    assert table["mean"].tolist()[:2] == [2.0, 5.0]
    assert table.sd.tolist()[:2] == [1.0, 0.0]
    assert table.volume_mm3.tolist() == [6.0, 3.0, 0.0]
    assert table.iloc[2].isna().sum() == 3


def test_limits_of_agreement():
    """Mean difference and 1.96 standard deviations."""
    found = agreement([1.0, 2.0, 3.0, 4.0], [1.1, 1.9, 3.2, 4.2])
    differences = np.array([0.1, -0.1, 0.2, 0.2])
    assert found.bias == pytest.approx(differences.mean())
    assert found.high - found.bias == pytest.approx(1.96 * differences.std(ddof=1))


def test_shapes_must_agree():
    """One sentence."""
    with pytest.raises(DataError, match="resample"):
        overlap(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)), [1])
    with pytest.raises(DataError, match="resample"):
        roi_table(np.zeros(3), np.zeros(4), {1: "a"})
