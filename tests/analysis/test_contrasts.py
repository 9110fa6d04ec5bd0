"""Sensitivity of contrasts on tables and volumes, and the published numbers."""

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
def published_voxels(shared):
    """Return the published paired voxels: five MRI parameters, and autofluorescence."""
    table = pd.read_csv(shared / "mrhnet" / "paired_voxels.csv.gz")
    return table.drop(columns="AF"), table["AF"].to_numpy()


def test_published_fits_to_the_printed_digit(published_voxels):
    """R2 and RMSE (with n - p) of the authors' linear and quadratic models agree on all rows."""
    table, truth = published_voxels
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(len(table), 50)).table.set_index("contrast")
    assert f"{result.r2['linear']:.4f}" == "0.4200"
    assert f"{result.rmse['linear']:.5f}" == "0.17127"
    assert f"{result.r2['quadratic']:.4f}" == "0.5582"
    assert f"{result.rmse['quadratic']:.5f}" == "0.14952"


def test_single_contrasts_on_the_last_fifth(published_voxels):
    """AUC and R2 have known values, each inside its own interval."""
    table, truth = published_voxels
    train = np.arange(len(table)) < int(0.8 * len(table))
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(len(table), 50), train_mask=train)
    rows = result.table.set_index("contrast")
    expected = {"MTR": 0.650, "T2": 0.659, "MD": 0.732, "MK": 0.784, "FA": 0.794, "linear": 0.835, "quadratic": 0.901}
    assert {name: rows.auc[name] for name in expected} == pytest.approx(expected, abs=6e-4)
    assert round(rows.r2["quadratic"], 3) == 0.523
    assert (rows.auc_low < rows.auc).all()
    assert (rows.auc < rows.auc_high).all()
    assert result.difference("quadratic", "FA").low > 0


def phantom_volumes():
    """Return a contrast that follows histology, one that does not, and the histology."""
    rng = np.random.default_rng(0)
    histology = rng.random((12, 16, 12))
    affine = oblique_affine()

    def volume(values):
        return from_array(values, affine=affine)

    good = volume(500 - 100 * histology + rng.normal(0, 10, histology.shape))
    return {"good": good, "poor": volume(rng.random(histology.shape))}, volume(histology)


def test_volumes_and_their_voxel_table_have_equal_scores():
    """Volumes are read as rows of voxels in cubic blocks."""
    contrasts, histology = phantom_volumes()
    first = sensitivity(contrasts, histology, threshold=0.3, blocks=4)
    table = voxel_table({**contrasts, "histology": histology}, block_voxels=4)
    second = sensitivity(table.drop(columns=["histology", "block"]), table["histology"], threshold=0.3, blocks=4)
    pd.testing.assert_frame_equal(first.table, second.table)
    assert first.blocks == 3 * 4 * 3
    assert first.table.contrast.iloc[-1] == "poor"
    assert first.table.set_index("contrast").auc["good"] > 0.9


def test_fits_never_see_the_test_rows():
    """Changes of the histology in test rows change no prediction, because fits use training rows only."""
    contrasts, histology = phantom_volumes()
    train = histology.copy(data=np.zeros(histology.shape))
    train[{"y": slice(0, 8)}] = 1
    changed = histology.copy(data=np.where(train == 1, histology, 1 - histology))
    first = sensitivity(contrasts, histology, threshold=0.5, train_mask=train, blocks=4)
    second = sensitivity(contrasts, changed, threshold=0.5, train_mask=train, blocks=4)
    # The histology is inverted in test rows only. Without a refit the AUC is inverted too.
    a, b = first.table.set_index("contrast").auc, second.table.set_index("contrast").auc
    np.testing.assert_allclose(a["good"], 1 - b["good"], atol=1e-9)
    assert first.rows == int((train == 0).sum())


def test_sign_of_a_contrast_comes_from_training_rows():
    """A contrast that falls with histology scores as well as one that rises."""
    contrasts, histology = phantom_volumes()
    both = {"falls": contrasts["good"], "rises": -contrasts["good"] + 1000}
    both["rises"] = both["rises"].assign_attrs(contrasts["good"].attrs)
    result = sensitivity(both, histology, threshold=0.3, blocks=4, fits=[]).table
    assert result.auc.nunique() == 1


