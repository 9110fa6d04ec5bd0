"""The pictures of the report show what they are about."""

import numpy as np
import pandas as pd

from mrhdata.bench.figures import of_block
from mrhdata.datasets.subjects import Subject
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array


def test_a_block_is_shown_where_its_cells_are():
    """Its middle plane holds none of them: one that was missed, one that is none, both in the topmost planes."""
    image = from_array(np.arange(20.0)[:, None, None] * np.ones((20, 12, 12)), spacing=(1, 1, 1))
    truth, found = (
        pd.DataFrame(image.mrh.world(np.array([at])), columns=["X", "Y", "Z"]) for at in ([18, 3, 4], [17, 9, 6])
    )
    axes = of_block(Subject("a", {"image": image}, truth), found, Box((0, 2, 2), (20, 12, 12))).axes
    assert {float(ax.images[0].get_array().max()) for ax in axes} == {18}
    assert [[line.get_xydata().tolist() for line in ax.lines] for ax in axes] == [[], [[[2, 1]]], [[[4, 7]]]]
    nothing = of_block(Subject("a", {"image": image}, truth), found, Box((0, 0, 0), (10, 12, 12))).axes
    assert {float(ax.images[0].get_array().max()) for ax in nothing} == {5}
    assert not any(ax.lines for ax in nothing)


def test_a_volume_is_shown_in_the_middle_of_its_block():
    """Input, truth and answer, the same part of each; an input of larger pixels too."""
    truth = from_array(np.random.default_rng(0).random((8, 12, 12)), spacing=(1, 1, 1))
    coarse = truth.isel(y=slice(0, 12, 2), x=slice(0, 12, 2))
    axes = of_block(Subject("a", {"image": coarse}, truth), truth + 1, Box((2, 4, 0), (6, 12, 6))).axes
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes]
    np.testing.assert_array_equal(shown[0], coarse.values[4, 2:6, :3])
    np.testing.assert_array_equal(shown[1], truth.values[4, 4:12, :6])
    np.testing.assert_array_equal(shown[2], truth.values[4, 4:12, :6] + 1)
