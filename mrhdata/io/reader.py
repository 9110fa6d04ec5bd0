"""Interface of the modules that read files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import xarray as xr


@runtime_checkable
class Reader(Protocol):
    """A module that reads one family of formats.

    Attributes
    ----------
    OPTIONS : tuple of str
        Options of :func:`mrhdata.read` that `read` accepts. :func:`mrhdata.read` applies all others to the volume.

    A module of a format whose files may hold several images also has ``contents(path)``, which returns a line for each
    that begins with the option that chooses it.
    """

    OPTIONS: tuple[str, ...]

    def read(self, path: Path, **options: Any) -> xr.DataArray:
        """Read a volume, lazily if the format allows it.

        Parameters
        ----------
        path : path
            Existing file or folder.
        **options
            Only those named in `OPTIONS`; each has a default.

        Returns
        -------
        volume : xarray.DataArray
            Made by :func:`mrhdata.volume.from_array` or :func:`mrhdata.volume.construct.place`.

        Raises
        ------
        FormatError
            The file is damaged, or holds values that are not numbers.
        """
        ...
