"""The digital head: its nuclei lie where they should, and the map shows what the truth holds."""

import numpy as np
import pytest
from scipy import ndimage

import mrhdata
from mrhdata import phantom
from mrhdata.errors import GridError
from mrhdata.phantom import head, qsm
from tests.conftest import FULL

SPACING = (3.0, 1.5, 1.5)
#: Ranges of the means over labelled voxels, ppm; a group of subjects, not each.
RANGES = {"GP": (0.13, 0.16), "SN": (0.07, 0.09), "RN": (0.04, 0.05), "PU": (0.03, 0.04), "CN": (0.005, 0.02)}


@pytest.fixture(scope="module")
def subjects():
    """A few subjects at a spacing that is quick to make."""
    return [phantom.deep_grey(seed, SPACING) for seed in range(3 if FULL else 2)]


def roi_means(subject, what):
    """Mean of each scored region."""
    values = subject[what].values
    return {name: float(values[subject["labels"].values == v].mean()) for name, v in phantom.ROIS.items()}


def test_labels_are_the_published_ones():
    """File values 2 to 11, in the order of the published table."""
    names = ["RN L", "RN R", "SN L", "SN R", "GP L", "GP R", "PU L", "PU R", "CN L", "CN R"]
    assert dict(zip(names, range(2, 12), strict=True)) == phantom.ROIS


@pytest.mark.full
def test_subjects_differ_and_repeat(subjects):
    """The seed is the subject."""
    again = phantom.deep_grey(1, SPACING)
    for name, volume in again.items():
        np.testing.assert_array_equal(volume, subjects[1][name])
    assert not np.array_equal(subjects[0]["labels"], subjects[1]["labels"])


def test_what_a_group_holds(subjects):
    """Names, types, units, one grid; every region is there, inside the brain."""
    for subject in subjects:
        assert set(subject) == {"qsm", "magnitude", "r2star", "t1w", "chi", "labels", "tissue", "mask"}
        assert {v.shape for v in subject.values()} == {(48, 128, 104)}
        assert {n for n, v in subject.items() if v.dtype == np.uint8} == {"labels", "tissue", "mask"}
        assert (subject["qsm"].attrs["units"], subject["qsm"].attrs["modality"]) == ("ppm", "qsm")
        assert subject["labels"].attrs["kind"] == "labels"
        assert np.unique(subject["labels"]).tolist() == [0, *range(2, 12)]
        assert not subject["labels"].values[subject["mask"].values == 0].any()
        assert not subject["qsm"].values[subject["mask"].values == 0].any()
        assert np.isfinite(np.stack([v.values for v in subject.values()])).all()


def test_tissue_is_what_the_scanner_sees(subjects):
    """Fluid, grey and white matter fill the brain and nothing else; each is as bright as T1 says; nuclei are grey."""
    for subject in subjects:
        tissue, t1w = subject["tissue"].values, subject["t1w"].values
        assert np.array_equal(tissue > 0, subject["mask"].values > 0)
        fluid, grey, white = (t1w[tissue == phantom.MATTER[name]].mean() for name in ("CSF", "GM", "WM"))
        assert fluid < grey - 0.1 < white - 0.3
        assert (tissue[subject["labels"].values > 0] == phantom.MATTER["GM"]).mean() > 0.95


def test_nuclei_lie_where_anatomy_has_them(subjects):
    """Left is X < 0; the pallidum is medial to the putamen, the red nucleus medial to and above the nigra."""
    for subject in subjects:
        labels, grid = subject["labels"].values, subject["labels"].mrh
        centre = {n: grid.world(np.argwhere(labels == v)).mean(axis=0) for n, v in phantom.ROIS.items()}
        assert all((place[0] < 0) == name.endswith("L") for name, place in centre.items())
        for side in "LR":
            rn, sn, gp, pu, cn = (centre[f"{n} {side}"] for n in ("RN", "SN", "GP", "PU", "CN"))
            assert abs(rn[0]) < abs(sn[0]) < abs(gp[0]) < abs(pu[0])
            assert sn[2] < rn[2] < gp[2] < cn[2]
            assert sn[1] < gp[1] < pu[1] < cn[1]


def test_nuclei_are_in_one_piece(subjects):
    """But for a few voxels at thin ends."""
    for subject in subjects:
        for value in phantom.ROIS.values():
            inside = subject["labels"].values == value
            parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
            largest = np.bincount(parts.ravel())[1:].max()
            assert largest > 0.85 * inside.sum(), (value, count)


def test_volumes_are_of_human_size(subjects):
    """Millilitres of each nucleus, mean of both sides, beside those of PD25: 0.28, 0.6, 2.1, 6.3, 5.1."""
    voxel = np.prod(SPACING) / 1000
    counts = np.mean([[np.sum(s["labels"] == v) for v in phantom.ROIS.values()] for s in subjects], axis=0)
    rn, sn, gp, pu, cn = counts.reshape(5, 2).mean(axis=1) * voxel
    assert 0.15 < rn < 0.4
    assert 0.35 < sn < 0.9
    assert 1.5 < gp < 2.8
    assert 4.5 < pu < 8
    assert 2.7 < cn < 6


