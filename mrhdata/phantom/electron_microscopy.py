"""Neuropil as an electron microscope sees it, with the place of every membrane known.

Shapes are drawn, not traced, at the size that microscopy of fixed brain reports (Harris and Weinberg 2012,
Cold Spring Harb. Perspect. Biol. 4:a005587; Peters, Palay and Webster 1991, The Fine Structure of the Nervous
System): processes of some hundred nm packed without space between them, two membranes of 7 nm with a cleft of
15 nm at every border, mitochondria of 0.3 um with cristae, vesicles of 40 nm crowded at synapses, and a dark
density across the cleft from them.

- Processes are cells of a Voronoi diagram in bent, stretched space: the border between two seeds a and b lies
  where ``(|p - b|^2 - |p - a|^2) / (2 |a - b|)``, the distance to it, is 0.
- Heavy metal binds to membranes: dark on bright. Every structure is painted with the share of a voxel that lies
  within its surface, so edges are true below a voxel.
- The image: a Gaussian beam, then noise of variance ``a + b * intensity``, and eight bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mrhdata.errors import GridError
from mrhdata.volume.construct import UNORIENTED, from_array

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

#: Structure -> label and intensity (0 black to 1 white).
STRUCTURES: dict[str, tuple[int, float]] = {
    "cytoplasm": (0, 0.62),
    "membrane": (1, 0.28),
    "mitochondrion": (2, 0.42),
    "crista": (3, 0.27),
    "vesicle": (4, 0.70),
    "vesicle membrane": (5, 0.26),
    "density": (6, 0.18),
}

#: Mitochondria do not overlap.
_ORGANELLES = [STRUCTURES[name][0] for name in ("mitochondrion", "crista")]
#: Lengths in nm: distance between seeds of processes, half the width of a border, membranes of organelles.
_PROCESS, _BORDER, _WALL = 360.0, 14.0, 8.0
#: Along z, y, x, of the space in which the diagram's cells are round.
_STRETCH = np.array([0.5, 1.0, 1.0])
#: Mitochondria: radius, length, distance of cristae. Vesicles: radius, and of the cloud they crowd in.
_MITO, _MITO_LENGTH, _CRISTAE = (90.0, 160.0), (400.0, 1200.0), 55.0
_VESICLE, _CLOUD = 22.0, 150.0
#: How many of each there are in a cubic micrometre.
_MITOS, _SYNAPSES, _VESICLES = 6.0, 4.0, 80
_BEAM, _NOISE = 7.0, (0.0002, 0.0004)


def neuropil(shape: Sequence[int] = (32, 128, 128), spacing_mm: float = 1e-5, seed: int = 0) -> dict[str, xr.DataArray]:
    """A block of neuropil: the image, and what is in it.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y, x.
    spacing_mm : float
        Of the isotropic grid; 1e-5 is 10 nm. Membranes of organelles are lost above 2e-5.
    seed : int
        Of the shapes and the noise.

    Returns
    -------
    group : dict of str to volume
        ``em``: uint8. Truth: ``em_clean``, float32 from 0 to 1, before beam and noise; ``structure``, labels of
        `STRUCTURES`; ``process``, uint16, which process a voxel belongs to, from 1.

    Examples
    --------
    >>> block = neuropil((8, 64, 64), seed=1)
    >>> block["em"].dtype, block["em"].shape, (block["em"].mrh.spacing * 1e6).round().tolist()
    (dtype('uint8'), (8, 64, 64), [10.0, 10.0, 10.0])
    >>> membrane = block["structure"] == STRUCTURES["membrane"][0]
    >>> bool(block["em"].where(membrane).mean() < 0.7 * block["em"].where(~membrane).mean())
    True
    """
    if len(shape) != 3 or min(shape) < 1 or not 1e-6 <= spacing_mm <= 1e-4:
        raise GridError(
            f"neuropil of shape {tuple(shape)} at {spacing_mm:g} mm cannot be drawn; "
            "use three lengths of 1 or more and 1e-6 to 1e-4 mm"
        )
    rng = np.random.default_rng(seed)
    block = _Block(shape, spacing_mm * 1e6, rng)
    seen = gaussian_filter(block.image, _BEAM / block.spacing)
    noise = rng.standard_normal(block.shape) * np.sqrt(_NOISE[0] + _NOISE[1] * seen)
    affine = UNORIENTED @ np.diag([spacing_mm] * 3 + [1.0])

    def volume(name: str, data: NDArray[np.generic], **attrs: str) -> xr.DataArray:
        return from_array(data, affine=affine, space="phantom", name=name, units="1", **attrs)

    eight = np.rint(255 * np.clip(seen + noise, 0, 1)).astype(np.uint8)
    return {
        "em": volume("em", eight, modality="em"),
        "em_clean": volume("em_clean", block.image.astype(np.float32), modality="truth"),
        "structure": volume("structure", block.labels, modality="truth", kind="labels"),
        "process": volume("process", block.process, modality="truth", kind="labels"),
    }


class _Block:
    """Intensity, structure and process on the grid; lengths in nm."""

    def __init__(self, shape: Sequence[int], spacing_nm: float, rng: np.random.Generator) -> None:
        self.shape, self.spacing, self._rng = tuple(shape), spacing_nm, rng
        self.extent = np.array(shape) * spacing_nm
        axes = [np.arange(n) * spacing_nm for n in shape]
        self.where = np.stack(np.meshgrid(*axes, indexing="ij"))
        self.image = np.zeros(shape)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.process, self.depth = self._processes()
        self._paint_cytoplasm()
        self._paint("membrane", _BORDER - self.depth)
        volume_um3 = float(np.prod(self.extent)) / 1e9
        for _ in range(rng.poisson(_MITOS * volume_um3)):
            self._mitochondrion()
        for _ in range(rng.poisson(_SYNAPSES * volume_um3)):
            self._synapse()

    def field(self, width_nm: float) -> Floats:
        """A smooth random field of zero mean and unit standard deviation: a Gaussian about each point of a grid."""
        weights = []
        for length in self.shape:
            place = np.arange(length) * self.spacing
            grid = np.arange(-4 * width_nm, place[-1] + 4 * width_nm, width_nm / 2)
            gaussian = np.exp(-0.5 * ((place[:, None] - grid) / width_nm) ** 2)
            weights.append(gaussian / np.sqrt((gaussian**2).sum(axis=1, keepdims=True)))
        out = self._rng.standard_normal([w.shape[1] for w in weights])
        for along in weights:
            out = np.tensordot(out, along, axes=(0, 1))
        return np.asarray(out, dtype=np.float64)

    def _paint(self, structure: str, signed_nm: Floats, place: tuple[slice, ...] = (slice(None),) * 3) -> None:
        """Fill where `signed_nm`, the distance inside a surface, is positive; `place` is the part it is given on."""
        label, value = STRUCTURES[structure]
        share = np.clip(0.5 + signed_nm / self.spacing, 0, 1)
        part = self.image[place]
        part += share * (value - part)
        self.labels[place][share >= 0.5] = label

    def _processes(self) -> tuple[NDArray[np.uint16], Floats]:
        """Which process each voxel belongs to, and its distance to the nearest border."""
        # Processes are longer than wide; bending makes borders some 30 % thinner here and thicker there.
        bend = np.stack([40 * self.field(150) + 90 * self.field(400) for _ in range(3)])
        points = ((self.where + bend) * _STRETCH[:, None, None, None]).reshape(3, -1).T
        low, high = points.min(axis=0) - 2 * _PROCESS, points.max(axis=0) + 2 * _PROCESS
        seeds = self._rng.uniform(low, high, (round(float(np.prod(high - low)) / _PROCESS**3) + 3, 3))
        distance, nearest = cKDTree(seeds).query(points, k=3)
        depth = np.full(len(points), np.inf)
        # The border with the second nearest seed is nearly always the nearest border; in corners the third's is.
        for k in (1, 2):
            normal = seeds[nearest[:, k]] - seeds[nearest[:, 0]]
            # Twice the seeds' distance, and what stretching makes of a length along it.
            scale = 2 * np.linalg.norm(normal * _STRETCH, axis=1)
            depth = np.minimum(depth, (distance[:, k] ** 2 - distance[:, 0] ** 2) / scale)
        _, process = np.unique(nearest[:, 0], return_inverse=True)
        return (process.reshape(self.shape) + 1).astype(np.uint16), depth.reshape(self.shape)

    def _paint_cytoplasm(self) -> None:
        """Each process has its own grey, with texture."""
        grey = self._rng.normal(0, 0.05, int(self.process.max()) + 1)
        texture = 0.02 * self.field(12) + 0.015 * self.field(60)
        self.image += STRUCTURES["cytoplasm"][1] + grey[self.process] + texture

    def _mitochondrion(self) -> None:
        """A rod that keeps within its process, walled, with lamellae that reach in from one side."""
        radius, length = self._rng.uniform(*_MITO), self._rng.uniform(*_MITO_LENGTH)
        centre = self._somewhere((self.depth > 0.8 * radius + _BORDER) & (self.labels == 0))
        if centre is None:
            return
        axis = self._rng.normal(0, 1, 3) / _STRETCH
        axis /= np.linalg.norm(axis)
        across = np.cross(axis, self._rng.normal(0, 1, 3))
        across /= np.linalg.norm(across)
        place, offset = self._near(centre, length / 2 + radius)
        along = np.tensordot(axis, offset, 1)
        beside = offset - np.clip(along, -length / 2, length / 2) * axis[:, None, None, None]
        own = self.process[place] == self.process[centre]
        free = self.depth[place] - _BORDER - 2 * _WALL
        inside = np.where(own, np.minimum(radius - np.linalg.norm(beside, axis=0), free), -self.spacing)
        if np.isin(self.labels[place][inside > 0], _ORGANELLES).any():
            return
        self._paint("crista", inside, place)
        self._paint("mitochondrion", inside - _WALL, place)
        side = np.tensordot(across, beside, 1)
        wave = along + 12 * np.sin(side / 40 + self._rng.uniform(0, 6))
        lamella = 0.6 * _WALL - np.abs(wave % _CRISTAE - _CRISTAE / 2)
        reach = side * np.where(wave // _CRISTAE % 2, 1, -1) + 0.4 * radius
        self._paint("crista", np.minimum(np.minimum(lamella, reach), inside - _WALL), place)

    def _synapse(self) -> None:
        """Vesicles crowd on one side of a border; a density lies on the border."""
        centre = self._somewhere((self.depth > _BORDER) & (self.depth < 2 * _BORDER) & (self.labels == 0))
        if centre is None:
            return
        place, offset = self._near(centre, _CLOUD)
        contact = 0.6 * _CLOUD - np.linalg.norm(offset, axis=0)
        self._paint("density", np.minimum(2 * _BORDER - self.depth[place], contact), place)
        room = (self.depth > _BORDER + _VESICLE + 5) & (self.labels == 0) & (self.process == self.process[centre])
        taken = np.empty((0, 3))
        for spot in np.array(centre) * self.spacing + self._rng.normal(0, _CLOUD, (12 * _VESICLES, 3)):
            voxel = tuple(np.rint(spot / self.spacing).astype(int))
            if any(v < 0 or v >= n for v, n in zip(voxel, self.shape, strict=True)) or not room[voxel]:
                continue
            if len(taken) < _VESICLES and (np.linalg.norm(taken - spot, axis=1) > 2.1 * _VESICLE).all():
                taken = np.vstack([taken, spot])
                self._vesicle(voxel, spot)

    def _vesicle(self, voxel: tuple[int, ...], spot: Floats) -> None:
        place, offset = self._near(voxel, _VESICLE + self.spacing)
        offset = offset + (np.array(voxel) * self.spacing - spot)[:, None, None, None]
        inside = _VESICLE - np.linalg.norm(offset, axis=0)
        self._paint("vesicle membrane", inside, place)
        self._paint("vesicle", inside - _WALL, place)

    def _somewhere(self, allowed: NDArray[np.bool_]) -> tuple[int, ...] | None:
        """A voxel out of those allowed, or none where there are none."""
        voxels = np.flatnonzero(allowed)
        if not len(voxels):
            return None
        return tuple(int(v) for v in np.unravel_index(self._rng.choice(voxels), self.shape))

    def _near(self, voxel: tuple[int, ...], reach_nm: float) -> tuple[tuple[slice, ...], Floats]:
        """The part of the block within a distance, and each voxel's offset from the middle, nm."""
        reach = int(np.ceil(reach_nm / self.spacing)) + 1
        place = tuple(slice(max(0, v - reach), v + reach + 1) for v in voxel)
        middle = np.array(voxel) * self.spacing
        return place, self.where[(slice(None), *place)] - middle[:, None, None, None]
