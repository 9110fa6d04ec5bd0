"""Networks by name, one per file; they see tensors only.

A network is a ``torch.nn.Module`` with ``ndim`` (2 or 3 spatial axes it takes) and ``spec``
(:class:`~mrhdata.models.spec.Spec`): what it is, and, after training, what it was trained on.
"""

from __future__ import annotations

from mrhdata.models.cards import Card, Cards, list
from mrhdata.models.matlab import load_matlab
from mrhdata.models.registry import copy, create, networks
from mrhdata.models.storage import load, save

__all__ = ["Card", "Cards", "copy", "create", "list", "load", "load_matlab", "networks", "save"]
