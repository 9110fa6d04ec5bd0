"""Training learns, keeps the best weights, is reproducible, and resumes."""

import dataclasses

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import DataError, FormatError, ModelError, ParameterError
from mrhdata.models.spec import ModelSpec
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import from_array

QUICK = TrainingConfig(epochs=4, batch_size=16, learning_rate=3e-3, noise=0.05)


@pytest.fixture
def train_and_validation():
    """Training and validation patches of two separate volumes, for a linear task."""

    def linear_patches(seed):
        values = np.random.default_rng(seed).random((8, 6, 8)).astype(np.float32)
        v = from_array(values, spacing=(1, 1, 1), name="t2")
        return mrhdata.patches(v, v.copy(data=1000 - 200 * v.values), shape=3, stride=1, plane="coronal")

    return linear_patches(0), linear_patches(1)


def weights(model):
    """Return all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fit_small(train_and_validation, settings=QUICK, **options):
    """Train a new small network; return it with its history."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    return model, mrhdata.fit(model, *train_and_validation, settings, progress=False, **options)


def test_training_learns_and_measures_intensity_scales(trained):
    """A linear task is nearly solved; scales are measured on the training patches."""
    model, history, _, target = trained
    assert history.validation[-1] < 0.2 * history.validation[0]
    assert model.spec.channels == ("a", "b")
    assert (model.spec.patch, model.spec.axis) == ((3, 1, 3), 1)
    assert abs(model.spec.target.offset[0] - float(target.isel(y=slice(0, 6)).mean())) < 5


def test_weights_of_the_best_epoch_are_kept(train_and_validation):
    """A learning rate that ruins later epochs does not ruin the result; patience ends the run."""
    model, history = fit_small(
        train_and_validation,
        TrainingConfig(epochs=12, batch_size=16, learning_rate=0.2, optimizer="sgd", schedule="steps", patience=3),
    )
    assert history.best_epoch == int(np.argmin(history.validation))
    assert len(history.validation) <= history.best_epoch + 1 + 3
    validation = train_and_validation[1]
    x, y = (torch.from_numpy(array) for array in validation.gather(np.arange(len(validation))))
    scaled = mrhdata.models.spec.scaled
    with torch.inference_mode():
        out = mrhdata.models.spec.run_on_patches(model, scaled(x, model.spec.inputs))
        loss = torch.nn.functional.mse_loss(out, scaled(y, model.spec.target)).item()
    assert loss == pytest.approx(min(history.validation), rel=1e-4)


def test_same_seed_same_weights(train_and_validation):
    """Bit for bit on the CPU; another seed gives other weights."""
    first, second = fit_small(train_and_validation)[0], fit_small(train_and_validation)[0]
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(
        weights(first), weights(fit_small(train_and_validation, dataclasses.replace(QUICK, seed=1))[0])
    )


