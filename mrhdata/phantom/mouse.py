"""A digital mouse brain with known tissue, its MRI and its histology.

Three maps define the tissue as volume fractions of each voxel: **axon** (A), **myelin** (M) and cell bodies, **cell**
(C). Every signal is computed from them, so that the output of a method can be compared with the true tissue. Shapes
are synthetic: ellipsoids, shells and tubes at the size of a mouse brain, bent differently for each subject.

MRI signal model (diffusivities in um^2/ms, b in ms/um^2):

- T2-weighted: ``S = P exp(-TE R2)``, ``R2 = (1 - W)(R2_0 + r2 M) + W R2_w``, with water ``W`` of the
  ventricles. Relaxation rates rise linearly with myelin (Stueber et al. 2014, NeuroImage 93:95).
- Proton density ``P = 1 - p M``: the water of myelin decays before the echo.
- Magnetisation transfer: steady-state saturation of free water, ``S_on = S_off R1 / (R1 + k F)``
  (Henkelman et al. 1993, MRM 29:759; Helms et al. 2008, MRM 60:1396), with the bound pool ``F = F_0 + f M`` and
  ``R1 = R1_0 + r1 M``.
- Diffusion, three compartments (after Zhang et al. 2012, NeuroImage 61:1000, and Palombo et al. 2020,
  NeuroImage 215:116835): axons as sticks, a share ``o`` of them orientation-averaged,
  ``(1 - o) exp(-b d (g.n)^2) + o sqrt(pi / (4 b d)) erf(sqrt(b d))`` (Kaden et al. 2016, MRM 75:1752);
  cell bodies as slow isotropic water ``exp(-b d_c)``; the rest as a zeppelin with the radial diffusivity
  ``d (1 - v)`` (tortuosity, Szafer et al. 1995, MRM 33:697), averaged in the same way; water ``exp(-b d_w)``.
- Rician noise: the magnitude of the signal plus complex Gaussian noise (Gudbjartsson and Patz 1995,
  MRM 34:910).

Histology is on the same grid, with section-wise staining differences and camera noise: autofluorescence
falls with myelin and saturates; neurofilament (NF) saturates with axons, MBP with myelin and Nissl with
cell bodies.

Tissue values follow microscopy and MRI of fixed mouse brain: myelin 0.2-0.3 in white matter (West et al. 2018,
NeuroImage 182:489), cell bodies densest in granule layers (Eroe et al. 2018, Front. Neuroinform. 12:84),
diffusivity of fixed tissue 0.6 (Dyrby et al. 2011, HBM 32:544).
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
#: Margin of the grid around the brain.
_MARGIN_MM = 0.4

#: Tissue -> label, fractions of axon, myelin and cell bodies, and the share of axons without a common direction.
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

    The defaults are the 67 images of MRH-Net (Liang et al. 2022, eLife 11:e72331): two b0 and 30 directions at each
    of b = 2000 and 5000 s/mm^2, T2-weighted, and an MT pair.

    Attributes
    ----------
    shells : tuple of float
        b-values in ms/um^2 (thousands of s/mm^2).
    directions, b0s : int
        Number of directions and of b0 images per shell.
    snr, snr_b0 : float
        Mean brain signal over the standard deviation of the noise, for T2 and MT images and for b0 images.
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
    """Make one subject: tissue, MRI and histology as a co-registered group.

    Parameters
    ----------
    spacing_mm : float
        Spacing of the isotropic grid; 0.2 gives (40, 66, 55) voxels.
    seed : int
        Random seed of shape, tissue and noise of the subject.
    protocol : Protocol, optional
        MRI protocol; that of MRH-Net by default.

    Returns
    -------
    group : dict of str to volume
        MRI, uint16: ``t2w``, ``mt_off``, ``mt_on``, and ``dwi2000``, ``dwi5000`` with channels ``c`` (b0 first).
        Histology, float32 from 0 to about 1: ``af``, ``nf``, ``mbp``, ``nissl``. Ground truth: ``axon``,
        ``myelin``, ``cell`` (fractions), ``af_clean`` (autofluorescence before staining differences and noise),
        ``tissue`` (labels of `TISSUES`), ``mask``.

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
    signals = _simulate_mri(tissue, protocol, rng)
    stains = _simulate_histology(tissue, rng)
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
    """Compute five parameter maps of a digital mouse: T2w, MTR, two diffusivities and anisotropy.

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
        points = np.stack(np.meshgrid(*axes, indexing="ij"))
        # Each brain is bent by up to about 0.3 mm, and scaled by 2 % (standard deviation) along each axis.
        bend = np.stack([0.12 * self.field(1.0) for _ in range(3)])
        self.z, self.y, self.x = points * rng.normal(1.0, 0.02, 3)[:, None, None, None] + bend
        self.r = self.ellipsoid((0, 0, 0), BRAIN_MM)
        self.inside = self.r < 1
        self.axon, self.myelin, self.cell, self.dispersion, self.water = (np.zeros(self.shape) for _ in range(5))
        self.labels = np.zeros(self.shape, dtype=np.int64)
        self.direction = np.zeros((3, *self.shape))
        self.direction[1] = 1.0
        self._paint_all()
        self._add_variation()

    def field(self, width_mm: float) -> Floats:
        """Return a smooth random field of zero mean and unit standard deviation."""
        noise = self._rng.standard_normal(self.shape)
        smooth = gaussian_filter(noise, width_mm / self.spacing_mm, mode="reflect")
        return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float64)

    def ellipsoid(self, centre_mm: tuple[float, float, float], half_mm: tuple[float, float, float]) -> Floats:
        """Return the distance from a centre (z, y, |x|) in half axes, 1 on the surface, for both hemispheres."""
        axes = zip((self.z, self.y, np.abs(self.x) if centre_mm[2] else self.x), centre_mm, half_mm, strict=True)
        return np.asarray(np.sqrt(sum(((p - c) / h) ** 2 for p, c, h in axes)), dtype=np.float64)

    def _paint(
        self, tissue: str, signed_mm: Floats, direction: tuple[float, float, float] | Floats = (0, 1, 0)
    ) -> None:
        """Paint a structure from the signed distance inside its surface, with edges 0.1 mm wide."""
        label, axon, myelin, cell, dispersion = TISSUES[tissue]
        share = np.clip(0.5 + signed_mm / 0.1, 0, 1)
        for name, value in (("axon", axon), ("myelin", myelin), ("cell", cell), ("dispersion", dispersion)):
            fraction = getattr(self, name)
            setattr(self, name, fraction + share * (value - fraction))
        self.water += share * (float(tissue == "ventricle") - self.water)
        self.labels[share >= 0.5] = label
        fibres = np.asarray(direction, dtype=np.float64)
        fibres = fibres.reshape(3, 1, 1, 1) if fibres.ndim == 1 else fibres
        self.direction = np.where(share >= 0.5, fibres, self.direction)

    def _tube(self, tissue: str, z_mm: float, x_mm: float, radius_mm: float, y_mm: tuple[float, float]) -> None:
        """Paint a bundle along y in both hemispheres."""
        distance = np.hypot(self.z - z_mm, np.abs(self.x) - x_mm)
        from_ends = np.minimum(self.y - y_mm[0], y_mm[1] - self.y)
        self._paint(tissue, np.minimum(radius_mm - distance, from_ends))

    def _paint_all(self) -> None:
        scale = min(BRAIN_MM)
        depth = (1 - self.r) * scale
        dorsal = self.z + 0.8  # Ventral end of the cortical mantle.
        behind = -(self.y + 3.4)  # Anterior end of cerebellum and brainstem.
        self._paint("hypothalamus", depth)
        self._paint("cortex", np.minimum(depth, dorsal))
        # Callosum and external capsule: a shell under the mantle with tangential fibres in the coronal plane.
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
        """Paint the folia: molecular layer outside, then granule layer, and the arbor of white matter inside."""
        lobe = np.minimum(np.minimum(depth, behind), self.z + 0.2)
        fold = np.cos(2 * np.pi * (self.y + 0.6 * self.z) / 0.9)
        self._paint("cerebellar molecular layer", lobe)
        self._paint("cerebellar granule layer", np.minimum(lobe - 0.2, 0.12 * (fold + 0.5)))
        self._paint("white matter", np.minimum(lobe - 0.5, 0.12 * (fold - 0.75)), (1, 0, 0))

    def _add_variation(self) -> None:
        """Vary each fraction within structures, and layer the cell bodies of the cortex."""
        layered = np.where(self.labels == TISSUES["cortex"][0], 1 + 0.35 * np.cos(2 * np.pi * (1 - self.r) * 9), 1.0)
        self.cell = self.cell * layered
        for name, strength in (("axon", 0.15), ("myelin", 0.20), ("cell", 0.20)):
            factor = np.exp(strength * (0.7 * self.field(0.4) + 0.7 * self.field(1.5)))
            setattr(self, name, np.clip(getattr(self, name) * factor * self.inside, 0, 0.6))
        # At least a tenth of each voxel is extracellular space.
        excess = np.maximum(1.0, (self.axon + self.myelin + self.cell) / 0.9)
        self.axon, self.myelin, self.cell = (f / excess for f in (self.axon, self.myelin, self.cell))
        self.labels[~self.inside] = 0
        self.direction /= np.maximum(np.linalg.norm(self.direction, axis=0), 1e-9)


def directions(count: int) -> Floats:
    """Return unit vectors (count, 3) in z, y, x, spread over a half sphere as a Fibonacci spiral.

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


