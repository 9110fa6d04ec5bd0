"""Conversion between our world (RAS+, axes z, y, x) and ITK's (LPS, axes x, y, z), and ITK's transform files.

Transforms are read and written in ITK's formats (``.tfm``, ``.txt``, ``.h5``; displacement fields also as
``.nii``, ``.nii.gz``, ``.mha``, ``.nrrd`` images with three components), which ANTs, 3D Slicer and elastix read too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import FormatError, GridError, MrhdataError
from mrhdata.registration.transform_headers import check_transform, image_io
from mrhdata.registration.transforms import Affine, Displacement, ElementaryTransform, Transform
from mrhdata.volume.grid import Floats, Grid

#: Converts RAS+ to LPS and back.
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
_TRANSFORM_ENDINGS, _FIELD_ENDINGS = (".tfm", ".txt", ".h5"), (".nii", ".nii.gz", ".mha", ".nrrd")


def points(values: ArrayLike) -> Floats:
    """Convert world points (..., 3) from RAS+ to LPS, or from LPS to RAS+.

    Examples
    --------
    >>> points([1, 2, 3]).tolist()
    [-1.0, -2.0, 3.0]
    """
    return np.asarray(values, dtype=np.float64) @ _FLIP[:3, :3]


def image(values: NDArray[Any], grid: Grid) -> Any:
    """Make an ITK image of an array (z, y, x) or (3, z, y, x) on a grid.

    Raises
    ------
    GridError
        The axes are not at right angles, as ITK requires.
    """
    affine = _FLIP @ grid.affine
    direction = (affine[:3, :3] / grid.spacing)[:, ::-1]
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise GridError(
            "the affine must not have shear, which ITK images cannot store; resample to a grid without shear"
        )
    vectors = values.ndim == 4
    result = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(values, 0, -1) if vectors else values), vectors)
    result.SetSpacing(grid.spacing[::-1].tolist())
    result.SetOrigin(affine[:3, 3].tolist())
    result.SetDirection(_orthogonal(direction).ravel().tolist())
    return result


def grid(of: Any) -> Grid:
    """Return the grid of an ITK image or image reader."""
    size, affine = of.GetSize(), np.eye(4)
    affine[:3, :3] = (np.reshape(of.GetDirection(), (3, 3)) * np.array(of.GetSpacing()))[:, ::-1]
    affine[:3, 3] = of.GetOrigin()
    return Grid((size[2], size[1], size[0]), _FLIP @ affine)


def to_itk(transform: Transform) -> Any:
    """Convert a transform to an ITK composite, which applies its last part first."""
    composite = sitk.CompositeTransform(3)
    for step in reversed(transform.steps):
        composite.AddTransform(_step_to_itk(step))
    return composite


def from_itk(found: Any, source: str | None = None, target: str | None = None) -> Transform:
    """Convert an ITK transform.

    Raises
    ------
    FormatError
        The transform is not three-dimensional, or its kind is not supported.
    """
    if found.GetDimension() != 3:
        raise FormatError(f"the transform must have 3 dimensions; got {found.GetDimension()} dimensions")
    return Transform(_steps_from_itk(found.Downcast()), source, target)


def matrix_to_itk(matrix: Floats) -> Any:
    """Convert a matrix (4, 4) in RAS+ to an ITK affine transform."""
    lps_matrix = _FLIP @ matrix @ _FLIP
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps_matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(lps_matrix[:3, 3].tolist())
    return affine


def write(transform: Transform, path: str | os.PathLike[str], like: Grid | None = None) -> None:
    """Write a transform to a file of ITK's format.

    Parameters
    ----------
    transform : Transform
    path : path
        Output file. ``.tfm``, ``.txt`` and ``.h5`` keep the steps; ``.nii``, ``.nii.gz``, ``.mha`` and ``.nrrd`` hold
        one displacement field in LPS mm, like ANTs' warps.
    like : Grid, optional
        Nodes of that field; needed unless the transform is a single displacement field.

    Raises
    ------
    FormatError
        The ending is unknown, or `like` is missing for a field.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "turn.tfm"
    >>> write(Transform([Affine(np.diag([1, 2, 3, 1]))]), path)
    >>> read(path).points([1, 1, 1]).tolist()
    [1.0, 2.0, 3.0]
    """
    path = Path(path)
    endings = _TRANSFORM_ENDINGS + _FIELD_ENDINGS
    if not path.name.lower().endswith(endings):
        raise FormatError(f"the name of a transform file must end in one of {', '.join(endings)}; got {path.name}")
    with atomic_write(path) as draft:
        if path.name.lower().endswith(_TRANSFORM_ENDINGS):
            composite = to_itk(transform)
            # In ITK's text format, a single affine is simpler to read than a composite of one.
            sitk.WriteTransform(composite if len(transform.steps) != 1 else composite.GetNthTransform(0), str(draft))
        else:
            field = _one_field(transform, like, path)
            sitk.WriteImage(image(_lps_vectors(field.field).astype(np.float32), field.grid), str(draft), True)


def read(path: str | os.PathLike[str], source: str | None = None, target: str | None = None) -> Transform:
    """Read a transform written by ITK, ANTs, Slicer or :func:`write`.

    Parameters
    ----------
    path : path
    source, target : str, optional
        Names of the spaces that the transform maps from and to; files do not store them.

    Raises
    ------
    FormatError
        The file is missing or damaged, or its kind of transform is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path} does not exist. Pass the path of a transform file.")
    try:
        if path.name.lower().endswith(_FIELD_ENDINGS):
            field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64, image_io(path))
            return from_itk(sitk.DisplacementFieldTransform(field), source, target)
        check_transform(path)
        return from_itk(sitk.ReadTransform(str(path)), source, target)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as a transform: it is damaged or of an unknown kind") from error
    except MrhdataError as error:
        if path.name in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _one_field(transform: Transform, like: Grid | None, path: Path) -> Displacement:
    if like is not None:
        return transform.on(like)
    step = transform.steps[0] if len(transform.steps) == 1 else None
    if not isinstance(step, Displacement) or step.order != 1:
        raise FormatError(f"{path.name} must hold one displacement field. Pass its nodes as like=, or write .h5.")
    return step


