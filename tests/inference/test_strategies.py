"""Dense boxes equal one pass, identity windows return the volume, and receptive fields are exact."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn import functional as f

from mrhdata import models
from mrhdata.errors import ModelError, ParameterError
from mrhdata.inference.predictor import predict
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.dense import DenseStrategy
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.inference.strategies.sliding_window import SlidingWindow, SlidingWindowStrategy
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import ModelSpec
from mrhdata.patching import sources
from mrhdata.patching.box_reader import BoxReader
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from tests.conftest import FULL


class Skipping(nn.Module):
    """An unpadded branch joined with a cropped skip; takes volumes of any size."""

    ndim = 3

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 4, 5)
        self.norm, self.out = nn.BatchNorm3d(3), nn.Conv3d(7, 2, 1)

    def forward(self, x):
        skip = f.leaky_relu(self.norm(self.one(x)))
        return f.pad(self.out(torch.cat([skip[:, :, 2:-2, 2:-2, 2:-2], torch.relu(self.two(skip))], dim=1)), [2] * 6)


class Pooled(nn.Module):
    """A U-Net that takes volumes divisible by 4."""

    ndim = 3

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 3, 3, padding=1)
        self.pool, self.three = nn.MaxPool3d(2), nn.Conv3d(3, 3, 3, padding=1)
        self.up = nn.ConvTranspose3d(3, 2, 2, stride=2)
        self.coarse = nn.Upsample(scale_factor=2, mode="trilinear")
        self.out = nn.Conv3d(7, 2, 1)

    def forward(self, x):
        a = torch.relu(self.one(x))
        b = torch.relu(self.two(self.pool(a)))
        c = self.coarse(torch.relu(self.three(self.pool(b))))
        return self.out(torch.cat((a, self.up(b), self.coarse(c)), 1))


@st.composite
def networks(draw):
    """Convolutions with any kernel, stride, padding and dilation, pooling, and upsampling layers."""
    ndim = draw(st.sampled_from([2, 3, 3]))
    conv, pool, mean, transposed = (
        (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.ConvTranspose3d)
        if ndim == 3
        else (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ConvTranspose2d)
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers, channels = [], 1
    one_or_two = st.integers(1, 2)
    for kind in draw(
        st.lists(st.sampled_from(["conv", "conv", "pool", "mean", "transposed", "up", "pad"]), max_size=5)
    ):
        if kind == "conv":
            out, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 4))
            options = {"stride": draw(one_or_two), "dilation": draw(one_or_two), "padding": draw(st.integers(0, 2))}
            layers += [conv(channels, out, kernel, **options), nn.PReLU()]
            channels = out
        elif kind == "up":
            linear = "trilinear" if ndim == 3 else "bilinear"
            layers.append(nn.Upsample(scale_factor=2, mode=draw(st.sampled_from(["nearest", linear]))))
        elif kind == "pool":
            layers.append(pool(2, stride=draw(one_or_two)))
        elif kind == "mean":
            layers.append(mean(3, stride=draw(one_or_two), padding=1))
        elif kind == "transposed":
            layers.append(transposed(channels, channels, draw(st.integers(2, 3)), stride=2))
        else:
            layers.append((nn.ReplicationPad3d if ndim == 3 else nn.ReplicationPad2d)(draw(one_or_two)))
    model = nn.Sequential(*layers)
    model.ndim = ndim
    return model.eval()


def dense_strategy(model, values, max_voxels):
    """A network, its dense strategy over an array with pieces of limited size, and a reader of its boxes."""
    volume = from_array(values, spacing=(1, 1, 1))
    source = sources.one_grid(volume, (1, 1, 1), None, False)
    network = InferenceModel(model, "cpu", "float32")
    region = RegionOfInterest(None, volume, source)
    strategy = DenseStrategy(network, receptive_field_of(model, 1), values.shape, 1, region, 1)
    strategy._max_voxels = max_voxels
    return network, strategy, BoxReader(source, 10_000_000)


def run(strategy, reader, box, before=None):
    """Predict one output box, task by task."""
    tasks, out = list(strategy.tasks(box, before)), np.zeros((strategy.channels, *box.shape), np.float32)
    state = strategy.begin(box, before, out)
    for task, values in zip(tasks, reader.read([t.boxes for t in tasks]), strict=True):
        predictions = strategy.run(task, torch.from_numpy(values)).numpy()
        strategy.add(state, task, predictions, lambda box, predictions, target: np.copyto(target, predictions))
    strategy.end(state, lambda box, predictions, target: np.copyto(target, predictions))
    return out


@settings(max_examples=400 if FULL else 30)
@given(networks(), st.tuples(*[st.integers(8, 30)] * 3), st.integers(100, 20_000), st.data())
def test_dense_boxes_equal_one_pass(model, shape, max_voxels, data):
    """Any network, volume, block and piece gives the result of the whole volume at once, to 1e-5."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        network = InferenceModel(model, "cpu", "float32")
        whole = network(values[None, None])[0].numpy()
    except RuntimeError:
        assume(False)
    assume(whole.size)
    _, strategy, reader = dense_strategy(model, values, max_voxels)
    assert strategy.shape == whole.shape[1:]
    low = [data.draw(st.integers(0, n - 1)) // u * u for n, u in zip(strategy.shape, strategy._unit, strict=True)]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, strategy.shape, strict=True)]
    box = Box.of(low, high)
    np.testing.assert_allclose(
        run(strategy, reader, box), whole[:, *box.slices], atol=1e-5 * max(1, np.abs(whole).max())
    )


@pytest.mark.parametrize("model", [Skipping(), Pooled()])
def test_dense_boxes_of_networks_that_join_branches(model):
    """Skips, crops and concatenation; a shape that does not divide is padded at the far end by its border."""
    model.eval()
    values = np.random.default_rng(1).standard_normal((29, 44, 38)).astype(np.float32)
    network, strategy, reader = dense_strategy(model, values, 12_000)
    must_divide = isinstance(model, Pooled)
    padded = np.pad(values, [(0, 3), (0, 0), (0, 2)], mode="edge") if must_divide else values
    whole = network(padded[None, None])[0].numpy()[:, :29, :44, :38]
    assert strategy.shape == values.shape
    assert len(strategy._pieces(Box.of((0, 0, 0), strategy.shape), 1)) >= 4
    np.testing.assert_allclose(run(strategy, reader, Box.of((0, 0, 0), strategy.shape)), whole, atol=1e-5)


def test_receptive_field_equals_nonzero_gradients():
    """The receptive field and differentiation agree on the input voxels that one output depends on."""
    model = nn.Sequential(nn.Conv3d(1, 2, (3, 1, 5), dilation=(2, 1, 1)), nn.AvgPool3d(2), nn.Conv3d(2, 1, 3, stride=2))
    field = receptive_field_of(model, 1)
    x = torch.randn(1, 1, 40, 40, 40, requires_grad=True)
    index = (2, 3, 4)
    model(x)[0, 0][index].backward()
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        touched = torch.nonzero(x.grad[0, 0].abs().sum(others)).flatten()
        assert int(touched[0]) == field.stride[axis] * index[axis] + field.low[axis]
        assert int(touched[-1]) == field.stride[axis] * index[axis] + field.high[axis]
    assert field.lengths == (4 + 2 + 4, 1 + 1 + 4, 5 + 1 + 4)


class FunctionalPool(nn.Module):
    """Pooling by a function call, not by a layer."""

    def __init__(self, call, *args, **kwargs):
        super().__init__()
        self.call, self.args, self.kwargs = call, args, kwargs

    def forward(self, x):
        return self.call(x, *self.args, **self.kwargs)


@pytest.mark.parametrize(
    ("call", "layer"),
    [
        (FunctionalPool(functional.max_pool3d, 3, 2, 1), nn.MaxPool3d(3, 2, 1)),
        (FunctionalPool(functional.max_pool3d, 2, dilation=3), nn.MaxPool3d(2, dilation=3)),
        (FunctionalPool(functional.avg_pool3d, (1, 2, 4), None, 0, True), nn.AvgPool3d((1, 2, 4))),
    ],
)
def test_functional_pooling_has_the_receptive_field_of_its_layer(call, layer):
    """Also if arguments are positional."""
    conv = nn.Conv3d(1, 1, 3)
    by_call, by_layer = (receptive_field_of(nn.Sequential(conv, part), 1) for part in (call, layer))
    assert (by_call.lengths, by_call.stride, by_call.low) == (by_layer.lengths, by_layer.stride, by_layer.low)


class Attention(nn.Module):
    def forward(self, x):
        return x * torch.softmax(x.flatten(2), -1).reshape(x.shape)


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.InstanceNorm3d(1), "InstanceNorm3d"),
        (nn.GroupNorm(1, 1), "GroupNorm"),
        (nn.AdaptiveAvgPool3d(1), "AdaptiveAvgPool3d"),
        (nn.BatchNorm3d(1, track_running_stats=False), "without running statistics"),
        (nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True), "aligned corners"),
        (nn.Upsample(size=(8, 8, 8)), "given size"),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"), "circular"),
        (nn.Softmax(2), "softmax over space"),
        (Attention(), "flatten"),
        (DataDependent(), "cannot be computed"),
    ],
)
def test_layers_without_a_receptive_field_are_refused(layer, named):
    """The error names the layer and the mode that can run it."""
    with pytest.raises(ModelError, match=rf"{named}.*mode='sliding_window'"):
        receptive_field_of(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), layer), 1)


