"""Lazy volumes of the images that nibabel opens."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from mrhdata.errors import FormatError
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL, from_array
from mrhdata.volume.file_arrays import FileArray, check_length, format_errors, lazy
from mrhdata.volume.packed import PackedReader, check_packed_size, check_stream, codec_of

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats


log = logging.getLogger("mrhdata")


def open_image(path: Path) -> Any:
    """Open any file that nibabel supports; errors name the path."""
    with format_errors(path), warnings.catch_warnings():
        # MINC may declare its spacing as neither regular nor irregular; nibabel then assumes regular.
        warnings.filterwarnings("ignore", message="Invalid spacing declaration")
        image: Any = nib.load(path)
        _ = image.affine
    fields = image.get_data_dtype().fields
    if fields is not None and not {"R", "G", "B"} <= set(fields):
        raise FormatError(f"{path} holds {image.get_data_dtype()} tuples, not numbers; split them into channels first")
    return image


def stated_steps(image: Any) -> Floats:
    """Return the voxel size along x, y, z as the header of a NIfTI or ANALYZE image states it, 0 if it does not.

    nibabel replaces zeros by 1 and negative sizes by their absolute values when it opens a file. The size along an
    absent axis is the finest of the others.
    """
    holder = image.file_map["header" if "header" in image.file_map else "image"]
    with holder.get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    steps = np.array(header["pixdim"][1:4], dtype=np.float64)
    ndim = int(header["dim"][0])
    steps[ndim:] = np.abs(steps[:ndim]).min(initial=np.inf, where=steps[:ndim] != 0)
    return np.where(np.isfinite(steps), steps, 0.0)


def assumed_of_steps(steps: Floats, path: Path) -> list[str]:
    """Return the properties that voxel sizes of 0 and below leave open; a sign may mean a reversed axis, or nothing."""
    if (steps < 0).any():
        log.warning(
            "%s: the voxel size %s has a sign, which is ignored; pass axes= if it means a reversed axis",
            path,
            steps.tolist(),
        )
    return [*(["spacing"] if (steps == 0).any() else []), *(["orientation"] if (steps < 0).any() else [])]


def from_image(
    image: Any,
    path: Path,
    dims: tuple[str, ...],
    affine: Floats | None = None,
    reopen: Callable[[], Any] | None = None,
    smallest_bytes: int | None = None,
    **attrs: Any,
) -> xr.DataArray:
    """Return a lazy volume of a nibabel image whose axes are `dims`; colours become channels.

    Axes behind those of `dims` must have length 1. `reopen` opens the image for each box, for images that would keep
    their file open. `smallest_bytes` are those of :class:`~mrhdata.volume.file_arrays.FileArray`.
    """
    shape = tuple(int(n) for n in image.shape)
    used = shape[: len(dims)]
    if any(n < 1 for n in shape) or not shape or any(n > 1 for n in shape[len(dims) :]):
        raise FormatError(f"{path} must have 1 to {len(dims)} axes, none of them empty; got shape {shape}")
    _check_length(image, path)
    # Files may omit trailing axes, or have some of length 1 (ANALYZE has four axes).
    used = (*used, *(1,) * (3 - len(used)))
    reader = _ProxyReader(image.dataobj, used, reopen)
    data = lazy(FileArray(reader.shape, reader.dtype, reader, path, smallest_bytes=smallest_bytes), reader.slowest)
    dims = (*dims[: len(used)], "c") if len(reader.shape) > len(used) else dims[: len(used)]
    keep = [i for i, d in enumerate(dims) if d in SPATIAL or reader.shape[i] > 1]
    data = data[tuple(slice(None) if i in keep else 0 for i in range(len(dims)))]
    names = [dims[i] for i in keep]
    if len(set(names)) < len(names):
        raise FormatError(f"{path} has colours and a fifth axis of shape {used}; split them into channels first")
    affine = image.affine if affine is None else affine
    volume = from_array(data, affine=affine, dims=names, name=path.name.split(".")[0], **attrs)
    return volume if reader.channels is None or "c" not in names else volume.assign_coords(c=reader.channels)


class _ProxyReader:
    """Reader of boxes of scaled values of a nibabel proxy.

    `slowest` is the axis along which slabs are read, None for compressed files.
    """

    def __init__(self, proxy: Any, shape: tuple[int, ...], reopen: Callable[[], Any] | None = None) -> None:
        self._proxy: Any = proxy if reopen is None else None
        self._spatial, self._reopen = shape, reopen
        self._packed: PackedReader | None = None
        self._unchecked: tuple[Path, str] | None = None
        self.channels: list[str] | None = None
        file = str(getattr(proxy, "file_like", ""))
        codec, minc = codec_of(file), hasattr(proxy, "minc_file")
        if type(proxy) is nib.arrayproxy.ArrayProxy:
            stored = proxy.dtype if (proxy.slope, proxy.inter) == (1.0, 0.0) else np.dtype(np.float64)
            if codec is not None:
                offset, order = int(proxy.offset), proxy.order
                self._packed = PackedReader(Path(file), codec, shape, proxy.dtype, offset=offset, order=order)
        else:
            # The proxies of AFNI and Philips scale in their own ways; the type of one voxel is that of all.
            stored = np.dtype(np.float64) if minc else np.asanyarray(proxy[(slice(0, 1),) * len(proxy.shape)]).dtype
            # nibabel stops reading in front of the checksum.
            self._unchecked = None if codec is None else (Path(file), codec)
        self.dtype, self.shape = stored, shape
        if stored.fields is not None:
            self.channels = list(stored.fields)
            self.dtype, self.shape = np.dtype(np.uint8), (*shape, len(self.channels))
        self.slowest = None if codec is not None else 0 if minc else len(shape) - 1

    @property
    def smallest_bytes(self) -> int | None:
        """Bytes in memory while a compressed file is read: the stored values, and the scaled ones."""
        if self._packed is None:
            return None
        stored = self._proxy.dtype
        scaled = 0 if stored == self.dtype else self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
        return stored.itemsize * int(np.prod(self._spatial, dtype=object)) + scaled

    def __call__(self, box: Box) -> Any:
        values = self._values(box.slices[: len(self._spatial)])
        if self.channels is None:
            return values
        return np.stack([values[name] for name in self.channels], axis=-1)[..., box.slices[-1]]

    def _values(self, spatial: tuple[slice, ...]) -> Any:
        proxy = self._proxy if self._reopen is None else self._reopen().dataobj
        if self._packed is not None:
            stored = self._packed(Box(tuple(s.start for s in spatial), tuple(s.stop for s in spatial)))
            return apply_read_scaling(stored, proxy.slope, proxy.inter)
        if self._unchecked is not None:
            check_stream(*self._unchecked)
        if self._spatial == tuple(proxy.shape):
            return np.asanyarray(proxy[spatial])
        return np.asanyarray(proxy).reshape(self._spatial)[spatial]


def _check_length(image: Any, path: Path) -> None:
    """Raise FormatError if the file of the voxels is missing, or cannot hold as many bytes as the header asks for."""
    proxy = image.dataobj
    data_file = getattr(proxy, "file_like", None)
    if not hasattr(proxy, "offset") or not isinstance(data_file, str | Path):
        return
    file = Path(data_file)
    if not file.exists():
        raise FormatError(f"{path} has no data file {data_file}; keep header and image together")
    needed = int(proxy.offset) + proxy.dtype.itemsize * int(np.prod(image.shape, dtype=object))
    codec = codec_of(file)
    if codec is None:
        check_length(file, needed)
    else:
        check_packed_size(file, codec, needed)
