"""The function :func:`mrhdata.patches`, which plans patches from volumes, shapes, a sampler and a mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from mrhdata._runtime.arguments import check_choice, refuse_unknown
from mrhdata._runtime.memory import parse_memory
from mrhdata.errors import DataError, GridError, ParameterError
from mrhdata.patching import sources
from mrhdata.patching.dataset import Patches
from mrhdata.patching.positions import Ints, shares
from mrhdata.patching.readers import VolumeReader
from mrhdata.patching.samplers import Sampler, SamplingSpace, as_sampler
from mrhdata.patching.sources import TensorNames
from mrhdata.patching.subjects import SubjectVolumes, describe_subjects, subject_name
from mrhdata.patching.tiles import TensorSource

if TYPE_CHECKING:
    import xarray as xr

    Inputs = xr.DataArray | Mapping[str, xr.DataArray]

PADDING = ("constant", "edge", "reflect")


def patches(  # noqa: PLR0913  (one call describes a training set)
    inputs: Inputs | Sequence[Inputs],
    target: str | Inputs | Sequence[Inputs] | None = None,
    *,
    shape: int | Sequence[int] | Mapping[str, Any] | None = None,
    target_shape: int | Sequence[int] | Mapping[str, Any] | None = None,
    stride: int | Sequence[int] | Mapping[str, int] | None = None,
    sampler: Any = None,
    plane: str | None = None,
    context_slices: int = 0,
    mask: str | xr.DataArray | Sequence[xr.DataArray] | None = None,
    min_mask_fraction: float | None = None,
    grids: str = "same",
    padding: str | None = None,
    subject_weights: Sequence[float] | None = None,
    squeeze: bool = False,
    memory: str | int = "1 GB",
    seed: int = 0,
    **unknown: Never,
) -> Patches:
    """Plan patches over the volumes of one or several subjects.

    Parameters
    ----------
    inputs : volume, mapping of volumes, or a sequence of either (one item per subject)
        The volumes of a subject lie on one grid and are stacked along C in the given order; for other
        grids see `grids`. Subjects from :func:`mrhdata.datasets.find_subjects` bring their target and mask.
    target : the same, or str, optional
        Volumes to predict, or the name of one of the volumes in `inputs`, such as ``"seg"``, which is then not an
        input.
    shape, stride : int, (3,) sequence of int, or mapping of "z", "y", "x" to int
        Voxels along z, y, x of the first input; one number applies to all axes but the fixed one of
        `plane`. The stride is the shape by default. With ``grids="native"`` `shape` may also be a mapping of input
        names to shapes; the first input must be among them.
    target_shape : the same, optional
        Shape of the target's patches if it differs; both have one centre.
    sampler : sampler or (n, 3) int array (or one per subject), optional
        One of :mod:`mrhdata.patching.samplers` (`Uniform`, `ClassBalanced`, `Weighted`, `Points`), or first voxels
        of your own. The default is the grid of `stride`.
    plane : {"axial", "coronal", "sagittal"}, optional
        Flat patches: length 1, stride 1 along z, y or x.
    context_slices : int
        Planes on each side of `plane` that the first input has as further channels (2.5D).
    mask : mask volume, one per subject, or str, optional
        Patches are kept where the mask is not zero. A name selects one of the volumes in `inputs`.
    min_mask_fraction : float, optional
        Fraction of a patch's voxels that must lie in the mask. By default only the centre voxel must.
    grids : {"same", "native", "resample"}
        ``"same"`` refuses volumes that do not lie on the grid of the first input. ``"resample"`` resamples
        them to its voxels while reading: images linearly, labels and masks from the nearest voxel, from
        the stored level of an OME-Zarr nearest in spacing. ``"native"`` reads each volume at its own voxels, about
        the same world point; then patches are mappings by name. Patches lie where all volumes have
        voxels for them, unless there is `padding`.
    padding : {"constant", "edge", "reflect"}, optional
        Allow patches that reach beyond the volume, and fill them with 0, the nearest voxel or a mirror image.
    subject_weights : sequence of float, optional
        Fraction of each subject in the patches of a sampler that draws a number; equal by default.
    squeeze : bool
        Drop the patch axes of length 1.
    memory : str or int
        Bytes that decoded voxels and batches may take together, such as ``"512 MB"``. Some files cannot be read in
        parts (see :func:`mrhdata.convert`); if such a part does not fit, the error says which budget would.
    seed : int
        Random seed of samplers that draw.

    Returns
    -------
    patches : Patches

    Raises
    ------
    GridError
        Grids or spaces of one subject differ, channels differ between subjects, or no patch fits.
    DataError
        The mask leaves no patch.
    ParameterError
        An argument has a value that it cannot have, or the smallest part of a file exceeds `memory`.

    Examples
    --------
    >>> import mrhdata
    >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
    >>> p = mrhdata.patches({"t2": t2}, target=t2, shape=2)
    >>> len(p), p.positions[1].tolist(), [tuple(t.shape) for t in p[1]]
    (8, [0, 0, 2], [(1, 2, 2, 2), (1, 2, 2, 2)])
    """
    refuse_unknown(patches, unknown, {"patch_size": "shape", "roi_size": "shape", "num_patches": "sampler"})
    if shape is None:
        raise ParameterError("shape must be the voxels of a patch along z, y, x; got None. Pass shape=32, for example")
    check_choice("grids", grids, sources.GRIDS)
    check_choice("padding", padding, (None, *PADDING))
    subjects = describe_subjects(inputs, target, mask)
    if grids != "same":
        for number, subject in enumerate(subjects):
            volumes = _volumes_of(subject, f"subject {number}: " if len(subjects) > 1 else "")
            sources.warn_of_assumed_grids(volumes, f"patches(grids={grids!r})")
    shapes = sources.PatchShapes(shape, target_shape, plane, context_slices)
    layout = _lay_out([s.inputs for s in subjects], [s.target for s in subjects], shapes, grids)
    default_stride = sources.lengths(layout[0][1][0].shape if stride is None else stride, plane, "stride")
    chosen = as_sampler(sampler, default_stride)
    spaces = []
    for number, (subject, (_, tensors)) in enumerate(zip(subjects, layout, strict=True)):
        with _name_subject(number, subject.inputs, len(subjects) > 1):
            spaces.append(
                SamplingSpace(
                    _first_volume(subject.inputs),
                    tensors,
                    subject.mask,
                    min_mask_fraction,
                    overhang=padding is not None,
                    resample=grids != "same",
                    volumes=subject.volumes,
                )
            )
    drawn = _draw(chosen, spaces, subject_weights, seed)
    if not sum(len(positions) for positions, _ in drawn):
        raise DataError(
            "the mask leaves no patch. Check that it is not empty and lies over the inputs"
            if mask is not None
            else "no patch lies within all volumes. Pass padding= or a smaller shape"
        )
    all_tensors = [tensors for _, tensors in layout]
    return Patches(
        all_tensors, layout[0][0], drawn, plane, padding, squeeze, parse_memory(memory, least=0), context_slices
    )


def _draw(
    sampler: Sampler, spaces: Sequence[SamplingSpace], weights: Sequence[float] | None, seed: int
) -> list[tuple[Ints, Ints | None]]:
    """Return positions and classes of each subject."""
    rng = np.random.default_rng((seed, len(spaces)))
    share = [1.0] * len(spaces) if weights is None else [float(w) for w in weights]
    if len(share) != len(spaces):
        raise ParameterError(
            f"subject_weights must have one number for each subject; got {len(share)} for {len(spaces)} subjects"
        )
    counts = [0] * len(spaces) if sampler.num_patches is None else shares(sampler.num_patches, share)
    return [sampler.draw(space, i, n, rng) for i, (space, n) in enumerate(zip(spaces, counts, strict=True))]


def _lay_out(
    subjects: Sequence[Inputs], targets: Sequence[Inputs | None], shapes: sources.PatchShapes, grids: str
) -> list[tuple[TensorNames, list[TensorSource]]]:
    """Return the tensor names and sources of every subject; raise an error if subjects differ."""
    layout: list[tuple[TensorNames, list[TensorSource]]] = []
    for number, (inputs, target) in enumerate(zip(subjects, targets, strict=True)):
        with _name_subject(number, inputs, len(subjects) > 1):
            layout.append(sources.tensor_sources(inputs, target, shapes, grids))
            _check_equal_layout(layout[0], layout[-1])
    return layout


def _check_equal_layout(
    first: tuple[TensorNames, list[TensorSource]], other: tuple[TensorNames, list[TensorSource]]
) -> None:
    """Raise `GridError` if a subject has other volumes, or patches of other shapes, than the first."""
    (first_channels, first_sources), (channels, other_sources) = ((names.apart(s), s) for names, s in (first, other))
    problems = ("subjects have different inputs", "subjects have different targets")
    for problem, expected, got in zip(problems, first_channels, channels, strict=True):
        if expected != got:
            remedy = (
                "Pass all mappings in one order"
                if sorted(expected) == sorted(got)
                else f'Pass mappings with the same names for all subjects, such as {{"{(expected or got)[0]}": volume}}'
            )
            raise GridError(f"{problem}: {expected} and {got}. {remedy}")
    for expected_source, source in zip(first_sources, other_sources, strict=True):
        if source.shape != expected_source.shape:
            raise GridError(
                f"patches of all subjects must have one shape; got {expected_source.shape} and {source.shape} voxels, "
                "as spacings differ. Pass shape= or target_shape= with an item for every volume"
            )


@contextmanager
def _name_subject(number: int, inputs: Inputs, several: bool) -> Iterator[None]:
    """Name the subject in grid and parameter errors, if there are several subjects."""
    try:
        yield
    except (GridError, ParameterError) as error:
        if not several:
            raise
        name = subject_name(
            origin for volume in sources.volumes_by_name(inputs).values() for origin in VolumeReader(volume).source
        )
        subject = f"{number} ({name})" if name else f"{number}"
        raise type(error)(f"subject {subject}: {error}") from error


def _volumes_of(subject: SubjectVolumes, prefix: str) -> dict[str, xr.DataArray]:
    """Return the inputs, the targets and the mask of a subject by the name in a warning, each volume once."""
    volumes: dict[str, xr.DataArray] = {}
    for role, group in (("input", subject.inputs), ("target", subject.target), ("mask", subject.mask)):
        for name, volume in ({} if group is None else sources.volumes_by_name(group)).items():
            if not any(volume.data is other.data for other in volumes.values()):
                volumes[f"{prefix}{role} {name!r}"] = volume
    return volumes


def _first_volume(inputs: Inputs) -> xr.DataArray:
    return next(iter(sources.volumes_by_name(inputs).values()))
