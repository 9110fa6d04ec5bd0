"""Predict the blocks of a result in the order in which they are written."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.output import Output
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.base import BoxTask, Strategy
from mrhdata.io.omezarr.write_blocks import DoubleBuffer
from mrhdata.models.transfer import to_device, to_host
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.box import Box

Floats = NDArray[np.float32]

log = logging.getLogger("mrhdata")

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
        """Yield blocks; if a device's memory is too small, the rest is predicted in smaller parts."""
        count = 0
        while True:
            try:
                for block in self._blocks_from(boxes, count, closed):
                    count += 1
                    yield block
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            else:
                return
            # The error is forgotten by now, and with it the tensors that its traceback kept.
            self._shrink(reason)

    def _shrink(self, reason: str) -> None:
        """Halve the parts that are run together; raise ModelError if they cannot be smaller."""
        network = self._strategy.network
        if not self._strategy.shrink():
            raise ModelError(
                f"{network.device} has too little memory for the smallest part that {network.spec.name} can run on "
                f"({reason}). Pass device='cpu', precision='bfloat16', or smaller windows"
            )
        if network.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s has too little memory (%s); parts are halved", network.device, reason)

    def _blocks_from(self, boxes: Sequence[Box], first: int, closed: Event) -> Iterator[np.ndarray | None]:
        """Yield the blocks from a number on."""
        buffers, device = DoubleBuffer(self.dtype), self._strategy.network.device
        for group in self._groups(boxes, first):
            planned = [task for _, _, tasks in group for task in tasks or []]
            voxels = self._reader.read([task.boxes for task in planned])
            inputs = to_device(((task, [values]) for task, values in zip(planned, voxels, strict=True)), device)
            for box, above, tasks in group:
                if tasks is None:
                    yield None
                    continue
                out = buffers.take((self._output.channels(self._strategy.channels), *box.shape))
                out.fill(0)
                state = self._strategy.begin(box, above, out)
                for task, predictions in to_host(self._run(itertools.islice(inputs, len(tasks)), closed)):
                    self._strategy.add(state, task, predictions, self._write)
                    # Nothing is kept while the next predictions are computed.
                    del predictions
                if closed.is_set():
                    return
                self._strategy.end(state, self._write)
                yield out if len(out) > 1 else out[0]
            # Exhaust the reader, which stops its threads.
            next(inputs, None)

    def _run(self, inputs: Iterator[tuple[BoxTask, list[Tensor]]], closed: Event) -> Iterator[tuple[BoxTask, Tensor]]:
        """Yield tasks with their predictions, until the iterator of blocks is closed."""
        for task, (values,) in inputs:
            if closed.is_set():
                return
            yield task, self._strategy.run(task, values)

    def _groups(self, boxes: Sequence[Box], first: int) -> Iterator[list[tuple[Box, Box | None, list[BoxTask] | None]]]:
        """Yield boxes in groups that are planned together.

        Each box comes with the one that was computed just before it and with its tasks (None if no voxel is wanted).
        """
        group: list[tuple[Box, Box | None, list[BoxTask] | None]] = []
        before = boxes[first - 1] if first and self._is_wanted(boxes[first - 1]) else None
        planned = 0
        for box in itertools.islice(boxes, first, None):
            wanted = self._is_wanted(box)
            tasks = list(self._strategy.tasks(box, before)) if wanted else None
            group.append((box, before, tasks))
            before = box if wanted else None
            planned += len(tasks or [])
            if planned >= _PLANNED_TASKS:
                yield group
                group, planned = [], 0
        if group:
            yield group

    def _is_wanted(self, box: Box) -> bool:
        return self._region.any(self._strategy.needs(box))

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
