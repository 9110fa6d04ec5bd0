"""Neuropil under the electron microscope, with the position of every membrane known.

Shapes are synthetic, with the sizes that microscopy of fixed brain reports (Harris and Weinberg 2012, Cold Spring
Harb. Perspect. Biol. 4:a005587; Peters, Palay and Webster 1991, The Fine Structure of the Nervous System): processes
of some hundred nm packed without gaps, two membranes of 7 nm with a cleft of 15 nm at every border, mitochondria of
0.3 um with cristae, vesicles of 40 nm clustered at synapses, and a dark density across the cleft from them.

- Processes are regions of a Voronoi diagram in bent, stretched space: the border between two seeds a and b is where
  ``(|p - b|^2 - |p - a|^2) / (2 |a - b|)``, the distance to it, is 0.
- Heavy metal binds to membranes, which are dark on bright. Every structure is painted with the share of a voxel inside
  its surface, so edges are accurate to less than a voxel.
- The image is blurred by a Gaussian beam, gets noise of variance ``a + b * intensity``, and is stored with 8 bits.
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

#: Structure -> label, and intensity from 0 (black) to 1 (white).
STRUCTURES: dict[str, tuple[int, float]] = {
    "cytoplasm": (0, 0.62),
    "membrane": (1, 0.28),
    "mitochondrion": (2, 0.42),
    "crista": (3, 0.27),
    "vesicle": (4, 0.70),
    "vesicle membrane": (5, 0.26),
    "density": (6, 0.18),
}

#: Labels of mitochondria, which must not overlap.
_ORGANELLES = [STRUCTURES[name][0] for name in ("mitochondrion", "crista")]
#: Lengths in nm: spacing of the seeds of processes, half the width of a border, membrane thickness of organelles.
_PROCESS_SPACING, _HALF_BORDER, _MEMBRANE = 360.0, 14.0, 8.0
#: Scale along z, y, x to the space in which the regions of the diagram are round.
_STRETCH = np.array([0.5, 1.0, 1.0])
#: Lengths in nm: ranges of radius and length of mitochondria, and the distance between cristae.
_MITO_RADIUS, _MITO_LENGTH, _CRISTA_SPACING = (90.0, 160.0), (400.0, 1200.0), 55.0
#: Lengths in nm: radius of a vesicle, and standard deviation of the cluster at a synapse.
_VESICLE_RADIUS, _VESICLE_CLOUD = 22.0, 150.0
#: Densities per cubic micrometre, and the largest number of vesicles at a synapse.
_MITOS_PER_UM3, _SYNAPSES_PER_UM3, _MAX_VESICLES = 6.0, 4.0, 80
#: Standard deviation of the beam in nm; offset and slope of the noise variance over intensity.
_BEAM, _NOISE = 7.0, (0.0002, 0.0004)


def neuropil(shape: Sequence[int] = (32, 128, 128), spacing_mm: float = 1e-5, seed: int = 0) -> dict[str, xr.DataArray]:
    """Make a block of neuropil: the image and its ground truth.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along z, y, x.
    spacing_mm : float
        Spacing of the isotropic grid; 1e-5 is 10 nm. Membranes of organelles are lost above 2e-5.
    seed : int
        Random seed of shapes and noise.

    Returns
    -------
    group : dict of str to volume
        The image ``em``, uint8, and the ground truth: ``em_clean``, float32 from 0 to 1, before beam and noise;
        ``structure``, labels of `STRUCTURES`; ``process``, uint16, number of the process of each voxel, from 1.

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
            "shape must be three lengths of 1 or more and spacing_mm from 1e-6 to 1e-4; "
            f"got {tuple(shape)} at {spacing_mm:g} mm"
        )
    rng = np.random.default_rng(seed)
    block = _Block(shape, spacing_mm * 1e6, rng)
    blurred = gaussian_filter(block.image, _BEAM / block.spacing)
    noise = rng.standard_normal(block.shape) * np.sqrt(_NOISE[0] + _NOISE[1] * blurred)
    affine = UNORIENTED @ np.diag([spacing_mm] * 3 + [1.0])

    def volume(name: str, data: NDArray[np.generic], **attrs: str) -> xr.DataArray:
        return from_array(data, affine=affine, space="phantom", name=name, units="1", **attrs)

    image = np.rint(255 * np.clip(blurred + noise, 0, 1)).astype(np.uint8)
    return {
        "em": volume("em", image, modality="em"),
        "em_clean": volume("em_clean", block.image.astype(np.float32), modality="truth"),
        "structure": volume("structure", block.labels, modality="truth", kind="labels"),
        "process": volume("process", block.process, modality="truth", kind="labels"),
    }


