"""What lies in a cleared brain: cells, and what is mistaken for them, tile by tile.

A brain is a lattice of tiles of `TILE` voxels. What begins in a tile follows from the seed and the tile's index
alone, and nothing reaches further than `Tissue.reach_um`: so any part of a brain of any size is made from the
tiles around it. Everything is drawn in micrometres along z, y, x, with the first voxel's centre at 0.

- Regions are layers of a rounded box that fills the volume, and a nucleus; each has its own density of cells.
- Cells keep their distance by random priority (Matern's second process: Matern 1960, Spatial Variation): one is
  kept if none that is too near has a higher one, which neighbours decide without asking theirs.
- Emitters do not mix: where two meet, the brighter one is seen.
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
#: Region -> cells of the densest region, and grey of the neuropil of the first.
REGIONS: dict[str, tuple[float, float]] = {
    "outside": (0.0, 0.0),
    "outer layer": (0.35, 1.0),
    "dense layer": (1.0, 1.2),
    "inner layer": (0.55, 1.0),
    "tract": (0.15, 0.75),
    "nucleus": (0.8, 1.1),
}
#: Where layers end, as parts of the way from the middle to the surface.
_LAYERS = (0.4, 0.62, 0.86, 1.0)
#: The nucleus: middle and half its size, in the same measure.
_NUCLEUS, _NUCLEUS_SIZE = (0.1, -0.3, 0.35), (0.5, 0.3, 0.25)
#: Of the volume's half lengths, how much is tissue.
_FILL = 0.92
#: Of two cells that are too near, that of higher priority stays; those of a low mark are not annotated.
_CELL = np.dtype(
    [
        *[(name, "f8", 3) for name in ("centre", "radii")],
        *[(name, "f8") for name in ("brightness", "hollow", "priority", "mark")],
        ("turn", "f8", (3, 3)),
        ("processes", "f8", (2, 3)),
        ("region", "i8"),
    ]
)
#: A stretch of vessel goes this many steps both ways from its middle, each turned by this much.
_STEPS, _STEP_UM, _TURN = 7, 15.0, 0.35
#: A stump of dendrite: radius in um at either end, and its brightness in that of its cell.
_STUMP, _STUMP_SHARE = (2.0, 1.2), 0.6


@dataclass(frozen=True)
class Tissue:
    """What is in the tissue. Lengths in um; brightness in photo-electrons a voxel in full light.

    Attributes
    ----------
    spacing_um : float
        Isotropic voxels: a 6.5 um camera pixel at 3.2 x, as usual for whole mouse brains.
    cells_per_mm3 : float
        Of the densest region, before cells that are too near are dropped: a sparse population, as the classes of
        interneurons that have been counted in whole cleared brains are (Kim et al. 2017, Cell 171:456).
    diameter_um : (float, float)
        Of somata, uniform: from granule cells to large neurons; cellfinder, which finds such cells, assumes 16.
    elongation : float
        Standard deviation of the logarithm of each semi-axis: somata are egg-shaped.
    apart : float
        Least distance of two centres, in sums of their radii: 1 lets cells touch.
    cell_e, cell_spread : float
        Median brightness (chosen: some ten times the noise) and standard deviation of its logarithm: what cells
        express is log-normal (Furusawa et al. 2005, Biophysics 1:25).
    hollow : float
        Share of cells whose nucleus is darker, as with a dye in cytoplasm and membrane.
    process_um : (float, float)
        Length of the first one or two stumps of dendrites that are seen.
    vessels_per_mm3, vessel_um : float, (float, float)
        Stretches of 0.2 mm that are bright (blood left in them fluoresces), and their radii, most of them those
        of capillaries: 0.4 m in a cubic millimetre, of about 1 m that mouse cortex has (Tsai et al. 2009, J.
        Neurosci. 29:14553).
    vessel_e, vessel_spread : float
        Median brightness of a stretch and the spread of its logarithm: those of cells, so that brightness does
        not tell them apart and shape does.
    specks_per_mm3, speck_um, speck_e, speck_spread : float, (float, float), float, float
        Granules of lipofuscin and debris, alone or two to four together: standard deviation of a Gaussian (they
        are about as small as the lateral resolution), brightness in the middle before the optics, and its
        spread. Chosen: about as many as cells, and bright enough that a filter of a cell's size takes them for
        one, while they are half as wide.
    haze_per_mm3, haze_um, haze_e : float, (float, float), float
        Patches of brighter neuropil: standard deviation of a Gaussian, brightness at most. Chosen: larger than
        cells, and as bright as dim ones.
    neuropil_e : float
        Autofluorescence of the tissue, which clearing does not remove: half a cell's brightness, chosen.

    Raises
    ------
    DataError
        A number is negative, or a range is not from low to high.
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
                    f"{field.name} is {value.tolist()}; give numbers of 0 or more, of a range the lower first"
                )
        if self.spacing_um == 0:
            raise DataError("spacing_um is 0; give the length of a voxel in um")

    @property
    def tile_um(self) -> float:
        """Length of a tile."""
        return TILE * self.spacing_um

    @property
    def reach_um(self) -> float:
        """How far from where it begins anything goes."""
        soma = 0.75 * self.diameter_um[1]
        return max(soma + self.process_um[1], _STEPS * _STEP_UM + 2 * self.vessel_um[1], 3 * self.haze_um[1])


