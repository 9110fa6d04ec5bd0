"""A small head: nested boxes of skin, bone, fluid, cortex, white matter and nuclei, left and right."""

import numpy as np
import pytest

from mrhdata.synthesis import SynthesisConfig, Synthesizer

#: Label, first and last voxel along z, y, x; later boxes cover earlier ones.
BOXES = (
    (511, (0, 40), (0, 40), (0, 40)),
    (515, (3, 37), (3, 37), (3, 37)),
    (24, (6, 36), (6, 34), (6, 34)),
    (3, (9, 33), (9, 31), (9, 20)),
    (42, (9, 33), (9, 31), (20, 31)),
    (2, (12, 30), (12, 28), (11, 20)),
    (41, (12, 30), (12, 28), (20, 29)),
    (12, (18, 24), (16, 24), (13, 18)),
    (51, (18, 24), (16, 24), (22, 27)),
)


def head(margin=4):
    """A label map (z, y, x) of boxes in air."""
    labels = np.zeros((40 + 2 * margin,) * 3, dtype=np.int16)
    for label, *box in BOXES:
        labels[tuple(slice(low + margin, high + margin) for low, high in box)] = label
    return labels


@pytest.fixture(scope="session")
def labels():
    return head()


@pytest.fixture(scope="session")
def synthesizer_of(labels):
    """A synthesizer of the head that draws only the changes to `SynthesisConfig.exact`."""

    def make(**changes):
        return Synthesizer([labels], SynthesisConfig.exact(**changes), spacing_mm=(1, 1, 1))

    return make


@pytest.fixture(scope="session")
def synthesizer(labels):
    """A synthesizer of the head with all default ranges."""
    return Synthesizer([labels], spacing_mm=(1, 1, 1))
