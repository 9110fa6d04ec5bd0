"""TIFF, BigTIFF, OME-TIFF, ImageJ TIFF and the pyramids of slide scanners, one file at a time.

Pages are planes unless the file names their axes. TIFF has no orientation: files written here store the exact
affine as an OME map annotation, which other readers ignore.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import tifffile

from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import tiff_checks as checks
from mrhdata.io.tiff_directories import check_directories
from mrhdata.io.tiff_geometry import (
    DECODING,
    Placement,
    backward_dims,
    in_colour,
    lazy_planes,
    make_volume,
    palette_of,
    placement,
    turned_data,
    turned_dims,
)
from mrhdata.io.tiff_metadata import NAMESPACE, STORED_ATTRS, header_of
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL
from mrhdata.volume.file_arrays import FileArray, RawReader, check_length, format_errors
from mrhdata.volume.times import times_of

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: tifffile's letter of an axis -> dim; samples of a pixel are channels.
_DIMS = {"T": "t", "C": "c", "S": "c", "Z": "z", "I": "z", "Q": "z", "Y": "y", "X": "x"}
#: Names of pictures of the slide that scanners store next to the image.
_AUXILIARY = ("label", "macro", "thumbnail", "overview", "preview", "barcode", "map")
#: Types of OME-TIFF -> type in which others are stored exactly.
_STORED_TYPES = {"bool": "uint8", "float16": "float32"}
_OME_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")

OPTIONS = ("series", "level")


def read(path: Path, *, series: int | str | None = None, level: int = 0) -> xr.DataArray:
    """Read one level of one image of a TIFF file; `series` is its index or its name."""
    with format_errors(path), open_tiff(path) as file:
        index = _choose_series(path, file, series)
        levels = file.series[index].levels
        number = _level_number(path, level, len(levels))
        for item in {0, number}:
            checks.check_pages(path, levels[item].pages)
        return _read_level(path, file, index, number)


def _read_level(path: Path, file: tifffile.TiffFile, index: int, number: int) -> xr.DataArray:
    fine, image = (file.series[index].levels[i] for i in (0, number))
    page, is_display = image.keyframe, file.is_imagej or file.is_ome
    turn = checks.orientation(path, [*fine.pages, *image.pages])
    is_indexed = checks.is_palette(page) and not is_display
    header = header_of(file, fine.keyframe, index, len(file.series))
    header = replace(header, channels=header.channels or (["R", "G", "B"] if is_indexed else checks.sample_names(page)))
    dims, header = turned_dims(_dims_of(path, image), header, turn)
    backward = backward_dims(turn)
    exact = checks.check_values(path, page, is_display=is_display)
    place = Placement()
    if number:
        readers = (_SegmentReader(path, index, 0), _SegmentReader(path, index, number))
        place = placement(dims, (fine.shape, image.shape), readers, backward)
    data = turned_data(lazy_planes(_file_array(path, file, index, number), dims), dims, backward)
    if is_indexed:
        data, dims = in_colour(data, palette_of(page.colormap)), [*dims, "c"]
    if header.position is not None:
        log.warning(
            "%s: the stage position %s mm (X, Y, Z) is not used, since stages have no common origin; pass origin=",
            path,
            header.position,
        )
    keep = [i for i, d in enumerate(dims) if d in ("y", "x") or data.shape[i] > 1 or (d == "z" and header.attrs)]
    if len(keep) < len(dims):
        data = data[tuple(slice(None) if i in keep else 0 for i in range(len(dims)))]
    volume = make_volume(data, [dims[i] for i in keep], header, path, path.name.split(".")[0], place)
    return volume if exact else assume(volume, "values")


def contents(path: Path) -> list[str]:
    """Return a line for each image of a file, with the option of :func:`mrhdata.read` that chooses it."""
    with format_errors(path), open_tiff(path) as file:
        return [f"series={i} ({str(item.name)!r}): {_size(item)}" for i, item in enumerate(file.series)]


def _size(series: Any) -> str:
    """Return the shape, the type and the number of levels of an image as text."""
    levels = f", {len(series.levels)} levels" if len(series.levels) > 1 else ""
    return f"{' x '.join(map(str, series.shape))} {series.axes}, {series.dtype}{levels}"


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file and find its images.

    Raises
    ------
    FormatError
        Pages, or files with pages, are missing or damaged.
    """
    check_directories(path)
    with checks.damage_raises(path), _opened(path) as file:
        for series in file.series:
            checks.check_series(path, file, series)
        yield file


def _opened(path: Path) -> tifffile.TiffFile:
    return tifffile.TiffFile(path, omexml=checks.companion_xml(path))


def _choose_series(path: Path, file: tifffile.TiffFile, series: int | str | None) -> int:
    names = [str(item.name) for item in file.series]
    listed = ", ".join(f"{i} {n!r} {item.shape}" for i, (n, item) in enumerate(zip(names, file.series, strict=True)))
    if isinstance(series, str) and names.count(series) == 1:
        return names.index(series)
    if series is not None:
        if not str(series).isdigit() or int(series) >= len(names):
            raise ParameterError(f"series must be the index or name of an image of {path}: {listed}; got {series!r}")
        return int(series)
    images = [i for i, item in enumerate(file.series) if not _is_auxiliary(item)] or [0]
    if len(images) > 1:
        log.warning("%s holds several images: %s; %d is read. Pass series= to choose", path, listed, images[0])
    return images[0]


def _is_auxiliary(series: Any) -> bool:
    """Return whether an image is a picture of the slide or a small copy of another image."""
    return str(series.name).strip().lower() in _AUXILIARY or bool(series.keyframe.is_reduced)


