"""How a diffusion scan was weighted: b-values, directions, shells; read from Bruker, FSL and MRtrix files.

Directions are world directions (X, Y, Z, RAS+), whatever the axes of an array: so a table stays true when
a volume is permuted, sliced or reversed, and only turning the brain itself turns it (`Gradients.turned`).
b is in ms/um^2, a thousandth of the usual s/mm^2, and diffusivities are then in um^2/ms.
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

#: ms/um^2; images weighted by no more count as unweighted (imaging gradients alone weight by some 0.05).
B0 = 0.1

#: A shell ends where the next b is larger by more than this part.
_GAP = 0.1


@dataclass(frozen=True)
class Shell:
    """Images of about one b: their mean b (ms/um^2), and which they are."""

    b: float
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """Such as ``b2000`` (s/mm^2, to the nearest 100), or ``b0``."""
        return f"b{round(10 * self.b) * 100}"


@dataclass(frozen=True, eq=False)
class Gradients:
    """A row for each image of a diffusion scan.

    Parameters
    ----------
    b : (n,) array-like
        ms/um^2.
    directions : (n, 3) array-like
        World X, Y, Z (RAS+) of any length but 0, which they may have where b is at most `B0`.

    Raises
    ------
    DataError
        Numbers differ, are negative or not finite, or a weighted image has no direction.

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
            raise DataError(f"b has the shape {b.shape} but directions {directions.shape}; give (n,) and (n, 3)")
        lengths = np.linalg.norm(directions, axis=1)
        if not (np.isfinite(b).all() and np.isfinite(lengths).all() and (b >= 0).all()):
            raise DataError("b or directions are negative or not finite; correct the table")
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
        """Return some of the rows, as of ``dwi.isel(c=rows)``."""
        return Gradients(self.b[rows], self.directions[rows])

    @property
    def shells(self) -> tuple[Shell, ...]:
        """Images of about equal b together, the lowest first; unweighted ones are one shell."""
        order = np.argsort(self.b, kind="stable")
        b = np.where(self.b > B0, self.b, 0)[order]
        ends = np.flatnonzero(b[1:] > (1 + _GAP) * b[:-1]) + 1
        return tuple(Shell(float(self.b[rows].mean()), tuple(sorted(rows.tolist()))) for rows in np.split(order, ends))

    def turned(self, rotation: ArrayLike) -> Gradients:
        """The table after the brain was turned in world space, as when it was registered to a template.

        Parameters
        ----------
        rotation : (3, 3) array-like
            Maps old world directions to new ones; reflections are allowed.
        """
        matrix = np.asarray(rotation, dtype=np.float64)
        if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4):
            raise GridError(f"directions are turned by a (3, 3) rotation, not by {matrix.tolist()}")
        return Gradients(self.b, self.directions @ matrix.T)

    def along(self, volume: xr.DataArray) -> Floats:
        """Components along the array axes z, y, x of a volume: (n, 3)."""
        return np.asarray(self.directions @ volume.mrh.grid.affine[:3, :3] / volume.mrh.spacing, dtype=np.float64)


def joined(tables: Sequence[Gradients]) -> Gradients:
    """Tables of scans one behind the other, as of volumes joined along c."""
    return Gradients(np.concatenate([t.b for t in tables]), np.concatenate([t.directions for t in tables]))


def read_fsl(bvals: str | os.PathLike[str], bvecs: str | os.PathLike[str], volume: xr.DataArray) -> Gradients:
    """Read a pair of FSL files.

    Parameters
    ----------
    bvals, bvecs : path
        A row of n numbers (s/mm^2), and three rows of n (or n of three).
    volume : volume
        The scan, as it was read. FSL's vectors are along the axes of the file, the first one reversed
        where the file's affine has a positive determinant (FSL, "dtifit": radiological order).

    Raises
    ------
    FormatError
        A file is missing or no such table.
    GridError
        The volume does not know the axes that its file had.
    """
    b, vectors = _numbers(Path(bvals)).ravel(), _numbers(Path(bvecs))
    if vectors.shape[0] != 3:
        vectors = vectors.T
    if vectors.shape != (3, len(b)):
        raise FormatError(f"{bvecs} has {vectors.shape} numbers but {bvals} has {len(b)}; three for each are needed")
    axes = _file_axes(volume)
    flip = np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1, 1])
    # Unweighted images may have NaN there.
    vectors = np.where(b <= 1000 * B0, np.nan_to_num(vectors), vectors)
    return Gradients(b / 1000, vectors.T @ flip @ axes.T)


