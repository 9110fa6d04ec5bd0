"""The mouse-brain phantom: its tissue fractions, and the signals computed from them."""

import itertools

import numpy as np
import pytest
from scipy.integrate import quad

from mrhdata import phantom
from mrhdata.phantom import mouse
from mrhdata.preprocessing import parameter_maps


@pytest.fixture(scope="module")
def brain():
    """Return one coarse subject."""
    return {name: v.compute() for name, v in phantom.mouse_brain(0.4, seed=3).items()}


def test_mouse_brain_is_deterministic_for_a_seed():
    """The same seed gives the same subject, another seed another one."""
    first, again, other = (phantom.mouse_brain(0.8, seed=s) for s in (1, 1, 2))
    assert len(first) == 15
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["tissue"], other["tissue"])


def test_volumes_keep_their_noise_when_a_stain_is_added():
    """Sums of subject 1 are those from before Nissl was added; other noise would change their third digit."""
    subject = phantom.mouse_brain(0.8, seed=1)
    expected = {"af": 531.4361606, "nf": 585.5774489, "mbp": 524.9835385, "t2w": 1138842, "dwi5000": 20184135}
    for name, total in expected.items():
        assert float(subject[name].values.astype(np.float64).sum()) == pytest.approx(total, rel=1e-6)


def test_nissl_rises_with_cells_and_saturates(brain):
    """From sparse to dense tissue each increase of cells adds less stain; outside the brain there is only noise."""
    cell, nissl = brain["cell"].values, brain["nissl"].values
    edges = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    means = [nissl[(cell > a) & (cell < b)].mean() for a, b in itertools.pairwise(edges)]
    steps = np.diff(means)
    assert (steps > 0).all()
    assert steps[-1] < 0.6 * steps[0]
    assert nissl[brain["mask"].values == 0].mean() < 0.05


def test_tissue_fractions_leave_extracellular_space(brain):
    """Axon, myelin and cells add up to 0.9 at most, and to 0 outside the brain."""
    total = brain["axon"] + brain["myelin"] + brain["cell"]
    assert float(total.max()) <= 0.9 + 1e-6
    assert float(total.where(brain["mask"] == 0).max()) == 0
    assert set(np.unique(brain["tissue"])) <= {0} | {row[0] for row in phantom.TISSUES.values()}


def test_contrast_of_white_and_grey_matter(brain):
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
    """The closed form agrees with numerical integration over the sphere."""
    b, axial, radial = 5.0, 0.6, 0.2
    expected = quad(lambda u: np.exp(-b * (radial + (axial - radial) * u**2)), 0, 1)[0]
    powder = mouse._diffusion_signal(b, axial, np.array(radial), np.array(0.0), np.array(1.0))
    assert float(powder) == pytest.approx(expected, rel=1e-9)
    aligned = mouse._diffusion_signal(b, axial, np.array(radial), np.array(1.0), np.array(0.0))
    assert float(aligned) == pytest.approx(np.exp(-b * axial))


def test_noise_is_rician():
    """Without signal, mean over deviation is that of a Rayleigh distribution (1.913); with signal it is the SNR."""
    rng = np.random.default_rng(0)
    signal, inside = np.zeros((60, 60, 60)), np.zeros((60, 60, 60), bool)
    signal[:30], inside[:30] = 0.5, True
    values = mouse._rician_magnitude(signal, 20.0, inside, rng).astype(float)
    assert values[30:].mean() / values[30:].std() == pytest.approx(1.913, rel=0.01)
    assert values[:30].mean() / values[:30].std() == pytest.approx(20, rel=0.02)


def test_directions_are_spread_over_the_sphere():
    """No two of 30 unit vectors, or their opposites, are closer than 12 degrees."""
    g = phantom.directions(30)
    cosines = np.abs(g @ g.T) - np.eye(30)
    assert np.degrees(np.arccos(cosines.max())) > 12
