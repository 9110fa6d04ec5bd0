"""Dense boxes equal one pass over the whole volume; windows give back what they are given; fields are exact."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn import functional as f

from mrhdata import models
from mrhdata.errors import ModelError
from mrhdata.inference.box_reader import BoxReader
from mrhdata.inference.predictor import predict
from mrhdata.inference.region import RegionOfInterest
from mrhdata.inference.strategies.dense import DenseStrategy
from mrhdata.inference.strategies.network import InferenceModel
from mrhdata.inference.strategies.sliding_window import SlidingWindow, SlidingWindowStrategy
from mrhdata.models.receptive_field import receptive_field_of
from mrhdata.models.spec import ModelSpec
from mrhdata.patching import sources
from mrhdata.volume.box import Box
from mrhdata.volume.construct import from_array
from tests.conftest import FULL


class Skipping(nn.Module):
    """A valid branch and a cropped skip, joined; takes volumes of any size."""

    ndim = 3

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 4, 5)
        self.norm, self.out = nn.BatchNorm3d(3), nn.Conv3d(7, 2, 1)

    def forward(self, x):
        skip = f.leaky_relu(self.norm(self.one(x)))
        return f.pad(self.out(torch.cat([skip[:, :, 2:-2, 2:-2, 2:-2], torch.relu(self.two(skip))], dim=1)), [2] * 6)


class Pooled(nn.Module):
    """A U-Net whose volume must divide by 4."""

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
    """Convolutions with any kernel, stride, padding and dilation, pools, and layers that refine."""
    ndim = draw(st.sampled_from([2, 3, 3]))
    conv, pool, mean, back = (
        (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.ConvTranspose3d)
        if ndim == 3
        else (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ConvTranspose2d)
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers, channels = [], 1
    few = st.integers(1, 2)
    for kind in draw(st.lists(st.sampled_from(["conv", "conv", "pool", "mean", "back", "up", "pad"]), max_size=5)):
        if kind == "conv":
            out, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 4))
            how = {"stride": draw(few), "dilation": draw(few), "padding": draw(st.integers(0, 2))}
            layers += [conv(channels, out, kernel, **how), nn.PReLU()]
            channels = out
        elif kind == "up":
            smooth = "trilinear" if ndim == 3 else "bilinear"
            layers.append(nn.Upsample(scale_factor=2, mode=draw(st.sampled_from(["nearest", smooth]))))
        elif kind == "pool":
            layers.append(pool(2, stride=draw(few)))
        elif kind == "mean":
            layers.append(mean(3, stride=draw(few), padding=1))
        elif kind == "back":
            layers.append(back(channels, channels, draw(st.integers(2, 3)), stride=2))
        else:
            layers.append((nn.ReplicationPad3d if ndim == 3 else nn.ReplicationPad2d)(draw(few)))
    model = nn.Sequential(*layers)
    model.ndim = ndim
    return model.eval()


def dense(model, values, most):
    """A dense method over an array, with pieces of a number of voxels, and what reads its boxes."""
    volume = from_array(values, spacing=(1, 1, 1))
    stream = sources.one_grid(volume, (1, 1, 1), None, False)
    network = InferenceModel(model, "cpu", "float32")
    method = DenseStrategy(
        network, receptive_field_of(model, 1), values.shape, 1, RegionOfInterest(None, volume, stream), 1
    )
    method._most = most
    return network, method, BoxReader(stream, 10_000_000)


def run(method, sweep, box, before=None):
    """One output box, made step by step."""
    steps, out = list(method.steps(box, before)), np.zeros((method.channels, *box.shape), np.float32)
    held = method.begin(box, before, out)
    for step, values in zip(steps, sweep.read([s.boxes for s in steps]), strict=True):
        method.add(held, step, values, lambda box, answers, into: np.copyto(into, answers))
    method.end(held, lambda box, answers, into: np.copyto(into, answers))
    return out


@settings(max_examples=400 if FULL else 30)
@given(networks(), st.tuples(*[st.integers(8, 30)] * 3), st.integers(100, 20_000), st.data())
def test_dense_boxes_equal_one_pass(model, shape, most, data):
    """Any network, volume, block and piece: equal to the whole volume at once, to 1e-5."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        network = InferenceModel(model, "cpu", "float32")
        whole = network(values[None, None])[0].numpy()
    except RuntimeError:
        assume(False)
    assume(whole.size)
    _, method, sweep = dense(model, values, most)
    assert method.shape == whole.shape[1:]
    low = [data.draw(st.integers(0, n - 1)) // u * u for n, u in zip(method.shape, method._unit, strict=True)]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, method.shape, strict=True)]
    box = Box.of(low, high)
    np.testing.assert_allclose(run(method, sweep, box), whole[:, *box.slices], atol=1e-5 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize("model", [Skipping(), Pooled()])
def test_networks_that_join_branches(model):
    """Skips, crops and concatenation; what does not divide is padded at the far end with the nearest voxel."""
    model.eval()
    values = np.random.default_rng(1).standard_normal((29, 44, 38)).astype(np.float32)
    network, method, sweep = dense(model, values, 12_000)
    divisible = isinstance(model, Pooled)
    given = np.pad(values, [(0, 3), (0, 0), (0, 2)], mode="edge") if divisible else values
    whole = network(given[None, None])[0].numpy()[:, :29, :44, :38]
    assert method.shape == values.shape
    assert len(method._pieces(Box.of((0, 0, 0), method.shape), 1)) >= 4
    np.testing.assert_allclose(run(method, sweep, Box.of((0, 0, 0), method.shape)), whole, atol=1e-5)


def test_a_field_is_what_a_gradient_sees():
    """Input voxels that one output depends on, by the field and by differentiation."""
    model = nn.Sequential(nn.Conv3d(1, 2, (3, 1, 5), dilation=(2, 1, 1)), nn.AvgPool3d(2), nn.Conv3d(2, 1, 3, stride=2))
    found = receptive_field_of(model, 1)
    x = torch.randn(1, 1, 40, 40, 40, requires_grad=True)
    at = (2, 3, 4)
    model(x)[0, 0][at].backward()
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        touched = torch.nonzero(x.grad[0, 0].abs().sum(others)).flatten()
        assert int(touched[0]) == found.stride[axis] * at[axis] + found.low[axis]
        assert int(touched[-1]) == found.stride[axis] * at[axis] + found.high[axis]
    assert found.lengths == (4 + 2 + 4, 1 + 1 + 4, 5 + 1 + 4)


class _Called(nn.Module):
    """Pooling by a call, not by a layer."""

    def __init__(self, call, *given, **settings):
        super().__init__()
        self.call, self.given, self.settings = call, given, settings

    def forward(self, x):
        return self.call(x, *self.given, **self.settings)


@pytest.mark.parametrize(
    ("call", "layer"),
    [
        (_Called(functional.max_pool3d, 3, 2, 1), nn.MaxPool3d(3, 2, 1)),
        (_Called(functional.max_pool3d, 2, dilation=3), nn.MaxPool3d(2, dilation=3)),
        (_Called(functional.avg_pool3d, (1, 2, 4), None, 0, True), nn.AvgPool3d((1, 2, 4))),
    ],
)
def test_a_call_has_the_field_of_its_layer(call, layer):
    """Also where settings are told apart by their place alone."""
    conv = nn.Conv3d(1, 1, 3)
    called, layered = (receptive_field_of(nn.Sequential(conv, part), 1) for part in (call, layer))
    assert (called.lengths, called.stride, called.low) == (layered.lengths, layered.stride, layered.low)


class _Attends(nn.Module):
    def forward(self, x):
        return x * torch.softmax(x.flatten(2), -1).reshape(x.shape)


class _Decides(nn.Module):
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
        (_Attends(), "flatten"),
        (_Decides(), "cannot be computed"),
    ],
)
def test_layers_without_a_field_are_refused(layer, named):
    """Named, with the mode that can run them."""
    with pytest.raises(ModelError, match=rf"{named}.*mode='sliding_window'"):
        receptive_field_of(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), layer), 1)


