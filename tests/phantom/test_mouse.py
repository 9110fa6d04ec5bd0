"""The digital mouse brain: its tissue adds up, and its signals follow from it."""

import itertools

import numpy as np
import pytest
from scipy.integrate import quad

from mrhdata import phantom
from mrhdata.phantom import mouse
from mrhdata.preprocessing import parameter_maps


@pytest.fixture(scope="module")
def brain():
    """One coarse subject."""
    return {name: v.compute() for name, v in phantom.mouse_brain(0.4, seed=3).items()}


def test_subjects_differ_and_repeat():
    """The seed is the subject."""
    first, again, other = (phantom.mouse_brain(0.8, seed=s) for s in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["tissue"], other["tissue"])


def test_a_stain_that_is_added_leaves_the_others_as_they_were():
    """Sums of subject 1 from before Nissl was there; another noise field changes them in the third digit."""
    subject = phantom.mouse_brain(0.8, seed=1)
    known = {"af": 531.4361606, "nf": 585.5774489, "mbp": 524.9835385, "t2w": 1138842, "dwi5000": 20184135}
    for name, total in known.items():
        assert float(subject[name].values.astype(np.float64).sum()) == pytest.approx(total, rel=1e-6)


def test_nissl_rises_with_cells_and_saturates(brain):
    """From sparse to dense tissue, each step of cells adds less; nothing outside but noise."""
    cell, nissl = brain["cell"].values, brain["nissl"].values
    edges = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    means = [nissl[(cell > a) & (cell < b)].mean() for a, b in itertools.pairwise(edges)]
    steps = np.diff(means)
    assert (steps > 0).all()
    assert steps[-1] < 0.6 * steps[0]
    assert nissl[brain["mask"].values == 0].mean() < 0.05


def test_fractions_fit_into_a_voxel(brain):
    """Axon, myelin and cells leave extracellular space; nothing lies outside the brain."""
    total = brain["axon"] + brain["myelin"] + brain["cell"]
    assert float(total.max()) <= 0.9 + 1e-6
    assert float(total.where(brain["mask"] == 0).max()) == 0
    assert set(np.unique(brain["tissue"])) <= {0} | {row[0] for row in phantom.TISSUES.values()}


def test_signals_follow_the_tissue(brain):
    """White matter is dark on T2w and AF, bright on MBP and NF, high in MTR and anisotropy."""
    white = (brain["tissue"] == phantom.TISSUES["white matter"][0]).values
    grey = (brain["tissue"] == phantom.TISSUES["cortex"][0]).values
    derived = {
        "mtr": parameter_maps.mtr(brain["mt_off"], brain["mt_on"]),
        "anisotropy": parameter_maps.anisotropy(brain["dwi2000"], b0s=2),
    }
    mean = {
        n: (float(v.values[white].mean()), float(v.values[grey].mean()))
        for n, v in {**brain, **derived}.items()
        if v.ndim == 3
    }
    for dark in ("t2w", "af", "af_clean"):
        assert mean[dark][0] < 0.9 * mean[dark][1]
    for bright in ("mbp", "nf", "mtr", "anisotropy"):
        assert mean[bright][0] > 1.1 * mean[bright][1]


def test_powder_average_is_the_integral_over_directions():
    """The closed form against numerical integration over the sphere."""
    b, axial, radial = 5.0, 0.6, 0.2
    expected = quad(lambda u: np.exp(-b * (radial + (axial - radial) * u**2)), 0, 1)[0]
    got = mouse._averaged(b, axial, np.array(radial), np.array(0.0), np.array(1.0))
    assert float(got) == pytest.approx(expected, rel=1e-9)
    along = mouse._averaged(b, axial, np.array(radial), np.array(1.0), np.array(0.0))
    assert float(along) == pytest.approx(np.exp(-b * axial))


def test_noise_is_rician():
    """Without signal the magnitude is Rayleigh: mean over deviation 1.913; with signal the SNR is as asked."""
    rng = np.random.default_rng(0)
    signal, inside = np.zeros((60, 60, 60)), np.zeros((60, 60, 60), bool)
    signal[:30], inside[:30] = 0.5, True
    values = mouse._magnitude(signal, 20.0, inside, rng).astype(float)
    assert values[30:].mean() / values[30:].std() == pytest.approx(1.913, rel=0.01)
    assert values[:30].mean() / values[:30].std() == pytest.approx(20, rel=0.02)


def test_directions_are_spread():
    """30 unit vectors, no two (or opposites) closer than 12 degrees."""
    g = phantom.directions(30)
    cosines = np.abs(g @ g.T) - np.eye(30)
    assert np.degrees(np.arccos(cosines.max())) > 12
