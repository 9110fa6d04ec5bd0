"""Registry of networks by name."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mrhdata.errors import ModelError
from mrhdata.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

#: Name -> module, class, and settings implied by the name.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mrhnet": ("mrhnet", "MRHNet", {}),
    "tissue2d": ("tissue2d", "Tissue2D", {}),
    **{f"tissue2d_{v}": ("tissue2d", "Tissue2D", {"variant": v}) for v in ("0_0", "1_0", "2_0", "3_0", "4_0")},
    "fcn3d": ("fcn3d", "FCN3D", {"variant": ""}),
    "fcn3d_aniso": ("fcn3d", "FCN3D", {"variant": "_aniso"}),
    "unet2d": ("unet", "UNet", {"ndim": 2}),
    "unet3d": ("unet", "UNet", {"ndim": 3}),
    "half_unet3d": ("half_unet", "HalfUNet", {}),
    "pssr": ("pssr", "PSSR", {}),
    "restorer": ("restorer", "LowResSR", {}),
    "cells3d": ("cells3d", "CellNet3D", {}),
    "cells3d_second": ("cells3d", "VerificationNet", {}),
    "ensemble": ("ensemble", "Ensemble", {}),
}
#: Names used in papers and slides.
ALIASES = {f"model_{v}": f"tissue2d_{v}" for v in ("0_0", "1_0", "2_0", "3_0", "4_0")}


def create(name: str, *, seed: int = 0, **config: Any) -> nn.Module:
    """Create a network with random weights.

    Parameters
    ----------
    name : str
        Name of the network, one of :func:`networks`.
    seed : int
        Random seed of the weights.
    **config
        Settings of the network.

    Returns
    -------
    model : torch.nn.Module
        Network with ``model.spec`` set.

    Raises
    ------
    ModelError
        If the name or a setting is unknown.

    Examples
    --------
    >>> model = create("mrhnet", in_channels=67, loop_blocks=4)
    >>> sum(p.numel() for p in model.parameters())
    482369
    """
    import torch

    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise ModelError(f"name must be a network, one of {', '.join(NETWORKS)}; got {name!r}")
    module_name, class_name, implied = NETWORKS[name]
    module = importlib.import_module(f"mrhdata.models.{module_name}")
    network = getattr(module, class_name)
    # The settings of published variants are in their module.
    settings = dict(module.VARIANTS[implied["variant"]]) if "variant" in implied else dict(implied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = network(**(settings | config))
        except ModelError:
            raise
        except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{name} does not accept the settings {str(config)[:200]} ({reason})") from error
    model.spec = ModelSpec(name=name, config=dict(config))
    return model


def copy(model: nn.Module, **config: Any) -> nn.Module:
    """Return an independent copy of a network in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Network from :func:`create`; it is not changed.
    **config
        Settings to change, which must not change the shapes of the weights.

    Returns
    -------
    model : torch.nn.Module
        Network with the same weights, and the same ``spec`` except for these settings.

    Raises
    ------
    ModelError
        If a setting is unknown.

    Examples
    --------
    >>> whole = copy(create("fcn3d"), border="replicate")
    >>> whole.spec.config
    {'border': 'replicate'}
    """
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    config = spec.config | config
    duplicate = create(spec.name, **config)
    duplicate.load_state_dict(model.state_dict())
    duplicate.spec = replace(spec, config=config)  # type: ignore[assignment]
    return duplicate.eval()


def networks() -> tuple[str, ...]:
    """Return the names that :func:`create` accepts.

    Examples
    --------
    >>> "mrhnet" in networks()
    True
    """
    return tuple(NETWORKS)
