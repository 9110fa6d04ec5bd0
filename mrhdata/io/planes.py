"""Stacks of planes: one TIFF or PNG file each, in a folder or matched by a pattern.

Names of files give the order (:mod:`mrhdata.io.plane_names`). All planes must have the size, type and colours of the
first one.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from mrhdata.errors import FormatError
from mrhdata.io import tiff_checks as checks
from mrhdata.io.plane_names import arranged, folder_of
from mrhdata.io.tiff_directories import check_directories
from mrhdata.io.tiff_geometry import (
    DECODING,
    backward_dims,
    lazy_planes,
    make_volume,
    palette_of,
    turned_data,
    turned_dims,
)
from mrhdata.io.tiff_metadata import Header, header_of
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.file_arrays import FileArray, RawReader, format_errors

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: Bytes of unpacked planes that a stack keeps, for the next block of the same planes.
_CACHE_BYTES = 64_000_000
#: Smallest compressed plane in bytes of which only the needed strips or tiles are unpacked.
_PARTIAL_BYTES = 2_000_000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read the planes of a folder or of a pattern."""
    stack = arranged(path)
    first = _form_of(stack.paths[0], is_first=True)
    last = _form_of(stack.paths[-1])
    last.check(stack.paths[-1], first)
    if not _equal_steps(first, last):
        log.warning("%s: the voxel sizes of the first and the last plane differ; that of the first is used", path)
    if stack.channels and "c" in first.dims:
        raise FormatError(f"{path} must have channels in the names or in the planes; got both: {first.dims}")
    header = replace(first.header, channels=stack.channels or first.header.channels)
    dims, header = turned_dims([*stack.dims, *first.dims], header, first.orientation)
    shape = (*stack.shape, *first.shape)
    reader = _StackReader(stack.paths, stack.shape, first)
    data = lazy_planes(FileArray(shape, first.dtype, reader, stack.paths[0].parent, files=stack.paths), dims)
    data = turned_data(data, dims, backward_dims(first.orientation))
    volume = make_volume(data, dims, header, path, folder_of(path).name)
    return volume if first.is_exact else assume(volume, "values")


