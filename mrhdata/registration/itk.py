"""The one place where our world, RAS+ with axes z, y, x, meets ITK's, LPS with axes x, y, z.

Transforms are read and written here as ITK does (``.tfm``, ``.txt``, ``.h5``; displacement fields also as
``.nii``, ``.nii.gz``, ``.mha``, ``.nrrd`` images of three components), so ANTs, 3D Slicer and elastix share them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from mrhdata._runtime.atomic import appearing
from mrhdata.errors import FormatError, GridError
from mrhdata.registration.transforms import Affine, Displacement, Step, Transform
from mrhdata.volume.grid import Floats, Grid

#: Left, posterior, superior: the signs that turn one world into the other, either way.
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHAINS, _FIELDS = (".tfm", ".txt", ".h5"), (".nii", ".nii.gz", ".mha", ".nrrd")


def points(values: ArrayLike) -> Floats:
    """World points (..., 3) of the one convention in the other.

    Examples
    --------
    >>> points([1, 2, 3]).tolist()
    [-1.0, -2.0, 3.0]
    """
    return np.asarray(values, dtype=np.float64) @ _FLIP[:3, :3]


def image(values: NDArray[Any], grid: Grid) -> Any:
    """An ITK image of an array (z, y, x) or (3, z, y, x) and its grid.

    Raises
    ------
    GridError
        The axes are not at right angles, which ITK's images must be.
    """
    affine = _FLIP @ grid.affine
    direction = (affine[:3, :3] / grid.spacing)[:, ::-1]
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise GridError("the affine has shear, which ITK's images cannot hold; resample to a grid without it first")
    vectors = values.ndim == 4
    found = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(values, 0, -1) if vectors else values), vectors)
    found.SetSpacing(grid.spacing[::-1].tolist())
    found.SetOrigin(affine[:3, 3].tolist())
    found.SetDirection(_orthogonal(direction).ravel().tolist())
    return found


def grid(of: Any) -> Grid:
    """Grid of an ITK image or image reader."""
    size, affine = of.GetSize(), np.eye(4)
    affine[:3, :3] = (np.reshape(of.GetDirection(), (3, 3)) * np.array(of.GetSpacing()))[:, ::-1]
    affine[:3, 3] = of.GetOrigin()
    return Grid((size[2], size[1], size[0]), _FLIP @ affine)


def to_itk(transform: Transform) -> Any:
    """The transform as ITK's composite, which applies the last of its parts first."""
    composite = sitk.CompositeTransform(3)
    for step in reversed(transform.steps):
        composite.AddTransform(_step_to_itk(step))
    return composite


def from_itk(found: Any, source: str | None = None, target: str | None = None) -> Transform:
    """Transform of ITK's as steps of ours.

    Raises
    ------
    FormatError
        It is not three-dimensional, or of a kind that has no counterpart.
    """
    if found.GetDimension() != 3:
        raise FormatError(f"the transform has {found.GetDimension()} dimensions; only those of 3 can be used")
    return Transform(_steps(found.Downcast()), source, target)


def matrix_to_itk(matrix: Floats) -> Any:
    """A matrix (4, 4) of our world as an affine transform of ITK's."""
    turned = _FLIP @ matrix @ _FLIP
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(turned[:3, :3].ravel().tolist())
    affine.SetTranslation(turned[:3, 3].tolist())
    return affine


def write(transform: Transform, path: str | os.PathLike[str], like: Grid | None = None) -> None:
    """Write a transform in ITK's format.

    Parameters
    ----------
    transform : Transform
    path : path
        ``.tfm``, ``.txt`` or ``.h5`` keep the steps; ``.nii``, ``.nii.gz``, ``.mha`` and ``.nrrd`` hold
        one displacement field in LPS mm, as ANTs' warps do.
    like : Grid, optional
        The nodes of that field, which it needs unless the transform is one such field already.

    Raises
    ------
    FormatError
        Another ending, or a field without `like`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "turn.tfm"
    >>> write(Transform([Affine(np.diag([1, 2, 3, 1]))]), path)
    >>> read(path).points([1, 1, 1]).tolist()
    [1.0, 2.0, 3.0]
    """
    path = Path(path)
    if not path.name.lower().endswith(_CHAINS + _FIELDS):
        raise FormatError(f"{path.name} is no name of a transform; end it in one of {', '.join(_CHAINS + _FIELDS)}")
    with appearing(path) as draft:
        if path.name.lower().endswith(_CHAINS):
            parts = to_itk(transform)
            # ITK's text format holds an affine alone better than a composite of one.
            sitk.WriteTransform(parts if len(transform.steps) != 1 else parts.GetNthTransform(0), str(draft))
        else:
            field = _one_field(transform, like, path)
            sitk.WriteImage(image(_lps_vectors(field.field).astype(np.float32), field.grid), str(draft), True)


