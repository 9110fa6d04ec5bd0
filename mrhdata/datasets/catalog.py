"""Catalogues of volumes in intake's YAML format, checked before intake opens them, selected by metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from intake.catalog.local import LocalCatalogEntry, YAMLFileCatalog
from intake.source.base import DataSource, Schema

from mrhdata._runtime import html
from mrhdata._runtime.arguments import check_path
from mrhdata._runtime.atomic import atomic_write
from mrhdata.datasets.addresses import folder_of
from mrhdata.datasets.documents import parse, read_text
from mrhdata.datasets.drivers import NESTED
from mrhdata.datasets.validation import MAX_NESTING, Contents, Entry, check, check_content, location, read_catalogs
from mrhdata.errors import CatalogError, MrhdataError, NameMissingError
from mrhdata.io import formats
from mrhdata.volume.grid import length
from mrhdata.volume.groups import group

if TYPE_CHECKING:
    import xarray as xr

#: Most entries and most decoded bytes that a notebook shows.
_MAX_ROWS = 12
_MAX_DECODED_BYTES = 128_000_000
#: Most entries and nested catalogues that a search visits: each of a few nested catalogues can be listed many times.
_MAX_VISITS = 200_000
#: Metadata that a notebook shows as columns, if an entry has them.
_COLUMNS = ("subject", "session", "role", "modality", "kind", "space", "split", "licence")

__all__ = ["Catalog", "VolumeSource", "add", "check", "open_catalog", "write"]


class VolumeSource(DataSource):  # type: ignore[misc]
    """The intake driver ``mrh_volume``, which reads every format of :func:`mrhdata.read`.

    Parameters
    ----------
    urlpath : str
        Path or URL.
    **options
        Options of :func:`mrhdata.read`, such as ``axes``, ``unit``, ``spacing``, ``space``, ``kind``.
    """

    name = "mrh_volume"
    container = "xarray"
    version = "1"
    partition_access = True

    def __init__(self, urlpath: str, metadata: dict[str, Any] | None = None, **options: Any) -> None:
        unknown = set(options) - set(formats.Options.__annotations__)
        if unknown:
            raise CatalogError(
                f"an entry of driver mrh_volume has no {sorted(unknown)}; select a subject by the name of its entry, "
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
        """Return the lazy volume; voxels are read when they are used."""
        return self.to_dask()

    def _close(self) -> None:
        self._volume = None


class _Group(dict[str, Any]):
    """Volumes or groups by name; a missing name raises an error that lists the existing ones."""

    def __init__(self, items: Mapping[str, Any], owner: str) -> None:
        super().__init__(items)
        self._owner = owner

    def __missing__(self, name: str) -> Any:
        raise NameMissingError(f"{self._owner} has no {name!r}; it has {', '.join(map(repr, self))}")


class _CheckedEntry(LocalCatalogEntry):  # type: ignore[misc]
    """An entry whose arguments were checked and completed; intake expands no template in them."""

    def _create_open_args(self, user_parameters: dict[str, Any]) -> tuple[type[DataSource], dict[str, Any]]:
        metadata = {**self._metadata, "catalog_dir": self._catalog_dir}
        return self._plugin[0], {"metadata": metadata, **self._open_args, **user_parameters}

    def get(self, **user_parameters: Any) -> Any:
        if not self._plugin:
            raise CatalogError(f"entry {self._name!r} needs the driver {self._driver}, which is not installed")
        return super().get(**user_parameters)


class Catalog(YAMLFileCatalog):  # type: ignore[misc]
    """An intake catalogue whose entries, including nested ones, can be selected by metadata.

    The file and its nested catalogues are read once, when the catalogue is opened, and checked; intake works with what
    was checked. Open the catalogue again after a change of the file.
    """

    name = "mrh_catalog"

    def __init__(
        self,
        path: str,
        storage_options: dict[str, Any] | None = None,
        contents: Mapping[str, Contents] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        # A copy in another process reads and checks the files again.
        self._captured_init_kwargs: dict[str, Any] = {"storage_options": storage_options, "metadata": metadata}
        self._captured_init_args = (path,)
        self._contents = read_catalogs(path, storage_options) if contents is None else contents
        self._location = location(path)
        super().__init__(path, autoreload=False, metadata=metadata, storage_options=storage_options, ttl=None)

    def _load(self, reload: bool = False) -> None:
        own = self._contents[self._location]
        self._entries = {name: self._entry_of(name, entry, own) for name, entry in own.entries.items()}
        self.metadata: dict[str, Any] = {**(self.metadata or {}), **own.metadata}
        self.name = self.name or self.name_from_path

    def _entry_of(self, name: str, entry: Entry, own: Contents) -> _CheckedEntry:
        driver: str | type[Catalog] = entry.driver
        args = entry.args
        if driver == NESTED:
            nested = self._contents[args["path"]]
            driver, args = Catalog, {**args, "storage_options": nested.storage_options, "contents": self._contents}
        folder = folder_of(own.uri)
        return _CheckedEntry(
            name, entry.description, driver, args=args, metadata=entry.metadata, catalog_dir=folder, catalog=self
        )

    def configure_new(self, **parameters: Any) -> Catalog:
        """Return this catalogue again, with what was read before."""
        return Catalog(self.path, self.storage_options, contents=self._contents, **parameters)

    __call__ = get = configure_new

    def select(self, **metadata: Any) -> dict[str, xr.DataArray]:
        """Return the volumes with the given metadata as a co-registered group.

        Parameters
        ----------
        **metadata
            Values to match exactly, such as ``subject="01"``, ``modality="mri"``; a list matches any
            of its values.

        Returns
        -------
        group : dict of str to volume
            Volumes by the ``role`` of their entry if all roles differ, otherwise by entry name. A missing name
            raises a ``KeyError`` that lists the existing ones.

        Raises
        ------
        CatalogError
            If no entry matches; the message lists the existing values.
        GridError
            If the volumes lie in different spaces.

        Examples
        --------
        >>> import tempfile, numpy as np, mrhdata
        >>> folder = Path(tempfile.mkdtemp())
        >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "a.nii")
        >>> write(folder / "catalog.yaml", "One volume", {"a": ("a.nii", {"subject": "01", "role": "t2w"})})
        >>> open_catalog(folder / "catalog.yaml").select(subject="01")["t2w"].shape
        (2, 3, 4)
        """
        entries = self.find(**metadata)
        roles = [entry_metadata.get("role") for entry_metadata, _ in entries.values()]
        keys = list(entries) if None in roles or len(set(roles)) < len(roles) else roles
        volumes = {str(k): source.to_dask() for k, (_, source) in zip(keys, entries.values(), strict=True)}
        owner = ", ".join(f"{key} {value!r}" for key, value in metadata.items()) or str(self.path)
        return _Group(group(volumes), owner)

    def subjects(self, **metadata: Any) -> dict[str, dict[str, xr.DataArray]]:
        """Return one co-registered group for each subject that has entries with the given metadata.

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
        entries = self.find(**metadata).values()
        names = {str(m["subject"]): m["subject"] for m, _ in entries if "subject" in m}
        if not names:
            raise CatalogError(f"no entry of {self.path} with {metadata} has a subject")
        groups = {name: self.select(**{**metadata, "subject": value}) for name, value in names.items()}
        return _Group(groups, str(self.path))

    def _repr_html_(self) -> str:
        entries = self._all_entries()
        first = dict(list(entries.items())[:_MAX_ROWS])
        keys = [key for key in _COLUMNS if any(key in metadata for metadata, _ in first.values())]
        rows = []
        bytes_left = _MAX_DECODED_BYTES
        for name, (metadata, source) in first.items():
            picture, size, decoded_bytes = _thumbnail(source, bytes_left)
            bytes_left -= decoded_bytes
            rows.append([picture, name, size, *(metadata.get(key, "") for key in keys)])
        note = ".select(subject=...) returns volumes"
        if len(entries) > _MAX_ROWS:
            note = f"the first {_MAX_ROWS}; .find() returns all"
        title = f"{len(entries)} volumes in {self.path}"
        return html.panel(title, html.table(["", "entry", "z, y, x", *keys], rows), note=note)

    def find(self, **metadata: Any) -> dict[str, tuple[dict[str, Any], VolumeSource]]:
        """Return metadata and source of each matching entry by name; dots join the names of nested catalogues."""
        entries = self._all_entries()
        matching = {name: entry for name, entry in entries.items() if _matches(entry[0], metadata)}
        if not matching:
            known = {key: sorted({str(m[key]) for m, _ in entries.values() if key in m}) for key in metadata}
            raise CatalogError(f"no entry of {self.path} has {metadata}; existing values are {known}")
        return matching

    def _all_entries(self) -> dict[str, tuple[dict[str, Any], VolumeSource]]:
        """Return metadata and source of each volume of this and of nested catalogues by name."""
        entries: dict[str, tuple[dict[str, Any], VolumeSource]] = {}
        for visits, (name, entry) in enumerate(_listed(self._contents, self._location)):
            if visits > _MAX_VISITS:
                raise CatalogError(f"{self.path} lists more than {_MAX_VISITS} entries; open a nested catalogue")
            if name in entries:
                raise CatalogError(f"{self.path} has two entries called {name!r}, one of them nested; rename one")
            if entry.driver == "mrh_volume":
                entries[name] = (dict(entry.metadata), VolumeSource(**entry.args))
        return entries


