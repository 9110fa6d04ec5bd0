"""Workers of a Dask cluster: each process on a machine gets a number, by which it takes a GPU of its own."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

#: Variable with the number of a process on its machine, which torchrun sets too.
LOCAL_RANK = "LOCAL_RANK"


def number_workers(client: Any) -> None:
    """Set the variable ``LOCAL_RANK`` in each worker process of a cluster.

    The workers of a machine that see the same GPUs get 0, 1, ... Workers to which the cluster gave different GPUs, as
    dask-cuda does in ``CUDA_VISIBLE_DEVICES``, all get 0. Workers in threads of this process keep its number.
    """
    numbers = _numbers(client.run(_identify, on_error="ignore"))
    client.run(_set_number, numbers, on_error="ignore")


def _numbers(identities: Mapping[str, tuple[str, str, int]]) -> dict[str, int]:
    """Return the numbers of workers by their addresses.

    Examples
    --------
    >>> _numbers({"tcp://a:1": ("a", "", 7), "tcp://a:2": ("a", "", 8), "tcp://b:1": ("b", "", 9)})
    {'tcp://a:1': 0, 'tcp://a:2': 1, 'tcp://b:1': 0}
    """
    counts: dict[tuple[str, str], int] = defaultdict(int)
    numbers = {}
    for address, (host, devices, process) in sorted(identities.items()):
        if (host, process) != (socket.gethostname(), os.getpid()):
            numbers[address] = counts[host, devices]
            counts[host, devices] += 1
    return numbers


def _identify() -> tuple[str, str, int]:
    """Return the machine, the visible GPUs and the process of a worker."""
    return socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid()


def _set_number(numbers: Mapping[str, int], dask_worker: Any) -> None:
    if dask_worker.address in numbers:
        os.environ[LOCAL_RANK] = str(numbers[dask_worker.address])