def read(path: str | os.PathLike[str], source: str | None = None, target: str | None = None) -> Transform:
    """Read a transform that ITK, ANTs, Slicer or :func:`write` has written.

    Parameters
    ----------
    path : path
    source, target : str, optional
        Names of the spaces that it leads from and to, which files do not hold.

    Raises
    ------
    FormatError
        The file is missing, damaged or holds another kind of transform.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path} is no file; give a transform's path")
    try:
        if path.name.lower().endswith(_FIELDS):
            field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
            return from_itk(sitk.DisplacementFieldTransform(field), source, target)
        return from_itk(sitk.ReadTransform(str(path)), source, target)
    except RuntimeError as error:
        raise FormatError(f"{path} cannot be read as a transform: it is damaged or of another kind") from error


def _one_field(transform: Transform, like: Grid | None, path: Path) -> Displacement:
    if like is not None:
        return transform.on(like)
    only = transform.steps[0] if len(transform.steps) == 1 else None
    if not isinstance(only, Displacement) or only.order != 1:
        raise FormatError(f"{path.name} holds one displacement field; give its nodes with like=, or write .h5")
    return only


def _orthogonal(direction: Floats) -> Floats:
    """The nearest matrix whose columns are exactly at right angles, which ITK insists on."""
    u, _, v = np.linalg.svd(direction)
    return u @ v


def _lps_vectors(field: NDArray[Any]) -> NDArray[Any]:
    return field * np.diag(_FLIP)[:3, None, None, None]


def _step_to_itk(step: Step) -> Any:
    if isinstance(step, Affine):
        return matrix_to_itk(step.matrix)
    if not isinstance(step, Displacement):
        raise FormatError(f"a step of type {type(step).__name__} has no counterpart in ITK")
    values = _lps_vectors(step.field.astype(np.float64))
    if step.order == 1:
        return sitk.DisplacementFieldTransform(image(values, step.grid))
    return sitk.BSplineTransform([image(component, step.grid) for component in values], 3)


def _steps(found: Any) -> list[Step]:
    kind = found.GetName()
    if kind == "CompositeTransform":
        parts = [found.GetNthTransform(i).Downcast() for i in range(found.GetNumberOfTransforms())]
        return [step for part in reversed(parts) for step in _steps(part)]
    if kind == "DisplacementFieldTransform":
        field = found.GetDisplacementField()
        return [_field(np.moveaxis(sitk.GetArrayFromImage(field), -1, 0), grid(field), 1)]
    if kind == "BSplineTransform":
        parts = found.GetCoefficientImages()
        if found.GetOrder() != 3:
            raise FormatError(f"the B-spline transform has order {found.GetOrder()}; only cubic ones can be used")
        return [_field(np.stack([sitk.GetArrayFromImage(p) for p in parts]), grid(parts[0]), 3)]
    if not found.IsLinear():
        raise FormatError(f"a {kind} has no counterpart here; convert it to a displacement field first")
    origin = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    matrix[:3, :3] = np.stack([np.array(found.TransformPoint(e)) - origin for e in np.eye(3).tolist()], axis=1)
    return [Affine(_FLIP @ matrix @ _FLIP)]


def _field(values: NDArray[Any], nodes: Grid, order: int) -> Displacement:
    return Displacement(np.ascontiguousarray(_lps_vectors(values), dtype=np.float32), nodes.affine, order)
