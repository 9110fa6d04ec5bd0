"""A store that grows block by block and goes on where it was stopped.

It grows in a hidden folder beside its target, ``.<name>.partial``, together with a journal of the
finished blocks. A run that was killed is taken up by the next one that makes the same from the same;
another one begins again. Where a ``dask.distributed`` client is active, its workers make the blocks.
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
from mrhdata._runtime.progress import Progress, progress_bar
from mrhdata.errors import FormatError, MrhdataError
from mrhdata.io import omezarr
from mrhdata.volume.construct import describe

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.io.omezarr.write_blocks import BlockSource
    from mrhdata.io.omezarr.writer import Writer


def write_resumable(  # noqa: PLR0913  (what is made, from what, within what)
    target: Path,
    volume: xr.DataArray,
    finest: Callable[[], BlockSource],
    identity: Mapping[str, Any],
    provenance: Callable[[], Mapping[str, Any]],
    *,
    memory: int,
    limit: int | None = None,
    encoders: int = 1,
    overwrite: bool = False,
    progress: Progress = False,
    shown: tuple[str, int, str] = ("writing", 1, "B"),
) -> xr.DataArray:
    """Write an OME-Zarr store whose finest voxels are made block by block.

    Parameters
    ----------
    target : path
        Appears when it is complete.
    volume : xarray.DataArray
        What the store describes; its voxels are not looked at. Its axes run forward.
    finest : callable
        Returns what makes them; called when it is known that there is something to make.
    identity : mapping
        JSON; two runs of one ``"digest"`` make the same voxels.
    provenance : callable
        Asked at the end for what is kept in ``attrs["provenance"]``, beside the digest.
    memory : int
        Bytes for everything that is held to write it.
    limit, encoders : int, optional
        Bytes of a block, and threads that encode a shard, as for :class:`~mrhdata.io.omezarr.writer.Writer`.
    overwrite : bool
    progress : bool or callable
        Show a bar, or call this with what is done and all there is, in bytes of voxels.
    shown : (str, int, str)
        What the bar says, bytes of its unit, and the unit.

    Returns
    -------
    volume : xarray.DataArray
        Read back. A store that is there already and was made from the same is left as it is.

    Raises
    ------
    mrhdata.errors.FormatError
        The store exists, or another process is writing it, or it cannot be written.
    """
    if target.exists() and not overwrite and _made_from(target) == identity["digest"]:
        if _draft(target).exists():
            # A run that was killed behind its last step leaves the empty draft.
            remove(_draft(target))
        return omezarr.read(target)
    check_target(target, overwrite)
    remove_leftovers(target)
    made, name = omezarr.plan(volume)
    from mrhdata.io.omezarr.writer import Writer

    paths = [_draft(target) / "store" / omezarr.level_path(n, name) for n in range(len(made))]
    writer = Writer(finest(), made, paths, volume.attrs["kind"], memory, limit, encoders)
    # The numbers of blocks mean others where the budget makes them of another size.
    head = dict(identity) | {"blocks": [list(blocks.size) for blocks in writer.blocks]}
    with _journal(target, head) as journal:
        with _writing(target):
            if not journal.finished:
                remove(journal.store)
                remove(provenance_notes(target))
                omezarr.create(volume, journal.store)
            _run(writer, journal, progress, shown)
        held = dict(provenance()) | {"digest": identity["digest"]}
        omezarr.finish(describe(volume, provenance=held), journal.store)
        publish(journal.store, target)
    return omezarr.read(target)


#: So often may all workers that hold a writer die before a level is given up.
_LOSSES = 10


class _Journal:
    """The draft store, and its finished blocks: whether each holds voxels other than 0."""

    def __init__(self, folder: Path, file: Any, finished: dict[tuple[int, int], bool]) -> None:
        self.store, self.finished, self._file = folder / "store", finished, file

    def note(self, level: int, index: int, filled: bool) -> None:
        """Remember a block whose shards are all written."""
        self.finished[level, index] = filled
        self._file.write(f"{level} {index} {int(filled)}\n")
        self._file.flush()


def provenance_notes(target: Path) -> Path:
    """A text file that lives as long as the store grows, for what is worth a line in its provenance."""
    return _draft(target) / "notes"


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _journal(target: Path, head: Mapping[str, Any]) -> Iterator[_Journal]:
    """Take up the draft of a target, or begin one; it is removed when the block ends well."""
    folder = _draft(target)
    folder.mkdir(exist_ok=True)
    with (folder / "journal").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FormatError(f"another process is writing {target}; wait for it, or stop it first") from error
        journal = _Journal(folder, file, _finished(file, head, folder / "store"))
        try:
            yield journal
        except MrhdataError:
            # Nothing is lost by starting over.
            if not journal.finished:
                remove(folder)
            raise
    remove(folder)


def _finished(file: Any, head: Mapping[str, Any], store: Path) -> dict[tuple[int, int], bool]:
    """Blocks that an earlier run of the same finished; the journal ends behind them."""
    file.seek(0)
    # The last part is empty, or a line that was torn.
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
def _writing(target: Path) -> Iterator[None]:
    """What goes wrong while voxels are written becomes our error."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, MrhdataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{target} cannot be written ({reason}); make room and run it again to go on") from error


def _run(writer: Writer, journal: _Journal, progress: Progress, shown: tuple[str, int, str]) -> None:
    already = dict(journal.finished)
    with progress_bar(progress, writer.total_bytes(), sum(writer.bytes_of(*block) for block in already), shown) as step:

        def done(level: int, index: int, size: int, filled: bool) -> None:
            journal.note(level, index, filled)
            step(size)

        client = _active_client()
        if client is None:
            writer.run(already, done)
        else:
            _run_on(client, writer, already, done)


def _run_on(
    client: Any,
    writer: Writer,
    finished: Mapping[tuple[int, int], bool],
    done: Callable[[int, int, int, bool], None],
) -> None:
    """Levels one after another, their blocks on the workers; each reads the level before from the store."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    for level, blocks in enumerate(writer.blocks):
        pending = {i for i in range(len(blocks)) if (level, i) not in finished}
        losses = 0
        while pending:
            try:
                # To one worker, which hands it on: a broadcast waits forever for a worker that dies meanwhile.
                shared = client.scatter(writer, hash=False)
                futures = {client.submit(_write_one, shared, level, i, pure=False): i for i in sorted(pending)}
                for future in as_completed(list(futures)):
                    filled = future.result()
                    done(level, futures[future], writer.bytes_of(level, futures[future]), filled)
                    pending.discard(futures[future])
            except (FutureCancelledError, CommClosedError):
                # A worker died while it was given the writer, or every one that held it has: it is handed out anew,
                # when the scheduler has had time to see that.
                losses += 1
                if losses > _LOSSES:
                    raise
                time.sleep(0.1 * losses)


def _write_one(writer: Writer, level: int, index: int) -> bool:
    return writer.write_one(level, index)


def _active_client() -> Any:
    """The client that the user has made, if any; none is made here."""
    import sys

    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


def _made_from(store: Path) -> str | None:
    try:
        return omezarr.read(store).attrs.get("provenance", {}).get("digest")
    except FormatError:
        return None
