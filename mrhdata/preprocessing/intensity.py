"""Intensity of volumes: normalisation, display windows and units of susceptibility."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from mrhdata.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: A map whose 99th percentile is higher is in ppb: tissue reaches 0.3 ppm and haemorrhage 2 ppm.
_HIGHEST_PPM = 5.0
#: Number of voxels that percentiles are estimated from.
_SAMPLE_SIZE = 2_000_000
#: Reconstructions mark excluded voxels with values below this.
_EXCLUDED = -10_000


def normalise(volume: xr.DataArray, how: str = "minmax") -> xr.DataArray:
    """Shift and scale a volume by its own values.

    Parameters
    ----------
    volume : image volume
    how : {"minmax", "percentile", "clipped", "zscore"}
        Target range: 0 to 1 between the extremes; 0 to 1 between the 0.5th and the 99.5th percentile of non-zero
        voxels, also with other values clipped to that range; or zero mean and unit standard deviation of non-zero
        voxels.

    Raises
    ------
    DataError
        The volume is constant, or a value is not finite.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> normalise(from_array(np.array([[[2, 4, 6]]]), spacing=(1, 1, 1))).values.ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    if how not in ("minmax", "percentile", "clipped", "zscore"):
        raise DataError(f"how must be minmax, percentile, clipped or zscore; got {how!r}")
    low, high = _extremes(volume) if how == "minmax" else _nonzero_range(volume, how)
    if not np.isfinite([low, high]).all():
        raise DataError(f"{volume.name} has values that are not finite; set NaN and infinities to 0")
    if not high > low:
        raise DataError(f"{volume.name} cannot be normalised: its values range from {low} to {high}; is it empty?")
    scaled = (volume.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    if how == "clipped":
        scaled = scaled.clip(0, 1)
    return scaled.assign_attrs({**volume.attrs, "units": "1"})


def _extremes(volume: xr.DataArray) -> tuple[float, float]:
    low, high = da.compute(volume.data.min(), volume.data.max())
    return float(low), float(high)


def _nonzero_range(volume: xr.DataArray, how: str) -> tuple[float, float]:
    """Return the values of non-zero voxels that become 0 and 1."""
    values = _sample(volume)
    values = values[values != 0]
    if not values.size:
        return 0.0, 0.0
    if how != "zscore":
        low, high = np.percentile(values, [0.5, 99.5])
        return float(low), float(high)
    return float(values.mean()), float(values.mean() + values.std())


def _sample(volume: xr.DataArray) -> np.ndarray:
    """Return evenly spaced voxels."""
    step = max(1, int(np.ceil((volume.size / _SAMPLE_SIZE) ** (1 / max(1, volume.ndim)))))
    return np.asarray(volume.data[(slice(None, None, step),) * volume.ndim], dtype=np.float64).ravel()


def window(volume: xr.DataArray, low: float, high: float, levels: int = 256) -> xr.DataArray:
    """Clip values to a range and quantise them to levels from 0, as a display does.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.array([[[-1.0, 0.0, 0.1, 0.2]]]), spacing=(1, 1, 1))
    >>> window(v, -0.2, 0.2).values.ravel().tolist()
    [0.0, 128.0, 192.0, 255.0]
    """
    if not high > low:
        raise DataError(f"high must be above low; got low={low} and high={high}")
    scaled = (volume.astype(np.float32) - low) * np.float32(levels / (high - low))
    return scaled.copy(data=np.floor(scaled.data)).clip(0, levels - 1).assign_attrs({**volume.attrs, "units": "1"})


def to_ppm(volume: xr.DataArray) -> xr.DataArray:
    """Convert a susceptibility map from ppb or ppm to parts per million; excluded voxels become 0.

    Raises
    ------
    DataError
        The map states ppm, but its values are too high for it.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> ppb = from_array(np.array([[[-20000.0, 100.0, 150.0]]]), spacing=(1, 1, 1), units="ppb")
    >>> to_ppm(ppb).values.ravel().round(3).tolist()
    [0.0, 0.1, 0.15]
    """
    volume = volume.astype(np.float32)
    volume = volume.where(volume >= _EXCLUDED, 0)
    units = str(volume.attrs.get("units", "")).strip().lower()
    values = np.abs(_sample(volume))
    high = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 0.0
    if units == "ppm" and high > _HIGHEST_PPM:
        raise DataError(
            f"{volume.name} must be below {_HIGHEST_PPM:g} ppm (tissue reaches 0.3); got {high:.3g}. Is it in ppb? "
            "Set attrs['units']."
        )
    if units == "ppb" or (units != "ppm" and high > _HIGHEST_PPM):
        if units != "ppb":
            log.warning("%s reaches %.3g and is assumed to be in ppb; set attrs['units']", volume.name, high)
        volume = volume / np.float32(1000)
    return volume.assign_attrs(units="ppm")
