"""Names of devices."""

import pytest
import torch

from mrhdata.errors import ParameterError
from mrhdata.models.device import available_devices, resolve_device


def test_auto_is_the_processor_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device(None) == torch.device("cpu")
    assert available_devices() == ["cpu"]


@pytest.mark.parametrize(("rank", "expected"), [("1", "cuda:1"), ("2", "cuda:0")])
def test_each_process_has_its_own_gpu(monkeypatch, rank, expected):
    """The number on the machine counts, modulo the number of GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(resolve_device("cuda")) == str(resolve_device("auto")) == expected
    assert str(resolve_device("cuda:0")) == "cuda:0"


@pytest.mark.parametrize("name", ["gpu", "cuda:7", "cuda:x", "", "cpu:0"])
def test_unknown_devices_are_refused_with_those_that_there_are(name):
    with pytest.raises(ParameterError, match=r"^device must be auto or one that this machine has \(cpu.*got '" + name):
        resolve_device(name)
