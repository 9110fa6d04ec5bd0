"""Files read in a child process, so that a file that ends the process of its library is an error of one sentence.

The child is one Python for many files. It is not a copy of this process: that would run the script of the caller again,
or hold the locks of its threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrhdata import errors
from mrhdata.errors import FormatError, MrhdataError

log = logging.getLogger("mrhdata")

#: Longest time in seconds for the header of one file; the headers of a DICOM series on a network take a minute.
SECONDS = 300.0

_CHILD = "from mrhdata._runtime.child_process import serve; serve()"


class ChildReader:
    """Reader of files in a child process, which is started for the first file, and again after a crash.

    Parameters
    ----------
    function : str
        Module and name, such as ``"mrhdata.io.inspection:inspect"``, of a function of a path and options that returns
        plain values.
    action : str
        Words for what the function does, for errors.
    seconds : float, optional
        Longest time for one file, by default 300.
    """

    def __init__(self, function: str, action: str = "reading its header", seconds: float | None = None) -> None:
        self._function, self._action = function, action
        self._seconds = SECONDS if seconds is None else seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ChildReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: str | os.PathLike[str], options: Mapping[str, Any], *, quiet: bool = False) -> Any:
        """Return what the function returns for a file.

        Parameters
        ----------
        path : path or URL
        options : mapping
            Options of the function.
        quiet : bool
            Whether to drop its warnings instead of passing them on.

        Raises
        ------
        MrhdataError
            The error of the function; a FormatError if the file ends the process, or takes longer than the time limit.
        TypeError
            An option is unknown.
        """
        child = self._child or self._start()
        place = str(path) if "://" in str(path) else os.path.abspath(path)
        request = {"function": self._function, "path": place, "options": dict(options)}
        answer = self._ask(child, json.dumps(request, default=_plain).encode() + b"\n")
        if answer is None:
            code = self._stop()
            reason = f"takes longer than {self._seconds:g} s" if code is None else f"ends the process with code {code}"
            raise FormatError(f"{path} cannot be read: {self._action} {reason}. Remove or repair the file")
        for level, message in () if quiet else answer["messages"]:
            log.log(level, "%s", message)
        if "error" in answer:
            kind, message = answer["error"]
            raise TypeError(message) if kind == "TypeError" else getattr(errors, kind, FormatError)(message)
        return answer["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-W", "ignore", "-c", _CHILD]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> Any:
        """Return the child's answer; None if it ends, or is silent for too long."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            # The child sends each answer at once.
            line = child.stdout.readline() if selector.select(self._seconds) else b""
        return json.loads(line) if line.endswith(b"\n") else None

    def _stop(self) -> int | None:
        """End the child; return its exit code if it had ended by itself."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        assert child.stdout is not None
        # A process that crashes closes its output a moment before it can be waited for.
        closed = not _is_silent(child)
        try:
            code = child.wait(timeout=5) if closed else None
        except subprocess.TimeoutExpired:
            code = None
        child.kill()
        child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        return code


def _is_silent(child: subprocess.Popen[bytes]) -> bool:
    """Return whether a child still runs and has nothing to say."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.poll() is None and not selector.select(0)


def _plain(value: Any) -> Any:
    """Return NumPy values and other sequences as lists, and paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value) if isinstance(value, Path) else list(value)


class _Messages(logging.Handler):
    """Messages of the package, kept for the parent."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.levelno, record.getMessage()))


def serve() -> None:
    """Answer requests of the parent until it closes the pipe."""
    # Libraries print to the standard output too.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    messages = _Messages()
    log.addHandler(messages)
    log.propagate = False
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            module, _, name = request["function"].partition(":")
            answer["result"] = getattr(importlib.import_module(module), name)(request["path"], **request["options"])
        except (MrhdataError, TypeError) as error:
            answer["error"] = type(error).__name__, str(error)
        answer["messages"], messages.kept = messages.kept, []
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
