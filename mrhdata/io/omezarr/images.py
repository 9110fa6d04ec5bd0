"""Images of a Zarr group: which there are, and the metadata of the one that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from mrhdata.errors import FormatError
from mrhdata.volume.construct import DIMS
from mrhdata.volume.file_arrays import DAMAGE

_VERSIONS = ("0.4", "0.5")
#: Images that an error lists, and groups that are searched for them.
_LISTED, _SEARCHED, _DEPTH = 20, 200, 3
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class Image:
    """One image of a group.

    Parameters
    ----------
    group : zarr.Group
    version : str
        Version of OME-Zarr.
    metadata : dict
        Element of the group's ``multiscales``.
    attrs : dict
        All attributes of the group.
    """

    group: zarr.Group
    version: str
    metadata: dict[str, Any]
    attrs: dict[str, Any]

    @property
    def ome(self) -> dict[str, Any]:
        """Attributes of OME-Zarr, which version 0.5 keeps together."""
        return dict(self.attrs.get("ome", self.attrs))

    @property
    def axes(self) -> list[str]:
        """Names of the axes."""
        return [str(axis["name"]) for axis in self.metadata["axes"]]


def open_image(path: Path | str, dataset: str | None, storage_options: dict[str, Any] | None) -> Image:
    """Open an image of a store.

    Parameters
    ----------
    path : path or URL
    dataset : str, optional
        Path of a group within the store, or name or number of one of the images of a group.
    storage_options : dict, optional
        Options of the file system of a URL.

    Raises
    ------
    FormatError
        The store lacks this image, or has several and `dataset` is not passed, or the metadata is malformed.
    """
    group, choice = _open_group(path, dataset, storage_options)
    attrs: dict[str, Any] = dict(group.attrs)
    ome: Any = attrs.get("ome", attrs)
    listed = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(image, Mapping) for image in listed):
        names = [] if "://" in str(path) else _image_names(group)
        if len(names) == 1 and dataset is None:
            return open_image(path, names[0], storage_options)
        remedy = f"choose one of {', '.join(names)} with dataset=" if names else "pass the folder of one image"
        raise FormatError(f"{path} is a Zarr group without OME-Zarr multiscales; {remedy}")
    image = dict(_chosen(listed, choice, path))
    version = str(ome.get("version") or image.get("version") or "0.4")
    if version not in _VERSIONS:
        raise FormatError(f"{path} is OME-Zarr {version}; versions {' and '.join(_VERSIONS)} can be read")
    _check_lists(image, path)
    return Image(group, version, image, attrs)


def images_below(path: Path) -> list[str]:
    """Return the paths or names of the images of a local store; an image may have others below, such as labels."""
    try:
        group, _ = _open_group(path, None, None)
    except FormatError:
        # The images of a folder can be named even if the folder itself is not a group.
        return []
    ome: Any = group.attrs.get("ome", group.attrs)
    listed = ome.get("multiscales") if isinstance(ome, Mapping) else None
    images = [image for image in listed or [] if isinstance(image, Mapping)]
    names = [str(image.get("name") or n) for n, image in enumerate(images)]
    distinct = names if len(set(names)) == len(names) else list(map(str, range(len(names))))
    return [*distinct, *_image_names(group)]


def _open_group(
    path: Path | str, dataset: str | None, storage_options: dict[str, Any] | None
) -> tuple[zarr.Group, str | None]:
    """Return the group of `dataset`; otherwise the group that contains it, and its name as an image in that."""
    options: dict[str, Any] = {"mode": "r", "storage_options": storage_options, "use_consolidated": False}
    try:
        return zarr.open_group(path, path=dataset, **options), None
    except DAMAGE as error:
        failure = error
    if dataset:
        parent, _, name = dataset.rpartition("/")
        try:
            group = zarr.open_group(path, path=parent or None, **options)
        except DAMAGE:
            pass
        else:
            ome: Any = group.attrs.get("ome", group.attrs)
            if isinstance(ome, Mapping) and ome.get("multiscales"):
                return group, name
    label = f"{path} (image {dataset!r})" if dataset else path
    detail = " ".join(str(failure).split())[:200] or type(failure).__name__
    raise FormatError(
        f"{label} is not a readable Zarr group ({detail}). Pass the folder of an OME-Zarr, or copy it again"
    ) from failure


def _chosen(listed: Sequence[Mapping[str, Any]], choice: str | None, path: Path | str) -> Mapping[str, Any]:
    """Return the only image of a group, or the one of a name or number."""
    if choice is None and len(listed) == 1:
        return listed[0]
    names = [str(image.get("name", "")) for image in listed]
    if choice is not None and names.count(choice) == 1:
        return listed[names.index(choice)]
    if choice is not None and choice.isdecimal() and int(choice) < len(listed):
        return listed[int(choice)]
    described = ", ".join(f"{n} ({name!r})" for n, name in enumerate(names))
    raise FormatError(
        f"{path} has {len(listed)} images in one group: {described}. Choose one by its name or number with dataset=; "
        f"got {choice!r}"
    )


def _check_lists(image: Mapping[str, Any], path: Path | str) -> None:
    """Raise FormatError unless the image lists axes, which this package knows, and levels."""
    axes, datasets = image.get("axes"), image.get("datasets")
    if not isinstance(axes, list) or not axes or not all(isinstance(a, Mapping) and "name" in a for a in axes):
        raise FormatError(f"{path} must list its axes by name; got {str(axes)[:100]}. Write the store again")
    if (
        not isinstance(datasets, list)
        or not datasets
        or not all(isinstance(d, Mapping) and "path" in d for d in datasets)
    ):
        raise FormatError(f"{path} must list its levels by path; got {str(datasets)[:100]}. Write the store again")
    names = [str(axis["name"]) for axis in axes]
    if not set(names) <= set(DIMS) or len(set(names)) != len(names):
        raise FormatError(f"{path} must have axes from {DIMS}, each once; got {names}")
    for axis in axes:
        if axis.get("type") not in (None, _TYPES[str(axis["name"])]):
            raise FormatError(
                f"{path}: the type of axis {axis['name']!r} must be {_TYPES[axis['name']]!r}; got {axis['type']!r}"
            )


def _image_names(group: zarr.Group) -> list[str]:
    """Return the paths of the images below a group of the local disk."""
    with warnings.catch_warnings():
        # zarr-python warns about other files in the folder.
        warnings.simplefilter("ignore")
        names = []
        for _, name in zip(range(_SEARCHED), _names_below(group, "", _DEPTH), strict=False):
            names.append(name)
        return sorted(names)[:_LISTED]


def _names_below(group: zarr.Group, prefix: str, depth: int) -> Iterator[str]:
    for name, member in sorted(group.groups()):
        ome: Any = member.attrs.get("ome", member.attrs)
        if isinstance(ome, Mapping) and ome.get("multiscales"):
            yield prefix + name
        elif depth > 1:
            yield from _names_below(member, f"{prefix}{name}/", depth - 1)
