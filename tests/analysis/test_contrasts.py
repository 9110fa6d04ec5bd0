"""Sensitivity of contrasts, on tables and volumes, and the published figures."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

import mrhdata
from mrhdata.analysis.contrasts import Fit, row_blocks, sensitivity, voxel_table
from mrhdata.errors import DataError, GridError
from mrhdata.metrics import bootstrap
from mrhdata.viz.report import readable, sensitivity_sections
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


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
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(len(table), 50), train_mask=train)
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
    second = sensitivity(table.drop(columns=["histology", "block"]), table["histology"], threshold=0.3, blocks=4)
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
    first = sensitivity(contrasts, histology, threshold=0.5, train_mask=train, blocks=4)
    second = sensitivity(contrasts, changed, threshold=0.5, train_mask=train, blocks=4)
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
        contrasts, histology, threshold=0.7, positive_side="above", fits=[], predictions={"biased": biased}, blocks=4
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


def correlated(shape=(30, 34, 32), width=1.5, seed=0):
    """A volume maker: smooth random fields of unit spread on one grid."""
    rng = np.random.default_rng(seed)

    def field():
        values = gaussian_filter(rng.standard_normal(shape), width)
        return from_array(values / values.std(), spacing=(1, 1, 1))

    return field


def three_kinds(seed):
    """A contrast with nothing, one with some, its copy, and one with all of the histology; scored on half a brain."""
    field = correlated(seed=seed)
    truth, part = field(), field()
    some = (truth + 0.8 * part).assign_attrs(truth.attrs)
    contrasts = {
        "nothing": field(),
        "some": some,
        "copy": (100 - 3 * some).assign_attrs(truth.attrs),
        "all": (truth + 0.05 * field()).assign_attrs(truth.attrs),
    }
    train = (truth * 0).assign_attrs(truth.attrs)
    train[{"z": slice(0, 13)}] = 1
    inside = (train * 0 + 1).assign_attrs(truth.attrs)
    inside[{"z": slice(13, 17)}] = 0
    return sensitivity(contrasts, truth, threshold="20%", train_mask=train, mask=inside, fits=[])


def test_a_contrast_with_nothing_a_copy_and_one_with_all():
    """AUC of a half and nothing added, within their intervals; a copy adds nothing; nearly perfect."""
    results = [three_kinds(seed) for seed in range(4)]
    tables = [result.table.set_index("contrast") for result in results]
    # Of 95 % intervals one of four may fail.
    assert sum(t.auc_low["nothing"] <= 0.5 <= t.auc_high["nothing"] for t in tables) >= 3
    assert sum(t.adds_low["nothing"] <= 0 <= t.adds_high["nothing"] for t in tables) >= 3
    for result, rows in zip(results, tables, strict=True):
        assert rows.adds["copy"] == rows.adds["some"] == 0
        assert rows.auc["copy"] == pytest.approx(rows.auc["some"], abs=1e-9)
        assert rows.auc["all"] > 0.99
        assert rows.information["all"] > rows.information["some"] > rows.information["nothing"]
        assert rows.sensitivity["all"] > 0.9 > 0.3 > rows.sensitivity["nothing"]
        compared = result.compare("all").set_index("contrast")
        assert (compared.p_adjusted >= compared.p).all()
        assert (compared.low > 0).all()
        assert compared.p_adjusted["nothing"] < 0.05
        assert result.compare("some").set_index("contrast").p["copy"] == 1


def test_blocks_follow_the_measured_correlation():
    """Smoother brains get longer blocks; few are never chosen."""
    edges = []
    for width in (1.0, 2.0):
        field = correlated(width=width)
        truth = field()
        found = sensitivity({"a": (truth + field()).assign_attrs(truth.attrs)}, truth, threshold=0.0, fits=[])
        edges.append(found.block_voxels)
        assert found.blocks >= 20
    assert edges[0] < edges[1]


def test_thresholds_are_of_the_training_rows():
    """Percentiles and Otsu's are found without the rows that are scored; AUC is shown over all."""
    table = pd.DataFrame({"a": np.r_[np.arange(100.0), np.arange(1000.0, 1100)]})
    truth, train = table.a.to_numpy(), np.arange(200) % 2 == 0
    blocks = row_blocks(200, 10)
    at_fifth = sensitivity(table, truth, threshold="25%", train_mask=train, blocks=blocks, fits=[])
    assert at_fifth.threshold == np.percentile(truth[train], 25)
    otsu = sensitivity(table, truth, threshold="otsu", train_mask=train, blocks=blocks, fits=[])
    assert 98 < otsu.threshold < 1000
    assert set(otsu.thresholds.percentile) == set(range(5, 100, 5))
    assert (otsu.thresholds.auc == 1).all()
    with pytest.raises(DataError, match="'otsu' or a percentile"):
        sensitivity(table, truth, threshold="mean", blocks=blocks)


