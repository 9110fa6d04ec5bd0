"""Cleared brains in a light-sheet microscope, of any size, with the exact list of their cells.

- Tissue: `mrhdata.phantom.cleared_scene`.
- Illumination: the sheet enters at low x. Its light fades along x and is weaker toward both ends of y. Objects in its
  path throw shadows, which are stripes along x (Huisken and Stainier 2007, Opt. Lett. 32:2608; Rohrbach 2009, ibid.
  34:3041).
- Optics: a Gaussian, several times longer along z, because of the thickness of the sheet, than along y and x.
- Camera: Poisson electrons, read noise, gain and offset of a scientific CMOS sensor; 16 bits.

A brain is never in memory as a whole. A tile of 64^3 voxels is a pure function of seed, settings and index, and blocks
are cut from tiles, so voxels do not depend on the chunks.
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

#: Truncation of the Gaussians of the optics, in standard deviations.
_TRUNCATE = 3.0
#: Seeds of the generators of shadows and of noise; lower numbers are those of the tissue.
_SHADOW_STREAM, _NOISE_STREAM = 16, 17


@dataclass(frozen=True)
class ClearedSettings(Tissue):
    """Settings of a cleared brain: the tissue (see `Tissue`) and the microscope.

    Attributes
    ----------
    psf_um : (float, float, float)
        Standard deviations of the point spread function along z, y, x: a sheet of some 10 um width at half maximum,
        as used for whole mouse brains, and a numerical aperture of about 0.2 (Dodt et al. 2007, Nat. Methods 4:331).
    fading, vignetting : float
        Share of the light that remains at high x, and share that is missing at both ends of y. Chosen so strong
        that no single threshold fits a whole plane.
    shadows_per_mm2, shadow_um, shadow_depth : float, (float, float), (float, float)
        Number of shadows per area of the z, y plane, range of their standard deviations along y and z, and range of
        the share of light that a shadow removes. Chosen by eye: a stripe about every 60 um, as wide as the object
        that throws it.
    electrons_per_count, read_noise_e, offset : float
        Gain, read noise (root mean square) and offset of the camera: 0.46, 1.6 and 100 for a Hamamatsu
        ORCA-Flash4.0 V3 (data sheet).

    Examples
    --------
    >>> ClearedSettings(cell_spread=0.2).psf_um
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
                lowest = "above 0" if name == "fading" else "0 or more"
                raise DataError(f"{name} must be a share of the light, {lowest} and up to 1; got {share}")
        if self.electrons_per_count == 0:
            raise DataError("electrons_per_count must be above 0; got 0. Pass the electrons per count of the camera.")


@dataclass(frozen=True)
class ClearedBrain:
    """One cleared brain, made by `cleared`.

    Attributes
    ----------
    volume : volume
        Camera counts, uint16, lazy.
    regions : volume
        Labels, uint8, lazy: indices into `mrhdata.phantom.cleared_scene.REGIONS`.
    settings : Cleared
        Settings of tissue and microscope.
    missing : float
        Share of the cells that are not annotated.
    """

    volume: xr.DataArray
    regions: xr.DataArray
    settings: ClearedSettings
    missing: float
    _scene: Scene

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """All cells, with the columns of `cells_within`."""
        return pd.concat(list(self.cells_by_slab()), ignore_index=True)

    def cells_by_slab(self) -> Iterator[pd.DataFrame]:
        """Yield the cells of one layer of tiles along z after the other, for brains with many cells."""
        depth, *plane = self._scene.shape
        for low in range(0, depth, TILE):
            yield self.cells_within((low, 0, 0), (min(low + TILE, depth), *plane))

    def cells_within(self, low: Sequence[int], high: Sequence[int]) -> pd.DataFrame:
        """Return the cells whose centre lies in a box; the cost depends on the box, not on the brain.

        Parameters
        ----------
        low, high : (3,) sequence of int
            First voxel (inclusive) and last voxel (exclusive) along z, y, x.

        Returns
        -------
        cells : pandas.DataFrame
            A row per cell: ``z, y, x`` (voxel index of the centre, float), ``X, Y, Z`` (world mm), ``radius_mm``
            (radius of a ball of the same volume), ``brightness`` (electrons under full illumination), ``annotated``
            and ``region``.
        """
        spacing = self.settings.spacing_um
        cells = self._scene.cells(np.array(low) * spacing, np.array(high) * spacing)
        centres = cells["centre"] / spacing
        table = pd.DataFrame(centres, columns=list("zyx"))
        table[["X", "Y", "Z"]] = self.volume.mrh.world(centres)
        table["radius_mm"] = np.cbrt(cells["radii"].prod(axis=1)) / 1e3
        table["brightness"] = cells["brightness"]
        table["annotated"] = cells["annotation_draw"] >= self.missing
        table["region"] = cells["region"]
        return table