@pytest.mark.parametrize("blend", ["constant", "gaussian", "hann"])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.7])
def test_identity_windows_give_back_the_volume(blend, overlap):
    """For any blocks, with and without the sums of the block above; each window runs once."""
    values = (100 + np.random.default_rng(0).standard_normal((37, 9, 21))).astype(np.float32)
    volume = from_array(values, spacing=(1, 1, 1))
    source = sources.one_grid(volume, (1, 1, 1), None, False)
    network = InferenceModel(nn.Identity(), "cpu", "float32")
    windows = SlidingWindow((8, 12, 10), overlap, blend).of(network)
    region = RegionOfInterest(None, volume, source)
    strategy = SlidingWindowStrategy(network, values.shape, 1, region, windows)
    reader, before, run_windows = BoxReader(source, 10_000_000), None, []
    for low, high in [(0, 5), (5, 6), (6, 30), (30, 37)]:
        box = Box.of((low, 0, 0), (high, 9, 21))
        run_windows += [w for task in strategy.tasks(box, before) for w in task.target]
        np.testing.assert_allclose(run(strategy, reader, box, before)[0], values[low:high], rtol=1e-6)
        single = SlidingWindowStrategy(network, values.shape, 1, region, windows)
        np.testing.assert_allclose(run(single, reader, box)[0], values[low:high], rtol=1e-6)
        before = box
    assert len(run_windows) == len(set(run_windows)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1}, "overlap must be at least 0 and below 1; got 1"),
        ({"blend": "linear"}, "blend must be one of constant, gaussian, hann; got 'linear'"),
        ({"shape": (8, 8)}, r"three lengths along z, y, x; got \(8, 8\)"),
    ],
)
def test_invalid_windows_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        SlidingWindow(**options)


