"""Networks by name, one per file; they take tensors only.

A network is a ``torch.nn.Module`` with attributes ``ndim`` (2 or 3 spatial axes) and ``spec``
(:class:`~mrhdata.models.spec.ModelSpec`): its name and settings, and, after training, a description of its training
data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
