"""Each worker process of a cluster gets a number of its own among those that see the same GPUs."""

import os

import pytest
from distributed import Client, LocalCluster

from mrhdata._runtime.workers import _numbers, number_workers


def number_of_worker():
    """Return the number of the worker that runs this."""
    return os.environ.get("LOCAL_RANK")


def test_workers_that_see_the_same_gpus_are_numbered_on_each_machine():
    identities = {
        "tcp://a:1": ("a", "0,1", 1),
        "tcp://a:2": ("a", "0,1", 2),
        "tcp://b:1": ("b", "0,1", 1),
        # dask-cuda lists the own GPU of each worker first.
        "tcp://c:1": ("c", "0,1", 1),
        "tcp://c:2": ("c", "1,0", 2),
    }
    assert list(_numbers(identities).values()) == [0, 1, 0, 0, 0]


def test_worker_processes_get_different_numbers(monkeypatch):
    """Also workers that were started from a process with a number."""
    monkeypatch.setenv("LOCAL_RANK", "5")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        assert set(client.run(number_of_worker).values()) == {"5"}
        number_workers(client)
        assert sorted(client.run(number_of_worker).values()) == ["0", "1"]


@pytest.mark.parametrize("number", ["3", None])
def test_workers_in_threads_keep_the_number_of_their_process(number, monkeypatch):
    if number is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", number)
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        number_workers(client)
    assert os.environ.get("LOCAL_RANK") == number
