"""Batches on the way to the device: cut and copied by a thread, one ahead of the step, through pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrhdata._runtime.threads import run_ahead

Ints = NDArray[np.int64]
Batch = tuple[Ints, list[NDArray[np.float32]]]

#: Pinned buffers of each tensor: one that the step uses, one that is copied, and one that is filled.
BUFFERS = 3


def pinned_bytes(batch_bytes: int, device: torch.device) -> int:
    """Return the bytes of pinned memory for batches of a size; the processor needs none."""
    return 0 if device.type == "cpu" else BUFFERS * batch_bytes


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Ints, list[Tensor]]]:
    """Yield batches as tensors on a device.

    On the processor a tensor shares the memory of its array. On another device a thread fills pinned memory and starts
    the copy of the next batch while the network computes with the last one.
    """
    if device.type == "cpu":
        return ((indices, [torch.from_numpy(array) for array in arrays]) for indices, arrays in batches)
    return _ready(run_ahead(_Copies(device).of(batches), 1), device)


class _Copies:
    """Copies of batches through a ring of pinned buffers, which are used again."""

    def __init__(self, device: torch.device, pin: bool = True) -> None:
        self._device, self._pin = device, pin and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self._copied: dict[int, Any] = {}

    def of(self, batches: Iterator[Batch]) -> Iterator[tuple[Ints, list[Tensor], Any]]:
        """Yield batches whose copies have begun, each with the event of their end (None without streams)."""
        for number, (indices, arrays) in enumerate(batches):
            place = number % BUFFERS
            if self._copied.get(place) is not None:
                # The buffer is free when its last copy has ended.
                self._copied[place].synchronize()
            pinned = [self._fill(place, i, array) for i, array in enumerate(arrays)]
            with torch.cuda.stream(self._stream):
                tensors = [tensor.to(self._device, non_blocking=True, copy=True) for tensor in pinned]
                event = None
                if self._stream is not None:
                    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    event.record(self._stream)
            self._copied[place] = event
            yield indices, tensors, event

    def _fill(self, place: int, number: int, array: NDArray[np.float32]) -> Tensor:
        """Return the buffer of a place with the values of an array; the last batch may be shorter."""
        buffer = self._buffers.get((place, number))
        if buffer is None or buffer.numel() < array.size:
            buffer = torch.empty(array.size, dtype=torch.float32, pin_memory=self._pin)
            self._buffers[place, number] = buffer
        filled = buffer[: array.size].reshape(array.shape)
        filled.copy_(torch.from_numpy(array))
        return filled


def _ready(
    copies: Iterator[tuple[Ints, list[Tensor], Any]], device: torch.device
) -> Iterator[tuple[Ints, list[Tensor]]]:
    """Yield batches after the device has been told to wait for their copies."""
    for indices, tensors, event in copies:
        if event is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(event)
            for tensor in tensors:
                # The allocator must not hand out the memory before the step has used it.
                tensor.record_stream(stream)
        yield indices, tensors