def _level_number(path: Path, level: int, count: int) -> int:
    if not -1 <= level < count:
        raise ParameterError(f"level must be 0 to {count - 1}, or -1 for the coarsest, for {path}; got {level}")
    return level % count


def _dims_of(path: Path, image: Any) -> list[str]:
    """Return the dim of each axis of an image."""
    dims = [_DIMS.get(axis, "") for axis in image.axes]
    long = [d for d, n in zip(dims, image.shape, strict=True) if n > 1]
    if image.dtype is None or "" in long or len(set(long)) < len(long) or not {"y", "x"} <= set(dims):
        raise FormatError(f"{path} must have the axes time, channel, z, y, x; got {image.axes} of shape {image.shape}")
    return dims


def _file_array(path: Path, file: tifffile.TiffFile, index: int, number: int) -> FileArray:
    """Return the array of a level, read directly if its voxels follow each other."""
    image = file.series[index].levels[number]
    shape, dtype, offset = tuple(map(int, image.shape)), np.dtype(image.dtype), image.dataoffset
    names = {page.parent.filehandle.path for page in image.pages if page is not None}
    files = sorted(map(Path, names))
    segment = math.prod(image.keyframe.chunks) * dtype.itemsize
    part: Any = _SegmentReader(path, index, number, DECODING * segment)
    # Offsets in different files may follow each other by chance.
    if offset is not None and len(files) == 1 and image.keyframe.is_contiguous:
        check_length(files[0], offset + dtype.itemsize * math.prod(shape))
        part = RawReader(files[0], offset, shape, dtype.newbyteorder(file.byteorder))
    return FileArray(shape, dtype, part, path, files=sorted({path, *files}))


class _SegmentReader:
    """Reader of boxes of images in compressed or scattered strips or tiles; it decodes only those needed."""

    def __init__(self, path: Path, index: int, level: int, smallest_bytes: int = 0) -> None:
        self._path, self._index, self._level = path, index, level
        #: Bytes in memory while one strip or tile is read, the smallest part that can be.
        self.smallest_bytes = smallest_bytes
        self._lock = threading.Lock()
        # Finding the pages of a large file is slow, so it stays open.
        self._file: Any = None
        self._array: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # tifffile's store cannot be pickled, so each process opens its own.
        return _SegmentReader, (self._path, self._index, self._level, self.smallest_bytes)

    def __call__(self, box: Box) -> Any:
        with self._lock:
            if self._array is None:
                import zarr

                self._file = _opened(self._path)
                self._array = zarr.open(self._file.series[self._index].aszarr(level=self._level), mode="r")
        return self._array[box.slices]

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def write(volume: xr.DataArray, path: Path) -> None:
    """Write OME-TIFF plane by plane, as BigTIFF if it is larger than 3.9 GB.

    The description comes before the voxels, so that a truncated file cannot lose it.
    """
    from mrhdata.io.omezarr import forward

    # Planes are in the order of increasing distance, as in Zarr.
    volume = forward(volume)
    dtype = np.dtype(_STORED_TYPES.get(volume.dtype.name, volume.dtype.name))
    if dtype.kind == "c":
        raise FormatError(f"TIFF files are not written with {volume.dtype} values; take their magnitude first")
    if dtype.name not in _OME_TYPES:
        raise FormatError(
            f"values of OME-TIFF must be {', '.join(_OME_TYPES)}; got {volume.dtype}. Convert them first, "
            "for example with volume.astype('float32') or, for labels, volume.astype('uint32')"
        )
    full = volume.expand_dims([d for d in DIMS if d not in volume.dims]).transpose("t", "c", *SPATIAL)
    with format_errors(path):
        tifffile.imwrite(
            path,
            _iterate_planes(full, dtype),
            shape=full.shape,
            dtype=dtype,
            bigtiff=full.nbytes > 3_900_000_000,
            description=_description(volume, full.shape, dtype).encode(),
            metadata=None,
            photometric="minisblack",
            compression="zlib",
        )


def _description(volume: xr.DataArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Return the OME-XML of a volume."""
    stored = {key: volume.attrs[key] for key in STORED_ATTRS if key in volume.attrs}
    stored |= {"affine": volume.mrh.grid.affine.tolist(), "space": volume.mrh.space}
    note = {"Namespace": NAMESPACE} | {key: json.dumps(value) for key, value in stored.items()}
    metadata: dict[str, Any] = {"axes": "TCZYX", "MapAnnotation": note}
    for axis, step in zip("ZYX", volume.mrh.spacing, strict=True):
        metadata |= {f"PhysicalSize{axis}": float(step), f"PhysicalSize{axis}Unit": "mm"}
    if (times := times_of(volume)) is not None:
        metadata |= {"TimeIncrement": times[0], "TimeIncrementUnit": "s"}
    if "c" in volume.coords and "c" in volume.dims:
        metadata["Channel"] = {"Name": [str(c) for c in volume.c.values]}
    xml = tifffile.OmeXml()
    xml.addimage(dtype, shape, (math.prod(shape[:3]), 1, 1, shape[3], shape[4], 1), **metadata)
    return xml.tostring(declaration=True)


def _iterate_planes(full: xr.DataArray, dtype: Any) -> Iterator[np.ndarray]:
    for t in range(full.sizes["t"]):
        for c in range(full.sizes["c"]):
            series = da.asarray(full.isel(t=t, c=c).data)
            start = 0
            for depth in series.chunks[0]:
                yield from np.asarray(series[start : start + depth]).astype(dtype, copy=False)
                start += depth
