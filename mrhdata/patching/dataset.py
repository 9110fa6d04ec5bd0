"""Patches as users hold them: batches for PyTorch, exports, splits that share nothing, and summaries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata.errors import DataError
from mrhdata.patching.patch_set import PatchSet
from mrhdata.patching.splits import folds_of, parts_of, shared_with

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from mrhdata.patching.loader import PatchIterableDataset, PatchLoader
    from mrhdata.patching.summary import CostReport, SampleReport


class Patches(PatchSet):
    """Planned patches; made by :func:`mrhdata.patches`.

    ``len(p)``, ``p[i]`` -> ``(input, target)`` tensors (only ``input`` without a target), float32,
    (C, z, y, x). Works as a map-style data set in any ``DataLoader``; :meth:`loader` is faster.

    Attributes
    ----------
    positions : (n, 3) int64 array
        First voxel of each patch in its subject's first input, z, y, x; those of one stored chunk
        stand together.
    subject : (n,) int64 array
        Number of the subject.
    draw_index : (n,) int64 array
        Where each stood among the positions of its subject as they were chosen or given.
    classes : (n,) int64 array or None
        Class that a patch was drawn for, by choosers that know one.
    shape : tuple of int
        Patch length along z, y, x, neighbouring planes included.
    plane : str or None
    context_slices : int
        Planes on each side that are channels of the first tensor.
    channels : list of str
    sources : list of list of Stream
        What the tensors of each subject are cut from.
    in_memory : bool
        All voxels fit half of the memory and stay there after the first pass.
    """

    def _repr_html_(self) -> str:
        from mrhdata.patching.summary import as_html

        return as_html(self)

    def dataset(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: tuple[int, int] | None = None,
        drop_last: bool = False,
        transform: Callable[..., Any] | None = None,
        per_patch_transform: Callable[..., Any] | None = None,
        return_metadata: bool = False,
        as_dict: bool = False,
    ) -> PatchIterableDataset:
        """An ``IterableDataset`` of whole batches, for any ``DataLoader`` with ``batch_size=None``.

        Parameters
        ----------
        batch_size, shuffle, seed
            The same give the same orders.
        rank : (int, int), optional
            Number of this process and how many share the patches; PyTorch's own where it runs distributed.
        drop_last : bool
            Leave out the last batch where it is not full; all ranks then have as many.
        transform : callable, optional
            Function of the input and target (or only the input) of a batch, which returns them.
        per_patch_transform : callable, optional
            The same for one patch; it runs before `transform`.
        return_metadata : bool
            Batches end in a mapping of ``subject`` (b,), ``position`` (b, 3) and ``affine`` (b, 4, 4).
        as_dict : bool
            Batches are mappings with the keys ``image``, ``label`` and ``metadata``, as MONAI has them; several
            inputs or targets keep their own names.
        """
        from mrhdata.patching.loader import PatchIterableDataset

        return PatchIterableDataset(
            self,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            drop_last=drop_last,
            transform=transform,
            per_patch_transform=per_patch_transform,
            return_metadata=return_metadata,
            as_dict=as_dict,
        )

    def loader(
        self,
        batch_size: int,
        *,
        prefetch: int | None = None,
        num_workers: int = 0,
        multiprocessing_context: str = "forkserver",
        pin_memory: bool = False,
        device: Any = None,
        **options: Any,
    ) -> PatchLoader:
        """Batches ``(input, target)``, (B, C, z, y, x) float32, cut ahead of the training step.

        Each pass over it is the next epoch, in another order. It can be stopped after any batch and go
        on from its ``state_dict``.

        Parameters
        ----------
        batch_size : int
        prefetch : int, optional
            Batches (or groups of small ones) that wait, made by a thread of this process; 2, or 0 for small
            patches of volumes that stay in memory, which cost less to cut than to hand over.
        num_workers : int
            Processes that make batches instead, for a transform that is slow. Each decodes what its
            batches need, and has `memory` to itself.
        multiprocessing_context : {"forkserver", "spawn", "fork"}
            Of those processes.
        pin_memory : bool
            Batches lie in memory that a GPU copies from without waiting.
        device : optional
            Where batches are moved to, ahead of the step.
        **options
            As for :meth:`dataset`.

        Examples
        --------
        >>> import mrhdata
        >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
        >>> loader = mrhdata.patches(t2, shape=2).loader(4, seed=1)
        >>> [tuple(x.shape) for x in loader], loader.state_dict()["batch"]
        ([(4, 1, 2, 2, 2), (4, 1, 2, 2, 2)], 2)
        """
        from mrhdata.patching.loader import PatchLoader

        return PatchLoader(
            self.dataset(batch_size, **options),
            prefetch=prefetch,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            pin_memory=pin_memory,
            device=device,
        )

    def to_torchio(self, index: int) -> Any:
        """One patch as a ``torchio.Subject``: an image (a label map for labels) per tensor, with its affine."""
        from mrhdata.patching.export import as_torchio

        return as_torchio(self, index)

    def to_monai(self, index: int) -> dict[str, Any]:
        """One patch as ``monai.data.MetaTensor`` by name, each with its affine."""
        from mrhdata.patching.export import as_monai

        return as_monai(self, index)

    def to_dask(self) -> Any:
        """All patches as Dask arrays, (n, C, z, y, x) each, in the order of `positions`: (input, target).

        One task reads and cuts what lies in one chunk.
        """
        from mrhdata.patching.export import as_dask

        return self.arranged(as_dask(self))

    def to_xarray(self) -> xr.Dataset:
        """All patches as a lazy ``xarray.Dataset`` along ``patch``, with subject, position and world centre."""
        from mrhdata.patching.export import as_dataset

        return as_dataset(self)

    def to_zarr(
        self, store: str | os.PathLike[str], *, seed: int = 0, shuffle: bool = True, overwrite: bool = False
    ) -> None:
        """Write a frozen training set: the variables of :meth:`to_xarray`, in the order of one shuffled epoch.

        Parameters
        ----------
        store : path
            Zarr folder; it appears when it is complete.
        seed, shuffle
            Of the order in which patches are written; ``row`` says which each is.
        overwrite : bool
        """
        from mrhdata.patching.export import write_patches

        write_patches(self, store, seed=seed, shuffle=shuffle, overwrite=overwrite)

    def split(
        self, sizes: Sequence[float], *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[Patches]:
        """Parts that share no voxel, such as training, validation and test.

        Parameters
        ----------
        sizes : sequence of float
            Share of each part.
        by : {"subject", "z", "y", "x"}
            Whole subjects, or blocks along an axis of every subject; x puts mirror images of a brain on
            both sides.
        guard : int, optional
            Voxels that lie between patches of two parts, along the axis; the longest side of a patch by
            default. Patches within it are in no part. A network that sees beyond its patch needs its
            receptive field on top.
        seed : int
            Of the order of subjects.

        Examples
        --------
        >>> import mrhdata
        >>> v = mrhdata.volume.from_array(np.zeros((20, 4, 4)), spacing=(1, 1, 1))
        >>> train, test = mrhdata.patches(v, shape=2).split([0.5, 0.5], by="z")
        >>> train.positions[:, 0].tolist()[-1], test.positions[:, 0].tolist()[0]
        (6, 12)
        """
        return [self._only(rows) for rows in parts_of(self, sizes, by, guard, seed)]

    def folds(
        self, k: int, *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[tuple[Patches, Patches]]:
        """Training and test patches of each of `k` folds, by subject or by blocks along an axis, as :meth:`split`."""
        return [(self._only(a), self._only(b)) for a, b in folds_of(self, k, by, guard, seed)]

    def check_leakage(self, other: Patches) -> None:
        """Prove that no voxel of any input or target lies in patches of both sets.

        Volumes that come from one file or one array are the same subject, also where they were sliced. A file that was
        loaded into memory twice is two arrays, and a copy of a file is another one.

        Raises
        ------
        DataError
            Patches share voxels; it says how many, and where the first lies.
        """
        shared = np.flatnonzero(shared_with(self, other))
        if len(shared):
            at = self.positions[shared[0]].tolist()
            raise DataError(
                f"{len(shared)} of {len(self)} patches share voxels with the other set, the first at {at} of subject "
                f"{self.subject[shared[0]]}; use split or folds, which keep a guard between parts"
            )

    def explain(self, batch_size: int = 64) -> CostReport:
        """What one pass costs: bytes, chunks, decodes beside naive reading, memory, and advice; nothing is read.

        Examples
        --------
        >>> import mrhdata
        >>> v = mrhdata.volume.from_array(np.zeros((64, 64, 64), np.uint16), spacing=(1, 1, 1))
        >>> mrhdata.patches(v, shape=32).explain().patches
        8
        """
        from mrhdata.patching.summary import explained

        return explained(self, batch_size)

    def diagnose(self, n: int = 1000, *, batch_size: int = 64, seed: int = 0) -> SampleReport:
        """Coverage, class balance, intensity and how well batches are mixed, from the first `n` patches of an epoch."""
        from mrhdata.patching.summary import diagnosed

        return diagnosed(self, n, batch_size, seed)

    def plot(self, *, subject: int = 0, n: int = 50, seed: int = 0) -> Figure:
        """Boxes of some patches over three slices of a subject's first volume, as a Matplotlib figure."""
        from mrhdata.patching.summary import plotted

        return plotted(self, subject, n, seed)
