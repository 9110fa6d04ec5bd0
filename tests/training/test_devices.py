"""Devices, precision, parts of batches, layout and profile of training, and resuming on another device."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import DataError, ModelError, ParameterError
from mrhdata.training import TrainingConfig, loop, run
from mrhdata.training.run import TrainingRun
from mrhdata.volume.construct import from_array

QUICK = TrainingConfig(epochs=2, batch_size=16, learning_rate=3e-3, noise=0.05, device="cpu")


@pytest.fixture(scope="module")
def patches():
    """Patches of a linear task, 216 in all."""
    values = np.random.default_rng(0).random((8, 6, 8)).astype(np.float32)
    volume = from_array(values, spacing=(1, 1, 1), name="t2")
    return mrhdata.patches(volume, volume.copy(data=1000 - 200 * values), shape=3, stride=1, plane="coronal")


def fit_small(patches, settings=QUICK, **options):
    """Train a new small network; return its weights and its history."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1, seed=0)
    history = mrhdata.fit(model, patches, patches, settings, progress=False, **options)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), history


@pytest.mark.parametrize("stop", [9, *(pytest.param(stop, marks=pytest.mark.full) for stop in (1, 17))])
def test_a_run_interrupted_within_an_epoch_resumes_with_the_same_result(patches, tmp_path, monkeypatch, stop):
    """With a checkpoint after every step, bit for bit, also before the second and in the second epoch."""
    whole, history = fit_small(patches)
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    step, done = TrainingRun._step, []

    def interrupt(self, *arguments):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(self.steps_done)
        step(self, *arguments)

    monkeypatch.setattr(TrainingRun, "_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_small(patches, checkpoint=tmp_path / "run.pt")
    monkeypatch.setattr(TrainingRun, "_step", step)
    resumed, again = fit_small(patches, checkpoint=tmp_path / "run.pt")
    assert torch.equal(whole, resumed)
    assert (again.training, again.validation, again.rate) == (history.training, history.validation, history.rate)


def test_settings_of_the_machine_may_differ_when_a_run_resumes(patches, tmp_path):
    """A run may move to another device; another batch size is refused."""
    fit_small(patches, checkpoint=tmp_path / "run.pt")
    moved = dataclasses.replace(QUICK, device="auto", channels_last=True)
    _, history = fit_small(patches, moved, checkpoint=tmp_path / "run.pt")
    assert len(history.training) == 2
    with pytest.raises(ModelError, match="belongs to a run"):
        fit_small(patches, dataclasses.replace(QUICK, batch_size=8), checkpoint=tmp_path / "run.pt")


def test_batches_in_parts_have_the_gradient_of_the_whole(patches):
    """Losses agree within rounding."""
    whole, history = fit_small(patches)
    parts, again = fit_small(patches, dataclasses.replace(QUICK, accumulate=5))
    np.testing.assert_allclose(again.training, history.training, rtol=1e-4)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float16_scales_its_gradients_and_learns(patches, device):
    """The first steps may be left out until the scale fits; then the loss falls as with float32."""
    _, exact = fit_small(patches)
    _, history = fit_small(patches, dataclasses.replace(QUICK, precision="float16", device=device))
    assert history.validation[-1] < 2 * exact.validation[-1] < 0.5 * exact.validation[0]


@pytest.mark.gpu
def test_a_gpu_gives_the_losses_of_the_processor(patches):
    """Within rounding, since the noise of another generator is left out."""
    quiet = dataclasses.replace(QUICK, noise=0.0)
    _, exact = fit_small(patches, quiet)
    _, history = fit_small(patches, dataclasses.replace(quiet, device="cuda"))
    np.testing.assert_allclose(history.training, exact.training, rtol=1e-3)


def test_channels_last_and_compilation_keep_the_loss(patches, monkeypatch):
    """A compiler that returns the network stands for PyTorch's, which takes minutes."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    _, exact = fit_small(patches)
    _, history = fit_small(patches, dataclasses.replace(QUICK, channels_last=True, compile=True))
    assert len(compiled) == 1
    np.testing.assert_allclose(history.training, exact.training, rtol=1e-5)


def test_the_network_returns_to_its_device_and_layout(patches):
    model = mrhdata.models.create("unet3d", in_channels=1, classes=1)
    volume = from_array(np.random.default_rng(0).random((16, 8, 8)).astype(np.float32), spacing=(1, 1, 1), name="a")
    cubes = mrhdata.patches(volume, volume, shape=8)
    mrhdata.fit(model, cubes, cubes, dataclasses.replace(QUICK, epochs=1, channels_last=True), progress=False)
    assert all(p.is_contiguous() and p.device.type == "cpu" for p in model.parameters())


def test_a_profile_is_a_trace_of_steps(patches, tmp_path):
    """Perfetto and chrome://tracing open such files."""
    fit_small(patches, dataclasses.replace(QUICK, batch_size=8, profile=tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("conv" in str(event.get("name")) for event in events)


def test_each_epoch_logs_its_shares_of_time(patches, caplog):
    caplog.set_level("INFO", "mrhdata")
    fit_small(patches)
    lines = [record.getMessage() for record in caplog.records if "waiting for patches" in record.getMessage()]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:9"}, r"device must be auto or one that this machine has \(cpu.*got 'cuda:9'"),
        ({"accumulate": 0}, "accumulate must be 1 or more; got 0"),
        ({"precision": "int8"}, "precision must be one of .*; got 'int8'"),
    ],
)
def test_unsuitable_settings_are_refused(patches, settings, message):
    with pytest.raises(ParameterError, match=message):
        fit_small(patches, dataclasses.replace(QUICK, **settings))


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        pytest.param(torch.nn.Conv2d, "forward", 1, id="first look"),
        pytest.param(torch.Tensor, "backward", 64, id="gradient"),
        pytest.param(run, "to_target_units", 256, id="validation"),
    ],
)
def test_too_little_memory_is_one_sentence_with_the_remedy(patches, monkeypatch, tmp_path, owner, name, count):
    """Nothing is written."""

    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(owner, name, exhaust)
    count = min(count, len(patches))
    with pytest.raises(
        ModelError, match=rf"^cpu has too little memory for a batch of {count} patches. Pass a larger accumulate="
    ):
        fit_small(patches, dataclasses.replace(QUICK, batch_size=64), checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


def test_losses_that_are_not_finite_end_the_run(patches):
    with pytest.raises(DataError, match=r"in epoch 1\. Look for NaN, or lower the learning rate"):
        fit_small(patches, dataclasses.replace(QUICK, learning_rate=1e30, max_grad_norm=1e30))
