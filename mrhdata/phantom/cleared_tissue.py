"""Cleared brains in the light-sheet microscope, of any size, with the exact list of their cells.

- What is in the tissue: `mrhdata.phantom.cleared_scene`.
- The sheet comes from low x: its light fades along x, is weaker toward both ends of y, and what it meets throws
  shadows, stripes along x (Huisken and Stainier 2007, Opt. Lett. 32:2608; Rohrbach 2009, ibid. 34:3041).
- The optics: a Gaussian, several times longer along z, which the sheet's thickness sets, than across.
- The camera: Poisson electrons, read noise, gain and offset of a scientific CMOS sensor; 16 bits.

A brain is never whole in memory. A tile of 64^3 voxels is a pure function of seed, settings and index, and a block
is cut from tiles, so voxels do not depend on the chunks.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from mrhdata.errors import DataError, GridError
from mrhdata.phantom.cleared_scene import TILE, Index, Scene, Tissue
from mrhdata.volume.construct import from_array

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

#: The optics' Gaussians are cut at this many standard deviations.
_CUT = 3.0
#: Shadows begin in tiles of the y, z plane; generators of theirs and of noise, after those of the tissue.
_SHADOWS, _NOISE = 16, 17


@dataclass(frozen=True)
class Cleared(Tissue):
    """What a brain holds and how it is seen: of `Tissue`, and the microscope.

    Attributes
    ----------
    psf_um : (float, float, float)
        Standard deviations of the point spread along z, y, x: a sheet of some 10 um width at half maximum, as
        whole mouse brains are seen with, and a lens of numerical aperture 0.2 or so (Dodt et al. 2007, Nat.
        Methods 4:331).
    fading, vignetting : float
        Share of the light that is left at high x, and that is missing at both ends of y: chosen, strong enough
        that no one threshold fits a whole plane.
    shadows_per_mm2, shadow_um, shadow_depth : float, (float, float), (float, float)
        Stripes that begin, by area of the plane across the light; their standard deviations along y and z; the
        share of the light that one takes. Chosen by eye: a stripe every 60 um or so, as wide as what throws it.
    electrons_per_count, read_noise_e, offset : float
        Of the camera: 0.46, 1.6 (root mean square) and 100 are those of a Hamamatsu ORCA-Flash4.0 V3 (its
        data sheet).

    Examples
    --------
    >>> Cleared(cell_spread=0.2).psf_um
    (4.0, 1.0, 1.0)
    """

    psf_um: tuple[float, float, float] = (4.0, 1.0, 1.0)
    fading: float = 0.5
    vignetting: float = 0.2
    shadows_per_mm2: float = 300.0
    shadow_um: tuple[float, float] = (3.0, 10.0)
    shadow_depth: tuple[float, float] = (0.05, 0.35)
    electrons_per_count: float = 0.46
    read_noise_e: float = 1.6
    offset: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = {"fading": self.fading, "vignetting": self.vignetting, "shadow_depth": self.shadow_depth[1]}
        for name, share in shares.items():
            if share > 1 or (name == "fading" and share == 0):
                raise DataError(f"{name} is {share}; give a share of the light, up to 1, that leaves some")
        if self.electrons_per_count == 0:
            raise DataError("electrons_per_count is 0; give the electrons that make one count")


@dataclass(frozen=True)
class Brain:
    """One cleared brain. Made by `cleared`.

    Attributes
    ----------
    volume : volume
        uint16 counts of the camera, lazy.
    regions : volume
        uint8 labels, lazy: places in `mrhdata.phantom.cleared_scene.REGIONS`.
    settings : Cleared
    missing : float
        Share of the cells that are not annotated.
    """

    volume: xr.DataArray
    regions: xr.DataArray
    settings: Cleared
    missing: float
    _scene: Scene

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """All cells, as `cells_within` gives them."""
        return pd.concat(list(self.cells_by_slab()), ignore_index=True)

    def cells_by_slab(self) -> Iterator[pd.DataFrame]:
        """Cells of one layer of tiles along z after the other: for a brain whose list is long."""
        depth, *plane = self._scene.shape
        for low in range(0, depth, TILE):
            yield self.cells_within((low, 0, 0), (min(low + TILE, depth), *plane))

    def cells_within(self, low: Sequence[int], high: Sequence[int]) -> pd.DataFrame:
        """Cells whose centre lies in a box, at a cost that the box sets and not the brain.

        Parameters
        ----------
        low, high : (3,) sequence of int
            First voxel and the one after the last, along z, y, x.

        Returns
        -------
        cells : pandas.DataFrame
            ``z, y, x`` (voxel index of the centre, float), ``X, Y, Z`` (world mm), ``radius_mm`` (that of a ball
            of the soma's volume), ``brightness`` (electrons in full light), ``annotated`` and ``region``.
        """
        spacing = self.settings.spacing_um
        found = self._scene.cells(np.array(low) * spacing, np.array(high) * spacing)
        centres = found["centre"] / spacing
        table = pd.DataFrame(centres, columns=list("zyx"))
        table[["X", "Y", "Z"]] = self.volume.mrh.world(centres)
        table["radius_mm"] = np.cbrt(found["radii"].prod(axis=1)) / 1e3
        table["brightness"] = found["brightness"]
        table["annotated"] = found["mark"] >= self.missing
        table["region"] = found["region"]
        return table


def cleared(
    shape: Sequence[int] = (256, 512, 512),
    seed: int = 0,
    settings: Cleared | None = None,
    missing: float = 0.0,
    chunks: Any = 128,
) -> Brain:
    """A cleared brain under the light-sheet microscope.

    Parameters
    ----------
    shape : (3,) sequence of int
        Voxels along z, y, x. Tissue fills the volume up to a margin, whatever its size.
    seed : int
        Of the brain: shapes, cells, noise.
    settings : Cleared, optional
    missing : float
        Share of the cells, at random, that are not annotated.
    chunks : int or tuple
        Of the Dask arrays. They change no voxel; whole tiles of 64 voxels are the fastest.

    Returns
    -------
    brain : Brain

    Raises
    ------
    GridError
        The shape is not three lengths of 1 or more.
    DataError
        The seed is negative, or `missing` is not a share.

    Examples
    --------
    >>> brain = cleared((64, 128, 128), seed=1)
    >>> brain.volume.dtype, brain.volume.shape, brain.volume.mrh.spacing.tolist()
    (dtype('uint16'), (64, 128, 128), [0.002, 0.002, 0.002])
    >>> brain.cells.columns.tolist()
    ['z', 'y', 'x', 'X', 'Y', 'Z', 'radius_mm', 'brightness', 'annotated', 'region']
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"a brain has three lengths of 1 or more along z, y, x, not {tuple(shape)}")
    if seed < 0 or not 0 <= missing <= 1:
        raise DataError(f"seed is {seed} and missing {missing}; give a seed of 0 or more and a share from 0 to 1")
    settings = settings or Cleared()
    z, y, x = (int(n) for n in shape)
    scene = Scene((z, y, x), settings, seed)
    microscope = _Microscope(scene, settings)
    spacing = [settings.spacing_um / 1e3] * 3

    def volume(name: str, dtype: Any, tile: Callable[[Index], NDArray[Any]], **attrs: str) -> xr.DataArray:
        tiled = _Tiled(scene.shape, np.dtype(dtype), tile)
        data = da.from_array(tiled, chunks=chunks, asarray=False, name=False, inline_array=True)
        return from_array(data, spacing=spacing, space="phantom", name=name, units="1", **attrs)

    return Brain(
        volume("cells", np.uint16, microscope.counts, modality="lightsheet"),
        volume("regions", np.uint8, microscope.labels, modality="truth", kind="labels"),
        settings,
        missing,
        scene,
    )


