"""MINC 1 and 2: read through nibabel, MINC 2 written through SimpleITK.

nibabel applies the per-slice scaling and keeps the axes in file order; a time axis comes first.
SimpleITK's MINC reader and writer use MINC's own RAS world without turning it into LPS (version
2.5), so here origin and direction pass through unchanged, unlike in :mod:`mrhdata.formats.itk`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mrhdata.formats.itk import write_image
from mrhdata.formats.nifti import from_image, open_image

if TYPE_CHECKING:
    import xarray as xr


def read(path: Path) -> xr.DataArray:
    """Read MINC 1 or 2."""
    with warnings.catch_warnings():
        # A file may declare its spacing as neither regular nor irregular; nibabel then takes it as regular.
        warnings.filterwarnings("ignore", message="Invalid spacing declaration")
        image = open_image(path)
    return from_image(image, path, ("t", "z", "y", "x") if len(image.shape) == 4 else ("z", "y", "x"))


def write(volume: xr.DataArray, path: Path) -> None:
    """Write MINC 2."""
    write_image(volume, path, to_itk_world=(1, 1, 1))