def test_interrupted_run_resumes_with_the_same_result(train_and_validation, tmp_path, monkeypatch):
    """After an interruption in the third epoch weights and history are equal, bit for bit."""
    whole, history = fit_small(train_and_validation)
    epoch = mrhdata.training.run.TrainingRun.epoch

    def interrupt_third(self, *patches):
        if len(self.history.training) == 2:
            raise KeyboardInterrupt
        epoch(self, *patches)

    monkeypatch.setattr(mrhdata.training.run.TrainingRun, "epoch", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        fit_small(train_and_validation, checkpoint=tmp_path / "run.pt")
    monkeypatch.undo()
    resumed, again = fit_small(train_and_validation, checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(whole), weights(resumed))
    assert again.training == history.training
    with pytest.raises(ModelError, match="belongs to a run"):
        fit_small(train_and_validation, dataclasses.replace(QUICK, seed=7), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ModelError, match="on other patches"):
        fit_small(train_and_validation[::-1], checkpoint=tmp_path / "run.pt")
    (tmp_path / "run.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a checkpoint"):
        fit_small(train_and_validation, checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize("file", ["checkpoint", "profile"])
def test_folder_of_a_file_is_checked_before_the_first_step(file, train_and_validation, tmp_path, monkeypatch):
    """Else the first epoch of a long training is lost."""
    monkeypatch.setattr(mrhdata.training.run.TrainingRun, "epoch", lambda *_: pytest.fail("trained"))
    path = tmp_path / "missing" / "file"
    settings = dataclasses.replace(QUICK, profile=path) if file == "profile" else QUICK
    with pytest.raises(FormatError, match=r"missing does not exist; create it first"):
        fit_small(train_and_validation, settings, checkpoint=path if file == "checkpoint" else None)


def test_checkpoint_of_another_precision_is_refused(train_and_validation, tmp_path, monkeypatch):
    """A run with ``auto`` that moved to a processor with bfloat16 does not mix both types; the remedy is named."""
    settings = dataclasses.replace(QUICK, epochs=1, precision="auto")
    monkeypatch.setattr(mrhdata.training.loop, "resolve_precision", lambda name, device: "float32")
    fit_small(train_and_validation, settings, checkpoint=tmp_path / "run.pt")
    fit_small(train_and_validation, settings, checkpoint=tmp_path / "run.pt")
    monkeypatch.setattr(mrhdata.training.loop, "resolve_precision", lambda name, device: "bfloat16")
    message = "run.pt was trained with precision float32; got bfloat16.* Pass precision='float32'.*, or remove it"
    with pytest.raises(ModelError, match=message):
        fit_small(train_and_validation, settings, checkpoint=tmp_path / "run.pt")


def test_maximum_normalization_divides_by_one_maximum(train_and_validation):
    """One factor for all channels, as published for MRH-Net, without an offset."""
    model, _ = fit_small(train_and_validation, TrainingConfig(epochs=1, normalization="maximum", loss="mae"))
    assert model.spec.inputs.offset == (0.0,)
    assert model.spec.inputs.factor[0] == pytest.approx(1.0, abs=0.02)


def test_nan_error_names_the_first_patch():
    """By the position of its first voxel."""
    values = np.zeros((4, 4, 4), np.float32)
    values[2, 2, 2] = np.nan
    v = from_array(values, spacing=(1, 1, 1))
    p = mrhdata.patches(v, v, shape=2)
    with pytest.raises(DataError, match=r"1 patches have inputs that are not finite, the first at \[2, 2, 2\]"):
        mrhdata.fit(mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1), p, p, progress=False)


def test_unsuitable_networks_patches_and_settings_are_refused(train_and_validation):
    """Wrong number of channels, no target, thick patches for a 2D network, an unknown optimiser."""
    with pytest.raises(ModelError, match="takes 2 channels but the patches have 1"):
        mrhdata.fit(
            mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), *train_and_validation, QUICK, progress=False
        )
    v = from_array(np.ones((4, 4, 4), np.float32), spacing=(1, 1, 1))
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    without_target = mrhdata.patches(v, shape=2)
    with pytest.raises(DataError, match="have no target"):
        mrhdata.fit(model, without_target, without_target, progress=False)
    thick = mrhdata.patches(v, v, shape=2)
    with pytest.raises(ModelError, match="works on planes"):
        mrhdata.fit(model, thick, thick, progress=False)
    with pytest.raises(ParameterError, match="optimizer must be one of adamw, sgd; got 'lion'"):
        TrainingConfig(optimizer="lion")


def test_default_settings_equal_a_plain_pytorch_loop(train_and_validation):
    """AdamW over all parameters with a one-cycle schedule, bit for bit."""
    settings = dataclasses.replace(QUICK, noise=0.0)
    model, history = fit_small(train_and_validation, settings)
    plain = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    plain.spec = model.spec
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = -(-len(train_and_validation[0]) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=4 * steps)
    scaled = mrhdata.models.spec.scaled
    rates, states = [], []
    for epoch in range(4):
        rates.append(schedule.get_last_lr()[0])
        for _, arrays in train_and_validation[0].batches(16, seed=0, epoch=epoch):
            x, y = (torch.from_numpy(array) for array in arrays)
            optimizer.zero_grad()
            prediction = mrhdata.models.spec.run_on_patches(plain, scaled(x, model.spec.inputs))
            torch.nn.functional.mse_loss(prediction, scaled(y, model.spec.target)).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        states.append(weights(plain).clone())
    assert torch.equal(weights(model), states[history.best_epoch])
    assert history.rate == pytest.approx(rates)


@pytest.mark.parametrize("settings", [QUICK, dataclasses.replace(QUICK, loss="mae", normalization="maximum")])
def test_rmse_is_in_the_units_of_the_target(train_and_validation, settings):
    """It equals the error of the kept weights on the validation patches, for any loss."""
    model, history = fit_small(train_and_validation, settings)
    validation = train_and_validation[1]
    x, y = (torch.from_numpy(array) for array in validation.gather(np.arange(len(validation))))
    with torch.inference_mode():
        errors = mrhdata.models.spec.predict_raw(model, x) - y
    assert history.rmse[history.best_epoch] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-4)


def test_layer_factor_multiplies_the_learning_rate(train_and_validation):
    """Factor 10 on a tenth of the rate changes nothing; the history has the rate without factor."""
    plain, _ = fit_small(train_and_validation)
    settings = dataclasses.replace(QUICK, learning_rate=3e-4, layer_learning_rates=(("", 10.0),))
    faster, history = fit_small(train_and_validation, settings)
    torch.testing.assert_close(weights(faster), weights(plain), rtol=1e-4, atol=1e-5)
    assert max(history.rate) <= 3e-4


