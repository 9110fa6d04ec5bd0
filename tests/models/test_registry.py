"""Networks: layers, counts, storage."""

import json

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

import mrhdata
from mrhdata.errors import ModelError


@pytest.mark.parametrize(("blocks", "count"), [(4, 482_369), (9, 851_649), (29, 2_328_769), (30, 2_402_625)])
def test_mrhnet_has_the_published_parameters(blocks, count):
    """67 channels; 4 and 9 loop blocks as saved by the authors, 29 by their naming, 30 by their code."""
    model = mrhdata.models.create("mrhnet", in_channels=67, blocks=blocks)
    assert sum(p.numel() for p in model.parameters()) == count


def numpy_mrhnet(state, x, blocks):
    """The forward pass written out from the published table, in NumPy alone; x is (C, h, w)."""

    def conv(name, x):
        weight, bias = state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()
        planes = [sum(correlate2d(x[i], w[i], mode="same") for i in range(len(x))) for w in weight]
        return np.stack(planes) + bias[:, None, None]

    def relu(x):
        return np.maximum(x, 0)

    skip = relu(conv("conv2", relu(conv("conv1", x))))
    x = conv("conv3_1", relu(conv("conv3", skip))) + skip
    for k in range(blocks):
        skip = relu(x)
        x = conv(f"conv_loop2.{k}", relu(conv(f"conv_loop1.{k}", skip))) + skip
    return conv("conv5", relu(conv("conv4", relu(x))))


def test_mrhnet_forward_is_the_published_graph():
    """Skips after the ReLU, zero padding, no normalisation: equal to an independent forward pass."""
    model = mrhdata.models.create("mrhnet", in_channels=3, blocks=2, seed=1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    x = np.random.default_rng(0).random((3, 5, 4), dtype=np.float32)
    with torch.inference_mode():
        got = model(torch.from_numpy(x[None])).numpy()[0]
    np.testing.assert_allclose(got, numpy_mrhnet(model.state_dict(), x, 2), rtol=1e-4, atol=1e-5)


def test_receptive_field_is_what_gradients_reach():
    """A dense output depends on exactly the stated square."""
    model = mrhdata.models.create("mrhnet", in_channels=1, blocks=1)
    for p in model.parameters():
        torch.nn.init.constant_(p, 0.01)
    x = torch.ones(1, 1, 31, 31, requires_grad=True)
    model(x)[0, 0, 15, 15].backward()
    reached = np.flatnonzero(x.grad[0, 0].abs().sum(0).numpy())
    assert reached[-1] - reached[0] + 1 == model.receptive_field == 17


def test_same_seed_same_weights():
    """Creation draws from its own generator and leaves the global one alone."""
    before = torch.random.get_rng_state()
    a, b, c = (mrhdata.models.create("mrhnet", in_channels=2, blocks=1, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_save_and_load_return_the_same_function(trained, tmp_path):
    """Weights, channels and intensity scales come back; nothing else lies in the folder."""
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    back = mrhdata.models.load(tmp_path / "net")
    assert back.spec == model.spec
    x = torch.from_numpy(mrhdata.patches(inputs, shape=3, plane="coronal").gather(np.arange(20))[0])
    physical = mrhdata.models.spec.physical
    assert torch.equal(physical(model, x), physical(back, x))
    mrhdata.models.save(model, tmp_path / "net")


def test_a_folder_with_a_network_within_is_pointed_to(tmp_path):
    """Training on labels writes its network into a folder of its own, so one level too high is easily given."""
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=1, blocks=1), tmp_path / "lab" / "network")
    inner = (tmp_path / "lab" / "network").as_posix()
    with pytest.raises(ModelError, match=rf"is not a model folder: .* is missing; did you mean {inner}\?$"):
        mrhdata.models.load(tmp_path / "lab")
    with pytest.raises(ModelError, match=r"is missing$"):
        mrhdata.models.load(tmp_path / "nothing")


def test_damaged_folders_are_refused(tmp_path):
    """Missing files, broken JSON, unknown keys, unknown networks, weights of another network."""
    with pytest.raises(ModelError, match="is missing"):
        mrhdata.models.load(tmp_path)
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=2, blocks=1), tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    good = json.loads(config.read_text("utf-8"))
    for bad, message in [
        ("{", "damaged"),
        (json.dumps(good | {"code": "import os"}), "damaged"),
        (json.dumps(good | {"name": "os.system"}), "name must be a network, .* got 'os.system'"),
        (json.dumps(good | {"config": {"in_channels": 3, "blocks": 1}}), "do not fit"),
        (json.dumps(good | {"config": {"depth": 3}}), "does not accept the settings"),
    ]:
        config.write_text(bad)
        with pytest.raises(ModelError, match=message):
            mrhdata.models.load(tmp_path / "net")
    config.write_text(json.dumps(good))
    weights = tmp_path / "net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        mrhdata.models.load(tmp_path / "net")


def test_unknown_networks():
    """The ones that exist are named."""
    with pytest.raises(ModelError, match=r"one of mrhnet, .*; got 'resnet'"):
        mrhdata.models.create("resnet")
    for name in mrhdata.models.networks():
        if name != "ensemble":  # made of members
            assert mrhdata.models.create(name).spec.name == name


def test_untrained_networks_have_no_units():
    """Without intensity scales a prediction would mean nothing."""
    model = mrhdata.models.create("mrhnet", in_channels=1, blocks=1)
    with pytest.raises(ModelError, match="no intensity scales"):
        mrhdata.models.spec.physical(model, torch.zeros(1, 1, 3, 1, 3))
