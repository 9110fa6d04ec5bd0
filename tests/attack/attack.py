"""Read mutated copies of every source in processes of their own, and judge what became of each copy."""

import logging
import os
import random
import re
import resource
import shutil
import signal
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrhdata.errors import MrhdataError
from tests.attack.mutations import UNAWARE, mutate
from tests.attack.sources import SOURCES, WITH_CHECKSUM, WITH_COUNT
from tests.processes import FORKED

#: Seconds and bytes that one copy may take; the sources have less than 200 kB.
SECONDS, EXTRA_BYTES = 10, 300_000_000
#: Ways to say what to do, of which each refusal has one.
REMEDIES = re.compile(
    r"pass |check |copy|choose|install|write|use |leave|keep|convert|download|correct|damaged|truncated|save|split|"
    r"remove|select|only |must |decompress",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """Result of one mutated copy."""

    mutation: str
    position: int
    result: str
    detail: str = ""


def _memory_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def _read_copy(name: str, path: Path, truth: np.ndarray) -> tuple[str, str]:
    """Return the result of reading one copy, and its message."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_bytes("VmRSS")
    # The default action of the signal ends the process even within a C library.
    signal.alarm(SECONDS)
    try:
        values = SOURCES[name][1](path)
        result, message = ("equal" if np.array_equal(values, truth, equal_nan=True) else "changed"), str(values.shape)
    except MrhdataError as error:
        result, message = "refused", str(error)
    except BaseException:
        result, message = "foreign", traceback.format_exc()[-1500:]
    signal.alarm(0)
    extra = _memory_bytes("VmHWM") - before
    if extra > EXTRA_BYTES:
        return "memory", f"{extra / 1e6:.0f} MB, {result}: {message}"
    return result, message


def _attack(send, name: str, folder: Path, first: int, copies: int) -> None:
    """Mutate and read copies of a source from number `first`; send each outcome."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    logging.disable()
    truth = SOURCES[name][1](folder / name)
    for number in range(first, copies):
        rng = random.Random(f"{name} {number}")
        work = folder / "copies"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for file in folder.iterdir():
            if file.name.partition(".")[0] == name.partition(".")[0]:
                (shutil.copytree if file.is_dir() else shutil.copy)(file, work / file.name)
        send(mutate(work, rng))
        send(_read_copy(name, work / name, truth))
    send(None)


def attack(name: str, folder: Path, copies: int) -> list[Outcome]:
    """Make a source in a folder and return the outcomes of its copies.

    A process that dies is replaced by one that continues with the next copy.
    """
    SOURCES[name][0](folder / name)
    outcomes: list[Outcome] = []
    while len(outcomes) < copies:
        receiver, sender = FORKED.Pipe(duplex=False)
        process = FORKED.Process(target=_attack, args=(sender.send, name, folder, len(outcomes), copies))
        process.start()
        sender.close()
        mutation = ("none", 0)
        try:
            while (mutation := receiver.recv()) is not None:
                outcomes.append(Outcome(*mutation, *receiver.recv()))
        except EOFError:
            process.join()
            result = "hang" if process.exitcode == -signal.SIGALRM else "crash"
            outcomes.append(Outcome(*mutation, result, f"exit code {process.exitcode}"))
        process.join()
    return outcomes


def faults(name: str, folder: Path, outcomes: list[Outcome]) -> list[str]:
    """Return a line for each outcome that must not be, of copies of a source in a folder."""
    lines = []
    marker = WITH_CHECKSUM.get(name, b"")
    header_bytes = (folder / name).read_bytes().index(marker) + len(marker) if marker else 0
    for number, outcome in enumerate(outcomes):
        wrong = outcome.result in ("crash", "hang", "foreign", "memory")
        checksummed = name in WITH_CHECKSUM and outcome.mutation in UNAWARE and outcome.position >= header_bytes
        counted = name in WITH_COUNT and outcome.mutation == "truncate"
        silent = outcome.result == "changed" and (checksummed or counted)
        unclear = outcome.result == "refused" and not _clear(name, outcome.detail)
        if wrong or silent or unclear:
            kind = "silent" if silent else "unclear" if unclear else outcome.result
            lines.append(f"{name} {number} {outcome.mutation}: {kind}: {outcome.detail[-700:]}")
    return lines


def _clear(name: str, message: str) -> bool:
    """Return whether a refusal is one line that names the source and a remedy."""
    stem = name.partition(".")[0]
    return "\n" not in message and stem in message and bool(REMEDIES.search(message)) and len(message) < 900
