"""Training: it learns, it keeps the best, it is repeatable, it goes on where it stopped."""

import dataclasses

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import DataError, ModelError
from mrhdata.training import Training
from mrhdata.volume import from_array

QUICK = Training(epochs=4, batch_size=16, learning_rate=3e-3, noise=0.05)


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
    model = mrhdata.models.create("mrhnet", in_channels=1, blocks=1)
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
        sets, Training(epochs=12, batch_size=16, learning_rate=0.2, optimizer="sgd", schedule="steps", patience=3)
    )
    assert history.best_epoch == int(np.argmin(history.validation))
    assert len(history.validation) <= history.best_epoch + 1 + 3
    x, y = (torch.from_numpy(part) for part in sets[1].gather(np.arange(len(sets[1]))))
    scaled = mrhdata.models.storage.scaled
    with torch.inference_mode():
        out = mrhdata.models.storage.network_on(model, scaled(x, model.spec.inputs))
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
    epoch = mrhdata.training._Run.epoch

    def stops(self, *patches):
        if len(self.history.training) == 2:
            raise KeyboardInterrupt
        epoch(self, *patches)

    monkeypatch.setattr(mrhdata.training._Run, "epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fitted(sets, checkpoint=tmp_path / "run.pt")
    monkeypatch.undo()
    resumed, again = fitted(sets, checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(whole), weights(resumed))
    assert again.training == history.training
    with pytest.raises(ModelError, match="belongs to a run"):
        fitted(sets, dataclasses.replace(QUICK, seed=7), checkpoint=tmp_path / "run.pt")
    (tmp_path / "run.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no checkpoint"):
        fitted(sets, checkpoint=tmp_path / "run.pt")


def test_the_published_scale_is_one_maximum(sets):
    """One scalar over all channels, no offset."""
    model, _ = fitted(sets, Training(epochs=1, scale="maximum", loss="mae"))
    assert model.spec.inputs.offset == (0.0,)
    assert model.spec.inputs.factor[0] == pytest.approx(1.0, abs=0.02)


def test_nan_is_named_with_its_place():
    """The first patch that holds one is given."""
    values = np.zeros((4, 4, 4), np.float32)
    values[2, 2, 2] = np.nan
    v = from_array(values, spacing=(1, 1, 1))
    p = mrhdata.patches(v, v, shape=2)
    with pytest.raises(DataError, match=r"1 patches have inputs that are not finite, the first at \[2, 2, 2\]"):
        mrhdata.fit(mrhdata.models.create("mrhnet", in_channels=1, blocks=1), p, p, progress=False)


def test_what_cannot_be_trained(sets):
    """Wrong channel count, no target, thick patches for a 2D network, unknown settings."""
    with pytest.raises(ModelError, match="takes 2 channels but the patches have 1"):
        mrhdata.fit(mrhdata.models.create("mrhnet", in_channels=2, blocks=1), *sets, QUICK, progress=False)
    v = from_array(np.ones((4, 4, 4), np.float32), spacing=(1, 1, 1))
    model = mrhdata.models.create("mrhnet", in_channels=1, blocks=1)
    alone = mrhdata.patches(v, shape=2)
    with pytest.raises(DataError, match="have no target"):
        mrhdata.fit(model, alone, alone, progress=False)
    thick = mrhdata.patches(v, v, shape=2)
    with pytest.raises(ModelError, match="works on planes"):
        mrhdata.fit(model, thick, thick, progress=False)
    with pytest.raises(ModelError, match="optimizer is one of"):
        Training(optimizer="lion")
