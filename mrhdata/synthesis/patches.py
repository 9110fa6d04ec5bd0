"""Synthetic patches for training: drawn as they are needed, so that no two epochs show the same image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import ParameterError
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.synthesizer import Synthesizer

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

#: Voxels of each label that are kept as possible centres of patches, for each map.
_CENTRES = 1000
#: Batches that a thread draws ahead of the training step.
_AHEAD = 2


class SyntheticPatches:
    """Patches with labels, which :func:`mrhdata.fit` takes in place of those of real volumes.

    Parameters
    ----------
    synthesizer : Synthesizer
        Source of images and labels.
    shape : (z, y, x)
        Size of a patch in voxels of the label maps.
    number : int
        Number of patches of an epoch.
    seed : int
        Random seed of the patches.
    label_share : float
        Share of the patches that lie about a voxel of a label, each label as often; the others lie as the synthesizer
        draws them.
    schedule : callable, optional
        Function of an epoch's number that returns its ranges, a `SynthesisConfig`; by default those of the synthesizer.
        A network learns faster if artefacts and random contrasts become frequent gradually.
    label_step : int
        Distance between the voxels whose labels are given, along each axis, from a random first one: for a network that
        predicts on a coarser grid.
    other_shapes : mapping of (z, y, x) to float
        Further sizes of patches, with the share of the batches that have each. A thin and wide patch shows a network
        more of a slab than a cube of as many voxels. All patches of a batch have the size that is drawn for its first.
    channel : str
        Name of the image.

    Examples
    --------
    >>> from mrhdata.synthesis import Anatomy
    >>> labels = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    >>> synthesizer = Synthesizer([labels], anatomy=Anatomy.of_labels(range(1, 9)), spacing_mm=(1, 1, 1))
    >>> patches = SyntheticPatches(synthesizer, (8, 8, 8), number=3)
    >>> [array.shape for array in patches.gather([0, 2])]
    [(2, 1, 8, 8, 8), (2, 1, 8, 8, 8)]
    """

    plane = None
    context_slices = 0
    #: Files of the images, of which synthetic ones have none.
    sources: Sequence[Any] = ()

    def __init__(
        self,
        synthesizer: Synthesizer,
        shape: Sequence[int],
        number: int,
        *,
        seed: int = 0,
        label_share: float = 0.5,
        schedule: Callable[[int], SynthesisConfig] | None = None,
        label_step: int = 1,
        other_shapes: Mapping[tuple[int, int, int], float] | None = None,
        channel: str = "image",
    ) -> None:
        if number < 1:
            raise ParameterError(f"number must be 1 or more; got {number}. Pass the number of patches of an epoch.")
        shares = dict(other_shapes or {})
        if min(shares.values(), default=0.0) < 0 or sum(shares.values()) > 1:
            raise ParameterError(f"other_shapes must have shares of at most 1 in all; got {shares}. Lower them.")
        a, b, c = (int(n) for n in shape)
        self.shape, self.channels = (a, b, c), [channel]
        self._shapes = [self.shape, *shares]
        self._shares = [max(0.0, 1 - sum(shares.values())), *shares.values()]
        self.spacing_mm = synthesizer.maps[0].spacing_mm
        self.seed, self.label_step = seed, label_step
        self._synthesizer, self._number = synthesizer, number
        self._label_share, self._schedule = label_share, schedule
        self._centres = [synthesizer.centres(index, _CENTRES) for index in range(len(synthesizer.maps))]

    def __len__(self) -> int:
        return self._number

    @property
    def positions(self) -> Ints:
        """Places of the patches, which are drawn with them: all 0."""
        return np.zeros((self._number, 3), np.int64)

    def batch_bytes(self, batch_size: int) -> int:
        """Return the bytes of a batch of images and labels."""
        return 2 * 4 * batch_size * max(math.prod(shape) for shape in self._shapes)

    def gather(self, indices: Sequence[int] | Ints) -> list[Floats]:
        """Return images and labels (n, 1, z, y, x) of the first epoch."""
        return self.draw(np.asarray(indices), 0, int(indices[0]))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        **options: Any,
    ) -> Iterator[tuple[Ints, list[Floats]]]:
        """Yield the batches of an epoch, which a thread draws ahead; as ``Patches.batches`` does.

        The patches are random, so `seed` and the order of patches do not matter. Epoch 0 is always the same, which
        serves validation.
        """
        return run_ahead(self._batches(batch_size, epoch, start, part), _AHEAD)

    def _batches(
        self, batch_size: int, epoch: int, start: int, part: tuple[int, int]
    ) -> Iterator[tuple[Ints, list[Floats]]]:
        for first in range(start * batch_size, self._number, batch_size):
            whole = np.arange(first, min(first + batch_size, self._number))
            indices = whole[part[0] :: part[1]] if len(whole) > part[0] else whole[:1]
            yield indices, self.draw(indices, epoch, first)

    def draw(self, indices: Ints, epoch: int, first: int) -> list[Floats]:
        """Return images and labels of some patches of an epoch, in the size that is drawn for the first of a batch."""
        rng = np.random.default_rng([self.seed, epoch, first, 1])
        shape = self._shapes[rng.choice(len(self._shapes), p=self._shares)]
        synthesizer = self._synthesizer
        if self._schedule is not None:
            synthesizer = synthesizer.with_config(self._schedule(epoch))
        samples = [self._sample(synthesizer, int(index), epoch, shape) for index in indices]
        images, labels = zip(*samples, strict=True)
        arrays = [torch.stack(images), torch.stack(labels)[:, None].float()]
        return [array.cpu().numpy() for array in arrays]

    def _sample(
        self, synthesizer: Synthesizer, index: int, epoch: int, shape: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.seed, epoch, index])
        about_label, seed = rng.random(), int(rng.integers(2**62))
        place = self._place(rng, shape) if about_label < self._label_share else {}
        image, labels = synthesizer.sample(seed, shape, **place)
        return image, labels[self.draw_label_voxels(rng)]

    def draw_label_voxels(self, rng: np.random.Generator) -> tuple[slice, ...]:
        """Return the voxels (z, y, x) whose labels are given, from a random first one."""
        return tuple(slice(int(first), None, self.label_step) for first in rng.integers(self.label_step, size=3))

    def _place(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return a map, and the place of a patch about a voxel of one of its labels."""
        number = int(rng.integers(len(self._centres)))
        voxels: Mapping[int, Ints] = self._centres[number]
        if not voxels:
            return {"map_index": number}
        chosen = voxels[int(rng.choice(list(voxels)))]
        centre = chosen[rng.integers(len(chosen))]
        # Half a patch of jitter: the label need not lie in the middle.
        size = np.array(shape)
        jitter = rng.integers(-(size // 4), size // 4 + 1)
        return {"map_index": number, "position": (centre + jitter - size // 2).tolist()}