def _simulate_mri(tissue: _Tissue, p: Protocol, rng: np.random.Generator) -> dict[str, NDArray[np.uint16]]:
    inside, m, w = tissue.inside, tissue.myelin, tissue.water
    # Receive sensitivity and transmit field; MT saturation is proportional to the square of the transmit field.
    receive, transmit = 1 + 0.08 * tissue.field(3.0), 1 + 0.03 * tissue.field(3.0)
    density = inside * (1 - p.myelin_density_loss * m) * receive
    r2 = (1 - w) * (p.r2_per_s[0] + p.r2_per_s[1] * m) + w * p.r2_per_s[2]
    r1 = p.r1_per_s[0] + p.r1_per_s[1] * m
    bound = (1 - w) * (p.bound_pool[0] + p.bound_pool[1] * m)
    t2w = density * np.exp(-p.te_ms / 1e3 * r2)
    mt_on = density * r1 / (r1 + p.saturation_per_s * bound * transmit**2)
    images = {
        "t2w": _rician_magnitude(t2w, p.snr, inside, rng),
        "mt_off": _rician_magnitude(density, p.snr, inside, rng),
        # Both images of the MT pair have the same receiver gain, so the same noise level.
        "mt_on": _rician_magnitude(mt_on, p.snr, inside, rng, reference=density),
    }
    b0 = density * np.exp(-0.03 * r2)
    for b in p.shells:
        signals = [b0] * p.b0s + [b0 * _attenuation(tissue, p, b, g) for g in directions(p.directions)]
        shell = [_rician_magnitude(s, p.snr_b0, inside, rng, reference=b0) for s in signals]
        images[f"dwi{round(b * 1000)}"] = np.stack(shell)
    return images


