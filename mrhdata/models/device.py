"""Device on which networks are trained and run: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``."""

from __future__ import annotations

import os

import torch

from mrhdata._runtime.workers import LOCAL_RANK
from mrhdata.errors import ParameterError


def resolve_device(device: str | None = "auto") -> torch.device:
    """Return the PyTorch device of a name.

    Parameters
    ----------
    device : str or None
        ``"auto"`` (or None) is a CUDA GPU if there is one, then Apple's GPU, then the processor. ``"cuda"`` is the GPU
        of this process: the one with its ``LOCAL_RANK`` if several processes run, otherwise the current one.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ParameterError
        If the name is unknown, or this machine or this PyTorch has no such device.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    name = "auto" if device is None else str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    present = available_devices()
    # A device without a number is one of those that are listed with it.
    if kind not in ("cpu", "cuda", "mps") or not (name in present or (not number and _first(kind) in present)):
        raise ParameterError(
            f"device must be auto or one that this machine has ({', '.join(present)}); got {device!r}. On a machine "
            "with a GPU, install a PyTorch that was built for it"
        )
    if name == "cuda":
        return torch.device("cuda", _local_rank() % torch.cuda.device_count())
    return torch.device(name)


def available_devices() -> list[str]:
    """Return the names of the devices of this machine that this PyTorch can use."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def _first(kind: str) -> str:
    return "cuda:0" if kind == "cuda" else kind


def _local_rank() -> int:
    """Return the number of this process on its machine, which torchrun and `number_workers` set."""
    return int(os.environ.get(LOCAL_RANK, torch.cuda.current_device()))
