"""Quantitative susceptibility mapping (QSM) of a digital human head.

Steps from the susceptibility of `mrhdata.phantom.head` to the map of a scanner, with B0 along world Z:

- Field: ``F = D X`` in k-space on sub-voxels, ``D = 1/3 - kz^2 / k^2`` (Salomir et al. 2003, Concepts
  Magn. Reson. B 19:26; Marques and Bowtell 2005, ibid. 25:65), padded against wrap-around.
- Magnitude ``exp(-TE R2*)``, ``R2* = R2*_0 + r |X|``; complex Gaussian noise on magnitude and phase. A voxel
  averages its sub-voxels, and the field weighted by magnitude, as holds for small phases.
- Residue of background removal: a smooth error of the field, and no field outside the brain.
- Inversion by thresholded k-space division, ``X = F / D`` where ``|D| > t`` and ``F / (t sign D)`` elsewhere
  (Shmueli et al. 2009, MRM 62:1510; Wharton et al. 2010, MRM 63:1292), divided by the centre of its point spread
  function to correct the underestimation (Schweser et al. 2013, MRM 69:1582). Streaks of a single orientation remain.
- Reference: the mean of the lateral ventricles is 0 (Dimov et al. 2022, J. Neuroimaging 32:141).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mrhdata.errors import GridError
from mrhdata.phantom.head import VIEW_MM, Head
from mrhdata.phantom.head_anatomy import NUCLEI
from mrhdata.preprocessing.spline_fields import basis, contract
from mrhdata.volume.construct import from_array

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.floating[Any]]

#: Scored regions and their values in `labels`, in the published order.
ROIS: dict[str, int] = {
    f"{name} {side}": 2 + 2 * i + j
    for i, name in enumerate(("RN", "SN", "GP", "PU", "CN"))
    for j, side in enumerate("LR")
}

#: Values of `tissue` inside the brain.
MATTER = {"CSF": 1, "GM": 2, "WM": 3}

#: Largest length of a sub-voxel along any axis.
_MAX_SUBVOXEL_MM = 1.5
_PADDING_MM = 30.0
_PROTON_MHZ_PER_T = 42.577


@dataclass(frozen=True)
class Scan:
    """Acquisition and reconstruction of the map.

    Attributes
    ----------
    te_ms, field_t : float
        Echo time in ms and field strength in T.
    snr : float
        Signal-to-noise ratio of the magnitude before decay.
    r2star_per_ppm : float
        Increase of R2* per ppm of absolute susceptibility, in 1/s.
    background_ppm : float
        Standard deviation of the field that remains after background removal, in ppm.
    threshold : float
        Lower bound of the absolute dipole kernel in k-space division.
    """

    te_ms: float = 20.0
    field_t: float = 3.0
    snr: float = 30.0
    r2star_per_ppm: float = 150.0
    background_ppm: float = 0.002
    threshold: float = 0.2


def deep_grey(
    seed: int = 0, spacing_mm: Sequence[float] = (3.0, 1.0, 1.0), scan: Scan | None = None
) -> dict[str, xr.DataArray]:
    """Make one subject: its susceptibility map, further contrasts and the ground truth.

    Parameters
    ----------
    seed : int
        Random seed of the subject: its anatomy is the same at every spacing, its noise is not.
    spacing_mm : (3,) sequence of float
        Spacing along z, y, x; the default gives (48, 192, 156) voxels.
    scan : Scan, optional
        Acquisition and reconstruction.

    Returns
    -------
    group : dict of str to volume
        Images, float32: ``qsm`` (ppm, 0 outside the brain), ``magnitude``, ``r2star`` (1/s), ``t1w``, and the true
        ``chi`` (ppm). Labels, uint8: ``labels`` with the values of `ROIS` (left is world X < 0), ``tissue`` with
        those of `MATTER`, and ``mask`` of the brain.

    Raises
    ------
    GridError
        If `spacing_mm` is not three positive lengths.

    Examples
    --------
    >>> subject = deep_grey(seed=1, spacing_mm=(6, 6, 6))
    >>> subject["qsm"].shape, subject["qsm"].attrs["units"]
    ((24, 32, 26), 'ppm')
    >>> pallidum = subject["labels"].isin([ROIS["GP L"], ROIS["GP R"]])
    >>> bool(subject["qsm"].where(pallidum).mean() > 0.05)
    True
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise GridError(f"spacing_mm must be three positive lengths along z, y, x; got {spacing_mm}")
    scan, rng = scan or Scan(), np.random.default_rng([seed, 1])
    factors = [math.ceil(s / _MAX_SUBVOXEL_MM - 1e-9) for s in spacing]
    axes = [_voxel_centres(view, step) for view, step in zip(VIEW_MM[::-1], spacing, strict=True)]
    fine = [_subvoxel_centres(axis, step, n) for axis, step, n in zip(axes, spacing, factors, strict=True)]
    head = Head(fine, seed)
    images: dict[str, Any] = _acquire(head, fine, factors, scan, rng)
    mask = _voxel_means(head.brain, factors) >= 0.5
    fluid = (_voxel_means(head.fluid, factors) > 0.99) & mask
    images["qsm"] = _invert(images.pop("field") * mask, list(spacing), scan.threshold) * mask
    images["qsm"] -= images["qsm"][fluid if fluid.any() else mask].mean() * mask
    images["chi"] = _voxel_means(head.chi, factors)
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = [axis[0] for axis in axes[::-1]]
    units = {"qsm": "ppm", "chi": "ppm", "r2star": "1/s"}
    modality = {"qsm": "qsm", "chi": "truth", "labels": "truth", "tissue": "truth", "mask": "truth"}
    images |= {
        "labels": _nucleus_labels(head, factors),
        "tissue": _matter_labels(head, factors, mask),
        "mask": mask.astype(np.uint8),
    }
    kinds = {"labels": "labels", "tissue": "labels", "mask": "mask"}
    return {
        name: from_array(
            data if name in kinds else data.astype(np.float32),
            affine=affine,
            space="phantom",
            name=name,
            kind=kinds.get(name, "image"),
            units=units.get(name, "1"),
            modality=modality.get(name, "mri"),
        )
        for name, data in images.items()
    }


