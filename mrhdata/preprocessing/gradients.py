"""Gradient tables of diffusion scans: b-values, directions and shells; read from Bruker, FSL and MRtrix files.

Directions are world directions (X, Y, Z, RAS+) and do not depend on the axes of an array: a table stays valid when
a volume is permuted, sliced or reversed. It changes only if the brain itself is turned (`Gradients.turned`).
b is in ms/um^2, a thousandth of the usual s/mm^2, so that diffusivities are in um^2/ms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.volume.construct import SPATIAL

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.volume.grid import Floats

#: Largest b (ms/um^2) of images that count as unweighted; imaging gradients by themselves reach about 0.05.
B0 = 0.1

#: Relative increase of b that begins a new shell.
_GAP = 0.1


@dataclass(frozen=True)
class Shell:
    """Images of nearly equal b: their mean b (ms/um^2) and their rows in the table."""

    b: float
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the name, such as ``b0`` or ``b2000`` (s/mm^2, to the nearest 100)."""
        return f"b{round(10 * self.b) * 100}"


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradient table with one row for each image of a diffusion scan.

    Parameters
    ----------
    b : (n,) array-like
        Diffusion weighting, ms/um^2.
    directions : (n, 3) array-like
        World X, Y, Z (RAS+) of any length; length 0 is allowed only if b is at most `B0`.

    Raises
    ------
    DataError
        The shapes differ, a number is negative or not finite, or a weighted image has no direction.

    Examples
    --------
    >>> table = Gradients([0, 1, 1, 2.02], [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]])
    >>> [(shell.name, shell.rows) for shell in table.shells]
    [('b0', (0,)), ('b1000', (1, 2)), ('b2000', (3,))]
    >>> table.directions[2].tolist()
    [0.0, 1.0, 0.0]
    """

    b: Floats
    directions: Floats

    def __post_init__(self) -> None:
        b, directions = np.array(self.b, dtype=np.float64), np.array(self.directions, dtype=np.float64)
        if b.ndim != 1 or directions.shape != (len(b), 3):
            raise DataError(f"b and directions must have shapes (n,) and (n, 3); got {b.shape} and {directions.shape}")
        lengths = np.linalg.norm(directions, axis=1)
        if not (np.isfinite(b).all() and np.isfinite(lengths).all() and (b >= 0).all()):
            raise DataError("b must be finite and at least 0, and directions must be finite; correct the table")
        missing = np.flatnonzero((lengths == 0) & (b > B0))
        if missing.size:
            raise DataError(f"image {missing[0]} has b = {b[missing[0]]:g} ms/um^2 but no direction; correct the table")
        directions /= np.where(lengths == 0, 1, lengths)[:, None]
        for name, values in (("b", b), ("directions", directions)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.b)

    def __getitem__(self, rows: Any) -> Gradients:
        """Return the table of ``dwi.isel(c=rows)``."""
        return Gradients(self.b[rows], self.directions[rows])

    @property
    def shells(self) -> tuple[Shell, ...]:
        """Return groups of images of nearly equal b, lowest first; all unweighted images form one shell."""
        order = np.argsort(self.b, kind="stable")
        b = np.where(self.b > B0, self.b, 0)[order]
        ends = np.flatnonzero(b[1:] > (1 + _GAP) * b[:-1]) + 1
        return tuple(Shell(float(self.b[rows].mean()), tuple(sorted(rows.tolist()))) for rows in np.split(order, ends))

    def turned(self, rotation: ArrayLike) -> Gradients:
        """Return the table after the brain was turned in world space, for instance by registration to a template.

        Parameters
        ----------
        rotation : (3, 3) array-like
            Matrix that maps old world directions to new ones; reflections are allowed.
        """
        matrix = np.asarray(rotation, dtype=np.float64)
        if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4):
            raise GridError(f"rotation must be an orthogonal (3, 3) matrix; got {matrix.tolist()}")
        return Gradients(self.b, self.directions @ matrix.T)

    def along(self, volume: xr.DataArray) -> Floats:
        """Return the components (n, 3) of the directions along the array axes z, y, x of a volume."""
        return np.asarray(self.directions @ volume.mrh.grid.affine[:3, :3] / volume.mrh.spacing, dtype=np.float64)


def concatenate(tables: Sequence[Gradients]) -> Gradients:
    """Concatenate tables, for volumes concatenated along c."""
    return Gradients(np.concatenate([t.b for t in tables]), np.concatenate([t.directions for t in tables]))


def read_fsl(bvals: str | os.PathLike[str], bvecs: str | os.PathLike[str], volume: xr.DataArray) -> Gradients:
    """Read a gradient table from a pair of FSL files.

    Parameters
    ----------
    bvals, bvecs : path
        Files with one row of n numbers (s/mm^2), and with three rows of n numbers (or n rows of three).
    volume : volume
        The scan as it was read. FSL's vectors are along the axes of the file, with the first one reversed
        if the file's affine has a positive determinant (FSL, "dtifit": radiological order).

    Raises
    ------
    FormatError
        A file is missing or does not hold such a table.
    GridError
        The volume does not record the axes of its file.
    """
    b, vectors = _numbers(Path(bvals)).ravel(), _numbers(Path(bvecs))
    if vectors.shape[0] != 3:
        vectors = vectors.T
    if vectors.shape != (3, len(b)):
        raise FormatError(
            f"{bvecs} must hold three numbers for each of the {len(b)} in {bvals}; got the shape {vectors.shape}"
        )
    axes = _file_axes(volume)
    flip = np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1, 1])
    # The vectors of unweighted images may be NaN.
    vectors = np.where(b <= 1000 * B0, np.nan_to_num(vectors), vectors)
    return Gradients(b / 1000, vectors.T @ flip @ axes.T)


def read_mrtrix(path: str | os.PathLike[str]) -> Gradients:
    r"""Read an MRtrix table: rows of x, y, z (world, RAS+) and b (s/mm^2), separated by spaces or commas.

    The length of x, y, z is ignored; MRtrix itself may scale b by it if lengths differ from 1.

    Raises
    ------
    FormatError
        The file is missing or does not hold such a table.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "grad.b"
    >>> _ = path.write_text("0 0 0 0\n0.6 0.8 0 3000\n")
    >>> read_mrtrix(path).b.tolist()
    [0.0, 3.0]
    """
    table = _numbers(Path(path))
    if table.shape[1] != 4:
        raise FormatError(f"{path} must have four numbers per row (x, y, z, b); got rows of {table.shape[1]}")
    return Gradients(table[:, 3] / 1000, table[:, :3])


def read_bruker(path: str | os.PathLike[str], volume: xr.DataArray) -> Gradients:
    """Read a gradient table from the b-matrices of a ParaVision ``method`` file.

    Parameters
    ----------
    path : path
    volume : volume
        The scan, read from a file whose axes have the order and direction of the reconstructed image. If a
        converter reversed or swapped axes, correct the table with `Gradients.turned`.

    Returns
    -------
    gradients : Gradients
        b is the trace of ``PVM_DwBMatImag`` (which includes imaging gradients) and the direction is its main axis.
        The sign of a direction is arbitrary, because b-matrices have none.

    Raises
    ------
    FormatError
        The file is missing or has no b-matrices.
    GridError
        The volume does not record the axes of its file.
    """
    matrices = _bruker_array(Path(path), "PVM_DwBMatImag") / 1000
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3):
        raise FormatError(
            f"PVM_DwBMatImag in {path} must have the shape (n, 3, 3); got {matrices.shape}. Check for a damaged file."
        )
    values, axes = np.linalg.eigh(matrices)
    b = np.maximum(values.sum(axis=1), 0)
    directions = np.where(values[:, 2:] > 0, axes[:, :, 2], 0)
    return Gradients(b, directions @ _file_axes(volume).T)


def _file_axes(volume: xr.DataArray) -> Floats:
    """Return the world directions of the axes of the volume's file as columns of (3, 3), in the file's order."""
    dims = [d for d in volume.attrs.get("source_axes", ()) if d in SPATIAL]
    if len(dims) != 3:
        raise GridError(
            f"volume {volume.name!r} does not record the axes of its file, to which these vectors refer. "
            "Pass the volume as mrhdata.read returns it."
        )
    # Not the affine of the grid, which changes when the volume is reversed.
    axes = volume.mrh.affine[:3, [SPATIAL.index(d) for d in dims]]
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise GridError(f"the axes of {volume.name!r} must be at right angles; got {axes.tolist()}. Resample it first.")
    return np.asarray(axes, dtype=np.float64)


def _numbers(path: Path) -> Floats:
    """Read rows of numbers from a text file."""
    try:
        rows = [re.split(r"[\s,;]+", line.strip(" \t\r,;")) for line in _read_text(path).splitlines()]
        table = np.array([[float(n) for n in row] for row in rows if row != [""] and not row[0].startswith("#")])
    except ValueError as error:
        raise FormatError(f"{path} must be a table of numbers ({error})") from error
    if table.ndim != 2 or not table.size:
        raise FormatError(f"{path} must be a table of numbers, but it is empty")
    return table


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as text ({error})") from error


def _bruker_array(path: Path, name: str) -> NDArray[np.float64]:
    """Read an array from a JCAMP-DX file: ``##$NAME=( 2, 3 )``, then the numbers; ``@n*(v)`` means n times v."""
    lines = [line for line in _read_text(path).splitlines() if not line.startswith("$$")]
    match = re.search(rf"^##\${name}=\(([\d\s,]+)\)([^#]*)", "\n".join(lines), re.MULTILINE)
    if match is None:
        raise FormatError(f"{path} has no {name}. Pass the method file of a diffusion scan (ParaVision 6 or newer).")
    shape = [int(n) for n in match[1].split(",")]
    values: list[float] = []
    try:
        for times, repeated, number in re.findall(r"@(\d+)\*\(([^)]*)\)|(\S+)", match[2]):
            # Limited to the declared size, because a damaged file may state a huge repeat count.
            values += [float(repeated or number)] * min(int(times or 1), int(np.prod(shape)) + 1)
        return np.array(values).reshape(shape)
    except ValueError as error:
        raise FormatError(f"{name} in {path} must hold {shape} numbers ({error})") from error
