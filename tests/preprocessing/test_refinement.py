"""Borders of tissues follow the intensities of an image, in any contrast, and other labels stay."""

import numpy as np
import pytest

from mrhdata.preprocessing.pipeline import finish
from mrhdata.preprocessing.refinement import refine
from mrhdata.volume.construct import from_array

#: Intensities of the background and of four labels, as in T1w, T2w and PD images.
CONTRASTS = {"T1w": (0, 20, 60, 100, 80), "T2w": (0, 100, 60, 30, 45), "PD": (0, 80, 100, 60, 70)}


def truth():
    """Shells of the labels 1, 2 and 3 about each other, and a cube of 4 within."""
    labels = np.zeros((24, 40, 44), np.uint8)
    for margin, label in ((2, 1), (5, 2), (8, 3)):
        labels[margin:-margin, margin:-margin, margin:-margin] = label
    labels[10:14, 18:22, 20:24] = 4
    return labels


def volume(values, **options):
    return from_array(values, spacing=(1, 1, 1), **options)


def image_of(labels, contrast, bias=0.0, seed=0):
    """Return an image with noise, whose brightness changes from left to right by a share."""
    rng = np.random.default_rng(seed)
    values = np.array(CONTRASTS[contrast], float)[labels] + rng.normal(0, 4, labels.shape)
    return volume((values * np.linspace(1 - bias, 1 + bias, labels.shape[2])).astype(np.float32))


def moved(labels):
    """Return labels whose borders between 1, 2 and 3 lie one voxel too far to the left."""
    shifted = np.roll(labels, -1, 2)
    inside = (labels > 0) & (labels < 4) & (shifted > 0) & (shifted < 4)
    return volume(np.where(inside, shifted, labels).astype(np.uint8), kind="labels")


def errors(labels, expected):
    return float((np.asarray(labels) != expected)[expected > 0].mean())


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_borders_move_to_those_of_the_image(contrast):
    """Also where the brightness changes slowly by a third."""
    expected = truth()
    labels = moved(expected)
    refined = refine(labels, image_of(expected, contrast, bias=0.15), [(1, 2, 3)])
    assert errors(refined, expected) < 0.3 * errors(labels, expected)
    assert refined.mrh.grid.same_as(labels.mrh.grid)
    assert refined.attrs == labels.attrs


def test_labels_outside_of_the_groups_stay():
    """Although their intensities are those of a tissue."""
    expected = truth()
    image = image_of(np.where(expected == 4, 3, expected), "T1w")
    refined = refine(moved(expected), image, [(1, 2, 3)]).values
    np.testing.assert_array_equal(refined == 4, expected == 4)
    np.testing.assert_array_equal(refined == 0, expected == 0)


def test_trust_keeps_labels():
    """Against the image, which has the borders elsewhere."""
    expected = truth()
    labels = moved(expected)
    kept = refine(labels, image_of(expected, "T1w"), [(1, 2, 3)], trust=50)
    assert errors(kept, labels.values) < 0.5 * errors(kept, expected)


def test_group_without_a_second_label_and_values_that_are_not_finite():
    expected = np.where(truth() == 2, 1, truth()).astype(np.uint8)
    labels, image = volume(expected, kind="labels"), image_of(expected, "T1w")
    image.values[0, 0, :3] = (np.nan, np.inf, -np.inf)
    np.testing.assert_array_equal(refine(labels, image, [(1, 2)]), expected)
    refined = refine(labels, image, [(1, 2, 3)])
    assert errors(refined, expected) < 0.05


def test_refinement_is_a_step_of_a_network():
    expected = truth()
    steps = [("refine", {"groups": [[1, 2, 3]], "passes": 2})]
    labels, image = moved(expected), image_of(expected, "T2w")
    direct = refine(labels, image, [(1, 2, 3)], passes=2)
    np.testing.assert_array_equal(finish(labels, steps, image), direct)
    plane = finish(labels.isel(z=12), steps, image.isel(z=12))
    assert plane.dims == ("y", "x")
    assert errors(plane, expected[12]) < errors(labels.values[12], expected[12])
