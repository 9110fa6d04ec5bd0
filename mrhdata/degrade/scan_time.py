"""How long a raster scan takes."""

from __future__ import annotations

from mrhdata.errors import DataError


def scan_speedup(
    pixel_ratio: float, columns: int, dwell_us: float, line_overhead_us: float, *, low_dwell_us: float | None = None
) -> float:
    """How many times faster a scan with fewer pixels is.

    A frame takes ``lines * (columns * dwell + overhead)``. Of 16 times fewer pixels there are 4 times fewer
    lines, each with its fly-back and settling: 16 times less time for pixels, but only 4 times less for lines.
    With the share f of a full frame's time that lines take, the speed-up is ``1 / ((1 - f) / 16 + f / 4)``.

    Parameters
    ----------
    pixel_ratio : float
        Pixels of the full scan over those of the fast one, such as 16 for 4 x 4.
    columns : int
        Pixels of a line of the full scan.
    dwell_us, line_overhead_us : float
        Time on a pixel, and between lines.
    low_dwell_us : float, optional
        Time on a pixel of the fast scan, where it differs; a longer one gives up speed for less noise.

    Examples
    --------
    Lines that take 5 and 10 % of the time leave 13.9 and 12.3 of 16, and 20 % leave 10:

    >>> [round(scan_speedup(16, 4096, 1.0, 4096 * f / (1 - f)), 1) for f in (0.0, 0.05, 0.1, 0.2)]
    [16.0, 13.9, 12.3, 10.0]
    """
    low_dwell = dwell_us if low_dwell_us is None else low_dwell_us
    if pixel_ratio < 1 or columns < 1 or dwell_us <= 0 or low_dwell <= 0 or line_overhead_us < 0:
        raise DataError(
            f"a ratio of {pixel_ratio:g}, {columns} columns, dwell times of {dwell_us:g} and {low_dwell:g} us and "
            f"{line_overhead_us:g} us between lines are no scan; ratio and columns are 1 or more, times above 0"
        )
    ratio = pixel_ratio**0.5
    full = columns * dwell_us + line_overhead_us
    fast = (columns / ratio * low_dwell + line_overhead_us) / ratio
    return float(full / fast)
