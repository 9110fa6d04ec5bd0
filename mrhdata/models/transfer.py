"""Batches on the way to a device and predictions on the way back, while the device computes.

A thread cuts batches and copies them, one ahead of the step, through pinned memory. Predictions are copied back while
the next ones are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrhdata._runtime.threads import run_ahead

Label = TypeVar("Label")
Floats = NDArray[np.float32]

#: Pinned buffers of each tensor: one that the step uses, one that is copied, and one that is filled.
BUFFERS = 3


def pinned_bytes(batch_bytes: int, device: torch.device) -> int:
    """Return the bytes of pinned memory for batches of a size; the processor needs none."""
    return 0 if device.type == "cpu" else BUFFERS * batch_bytes


def to_device(
    batches: Iterator[tuple[Label, list[Floats]]], device: torch.device
) -> Iterator[tuple[Label, list[Tensor]]]:
    """Yield batches, each with its label, as tensors on a device.

    On the processor a tensor shares the memory of its array. On another device a thread fills pinned memory and starts
    the copy of the next batch while the network computes with the last one.
    """
    if device.type == "cpu":
        return ((label, [torch.from_numpy(array) for array in arrays]) for label, arrays in batches)
    return _ready(run_ahead(_Copies(device).of(batches), 1), device)


def to_host(predictions: Iterator[tuple[Label, Tensor]]) -> Iterator[tuple[Label, Floats]]:
    """Yield predictions, each with its label, as arrays; a GPU computes the next one while the last one is used."""
    waiting: tuple[Label, Tensor, Any] | None = None
    for label, prediction in predictions:
        if prediction.device.type != "cuda":
            yield label, prediction.cpu().numpy()
            del prediction
            continue
        last, waiting = waiting, (label, *_start_copy(prediction))
        if last is not None:
            yield _finished(*last)
    if waiting is not None:
        yield _finished(*waiting)


def _start_copy(prediction: Tensor) -> tuple[Tensor, Any]:
    """Return a pinned tensor that a copy fills, and the event of its end."""
    target = torch.empty(prediction.shape, dtype=prediction.dtype, pin_memory=True)
    target.copy_(prediction, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(prediction.device))
    return target, event


def _finished(label: Label, target: Tensor, event: Any) -> tuple[Label, Floats]:
    event.synchronize()
    return label, target.numpy()


class _Copies:
    """Copies of batches through a ring of pinned buffers, which are used again."""

    def __init__(self, device: torch.device, pin: bool = True) -> None:
        self._device, self._pin = device, pin and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self._copied: dict[int, Any] = {}

    def of(self, batches: Iterator[tuple[Label, list[Floats]]]) -> Iterator[tuple[Label, list[Tensor], Any]]:
        """Yield batches whose copies have begun, each with the event of their end (None without streams)."""
        for number, (label, arrays) in enumerate(batches):
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
            yield label, tensors, event

    def _fill(self, place: int, number: int, array: Floats) -> Tensor:
        """Return the buffer of a place with the values of an array; the last batch may be shorter."""
        buffer = self._buffers.get((place, number))
        if buffer is None or buffer.numel() < array.size:
            buffer = torch.empty(array.size, dtype=torch.float32, pin_memory=self._pin)
            self._buffers[place, number] = buffer
        filled = buffer[: array.size].reshape(array.shape)
        filled.copy_(torch.from_numpy(array))
        return filled


def _ready(
    copies: Iterator[tuple[Label, list[Tensor], Any]], device: torch.device
) -> Iterator[tuple[Label, list[Tensor]]]:
    """Yield batches after the device has been told to wait for their copies."""
    for label, tensors, event in copies:
        if event is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(event)
            for tensor in tensors:
                # The allocator must not hand out the memory before the step has used it.
                tensor.record_stream(stream)
        yield label, tensors
