"""Predict the blocks of a result in the order in which they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import DataError
from mrhdata.inference.box_reader import BoxReader
from mrhdata.inference.output import Output
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Strategy
from mrhdata.io.omezarr.write_blocks import DoubleBuffer
from mrhdata.volume.box import Box

Floats = NDArray[np.float32]

#: Bytes of predictions that stay in the processor's cache until they are written.
_CACHE_BYTES = 500_000
#: Tasks whose reads are planned together.
_PLANNED_TASKS = 512


class BlockPredictor:
    """Predict blocks of the result in the order in which they are requested."""

    def __init__(self, strategy: Strategy, reader: BoxReader, output: Output, region: RegionOfInterest) -> None:
        self._strategy, self._reader, self._output, self._region = strategy, reader, output, region
        self.dtype = output.written

    def blocks(self, boxes: Sequence[Box]) -> Iterator[np.ndarray | None]:
        """Yield blocks; a thread predicts one while the previous one is written, and stops within a task on close."""
        closed = Event()
        spatial = [Box(box.start[-3:], box.stop[-3:]) for box in boxes]
        return run_ahead(self._predict_blocks(spatial, closed), 1, closed.set)

    def _predict_blocks(self, boxes: Sequence[Box], closed: Event) -> Iterator[np.ndarray | None]:
        buffers = DoubleBuffer(self.dtype)
        for group in self._groups(boxes):
            batches = self._reader.read([task.boxes for _, _, tasks in group for task in tasks or []])
            for box, above, tasks in group:
                if tasks is None:
                    yield None
                    continue
                out = buffers.take((self._output.channels(self._strategy.channels), *box.shape))
                out.fill(0)
                state = self._strategy.begin(box, above, out)
                for task in tasks:
                    if closed.is_set():
                        return
                    self._strategy.add(state, task, next(batches), self._write)
                self._strategy.end(state, self._write)
                yield out if len(out) > 1 else out[0]
            # Exhaust the reader, which stops its threads.
            next(batches, None)

    def _groups(self, boxes: Sequence[Box]) -> Iterator[list[tuple[Box, Box | None, list[BoxTask] | None]]]:
        """Yield boxes in groups that are planned together.

        Each box comes with the one that was computed just before it and with its tasks (None if no voxel is wanted).
        """
        group: list[tuple[Box, Box | None, list[BoxTask] | None]] = []
        before: Box | None = None
        planned = 0
        for box in boxes:
            wanted = self._region.any(self._strategy.needs(box))
            tasks = list(self._strategy.tasks(box, before)) if wanted else None
            group.append((box, before, tasks))
            before = box if wanted else None
            planned += len(tasks or [])
            if planned >= _PLANNED_TASKS:
                yield group
                group, planned = [], 0
        if group:
            yield group

    def _write(self, box: Box, predictions: Floats, out: np.ndarray) -> None:
        """Convert the predictions of a box to the stored type and write them to `out`, 0 outside the region."""
        outside = self._region.outside(box, self._strategy.stride, self._strategy.offset)
        # A few planes at a time stay in the cache.
        depth = max(1, _CACHE_BYTES // predictions[:, 0].nbytes)
        for low in range(0, box.shape[0], depth):
            planes = slice(low, low + depth)
            part = np.ascontiguousarray(predictions[:, planes])
            hidden = None if outside is None else outside[planes]
            # A sum is finite only if all its terms are, and is faster than a test of each voxel.
            if not np.isfinite(part.sum()):
                hidden = self._hide_not_finite(part, hidden, (box.start[0] + low, *box.start[1:]))
            values = self._output.of(part)
            if hidden is not None:
                values[:, hidden] = 0
            out[:, planes] = values

    def _hide_not_finite(self, predictions: Floats, hidden: NDArray[np.bool_] | None, base: tuple[int, ...]) -> Any:
        """Return hidden voxels, including those that are not finite; raise DataError unless they may be skipped."""
        hidden = np.zeros(predictions.shape[1:], dtype=bool) if hidden is None else hidden
        bad = ~np.isfinite(predictions).all(axis=0) & ~hidden
        if bad.any():
            first = tuple((np.argwhere(bad)[0] + base).tolist())
            high = tuple(b + n for b, n in zip(base, bad.shape, strict=True))
            reason = f"{bad.sum()} predictions from {base} to {high} are not finite, the first at {first}"
            if not self._reader.skip(reason):
                raise DataError(f"{reason}. Fill or mask the input there, or pass skip_corrupt=True")
        return bad | hidden
