"""Emitters of a cleared brain, generated tile by tile: cells, and structures that can be mistaken for cells.

A brain is a lattice of tiles of `TILE` voxels. The objects that start in a tile depend only on the seed and the
index of the tile, and none extends further than `Tissue.reach_um`. So any part of a brain of any size can be made
from the tiles around it. Lengths are in micrometres along z, y, x, with the centre of the first voxel at 0.

- Regions are layers of a rounded box that fills the volume, and a nucleus; each has its own density of cells.
- Cells keep a minimum distance by random priority (Matern's second process: Matern 1960, Spatial Variation): a cell
  is dropped if another one that is too near has a higher priority. The decision needs only direct neighbours.
- Emitters do not add up: overlapping emitters keep the larger brightness.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mrhdata.errors import DataError
from mrhdata.phantom.rasterize import Canvas

Floats = NDArray[np.float64]
AnyFloats = NDArray[np.floating[Any]]
Image = NDArray[np.float32]
Index = tuple[int, int, int]

#: Voxels along each edge of a tile.
TILE = 64
#: Region -> density of cells relative to the densest region, brightness of the neuropil relative to the outer layer.
REGIONS: dict[str, tuple[float, float]] = {
    "outside": (0.0, 0.0),
    "outer layer": (0.35, 1.0),
    "dense layer": (1.0, 1.2),
    "inner layer": (0.55, 1.0),
    "tract": (0.15, 0.75),
    "nucleus": (0.8, 1.1),
}
#: Outer ends of the layers, as shares of the distance from the centre to the surface.
_LAYERS = (0.4, 0.62, 0.86, 1.0)
#: Centre and half axes of the nucleus, in the same units.
_NUCLEUS, _NUCLEUS_SIZE = (0.1, -0.3, 0.35), (0.5, 0.3, 0.25)
#: Extent of the tissue as a share of that of the volume.
_TISSUE_SHARE = 0.92
#: Of two cells that are too near, the one with the higher `priority` stays. Cells with an `annotation_draw` (uniform
#: from 0 to 1) below the missing share are not annotated.
_CELL = np.dtype(
    [
        *[(name, "f8", 3) for name in ("centre", "radii")],
        *[(name, "f8") for name in ("brightness", "hollow", "priority", "annotation_draw")],
        ("rotation", "f8", (3, 3)),
        ("processes", "f8", (2, 3)),
        ("region", "i8"),
    ]
)
#: Steps of a vessel segment in each direction from its middle, their length, and the random turn at each step.
_VESSEL_STEPS, _VESSEL_STEP_UM, _VESSEL_TURN = 7, 15.0, 0.35
#: Radii in um of a dendrite stump at its two ends, and its brightness relative to its cell.
_STUMP_RADII, _STUMP_BRIGHTNESS = (2.0, 1.2), 0.6


@dataclass(frozen=True)
class Tissue:
    """Settings of the tissue. Lengths are in um, brightness in photo-electrons per voxel under full illumination.

    Attributes
    ----------
    spacing_um : float
        Isotropic spacing: a 6.5 um camera pixel at 3.2 x, as usual for whole mouse brains.
    cells_per_mm3 : float
        Density in the densest region before cells that are too near are dropped: a sparse population, like the
        classes of interneurons counted in whole cleared brains (Kim et al. 2017, Cell 171:456).
    diameter_um : (float, float)
        Range of soma diameters (uniform), from granule cells to large neurons; cellfinder assumes 16.
    elongation : float
        Standard deviation of the logarithm of each semi-axis of a soma.
    apart : float
        Smallest distance of two centres over the sum of their radii; cells may touch at 1.
    cell_e, cell_spread : float
        Median brightness (chosen: some ten times the noise) and standard deviation of its logarithm. Expression
        levels of cells are log-normal (Furusawa et al. 2005, Biophysics 1:25).
    hollow : float
        Share of cells with a darker nucleus, as with a dye in cytoplasm and membrane.
    process_um : (float, float)
        Range of lengths of the up to two visible dendrite stumps.
    vessels_per_mm3, vessel_um : float, (float, float)
        Density and range of radii of vessel segments, which are 0.2 mm long and bright because remaining blood
        fluoresces. Most are capillaries. The total length is 0.4 m per mm3; mouse cortex has about 1 m per mm3
        (Tsai et al. 2009, J. Neurosci. 29:14553).
    vessel_e, vessel_spread : float
        Median brightness of a segment and standard deviation of its logarithm. Both are those of cells, so that
        only shape distinguishes vessels from cells.
    specks_per_mm3, speck_um, speck_e, speck_spread : float, (float, float), float, float
        Granules of lipofuscin and debris, single or in groups of two to four: density, standard deviation of a
        Gaussian (about the lateral resolution), peak brightness before the optics, and standard deviation of its
        logarithm. Chosen: about as many as cells, half as wide, and so bright that a filter of the size of a cell
        responds to them as to cells.
    haze_per_mm3, haze_um, haze_e : float, (float, float), float
        Patches of brighter neuropil: density, standard deviation of a Gaussian, largest brightness. Chosen: larger
        than cells, and as bright as dim ones.
    neuropil_e : float
        Autofluorescence that clearing does not remove. Chosen: half the brightness of a cell.

    Raises
    ------
    DataError
        If a number is negative or not finite, or if a range is not from low to high.
    """

    spacing_um: float = 2.0
    cells_per_mm3: float = 15000.0
    diameter_um: tuple[float, float] = (8.0, 16.0)
    elongation: float = 0.12
    apart: float = 1.0
    cell_e: float = 180.0
    cell_spread: float = 0.45
    hollow: float = 0.35
    process_um: tuple[float, float] = (8.0, 20.0)
    vessels_per_mm3: float = 2000.0
    vessel_um: tuple[float, float] = (2.0, 7.0)
    vessel_e: float = 200.0
    vessel_spread: float = 0.45
    specks_per_mm3: float = 4000.0
    speck_um: tuple[float, float] = (0.9, 1.7)
    speck_e: float = 2500.0
    speck_spread: float = 0.6
    haze_per_mm3: float = 1500.0
    haze_um: tuple[float, float] = (12.0, 25.0)
    haze_e: float = 80.0
    neuropil_e: float = 90.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = np.atleast_1d(getattr(self, field.name))
            if not ((value >= 0) & (value < np.inf)).all() or (len(value) == 2 and value[0] > value[1]):
                raise DataError(
                    f"{field.name} must be 0 or more, and a range must start with its lower end; got {value.tolist()}"
                )
        if self.spacing_um == 0:
            raise DataError("spacing_um must be above 0; got 0. Pass the voxel size in um.")

    @property
    def tile_um(self) -> float:
        """Edge length of a tile, in um."""
        return TILE * self.spacing_um

    @property
    def reach_um(self) -> float:
        """Largest extent of an object from its starting point, in um."""
        soma = 0.75 * self.diameter_um[1]
        return max(
            soma + self.process_um[1], _VESSEL_STEPS * _VESSEL_STEP_UM + 2 * self.vessel_um[1], 3 * self.haze_um[1]
        )


@dataclass(frozen=True)
class Scene:
    """Fluorescence of one brain before the optics.

    Parameters
    ----------
    shape : (3,) tuple of int
        Number of voxels along z, y, x.
    tissue : Tissue
        Settings of the tissue.
    seed : int
        Random seed.
    """

    shape: Index
    tissue: Tissue
    seed: int

    @functools.cached_property
    def _frame(self) -> tuple[Floats, Floats]:
        """Centre of the volume and half axes of the tissue, in um."""
        shape = np.array(self.shape) * self.tissue.spacing_um
        return (shape - self.tissue.spacing_um) / 2, _TISSUE_SHARE * shape / 2

    @functools.cached_property
    def _waves(self) -> tuple[_Waves, _Waves]:
        """Random functions that bend the regions (of frame coordinates) and shade the neuropil (of um)."""
        rng = np.random.default_rng((self.seed, 0))
        return _Waves(rng, 4, (1.5, 4.0)), _Waves(rng, 8, (0.03, 0.1))

    def regions(self, z: AnyFloats, y: AnyFloats, x: AnyFloats) -> NDArray[np.uint8]:
        """Return the region of points in um; z, y and x broadcast."""
        u = [(p - m) / h for p, m, h in zip((z, y, x), *self._frame, strict=True)]
        radius = np.sqrt(np.sqrt(u[0] ** 4 + u[1] ** 4 + u[2] ** 4)) + 0.025 * self._waves[0](*u)
        layer = (len(_LAYERS) - np.searchsorted(_LAYERS, radius)).astype(np.uint8)
        nucleus = sum(((p - m) / s) ** 2 for p, m, s in zip(u, _NUCLEUS, _NUCLEUS_SIZE, strict=True))
        return np.where((nucleus < 1) & (layer > 0), np.uint8(len(REGIONS) - 1), layer)

    def cells(self, low: Floats, high: Floats) -> Any:
        """Return the cells with their centre between two corners in um, in the order of tiles: records of `_CELL`."""
        tissue = self.tissue
        margin = max(tissue.apart * tissue.diameter_um[1], 1.0)
        candidates = self._gather(_draw_cells, low - margin, high + margin)
        centre = candidates["centre"]
        mask = ((centre >= low) & (centre < high)).all(axis=1)
        if mask.any():
            pairs = cKDTree(centre).query_pairs(margin, output_type="ndarray")
            size = np.cbrt(candidates["radii"].prod(axis=1))
            distance = np.linalg.norm(centre[pairs[:, 0]] - centre[pairs[:, 1]], axis=1)
            pairs = pairs[distance < tissue.apart * size[pairs].sum(axis=1)]
            order = np.argsort(candidates["priority"][pairs], axis=1)
            mask[np.take_along_axis(pairs, order, axis=1)[:, 0]] = False
        return candidates[mask]

    def light(self, start: Sequence[int], shape: Sequence[int]) -> Image:
        """Return the light that a box of voxels emits, in electrons under full illumination."""
        tissue, canvas = self.tissue, Canvas(start, shape, self.tissue.spacing_um)
        regions = self.regions(*canvas.axes)
        if not regions.any():
            return canvas.image
        low, high = canvas.low - tissue.reach_um, canvas.high + tissue.reach_um
        canvas.gaussians(self._gather(_draw_haze, low, high))
        grey = np.array([row[1] for row in REGIONS.values()], dtype=np.float32)[regions]
        neuropil = (grey * tissue.neuropil_e + canvas.image) * (1 + 0.05 * self._waves[1](*canvas.axes))
        canvas.image[...] = 0
        canvas.capsules(self._gather(_draw_vessels, low, high))
        canvas.image[...] *= regions > 0
        for cell in self.cells(low, high):
            _paint_cell(canvas, cell)
        canvas.gaussians(self._gather(_draw_specks, low, high))
        return np.asarray(neuropil * (regions > 0) + canvas.image, dtype=np.float32)

    def _gather(self, draw: Draw, low: Floats, high: Floats) -> Any:
        """Return all objects of one kind that start in tiles between two corners in um."""
        last_tile = [-(-n // TILE) - 1 for n in self.shape]
        first, last = np.clip(np.array([low, high]) // self.tissue.tile_um, 0, last_tile).astype(int).tolist()
        indices = [range(a, b + 1) for a, b in zip(first, last, strict=True)]
        return np.concatenate([_draw_tile(self, draw, index) for index in itertools.product(*indices)])


class _Waves:
    """Smooth random function of three coordinates: a sum of products of sines, of about unit standard deviation."""

    def __init__(self, rng: np.random.Generator, count: int, rates: tuple[float, float]) -> None:
        self._rates = rng.uniform(*rates, (count, 3))
        self._phases = rng.uniform(0, 2 * np.pi, (count, 3))

    def __call__(self, *points: AnyFloats) -> Any:
        total: Any = 0.0
        for rates, phases in zip(self._rates, self._phases, strict=True):
            z, y, x = (np.sin(r * p + f) for r, p, f in zip(rates, points, phases, strict=True))
            total = total + z * y * x
        return total * np.sqrt(8 / len(self._rates))


@functools.lru_cache(maxsize=8192)
def _draw_tile(scene: Scene, draw: Draw, index: Index) -> Any:
    """Draw the objects of one kind that start in a tile. They do not depend on the requested box."""
    return draw(scene, index, np.random.default_rng((scene.seed, _DRAWS.index(draw), *index)))


def _draw_points(
    scene: Scene, index: Index, rng: np.random.Generator, per_mm3: float
) -> tuple[Floats, NDArray[np.uint8]]:
    """Draw random points in the tissue of a tile; return them and their regions."""
    edge = scene.tissue.tile_um
    points = (np.array(index) + rng.uniform(0, 1, (rng.poisson(per_mm3 * (edge / 1e3) ** 3), 3))) * edge
    # Points are rounded to voxel centres, so that their regions agree with the label volume.
    regions = scene.regions(*(np.rint(points / scene.tissue.spacing_um) * scene.tissue.spacing_um).T)
    return points[regions > 0], regions[regions > 0]


def _log_normal(rng: np.random.Generator, median: float, spread: float, count: int) -> Floats:
    return median * np.exp(spread * rng.standard_normal(count))


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Draw random unit vectors along the last axis."""
    vectors = rng.standard_normal(shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _draw_cells(scene: Scene, index: Index, rng: np.random.Generator) -> Any:
    """Draw records of `_CELL`, before cells that are too near are dropped."""
    tissue = scene.tissue
    points, regions = _draw_points(scene, index, rng, tissue.cells_per_mm3)
    density = np.array([row[0] for row in REGIONS.values()])[regions]
    accepted = rng.uniform(size=len(points)) < density
    count = int(accepted.sum())
    cells = np.zeros(count, dtype=_CELL)
    cells["centre"], cells["region"] = points[accepted], regions[accepted]
    stretch = tissue.elongation * rng.standard_normal((count, 3))
    shape = np.exp(np.clip(stretch - stretch.mean(axis=1, keepdims=True), -0.4, 0.4))
    cells["radii"] = rng.uniform(*tissue.diameter_um, (count, 1)) / 2 * shape
    cells["brightness"] = _log_normal(rng, tissue.cell_e, tissue.cell_spread, count)
    cells["hollow"] = (rng.uniform(size=count) < tissue.hollow) * rng.uniform(0.4, 0.8, count)
    cells["priority"], cells["annotation_draw"] = rng.uniform(size=(2, count))
    cells["rotation"] = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    lengths = rng.uniform(*tissue.process_um, (count, 2)) * (rng.integers(0, 3, (count, 1)) > np.arange(2))
    cells["processes"] = _directions(rng, (count, 2, 3)) * lengths[..., None]
    return cells


def _paint_cell(canvas: Canvas, cell: Any) -> None:
    """Paint a soma and its dendrite stumps."""
    centre, brightness, size = cell["centre"], cell["brightness"], float(np.cbrt(cell["radii"].prod()))
    for process in cell["processes"]:
        length = float(np.linalg.norm(process))
        if length > 0:
            ends = np.array([centre + 0.8 * size / length * process, centre + (1 + size / length) * process])
            radius_and_brightness = np.array([_STUMP_RADII, np.full(2, _STUMP_BRIGHTNESS * brightness)]).T
            canvas.capsules(np.hstack([ends, radius_and_brightness])[None])
    canvas.ellipsoid(centre, cell["radii"], cell["rotation"], brightness, cell["hollow"])


def _draw_vessels(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Draw vessel segments as capsules, (n, 2, 5): z, y, x, radius and brightness of both ends."""
    tissue = scene.tissue
    points, _ = _draw_points(scene, index, rng, tissue.vessels_per_mm3)
    count, steps = len(points), 2 * _VESSEL_STEPS
    heading = _directions(rng, (count, 3))
    nodes = np.zeros((count, steps + 1, 3))
    for step in range(steps):
        heading = heading + _VESSEL_TURN * rng.standard_normal((count, 3))
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        nodes[:, step + 1] = nodes[:, step] + _VESSEL_STEP_UM * heading
    nodes += (points - nodes[:, _VESSEL_STEPS])[:, None]
    # Squaring the uniform number favours capillaries; brightness varies along a segment and fades at its ends.
    radius = (
        tissue.vessel_um[0] * (tissue.vessel_um[1] / max(tissue.vessel_um[0], 1e-9)) ** rng.uniform(0, 1, count) ** 2
    )
    radius = radius[:, None] * np.exp(0.15 * rng.standard_normal((count, steps + 1)))
    brightness = _log_normal(rng, tissue.vessel_e, tissue.vessel_spread, count)[:, None]
    brightness = brightness * np.exp(0.25 * rng.standard_normal((count, steps + 1)))
    brightness *= np.minimum(1, np.minimum(np.arange(steps + 1), np.arange(steps, -1, -1)) / 2)
    rows = np.concatenate([nodes, radius[..., None], brightness[..., None]], axis=2)
    return np.stack([rows[:, :-1], rows[:, 1:]], axis=2).reshape(-1, 2, 5)


def _draw_specks(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Draw single or grouped granules: rows of z, y, x, standard deviation, brightness."""
    tissue = scene.tissue
    points, _ = _draw_points(scene, index, rng, tissue.specks_per_mm3)
    points = np.repeat(points, rng.choice((1, 1, 1, 2, 3, 4), len(points)), axis=0)
    points += 3 * rng.standard_normal(points.shape)
    sigma = rng.uniform(*tissue.speck_um, len(points))
    return np.column_stack([points, sigma, _log_normal(rng, tissue.speck_e, tissue.speck_spread, len(points))])


def _draw_haze(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Draw patches of brighter neuropil: rows of z, y, x, standard deviation, brightness."""
    points, _ = _draw_points(scene, index, rng, scene.tissue.haze_per_mm3)
    sigma = rng.uniform(*scene.tissue.haze_um, len(points))
    return np.column_stack([points, sigma, scene.tissue.haze_e * rng.uniform(0.3, 1, len(points))])


Draw = Callable[[Scene, Index, np.random.Generator], Any]
#: The index of a kind seeds its generator; index 0 is that of `_Waves`.
_DRAWS: tuple[Draw | None, ...] = (None, _draw_cells, _draw_vessels, _draw_specks, _draw_haze)
