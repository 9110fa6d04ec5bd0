"""Figures of the benchmark report."""

import numpy as np
import pandas as pd

from mrhdata.bench.figures import of_block
from mrhdata.datasets.subjects import Subject
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array


def test_of_block_plots_the_plane_of_the_cells():
    """A miss and a false positive in the topmost planes are plotted, although the middle plane has no cells."""
    image = from_array(np.arange(20.0)[:, None, None] * np.ones((20, 12, 12)), spacing=(1, 1, 1))
    truth, false_positive = (image.mrh.world(np.array([voxel])) for voxel in ([18, 3, 4], [17, 9, 6]))
    subject = Subject("a", {"image": image}, points=truth)
    detections = pd.DataFrame(false_positive, columns=["X", "Y", "Z"])
    axes = of_block(subject, detections, Box((0, 2, 2), (20, 12, 12))).axes
    assert {float(ax.images[0].get_array().max()) for ax in axes} == {18}
    assert [[line.get_xydata().tolist() for line in ax.lines] for ax in axes] == [[], [[[2, 1]]], [[[4, 7]]]]
    axes_without_cells = of_block(subject, detections, Box((0, 0, 0), (10, 12, 12))).axes
    assert {float(ax.images[0].get_array().max()) for ax in axes_without_cells} == {5}
    assert not any(ax.lines for ax in axes_without_cells)


def test_of_block_plots_the_middle_plane_of_volumes():
    """Input, truth and answer show the same part, also if the input has larger pixels."""
    truth = from_array(np.random.default_rng(0).random((8, 12, 12)), spacing=(1, 1, 1))
    coarse = truth.isel(y=slice(0, 12, 2), x=slice(0, 12, 2))
    axes = of_block(Subject("a", {"image": coarse}, truth), truth + 1, Box((2, 4, 0), (6, 12, 6))).axes
    images = [np.asarray(ax.images[0].get_array()) for ax in axes]
    np.testing.assert_array_equal(images[0], coarse.values[4, 2:6, :3])
    np.testing.assert_array_equal(images[1], truth.values[4, 4:12, :6])
    np.testing.assert_array_equal(images[2], truth.values[4, 4:12, :6] + 1)
