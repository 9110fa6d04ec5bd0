"""TIFF, BigTIFF, OME-TIFF and ImageJ TIFF; stacks of TIFF or PNG planes in a folder.

A plane is one ``z``. TIFF has no orientation: our own files keep the exact affine as an OME map
annotation, which other readers pass over.
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
from mrhdata.volume.box import Box
from mrhdata.volume.construct import DIMS, SPATIAL, from_array, place
from mrhdata.volume.file_arrays import FileArray, RawReader, check_length, format_errors, lazy
from mrhdata.volume.overrides import TO_MM, UNITS

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

#: tifffile's letters for axes, as dims; samples of a pixel are channels.
_DIMS = {"T": "t", "C": "c", "S": "c", "Z": "z", "I": "z", "Q": "z", "Y": "y", "X": "x"}
_PLANES = (".tif", ".tiff", ".png")
_NAMESPACE = "mrhdata"
_KEPT = ("affine", "space", "kind", "units", "modality", "source_axes")


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
        kept, steps, channels = _metadata(file)
        order = file.byteorder
    dims = [_DIMS.get(axis, "") for axis in axes]
    odd = [axis for axis, d, n in zip(axes, dims, shape, strict=True) if n > 1 and (not d or dims.count(d) > 1)]
    if dtype is None or odd:
        raise FormatError(f"{path} has the axes {axes} of shape {shape}; time, channel, z, y and x can be read")
    if offset is None:
        slices = FileArray(shape, dtype, _Striles(path), path)
    else:
        check_length(path, offset + dtype.itemsize * int(np.prod(shape, dtype=object)))
        slices = FileArray(shape, dtype, RawReader(path, offset, shape, dtype.newbyteorder(order)), path)
    keep = [i for i, d in enumerate(dims) if d in ("y", "x") or shape[i] > 1 or (d == "z" and kept)]
    data = lazy(slices, 0 if len(shape) > 2 else None)
    data = data[tuple(slice(None) if i in keep else 0 for i in range(len(shape)))]
    return _placed(data, [dims[i] for i in keep], steps, kept, channels, path)


def read_stack(paths: list[Path], name: str) -> xr.DataArray:
    """Read planes, one file each, in the order given."""
    _warn_of_gaps(paths)
    first = _plane(paths[0])
    shape, dtype = (len(paths), *first.shape), first.dtype
    steps: list[float] | None = None
    if paths[0].suffix.lower() != ".png":
        with format_errors(paths[0]), tifffile.TiffFile(paths[0]) as file:
            _, steps, _ = _metadata(file)
    if steps is not None and not steps[0]:
        steps = None
    dims = ["z", "y", "x", "c"][: len(shape)]
    data = lazy(FileArray(shape, dtype, _Planes(paths, first.shape, dtype), paths[0].parent, files=paths), 0)
    return _placed(data, dims, steps, {}, None, Path(name))


def planes_of(where: Path) -> list[Path]:
    """Planes that a folder, or a pattern such as ``planes/*.tif``, stands for, in natural order.

    Natural order counts: plane 2 comes before plane 10.
    """
    if where.is_dir():
        found = [p for p in where.iterdir() if p.suffix.lower() in _PLANES and not p.name.startswith(".")]
    else:
        found = [p for p in where.parent.glob(where.name) if p.suffix.lower() in _PLANES]
    endings = {p.suffix.lower().replace("tiff", "tif") for p in found}
    if len(endings) > 1:
        raise FormatError(f"{where} holds planes of several kinds, {sorted(endings)}; name one, such as '*.tif'")
    return sorted(found, key=lambda p: [int(t) if t.isdigit() else t.lower() for t in re.split(r"(\d+)", p.name)])


def _warn_of_gaps(paths: list[Path]) -> None:
    """Say which plane may be missing: all behind it would lie one step off."""
    named = [re.split(r"(\d+)", p.stem) for p in paths]
    if len(paths) < 3 or len({len(parts) for parts in named}) > 1:
        return
    changing = [i for i, parts in enumerate(zip(*named, strict=True)) if len(set(parts)) > 1]
    if len(changing) != 1 or not named[0][changing[0]].isdigit():
        return
    numbers = np.array([int(parts[changing[0]]) for parts in named])
    steps = np.diff(numbers)
    wide = np.flatnonzero(steps > np.median(steps))
    if len(wide):
        first = paths[wide[0]]
        log.warning(
            "%s: the numbers of planes leap behind %s (%d times); those that are missing are not filled in",
            first.parent, first.name, len(wide),
        )  # fmt: skip


class _Striles:
    """Parts of a TIFF whose strips or tiles are compressed or scattered; only those touched are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Finding its pages takes long for a file that has many, so it stays open.
        self._file: Any = None
        self._array: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # tifffile's store cannot be pickled: each process opens its own.
        return _Striles, (self._path,)

    def __call__(self, box: Box) -> Any:
        if self._array is None:
            import zarr

            self._file = tifffile.TiffFile(self._path)
            self._array = zarr.open(self._file.series[0].aszarr(), mode="r")
        return self._array[box.slices]

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class _Planes:
    """Parts of a stack of plane files."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...], dtype: Any) -> None:
        self._paths, self._shape, self._dtype = paths, shape, dtype
        # Where the voxels of a plane begin: a plane that is read in several parts is looked at once.
        self._begin: dict[int, RawReader | None] = {}
        self._pattern: _Pattern | None = None

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
        if i not in self._begin:
            self._begin[i] = self._look(self._paths[i])
        raw = self._begin[i]
        if raw is None:
            out[...] = _plane(self._paths[i], (self._shape, self._dtype))[box.slices]
        else:
            raw.into(out, box)

    def _look(self, path: Path) -> RawReader | None:
        if path.suffix.lower() == ".png":
            return None
        raw = self._pattern.of(path) if self._pattern is not None else None
        if raw is None:
            raw = _contiguous(path, (self._shape, self._dtype))
            self._pattern = self._pattern or (_Pattern(path, raw) if raw is not None else None)
        return raw


class _Pattern:
    """Planes of one stack mostly differ in their voxels only: those need not be taken apart one by one."""

    def __init__(self, path: Path, raw: RawReader) -> None:
        self._raw, self._size = raw, path.stat().st_size
        self._around = self._read(path)

    def of(self, path: Path) -> RawReader | None:
        """Where the voxels of a file lie that is the first one's equal around them; None for another."""
        if path.stat().st_size != self._size or self._read(path) != self._around:
            return None
        return self._raw.at(path)

    def _read(self, path: Path) -> tuple[bytes, bytes]:
        with path.open("rb") as file:
            before = file.read(self._raw.first)
            file.seek(self._raw.last)
            return before, file.read()


def _contiguous(path: Path, like: tuple[Any, Any]) -> RawReader | None:
    """A plane whose voxels lie in one piece; None where it must be unpacked."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        _check_like(path, (page.shape, page.dtype), like, len(file.pages))
        if not page.is_contiguous:
            return None
        return RawReader(path, page.dataoffsets[0], page.shape, page.dtype.newbyteorder(file.byteorder))


def _plane(path: Path, like: tuple[Any, Any] | None = None) -> np.ndarray:
    """One plane; `like` is the shape and type that it must have."""
    with format_errors(path):
        if path.suffix.lower() == ".png":
            return _png(path, like)
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            _check_like(path, (page.shape, page.dtype), like, len(file.pages))
            return page.asarray()


def _png(path: Path, like: tuple[Any, Any] | None) -> np.ndarray:
    import imagecodecs

    content = path.read_bytes()
    # The size stands in the first block: a plane that unpacks to more than its neighbours is not unpacked.
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if like is not None and (height, width) != tuple(like[0][:2]):
        raise FormatError(f"{path} is {height} x {width}, but the first plane {like[0][0]} x {like[0][1]}")
    if height * width > 100_000 * max(1, len(content)):
        raise FormatError(f"{path} claims {height} x {width} pixels in {len(content)} bytes; it is damaged")
    plane = imagecodecs.png_decode(content)
    _check_like(path, (plane.shape, plane.dtype), like)
    return plane


def _check_like(path: Path, found: tuple[Any, Any], like: tuple[Any, Any] | None, pages: int = 1) -> None:
    if pages > 1:
        raise FormatError(f"{path} holds {pages} planes, where a stack has one in each file")
    if like is not None and (tuple(found[0]), np.dtype(found[1])) != (tuple(like[0]), np.dtype(like[1])):
        raise FormatError(
            f"{path} is {found[1]} of shape {found[0]}, but the first plane {like[1]} of {like[0]}; "
            "a stack has planes of one kind"
        )


def _placed(
    data: da.Array,
    dims: list[str],
    steps: list[float] | None,
    kept: dict[str, Any],
    channels: list[str] | None,
    path: Path,
) -> xr.DataArray:
    order = [dims.index(d) for d in DIMS if d in dims]
    if order != list(range(len(dims))):
        data, dims = data.transpose(order), [dims[i] for i in order]
    name = path.name.split(".")[0]
    if kept:
        axes = kept.pop("source_axes", None)
        spacing = np.linalg.norm(np.asarray(kept["affine"])[:3, :3], axis=0)
        matrix = np.asarray(kept.pop("affine"), dtype=np.float64)
        matrix[:3, :3] /= spacing
        volume = place(data, dims, spacing, matrix, name=name, **({"space": "scanner"} | kept))
        volume = volume if axes is None else volume.assign_attrs(source_axes=axes)
    else:
        spacing = dict(zip(SPATIAL, steps or (1.0, 1.0, 1.0), strict=True))
        volume = from_array(data, spacing=[spacing[d] or 1.0 for d in dims if d in SPATIAL], dims=dims, name=name)
        if steps is None:
            volume.attrs["spacing_stated"] = False
    return volume.assign_coords(c=channels) if channels and volume.sizes.get("c") == len(channels) else volume


def _metadata(file: tifffile.TiffFile) -> tuple[dict[str, Any], list[float] | None, list[str] | None]:
    """Our own attributes, the voxel size along z, y, x in mm (0 where not stated), and channel names."""
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
    across = [tags[name][1] / tags[name][0] if tags[name][0] else 0.0 for name in ("YResolution", "XResolution")]
    if not notes and unit == 25.4 and across[0] * unit > 0.2:
        # 72 or 96 dots per inch are a printer's, not a microscope's.
        return {}, None, None
    steps = [float(notes.get("spacing", 0.0)) * unit, across[0] * unit, across[1] * unit]
    return {}, steps if min(steps[1:]) > 0 else None, None


def _from_ome(text: str) -> tuple[dict[str, Any], list[float] | None, list[str] | None]:
    root = ET.fromstring(text)
    ome = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    pixels = root.find(f".//{ome}Pixels")
    held: dict[str, str] = {}
    for note in root.iter(f"{ome}MapAnnotation"):
        if note.get("Namespace") == _NAMESPACE:
            held = {str(m.get("K")): m.text or "" for m in note.iter(f"{ome}M")}
    kept = {key: json.loads(held[key]) for key in _KEPT if key in held}
    if pixels is None:
        return kept, None, None
    steps = []
    for axis in "ZYX":
        factor = TO_MM.get(UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "um").lower(), ""), 0.0)
        steps.append(float(pixels.get(f"PhysicalSize{axis}", 0.0)) * factor)
    names = [str(c.get("Name")) for c in pixels.iter(f"{ome}Channel") if c.get("Name")]
    return kept, steps if min(steps[1:]) > 0 else None, names or None


def write(volume: xr.DataArray, path: Path) -> None:
    """Write OME-TIFF plane by plane; BigTIFF where it needs to be."""
    from mrhdata.io.omezarr import forward

    if volume.dtype.kind == "c":
        raise FormatError(f"TIFF is not written with {volume.dtype} values; take their magnitude first")
    # Planes run the way their distance grows, as in Zarr.
    volume = forward(volume)
    full = volume.expand_dims([d for d in DIMS if d not in volume.dims]).transpose("t", "c", *SPATIAL)
    dtype = np.dtype(np.uint8) if volume.dtype == bool else volume.dtype
    affine = volume.mrh.grid.affine
    held = {key: volume.attrs[key] for key in _KEPT if key in volume.attrs} | {"affine": affine.tolist()}
    metadata: dict[str, Any] = {"axes": "TCZYX", "MapAnnotation": {"Namespace": _NAMESPACE}}
    metadata["MapAnnotation"] |= {key: json.dumps(value) for key, value in held.items()}
    metadata["MapAnnotation"]["space"] = json.dumps(volume.mrh.space)
    for axis, step in zip("ZYX", volume.mrh.spacing, strict=True):
        metadata |= {f"PhysicalSize{axis}": float(step), f"PhysicalSize{axis}Unit": "mm"}
    if "c" in volume.coords and "c" in volume.dims:
        metadata["Channel"] = {"Name": [str(c) for c in volume.c.values]}
    try:
        tifffile.imwrite(
            path,
            _planes(full, dtype),
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


def _planes(full: xr.DataArray, dtype: Any) -> Iterator[np.ndarray]:
    for t in range(full.sizes["t"]):
        for c in range(full.sizes["c"]):
            series = da.asarray(full.isel(t=t, c=c).data)
            start = 0
            for depth in series.chunks[0]:
                yield from np.asarray(series[start : start + depth]).astype(dtype, copy=False)
                start += depth
