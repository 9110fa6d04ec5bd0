from . import (
    cell_tables,
    conversion,
    dicom,
    fingerprint,
    formats,
    hdf5,
    inspection,
    itk,
    matlab_patches,
    minc,
    nifti,
    omezarr,
    tiff,
    xarray_backend,
)
from .cell_tables import read_points, write_points
from .conversion import convert
from .formats import read, write
from .inspection import difference, inspect

__all__ = [
    "cell_tables",
    "conversion",
    "convert",
    "dicom",
    "difference",
    "fingerprint",
    "formats",
    "hdf5",
    "inspect",
    "inspection",
    "itk",
    "matlab_patches",
    "minc",
    "nifti",
    "omezarr",
    "read",
    "read_points",
    "tiff",
    "write",
    "write_points",
    "xarray_backend",
]
