"""mrhdata: brain volumes as training sets, maps and honest scores.

The public names, in the order in which data flow. They load what they need when they are touched;
importing the package only registers the ``.mrh`` accessor of volumes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mrhdata import errors, volume

if TYPE_CHECKING:
    from mrhdata import phantom
    from mrhdata.conversion import convert
    from mrhdata.formats import read, write
    from mrhdata.patching import patches

__version__ = "0.1.0"

#: Name -> module that defines it; a module stands for itself.
_HOME = {
    "read": "formats",
    "write": "formats",
    "convert": "conversion",
    "phantom": "phantom",
    "patches": "patching",
}

__all__ = [
    "__version__",
    "convert",
    "errors",
    "patches",
    "phantom",
    "read",
    "volume",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mrhdata' has no attribute {name!r}")
    module = importlib.import_module(f"mrhdata.{_HOME[name]}")
    return module if _HOME[name] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
