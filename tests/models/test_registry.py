"""Registry and storage of networks, and the layers of MRH-Net."""

import json

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

import mrhdata
from mrhdata.errors import ModelError


@pytest.mark.parametrize(("blocks", "count"), [(4, 482_369), (9, 851_649), (29, 2_328_769), (30, 2_402_625)])
def test_mrhnet_has_the_published_parameters(blocks, count):
    """The authors' files have 4 and 9 loop blocks, their file names imply 29, and their code builds 30."""
    model = mrhdata.models.create("mrhnet", in_channels=67, loop_blocks=blocks)
    assert sum(p.numel() for p in model.parameters()) == count


def numpy_mrhnet(state, x, blocks):
    """Return the forward pass of the published table for x (C, h, w), in NumPy only."""

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
    """Skip connections after the ReLU, zero padding and no normalisation agree with an independent forward pass."""
    model = mrhdata.models.create("mrhnet", in_channels=3, loop_blocks=2, seed=1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    x = np.random.default_rng(0).random((3, 5, 4), dtype=np.float32)
    with torch.inference_mode():
        output = model(torch.from_numpy(x[None])).numpy()[0]
    np.testing.assert_allclose(output, numpy_mrhnet(model.state_dict(), x, 2), rtol=1e-4, atol=1e-5)


def test_receptive_field_of_mrhnet_equals_the_extent_of_gradients():
    """One output voxel depends on exactly the stated square."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    for p in model.parameters():
        torch.nn.init.constant_(p, 0.01)
    x = torch.ones(1, 1, 31, 31, requires_grad=True)
    model(x)[0, 0, 15, 15].backward()
    reached = np.flatnonzero(x.grad[0, 0].abs().sum(0).numpy())
    assert reached[-1] - reached[0] + 1 == model.receptive_field == 17


def test_equal_seeds_create_equal_weights():
    """The global random state does not change."""
    before = torch.random.get_rng_state()
    a, b, c = (mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_saved_and_loaded_network_predicts_the_same(trained, tmp_path):
    """Weights, channels and intensity scales are restored, and the folder has no other files."""
    model, _, inputs, _ = trained
    mrhdata.models.save(model, tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    loaded = mrhdata.models.load(tmp_path / "net")
    assert loaded.spec == model.spec
    x = torch.from_numpy(mrhdata.patches(inputs, shape=3, plane="coronal").gather(np.arange(20))[0])
    physical = mrhdata.models.spec.predict_raw
    assert torch.equal(physical(model, x), physical(loaded, x))
    mrhdata.models.save(model, tmp_path / "net")


def test_load_suggests_a_network_in_a_subfolder(tmp_path):
    """Training on labels writes its network into a subfolder, so users often pass the parent folder."""
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1), tmp_path / "lab" / "network")
    inner = (tmp_path / "lab" / "network").as_posix()
    with pytest.raises(ModelError, match=rf"is not a model folder: .* is missing; did you mean {inner}\?$"):
        mrhdata.models.load(tmp_path / "lab")
    with pytest.raises(ModelError, match=r"is missing$"):
        mrhdata.models.load(tmp_path / "nothing")


def test_damaged_folders_are_refused(tmp_path):
    """Files may be missing or cut, JSON broken, keys or the network unknown, and weights those of another network."""
    with pytest.raises(ModelError, match="is missing"):
        mrhdata.models.load(tmp_path)
    mrhdata.models.save(mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1), tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    good = json.loads(config.read_text("utf-8"))
    for bad, message in [
        ("{", "damaged"),
        (json.dumps(good | {"code": "import os"}), "damaged"),
        (json.dumps(good | {"name": "os.system"}), "name must be a network, .* got 'os.system'"),
        (json.dumps(good | {"config": {"in_channels": 3, "loop_blocks": 1}}), "do not fit"),
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


def test_unknown_network_names_are_refused():
    """The message lists the existing names, all of which can be created."""
    with pytest.raises(ModelError, match=r"one of mrhnet, .*; got 'resnet'"):
        mrhdata.models.create("resnet")
    for name in mrhdata.models.networks():
        if name != "ensemble":  # an ensemble needs members
            assert mrhdata.models.create(name).spec.name == name


def test_prediction_needs_intensity_scales():
    """The output of an untrained network has no units."""
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
    with pytest.raises(ModelError, match="no intensity scales"):
        mrhdata.models.spec.predict_raw(model, torch.zeros(1, 1, 3, 1, 3))
