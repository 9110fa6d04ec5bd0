"""Backend for xarray: ``xr.open_dataset(path, engine="mrhdata")``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from mrhdata.io.formats import FORMATS, Options, read


class VolumeEntrypoint(BackendEntrypoint):
    """Backend that opens any source of :func:`mrhdata.read` as a lazy data set of one variable."""

    description = "Brain volumes (NIfTI, MINC, NRRD, TIFF, DICOM, OME-Zarr, ...) with their geometry"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", *Options.__annotations__)

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> xr.Dataset:
        """Open a file; options as for :func:`mrhdata.read`."""
        volume = read(filename_or_obj, **options)
        dataset = volume.rename(volume.name if volume.name is not None else "image").to_dataset()
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return dataset.drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether mrhdata reads files with this ending and xarray's own engines do not."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        name = os.fspath(filename_or_obj).lower()
        return any(name.endswith(e) for e, (module, _) in FORMATS.items() if module not in ("omezarr", "hdf5"))
