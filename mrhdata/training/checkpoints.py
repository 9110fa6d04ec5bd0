"""Checkpoints of a training run: state, settings and data, from which an interrupted run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import ModelError
from mrhdata.training.settings import TrainingConfig

if TYPE_CHECKING:
    from mrhdata.patching.dataset import Patches

#: Patches in the fingerprint of a run's data.
_FINGERPRINT_PATCHES = 64
#: Settings that may differ when a run resumes, because they say where it runs and not what it computes.
_OF_THE_MACHINE = ("device", "channels_last", "compile", "profile")


def write_checkpoint(path: Path, settings: TrainingConfig, data: list[str], state: dict[str, Any]) -> None:
    """Write the state of a run atomically, with its settings and the fingerprints of its data."""
    with atomic_write(path) as draft:
        torch.save({"settings": dataclasses.asdict(settings), "data": data, **state}, draft)


def read_checkpoint(path: Path, settings: TrainingConfig, data: list[str]) -> dict[str, Any]:
    """Return the state of a run with the same settings and data, in main memory.

    Raises
    ------
    ModelError
        If the file is not a checkpoint, or belongs to another run.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        stored, digests = state["settings"], state["data"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, OSError, EOFError, TypeError) as error:
        raise ModelError(f"{path} is not a checkpoint of this network. Remove it to start again") from error
    _check_same_settings(path, stored, dataclasses.asdict(settings))
    if digests != data:
        raise ModelError(f"{path} belongs to a run on other patches. Pass another checkpoint path, or remove it")
    return dict(state)


def _check_same_settings(path: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ModelError if a checkpoint has other settings; a precision that another machine chose is named."""
    kept = [key for key in settings if key not in _OF_THE_MACHINE]
    differing = [key for key in kept if stored.get(key) != settings[key]]
    if differing == ["precision"]:
        raise ModelError(
            f"{path} was trained with precision {stored['precision']}; got {settings['precision']}, which 'auto' may "
            f"be on another machine. Pass precision={stored['precision']!r} (--precision), or remove it to start again"
        )
    if differing or set(stored) != set(settings):
        raise ModelError(f"{path} belongs to a run with {stored}. Pass another checkpoint path")


def fingerprint_patches(patches: Patches) -> str:
    """Return a fingerprint of the number of patches, their channels and the voxels of some."""
    indices = np.unique(np.linspace(0, len(patches) - 1, _FINGERPRINT_PATCHES).astype(np.int64))
    digest = hashlib.sha256(f"{len(patches)} {patches.channels}".encode())
    for array in patches.gather(indices):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
