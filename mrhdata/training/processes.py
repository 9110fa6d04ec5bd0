"""Several processes that train one network, through ``torch.distributed``.

``torchrun --nproc-per-node 2 train.py`` starts them. Each takes its part of every batch, and
``DistributedDataParallel`` averages the gradients, so that the steps are those of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn

from mrhdata.errors import ModelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Processes:
    """The processes that train a network together.

    Attributes
    ----------
    rank : int
        Number of this process, from 0; process 0 writes.
    count : int
        Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the network such that its backward pass averages gradients over all processes."""
        if self.count == 1:
            return model
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def sum(self, values: Any) -> Floats:
        """Return the sums of some numbers over all processes."""
        array = np.asarray(values, dtype=np.float64)
        if self.count == 1:
            return array
        total = torch.from_numpy(np.atleast_1d(array).copy())
        total = total.to("cuda") if dist.get_backend() == "nccl" else total
        dist.all_reduce(total)
        return np.asarray(total.cpu().numpy().reshape(array.shape))

    def wait(self) -> None:
        """Wait until all processes have come to this point."""
        if self.count > 1:
            dist.barrier()


def current_processes() -> Processes:
    """Return the processes of PyTorch's process group, which torchrun's variables start if they are set."""
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Processes()


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise the error of a lost process as one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = any(words in text for words in ("Connection closed", "Connection reset", "Socket", "NCCL", "gloo"))
        if not lost or isinstance(error, ModelError):
            raise
        raise ModelError(
            f"a process of the training ended ({text.splitlines()[0][:200]}). Run the same command again to resume "
            "from the last checkpoint"
        ) from error
