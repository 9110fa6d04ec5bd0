"""Structures of a label map: names, generation classes, tissues, sides.

A *generation class* is the set of labels that share one intensity, as in SynthSeg. Left and right always share it.
A *tissue* is the key of the intensity priors.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrhdata._runtime.arguments import check_choice
from mrhdata.errors import FormatError, ParameterError

#: Tissues inside the brain and its fluid, then those around it.
TISSUES = (
    *("background", "csf", "grey", "white", "striatum", "thalamus", "pallidum", "brain stem", "vessel"),
    *("bone", "marrow", "skin", "muscle", "soft tissue", "eye", "mucosa"),
)
_BRAIN_TISSUES = ("grey", "white", "striatum", "thalamus", "pallidum", "brain stem")


@dataclass(frozen=True)
class Structure:
    """One label of a map.

    Attributes
    ----------
    label : int
        Value in the map.
    name : str
        Name. A name that begins with "left " or "right " has a partner on the other side.
    tissue : str
        One of `TISSUES`.
    generation_class : str, optional
        Name of the class with which the label shares its intensity; by default its name without the side.
    brain : bool, optional
        Whether skull-stripping keeps the structure; by default whether its tissue is brain tissue.

    Examples
    --------
    >>> Structure(3, "left cerebral cortex").partner
    'right cerebral cortex'
    """

    label: int
    name: str
    tissue: str = "grey"
    generation_class: str | None = None
    brain: bool | None = None

    def __post_init__(self) -> None:
        check_choice("tissue", self.tissue, TISSUES)

    @property
    def in_brain(self) -> bool:
        """Whether skull-stripping keeps the structure."""
        return self.tissue in _BRAIN_TISSUES if self.brain is None else self.brain

    @property
    def unsided(self) -> str:
        """Name without the side."""
        return self.name.removeprefix("left ").removeprefix("right ")

    @property
    def partner(self) -> str:
        """Name of the same structure on the other side."""
        if self.name.startswith("left "):
            return f"right {self.unsided}"
        return f"left {self.unsided}" if self.name.startswith("right ") else self.name


@dataclass(frozen=True)
class Anatomy:
    """Structures of a set of label maps; the background is the label 0.

    Attributes
    ----------
    structures : tuple of Structure
        The background first; it is added if it is missing.

    Examples
    --------
    >>> anatomy = Anatomy((Structure(3, "left cortex"), Structure(42, "right cortex"), Structure(4, "fluid", "csf")))
    >>> anatomy.class_names
    ('background', 'cortex', 'fluid')
    >>> anatomy.swapped_sides.tolist()
    [0, 2, 1, 3]
    """

    structures: tuple[Structure, ...]

    def __post_init__(self) -> None:
        labels = [s.label for s in self.structures]
        if len(set(labels)) < len(labels):
            raise ParameterError(f"labels must differ; got {sorted(labels)}. Remove the repeated structure.")
        first = [s for s in self.structures if s.label == 0] or [Structure(0, "background", "background")]
        others = [s for s in self.structures if s.label]
        object.__setattr__(self, "structures", (*first, *others))

    @classmethod
    def of_labels(cls, labels: Iterable[int]) -> Anatomy:
        """Make an anatomy of labels without names: each is a class of its own inside the brain.

        Examples
        --------
        >>> len(Anatomy.of_labels([0, 1, 7]).structures)
        3
        """
        return cls(tuple(Structure(int(label), f"label {label}") for label in labels if label))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Anatomy:
        r"""Read a table with the columns label and name, and optionally tissue and generation_class.

        Raises
        ------
        FormatError
            If a column is missing. Columns are separated by tabs, in a file that ends in .csv by commas.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write("label,name,tissue\n4,fluid,csf\n")
        ...     file.flush()
        ...     Anatomy.read(file.name).class_tissues
        ('background', 'csf')
        """
        separator = "," if str(path).lower().endswith(".csv") else "\t"
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=separator))
        if not rows or not {"label", "name"} <= rows[0].keys():
            columns = sorted(rows[0]) if rows else []
            raise FormatError(f"{path} must have the columns label and name; got {columns}. Rename its columns.")
        structures = (
            Structure(int(row["label"]), row["name"], row.get("tissue") or "grey", row.get("generation_class") or None)
            for row in rows
        )
        return cls(tuple(structures))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Label of each structure."""
        return np.array([s.label for s in self.structures], dtype=np.int64)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the generation classes, the background first."""
        return tuple(dict.fromkeys(s.generation_class or s.unsided for s in self.structures))

    @functools.cached_property
    def classes(self) -> Tensor:
        """Index of each structure's generation class."""
        names = {name: index for index, name in enumerate(self.class_names)}
        return torch.tensor([names[s.generation_class or s.unsided] for s in self.structures])

    @functools.cached_property
    def class_tissues(self) -> tuple[str, ...]:
        """Tissue of each generation class: that of its first structure."""
        first = [self.classes.tolist().index(index) for index in range(len(self.class_names))]
        return tuple(self.structures[index].tissue for index in first)

    @functools.cached_property
    def class_in_brain(self) -> Tensor:
        """Whether a generation class has a structure inside the brain."""
        inside = self.classes[self.in_brain].tolist()
        return torch.tensor([index in inside for index in range(len(self.class_names))])

    @functools.cached_property
    def in_brain(self) -> Tensor:
        """Whether skull-stripping keeps each structure."""
        return torch.tensor([s.in_brain for s in self.structures])

    @functools.cached_property
    def swapped_sides(self) -> Tensor:
        """Index of each structure's partner on the other side, or its own."""
        by_name = {s.name: index for index, s in enumerate(self.structures)}
        return torch.tensor([by_name.get(s.partner, index) for index, s in enumerate(self.structures)])

    def tissue_targets(self, targets: Mapping[str, int]) -> dict[int, int]:
        """Return the target class of each label from that of its tissue; tissues that are not listed are left out.

        Examples
        --------
        >>> FREESURFER.tissue_targets({"csf": 1, "grey": 2})[3]
        2
        """
        for tissue in targets:
            check_choice("tissue", tissue, TISSUES)
        return {s.label: targets[s.tissue] for s in self.structures if s.tissue in targets}