def cleared(
    shape: Sequence[int] = (256, 512, 512),
    seed: int = 0,
    settings: ClearedSettings | None = None,
    missing: float = 0.0,
    chunks: Any = 128,
) -> ClearedBrain:
    """Make a cleared brain under a light-sheet microscope.

    Parameters
    ----------
    shape : (3,) sequence of int
        Number of voxels along z, y, x. Tissue of any size fills the volume up to a margin.
    seed : int
        Random seed of shapes, cells and noise.
    settings : Cleared, optional
        Settings of tissue and microscope.
    missing : float
        Share of the cells, chosen at random, that are not annotated.
    chunks : int or tuple
        Chunks of the Dask arrays. They do not change the voxels; whole tiles of 64 voxels are fastest.

    Returns
    -------
    brain : Brain
        Volume, regions and cells.

    Raises
    ------
    GridError
        If the shape is not three lengths of 1 or more.
    DataError
        If the seed is negative, or `missing` is not from 0 to 1.

    Examples
    --------
    >>> brain = cleared((64, 128, 128), seed=1)
    >>> brain.volume.dtype, brain.volume.shape, brain.volume.mrh.spacing.tolist()
    (dtype('uint16'), (64, 128, 128), [0.002, 0.002, 0.002])
    >>> brain.cells.columns.tolist()
    ['z', 'y', 'x', 'X', 'Y', 'Z', 'radius_mm', 'brightness', 'annotated', 'region']
    """
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"shape must be three lengths of 1 or more along z, y, x; got {tuple(shape)}")
    if seed < 0 or not 0 <= missing <= 1:
        raise DataError(f"seed must be 0 or more and missing from 0 to 1; got seed {seed} and missing {missing}")
    settings = settings or ClearedSettings()
    z, y, x = (int(n) for n in shape)
    scene = Scene((z, y, x), settings, seed)
    microscope = _Microscope(scene, settings)
    spacing = [settings.spacing_um / 1e3] * 3

    def volume(name: str, dtype: Any, tile: Callable[[Index], NDArray[Any]], **attrs: str) -> xr.DataArray:
        tiled = _Tiled(scene.shape, np.dtype(dtype), tile)
        data = da.from_array(tiled, chunks=chunks, asarray=False, name=False, inline_array=True)
        return from_array(data, spacing=spacing, space="phantom", name=name, units="1", **attrs)

    return ClearedBrain(
        volume("cells", np.uint16, microscope.counts, modality="lightsheet"),
        volume("regions", np.uint8, microscope.labels, modality="truth", kind="labels"),
        settings,
        missing,
        scene,
    )


