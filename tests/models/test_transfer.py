"""Batches on the way to a device: the ring of buffers, tested on the processor."""

import numpy as np
import pytest
import torch

from mrhdata.models.transfer import BUFFERS, _Copies, _ready, pinned_bytes, to_device


def batches(lengths):
    """Return batches of two arrays with increasing values."""
    for number, length in enumerate(lengths):
        arrays = [np.full((length, 1, 2, 2, 2), 10 * number + i, np.float32) for i in range(2)]
        yield np.arange(length), arrays


def test_batches_on_the_processor_share_the_memory_of_their_arrays():
    arrays = [np.ones((2, 1, 1, 1, 1), np.float32)]
    ((_, tensors),) = to_device(iter([(np.arange(2), arrays)]), torch.device("cpu"))
    arrays[0][0] = 7
    assert tensors[0][0].item() == 7


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_keep_their_values_while_buffers_are_used_again(device):
    """More batches than buffers, of which the last is shorter; all are compared after the last copy."""
    lengths = [4] * (2 * BUFFERS) + [3]
    copies = _Copies(torch.device(device))
    received = [
        (len(indices), tensors) for indices, tensors in _ready(copies.of(batches(lengths)), torch.device(device))
    ]
    assert [length for length, _ in received] == lengths
    for number, (length, tensors) in enumerate(received):
        assert [tuple(tensor.shape) for tensor in tensors] == [(length, 1, 2, 2, 2)] * 2
        assert [tensor.unique().tolist() for tensor in tensors] == [[10.0 * number], [10.0 * number + 1]]
    assert len(copies._buffers) == 2 * BUFFERS


def test_pinned_bytes_are_those_of_the_ring():
    assert pinned_bytes(1000, torch.device("cpu")) == 0
    assert pinned_bytes(1000, torch.device("cuda")) == BUFFERS * 1000