@dataclass(frozen=True)
class _Tiled:
    """An array whose parts are cut from tiles, made when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tile: Callable[[Index], NDArray[Any]]
    ndim: int = 3

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        # Dask hands on integers and steps where what it computes is indexed further.
        spans = [range(n)[k if isinstance(k, slice) else slice(k, k + 1)] for n, k in zip(self.shape, key, strict=True)]
        inside = tuple(slice(None, None, k.step) if isinstance(k, slice) else 0 for k in key)
        low = [min(s, default=0) for s in spans]
        return self._box(low, [max(s, default=-1) + 1 for s in spans])[inside]

    def _box(self, low: Sequence[int], high: Sequence[int]) -> NDArray[Any]:
        """The voxels between two corners."""
        out = np.empty(np.subtract(high, low), dtype=self.dtype)
        for z, y, x in itertools.product(*(range(a // TILE, -(-b // TILE)) for a, b in zip(low, high, strict=True))):
            corner = np.array([z, y, x]) * TILE
            first, last = np.maximum(low, corner), np.minimum(high, corner + TILE)
            part = self.tile((z, y, x))[_between(first - corner, last - corner)]
            out[_between(first - low, last - low)] = part
        return out


def _between(low: Sequence[int], high: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


@dataclass(frozen=True)
class _Microscope:
    """Makes tiles of a scene: whole ones, also where the volume ends within."""

    scene: Scene
    settings: Cleared

    def labels(self, index: Index) -> NDArray[np.uint8]:
        """Regions."""
        return self.scene.regions(*self._axes(index))

    def counts(self, index: Index) -> NDArray[np.uint16]:
        """What the camera gives."""
        settings, rng = self.settings, np.random.default_rng((self.scene.seed, _NOISE, *index))
        seen = self._blurred(index)
        seen *= self._illumination(index)
        electrons = rng.poisson(seen) + settings.read_noise_e * rng.standard_normal(seen.shape, dtype=np.float32)
        counts = settings.offset + electrons / settings.electrons_per_count
        return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16)

    def _axes(self, index: Index) -> tuple[Floats, ...]:
        """Places of a tile's voxels along z, y, x, um; an open grid."""
        return np.ix_(*((i * TILE + np.arange(TILE)) * self.settings.spacing_um for i in index))

    def _blurred(self, index: Index) -> NDArray[np.float32]:
        """Light behind the optics, to which what lies around the tile adds."""
        sigmas = [s / self.settings.spacing_um for s in self.settings.psf_um]
        halo = [int(_CUT * s + 0.5) for s in sigmas]
        light = self.scene.light([i * TILE - h for i, h in zip(index, halo, strict=True)], [TILE + 2 * h for h in halo])
        for axis, (sigma, h) in enumerate(zip(sigmas, halo, strict=True)):
            if h:
                light = gaussian_filter1d(light, sigma, axis=axis, truncate=_CUT)
                light = light.take(range(h, h + TILE), axis=axis)
        return light

    def _illumination(self, index: Index) -> NDArray[np.float32]:
        """Share of the full light."""
        settings, (z, y, x) = self.settings, self._axes(index)
        _, height, length = np.array(self.scene.shape) * settings.spacing_um
        ends = np.minimum(1, (2 * y / height - 1) ** 2)
        light = settings.fading ** (x / length) * (1 - settings.vignetting * ends) * np.ones_like(z)
        for z0, y0, x0, across, along, depth in self._shadows_near(index):
            profile = np.exp(-0.5 * (((y - y0) / across) ** 2 + ((z - z0) / along) ** 2))
            # What throws the shadow is some 20 um long.
            beyond = 1 / (1 + np.exp(np.clip((x0 - x) / 10, -30, 30)))
            light *= 1 - depth * profile * beyond
        return light.astype(np.float32)

    def _shadows_near(self, index: Index) -> Floats:
        """Shadows that reach a tile: rows of z, y, x where they begin, widths along y and z, depth."""
        edge, reach = self.settings.tile_um, 3 * self.settings.shadow_um[1]
        margin = math.ceil(reach / edge)
        spans = [range(max(0, i - margin), i + margin + 1) for i in index[:2]]
        rows = np.concatenate([_shadows(self, z, y) for z, y in itertools.product(*spans)])
        low, high = np.array(index) * edge, (np.array(index) + 1) * edge
        near = (rows[:, :2] > low[:2] - reach) & (rows[:, :2] < high[:2] + reach)
        return np.asarray(rows[near.all(axis=1) & (rows[:, 2] < high[2])])


@functools.lru_cache(maxsize=4096)
def _shadows(microscope: _Microscope, z: int, y: int) -> Floats:
    """Shadows that begin in one tile of the plane across the light, anywhere along it."""
    settings, scene = microscope.settings, microscope.scene
    edge = settings.tile_um
    rng = np.random.default_rng((scene.seed, _SHADOWS, z, y))
    count = rng.poisson(settings.shadows_per_mm2 * (edge / 1e3) ** 2)
    at = (np.array([z, y]) + rng.uniform(0, 1, (count, 2))) * edge
    begin = rng.uniform(0, scene.shape[2] * settings.spacing_um, (count, 1))
    widths = rng.uniform(*settings.shadow_um, (count, 2))
    return np.hstack([at, begin, widths, rng.uniform(*settings.shadow_depth, (count, 1))])
