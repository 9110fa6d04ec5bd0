"""Contact sheets: many synthetic samples in one picture, with real images among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import FormatError, ParameterError
from mrhdata.volume.construct import PLANES

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.synthesis import Synthesizer

Picture = NDArray[np.float32]

#: Voxels of a sample along the axis that is not drawn: enough for slices of 7 mm and displacements.
_DEPTH = 24
#: Pixels between pictures.
_GAP = 4
#: Colour of the names of real images.
_INK = "#f80"


def contact_sheet(
    synthesizer: Synthesizer,
    path: str | os.PathLike[str],
    *,
    count: int = 64,
    seed: int = 0,
    size: int = 192,
    columns: int = 10,
    real: Mapping[str, xr.DataArray] | None = None,
    names: bool = True,
) -> None:
    """Write one slice of each of many samples as PNG, with the middle slices of real volumes among them.

    Axial, coronal and sagittal slices take turns; superior or anterior points up.

    Parameters
    ----------
    synthesizer : Synthesizer
    path : path
        Path of the PNG.
    count : int
        Number of samples.
    seed : int
        Random seed of the first sample; the following ones have the next numbers.
    size : int
        Pixels of a picture, and voxels of a sample, along each side.
    columns : int
        Pictures per row.
    real : mapping of str to volume (z, y, x), optional
        Real images, of which three slices each are spread over the sheet.
    names : bool
        Whether to mark real images by their names.

    Raises
    ------
    FormatError
        If the path does not end in ``.png``.

    Examples
    --------
    >>> import tempfile
    >>> from mrhdata.synthesis import Anatomy, Synthesizer
    >>> maps = [np.ones((8, 8, 8), np.uint8)]
    >>> synthesizer = Synthesizer(maps, anatomy=Anatomy.of_labels([1]), spacing_mm=(1, 1, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     contact_sheet(synthesizer, f"{folder}/sheet.png", count=4, size=16)
    """
    if not str(path).lower().endswith(".png"):
        raise FormatError(f"path must end in .png; got {path}. Change its ending.")
    if count < 1:
        raise ParameterError(f"count must be 1 or more; got {count}. Pass the number of samples.")
    pictures = [("", picture) for picture in _sample_slices(synthesizer, count, seed, size)]
    references = [(name, picture) for name, volume in (real or {}).items() for picture in _middle_slices(volume, size)]
    # The positions of real images are spread evenly over the sheet.
    every = (len(pictures) + len(references)) / max(1, len(references))
    for number, reference in enumerate(references):
        pictures.insert(round((number + 0.5) * every), reference)
    figure = _draw(pictures, size, columns, names=names)
    with atomic_write(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=100)


def _sample_slices(synthesizer: Synthesizer, count: int, seed: int, size: int) -> Iterator[Picture]:
    """Yield the slice of largest variation of samples that are thin along one axis."""
    for number in range(count):
        axis = number % 3
        shape = [_DEPTH if k == axis else size for k in range(3)]
        image = np.moveaxis(synthesizer.sample(seed + number, shape)[0][0].cpu().numpy(), axis, 0)
        yield image[image.std(axis=(1, 2)).argmax()][::-1]


def _middle_slices(volume: xr.DataArray, size: int) -> Iterator[Picture]:
    """Yield the middle slice of each plane, upright, scaled to values from 0 to 1 and to the size of a picture."""
    steps = tuple(slice(None, None, -1 if letter in "IPL" else 1) for letter in volume.mrh.grid.orientation)
    values = np.nan_to_num(volume.values[steps].astype(np.float32))
    low, high = np.percentile(values, (0.5, 99.8))
    values = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    longest = max(np.multiply(values.shape, volume.mrh.spacing))
    for axis in PLANES.values():
        picture = values.take(values.shape[axis] // 2, axis=axis)[::-1]
        spacing = np.delete(volume.mrh.spacing, axis)
        yield _fit(ndimage.zoom(picture, spacing * size / longest, order=1), size)


def _fit(picture: Picture, size: int) -> Picture:
    """Return a picture in the middle of a square of its corner's value."""
    rows, columns = (min(length, size) for length in picture.shape)
    square = np.full((size, size), picture[0, 0], dtype=np.float32)
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = picture[:rows, :columns]
    return square


def _draw(pictures: list[tuple[str, Picture]], size: int, columns: int, *, names: bool) -> Figure:
    """Return a figure with a pixel for each pixel of the pictures."""
    step, rows = size + _GAP, -(-len(pictures) // columns)
    sheet = np.full((rows * step, columns * step), 0.25, dtype=np.float32)
    figure = Figure(figsize=(columns * step / 100, rows * step / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    for number, (name, picture) in enumerate(pictures):
        top, left = number // columns * step, number % columns * step
        sheet[top : top + size, left : left + size] = picture
        if names and name:
            ax.text(left + 3, top + 12, name, color=_INK, fontsize=8)
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    return figure
