"""The class :class:`Patches`: batches for PyTorch, exports, splits that share no voxel, and summaries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata._runtime.arguments import refuse_unknown
from mrhdata.errors import DataError
from mrhdata.patching.patch_set import PatchSet
from mrhdata.patching.splits import folds_of, parts_of, shared_with

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from mrhdata.patching.loader import PatchIterableDataset, PatchLoader
    from mrhdata.patching.summary import CostReport, SampleReport


class Patches(PatchSet):
    """Planned patches; created by :func:`mrhdata.patches`.

    ``len(p)``, ``p[i]`` -> ``(input, target)`` tensors (only ``input`` without a target), float32,
    (C, z, y, x). Works as a map-style data set in any ``DataLoader``; :meth:`loader` is faster.

    Attributes
    ----------
    positions : (n, 3) int64 array
        First voxel of each patch in its subject's first input, z, y, x. Patches of one stored chunk are
        consecutive.
    subject : (n,) int64 array
        Number of the subject.
    draw_index : (n,) int64 array
        Place of each patch among the positions of its subject, as they were drawn or passed.
    classes : (n,) int64 array or None
        Class that each patch was drawn for, if the sampler draws by class.
    shape : tuple of int
        Patch length along z, y, x, context slices included.
    plane : str or None
    context_slices : int
        Slices on each side that are channels of the first tensor.
    channels : list of str
    sources : list of list of TensorSource
        Sources of the tensors of each subject.
    in_memory : bool
        All voxels fit half of the memory budget, and stay in memory after the first pass.
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
        """Return an ``IterableDataset`` of whole batches, for any ``DataLoader`` with ``batch_size=None``.

        Parameters
        ----------
        batch_size, shuffle, seed
            Equal values give equal orders.
        rank : (int, int), optional
            Number of this process, and number of processes that divide the patches. By default those of PyTorch's
            distributed training, if it runs.
        drop_last : bool
            Drop the last batch if it is not full, and patches that cannot be divided evenly among ranks. Otherwise
            some ranks repeat one patch of another. All ranks have the same number of batches either way.
        transform : callable, optional
            Function that receives and returns the input and target (or only the input) of a batch.
        per_patch_transform : callable, optional
            The same for one patch; it runs before `transform`.
        return_metadata : bool
            Append to each batch a mapping of ``subject`` (b,), ``position`` (b, 3) and ``affine`` (b, 4, 4).
        as_dict : bool
            Yield batches as mappings with the keys ``image``, ``label`` and ``metadata``, as in MONAI. Several inputs
            or targets keep their own names.
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
        """Return a loader of batches ``(input, target)``, (B, C, z, y, x) float32, cut ahead of the training step.

        Each pass is the next epoch, in another order. A run that stopped after any batch resumes from the loader's
        ``state_dict``.

        Parameters
        ----------
        batch_size : int
        prefetch : int, optional
            Number of batches (or groups of small ones) that a thread prepares ahead. The default is 2, or 0 for small
            patches of volumes that stay in memory, which cost less to cut than to pass between threads.
        num_workers : int
            Number of processes that prepare batches instead of the thread, for slow transforms. Each process decodes
            the chunks of its batches and has its own `memory` budget.
        multiprocessing_context : {"forkserver", "spawn", "fork"}
            Start method of those processes.
        pin_memory : bool
            Put batches into pinned memory, from which a GPU copies without waiting.
        device : optional
            Device to which batches are moved ahead of the step.
        **options
            Further arguments of :meth:`dataset`.

        Examples
        --------
        >>> import mrhdata
        >>> t2 = mrhdata.volume.from_array(np.arange(64).reshape(4, 4, 4), spacing=(1, 1, 1))
        >>> loader = mrhdata.patches(t2, shape=2).loader(4, seed=1)
        >>> [tuple(x.shape) for x in loader], loader.state_dict()["batch"]
        ([(4, 1, 2, 2, 2), (4, 1, 2, 2, 2)], 2)
        """
        from mrhdata.patching.loader import PatchLoader

        refuse_unknown(self.dataset, options)
        return PatchLoader(
            self.dataset(batch_size, **options),
            prefetch=prefetch,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            pin_memory=pin_memory,
            device=device,
        )

    def to_torchio(self, index: int) -> Any:
        """Return one patch as a ``torchio.Subject``: an image (or label map) per tensor, with its affine."""
        from mrhdata.patching.export import as_torchio

        return as_torchio(self, index)

    def to_monai(self, index: int) -> dict[str, Any]:
        """Return one patch as a mapping of names to ``monai.data.MetaTensor``, each with its affine."""
        from mrhdata.patching.export import as_monai

        return as_monai(self, index)

    def to_dask(self) -> Any:
        """Return all patches as Dask arrays (input, target), (n, C, z, y, x) each, in the order of `positions`.

        One task reads and cuts the patches of one stored chunk.
        """
        from mrhdata.patching.export import as_dask

        return self.arranged(as_dask(self))

    def to_xarray(self) -> xr.Dataset:
        """Return all patches as a lazy ``xarray.Dataset`` along ``patch``, with subject, position and world centre."""
        from mrhdata.patching.export import as_dataset

        return as_dataset(self)

    def to_zarr(
        self, store: str | os.PathLike[str], *, seed: int = 0, shuffle: bool = True, overwrite: bool = False
    ) -> None:
        """Write all patches to Zarr: the variables of :meth:`to_xarray`, in the order of one shuffled epoch.

        Parameters
        ----------
        store : path
            Zarr folder. It appears when it is complete.
        seed, shuffle
            Order in which patches are written. The variable ``row`` holds the index of each patch.
        overwrite : bool
        """
        from mrhdata.patching.export import write_patches

        write_patches(self, store, seed=seed, shuffle=shuffle, overwrite=overwrite)

    def split(
        self, sizes: Sequence[float], *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[Patches]:
        """Split the patches into parts that share no voxel, such as training, validation and test.

        Parameters
        ----------
        sizes : sequence of float
            Fraction of each part.
        by : {"subject", "z", "y", "x"}
            Split by whole subjects, or by blocks along an axis of every subject. x puts mirror images of a brain on
            both sides.
        guard : int, optional
            Voxels between patches of two parts, along the axis; the longest side of a patch by default. Patches within
            the guard are in no part. Add the receptive field of a network that sees beyond its patch.
        seed : int
            Random seed of the order of subjects.

        Examples
        --------
        >>> import mrhdata
        >>> v = mrhdata.volume.from_array(np.zeros((20, 4, 4)), spacing=(1, 1, 1))
        >>> train, test = mrhdata.patches(v, shape=2).split([0.5, 0.5], by="z")
        >>> train.positions[:, 0].tolist()[-1], test.positions[:, 0].tolist()[0]
        (6, 12)
        """
        return [self._subset(indices) for indices in parts_of(self, sizes, by, guard, seed)]

    def folds(
        self, k: int, *, by: str = "subject", guard: int | None = None, seed: int = 0
    ) -> list[tuple[Patches, Patches]]:
        """Return the training and test patches of each of `k` folds; `by`, `guard` and `seed` as in :meth:`split`."""
        return [(self._subset(a), self._subset(b)) for a, b in folds_of(self, k, by, guard, seed)]

    def check_leakage(self, other: Patches) -> None:
        """Raise `DataError` if a voxel of an input or target lies in patches of both sets.

        Volumes that come from one file or one array are the same subject, also if they were sliced. A file that was
        loaded into memory twice counts as two arrays, and a copy of a file as another file.

        Raises
        ------
        DataError
            Patches share voxels; the message has their number and the position of the first.
        """
        shared = np.flatnonzero(shared_with(self, other))
        if len(shared):
            position = self.positions[shared[0]].tolist()
            raise DataError(
                f"the two sets must not share voxels; {len(shared)} of {len(self)} patches share voxels with the other "
                f"set, the first at {position} of subject {self.subject[shared[0]]}. Use split or folds, which keep a "
                "guard between parts"
            )

    def explain(self, batch_size: int = 64) -> CostReport:
        """Return the cost of one pass: bytes, chunks, decodes compared with naive reading, memory, and advice.

        No voxel is read.

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
        """Return coverage, class balance, intensity and the mixing of batches for the first `n` patches of an epoch."""
        from mrhdata.patching.summary import diagnosed

        return diagnosed(self, n, batch_size, seed)

    def plot(self, *, subject: int = 0, n: int = 50, seed: int = 0) -> Figure:
        """Draw boxes of some patches over three slices of a subject's first volume, as a Matplotlib figure."""
        from mrhdata.patching.summary import plotted

        return plotted(self, subject, n, seed)
