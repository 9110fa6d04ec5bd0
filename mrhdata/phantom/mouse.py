"""A digital mouse brain of known tissue, its MRI and its histology.

The tissue is given by three maps, volume fractions per voxel: **axon** (A), **myelin** (M) and cell
bodies, **cell** (C); every signal is computed from them, so that what a method recovers can be compared
with what is there. Shapes are drawn, not traced: ellipsoids, shells and tubes at a mouse brain's
size, bent differently for each subject.

MRI signal model (symbols below; diffusivities in um^2/ms, b in ms/um^2):

- T2-weighted: ``S = P exp(-TE R2)``, ``R2 = (1 - W)(R2_0 + r2 M) + W R2_w``, with water ``W`` of the
  ventricles. Relaxation rates rise linearly with myelin (Stueber et al. 2014, NeuroImage 93:95).
- Proton density ``P = 1 - p M``: myelin's own water decays before the echo.
- Magnetisation transfer: saturation of free water at steady state, ``S_on = S_off R1 / (R1 + k F)``
  (Henkelman et al. 1993, MRM 29:759; Helms et al. 2008, MRM 60:1396), bound pool ``F = F_0 + f M``,
  ``R1 = R1_0 + r1 M``.
- Diffusion, three compartments (after Zhang et al. 2012, NeuroImage 61:1000, and Palombo et al. 2020,
  NeuroImage 215:116835): axons as sticks, a share ``o`` of them orientation-averaged,
  ``(1 - o) exp(-b d (g.n)^2) + o sqrt(pi / (4 b d)) erf(sqrt(b d))`` (Kaden et al. 2016, MRM 75:1752);
  cell bodies as slow isotropic water ``exp(-b d_c)``; the rest as a zeppelin whose radial diffusivity is
  ``d (1 - v)`` (tortuosity, Szafer et al. 1995, MRM 33:697), averaged in the same way; water ``exp(-b d_w)``.
- Rician noise: the magnitude of the signal plus complex Gaussian noise (Gudbjartsson and Patz 1995,
  MRM 34:910).

Histology on the same grid, with section-wise staining differences and camera noise: autofluorescence
falls with myelin and saturates; neurofilament (NF) saturates with axons, MBP with myelin and Nissl with
cell bodies.

Tissue values are of the size that microscopy and MRI of fixed mouse brain report: myelin 0.2-0.3 in
white matter (West et al. 2018, NeuroImage 182:489), cell bodies densest in granule layers (Eroe et al.
2018, Front. Neuroinform. 12:84), diffusivity of fixed tissue 0.6 (Dyrby et al. 2011, HBM 32:544).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from mrhdata.preprocessing import parameter_maps
from mrhdata.volume.construct import from_array

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

#: Half axes of the brain along z (S), y (A), x (R), in mm.
BRAIN_MM = (3.6, 6.2, 5.1)
_MARGIN_MM = 0.4

#: Tissue -> label, axon, myelin, cell fraction, share of axons without common direction.
TISSUES: dict[str, tuple[int, float, float, float, float]] = {
    "cortex": (1, 0.20, 0.05, 0.14, 0.90),
    "white matter": (2, 0.42, 0.28, 0.06, 0.15),
    "striatum": (3, 0.22, 0.08, 0.16, 0.80),
    "thalamus": (4, 0.30, 0.14, 0.12, 0.60),
    "hippocampus": (5, 0.18, 0.05, 0.10, 0.85),
    "pyramidal layer": (6, 0.10, 0.03, 0.45, 0.90),
    "hypothalamus": (7, 0.20, 0.06, 0.13, 0.80),
    "brainstem": (8, 0.32, 0.18, 0.09, 0.50),
    "cerebellar molecular layer": (9, 0.20, 0.03, 0.08, 0.80),
    "cerebellar granule layer": (10, 0.12, 0.04, 0.40, 0.90),
    "ventricle": (11, 0.0, 0.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Protocol:
    """MRI protocol and signal parameters.

    The defaults are the 67 images of MRH-Net (Liang et al. 2022, eLife 11:e72331): two b0 and 30
    directions at b = 2000 and at 5000 s/mm^2, T2-weighted, and an MT pair.

    Attributes
    ----------
    shells : tuple of float
        b-values, ms/um^2 (thousands of s/mm^2).
    directions, b0s : int
        Per shell.
    snr, snr_b0 : float
        Mean brain signal over the noise's standard deviation, for T2 and MT images and for b0.
    """

    shells: tuple[float, ...] = (2.0, 5.0)
    directions: int = 30
    b0s: int = 2
    snr: float = 40.0
    snr_b0: float = 30.0
    te_ms: float = 50.0
    r2_per_s: tuple[float, float, float] = (20.0, 60.0, 5.0)  # R2_0, r2, R2_w
    r1_per_s: tuple[float, float] = (0.5, 1.2)  # R1_0, r1
    bound_pool: tuple[float, float] = (0.03, 0.45)  # F_0, f
    saturation_per_s: float = 10.0  # k
    myelin_density_loss: float = 0.3  # p
    diffusivity: tuple[float, float, float] = (0.6, 0.15, 2.0)  # d, d_c, d_w


def mouse_brain(spacing_mm: float = 0.2, seed: int = 0, protocol: Protocol | None = None) -> dict[str, xr.DataArray]:
    """One subject: its tissue, MRI and histology as a co-registered group.

    Parameters
    ----------
    spacing_mm : float
        Of the isotropic grid; 0.2 gives (40, 66, 55) voxels.
    seed : int
        Of this subject's shape, tissue and noise.
    protocol : Protocol, optional

    Returns
    -------
    group : dict of str to volume
        MRI, uint16: ``t2w``, ``mt_off``, ``mt_on``; ``dwi2000``, ``dwi5000`` with channels ``c`` (b0
        first). Histology, float32 from 0 to about 1: ``af``, ``nf``, ``mbp``, ``nissl``. Truth:
        ``axon``, ``myelin``, ``cell`` (fractions), ``af_clean`` (autofluorescence before staining
        differences and noise), ``tissue`` (labels of `TISSUES`), ``mask``.

    Examples
    --------
    >>> subject = mouse_brain(spacing_mm=0.8, seed=1)
    >>> subject["dwi2000"].dims, subject["dwi2000"].sizes["c"]
    (('c', 'z', 'y', 'x'), 32)
    >>> white = subject["tissue"] == TISSUES["white matter"][0]
    >>> bool(subject["myelin"].where(white).mean() > 2 * subject["myelin"].where(~white).mean())
    True
    """
    protocol = protocol or Protocol()
    rng = np.random.default_rng(seed)
    tissue = _Tissue(spacing_mm, rng)
    signals = _mri(tissue, protocol, rng)
    stains = _histology(tissue, rng)
    maps = {"axon": tissue.axon, "myelin": tissue.myelin, "cell": tissue.cell}
    affine = np.diag([spacing_mm] * 3 + [1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = tissue.origin[::-1]

    def volume(name: str, data: NDArray[np.generic], **attrs: str) -> xr.DataArray:
        return from_array(data, affine=affine, space="phantom", name=name, units="1", **attrs)

    group = {name: volume(name, data, modality="mri") for name, data in signals.items()}
    group |= {name: volume(name, data.astype(np.float32), modality="histology") for name, data in stains.items()}
    group |= {name: volume(name, data.astype(np.float32), modality="truth") for name, data in maps.items()}
    group["tissue"] = volume("tissue", tissue.labels.astype(np.uint8), modality="truth", kind="labels")
    group["mask"] = volume("mask", tissue.inside.astype(np.uint8), modality="truth", kind="mask")
    return group


def mouse_maps(brain: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Five parameter maps of a digital mouse that stand for single markers.

    Examples
    --------
    >>> list(mouse_maps(mouse_brain(spacing_mm=0.8)))
    ['T2w', 'MTR', 'D2000', 'D5000', 'anisotropy']
    """
    return {
        "T2w": brain["t2w"],
        "MTR": parameter_maps.mtr(brain["mt_off"], brain["mt_on"]),
        "D2000": parameter_maps.diffusivity(brain["dwi2000"], b0s=2, b=2.0),
        "D5000": parameter_maps.diffusivity(brain["dwi5000"], b0s=2, b=5.0),
        "anisotropy": parameter_maps.anisotropy(brain["dwi2000"], b0s=2),
    }


