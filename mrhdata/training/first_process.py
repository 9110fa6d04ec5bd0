"""Commands that several processes run: the first one runs the command, the others take part in its trainings.

``torchrun`` starts the same command in each process. Only the first one reads, prepares, scores and writes. It sends
every call of :func:`mrhdata.fit`, with network and patches, to the others, which wait for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from mrhdata.training.processes import current_processes, lost_process_errors

#: The first process may prepare and score for as long as this while the others wait.
_LONGEST_WAIT = timedelta(days=30)


class _Calls:
    """Calls that the first process sends to the others."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        #: Whether the processes are in the same call; one that fails there cannot send any more.
        self.running = False

    def send(self, call: Mapping[str, Any] | None) -> None:
        """Send the arguments of a call, or None at the end."""
        dist.broadcast_object_list([call], src=0, group=self._group)

    def receive(self) -> dict[str, Any] | None:
        """Wait for the arguments of the next call; return None at the end."""
        calls: list[Any] = [None]
        dist.broadcast_object_list(calls, src=0, group=self._group)
        return calls[0]


_calls: ContextVar[_Calls | None] = ContextVar("calls", default=None)


def run_in_first_process(command: Callable[[], None], take_part: Callable[..., Any]) -> None:
    """Run a command in the first process of ``torchrun``; the others take part in its calls.

    Parameters
    ----------
    command : callable
        Command, in which :func:`shared` surrounds the calls.
    take_part : callable
        Function that the other processes call with the arguments of each call.
    """
    processes = current_processes()
    if processes.count == 1:
        command()
        return
    calls = _Calls()
    if processes.first:
        _lead(command, calls)
    else:
        _follow(take_part, calls)
    dist.destroy_process_group()


def _lead(command: Callable[[], None], calls: _Calls) -> None:
    """Run a command, and send the others its end unless it failed within a shared call."""
    token = _calls.set(calls)
    try:
        command()
    finally:
        _calls.reset(token)
        if not calls.running:
            calls.send(None)


def _follow(take_part: Callable[..., Any], calls: _Calls) -> None:
    """Take part in calls until the first process sends the end."""
    with lost_process_errors():
        while (arguments := calls.receive()) is not None:
            take_part(**arguments)


@contextmanager
def shared(**arguments: Any) -> Iterator[None]:
    """Send the arguments of a call to the other processes, if a command runs in the first one only."""
    calls = _calls.get()
    if calls is None:
        yield
        return
    calls.send(arguments)
    calls.running = True
    yield
    calls.running = False
