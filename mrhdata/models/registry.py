"""Networks by name."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mrhdata.errors import ModelError
from mrhdata.models.spec import Spec

if TYPE_CHECKING:
    from torch import nn

#: Name -> module, class, and settings that the name stands for.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mrhnet": ("mrhnet", "MRHNet", {}),
    "tissue2d": ("tissue2d", "Tissue2D", {}),
    **{f"tissue2d_{v}": ("tissue2d", "Tissue2D", {"variant": v}) for v in ("0_0", "1_0", "2_0", "3_0", "4_0")},
    "fcn3d": ("fcn3d", "FCN3D", {"variant": ""}),
    "fcn3d_aniso": ("fcn3d", "FCN3D", {"variant": "_aniso"}),
    "unet2d": ("unet", "UNet", {"ndim": 2}),
    "unet3d": ("unet", "UNet", {"ndim": 3}),
    "pssr": ("pssr", "PSSR", {}),
    "restorer": ("restorer", "Restorer", {}),
    "cells3d": ("cells3d", "Cells3D", {}),
    "cells3d_second": ("cells3d", "Discriminator", {}),
    "ensemble": ("ensemble", "Ensemble", {}),
}
#: Names that papers and slides use.
ALIASES = {f"model_{v}": f"tissue2d_{v}" for v in ("0_0", "1_0", "2_0", "3_0", "4_0")}


def create(name: str, *, seed: int = 0, **config: Any) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    name : str
        One of :func:`networks`.
    seed : int
        Of the initial weights.
    **config
        The network's own settings.

    Returns
    -------
    model : torch.nn.Module
        With ``model.spec`` set.

    Raises
    ------
    ModelError
        The name or a setting is unknown.

    Examples
    --------
    >>> model = create("mrhnet", in_channels=67, blocks=4)
    >>> sum(p.numel() for p in model.parameters())
    482369
    """
    import torch

    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise ModelError(f"there is no network called {name!r}; there are {', '.join(NETWORKS)}")
    home, kind, implied = NETWORKS[name]
    module = importlib.import_module(f"mrhdata.models.{home}")
    network = getattr(module, kind)
    # A published variant is a row of its module.
    settings = dict(module.VARIANTS[implied["variant"]]) if "variant" in implied else dict(implied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = network(**(settings | config))
        except TypeError as error:
            raise ModelError(f"{name} has no such settings as {config} ({error})") from error
    model.spec = Spec(name=name, config=dict(config))
    return model


def copy(model: nn.Module, **config: Any) -> nn.Module:
    """Make a network of the same weights that shares nothing, ready to be used.

    Parameters
    ----------
    model : torch.nn.Module
        From :func:`create`; it is not changed.
    **config
        Settings that differ, of those that leave the weights as they are.

    Returns
    -------
    model : torch.nn.Module
        With the same ``spec`` but for the settings.

    Raises
    ------
    ModelError
        The network has no such settings.

    Examples
    --------
    >>> whole = copy(create("fcn3d"), border="replicate")
    >>> whole.spec.config
    {'border': 'replicate'}
    """
    spec: Spec = model.spec  # type: ignore[assignment]
    config = spec.config | config
    made = create(spec.name, **config)
    made.load_state_dict(model.state_dict())
    made.spec = replace(spec, config=config)  # type: ignore[assignment]
    return made.eval()


def networks() -> tuple[str, ...]:
    """Names that :func:`create` knows.

    Examples
    --------
    >>> "mrhnet" in networks()
    True
    """
    return tuple(NETWORKS)
