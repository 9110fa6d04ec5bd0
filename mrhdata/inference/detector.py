"""Detect the cells of a volume of any size: score it with a network, find peaks, write a table.

```
volume --prediction--> score volume (OME-Zarr) --peaks--> table of cells, part by part --> one Parquet file
```

The score volume is read block by block with a margin, and a cell belongs to the block that holds its highest score. No
cell at a border is lost or found twice. Parts that an earlier run finished are reused.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrhdata._runtime.atomic import atomic_write, check_target, remove
from mrhdata._runtime.memory import parse_memory
from mrhdata._runtime.progress import Progress, ProgressLabel, progress_bar
from mrhdata.errors import DataError, ModelError, ParameterError
from mrhdata.inference.input_check import UNFAMILIAR
from mrhdata.inference.output import Output
from mrhdata.inference.peaks import Peaks, PeakTable, find_peaks
from mrhdata.inference.predictor import predict
from mrhdata.inference.strategies.network import check_network
from mrhdata.io import fingerprint
from mrhdata.patching import sources
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.assumptions import LENGTHS, require_stated
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.dtypes import full_scale
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.models.spec import ModelSpec
    from mrhdata.patching.tiles import TensorSource

#: Memory per voxel of the score volume during the search, in bytes.
_BYTES_PER_VOXEL = 24
#: Columns of the parts that the table does not have: voxel of the highest score, and vector from there to the centre.
_VOXEL, _SHIFT = ["peak_z", "peak_y", "peak_x"], ["shift_z", "shift_y", "shift_x"]
#: Shares of the memory budget: decoded chunks, and a block.
_TILES, _BLOCK = 1 / 4, 1 / 2


def detect(  # noqa: PLR0913 (options of one call)
    model: nn.Module,
    volume: xr.DataArray | Mapping[str, xr.DataArray],
    out: str | os.PathLike[str],
    *,
    peaks: Peaks | None = None,
    mask: xr.DataArray | str | None = None,
    memory: int | str = "1 GB",
    device: str | None = None,
    precision: str = "float32",
    skip_corrupt: bool = False,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> pd.DataFrame:
    """Find the cells of a volume of any size.

    Parameters
    ----------
    model : torch.nn.Module
        Network trained by :func:`mrhdata.recipes.cells.train`, or loaded.
    volume : volume or mapping of volumes
        Volume of each channel that the network was trained on.
    out : path
        Folder for ``scores.zarr``, the 8-bit score volume, and ``cells.parquet``, the table. Interrupted runs resume.
    peaks : Peaks, optional
        Criteria for a cell; by default those chosen when the network was trained.
    mask, memory, device, precision, skip_corrupt, force
        Options of :func:`mrhdata.predict`.
    overwrite : bool
        Whether to replace an existing output.
    progress : bool or callable
        Whether to show a progress bar, or a function of (bytes done, total bytes).

    Returns
    -------
    cells : DataFrame
        Table of :func:`~mrhdata.inference.detector.detect_cells`.

    Raises
    ------
    ModelError
        If the network does not detect cells, or has no criteria for a cell.
    ParameterError
        If the threshold is not between 0 and 1.
    GridError
        If the file of a volume states no voxel size or unit, since the radius of a cell is in mm.

    Examples
    --------
    >>> import tempfile, torch, mrhdata
    >>> class Bright(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x - 5
    >>> image = np.zeros((8, 8, 8), np.float32)
    >>> image[2, 3, 4] = 9
    >>> v = mrhdata.volume.from_array(image, spacing=(1, 1, 1), name="signal")
    >>> cells = detect(Bright(), v, tempfile.mkdtemp() + "/cells", peaks=Peaks(0.5, radius_mm=2), progress=False)
    >>> cells[["z", "y", "x", "intensity_signal"]].round(2).values.tolist()
    [[2.0, 3.0, 4.0, 1.29]]
    """
    check_network(model)
    folder = Path(out)
    inputs = sources.volumes_by_name(volume)
    spec: ModelSpec | None = getattr(model, "spec", None)
    peaks = stored_peaks(spec) if peaks is None else peaks
    for name, image in inputs.items():
        # The radius of a cell is in mm.
        require_stated(image, name, *LENGTHS)
    if not 0 <= peaks.threshold <= 1:
        raise ParameterError(f"threshold must be between 0 and 1, the range of scores; got {peaks.threshold}")
    shared: Any = {"memory": memory, "overwrite": overwrite, "progress": progress}
    with _temporary_if_empty(folder):
        scores = score_volume(
            model, inputs, folder / "scores.zarr", mask=mask, device=device, precision=precision,
            skip_corrupt=skip_corrupt, force=force, **shared,
        )  # fmt: skip
    cells = detect_cells(scores, folder / "cells.parquet", peaks, inputs, **shared)
    cells.attrs |= {key: scores.attrs[key] for key in (UNFAMILIAR,) if key in scores.attrs}
    return cells


def score_volume(
    model: nn.Module, inputs: Mapping[str, xr.DataArray], out: str | os.PathLike[str], **options: Any
) -> xr.DataArray:
    """Write the network's scores of a volume, 0 to 1 in 8 bits, to an OME-Zarr store; a finished store is reused.

    Parameters
    ----------
    model : torch.nn.Module
        Detector.
    inputs : mapping of volumes
        Volume of each channel that the network was trained on.
    out : path
        Path of the store.
    **options
        Options of :func:`mrhdata.predict`.

    Returns
    -------
    scores : volume (z, y, x), uint8
        Score volume.
    """
    output = Output(activation="sigmoid", dtype="uint8", value_range=(0, 1))
    named = {name: volume.rename(name) for name, volume in inputs.items()}
    return predict(scoring(model), named, out, mode="dense", output=output, name="scores", **options)


@contextmanager
def _temporary_if_empty(path: Path) -> Iterator[None]:
    """Create a folder, and remove it on exit if it is empty."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not any(path.iterdir()):
            path.rmdir()


def scoring(model: nn.Module) -> nn.Module:
    """Return the network with one output channel, the score of a cell before the sigmoid."""
    spec: ModelSpec | None = getattr(model, "spec", None)
    if spec is None or spec.config.get("answer") == "score":
        return model
    from mrhdata import models
    from mrhdata.models.spec import IntensityScale

    try:
        single = models.copy(model, answer="score")
    except ModelError as error:
        raise ModelError(f"{spec.name} does not detect cells. Train cells3d with mrhdata.recipes.cells") from error
    single.spec = replace(single.spec, target=IntensityScale((0.0,), (1.0,)))  # type: ignore[type-var]
    return single


def stored_peaks(spec: ModelSpec | None) -> Peaks:
    """Return the criteria for a cell of a trained network: ``("cells", {...})`` among the steps of ``spec.finish``."""
    criteria = [options for name, options in (spec.finish if spec is not None else ()) if name == "cells"]
    if not criteria:
        raise ModelError(
            "the network has no criteria for a cell. Pass peaks=, such as Peaks(threshold=0.5), or --threshold"
        )
    return Peaks(**criteria[0])


def detect_cells(
    scores: xr.DataArray,
    out: str | os.PathLike[str],
    peaks: Peaks,
    images: Mapping[str, xr.DataArray] | None = None,
    *,
    memory: int | str = "1 GB",
    overwrite: bool = False,
    progress: Progress = True,
) -> pd.DataFrame:
    """Find the cells of a score volume block by block and write their table.

    Parameters
    ----------
    scores : volume (z, y, x)
        Scores; integers are divided by the largest value of their type, floats are used as they are.
    out : path
        Parquet file; it appears when it is complete.
    peaks : Peaks
        Criteria for a cell.
    images : mapping of volumes, optional
        Volumes in which the intensity of each cell, its mean within half the radius, is measured. Voxel indices in the
        table refer to the first.
    memory : int or str
        Memory budget for everything except the table.
    overwrite : bool
        Whether to replace an existing file.
    progress : bool or callable
        Whether to show a progress bar, or a function of (voxels done, total voxels).

    Returns
    -------
    cells : DataFrame
        ``z, y, x``, voxel index of the centre; ``X, Y, Z``, world mm, RAS+; ``score``; ``size_mm3``, the volume around
        it with at least half the score; ``intensity_<name>``. Rows are in the order of the score volume's voxels and
        do not depend on the blocks.
    """
    path, budget = Path(out), parse_memory(memory)
    if scores.dims != SPATIAL:
        raise DataError(f"scores must have the axes z, y, x; got {scores.dims}. Select a channel")
    source = sources.one_grid({"scores": scores}, (1, 1, 1), None, False)
    images = {} if images is None else dict(images)
    measured = [_Image(name, volume, peaks.radius_mm / 2) for name, volume in images.items()]
    grid = next(iter(images.values())).mrh.grid if images else scores.mrh.grid
    boxes = list(_boxes(source, measured, int(_BLOCK * budget)))
    head = {"digest": _digest(scores, images, peaks), "box": list(boxes[0].shape)}
    if path.exists() and not overwrite and _stored_digest(path) == head["digest"]:
        return pd.read_parquet(path)
    check_target(path, overwrite)
    parts = _parts_folder(path, head)
    search = _Search(source, scores, peaks, full_scale(scores.dtype), int(_TILES * budget))
    left = [i for i in range(len(boxes)) if not _part_path(parts, i).exists()]
    total = sum(b.size for b in boxes)
    done = total - sum(boxes[i].size for i in left)
    label = ProgressLabel(text="finding cells", unit_bytes=1, unit="voxel")
    with progress_bar(progress, total, done, label) as report:
        for i, table in zip(left, search.find([boxes[i] for i in left]), strict=True):
            with atomic_write(_part_path(parts, i)) as draft:
                _part_table(table, boxes[i], scores.mrh.grid, measured).to_parquet(draft, index=False)
            report(boxes[i].size)
    rows = pd.concat([pd.read_parquet(_part_path(parts, i)) for i in range(len(boxes))], ignore_index=True)
    cells = _cell_table(rows, scores.mrh.grid, grid)
    cells.attrs["digest"] = head["digest"]
    with atomic_write(path) as draft:
        cells.to_parquet(draft, index=False)
    remove(parts)
    return cells


class _Search:
    """Find the peaks of boxes of the score volume, decoding ahead."""

    def __init__(
        self, source: TensorSource, scores: xr.DataArray, peaks: Peaks, full_scale: float, memory: int
    ) -> None:
        self._reader, self._peaks, self._full_scale = BoxReader(source, memory), peaks, full_scale
        self._shape, self._spacing = scores.shape, scores.mrh.spacing.tolist()

    def find(self, boxes: Sequence[Box]) -> Iterator[PeakTable]:
        """Yield the peaks of each box."""
        halo = self._peaks.halo(self._spacing)
        padded = [b.grow(halo) for b in boxes]
        for box, values in zip(padded, self._reader.read([[box] for box in padded]), strict=True):
            values /= self._full_scale
            yield find_peaks(values[0, 0], self._spacing, self._peaks, halo=True, outside=self._outside(box))

    def _outside(self, box: Box) -> NDArray[np.bool_] | None:
        """Return the voxels of a box beyond the volume, or None if it lies within."""
        if box == box.clip(self._shape):
            return None
        beyond = np.ones(box.shape, bool)
        beyond[box.clip(self._shape).within(box.start)] = False
        return beyond


class _Image:
    """A volume in which the intensity of cells is measured."""

    def __init__(self, name: str, volume: xr.DataArray, radius_mm: float) -> None:
        self.name, self.grid = name, volume.mrh.grid
        self.source = sources.one_grid({name: volume}, (1, 1, 1), None, False)
        lengths = [int(radius_mm / s) for s in self.grid.spacing]
        offsets = np.array(list(itertools.product(*(range(-n, n + 1) for n in lengths))), dtype=np.int64)
        self._ball = offsets[np.linalg.norm(offsets * self.grid.spacing, axis=1) <= radius_mm]

    def bytes_per(self, voxel_mm3: float) -> float:
        """Return the bytes that are read for a volume in mm3."""
        return 2 * self.source.voxel_bytes * voxel_mm3 / float(np.prod(self.grid.spacing))

    def means(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean intensity around world points (n, 3); voxels beyond the volume repeat its border."""
        if not len(world):
            return np.empty(0)
        top = np.array(self.grid.shape) - 1
        # Scores of even patches lie between voxels; the tolerance keeps rounding from choosing the nearer one.
        nearest = np.floor(self.grid.index(world) + 0.5 + 1e-6).astype(np.int64)
        voxels = np.clip(nearest[:, None] + self._ball, 0, top)
        low, high = voxels.min(axis=(0, 1)), voxels.max(axis=(0, 1)) + 1
        values = self.source.voxels(Box.of(low, high))[0]
        return np.asarray(values[tuple((voxels - low).transpose(2, 0, 1))].mean(axis=1, dtype=np.float64))


def _boxes(source: TensorSource, images: Sequence[_Image], memory: int) -> Iterator[Box]:
    """Yield boxes of whole tiles that cover the score volume, as large as the memory allows."""
    shape, spacing = source.grid.shape, source.grid.spacing
    voxel_bytes = _BYTES_PER_VOXEL + sum(image.bytes_per(float(np.prod(spacing))) for image in images)
    lengths = [min(t, n) for t, n in zip(source.tile, shape, strict=True)]
    while lengths != list(shape) and 2 * np.prod(lengths) * voxel_bytes <= memory:
        # Cubes have the smallest margins. Of equal edges the last grows first, since it is contiguous on disk.
        longer = min((a for a in range(3) if lengths[a] < shape[a]), key=lambda a: (lengths[a], -a))
        lengths[longer] = min(2 * lengths[longer], shape[longer])
    yield from Box.tiles(shape, lengths)


def _part_table(table: PeakTable, box: Box, grid: Grid, images: Sequence[_Image]) -> pd.DataFrame:
    """Return the rows of one block."""
    voxel = table.voxel + box.start
    columns: dict[str, Any] = dict(zip(_VOXEL, voxel.T, strict=True)) | dict(zip(_SHIFT, table.shift.T, strict=True))
    columns |= {"score": table.score, "size_mm3": table.size * float(np.prod(grid.spacing))}
    world = grid.world(voxel + table.shift)
    columns |= {f"intensity_{image.name}": image.means(world) for image in images}
    return pd.DataFrame(columns)


def _cell_table(rows: pd.DataFrame, scores: Grid, reference: Grid) -> pd.DataFrame:
    """Return all rows in the order of their voxels, which does not depend on the blocks, with their positions."""
    rows = rows.sort_values(_VOXEL, ignore_index=True)
    world = scores.world(rows[_VOXEL].to_numpy() + rows[_SHIFT].to_numpy())
    positions = dict(zip(("z", "y", "x"), reference.index(world).T, strict=True))
    positions |= dict(zip(("X", "Y", "Z"), world.T, strict=True))
    return pd.concat([pd.DataFrame(positions), rows.drop(columns=[*_VOXEL, *_SHIFT])], axis=1)


def _parts_folder(path: Path, head: Mapping[str, Any]) -> Path:
    """Return the folder of finished parts; it is emptied if another run wrote it."""
    folder = path.with_name(f".{path.name}.parts")
    head_file, text = folder / "head.json", json.dumps(head)
    if not head_file.exists() or head_file.read_text(encoding="utf-8") != text:
        remove(folder)
        folder.mkdir(parents=True)
        with atomic_write(head_file) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder


def _part_path(parts: Path, number: int) -> Path:
    return parts / f"{number:08d}.parquet"


def _digest(scores: xr.DataArray, images: Mapping[str, xr.DataArray], peaks: Peaks) -> str:
    volumes = [fingerprint.fingerprint(scores), [[name, fingerprint.fingerprint(v)] for name, v in images.items()]]
    return fingerprint.digest([volumes, asdict(peaks)])


def _stored_digest(path: Path) -> str | None:
    """Return the digest of the scores, images and peaks from which a table was made."""
    import pyarrow.parquet

    metadata: Any = pyarrow.parquet.read_schema(path).pandas_metadata or {}
    return metadata.get("attributes", {}).get("digest")
