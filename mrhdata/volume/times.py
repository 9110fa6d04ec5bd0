"""Times of a series: a numeric coordinate ``t`` in seconds, which a volume has if its file states a time step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrhdata.errors import GridError

if TYPE_CHECKING:
    import xarray as xr

#: Name that files use for a unit of time -> seconds.
TO_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds", "µs", "μs"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}


def with_times(volume: xr.DataArray, step: float, start: float = 0.0) -> xr.DataArray:
    """Return a series with its times; a volume without a time axis is returned unchanged.

    Parameters
    ----------
    volume : xarray.DataArray
    step, start : float
        Seconds between two times, and the first time.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> series = from_array(np.zeros((3, 2, 2, 2)), spacing=(1, 1, 1), dims="tzyx")
    >>> with_times(series, 2.5).t.values.tolist()
    [0.0, 2.5, 5.0]
    """
    if "t" not in volume.dims or not (np.isfinite([step, start]).all() and step > 0):
        return volume
    return volume.assign_coords(t=("t", start + step * np.arange(volume.sizes["t"]), {"units": "s"}))


def times_of(volume: xr.DataArray) -> tuple[float, float] | None:
    """Return the seconds between two times and the first time; None if the volume states no times.

    Raises
    ------
    GridError
        The times are not equally spaced.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> series = from_array(np.zeros((3, 2, 2, 2)), spacing=(1, 1, 1), dims="tzyx")
    >>> times_of(with_times(series, 2.5, 1))
    (2.5, 1.0)
    """
    if "t" not in volume.dims or "t" not in volume.coords or volume.coords["t"].attrs.get("units") != "s":
        return None
    times = np.asarray(volume.coords["t"], dtype=np.float64)
    if times.size < 2:
        return None
    steps = np.diff(times)
    step = float((times[-1] - times[0]) / (times.size - 1))
    if not step > 0 or np.abs(steps - step).max() > 1e-4 * step:
        raise GridError(f"the times of {volume.name!r} must be equally spaced; got steps of {np.unique(steps)[:5]} s")
    return step, float(times[0])
