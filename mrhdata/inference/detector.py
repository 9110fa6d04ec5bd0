"""Cells of a volume of any size: a network's scores, their peaks, a table.

```
volume --prediction--> score volume (OME-Zarr) --peaks--> table of cells, part by part --> one Parquet file
```

The score volume is read block by block, each with what lies about it, and a cell belongs to the block that
holds its highest score: none is lost or found twice at a border. Parts that an earlier run finished are kept.
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
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.box_reader import BoxReader
from mrhdata.inference.output import Output
from mrhdata.inference.peaks import Peaks, PeakTable, find_peaks
from mrhdata.inference.predictor import predict
from mrhdata.io import fingerprint
from mrhdata.patching import sources
from mrhdata.volume.box import Box
from mrhdata.volume.construct import SPATIAL
from mrhdata.volume.dtypes import full_scale
from mrhdata.volume.grid import Grid

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.models.spec import ModelSpec
    from mrhdata.patching.tiles import TensorSource

#: Bytes that a voxel of scores takes while its block is searched.
_SEARCHED = 24
#: Columns of the parts alone: the voxel of the highest score, and from there to the centre.
_VOXEL, _SHIFT = ["peak_z", "peak_y", "peak_x"], ["shift_z", "shift_y", "shift_x"]
#: Shares of the budget: decoded chunks, and a block.
_TILES, _BLOCK = 1 / 4, 1 / 2


def detect(  # noqa: PLR0913 (settings of one act)
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
    overwrite: bool = False,
    progress: Progress = True,
) -> pd.DataFrame:
    """Find the cells of a volume of any size.

    Parameters
    ----------
    model : torch.nn.Module
        Trained by :func:`mrhdata.recipes.cells.train`, or loaded.
    volume : volume or mapping of volumes
        By the channels that the network was trained on.
    out : path
        Folder that gets ``scores.zarr``, the score volume in 8 bits, and ``cells.parquet``, the table. A run that
        was killed goes on where it was.
    peaks : Peaks, optional
        What counts as a cell; what was chosen when the network was trained by default.
    mask, memory, device, precision, skip_corrupt
        As for :func:`mrhdata.predict`.
    overwrite, progress : bool

    Returns
    -------
    cells : DataFrame
        As of :func:`~mrhdata.inference.detector.detect_cells`.

    Raises
    ------
    ModelError
        The network finds no cells, or nothing says what counts as one.

    Examples
    --------
    >>> import tempfile, torch, mrhdata
    >>> class Bright(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x - 5
    >>> image = np.zeros((8, 8, 8), np.float32)
    >>> image[2, 3, 4] = 9
    >>> v = mrhdata.volume.from_array(image, spacing=(1, 1, 1), name="signal")
    >>> found = detect(Bright(), v, tempfile.mkdtemp() + "/cells", peaks=Peaks(0.5, radius_mm=2), progress=False)
    >>> found[["z", "y", "x", "intensity_signal"]].round(2).values.tolist()
    [[2.0, 3.0, 4.0, 1.29]]
    """
    folder = Path(out)
    inputs = sources.volumes_by_name(volume)
    spec: ModelSpec | None = getattr(model, "spec", None)
    peaks = stored_peaks(spec) if peaks is None else peaks
    if not 0 <= peaks.threshold <= 1:
        raise DataError(f"scores go from 0 to 1, so a threshold of {peaks.threshold} says nothing; give one between")
    shared: Any = {"memory": memory, "overwrite": overwrite, "progress": progress}
    with _folder(folder):
        scores = score_volume(
            model, inputs, folder / "scores.zarr", mask=mask, device=device, precision=precision,
            skip_corrupt=skip_corrupt, **shared,
        )  # fmt: skip
    return detect_cells(scores, folder / "cells.parquet", peaks, inputs, **shared)


def score_volume(
    model: nn.Module, inputs: Mapping[str, xr.DataArray], out: str | os.PathLike[str], **options: Any
) -> xr.DataArray:
    """The network's scores of a volume, 0 to 1 in 8 bits, as an OME-Zarr store; one that is there is read.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : mapping of volumes
        By the channels that the network was trained on.
    out : path
    **options
        As for :func:`mrhdata.predict`.

    Returns
    -------
    scores : volume (z, y, x), uint8
    """
    output = Output(activation="sigmoid", dtype="uint8", value_range=(0, 1))
    named = {name: volume.rename(name) for name, volume in inputs.items()}
    return predict(scoring(model), named, out, mode="dense", output=output, name="scores", **options)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder that is there, and gone again where nothing came to be in it."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not any(path.iterdir()):
            path.rmdir()


def scoring(model: nn.Module) -> nn.Module:
    """The network with one answer for each voxel, the score of a cell before the sigmoid."""
    spec: ModelSpec | None = getattr(model, "spec", None)
    if spec is None or spec.config.get("answer") == "score":
        return model
    from mrhdata import models
    from mrhdata.models.spec import IntensityScale

    try:
        single = models.copy(model, answer="score")
    except ModelError as error:
        raise ModelError(f"{spec.name} finds no cells; train cells3d with mrhdata.recipes.cells") from error
    single.spec = replace(single.spec, target=IntensityScale((0.0,), (1.0,)))  # type: ignore[type-var]
    return single


def stored_peaks(spec: ModelSpec | None) -> Peaks:
    """What counts as a cell for a trained network: ``("cells", {...})`` among the steps of ``spec.finish``."""
    found = [settings for name, settings in (spec.finish if spec is not None else ()) if name == "cells"]
    if not found:
        raise ModelError(
            "nothing says what counts as a cell; give peaks=, such as Peaks(threshold=0.5), or --threshold"
        )
    return Peaks(**found[0])


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
    """Make the table of cells of a score volume, streaming.

    Parameters
    ----------
    scores : volume (z, y, x)
        Integers count from 0 to their type's largest, floats as they are.
    out : path
        Parquet file; it appears when it is complete.
    peaks : Peaks
    images : mapping of volumes, optional
        In which the intensity of each cell is measured, its mean within half of the radius; the first is the
        volume whose voxels the table counts.
    memory : int or str
        Bytes for everything that is held at once, but the table.
    overwrite, progress : bool

    Returns
    -------
    cells : DataFrame
        ``z, y, x`` voxel index of the centre; ``X, Y, Z`` world mm, RAS+; ``score``; ``size_mm3``, the volume about
        it that scores at least half as much; ``intensity_<name>``. In the order of the score volume's voxels,
        whatever the blocks.
    """
    path, budget = Path(out), parse_memory(memory)
    if scores.dims != SPATIAL:
        raise DataError(f"a score volume has the axes z, y, x, not {scores.dims}; select a channel")
    stream = sources.one_grid({"scores": scores}, (1, 1, 1), None, False)
    images = {} if images is None else dict(images)
    beside = [_Image(name, volume, peaks.radius_mm / 2) for name, volume in images.items()]
    grid = next(iter(images.values())).mrh.grid if images else scores.mrh.grid
    boxes = list(_boxes(stream, beside, int(_BLOCK * budget)))
    head = {"digest": _digest(scores, images, peaks), "box": list(boxes[0].shape)}
    if path.exists() and not overwrite and _made_from(path) == head["digest"]:
        return pd.read_parquet(path)
    check_target(path, overwrite)
    parts = _parts(path, head)
    search = _Search(stream, scores, peaks, full_scale(scores.dtype), int(_TILES * budget))
    left = [i for i in range(len(boxes)) if not _part(parts, i).exists()]
    total = sum(b.size for b in boxes)
    done = total - sum(boxes[i].size for i in left)
    label = ProgressLabel(text="finding cells", unit_bytes=1, unit="voxel")
    with progress_bar(progress, total, done, label) as step:
        for i, found in zip(left, search.of([boxes[i] for i in left]), strict=True):
            with atomic_write(_part(parts, i)) as draft:
                _rows(found, boxes[i], scores.mrh.grid, beside).to_parquet(draft, index=False)
            step(boxes[i].size)
    rows = pd.concat([pd.read_parquet(_part(parts, i)) for i in range(len(boxes))], ignore_index=True)
    made = _table(rows, scores.mrh.grid, grid)
    made.attrs["digest"] = head["digest"]
    with atomic_write(path) as draft:
        made.to_parquet(draft, index=False)
    remove(parts)
    return made


class _Search:
    """Peaks of boxes of the score volume, read one ahead of the other."""

    def __init__(self, stream: TensorSource, scores: xr.DataArray, peaks: Peaks, white: float, memory: int) -> None:
        self._sweep, self._peaks, self._white = BoxReader(stream, memory), peaks, white
        self._shape, self._spacing = scores.shape, scores.mrh.spacing.tolist()

    def of(self, boxes: Sequence[Box]) -> Iterator[PeakTable]:
        """One by one."""
        halo = self._peaks.halo(self._spacing)
        wide = [b.grow(halo) for b in boxes]
        for box, values in zip(wide, self._sweep.read([[box] for box in wide]), strict=True):
            values /= self._white
            yield find_peaks(values[0, 0], self._spacing, self._peaks, halo=True, outside=self._outside(box))

    def _outside(self, box: Box) -> NDArray[np.bool_] | None:
        """Where a box reaches beyond the volume."""
        if box == box.clip(self._shape):
            return None
        beyond = np.ones(box.shape, bool)
        beyond[box.clip(self._shape).within(box.start)] = False
        return beyond


class _Image:
    """A volume in which intensities of cells are measured."""

    def __init__(self, name: str, volume: xr.DataArray, radius_mm: float) -> None:
        self.name, self.grid = name, volume.mrh.grid
        self.stream = sources.one_grid({name: volume}, (1, 1, 1), None, False)
        lengths = [int(radius_mm / s) for s in self.grid.spacing]
        every = np.array(list(itertools.product(*(range(-n, n + 1) for n in lengths))), dtype=np.int64)
        self._ball = every[np.linalg.norm(every * self.grid.spacing, axis=1) <= radius_mm]

    def bytes_per(self, voxel_mm3: float) -> float:
        """Bytes that are read for so much of the volume."""
        return 2 * self.stream.voxel_bytes * voxel_mm3 / float(np.prod(self.grid.spacing))

    def means(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the voxels about world points (n, 3); those beyond the volume are the nearest within."""
        if not len(world):
            return np.empty(0)
        top = np.array(self.grid.shape) - 1
        # Scores of even patches lie between voxels: which one is nearer must not hang on the last bit.
        nearest = np.floor(self.grid.index(world) + 0.5 + 1e-6).astype(np.int64)
        voxels = np.clip(nearest[:, None] + self._ball, 0, top)
        low, high = voxels.min(axis=(0, 1)), voxels.max(axis=(0, 1)) + 1
        values = self.stream.voxels(Box.of(low, high))[0]
        return np.asarray(values[tuple((voxels - low).transpose(2, 0, 1))].mean(axis=1, dtype=np.float64))


def _boxes(stream: TensorSource, images: Sequence[_Image], memory: int) -> Iterator[Box]:
    """Parts of the score volume of whole tiles, as large as the memory allows."""
    shape, spacing = stream.grid.shape, stream.grid.spacing
    each = _SEARCHED + sum(image.bytes_per(float(np.prod(spacing))) for image in images)
    lengths = [min(t, n) for t, n in zip(stream.tile, shape, strict=True)]
    while lengths != list(shape) and 2 * np.prod(lengths) * each <= memory:
        # Cubes have the least about them; of equal edges the last one lies together on disk.
        longer = min((a for a in range(3) if lengths[a] < shape[a]), key=lambda a: (lengths[a], -a))
        lengths[longer] = min(2 * lengths[longer], shape[longer])
    for low in itertools.product(*(range(0, n, s) for n, s in zip(shape, lengths, strict=True))):
        yield Box.of(low, [min(a + s, n) for a, s, n in zip(low, lengths, shape, strict=True)])


def _rows(found: PeakTable, box: Box, grid: Grid, images: Sequence[_Image]) -> pd.DataFrame:
    """What one block adds to the table."""
    voxel = found.voxel + box.start
    columns: dict[str, Any] = dict(zip(_VOXEL, voxel.T, strict=True)) | dict(zip(_SHIFT, found.shift.T, strict=True))
    columns |= {"score": found.score, "size_mm3": found.size * float(np.prod(grid.spacing))}
    world = grid.world(voxel + found.shift)
    columns |= {f"intensity_{image.name}": image.means(world) for image in images}
    return pd.DataFrame(columns)


def _table(rows: pd.DataFrame, scores: Grid, counted: Grid) -> pd.DataFrame:
    """All rows in the order of their voxels, and where they lie: blocks leave no trace."""
    rows = rows.sort_values(_VOXEL, ignore_index=True)
    world = scores.world(rows[_VOXEL].to_numpy() + rows[_SHIFT].to_numpy())
    places = dict(zip(("z", "y", "x"), counted.index(world).T, strict=True))
    places |= dict(zip(("X", "Y", "Z"), world.T, strict=True))
    return pd.concat([pd.DataFrame(places), rows.drop(columns=[*_VOXEL, *_SHIFT])], axis=1)


def _parts(path: Path, head: Mapping[str, Any]) -> Path:
    """The folder of finished parts of the same run, empty where there was none."""
    folder = path.with_name(f".{path.name}.parts")
    note, text = folder / "head.json", json.dumps(head)
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        remove(folder)
        folder.mkdir(parents=True)
        with atomic_write(note) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:08d}.parquet"


def _digest(scores: xr.DataArray, images: Mapping[str, xr.DataArray], peaks: Peaks) -> str:
    told = [fingerprint.fingerprint(scores), [[name, fingerprint.fingerprint(image)] for name, image in images.items()]]
    return fingerprint.digest([told, asdict(peaks)])


def _made_from(path: Path) -> str | None:
    import pyarrow.parquet

    found: Any = pyarrow.parquet.read_schema(path).pandas_metadata or {}
    return found.get("attributes", {}).get("digest")