@dataclass(frozen=True)
class _Form:
    """Properties that all planes of a stack share."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    photometric: int = 1
    orientation: int = 1
    header: Header = field(default_factory=Header)
    is_exact: bool = True
    #: Bytes of the smallest part that can be unpacked: a strip or tile, or None for the whole plane.
    part_bytes: int | None = None

    def check(self, path: Path, like: _Form) -> None:
        """Raise FormatError if this plane of `path` differs from the first one."""
        for name, own, other in (
            ("orientation", self.orientation, like.orientation),
            ("photometric interpretation", self.photometric, like.photometric),
        ):
            if own != other:
                raise FormatError(f"{path} must have {name} {other}, as the first plane; got {own}")
        if (self.shape, self.dtype, self.dims) != (like.shape, like.dtype, like.dims):
            raise FormatError(
                f"{path} must be {like.dtype} of shape {like.shape}, as the first plane; got {self.dtype} of shape "
                f"{self.shape}"
            )


def _equal_steps(first: _Form, other: _Form) -> bool:
    pairs = zip(first.header.steps, other.header.steps, strict=True)
    return all(a == b or (a is not None and b is not None and abs(a - b) <= 0.01 * a) for a, b in pairs)


def _form_of(path: Path, *, is_first: bool = False) -> _Form:
    """Return the form of one plane; the values of the first one are checked."""
    with format_errors(path):
        if path.suffix.lower() == ".png":
            plane = _read_png(path)
            dims = ("y", "x", "c")[: plane.ndim]
            return _Form(plane.shape, plane.dtype, dims, header=Header(channels=_png_channels(plane.shape)))
        with checks.damage_raises(path), tifffile.TiffFile(path) as file:
            page = _page_of(path, file)
            is_exact = not is_first or checks.check_values(path, page, is_display=_is_display(file))
            return replace(_tiff_form(path, file, page), is_exact=is_exact)


def _png_channels(shape: tuple[int, ...]) -> list[str] | None:
    return {2: ["grey", "A"], 3: ["R", "G", "B"], 4: ["R", "G", "B", "A"]}.get(shape[2]) if len(shape) == 3 else None


def _tiff_form(path: Path, file: tifffile.TiffFile, page: Any) -> _Form:
    """Return the form of the plane of an open file."""
    shape, dtype = tuple(map(int, page.shape)), np.dtype(page.dtype)
    dims = tuple({"Y": "y", "X": "x", "S": "c"}.get(axis, "") for axis in page.axes)
    if sorted(dims) not in (["x", "y"], ["c", "x", "y"]):
        raise FormatError(f"{path} must be one plane, as each file of a stack; got axes {page.axes} of shape {shape}")
    names = checks.sample_names(page)
    if _is_indexed(file, page):
        colours = palette_of(page.colormap)
        shape, dtype, dims, names = (*shape, 3), colours.dtype, (*dims, "c"), ["R", "G", "B"]
    header = Header(steps=header_of(file, page).steps, channels=names)
    kind = 1 if page.photometric is None else int(page.photometric)
    part = None if _is_indexed(file, page) else dtype.itemsize * math.prod(page.chunks)
    return _Form(shape, dtype, dims, kind, checks.orientation(path, [page]), header, part_bytes=part)


def _is_display(file: tifffile.TiffFile) -> bool:
    return bool(file.is_imagej or file.is_ome)


def _is_indexed(file: tifffile.TiffFile, page: Any) -> bool:
    return checks.is_palette(page) and not _is_display(file)


def _page_of(path: Path, file: tifffile.TiffFile) -> Any:
    """Return the page of a plane, after checks. Small copies of it may follow."""
    check_directories(path)
    page, *others = file.pages
    full = [other for other in others if not getattr(other, "is_reduced", False)]
    count = max(len(full) + 1, int((file.imagej_metadata or {}).get("images", 1)))
    if count > 1:
        raise FormatError(f"{path} must hold one plane, as each file of a stack; got {count}. Read the file by itself")
    checks.check_pages(path, [page])
    return page


class _StackReader:
    """Reader of boxes of a stack of plane files, whose first axes are times, channels and planes."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...], form: _Form) -> None:
        self._paths, self._shape, self._form = paths, shape, form
        # Raw readers by plane: the header of a plane is parsed once, however many boxes are read.
        self._raw: dict[int, RawReader | None] = {}
        self._layout: _PlaneLayout | None = None
        self._unpacked = _Unpacked()

    @property
    def smallest_bytes(self) -> int:
        """Bytes in memory while the smallest part is decoded: of compressed planes a strip or tile, or all."""
        if self._voxels_of(0) is not None:
            return 0
        part = self._form.part_bytes
        return DECODING * (self._size() if part is None or self._size() < _PARTIAL_BYTES else part)

    def __reduce__(self) -> tuple[Any, ...]:
        return _StackReader, (self._paths, self._shape, self._form)

    def __call__(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, dtype=self._form.dtype)
        self.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        n = len(self._shape)
        plane = Box(box.start[n:], box.stop[n:])
        for place in np.ndindex(*out.shape[:n]):
            i = int(np.ravel_multi_index(tuple(np.add(place, box.start[:n])), self._shape))
            with format_errors(self._paths[i]):
                self._read(i, plane, out[place])

    def _read(self, i: int, box: Box, out: np.ndarray) -> None:
        raw = self._voxels_of(i)
        if raw is not None:
            raw.into(out, box)
        elif (part := self._partial(i, box)) is not None:
            out[...] = part
        else:
            out[...] = self._unpacked.get(i, self._size(), lambda: self._unpack(i))[box.slices]

    def _voxels_of(self, i: int) -> RawReader | None:
        if i not in self._raw:
            self._raw[i] = self._find_voxels(i)
        return self._raw[i]

    def _size(self) -> int:
        return self._form.dtype.itemsize * math.prod(self._form.shape)

    def _find_voxels(self, i: int) -> RawReader | None:
        """Return the reader of a plane whose voxels are contiguous, or None if it must be decoded."""
        path = self._paths[i]
        if path.suffix.lower() == ".png":
            return None
        if self._layout is not None and (raw := self._layout.reader_of(path)) is not None:
            return raw
        with checks.damage_raises(path), tifffile.TiffFile(path) as file:
            page = _page_of(path, file)
            _tiff_form(path, file, page).check(path, self._form)
            if not page.is_contiguous or _is_indexed(file, page):
                if self._size() < _PARTIAL_BYTES:
                    # Opening a small file again would take longer than decoding it.
                    self._unpacked.keep(i, _decoded(file, page))
                return None
            raw = RawReader(path, page.dataoffsets[0], page.shape, page.dtype.newbyteorder(file.byteorder))
        self._layout = self._layout or _PlaneLayout(path, raw)
        return raw

    def _partial(self, i: int, box: Box) -> np.ndarray | None:
        """Return a box of a large plane of many strips or tiles, or None for other planes."""
        path = self._paths[i]
        if path.suffix.lower() == ".png" or self._size() < _PARTIAL_BYTES or box.shape == self._form.shape:
            return None
        import zarr

        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if len(page.dataoffsets) == 1 or _is_indexed(file, page):
                return None
            return np.asarray(zarr.open(page.aszarr(), mode="r")[box.slices])  # type: ignore[index]

    def _unpack(self, i: int) -> np.ndarray:
        path = self._paths[i]
        if path.suffix.lower() == ".png":
            plane = _read_png(path, self._form)
            _Form(plane.shape, plane.dtype, ("y", "x", "c")[: plane.ndim]).check(path, self._form)
            return plane
        with checks.damage_raises(path), tifffile.TiffFile(path) as file:
            return _decoded(file, file.pages[0])


