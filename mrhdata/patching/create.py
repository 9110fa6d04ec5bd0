"""The function :func:`mrhdata.patches`: volumes, shapes, sampler and mask become planned patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata._runtime.memory import parse_memory
from mrhdata.errors import DataError, GridError
from mrhdata.patching import sources
from mrhdata.patching.dataset import Patches
from mrhdata.patching.positions import shares
from mrhdata.patching.readers import VolumeReader
from mrhdata.patching.samplers import SamplingSpace, as_sampler
from mrhdata.patching.sources import TensorNames
from mrhdata.patching.subjects import subject_name
from mrhdata.patching.tiles import TensorSource

if TYPE_CHECKING:
    import xarray as xr

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

PADDING = ("constant", "edge", "reflect")


def patches(  # noqa: PLR0913  (one call says all about a training set)
    inputs: Inputs | Sequence[Inputs],
    target: Inputs | Sequence[Inputs] | None = None,
    *,
    shape: int | Sequence[int] | Mapping[str, Any],
    target_shape: int | Sequence[int] | Mapping[str, Any] | None = None,
    stride: int | Sequence[int] | None = None,
    sampler: Any = None,
    plane: str | None = None,
    context_slices: int = 0,
    mask: xr.DataArray | Sequence[xr.DataArray] | None = None,
    min_mask_fraction: float | None = None,
    grids: str = "same",
    padding: str | None = None,
    subject_weights: Sequence[float] | None = None,
    squeeze: bool = False,
    memory: str | int = "1 GB",
    seed: int = 0,
) -> Patches:
    """Plan patches over the volumes of one or several subjects.

    Parameters
    ----------
    inputs : volume, mapping of volumes, or a sequence of either (one item per subject)
        The volumes of a subject lie on one grid and are stacked along C in the given order; for other
        grids see `grids`.
    target : the same, optional
    shape, stride : int or (3,) sequence of int
        Voxels along z, y, x of the first input; one number stands for all axes but the fixed one of
        `plane`. The stride is the shape where it is not given. With ``grids="native"`` `shape` may be a
        mapping with an item for some of the inputs, the first one among them.
    target_shape : the same, optional
        Where the target is larger or smaller than the input; both have one centre.
    sampler : chooser or (n, 3) int array (or one per subject), optional
        Instead of the grid of `stride`: one of :mod:`mrhdata.patching.samplers` (`Uniform`, `ClassBalanced`,
        `Weighted`, `Points`), or first voxels of your own.
    plane : {"axial", "coronal", "sagittal"}, optional
        Flat patches: length 1, stride 1 along z, y or x.
    context_slices : int
        Planes on each side of `plane` that the first input has as further channels (2.5D).
    mask : mask volume, or one per subject, optional
        Patches are kept where it is not zero.
    min_mask_fraction : float, optional
        Share of a patch's voxels that must lie in the mask; by default the centre voxel must.
    grids : {"same", "own", "first"}
        ``"same"`` refuses volumes that do not lie on the grid of the first input. ``"first"`` resamples
        them to its voxels while reading: images linearly, labels and masks from the nearest voxel, from
        the stored level of an OME-Zarr nearest in spacing. ``"own"`` reads each at its own voxels, about
        the same world point; then patches are mappings by name. Patches lie where all volumes have
        voxels for them, unless there is `padding`.
    padding : {"constant", "edge", "reflect"}, optional
        Let patches reach beyond the volume, and what is there: 0, the nearest voxel, a mirror image.
    subject_weights : sequence of float, optional
        Share of each subject in the patches of a chooser that draws a number; equal by default.
    squeeze : bool
        Drop the patch axes of length 1.
    memory : str or int
        Bytes that decoded voxels and batches may take together, such as ``"512 MB"``.
    seed : int
        For choosers that draw.

    Returns
    -------
    patches : Patches

    Raises
    ------
    GridError
        Grids or spaces of one subject differ, channels differ between subjects, or no patch fits.
    DataError
        The mask leaves no patch.

    Examples
    --------
    >>> import mrhdata
    >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
    >>> p = mrhdata.patches({"t2": t2}, target=t2, shape=2)
    >>> len(p), p.positions[1].tolist(), [tuple(t.shape) for t in p[1]]
    (8, [0, 0, 2], [(1, 2, 2, 2), (1, 2, 2, 2)])
    """
    if grids not in sources.GRIDS:
        raise GridError(f"align is one of {', '.join(sources.GRIDS)}, not {grids!r}")
    if padding not in (None, *PADDING):
        raise GridError(f"padding is one of {', '.join(PADDING)}, not {padding!r}")
    subjects = _per_subject(inputs)
    targets = _one_name(_per_subject(target)) if target is not None else [None] * len(subjects)
    masks = _per_subject(mask) if mask is not None else [None] * len(subjects)
    if not len(subjects) == len(targets) == len(masks) > 0:
        raise GridError(
            f"there are {len(subjects)} subjects of inputs, {len(targets)} of targets and {len(masks)} masks; "
            "give one of each per subject"
        )
    shapes = sources.PatchShapes(shape, target_shape, plane, context_slices)
    layout = _laid_out(subjects, targets, shapes, grids)
    how = as_sampler(sampler, sources.lengths(layout[0][1][0].shape if stride is None else stride, plane, "stride"))
    spaces = []
    for number, (given, (_, streams), subject_mask) in enumerate(zip(subjects, layout, masks, strict=True)):
        with _said_of(number, given, len(subjects) > 1):
            spaces.append(
                SamplingSpace(
                    _first(given), streams, subject_mask, min_mask_fraction, padding is not None, grids != "same"
                )
            )
    rng = np.random.default_rng((seed, len(spaces)))
    share = [1.0] * len(spaces) if subject_weights is None else [float(w) for w in subject_weights]
    if len(share) != len(spaces):
        raise GridError(f"there are {len(share)} weights for {len(spaces)} subjects; give one for each")
    counts = [0] * len(spaces) if how.num_patches is None else shares(how.num_patches, share)
    drawn = [how.draw(space, i, n, rng) for i, (space, n) in enumerate(zip(spaces, counts, strict=True))]
    if not sum(len(positions) for positions, _ in drawn):
        raise DataError(
            "the mask leaves no patch; check that it is not empty and lies over the inputs"
            if mask is not None
            else "there is no place where all volumes have the voxels of a patch; use padding=, or smaller patches"
        )
    every = [streams for _, streams in layout]
    return Patches(every, layout[0][0], drawn, plane, padding, squeeze, parse_memory(memory, least=0), context_slices)


def _laid_out(
    subjects: Sequence[Inputs], targets: Sequence[Inputs | None], shapes: sources.PatchShapes, align: str
) -> list[tuple[TensorNames, list[TensorSource]]]:
    """Names and streams of every subject, which are alike."""
    layout: list[tuple[TensorNames, list[TensorSource]]] = []
    for number, (given, target) in enumerate(zip(subjects, targets, strict=True)):
        with _said_of(number, given, len(subjects) > 1):
            names, streams = sources.tensor_sources(given, target, shapes, align)
            layout.append((names, streams))
            _check_alike(layout[0], layout[-1])
    return layout


def _check_alike(
    first_one: tuple[TensorNames, list[TensorSource]], other: tuple[TensorNames, list[TensorSource]]
) -> None:
    """Raise `GridError` where a subject has other volumes, or patches of other shapes, than the first."""
    (of_first, firsts), (of_other, others) = ((names.apart(s), s) for names, s in (first_one, other))
    said = ("subjects have different inputs", "subjects have different targets")
    for sentence, theirs, ours in zip(said, of_first, of_other, strict=True):
        if theirs != ours:
            remedy = (
                "give all mappings in one order"
                if sorted(theirs) == sorted(ours)
                else f'give all mappings with the same names, such as {{"{(theirs or ours)[0]}": volume}}'
            )
            raise GridError(f"{sentence}: {theirs} and {ours}; {remedy}")
    for mine, first in zip(others, firsts, strict=True):
        if mine.shape != first.shape:
            raise GridError(
                f"patches of subjects would be {first.shape} and {mine.shape} voxels, as their spacings differ; "
                "give shape= or target_shape= an item for every volume"
            )


@contextmanager
def _said_of(number: int, inputs: Inputs, several: bool) -> Iterator[None]:
    """Say of which subject an error speaks, where there are several."""
    try:
        yield
    except GridError as error:
        if not several:
            raise
        known = subject_name(
            source for volume in sources.volumes_by_name(inputs).values() for source in VolumeReader(volume).source
        )
        who = f"{number} ({known})" if known else f"{number}"
        raise GridError(f"subject {who}: {error}") from error


def _first(inputs: Inputs) -> xr.DataArray:
    return next(iter(sources.volumes_by_name(inputs).values()))


def _per_subject(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _one_name(targets: list[Any]) -> list[Any]:
    """Targets that are given by themselves are one target, whatever their files are called."""
    if any(target is None or isinstance(target, Mapping) for target in targets):
        return targets
    return [target.rename(targets[0].name) for target in targets]
