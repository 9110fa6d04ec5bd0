"""mrhdata: patches, networks, maps and scores for brain volumes of any format and size.

The functions that users type and the namespaces behind them, listed in ``__init__.pyi``. Each is loaded when it is
first used; importing the package only registers the ``.mrh`` accessor of volumes.
"""

import lazy_loader

from mrhdata import errors  # noqa: F401  (listed in the stub)
from mrhdata.volume import accessor

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

accessor.register()
