"""Description of a file: geometry, type, range of values, and warnings about suspicious content."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Unpack

import dask.array as da
import numpy as np

from mrhdata._runtime.child_process import ChildReader
from mrhdata.errors import GridError
from mrhdata.io import formats
from mrhdata.io.formats import Options
from mrhdata.volume.assumptions import assumed, sentences
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.grid import MAX_EXTENT_MM, length
from mrhdata.volume.kinds import warning_of_labels
from mrhdata.volume.times import times_of

if TYPE_CHECKING:
    import xarray as xr

#: Bytes of values that are read at most; of larger volumes, evenly spaced planes are read.
_SAMPLE_BYTES = 500_000_000
#: Longest time in seconds for the sample of values of an untrusted file.
_SECONDS = 3600.0
#: Smallest voxel size in mm that is plausible.
_MIN_SPACING_MM = 1e-7
#: Susceptibility of tissue stays below this in ppm, so larger values are ppb.
_MAX_PPM = 5.0


#: Endings of formats that have fields for the orientation, so that a file without one is suspicious.
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_ORIENTED = (*_NIFTI, ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd")


def inspect(path: str | os.PathLike[str], *, safe: bool = False, **options: Unpack[Options]) -> dict[str, Any]:
    """Describe a file: geometry, type, chunks, range of values, and warnings.

    Parameters
    ----------
    path : path or URL
        Any source that :func:`mrhdata.read` reads.
    safe : bool
        Whether to read an untrusted file in a child process, so that a file that ends the process of a library, or that
        takes longer than an hour, is an error.
    **options
        Options of :func:`mrhdata.read`.

    Returns
    -------
    description : dict
        Plain values, ready for JSON; ``suspicious`` is a list of sentences.

    Examples
    --------
    >>> import tempfile, mrhdata
    >>> path = tempfile.mkdtemp() + "/a.nii"
    >>> mrhdata.write(mrhdata.volume.from_array(np.zeros((2, 3, 4), np.int16), spacing=(1, 1, 1)), path)
    >>> inspect(path)["suspicious"]
    ['all values are 0']
    """
    if safe:
        with ChildReader("mrhdata.io.inspection:inspect", "reading it", _SECONDS) as child:
            return {**child.read(path, options), "file": str(path)}
    volume = formats.read(path, **options)
    grid = volume.mrh.grid
    data = da.asarray(volume.data)
    warnings = [*_check_header(path, volume), *_check_geometry(volume)]
    values, sampled = _sample(volume)
    low, high, value_warnings = _check_values(volume, values)
    return {
        "file": str(path),
        **({"images": images} if len(images := formats.contents(path)) > 1 else {}),
        "shape": {str(d): int(n) for d, n in volume.sizes.items()},
        **_channels_and_times(volume),
        "dtype": str(volume.dtype),
        "spacing": {d: length(float(step)) for d, step in zip(SPATIAL, grid.spacing, strict=True)},
        "spacing_mm": {d: float(f"{step:.6g}") for d, step in zip(SPATIAL, grid.spacing, strict=True)},
        "orientation": grid.orientation,
        "space": volume.mrh.space,
        "kind": volume.attrs["kind"],
        "units": volume.attrs.get("units", "not stated"),
        "assumed": list(assumed(volume)),
        "range": {"low": low, "high": high},
        "values_of": sampled,
        "chunks": [int(n) for n in data.chunksize],
        "bytes": int(data.nbytes),
        "corner_mm": {"first": grid.corners()[0].round(6).tolist(), "last": grid.corners()[-1].round(6).tolist()},
        "suspicious": [*warnings, *value_warnings],
    }


def _channels_and_times(volume: xr.DataArray) -> dict[str, Any]:
    """Return the names of the channels, and the seconds between two times, if the file states them."""
    names = {"channels": [str(name) for name in volume.c.values]} if "c" in volume.coords and "c" in volume.dims else {}
    try:
        times = times_of(volume)
    except GridError:
        return {**names, "time_step_s": "unequal"}
    return names if times is None else {**names, "time_step_s": times[0]}


def _check_header(path: str | os.PathLike[str], volume: xr.DataArray) -> list[str]:
    """Return sentences about properties that the file should state, and about transforms that disagree."""
    name = os.fspath(path).lower()
    warned = ("spacing", "unit", "values", *(["orientation"] if name.endswith(_ORIENTED) else []))
    return [*sentences(volume, warned), *(_compare_transforms(path, volume) if name.endswith(_NIFTI) else [])]


def _compare_transforms(path: str | os.PathLike[str], volume: xr.DataArray) -> list[str]:
    """Return a sentence about the qform and the sform of a NIfTI if both are set and differ."""
    import nibabel as nib

    header: Any = nib.load(path).header
    if not isinstance(header, nib.Nifti1Header):
        return []
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None or sform is None or np.allclose(qform, sform, atol=1e-3 * float(volume.mrh.spacing.min())):
        return []
    return [f"qform and sform disagree by up to {np.abs(qform - sform).max():.4g} mm; the sform is used"]


def _check_geometry(volume: xr.DataArray) -> list[str]:
    grid = volume.mrh.grid
    warnings = []
    extent = float((grid.spacing * grid.shape).max())
    if extent > MAX_EXTENT_MM:
        warnings.append(f"the volume is {extent / 1000:.4g} m long; are its lengths in um or nm? pass unit=")
    if grid.spacing.min() < _MIN_SPACING_MM:
        warnings.append(f"voxels are {grid.spacing.min():.3g} mm; is the unit of the file right? pass unit=")
    microscope = volume.attrs.get("modality") in ("em", "cleared", "histology", "fluorescence")
    if microscope and np.allclose(grid.spacing, 1.0) and "spacing" not in assumed(volume):
        warnings.append("voxels of exactly 1 mm in a microscope's image; is the unit um?")
    axes = grid.affine[:3, :3] / grid.spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        warnings.append("the affine is sheared: axes are not at right angles")
    return warnings


def _sample(volume: xr.DataArray) -> tuple[np.ndarray, str]:
    """Return the values of all planes, or of evenly spaced ones, and a description of them."""
    axis = volume.dims.index("z") if "z" in volume.dims else 0
    n = volume.shape[axis]
    step = max(1, -(-volume.nbytes // _SAMPLE_BYTES))
    data = da.asarray(volume.data)[(slice(None),) * axis + (slice(None, None, step),)]
    values = np.moveaxis(np.asarray(data.compute(scheduler="threads")), axis, 0)
    return values, "all planes" if step == 1 else f"{len(values)} of {n} planes"


def _check_values(volume: xr.DataArray, values: np.ndarray) -> tuple[float, float, list[str]]:
    """Return the lowest and highest finite value, and warnings."""
    warnings = []
    if values.dtype.kind == "f":
        not_finite = int((~np.isfinite(values)).sum())
        if not_finite:
            warnings.append(f"{not_finite} of {values.size} values are NaN or infinite")
            values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all() if values.dtype.kind == "f" else False:
        return float("nan"), float("nan"), [*warnings, "no value is finite"]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        return low, high, [*warnings, f"all values are {low:g}"]
    planes = values.reshape(len(values), -1)
    constant = np.array([np.nanmin(p) == np.nanmax(p) if not np.isnan(p).all() else True for p in planes.astype(float)])
    inside = constant[np.argmin(constant) : len(constant) - np.argmin(constant[::-1])]
    if inside.any():
        warnings.append(f"{int(inside.sum())} planes between others hold one value only")
    # A few planes of the sample, which may take half of a gigabyte.
    few = values[:: max(1, len(values) // 4)]
    return low, high, [*warnings, *warning_of_labels(volume, few), *_check_susceptibility(volume, planes)]


def _check_susceptibility(volume: xr.DataArray, values: np.ndarray) -> list[str]:
    name = f"{volume.name} {volume.attrs.get('modality', '')}".lower()
    if not any(word in name for word in ("qsm", "chi", "suscept")):
        return []
    high = float(np.nanpercentile(np.abs(values[:: max(1, len(values) // 20)]), 99.9))
    units = volume.attrs.get("units")
    likely = "ppb" if high > _MAX_PPM else "ppm"
    if units is None:
        return [f"susceptibility without units; up to {high:.4g}, so it looks like {likely}"]
    if units in ("ppm", "ppb") and units != likely and high > 0:
        return [f"susceptibility up to {high:.4g} is stated in {units} but looks like {likely}"]
    return []