def test_cuts_come_from_training_rows():
    """The best cut of the training rows, applied to others whose best one is elsewhere."""
    value = np.r_[np.arange(100.0), np.arange(100.0)]
    truth = np.r_[np.arange(100) >= 50, np.arange(100) >= 80].astype(float)
    train = np.arange(200) < 100
    result = sensitivity(
        pd.DataFrame({"other": np.cos(value)}), truth, threshold=0.5, positive_side="above", train_mask=train, fits=[],
        predictions={"p": value}, blocks=row_blocks(200, 5),
    )  # fmt: skip
    row = result.table.set_index("contrast").loc["p"]
    assert row.cut == 50
    assert row.cut_sensitivity == 1
    assert row.cut_specificity == pytest.approx(50 / 80)
    # Of 20 blocks of 5 rows 6 are called wrongly, in whole: the interval of a share of independent blocks.
    wilson = bootstrap.wilson_interval(10, 16)
    assert row.cut_specificity_low == pytest.approx(wilson.low, abs=0.04)
    assert row.cut_specificity_high == pytest.approx(wilson.high, abs=0.04)
    assert row.cut_sensitivity_low == row.cut_sensitivity_high == 1


def test_fits_that_have_seen_what_is_scored_say_so():
    """In the table, its readable form, notebooks and the report; not predictions, nor where voxels were set apart."""
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    table = pd.DataFrame({"a": truth + rng.random(400)})
    given = {"threshold": 0.4, "blocks": row_blocks(400, 20), "predictions": {"map": truth + rng.random(400) / 2}}
    everywhere = sensitivity(table, truth, **given)
    apart = sensitivity(table, truth, **given, train_mask=np.arange(400) < 200)
    seen = everywhere.table.set_index("contrast").in_sample
    assert seen.to_dict() == {"map": False, "a": True, "linear": True, "quadratic": True}
    assert set(everywhere.table.model) == {"prediction", "single", "linear", "quadratic"}
    models = set(readable(everywhere).model)
    assert models == {"prediction", "single, in-sample", "linear, in-sample", "quadratic, in-sample"}
    assert "linear, in-sample" in everywhere._repr_html_()
    text = " ".join(sensitivity_sections("AF", everywhere)[0].text)
    assert "fitted on the very voxels" in text
    assert "Youden index on the voxels that are scored." in text
    assert "training voxels," not in text
    # A prediction alone has seen nothing, but its cut is of what is scored.
    alone = sensitivity(pd.DataFrame(index=table.index), truth, **given, fits=[])
    (text,) = sensitivity_sections("AF", alone)[0].text
    assert "Youden index on the voxels that are scored." in text
    assert not apart.table.in_sample.any()
    text = " ".join(sensitivity_sections("AF", apart)[0].text)
    assert "in-sample" not in text + apart._repr_html_() + str(readable(apart))
    assert "Youden index on training voxels, none of which are scored." in text


def test_a_result_prints_in_a_few_lines():
    """The best contrasts with their intervals and what was scored, not the arrays of the curves."""
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    table = pd.DataFrame({f"c{i}": truth + rng.normal(0, 0.1 + 0.1 * i, 400) for i in range(9)})
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(400, 20), fits=[])
    title, head, first, *_, note = lines = str(result).splitlines()
    assert title == f"{result.positives} of 400 voxels are positive: histology below 0.4"
    assert head.split() == ["contrast", "model", "AUC", "R2", "adds"]
    best = result.table.iloc[0]
    assert f"{best.contrast} single, in-sample {best.auc:.3f} [{best.auc_low:.3f}" in re.sub(" +", " ", first)
    assert note == "95% intervals over 20 blocks; 1 more in .table"
    assert len(lines) == 11
    assert max(map(len, lines)) < 120


def test_regions():
    """AUC within each label but 0; a region of one class has none."""
    contrasts, histology = phantom_volumes()
    labels = histology.copy(data=np.zeros(histology.shape, np.uint8))
    labels[{"y": slice(0, 8)}] = 3
    labels[{"y": slice(8, 14)}] = 7
    labels = mrhdata.volume.describe(labels, kind="labels")
    histology = histology.copy(data=np.where(labels == 7, 0.9, histology))
    found = sensitivity(contrasts, histology, threshold=0.3, regions=labels, blocks=4, fits=[]).regions
    assert set(found.region) == {3, 7}
    three = found[(found.region == 3) & (found.contrast == "good")].iloc[0]
    alone = sensitivity(
        contrasts, histology, threshold=0.3, blocks=4, fits=[], mask=(labels == 3).assign_attrs(labels.attrs)
    )
    # The line is fitted elsewhere, but its direction is the same: so are the ranks.
    assert three.auc == pytest.approx(alone.table.set_index("contrast").auc["good"])
    assert three.auc_low < three.auc < three.auc_high
    assert found[found.region == 7].auc.isna().all()


