"""Processes of their own: some are killed on their way, as a machine that goes down kills them."""

import multiprocessing
import signal
import time

#: Forked off a process that has imported the package: a fresh one would spend five seconds on that.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["pytest", "mrhdata.io.conversion", "mrhdata.inference.predictor"])


def _started(job, *words):
    """The process, and the end of a pipe where what ``job(tell, *words)`` tells is heard."""
    heard, told = FORKED.Pipe(duplex=False)
    child = FORKED.Process(target=job, args=(told.send, *words))
    child.start()
    told.close()
    return child, heard


def apart(job, *words, seconds=100):
    """What ``job(tell, *words)`` tells, once, before it ends well."""
    child, heard = _started(job, *words)
    assert heard.poll(seconds)
    found = heard.recv()
    child.join()
    heard.close()
    assert child.exitcode == 0
    return found


def killed(delay, job, *words):
    """Whether ``job(tell, *words)`` was killed `delay` seconds after it first told something, and had not ended."""
    child, heard = _started(job, *words)
    assert heard.poll(100)
    time.sleep(delay)
    child.kill()
    child.join()
    heard.close()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == -signal.SIGKILL
