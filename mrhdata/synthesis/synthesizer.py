"""The synthesizer: samples and batches of images and labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrhdata.errors import ParameterError
from mrhdata.synthesis import artefacts, surroundings
from mrhdata.synthesis.config import SynthesisConfig, check_number
from mrhdata.synthesis.contrast import draw_contrast
from mrhdata.synthesis.draws import Draws
from mrhdata.synthesis.geometry import Pose, draw_pose, draw_view
from mrhdata.synthesis.grids import Grids
from mrhdata.synthesis.intensity import paint, scale
from mrhdata.synthesis.label_map import LabelMap
from mrhdata.synthesis.resolution import acquire
from mrhdata.synthesis.structures import FREESURFER, Anatomy

#: Share of a voxel that must lie in the field of view for its label to be asked for.
_LEAST_SHARE = 0.5


class Synthesizer:
    """Images of random contrast, shape and quality with exact labels, drawn from label maps.

    Parameters
    ----------
    maps : sequence of label volumes, arrays (z, y, x) of whole numbers, or LabelMap
        Label maps. Axes of volumes are reversed where needed, so that they run towards superior, anterior and right.
    config : SynthesisConfig, optional
        Ranges of all random choices.
    anatomy : Anatomy
        Structures of the labels.
    spacing_mm : (3,) sequence of float, optional
        Voxel size of arrays along z, y, x.
    targets : mapping of int to int, optional
        Label of the output for each label of the maps; those that are not listed become 0. By default labels stay.
    device : torch.device or str
        Device of maps and samples. Random numbers do not depend on it.

    Examples
    --------
    >>> labels = np.zeros((24, 24, 24), np.uint8)
    >>> labels[4:20, 4:20, 4:20], labels[8:16, 8:16, 8:16] = 3, 2
    >>> synthesizer = Synthesizer([labels], spacing_mm=(1, 1, 1))
    >>> image, label = synthesizer.sample(seed=0, shape=(16, 16, 16))
    >>> image.shape, image.dtype, label.shape, label.dtype
    (torch.Size([1, 16, 16, 16]), torch.float32, torch.Size([16, 16, 16]), torch.int16)
    """

    def __init__(
        self,
        maps: Sequence[Any],
        config: SynthesisConfig | None = None,
        anatomy: Anatomy = FREESURFER,
        *,
        spacing_mm: Sequence[float] | None = None,
        targets: Mapping[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(maps):
            raise ParameterError("maps must have a label map; got none. Pass at least one.")
        self.config = SynthesisConfig() if config is None else config
        self.anatomy = anatomy
        self.device = torch.device(device)
        self.maps = [m if isinstance(m, LabelMap) else LabelMap.make(m, anatomy, spacing_mm, self.device) for m in maps]
        labels = anatomy.labels.tolist()
        self._values = _smallest_integers(
            labels if targets is None else [targets.get(v, 0) for v in labels], self.device
        )
        self._classes = anatomy.classes.int().to(self.device)
        self._in_brain = anatomy.in_brain.to(self.device)
        self._partners = anatomy.swapped_sides.to(self.device)

    def sample(
        self,
        seed: int | torch.Generator,
        shape: Sequence[int],
        *,
        spacing_mm: Sequence[float] | None = None,
        contrast_width: float | None = None,
        map_index: int | None = None,
        position: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return one image and its labels.

        Parameters
        ----------
        seed : int or torch.Generator
            Random seed, or a generator on the processor that continues.
        shape : (z, y, x)
            Size of the sample in voxels.
        spacing_mm : (3,) sequence of float, optional
            Voxel size of the sample; that of the map by default. Larger voxels average the image and take the label
            of their centre.
        contrast_width : float, optional
            Width of the contrast; random by default.
        map_index : int, optional
            Number of the label map; random by default.
        position : (3,) sequence of int, optional
            First voxel of the patch in the map, before the patch is turned and deformed; random by default.

        Returns
        -------
        image : (1, z, y, x) float32 tensor
            Values from 0 to 1.
        labels : (z, y, x) int16 tensor
            Labels; 0 outside of the field of view, and where skull-stripping left nothing. If a label does not fit
            into 16 bits, the tensor is int64.

        Examples
        --------
        >>> labels = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2).repeat(4, 0).repeat(4, 1).repeat(4, 2)
        >>> anatomy = Anatomy.of_labels(range(1, 9))
        >>> synthesizer = Synthesizer([labels], SynthesisConfig.exact(), anatomy, spacing_mm=(1, 1, 1))
        >>> image, patch = synthesizer.sample(0, (4, 4, 4), position=(1, 2, 3))
        >>> bool((patch.numpy() == labels[1:5, 2:6, 3:7]).all())
        True
        """
        draws = Draws(seed, self.device)
        width = self._draw_width(draws)
        if contrast_width is not None:
            check_number("contrast_width", contrast_width)
            width = contrast_width
        label_map = self._choose_map(map_index, draws)
        grids = Grids.choose(shape, spacing_mm or label_map.spacing_mm, label_map.spacing_mm)
        pose = draw_pose(label_map, grids, self.config, draws, position)
        view = draw_view(label_map, pose, self.config, draws)
        view = None if view is None else grids.at_centres(view)
        fine = self._sample_structures(label_map, pose)
        image, visible = self._draw_image(fine, grids, width, view, draws)
        labels = _look_up(self._values, grids.at_centres(fine))
        return image[None], labels if visible is None else labels * visible

    def with_config(self, config: SynthesisConfig) -> Synthesizer:
        """Return a synthesizer of the same maps with other ranges.

        Examples
        --------
        >>> synthesizer = Synthesizer([np.full((8, 8, 8), 3)], spacing_mm=(1, 1, 1))
        >>> synthesizer.with_config(SynthesisConfig(noise=0.0)).config.noise
        0.0
        """
        other = copy.copy(self)
        other.config = config
        return other

    def batch(self, seeds: Sequence[int], shape: Sequence[int], **options: Any) -> tuple[Tensor, Tensor]:
        """Return images (B, 1, z, y, x) and labels (B, z, y, x): the samples of some seeds.

        Examples
        --------
        >>> labels = np.ones((8, 8, 8), np.uint8)
        >>> synthesizer = Synthesizer([labels], anatomy=Anatomy.of_labels([1]), spacing_mm=(1, 1, 1))
        >>> images, labels = synthesizer.batch([3, 4], (8, 8, 8))
        >>> images.shape, bool((images[1] == synthesizer.sample(4, (8, 8, 8))[0]).all())
        (torch.Size([2, 1, 8, 8, 8]), True)
        """
        if not len(seeds):
            raise ParameterError("seeds must have a number; got none. Pass one per sample.")
        images, labels = zip(*(self.sample(seed, shape, **options) for seed in seeds), strict=True)
        return torch.stack(images), torch.stack(labels)

    def batches(
        self, size: int, shape: Sequence[int], seed: int = 0, start: int = 0, **options: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches without end, from the batch number `start`.

        Examples
        --------
        >>> labels = np.ones((8, 8, 8), np.uint8)
        >>> synthesizer = Synthesizer([labels], anatomy=Anatomy.of_labels([1]), spacing_mm=(1, 1, 1))
        >>> images, labels = next(synthesizer.batches(2, (4, 4, 4), seed=1))
        >>> images.shape
        torch.Size([2, 1, 4, 4, 4])
        """
        while True:
            seeds = np.random.SeedSequence([seed, start]).generate_state(size).tolist()
            yield self.batch(seeds, shape, **options)
            start += 1

    def centres(self, map_index: int, number: int) -> dict[int, np.ndarray]:
        """Return voxels (n, 3) of each label of the output in a map, at most `number`, spread evenly over it.

        Examples
        --------
        >>> labels = np.zeros((4, 4, 4), np.uint8)
        >>> labels[1, 2, 3] = 7
        >>> Synthesizer([labels], anatomy=Anatomy.of_labels([7]), spacing_mm=(1, 1, 1)).centres(0, 5)
        {7: array([[1, 2, 3]])}
        """
        label_map = self.maps[map_index]
        values = _look_up(self._values, label_map.indices).cpu().numpy()
        voxels = {}
        for label in np.unique(values[values != 0]).tolist():
            flat = np.flatnonzero(values == label)
            spread = flat[np.linspace(0, len(flat) - 1, min(number, len(flat))).astype(np.int64)]
            voxels[label] = np.stack(np.unravel_index(spread, values.shape), axis=1) + label_map.start
        return voxels

    def _draw_width(self, draws: Draws) -> float:
        """Draw the width of the contrast: 0 for that of a prior."""
        random, width = draws.chance(self.config.random_share), draws.uniform(self.config.contrast_width)
        return width if random else 0.0

    def _choose_map(self, index: int | None, draws: Draws) -> LabelMap:
        """Return a random map, or that of an index; the random number is drawn in both cases."""
        chosen = draws.integer(len(self.maps))
        if index is not None and not 0 <= index < len(self.maps):
            raise ParameterError(
                f"map_index must be from 0 to {len(self.maps) - 1}; got {index}. Pass None for any map."
            )
        return self.maps[chosen if index is None else index]

    def _sample_structures(self, label_map: LabelMap, pose: Pose) -> Tensor:
        """Return the structure of each painted voxel, with sides swapped back in a mirror image."""
        structures = pose.sample(label_map.indices)
        if pose.mirrored and self.config.swap_sides:
            return _look_up(self._partners.to(structures.dtype), structures)
        return structures

    def _draw_image(
        self, fine: Tensor, grids: Grids, width: float, view: Tensor | None, draws: Draws
    ) -> tuple[Tensor, Tensor | None]:
        """Return an image of structures, from its contrast to the scale of the output, and its voxels with data."""
        contrast = draw_contrast(self.anatomy, self.config, width, draws)
        way = surroundings.draw_way(self.config, draws)
        if way == "merged":
            contrast = surroundings.merge(contrast, self.anatomy, draws)
        image = self._scan(paint(_look_up(self._classes, fine), contrast, grids, self.config, draws), grids, draws)
        visible = None
        if view is not None:
            image = torch.lerp(torch.full_like(image, contrast.blank), image, view)
            visible = view >= _LEAST_SHARE
        brain = _look_up(self._in_brain, grids.at_centres(fine))
        # A patch without brain keeps its surroundings, or it would be empty.
        if way == "removed" and brain.any():
            brain = surroundings.draw_brain(brain, grids.spacing_mm, self.config, draws)
            image = torch.where(brain, image, contrast.blank)
            visible = brain if visible is None else visible & brain
        return scale(image, self.config, draws), visible

    def _scan(self, image: Tensor, grids: Grids, draws: Draws) -> Tensor:
        """Return an image on the grid of the output, with the artefacts of its acquisition."""
        image = artefacts.add_bias(image, grids.fine_mm, self.config, draws)
        image = artefacts.add_motion(image, grids.fine_mm, self.config, draws)
        image = artefacts.add_ringing(image, self.config, draws)
        return acquire(image, grids, self.config, draws)


def _smallest_integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Return values as int16, or as int64 if one of them does not fit."""
    table = torch.tensor(values, dtype=torch.int64, device=device)
    return table.short() if bool((table.short() == table).all()) else table


def _look_up(table: Tensor, indices: Tensor) -> Tensor:
    """Return the entry of a table at each index."""
    return table.index_select(0, indices.reshape(-1).int()).reshape(indices.shape)
