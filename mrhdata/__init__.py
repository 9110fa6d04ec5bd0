"""mrhdata: brain volumes as training sets, maps and honest scores.

The public names, in the order in which data flow. They load what they need when they are touched;
importing the package only sees to it that volumes have the ``.mrh`` accessor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mrhdata import accessor, errors

if TYPE_CHECKING:
    from mrhdata import choosing, models, phantom, volume
    from mrhdata.catalog import open_catalog
    from mrhdata.contrasts import sensitivity
    from mrhdata.conversion import convert
    from mrhdata.detection import detect
    from mrhdata.formats import read, write
    from mrhdata.patching import patches
    from mrhdata.prediction import predict
    from mrhdata.prepare.registration import register
    from mrhdata.prepare.resampling import resample
    from mrhdata.training import fit

__version__ = "0.1.0"

#: Name -> module that defines it; a module stands for itself.
_HOME = {
    "volume": "volume",
    "read": "formats",
    "write": "formats",
    "convert": "conversion",
    "open_catalog": "catalog",
    "register": "prepare.registration",
    "resample": "prepare.resampling",
    "phantom": "phantom",
    "choosing": "choosing",
    "patches": "patching",
    "models": "models",
    "fit": "training",
    "predict": "prediction",
    "detect": "detection",
    "sensitivity": "contrasts",
}

__all__ = [
    "__version__",
    "choosing",
    "convert",
    "detect",
    "errors",
    "fit",
    "models",
    "open_catalog",
    "patches",
    "phantom",
    "predict",
    "read",
    "register",
    "resample",
    "sensitivity",
    "volume",
    "write",
]


accessor.register()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mrhdata' has no attribute {name!r}")
    module = importlib.import_module(f"mrhdata.{_HOME[name]}")
    return module if _HOME[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
