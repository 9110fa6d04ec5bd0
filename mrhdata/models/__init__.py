"""Networks by name, one per file; they see tensors only.

A network is a ``torch.nn.Module`` with ``ndim`` (2 or 3 spatial axes it takes) and ``spec``
(:class:`~mrhdata.models.storage.Spec`): what it is, and, after training, what it was trained on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mrhdata.errors import ModelError
from mrhdata.models.matlab import load_matlab
from mrhdata.models.storage import Spec, load, save

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create", "list", "load", "load_matlab", "save"]

#: Name -> module and class.
NETWORKS = {"mrhnet": ("mrhnet", "MRHNet"), "ensemble": ("ensemble", "Ensemble")}


def create(name: str, *, seed: int = 0, **config: Any) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    name : str
        One of :func:`list`.
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

    if name not in NETWORKS:
        raise ModelError(f"there is no network called {name!r}; there are {', '.join(NETWORKS)}")
    module, kind = NETWORKS[name]
    network = getattr(importlib.import_module(f"mrhdata.models.{module}"), kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = network(**config)
        except TypeError as error:
            raise ModelError(f"{name} has no such settings as {config} ({error})") from error
    model.spec = Spec(name=name, config=dict(config))
    return model


def list() -> tuple[str, ...]:
    """Names that :func:`create` knows.

    Examples
    --------
    >>> "mrhnet" in list()
    True
    """
    return tuple(NETWORKS)
