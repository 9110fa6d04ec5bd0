"""Anatomy of the digital head: tissues, shapes, nuclei and veins as tables, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.floating[Any]]


#: Width of the transition between a structure and its surroundings.
EDGE_MM = 1.0

#: Standard deviation of a 3D cubic B-spline with independent coefficients of deviation 1.
SPLINE_SD = (151 / 315) ** 1.5


@dataclass(frozen=True)
class Tissue:
    """MRI properties and class of a tissue.

    Attributes
    ----------
    chi : float
        Susceptibility in ppm.
    r2star : float
        R2* without the effect of susceptibility, in 1/s.
    t1w : float
        T1-weighted signal, relative to white matter.
    grey, white : float
        1 for grey or white matter, else 0.
    """

    chi: float
    r2star: float
    t1w: float
    grey: float = 0.0
    white: float = 0.0


FLUID = Tissue(0.0, 2.0, 0.20)

WHITE = Tissue(-0.030, 17.0, 1.00, white=1.0)

CORTEX = Tissue(0.020, 14.0, 0.62, grey=1.0)


def grey(chi: float) -> Tissue:
    """Return deep grey matter, whose iron also raises the T1-weighted signal."""
    return Tissue(chi, 15.0, 0.72 + 1.2 * chi, grey=1.0)


def blood(chi: float) -> Tissue:
    """Return venous blood."""
    return Tissue(chi, 20.0, 0.55)


@dataclass(frozen=True)
class Ellipsoid:
    """Ellipsoid by centre, half axes and their directions (rows), X, Y, Z in mm.

    `bend` is a displacement along the third axis that grows with the square of the coordinate along the first, in mm.
    """

    centre: Sequence[float]
    half: Sequence[float]
    directions: ArrayLike = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    bend: float = 0.0

    def box(self) -> tuple[Floats, Floats]:
        """Return the centre and half size of the bounding box."""
        axes = _orthonormal(self.directions)
        reach = np.sqrt(((axes * np.asarray(self.half)[:, None]) ** 2).sum(axis=0))
        return np.asarray(self.centre, dtype=np.float64), reach + abs(self.bend)

    def depth(self, points: Floats) -> Floats:
        """Return the distance of points (3, n) inside the surface in mm, negative outside; exact on the surface."""
        local = _orthonormal(self.directions) @ (points - np.asarray(self.centre)[:, None])
        half = np.asarray(self.half)[:, None]
        local[2] += self.bend * ((local[0] / half[0]) ** 2 - 0.3)
        radius = np.linalg.norm(local / half, axis=0)
        slope = np.linalg.norm(local / half**2, axis=0)
        return np.asarray((1 - radius) * np.maximum(radius, 1e-3) / np.maximum(slope, 1e-6))


@dataclass(frozen=True)
class Tube:
    """Tube by points (X, Y, Z, radius) of its centre line in mm; `flat` scales its radius along X."""

    line: ArrayLike
    flat: float = 1.0

    def box(self) -> tuple[Floats, Floats]:
        """Return the centre and half size of the bounding box."""
        line = np.asarray(self.line, dtype=np.float64)
        low, high = line[:, :3].min(axis=0), line[:, :3].max(axis=0)
        return (low + high) / 2, (high - low) / 2 + line[:, 3].max()

    def depth(self, points: Floats) -> Floats:
        """Return the distance of points (3, n) inside the surface in mm, negative outside, far outside -inf."""
        line = np.asarray(self.line, dtype=np.float64)
        lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(line[:, :3], axis=0), axis=1))]
        positions = np.linspace(0, lengths[-1], 2 + int(lengths[-1] / (0.4 * line[:, 3].min())))
        balls = np.stack([np.interp(positions, lengths, column) for column in line.T])
        width = np.array([self.flat, 1.0, 1.0])
        max_distance = balls[3].max() + 3 * EDGE_MM
        distance, nearest = cKDTree(balls[:3].T / width).query(points.T / width, distance_upper_bound=max_distance)
        return np.asarray(np.r_[balls[3], 0.0][nearest] - distance)


@dataclass(frozen=True)
class Nucleus:
    """Scored nucleus of the right side: shape, mean susceptibility, and susceptibility gradient.

    `slope` is the relative change per half length of the bounding box along X, Y, Z: pallidum and nigra have two parts
    of unequal iron, and the putamen has more iron posteriorly.
    """

    shape: Ellipsoid | Tube
    chi: float
    slope: tuple[float, float, float]


#: Nuclei in the order of painting.
NUCLEI: dict[str, Nucleus] = {
    "CN": Nucleus(
        Tube(
            [
                (10.5, 13, -9, 4.6),
                (12.0, 16.5, -3, 6.4),
                (13.6, 17.5, 3, 7.4),
                (14.8, 14.5, 9.5, 7.0),
                (15.9, 9, 14.5, 6.0),
                (16.8, 2, 19, 4.7),
                (17.4, -6, 21.8, 3.5),
                (18.2, -14, 22.6, 2.6),
                (19.5, -21, 21.5, 2.0),
                (22.0, -28, 17, 1.6),
            ],
            flat=0.72,
        ),
        0.013,
        (0.0, 0.3, 0.0),
    ),
    "PU": Nucleus(
        Ellipsoid(
            (26.3, 3, 0.4), (22.5, 12.6, 5.9), ((-0.29, 0.88, -0.36), (0.02, 0.37, 0.93), (0.95, 0.28, -0.1)), 1.6
        ),
        0.037,
        (0.1, -0.45, 0.1),
    ),
    "GP": Nucleus(
        Ellipsoid((20.9, -2.6, -1.6), (13.2, 7.4, 5.2), ((-0.57, 0.82, 0.03), (0.37, 0.22, 0.90), (0.74, 0.52, -0.43))),
        0.155,
        (0.15, 0.25, 0.0),
    ),
    "SN": Nucleus(
        Ellipsoid(
            (10.2, -16.6, -11.7), (9.9, 7.0, 2.5), ((0.04, 0.95, 0.30), (0.79, -0.2, 0.58), (0.62, 0.23, -0.75)), 1.2
        ),
        0.095,
        (0.2, 0.35, 0.0),
    ),
    "RN": Nucleus(
        Ellipsoid((5.3, -18.5, -7.9), (4.9, 3.8, 3.6), ((0.05, 0.74, 0.67), (0.5, 0.6, -0.62), (0.85, -0.3, 0.3))),
        0.052,
        (0.0, 0.1, 0.1),
    ),
}

_THALAMUS = Ellipsoid(
    (12.2, -18.5, 7.1), (18.9, 11.3, 8.8), ((-0.41, 0.90, 0.11), (0.51, 0.12, 0.85), (0.76, 0.41, -0.5))
)

VENTRICLE = Tube(
    [
        (6, 28, 2, 2.8),
        (5.5, 18, 9, 3.8),
        (7.5, 4, 17, 4.2),
        (11, -12, 20, 4.2),
        (16, -28, 19, 4.8),
        (23, -38, 10, 5.2),
        (27, -32, -4, 3.4),
        (30, -18, -14, 2.4),
    ],
    flat=0.75,
)

#: Structures of both sides that are not scored.
PAIRED: list[tuple[Ellipsoid, Tissue]] = [
    (Ellipsoid((30, -52, 8), (5, 28, 11)), Tissue(-0.045, 17.0, 1.02, white=1.0)),  # optic radiation
    (Ellipsoid((43, 2, 2), (6.5, 24, 15)), CORTEX),  # insula and opercula
    (Ellipsoid((43, 2, 2), (2.2, 21, 11)), FLUID),  # lateral fissure
    (Ellipsoid((33.5, 2, 2), (0.8, 18, 11)), grey(0.015)),  # claustrum
    (Ellipsoid((24, -5, -18), (8, 9, 8)), grey(0.008)),  # amygdala
    (Ellipsoid((28, -22, -12), (6, 16, 6)), grey(0.006)),  # hippocampus
    (_THALAMUS, grey(0.007)),
    (Ellipsoid((15, -29, 6), (7, 5.5, 6)), grey(0.035)),  # pulvinar
    (
        Ellipsoid((11, -11.2, -6.3), (4.7, 3.4, 1.7), ((0.76, -0.47, 0.45), (0.24, 0.84, 0.48), (-0.6, -0.26, 0.75))),
        grey(0.060),
    ),
    (Ellipsoid((14, -56, -36), (9, 9, 5), bend=3.0), grey(0.090)),  # dentate nucleus
]

#: Fluid on the midline: third and fourth ventricle, cisterns.
MIDLINE = [
    Ellipsoid((0, -16, 0), (2.2, 12, 11)),
    Ellipsoid((0, -46, -32), (6, 6, 9)),
    Ellipsoid((0, -9, -17), (5, 6, 5)),
    Ellipsoid((0, -41, -3), (9, 5, 6)),
    Ellipsoid((0, 5, -18), (10, 10, 5)),
]

#: Veins of the right side (mirrored to the left), and veins of the midline.
VEINS = [
    [(2.5, 2, 13, 0.9), (2, -16, 13, 1.1), (1.5, -35, 8, 1.2)],  # internal cerebral
    [(2.5, 2, 13, 0.8), (9, 1, 17, 0.9), (14, -6, 19, 0.9), (16, -16, 20, 0.7)],  # thalamostriate
    [(2, 3, 13, 0.7), (3, 18, 12, 0.7), (5, 24, 8, 0.5)],  # septal
    [(10, 2, -14, 0.9), (16, -9, -14, 1.0), (18, -19, -11, 1.1), (13, -31, -6, 1.1), (3, -39, 4, 1.3)],  # basal
    [(24, 4, -11, 0.7), (25, 3, 0, 0.7), (21, 3, 11, 0.6)],  # striatal
    [(27, -8, -8, 0.6), (27, -7, 3, 0.6), (22, -6, 14, 0.6)],
    [(2, -11, -13, 0.6), (4.5, -15, -14, 0.6), (9, -22, -15, 0.6)],  # peduncular
    [(4, 2, 12, 0.5), (17, -12, 4, 0.6), (12, -22, -1, 0.5)],  # thalamic
    [(2, -93, 8, 3.0), (25, -86, -10, 2.6), (46, -62, -18, 2.6)],  # transverse sinus
]

MIDLINE_VEINS = [
    [(0, -35, 8, 1.8), (0, -46, 9, 2.2), (0, -70, 12, 2.2), (0, -92, 8, 2.6)],  # Galen's vein, straight sinus
    [(0, -17 + 85 * np.cos(a), 9 + 63 * np.sin(a), 2.6) for a in np.linspace(0.3, 3.3, 24)],  # sagittal sinus
]


def _orthonormal(directions: ArrayLike) -> Floats:
    """Return the nearest orthogonal matrix, because measured directions are rounded."""
    left, _, right = np.linalg.svd(np.asarray(directions, dtype=np.float64))
    return np.asarray(left @ right)
