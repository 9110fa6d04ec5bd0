"""Precision of networks: ``auto`` follows the processor, once per process, and unknown words are refused everywhere."""

import logging

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import ParameterError
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.models import precision
from mrhdata.models.precision import resolve_precision
from mrhdata.training.settings import TrainingConfig


@pytest.fixture
def processor(monkeypatch):
    """Function that sets whether the processor has instructions for bfloat16, as a new process would find it."""

    def pretend(able):
        monkeypatch.setattr(precision, "has_bfloat16", lambda kind: able)
        for cached in (precision._faster, precision._warn_of_slow_bfloat16):
            cached.cache_clear()

    yield pretend
    monkeypatch.undo()
    for cached in (precision._faster, precision._warn_of_slow_bfloat16):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("able", "expected", "sentence"),
    [
        (False, "float32", "precision is float32: this processor has no bfloat16 instructions"),
        (True, "bfloat16", "precision is bfloat16: this processor has bfloat16 instructions"),
    ],
)
def test_auto_follows_the_processor_and_is_logged_once(processor, caplog, able, expected, sentence):
    """The second call returns the same type without another line in the log."""
    processor(able)
    caplog.set_level(logging.INFO, "mrhdata")
    assert {resolve_precision("auto"), resolve_precision("auto")} == {expected}
    assert [record.getMessage() for record in caplog.records] == [sentence]


@pytest.mark.parametrize("able", [False, True])
def test_passed_types_do_not_depend_on_the_processor(processor, caplog, able):
    """Slow bfloat16 is computed as asked, with one warning."""
    processor(able)
    assert [resolve_precision(name) for name in ("float32", "bfloat16", "bfloat16")] == ["float32", *["bfloat16"] * 2]
    assert len(caplog.records) == (not able)


def test_instructions_are_those_that_pytorch_lists(monkeypatch):
    """x86 has two kinds of them and ARM two; a PyTorch that lists none is timed."""
    for name, able in (("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx512_f", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert precision.has_bfloat16("cpu") is able
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(precision, "_seconds", {torch.float32: 2.0, torch.bfloat16: 1.0}.get)
    assert precision.has_bfloat16("cpu")
    assert not precision.has_bfloat16("mps")


def test_small_convolution_is_timed_in_both_types():
    """The time of a PyTorch without a list of capabilities is that of a convolution."""
    assert all(0 < precision._seconds(dtype) < 10 for dtype in (torch.float32, torch.bfloat16))


def test_unknown_precision_is_refused_before_any_work(tmp_path):
    """By the settings of a training, a network and a prediction, in one sentence."""
    network = torch.nn.Conv3d(1, 1, 1)
    volume = mrhdata.volume.from_array(np.zeros((4, 4, 4), np.float32), spacing=(1, 1, 1))
    for refused in (
        lambda: TrainingConfig(precision="half"),
        lambda: InferenceModel(network, "cpu", "half"),
        lambda: mrhdata.predict(network, volume, tmp_path / "map.zarr", precision="half"),
        lambda: resolve_precision("half"),
    ):
        with pytest.raises(ParameterError, match="must be one of auto, float32, bfloat16, float16; got 'half'"):
            refused()


def test_prediction_records_the_resolved_precision(processor):
    """``auto`` gives the voxels and the provenance of the type that it stands for."""
    processor(False)
    network = torch.nn.Conv3d(1, 1, 3, padding=1).requires_grad_(False)
    values = np.random.default_rng(0).random((4, 6, 8), dtype=np.float32)
    volume = mrhdata.volume.from_array(values, spacing=(1, 1, 1))
    maps = [
        mrhdata.predict(network, volume, mode="dense", precision=name, progress=False) for name in ("auto", "float32")
    ]
    assert [m.attrs["provenance"]["precision"] for m in maps] == ["float32", "float32"]
    assert np.array_equal(*maps)
    processor(True)
    assert InferenceModel(network, "cpu", "auto").precision == "bfloat16"
