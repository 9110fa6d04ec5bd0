"""Networks on disk: ``model.safetensors`` and ``config.json``.

A model folder contains no code: ``config.json`` names a network of the registry, and the weights are plain numbers.
It also has the SHA-256 of the weights, since a changed weight is a number like any other.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mrhdata._runtime.arguments import check_path, described
from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import FormatError, ModelError
from mrhdata.models.cards import check_weights, digest_of, folder_of, read_json, similar_names
from mrhdata.models.registry import create
from mrhdata.models.spec import ModelSpec, spec_from, with_maximum

if TYPE_CHECKING:
    from torch import nn

#: Most model folders that an error message suggests.
_MAX_SUGGESTIONS = 3
#: Key of the SHA-256 of the weights in ``config.json``.
_CHECKSUM = "sha256"
#: Settings up to this number are not compared with the weights.
_SMALL = 64


def save(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write a network to a folder atomically; an existing folder is replaced.

    Parameters
    ----------
    model : torch.nn.Module
        Network from :func:`mrhdata.models.create`.
    folder : path
        Folder to write.

    Examples
    --------
    >>> import tempfile, mrhdata
    >>> model = mrhdata.models.create("mrhnet", in_channels=5, loop_blocks=1)
    >>> folder = tempfile.mkdtemp() + "/net"
    >>> save(model, folder)
    >>> load(folder).spec == model.spec
    True
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not hasattr(model, "state_dict"):
        raise ModelError(f"model must be a network, a torch.nn.Module; got {described(model)}. Pass the network first")
    target = Path(folder)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as draft:
        draft.mkdir()
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        try:
            save_file(state, draft / "model.safetensors")
            write_settings(model.spec, draft)  # type: ignore[arg-type]
        except (OSError, SafetensorError) as error:
            raise FormatError(
                f"{target} cannot be written ({' '.join(str(error).split())[:200]}); free disk space"
            ) from error


def write_settings(spec: ModelSpec, folder: Path) -> None:
    """Write ``config.json`` next to the weights of a network, with their SHA-256."""
    content = asdict(spec) | {_CHECKSUM: digest_of(folder)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> ModelSpec:
    """Return the specification of a model folder, after a comparison of its weights with their SHA-256.

    Raises
    ------
    ModelError
        If the settings are not those of a network, or if the weights changed.
    """
    content = read_json(folder / "config.json")
    stated = content.pop(_CHECKSUM, None) if isinstance(content, dict) else None
    if not isinstance(stated, str | None):
        raise ModelError(f"{_CHECKSUM} of a network must be text; got {str(stated)[:100]}. Save the model again")
    check_weights(folder, stated)
    return spec_from(content)


def load(folder: str | os.PathLike[str], *, maximum: float | None = None) -> nn.Module:
    """Read a network from a folder, or by the name of a shipped network (:func:`mrhdata.models.list`).

    The shapes of the weights are compared with those of the network before memory is allocated for either.

    Parameters
    ----------
    folder : path or str
        Model folder, or name of a shipped network.
    maximum : float, optional
        Highest value of all channels of the scan, for the published MRH-Nets, whose files do not state what their
        inputs were divided by.

    Returns
    -------
    model : torch.nn.Module
        Network in evaluation mode.

    Raises
    ------
    ModelError
        If a file is missing or damaged, if the weights fit neither the network nor their checksum, or if `maximum` is
        given for a network whose input scale is known.

    Examples
    --------
    >>> load("mrhnet-af-5", maximum=30_000).spec.inputs.factor[0]
    30000.0
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_path("folder", folder)
    path = folder_of(os.fspath(folder))
    try:
        spec = read_settings(path)
        _check_shapes(path, spec)
        state = load_file(path / "model.safetensors")
    except (FileNotFoundError, NotADirectoryError) as error:
        subfolders = [config.parent.as_posix() for config in sorted(path.glob("*/config.json"))]
        similar = subfolders or similar_names(os.fspath(folder))
        hint = f"; did you mean {' or '.join(similar[:_MAX_SUGGESTIONS])}?" if similar else ""
        raise ModelError(f"{path} is not a model folder: {error.filename or error} is missing{hint}") from error
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, ModelError) and str(path) in text:
            raise
        raise ModelError(f"{path} is damaged ({text[:300]}); save the model again") from error
    model = create(spec.name, **spec.config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(_unfit(path, spec)) from error
    model.spec = spec if maximum is None else with_maximum(spec, maximum)  # type: ignore[assignment]
    return model.eval()


def _check_shapes(path: Path, spec: ModelSpec) -> None:
    """Raise `ModelError` unless the header of the weights has the tensors of the network."""
    import torch
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    # A setting counts layers, which have tensors, or channels, which are lengths of tensors, or it is small.
    limit = max([_SMALL, len(shapes), *(max(shape) for shape in shapes.values() if shape and 0 not in shape)])
    if any(type(value) is int and abs(value) > limit for value in spec.config.values()):
        raise ModelError(_unfit(path, spec))
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in create(spec.name, **spec.config).state_dict().items()}
    if shapes != expected:
        raise ModelError(_unfit(path, spec))


def _unfit(path: Path, spec: ModelSpec) -> str:
    return f"{path}: the weights do not fit {spec.name} with {str(spec.config)[:200]}; save the model again"