class _Tissue:
    """Fractions, fibre directions and labels on the grid of one subject, painted structure by structure."""

    def __init__(self, spacing_mm: float, rng: np.random.Generator) -> None:
        half = np.array(BRAIN_MM) + _MARGIN_MM
        counts = np.ceil(2 * half / spacing_mm).astype(int)
        self.origin = -(counts - 1) / 2 * spacing_mm
        axes = [o + np.arange(n) * spacing_mm for o, n in zip(self.origin, counts, strict=True)]
        self.spacing_mm = spacing_mm
        self.shape = tuple(int(n) for n in counts)
        self._rng = rng
        where = np.stack(np.meshgrid(*axes, indexing="ij"))
        # Each subject's brain is bent by up to about 0.3 mm, and 2 % larger or smaller along each axis.
        bend = np.stack([0.12 * self.field(1.0) for _ in range(3)])
        self.z, self.y, self.x = where * rng.normal(1.0, 0.02, 3)[:, None, None, None] + bend
        self.r = self.ellipsoid((0, 0, 0), BRAIN_MM)
        self.inside = self.r < 1
        self.axon, self.myelin, self.cell, self.stray, self.water = (np.zeros(self.shape) for _ in range(5))
        self.labels = np.zeros(self.shape, dtype=np.int64)
        self.direction = np.zeros((3, *self.shape))
        self.direction[1] = 1.0
        self._paint_all()
        self._vary()

    def field(self, width_mm: float) -> Floats:
        """A smooth random field of zero mean and unit standard deviation."""
        noise = self._rng.standard_normal(self.shape)
        smooth = gaussian_filter(noise, width_mm / self.spacing_mm, mode="reflect")
        return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float64)

    def ellipsoid(self, centre_mm: tuple[float, float, float], half_mm: tuple[float, float, float]) -> Floats:
        """Distance from a centre (z, y, |x|) in units of the half axes: 1 on the surface. Both hemispheres."""
        parts = zip((self.z, self.y, np.abs(self.x) if centre_mm[2] else self.x), centre_mm, half_mm, strict=True)
        return np.asarray(np.sqrt(sum(((p - c) / h) ** 2 for p, c, h in parts)), dtype=np.float64)

    def _paint(
        self, tissue: str, signed_mm: Floats, direction: tuple[float, float, float] | Floats = (0, 1, 0)
    ) -> None:
        """Fill where `signed_mm` (distance inside a structure) is positive, with edges of about a tenth of a mm."""
        label, axon, myelin, cell, stray = TISSUES[tissue]
        share = np.clip(0.5 + signed_mm / 0.1, 0, 1)
        for name, value in (("axon", axon), ("myelin", myelin), ("cell", cell), ("stray", stray)):
            old = getattr(self, name)
            setattr(self, name, old + share * (value - old))
        self.water += share * (float(tissue == "ventricle") - self.water)
        self.labels[share >= 0.5] = label
        towards = np.asarray(direction, dtype=np.float64)
        towards = towards.reshape(3, 1, 1, 1) if towards.ndim == 1 else towards
        self.direction = np.where(share >= 0.5, towards, self.direction)

    def _tube(self, tissue: str, z_mm: float, x_mm: float, radius_mm: float, y_mm: tuple[float, float]) -> None:
        """A bundle along y, in both hemispheres."""
        away = np.hypot(self.z - z_mm, np.abs(self.x) - x_mm)
        along = np.minimum(self.y - y_mm[0], y_mm[1] - self.y)
        self._paint(tissue, np.minimum(radius_mm - away, along))

    def _paint_all(self) -> None:
        scale = min(BRAIN_MM)
        depth = (1 - self.r) * scale
        dorsal = self.z + 0.8  # the cortical mantle ends below this
        behind = -(self.y + 3.4)  # cerebellum and brainstem begin here
        self._paint("hypothalamus", depth)
        self._paint("cortex", np.minimum(depth, dorsal))
        # Callosum and external capsule: a shell under the mantle, its fibres tangential and in the coronal plane.
        normal = np.stack([self.z / BRAIN_MM[0] ** 2, np.zeros(self.shape), self.x / BRAIN_MM[2] ** 2])
        tangent = np.stack([-normal[2], normal[1], normal[0]])
        self._paint("white matter", np.minimum(np.minimum(depth - 1.05, dorsal), 1.40 - depth), tangent)
        core = np.minimum(depth - 1.40, dorsal)
        self._paint("hippocampus", np.minimum(core, -(self.y + 0.6)))
        layer = 0.08 - np.abs(depth - 1.75 - 0.15 * np.sin(3 * self.x))
        self._paint("pyramidal layer", np.minimum(np.minimum(layer, core), -(self.y + 0.6)))
        self._paint("striatum", (1 - self.ellipsoid((0.2, 1.6, 1.9), (1.5, 1.7, 1.2))) * 1.2)
        bundles = self.field(0.25) - 1.3
        inner = (1 - self.ellipsoid((0.2, 1.6, 1.9), (1.3, 1.5, 1.0))) * 1.0
        self._paint("white matter", np.minimum(inner, 0.1 * bundles), (0.3, 0.9, 0.3))
        self._paint("thalamus", (1 - self.ellipsoid((-0.3, -1.2, 1.0), (1.3, 1.4, 1.2))) * 1.2)
        self._paint("white matter", (1 - self.ellipsoid((-0.3, -1.2, 2.35), (1.2, 1.5, 0.18))) * 0.18, (1, 0, 0))
        self._paint("brainstem", np.minimum(np.minimum(depth, behind), -(self.z + 0.2)))
        self._paint_cerebellum(depth, behind)
        self._tube("white matter", -0.9, 0.9, 0.22, (0.4, 3.4))  # anterior commissure, olfactory limb
        self._tube("white matter", -2.2, 1.3, 0.30, (-4.6, -0.6))  # cerebral peduncle
        self._tube("white matter", 0.55, 0.35, 0.18, (-0.8, 0.9))  # fornix
        self._paint("ventricle", (1 - self.ellipsoid((0.9, 0.4, 0.75), (0.5, 1.5, 0.22))) * 0.22)
        self._paint("ventricle", (1 - self.ellipsoid((-0.6, -1.2, 0.0), (1.2, 1.0, 0.12))) * 0.12)

    def _paint_cerebellum(self, depth: Floats, behind: Floats) -> None:
        """Folia: molecular layer outside, granule layer, and the white matter's arbor inside."""
        lobe = np.minimum(np.minimum(depth, behind), self.z + 0.2)
        fold = np.cos(2 * np.pi * (self.y + 0.6 * self.z) / 0.9)
        self._paint("cerebellar molecular layer", lobe)
        self._paint("cerebellar granule layer", np.minimum(lobe - 0.2, 0.12 * (fold + 0.5)))
        self._paint("white matter", np.minimum(lobe - 0.5, 0.12 * (fold - 0.75)), (1, 0, 0))

    def _vary(self) -> None:
        """Tissue varies within structures, each fraction by itself, and the cortex is layered."""
        layered = np.where(self.labels == TISSUES["cortex"][0], 1 + 0.35 * np.cos(2 * np.pi * (1 - self.r) * 9), 1.0)
        self.cell = self.cell * layered
        for name, strength in (("axon", 0.15), ("myelin", 0.20), ("cell", 0.20)):
            factor = np.exp(strength * (0.7 * self.field(0.4) + 0.7 * self.field(1.5)))
            setattr(self, name, np.clip(getattr(self, name) * factor * self.inside, 0, 0.6))
        # The three fractions share a voxel with extracellular space, of which at least a tenth is left.
        crowded = np.maximum(1.0, (self.axon + self.myelin + self.cell) / 0.9)
        self.axon, self.myelin, self.cell = (f / crowded for f in (self.axon, self.myelin, self.cell))
        self.labels[~self.inside] = 0
        self.direction /= np.maximum(np.linalg.norm(self.direction, axis=0), 1e-9)