def read_mrtrix(path: str | os.PathLike[str]) -> Gradients:
    r"""Read a table of MRtrix: rows of x, y, z (world, RAS+) and b (s/mm^2), split by spaces or commas.

    The length of x, y, z is left out of account; MRtrix itself, where it finds other lengths than 1, may
    take it for a factor of b.

    Raises
    ------
    FormatError
        The file is missing or no such table.

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
        raise FormatError(f"{path} has rows of {table.shape[1]} numbers; MRtrix tables have x, y, z, b")
    return Gradients(table[:, 3] / 1000, table[:, :3])


def read_bruker(path: str | os.PathLike[str], volume: xr.DataArray) -> Gradients:
    """Read the b-matrices of a ParaVision ``method`` file.

    Parameters
    ----------
    path : path
    volume : volume
        The scan, as it was read from a file whose axes are those of the reconstructed image, first axis
        first. Where a converter reversed or swapped axes, put the table right with `Gradients.turned`.

    Returns
    -------
    gradients : Gradients
        b is the trace of ``PVM_DwBMatImag`` (with the weighting by imaging gradients), and the direction
        its main axis; b-matrices have no sign, so that of the directions is arbitrary.

    Raises
    ------
    FormatError
        The file is missing, or holds no b-matrices.
    GridError
        The volume does not know the axes that its file had.
    """
    matrices = _bruker_array(Path(path), "PVM_DwBMatImag") / 1000
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3):
        raise FormatError(f"{path}: PVM_DwBMatImag has the shape {matrices.shape}, not (n, 3, 3); is it damaged?")
    values, axes = np.linalg.eigh(matrices)
    b = np.maximum(values.sum(axis=1), 0)
    directions = np.where(values[:, 2:] > 0, axes[:, :, 2], 0)
    return Gradients(b, directions @ _file_axes(volume).T)


def _file_axes(volume: xr.DataArray) -> Floats:
    """World directions of the axes that the volume's file had, in the file's order: columns of (3, 3)."""
    listed = [d for d in volume.attrs.get("source_axes", ()) if d in SPATIAL]
    if len(listed) != 3:
        raise GridError(
            f"volume {volume.name!r} does not know the axes of its file, along which these vectors are; "
            "give the volume as mrhdata.read returns it"
        )
    # Not those of the grid, which reverse where the volume was reversed since.
    axes = volume.mrh.affine[:3, [SPATIAL.index(d) for d in listed]]
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise GridError(f"the axes of {volume.name!r} are not at right angles: {axes.tolist()}; resample it first")
    return np.asarray(axes, dtype=np.float64)


def _numbers(path: Path) -> Floats:
    """Rows of numbers in a text file."""
    try:
        rows = [re.split(r"[\s,;]+", line.strip(" \t\r,;")) for line in _text(path).splitlines()]
        table = np.array([[float(n) for n in row] for row in rows if row != [""] and not row[0].startswith("#")])
    except ValueError as error:
        raise FormatError(f"{path} is no table of numbers ({error})") from error
    if table.ndim != 2 or not table.size:
        raise FormatError(f"{path} is no table of numbers: it is empty")
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as text ({error})") from error


def _bruker_array(path: Path, name: str) -> NDArray[np.float64]:
    """An array of numbers in a JCAMP-DX file: ``##$NAME=( 2, 3 )``, then the numbers, ``@n*(v)`` for n times v."""
    lines = [line for line in _text(path).splitlines() if not line.startswith("$$")]
    found = re.search(rf"^##\${name}=\(([\d\s,]+)\)([^#]*)", "\n".join(lines), re.MULTILINE)
    if found is None:
        raise FormatError(f"{path} has no {name}; give the method file of a diffusion scan (ParaVision 6 or newer)")
    shape = [int(n) for n in found[1].split(",")]
    values: list[float] = []
    try:
        for times, repeated, number in re.findall(r"@(\d+)\*\(([^)]*)\)|(\S+)", found[2]):
            # No longer than the array says.
            values += [float(repeated or number)] * min(int(times or 1), int(np.prod(shape)) + 1)
        return np.array(values).reshape(shape)
    except ValueError as error:
        raise FormatError(f"{path}: {name} does not hold {shape} numbers ({error})") from error