def _decoded(file: tifffile.TiffFile, page: Any) -> np.ndarray:
    """Return the values of a page, or the colours of its indices."""
    return palette_of(page.colormap)[page.asarray()] if _is_indexed(file, page) else page.asarray()


class _Unpacked:
    """The planes that were unpacked last, within a bound of bytes. Planes beyond the bound are unpacked in turn."""

    def __init__(self) -> None:
        self._planes: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def get(self, i: int, size: int, unpack: Callable[[], np.ndarray]) -> np.ndarray:
        """Return plane `i` of `size` bytes."""
        if size > _CACHE_BYTES:
            with self._turn:
                return unpack()
        with self._lock:
            if i in self._planes:
                self._planes.move_to_end(i)
                return self._planes[i]
        return self.keep(i, unpack())

    def keep(self, i: int, plane: np.ndarray) -> np.ndarray:
        """Keep plane `i`, and return it."""
        with self._lock:
            self._planes[i] = plane
            while len(self._planes) * plane.nbytes > _CACHE_BYTES:
                self._planes.popitem(last=False)
        return plane


class _PlaneLayout:
    """Bytes before and after the voxels of a plane. Planes with equal ones need no parsing of their headers."""

    def __init__(self, path: Path, raw: RawReader) -> None:
        self._raw, self._size = raw, path.stat().st_size
        self._surroundings = self._read(path)

    def reader_of(self, path: Path) -> RawReader | None:
        """Return the reader of a file with the same layout, or None."""
        if path.stat().st_size != self._size or self._read(path) != self._surroundings:
            return None
        return self._raw.at(path)

    def _read(self, path: Path) -> tuple[bytes, bytes]:
        with path.open("rb") as file:
            before = file.read(self._raw.first)
            file.seek(self._raw.last)
            return before, file.read()


def _read_png(path: Path, like: _Form | None = None) -> np.ndarray:
    import imagecodecs

    content = path.read_bytes()
    # The size is in the first block. A plane that would unpack to another size is refused before unpacking.
    if content[:8] != _PNG_SIGNATURE or content[12:16] != b"IHDR":
        raise FormatError(f"{path} is not a PNG file, or it is damaged")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if like is not None and (height, width) != like.shape[:2]:
        rows, columns = like.shape[:2]
        raise FormatError(f"{path} must be {rows} x {columns}, as the first plane; got {height} x {width}")
    # 8 is deflate; a byte of the header is the number of bits of a value.
    checks.check_size(path, height * width * content[24] // 8, len(content), 8)
    return imagecodecs.png_decode(content)
