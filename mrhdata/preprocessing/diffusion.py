"""Maps of diffusion scans: powder averages, and tensor and kurtosis fits (by dipy), block by block.

Everything is lazy and on the grid of the scan, so any size works. A scan is a volume with an axis c (or t,
as NIfTI files have it) of images, and the :class:`~mrhdata.preprocessing.gradients.Gradients` that belong to them.
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
from mrhdata.volume.construct import SPATIAL, describe, stack

if TYPE_CHECKING:
    Fit = Callable[[NDArray[np.float64], Gradients], Any]

#: Bytes of signals that are fitted together; a fit takes some thirty times as many.
_BLOCK_BYTES = 8_000_000

#: Maps of a fit: dipy's name for it, and the unit.
_TENSOR = {"fa": "1", "md": "um2/ms", "ad": "um2/ms", "rd": "um2/ms"}
_KURTOSIS = {**_TENSOR, "mk": "1", "ak": "1", "rk": "1"}


def powder(dwi: xr.DataArray, gradients: Gradients) -> xr.DataArray:
    """Mean signal of each shell, over its directions.

    Parameters
    ----------
    dwi : volume (c, z, y, x)
    gradients : Gradients
        A row for each of its images.

    Returns
    -------
    means : volume (c, z, y, x)
        float32; c names the shells, such as ``b0`` and ``b2000``.

    Raises
    ------
    GridError
        The scan has another number of images than the table.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> dwi = from_array(np.array([10.0, 4, 2]).reshape(3, 1, 1, 1), spacing=(1, 1, 1))
    >>> means = powder(dwi, Gradients([0, 2, 2], [[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    >>> dict(zip(means.c.values.tolist(), means.values.ravel().tolist()))
    {'b0': 10.0, 'b2000': 3.0}
    """
    signals, shells = _signals(dwi, gradients), gradients.shells
    means = [signals.isel(c=list(shell.rows)).mean("c", keep_attrs=True) for shell in shells]
    joined = xr.concat(means, "c", combine_attrs="override", coords="minimal", compat="override")
    return _described(joined, [shell.name for shell in shells], dwi, "powder")


def tensor_maps(
    dwi: xr.DataArray,
    gradients: Gradients,
    *,
    maps: Sequence[str] = ("fa", "md"),
    where: xr.DataArray | None = None,
) -> xr.DataArray:
    """Maps of the diffusion tensor, fitted by weighted least squares (Basser et al. 1994; dipy).

    Parameters
    ----------
    dwi : volume (c, z, y, x)
        Leave out shells beyond b = 1.5 ms/um^2 or so in vivo, where signals no longer fall as a tensor has it.
    gradients : Gradients
    maps : sequence of {"fa", "md", "ad", "rd"}
        Fractional anisotropy; mean, axial and radial diffusivity in um^2/ms.
    where : mask volume, optional
        Voxels where it is 0 are not fitted and become 0, like those without signal.

    Returns
    -------
    maps : volume (c, z, y, x)
        float32; c names the maps.

    Raises
    ------
    GridError
        The scan has another number of images than the table, or the mask lies on another grid.
    DataError
        Directions do not determine a tensor, a map is unknown, or dipy is not installed.

    Examples
    --------
    Water that diffuses freely at 2 um^2/ms:

    >>> from mrhdata.volume.construct import from_array
    >>> b = np.array([0, 1, 1, 1, 1, 1, 1])
    >>> axes = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]
    >>> dwi = from_array(1000 * np.exp(-2.0 * b).reshape(7, 1, 1, 1), spacing=(1, 1, 1))
    >>> found = tensor_maps(dwi, Gradients(b, axes))
    >>> dict(zip(found.c.values.tolist(), found.values.ravel().round(3).tolist()))
    {'fa': 0.0, 'md': 2.0}
    """
    _check_maps(maps, _TENSOR)
    _check_directions(gradients, 2)
    found = _fitted(_signals(dwi, gradients), gradients, _of_maps(_tensor_fit, maps), len(maps), where)
    return _described(found, maps, dwi, "diffusion tensor", _TENSOR)


def kurtosis_maps(
    dwi: xr.DataArray,
    gradients: Gradients,
    *,
    maps: Sequence[str] = ("fa", "md", "mk"),
    where: xr.DataArray | None = None,
) -> xr.DataArray:
    """Maps of the diffusion and kurtosis tensors, fitted by weighted least squares (Jensen et al. 2005; dipy).

    Parameters
    ----------
    dwi, gradients, where
        As for :func:`tensor_maps`, with two shells or more, 15 directions or more.
    maps : sequence of {"fa", "md", "ad", "rd", "mk", "ak", "rk"}
        Also mean, axial and radial kurtosis, within -3/7 and 10.

    Returns
    -------
    maps : volume (c, z, y, x)
        float32; c names the maps.

    Raises
    ------
    GridError, DataError
        As for :func:`tensor_maps`; and where there are fewer shells.

    Notes
    -----
    dipy fits kurtosis voxel by voxel in Python, about a thousand a second. Threads do not add to that, but
    processes do: ``with dask.config.set(scheduler="processes")``.
    """
    _check_maps(maps, _KURTOSIS)
    _check_directions(gradients, 4)
    weighted = [shell.name for shell in gradients.shells if shell.b > B0]
    if len(weighted) < 2:
        raise DataError(
            f"a kurtosis fit takes two weighted shells, but there is {', '.join(weighted)}; use tensor_maps"
        )
    found = _fitted(_signals(dwi, gradients), gradients, _of_maps(_kurtosis_fit, maps), len(maps), where)
    return _described(found, maps, dwi, "diffusion kurtosis", _KURTOSIS)


def fibres(dwi: xr.DataArray, gradients: Gradients, *, where: xr.DataArray | None = None) -> xr.DataArray:
    """Direction in which water diffuses most, as a unit vector in world space.

    Parameters
    ----------
    dwi, gradients, where
        As for :func:`tensor_maps`.

    Returns
    -------
    directions : volume (c, z, y, x)
        float32; c is X, Y, Z (RAS+), whatever the axes of the array. The sign is arbitrary.
    """
    _check_directions(gradients, 2)

    def main(signals: NDArray[np.float64], gradients: Gradients) -> Any:
        return np.moveaxis(_tensor_fit(signals, gradients).evecs[..., 0], -1, 0)

    return _described(_fitted(_signals(dwi, gradients), gradients, main, 3, where), "XYZ", dwi, "fibres")


def _check_maps(maps: Sequence[str], known: dict[str, str]) -> None:
    unknown = [name for name in maps if name not in known]
    if unknown or not maps or isinstance(maps, str):
        raise DataError(f"maps are a list of {', '.join(known)}, not {maps!r}")


def _check_directions(gradients: Gradients, order: int) -> None:
    """Enough of them for all numbers of a symmetric tensor of this order, and two b-values."""
    g = gradients.directions[gradients.b > B0]
    numbers = [list(axes) for axes in itertools.combinations_with_replacement(range(3), order)]
    products = np.stack([g[:, axes].prod(axis=1) for axes in numbers], axis=1)
    rank = int(np.linalg.matrix_rank(products, tol=1e-3)) if len(g) else 0
    if rank < len(numbers) or len(gradients.shells) < 2:
        raise DataError(
            f"{len(g)} weighted images determine {rank} of the {len(numbers)} numbers of a tensor, in "
            f"{len(gradients.shells)} shells; give {len(numbers)} different directions or more, and unweighted images"
        )


def _signals(dwi: xr.DataArray, gradients: Gradients) -> xr.DataArray:
    """(c, z, y, x), one image for each row of the table."""
    if "c" not in dwi.dims and "t" in dwi.dims:
        dwi = dwi.rename(t="c")
    if dwi.sizes.get("c") != len(gradients):
        raise GridError(f"the table has {len(gradients)} images but the scan {dict(dwi.sizes)}; give one row for each")
    missing = {d: 1 for d in SPATIAL if d not in dwi.dims}
    return dwi.astype(np.float32).expand_dims(missing).transpose("c", *SPATIAL)


def _fitted(
    signals: xr.DataArray, gradients: Gradients, fit: Fit, maps: int, where: xr.DataArray | None
) -> xr.DataArray:
    """What `fit` makes of the signals (c, z, y, x), block by block."""
    _dipy()
    like = signals.isel(c=0, drop=True)
    data = da.asarray(signals.data)
    data = data.rechunk({0: -1, **dict.fromkeys((1, 2, 3), "auto")}, block_size_limit=_BLOCK_BYTES)
    inside = da.ones(data.shape[1:], dtype=bool, chunks=data.chunks[1:])
    if where is not None:
        mask = stack({"mask": where}).isel(c=0, drop=True).mrh.like(like)
        inside = da.asarray(mask.data).rechunk(data.chunks[1:]) != 0
    values = da.map_blocks(
        _block,
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


def _block(
    data: NDArray[np.float32], inside: NDArray[np.bool_], fit: Fit, gradients: Gradients, maps: int
) -> NDArray[np.float32]:
    """Maps of one block; 0 outside the mask, and where there is no signal or no finite fit."""
    found = np.zeros((maps, *data.shape[1:]), dtype=np.float32)
    reference = data[list(gradients.shells[0].rows)]
    usable = inside[0] & np.isfinite(data).all(axis=0) & (reference > 0).all(axis=0)
    if usable.any():
        found[:, usable] = fit(data[:, usable].T.astype(np.float64), gradients)
    return np.nan_to_num(found, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _of_maps(fit: Fit, maps: Sequence[str]) -> Fit:
    def run(signals: NDArray[np.float64], gradients: Gradients) -> Any:
        result = fit(signals, gradients)
        return np.stack([_map_of(result, name) for name in maps])

    return run


def _map_of(result: Any, name: str) -> Any:
    value = getattr(result, name)
    # Kurtoses are methods, diffusivities properties; the latter are in mm^2/s.
    return value() if callable(value) else value if name == "fa" else 1000 * value


def _tensor_fit(signals: NDArray[np.float64], gradients: Gradients) -> Any:
    from dipy.reconst.dti import TensorModel

    return TensorModel(_table(gradients), fit_method="WLS").fit(signals)


def _kurtosis_fit(signals: NDArray[np.float64], gradients: Gradients) -> Any:
    from dipy.reconst.dki import DiffusionKurtosisModel

    return DiffusionKurtosisModel(_table(gradients), fit_method="WLS").fit(signals)


def _table(gradients: Gradients) -> Any:
    """Dipy's table, in its unit s/mm^2."""
    from dipy.core.gradients import gradient_table

    return gradient_table(1000 * gradients.b, bvecs=np.array(gradients.directions), b0_threshold=1000 * B0)


def _dipy() -> None:
    try:
        import dipy.reconst.dti  # noqa: F401
    except ImportError as error:
        raise DataError("diffusion fits take dipy; pip install 'mrhdata[diffusion]'") from error


def _described(
    values: xr.DataArray, names: Sequence[str], source: xr.DataArray, name: str, units: dict[str, str] | None = None
) -> xr.DataArray:
    """With the names of its channels; with a unit where all have one."""
    each = {(units or {}).get(n) for n in names}
    values = values.assign_coords(c=list(names)).assign_attrs(affine=source.attrs["affine"], space=source.mrh.space)
    return describe(values, name=name, kind="image", modality="mri", units=each.pop() if len(each) == 1 else None)
