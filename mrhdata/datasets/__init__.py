"""Sources of data: catalogues, folders of subjects, published volumes, splits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