def test_predictions_are_scored_without_a_fit():
    """Bias lowers the R2 of a prediction, not its AUC; here high histology is positive."""
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
    """The quadratic fit explains a product of two contrasts, the linear fit does not; the cubic fit explains a cube."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    truth = table.a * table.b
    fits = [Fit("linear", 1), Fit("quadratic", 2)]
    rows = sensitivity(table, truth, threshold=0, fits=fits, blocks=row_blocks(400, 20)).table.set_index("contrast")
    assert rows.r2["quadratic"] == pytest.approx(1)
    assert rows.r2["linear"] < 0.1
    cubic = sensitivity(table, table.a**3, threshold=0, fits=[Fit("cubic", 3, ["a"])], blocks=row_blocks(400, 20))
    assert cubic.table.set_index("contrast").r2["cubic"] == pytest.approx(1)


def smooth_fields(shape=(30, 34, 32), width=1.5, seed=0):
    """Return a function that makes smooth random volumes of unit SD on one grid."""
    rng = np.random.default_rng(seed)

    def field():
        values = gaussian_filter(rng.standard_normal(shape), width)
        return from_array(values / values.std(), spacing=(1, 1, 1))

    return field


def score_informative_contrasts(seed):
    """Score contrasts with no, some, the same and nearly all information about the histology on half a brain."""
    field = smooth_fields(seed=seed)
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


def test_scores_of_uninformative_copied_and_perfect_contrasts():
    """Intervals of an uninformative contrast cover AUC 0.5 and partial correlation 0; that of a copy is 0."""
    results = [score_informative_contrasts(seed) for seed in range(4)]
    tables = [result.table.set_index("contrast") for result in results]
    # One of four 95 % intervals may miss the truth.
    assert sum(t.auc_low["nothing"] <= 0.5 <= t.auc_high["nothing"] for t in tables) >= 3
    assert sum(t.partial_correlation_low["nothing"] <= 0 <= t.partial_correlation_high["nothing"] for t in tables) >= 3
    for result, rows in zip(results, tables, strict=True):
        assert rows.partial_correlation["copy"] == rows.partial_correlation["some"] == 0
        assert rows.auc["copy"] == pytest.approx(rows.auc["some"], abs=1e-9)
        assert rows.auc["all"] > 0.99
        assert rows.information["all"] > rows.information["some"] > rows.information["nothing"]
        assert rows.sensitivity["all"] > 0.9 > 0.3 > rows.sensitivity["nothing"]
        compared = result.compare("all").set_index("contrast")
        assert (compared.p_adjusted >= compared.p).all()
        assert (compared.low > 0).all()
        assert compared.p_adjusted["nothing"] < 0.05
        assert result.compare("some").set_index("contrast").p["copy"] == 1


def test_blocks_follow_the_measured_correlation_length():
    """Smoother brains get longer blocks, but never fewer than 20 of them."""
    edges = []
    for width in (1.0, 2.0):
        field = smooth_fields(width=width)
        truth = field()
        result = sensitivity({"a": (truth + field()).assign_attrs(truth.attrs)}, truth, threshold=0.0, fits=[])
        edges.append(result.block_voxels)
        assert result.blocks >= 20
    assert edges[0] < edges[1]


def test_thresholds_come_from_training_rows():
    """Percentiles and Otsu's threshold do not use the scored rows; the threshold curve covers all percentiles."""
    table = pd.DataFrame({"a": np.r_[np.arange(100.0), np.arange(1000.0, 1100)]})
    truth, train = table.a.to_numpy(), np.arange(200) % 2 == 0
    blocks = row_blocks(200, 10)
    quartile = sensitivity(table, truth, threshold="25%", train_mask=train, blocks=blocks, fits=[])
    assert quartile.threshold == np.percentile(truth[train], 25)
    otsu = sensitivity(table, truth, threshold="otsu", train_mask=train, blocks=blocks, fits=[])
    assert 98 < otsu.threshold < 1000
    assert set(otsu.thresholds.percentile) == set(range(5, 100, 5))
    assert (otsu.thresholds.auc == 1).all()
    with pytest.raises(DataError, match="'otsu' or a percentile"):
        sensitivity(table, truth, threshold="mean", blocks=blocks)


