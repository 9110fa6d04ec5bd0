"""TIFF, BigTIFF, OME-TIFF and ImageJ TIFF; stacks of TIFF or PNG planes in a folder.

A plane is one ``z``. TIFF has no orientation: files written here store the exact affine as an OME map
annotation, which other readers ignore.
"""

from __future__ import annotations

import json
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import tifffile

from mrhdata.errors import FormatError
from mrhdata.volume.assumptions import assume
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL, from_array, place
from mrhdata.volume.file_arrays import FileArray, RawReader, check_length, format_errors, lazy
from mrhdata.volume.overrides import TO_MM, UNITS

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: tifffile's letter of an axis -> dim; samples of a pixel are channels.
_DIMS = {"T": "t", "C": "c", "S": "c", "Z": "z", "I": "z", "Q": "z", "Y": "y", "X": "x"}
_PLANE_ENDINGS = (".tif", ".tiff", ".png")
_NAMESPACE = "mrhdata"
_STORED_ATTRS = ("affine", "space", "kind", "units", "modality", "source_axes", "assumed")


OPTIONS: tuple[str, ...] = ()


def read(path: Path) -> xr.DataArray:
    """Read one TIFF file, its first series."""
    with format_errors(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        if len(file.series) > 1:
            log.warning("%s holds %d images; the first is read", path.name, len(file.series))
        axes, shape = series.axes, tuple(map(int, series.shape))
        dtype: Any = series.dtype
        offset = series.dataoffset
        attrs, steps, channels = _metadata(file)
        order = file.byteorder
    dims = [_DIMS.get(axis, "") for axis in axes]
    unsupported = [axis for axis, d, n in zip(axes, dims, shape, strict=True) if n > 1 and (not d or dims.count(d) > 1)]
    if dtype is None or unsupported:
        raise FormatError(f"{path} must have the axes time, channel, z, y, x; got {axes} of shape {shape}")
    if offset is None:
        slices = FileArray(shape, dtype, _TileReader(path), path)
    else:
        check_length(path, offset + dtype.itemsize * int(np.prod(shape, dtype=object)))
        slices = FileArray(shape, dtype, RawReader(path, offset, shape, dtype.newbyteorder(order)), path)
    keep = [i for i, d in enumerate(dims) if d in ("y", "x") or shape[i] > 1 or (d == "z" and attrs)]
    data = lazy(slices, 0 if len(shape) > 2 else None)
    data = data[tuple(slice(None) if i in keep else 0 for i in range(len(shape)))]
    return _make_volume(data, [dims[i] for i in keep], steps, attrs, channels, path)


def read_stack(paths: list[Path], name: str) -> xr.DataArray:
    """Read planes, one file each, in the order of `paths`."""
    _warn_of_gaps(paths)
    first = _read_plane(paths[0])
    shape, dtype = (len(paths), *first.shape), first.dtype
    steps: list[float] | None = None
    if paths[0].suffix.lower() != ".png":
        with format_errors(paths[0]), tifffile.TiffFile(paths[0]) as file:
            _, steps, _ = _metadata(file)
    if steps is not None and not steps[0]:
        steps = None
    dims = ["z", "y", "x", "c"][: len(shape)]
    data = lazy(FileArray(shape, dtype, _StackReader(paths, first.shape, dtype), paths[0].parent, files=paths), 0)
    return _make_volume(data, dims, steps, {}, None, Path(name))


def planes_of(where: Path) -> list[Path]:
    """Return the planes of a folder, or of a pattern such as ``planes/*.tif``, in natural order: 2 before 10."""
    if where.is_dir():
        planes = [p for p in where.iterdir() if p.suffix.lower() in _PLANE_ENDINGS and not p.name.startswith(".")]
    else:
        planes = [p for p in where.parent.glob(where.name) if p.suffix.lower() in _PLANE_ENDINGS]
    endings = {p.suffix.lower().replace("tiff", "tif") for p in planes}
    if len(endings) > 1:
        raise FormatError(
            f"{where} holds planes of several kinds, {sorted(endings)}; choose one with a pattern such as '*.tif'"
        )
    return sorted(planes, key=lambda p: [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", p.name)])


def _warn_of_gaps(paths: list[Path]) -> None:
    """Warn about a missing plane: all planes after it would be misplaced by one step."""
    name_parts = [re.split(r"(\d+)", p.stem) for p in paths]
    if len(paths) < 3 or len({len(parts) for parts in name_parts}) > 1:
        return
    changing = [i for i, parts in enumerate(zip(*name_parts, strict=True)) if len(set(parts)) > 1]
    if len(changing) != 1 or not name_parts[0][changing[0]].isdigit():
        return
    numbers = np.array([int(parts[changing[0]]) for parts in name_parts])
    steps = np.diff(numbers)
    gaps = np.flatnonzero(steps > np.median(steps))
    if len(gaps):
        first = paths[gaps[0]]
        log.warning(
            "%s: planes are missing after %s (%d gaps); gaps are not filled",
            first.parent, first.name, len(gaps),
        )  # fmt: skip


class _TileReader:
    """Reader of boxes of a TIFF whose strips or tiles are compressed or scattered; it reads only those needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Finding the pages of a large file is slow, so it stays open.
        self._file: Any = None
        self._array: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # tifffile's store cannot be pickled, so each process opens its own.
        return _TileReader, (self._path,)

    def __call__(self, box: Box) -> Any:
        if self._array is None:
            import zarr

            self._file = tifffile.TiffFile(self._path)
            self._array = zarr.open(self._file.series[0].aszarr(), mode="r")
        return self._array[box.slices]

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class _StackReader:
    """Reader of boxes of a stack of plane files."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...], dtype: Any) -> None:
        self._paths, self._shape, self._dtype = paths, shape, dtype
        # Raw readers by plane: the header of a plane is parsed once, however many boxes are read.
        self._raw: dict[int, RawReader | None] = {}
        self._layout: _PlaneLayout | None = None

    def __call__(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, dtype=self._dtype)
        self.into(out, box)
        return out

    def into(self, out: np.ndarray, box: Box) -> None:
        """Read a box into an array of its shape."""
        plane = Box(box.start[1:], box.stop[1:])
        for target, i in zip(out, range(box.start[0], box.stop[0]), strict=True):
            with format_errors(self._paths[i]):
                self._read(i, plane, target)

    def _read(self, i: int, box: Box, out: np.ndarray) -> None:
        if i not in self._raw:
            self._raw[i] = self._find_voxels(self._paths[i])
        raw = self._raw[i]
        if raw is None:
            out[...] = _read_plane(self._paths[i], (self._shape, self._dtype))[box.slices]
        else:
            raw.into(out, box)

    def _find_voxels(self, path: Path) -> RawReader | None:
        if path.suffix.lower() == ".png":
            return None
        raw = self._layout.reader_of(path) if self._layout is not None else None
        if raw is None:
            raw = _contiguous(path, (self._shape, self._dtype))
            self._layout = self._layout or (_PlaneLayout(path, raw) if raw is not None else None)
        return raw


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


def _contiguous(path: Path, like: tuple[Any, Any]) -> RawReader | None:
    """Return the reader of a plane whose voxels are contiguous, or None if it must be decoded."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        _check_like(path, (page.shape, page.dtype), like, len(file.pages))
        if not page.is_contiguous:
            return None
        return RawReader(path, page.dataoffsets[0], page.shape, page.dtype.newbyteorder(file.byteorder))


def _read_plane(path: Path, like: tuple[Any, Any] | None = None) -> np.ndarray:
    """Read one plane; `like` is the required shape and type."""
    with format_errors(path):
        if path.suffix.lower() == ".png":
            return _read_png(path, like)
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            _check_like(path, (page.shape, page.dtype), like, len(file.pages))
            return page.asarray()


def _read_png(path: Path, like: tuple[Any, Any] | None) -> np.ndarray:
    import imagecodecs

    content = path.read_bytes()
    # The size is in the first block. A plane that would unpack to another size is refused before unpacking.
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if like is not None and (height, width) != tuple(like[0][:2]):
        raise FormatError(f"{path} must be {like[0][0]} x {like[0][1]}, as the first plane; got {height} x {width}")
    if height * width > 100_000 * max(1, len(content)):
        raise FormatError(f"{path} claims {height} x {width} pixels in {len(content)} bytes; it is damaged")
    plane = imagecodecs.png_decode(content)
    _check_like(path, (plane.shape, plane.dtype), like)
    return plane


def _check_like(path: Path, actual: tuple[Any, Any], like: tuple[Any, Any] | None, pages: int = 1) -> None:
    if pages > 1:
        raise FormatError(f"{path} must hold one plane, as each file of a stack; got {pages}")
    if like is not None and (tuple(actual[0]), np.dtype(actual[1])) != (tuple(like[0]), np.dtype(like[1])):
        raise FormatError(
            f"{path} must be {like[1]} of shape {like[0]}, as the first plane; got {actual[1]} of shape {actual[0]}"
        )


def _make_volume(
    data: da.Array,
    dims: list[str],
    steps: list[float] | None,
    attrs: dict[str, Any],
    channels: list[str] | None,
    path: Path,
) -> xr.DataArray:
    order = [dims.index(d) for d in DIMS if d in dims]
    if order != list(range(len(dims))):
        data, dims = data.transpose(order), [dims[i] for i in order]
    name = path.name.split(".")[0]
    if attrs:
        axes = attrs.pop("source_axes", None)
        spacing = np.linalg.norm(np.asarray(attrs["affine"])[:3, :3], axis=0)
        matrix = np.asarray(attrs.pop("affine"), dtype=np.float64)
        matrix[:3, :3] /= spacing
        volume = place(data, dims, spacing, matrix, name=name, **({"space": "scanner"} | attrs))
        volume = volume if axes is None else volume.assign_attrs(source_axes=axes)
    else:
        spacing = dict(zip(SPATIAL, steps or (1.0, 1.0, 1.0), strict=True))
        volume = from_array(data, spacing=[spacing[d] or 1.0 for d in dims if d in SPATIAL], dims=dims, name=name)
        volume = assume(volume, "orientation", "space", *(["spacing"] if steps is None else []))
    return volume.assign_coords(c=channels) if channels and volume.sizes.get("c") == len(channels) else volume


def _metadata(file: tifffile.TiffFile) -> tuple[dict[str, Any], list[float] | None, list[str] | None]:
    """Return attributes written by mrhdata, the voxel size along z, y, x in mm (0 if not stated), and channel names."""
    if file.is_ome and file.ome_metadata:
        return _from_ome(file.ome_metadata)
    page: Any = file.pages[0]
    tags = {
        name: page.tags[name].value for name in ("XResolution", "YResolution", "ResolutionUnit") if name in page.tags
    }
    notes = file.imagej_metadata or {}
    unit = {2: 25.4, 3: 10.0}.get(int(tags.get("ResolutionUnit", 1)))
    if notes.get("unit") is not None:
        unit = TO_MM.get(UNITS.get(str(notes["unit"]).lower(), ""))
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return {}, None, None
    in_plane = [tags[name][1] / tags[name][0] if tags[name][0] else 0.0 for name in ("YResolution", "XResolution")]
    if not notes and unit == 25.4 and in_plane[0] * unit > 0.2:
        # 72 or 96 dots per inch are a default of software for printing.
        return {}, None, None
    steps = [float(notes.get("spacing", 0.0)) * unit, in_plane[0] * unit, in_plane[1] * unit]
    return {}, steps if min(steps[1:]) > 0 else None, None


def _from_ome(text: str) -> tuple[dict[str, Any], list[float] | None, list[str] | None]:
    root = ET.fromstring(text)
    ome = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    pixels = root.find(f".//{ome}Pixels")
    stored: dict[str, str] = {}
    for note in root.iter(f"{ome}MapAnnotation"):
        if note.get("Namespace") == _NAMESPACE:
            stored = {str(m.get("K")): m.text or "" for m in note.iter(f"{ome}M")}
    attrs = {key: json.loads(stored[key]) for key in _STORED_ATTRS if key in stored}
    if pixels is None:
        return attrs, None, None
    steps = []
    for axis in "ZYX":
        factor = TO_MM.get(UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "um").lower(), ""), 0.0)
        steps.append(float(pixels.get(f"PhysicalSize{axis}", 0.0)) * factor)
    names = [str(c.get("Name")) for c in pixels.iter(f"{ome}Channel") if c.get("Name")]
    return attrs, steps if min(steps[1:]) > 0 else None, names or None


def write(volume: xr.DataArray, path: Path) -> None:
    """Write OME-TIFF plane by plane, as BigTIFF if it is larger than 3.9 GB."""
    from mrhdata.io.omezarr import forward

    if volume.dtype.kind == "c":
        raise FormatError(f"TIFF files are not written with {volume.dtype} values; take their magnitude first")
    # Planes are in the order of increasing distance, as in Zarr.
    volume = forward(volume)
    full = volume.expand_dims([d for d in DIMS if d not in volume.dims]).transpose("t", "c", *SPATIAL)
    dtype = np.dtype(np.uint8) if volume.dtype == bool else volume.dtype
    affine = volume.mrh.grid.affine
    stored = {key: volume.attrs[key] for key in _STORED_ATTRS if key in volume.attrs} | {"affine": affine.tolist()}
    metadata: dict[str, Any] = {"axes": "TCZYX", "MapAnnotation": {"Namespace": _NAMESPACE}}
    metadata["MapAnnotation"] |= {key: json.dumps(value) for key, value in stored.items()}
    metadata["MapAnnotation"]["space"] = json.dumps(volume.mrh.space)
    for axis, step in zip("ZYX", volume.mrh.spacing, strict=True):
        metadata |= {f"PhysicalSize{axis}": float(step), f"PhysicalSize{axis}Unit": "mm"}
    if "c" in volume.coords and "c" in volume.dims:
        metadata["Channel"] = {"Name": [str(c) for c in volume.c.values]}
    try:
        tifffile.imwrite(
            path,
            _iterate_planes(full, dtype),
            shape=full.shape,
            dtype=dtype,
            bigtiff=full.nbytes > 3_900_000_000,
            ome=True,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"TIFF cannot hold {volume.dtype} values of shape {volume.shape} ({error})") from error


def _iterate_planes(full: xr.DataArray, dtype: Any) -> Iterator[np.ndarray]:
    for t in range(full.sizes["t"]):
        for c in range(full.sizes["c"]):
            series = da.asarray(full.isel(t=t, c=c).data)
            start = 0
            for depth in series.chunks[0]:
                yield from np.asarray(series[start : start + depth]).astype(dtype, copy=False)
                start += depth