def _attenuation(tissue: _Tissue, p: Protocol, b: float, gradient: Floats) -> Floats:
    """Return the signal of one diffusion-weighted image relative to b0."""
    d, d_cell, d_water = p.diffusivity
    # The water of myelin decays before the echo, so fractions are relative to the remaining water.
    visible = np.maximum(1 - tissue.myelin, 1e-6)
    axon, cell = tissue.axon / visible, tissue.cell / visible
    cosine2 = np.einsum("i,i...->...", gradient, tissue.direction) ** 2
    radial = d * (1 - axon)
    stick = _diffusion_signal(b, d, np.zeros_like(radial), cosine2, tissue.dispersion)
    zeppelin = _diffusion_signal(b, d, radial, cosine2, tissue.dispersion)
    soma = np.exp(-b * d_cell)
    parenchyma = axon * stick + cell * soma + (1 - axon - cell) * zeppelin
    return np.asarray((1 - tissue.water) * parenchyma + tissue.water * np.exp(-b * d_water), dtype=np.float64)


def _diffusion_signal(b: float, axial: float, radial: Floats, cosine2: Floats, dispersion: Floats) -> Floats:
    """Return the signal of axially symmetric diffusion, a share `dispersion` of it averaged over all directions."""
    aligned = np.exp(-b * (radial + (axial - radial) * cosine2))
    excess = np.maximum(b * (axial - radial), 1e-9)
    powder = np.exp(-b * radial) * np.sqrt(np.pi / (4 * excess)) * erf(np.sqrt(excess))
    return np.asarray((1 - dispersion) * aligned + dispersion * powder, dtype=np.float64)


def _rician_magnitude(
    signal: Floats,
    snr: float,
    inside: NDArray[np.bool_],
    rng: np.random.Generator,
    reference: Floats | None = None,
) -> NDArray[np.uint16]:
    """Return the magnitude of a signal with complex noise, in counts: a signal of 1 is 4000."""
    sigma = (signal if reference is None else reference)[inside].mean() / snr
    real, imaginary = signal + rng.normal(0, sigma, signal.shape), rng.normal(0, sigma, signal.shape)
    return np.asarray(np.rint(4000 * np.hypot(real, imaginary)), dtype=np.uint16)


def _simulate_histology(tissue: _Tissue, rng: np.random.Generator) -> dict[str, Floats]:
    a, m, c = tissue.axon, tissue.myelin, tissue.cell
    clean = {
        "af": tissue.inside * (1 - tissue.water) * (0.75 - 0.50 * m / (m + 0.10) - 0.10 * a + 0.15 * c),
        "nf": 1.4 * a / (a + 0.30),
        "mbp": 1.4 * m / (m + 0.12),
        # Further stains go last, so that those above keep their noise for a given seed.
        "nissl": 1.4 * c / (c + 0.15),
    }
    stains = {}
    for name, stain in clean.items():
        blurred = gaussian_filter(stain, 0.05 / tissue.spacing_mm)
        # Each coronal section is stained separately.
        sections = rng.normal(1.0, 0.02, (1, tissue.shape[1], 1))
        shading = 1 + 0.03 * tissue.field(2.0)
        stains[name] = np.maximum(blurred * sections * shading + rng.normal(0, 0.02, blurred.shape), 0)
    return stains | {"af_clean": clean["af"]}