def test_cuts_come_from_training_rows():
    """The best cut of the training rows is applied to test rows that have another best cut."""
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
    # 6 of 16 negative blocks of 5 rows are false positives as a whole: the interval is that of independent blocks.
    wilson = bootstrap.wilson_interval(10, 16)
    assert row.cut_specificity_low == pytest.approx(wilson.low, abs=0.04)
    assert row.cut_specificity_high == pytest.approx(wilson.high, abs=0.04)
    assert row.cut_sensitivity_low == row.cut_sensitivity_high == 1


def test_in_sample_fits_are_labelled():
    """Tables, notebooks and reports label fits on the scored voxels, but not predictions or fits on other voxels."""
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    table = pd.DataFrame({"a": truth + rng.random(400), "b": rng.random(400)})
    options = {"threshold": 0.4, "blocks": row_blocks(400, 20), "predictions": {"map": truth + rng.random(400) / 2}}
    everywhere = sensitivity(table, truth, **options)
    separate = sensitivity(table, truth, **options, train_mask=np.arange(400) < 200)
    in_sample = everywhere.table.set_index("contrast").in_sample
    assert in_sample.to_dict() == {"map": False, "a": True, "b": True, "linear": True, "quadratic": True}
    assert set(everywhere.table.model) == {"prediction", "single", "linear", "quadratic"}
    models = set(readable(everywhere).model)
    assert models == {"prediction", "single, in-sample", "linear, in-sample", "quadratic, in-sample"}
    assert "linear, in-sample" in everywhere._repr_html_()
    text = " ".join(sensitivity_sections("AF", everywhere)[0].text)
    assert "fitted on the same voxels" in text
    assert "Youden index on the scored voxels." in text
    assert "training voxels," not in text
    # A prediction has no fit, but its cut comes from the scored voxels.
    prediction_only = sensitivity(pd.DataFrame(index=table.index), truth, **options, fits=[])
    answer, text = sensitivity_sections("AF", prediction_only)[0].text
    assert answer.startswith("map has an AUC of ")
    assert "Youden index on the scored voxels." in text
    assert not separate.table.in_sample.any()
    text = " ".join(sensitivity_sections("AF", separate)[0].text)
    assert "in-sample" not in text + separate._repr_html_() + str(readable(separate))
    assert "Youden index on training voxels, none of which were scored." in text


