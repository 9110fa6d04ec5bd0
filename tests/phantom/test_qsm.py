"""The head phantom: positions and sizes of its nuclei, and agreement of the simulated map with the true one."""

import numpy as np
import pytest
from scipy import ndimage

import mrhdata
from mrhdata import phantom
from mrhdata.errors import GridError
from mrhdata.phantom import head, qsm
from mrhdata.phantom.head_anatomy import NUCLEI
from tests.conftest import FULL

SPACING = (3.0, 1.5, 1.5)
#: Ranges of the mean susceptibility of each nucleus over a group of subjects, in ppm.
RANGES = {"GP": (0.13, 0.16), "SN": (0.07, 0.09), "RN": (0.04, 0.05), "PU": (0.03, 0.04), "CN": (0.005, 0.02)}


@pytest.fixture(scope="module")
def subjects():
    """Return a few subjects at a coarse spacing, which are quick to make."""
    return [phantom.deep_grey(seed, SPACING) for seed in range(3 if FULL else 2)]


def roi_means(subject, name):
    """Return the mean of a volume in each scored region."""
    values = subject[name].values
    return {roi: float(values[subject["labels"].values == v].mean()) for roi, v in phantom.ROIS.items()}


def test_roi_values_are_the_published_ones():
    """Regions have the values 2 to 11 in the order of the published table."""
    names = ["RN L", "RN R", "SN L", "SN R", "GP L", "GP R", "PU L", "PU R", "CN L", "CN R"]
    assert dict(zip(names, range(2, 12), strict=True)) == phantom.ROIS


@pytest.mark.full
def test_deep_grey_is_deterministic_for_a_seed(subjects):
    """The same seed gives the same subject, another seed another one."""
    again = phantom.deep_grey(1, SPACING)
    assert len(again) == 8
    for name, volume in again.items():
        np.testing.assert_array_equal(volume, subjects[1][name])
    assert not np.array_equal(subjects[0]["labels"], subjects[1]["labels"])


def test_deep_grey_volumes_have_names_types_units_and_all_regions(subjects):
    """All volumes share one shape; every region exists and lies inside the brain."""
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


def test_tissue_classes_fill_the_brain_and_have_t1_contrast(subjects):
    """Fluid, grey and white matter fill the mask; the T1-weighted signal rises in this order; nuclei are grey."""
    for subject in subjects:
        tissue, t1w = subject["tissue"].values, subject["t1w"].values
        assert np.array_equal(tissue > 0, subject["mask"].values > 0)
        fluid, grey, white = (t1w[tissue == phantom.MATTER[name]].mean() for name in ("CSF", "GM", "WM"))
        assert fluid < grey - 0.1 < white - 0.3
        assert (tissue[subject["labels"].values > 0] == phantom.MATTER["GM"]).mean() > 0.95


def test_nuclei_have_anatomical_positions(subjects):
    """Left is X < 0; the pallidum is medial to the putamen, the red nucleus medial to and above the nigra."""
    for subject in subjects:
        labels, grid = subject["labels"].values, subject["labels"].mrh
        centre = {n: grid.world(np.argwhere(labels == v)).mean(axis=0) for n, v in phantom.ROIS.items()}
        assert all((point_mm[0] < 0) == name.endswith("L") for name, point_mm in centre.items())
        for side in "LR":
            rn, sn, gp, pu, cn = (centre[f"{n} {side}"] for n in ("RN", "SN", "GP", "PU", "CN"))
            assert abs(rn[0]) < abs(sn[0]) < abs(gp[0]) < abs(pu[0])
            assert sn[2] < rn[2] < gp[2] < cn[2]
            assert sn[1] < gp[1] < pu[1] < cn[1]


def test_nuclei_are_connected(subjects):
    """The largest component has more than 85 % of a nucleus; a few voxels at thin ends may be separate."""
    for subject in subjects:
        for value in phantom.ROIS.values():
            inside = subject["labels"].values == value
            components, count = ndimage.label(inside, np.ones((3, 3, 3)))
            largest = np.bincount(components.ravel())[1:].max()
            assert largest > 0.85 * inside.sum(), (value, count)


def test_nuclei_have_human_volumes(subjects):
    """Volumes (ml, mean of both sides) are near those of PD25: RN 0.28, SN 0.6, GP 2.1, PU 6.3, CN 5.1."""
    voxel_ml = np.prod(SPACING) / 1000
    counts = np.mean([[np.sum(s["labels"] == v) for v in phantom.ROIS.values()] for s in subjects], axis=0)
    rn, sn, gp, pu, cn = counts.reshape(5, 2).mean(axis=1) * voxel_ml
    assert 0.15 < rn < 0.4
    assert 0.35 < sn < 0.9
    assert 1.5 < gp < 2.8
    assert 4.5 < pu < 8
    assert 2.7 < cn < 6