def test_regions_with_a_handful_of_one_class_have_no_auc():
    """19 positives, or 19 that are not, rank perfectly by luck; 20 of each are enough. The page says why."""
    region = np.repeat([1, 2, 3], 400)
    truth = np.ones(1200)
    # Spread over the blocks of each region.
    truth[np.arange(19) * 20], truth[400:800], truth[400 + np.arange(19) * 20] = 0, 0, 1
    truth[800 + np.arange(20) * 20] = 0
    table = pd.DataFrame({"a": truth + np.linspace(0, 0.1, 1200)})
    result = sensitivity(table, truth, threshold=0.5, blocks=row_blocks(1200, 20), regions=region, fits=[])
    found = result.regions.set_index("region")
    assert found.positives.to_dict() == {1: 19, 2: 381, 3: 20}
    assert found[["auc", "auc_low", "auc_high"]].loc[[1, 2]].isna().all(axis=None)
    assert found.auc[3] == 1
    page = sensitivity_sections("AF", result)[-1]
    assert page.table["a"].tolist() == ["", "", "1.000 [1.000, 1.000]"]
    assert "fewer than 20 of its voxels are positive" in page.text[-1]


def test_large_volumes_are_scored_on_a_lattice():
    """About as many voxels as asked for, spread over all of the mask; scores hardly differ."""
    field = correlated((60, 60, 60), 2)
    truth = field().chunk(20)
    contrast = (truth + 0.5 * field()).assign_attrs(truth.attrs)
    inside = (abs(truth) < 9).assign_attrs(truth.attrs)
    full = sensitivity({"a": contrast}, truth, threshold="20%", fits=[], mask=inside)
    thin = sensitivity({"a": contrast}, truth, threshold="20%", fits=[], mask=inside, max_voxels=10_000)
    assert 5_000 < thin.rows <= 10_000 < full.rows == 60**3
    assert thin.table.auc[0] == pytest.approx(full.table.auc[0], abs=0.02)
    assert thin.block_voxels == pytest.approx(full.block_voxels, abs=3)
    table = voxel_table({"a": truth}, inside, most=10_000)
    assert (table[["z", "y", "x"]] % 3 == 0).all(axis=None)
    np.testing.assert_array_equal(table.a, truth.values[*table[["z", "y", "x"]].to_numpy().T])


class TestRefusals:
    """Bad input, one sentence each."""

    def test_volumes(self):
        """Grids, spaces, NaN, empty masks, thresholds without a class."""
        contrasts, histology = phantom_volumes()
        named = r"'truth' does not lie on the grid of 'good': shapes differ .* mrhdata resample"
        with pytest.raises(GridError, match=named):
            sensitivity(contrasts, histology.isel(z=slice(5)), threshold=0.3)
        with pytest.raises(GridError, match="'scanner' but"):
            sensitivity(contrasts, mrhdata.volume.describe(histology, space="CCFv3"), threshold=0.3)
        with pytest.raises(DataError, match=r"not finite among 2304: \{'good': 2304\}"):
            sensitivity({"good": contrasts["good"] * np.nan}, histology, threshold=0.3)
        for train, covered in ((histology * 0, 0), (histology * 0 + 1, 2304)):
            kept = train.assign_attrs(histology.attrs)
            with pytest.raises(DataError, match=f"train covers {covered} of 2304"):
                sensitivity(contrasts, histology, threshold=0.3, train_mask=kept)
        with pytest.raises(DataError, match=r"may not be called \['z'\]"):
            sensitivity({"z": histology}, histology, threshold=0.3)
        with pytest.raises(DataError, match="mask is empty"):
            sensitivity(contrasts, histology, threshold=0.3, mask=histology * 0)
        with pytest.raises(DataError, match="0 of 2304 are positive"):
            sensitivity(contrasts, histology, threshold=-1)
        with pytest.raises(DataError, match="'below' or 'above'"):
            sensitivity(contrasts, histology, threshold=0.3, positive_side="low")

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


@pytest.mark.parametrize("what", ["train", "regions"])
def test_parts_and_regions_are_whole_numbers(what):
    """NaN is neither training nor a region of its own."""
    rng = np.random.default_rng(0)
    truth = from_array(rng.random((8, 8, 8)), spacing=(1, 1, 1), name="truth")
    marks = truth.copy(data=(np.indices((8, 8, 8))[0] > 3).astype(np.float64))
    marks[:, :2] = np.nan
    with pytest.raises(DataError, match=f"128 of 512 values of {what} are NaN"):
        mrhdata.sensitivity({"a": truth + 1}, truth, threshold=0.5, positive_side="above", **{what: marks})


def test_places_of_a_table_may_be_written_as_floats():
    """As CSV files give them back where a column has gaps elsewhere."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices((8, 8, 8)).reshape(3, -1)
    table = pd.DataFrame({"t2": rng.random(512), "z": z, "y": y, "x": x})
    truth = table["t2"] + rng.random(512)
    of_ints = mrhdata.sensitivity(table, truth, threshold=1.0, positive_side="above")
    of_floats = mrhdata.sensitivity(table.astype(float), truth, threshold=1.0, positive_side="above")
    pd.testing.assert_frame_equal(of_ints.table, of_floats.table)
    with pytest.raises(DataError, match="512 of 512 values of z"):
        mrhdata.sensitivity(table.astype(float).assign(z=z + 0.5), truth, threshold=1.0, positive_side="above")