def _pair(left: int, right: int, name: str, tissue: str, **options: str | bool) -> tuple[Structure, Structure]:
    return (
        Structure(left, f"left {name}", tissue, **options),  # type: ignore[arg-type]
        Structure(right, f"right {name}", tissue, **options),  # type: ignore[arg-type]
    )


def _around(rows: Sequence[tuple[int, str, str]]) -> tuple[Structure, ...]:
    return tuple(Structure(label, name, tissue, brain=False) for label, name, tissue in rows)


#: Labels of FreeSurfer, and those of its SAMSEG for the tissues around the brain. Labels 136, 137, 163 and 164 occur in
#: the maps of SynthSeg within the ventricles; their name is ours.
FREESURFER = Anatomy(
    (
        *_pair(2, 41, "cerebral white matter", "white"),
        *_pair(3, 42, "cerebral cortex", "grey"),
        *_pair(4, 43, "lateral ventricle", "csf", brain=True),
        *_pair(5, 44, "inferior lateral ventricle", "csf", brain=True, generation_class="lateral ventricle"),
        *_pair(7, 46, "cerebellum white matter", "white"),
        *_pair(8, 47, "cerebellum cortex", "grey"),
        *_pair(10, 49, "thalamus", "thalamus"),
        *_pair(11, 50, "caudate", "striatum"),
        *_pair(12, 51, "putamen", "striatum"),
        *_pair(13, 52, "pallidum", "pallidum"),
        Structure(14, "3rd ventricle", "csf", brain=True),
        Structure(15, "4th ventricle", "csf", brain=True),
        Structure(16, "brain stem", "brain stem"),
        *_pair(17, 53, "hippocampus", "grey"),
        *_pair(18, 54, "amygdala", "grey", generation_class="hippocampus"),
        Structure(24, "CSF", "csf"),
        *_pair(25, 57, "lesion", "white"),
        *_pair(26, 58, "accumbens", "striatum"),
        *_pair(28, 60, "ventral DC", "brain stem"),
        *_pair(30, 62, "vessel", "vessel", brain=True),
        Structure(72, "5th ventricle", "csf", brain=True),
        Structure(85, "optic chiasm", "white", brain=False),
        *_pair(136, 163, "ventricle lining", "csf", brain=True),
        *_pair(137, 164, "inferior ventricle lining", "csf", brain=True, generation_class="ventricle lining"),
        *_around(
            (
                (502, "artery", "vessel"),
                (506, "eyes", "eye"),
                (507, "other tissues", "soft tissue"),
                (508, "rectus muscles", "muscle"),
                (509, "mucosa", "mucosa"),
                (511, "skin", "skin"),
                (512, "spinal cord", "brain stem"),
                (514, "vein", "vessel"),
                (515, "cortical bone", "bone"),
                (516, "cancellous bone", "marrow"),
                (530, "optic nerve", "white"),
            )
        ),
    )
)  # fmt: skip
