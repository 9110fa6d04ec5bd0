"""Registration of the accessor ``.mrh`` of every DataArray, without loading xarray.

Loading xarray takes a second, and parts of mrhdata such as the help of the command line do not need it. The
accessor is registered when any module loads xarray, before or after ``import mrhdata``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.geometry import Geometry


def geometry(volume: xr.DataArray) -> Geometry:
    """Return the geometry of a volume: ``volume.mrh``."""
    from mrhdata.volume.geometry import Geometry

    return Geometry(volume)


def register() -> None:
    """Register the accessor now if xarray is loaded, otherwise as soon as it is."""
    xarray = sys.modules.get("xarray")
    if xarray is None:
        sys.meta_path.insert(0, _Finder())
    else:
        xarray.register_dataarray_accessor("mrh")(geometry)


class _Finder(MetaPathFinder):
    """Finder that removes itself at the import of xarray and wraps xarray's loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "xarray":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loader that calls another loader and then registers the accessor."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # Restore the module's own loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        register()
