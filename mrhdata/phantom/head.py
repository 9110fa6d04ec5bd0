"""A digital human head: deep nuclei and their surroundings, in millimetres.

Shapes are ellipsoids and tubes in a reference space with the axes and origin of MNI152 (RAS+, the anterior commissure
near the origin). Centres, half axes and directions of the nuclei are measured from the PD25 atlas (Xiao et al. 2017,
Data in Brief 12:370); ventricles, vessels and calcifications follow textbook anatomy. A subject is the reference head
bent by smooth random fields; each nucleus is also moved, rotated, scaled and made uneven. Everything is a function of
continuous coordinates: one seed gives the same anatomy on every grid.

Susceptibility (ppm, relative to fluid): the means of the nuclei lie in ranges from an in vivo COSMOS map with atlas
labels: globus pallidus 0.13-0.16, substantia nigra 0.07-0.09 (0.10 at 7 T, Schaefer et al. 2012, HBM 33:2831, also
the source of 0.06 for the subthalamic nucleus), red nucleus 0.04-0.05, putamen 0.03-0.04, caudate 0.01, thalamus
0.007. Their order is that of post-mortem iron (Hallgren and Sourander 1958, J. Neurochem. 3:41). White matter (-0.03)
and cortex (0.02) follow Marques et al. 2021, MRM 86:526. Veins of 0.2-0.4, calcifications and bleedings are included,
so that a threshold does not suffice to find the nuclei.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mrhdata.phantom.head_anatomy import (
    CORTEX,
    EDGE_MM,
    FLUID,
    MIDLINE,
    MIDLINE_VEINS,
    NUCLEI,
    PAIRED,
    SPLINE_SD,
    VEINS,
    VENTRICLE,
    WHITE,
    Ellipsoid,
    Nucleus,
    Tissue,
    Tube,
    blood,
    grey,
)
from mrhdata.preprocessing.spline_fields import basis, contract

Floats = NDArray[np.floating[Any]]


#: Field of view along world X, Y, Z: first and last edge in mm.
VIEW_MM = ((-78.0, 78.0), (-113.0, 79.0), (-67.0, 77.0))

_DTYPE = np.float32


class Head:
    """Tissue of one subject on the points of a grid.

    Parameters
    ----------
    axes_mm : three arrays
        World Z, Y and X of the points along the axes of the arrays, in mm.
    seed : int
        Random seed of the anatomy.

    Attributes
    ----------
    chi, r2star, t1w, grey, white : (z, y, x) float32 arrays
        Properties of `Tissue`; 0 outside the brain.
    shares : (5, z, y, x) float32 array
        Share of each point that belongs to each of `NUCLEI`, both sides together.
    brain, fluid : (z, y, x) float32 arrays
        Share of each point inside the surface of the brain, and inside the lateral ventricles.
    right : (z, y, x) bool array
        True for points to the right of the midplane.
    """

    def __init__(self, axes_mm: Sequence[NDArray[np.float64]], seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0])
        self._axes = axes_mm
        self._shape = tuple(len(axis) for axis in axes_mm)
        self._points = self._reference_points()
        self.right = (self._points[0] > 0).reshape(self._shape)
        self._maps = np.zeros((5, self._points.shape[1]), dtype=_DTYPE)  # Rows as in Tissue.
        self._shares = np.zeros((len(NUCLEI), self._points.shape[1]), dtype=_DTYPE)
        self._all_points = np.arange(self._points.shape[1])
        # Ventricles and iron both grow with age.
        self._age = self._rng.uniform(-1, 1)
        self._ventricle_size = float(np.exp(0.25 * self._age + self._rng.normal(0, 0.15)))
        self._paint_brain()
        self._paint_deep()
        self._paint_vessels()
        self._paint_calcium()
        self._maps *= self._inside
        self.chi, self.r2star, self.t1w, self.grey, self.white = self._maps.reshape(-1, *self._shape)
        self.shares = self._shares.reshape(-1, *self._shape)
        self.brain, self.fluid = self._inside.reshape(self._shape), self._ventricles.reshape(self._shape)

    def _field(self, width_mm: float, sd: float) -> Floats:
        """Return a smooth random field on all points, (n,): cubic B-splines on a lattice of `width_mm`."""
        intervals = [int(np.ceil((high - low) / width_mm)) for low, high in VIEW_MM[::-1]]
        lattice = self._rng.normal(0, sd / SPLINE_SD, [n + 3 for n in intervals])
        positions = [(axis - v[0]) / (v[1] - v[0]) for axis, v in zip(self._axes, VIEW_MM[::-1], strict=True)]
        matrices = [basis(position, n) for position, n in zip(positions, intervals, strict=True)]
        return contract(lattice, matrices).ravel().astype(_DTYPE)

    def _reference_points(self) -> Floats:
        """Return reference X, Y, Z of every point, (3, n): the grid scaled along each axis, and bent."""
        scale = 1 / self._rng.normal(1.0, 0.04, 3)
        world = np.meshgrid(*[a.astype(_DTYPE) for a in self._axes], indexing="ij")[::-1]
        centre = np.array([0, -17, 5])
        return np.stack(
            [
                (w.ravel() - c) * s + c + self._field(45, 0.8) + self._field(16, 0.5)
                for w, c, s in zip(world, centre, scale.astype(_DTYPE), strict=True)
            ]
        ).astype(_DTYPE)

    def _blend(self, index: NDArray[np.int64], depth: Floats, tissue: Tissue, chi: Floats | None = None) -> Floats:
        """Blend `tissue` into the maps at some points; return its share, (n,)."""
        share = np.clip(0.5 + depth / EDGE_MM, 0, 1).astype(_DTYPE)
        values = (tissue.chi if chi is None else chi, tissue.r2star, tissue.t1w, tissue.grey, tissue.white)
        for row, value in enumerate(values):
            self._maps[row, index] += share * (value - self._maps[row, index])
        return share

    def _replace(self, index: NDArray[np.int64], depth: Floats, tissue: Tissue, chi: Floats | None = None) -> Floats:
        """Blend and also reduce the shares of nuclei, unlike vessels and calcium, which belong to their nucleus."""
        share = self._blend(index, depth, tissue, chi)
        self._shares[:, index] *= 1 - share
        return share

    def _points_near(self, shape: Ellipsoid | Tube, side: int, slack_mm: float = EDGE_MM) -> NDArray[np.int64]:
        """Return the points in the bounding box of a shape; `side` -1 mirrors the shape to the left."""
        centre, reach = shape.box()
        low, high = centre - reach - slack_mm, centre + reach + slack_mm
        if side < 0:
            low[0], high[0] = -high[0], -low[0]
        inside = self._points[2] > low[2]
        inside &= self._points[2] < high[2]
        index = np.flatnonzero(inside)
        for row in (0, 1):
            values = self._points[row, index]
            index = index[(values > low[row]) & (values < high[row])]
        return index

    def _reflected_points(self, index: NDArray[np.int64], side: int) -> Floats:
        points = self._points[:, index].astype(np.float64)
        points[0] *= side
        return points

    def _paint_brain(self) -> None:
        """Paint fluid, cortex at the surface and in its folds, white matter, cerebellum and brainstem."""
        x, y, z = self._points
        radius = (np.abs(x / 67) ** 2.4 + np.abs((y + 17) / 86) ** 2.4 + np.abs((z - 9) / 64) ** 2.4) ** (1 / 2.4)
        depth = (1 - radius) * 66
        self._replace(self._all_points, depth, FLUID)
        fold = self._field(11, 1.0)
        below_surface = depth - 20 * np.clip(1 - np.abs(fold) / 0.6, 0, 1)
        # Distance from the fissure between the hemispheres, which ends around the corpus callosum.
        callosum = Ellipsoid((0, -8, 6), (67, 44, 25)).depth(self._points)
        from_fissure = np.abs(x + 0.6 * fold) + 1.5 * np.clip(callosum, 0, 30)
        below_surface = np.minimum(below_surface, from_fissure)
        cortex = np.minimum(depth - 1.2, np.minimum(below_surface + 3.5, from_fissure - 1.0))
        self._replace(self._all_points, cortex, CORTEX)
        values = (WHITE.chi + self._field(22, 0.006) + self._field(7, 0.005)).astype(_DTYPE)
        self._replace(self._all_points, np.minimum(depth - 4, below_surface - 3.2), WHITE, values)
        hull = np.maximum(depth, self._paint_hindbrain(values))
        self._inside = np.clip(0.5 + hull / EDGE_MM, 0, 1).astype(_DTYPE)

    def _paint_hindbrain(self, white: Floats) -> Floats:
        """Paint cerebellum and brainstem; return their depth."""
        cerebellum = Ellipsoid((0, -60, -37), (51, 34, 25)).depth(self._points).astype(_DTYPE)
        fold = np.abs(self._field(7, 1.0))
        self._replace(self._all_points, cerebellum, FLUID)
        self._replace(self._all_points, cerebellum - 2, CORTEX)
        self._replace(
            self._all_points, np.minimum(cerebellum - 6, 3 * (fold - 0.5) + 0.25 * (cerebellum - 8)), WHITE, white
        )
        stem = Tube([(0, -24, -4, 15), (0, -26, -14, 14), (0, -30, -28, 14), (0, -40, -66, 8)])
        depth = np.full(len(self._all_points), -np.inf, dtype=_DTYPE)
        index = self._points_near(stem, 1)
        depth[index] = stem.depth(self._reflected_points(index, 1))
        self._replace(index, depth[index], WHITE, white[index])
        return np.maximum(cerebellum, depth)

    def _paint_deep(self) -> None:
        """Paint structures that are not scored, then the nuclei, then the lateral ventricles."""
        for shape, tissue in PAIRED:
            wobble = self._field(12, 0.5)
            for side in (-1, 1):
                index = self._points_near(shape, side)
                self._replace(index, shape.depth(self._reflected_points(index, side)) + wobble[index], tissue)
        for cistern in MIDLINE:
            index = self._points_near(cistern, 1)
            self._replace(index, cistern.depth(self._reflected_points(index, 1)), FLUID)
        for row, (name, nucleus) in enumerate(NUCLEI.items()):
            self._paint_nucleus(row, name, nucleus)
        # Ventricles are painted last, so that a large ventricle thins the caudate.
        line = np.asarray(VENTRICLE.line) * [1, 1, 1, self._ventricle_size]
        ventricle, wobble = Tube(line, VENTRICLE.flat), self._field(16, 0.6)
        self._ventricles = np.zeros(len(self._all_points), dtype=_DTYPE)
        for side in (-1, 1):
            index = self._points_near(ventricle, side, 3)
            depth = ventricle.depth(self._reflected_points(index, side)) + wobble[index]
            self._ventricles[index] += self._replace(index, depth, FLUID)

    def _paint_nucleus(self, row: int, name: str, nucleus: Nucleus) -> None:
        """Paint a nucleus on both sides, with small differences between the sides."""
        ageing = {"CN": 0.25, "PU": 0.30}.get(name, 0.08) * self._age
        iron = np.exp(ageing + self._rng.normal(0, 0.12))
        shift, angles, size = self._rng.normal(0, 0.35, 3), self._rng.normal(0, 4, 3), self._rng.normal(0, 0.07, 3)
        wobble, texture = self._field(9, 0.45), np.exp(self._field(6, 0.12))
        centre, reach = nucleus.shape.box()
        for side in (-1, 1):
            offset = shift + self._rng.normal(0, 0.25, 3)
            if name == "CN":  # A large ventricle displaces it laterally.
                offset[0] += 2 * (self._ventricle_size - 1)
            rotation = Rotation.from_euler("xyz", angles + self._rng.normal(0, 3, 3), degrees=True).as_matrix()
            pose = rotation / np.exp(size + self._rng.normal(0, 0.03, 3))
            value = nucleus.chi * iron * np.exp(self._rng.normal(0, 0.04))
            index = self._points_near(nucleus.shape, side, 8.0)
            points = pose @ (self._reflected_points(index, side) - (centre + offset)[:, None])
            slope = np.clip(1 + np.asarray(nucleus.slope) @ (points / reach[:, None]), 0.3, 1.8)
            chi = (value * slope * texture[index]).astype(_DTYPE)
            depth = nucleus.shape.depth(points + centre[:, None]) + wobble[index]
            self._shares[row, index] += self._replace(index, depth, grey(value), chi)

    def _paint_vessels(self) -> None:
        """Paint named veins, and random veins of the white matter and of the cortex."""
        lines = [(np.array(v, dtype=np.float64), side) for v in VEINS for side in (-1, 1)]
        lines += [(np.array(v, dtype=np.float64), 1) for v in MIDLINE_VEINS]
        for _ in range(24):
            start = self._rng.uniform((15, -45, 18), (22, 30, 24))
            end = start + self._rng.uniform((8, -8, 8), (22, 8, 24))
            lines.append((np.c_[[start, (start + end) / 2, end], np.full(3, 0.55)], int(self._rng.choice((-1, 1)))))
        for _ in range(20):
            angle = self._rng.uniform(0.3, 2.6) + np.linspace(0, self._rng.uniform(0.2, 0.5), 5)
            tilt = self._rng.uniform(0.2, 1.2)
            normal = np.stack([np.cos(tilt) * np.ones(5), np.sin(tilt) * np.cos(angle), np.sin(tilt) * np.sin(angle)])
            radius = (np.abs(normal / np.array([[67], [86], [64]])) ** 2.4).sum(axis=0) ** (-1 / 2.4)
            points = (normal * (radius - 2.5)).T + np.array([0, -17, 9])
            lines.append((np.c_[points, np.full(5, 1.1)], int(self._rng.choice((-1, 1)))))
        for line, side in lines:
            line[:, :3] += self._rng.normal(0, 1.0, (len(line), 3)) * (line[:, 3:] < 1.5)
            line[:, 3] *= self._rng.uniform(0.8, 1.2)
            self._paint_tube(line, side, blood(self._rng.uniform(0.2, 0.4)))

    def _paint_calcium(self) -> None:
        """Paint calcifications of pineal gland, falx, choroid plexus and pallidum, and bleedings as bright as veins."""
        rng = self._rng
        spots: list[tuple[int, ArrayLike, float, float]] = [(1, (0, -32, 2), rng.uniform(1.5, 3.0), -0.30)]
        spots.append((1, (0, 10, 52), rng.uniform(-3, 2.5), -0.25))
        spots += [(side, (21, -35, 13), rng.uniform(0.5, 3.0), -0.25) for side in (-1, 1)]
        if rng.random() < 0.4:
            spots += [(side, (19, -2, -1), rng.uniform(0.8, 1.8), -0.30) for side in (-1, 1)]
        for _ in range(rng.poisson(2)):
            spots.append((1, rng.uniform((-45, -60, -25), (45, 40, 45)), rng.uniform(0.8, 1.8), 0.50))
        for side, point_mm, radius, chi in spots:
            centre = np.asarray(point_mm) + rng.normal(0, 1.5, 3)
            tissue = Tissue(chi * rng.uniform(0.6, 1.4), 25, 0.5)
            if radius > 0:
                self._paint_tube([(*centre, radius), (*(centre + rng.normal(0, 1, 3)), radius)], side, tissue)

    def _paint_tube(self, line: ArrayLike, side: int, tissue: Tissue) -> None:
        shape = Tube(line)
        index = self._points_near(shape, side)
        self._blend(index, shape.depth(self._reflected_points(index, side)), tissue)
