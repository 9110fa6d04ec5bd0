"""Subjects of a folder by the names of its files, as BIDS has them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.datasets import nnunet, splits
from mrhdata.datasets.bids import parse_loosely
from mrhdata.datasets.build import find_volumes
from mrhdata.errors import DataError
from mrhdata.io import formats
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: What tells scans of one subject apart, besides the subject.
_SCAN = {"session": "ses", "task": "task", "acq": "acq", "run": "run"}


@dataclass(frozen=True)
class Subject:
    """A subject, or one scan or part of it: input volumes and, if they are known, the ground truth and a mask.

    Attributes
    ----------
    id : str
        Name of the subject. A scan may follow an underscore, such as ``01_ses-2``: the person stands before it.
    inputs : mapping of str to volume
        Volumes by channel.
    target : volume, optional
        Ground truth: labels, histology or a good image.
    mask : volume, optional
        Voxels in which the target counts.
    points : (n, 3) array, optional
        Ground truth of detection: world points X, Y, Z in mm.
    points_complete : bool
        Whether every cell was annotated; if not, places that look like cells and have no annotation are not learned.
    ending : str
        Ending of the first volume's file.
    grid : Grid, optional
        Grid of the target, for a subject whose target is withheld.
    """

    id: str
    inputs: Mapping[str, xr.DataArray]
    target: Any = field(default=None, compare=False)
    mask: xr.DataArray | None = field(default=None, compare=False)
    points: Any = field(default=None, compare=False)
    points_complete: bool = True
    ending: str = ".nii.gz"
    grid: Grid | None = None

    @property
    def person(self) -> str:
        """The person; scans of one person are never on both sides of a split."""
        return self.id.partition("_")[0]

    @property
    def first(self) -> xr.DataArray:
        """The first input, whose grid counts."""
        return next(iter(self.inputs.values()))

    @property
    def target_grid(self) -> Grid | None:
        """The grid of the target, also if the target is withheld; None for points."""
        return self.target.mrh.grid if self.target is not None else self.grid

    def blind(self) -> Subject:
        """Return the subject without its ground truth, but with the grid of the target."""
        return replace(self, target=None, points=None, grid=self.target_grid)


def find_subjects(folder: str | Path, inputs: Mapping[str, str], target: str | None = None) -> list[Subject]:
    """Cases of a folder, by patterns of file names.

    Parameters
    ----------
    folder : path
        Searched with its subfolders; names begin with ``sub-01_``, and may have ``ses-``, ``task-``, ``acq-`` and
        ``run-``.
    inputs : mapping of str to str
        A pattern for each channel, such as ``{"t1w": "*T1w*"}``; ``T1w`` means the same, and where that fits two
        files of a scan, the one of which it is a whole word.
    target : str, optional
        Pattern of the target volumes, such as labels.

    Returns
    -------
    subjects : list of Subject
        Subjects that have all channels (and the target, if a pattern is given), by name; a warning names the others.
        ``id`` is all that stands in the name, such as ``01_ses-2``, where a subject was scanned more than
        once.

    Raises
    ------
    DataError
        No file fits a pattern, two fit one scan, or no subject has all.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("sub-1_T1w.nii", "sub-1_seg.nii", "sub-10_T1w.nii"):
    ...     mrhdata.write(mrhdata.volume.from_array(np.zeros((2, 2, 2), np.uint8), spacing=(1, 1, 1)), folder / name)
    >>> [c.id for c in find_subjects(folder, {"t1w": "T1w"}, "seg")]
    ['1']
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"folder must be a folder of subjects; got {root}. Check the path")
    patterns = {**inputs, **({} if target is None else {"target": target})}
    files = list(find_volumes(root))
    found = {name: _matching(files, pattern, root) for name, pattern in patterns.items()}
    complete = sorted(set.intersection(*(set(held) for held in found.values())))
    if not complete:
        held = ", ".join(f"{len(scans)} with {name}" for name, scans in found.items())
        raise DataError(f"no subject of {root} has all volumes: {held}; names are to begin with sub-NAME_")
    for name, pattern in patterns.items():
        lacking = sorted({key for held in found.values() for key in held} - set(found[name]))
        if lacking:
            some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            log.warning("left out for want of %s (%r): %s (%d)", name, pattern, some, len(lacking))
    return [_subject(key, {name: scans[key] for name, scans in found.items()}) for key in complete]


