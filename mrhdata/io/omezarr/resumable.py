"""OME-Zarr stores that are written block by block; interrupted runs resume.

The draft lies in a hidden folder next to its target, ``.<name>.partial``, with a journal of the finished
blocks. The next run with the same inputs and parameters resumes an interrupted run; any other run starts
again. If a ``dask.distributed`` client is active, its workers compute the blocks.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrhdata._runtime.atomic import check_target, publish, remove, remove_leftovers
from mrhdata._runtime.progress import Progress, ProgressLabel, progress_bar
from mrhdata._runtime.workers import number_workers
from mrhdata.errors import FormatError, MrhdataError
from mrhdata.io import omezarr
from mrhdata.volume.construct import describe

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.io.omezarr.write_blocks import BlockSource
    from mrhdata.io.omezarr.writer import Writer


#: Label of a progress bar that counts bytes.
_WRITING = ProgressLabel(text="writing", unit_bytes=1, unit="B")


def write_resumable(  # noqa: PLR0913  (target, inputs and limits)
    target: Path,
    volume: xr.DataArray,
    finest: Callable[[], BlockSource],
    identity: Callable[[], Mapping[str, Any]],
    provenance: Callable[[], Mapping[str, Any]],
    *,
    memory: int,
    limit: int | None = None,
    encoders: int = 1,
    overwrite: bool = False,
    progress: Progress = False,
    label: ProgressLabel = _WRITING,
) -> xr.DataArray:
    """Write an OME-Zarr store whose finest level is computed block by block.

    Parameters
    ----------
    target : path
        Path of the store; it appears when it is complete.
    volume : xarray.DataArray
        Geometry, type and attributes of the store; the voxels are not read. The axes run forward.
    finest : callable
        Function that returns the source of the finest blocks; it is not called if the store is up to date.
    identity : callable
        Function that returns JSON about the inputs. Two runs with equal ``"digest"`` compute the same voxels. It is
        called again after the last block, and a run whose inputs changed meanwhile is discarded.
    provenance : callable
        Function that returns the content of ``attrs["provenance"]``, except the digest; called last.
    memory : int
        Bytes for everything that is kept in memory.
    limit, encoders : int, optional
        Bytes of a block, and threads that encode a shard, as for :class:`~mrhdata.io.omezarr.writer.Writer`.
    overwrite : bool
        Whether to replace an existing store.
    progress : bool or callable
        Whether to show a bar, or a function of (bytes done, total bytes) of voxels.
    label : ProgressLabel
        Text and unit of the bar.

    Returns
    -------
    volume : xarray.DataArray
        The volume, read back. An existing store with the same digest is returned unchanged.

    Raises
    ------
    mrhdata.errors.FormatError
        The store exists, or another process is writing it, or it cannot be written, or the inputs changed during the
        run.
    """
    inputs = dict(identity())
    if target.exists() and not overwrite and _stored_digest(target) == inputs["digest"]:
        if _draft(target).exists():
            # A run that is interrupted after its last step leaves an empty draft.
            remove(_draft(target))
        return omezarr.read(target)
    check_target(target, overwrite)
    remove_leftovers(target)
    levels, name = omezarr.plan(volume)
    from mrhdata.io.omezarr.writer import Writer

    paths = [_draft(target) / "store" / omezarr.level_path(n, name) for n in range(len(levels))]
    writer = Writer(finest(), levels, paths, volume.attrs["kind"], memory, limit, encoders)
    # Block numbers in the journal are valid for one block size, which depends on the memory budget.
    head = inputs | {"blocks": [list(blocks.size) for blocks in writer.blocks]}
    with _journal(target, head) as journal:
        with _write_errors(target):
            if not journal.finished:
                remove(journal.store)
                remove(provenance_notes(target))
                omezarr.create(volume, journal.store)
            _write_blocks(writer, journal, progress, label)
        record = dict(provenance()) | {"digest": inputs["digest"]}
        if identity() != inputs:
            journal.discard()
            name = inputs.get("source", "an input")
            raise FormatError(f"{name} changed while {target} was computed from it; nothing was written. Run it again")
        with _write_errors(target):
            omezarr.finish(describe(volume, provenance=record), journal.store)
        publish(journal.store, target)
    return omezarr.read(target)


#: Times that all workers with a copy of the writer may die before a level fails.
_MAX_LOSSES = 10


class _Journal:
    """Path of the draft store, and its finished blocks: whether each contains voxels other than 0."""

    def __init__(self, folder: Path, file: Any, finished: dict[tuple[int, int], bool]) -> None:
        self.store, self.finished, self._file = folder / "store", finished, file

    def note(self, level: int, index: int, filled: bool) -> None:
        """Record a block whose shards are all written."""
        self.finished[level, index] = filled
        self._file.write(f"{level} {index} {int(filled)}\n")
        self._file.flush()

    def discard(self) -> None:
        """Forget all finished blocks, so that an error removes the draft."""
        self.finished.clear()


def provenance_notes(target: Path) -> Path:
    """Return the path of a text file for lines of the provenance; it is removed when the store is complete."""
    return _draft(target) / "notes"


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _journal(target: Path, head: Mapping[str, Any]) -> Iterator[_Journal]:
    """Resume or start the draft of a target; it is removed if the `with` block succeeds."""
    folder = _draft(target)
    folder.mkdir(exist_ok=True)
    with (folder / "journal").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FormatError(f"another process is writing {target}; wait for it, or stop it first") from error
        journal = _Journal(folder, file, _read_finished(file, head, folder / "store"))
        try:
            yield journal
        except MrhdataError:
            # An empty draft is not worth resuming.
            if not journal.finished:
                remove(folder)
            raise
    remove(folder)


def _read_finished(file: Any, head: Mapping[str, Any], store: Path) -> dict[tuple[int, int], bool]:
    """Return the blocks that an earlier equal run finished, and cut the journal off after them."""
    file.seek(0)
    # The last item is empty, or an incomplete line.
    first, *lines = file.read().split("\n")
    if first == json.dumps(head) and lines and store.exists():
        file.truncate(sum(len(line) + 1 for line in (first, *lines[:-1])))
        rows = (map(int, line.split()) for line in lines[:-1])
        return {(level, index): bool(filled) for level, index, filled in rows}
    file.truncate(0)
    file.write(json.dumps(head) + "\n")
    file.flush()
    return {}


@contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    """Raise errors of writing as FormatError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, MrhdataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{target} cannot be written ({reason}). Free disk space; another run resumes") from error


