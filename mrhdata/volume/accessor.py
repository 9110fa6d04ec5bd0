"""``.mrh`` on every DataArray, from the moment that xarray is loaded, by whomever.

Loading xarray takes a second. What works without volumes, such as the help of the command line, does not
load it; who loads it after (or before) ``import mrhdata`` finds the accessor there.
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
    """Where the voxels of a volume are: what ``volume.mrh`` is."""
    from mrhdata.volume.geometry import Geometry

    return Geometry(volume)


def register() -> None:
    """Register the accessor now where xarray is loaded, else as soon as it is."""
    xarray = sys.modules.get("xarray")
    if xarray is None:
        sys.meta_path.insert(0, _Finder())
    else:
        xarray.register_dataarray_accessor("mrh")(geometry)


class _Finder(MetaPathFinder):
    """Finds nothing by itself; asked for xarray, it steps aside and has the loader tell when it is done."""

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
    """Loads as another does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # The module is as it would be without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        register()