def _thumbnail(source: VolumeSource, max_bytes: int) -> tuple[str, str, int]:
    """Return a picture of the middle plane at the coarsest level, the size as text, and the number of decoded bytes.

    Remote volumes, and volumes of more than `max_bytes`, have no picture.
    """
    if "://" in source.urlpath:
        return "", "remote, not read", 0
    try:
        grid = source.to_dask().mrh.grid
        size = " x ".join(map(str, grid.shape)) + " of " + " x ".join(length(float(s)) for s in grid.spacing)
        coarse = VolumeSource(source.urlpath, **{"level": -1, **source.options}).to_dask()
        if coarse.nbytes > max_bytes:
            return "", f"{size}; too large for a picture, convert it to OME-Zarr", 0
        plane = coarse.isel({dim: coarse.sizes[dim] // 2 for dim in ("t", "c", "z") if dim in coarse.dims})
        # Anterior up and right to the right, as in other pictures.
        up, across = (-1 if letter in "PL" else 1 for letter in grid.orientation[1:])
        values = np.atleast_2d(plane.values)[::up, ::across]
        alt = f"middle plane of {Path(source.urlpath).name}"
        return html.picture(values, values.shape, coarse.mrh.spacing[1:], alt, longest=72), size, coarse.nbytes
    except MrhdataError as error:
        return "", str(error), 0


def _matches(metadata: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    return all(
        metadata.get(key) in value if isinstance(value, list | tuple | set) else metadata.get(key) == value
        for key, value in query.items()
    )


def _listed(
    contents: Mapping[str, Contents], here: str, parents: tuple[str, ...] = (), prefix: str = ""
) -> Iterator[tuple[str, Entry]]:
    """Yield the entries of a catalogue and of those nested in it, with joined names; a cycle is left out."""
    if len(parents) > MAX_NESTING:
        raise CatalogError(f"{here} nests more than {MAX_NESTING} catalogues within each other; open a nested one")
    for name, entry in contents[here].entries.items():
        yield prefix + name, entry
        if entry.driver == NESTED and entry.args["path"] not in (*parents, here):
            yield from _listed(contents, entry.args["path"], (*parents, here), f"{prefix}{name}.")


def open_catalog(uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> Catalog:
    """Check a catalogue and open it.

    Parameters
    ----------
    uri : path or URL
        YAML file, local or at ``http``, ``https`` or ``s3``; ``intake.open_catalog`` opens it too.
    storage_options : dict, optional
        Options of fsspec for a URL, such as ``{"anon": True}``.

    Returns
    -------
    catalog : Catalog

    Raises
    ------
    CatalogError
        If the file is missing, is not a catalogue, or has content that could run code.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> folder = Path(tempfile.mkdtemp())
    >>> mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 1)), folder / "a.nii")
    >>> write(folder / "catalog.yaml", "One volume", {"a": ("a.nii", {"subject": "01", "role": "t2w"})})
    >>> list(mrhdata.open_catalog(folder / "catalog.yaml"))
    ['a']
    """
    check_path("uri", uri)
    contents = read_catalogs(uri, storage_options)
    return Catalog(os.fspath(uri), storage_options=storage_options, contents=contents)


def write(
    path: str | os.PathLike[str],
    title: str,
    entries: Mapping[str, tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    **metadata: Any,
) -> None:
    """Write a catalogue of volumes as readable YAML.

    Parameters
    ----------
    path : path
        Path of the YAML file; an existing one is replaced.
    title : str
        Title of the catalogue.
    entries : mapping of str to (path, metadata) or (path, metadata, options)
        Paths relative to the catalogue's folder, or URLs; metadata such as ``subject``, ``modality``,
        ``role``; options of :func:`mrhdata.read` that correct a wrong header.
    **metadata
        Metadata of the whole catalogue, such as ``licence``.
    """
    sources = {}
    for name, (place, entry_metadata, *options) in entries.items():
        urlpath = place if "://" in place else "{{ CATALOG_DIR }}/" + Path(place).as_posix()
        args = {"urlpath": urlpath, **(options[0] if options else {})}
        sources[name] = {"driver": "mrh_volume", "args": args, "metadata": dict(entry_metadata)}
    _write_content(path, {"metadata": {"version": 1, "title": title, **metadata}, "sources": sources})


def add(path: str | os.PathLike[str], title: str, name: str, place: str, metadata: Mapping[str, Any]) -> None:
    """Add a volume to a catalogue, or write a new catalogue; other entries stay as they are.

    Parameters
    ----------
    path : path
        Path of the YAML file.
    title : str
        Title of a new catalogue.
    name : str
        Name of the entry; an entry of that name is replaced.
    place : str
        Path relative to the catalogue's folder.
    metadata : mapping
        Metadata of the entry.
    """
    content: dict[str, Any] = {"metadata": {"version": 1, "title": title}, "sources": {}}
    if os.path.exists(path):
        content = parse(read_text(os.fspath(path), {}), os.fspath(path))
        check_content(content, os.fspath(path), {})
    args = {"urlpath": "{{ CATALOG_DIR }}/" + place}
    content["sources"][name] = {"driver": "mrh_volume", "args": args, "metadata": dict(metadata)}
    _write_content(path, content)


def _write_content(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    text = "# Opens with intake.open_catalog or mrhdata.open_catalog.\n" + yaml.safe_dump(content, sort_keys=False)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
        check(draft)
