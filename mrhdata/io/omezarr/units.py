"""Units of length and time of OME-Zarr: the names of UDUNITS-2 that its specification lists, and usual short forms."""

from __future__ import annotations

from mrhdata.volume.overrides import TO_MM, UNITS
from mrhdata.volume.times import TO_SECONDS

_PREFIXES = {
    **{"yotta": 1e24, "zetta": 1e21, "exa": 1e18, "peta": 1e15, "tera": 1e12, "giga": 1e9, "mega": 1e6, "kilo": 1e3},
    **{"hecto": 1e2, "deca": 1e1, "": 1.0, "deci": 1e-1, "centi": 1e-2, "milli": 1e-3, "micro": 1e-6, "nano": 1e-9},
    **{"pico": 1e-12, "femto": 1e-15, "atto": 1e-18, "zepto": 1e-21, "yocto": 1e-24},
}
#: Full name -> metres.
_METRES = {
    **{f"{prefix}{metre}": factor for prefix, factor in _PREFIXES.items() for metre in ("meter", "metre")},
    **{"micron": 1e-6, "angstrom": 1e-10, "ångström": 1e-10},
    **{
        "inch": 0.0254,
        "foot": 0.3048,
        "feet": 0.3048,
        "yard": 0.9144,
        "mile": 1609.344,
        "parsec": 3.0856775814913673e16,
    },
}
#: Full name -> seconds.
_SECONDS = {f"{prefix}second": factor for prefix, factor in _PREFIXES.items()}
#: Short form -> full name. Their case matters: Mm is a megametre.
_SHORT_LENGTHS = {"pm": "picometer", "dm": "decimeter", "km": "kilometer", "Å": "angstrom", "in": "inch", "ft": "foot"}


def millimetres(unit: object) -> float | None:
    """Return the millimetres of a unit of length, or None if it is unknown.

    Examples
    --------
    >>> millimetres("micrometer"), millimetres("inch"), millimetres("pixel")
    (0.001, 25.4, None)
    """
    name = str(unit)
    if UNITS.get(name) in TO_MM:
        return TO_MM[UNITS[name]]
    factor = _factor(_SHORT_LENGTHS.get(name, name), _METRES)
    return None if factor is None else float(f"{factor * 1e3:.15g}")


def seconds(unit: object) -> float | None:
    """Return the seconds of a unit of time, or None if it is unknown."""
    return TO_SECONDS.get(str(unit), _factor(str(unit), _SECONDS))


def _factor(name: str, table: dict[str, float]) -> float | None:
    lower = name.lower()
    return table.get(lower, table.get(lower.removesuffix("s")))
