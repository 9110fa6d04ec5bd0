"""Anything readable becomes OME-Zarr: one pass, bounded memory, resumable.

The store grows in a hidden folder beside its target, ``.<name>.partial``, together with a journal of
the finished blocks. A run that was killed is taken up by the next one with the same source and
parameters; with others, it is begun again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tqdm.auto import tqdm

from mrhdata import formats
from mrhdata.drafting import check_target, put, remove, remove_leftovers
from mrhdata.errors import FormatError, MrhdataError
from mrhdata.formats import Options, omezarr
from mrhdata.volume import DIMS, describe

if TYPE_CHECKING:
    import xarray as xr

    from mrhdata.formats.streaming import Writer

#: Raised when what is written for the same source and parameters changes.
_LAYOUT = 1

#: Endings of formats that keep header and voxels apart.
_HALVES = (".hdr", ".img", ".head", ".brik", ".par", ".rec", ".mhd", ".nhdr", ".raw", ".zraw")

Progress = bool | Callable[[int, int], None]


def convert(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: int | str = "1 GB",
    progress: Progress = False,
    checksum: bool = True,
    **options: Unpack[Options],
) -> xr.DataArray:
    """Convert a file, folder or URL to OME-Zarr and return the stored volume.

    Chunks are cubes of 64 voxels (fewer where channels make them larger than 2 MB), shards up to
    2 x 4 x 4 of them, compressed by Blosc (zstd 3, bit shuffle). Levels are halved until no axis is
    longer than 64 voxels, images by mean, labels and masks by mode. Where a ``dask.distributed``
    client is active, its workers convert.

    Parameters
    ----------
    source : path or URL
        Anything that :func:`mrhdata.read` reads.
    store : path
        A folder ending in ``.zarr``; it appears when it is complete. Killed and called again, the
        conversion goes on behind the last finished block. A store that is already there from the same
        source and parameters is returned as it is.
    overwrite : bool
        Replace a store that is there.
    memory : int or str
        Bytes held at once, such as ``"500 MB"``. Sources that cannot be read in parts (compressed
        NIfTI, NRRD and MATLAB 5 files) are held whole besides.
    progress : bool or callable
        Show a bar with bytes per second and the time left, or call this with bytes done and bytes in all.
    checksum : bool
        Put the SHA-256 of the source into the provenance.
    **options
        As for :func:`mrhdata.read`.

    Returns
    -------
    volume : xarray.DataArray
        Lazy, with the source's name, size and SHA-256 and the options in ``attrs["provenance"]``.

    Raises
    ------
    mrhdata.errors.FormatError
        The source cannot be read, or the store exists, or another process is writing it.

    Examples
    --------
    >>> import tempfile, numpy as np, mrhdata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mrhdata.write(mrhdata.volume.from_array(np.ones((2, 3, 4)), spacing=(1, 1, 2)), folder + "/a.nii")
    ...     v = mrhdata.convert(folder + "/a.nii", folder + "/a.zarr", modality="mri")
    ...     v.shape, v.attrs["modality"], v.attrs["provenance"]["source"]
    ((2, 3, 4), 'mri', 'a.nii')
    """
    target = Path(store)
    if not target.name.lower().endswith(".zarr"):
        raise FormatError(f"{target} must end in .zarr; for other formats use mrhdata.write")
    budget = in_bytes(memory)
    volume = formats.read(source, **options)
    volume = omezarr.forward(volume.transpose(*(d for d in DIMS if d in volume.dims)))
    identity = _identity(source, options, checksum)
    if target.exists() and not overwrite and _made_from(target) == identity["digest"]:
        if _draft(target).exists():
            # A run that was killed behind its last step leaves the empty draft.
            with _journal(target, identity):
                pass
        return formats.read(target)
    check_target(target, overwrite)
    remove_leftovers(target)
    with _journal(target, identity) as journal, ThreadPoolExecutor(1) as aside:
        checksums: Future[dict[str, Any]] = aside.submit(source_checksum, source, checksum)
        try:
            _stream(volume, journal, budget, progress)
        except (OSError, RuntimeError) as error:
            if isinstance(error, MrhdataError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise FormatError(f"{target} cannot be written ({reason}); make room and run it again to go on") from error
        held = {key: value for key, value in options.items() if key not in ("storage_options", "name")}
        provenance = {**checksums.result(), "options": held, "conversion": identity["digest"]}
        omezarr.finish(describe(volume, provenance=provenance), journal.store)
        put(journal.store, target)
    return formats.read(target)


def in_bytes(memory: int | str) -> int:
    """Bytes of a budget such as ``"512 MB"``.

    Examples
    --------
    >>> in_bytes("1.5 GB")
    1500000000
    """
    from dask.utils import parse_bytes

    try:
        found = int(parse_bytes(memory))
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"memory={memory!r} is no size; write it as '500 MB'") from error
    if found < 10_000_000:
        raise FormatError(f"memory={memory!r} is less than the 10 MB that one shard and its neighbours need")
    return found


class _Journal:
    """The draft store and the list of its finished blocks."""

    def __init__(self, folder: Path, file: Any, finished: set[tuple[int, int]]) -> None:
        self.store, self.finished, self._file = folder / "store", finished, file

    def note(self, level: int, index: int) -> None:
        """Remember a block whose shards are all written."""
        self.finished.add((level, index))
        self._file.write(f"{level} {index}\n")
        self._file.flush()


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _journal(target: Path, identity: dict[str, Any]) -> Iterator[_Journal]:
    """Take up the draft of a target, or begin one; it is removed when the block ends well."""
    folder = _draft(target)
    folder.mkdir(exist_ok=True)
    with (folder / "journal").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FormatError(f"another process is writing {target}; wait for it, or stop it first") from error
        journal = _Journal(folder, file, _finished(file, identity, folder / "store"))
        try:
            yield journal
        except MrhdataError:
            # Nothing is lost by starting over.
            if not journal.finished:
                remove(folder)
            raise
    remove(folder)


def _finished(file: Any, identity: dict[str, Any], store: Path) -> set[tuple[int, int]]:
    """Blocks that an earlier run of the same conversion finished; the journal ends behind them."""
    file.seek(0)
    # The last part is empty, or a line that was torn.
    head, *lines = file.read().split("\n")
    if head == json.dumps(identity) and lines and store.exists():
        file.truncate(sum(len(line) + 1 for line in (head, *lines[:-1])))
        return {(int(level), int(index)) for level, index in (line.split() for line in lines[:-1])}
    file.truncate(0)
    file.write(json.dumps(identity) + "\n")
    file.flush()
    return set()


def _stream(volume: xr.DataArray, journal: _Journal, budget: int, progress: Progress) -> None:
    from mrhdata.formats.streaming import Writer

    made, name = omezarr.plan(volume)
    if not journal.finished:
        remove(journal.store)
        omezarr.create(volume, journal.store)
    paths = [journal.store / omezarr.level_path(n, name) for n in range(len(made))]
    writer = Writer(volume, made, paths, volume.attrs["kind"], budget)
    already = set(journal.finished)
    with _shown(progress, writer.total_bytes(), sum(writer.bytes_of(*block) for block in already)) as step:

        def done(level: int, index: int, size: int) -> None:
            journal.note(level, index)
            step(size)

        client = _active_client()
        if client is None:
            writer.run(already, done)
        else:
            _run_on(client, writer, already, done)


def _run_on(client: Any, writer: Writer, finished: set[tuple[int, int]], done: Callable[[int, int, int], None]) -> None:
    """Levels one after another, their blocks on the workers; each reads the level before from the store."""
    from distributed import as_completed

    shared = client.scatter(writer, broadcast=True)
    for level, blocks in enumerate(writer.boxes):
        pending = [i for i in range(len(blocks)) if (level, i) not in finished]
        futures = {client.submit(_write_one, shared, level, i, pure=False): i for i in pending}
        for future in as_completed(list(futures)):
            future.result()
            done(level, futures[future], writer.bytes_of(level, futures[future]))


def _write_one(writer: Writer, level: int, index: int) -> None:
    writer.write_one(level, index)


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


@contextmanager
def _shown(progress: Progress, total: int, already: int) -> Iterator[Callable[[int], None]]:
    """A function that is told of bytes as they are done; `already` were done by an earlier run."""
    if callable(progress):
        so_far = already

        def tell(size: int) -> None:
            nonlocal so_far
            so_far += size
            progress(so_far, total)

        yield tell
        return
    with tqdm(total=total, initial=already, unit="B", unit_scale=True, disable=not progress, desc="convert") as bar:
        yield bar.update


def _identity(source: str | os.PathLike[str], options: Options, checksum: bool) -> dict[str, Any]:
    """What makes two conversions the same: files with their sizes and times, options, layout."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in _files(source)]
    listed = [str(source) if "://" in str(source) else Path(source).name, files, sorted(options.items()), checksum]
    text = json.dumps([_LAYOUT, *listed], default=str)
    return {"digest": hashlib.sha256(text.encode()).hexdigest(), "source": str(source)}


