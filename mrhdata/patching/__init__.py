"""Patches of volumes of any size: positions, samplers, tiles, order, prefetch, batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