@pytest.mark.full
def test_true_susceptibilities_lie_in_the_in_vivo_ranges():
    """Means over twenty deep brains lie in the published ranges, and iron varies between subjects."""
    axes = [np.arange(-25.0, 35.0, 3.0), np.arange(-40.0, 40.0, 1.5), np.arange(-45.0, 45.0, 1.5)]
    points = [qsm._subvoxel_centres(axes[0], 3.0, 2), *axes[1:]]
    means = {name: [] for name in NUCLEI}
    for seed in range(20):
        tissue = head.Head(points, seed)
        chi, labels = qsm._voxel_means(tissue.chi, (2, 1, 1)), qsm._nucleus_labels(tissue, (2, 1, 1))
        for name in means:
            means[name].append(chi[np.isin(labels, [phantom.ROIS[f"{name} {side}"] for side in "LR"])].mean())
    for name, (low, high) in RANGES.items():
        assert low <= np.mean(means[name]) <= high, (name, np.mean(means[name]))
        assert 0.08 < np.std(means[name]) / np.mean(means[name]) < 0.5, name


def test_map_agrees_with_the_true_susceptibility(subjects):
    """Means of regions agree to 0.03 ppm each and to 0.012 on average over subjects; streaks and noise remain."""
    errors = []
    for subject in subjects:
        mapped, true = roi_means(subject, "qsm"), roi_means(subject, "chi")
        errors.append([mapped[n] - true[n] for n in phantom.ROIS])
        brain = subject["mask"].values > 0
        residual = (subject["qsm"].values - subject["chi"].values)[brain].std()
        assert 0.008 < residual < 0.03
    assert np.abs(errors).max() < 0.03
    assert np.abs(np.mean(errors, axis=0)).max() < 0.012


def test_veins_and_calcium_exist_outside_the_nuclei(subjects):
    """Some voxels are brighter than the mean of every nucleus, and some darker than white matter."""
    for subject in subjects:
        inside = (subject["mask"].values > 0) & (subject["labels"].values == 0)
        assert (subject["qsm"].values[inside] > 0.15).sum() > 100
        assert subject["chi"].values[inside].min() < -0.08


@pytest.mark.full
def test_anatomy_does_not_depend_on_the_spacing(subjects):
    """Labels made at 1.5 mm and resampled to slices of 3 mm agree with labels made at 3 mm except at the rim."""
    fine = phantom.deep_grey(0, (1.5, 1.5, 1.5))
    resampled = mrhdata.resample(fine["labels"], subjects[0]["labels"]).values
    coarse = subjects[0]["labels"].values
    for value in phantom.ROIS.values():
        a, b = resampled == value, coarse == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.75
        assert a.sum() == pytest.approx(b.sum(), rel=0.15)
    assert fine["chi"].shape == (96, 128, 104)


def test_field_of_a_sphere():
    """Outside it is a dipole, ``chi / 3 (a / r)^3 (3 cos^2 - 1)``; inside, with the Lorentz sphere, it is 0."""
    z, y, x = np.meshgrid(*[np.arange(-32, 32.0)] * 3, indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    chi = np.clip(8.5 - radius, 0, 1)
    radius_cubed = chi.sum() / (4 / 3 * np.pi)
    field = qsm._dipole_field(chi, (1, 1, 1))
    shell = (radius > 12) & (radius < 20)
    dipole = radius_cubed / 3 * (3 * z**2 / np.maximum(radius, 1) ** 2 - 1) / np.maximum(radius, 1) ** 3
    assert np.abs(field - dipole)[shell].max() < 0.05 * np.abs(dipole[shell]).max()
    assert np.abs(field[radius < 6]).max() < 0.01


def test_inversion_recovers_the_susceptibility_of_a_sphere():
    """Without noise, the mean agrees to a tenth on an anisotropic grid."""
    z, y, x = np.meshgrid(np.arange(-24, 24.0) * 2, np.arange(-40, 40.0), np.arange(-40, 40.0), indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2)
    chi = 0.1 * np.clip(10.5 - radius, 0, 1)
    field = qsm._dipole_field(chi, (2, 1, 1))
    recovered, outside = qsm._invert(field, (2, 1, 1), 0.2), radius > 25
    contrast = recovered[radius < 9].mean() - recovered[outside].mean()
    assert contrast == pytest.approx(0.1, rel=0.1)


def test_noise_of_the_map_depends_on_snr_and_threshold():
    """Half the SNR doubles the difference from a map without noise; a low threshold amplifies noise."""
    axes = [qsm._voxel_centres(view, 3.0) for view in head.VIEW_MM[::-1]]
    tissue = head.Head(axes, 2)
    inside = tissue.brain > 0.5

    def noise(snr, threshold):
        maps = []
        for level in (snr, 1e9):
            scan = phantom.Scan(snr=level, background_ppm=0)
            field = qsm._acquire(tissue, axes, (1, 1, 1), scan, np.random.default_rng(0))["field"]
            maps.append(qsm._invert(field * inside, (3, 3, 3), threshold)[inside])
        return np.std(maps[0] - maps[1])

    default = noise(30, 0.2)
    assert 0.003 < default < 0.02
    assert noise(15, 0.2) == pytest.approx(2 * default, rel=0.05)
    assert noise(30, 0.05) > 1.3 * default


@pytest.mark.parametrize("spacing", [(1, 1), (3, 0, 1), 2.0])
def test_deep_grey_rejects_invalid_spacing(spacing):
    """The spacing must be three positive lengths."""
    with pytest.raises(GridError, match="three positive lengths"):
        phantom.deep_grey(0, spacing)
