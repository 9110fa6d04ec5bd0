"""Patches of real images for trainings on label maps, and the weights with which such a training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mrhdata.datasets.subjects import Subject
from mrhdata.errors import DataError, ModelError
from mrhdata.inference.segmenter import on_network_grid
from mrhdata.preprocessing.regrid import crop_or_pad
from mrhdata.recipes.segmentation import Crops, labels_of
from mrhdata.registration.resampling import resample

if TYPE_CHECKING:
    from torch import nn

    from mrhdata.models.spec import ModelSpec
    from mrhdata.patching.dataset import Patches
    from mrhdata.recipes.synthetic import SyntheticRecipe


def channel_of(subjects: Sequence[Subject]) -> str:
    """Return the name of the only input of all subjects; "image" without subjects.

    Examples
    --------
    >>> channel_of([])
    'image'
    """
    names = {name for subject in subjects for name in subject.inputs}
    if len(names) > 1:
        raise DataError(f"real images must have one channel, as synthetic ones; got {sorted(names)}. Pass one of them")
    return names.pop() if names else "image"


def real_patches(subjects: Sequence[Subject], recipe: SyntheticRecipe, spec: ModelSpec, seed: int) -> Patches | None:
    """Return patches about the labels of real images, which are prepared and padded as for the network.

    Parameters
    ----------
    subjects : sequence of Subject
        Images with labels.
    recipe : SyntheticRecipe
        Settings of the training.
    spec : ModelSpec
        Specification of the network.
    seed : int
        Random seed of the places.

    Returns
    -------
    patches : Patches or None
        None without subjects.
    """
    if not subjects:
        return None
    prepared = []
    for subject in subjects:
        unknown = set(np.unique(np.asarray(labels_of(subject).data)).tolist()) - {*spec.labels}
        if unknown:
            raise DataError(
                f"{subject.id} must have the labels {spec.labels}; got also {sorted(unknown)}. Renumber its labels"
            )
        case = on_network_grid(subject, replace(spec, channels=tuple(subject.inputs)))
        prepared.append(_padded(case, recipe.smallest))
    lengths = np.min([case.first.shape for case in prepared], axis=0)
    # Thin images are shown in the thin patches, the others in cubes.
    shape = next((s for s in (recipe.shape, *recipe.other_shapes) if (np.array(s) <= lengths).all()), recipe.smallest)
    return Crops(shape, each=recipe.real_patches)(prepared, training=True, seed=seed)


def _padded(case: Subject, least: Sequence[int]) -> Subject:
    """Return a case that has at least some lengths, between zeros."""
    image = case.first.compute()
    grid = crop_or_pad(image.mrh.grid, np.maximum(image.shape, least).tolist())
    labels = labels_of(case)
    return replace(
        case,
        inputs={name: resample(image, grid, order=0).compute() for name in case.inputs},
        target=resample(labels, grid).compute(),
    )


def copy_weights(start: nn.Module, model: nn.Module) -> None:
    """Copy the weights of a network to another one, where their shapes agree."""
    weights = model.state_dict()
    same = {name: w for name, w in start.state_dict().items() if name in weights and weights[name].shape == w.shape}
    if not same:
        raise ModelError("start must be a network of the kind that is trained; got one of other layers. Leave it out")
    model.load_state_dict(weights | same)
