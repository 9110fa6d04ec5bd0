"""Illumination: N4 bias fields of whole volumes, and the pattern that planes of a microscope share.

Both are smooth and multiply the image. They are fitted to the means of coarse cells when the function is
called, which reads the volume once in blocks, and divided out lazily, so volumes of any size stream.
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
    coarse_cells,
    contract,
    divide,
    evaluate,
    factors_for,
    fit_each,
)
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import Floats

#: Fields with a range of logarithms below this are no more than rounding.
_FLAT = 1e-6
#: Weight of the second differences of a pattern's coefficients, as part of the weight of the cells.
_STIFFNESS = 1e-5


def n4(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    fit_on: xr.DataArray | None = None,
    cells: int = 40,
    iterations: Sequence[int] = (50, 50, 50, 50),
    control_points: int = 4,
    fwhm: float = 0.15,
) -> xr.DataArray:
    """Volume divided by its N4 bias field (Tustison et al. 2010, IEEE TMI 29:1310).

    The field is fitted by SimpleITK to a volume of at most `cells` cells along each axis, whose means are
    taken block by block when this is called; the division is lazy. The mean logarithm of the field over
    the cells that it was fitted on is 0, so their geometric mean brightness stays.

    Parameters
    ----------
    volume : volume, kind image
        Each image along ``t`` and ``c`` has its own field, unless `fit_on` has fewer axes. Voxels that
        are not finite do not count and stay as they are.
    mask : volume, optional
        Where the field is fitted: voxels that are not 0, on the grid of the volume that it is fitted on. A
        cell counts if half of it is inside. By default cells above Otsu's threshold (1979, IEEE TSMC 9:62)
        of their means. Cells with a mean of 0 or less never count, since they have no logarithm.
    fit_on : volume, optional
        Fit the field to this volume instead: a coarser level of the same store, so that the finest need not
        be read, or one image whose field all images share, such as the b0 of a diffusion series. It has the
        affine of `volume`.
    cells : int
        At most so many along each axis.
    iterations : sequence of int
        At most, for each level; every level halves the spans of the one before. A level ends earlier when
        the field changes by less than 0.001, SimpleITK's default.
    control_points : int
        Of the first level along each axis; n are n - 3 spans.
    fwhm : float
        Of the Gaussian by which the histogram of logarithms is sharpened.

    Returns
    -------
    corrected : volume, float32
        Lazy, on the grid of `volume`, with its attributes.

    Raises
    ------
    DataError
        The volume holds labels, or nothing above 0 in the mask, or a number is out of range.
    GridError
        `mask` or `fit_on` does not lie where `volume` does, or there is only one axis of more than one cell.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> shade = np.exp(np.linspace(-0.4, 0.4, 32))
    >>> tissue = np.where(np.indices((32, 32, 32)).sum(0) % 8 < 4, 100.0, 140.0)
    >>> v = from_array((tissue * shade).astype("float32"), spacing=(1, 1, 1))
    >>> corrected = n4(v, mask=v > 0, cells=16)
    >>> bright = tissue == 140
    >>> spread = lambda a: float(a.values[bright].std() / a.values[bright].mean())
    >>> spread(v) > 0.2, spread(corrected) < 0.05
    (True, True)
    """
    field = bias_field(
        volume, mask=mask, fit_on=fit_on, cells=cells, iterations=iterations, control_points=control_points, fwhm=fwhm
    )
    return divide(volume, field)


def bias_field(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    fit_on: xr.DataArray | None = None,
    cells: int = 40,
    iterations: Sequence[int] = (50, 50, 50, 50),
    control_points: int = 4,
    fwhm: float = 0.15,
) -> xr.DataArray:
    """The field that :func:`n4` divides by, lazy, on the grid of `volume`; arguments as there.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> field = bias_field(from_array(np.full((8, 8, 8), 5), spacing=(1, 1, 1)))
    >>> float(field.min()), float(field.max())
    (1.0, 1.0)
    """
    if cells < 4 or control_points < 4 or not len(iterations) or min(iterations) < 1 or not fwhm > 0:
        raise DataError(
            f"cells {cells} and control_points {control_points} are at least 4, iterations {list(iterations)} at "
            f"least 1 and fwhm {fwhm} above 0; the defaults are a good start"
        )
    source = volume if fit_on is None else fit_on
    _check_image(volume)
    _check_image(source)
    _check_place(source, volume)
    coarse = coarse_cells(source, factors_for(source, SPATIAL, cells), _mask(mask, source))

    def fit(image: Floats, share: Floats) -> Floats:
        inside = _inside(image, share, coarse.factors, otsu=mask is None)
        return _n4_lattice(image, inside, tuple(iterations), control_points, fwhm)

    return evaluate(fit_each(coarse, fit), coarse, source, volume).rename("bias_field")


def flat_field(
    volume: xr.DataArray,
    *,
    mask: xr.DataArray | None = None,
    planes: int = 64,
    dark: float = 0.0,
    percentile: float = 50.0,
    spans: int = 3,
) -> xr.DataArray:
    """Volume less `dark`, each plane divided by the illumination pattern that all planes share.

    Parameters
    ----------
    volume : volume, kind image
        Planes lie along ``z``; each image along ``t`` and ``c`` has its own pattern.
    mask : volume, optional
        Where the pattern is seen, on the grid of `volume`; by default everywhere. Cells that are half inside
        and above `dark` count. Where tissue leaves most planes empty, give a mask or a higher percentile.
    planes : int
        The pattern is estimated from at most so many, evenly spaced.
    dark : float
        What the camera shows without light; it is subtracted.
    percentile : float
        Of the planes at each place, 0 to 100.
    spans : int
        Of the cubic spline along y and x that is fitted to the logarithm of these percentiles.

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
    """The pattern that :func:`flat_field` divides by, lazy, on the grid of `volume`; arguments as there.

    Cells of at least a 64th of a plane are averaged, the percentile over planes is taken of the cells
    inside, and a spline with a small penalty on its second differences (Eilers and Marx 1996, Stat. Sci.
    11:89) is fitted to its logarithm, each place weighted by the number of its planes. The mean logarithm
    is 0.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> pattern = illumination(from_array(np.full((3, 9, 9), 7), spacing=(1, 1, 1)))
    >>> pattern.dims, float(pattern.max().round(4))
    (('z', 'y', 'x'), 1.0)
    """
    along = tuple(str(d) for d in volume.dims if d in ("y", "x"))
    if not along:
        raise GridError(f"planes have the axes y and x, the volume only {list(volume.dims)}; give whole planes")
    if planes < 1 or spans < 1 or not 0 <= percentile <= 100:
        raise DataError(
            f"planes {planes} and spans {spans} are at least 1, percentile {percentile} is 0 to 100; "
            "the defaults are a good start"
        )
    _check_image(volume)
    sample, where = volume, _mask(mask, volume)
    if "z" in volume.dims:
        chosen = np.unique(np.linspace(0, volume.sizes["z"] - 1, planes).round().astype(int))
        sample, where = volume.isel(z=chosen), None if where is None else where.isel(z=chosen)
    coarse = coarse_cells(sample, factors_for(sample, ("y", "x"), 64), where)

    def fit(image: Floats, share: Floats) -> Floats:
        inside = _inside(image - dark, share, coarse.factors, otsu=False)
        rows = [basis(centres(coarse, d), spans) if volume.sizes[d] > 1 else np.ones((1, 1)) for d in along]
        return _pattern_lattice(image - dark, inside, percentile, rows)

    return evaluate(fit_each(coarse, fit), coarse, volume, volume).rename("illumination")


