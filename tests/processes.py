"""Jobs in processes of their own, which tests can kill as a failing machine would."""

import multiprocessing
import signal
import time

#: Forked from a process that has imported the package, because a fresh one spends five seconds on imports.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["pytest", "mrhdata.io.conversion", "mrhdata.inference.predictor"])


def _start(job, *arguments):
    """Start ``job(send, *arguments)``; return the process and the connection that receives what it sends."""
    receiver, sender = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=job, args=(sender.send, *arguments))
    process.start()
    sender.close()
    return process, receiver


def run_in_process(job, *arguments, seconds=100):
    """Run ``job(send, *arguments)`` to its end; return the one message that it sends."""
    process, receiver = _start(job, *arguments)
    assert receiver.poll(seconds)
    message = receiver.recv()
    process.join()
    receiver.close()
    assert process.exitcode == 0
    return message


def kill_after(delay, job, *arguments):
    """Kill ``job(send, *arguments)`` `delay` seconds after its first message; return whether it was still running."""
    process, receiver = _start(job, *arguments)
    assert receiver.poll(100)
    time.sleep(delay)
    process.kill()
    process.join()
    receiver.close()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL
