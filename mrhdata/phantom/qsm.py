"""A digital human head as quantitative susceptibility mapping (QSM) sees it.

From the susceptibility of `mrhdata.phantom.head` to the map of a scanner, B0 along world Z:

- Field: ``F = D X`` in k-space on sub-voxels, ``D = 1/3 - kz^2 / k^2`` (Salomir et al. 2003, Concepts
  Magn. Reson. B 19:26; Marques and Bowtell 2005, ibid. 25:65), padded against wrap-around.
- Magnitude ``exp(-TE R2*)``, ``R2* = R2*_0 + r |X|``; complex Gaussian noise on magnitude and phase. A voxel
  averages its sub-voxels, the field by magnitude, as phase does while it is small.
- What background removal leaves: a smooth error of the field, and no field outside the brain.
- Inversion by thresholded k-space division, ``X = F / D`` where ``|D| > t`` and ``F / (t sign D)`` elsewhere
  (Shmueli et al. 2009, MRM 62:1510; Wharton et al. 2010, MRM 63:1292), divided by the centre of its own
  point spread function, which makes up for the underestimation (Schweser et al. 2013, MRM 69:1582). It
  leaves the streaks of a single orientation.
- Zero is the mean of the lateral ventricles (Dimov et al. 2022, J. Neuroimaging 32:141).
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
from mrhdata.phantom.head import NUCLEI, VIEW_MM, Head
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

#: Values of `tissue` within the brain.
MATTER = {"CSF": 1, "GM": 2, "WM": 3}

#: Sub-voxels are no longer than this along any axis.
_DETAIL_MM = 1.5
_PADDING_MM = 30.0
_PROTON_MHZ_PER_T = 42.577


@dataclass(frozen=True)
class Scan:
    """How the map is acquired and reconstructed.

    Attributes
    ----------
    te_ms, field_t : float
        Echo time and field strength.
    snr : float
        Of the magnitude where nothing has decayed.
    r2star_per_ppm : float
        1/s of R2* per ppm of susceptibility.
    background_ppm : float
        Standard deviation of the field that background removal leaves.
    threshold : float
        Of the dipole kernel, below which k-space division is bounded.
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
    """One subject: its susceptibility map, further contrasts, and the truth.

    Parameters
    ----------
    seed : int
        Of the subject: its anatomy is the same at every spacing, its noise is not.
    spacing_mm : (3,) sequence of float
        Along z, y, x; the default gives (48, 192, 156) voxels.
    scan : Scan, optional

    Returns
    -------
    group : dict of str to volume
        float32: ``qsm`` (ppm, 0 outside the brain), ``magnitude``, ``r2star`` (1/s), ``t1w``, and the true
        ``chi`` (ppm). uint8: ``labels`` with the values of `ROIS` (left is world X < 0), ``tissue`` with those of
        `MATTER`, and ``mask``, the brain.

    Raises
    ------
    GridError
        `spacing_mm` is not three positive lengths.

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
        raise GridError(f"spacing_mm is three positive lengths along z, y, x, not {spacing_mm}")
    scan, rng = scan or Scan(), np.random.default_rng([seed, 1])
    factors = [math.ceil(s / _DETAIL_MM - 1e-9) for s in spacing]
    axes = [_centres(view, step) for view, step in zip(VIEW_MM[::-1], spacing, strict=True)]
    fine = [_centres_within(axis, step, n) for axis, step, n in zip(axes, spacing, factors, strict=True)]
    head = Head(fine, seed)
    images: dict[str, Any] = _acquired(head, fine, factors, scan, rng)
    mask = _pooled(head.brain, factors) >= 0.5
    wet = (_pooled(head.fluid, factors) > 0.99) & mask
    images["qsm"] = _inverted(images.pop("field") * mask, list(spacing), scan.threshold) * mask
    images["qsm"] -= images["qsm"][wet if wet.any() else mask].mean() * mask
    images["chi"] = _pooled(head.chi, factors)
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = [axis[0] for axis in axes[::-1]]
    units = {"qsm": "ppm", "chi": "ppm", "r2star": "1/s"}
    modality = {"qsm": "qsm", "chi": "truth", "labels": "truth", "tissue": "truth", "mask": "truth"}
    images |= {"labels": _labels(head, factors), "tissue": _matter(head, factors, mask), "mask": mask.astype(np.uint8)}
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


def _centres(view: tuple[float, float], step: float) -> NDArray[np.float64]:
    """Voxel centres along an axis, symmetric about the middle of the view."""
    count = max(1, round((view[1] - view[0]) / step))
    return np.asarray(sum(view) / 2 + (np.arange(count) - (count - 1) / 2) * step)


def _centres_within(axis: NDArray[np.float64], step: float, parts: int) -> NDArray[np.float64]:
    """Centres of the equal parts of every voxel."""
    return np.asarray((axis[:, None] + ((np.arange(parts) + 0.5) / parts - 0.5) * step).ravel())


def _pooled(values: Floats, factors: Sequence[int]) -> Floats:
    """Mean over the parts of every voxel."""
    z, y, x = (n // f for n, f in zip(values.shape, factors, strict=True))
    return np.asarray(
        values.reshape(z, factors[0], y, factors[1], x, factors[2]).mean(axis=(1, 3, 5), dtype=np.float32)
    )


def _labels(head: Head, factors: Sequence[int]) -> NDArray[np.uint8]:
    """The nucleus that most of a voxel is, where nuclei are more of it than other tissue."""
    names = [f"{name} {side}" for name in NUCLEI for side in "LR"]
    shares = [_pooled(row * s, factors) for row in head.shares for s in (~head.right, head.right)]
    rest = 1 - np.sum(shares, axis=0)
    found = np.argmax([rest, *shares], axis=0)
    return np.array([0, *(ROIS[name] for name in names)], dtype=np.uint8)[found]


def _matter(head: Head, factors: Sequence[int], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What most of a voxel of the brain is: fluid (vessels and calcium too), grey or white matter."""
    grey, white = (_pooled(share, factors) for share in (head.grey, head.white))
    found = np.argmax([1 - grey - white, grey, white], axis=0)
    return np.where(mask, np.array(list(MATTER.values()), dtype=np.uint8)[found], 0).astype(np.uint8)


