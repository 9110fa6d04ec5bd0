"""Labels that a network learns from the label maps of whole heads, in two schemes: tissues, and structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrhdata.preprocessing.pipeline import Steps


@dataclass(frozen=True)
class LabelScheme:
    """Labels of a network, and the labels of the maps that each stands for.

    Attributes
    ----------
    names : mapping of int to str
        Name of each label.
    members : mapping of int to tuple of int
        Labels of the maps.
    refined : tuple of tuples of int
        Labels between which the borders follow the image (:mod:`mrhdata.preprocessing.refinement`).

    Examples
    --------
    >>> scheme = LabelScheme({1: "grey", 2: "white"}, {1: (3, 42), 2: (2, 41)}, ((1, 2),))
    >>> scheme.targets[42], scheme.finish
    (1, (('refine', {'groups': [[1, 2]]}),))
    """

    names: Mapping[int, str]
    members: Mapping[int, tuple[int, ...]]
    refined: tuple[tuple[int, ...], ...] = ()

    @property
    def targets(self) -> dict[int, int]:
        """Label of the network for each label of the maps."""
        return {label: target for target, labels in self.members.items() for label in labels}

    @property
    def finish(self) -> Steps:
        """Steps on the labels of the network."""
        return (("refine", {"groups": [list(group) for group in self.refined]}),) if self.refined else ()


_FLUID = (4, 5, 14, 15, 24, 43, 44, 72, 136, 137, 163, 164)

#: Tissues of FreeSurfer's labels. Hippocampus and amygdala belong to the cortical grey matter.
TISSUES = LabelScheme(
    names={
        1: "cerebrospinal fluid",
        2: "cortical grey matter",
        3: "cerebral white matter",
        4: "deep grey matter",
        5: "cerebellar cortex",
        6: "cerebellar white matter",
        7: "brain stem",
    },
    members={
        1: _FLUID,
        2: (3, 17, 18, 42, 53, 54),
        3: (2, 25, 41, 57),
        4: (10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
        5: (8, 47),
        6: (7, 46),
        7: (16, 28, 60),
    },
    refined=((1, 2, 3), (5, 6)),
)

#: Structures of FreeSurfer's labels, left and right together.
STRUCTURES = LabelScheme(
    names={
        1: "cerebrospinal fluid",
        2: "cerebral cortex",
        3: "cerebral white matter",
        4: "cerebellar cortex",
        5: "cerebellar white matter",
        6: "brain stem",
        7: "ventral diencephalon",
        8: "thalamus",
        9: "caudate",
        10: "putamen",
        11: "pallidum",
        12: "accumbens",
        13: "hippocampus",
        14: "amygdala",
    },
    members={
        1: _FLUID,
        2: (3, 42),
        3: (2, 25, 41, 57),
        4: (8, 47),
        5: (7, 46),
        6: (16,),
        7: (28, 60),
        8: (10, 49),
        9: (11, 50),
        10: (12, 51),
        11: (13, 52),
        12: (26, 58),
        13: (17, 53),
        14: (18, 54),
    },
    refined=((1, 2, 3), (4, 5)),
)

#: Schemes by the word of ``mrhdata train segmentation --targets``.
SCHEMES = {"tissue": TISSUES, "structures": STRUCTURES}
