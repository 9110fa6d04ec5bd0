"""Recipes: the sampling, the network and the training settings of published systems and of improved versions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