def directions(count: int) -> Floats:
    """Unit vectors (count, 3) in z, y, x, spread over a half sphere as a Fibonacci spiral.

    Examples
    --------
    >>> np.linalg.norm(directions(30), axis=1).round(9).min()
    np.float64(1.0)
    """
    i = np.arange(count) + 0.5
    z = 1 - i / count
    angle = np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - z**2)
    return np.stack([z, radius * np.sin(angle), radius * np.cos(angle)], axis=1)


def _mri(tissue: _Tissue, p: Protocol, rng: np.random.Generator) -> dict[str, NDArray[np.uint16]]:
    inside, m, w = tissue.inside, tissue.myelin, tissue.water
    # The receive coil's sensitivity, and the transmit field's, which MT saturation follows squared.
    receive, transmit = 1 + 0.08 * tissue.field(3.0), 1 + 0.03 * tissue.field(3.0)
    density = inside * (1 - p.myelin_density_loss * m) * receive
    r2 = (1 - w) * (p.r2_per_s[0] + p.r2_per_s[1] * m) + w * p.r2_per_s[2]
    r1 = p.r1_per_s[0] + p.r1_per_s[1] * m
    bound = (1 - w) * (p.bound_pool[0] + p.bound_pool[1] * m)
    t2w = density * np.exp(-p.te_ms / 1e3 * r2)
    mt_on = density * r1 / (r1 + p.saturation_per_s * bound * transmit**2)
    images = {
        "t2w": _magnitude(t2w, p.snr, inside, rng),
        "mt_off": _magnitude(density, p.snr, inside, rng),
        # One receiver gain for the pair: the noise of the second is that of the first.
        "mt_on": _magnitude(mt_on, p.snr, inside, rng, reference=density),
    }
    b0 = density * np.exp(-0.03 * r2)
    for b in p.shells:
        shell = [b0] * p.b0s + [b0 * _attenuation(tissue, p, b, g) for g in directions(p.directions)]
        stacked = [_magnitude(s, p.snr_b0, inside, rng, reference=b0) for s in shell]
        images[f"dwi{round(b * 1000)}"] = np.stack(stacked)
    return images


