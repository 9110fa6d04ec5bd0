"""Coordinate transformations of OME-Zarr: the matrix from the index of a voxel to its position along the image's axes.

A transformation that is not known is refused: a volume without it would lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrhdata.errors import FormatError
from mrhdata.volume.grid import Floats


def level_matrix(image: Mapping[str, Any], dataset: Mapping[str, Any], label: str) -> Floats:
    """Return the (n + 1, n + 1) matrix of all transformations of a level of an image with n axes.

    The transformations of the level are applied in their order, then those of the image.

    Parameters
    ----------
    image, dataset : mapping
        Metadata of the image, and of one level.
    label : str
        Name of the level in errors.

    Raises
    ------
    FormatError
        A transformation is unknown or malformed, or the level has none.

    Examples
    --------
    >>> image = {"axes": [{"name": "y"}, {"name": "x"}]}
    >>> steps = [{"type": "scale", "scale": [2, 3]}, {"type": "translation", "translation": [10, 20]}]
    >>> level_matrix(image, {"coordinateTransformations": steps}, "a.zarr").tolist()
    [[2.0, 0.0, 10.0], [0.0, 3.0, 20.0], [0.0, 0.0, 1.0]]
    """
    axes = len(image["axes"])
    listed = dataset.get("coordinateTransformations")
    if not isinstance(listed, list) or not listed:
        raise FormatError(
            f"{label} has no coordinateTransformations, which OME-Zarr requires; its voxel size is unknown"
        )
    matrix = np.eye(axes + 1)
    for transform in [*listed, *(image.get("coordinateTransformations") or [])]:
        matrix = _matrix(transform, axes, label) @ matrix
    return matrix


def _matrix(transform: Any, axes: int, label: str) -> Floats:
    """Return the matrix of one transformation."""
    kind = transform.get("type") if isinstance(transform, Mapping) else None
    if kind == "sequence":
        matrix = np.eye(axes + 1)
        for step in transform.get("transformations", ()):
            matrix = _matrix(step, axes, label) @ matrix
        return matrix
    if kind not in _MATRICES:
        known = ", ".join([*_MATRICES, "sequence"])
        raise FormatError(f"{label} has the transformation {kind!r}; those that can be applied are {known}")
    if kind == "identity":
        return np.eye(axes + 1)
    if kind not in transform:
        where = "in an array of its own, which is not read" if "path" in transform else "nowhere"
        raise FormatError(f"{label}: the numbers of its {kind} are {where}. Write them into the metadata")
    return _MATRICES[kind](transform[kind], axes, label)


def _scale(numbers: Any, axes: int, label: str) -> Floats:
    factors = _numbers(numbers, (axes,), "scale", label)
    if (factors <= 0).any():
        raise FormatError(
            f"{label}: its scale must be positive along every axis; got {factors.tolist()}. A negative scale turns the "
            "image around, a scale of 0 has no voxel size; correct the metadata"
        )
    return np.diag([*factors, 1.0])


def _translation(numbers: Any, axes: int, label: str) -> Floats:
    matrix = np.eye(axes + 1)
    matrix[:-1, -1] = _numbers(numbers, (axes,), "translation", label)
    return matrix


def _rotation(numbers: Any, axes: int, label: str) -> Floats:
    matrix = np.eye(axes + 1)
    matrix[:-1, :-1] = turn = _numbers(numbers, (axes, axes), "rotation", label)
    if not np.allclose(turn @ turn.T, np.eye(axes), atol=1e-4):
        raise FormatError(f"{label}: its rotation must be an orthogonal matrix; got {turn.tolist()}")
    return matrix


def _affine(numbers: Any, axes: int, label: str) -> Floats:
    rows = len(numbers) if isinstance(numbers, Sequence) else 0
    matrix = np.eye(axes + 1)
    matrix[:rows] = _numbers(numbers, (axes + 1 if rows > axes else axes, axes + 1), "affine", label)
    if not np.array_equal(matrix[-1], np.eye(axes + 1)[-1]):
        raise FormatError(f"{label}: its affine must end in the row 0 ... 0 1; got {matrix[-1].tolist()}")
    return matrix


_MATRICES: dict[str, Any] = {
    "identity": None,
    "scale": _scale,
    "translation": _translation,
    "rotation": _rotation,
    "affine": _affine,
}


def _numbers(values: Any, shape: tuple[int, ...], name: str, label: str) -> Floats:
    """Return finite numbers of a shape."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        wanted = " x ".join(map(str, shape))
        raise FormatError(f"{label}: its {name} must be {wanted} finite numbers; got {str(values)[:100]}")
    return numbers