@pytest.mark.full
def test_true_means_are_those_of_living_brains():
    """Twenty subjects, the deep brain alone: group means lie in the ranges, and iron differs between subjects."""
    voxels = [np.arange(-25.0, 35.0, 3.0), np.arange(-40.0, 40.0, 1.5), np.arange(-45.0, 45.0, 1.5)]
    points = [qsm._centres_within(voxels[0], 3.0, 2), *voxels[1:]]
    found = {name: [] for name in head.NUCLEI}
    for seed in range(20):
        made = head.Head(points, seed)
        chi, labels = qsm._pooled(made.chi, (2, 1, 1)), qsm._labels(made, (2, 1, 1))
        for name in found:
            found[name].append(chi[np.isin(labels, [phantom.ROIS[f"{name} {side}"] for side in "LR"])].mean())
    for name, (low, high) in RANGES.items():
        assert low <= np.mean(found[name]) <= high, (name, np.mean(found[name]))
        assert 0.08 < np.std(found[name]) / np.mean(found[name]) < 0.5, name


def test_map_follows_the_truth(subjects):
    """Means of regions agree to 0.03 ppm each and 0.012 on average over subjects; streaks and noise are left."""
    errors = []
    for subject in subjects:
        mapped, true = roi_means(subject, "qsm"), roi_means(subject, "chi")
        errors.append([mapped[n] - true[n] for n in phantom.ROIS])
        brain = subject["mask"].values > 0
        residual = (subject["qsm"].values - subject["chi"].values)[brain].std()
        assert 0.008 < residual < 0.03
    assert np.abs(errors).max() < 0.03
    assert np.abs(np.mean(errors, axis=0)).max() < 0.012


def test_veins_and_calcium_are_there(subjects):
    """Outside the nuclei some voxels are brighter than every nucleus's mean, and some darker than white matter."""
    for subject in subjects:
        inside = (subject["mask"].values > 0) & (subject["labels"].values == 0)
        assert (subject["qsm"].values[inside] > 0.15).sum() > 100
        assert subject["chi"].values[inside].min() < -0.08


@pytest.mark.full
def test_another_spacing_is_the_same_anatomy(subjects):
    """Labels at 1.5 mm, brought to slices of 3 mm, are the labels made there but for the rim."""
    fine = phantom.deep_grey(0, (1.5, 1.5, 1.5))
    carried = mrhdata.resample(fine["labels"], subjects[0]["labels"]).values
    here = subjects[0]["labels"].values
    for value in phantom.ROIS.values():
        a, b = carried == value, here == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.75
        assert a.sum() == pytest.approx(b.sum(), rel=0.15)
    assert fine["chi"].shape == (96, 128, 104)


def test_field_of_a_sphere():
    """Outside, a dipole: ``chi / 3 (a / r)^3 (3 cos^2 - 1)``; inside, with the Lorentz sphere, nothing."""
    z, y, x = np.meshgrid(*[np.arange(-32, 32.0)] * 3, indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    chi = np.clip(8.5 - radius, 0, 1)
    size = chi.sum() / (4 / 3 * np.pi)  # radius cubed of a sphere of this volume
    field = qsm._field(chi, (1, 1, 1))
    shell = (radius > 12) & (radius < 20)
    dipole = size / 3 * (3 * z**2 / np.maximum(radius, 1) ** 2 - 1) / np.maximum(radius, 1) ** 3
    assert np.abs(field - dipole)[shell].max() < 0.05 * np.abs(dipole[shell]).max()
    assert np.abs(field[radius < 6]).max() < 0.01


def test_inversion_gives_a_sphere_back():
    """Its mean within a tenth, without noise, on an anisotropic grid."""
    z, y, x = np.meshgrid(np.arange(-24, 24.0) * 2, np.arange(-40, 40.0), np.arange(-40, 40.0), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    chi = 0.1 * np.clip(10.5 - radius, 0, 1)
    field = qsm._field(chi, (2, 1, 1))
    found, offset = qsm._inverted(field, (2, 1, 1), 0.2), radius > 25
    contrast = found[radius < 9].mean() - found[offset].mean()
    assert contrast == pytest.approx(0.1, rel=0.1)


def test_noise_grows_as_the_scan_and_the_threshold_say():
    """A map of half the SNR differs twice as much from one without noise; a low threshold lets more through."""
    axes = [qsm._centres(view, 3.0) for view in head.VIEW_MM[::-1]]
    made = head.Head(axes, 2)
    inside = made.brain > 0.5

    def noise(snr, threshold):
        maps = []
        for strength in (snr, 1e9):
            scan = phantom.Scan(snr=strength, background_ppm=0)
            field = qsm._acquired(made, axes, (1, 1, 1), scan, np.random.default_rng(0))["field"]
            maps.append(qsm._inverted(field * inside, (3, 3, 3), threshold)[inside])
        return np.std(maps[0] - maps[1])

    usual = noise(30, 0.2)
    assert 0.003 < usual < 0.02
    assert noise(15, 0.2) == pytest.approx(2 * usual, rel=0.05)
    assert noise(30, 0.05) > 1.3 * usual


@pytest.mark.parametrize("spacing", [(1, 1), (3, 0, 1), 2.0])
def test_spacing_is_three_lengths(spacing):
    """Anything else is refused."""
    with pytest.raises(GridError, match="three positive lengths"):
        phantom.deep_grey(0, spacing)
