"""The OME-Zarr store: metadata, pyramid, chunks, and the writer that fills it block by block."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
