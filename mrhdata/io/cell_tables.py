"""Tables of cells on disk: Parquet, CSV, cellfinder's XML and napari's points.

A *table of cells* is a pandas DataFrame with a row per cell. ``z``, ``y``, ``x`` are its voxel in the volume
that it was found in, not rounded; ``X``, ``Y``, ``Z`` its world point, RAS+ mm. Further columns, if known,
are ``score`` (0 to 1), ``voxels`` (number of voxels), ``intensity_<channel>``, ``region``, and ``type``: 2 for
a cell and 1 for a rejected candidate, as in cellfinder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrhdata._runtime.atomic import atomic_write, check_target
from mrhdata.errors import DataError, FormatError, GridError, MrhdataError, ParameterError
from mrhdata.io.cell_counter import CELLFINDER, FIJI, read_markers
from mrhdata.io.cell_counter import ROOT as _XML_ROOT
from mrhdata.io.cell_counter import first_line as _first_line

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("mrhdata")

VOXEL = ["z", "y", "x"]
WORLD = ["X", "Y", "Z"]
#: Values of the column ``type``.
NO_CELL, CELL = 1, 2

_NAPARI = ["axis-0", "axis-1", "axis-2"]
#: Voxels by which the world points of a table may differ from those of its voxels.
_MAX_DISTANCE_VOXELS = 0.5


def read_points(
    path: str | os.PathLike[str], like: xr.DataArray | None = None, *, cell_counter: str | None = None
) -> pd.DataFrame:
    """Read a table of cells.

    Parameters
    ----------
    path : path
        Path with the ending of a format: ``.parquet``; ``.csv`` with the columns of a table, or as napari saves
        points (``index, axis-0, axis-1, axis-2`` as z, y, x; further columns are kept); ``.xml`` of cellfinder, whose
        types become the column ``type``, and of Fiji's Cell Counter, whose types are the user's own and become
        ``marker_type``. Their x, y, z are whole voxels.
    like : volume, optional
        Volume that the cells were found in. Its grid adds ``X, Y, Z`` if the file has only voxels, and voxels
        if it has only ``X, Y, Z``.
    cell_counter : {"fiji", "cellfinder"}, optional
        Program that wrote an ``.xml`` file. Fiji counts planes from 1, cellfinder from 0. By default this follows from
        what only one of them writes: Fiji the image's name, its calibration and names of types.

    Returns
    -------
    table : pandas.DataFrame
        Table with ``z, y, x`` and ``X, Y, Z`` first, if known, then the other columns of the file.

    Raises
    ------
    FormatError
        The file is missing, damaged, not a table of cells, or holds a DOCTYPE: entities are never expanded. Or it is
        an ``.xml`` file that does not show which program wrote it; pass `cell_counter`.
    GridError
        Planes of Fiji lie beyond those of `like`, or voxels and world points of the file do not agree on its grid.

    Examples
    --------
    >>> import tempfile
    >>> from mrhdata.volume.construct import from_array
    >>> volume = from_array(np.zeros((9, 9, 9)), spacing=(0.005, 0.002, 0.002))
    >>> file = Path(tempfile.mkdtemp()) / "cells.xml"
    >>> write_points(pd.DataFrame({"z": [2.2], "y": [3.0], "x": [4.0]}), file)
    >>> read_points(file, like=volume)
         z    y    x      X      Y     Z  type
    0  2.0  3.0  4.0  0.008  0.006  0.01     2
    """
    path = Path(path)
    if cell_counter not in (None, FIJI, CELLFINDER):
        raise ParameterError(f"cell_counter must be {FIJI!r} or {CELLFINDER!r}; got {cell_counter!r}")
    read = _format_of(path).read
    if not path.is_file():
        raise FormatError(f"{path} does not exist; check the path")
    table = read_markers(path, cell_counter, like) if read is read_markers else read(path)
    table = with_world_points(_check_points(table, str(path), FormatError), like)
    if like is not None:
        _warn_of_points_outside(table, like, path)
    return table


def _warn_of_points_outside(table: pd.DataFrame, like: xr.DataArray, path: Path) -> None:
    """Warn if most points lie outside the volume, as points in other units do."""
    index = table[VOXEL].to_numpy()
    outside = int(((index < -0.5) | (index > np.array(like.mrh.grid.shape) - 0.5)).any(axis=1).sum())
    if 2 * outside > len(table):
        log.warning(
            "%s: %d of %d points lie outside the volume; z, y, x must be its voxels and X, Y, Z millimetres",
            path,
            outside,
            len(table),
        )


def write_points(
    table: pd.DataFrame, path: str | os.PathLike[str], like: xr.DataArray | None = None, *, overwrite: bool = False
) -> None:
    """Write a table of cells; the file appears when it is complete.

    Parameters
    ----------
    table : pandas.DataFrame
        Table with ``z, y, x`` or ``X, Y, Z``, or both.
    path : path
        Path with the ending of a format: ``.parquet`` and ``.csv`` keep every column; ``.napari.csv`` opens as
        points in napari, with the other columns at the end; ``.xml``, for cellfinder, keeps only the nearest
        voxels and ``type`` (2 if the table has no such column), ordered by type.
    like : volume, optional
        Volume that the cells were found in, as for :func:`read_points`.
    overwrite : bool
        Whether to replace an existing file.

    Raises
    ------
    DataError
        The table has no points, or some that are not finite.
    FormatError
        The file exists, or its ending is unknown.
    GridError
        Voxels and world points do not agree, as for :func:`read_points`.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "cells.napari.csv"
    >>> write_points(pd.DataFrame({"z": [2.5], "y": [3.0], "x": [4.0], "score": [0.9]}), file)
    >>> print(file.read_text().strip())
    index,axis-0,axis-1,axis-2,score
    0,2.5,3.0,4.0,0.9
    """
    path = Path(path)
    write = _format_of(path).write
    check_target(path, overwrite)
    complete = with_world_points(_check_points(table, "the table", DataError), like)
    with atomic_write(path, overwrite=overwrite) as draft:
        write(complete, draft)


def with_world_points(table: pd.DataFrame, like: xr.DataArray | None) -> pd.DataFrame:
    """Return the table with both voxels of `like` and world points; without `like` it is unchanged.

    Raises
    ------
    GridError
        The table has both, and they differ by half a voxel or more.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> volume = from_array(np.zeros((2, 2, 2)), spacing=(1, 0.5, 0.5))
    >>> with_world_points(pd.DataFrame({"X": [0.5], "Y": [0.0], "Z": [1.0]}), volume)[["z", "y", "x"]].values.tolist()
    [[1.0, 0.0, 1.0]]
    """
    if like is not None:
        grid = like.mrh.grid
        if not set(VOXEL) <= set(table.columns):
            table = _set_columns(table, VOXEL, grid.index(table[WORLD]))
        world = grid.world(table[VOXEL])
        if set(WORLD) <= set(table.columns):
            distance = float(np.linalg.norm(table[WORLD].to_numpy() - world, axis=1).max(initial=0.0))
            if distance >= _MAX_DISTANCE_VOXELS * grid.spacing.min():
                raise GridError(
                    f"voxels and world points differ by up to {distance:.4g} mm, with voxels of "
                    f"{grid.spacing.min():.4g} mm; pass the volume that the cells were found in, or no volume"
                )
        else:
            table = _set_columns(table, WORLD, world)
    first = [name for name in (*VOXEL, *WORLD) if name in table]
    return table[[*first, *(name for name in table if name not in first)]]


def _set_columns(table: pd.DataFrame, names: list[str], values: NDArray[np.float64]) -> pd.DataFrame:
    return table.assign(**{name: values[:, i] for i, name in enumerate(names)})


def _check_points(table: pd.DataFrame, name: str, error: type[MrhdataError]) -> pd.DataFrame:
    """Return the table with points as finite floats and rows numbered from 0."""
    present = [names for names in (VOXEL, WORLD) if set(names) <= set(table.columns)]
    if not present:
        raise error(
            f"{name} must have the columns z, y, x (voxels) or X, Y, Z (mm); got {[str(c) for c in table.columns]}"
        )
    table = table.reset_index(drop=True)
    for column in (name for names in present for name in names):
        numbers = np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if bad.size:
            first = table[column].iloc[bad[:1]].tolist()[0]
            raise error(
                f"{name}: {column} must be finite; got {first!r} in row {bad[0]}, and {bad.size} such values in "
                f"{len(table)} rows. Remove these rows"
            )
        table = table.assign(**{column: numbers})
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise _no_parquet(path) from error
    except Exception as error:  # Damaged metadata raise whatever pyarrow meets first, such as KeyError.
        raise FormatError(f"{path} is not a complete Parquet file ({_first_line(error)}); write it again") from error


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    try:
        table.to_parquet(path, engine="pyarrow", index=False)
    except ImportError as error:
        raise _no_parquet(path) from error


def _no_parquet(path: Path) -> FormatError:
    return FormatError(f"{path.name}: Parquet needs pyarrow, which is not installed; use .csv or pip install pyarrow")


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, low_memory=False)
    except ValueError as error:
        raise FormatError(
            f"{path} is not a table with one header line ({_first_line(error)}); write it again"
        ) from error
    # Other programs write row numbers under such names.
    table = table.drop(columns=[name for name in table if str(name).startswith("Unnamed:")])
    axes = sorted(str(name) for name in table if str(name).startswith("axis-"))
    if not axes:
        return table
    if axes != _NAPARI:
        raise FormatError(f"{path} must have the axes {_NAPARI}; got {axes}. Save the points of one 3D layer")
    return table.drop(columns="index", errors="ignore").rename(columns=dict(zip(_NAPARI, VOXEL, strict=True)))


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def _write_napari(table: pd.DataFrame, path: Path) -> None:
    _require_voxels(table)
    renamed = table.rename(columns=dict(zip(VOXEL, _NAPARI, strict=True)))
    renamed.to_csv(path, index=True, index_label="index")


def _write_xml(table: pd.DataFrame, path: Path) -> None:
    _require_voxels(table)
    # Halves are rounded up, as in all of mrhdata; adding 0 turns -0 into 0.
    voxels = np.floor(table[VOXEL].to_numpy() + 0.5) + 0.0
    types = _types(table)
    with path.open("w", encoding="utf-8") as file:
        file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<{_XML_ROOT}>\n  <Image_Properties>\n')
        file.write("    <Image_Filename>placeholder.tif</Image_Filename>\n  </Image_Properties>\n")
        file.write("  <Marker_Data>\n    <Current_Type>1</Current_Type>\n")
        for value in np.unique(types):
            file.write(f"    <Marker_Type>\n      <Type>{value}</Type>\n")
            file.writelines(
                f"      <Marker>\n        <MarkerX>{x:.0f}</MarkerX>\n        <MarkerY>{y:.0f}</MarkerY>\n"
                f"        <MarkerZ>{z:.0f}</MarkerZ>\n      </Marker>\n"
                for z, y, x in voxels[types == value].tolist()
            )
            file.write("    </Marker_Type>\n")
        file.write(f"  </Marker_Data>\n</{_XML_ROOT}>\n")


def _types(table: pd.DataFrame) -> NDArray[np.int64]:
    if "type" not in table:
        return np.full(len(table), CELL)
    values = np.asarray(pd.to_numeric(table["type"], errors="coerce"), dtype=np.float64)
    if not (values == np.floor(values)).all():
        raise DataError(
            f"the column type must contain whole numbers: {CELL} for a cell, {NO_CELL} for a rejected candidate"
        )
    return values.astype(np.int64)


def _require_voxels(table: pd.DataFrame) -> None:
    if not set(VOXEL) <= set(table.columns):
        raise DataError("the table has only world points, but this format stores voxels; pass their volume as like=")


class _Format(NamedTuple):
    read: Callable[[Path], pd.DataFrame]
    write: Callable[[pd.DataFrame, Path], None]


#: Ending -> format. Longer endings come first.
_FORMATS = {
    ".parquet": _Format(_read_parquet, _write_parquet),
    ".napari.csv": _Format(_read_csv, _write_napari),
    ".csv": _Format(_read_csv, _write_csv),
    ".xml": _Format(read_markers, _write_xml),
}


def _format_of(path: Path) -> _Format:
    for ending, file_format in _FORMATS.items():
        if path.name.lower().endswith(ending):
            return file_format
    raise FormatError(f"{path.name} has no known ending for points; known endings are {', '.join(_FORMATS)}")