@dataclass(frozen=True)
class Scene:
    """One brain before the microscope sees it.

    Parameters
    ----------
    shape : (3,) tuple of int
        Voxels along z, y, x.
    tissue : Tissue
    seed : int
    """

    shape: Index
    tissue: Tissue
    seed: int

    @functools.cached_property
    def _frame(self) -> tuple[Floats, Floats]:
        """Middle of the volume, um, and half the tissue's lengths."""
        shape = np.array(self.shape) * self.tissue.spacing_um
        return (shape - self.tissue.spacing_um) / 2, _FILL * shape / 2

    @functools.cached_property
    def _waves(self) -> tuple[_Waves, _Waves]:
        """What bends the regions, along the frame, and what shades the neuropil, along um."""
        rng = np.random.default_rng((self.seed, 0))
        return _Waves(rng, 4, (1.5, 4.0)), _Waves(rng, 8, (0.03, 0.1))

    def regions(self, z: AnyFloats, y: AnyFloats, x: AnyFloats) -> NDArray[np.uint8]:
        """Region of points, um; the three broadcast."""
        u = [(p - m) / h for p, m, h in zip((z, y, x), *self._frame, strict=True)]
        depth = np.sqrt(np.sqrt(u[0] ** 4 + u[1] ** 4 + u[2] ** 4)) + 0.025 * self._waves[0](*u)
        layer = (len(_LAYERS) - np.searchsorted(_LAYERS, depth)).astype(np.uint8)
        away = sum(((p - m) / s) ** 2 for p, m, s in zip(u, _NUCLEUS, _NUCLEUS_SIZE, strict=True))
        return np.where((away < 1) & (layer > 0), np.uint8(len(REGIONS) - 1), layer)

    def cells(self, low: Floats, high: Floats) -> Any:
        """Cells with their centre between two corners, um, in the order of the tiles: records of `_CELL`."""
        tissue = self.tissue
        margin = max(tissue.apart * tissue.diameter_um[1], 1.0)
        drawn = self._gathered(_draw_cells, low - margin, high + margin)
        kept = ((drawn["centre"] >= low) & (drawn["centre"] < high)).all(axis=1)
        if kept.any():
            pairs = cKDTree(drawn["centre"]).query_pairs(margin, output_type="ndarray")
            size = np.cbrt(drawn["radii"].prod(axis=1))
            distance = np.linalg.norm(drawn["centre"][pairs[:, 0]] - drawn["centre"][pairs[:, 1]], axis=1)
            pairs = pairs[distance < tissue.apart * size[pairs].sum(axis=1)]
            order = np.argsort(drawn["priority"][pairs], axis=1)
            kept[np.take_along_axis(pairs, order, axis=1)[:, 0]] = False
        return drawn[kept]

    def light(self, start: Sequence[int], shape: Sequence[int]) -> Image:
        """What a box of voxels emits: electrons in full light."""
        tissue, canvas = self.tissue, Canvas(start, shape, self.tissue.spacing_um)
        where = self.regions(*canvas.axes)
        if not where.any():
            return canvas.image
        low, high = canvas.low - tissue.reach_um, canvas.high + tissue.reach_um
        canvas.gaussians(self._gathered(_draw_haze, low, high))
        grey = np.array([row[1] for row in REGIONS.values()], dtype=np.float32)[where]
        neuropil = (grey * tissue.neuropil_e + canvas.image) * (1 + 0.05 * self._waves[1](*canvas.axes))
        canvas.image[...] = 0
        canvas.capsules(self._gathered(_draw_vessels, low, high))
        canvas.image[...] *= where > 0
        for cell in self.cells(low, high):
            _paint_cell(canvas, cell)
        canvas.gaussians(self._gathered(_draw_specks, low, high))
        return np.asarray(neuropil * (where > 0) + canvas.image, dtype=np.float32)

    def _gathered(self, draw: Draw, low: Floats, high: Floats) -> Any:
        """All that begins in tiles that meet the box between two corners."""
        end = [-(-n // TILE) - 1 for n in self.shape]
        first, last = np.clip(np.array([low, high]) // self.tissue.tile_um, 0, end).astype(int).tolist()
        spans = [range(a, b + 1) for a, b in zip(first, last, strict=True)]
        return np.concatenate([_begun(self, draw, index) for index in itertools.product(*spans)])


class _Waves:
    """A smooth random function: a sum of products of sines along the axes, of about unit standard deviation."""

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
def _begun(scene: Scene, draw: Draw, index: Index) -> Any:
    """What of one kind begins in a tile: the same whichever box asks."""
    return draw(scene, index, np.random.default_rng((scene.seed, _DRAWS.index(draw), *index)))


def _places(scene: Scene, index: Index, rng: np.random.Generator, per_mm3: float) -> tuple[Floats, NDArray[np.uint8]]:
    """Random places in a tile's tissue, and their regions."""
    edge = scene.tissue.tile_um
    points = (np.array(index) + rng.uniform(0, 1, (rng.poisson(per_mm3 * (edge / 1e3) ** 3), 3))) * edge
    # The region of a place is that of the voxel it lies in, as the label volume has it.
    regions = scene.regions(*(np.rint(points / scene.tissue.spacing_um) * scene.tissue.spacing_um).T)
    return points[regions > 0], regions[regions > 0]


def _log_normal(rng: np.random.Generator, median: float, spread: float, count: int) -> Floats:
    return median * np.exp(spread * rng.standard_normal(count))


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Unit vectors along the last axis."""
    found = rng.standard_normal(shape)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def _draw_cells(scene: Scene, index: Index, rng: np.random.Generator) -> Any:
    """Records of `_CELL`, before those that are too near each other go."""
    tissue = scene.tissue
    points, regions = _places(scene, index, rng, tissue.cells_per_mm3)
    share = np.array([row[0] for row in REGIONS.values()])[regions]
    chosen = rng.uniform(size=len(points)) < share
    count = int(chosen.sum())
    cells = np.zeros(count, dtype=_CELL)
    cells["centre"], cells["region"] = points[chosen], regions[chosen]
    stretch = tissue.elongation * rng.standard_normal((count, 3))
    shape = np.exp(np.clip(stretch - stretch.mean(axis=1, keepdims=True), -0.4, 0.4))
    cells["radii"] = rng.uniform(*tissue.diameter_um, (count, 1)) / 2 * shape
    cells["brightness"] = _log_normal(rng, tissue.cell_e, tissue.cell_spread, count)
    cells["hollow"] = (rng.uniform(size=count) < tissue.hollow) * rng.uniform(0.4, 0.8, count)
    cells["priority"], cells["mark"] = rng.uniform(size=(2, count))
    cells["turn"] = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    lengths = rng.uniform(*tissue.process_um, (count, 2)) * (rng.integers(0, 3, (count, 1)) > np.arange(2))
    cells["processes"] = _directions(rng, (count, 2, 3)) * lengths[..., None]
    return cells


def _paint_cell(canvas: Canvas, cell: Any) -> None:
    """A soma, and stumps of dendrites that leave it."""
    centre, bright, size = cell["centre"], cell["brightness"], float(np.cbrt(cell["radii"].prod()))
    for process in cell["processes"]:
        length = float(np.linalg.norm(process))
        if length > 0:
            ends = np.array([centre + 0.8 * size / length * process, centre + (1 + size / length) * process])
            shape = np.array([_STUMP, np.full(2, _STUMP_SHARE * bright)]).T
            canvas.capsules(np.hstack([ends, shape])[None])
    canvas.ellipsoid(centre, cell["radii"], cell["turn"], bright, cell["hollow"])


def _draw_vessels(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Pieces of stretches, (n, 2, 5): z, y, x, radius, brightness of either end."""
    tissue = scene.tissue
    points, _ = _places(scene, index, rng, tissue.vessels_per_mm3)
    count, steps = len(points), 2 * _STEPS
    heading = _directions(rng, (count, 3))
    nodes = np.zeros((count, steps + 1, 3))
    for step in range(steps):
        heading = heading + _TURN * rng.standard_normal((count, 3))
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        nodes[:, step + 1] = nodes[:, step] + _STEP_UM * heading
    nodes += (points - nodes[:, _STEPS])[:, None]
    # Radii lean to capillaries; blood lies unevenly; a stretch fades where it ends.
    radius = (
        tissue.vessel_um[0] * (tissue.vessel_um[1] / max(tissue.vessel_um[0], 1e-9)) ** rng.uniform(0, 1, count) ** 2
    )
    radius = radius[:, None] * np.exp(0.15 * rng.standard_normal((count, steps + 1)))
    bright = _log_normal(rng, tissue.vessel_e, tissue.vessel_spread, count)[:, None]
    bright = bright * np.exp(0.25 * rng.standard_normal((count, steps + 1)))
    bright *= np.minimum(1, np.minimum(np.arange(steps + 1), np.arange(steps, -1, -1)) / 2)
    rows = np.concatenate([nodes, radius[..., None], bright[..., None]], axis=2)
    return np.stack([rows[:, :-1], rows[:, 1:]], axis=2).reshape(-1, 2, 5)


def _draw_specks(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Granules, alone or together: rows of z, y, x, standard deviation, brightness."""
    tissue = scene.tissue
    points, _ = _places(scene, index, rng, tissue.specks_per_mm3)
    points = np.repeat(points, rng.choice((1, 1, 1, 2, 3, 4), len(points)), axis=0)
    points += 3 * rng.standard_normal(points.shape)
    sigma = rng.uniform(*tissue.speck_um, len(points))
    return np.column_stack([points, sigma, _log_normal(rng, tissue.speck_e, tissue.speck_spread, len(points))])


def _draw_haze(scene: Scene, index: Index, rng: np.random.Generator) -> Floats:
    """Patches of neuropil: rows of z, y, x, standard deviation, brightness."""
    points, _ = _places(scene, index, rng, scene.tissue.haze_per_mm3)
    sigma = rng.uniform(*scene.tissue.haze_um, len(points))
    return np.column_stack([points, sigma, scene.tissue.haze_e * rng.uniform(0.3, 1, len(points))])


Draw = Callable[[Scene, Index, np.random.Generator], Any]
#: Each kind has a generator of its own, by its place here; the first is that of the waves.
_DRAWS: tuple[Draw | None, ...] = (None, _draw_cells, _draw_vessels, _draw_specks, _draw_haze)
