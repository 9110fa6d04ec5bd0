"""What a file holds and what is suspicious about it; how two volumes differ in world space."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Unpack

import dask.array as da
import numpy as np

from mrhdata.errors import GridError
from mrhdata.io import formats
from mrhdata.io.formats import Options
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import length

if TYPE_CHECKING:
    import xarray as xr

#: Values are looked at in at most this many bytes; planes are left out of larger volumes evenly.
_LOOK_AT_BYTES = 500_000_000
#: No specimen is longer, and no voxel of one smaller, in mm.
_LONGEST_MM, _SMALLEST_MM = 3000.0, 1e-7
#: Susceptibility of tissue stays below this in ppm, so larger values are ppb.
_MOST_PPM = 5.0


def inspect(path: str | os.PathLike[str], **options: Unpack[Options]) -> dict[str, Any]:
    """Describe a file: geometry, type, chunks, range, and what is suspicious.

    Parameters
    ----------
    path : path or URL
        Anything that :func:`mrhdata.read` reads.
    **options
        As for :func:`mrhdata.read`.

    Returns
    -------
    found : dict
        Of plain values, ready for JSON; ``suspicious`` is a list of sentences.

    Examples
    --------
    >>> import tempfile, mrhdata
    >>> path = tempfile.mkdtemp() + "/a.nii"
    >>> mrhdata.write(mrhdata.volume.from_array(np.zeros((2, 3, 4), np.int16), spacing=(1, 1, 1)), path)
    >>> inspect(path)["suspicious"]
    ['all values are 0']
    """
    volume = formats.read(path, **options)
    grid = volume.mrh.grid
    data = da.asarray(volume.data)
    suspicious = [*_about_header(path, volume), *_about_geometry(volume)]
    values, looked_at = _sample(volume)
    low, high, about_values = _about_values(volume, values)
    return {
        "file": str(path),
        "shape": {str(d): int(n) for d, n in volume.sizes.items()},
        "dtype": str(volume.dtype),
        "spacing": {d: length(float(step)) for d, step in zip(SPATIAL, grid.spacing, strict=True)},
        "spacing_mm": {d: float(f"{step:.6g}") for d, step in zip(SPATIAL, grid.spacing, strict=True)},
        "orientation": grid.orientation,
        "space": volume.mrh.space,
        "kind": volume.attrs["kind"],
        "units": volume.attrs.get("units", "not stated"),
        "range": {"low": low, "high": high},
        "values_of": looked_at,
        "chunks": [int(n) for n in data.chunksize],
        "bytes": int(data.nbytes),
        "corner_mm": {"first": grid.corners()[0].round(6).tolist(), "last": grid.corners()[-1].round(6).tolist()},
        "suspicious": [*suspicious, *about_values],
    }


def _about_header(path: str | os.PathLike[str], volume: xr.DataArray) -> list[str]:
    if volume.attrs.get("spacing_stated") is False:
        return ["the file states no voxel size, so 1 mm was taken; give spacing= and unit="]
    name = os.fspath(path).lower()
    if not name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")):
        return []
    import nibabel as nib

    header: Any = nib.load(path).header
    if not isinstance(header, nib.Nifti1Header):
        return ["ANALYZE has no orientation; state it with axes="]
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        return ["neither qform nor sform is set, so the orientation is a guess; state it with axes="]
    if (
        qform is not None
        and sform is not None
        and not np.allclose(qform, sform, atol=1e-3 * float(volume.mrh.spacing.min()))
    ):
        return [f"qform and sform disagree by up to {np.abs(qform - sform).max():.4g} mm; the sform is used"]
    return []


def _about_geometry(volume: xr.DataArray) -> list[str]:
    grid = volume.mrh.grid
    found = []
    extent = float((grid.spacing * grid.shape).max())
    if extent > _LONGEST_MM:
        found.append(f"the volume is {extent / 1000:.4g} m long; are its lengths in um or nm? give unit=")
    if grid.spacing.min() < _SMALLEST_MM:
        found.append(f"voxels are {grid.spacing.min():.3g} mm; is the unit of the file right? give unit=")
    microscope = volume.attrs.get("modality") in ("em", "cleared", "histology", "fluorescence")
    if microscope and np.allclose(grid.spacing, 1.0) and volume.attrs.get("spacing_stated") is not False:
        found.append("voxels of exactly 1 mm in a microscope's image; is the unit um?")
    axes = grid.affine[:3, :3] / grid.spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        found.append("the affine is sheared: axes are not at right angles")
    return found


def _sample(volume: xr.DataArray) -> tuple[np.ndarray, str]:
    """Values of all planes, or of some of them evenly."""
    axis = volume.dims.index("z") if "z" in volume.dims else 0
    n = volume.shape[axis]
    step = max(1, -(-volume.nbytes // _LOOK_AT_BYTES))
    data = da.asarray(volume.data)[(slice(None),) * axis + (slice(None, None, step),)]
    values = np.moveaxis(np.asarray(data.compute(scheduler="threads")), axis, 0)
    return values, "all planes" if step == 1 else f"{len(values)} of {n} planes"


def _about_values(volume: xr.DataArray, values: np.ndarray) -> tuple[float, float, list[str]]:
    found = []
    if values.dtype.kind == "f":
        odd = int((~np.isfinite(values)).sum())
        if odd:
            found.append(f"{odd} of {values.size} values are NaN or infinite")
            values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all() if values.dtype.kind == "f" else False:
        return float("nan"), float("nan"), [*found, "no value is finite"]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        return low, high, [*found, f"all values are {low:g}"]
    planes = values.reshape(len(values), -1)
    constant = np.array([np.nanmin(p) == np.nanmax(p) if not np.isnan(p).all() else True for p in planes.astype(float)])
    inside = constant[np.argmin(constant) : len(constant) - np.argmin(constant[::-1])]
    if inside.any():
        found.append(f"{int(inside.sum())} planes between others hold one value only")
    return low, high, [*found, *_about_units(volume, planes)]


def _about_units(volume: xr.DataArray, values: np.ndarray) -> list[str]:
    name = f"{volume.name} {volume.attrs.get('modality', '')}".lower()
    if not any(word in name for word in ("qsm", "chi", "suscept")):
        return []
    high = float(np.nanpercentile(np.abs(values[:: max(1, len(values) // 20)]), 99.9))
    units = volume.attrs.get("units")
    likely = "ppb" if high > _MOST_PPM else "ppm"
    if units is None:
        return [f"susceptibility without units; up to {high:.4g}, so it looks like {likely}"]
    if units in ("ppm", "ppb") and units != likely and high > 0:
        return [f"susceptibility up to {high:.4g} is stated in {units} but looks like {likely}"]
    return []


def difference(first: xr.DataArray, second: xr.DataArray) -> dict[str, Any]:
    """How two volumes differ where both are, voxel by voxel of the first, in world space.

    Where grids differ, the second is read at the places of the first's voxels, linearly (labels and
    masks: nearest).

    Parameters
    ----------
    first, second : xarray.DataArray
        Of one world space.

    Returns
    -------
    found : dict
        ``same`` is whether geometry and values are; ``max_difference``, ``mean_difference``,
        ``different`` (voxels), ``correlation`` and ``compared`` (part of the first's voxels that lie in
        the second) are over all voxels compared.

    Raises
    ------
    GridError
        They lie in different spaces, have different channels, or do not overlap.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> a = from_array(np.arange(8.0).reshape(2, 2, 2), spacing=(1, 1, 1))
    >>> difference(a, a[::-1])["same"], difference(a, a + 1)["max_difference"]
    (True, 1.0)
    """
    if first.mrh.space != second.mrh.space:
        raise GridError(f"spaces differ: {first.mrh.space!r} and {second.mrh.space!r}; register one to the other first")
    one, two = first.mrh.grid, second.mrh.grid
    a, b = (v.expand_dims([d for d in SPATIAL if d not in v.dims]).transpose(..., *SPATIAL) for v in (first, second))
    extra = a.shape[:-3]
    if extra != b.shape[:-3]:
        raise GridError(f"times and channels differ: {extra} and {b.shape[:-3]}; select one of each first")
    order = 0 if "labels" in (first.attrs["kind"], second.attrs["kind"]) or first.attrs["kind"] == "mask" else 1
    to_second = np.linalg.inv(two.affine) @ one.affine
    total = _Total()
    values_b = np.asarray(b.data)
    for z in range(one.shape[0]):
        plane = np.asarray(a.isel(z=z).data)
        total.add(*_at(plane, values_b, to_second, z, order))
    if not total.compared:
        raise GridError("the volumes do not overlap in world space; is one header wrong?")
    same_grid = one.shape == two.shape and bool(
        np.allclose(np.sort(one.corners(), 0), np.sort(two.corners(), 0), atol=1e-6)
    )
    return {
        "same": same_grid and total.different == 0 and total.compared == int(np.prod(one.shape)) * int(np.prod(extra)),
        "same_grid": same_grid,
        "orientation": [one.orientation, two.orientation],
        "spacing_mm": [one.spacing.round(9).tolist(), two.spacing.round(9).tolist()],
        "dtype": [str(first.dtype), str(second.dtype)],
        "compared": total.compared / max(1, int(np.prod(one.shape)) * int(np.prod(extra))),
        **total.scores(),
    }


def _at(
    plane: np.ndarray, values: np.ndarray, to_second: np.ndarray, z: int, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values of a plane (..., y, x) of the first, and of the second at the same places, where both are."""
    from scipy.ndimage import map_coordinates

    y, x = np.indices(plane.shape[-2:])
    index = np.stack([np.full(y.shape, z), y, x, np.ones(y.shape)], axis=-1) @ to_second[:3].T
    # Grids that agree but for their order meet in whole numbers, not interpolated then.
    whole = np.rint(index)
    index = np.where(np.abs(index - whole) < 1e-4, whole, index)
    inside = ((index >= 0) & (index <= np.array(values.shape[-3:]) - 1)).all(-1)
    places = index[inside].T
    flat = values.reshape(-1, *values.shape[-3:])
    if (places == np.rint(places)).all():
        at = tuple(places.astype(int))
        found = np.stack([volume[at] for volume in flat])
    else:
        found = np.stack([map_coordinates(volume, places, order=order, output=np.float64) for volume in flat])
    return plane.reshape(-1, *plane.shape[-2:])[:, inside].ravel(), found.ravel()


class _Total:
    """Sums over voxels, from which the scores follow."""

    def __init__(self) -> None:
        self.compared = self.different = 0
        self._worst, self._off, self._sums = 0.0, 0.0, np.zeros(6)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.compared += a.size
        both_missing = np.zeros(a.shape, bool)
        if a.dtype.kind == "f" and b.dtype.kind == "f":
            both_missing = np.isnan(a) & np.isnan(b)
        self.different += int(((a != b) & ~both_missing).sum())
        x, y = a.astype(np.float64), b.astype(np.float64)
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        off = np.abs(x - y)
        self._worst = max(self._worst, float(off.max(initial=0.0)))
        self._sums += [x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        self._off += float(off.sum())

    def scores(self) -> dict[str, Any]:
        n, x, y, xx, yy, xy = self._sums
        spread = max(0.0, n * xx - x * x) * max(0.0, n * yy - y * y)
        return {
            "different": self.different,
            "max_difference": self._worst,
            "mean_difference": float(self._off / max(1.0, n)),
            "correlation": float((n * xy - x * y) / np.sqrt(spread)) if spread > 0 else None,
        }