@pytest.fixture(scope="module")
def three():
    """Scores of a good contrast, of its twin with other noise, and of a poor one."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60), 20)
    noises = {"good": 0.2, "twin": 0.2, "poor": 1.5}
    table = pd.DataFrame({name: truth + rng.normal(0, noise, truth.size) for name, noise in noises.items()})
    return sensitivity(table, truth, threshold=0.4, blocks=row_blocks(truth.size, 20))


def test_every_pair_of_contrasts_is_compared(three):
    """The better one first, with the values of `difference`; p values are adjusted for three pairs, not for fits."""
    pairs = three.pairs()
    assert {frozenset(p) for p in pairs[["reference", "contrast"]].values.tolist()} == {
        frozenset(p) for p in (("good", "twin"), ("good", "poor"), ("twin", "poor"))
    }
    for row in pairs.itertuples():
        expected = three.difference(row.reference, row.contrast)
        assert (row.difference, row.low, row.high) == (expected.estimate, expected.low, expected.high)
        assert row.difference >= 0
    assert pairs.p_adjusted.tolist() == bootstrap.holm_adjust(pairs.p).tolist()


def test_the_answer_says_which_contrasts_differ(three):
    """Twins are not distinguishable; the sign follows the reference; a fit can be asked for too."""
    answer = three.answer("good")
    assert re.search(r"(good and twin|twin and good) are not distinguishable: AUC difference -?0\.0", answer)
    assert re.search(r"good shows the histology better than poor: AUC difference 0\.\d+ \[0\.", answer)
    assert re.search(r"poor shows the histology worse than good: AUC difference -0\.", three.answer("poor"))
    assert "quadratic" not in answer
    assert "quadratic shows the histology better than poor" in three.answer("quadratic")
    with pytest.raises(DataError, match=r"reference must be one of .*'twin'.*; got 'other'"):
        three.answer("other")


def test_one_contrast_is_not_repeated_by_a_linear_fit():
    """The fit has the scores of the contrast, and would count as a comparison."""
    truth = np.linspace(0, 1, 400)
    result = sensitivity(pd.DataFrame({"a": np.sin(9 * truth)}), truth, threshold=0.4, blocks=row_blocks(400, 20))
    assert set(result.table.model) == {"single", "quadratic"}
    titles = [section.title for section in sensitivity_sections("AF", result)]
    assert titles == ["AF: scores", *[t for t in titles if t == "AF: comparisons with quadratic"]]


def test_a_result_prints_in_a_few_lines():
    """The text has the best contrasts, their intervals and the numbers of voxels and blocks, not the curves."""
    rng = np.random.default_rng(0)
    truth = rng.random(400)
    table = pd.DataFrame({f"c{i}": truth + rng.normal(0, 0.1 + 0.1 * i, 400) for i in range(9)})
    result = sensitivity(table, truth, threshold=0.4, blocks=row_blocks(400, 20), fits=[])
    title, head, first, *_, note = lines = str(result).splitlines()
    assert title == f"{result.positives} of 400 voxels are positive: histology below 0.4"
    assert head.split() == ["contrast", "model", "AUC", "R2", "partial", "correlation"]
    best = result.table.iloc[0]
    assert f"{best.contrast} single, in-sample {best.auc:.3f} [{best.auc_low:.3f}" in re.sub(" +", " ", first)
    assert note == "95% intervals over 20 blocks; 1 more in .table"
    assert len(lines) == 11
    assert max(map(len, lines)) < 120


def test_regions_have_an_auc_each():
    """Each label but 0 has an AUC, unless its voxels are of one class."""
    contrasts, histology = phantom_volumes()
    labels = histology.copy(data=np.zeros(histology.shape, np.uint8))
    labels[{"y": slice(0, 8)}] = 3
    labels[{"y": slice(8, 14)}] = 7
    labels = mrhdata.volume.describe(labels, kind="labels")
    histology = histology.copy(data=np.where(labels == 7, 0.9, histology))
    regions = sensitivity(contrasts, histology, threshold=0.3, regions=labels, blocks=4, fits=[]).regions
    assert set(regions.region) == {3, 7}
    three = regions[(regions.region == 3) & (regions.contrast == "good")].iloc[0]
    in_mask = sensitivity(
        contrasts, histology, threshold=0.3, blocks=4, fits=[], mask=(labels == 3).assign_attrs(labels.attrs)
    )
    # The line is fitted to other voxels, but its sign is the same, and so are the ranks.
    assert three.auc == pytest.approx(in_mask.table.set_index("contrast").auc["good"])
    assert three.auc_low < three.auc < three.auc_high
    assert regions[regions.region == 7].auc.isna().all()


def test_regions_with_a_handful_of_one_class_have_no_auc():
    """A class of 19 voxels is too small for an AUC, 20 are enough; the report gives the reason."""
    region = np.repeat([1, 2, 3], 400)
    truth = np.ones(1200)
    # The positives are spread over the blocks of each region.
    truth[np.arange(19) * 20], truth[400:800], truth[400 + np.arange(19) * 20] = 0, 0, 1
    truth[800 + np.arange(20) * 20] = 0
    table = pd.DataFrame({"a": truth + np.linspace(0, 0.1, 1200)})
    result = sensitivity(table, truth, threshold=0.5, blocks=row_blocks(1200, 20), regions=region, fits=[])
    regions = result.regions.set_index("region")
    assert regions.positives.to_dict() == {1: 19, 2: 381, 3: 20}
    assert regions[["auc", "auc_low", "auc_high"]].loc[[1, 2]].isna().all(axis=None)
    assert regions.auc[3] == 1
    page = sensitivity_sections("AF", result)[-1]
    assert page.table["a"].tolist() == ["", "", "1.000 [1.000, 1.000]"]
    assert "fewer than 20 positive or fewer than 20 negative voxels" in page.text[-1]


def test_large_volumes_are_scored_on_a_lattice():
    """At most `max_voxels` voxels are scored, spread over the whole mask; scores hardly differ."""
    field = smooth_fields((60, 60, 60), 2)
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
    """Errors name the wrong input."""

    def test_volumes(self):
        """Other grids or spaces, NaN, empty masks and thresholds without a class are refused."""
        contrasts, histology = phantom_volumes()
        named = r"'truth' does not lie on the grid of 'good': shapes differ .* mrhdata resample"
        with pytest.raises(GridError, match=named):
            sensitivity(contrasts, histology.isel(z=slice(5)), threshold=0.3)
        with pytest.raises(GridError, match="'scanner' but"):
            sensitivity(contrasts, mrhdata.volume.describe(histology, space="CCFv3"), threshold=0.3)
        with pytest.raises(DataError, match=r"not finite among 2304: \{'good': 2304\}"):
            sensitivity({"good": contrasts["good"] * np.nan}, histology, threshold=0.3)
        for train, covered in ((histology * 0, 0), (histology * 0 + 1, 2304)):
            mask = train.assign_attrs(histology.attrs)
            with pytest.raises(DataError, match=f"train_mask must cover some .* got {covered} of 2304"):
                sensitivity(contrasts, histology, threshold=0.3, train_mask=mask)
        with pytest.raises(DataError, match=r"must not be called \['z'\]"):
            sensitivity({"z": histology}, histology, threshold=0.3)
        with pytest.raises(DataError, match="mask is empty"):
            sensitivity(contrasts, histology, threshold=0.3, mask=histology * 0)
        with pytest.raises(DataError, match="0 of 2304 are positive"):
            sensitivity(contrasts, histology, threshold=-1)
        with pytest.raises(DataError, match="'below' or 'above'"):
            sensitivity(contrasts, histology, threshold=0.3, positive_side="low")

    def test_tables(self):
        """Missing blocks, other lengths, repeated names and too few rows are refused."""
        table = pd.DataFrame({"a": np.arange(10.0)})
        with pytest.raises(GridError, match="needs blocks"):
            sensitivity(table, np.arange(10.0), threshold=3)
        with pytest.raises(GridError, match=r"histology must have one value per row .*\(10,\); got \(9,\)"):
            sensitivity(table, np.arange(9.0), threshold=3, blocks=row_blocks(10, 2))
        with pytest.raises(DataError, match="share a name"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[Fit("a", 1)])
        with pytest.raises(DataError, match="cannot fit 21 parameters"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[Fit("p", 20)])
        with pytest.raises(DataError, match=r"contrast must be one of \['a'\]; got 'x'"):
            sensitivity(table, np.arange(10.0), threshold=3, blocks=row_blocks(10, 2), fits=[]).difference("a", "x")


@pytest.mark.parametrize("argument", ["train_mask", "regions"])
def test_train_masks_and_regions_must_be_integers(argument):
    """NaN is neither a training voxel nor a region of its own."""
    rng = np.random.default_rng(0)
    truth = from_array(rng.random((8, 8, 8)), spacing=(1, 1, 1), name="truth")
    labels = truth.copy(data=(np.indices((8, 8, 8))[0] > 3).astype(np.float64))
    labels[:, :2] = np.nan
    with pytest.raises(DataError, match=f"{argument} must be integers; 128 of 512 values are NaN"):
        mrhdata.sensitivity({"a": truth + 1}, truth, threshold=0.5, positive_side="above", **{argument: labels})


def test_voxel_indices_of_a_table_may_be_floats():
    """CSV readers return floats if other rows of the column are empty."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices((8, 8, 8)).reshape(3, -1)
    table = pd.DataFrame({"t2": rng.random(512), "z": z, "y": y, "x": x})
    truth = table["t2"] + rng.random(512)
    from_integers = mrhdata.sensitivity(table, truth, threshold=1.0, positive_side="above")
    from_floats = mrhdata.sensitivity(table.astype(float), truth, threshold=1.0, positive_side="above")
    pd.testing.assert_frame_equal(from_integers.table, from_floats.table)
    with pytest.raises(DataError, match="z must be integers; 512 of 512 values"):
        mrhdata.sensitivity(table.astype(float).assign(z=z + 0.5), truth, threshold=1.0, positive_side="above")
