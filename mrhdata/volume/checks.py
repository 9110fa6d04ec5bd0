"""Checks that an argument is a volume, with the remedy for what is often passed in place of one."""

from __future__ import annotations

import os
from typing import Any

import xarray as xr

from mrhdata._runtime.arguments import described
from mrhdata.errors import ParameterError


def check_volume(name: str, value: Any, or_else: str = "") -> None:
    """Raise `ParameterError` if a value is not a volume.

    Parameters
    ----------
    name : str
        Name of the argument.
    value
        Value that was passed.
    or_else : str
        Other values that the argument may have, such as ``"or a mapping of volumes"``.

    Examples
    --------
    >>> check_volume("moving", xr.DataArray([1.0]))
    >>> check_volume("moving", "t2w.nii.gz")
    Traceback (most recent call last):
    mrhdata.errors.ParameterError: moving must be a volume; got 't2w.nii.gz'. Read it first: mrhdata.read('t2w.nii.gz')
    """
    if isinstance(value, xr.DataArray):
        return
    if isinstance(value, str | os.PathLike):
        remedy = f"Read it first: mrhdata.read({os.fspath(value)!r})"
    elif isinstance(value, xr.Dataset):
        remedy = f"Select one of its variables {[str(key) for key in value.data_vars]}"
    elif hasattr(value, "ndim") or isinstance(value, list | tuple):
        remedy = "Make it a volume first: mrhdata.from_array(array, spacing=...) or affine=..."
    else:
        remedy = "Pass an xarray.DataArray of mrhdata.read or mrhdata.from_array"
    expected = f"a volume {or_else}".strip()
    raise ParameterError(f"{name} must be {expected}; got {described(value)}. {remedy}")