def _write_blocks(writer: Writer, journal: _Journal, progress: Progress, label: ProgressLabel) -> None:
    finished = dict(journal.finished)
    finished_bytes = sum(writer.bytes_of(*block) for block in finished)
    with progress_bar(progress, writer.total_bytes(), finished_bytes, label) as step:

        def done(level: int, index: int, size: int, filled: bool) -> None:
            journal.note(level, index, filled)
            step(size)

        client = _active_client()
        if client is None:
            writer.run(finished, done)
        else:
            _write_distributed(client, writer, finished, done)


def _write_distributed(
    client: Any,
    writer: Writer,
    finished: Mapping[tuple[int, int], bool],
    done: Callable[[int, int, int, bool], None],
) -> None:
    """Write the levels in turn, their blocks on the workers; each block reads the finer level from the store."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    for level, blocks in enumerate(writer.blocks):
        pending = {i for i in range(len(blocks)) if (level, i) not in finished}
        losses = 0
        while pending:
            try:
                number_workers(client)
                # To one worker, which copies it to others: a broadcast hangs if a worker dies meanwhile.
                shared = client.scatter(writer, hash=False)
                futures = {client.submit(_write_one, shared, level, i, pure=False): i for i in sorted(pending)}
                for future in as_completed(list(futures)):
                    filled = future.result()
                    done(level, futures[future], writer.bytes_of(level, futures[future]), filled)
                    pending.discard(futures[future])
            except (FutureCancelledError, CommClosedError):
                # A worker died during the transfer, or no worker with a copy is left. Send the writer again
                # after the scheduler has had time to notice.
                losses += 1
                if losses > _MAX_LOSSES:
                    raise
                time.sleep(0.1 * losses)


def _write_one(writer: Writer, level: int, index: int) -> bool:
    return writer.write_one(level, index)


def _active_client() -> Any:
    """Return the user's client, or None; never create one."""
    import sys

    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


def _stored_digest(store: Path) -> str | None:
    try:
        return omezarr.read(store).attrs.get("provenance", {}).get("digest")
    except FormatError:
        return None