def _check_image(volume: xr.DataArray) -> None:
    kind = volume.attrs.get("kind", "image")
    if kind != "image" or volume.dtype.kind not in "uif":
        raise DataError(
            f"{volume.name!r} is of kind {kind!r} and dtype {volume.dtype}, which has no illumination; give an image "
            "of real numbers, or correct a wrong kind with describe(volume, kind='image')"
        )
    _ = volume.mrh.grid


def _check_place(source: xr.DataArray, volume: xr.DataArray) -> None:
    """Whether a field fitted on `source` can be evaluated on `volume`: one frame, axes and extent."""
    if source is volume:
        return
    same = source.mrh.space == volume.mrh.space and np.allclose(source.mrh.affine, volume.mrh.affine, atol=1e-6)
    spatial = [[d for d in v.dims if d in SPATIAL] for v in (source, volume)]
    if not same or spatial[0] != spatial[1]:
        raise GridError(
            f"fit_on has axes {spatial[0]}, origin {source.mrh.affine[:3, 3].tolist()} and orientation "
            f"{source.mrh.grid.orientation} in {source.mrh.space!r}, the volume {spatial[1]}, "
            f"{volume.mrh.affine[:3, 3].tolist()} and {volume.mrh.grid.orientation} in {volume.mrh.space!r}; fit on a "
            "level of the same store, or resample it first"
        )
    for d in source.dims:
        if d not in SPATIAL and source.sizes[d] != volume.sizes.get(d):
            raise GridError(
                f"fit_on has {source.sizes[d]} along {d!r}, the volume {volume.sizes.get(d, 'no such axis')}; "
                "select one image to fit on"
            )
    for d, step in zip(SPATIAL, np.abs(source.mrh.spacing), strict=True):
        ends = [(float(v[d].min()), float(v[d].max())) for v in (source, volume)]
        if ends[1][0] < ends[0][0] - step or ends[1][1] > ends[0][1] + step:
            raise GridError(
                f"fit_on reaches from {ends[0][0]:g} to {ends[0][1]:g} mm along {d!r}, the volume from "
                f"{ends[1][0]:g} to {ends[1][1]:g}; fit on a volume that covers it"
            )


