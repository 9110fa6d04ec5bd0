"""Patches for PyTorch: an iterable data set, and a loader that cuts batches ahead and resumes from a state."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mrhdata._runtime.arguments import check_whole
from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import DataError, ParameterError
from mrhdata.patching.patch_set import PatchSet

log = logging.getLogger("mrhdata")

Item = TypeVar("Item")

#: Bytes and number of batches that a thread passes on together. Small batches cost more to pass on than to cut.
_GROUP_BYTES = 2_000_000
_MAX_GROUP = 16
#: Batches (or groups of small ones) that are prepared ahead by default.
_DEFAULT_PREFETCH = 2


class PatchIterableDataset(IterableDataset[Any]):
    """Batches of patches for any ``DataLoader`` with ``batch_size=None``.

    Created by :meth:`~mrhdata.patching.dataset.Patches.dataset`. Several workers take batches in turn, so the order is
    that of one worker. One pass is one epoch; :meth:`set_epoch` selects it, also for persistent workers
    (``persistent_workers=True``).

    Several ranks have the same number of batches, because a process with one batch less would let the others wait for
    ever. If the patches cannot be divided evenly, some ranks repeat one patch of another rank; with `drop_last` the
    last patches are left out instead.
    """

    def __init__(
        self,
        patches: PatchSet,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: tuple[int, int] | None,
        drop_last: bool,
        transform: Callable[..., Any] | None,
        per_patch_transform: Callable[..., Any] | None,
        return_metadata: bool,
        as_dict: bool = False,
    ) -> None:
        check_whole("batch_size", batch_size)
        self.patches, self.batch_size, self.drop_last = patches, batch_size, drop_last
        self.rank = rank if rank is not None else _distributed_rank()
        if not 0 <= self.rank[0] < self.rank[1]:
            raise ParameterError(f"rank must be (number of this process from 0, number of processes); got {self.rank}")
        self.shuffle, self.seed = shuffle, seed
        self._transform, self._per_patch_transform = transform, per_patch_transform
        self._return_metadata, self._as_dict = return_metadata, as_dict
        # In shared memory, so that persistent workers see a change.
        self._progress = _shared(torch.zeros(2, dtype=torch.int64))
        self._log_repeats()

    @property
    def epoch(self) -> int:
        """Epoch of the next pass."""
        return int(self._progress[0])

    @property
    def start(self) -> int:
        """Number of batches that the next pass skips."""
        return int(self._progress[1])

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next pass, and the number of its batches to skip; worker processes see it, too."""
        self._progress[:] = torch.tensor([epoch, start])

    def snapshot(self) -> PatchIterableDataset:
        """Return an independent copy, on which :meth:`set_epoch` of this one has no effect."""
        duplicate = copy.copy(self)
        duplicate._progress = _shared(self._progress.clone())
        return duplicate

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy made by pickle or deepcopy has memory of its own, which its workers must share.
        self.__dict__.update(state)
        self._progress = _shared(self._progress)

    def __len__(self) -> int:
        count, ranks = len(self.patches), self.rank[1]
        return count // ranks // self.batch_size if self.drop_last else -(-count // ranks // self.batch_size)

    def _log_repeats(self) -> None:
        rank, ranks = self.rank
        extra = -len(self.patches) % ranks
        if extra and rank == 0 and not self.drop_last:
            log.info(
                "%d patches cannot be divided among %d processes: %d of these repeat a patch, so that all have %d "
                "batches; drop_last=True leaves patches out instead",
                len(self.patches),
                ranks,
                extra,
                len(self),
            )

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        remaining = -(-(len(self) - self.start - number) // workers)
        batches = self.patches.batches(
            self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=self.epoch,
            start=self.start,
            rank=self.rank,
            worker=(number, workers),
            even=not self.drop_last,
        )
        for _, (indices, arrays) in zip(range(remaining), batches, strict=False):
            yield self._batch(indices, arrays)

    def _batch(self, indices: Any, arrays: list[Any]) -> Any:
        batch = self.patches.arranged([self.patches.tensor(a) for a in arrays])
        if self._per_patch_transform is not None:
            batch = _transform_each_patch(self._per_patch_transform, batch)
        if self._transform is not None:
            batch = self._transform(*batch) if isinstance(batch, tuple) else self._transform(batch)
        metadata = None
        if self._return_metadata:
            metadata = {
                "subject": torch.from_numpy(self.patches.subject[indices]),
                "position": torch.from_numpy(self.patches.positions[indices]),
                "affine": torch.from_numpy(self.patches.affine(indices)),
            }
        if self._as_dict:
            return _named_batch(batch, metadata)
        if metadata is None:
            return batch
        return (*batch, metadata) if isinstance(batch, tuple) else (batch, metadata)


class PatchLoader:
    """Batches ``(input, target)`` as tensors (B, C, z, y, x), epoch after epoch.

    Created by :meth:`~mrhdata.patching.dataset.Patches.loader`.

    Attributes
    ----------
    epoch : int
        Epoch of the last batch that was delivered.
    """

    def __init__(
        self,
        batches: PatchIterableDataset,
        *,
        prefetch: int | None,
        num_workers: int,
        multiprocessing_context: str,
        pin_memory: bool,
        device: Any,
    ) -> None:
        self.batches = batches
        self._prefetch, self._workers, self._start_method = prefetch, num_workers, multiprocessing_context
        self._pin, self._device = pin_memory, device
        self.epoch, self._batches_done, self._resumed = -1, 0, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if self._resumed:
            self._resumed = False
        else:
            self.epoch, self._batches_done = self.epoch + 1, 0
        self.batches.set_epoch(self.epoch, self._batches_done)
        for batch in self._ready_batches():
            self._batches_done += 1
            yield batch

    def _ready_batches(self) -> Iterator[Any]:
        if self._workers:
            loader = DataLoader(
                self.batches.snapshot(),
                batch_size=None,
                num_workers=self._workers,
                multiprocessing_context=self._start_method,
            )
            yield from map(self._to_device, loader)
            return
        size = self.batches.patches.batch_bytes(self.batches.batch_size)
        group_size = max(1, min(_MAX_GROUP, _GROUP_BYTES // size))
        prefetch = self._prefetch
        if prefetch is None:
            # Small patches in memory cost less to cut than to pass from thread to thread.
            prefetch = 0 if group_size > 1 and self.batches.patches.in_memory else _DEFAULT_PREFETCH
        batches = map(self._to_device, self.batches)
        for group in run_ahead(_group(batches, group_size), prefetch) if prefetch else ([batch] for batch in batches):
            yield from group

    def _to_device(self, batch: Any) -> Any:
        if self._pin:
            batch = _map_tensors(batch, lambda tensor: tensor.pin_memory())
        if self._device is not None:
            batch = _map_tensors(batch, lambda tensor: tensor.to(self._device, non_blocking=True))
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the state after the last batch that was delivered, as plain numbers."""
        return {"epoch": max(0, self.epoch), "batch": self._batches_done, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume after the batch at which a state was taken; the order is that of the uninterrupted run.

        Raises
        ------
        DataError
            The state belongs to other patches, another batch size or another rank.
        """
        own = self._identity()
        other = {key: state.get(key) for key in own}
        if other != own:
            raise DataError(f"the state must come from an equal loader, {own}; got one of {other}")
        self.epoch, self._batches_done, self._resumed = int(state["epoch"]), int(state["batch"]), True
        if self._batches_done >= len(self):
            self.epoch, self._batches_done = self.epoch + 1, 0

    def _identity(self) -> dict[str, int]:
        batches = self.batches
        rank, ranks = batches.rank
        return {
            "patches": len(batches.patches),
            "batch_size": batches.batch_size,
            "seed": batches.seed,
            "shuffle": int(batches.shuffle),
            "drop_last": int(batches.drop_last),
            "order": batches.patches.digest(),
            "rank": rank,
            "ranks": ranks,
        }


def _shared(tensor: Any) -> torch.Tensor:
    """Move a tensor to memory that worker processes share."""
    shared: torch.Tensor = tensor.share_memory_()
    return shared


def _group(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == length:
            yield group
            group = []
    if group:
        yield group


def _named_batch(batch: Any, metadata: Any) -> dict[str, Any]:
    """Return a batch as a mapping with ``image``, ``label`` and ``metadata``; named tensors keep their names."""
    tensors = batch if isinstance(batch, tuple) else (batch,)
    named: dict[str, Any] = {}
    for key, tensor in zip(("image", "label"), tensors, strict=False):
        named |= tensor if isinstance(tensor, Mapping) else {key: tensor}
    return named if metadata is None else named | {"metadata": metadata}


def _transform_each_patch(transform: Callable[..., Any], batch: Any) -> Any:
    """Apply a transform to each patch of a batch."""
    length = len(next(iter(_tensors_of(batch))))
    samples = [_select_patch(batch, i) for i in range(length)]
    results = [transform(*sample) if isinstance(sample, tuple) else transform(sample) for sample in samples]
    return torch.utils.data.default_collate(results)


def _distributed_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks: (0, 1) if PyTorch does not run distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    else:
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors_of(item)


def _map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _map_tensors(item, change) for name, item in batch.items()}
    return tuple(_map_tensors(item, change) for item in batch)


def _select_patch(batch: Any, i: int) -> Any:
    return _map_tensors(batch, lambda tensor: tensor[i])
