from . import (
    cell_tables,
    comparison,
    conversion,
    dicom,
    fingerprint,
    formats,
    hdf5,
    inspection,
    itk,
    label_names,
    matlab_patches,
    minc,
    nifti,
    omezarr,
    reader,
    tiff,
    verification,
    xarray_backend,
)
from .cell_tables import read_points, write_points
from .comparison import difference
from .conversion import convert
from .formats import read, write
from .inspection import inspect
from .label_names import read_label_names
from .reader import Reader
from .verification import verify

__all__ = [
    "Reader",
    "cell_tables",
    "comparison",
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
    "label_names",
    "matlab_patches",
    "minc",
    "nifti",
    "omezarr",
    "read",
    "read_label_names",
    "read_points",
    "reader",
    "tiff",
    "verification",
    "verify",
    "write",
    "write_points",
    "xarray_backend",
]