def _mask(mask: xr.DataArray | None, source: xr.DataArray) -> xr.DataArray | None:
    if mask is None:
        return None
    spatial = [d for d in source.dims if d in SPATIAL]
    if list(mask.dims) != spatial:
        raise GridError(f"the mask has axes {list(mask.dims)}, the image {spatial}; give one mask for all images")
    return mask.mrh.like(source)


def _inside(image: Floats, share: Floats, factors: Sequence[int], otsu: bool) -> NDArray[np.bool_]:
    """Cells that are fitted: half inside, above 0 and, where there is no mask, above Otsu's threshold."""
    inside = share >= 0.5
    if otsu and inside.any():
        inside[inside] = image[inside] > _otsu(image[inside])
    inside[inside] = image[inside] > 0
    if not inside.any():
        raise DataError(
            f"no cell of {tuple(factors)} voxels is half inside the mask, finite and above 0, the logarithm's range; "
            "give another mask, smaller cells, or add an offset to the image"
        )
    return inside


def _otsu(values: Floats) -> float:
    """Threshold between two classes; below all values where they are one."""
    import SimpleITK as sitk

    if np.ptp(values) <= _FLAT * np.abs(values).max():
        return -np.inf
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(values[None]))
    return float(otsu.GetThreshold())


def _n4_lattice(
    image: Floats, inside: NDArray[np.bool_], iterations: tuple[int, ...], control_points: int, fwhm: float
) -> Floats:
    """Coefficients of the log field by SimpleITK; one along axes of one cell."""
    import SimpleITK as sitk

    ndim, spans = sum(n > 1 for n in image.shape), (control_points - 3) * 2 ** (len(iterations) - 1)
    shape = [spans + 3 if n > 1 else 1 for n in image.shape]
    if np.ptp(np.log(image[inside])) <= _FLAT:
        return np.zeros(shape)
    if ndim < 2:
        raise GridError(f"N4 needs two axes of more than one voxel, not the shape {image.shape}; give a plane")
    flat, within = np.where(inside, image, 0).squeeze(), inside.squeeze()
    filtering = sitk.N4BiasFieldCorrectionImageFilter()
    filtering.SetMaximumNumberOfIterations(iterations)
    filtering.SetNumberOfControlPoints([control_points] * ndim)
    filtering.SetBiasFieldFullWidthAtHalfMaximum(fwhm)
    filtering.Execute(sitk.GetImageFromArray(flat.astype(np.float32)), sitk.GetImageFromArray(within.astype(np.uint8)))
    # ITK stretches the spline over whatever image it is asked for: samples enough to solve for the coefficients.
    samples = 2 * spans + 5
    log = sitk.GetArrayFromImage(filtering.GetLogBiasFieldAsImage(sitk.Image([samples] * ndim, sitk.sitkFloat32)))
    solve = np.asarray(np.linalg.pinv(basis(np.linspace(0, 1, samples), spans)), dtype=np.float64)
    lattice = contract(log.astype(np.float64), [solve] * ndim)
    at_cells = contract(lattice, [basis(np.linspace(0, 1, n), spans) for n in flat.shape])
    return (lattice - at_cells[within].mean()).reshape(shape)


def _pattern_lattice(
    image: Floats, inside: NDArray[np.bool_], percentile: float, rows: Sequence[NDArray[Any]]
) -> Floats:
    """Coefficients of the log pattern that the planes share, one along the axis of planes."""
    places, shape = [len(r) for r in rows], [r.shape[1] for r in rows]
    values = np.where(inside, image, np.nan).reshape(-1, int(np.prod(places)))
    values = values[inside.reshape(values.shape).any(1)]
    # Planes of one pattern may differ in brightness.
    values = values / np.nanmedian(values, axis=1, keepdims=True)
    seen = np.isfinite(values).sum(0)
    log = np.zeros(seen.shape)
    log[seen > 0] = np.log(np.nanpercentile(values[:, seen > 0], percentile, axis=0))
    weight, design = seen / seen.sum(), np.asarray(reduce(np.kron, rows), dtype=np.float64)
    normal = (design.T * weight) @ design + _STIFFNESS * _bending(shape)
    solved = np.linalg.lstsq(normal, design.T @ (weight * log), rcond=None)[0]
    return (solved - weight @ (design @ solved)).reshape((1,) * (image.ndim - len(shape)) + tuple(shape))


def _bending(shape: Sequence[int]) -> Floats:
    """Mean square of the second differences of coefficients, as a quadratic form of them."""
    size = int(np.prod(shape))
    unit = np.eye(size).reshape(*shape, size)
    bends = [np.diff(unit, n=2, axis=axis).reshape(-1, size) for axis, n in enumerate(shape) if n > 2]
    return np.asarray(sum((b.T @ b for b in bends), np.zeros((size, size))) / size)
