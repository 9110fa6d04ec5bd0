"""Known transforms, and a volume that differs from all its mirror images."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.construct import from_array
from mrhdata.volume.grid import Grid
from tests.conftest import oblique_affine


def lattice(grid, counts=(10, 11, 12), margin=1.3):
    """Return a coarse grid with the same centre as `grid`, larger than it by `margin`."""
    centre = grid.world((np.array(grid.shape) - 1) / 2)
    steps = grid.spacing * grid.shape * margin / counts
    affine = np.eye(4)
    affine[:3, :3] = grid.affine[:3, :3] / grid.spacing * steps
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(counts) - 1) / 2)
    return Grid(tuple(counts), affine)


def bend(grid, longest_mm, order=1, seed=0, smooth=1.3):
    """Return a smooth random displacement that is 0 at its border."""
    rng = np.random.default_rng(seed)
    nodes = lattice(grid)
    field = np.zeros((3, *nodes.shape), np.float32)
    field[:, 2:-2, 2:-2, 2:-2] = rng.normal(size=(3, *(n - 4 for n in nodes.shape)))
    field = np.stack([gaussian_filter(f, smooth, mode="constant") for f in field])
    for axis in (1, 2, 3):
        np.moveaxis(field, axis, 0)[[0, 1, -2, -1]] = 0
    return Displacement(field * np.float32(longest_mm / np.abs(field).max()), nodes.affine, order)


@pytest.fixture
def displacement_and_affine():
    """Return a transform of a displacement and an affine step, like the result of a registration."""
    grid = Grid((40, 40, 40), np.array([[0, 0, 0.2, -4], [0, 0.2, 0, -4], [0.2, 0, 0, -4], [0, 0, 0, 1]]))
    return Transform([bend(grid, 0.5), Affine(oblique_affine((3, 4, 5), (1.1, 0.9, 1.0), origin=(0.1, 0.2, 0.3)))])


@pytest.fixture(scope="session")
def asymmetric_blob():
    """Return a smooth brain-like blob of 0.5 mm voxels without any symmetry."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (18, 24, 21)), indexing="ij")
    blob = (z**2 / 0.5 + y**2 / 0.7 + x**2 / 0.55 < 1).astype(float)
    for centre, size, value in (
        ((0.3, 0.2, 0.3), 0.22, 0.9),
        ((-0.2, 0.5, 0.1), 0.2, -0.7),
        ((0.1, -0.45, -0.3), 0.25, 0.6),
        ((-0.35, -0.2, 0.25), 0.18, -0.8),
    ):
        blob += value * (sum((a - c) ** 2 for a, c in zip((z, y, x), centre, strict=True)) < size**2)
    values = 100 * gaussian_filter(blob, 0.7) + np.random.default_rng(0).normal(0, 1, blob.shape)
    affine = np.array([[0, 0, 0.5, -5], [0, 0.5, 0, -6], [0.5, 0, 0, -4], [0, 0, 0, 1]])
    return from_array(values.astype(np.float32), affine=affine, name="asymmetric_blob")
