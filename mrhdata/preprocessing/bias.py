"""Illumination: N4 bias fields of whole volumes, and the pattern shared by the planes of a microscope.

Both are smooth and multiply the image. Calling a function reads the volume once, block by block, and fits the
field to the means of coarse bins; the division is lazy, so volumes of any size can be corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mrhdata.errors import DataError, GridError
from mrhdata.preprocessing.spline_fields import (
    basis,
    centres,
    coarse_means,
    contract,
    divide,
    evaluate,
    factors_for,
    fit_each,
)
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import Floats

#: Below this range of logarithms, a field is only rounding error.
_FLAT = 1e-6
#: Weight of the penalty on second differences of a pattern's coefficients, relative to the weight of the bins.
_STIFFNESS = 1e-5


def n4(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    fit_on: xr.DataArray | None = None,
    max_bins: int = 40,
    iterations: Sequence[int] = (50, 50, 50, 50),
    control_points: int = 4,
    fwhm: float = 0.15,
) -> xr.DataArray:
    """Divide a volume by its N4 bias field (Tustison et al. 2010, IEEE TMI 29:1310).

    SimpleITK fits the field to the means of at most `max_bins` coarse bins along each axis, which this call computes
    block by block; the division is lazy. The mean logarithm of the field over the fitted bins is 0, so
    their geometric mean brightness does not change.

    Parameters
    ----------
    volume : volume, kind image
        Each image along ``t`` and ``c`` has its own field, unless `fit_on` has fewer axes. Voxels that
        are not finite are ignored and stay unchanged.
    mask : volume, optional
        Mask (not 0) of the voxels to fit, on the grid of the fitted volume. A bin counts if half of it is
        inside. By default, bins whose mean is above Otsu's threshold (1979, IEEE TSMC 9:62) count. Bins with a
        mean of 0 or less never count, since they have no logarithm.
    fit_on : volume, optional
        Another volume to fit the field to: a coarser level of the same store, so that the finest need not
        be read, or one image whose field all images share, such as the b0 of a diffusion series. It has the
        affine of `volume`.
    max_bins : int
        Maximum number of coarse bins along each axis.
    iterations : sequence of int
        Maximum number of iterations for each level; every level halves the spans of the previous one. A level ends
        earlier if the field changes by less than 0.001, SimpleITK's default.
    control_points : int
        Control points of the first level along each axis; n of them make n - 3 spans.
    fwhm : float
        Full width at half maximum of the Gaussian that sharpens the histogram of logarithms.

    Returns
    -------
    corrected : volume, float32
        Lazy, on the grid of `volume`, with its attributes.

    Raises
    ------
    DataError
        The volume holds labels, no voxel in the mask is above 0, or a number is out of range.
    GridError
        `mask` or `fit_on` does not lie where `volume` does, or fewer than two axes have more than one bin.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> shade = np.exp(np.linspace(-0.4, 0.4, 32))
    >>> tissue = np.where(np.indices((32, 32, 32)).sum(0) % 8 < 4, 100.0, 140.0)
    >>> v = from_array((tissue * shade).astype("float32"), spacing=(1, 1, 1))
    >>> corrected = n4(v, mask=v > 0, max_bins=16)
    >>> bright = tissue == 140
    >>> spread = lambda a: float(a.values[bright].std() / a.values[bright].mean())
    >>> spread(v) > 0.2, spread(corrected) < 0.05
    (True, True)
    """
    field = bias_field(
        volume,
        mask=mask,
        fit_on=fit_on,
        max_bins=max_bins,
        iterations=iterations,
        control_points=control_points,
        fwhm=fwhm,
    )
    return divide(volume, field)


def bias_field(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    fit_on: xr.DataArray | None = None,
    max_bins: int = 40,
    iterations: Sequence[int] = (50, 50, 50, 50),
    control_points: int = 4,
    fwhm: float = 0.15,
) -> xr.DataArray:
    """Return the field that :func:`n4` divides by, lazily, on the grid of `volume`; the arguments are the same.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> field = bias_field(from_array(np.full((8, 8, 8), 5), spacing=(1, 1, 1)))
    >>> float(field.min()), float(field.max())
    (1.0, 1.0)
    """
    if max_bins < 4 or control_points < 4 or not len(iterations) or min(iterations) < 1 or not fwhm > 0:
        raise DataError(
            "cells and control_points must be at least 4, iterations at least 1 and fwhm above 0; got "
            f"max_bins={max_bins}, control_points={control_points}, iterations={list(iterations)}, fwhm={fwhm}. "
            "The defaults are a good start."
        )
    source = volume if fit_on is None else fit_on
    _check_image(volume)
    _check_image(source)
    _check_position(source, volume)
    bins = coarse_means(source, factors_for(source, SPATIAL, max_bins), _check_mask(mask, source))

    def fit(image: Floats, share: Floats) -> Floats:
        inside = _select_bins(image, share, bins.factors, otsu=mask is None)
        return _n4_lattice(image, inside, tuple(iterations), control_points, fwhm)

    return evaluate(fit_each(bins, fit), bins, source, volume).rename("bias_field")


def flat_field(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    planes: int = 64,
    dark: float = 0.0,
    percentile: float = 50.0,
    spans: int = 3,
) -> xr.DataArray:
    """Subtract `dark` and divide each plane by the illumination pattern that all planes share.

    Parameters
    ----------
    volume : volume, kind image
        Planes lie along ``z``; each image along ``t`` and ``c`` has its own pattern.
    mask : volume, optional
        Mask of the voxels that show the pattern, on the grid of `volume`; all voxels by default. Bins that are
        half inside and above `dark` count. If tissue leaves most planes empty, pass a mask or a higher percentile.
    planes : int
        Maximum number of planes to estimate the pattern from; they are evenly spaced.
    dark : float
        Camera signal without light, to subtract.
    percentile : float
        Percentile over the planes at each bin, 0 to 100.
    spans : int
        Spans along y and x of the cubic spline that is fitted to the logarithm of these percentiles.

    Returns
    -------
    corrected : volume, float32
        Lazy, on the grid of `volume`, with its attributes.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> falloff = 1 - 0.5 * np.linspace(-1, 1, 40) ** 2
    >>> v = from_array(10 + 200 * np.ones((5, 40, 1)) * falloff, spacing=(1, 1, 1))
    >>> corrected = flat_field(v, dark=10)
    >>> float(v.std() / v.mean()) > 0.15, float(corrected.std() / corrected.mean()) < 0.01
    (True, True)
    """
    pattern = illumination(volume, mask=mask, planes=planes, dark=dark, percentile=percentile, spans=spans)
    return divide(volume, pattern, dark)


def illumination(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    planes: int = 64,
    dark: float = 0.0,
    percentile: float = 50.0,
    spans: int = 3,
) -> xr.DataArray:
    """Return the pattern that :func:`flat_field` divides by, lazily, on the grid of `volume`; same arguments.

    Each plane is averaged over at most 64 x 64 coarse bins. A spline with a small penalty on its second
    differences (Eilers and Marx 1996, Stat. Sci. 11:89) is fitted to the logarithm of their percentile over
    planes, weighted by the number of planes in which a bin counts. The mean logarithm is 0.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> pattern = illumination(from_array(np.full((3, 9, 9), 7), spacing=(1, 1, 1)))
    >>> pattern.dims, float(pattern.max().round(4))
    (('z', 'y', 'x'), 1.0)
    """
    plane_dims = tuple(str(d) for d in volume.dims if d in ("y", "x"))
    if not plane_dims:
        raise GridError(f"planes must have the axes y and x; got a volume with {list(volume.dims)}. Pass whole planes.")
    if planes < 1 or spans < 1 or not 0 <= percentile <= 100:
        raise DataError(
            "planes and spans must be at least 1 and percentile 0 to 100; got "
            f"planes={planes}, spans={spans}, percentile={percentile}. The defaults are a good start."
        )
    _check_image(volume)
    sample, sample_mask = volume, _check_mask(mask, volume)
    if "z" in volume.dims:
        z = np.unique(np.linspace(0, volume.sizes["z"] - 1, planes).round().astype(int))
        sample, sample_mask = volume.isel(z=z), None if sample_mask is None else sample_mask.isel(z=z)
    bins = coarse_means(sample, factors_for(sample, ("y", "x"), 64), sample_mask)

    def fit(image: Floats, share: Floats) -> Floats:
        inside = _select_bins(image - dark, share, bins.factors, otsu=False)
        weights = [basis(centres(bins, d), spans) if volume.sizes[d] > 1 else np.ones((1, 1)) for d in plane_dims]
        return _pattern_lattice(image - dark, inside, percentile, weights)

    return evaluate(fit_each(bins, fit), bins, volume, volume).rename("illumination")


def _check_image(volume: xr.DataArray) -> None:
    kind = volume.attrs.get("kind", "image")
    if kind != "image" or volume.dtype.kind not in "uif":
        raise DataError(
            f"the volume must be an image of real numbers; got {volume.name!r} of kind {kind!r} and dtype "
            f"{volume.dtype}. Correct a wrong kind with describe(volume, kind='image')."
        )
    _ = volume.mrh.grid


def _check_position(source: xr.DataArray, volume: xr.DataArray) -> None:
    """Raise GridError unless `source` and `volume` share frame and axes and `source` covers `volume`."""
    if source is volume:
        return
    same = source.mrh.space == volume.mrh.space and np.allclose(source.mrh.affine, volume.mrh.affine, atol=1e-6)
    spatial = [[d for d in v.dims if d in SPATIAL] for v in (source, volume)]
    if not same or spatial[0] != spatial[1]:
        raise GridError(
            "fit_on must have the axes, origin, orientation and space of the volume; got "
            f"{spatial[0]}, {source.mrh.affine[:3, 3].tolist()}, {source.mrh.grid.orientation} and "
            f"{source.mrh.space!r}, not {spatial[1]}, {volume.mrh.affine[:3, 3].tolist()}, "
            f"{volume.mrh.grid.orientation} and {volume.mrh.space!r}. Fit on a level of the same store, or resample it."
        )
    for d in source.dims:
        if d not in SPATIAL and source.sizes[d] != volume.sizes.get(d):
            raise GridError(
                f"fit_on must have as many images along {d!r} as the volume ({volume.sizes.get(d, 'no such axis')}); "
                f"got {source.sizes[d]}. Select one image to fit on."
            )
    for d, step in zip(SPATIAL, np.abs(source.mrh.spacing), strict=True):
        ends = [(float(v[d].min()), float(v[d].max())) for v in (source, volume)]
        if ends[1][0] < ends[0][0] - step or ends[1][1] > ends[0][1] + step:
            raise GridError(
                f"fit_on must cover the volume, which extends from {ends[1][0]:g} to {ends[1][1]:g} mm along {d!r}; "
                f"got {ends[0][0]:g} to {ends[0][1]:g} mm. Pass a larger fit_on."
            )


def _check_mask(mask: xr.DataArray | None, source: xr.DataArray) -> xr.DataArray | None:
    if mask is None:
        return None
    spatial = [d for d in source.dims if d in SPATIAL]
    if list(mask.dims) != spatial:
        raise GridError(f"mask must have the axes {spatial}; got {list(mask.dims)}. Pass one mask for all images.")
    return mask.mrh.like(source)


def _select_bins(image: Floats, share: Floats, factors: Sequence[int], otsu: bool) -> NDArray[np.bool_]:
    """Return the bins to fit: half inside the mask, above 0 and, if `otsu`, above Otsu's threshold."""
    inside = share >= 0.5
    if otsu and inside.any():
        inside[inside] = image[inside] > _otsu(image[inside])
    inside[inside] = image[inside] > 0
    if not inside.any():
        raise DataError(
            f"no bin of {tuple(factors)} voxels is half inside the mask, finite and above 0 (a logarithm is taken). "
            "Pass another mask or smaller bins, or add an offset to the image."
        )
    return inside


