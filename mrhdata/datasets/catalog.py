"""Catalogues of volumes: intake's YAML, checked before intake sees it, selected by metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from intake.catalog.local import YAMLFileCatalog
from intake.source.base import DataSource, Schema

from mrhdata._runtime import html
from mrhdata._runtime.atomic import appearing
from mrhdata.datasets.validation import check, load, resolve
from mrhdata.errors import CatalogError, MrhdataError, NameMissingError
from mrhdata.io import formats
from mrhdata.volume.construct import group
from mrhdata.volume.grid import length

if TYPE_CHECKING:
    import xarray as xr

#: What a notebook shows: entries and decoded bytes at most, and metadata where an entry has them.
_SHOWN, _SHOWN_BYTES = 12, 128_000_000
_KEYS = ("subject", "session", "role", "modality", "kind", "space", "split", "licence")

__all__ = ["Catalog", "VolumeSource", "check", "open_catalog", "write"]


class VolumeSource(DataSource):  # type: ignore[misc]
    """The intake driver ``mrh_volume``: anything that :func:`mrhdata.read` reads.

    Parameters
    ----------
    urlpath : str
        Path or URL.
    **options
        As for :func:`mrhdata.read`: ``axes``, ``unit``, ``spacing``, ``space``, ``kind``, ...
    """

    name = "mrh_volume"
    container = "xarray"
    version = "1"
    partition_access = True

    def __init__(self, urlpath: str, metadata: dict[str, Any] | None = None, **options: Any) -> None:
        unknown = set(options) - set(formats.Options.__annotations__)
        if unknown:
            raise CatalogError(
                f"an entry of driver mrh_volume has no {sorted(unknown)}; choose among subjects by the entry's name, "
                "or with mrhdata.open_catalog(...).select"
            )
        super().__init__(metadata=metadata)
        self.urlpath, self.options = urlpath, options
        self._volume: xr.DataArray | None = None

    def _get_schema(self) -> Any:
        volume = self.to_dask()
        return Schema(datashape=None, dtype=str(volume.dtype), shape=volume.shape, npartitions=1, extra_metadata={})

    def to_dask(self) -> xr.DataArray:
        """Return the lazy volume."""
        if self._volume is None:
            self._volume = formats.read(self.urlpath, **self.options)
        return self._volume

    def read(self) -> xr.DataArray:
        """Return the lazy volume too: volumes are computed where they are used."""
        return self.to_dask()

    def _close(self) -> None:
        self._volume = None


class _Group(dict[str, Any]):
    """Volumes or groups by name, which say what there is where a name is not among them."""

    def __init__(self, held: Mapping[str, Any], whose: str) -> None:
        super().__init__(held)
        self._whose = whose

    def __missing__(self, name: str) -> Any:
        raise NameMissingError(f"{self._whose} has no {name!r}; it has {', '.join(map(repr, self))}")


class Catalog(YAMLFileCatalog):  # type: ignore[misc]
    """intake's catalogue, whose entries, and those of nested ones, can be selected by their metadata."""

    name = "mrh_catalog"

    def select(self, **metadata: Any) -> dict[str, xr.DataArray]:
        """Volumes whose metadata hold all the given values, as a co-registered group.

        Parameters
        ----------
        **metadata
            Values to match exactly, such as ``subject="01"``, ``modality="mri"``; a list matches any
            of its values.

        Returns
        -------
        group : dict of str to volume
            Keyed by the entries' ``role`` where all have one of their own, by entry name otherwise. A name that is
            not among them raises an error, also a ``KeyError``, that says which are.

        Raises
        ------
        CatalogError
            No entry matches; the message names the values that exist.
        GridError
            The volumes that match lie in different spaces.

        Examples
        --------
        >>> import tempfile, numpy as np, mrhdata
        >>> folder = Path(tempfile.mkdtemp())
        >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "a.nii")
        >>> write(folder / "catalog.yaml", "One volume", {"a": ("a.nii", {"subject": "01", "role": "t2w"})})
        >>> open_catalog(folder / "catalog.yaml").select(subject="01")["t2w"].shape
        (2, 3, 4)
        """
        found = self.find(**metadata)
        roles = [held.get("role") for held, _ in found.values()]
        keys = list(found) if None in roles or len(set(roles)) < len(roles) else roles
        volumes = {str(k): source.to_dask() for k, (_, source) in zip(keys, found.values(), strict=True)}
        whose = ", ".join(f"{key} {value!r}" for key, value in metadata.items()) or str(self.path)
        return _Group(group(volumes), whose)

    def subjects(self, **metadata: Any) -> dict[str, dict[str, xr.DataArray]]:
        """One co-registered group for each subject that has entries with the given metadata.

        Examples
        --------
        >>> import tempfile, numpy as np, mrhdata
        >>> folder = Path(tempfile.mkdtemp())
        >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "a.nii")
        >>> one = {s: ("a.nii", {"subject": s, "split": "train"}) for s in ("1", "10")}
        >>> write(folder / "catalog.yaml", "Two subjects", one)
        >>> list(open_catalog(folder / "catalog.yaml").subjects(split="train"))
        ['1', '10']
        """
        names = {
            str(held["subject"]): held["subject"] for held, _ in self.find(**metadata).values() if "subject" in held
        }
        if not names:
            raise CatalogError(f"no entry of {self.path} with {metadata} names a subject")
        groups = {name: self.select(**{**metadata, "subject": value}) for name, value in names.items()}
        return _Group(groups, str(self.path))

    def _repr_html_(self) -> str:
        entries = dict(_entries(self.path, self._storage_options))
        first = dict(list(entries.items())[:_SHOWN])
        keys = [key for key in _KEYS if any(key in held for held, _ in first.values())]
        rows, left = [], _SHOWN_BYTES
        for name, (held, source) in first.items():
            drawing, said, spent = _glimpse(source, left)
            left -= spent
            rows.append([drawing, name, said, *(held.get(key, "") for key in keys)])
        note = (
            f"the first {_SHOWN}; .find() gives all" if len(entries) > _SHOWN else ".select(subject=...) gives volumes"
        )
        title = f"{len(entries)} volumes in {self.path}"
        return html.block(title, html.table(["", "entry", "z, y, x", *keys], rows), note=note)

    def find(self, **metadata: Any) -> dict[str, tuple[dict[str, Any], VolumeSource]]:
        """Metadata and source of each entry that matches, by name; nested names are joined by a dot."""
        entries = dict(_entries(self.path, self._storage_options))
        found = {name: entry for name, entry in entries.items() if _matches(entry[0], metadata)}
        if not found:
            known = {key: sorted({str(held[key]) for held, _ in entries.values() if key in held}) for key in metadata}
            raise CatalogError(f"no entry of {self.path} has {metadata}; there are {known}")
        return found

    def __init__(self, path: str, storage_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self._storage_options = dict(storage_options or {})
        super().__init__(path, storage_options=storage_options, **kwargs)


def _glimpse(source: VolumeSource, most: int) -> tuple[str, str, int]:
    """The middle plane of an entry at its coarsest level, its size in words, and the bytes that were decoded.

    A volume of more bytes than `most`, and one that would come over the network, is not looked into.
    """
    if "://" in source.urlpath:
        return "", "remote, not looked at", 0
    try:
        grid = source.to_dask().mrh.grid
        said = " x ".join(map(str, grid.shape)) + " of " + " x ".join(length(float(s)) for s in grid.spacing)
        small = VolumeSource(source.urlpath, **{"level": -1, **source.options}).to_dask()
        if small.nbytes > most:
            return "", f"{said}; too large for a picture, convert it to OME-Zarr", 0
        plane = small.isel({dim: small.sizes[dim] // 2 for dim in ("t", "c", "z") if dim in small.dims})
        # Anterior up and right to the right, as in other pictures.
        up, across = (-1 if letter in "PL" else 1 for letter in grid.orientation[1:])
        values = np.atleast_2d(plane.values)[::up, ::across]
        alt = f"middle plane of {Path(source.urlpath).name}"
        return html.picture(values, values.shape, small.mrh.spacing[1:], alt, longest=72), said, small.nbytes
    except MrhdataError as error:
        return "", str(error), 0


def _matches(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(held.get(k) in v if isinstance(v, list | tuple | set) else held.get(k) == v for k, v in wanted.items())


def _entries(
    uri: str, options: dict[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[dict[str, Any], VolumeSource]]]:
    """Entries that are volumes, of a catalogue that was checked, and of those nested in it."""
    for name, entry in load(uri, options)["sources"].items():
        args = dict(entry.get("args", {}))
        if entry["driver"] == "yaml_file_cat":
            nested = resolve(str(args.get("path", "")), uri)
            if nested not in above:
                for inner, found in _entries(nested, options, (*above, uri)):
                    yield f"{name}.{inner}", found
        elif entry["driver"] == "mrh_volume":
            place = resolve(args.pop("urlpath"), uri)
            yield str(name), (dict(entry.get("metadata", {})), VolumeSource(place, **args))


def open_catalog(uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> Catalog:
    """Check a catalogue and open it.

    Parameters
    ----------
    uri : path or URL
        A YAML file that ``intake.open_catalog`` opens too, local or at ``http``, ``https`` or ``s3``.
    storage_options : dict, optional
        For a URL, such as ``{"anon": True}``.

    Returns
    -------
    catalog : Catalog

    Raises
    ------
    CatalogError
        The file is missing, is no catalogue, or holds something that could run code.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "a.nii")
    >>> write(folder / "catalog.yaml", "One volume", {"a": ("a.nii", {"subject": "01", "role": "t2w"})})
    >>> list(mrhdata.open_catalog(folder / "catalog.yaml"))
    ['a']
    """
    check(uri, storage_options)
    return Catalog(os.fspath(uri), storage_options=storage_options)


def write(
    path: str | os.PathLike[str],
    title: str,
    entries: Mapping[str, tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    **metadata: Any,
) -> None:
    """Write a catalogue of volumes beside it, as YAML made to be read by people.

    Parameters
    ----------
    path : path
        The YAML file; replaced if it exists.
    title : str
    entries : mapping of str to (path, metadata) or (path, metadata, options)
        Paths relative to the catalogue's folder, or URLs; metadata such as ``subject``, ``modality``,
        ``role``; options of :func:`mrhdata.read` that put a wrong header right.
    **metadata
        Of the whole catalogue, such as ``licence``.
    """
    sources = {}
    for name, (place, held, *options) in entries.items():
        urlpath = place if "://" in place else "{{ CATALOG_DIR }}/" + Path(place).as_posix()
        args = {"urlpath": urlpath, **(options[0] if options else {})}
        sources[name] = {"driver": "mrh_volume", "args": args, "metadata": dict(held)}
    content = {"metadata": {"version": 1, "title": title, **metadata}, "sources": sources}
    text = "# Opens with intake.open_catalog or mrhdata.open_catalog.\n" + yaml.safe_dump(content, sort_keys=False)
    with appearing(path) as draft:
        draft.write_text(text, encoding="utf-8")
        check(draft)
