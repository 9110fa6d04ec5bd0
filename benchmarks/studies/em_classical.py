"""Classical restorers of stacks (planes, y, x): denoisers and deconvolution, in NumPy."""

import importlib.util

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter, uniform_filter, zoom

HAS_BM3D = importlib.util.find_spec("bm3d") is not None


def upsampled(low, factor, order, aligned="corners"):
    """Interpolated along y and x: order 0 nearest, 1 linear, 3 cubic.

    `aligned` by "corners", as ``scipy.ndimage.zoom`` reduces, or by "areas", as means of squares lie.
    """
    if order == 0 and aligned == "areas":
        return low.repeat(factor, 1).repeat(factor, 2)
    return zoom(low, (1, factor, factor), order=order, mode="nearest", grid_mode=aligned == "areas")


def gaussian(low, width, depth=0.0):
    """A Gaussian in the plane, and over at most five planes."""
    return gaussian_filter(low, (depth, width, width), radius=(2 if depth else 0, 8, 8))


def total_variation(low, weight, steps=100):
    """Plane by plane: least ``|x - low|^2 / 2 + weight * TV(x)`` (Chambolle 2004, J. Math. Imaging Vis. 20:89)."""
    dual = np.zeros((2, *low.shape))

    def divergence(p):
        out = np.zeros_like(low)
        for axis in (1, 2):
            field = np.moveaxis(p[axis - 1], axis, 0)
            into = np.moveaxis(out, axis, 0)
            into[0] += field[0]
            into[1:-1] += field[1:-1] - field[:-2]
            into[-1] -= field[-2]
        return out

    for _ in range(steps):
        rest = divergence(dual) - low / weight
        slope = np.stack([np.diff(rest, axis=axis, append=np.take(rest, [-1], axis=axis)) for axis in (1, 2)])
        dual = (dual + 0.25 * slope) / (1 + 0.25 * np.sqrt((slope**2).sum(axis=0)))
    return low - weight * divergence(dual)


def non_local_means(low, strength, patch=5, search=7, depth=0):
    """Means over places that look alike, within `search` pixels and `depth` planes (Buades et al. 2005, CVPR 2:60).

    `strength` is in standard deviations of the noise, which is measured plane by plane.
    """
    noise = noise_of(low)[:, None, None] ** 2
    total, weights = np.zeros_like(low), np.zeros_like(low)
    margin = ((depth, depth), (search, search), (search, search))
    around = np.pad(low, margin, mode="reflect")
    for dz in range(2 * depth + 1):
        for dy in range(2 * search + 1):
            for dx in range(2 * search + 1):
                other = around[dz : dz + low.shape[0], dy : dy + low.shape[1], dx : dx + low.shape[2]]
                apart = uniform_filter((low - other) ** 2, (0, patch, patch), mode="reflect")
                weight = np.exp(-np.maximum(apart - 2 * noise, 0) / (strength**2 * noise))
                total += weight * other
                weights += weight
    return total / weights


def noise_of(low):
    """Standard deviation of each plane's noise, from second differences (Immerkaer 1996, CVIU 64:300)."""
    second = convolve1d(convolve1d(low, [1, -2, 1], axis=1), [1, -2, 1], axis=2)
    return np.sqrt(np.pi / 2) * np.abs(second[:, 1:-1, 1:-1]).mean(axis=(1, 2)) / 6


def bm3d(low, strength):
    """The authors' package, where it is installed."""
    from bm3d import bm3d as run

    return np.stack([run(plane, strength * noise) for plane, noise in zip(low, noise_of(low), strict=True)])


def richardson_lucy(high, steps, width=None, box=None):
    """Deconvolution of images that are large already, blurred by a Gaussian or by a square of an even side."""
    seen = np.maximum(high, 1e-3)

    def blur(x):
        if box is None:
            return gaussian_filter(x, (0, width, width), mode="nearest")
        # The outer pixels count half, so that nothing moves.
        line = np.array([0.5, *[1] * (box - 1), 0.5]) / box
        return convolve1d(convolve1d(x, line, axis=1, mode="nearest"), line, axis=2, mode="nearest")

    out = seen
    for _ in range(steps):
        out = out * blur(seen / np.maximum(blur(out), 1e-3))
    return out


def squares_richardson_lucy(low, factor, steps):
    """Deconvolution of means of squares themselves, from bicubic interpolation on: what degrades again to the input."""
    out = np.maximum(upsampled(low, factor, 3, "areas"), 1e-3)
    planes, rows, columns = low.shape
    for _ in range(steps):
        again = out.reshape(planes, rows, factor, columns, factor).mean(axis=(2, 4))
        out = out * upsampled(np.maximum(low, 1e-3) / again, factor, 0, "areas")
    return out