def test_context_slices_become_channels():
    """A 2.5D network gets the planes around each plane; planes beyond the border are repeated."""

    class Difference(nn.Module):
        ndim = 2

        def forward(self, x):
            return x[:, 2:3] - x[:, 0:1]

    model = Difference()
    model.spec = ModelSpec("difference", context_slices=1, axis=1)
    values = np.random.default_rng(0).random((4, 6, 5)).astype(np.float32)
    x = np.pad(values, [(0, 0), (1, 1), (0, 0)], mode="edge")[None, None]
    predicted = InferenceModel(model, "cpu", "float32")(x)[0, 0].numpy()
    np.testing.assert_allclose(predicted, x[0, 0, :, 2:] - x[0, 0, :, :-2])


@pytest.mark.parametrize(("shape", "strides"), [((8, 16, 12), (2, 2)), ((7, 16, 13), ((1, 2, 2), 2))])
def test_prediction_of_equal_shape_lies_on_the_grid_of_its_input(shape, strides, tmp_path):
    """The asymmetric receptive field of a strided U-Net does not shift its prediction by half a voxel."""
    model = models.create("unet3d", widths=(2, 3, 4), strides=strides, classes=2)
    del model.spec
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    volume = from_array(values, spacing=(3, 1, 2))
    prediction = predict(model, volume, tmp_path / "map.zarr", mode="dense", progress=False)
    assert prediction.isel(c=0).mrh.grid.same_as(volume.mrh.grid)


