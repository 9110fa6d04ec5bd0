"""Patches for PyTorch: an iterable data set, and a loader that cuts ahead and resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mrhdata._runtime.threads import run_ahead
from mrhdata.errors import DataError
from mrhdata.patching.patch_set import PatchSet

Item = TypeVar("Item")

#: Bytes of batches that are handed from thread to thread together: small ones cost more to hand over than to cut.
_TOGETHER = 2_000_000
_MOST_TOGETHER = 16
#: Batches (or groups of small ones) that wait, where nothing else is said.
_AHEAD = 2


class PatchIterableDataset(IterableDataset[Any]):
    """Batches of patches for any ``DataLoader`` with ``batch_size=None``.

    Made by :meth:`~mrhdata.patching.dataset.Patches.dataset`. With several workers each takes every so many-th batch,
    so the order is that of one. A pass is one epoch; :meth:`set_epoch` chooses which, since workers that are
    started anew know nothing of the last one.
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
        if batch_size < 1:
            raise DataError(f"batch_size is 1 or more, not {batch_size}")
        self.patches, self.batch_size, self.drop_last = patches, batch_size, drop_last
        self.rank = rank if rank is not None else _rank()
        if not 0 <= self.rank[0] < self.rank[1]:
            raise DataError(f"rank is its number from 0 and how many there are, not {self.rank}")
        self.shuffle, self.seed = shuffle, seed
        self._transform, self._per_patch_transform = transform, per_patch_transform
        self._return_metadata, self._as_dict = return_metadata, as_dict
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next pass is, and how many of its batches are left out."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        number, ranks = self.rank
        rows = len(self.patches)
        if self.drop_last:
            # The same for all ranks: one that runs out first would leave the others waiting.
            return rows // ranks // self.batch_size
        return -(-(rows * (number + 1) // ranks - rows * number // ranks) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        left = -(-(len(self) - self.start - number) // count)
        stream = self.patches.batches(
            self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=self.epoch,
            start=self.start,
            rank=self.rank,
            worker=(number, count),
        )
        for _, (rows, arrays) in zip(range(left), stream, strict=False):
            yield self._batch(rows, arrays)

    def _batch(self, rows: Any, arrays: list[Any]) -> Any:
        batch = self.patches.arranged([self.patches.tensor(a) for a in arrays])
        if self._per_patch_transform is not None:
            batch = _patch_by_patch(self._per_patch_transform, batch)
        if self._transform is not None:
            batch = self._transform(*batch) if isinstance(batch, tuple) else self._transform(batch)
        metadata = None
        if self._return_metadata:
            metadata = {
                "subject": torch.from_numpy(self.patches.subject[rows]),
                "position": torch.from_numpy(self.patches.positions[rows]),
                "affine": torch.from_numpy(self.patches.affine(rows)),
            }
        if self._as_dict:
            return _named_batch(batch, metadata)
        if metadata is None:
            return batch
        return (*batch, metadata) if isinstance(batch, tuple) else (batch, metadata)


class PatchLoader:
    """Batches ``(input, target)`` as tensors (B, C, z, y, x), epoch after epoch.

    Made by :meth:`~mrhdata.patching.dataset.Patches.loader`.

    Attributes
    ----------
    epoch : int
        Of the last batch that was handed out.
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
        self._ahead, self._workers, self._method = prefetch, num_workers, multiprocessing_context
        self._pin, self._device = pin_memory, device
        self.epoch, self._done, self._resumed = -1, 0, False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if self._resumed:
            self._resumed = False
        else:
            self.epoch, self._done = self.epoch + 1, 0
        self.batches.set_epoch(self.epoch, self._done)
        for batch in self._moved():
            self._done += 1
            yield batch

    def _moved(self) -> Iterator[Any]:
        if self._workers:
            loader = DataLoader(
                self.batches, batch_size=None, num_workers=self._workers, multiprocessing_context=self._method
            )
            yield from map(self._sent, loader)
            return
        size = self.batches.patches.batch_bytes(self.batches.batch_size)
        together = max(1, min(_MOST_TOGETHER, _TOGETHER // size))
        ahead = self._ahead
        if ahead is None:
            # Small patches that are in memory cost less to cut than to hand over.
            ahead = 0 if together > 1 and self.batches.patches.in_memory else _AHEAD
        sent = map(self._sent, self.batches)
        for several in run_ahead(_groups(sent, together), ahead) if ahead else ([batch] for batch in sent):
            yield from several

    def _sent(self, batch: Any) -> Any:
        if self._pin:
            batch = _mapped(batch, lambda tensor: tensor.pin_memory())
        if self._device is not None:
            batch = _mapped(batch, lambda tensor: tensor.to(self._device, non_blocking=True))
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where it stands, after the last batch that was handed out."""
        return {"epoch": max(0, self.epoch), "batch": self._done, **self._fixed()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the batch that a state was taken at; the order is that of the uninterrupted run.

        Raises
        ------
        DataError
            The state belongs to other patches, another batch size or another rank.
        """
        mine = self._fixed()
        other = {key: state.get(key) for key in mine}
        if other != mine:
            raise DataError(f"the state was taken from a loader of {other}, but this one has {mine}")
        self.epoch, self._done, self._resumed = int(state["epoch"]), int(state["batch"]), True
        if self._done >= len(self):
            self.epoch, self._done = self.epoch + 1, 0

    def _fixed(self) -> dict[str, int]:
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


def _groups(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
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
    parts = batch if isinstance(batch, tuple) else (batch,)
    named: dict[str, Any] = {}
    for key, part in zip(("image", "label"), parts, strict=False):
        named |= part if isinstance(part, Mapping) else {key: part}
    return named if metadata is None else named | {"metadata": metadata}


def _patch_by_patch(transform: Callable[..., Any], batch: Any) -> Any:
    """Apply a transform to each patch of a batch."""
    length = len(next(iter(_leaves(batch))))
    samples = [_taken(batch, i) for i in range(length)]
    results = [transform(*sample) if isinstance(sample, tuple) else transform(sample) for sample in samples]
    return torch.utils.data.default_collate(results)


def _rank() -> tuple[int, int]:
    """Rank of this process where PyTorch runs distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _leaves(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    else:
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(part)


def _mapped(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _mapped(part, change) for name, part in batch.items()}
    return tuple(_mapped(part, change) for part in batch)


def _taken(batch: Any, i: int) -> Any:
    return _mapped(batch, lambda tensor: tensor[i])
