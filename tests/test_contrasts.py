"""Sensitivity of contrasts, on tables and volumes, and the published figures."""

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.contrasts import Fit, row_blocks, sensitivity, voxel_table
from mrhdata.errors import DataError, GridError
from mrhdata.volume import from_array

from .conftest import oblique_affine


@pytest.fixture(scope="module")
def pairs(shared):
    """The published paired voxels: five MRI parameters, and autofluorescence."""
    table = pd.read_csv(shared / "mrhnet" / "paired_voxels.csv.gz")
    return table.drop(columns="AF"), table["AF"].to_numpy()


def test_published_fits_to_the_printed_digit(pairs):
    """All rows: R2 and RMSE (with n - p) of the authors' linear and quadratic models."""
    table, truth = pairs
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(len(table), 50)).table.set_index("contrast")
    assert f"{result.r2['linear']:.4f}" == "0.4200"
    assert f"{result.rmse['linear']:.5f}" == "0.17127"
    assert f"{result.r2['quadratic']:.4f}" == "0.5582"
    assert f"{result.rmse['quadratic']:.5f}" == "0.14952"


def test_single_contrasts_on_the_last_fifth(pairs):
    """The measured floors, each inside its own interval."""
    table, truth = pairs
    train = np.arange(len(table)) < int(0.8 * len(table))
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(len(table), 50), train=train)
    found = result.table.set_index("contrast")
    expected = {"MTR": 0.650, "T2": 0.659, "MD": 0.732, "MK": 0.784, "FA": 0.794, "linear": 0.835, "quadratic": 0.901}
    assert {name: found.auc[name] for name in expected} == pytest.approx(expected, abs=6e-4)
    assert round(found.r2["quadratic"], 3) == 0.523
    assert (found.auc_low < found.auc).all()
    assert (found.auc < found.auc_high).all()
    assert result.difference("quadratic", "FA").low > 0


def phantom_volumes():
    """A contrast that follows histology, one that does not, and a label of halves."""
    rng = np.random.default_rng(0)
    histology = rng.random((12, 16, 12))
    affine = oblique_affine()

    def placed(values):
        return from_array(values, affine=affine)

    good = placed(500 - 100 * histology + rng.normal(0, 10, histology.shape))
    return {"good": good, "poor": placed(rng.random(histology.shape))}, placed(histology)


def test_volumes_and_their_table_score_alike():
    """Volumes are rows of voxels with cubic blocks."""
    contrasts, histology = phantom_volumes()
    first = sensitivity(contrasts, histology, threshold=0.3, blocks=4)
    table = voxel_table({**contrasts, "histology": histology}, block_voxels=4)
    second = sensitivity(table.drop(columns="histology"), table["histology"], threshold=0.3)
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.blocks == 3 * 4 * 3
    assert first.table.contrast.iloc[-1] == "poor"
    assert first.table.set_index("contrast").auc["good"] > 0.9


def test_fits_never_see_the_test_rows():
    """Changing the histology of test rows changes no prediction: only the training rows are fitted."""
    contrasts, histology = phantom_volumes()
    train = histology.copy(data=np.zeros(histology.shape))
    train[{"y": slice(0, 8)}] = 1
    changed = histology.copy(data=np.where(train == 1, histology, 1 - histology))
    first = sensitivity(contrasts, histology, threshold=0.5, train=train, blocks=4)
    second = sensitivity(contrasts, changed, threshold=0.5, train=train, blocks=4)
    # Turned round on the test rows only, ranks are turned round too: nothing was refitted.
    a, b = first.table.set_index("contrast").auc, second.table.set_index("contrast").auc
    np.testing.assert_allclose(a["good"], 1 - b["good"], atol=1e-9)
    assert first.rows == int((train == 0).sum())


def test_direction_comes_from_training_rows():
    """A contrast that falls with histology scores as well as one that rises."""
    contrasts, histology = phantom_volumes()
    both = {"falls": contrasts["good"], "rises": -contrasts["good"] + 1000}
    both["rises"] = both["rises"].assign_attrs(contrasts["good"].attrs)
    result = sensitivity(both, histology, threshold=0.3, blocks=4, fits=[]).table
    assert result.auc.nunique() == 1


def test_positive_above_and_predictions_as_they_are():
    """A prediction is scored in its own units: a biased one loses R2, not AUC."""
    contrasts, histology = phantom_volumes()
    biased = histology + 10
    biased = biased.assign_attrs(histology.attrs)
    result = sensitivity(
        contrasts, histology, threshold=0.7, positive="above", fits=[], predictions={"biased": biased}, blocks=4
    )
    row = result.table.set_index("contrast").loc["biased"]
    assert row.auc == 1
    assert row.r2 < -100


def test_polynomials_have_all_terms():
    """A product of two contrasts is found by the quadratic fit alone; a cube by the cubic."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    truth = table.a * table.b
    fits = [Fit("linear", 1), Fit("quadratic", 2)]
    found = sensitivity(table, truth, threshold=0, fits=fits, blocks=row_blocks(400, 20)).table.set_index("contrast")
    assert found.r2["quadratic"] == pytest.approx(1)
    assert found.r2["linear"] < 0.1
    cubic = sensitivity(table, table.a**3, threshold=0, fits=[Fit("cubic", 3, ["a"])], blocks=row_blocks(400, 20))
    assert cubic.table.set_index("contrast").r2["cubic"] == pytest.approx(1)


class TestRefusals:
    """Bad input, one sentence each."""

    def test_volumes(self):
        """Grids, spaces, NaN, empty masks, thresholds without a class."""
        contrasts, histology = phantom_volumes()
        with pytest.raises(GridError, match="shapes differ"):
            sensitivity(contrasts, histology.isel(z=slice(5)), threshold=0.3)
        with pytest.raises(GridError, match="'scanner' but"):
            sensitivity(contrasts, mrhdata.volume.describe(histology, space="CCFv3"), threshold=0.3)
        with pytest.raises(DataError, match=r"not finite among 2304: \{'good': 2304\}"):
            sensitivity({"good": contrasts["good"] * np.nan}, histology, threshold=0.3)
        for train, covered in ((histology * 0, 0), (histology * 0 + 1, 2304)):
            kept = train.assign_attrs(histology.attrs)
            with pytest.raises(DataError, match=f"train covers {covered} of 2304"):
                sensitivity(contrasts, histology, threshold=0.3, train=kept)
        with pytest.raises(DataError, match=r"may not be called \['z'\]"):
            sensitivity({"z": histology}, histology, threshold=0.3)
        with pytest.raises(DataError, match="mask is empty"):
            sensitivity(contrasts, histology, threshold=0.3, where=histology * 0)
        with pytest.raises(DataError, match="0 of 2304 are positive"):
            sensitivity(contrasts, histology, threshold=-1)
        with pytest.raises(DataError, match="'below' or 'above'"):
            sensitivity(contrasts, histology, threshold=0.3, positive="low")

    def test_tables(self):
        """Blocks, lengths, names, too few rows."""
        table = pd.DataFrame({"a": np.arange(10.0)})
        with pytest.raises(GridError, match="needs blocks"):
            sensitivity(table, np.arange(10.0), threshold=3)
        with pytest.raises(GridError, match=r"histology has shape \(9,\) but the table has 10 rows"):
            sensitivity(table, np.arange(9.0), threshold=3, blocks=row_blocks(10, 2))
        with pytest.raises(DataError, match="share a name"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[Fit("a", 1)])
        with pytest.raises(DataError, match="cannot fit 21 parameters"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[Fit("p", 20)])
        with pytest.raises(DataError, match="nothing called 'x'"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[]).difference("a", "x")