@pytest.mark.parametrize("blend", ["constant", "gaussian", "hann"])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.7])
def test_identity_windows_give_back_the_volume(blend, overlap):
    """Whatever the block, also where the sums of the block above go on; each window is run once."""
    values = (100 + np.random.default_rng(0).standard_normal((37, 9, 21))).astype(np.float32)
    volume = from_array(values, spacing=(1, 1, 1))
    stream = sources.one_grid(volume, (1, 1, 1), None, False)
    network = InferenceModel(nn.Identity(), "cpu", "float32")
    own = SlidingWindow((8, 12, 10), overlap, blend).of(network)
    method = SlidingWindowStrategy(network, values.shape, 1, RegionOfInterest(None, volume, stream), own)
    sweep, before, windows = BoxReader(stream, 10_000_000), None, []
    for low, high in [(0, 5), (5, 6), (6, 30), (30, 37)]:
        box = Box.of((low, 0, 0), (high, 9, 21))
        windows += [w for step in method.steps(box, before) for w in step.place]
        np.testing.assert_allclose(run(method, sweep, box, before)[0], values[low:high], rtol=1e-6)
        alone = SlidingWindowStrategy(network, values.shape, 1, RegionOfInterest(None, volume, stream), own)
        np.testing.assert_allclose(run(alone, sweep, box)[0], values[low:high], rtol=1e-6)
        before = box
    assert len(windows) == len(set(windows))


def test_neighbouring_planes_as_channels():
    """2.5D: the planes around each plane, those beyond the border repeated."""

    class Last(nn.Module):
        ndim = 2

        def forward(self, x):
            return x[:, 2:3] - x[:, 0:1]

    model = Last()
    model.spec = ModelSpec("last", context_slices=1, axis=1)
    values = np.random.default_rng(0).random((4, 6, 5)).astype(np.float32)
    x = np.pad(values, [(0, 0), (1, 1), (0, 0)], mode="edge")[None, None]
    found = InferenceModel(model, "cpu", "float32")(x)[0, 0].numpy()
    np.testing.assert_allclose(found, x[0, 0, :, 2:] - x[0, 0, :, :-2])


@pytest.mark.parametrize(("shape", "strides"), [((8, 16, 12), (2, 2)), ((7, 16, 13), ((1, 2, 2), 2))])
def test_a_map_of_as_many_voxels_lies_on_the_grid_of_its_input(shape, strides, tmp_path):
    """A U-Net's strides make its field reach further to one side; its answers are no half voxel off for that."""
    model = models.create("unet3d", widths=(2, 3, 4), strides=strides, classes=2)
    del model.spec
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    volume = from_array(values, spacing=(3, 1, 2))
    mapped = predict(model, volume, tmp_path / "map.zarr", mode="dense", progress=False)
    assert mapped.isel(c=0).mrh.grid.same_as(volume.mrh.grid)


def test_where_no_piece_fits_work_stays_bounded():
    """A field as large as the volume: voxel by voxel would be the least memory and a hundred times the work."""
    model = nn.Conv3d(1, 1, 15, padding=7).eval().requires_grad_(False)
    values = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    _, method, sweep = dense(model, values, most=100)
    box = Box.of((0, 0, 0), values.shape)
    found = run(method, sweep, box)
    whole = model(torch.from_numpy(values)[None, None])[0].numpy()
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert method._cost(method._pieces(box, 1)) < 10 * values.size