def _orthogonal(direction: Floats) -> Floats:
    """Return the nearest matrix with exactly orthogonal columns, which ITK requires."""
    u, _, v = np.linalg.svd(direction)
    return u @ v


def _lps_vectors(field: NDArray[Any]) -> NDArray[Any]:
    return field * np.diag(_FLIP)[:3, None, None, None]


def _step_to_itk(step: ElementaryTransform) -> Any:
    if isinstance(step, Affine):
        return matrix_to_itk(step.matrix)
    if not isinstance(step, Displacement):
        raise FormatError(f"a step must be an Affine or a Displacement to be written; got {type(step).__name__}")
    values = _lps_vectors(step.field.astype(np.float64))
    if step.order == 1:
        return sitk.DisplacementFieldTransform(image(values, step.grid))
    return sitk.BSplineTransform([image(component, step.grid) for component in values], 3)


def _steps_from_itk(transform: Any) -> list[ElementaryTransform]:
    kind = transform.GetName()
    if kind == "CompositeTransform":
        parts = [transform.GetNthTransform(i).Downcast() for i in range(transform.GetNumberOfTransforms())]
        return [step for part in reversed(parts) for step in _steps_from_itk(part)]
    if kind == "DisplacementFieldTransform":
        field = transform.GetDisplacementField()
        return [_displacement(np.moveaxis(sitk.GetArrayFromImage(field), -1, 0), grid(field), 1)]
    if kind == "BSplineTransform":
        coefficients = transform.GetCoefficientImages()
        if transform.GetOrder() != 3:
            raise FormatError(f"the B-spline transform must be of order 3 (cubic); got order {transform.GetOrder()}")
        values = np.stack([sitk.GetArrayFromImage(c) for c in coefficients])
        return [_displacement(values, grid(coefficients[0]), 3)]
    if not transform.IsLinear():
        raise FormatError(f"a transform of kind {kind} is not supported; convert it to a displacement field first")
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    matrix[:3, :3] = np.stack([np.array(transform.TransformPoint(e)) - origin for e in np.eye(3).tolist()], axis=1)
    return [Affine(_FLIP @ matrix @ _FLIP)]


def _displacement(values: NDArray[Any], nodes: Grid, order: int) -> Displacement:
    return Displacement(np.ascontiguousarray(_lps_vectors(values), dtype=np.float32), nodes.affine, order)