def _files(source: str | os.PathLike[str]) -> list[Path]:
    """Files of a source, in order; of a Zarr store and a URL, none."""
    if "://" in str(source):
        return []
    path = Path(source)
    if path.is_dir():
        return [] if path.name.endswith(".zarr") else sorted(p for p in path.iterdir() if p.is_file())
    if path.exists():
        # Header and voxels may lie in two files of one name.
        stem = path.name.removesuffix(".gz").rpartition(".")[0]
        pairs = [
            p
            for p in path.parent.glob(f"{glob.escape(stem)}.*")
            if p.name.removesuffix(".gz")[len(stem) :].lower() in _HALVES
        ]
        return sorted({path, *pairs}) if path.name.removesuffix(".gz")[len(stem) :].lower() in _HALVES else [path]
    from mrhdata.formats.tiff import planes_of

    return planes_of(path)


def source_checksum(source: str | os.PathLike[str], checksum: bool = True) -> dict[str, Any]:
    """Name, size and SHA-256; of several files, the SHA-256 of the list of theirs."""
    files = _files(source)
    found: dict[str, Any] = {"source": str(source) if "://" in str(source) else Path(source).name}
    if not files:
        return found
    found["bytes"] = sum(p.stat().st_size for p in files)
    if len(files) > 1:
        found["files"] = len(files)
    if checksum:
        digests = [(p.name, _sha256(p)) for p in files]
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
        found["sha256"] = digests[0][1] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made_from(store: Path) -> str | None:
    try:
        return formats.read(store).attrs.get("provenance", {}).get("conversion")
    except FormatError:
        return None
