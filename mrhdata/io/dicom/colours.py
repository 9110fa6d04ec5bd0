"""Colours of DICOM pictures: luminance and chrominance, and palettes, as red, green and blue."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from mrhdata.errors import FormatError


def to_rgb(values: np.ndarray, photometric: str) -> np.ndarray:
    """Return red, green and blue of three stored values; compressed ones of JPEG 2000 are that already."""
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        if values.dtype != np.uint8:
            raise FormatError(f"{photometric} colours must have 8 bits; got {values.dtype}. Convert the file to RGB")
        return convert_color_space(values, "YBR_FULL", "RGB")
    return values


def upsampled(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return luminance and chrominance of every voxel, from four numbers for two voxels."""
    pairs = values.reshape(rows, columns // 2, 4)
    luminance = pairs[..., :2].reshape(rows, columns)
    blue, red = (np.repeat(pairs[..., k], 2, axis=1) for k in (2, 3))
    return np.stack([luminance, blue, red], axis=-1)


def palette_dtype(palette: Dataset) -> np.dtype[Any]:
    """Return the type of the colours of a palette."""
    descriptor = palette.get("RedPaletteColorLookupTableDescriptor")
    if descriptor is None or len(descriptor) != 3 or descriptor[2] not in (8, 16):
        raise FormatError("PALETTE COLOR must have a table of colours of 8 or 16 bits; it has none")
    return np.dtype(np.uint8 if descriptor[2] == 8 else np.uint16)


def from_palette(values: np.ndarray, palette: Dataset) -> np.ndarray:
    """Return the red, green and blue that a palette has for each number."""
    return apply_color_lut(values, palette)[..., :3].astype(palette_dtype(palette), copy=False)