@dataclass(frozen=True)
class _Tiled:
    """Lazy array whose regions are assembled from tiles on access."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tile: Callable[[Index], NDArray[Any]]
    ndim: int = 3

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        # Dask fuses further indexing into the access, so keys can have integers and steps.
        ranges = [
            range(n)[k if isinstance(k, slice) else slice(k, k + 1)] for n, k in zip(self.shape, key, strict=True)
        ]
        step = tuple(slice(None, None, k.step) if isinstance(k, slice) else 0 for k in key)
        low = [min(r, default=0) for r in ranges]
        return self._read(low, [max(r, default=-1) + 1 for r in ranges])[step]

    def _read(self, low: Sequence[int], high: Sequence[int]) -> NDArray[Any]:
        """Return the voxels between two corners."""
        out = np.empty(np.subtract(high, low), dtype=self.dtype)
        for z, y, x in itertools.product(*(range(a // TILE, -(-b // TILE)) for a, b in zip(low, high, strict=True))):
            corner = np.array([z, y, x]) * TILE
            first, last = np.maximum(low, corner), np.minimum(high, corner + TILE)
            out[_slices(first - low, last - low)] = self.tile((z, y, x))[_slices(first - corner, last - corner)]
        return out


def _slices(low: Sequence[int], high: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


@dataclass(frozen=True)
class _Microscope:
    """Generator of tiles of a scene; tiles are whole also at the end of the volume."""

    scene: Scene
    settings: ClearedSettings

    def labels(self, index: Index) -> NDArray[np.uint8]:
        """Return the regions of a tile."""
        return self.scene.regions(*self._axes(index))

    def counts(self, index: Index) -> NDArray[np.uint16]:
        """Return the camera counts of a tile."""
        settings, rng = self.settings, np.random.default_rng((self.scene.seed, _NOISE_STREAM, *index))
        light = self._blurred_light(index)
        light *= self._illumination(index)
        electrons = rng.poisson(light) + settings.read_noise_e * rng.standard_normal(light.shape, dtype=np.float32)
        counts = settings.offset + electrons / settings.electrons_per_count
        return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16)

    def _axes(self, index: Index) -> tuple[Floats, ...]:
        """Return the voxel centres of a tile along z, y, x in um, as an open grid."""
        return np.ix_(*((i * TILE + np.arange(TILE)) * self.settings.spacing_um for i in index))

    def _blurred_light(self, index: Index) -> NDArray[np.float32]:
        """Return the light of a tile after the optics, which also spread light from around the tile into it."""
        sigmas = [s / self.settings.spacing_um for s in self.settings.psf_um]
        halo = [int(_TRUNCATE * s + 0.5) for s in sigmas]
        light = self.scene.light([i * TILE - h for i, h in zip(index, halo, strict=True)], [TILE + 2 * h for h in halo])
        for axis, (sigma, h) in enumerate(zip(sigmas, halo, strict=True)):
            if h:
                light = gaussian_filter1d(light, sigma, axis=axis, truncate=_TRUNCATE)
                light = light.take(range(h, h + TILE), axis=axis)
        return light

    def _illumination(self, index: Index) -> NDArray[np.float32]:
        """Return the illumination of a tile as a share of the full light."""
        settings, (z, y, x) = self.settings, self._axes(index)
        _, height, length = np.array(self.scene.shape) * settings.spacing_um
        off_centre = np.minimum(1, (2 * y / height - 1) ** 2)
        light = settings.fading ** (x / length) * (1 - settings.vignetting * off_centre) * np.ones_like(z)
        for z0, y0, x0, y_width, z_width, depth in self._shadows_near(index):
            profile = np.exp(-0.5 * (((y - y0) / y_width) ** 2 + ((z - z0) / z_width) ** 2))
            # The shadow sets in over some 20 um, the length of the object that throws it.
            onset = 1 / (1 + np.exp(np.clip((x0 - x) / 10, -30, 30)))
            light *= 1 - depth * profile * onset
        return light.astype(np.float32)

    def _shadows_near(self, index: Index) -> Floats:
        """Return the shadows that reach a tile: rows of z, y, x of the start, widths along y and z, depth."""
        edge, reach = self.settings.tile_um, 3 * self.settings.shadow_um[1]
        margin = math.ceil(reach / edge)
        indices = [range(max(0, i - margin), i + margin + 1) for i in index[:2]]
        rows = np.concatenate([_draw_shadows(self, z, y) for z, y in itertools.product(*indices)])
        low, high = np.array(index) * edge, (np.array(index) + 1) * edge
        near = (rows[:, :2] > low[:2] - reach) & (rows[:, :2] < high[:2] + reach)
        return np.asarray(rows[near.all(axis=1) & (rows[:, 2] < high[2])])


@functools.lru_cache(maxsize=4096)
def _draw_shadows(microscope: _Microscope, z: int, y: int) -> Floats:
    """Draw the shadows that start in one tile of the z, y plane, at any x."""
    settings, scene = microscope.settings, microscope.scene
    edge = settings.tile_um
    rng = np.random.default_rng((scene.seed, _SHADOW_STREAM, z, y))
    count = rng.poisson(settings.shadows_per_mm2 * (edge / 1e3) ** 2)
    start_zy = (np.array([z, y]) + rng.uniform(0, 1, (count, 2))) * edge
    start_x = rng.uniform(0, scene.shape[2] * settings.spacing_um, (count, 1))
    widths = rng.uniform(*settings.shadow_um, (count, 2))
    return np.hstack([start_zy, start_x, widths, rng.uniform(*settings.shadow_depth, (count, 1))])
