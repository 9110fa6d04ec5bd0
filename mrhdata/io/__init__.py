"""Reading and writing of files: a module per family of formats, conversion to OME-Zarr, inspection, comparison."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