def test_work_stays_bounded_if_no_piece_fits():
    """A receptive field as large as the volume: single voxels would take least memory and a hundred times the work."""
    model = nn.Conv3d(1, 1, 15, padding=7).eval().requires_grad_(False)
    values = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    _, strategy, reader = dense_strategy(model, values, max_voxels=100)
    box = Box.of((0, 0, 0), values.shape)
    whole = model(torch.from_numpy(values)[None, None])[0].numpy()
    np.testing.assert_allclose(run(strategy, reader, box), whole, atol=1e-5)
    assert strategy._cost(strategy._pieces(box, 1)) < 10 * values.size


class SmallDevice(nn.Module):
    """A smoothing network on a device whose memory holds a number of input voxels."""

    ndim = 3

    def __init__(self, most):
        super().__init__()
        self.most, self.sizes = most, []
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        if x.device.type != "meta" and x.numel() > self.most:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")
        self.sizes.append(x.numel())
        return self.layer(x)


@pytest.mark.parametrize(
    ("mode", "shape"), [("dense", (64, 64, 64)), ("sliding_window", (16, 16, 16)), ("patch_centre", (5, 5, 5))]
)
def test_too_little_device_memory_halves_the_parts_and_changes_no_voxel(mode, shape, tmp_path, caplog, monkeypatch):
    """Memory runs out in the second of several blocks, so that the first is kept."""
    size = (16, 14, 12) if mode == "patch_centre" else (96, 80, 40)
    volume = from_array(np.random.default_rng(1).random(size, np.float32), spacing=(1, 1, 1))
    options = {"mode": mode, "memory": "20 MB", "progress": False}
    if mode != "dense":
        options["windows"] = SlidingWindow(shape, batch_size=8)
    receptive_field = receptive_field_of(nn.Sequential(SmallDevice(1).layer), 1)
    monkeypatch.setattr("mrhdata.inference.predictor.receptive_field_of", lambda *_: receptive_field)
    expected = predict(SmallDevice(10**9), volume, tmp_path / "expected.zarr", **options)
    limit = {"dense": 30_000, "sliding_window": 3 * 16**3, "patch_centre": 3 * 125}[mode]
    small = SmallDevice(limit)
    result = predict(small, volume, tmp_path / "small.zarr", **options)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert "parts are halved" in caplog.text
    assert max(small.sizes) > limit / 3


def test_device_with_too_little_memory_for_any_part_is_refused(tmp_path):
    volume = from_array(np.ones((32, 32, 32), np.float32), spacing=(1, 1, 1))
    windows = SlidingWindow((16, 16, 16), batch_size=4)
    with pytest.raises(ModelError, match=r"cpu has too little memory for the smallest part .* Pass device='cpu'"):
        predict(SmallDevice(100), volume, tmp_path / "a.zarr", windows=windows, progress=False)
    assert not list(tmp_path.iterdir())


def test_network_in_another_process_is_on_the_device_that_was_asked_for(monkeypatch):
    """Its number there decides, not the GPU on which the first process resolved the name."""
    network = InferenceModel(nn.Conv3d(1, 1, 1), "cpu", "float32")
    network._requested = "cuda"
    resolved = []
    monkeypatch.setattr(
        "mrhdata.inference.strategies.network.resolve_device", lambda name: resolved.append(name) or torch.device("cpu")
    )
    copied = pickle.loads(pickle.dumps(network))
    assert resolved == ["cuda"]
    x = np.ones((1, 1, 2, 2, 2), np.float32)
    np.testing.assert_array_equal(copied(x), network(x))
