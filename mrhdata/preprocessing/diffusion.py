"""Maps of diffusion scans: powder averages, and tensor and kurtosis fits (by dipy), block by block.

All maps are lazy and on the grid of the scan, so scans of any size work. A scan is a volume with an axis c (or t,
as in NIfTI files) of images, and their :class:`~mrhdata.preprocessing.gradients.Gradients`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.preprocessing.gradients import B0, Gradients
from mrhdata.volume.construct import SPATIAL, describe
from mrhdata.volume.groups import stack

if TYPE_CHECKING:
    Fit = Callable[[NDArray[np.float64], Gradients], Any]

#: Bytes of signals in one block; a fit needs about thirty times as much memory.
_BLOCK_BYTES = 8_000_000

#: dipy's name of each map, and its unit.
_TENSOR = {"fa": "1", "md": "um2/ms", "ad": "um2/ms", "rd": "um2/ms"}
_KURTOSIS = {**_TENSOR, "mk": "1", "ak": "1", "rk": "1"}


def powder_average(dwi: xr.DataArray, gradients: Gradients) -> xr.DataArray:
    """Average the signals of each shell over its directions.

    Parameters
    ----------
    dwi : volume (c, z, y, x)
    gradients : Gradients
        Table with one row per image.

    Returns
    -------
    means : volume (c, z, y, x)
        float32; c names the shells, such as ``b0`` and ``b2000``.

    Raises
    ------
    GridError
        The numbers of images and of rows differ.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> dwi = from_array(np.array([10.0, 4, 2]).reshape(3, 1, 1, 1), spacing=(1, 1, 1))
    >>> means = powder_average(dwi, Gradients([0, 2, 2], [[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    >>> dict(zip(means.c.values.tolist(), means.values.ravel().tolist()))
    {'b0': 10.0, 'b2000': 3.0}
    """
    signals, shells = _signals(dwi, gradients), gradients.shells
    means = [signals.isel(c=list(shell.rows)).mean("c", keep_attrs=True) for shell in shells]
    channels = xr.concat(means, "c", combine_attrs="override", coords="minimal", compat="override")
    return _describe_maps(channels, [shell.name for shell in shells], dwi, "powder")


def tensor_maps(
    dwi: xr.DataArray,
    gradients: Gradients,
    *,
    maps: Sequence[str] = ("fa", "md"),
    mask: xr.DataArray | None = None,
) -> xr.DataArray:
    """Fit the diffusion tensor by weighted least squares and return its maps (Basser et al. 1994; dipy).

    Parameters
    ----------
    dwi : volume (c, z, y, x)
        Scan without shells above b = 1.5 ms/um^2 or so in vivo, because the tensor model no longer holds there.
    gradients : Gradients
    maps : sequence of {"fa", "md", "ad", "rd"}
        Fractional anisotropy; mean, axial and radial diffusivity in um^2/ms.
    mask : mask volume, optional
        Mask of the voxels to fit; other voxels become 0, like voxels without signal.

    Returns
    -------
    maps : volume (c, z, y, x)
        float32; c names the maps.

    Raises
    ------
    GridError
        The numbers of images and of rows differ, or the mask lies on another grid.
    DataError
        The directions do not determine a tensor, a map is unknown, or dipy is not installed.

    Examples
    --------
    Free diffusion of 2 um^2/ms:

    >>> from mrhdata.volume.construct import from_array
    >>> b = np.array([0, 1, 1, 1, 1, 1, 1])
    >>> axes = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]
    >>> dwi = from_array(1000 * np.exp(-2.0 * b).reshape(7, 1, 1, 1), spacing=(1, 1, 1))
    >>> maps = tensor_maps(dwi, Gradients(b, axes))
    >>> dict(zip(maps.c.values.tolist(), maps.values.ravel().round(3).tolist()))
    {'fa': 0.0, 'md': 2.0}
    """
    _check_maps(maps, _TENSOR)
    _check_directions(gradients, 2)
    values = _fit_blocks(_signals(dwi, gradients), gradients, _stack_maps(_fit_tensor, maps), len(maps), mask)
    return _describe_maps(values, maps, dwi, "diffusion tensor", _TENSOR)


def kurtosis_maps(
    dwi: xr.DataArray,
    gradients: Gradients,
    *,
    maps: Sequence[str] = ("fa", "md", "mk"),
    mask: xr.DataArray | None = None,
) -> xr.DataArray:
    """Fit the diffusion and kurtosis tensors by weighted least squares and return maps (Jensen et al. 2005; dipy).

    Parameters
    ----------
    dwi, gradients, mask
        As for :func:`tensor_maps`, but with at least two shells and 15 directions.
    maps : sequence of {"fa", "md", "ad", "rd", "mk", "ak", "rk"}
        As for :func:`tensor_maps`; also mean, axial and radial kurtosis, between -3/7 and 10.

    Returns
    -------
    maps : volume (c, z, y, x)
        float32; c names the maps.

    Raises
    ------
    GridError, DataError
        As for :func:`tensor_maps`; DataError also if there are fewer than two weighted shells.

    Notes
    -----
    dipy fits kurtosis voxel by voxel in Python, about a thousand voxels per second. More threads do not help, but
    more processes do: ``with dask.config.set(scheduler="processes")``.
    """
    _check_maps(maps, _KURTOSIS)
    _check_directions(gradients, 4)
    weighted = [shell.name for shell in gradients.shells if shell.b > B0]
    if len(weighted) < 2:
        raise DataError(f"a kurtosis fit needs two weighted shells; got {', '.join(weighted)}. Use tensor_maps.")
    values = _fit_blocks(_signals(dwi, gradients), gradients, _stack_maps(_fit_kurtosis, maps), len(maps), mask)
    return _describe_maps(values, maps, dwi, "diffusion kurtosis", _KURTOSIS)


def fibre_directions(dwi: xr.DataArray, gradients: Gradients, *, where: xr.DataArray | None = None) -> xr.DataArray:
    """Return the direction of strongest diffusion as a unit vector in world space.

    Parameters
    ----------
    dwi, gradients, where
        As for :func:`tensor_maps`.

    Returns
    -------
    directions : volume (c, z, y, x)
        float32; c is X, Y, Z (RAS+) for any order of the array axes. The sign is arbitrary.
    """
    _check_directions(gradients, 2)

    def main_direction(signals: NDArray[np.float64], gradients: Gradients) -> Any:
        return np.moveaxis(_fit_tensor(signals, gradients).evecs[..., 0], -1, 0)

    values = _fit_blocks(_signals(dwi, gradients), gradients, main_direction, 3, where)
    return _describe_maps(values, "XYZ", dwi, "fibres")


def _check_maps(maps: Sequence[str], known: dict[str, str]) -> None:
    unknown = [name for name in maps if name not in known]
    if unknown or not maps or isinstance(maps, str):
        raise DataError(f"maps must be a list of names from {', '.join(known)}; got {maps!r}")


def _check_directions(gradients: Gradients, order: int) -> None:
    """Raise DataError unless directions and shells determine all elements of a symmetric tensor of this order."""
    directions = gradients.directions[gradients.b > B0]
    elements = [list(axes) for axes in itertools.combinations_with_replacement(range(3), order)]
    products = np.stack([directions[:, axes].prod(axis=1) for axes in elements], axis=1)
    rank = int(np.linalg.matrix_rank(products, tol=1e-3)) if len(directions) else 0
    if rank < len(elements) or len(gradients.shells) < 2:
        raise DataError(
            f"{len(directions)} weighted images determine {rank} of the {len(elements)} elements of a tensor, with "
            f"{len(gradients.shells)} shells. Pass at least {len(elements)} different directions and unweighted images."
        )


def _signals(dwi: xr.DataArray, gradients: Gradients) -> xr.DataArray:
    """Return the scan as (c, z, y, x) with one image for each row of the table."""
    if "c" not in dwi.dims and "t" in dwi.dims:
        dwi = dwi.rename(t="c")
    if dwi.sizes.get("c") != len(gradients):
        raise GridError(
            f"gradients must have one row per image; got {len(gradients)} rows and a scan of {dict(dwi.sizes)}. "
            "Pass the table of this scan."
        )
    missing = {d: 1 for d in SPATIAL if d not in dwi.dims}
    return dwi.astype(np.float32).expand_dims(missing).transpose("c", *SPATIAL)


def _fit_blocks(
    signals: xr.DataArray, gradients: Gradients, fit: Fit, maps: int, mask: xr.DataArray | None
) -> xr.DataArray:
    """Apply `fit` to the signals (c, z, y, x) block by block."""
    _check_dipy()
    like = signals.isel(c=0, drop=True)
    data = da.asarray(signals.data)
    data = data.rechunk({0: -1, **dict.fromkeys((1, 2, 3), "auto")}, block_size_limit=_BLOCK_BYTES)
    inside = da.ones(data.shape[1:], dtype=bool, chunks=data.chunks[1:])
    if mask is not None:
        aligned = stack({"mask": mask}).isel(c=0, drop=True).mrh.like(like)
        inside = da.asarray(aligned.data).rechunk(data.chunks[1:]) != 0
    values = da.map_blocks(
        _fit_block,
        data,
        inside[None],
        fit,
        gradients,
        maps,
        dtype=np.float32,
        chunks=((maps,), *data.chunks[1:]),
        meta=np.empty((0,) * 4, np.float32),
    )
    return signals.isel(c=[0] * maps).copy(data=values)


def _fit_block(
    data: NDArray[np.float32], inside: NDArray[np.bool_], fit: Fit, gradients: Gradients, maps: int
) -> NDArray[np.float32]:
    """Return the maps of one block; 0 outside the mask and in voxels without signal or a finite fit."""
    values = np.zeros((maps, *data.shape[1:]), dtype=np.float32)
    reference = data[list(gradients.shells[0].rows)]
    usable = inside[0] & np.isfinite(data).all(axis=0) & (reference > 0).all(axis=0)
    if usable.any():
        values[:, usable] = fit(data[:, usable].T.astype(np.float64), gradients)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _stack_maps(fit: Fit, maps: Sequence[str]) -> Fit:
    def run(signals: NDArray[np.float64], gradients: Gradients) -> Any:
        result = fit(signals, gradients)
        return np.stack([_map_values(result, name) for name in maps])

    return run


def _map_values(result: Any, name: str) -> Any:
    value = getattr(result, name)
    # In dipy, kurtoses are methods; diffusivities are properties, in mm^2/s.
    return value() if callable(value) else value if name == "fa" else 1000 * value


def _fit_tensor(signals: NDArray[np.float64], gradients: Gradients) -> Any:
    from dipy.reconst.dti import TensorModel

    return TensorModel(_dipy_table(gradients), fit_method="WLS").fit(signals)


def _fit_kurtosis(signals: NDArray[np.float64], gradients: Gradients) -> Any:
    from dipy.reconst.dki import DiffusionKurtosisModel

    return DiffusionKurtosisModel(_dipy_table(gradients), fit_method="WLS").fit(signals)


def _dipy_table(gradients: Gradients) -> Any:
    """Return a table for dipy, in s/mm^2."""
    from dipy.core.gradients import gradient_table

    return gradient_table(1000 * gradients.b, bvecs=np.array(gradients.directions), b0_threshold=1000 * B0)


def _check_dipy() -> None:
    try:
        import dipy.reconst.dti  # noqa: F401
    except ImportError as error:
        raise DataError("diffusion fits need dipy. Install it with pip install 'mrhdata[diffusion]'.") from error


def _describe_maps(
    values: xr.DataArray, names: Sequence[str], source: xr.DataArray, name: str, units: dict[str, str] | None = None
) -> xr.DataArray:
    """Name the channels, and set the unit if all channels have the same one."""
    distinct = {(units or {}).get(n) for n in names}
    unit = distinct.pop() if len(distinct) == 1 else None
    values = values.assign_coords(c=list(names)).assign_attrs(affine=source.attrs["affine"], space=source.mrh.space)
    return describe(values, name=name, kind="image", modality="mri", units=unit)