def _attenuation(tissue: _Tissue, p: Protocol, b: float, gradient: Floats) -> Floats:
    """Signal of one diffusion-weighted image relative to b0."""
    d, d_cell, d_water = p.diffusivity
    # Only water that lives to the echo counts: not the myelin's own.
    visible = np.maximum(1 - tissue.myelin, 1e-6)
    axon, cell = tissue.axon / visible, tissue.cell / visible
    cosine2 = np.einsum("i,i...->...", gradient, tissue.direction) ** 2
    radial = d * (1 - axon)
    stick = _averaged(b, d, np.zeros_like(radial), cosine2, tissue.stray)
    zeppelin = _averaged(b, d, radial, cosine2, tissue.stray)
    soma = np.exp(-b * d_cell)
    solid = axon * stick + cell * soma + (1 - axon - cell) * zeppelin
    return np.asarray((1 - tissue.water) * solid + tissue.water * np.exp(-b * d_water), dtype=np.float64)


def _averaged(b: float, axial: float, radial: Floats, cosine2: Floats, stray: Floats) -> Floats:
    """Axially symmetric Gaussian diffusion, a share `stray` of it averaged over all directions."""
    along = np.exp(-b * (radial + (axial - radial) * cosine2))
    excess = np.maximum(b * (axial - radial), 1e-9)
    powder = np.exp(-b * radial) * np.sqrt(np.pi / (4 * excess)) * erf(np.sqrt(excess))
    return np.asarray((1 - stray) * along + stray * powder, dtype=np.float64)


