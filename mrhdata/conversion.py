"""Anything readable becomes OME-Zarr."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrhdata import formats
from mrhdata.volume import describe

if TYPE_CHECKING:
    import xarray as xr


def convert(
    source: str | os.PathLike[str], store: str | os.PathLike[str], *, overwrite: bool = False, **attrs: Any
) -> xr.DataArray:
    """Convert a file to OME-Zarr and return the stored volume.

    Parameters
    ----------
    source : path
        Any file that :func:`mrhdata.read` reads.
    store : path
        A folder ending in ``.zarr``; it appears when it is complete.
    overwrite : bool
        Replace a store that is there.
    **attrs
        As for :func:`mrhdata.read`: ``space``, ``kind``, ``units``, ``modality``, ``name``.

    Returns
    -------
    volume : xarray.DataArray
        Lazy, with the source's name, size and SHA-256 in ``attrs["provenance"]``.

    Raises
    ------
    mrhdata.errors.FormatError
        The source cannot be read, or the store exists.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     v = mrhdata.convert(folder + "/a.nii", folder + "/a.zarr", modality="mri")
    ...     v.shape, v.attrs["modality"], v.attrs["provenance"]["source"]
    ((2, 3, 4), 'mri', 'a.nii')
    """
    volume = formats.read(source, **attrs)
    volume = describe(volume, provenance=_provenance(Path(source)))
    formats.write(volume, store, overwrite=overwrite)
    return formats.read(store)


def _provenance(source: Path) -> dict[str, Any]:
    if source.is_dir():
        return {"source": source.name}
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"source": source.name, "bytes": source.stat().st_size, "sha256": digest}
