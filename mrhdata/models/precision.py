"""Type in which a network computes: ``"float32"``, ``"bfloat16"``, or ``"auto"``, the faster one on this machine.

Without instructions for bfloat16 a processor computes convolutions three to sixty times more slowly in bfloat16 than in
float32 (``benchmarks/results/precision.md``); with them it is up to twice as fast. ``"auto"`` is found out once
per process and kind of device.
"""

from __future__ import annotations

import logging
import time
from functools import cache

import torch

from mrhdata._runtime.arguments import check_choice

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
#: Types of autocast; float32 needs none.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger("mrhdata")

#: Capabilities of processors, as :func:`torch.cpu.get_capabilities` names them: x86 first, then ARM.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """Return the type in which a network computes: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16", "float16"}
        Type, or ``"auto"`` for the faster one on the device.
    device : str
        PyTorch device.

    Returns
    -------
    precision : {"float32", "bfloat16", "float16"}
        The passed type, or the one that ``"auto"`` stands for. A warning is logged if bfloat16 is passed for a
        processor without instructions for it.

    Raises
    ------
    ParameterError
        If `precision` is not one of these.

    Examples
    --------
    >>> resolve_precision("float32"), resolve_precision("auto") in ("float32", "bfloat16")
    ('float32', True)
    """
    check_choice("precision", precision, PRECISIONS)
    kind = torch.device(device).type
    if precision == "auto":
        return _faster(kind)
    if precision == "bfloat16" and kind == "cpu":
        _warn_of_slow_bfloat16()
    return precision


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the context in which a network computes with a type that :func:`resolve_precision` returned."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device, dtype or torch.bfloat16, dtype is not None)


@cache
def _faster(kind: str) -> str:
    """Return the faster type on a kind of device, and log it once."""
    able = has_bfloat16(kind)
    precision = "bfloat16" if able else "float32"
    unit, some = "processor" if kind == "cpu" else "device", "" if able else "no "
    log.info("precision is %s: this %s has %sbfloat16 instructions", precision, unit, some)
    return precision


@cache
def _warn_of_slow_bfloat16() -> None:
    if not has_bfloat16("cpu"):
        log.warning("precision is bfloat16, for which this processor has no instructions; 'auto' is faster")


def has_bfloat16(kind: str) -> bool:
    """Return whether a kind of device, ``"cpu"`` or ``"cuda"``, has instructions for bfloat16."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.cpu, "get_capabilities"):
        return _seconds(torch.bfloat16) < _seconds(torch.float32)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


def _seconds(dtype: torch.dtype) -> float:
    """Return the shortest time of a small convolution, for a PyTorch that does not list capabilities."""
    layer = torch.nn.Conv3d(16, 16, 3).to(dtype)
    x, times = torch.zeros(1, 16, 12, 12, 12, dtype=dtype), []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - start)
    return min(times)
