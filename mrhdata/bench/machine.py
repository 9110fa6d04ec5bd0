"""Description of the machine and the installation, with what will be slow here and why."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from mrhdata.models.precision import has_bfloat16

#: Libraries whose versions matter for files and speed.
_LIBRARIES = ("numpy", "xarray", "dask", "zarr", "zarrs", "nibabel", "SimpleITK", "torch")
#: Optional part of the installation -> a distribution that it brings.
_OPTIONAL = {
    "bench": "scikit-image",
    "diffusion": "dipy",
    "exchange": "bioimageio.spec",
    "matlab": "mat-io",
    "s3": "s3fs",
}
#: Bytes that are written to measure the disk, and MB/s below which it limits the loading of patches.
_WRITTEN, _SLOW_DISK = 64_000_000, 200
#: GB of memory below which the default budgets do not fit.
_LITTLE_MEMORY = 6


def describe_machine(folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Describe the installation and the machine.

    Parameters
    ----------
    folder : path, optional
        Folder whose disk is measured, by writing 64 MB; that of temporary files by default.

    Returns
    -------
    description : dict
        Plain values, ready for JSON: versions, optional parts, processor, memory, GPU, disk; ``notes`` are sentences on
        what is slow here or missing, each with its remedy.

    Examples
    --------
    >>> description = describe_machine()
    >>> description["processor"]["cores"] >= 1, isinstance(description["notes"], list)
    (True, True)
    """
    import torch

    place = Path(tempfile.gettempdir() if folder is None else folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    description: dict[str, Any] = {
        "mrhdata": importlib.metadata.version("mrhdata"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "optional": {part: "installed" if _version(name) else "not installed" for part, name in _OPTIONAL.items()},
        "processor": {
            "cores": cores,
            "torch threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "bfloat16": has_bfloat16("cpu"),
        },
        "memory GB": {key: round(value / 1e9, 1) for key, value in _memory_bytes().items()},
        "GPU": _gpus(),
        "disk": {"folder": str(place), "free GB": round(shutil.disk_usage(place).free / 1e9, 1), **_disk_speed(place)},
    }
    return description | {"notes": _notes(description)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> dict[str, int]:
    """Return total and available memory, as far as the system states them, and the limit of a container."""
    values: dict[str, int] = {}
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        names = {"total": "MemTotal", "available": "MemAvailable"}
        values = {key: int(lines[name].split()[0]) * 1024 for key, name in names.items()}
    except (OSError, ValueError, LookupError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            values = {"total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    # Absent without a container, and a word in one without a limit.
    with contextlib.suppress(OSError, ValueError):
        values["limit"] = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    return values


def _gpus() -> list[str]:
    import torch

    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        return [f"{torch.cuda.get_device_name(i)}, {size / 1e9:.0f} GB" for i, size in enumerate(sizes)]
    return ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []


def _disk_speed(folder: Path) -> dict[str, int]:
    """Return the speed in MB/s at which a file is written to the disk, and not only to its cache."""
    block = os.urandom(_WRITTEN // 16)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(16):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - start
    return {"written MB/s": round(_WRITTEN / 1e6 / seconds)}


def _notes(description: dict[str, Any]) -> list[str]:
    """Return sentences on what is slow or missing."""
    processor, memory, notes = description["processor"], description["memory GB"], []
    if not description["GPU"]:
        notes.append(
            "no GPU: trainings take minutes to hours on the processor; mrhdata finds a GPU by itself where PyTorch does"
        )
        if not processor["bfloat16"]:
            notes.append(
                "the processor has no bfloat16 instructions: trainings run in float32, at about half the speed of "
                "newer processors"
            )
    if processor["torch threads"] < processor["cores"]:
        notes.append(
            f"PyTorch uses {processor['torch threads']} of {processor['cores']} cores: set OMP_NUM_THREADS="
            f"{processor['cores']} to use all"
        )
    usable = min(memory.values(), default=None)
    if usable is not None and usable < _LITTLE_MEMORY:
        notes.append(f"{usable:g} GB of memory are free: pass --memory '1 GB' to predict, segment and detect")
    disk = description["disk"]
    if disk["written MB/s"] < _SLOW_DISK:
        notes.append(
            f"{disk['folder']} is written at {disk['written MB/s']} MB/s: keep volumes for training on a faster disk"
        )
    missing = [part for part, version in description["optional"].items() if version == "not installed"]
    if missing:
        notes.append(f"optional parts are missing: pip install 'mrhdata[{','.join(missing)}]' if you need them")
    return notes
