"""Training: it learns, it keeps the best, it is repeatable, it goes on where it stopped."""

import dataclasses

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import DataError, ModelError
from mrhdata.models.spec import ModelSpec
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.construct import from_array

QUICK = TrainingConfig(epochs=4, batch_size=16, learning_rate=3e-3, noise=0.05)


@pytest.fixture
def sets():
    """Training and validation patches of two separate volumes, a linear task."""

    def planned(seed):
        values = np.random.default_rng(seed).random((8, 6, 8)).astype(np.float32)
        v = from_array(values, spacing=(1, 1, 1), name="t2")
        return mrhdata.patches(v, v.copy(data=1000 - 200 * v.values), shape=3, stride=1, plane="coronal")

    return planned(0), planned(1)


def weights(model):
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted(sets, settings=QUICK, **more):
    """A fresh small network, trained."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    return model, mrhdata.fit(model, *sets, settings, progress=False, **more)


def test_it_learns_and_fixes_its_scales(trained):
    """A linear task is nearly solved; scales are those of the training patches."""
    model, history, _, target = trained
    assert history.validation[-1] < 0.2 * history.validation[0]
    assert model.spec.channels == ("a", "b")
    assert (model.spec.patch, model.spec.axis) == ((3, 1, 3), 1)
    assert abs(model.spec.target.offset[0] - float(target.isel(y=slice(0, 6)).mean())) < 5


def test_the_best_epoch_is_kept(sets):
    """A rate that ruins later epochs does not ruin the result; patience ends the run."""
    model, history = fitted(
        sets, TrainingConfig(epochs=12, batch_size=16, learning_rate=0.2, optimizer="sgd", schedule="steps", patience=3)
    )
    assert history.best_epoch == int(np.argmin(history.validation))
    assert len(history.validation) <= history.best_epoch + 1 + 3
    x, y = (torch.from_numpy(part) for part in sets[1].gather(np.arange(len(sets[1]))))
    scaled = mrhdata.models.spec.scaled
    with torch.inference_mode():
        out = mrhdata.models.spec.run_on_patches(model, scaled(x, model.spec.inputs))
        loss = torch.nn.functional.mse_loss(out, scaled(y, model.spec.target)).item()
    assert loss == pytest.approx(min(history.validation), rel=1e-4)


def test_same_seed_same_weights(sets):
    """Bitwise on the CPU; another seed gives another network."""
    first, second = fitted(sets)[0], fitted(sets)[0]
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(fitted(sets, dataclasses.replace(QUICK, seed=1))[0]))


def test_an_interrupted_run_ends_as_it_would_have(sets, tmp_path, monkeypatch):
    """Stopped after two epochs and started again: the same weights and history, bit for bit."""
    whole, history = fitted(sets)
    epoch = mrhdata.training.loop._Run.epoch

    def stops(self, *patches):
        if len(self.history.training) == 2:
            raise KeyboardInterrupt
        epoch(self, *patches)

    monkeypatch.setattr(mrhdata.training.loop._Run, "epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fitted(sets, checkpoint=tmp_path / "run.pt")
    monkeypatch.undo()
    resumed, again = fitted(sets, checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(whole), weights(resumed))
    assert again.training == history.training
    with pytest.raises(ModelError, match="belongs to a run"):
        fitted(sets, dataclasses.replace(QUICK, seed=7), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ModelError, match="on other patches"):
        fitted(sets[::-1], checkpoint=tmp_path / "run.pt")
    (tmp_path / "run.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no checkpoint"):
        fitted(sets, checkpoint=tmp_path / "run.pt")


def test_the_published_scale_is_one_maximum(sets):
    """One scalar over all channels, no offset."""
    model, _ = fitted(sets, TrainingConfig(epochs=1, normalization="maximum", loss="mae"))
    assert model.spec.inputs.offset == (0.0,)
    assert model.spec.inputs.factor[0] == pytest.approx(1.0, abs=0.02)


def test_nan_is_named_with_its_place():
    """The first patch that holds one is given."""
    values = np.zeros((4, 4, 4), np.float32)
    values[2, 2, 2] = np.nan
    v = from_array(values, spacing=(1, 1, 1))
    p = mrhdata.patches(v, v, shape=2)
    with pytest.raises(DataError, match=r"1 patches have inputs that are not finite, the first at \[2, 2, 2\]"):
        mrhdata.fit(mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1), p, p, progress=False)


def test_what_cannot_be_trained(sets):
    """Wrong channel count, no target, thick patches for a 2D network, unknown settings."""
    with pytest.raises(ModelError, match="takes 2 channels but the patches have 1"):
        mrhdata.fit(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), *sets, QUICK, progress=False)
    v = from_array(np.ones((4, 4, 4), np.float32), spacing=(1, 1, 1))
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    alone = mrhdata.patches(v, shape=2)
    with pytest.raises(DataError, match="have no target"):
        mrhdata.fit(model, alone, alone, progress=False)
    thick = mrhdata.patches(v, v, shape=2)
    with pytest.raises(ModelError, match="works on planes"):
        mrhdata.fit(model, thick, thick, progress=False)
    with pytest.raises(ModelError, match="optimizer is one of"):
        TrainingConfig(optimizer="lion")


def test_defaults_are_a_plain_loop(sets):
    """Without factors of rates: AdamW over all parameters on a one-cycle schedule, bit for bit."""
    settings = dataclasses.replace(QUICK, noise=0.0)
    model, history = fitted(sets, settings)
    plain = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    plain.spec = model.spec
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = -(-len(sets[0]) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=4 * steps)
    scaled = mrhdata.models.spec.scaled
    rates, states = [], []
    for epoch in range(4):
        rates.append(schedule.get_last_lr()[0])
        for _, parts in sets[0].stream(16, seed=0, epoch=epoch):
            x, y = (torch.from_numpy(part) for part in parts)
            optimizer.zero_grad()
            answer = mrhdata.models.spec.run_on_patches(plain, scaled(x, model.spec.inputs))
            torch.nn.functional.mse_loss(answer, scaled(y, model.spec.target)).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        states.append(weights(plain).clone())
    assert torch.equal(weights(model), states[history.best_epoch])
    assert history.rate == pytest.approx(rates)


def test_the_rmse_is_in_the_targets_units(sets):
    """That of the kept weights on the validation patches, computed anew; also where the loss is another."""
    for settings in (QUICK, dataclasses.replace(QUICK, loss="mae", scale="maximum")):
        model, history = fitted(sets, settings)
        x, y = (torch.from_numpy(part) for part in sets[1].gather(np.arange(len(sets[1]))))
        with torch.inference_mode():
            errors = mrhdata.models.spec.predict_raw(model, x) - y
        assert history.rmse[history.best_epoch] == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-4)


def test_a_factor_is_a_rate(sets):
    """Ten times the rate for all layers is ten times the rate; the history says the rate without a factor."""
    plain, _ = fitted(sets)
    settings = dataclasses.replace(QUICK, learning_rate=3e-4, layer_learning_rates=(("", 10.0),))
    faster, history = fitted(sets, settings)
    torch.testing.assert_close(weights(faster), weights(plain), rtol=1e-4, atol=1e-5)
    assert max(history.rate) <= 3e-4


def test_the_first_rate_that_fits_counts_and_names_are_whole(sets):
    """``conv3`` is not ``conv3_1``; what is frozen keeps its weights and can be trained again afterwards."""
    settings = dataclasses.replace(QUICK, layer_learning_rates=(("conv3", 1.0), ("conv5.bias", 2.0), ("", 0.0)))
    fresh = dict(mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1).named_parameters())
    model, _ = fitted(sets, settings)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, fresh[name])}
    assert changed == {"conv3.weight", "conv3.bias", "conv5.bias"}
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ModelError, match=r"no layer is called 'conv9'; there are conv1, conv2"):
        fitted(sets, dataclasses.replace(QUICK, layer_learning_rates=(("conv9", 0.0),)))
    with pytest.raises(ModelError, match="freeze every layer"):
        fitted(sets, dataclasses.replace(QUICK, layer_learning_rates=(("", 0.0),)))
    with pytest.raises(ModelError, match="factor -1"):
        TrainingConfig(layer_learning_rates=(("conv1", -1.0),))


def test_the_last_weights_can_be_kept(sets):
    """Validation asks for the opposite of training, so what is learnt later is worse: best and last differ."""
    v = from_array(np.random.default_rng(2).random((8, 6, 8)).astype(np.float32), spacing=(1, 1, 1), name="t2")
    opposite = mrhdata.patches(v, v.copy(data=700 + 400 * v.values), shape=3, stride=1, plane="coronal")
    best, history = fitted((sets[0], opposite))
    assert history.best_epoch < len(history.validation) - 1
    last, _ = fitted((sets[0], opposite), dataclasses.replace(QUICK, restore_best=False))
    assert not torch.equal(weights(best), weights(last))
    assert torch.equal(weights(last), weights(fitted((sets[0], sets[0]))[0]))


@pytest.mark.parametrize("settings", [
    {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": -1.0}, {"learning_rate": 0.0}, {"seed": -1},
    {"patience": -1}, {"noise": -0.1}, {"clip": 0.0},
])  # fmt: skip
def test_settings_that_are_none(settings):
    (name,) = settings
    with pytest.raises(ModelError, match=f"{name} is .* not {settings[name]}"):
        TrainingConfig(**settings)


class Own(torch.nn.Module):
    """A network as a user writes it, that lacks something."""

    def __init__(self, layer, spec=True, ndim=3):
        super().__init__()
        self.layer, self.ndim = layer, ndim
        if spec:
            self.spec = ModelSpec("own")

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(("model", "told"), [
    (Own(torch.nn.Conv3d(1, 1, 1), spec=False), "has no spec for what it learned from"),
    (Own(torch.nn.Conv3d(1, 2, 1)), r"answers \(2, .* needs as many channels as targets"),
    (Own(torch.nn.Conv2d(1, 1, (5, 1), padding=(4, 0)), ndim=3), "cannot take patches of .* look at its ndim"),
    (Own(torch.nn.Conv3d(1, 1, (1, 3, 3))), "answers .* no smaller than target_shape="),
])  # fmt: skip
def test_networks_that_do_not_fit_their_patches(model, told):
    """A sentence before the first step; answers of another number of channels would be broadcast."""
    volume = from_array(np.random.default_rng(0).random((8, 8, 8), np.float32), spacing=(1, 1, 1))
    p = mrhdata.patches(volume, volume, shape=4, stride=4)
    with pytest.raises(ModelError, match=told):
        mrhdata.fit(model, p, p, TrainingConfig(epochs=1), progress=False)


def test_one_answer_is_not_trained_on_two_targets():
    rng = np.random.default_rng(0)
    a, b, c = (from_array(rng.random((8, 8, 8), np.float32), spacing=(1, 1, 1), name=n) for n in "abc")
    p = mrhdata.patches({"a": a}, {"b": b, "c": c}, shape=3, plane="coronal")
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    with pytest.raises(ModelError, match=r"answers \(1, .* target of a patch is \(2,"):
        mrhdata.fit(model, p, p, TrainingConfig(epochs=1), progress=False)