def find_nnunet_subjects(folder: str | Path) -> list[Subject]:
    """Return the training subjects of a folder in nnU-Net's layout: ``imagesTr``, ``labelsTr``, ``dataset.json``.

    Each case is a subject, unless its name gives one, such as ``sub-01_ses-2``. Other underscores become hyphens: case
    ``BRATS_001`` is the subject ``BRATS-001``.

    Parameters
    ----------
    folder : path
        Folder of the data set, such as ``Dataset001_BrainTumour``.

    Returns
    -------
    subjects : list of Subject
        Subjects by name, with labels as targets; channels have the names of ``dataset.json``. Voxels of the label
        ``ignore`` have no ground truth: they are -1, which training and scores leave out.

    Raises
    ------
    FormatError, DataError
        As :func:`mrhdata.datasets.nnunet.read_dataset`.

    Examples
    --------
    >>> import json, tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}}))
    >>> volume = mrhdata.volume.from_array(np.zeros((2, 2, 2), np.uint8), spacing=(1, 1, 1))
    >>> for name in ("imagesTr/BRATS_001_0000.nii", "labelsTr/BRATS_001.nii"):
    ...     (folder / name).parent.mkdir(exist_ok=True)
    ...     mrhdata.write(volume, folder / name)
    >>> [(subject.id, list(subject.inputs)) for subject in find_nnunet_subjects(folder)]
    [('BRATS-001', ['T1'])]
    """
    dataset = nnunet.read_dataset(folder)
    subjects = []
    for case, images in dataset.images.items():
        name = case.removeprefix("sub-") if "subject" in parse_loosely(case) else case.replace("_", "-")
        files = {**dict(zip(dataset.channels, images, strict=True)), "target": dataset.labels[case]}
        subjects.append(_without_ground_truth(_subject(name, files), dataset.ignore))
    return subjects


def _without_ground_truth(subject: Subject, value: int | None) -> Subject:
    """Return a subject whose target is -1, which losses and scores ignore, at the voxels of a value."""
    if value is None or subject.target is None:
        return subject
    target = subject.target
    wide = target.astype(np.int64 if target.dtype.itemsize == 8 else np.result_type(target.dtype, np.int8))
    return replace(subject, target=wide.where(target != value, -1).astype(wide.dtype).assign_attrs(target.attrs))


def split_subjects(subjects: Sequence[Subject], sizes: Sequence[float], seed: int) -> dict[str, list[Subject]]:
    """Whole persons for training, validation and test, in the given shares, at least one for each."""
    split = {name: size / sum(sizes) for name, size in zip(("training", "validation", "test"), sizes, strict=True)}
    part_of = splits.assign_parts([subject.person for subject in subjects], split, seed)
    return {name: [subject for subject in subjects if part_of[subject.person] == name] for name in split}


def _matching(files: list[Path], pattern: str, root: Path) -> dict[str, Path]:
    """Files of a pattern by their scan."""
    found: dict[str, Path] = {}
    wide = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    for path in files:
        entities = parse_loosely(path.name)
        if "subject" not in entities or not fnmatch(path.name, wide):
            continue
        scan = "_".join(
            [entities["subject"], *(f"{short}-{entities[e]}" for e, short in _SCAN.items() if e in entities)]
        )
        if scan in found and _whole(pattern, path) == _whole(pattern, found[scan]):
            raise DataError(
                f"{found[scan].name} and {path.name} are both {pattern!r} of {scan}; make the pattern narrower, such "
                f"as '*_{pattern.strip('*')}.*'"
            )
        if scan not in found or _whole(pattern, path):
            found[scan] = path
    if not found:
        raise DataError(f"no file of {root} fits {pattern!r} and begins with sub-NAME_; look at the names")
    return found


def _whole(pattern: str, path: Path) -> bool:
    """Whether a pattern is a word of a name, as MT is of sub-1_MT.nii.gz and not of sub-1_MTR.nii.gz."""
    return pattern in re.split(r"[_.]", path.name)


def _subject(key: str, files: dict[str, Path]) -> Subject:
    labels = files.pop("target", None)
    inputs = {name: formats.read(path).rename(name) for name, path in files.items()}
    return Subject(
        key,
        inputs,
        None if labels is None else formats.read(labels, kind="labels"),
        ending=formats.written_as(next(iter(files.values()))),
    )


def check_disjoint(training: Sequence[Subject], validation: Sequence[Subject]) -> None:
    """Raise `DataError` where somebody is on both sides of a split."""
    both = {subject.person for subject in training} & {subject.person for subject in validation}
    if both:
        raise DataError(f"the subjects {sorted(both)} are in training and in validation; give others")