class _Block:
    """Intensity, structure and process of each voxel; lengths are in nm."""

    def __init__(self, shape: Sequence[int], spacing_nm: float, rng: np.random.Generator) -> None:
        self.shape, self.spacing, self._rng = tuple(shape), spacing_nm, rng
        self.extent = np.array(shape) * spacing_nm
        axes = [np.arange(n) * spacing_nm for n in shape]
        self.points = np.stack(np.meshgrid(*axes, indexing="ij"))
        self.image = np.zeros(shape)
        self.labels = np.zeros(shape, dtype=np.uint8)
        self.process, self.depth = self._partition()
        self._paint_cytoplasm()
        self._paint("membrane", _HALF_BORDER - self.depth)
        volume_um3 = float(np.prod(self.extent)) / 1e9
        for _ in range(rng.poisson(_MITOS_PER_UM3 * volume_um3)):
            self._add_mitochondrion()
        for _ in range(rng.poisson(_SYNAPSES_PER_UM3 * volume_um3)):
            self._add_synapse()

    def field(self, width_nm: float) -> Floats:
        """Return a smooth random field of zero mean and unit deviation: Gaussians at the nodes of a grid."""
        weights = []
        for length in self.shape:
            voxels = np.arange(length) * self.spacing
            nodes = np.arange(-4 * width_nm, voxels[-1] + 4 * width_nm, width_nm / 2)
            gaussian = np.exp(-0.5 * ((voxels[:, None] - nodes) / width_nm) ** 2)
            weights.append(gaussian / np.sqrt((gaussian**2).sum(axis=1, keepdims=True)))
        out = self._rng.standard_normal([w.shape[1] for w in weights])
        for axis_weights in weights:
            out = np.tensordot(out, axis_weights, axes=(0, 1))
        return np.asarray(out, dtype=np.float64)

    def _paint(self, structure: str, signed_nm: Floats, region: tuple[slice, ...] = (slice(None),) * 3) -> None:
        """Paint a structure in a region of the block, from the signed distance inside its surface."""
        label, value = STRUCTURES[structure]
        share = np.clip(0.5 + signed_nm / self.spacing, 0, 1)
        image = self.image[region]
        image += share * (value - image)
        self.labels[region][share >= 0.5] = label

    def _partition(self) -> tuple[NDArray[np.uint16], Floats]:
        """Return the process of each voxel and the distance to the nearest border."""
        # The stretch makes processes longer than wide. The bend varies the width of borders by some 30 %.
        bend = np.stack([40 * self.field(150) + 90 * self.field(400) for _ in range(3)])
        points = ((self.points + bend) * _STRETCH[:, None, None, None]).reshape(3, -1).T
        low, high = points.min(axis=0) - 2 * _PROCESS_SPACING, points.max(axis=0) + 2 * _PROCESS_SPACING
        seeds = self._rng.uniform(low, high, (round(float(np.prod(high - low)) / _PROCESS_SPACING**3) + 3, 3))
        distance, nearest = cKDTree(seeds).query(points, k=3)
        depth = np.full(len(points), np.inf)
        # The nearest border is nearly always that with the second nearest seed; in corners that with the third.
        for k in (1, 2):
            normal = seeds[nearest[:, k]] - seeds[nearest[:, 0]]
            # Twice the distance of the seeds, converted from stretched to real lengths.
            scale = 2 * np.linalg.norm(normal * _STRETCH, axis=1)
            depth = np.minimum(depth, (distance[:, k] ** 2 - distance[:, 0] ** 2) / scale)
        _, process = np.unique(nearest[:, 0], return_inverse=True)
        return (process.reshape(self.shape) + 1).astype(np.uint16), depth.reshape(self.shape)

    def _paint_cytoplasm(self) -> None:
        """Paint each process in its own grey, with texture."""
        grey = self._rng.normal(0, 0.05, int(self.process.max()) + 1)
        texture = 0.02 * self.field(12) + 0.015 * self.field(60)
        self.image += STRUCTURES["cytoplasm"][1] + grey[self.process] + texture

    def _add_mitochondrion(self) -> None:
        """Add a rod inside one process, with a membrane and cristae that enter from alternating sides."""
        radius, length = self._rng.uniform(*_MITO_RADIUS), self._rng.uniform(*_MITO_LENGTH)
        centre = self._random_voxel((self.depth > 0.8 * radius + _HALF_BORDER) & (self.labels == 0))
        if centre is None:
            return
        axis = self._rng.normal(0, 1, 3) / _STRETCH
        axis /= np.linalg.norm(axis)
        across = np.cross(axis, self._rng.normal(0, 1, 3))
        across /= np.linalg.norm(across)
        region, offset = self._neighbourhood(centre, length / 2 + radius)
        along = np.tensordot(axis, offset, 1)
        from_axis = offset - np.clip(along, -length / 2, length / 2) * axis[:, None, None, None]
        same_process = self.process[region] == self.process[centre]
        free = self.depth[region] - _HALF_BORDER - 2 * _MEMBRANE
        inside = np.where(same_process, np.minimum(radius - np.linalg.norm(from_axis, axis=0), free), -self.spacing)
        if np.isin(self.labels[region][inside > 0], _ORGANELLES).any():
            return
        self._paint("crista", inside, region)
        self._paint("mitochondrion", inside - _MEMBRANE, region)
        side = np.tensordot(across, from_axis, 1)
        wave = along + 12 * np.sin(side / 40 + self._rng.uniform(0, 6))
        lamella = 0.6 * _MEMBRANE - np.abs(wave % _CRISTA_SPACING - _CRISTA_SPACING / 2)
        reach = side * np.where(wave // _CRISTA_SPACING % 2, 1, -1) + 0.4 * radius
        self._paint("crista", np.minimum(np.minimum(lamella, reach), inside - _MEMBRANE), region)

    def _add_synapse(self) -> None:
        """Add a density on a border, and vesicles on one side of it."""
        centre = self._random_voxel((self.depth > _HALF_BORDER) & (self.depth < 2 * _HALF_BORDER) & (self.labels == 0))
        if centre is None:
            return
        region, offset = self._neighbourhood(centre, _VESICLE_CLOUD)
        contact = 0.6 * _VESICLE_CLOUD - np.linalg.norm(offset, axis=0)
        self._paint("density", np.minimum(2 * _HALF_BORDER - self.depth[region], contact), region)
        allowed = self.depth > _HALF_BORDER + _VESICLE_RADIUS + 5
        allowed &= (self.labels == 0) & (self.process == self.process[centre])
        vesicles = np.empty((0, 3))
        for point in np.array(centre) * self.spacing + self._rng.normal(0, _VESICLE_CLOUD, (12 * _MAX_VESICLES, 3)):
            voxel = tuple(np.rint(point / self.spacing).astype(int))
            if any(v < 0 or v >= n for v, n in zip(voxel, self.shape, strict=True)) or not allowed[voxel]:
                continue
            if (
                len(vesicles) < _MAX_VESICLES
                and (np.linalg.norm(vesicles - point, axis=1) > 2.1 * _VESICLE_RADIUS).all()
            ):
                vesicles = np.vstack([vesicles, point])
                self._add_vesicle(voxel, point)

    def _add_vesicle(self, voxel: tuple[int, ...], centre_nm: Floats) -> None:
        region, offset = self._neighbourhood(voxel, _VESICLE_RADIUS + self.spacing)
        offset = offset + (np.array(voxel) * self.spacing - centre_nm)[:, None, None, None]
        inside = _VESICLE_RADIUS - np.linalg.norm(offset, axis=0)
        self._paint("vesicle membrane", inside, region)
        self._paint("vesicle", inside - _MEMBRANE, region)

    def _random_voxel(self, allowed: NDArray[np.bool_]) -> tuple[int, ...] | None:
        """Return a random voxel of a mask, or None if the mask is empty."""
        voxels = np.flatnonzero(allowed)
        if not len(voxels):
            return None
        return tuple(int(v) for v in np.unravel_index(self._rng.choice(voxels), self.shape))

    def _neighbourhood(self, voxel: tuple[int, ...], reach_nm: float) -> tuple[tuple[slice, ...], Floats]:
        """Return slices of the region within a distance of a voxel, and the offsets of its voxels in nm."""
        reach = int(np.ceil(reach_nm / self.spacing)) + 1
        region = tuple(slice(max(0, v - reach), v + reach + 1) for v in voxel)
        centre = np.array(voxel) * self.spacing
        return region, self.points[(slice(None), *region)] - centre[:, None, None, None]
