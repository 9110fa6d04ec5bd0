"""Synthetic patches mixed with those of real images, batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrhdata.errors import ParameterError
from mrhdata.synthesis.patches import Floats, Ints, SyntheticPatches
from mrhdata.synthesis.synthesizer import Synthesizer


class MixedPatches(SyntheticPatches):
    """Batches of synthetic patches, and batches of patches of real images with their labels.

    Parameters
    ----------
    synthesizer, shape, number, options
        As for `SyntheticPatches`.
    real : patches
        Patches of real images with labels (:func:`mrhdata.patches`). Their values must be those that the network gets
        after its preparation, and their labels those of the synthetic patches.
    real_share : float
        Share of the batches that are real.

    Examples
    --------
    >>> import mrhdata
    >>> from mrhdata.synthesis import Anatomy
    >>> labels = mrhdata.from_array(np.ones((8, 8, 8), np.uint8), spacing=(1, 1, 1), kind="labels")
    >>> image = mrhdata.from_array(np.full((8, 8, 8), 0.7, np.float32), spacing=(1, 1, 1))
    >>> real = mrhdata.patches(image, target=labels, shape=4)
    >>> synthesizer = Synthesizer([labels], anatomy=Anatomy.of_labels([1]))
    >>> images, _ = MixedPatches(synthesizer, (4, 4, 4), 2, real=real, real_share=1.0).gather([0, 1])
    >>> images.shape, images.min().round(1)
    ((2, 1, 4, 4, 4), np.float32(0.7))
    """

    def __init__(
        self, synthesizer: Synthesizer, shape: Any, number: int, *, real: Any, real_share: float = 0.5, **options: Any
    ) -> None:
        super().__init__(synthesizer, shape, number, **options)
        if not 0 <= real_share <= 1:
            raise ParameterError(f"real_share must be from 0 to 1; got {real_share}. Pass the share of real batches.")
        self._real, self._real_share = real, real_share

    def batch_bytes(self, batch_size: int) -> int:
        """Return the bytes of the largest batch of images and labels."""
        return max(super().batch_bytes(batch_size), self._real.batch_bytes(batch_size))

    def draw(self, indices: Ints, epoch: int, first: int) -> list[Floats]:
        """Return images and labels of some patches of an epoch, of the kind that is drawn for the first of a batch."""
        if np.random.default_rng([self.seed, epoch, first, 2]).random() >= self._real_share:
            return super().draw(indices, epoch, first)
        rng = np.random.default_rng([self.seed, epoch, *indices.tolist(), 3])
        images, labels = self._real.gather(rng.integers(len(self._real), size=len(indices)))
        return [images, np.ascontiguousarray(labels[:, :, *self.draw_label_voxels(rng)])]