def _voxel_centres(view: tuple[float, float], step: float) -> NDArray[np.float64]:
    """Return voxel centres along an axis, symmetric about the middle of the field of view."""
    count = max(1, round((view[1] - view[0]) / step))
    return np.asarray(sum(view) / 2 + (np.arange(count) - (count - 1) / 2) * step)


def _subvoxel_centres(axis: NDArray[np.float64], step: float, parts: int) -> NDArray[np.float64]:
    """Return the centres of the sub-voxels of every voxel."""
    return np.asarray((axis[:, None] + ((np.arange(parts) + 0.5) / parts - 0.5) * step).ravel())


def _voxel_means(values: Floats, factors: Sequence[int]) -> Floats:
    """Return the mean over the sub-voxels of every voxel."""
    z, y, x = (n // f for n, f in zip(values.shape, factors, strict=True))
    return np.asarray(
        values.reshape(z, factors[0], y, factors[1], x, factors[2]).mean(axis=(1, 3, 5), dtype=np.float32)
    )


def _nucleus_labels(head: Head, factors: Sequence[int]) -> NDArray[np.uint8]:
    """Label each voxel with the nucleus of the largest share, if other tissue has no larger share."""
    names = [f"{name} {side}" for name in NUCLEI for side in "LR"]
    shares = [_voxel_means(row * s, factors) for row in head.shares for s in (~head.right, head.right)]
    rest = 1 - np.sum(shares, axis=0)
    largest = np.argmax([rest, *shares], axis=0)
    return np.array([0, *(ROIS[name] for name in names)], dtype=np.uint8)[largest]


def _matter_labels(head: Head, factors: Sequence[int], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Label each voxel of the brain with its largest share: fluid (with vessels and calcium), grey or white matter."""
    grey, white = (_voxel_means(share, factors) for share in (head.grey, head.white))
    largest = np.argmax([1 - grey - white, grey, white], axis=0)
    return np.where(mask, np.array(list(MATTER.values()), dtype=np.uint8)[largest], 0).astype(np.uint8)


def _acquire(
    head: Head, fine: Sequence[Floats], factors: Sequence[int], scan: Scan, rng: np.random.Generator
) -> dict[str, Any]:
    """Simulate the magnitude, R2*, T1-weighted image and local field (ppm) of every voxel."""
    spacing = [float(axis[1] - axis[0]) for axis in fine]
    r2star = head.r2star + np.float32(scan.r2star_per_ppm) * np.abs(head.chi)
    magnitude = np.exp(-scan.te_ms / 1e3 * r2star) * head.brain
    signal = _voxel_means(magnitude, factors)
    field = _voxel_means(_dipole_field(head.chi, spacing) * magnitude, factors) / np.maximum(signal, 1e-6)
    sigma = 1 / scan.snr
    radians_per_ppm = 2 * np.pi * _PROTON_MHZ_PER_T * scan.field_t * scan.te_ms / 1e3
    field += rng.normal(0, sigma, signal.shape) / np.maximum(signal, 0.1) / radians_per_ppm
    field += _background_residue(signal.shape, scan.background_ppm, rng)
    noise = rng.normal(0, sigma, (2, *signal.shape))
    noisy_r2star = np.maximum(_voxel_means(r2star * head.brain, factors) + rng.normal(0, 1.5, signal.shape), 0)
    return {
        "field": field,
        "magnitude": np.hypot(signal + noise[0], noise[1]),
        "r2star": noisy_r2star,
        "t1w": np.abs(_voxel_means(head.t1w, factors) + rng.normal(0, sigma, signal.shape)),
    }


def _background_residue(shape: Sequence[int], sd: float, rng: np.random.Generator) -> Floats:
    """Return a smooth random field over the whole field of view."""
    lattice = rng.normal(0, 3 * sd, (6, 6, 6))
    return contract(lattice, [basis(np.linspace(0, 1, n), 3) for n in shape])


def _dipole_kernel(shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """Return the dipole kernel in k-space in the order of `scipy.fft.rfftn`; 0 at the origin, which is undefined."""
    kz, ky = (fft.fftfreq(n, d).astype(np.float32) for n, d in zip(shape[:2], spacing[:2], strict=True))
    kx = fft.rfftfreq(shape[2], spacing[2]).astype(np.float32)
    z2 = (kz**2)[:, None, None]
    k2 = z2 + (ky**2)[None, :, None] + (kx**2)[None, None, :]
    k2[0, 0, 0] = 1
    kernel = np.float32(1 / 3) - z2 / k2
    kernel[0, 0, 0] = 0
    return np.asarray(kernel)


def _filter(values: Floats, spacing: Sequence[float], response: Any) -> Floats:
    """Multiply values, padded with zeros, by a function of the dipole kernel in k-space."""
    padded = [
        fft.next_fast_len(n + int(_PADDING_MM / d), real=True) for n, d in zip(values.shape, spacing, strict=True)
    ]
    spectrum = fft.rfftn(values.astype(np.float32), padded)
    spectrum *= response(_dipole_kernel(padded, spacing))
    filtered = fft.irfftn(spectrum, padded, overwrite_x=True)
    return np.asarray(filtered[tuple(slice(n) for n in values.shape)])


def _dipole_field(chi: Floats, spacing: Sequence[float]) -> Floats:
    """Return the field (ppm of B0) of a susceptibility distribution."""
    return _filter(chi, spacing, lambda kernel: kernel)


def _invert(field: Floats, spacing: Sequence[float], threshold: float) -> Floats:
    """Return the susceptibility by thresholded k-space division, corrected for underestimation."""

    def response(kernel: Floats) -> Floats:
        bounded = np.where(np.abs(kernel) > threshold, kernel, np.where(kernel < 0, -threshold, threshold))
        inverse = (1 / bounded).astype(np.float32)
        # The centre of the point spread function is the mean over k-space, here approximated by the stored half.
        return np.asarray(inverse / np.mean(kernel * inverse, dtype=np.float64).astype(np.float32))

    return _filter(field, spacing, response)