def _acquired(
    head: Head, fine: Sequence[Floats], factors: Sequence[int], scan: Scan, rng: np.random.Generator
) -> dict[str, Any]:
    """Magnitude, R2*, T1-weighted image and local field (ppm) of every voxel."""
    spacing = [float(axis[1] - axis[0]) for axis in fine]
    r2star = head.r2star + np.float32(scan.r2star_per_ppm) * np.abs(head.chi)
    magnitude = np.exp(-scan.te_ms / 1e3 * r2star) * head.brain
    seen = _pooled(magnitude, factors)
    field = _pooled(_field(head.chi, spacing) * magnitude, factors) / np.maximum(seen, 1e-6)
    sigma = 1 / scan.snr
    radians_per_ppm = 2 * np.pi * _PROTON_MHZ_PER_T * scan.field_t * scan.te_ms / 1e3
    field += rng.normal(0, sigma, seen.shape) / np.maximum(seen, 0.1) / radians_per_ppm
    field += _remainder(seen.shape, scan.background_ppm, rng)
    noise = rng.normal(0, sigma, (2, *seen.shape))
    decay = np.maximum(_pooled(r2star * head.brain, factors) + rng.normal(0, 1.5, seen.shape), 0)
    return {
        "field": field,
        "magnitude": np.hypot(seen + noise[0], noise[1]),
        "r2star": decay,
        "t1w": np.abs(_pooled(head.t1w, factors) + rng.normal(0, sigma, seen.shape)),
    }


def _remainder(shape: Sequence[int], sd: float, rng: np.random.Generator) -> Floats:
    """A smooth field over the whole view."""
    lattice = rng.normal(0, 3 * sd, (6, 6, 6))
    return contract(lattice, [basis(np.linspace(0, 1, n), 3) for n in shape])


def _kernel(shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """Dipole kernel in k-space, as `scipy.fft.rfftn` orders it; 0 at the origin, which phase does not tell."""
    kz, ky = (fft.fftfreq(n, d).astype(np.float32) for n, d in zip(shape[:2], spacing[:2], strict=True))
    kx = fft.rfftfreq(shape[2], spacing[2]).astype(np.float32)
    z2 = (kz**2)[:, None, None]
    k2 = z2 + (ky**2)[None, :, None] + (kx**2)[None, None, :]
    k2[0, 0, 0] = 1
    kernel = np.float32(1 / 3) - z2 / k2
    kernel[0, 0, 0] = 0
    return np.asarray(kernel)


def _filtered(values: Floats, spacing: Sequence[float], response: Any) -> Floats:
    """Values times a function of the dipole kernel in k-space, padded with zeros."""
    padded = [
        fft.next_fast_len(n + int(_PADDING_MM / d), real=True) for n, d in zip(values.shape, spacing, strict=True)
    ]
    spectrum = fft.rfftn(values.astype(np.float32), padded)
    spectrum *= response(_kernel(padded, spacing))
    back = fft.irfftn(spectrum, padded, overwrite_x=True)
    return np.asarray(back[tuple(slice(n) for n in values.shape)])


def _field(chi: Floats, spacing: Sequence[float]) -> Floats:
    """Field (ppm of B0) of a susceptibility distribution."""
    return _filtered(chi, spacing, lambda kernel: kernel)


def _inverted(field: Floats, spacing: Sequence[float], threshold: float) -> Floats:
    """Susceptibility by thresholded k-space division, made up for its underestimation."""

    def response(kernel: Floats) -> Floats:
        bounded = np.where(np.abs(kernel) > threshold, kernel, np.where(kernel < 0, -threshold, threshold))
        inverse = (1 / bounded).astype(np.float32)
        # The centre of the point spread function is the mean of what is left of k-space (almost: half of it is kept).
        return np.asarray(inverse / np.mean(kernel * inverse, dtype=np.float64).astype(np.float32))

    return _filtered(field, spacing, response)
