"""Parameter maps from raw MRI signals: voxel by voxel, lazy, on the grid of the input."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mrhdata.errors import GridError
from mrhdata.volume.construct import describe


def mtr(off: xr.DataArray, on: xr.DataArray) -> xr.DataArray:
    """Compute the magnetisation transfer ratio, ``(off - on) / off``; 0 in voxels without signal.

    Parameters
    ----------
    off, on : volume
        Signals without and with the saturation pulse, on one grid.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> off, on = (from_array(np.full((1, 1, 2), v), spacing=(1, 1, 1)) for v in (100, 60))
    >>> mtr(off, on).values.ravel().tolist()
    [0.4, 0.4]
    """
    off, on = off.astype(np.float32), on.mrh.like(off).astype(np.float32)
    return _map(xr.where(off > 0, (off - on) / off.clip(min=1e-6), 0), off, "mtr", "1")


def diffusivity(dwi: xr.DataArray, b0s: int, b: float) -> xr.DataArray:
    """Compute the orientation-averaged apparent diffusivity, ``ln(S0 / mean S) / b``.

    Parameters
    ----------
    dwi : volume (c, z, y, x)
        Unweighted images followed by the images of one shell.
    b0s : int
        Number of unweighted images.
    b : float
        Diffusion weighting in ms/um^2; the map is in um^2/ms.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> dwi = from_array(np.exp([[[[0.0]]], [[[-1.2]]]]), spacing=(1, 1, 1))
    >>> diffusivity(dwi, b0s=1, b=2.0).round(3).item()
    0.6
    """
    reference, weighted = _shell(dwi, b0s)
    ratio = reference.clip(min=1e-6) / weighted.mean("c").clip(min=1e-6)
    return _map(xr.apply_ufunc(np.log, ratio, dask="allowed") / b, dwi, f"d{round(1000 * b)}", "um2/ms")


def anisotropy(dwi: xr.DataArray, b0s: int) -> xr.DataArray:
    """Compute the standard deviation of one shell's signals over directions, divided by their mean.

    Like fractional anisotropy, it is 0 for isotropic diffusion, but it needs no tensor fit. Arguments as for
    :func:`diffusivity`.
    """
    _, weighted = _shell(dwi, b0s)
    return _map(weighted.std("c") / weighted.mean("c").clip(min=1e-6), dwi, "anisotropy", "1")


def _shell(dwi: xr.DataArray, b0s: int) -> tuple[xr.DataArray, xr.DataArray]:
    if "c" not in dwi.dims or not 0 < b0s < dwi.sizes["c"]:
        raise GridError(f"dwi must have an axis c longer than its {b0s} b0 images; got {dict(dwi.sizes)}")
    signal = dwi.astype(np.float32)
    return signal.isel(c=slice(b0s)).mean("c"), signal.isel(c=slice(b0s, None))


def _map(values: xr.DataArray, source: xr.DataArray, name: str, units: str) -> xr.DataArray:
    values = values.assign_attrs(affine=source.attrs["affine"], space=source.mrh.space, kind="image")
    return describe(values, name=name, units=units, modality="mri")
