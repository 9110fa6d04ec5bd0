"""Quality model of a network that learned from label maps: how its certainty and symmetry are related to its Dice.

```
label maps --Synthesizer, easy to hopeless--> whole heads --network--> features and true Dice --fit--> model
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from mrhdata.inference.probabilities import TrunkModel
from mrhdata.inference.quality import LabelFeatures, coarse_labels, extent, label_features
from mrhdata.models.quality import QualityModel
from mrhdata.synthesis.config import SynthesisConfig
from mrhdata.synthesis.label_map import LabelMap
from mrhdata.synthesis.priors import PRIORS
from mrhdata.synthesis.synthesizer import Synthesizer
from mrhdata.volume.construct import from_array

if TYPE_CHECKING:
    from torch import nn

#: Margin around the brain in voxels, memory for the network, and fewest voxels of a label of the truth.
_MARGIN, _MEMORY, _LEAST = 8, 2_000_000_000, 20


def calibrate(
    model: nn.Module,
    synthesizer: Synthesizer,
    *,
    others: Sequence[Synthesizer] = (),
    number: int = 70,
    seed: int = 0,
    progress: bool = True,
) -> QualityModel:
    """Return the quality model of a network with a trunk, measured on synthetic volumes.

    Parameters
    ----------
    model : torch.nn.Module
        Trained network, with a trunk.
    synthesizer : Synthesizer
        Source of images, best of label maps that the network did not learn from; its ranges are those of the training.
    others : sequence of Synthesizer
        Sources of further label maps whose extents count.
    number : int
        Number of volumes.
    seed : int
        Random seed.
    progress : bool
        Whether to show a progress bar.
    """
    rows = []
    for index in tqdm(range(number), "calibrating", disable=not progress):
        measured, dice = measure(model, synthesizer, [seed, index])
        rows.append((measured.certainty, measured.symmetry, dice))
    extents = [extent for source in (synthesizer, *others) for extent in _extents_mm(source)]
    certainty, symmetry, dice = (np.stack(column) for column in zip(*rows, strict=True))
    return QualityModel.fit(certainty, symmetry, dice, np.stack(extents))


def hard_ranges(ranges: SynthesisConfig) -> list[SynthesisConfig]:
    """Return ranges from easy images to those on which a network fails.

    Examples
    --------
    >>> len(hard_ranges(SynthesisConfig()))
    7
    """
    low, high = ranges.slice_mm
    return [
        ranges.eased(0.3),
        ranges,
        replace(ranges, random_share=1.0, contrast_width=(0.6, 1.0)),
        replace(ranges, random_share=0.0, modalities=tuple(sorted(PRIORS))),
        replace(ranges, noise=4 * ranges.noise),
        replace(ranges, slice_probability=1.0, slice_mm=((low + high) / 2, 1.5 * high)),
        replace(ranges, view_probability=1.0, view_share=(0.1, 0.6)),
    ]


def _extents_mm(synthesizer: Synthesizer) -> Iterator[NDArray[np.float64]]:
    """Yield the extents (3,) of all labels together in each label map, along z, y and x."""
    exact = synthesizer.with_config(SynthesisConfig.exact())
    for index, label_map in enumerate(synthesizer.maps):
        position, shape = _brain_box(label_map, 1)
        _, labels = exact.sample(0, shape, map_index=index, position=position)
        inside = labels.cpu().numpy() != 0
        voxels = [extent(inside.sum(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        yield np.array(voxels) * np.array(label_map.spacing_mm)


def _brain_box(label_map: LabelMap, multiple: int) -> tuple[list[int], list[int]]:
    """Return the first voxel and the lengths of a box about the brain."""
    centres = label_map.centres.cpu().numpy() + np.array(label_map.start)
    low, high = centres.min(0) - _MARGIN, centres.max(0) + 1 + _MARGIN
    return low.tolist(), (-(-(high - low) // multiple) * multiple).tolist()


def measure(model: Any, synthesizer: Synthesizer, seed: Sequence[int]) -> tuple[LabelFeatures, NDArray[np.float64]]:
    """Return the features of the labels of a random volume, and their true Dice."""
    rng = np.random.default_rng(seed)
    ways = hard_ranges(synthesizer.config)
    ranges, index = ways[rng.integers(len(ways))], int(rng.integers(len(synthesizer.maps)))
    position, shape = _brain_box(synthesizer.maps[index], model.multiple)
    image, labels = synthesizer.with_config(ranges).sample(
        int(rng.integers(2**62)), shape, map_index=index, position=position
    )
    volume = from_array(image[0].cpu().numpy(), spacing=synthesizer.maps[index].spacing_mm, name="image")
    trunk = TrunkModel(model, {"image": volume}, memory=_MEMORY, device=None, precision="float32")
    features = trunk.features(trunk.values)
    measured = label_features(trunk.network, features, trunk.features(np.ascontiguousarray(trunk.values[..., ::-1])))
    truth, step = np.zeros(trunk.values.shape[1:], np.int64), model.trunk_stride
    truth[tuple(slice(a, a + n) for a, n in zip(trunk.start, shape, strict=True))] = labels.cpu().numpy()
    answer = coarse_labels(trunk.network, features)
    return measured, _dice(truth[::step, ::step, ::step], answer, model.spec.labels)


def _dice(truth: NDArray[Any], answer: NDArray[Any], labels: Sequence[int]) -> NDArray[np.float64]:
    """Return the Dice of each label without the background; NaN for those that the truth hardly has."""
    values = []
    for number, label in enumerate(labels):
        true, answered = truth == label, answer == number
        total = int(true.sum()) + int(answered.sum())
        values.append(2 * int((true & answered).sum()) / total if true.sum() >= _LEAST else np.nan)
    return np.array(values[1:])
