"""Catalogues of volumes: intake's YAML, checked before intake sees it.

A catalogue is code to intake: opening one can import modules, and touching an entry can run commands
out of a template. :func:`check` reads the YAML safely and lets through only what describes data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from intake.catalog.local import YAMLFileCatalog
from intake.source.base import DataSource, Schema

from mrhdata import formats
from mrhdata.drafting import appearing
from mrhdata.errors import CatalogError
from mrhdata.volume import group

if TYPE_CHECKING:
    import xarray as xr

#: Drivers that only read data.
DRIVERS = ("mrh_volume", "zarr", "ndzarr", "yaml_file_cat")

#: The one template that entries may use; intake's others can run code and read the environment.
_TEMPLATE = re.compile(r"\{\{ ?CATALOG_DIR ?\}\}")


class VolumeSource(DataSource):  # type: ignore[misc]
    """The intake driver ``mrh_volume``: any file that :func:`mrhdata.read` reads.

    Parameters
    ----------
    urlpath : str
        Path of the file or OME-Zarr folder.
    **attrs
        As for :func:`mrhdata.read`: ``space``, ``kind``, ``units``, ``modality``, ``name``.
    """

    name = "mrh_volume"
    container = "xarray"
    version = "1"
    partition_access = True

    def __init__(self, urlpath: str, metadata: dict[str, Any] | None = None, **attrs: Any) -> None:
        super().__init__(metadata=metadata)
        self.urlpath, self.attrs = urlpath, attrs
        self._volume: xr.DataArray | None = None

    def _get_schema(self) -> Any:
        volume = self.to_dask()
        return Schema(datashape=None, dtype=str(volume.dtype), shape=volume.shape, npartitions=1, extra_metadata={})

    def to_dask(self) -> xr.DataArray:
        """Return the lazy volume."""
        if self._volume is None:
            self._volume = formats.read(self.urlpath, **self.attrs)
        return self._volume

    def read(self) -> xr.DataArray:
        """Return the lazy volume too: volumes are computed where they are used."""
        return self.to_dask()

    def _close(self) -> None:
        self._volume = None


class Catalog(YAMLFileCatalog):  # type: ignore[misc]
    """intake's catalogue, whose entries can be selected by their metadata."""

    name = "mrh_catalog"

    def select(self, **metadata: Any) -> dict[str, xr.DataArray]:
        """Volumes whose metadata hold all the given values, as a co-registered group.

        Parameters
        ----------
        **metadata
            Values to match exactly, such as ``subject="01"``, ``modality="mri"``.

        Returns
        -------
        group : dict of str to volume
            Keyed by the entries' ``role`` where all have one of their own, by entry name otherwise.

        Raises
        ------
        CatalogError
            No entry matches; the message names the values that exist.
        """
        entries = {name: self._entries[name].describe()["metadata"] for name in self}
        found = [n for n, held in entries.items() if all(held.get(key) == want for key, want in metadata.items())]
        if not found:
            known = {key: sorted({str(held[key]) for held in entries.values() if key in held}) for key in metadata}
            raise CatalogError(f"no entry of {self.path} has {metadata}; there are {known}")
        roles = [entries[name].get("role") for name in found]
        keys = found if None in roles or len(set(roles)) < len(roles) else roles
        return group({str(key): self[name].to_dask() for key, name in zip(keys, found, strict=True)})


def open_catalog(uri: str | os.PathLike[str]) -> Catalog:
    """Check a catalogue and open it.

    Parameters
    ----------
    uri : path
        A YAML file that ``intake.open_catalog`` opens too.

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
    >>> cat = mrhdata.open_catalog(folder / "catalog.yaml")
    >>> cat.select(subject="01")["t2w"].shape
    (2, 3, 4)
    """
    check(uri)
    return Catalog(str(uri))


def check(uri: str | os.PathLike[str]) -> None:
    """Raise `CatalogError` unless a catalogue, and every one nested in it, only describes data.

    Refused are YAML tags, plugins, drivers other than `DRIVERS`, user parameters, and any template but
    ``{{ CATALOG_DIR }}``.
    """
    _check(Path(uri), seen=set())


def _check(path: Path, seen: set[Path]) -> None:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    content = _load(path)
    if set(content) - {"metadata", "sources"}:
        raise CatalogError(
            f"{path}: sections {sorted(set(content) - {'metadata', 'sources'})} may run code; remove them"
        )
    _check_templates(path, "metadata", content.get("metadata"))
    sources = content.get("sources")
    if not isinstance(sources, Mapping):
        raise CatalogError(f"{path} has no mapping called sources; it is no catalogue")
    for name, entry in sources.items():
        _check_entry(path, str(name), entry)
        if entry["driver"] == "yaml_file_cat":
            nested = str(entry.get("args", {}).get("path", ""))
            _check(Path(_TEMPLATE.sub(str(path.parent), nested)), seen)


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise CatalogError(f"the catalogue {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CatalogError(f"{path} is not plain YAML ({' '.join(str(error).split())[:200]})") from error
    if aliased:
        # A few nested aliases stand for billions of values.
        raise CatalogError(f"{path} uses YAML aliases; write each entry out")
    if not isinstance(content, dict):
        raise CatalogError(f"{path} holds no mapping; a catalogue has metadata and sources")
    return content


def _check_entry(path: Path, name: str, entry: Any) -> None:
    where = f"{path}, entry {name!r}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("args", {}), Mapping):
        raise CatalogError(f"{where} is no mapping with driver and args")
    if set(entry) - {"driver", "args", "description", "metadata"}:
        extra = sorted(set(entry) - {"driver", "args", "description", "metadata"})
        raise CatalogError(f"{where} has {extra}; an entry has driver, args, description and metadata only")
    if entry.get("driver") not in DRIVERS:
        raise CatalogError(f"{where} has driver {entry.get('driver')!r}; allowed are {', '.join(DRIVERS)}")
    _check_templates(path, name, entry)


def _check_templates(path: Path, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_templates(path, name, key)
            _check_templates(path, name, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_templates(path, name, item)
    elif isinstance(value, str) and re.search(r"\{\{|\{%|\{#", _TEMPLATE.sub("", value)):
        raise CatalogError(
            f"{path}, {name!r}: the template {value!r} may run code; only {{{{ CATALOG_DIR }}}} is allowed"
        )


def write(
    path: str | os.PathLike[str], title: str, entries: Mapping[str, tuple[str, Mapping[str, Any]]], **metadata: Any
) -> None:
    """Write a catalogue of volumes beside it, as YAML made to be read by people.

    Parameters
    ----------
    path : path
        The YAML file; replaced if it exists.
    title : str
    entries : mapping of str to (path, metadata)
        Paths relative to the catalogue's folder; metadata such as ``subject``, ``modality``, ``role``.
    **metadata
        Of the whole catalogue, such as ``licence``.
    """
    sources = {
        name: {
            "driver": "mrh_volume",
            "args": {"urlpath": "{{ CATALOG_DIR }}/" + relative},
            "metadata": dict(held),
        }
        for name, (relative, held) in entries.items()
    }
    content = {"metadata": {"version": 1, "title": title, **metadata}, "sources": sources}
    text = "# Opens with intake.open_catalog or mrhdata.open_catalog.\n" + yaml.safe_dump(content, sort_keys=False)
    with appearing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    check(path)