def _magnitude(
    signal: Floats,
    snr: float,
    inside: NDArray[np.bool_],
    rng: np.random.Generator,
    reference: Floats | None = None,
) -> NDArray[np.uint16]:
    """Rician magnitude, in counts where 4000 is full signal."""
    sigma = (signal if reference is None else reference)[inside].mean() / snr
    real, imaginary = signal + rng.normal(0, sigma, signal.shape), rng.normal(0, sigma, signal.shape)
    return np.asarray(np.rint(4000 * np.hypot(real, imaginary)), dtype=np.uint16)


def _histology(tissue: _Tissue, rng: np.random.Generator) -> dict[str, Floats]:
    a, m, c = tissue.axon, tissue.myelin, tissue.cell
    clean = {
        "af": tissue.inside * (1 - tissue.water) * (0.75 - 0.50 * m / (m + 0.10) - 0.10 * a + 0.15 * c),
        "nf": 1.4 * a / (a + 0.30),
        "mbp": 1.4 * m / (m + 0.12),
        # Last: a stain that is added draws its noise after the others', which stay as they were.
        "nissl": 1.4 * c / (c + 0.15),
    }
    stains = {}
    for name, stain in clean.items():
        seen = gaussian_filter(stain, 0.05 / tissue.spacing_mm)
        # Coronal sections are stained one by one.
        sections = rng.normal(1.0, 0.02, (1, tissue.shape[1], 1))
        stains[name] = np.maximum(seen * sections * (1 + 0.03 * tissue.field(2.0)) + rng.normal(0, 0.02, seen.shape), 0)
    return stains | {"af_clean": clean["af"]}