def test_first_matching_layer_prefix_counts(train_and_validation):
    """``conv3`` does not match ``conv3_1``; frozen layers keep their weights and can be trained again afterwards."""
    settings = dataclasses.replace(QUICK, layer_learning_rates=(("conv3", 1.0), ("conv5.bias", 2.0), ("", 0.0)))
    fresh = dict(mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1).named_parameters())
    model, _ = fit_small(train_and_validation, settings)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, fresh[name])}
    assert changed == {"conv3.weight", "conv3.bias", "conv5.bias"}
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ModelError, match=r"must name layers, which are conv1, conv2.*; got 'conv9'"):
        fit_small(train_and_validation, dataclasses.replace(QUICK, layer_learning_rates=(("conv9", 0.0),)))
    with pytest.raises(ModelError, match="freeze every layer"):
        fit_small(train_and_validation, dataclasses.replace(QUICK, layer_learning_rates=(("", 0.0),)))
    with pytest.raises(ParameterError, match="factor of 'conv1' must be 0 or more; got -1"):
        TrainingConfig(layer_learning_rates=(("conv1", -1.0),))


@pytest.mark.full
def test_weights_of_the_last_epoch_can_be_kept(train_and_validation):
    """The validation target is the opposite of the training target, so the best and the last epoch differ."""
    v = from_array(np.random.default_rng(2).random((8, 6, 8)).astype(np.float32), spacing=(1, 1, 1), name="t2")
    opposite = mrhdata.patches(v, v.copy(data=700 + 400 * v.values), shape=3, stride=1, plane="coronal")
    best, history = fit_small((train_and_validation[0], opposite))
    assert history.best_epoch < len(history.validation) - 1
    last, _ = fit_small((train_and_validation[0], opposite), dataclasses.replace(QUICK, restore_best=False))
    assert not torch.equal(weights(best), weights(last))
    assert torch.equal(weights(last), weights(fit_small((train_and_validation[0], train_and_validation[0]))[0]))


@pytest.mark.parametrize("settings", [
    {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": -1.0}, {"learning_rate": 0.0}, {"seed": -1},
    {"patience": -1}, {"noise": -0.1}, {"max_grad_norm": 0.0},
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    (name,) = settings
    with pytest.raises(ParameterError, match=f"{name} must be .*; got {settings[name]}"):
        TrainingConfig(**settings)


class UserNetwork(torch.nn.Module):
    """A user's network, which may lack a spec or the right number of axes."""

    def __init__(self, layer, spec=True, ndim=3):
        super().__init__()
        self.layer, self.ndim = layer, ndim
        if spec:
            self.spec = ModelSpec("user")

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(("model", "message"), [
    (UserNetwork(torch.nn.Conv3d(1, 1, 1), spec=False), "has no spec to record its training data"),
    (UserNetwork(torch.nn.Conv3d(1, 2, 1)), r"predicts \(2, .* needs as many channels as targets"),
    (UserNetwork(torch.nn.Conv2d(1, 1, (5, 1), padding=(4, 0)), ndim=3), "cannot take patches of .* Check its ndim"),
    (UserNetwork(torch.nn.Conv3d(1, 1, (1, 3, 3))), "predicts .* no smaller than target_shape="),
])  # fmt: skip
def test_networks_that_do_not_fit_their_patches(model, message):
    """Before the first step; PyTorch would broadcast predictions with another number of channels."""
    volume = from_array(np.random.default_rng(0).random((8, 8, 8), np.float32), spacing=(1, 1, 1))
    p = mrhdata.patches(volume, volume, shape=4, stride=4)
    with pytest.raises(ModelError, match=message):
        mrhdata.fit(model, p, p, TrainingConfig(epochs=1), progress=False)


def test_one_output_channel_is_not_trained_on_two_targets():
    rng = np.random.default_rng(0)
    a, b, c = (from_array(rng.random((8, 8, 8), np.float32), spacing=(1, 1, 1), name=n) for n in "abc")
    p = mrhdata.patches({"a": a}, {"b": b, "c": c}, shape=3, plane="coronal")
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    with pytest.raises(ModelError, match=r"predicts \(1, .* target of a patch is \(2,"):
        mrhdata.fit(model, p, p, TrainingConfig(epochs=1), progress=False)


def test_progress_is_reported_to_a_callback(train_and_validation):
    """As epochs done and total epochs."""
    calls = []
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    mrhdata.fit(model, *train_and_validation, QUICK, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
