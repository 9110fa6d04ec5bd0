"""Values of one volume made comparable to those of others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from mrhdata.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Susceptibility of tissue reaches 0.3 ppm, of haemorrhage 2; a map whose 99th percentile is above is in ppb.
_HIGHEST_PPM = 5.0
#: Values that percentiles are estimated on.
_SAMPLED = 2_000_000
#: Voxels below this are those that reconstructions leave out.
_LEFT_OUT = -10_000


def normalise(volume: xr.DataArray, how: str = "minmax") -> xr.DataArray:
    """Shift and scale a volume by its own values.

    Parameters
    ----------
    volume : image volume
    how : {"minmax", "percentile", "zscore"}
        To 0..1 between the extremes, or between the 0.5th and the 99.5th percentile of what is not zero; or
        to zero mean and unit standard deviation of what is not zero.

    Raises
    ------
    DataError
        The volume holds one value only, or values that are not finite.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> normalise(from_array(np.array([[[2, 4, 6]]]), spacing=(1, 1, 1))).values.ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    if how not in ("minmax", "percentile", "zscore"):
        raise DataError(f"how is minmax, percentile or zscore, not {how!r}")
    low, high = _extremes(volume) if how == "minmax" else _typical(volume, how)
    if not np.isfinite([low, high]).all():
        raise DataError(f"{volume.name} holds values that are not finite; set NaN and infinities to 0")
    if not high > low:
        raise DataError(f"{volume.name} runs from {low} to {high}: nothing to normalise; is it empty?")
    scaled = (volume.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return scaled.assign_attrs({**volume.attrs, "units": "1"})


def _extremes(volume: xr.DataArray) -> tuple[float, float]:
    low, high = da.compute(volume.data.min(), volume.data.max())
    return float(low), float(high)


def _typical(volume: xr.DataArray, how: str) -> tuple[float, float]:
    values = _some(volume)
    values = values[values != 0]
    if not values.size:
        return 0.0, 0.0
    if how == "percentile":
        low, high = np.percentile(values, [0.5, 99.5])
        return float(low), float(high)
    return float(values.mean()), float(values.mean() + values.std())


def _some(volume: xr.DataArray) -> np.ndarray:
    """Evenly spread voxels."""
    step = max(1, int(np.ceil((volume.size / _SAMPLED) ** (1 / max(1, volume.ndim)))))
    return np.asarray(volume.data[(slice(None, None, step),) * volume.ndim], dtype=np.float64).ravel()


def window(volume: xr.DataArray, low: float, high: float, levels: int = 256) -> xr.DataArray:
    """Values cut off at both ends and counted in levels from 0, as a display would.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.array([[[-1.0, 0.0, 0.1, 0.2]]]), spacing=(1, 1, 1))
    >>> window(v, -0.2, 0.2).values.ravel().tolist()
    [0.0, 128.0, 192.0, 255.0]
    """
    if not high > low:
        raise DataError(f"a window runs from a low to a higher value, not from {low} to {high}")
    counted = (volume.astype(np.float32) - low) * np.float32(levels / (high - low))
    return counted.copy(data=np.floor(counted.data)).clip(0, levels - 1).assign_attrs({**volume.attrs, "units": "1"})


def in_ppm(volume: xr.DataArray) -> xr.DataArray:
    """A susceptibility map in parts per million, whatever it was in; voxels that are left out become 0.

    Raises
    ------
    DataError
        The map says that it is in ppm, and its values that it is not.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> ppb = from_array(np.array([[[-20000.0, 100.0, 150.0]]]), spacing=(1, 1, 1), units="ppb")
    >>> in_ppm(ppb).values.ravel().round(3).tolist()
    [0.0, 0.1, 0.15]
    """
    volume = volume.astype(np.float32)
    volume = volume.where(volume >= _LEFT_OUT, 0)
    units = str(volume.attrs.get("units", "")).strip().lower()
    values = np.abs(_some(volume))
    high = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 0.0
    if units == "ppm" and high > _HIGHEST_PPM:
        raise DataError(
            f"{volume.name} says ppm but reaches {high:.3g}, which no tissue does (0.3): is it ppb? set attrs['units']"
        )
    if units == "ppb" or (units != "ppm" and high > _HIGHEST_PPM):
        if units != "ppb":
            log.warning("%s reaches %.3g and is taken to be in ppb; set attrs['units']", volume.name, high)
        volume = volume / np.float32(1000)
    return volume.assign_attrs(units="ppm")
