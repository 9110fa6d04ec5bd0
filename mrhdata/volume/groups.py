"""Groups of volumes in one world space, stacks of channels, and masks on the grid of a volume."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.volume.construct import SPATIAL


def on_grid_of(
    name: str, volume: xr.DataArray, reference: str, other: xr.DataArray, *, remedy: str = ""
) -> xr.DataArray:
    """Return a volume with exactly the coordinates of another; if their grids differ, the error names both.

    Parameters
    ----------
    name : str
        Name of the volume.
    reference : str
        Description of the other volume, such as ``"the first input"``.
    volume, other : xarray.DataArray
    remedy : str
        Additional remedy for different grids of one space, such as ``"or pass grids='resample'"``.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> a = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> on_grid_of("t2w", a + 1, "the first input", a).mrh.grid.same_as(a.mrh.grid)
    True
    """
    one_space = volume.mrh.space == other.mrh.space
    # Raises the error of a volume without a valid geometry before the two are compared.
    _ = volume.mrh.grid, other.mrh.grid
    try:
        return volume.mrh.like(other)
    except GridError as error:
        also = f", {remedy}" if remedy and one_space else ""
        raise GridError(f"{_quote(name)} does not lie on the grid of {reference}: {error}{also}") from error


def _quote(name: str) -> str:
    """Return a name in quotes, without the NUL that marks internal names."""
    return repr(name.lstrip("\0"))


def group(volumes: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Check that volumes lie in one world space and return them as a co-registered group.

    Grids may differ in spacing, extent and orientation.

    Parameters
    ----------
    volumes : mapping of str to xarray.DataArray

    Returns
    -------
    group : dict

    Raises
    ------
    GridError
        A volume has no valid geometry, or two have different spaces.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> a = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> list(group({"mri": a, "histology": a}))
    ['mri', 'histology']
    """
    spaces = {name: volume.mrh.space for name, volume in volumes.items()}
    for volume in volumes.values():
        _ = volume.mrh.grid
    first = next(iter(spaces), None)
    for name, space in spaces.items():
        if first is not None and space != spaces[first]:
            raise GridError(
                f"{_quote(first)} lies in space {spaces[first]!r} but {_quote(name)} in {space!r}; "
                "register one to the other, or correct a wrong name with describe(volume, space=...)"
            )
    return dict(volumes)


def stack(volumes: Mapping[str, xr.DataArray] | xr.DataArray) -> xr.DataArray:
    """Stack volumes of one grid along ``c``; coordinate ``c`` names the channels.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1))
    >>> stack({"t2": v, "mt": v}).c.values.tolist()
    ['t2', 'mt']
    """
    if isinstance(volumes, xr.DataArray):
        volumes = {"image" if volumes.name is None else str(volumes.name): volumes}
    if not volumes:
        raise GridError("stack needs at least one volume; got none")
    volumes = group(volumes)
    reference, first = next(iter(volumes.items()))
    parts = []
    for name, volume in volumes.items():
        same = volume if volume is first else on_grid_of(name, volume, _quote(reference), first)
        if "t" in same.dims:
            raise GridError(
                f"{name!r} has a time axis of {same.sizes['t']}; select one time first, with "
                "volume.isel(t=0) or mrhdata convert --time 0"
            )
        missing = {d: 1 for d in SPATIAL if d not in same.dims}
        same = same.expand_dims([*(["c"] if "c" not in same.dims else []), *missing]).transpose("c", *SPATIAL)
        parts.append(same.assign_coords(c=_channel_names(name, volume)))
    joined = xr.concat(parts, "c", join="exact", combine_attrs="drop_conflicts", coords="minimal", compat="equals")
    return joined.assign_attrs(affine=first.attrs["affine"], space=first.mrh.space)


def mask_on(where: xr.DataArray | None, volume: xr.DataArray) -> NDArray[np.bool_]:
    """Return the mask as a bool array (z, y, x) on the grid of `volume`: True for values other than 0.

    Without a mask all voxels are True.

    Raises
    ------
    GridError
        The mask lies on another grid.
    DataError
        The mask contains NaN, or is empty.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> v = from_array(np.arange(8).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> int(mask_on(v > 4, v).sum())
    3
    """
    like = stack(volume).isel(c=0)
    if where is None:
        return np.ones(like.shape, dtype=bool)
    inside = nonzero(on_grid_of("mask", stack({"mask": where}).isel(c=0), "the volume", like).data)
    if not inside.any():
        raise DataError("the mask is empty; pass one that covers part of the volumes")
    return inside


def nonzero(mask: ArrayLike) -> NDArray[np.bool_]:
    """Return a bool array that is True for values of a mask other than 0.

    Raises
    ------
    DataError
        The mask contains NaN.

    Examples
    --------
    >>> nonzero([0, 2, -1]).tolist()
    [False, True, True]
    """
    values = np.asarray(mask)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError(f"{np.isnan(values).sum()} of {values.size} mask voxels are NaN; set them to 0")
    return np.asarray(values != 0)


def _channel_names(name: str, volume: xr.DataArray) -> list[str]:
    if "c" not in volume.dims:
        return [name]
    if volume.c.dtype.kind in "UTO" and "c" in volume.coords:
        return [str(c) for c in volume.c.values]
    return [f"{name}:{i}" for i in range(volume.sizes["c"])]
