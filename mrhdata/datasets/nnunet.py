"""Folders and file names of nnU-Net (Isensee et al. 2021, Nat. Methods 18:203), such as ``BRATS_001_0000.nii.gz``.

A data set has ``imagesTr`` with a file for each channel of a case, ``labelsTr`` and ``dataset.json`` of version 1 (with
``modality``) or 2 (with ``channel_names``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrhdata.datasets.bids import stem
from mrhdata.datasets.build import find_volumes, is_volume_folder
from mrhdata.errors import DataError, FormatError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Dataset:
    """Training cases of a data set.

    Attributes
    ----------
    channels : tuple of str
        Names of the channels in the order of the suffix of their files.
    names : dict of int to str
        Name of each label value; regions that join several values have none, and neither has `ignore`.
    images : dict of str to list of pathlib.Path
        Files of each case, a file per channel.
    labels : dict of str to pathlib.Path
        Label file of each case.
    ignore : int or None
        Value of voxels without ground truth, the label ``ignore``.
    """

    channels: tuple[str, ...]
    names: dict[int, str]
    images: dict[str, list[Path]]
    labels: dict[str, Path]
    ignore: int | None = None


def is_dataset(folder: str | Path) -> bool:
    """Return whether a folder is a data set of nnU-Net: it has ``dataset.json`` and ``imagesTr``."""
    return (Path(folder) / "dataset.json").is_file() and (Path(folder) / "imagesTr").is_dir()


def read_dataset(folder: str | Path) -> Dataset:
    """Read the training cases of a data set; no voxel is read.

    Parameters
    ----------
    folder : path
        Folder with ``imagesTr``, ``labelsTr`` and ``dataset.json``.

    Returns
    -------
    dataset : Dataset
        Cases in the order of their names.

    Raises
    ------
    FormatError
        If ``dataset.json`` cannot be read or has no channels.
    DataError
        If a case lacks a channel or its labels.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    >>> _ = (folder / "dataset.json").write_text(json.dumps(content))
    >>> volume = mrhdata.volume.from_array(np.zeros((2, 2, 2), np.uint8), spacing=(1, 1, 1))
    >>> for name in ("imagesTr/a_1_0000.nii", "imagesTr/a_1_0001.nii", "labelsTr/a_1.nii"):
    ...     (folder / name).parent.mkdir(exist_ok=True)
    ...     mrhdata.write(volume, folder / name)
    >>> dataset = read_dataset(folder)
    >>> dataset.channels, dataset.names, [path.name for path in dataset.images["a_1"]]
    (('T1', 'T2'), {0: 'background', 1: 'tumour'}, ['a_1_0000.nii', 'a_1_0001.nii'])
    """
    root = Path(folder)
    content = _read_json(root / "dataset.json")
    channels = _channel_names(content, root)
    names = _label_names(content.get("labels", {}))
    ignore = next((value for value, name in names.items() if name == "ignore"), None)
    if ignore is not None:
        del names[ignore]
    images = group_channels(_volumes(root / "imagesTr", content))
    labels = {stem(path): path for path in _volumes(root / "labelsTr", content)}
    if not images:
        raise DataError(f"{root / 'imagesTr'} has no volumes; files must be named CASE_0000.nii.gz")
    for case, files in images.items():
        if len(files) != len(channels):
            raise DataError(f"case {case} has {len(files)} channels; dataset.json names {len(channels)}: {channels}")
        if case not in labels:
            raise DataError(f"case {case} has no labels in {root / 'labelsTr'}; add them, or move its images away")
    return Dataset(channels, names, images, {case: labels[case] for case in images}, ignore)


def cases_in(folder: str | Path) -> dict[str, list[Path]]:
    """Return the volumes directly in a folder by case, a file per channel.

    A folder that is one volume itself, such as an OME-Zarr, a stack of TIFF or PNG planes or a DICOM series, has no
    cases.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> volume = mrhdata.volume.from_array(np.zeros((2, 2, 2), np.uint8), spacing=(1, 1, 1))
    >>> for name in ("a_0000.nii", "a_0001.nii", "b_0000.nii"):
    ...     mrhdata.write(volume, folder / name)
    >>> {case: [path.name for path in files] for case, files in cases_in(folder).items()}
    {'a': ['a_0000.nii', 'a_0001.nii'], 'b': ['b_0000.nii']}
    """
    root = Path(folder)
    if is_volume_folder(root):
        return {}
    volumes = [path for path in find_volumes(root) if path.parent == root]
    # A folder of plain TIFF files is read as one stack, whatever their names are.
    planes = [path for path in volumes if path.suffix.lower() in (".tif", ".tiff") and ".ome." not in path.name.lower()]
    return {} if len(planes) == len(volumes) else group_channels(volumes)


def group_channels(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by case: files of one name with the suffixes ``_0000``, ``_0001`` are its channels, in this order.

    A file without a suffix is a case of one channel, and so is one whose suffixes do not count from 0, such as a year.

    Raises
    ------
    DataError
        If two files are the same channel of a case.

    Examples
    --------
    >>> names = ("a_0001.nii.gz", "a_0000.nii.gz", "b.nii.gz", "c_2024.nii.gz")
    >>> {case: [path.name for path in files] for case, files in group_channels(map(Path, names)).items()}
    {'a': ['a_0000.nii.gz', 'a_0001.nii.gz'], 'b': ['b.nii.gz'], 'c_2024': ['c_2024.nii.gz']}
    """
    paths = sorted(files)
    numbers: dict[str, set[int]] = {}
    for path in paths:
        if match := _CHANNEL.fullmatch(stem(path)):
            numbers.setdefault(match[1], set()).add(int(match[2]))
    cases: dict[str, dict[int, Path]] = {}
    for path in paths:
        match = _CHANNEL.fullmatch(stem(path))
        counted = match is not None and numbers[match[1]] == set(range(len(numbers[match[1]])))
        case, number = (match[1], int(match[2])) if match is not None and counted else (stem(path), 0)
        channels = cases.setdefault(case, {})
        if number in channels:
            raise DataError(f"{channels[number].name} and {path.name} are both channel {number} of {case}; remove one")
        channels[number] = path
    return {case: [channels[number] for number in sorted(channels)] for case, channels in sorted(cases.items())}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error}); check that it is nnU-Net's dataset.json") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must be a JSON object; check that it is nnU-Net's dataset.json")
    return content


def _channel_names(content: dict[str, Any], root: Path) -> tuple[str, ...]:
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or sorted(channels, key=str) != sorted(map(str, range(len(channels)))):
        raise FormatError(
            f'{root / "dataset.json"} must have channel_names such as {{"0": "T1"}}; got {channels!r}. Add them.'
        )
    names = tuple(str(channels[str(number)]) for number in range(len(channels)))
    if len(set(names)) == len(names):
        return names
    # nnU-Net allows two channels of one name.
    return tuple(f"{name}-{number}" for number, name in enumerate(names))


def _label_names(labels: dict[str, Any]) -> dict[int, str]:
    """Return names by value: version 2 lists values by name, version 1 names by value."""
    if all(isinstance(name, str) and value.isdigit() for value, name in labels.items()):
        return {int(value): name for value, name in labels.items()}
    return {value: name for name, value in labels.items() if isinstance(value, int)}


def _volumes(folder: Path, content: dict[str, Any]) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; a data set of nnU-Net has imagesTr, labelsTr and dataset.json")
    ending = str(content.get("file_ending", ""))
    return [path for path in find_volumes(folder) if path.parent == folder and path.name.endswith(ending)]