def _otsu(values: Floats) -> float:
    """Return the threshold between two classes; -inf if all values are equal."""
    import SimpleITK as sitk

    if np.ptp(values) <= _FLAT * np.abs(values).max():
        return -np.inf
    threshold_filter = sitk.OtsuThresholdImageFilter()
    threshold_filter.Execute(sitk.GetImageFromArray(values[None]))
    return float(threshold_filter.GetThreshold())


def _n4_lattice(
    image: Floats, inside: NDArray[np.bool_], iterations: tuple[int, ...], control_points: int, fwhm: float
) -> Floats:
    """Return SimpleITK's coefficients of the log field, one along axes of one bin."""
    import SimpleITK as sitk

    ndim = sum(n > 1 for n in image.shape)
    spans = (control_points - 3) * 2 ** (len(iterations) - 1)
    shape = [spans + 3 if n > 1 else 1 for n in image.shape]
    if np.ptp(np.log(image[inside])) <= _FLAT:
        return np.zeros(shape)
    if ndim < 2:
        raise GridError(f"N4 needs two axes of more than one bin; got the shape {image.shape}. Pass a plane.")
    values, mask = np.where(inside, image, 0).squeeze(), inside.squeeze()
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(iterations)
    correction.SetNumberOfControlPoints([control_points] * ndim)
    correction.SetBiasFieldFullWidthAtHalfMaximum(fwhm)
    correction.Execute(sitk.GetImageFromArray(values.astype(np.float32)), sitk.GetImageFromArray(mask.astype(np.uint8)))
    # ITK stretches the spline over an image of any size: this one has enough samples to solve for the coefficients.
    samples = 2 * spans + 5
    log = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(sitk.Image([samples] * ndim, sitk.sitkFloat32)))
    solve = np.asarray(np.linalg.pinv(basis(np.linspace(0, 1, samples), spans)), dtype=np.float64)
    lattice = contract(log.astype(np.float64), [solve] * ndim)
    log_at_bins = contract(lattice, [basis(np.linspace(0, 1, n), spans) for n in values.shape])
    return (lattice - log_at_bins[mask].mean()).reshape(shape)


