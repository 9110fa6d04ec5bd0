"""Types of values in files: conversions that keep every value, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrhdata.errors import FormatError


def stored_values(values: Any, kind: str, name: str, types: Sequence[str], rare: Sequence[str] = ()) -> np.ndarray:
    """Return values in a type of a format, unchanged or converted without loss.

    Parameters
    ----------
    values : array
    kind : {"image", "labels", "mask"}
        Kind of the values; labels and masks are stored as whole numbers.
    name : str
        Ending that errors name.
    types : sequence of str
        Types that programs read from files of the format.
    rare : sequence of str
        Types that only some programs read, for integers that no other type holds.

    Raises
    ------
    FormatError
        No type of the format holds all values; the message states their range.

    Examples
    --------
    >>> stored_values(np.array([0, 7]), "labels", ".nii", ("uint8", "int32", "float32")).dtype
    dtype('int32')
    """
    array = np.asarray(values)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if kind != "image" and array.dtype.kind == "f":
        return _narrowed(_whole(array, name), name, (*types, *rare))
    if array.dtype.name in types:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "iu":
        return _narrowed(array, name, (*types, *rare))
    remedy = "take their magnitude first" if array.dtype.kind == "c" else "convert them with volume.astype('float32')"
    raise FormatError(f"{name} files are not written with {array.dtype} values; {remedy}")


def _narrowed(values: np.ndarray, name: str, types: Sequence[str]) -> np.ndarray:
    """Return integers in the first type, from 32 bits on, that holds them all."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for candidate in ("int32", "uint32", "int64", "uint64"):
        limits = np.iinfo(candidate)
        if candidate in types and limits.min <= low and high <= limits.max:
            return values.astype(candidate)
    raise FormatError(
        f"{name} files hold integers of up to 32 bits; got values from {low} to {high}. Renumber them, or write .nrrd "
        "or .zarr"
    )


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Return labels that are floating point as integers."""
    rounded = np.rint(values)
    if not (np.isfinite(values).all() and (rounded == values).all() and (np.abs(rounded) < 2**63).all()):
        raise FormatError(f"labels in {name} files must be whole numbers; got fractions or NaN. Pass kind='image'")
    return rounded.astype(np.int64)