def _pattern_lattice(
    image: Floats, inside: NDArray[np.bool_], percentile: float, weights: Sequence[NDArray[Any]]
) -> Floats:
    """Return the coefficients of the log pattern that the planes share, one along the axis of planes.

    `weights` are the spline weights (bins, coefficients) along each axis of a plane.
    """
    plane_shape, shape = [len(w) for w in weights], [w.shape[1] for w in weights]
    values = np.where(inside, image, np.nan).reshape(-1, int(np.prod(plane_shape)))
    values = values[inside.reshape(values.shape).any(1)]
    # Planes with the same pattern may differ in brightness.
    values = values / np.nanmedian(values, axis=1, keepdims=True)
    count = np.isfinite(values).sum(0)
    log = np.zeros(count.shape)
    log[count > 0] = np.log(np.nanpercentile(values[:, count > 0], percentile, axis=0))
    share = count / count.sum()
    design = np.asarray(reduce(np.kron, weights), dtype=np.float64)
    normal = (design.T * share) @ design + _STIFFNESS * _roughness(shape)
    solution = np.linalg.lstsq(normal, design.T @ (share * log), rcond=None)[0]
    return (solution - share @ (design @ solution)).reshape((1,) * (image.ndim - len(shape)) + tuple(shape))


def _roughness(shape: Sequence[int]) -> Floats:
    """Return the matrix of the quadratic form that gives the mean square of second differences of coefficients."""
    size = int(np.prod(shape))
    unit = np.eye(size).reshape(*shape, size)
    differences = [np.diff(unit, n=2, axis=axis).reshape(-1, size) for axis, n in enumerate(shape) if n > 2]
    return np.asarray(sum((d.T @ d for d in differences), np.zeros((size, size))) / size)
