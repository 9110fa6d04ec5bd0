"""Cells of score volumes do not depend on blocks, interruptions or grids."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

import mrhdata
from mrhdata import models
from mrhdata.errors import DataError, FormatError, ModelError, ParameterError
from mrhdata.inference import detector
from mrhdata.inference.detector import detect, detect_cells, scoring, stored_peaks
from mrhdata.inference.peaks import Peaks
from mrhdata.inference.voxelwise import predict_patches
from mrhdata.models.spec import IntensityScale
from mrhdata.volume.construct import from_array
from tests.conftest import FULL

PEAKS = Peaks(0.3, radius_mm=0.008, smooth_mm=0.002)


def screener(**config):
    """A small network with random weights and a complete spec."""
    model = models.create("cells3d", seed=3, widths=(4, 4, 4, 6), **config).eval()
    model.spec = model.spec.__class__(
        **{
            **model.spec.__dict__,
            "channels": ("signal",),
            "inputs": IntensityScale((100.0,), (50.0,)),
            "target": IntensityScale((0.0, 0.0), (1.0, 1.0)),
            "labels": (0, 1),
            "finish": (("cells", {"threshold": 0.5, "radius_mm": 0.008, "smooth_mm": 0.0}),),
        }
    )
    return model


def signal(shape=(40, 52, 46), seed=0):
    """A uint16 volume with voxels of 2 um, as from a microscope."""
    values = np.random.default_rng(seed).integers(80, 400, shape).astype(np.uint16)
    return from_array(values, spacing=(0.002, 0.002, 0.002), name="signal")


def scores(shape=(70, 90, 110), seed=0):
    """A score volume with many peaks, many of them of equal height."""
    values = gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    values = (values - values.min()) / np.ptp(values)
    return from_array((np.round(values * 60) * 4).astype(np.uint8), spacing=(0.004, 0.004, 0.004), name="scores")


def test_scores_of_patches_equal_those_of_the_volume(tmp_path):
    """At every offset, to 1e-5: the receptive field is 12 x 12 x 12 voxels."""
    volume, model = signal(), scoring(screener())
    dense = mrhdata.predict(model, volume, tmp_path / "s.zarr", mode="dense", memory="10 MB", progress=False)
    assert dense.shape == (15, 21, 18)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, dense.shape, (200, 3))
    patches = np.stack([volume.values[tuple(slice(2 * i, 2 * i + 12) for i in index)] for index in indices])[:, None]
    single = predict_patches(model, patches.astype(np.float32))[:, 0]
    assert np.abs(single - dense.values[tuple(indices.T)]).max() < 1e-5
    # The centre of a patch of even length lies between voxels.
    assert np.allclose(volume.mrh.index(dense.mrh.world([3, 4, 5])), [11.5, 13.5, 15.5])


def test_sigmoid_of_the_score_equals_the_softmax():
    """Its second channel, in the same network with class outputs."""
    x, model = torch.randn(2, 1, 14, 16, 12), screener()
    single = scoring(model)
    assert torch.allclose(model(x).softmax(1)[:, 1:], single(x).sigmoid(), atol=1e-6)
    assert scoring(single) is single


@pytest.mark.parametrize("memory", ["10 MB", "16 MB", "60 MB"])
def test_table_does_not_depend_on_the_blocks(tmp_path, memory):
    """Bit for bit, from one block for the whole volume to one block per stored chunk."""
    volume, image = scores(), signal((150, 190, 230))
    stored = volume.chunk({"z": 16, "y": 20, "x": 24})
    whole = detect_cells(volume, tmp_path / "a.parquet", PEAKS, {"signal": image}, memory="4 GB", progress=False)
    parts = detect_cells(stored, tmp_path / "b.parquet", PEAKS, {"signal": image}, memory=memory, progress=False)
    assert len(whole) > 300
    pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "b.parquet"), parts, check_exact=True)


def test_table_has_positions_and_intensities_on_the_image(tmp_path):
    """Voxel indices of the image, world coordinates, and the mean intensity around the cell."""
    image = signal((60, 60, 60))
    values = np.zeros((25, 25, 25), np.uint8)
    values[10, 12, 14] = 200
    grid = image.mrh.grid
    affine = grid.affine @ np.array([[2, 0, 0, 5.5], [0, 2, 0, 5.5], [0, 0, 2, 5.5], [0, 0, 0, 1]])
    volume = from_array(values, affine=affine, space=image.mrh.space, name="scores")
    cells = detect_cells(volume, tmp_path / "c.parquet", Peaks(0.5, 0.008), {"signal": image}, progress=False)
    assert cells[["z", "y", "x"]].round(6).values.tolist() == [[25.5, 29.5, 33.5]]
    assert np.allclose(cells[["X", "Y", "Z"]], grid.world([25.5, 29.5, 33.5]))
    z, y, x = np.mgrid[:60, :60, :60]
    near = (z - 26) ** 2 + (y - 30) ** 2 + (x - 34) ** 2 <= 4
    assert cells.intensity_signal[0] == pytest.approx(image.values[near].mean())
    assert cells.score[0] == pytest.approx(200 / 255)


@pytest.mark.parametrize("stop", range(1, 6) if FULL else [1, 3])
def test_interrupted_detection_resumes(tmp_path, stop):
    """Finished parts are reused, and the table equals that of an uninterrupted run."""
    stored, target = scores().chunk({"z": 16, "y": 20, "x": 24}), tmp_path / "c.parquet"
    calls = []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect_cells(stored, target, PEAKS, memory="10 MB", progress=interrupt)
    assert not target.exists()
    reports = []
    cells = detect_cells(
        stored, target, PEAKS, memory="10 MB", progress=lambda done, total: reports.append((done, total))
    )
    # The resumed run starts from the last report of the interrupted one.
    assert reports[0][0] > calls[-1]
    assert reports[-1][0] == reports[-1][1] == stored.size
    whole = detect_cells(stored, tmp_path / "w.parquet", PEAKS, progress=False)
    pd.testing.assert_frame_equal(cells, whole, check_exact=True)
    assert not list(tmp_path.glob(".c.parquet*"))


def test_parts_of_another_network_are_not_reused(tmp_path, monkeypatch):
    """A run with other weights and the same name discards the parts of an interrupted run."""
    volume, folder = signal((28, 200, 200)), tmp_path / "brain"
    first, other = screener(), screener()
    with torch.no_grad():
        other.body[0].weight *= -1

    def interrupt_second(values, *args, **options):
        if len(calls):
            raise KeyboardInterrupt
        calls.append(1)
        return find(values, *args, **options)

    calls, find = [], detector.find_peaks
    monkeypatch.setattr(detector, "find_peaks", interrupt_second)
    monkeypatch.setattr(detector, "_BYTES_PER_VOXEL", 400)
    with pytest.raises(KeyboardInterrupt):
        detect(first, volume, folder, memory="10 MB", progress=False)
    monkeypatch.setattr(detector, "find_peaks", find)
    cells = detect(other, volume, folder, memory="10 MB", overwrite=True, progress=False)
    expected = detect(other, volume, tmp_path / "expected", memory="10 MB", progress=False)
    pd.testing.assert_frame_equal(cells, expected, check_exact=True)


def test_existing_table_is_read_or_kept(tmp_path):
    """It is read if the scores are the same; a table of other scores is replaced only with overwrite=True."""
    target = tmp_path / "c.parquet"
    first = detect_cells(scores(), target, PEAKS, progress=False)
    before = target.stat().st_mtime_ns
    again = detect_cells(scores(), target, PEAKS, progress=False)
    assert target.stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(FormatError, match="overwrite"):
        detect_cells(scores(seed=1), target, PEAKS, progress=False)
    other = detect_cells(scores(seed=1), target, PEAKS, progress=False, overwrite=True)
    assert len(other) != len(first)


def test_detect_uses_the_criteria_of_the_network(tmp_path):
    """Scores and table are written to one folder, with the criteria for a cell that the network stores."""
    model, volume = screener(), signal()
    cells = detect(model, volume, tmp_path / "brain", progress=False)
    assert {p.name for p in (tmp_path / "brain").iterdir()} == {"scores.zarr", "cells.parquet"}
    stored = mrhdata.read(tmp_path / "brain" / "scores.zarr")
    assert stored.dtype == np.uint8
    assert len(cells) == len(detect_cells(stored, tmp_path / "x.parquet", stored_peaks(model.spec), progress=False))
    models.save(model, tmp_path / "network")
    assert stored_peaks(models.load(tmp_path / "network").spec) == Peaks(0.5, 0.008)


def test_unsuitable_networks_thresholds_and_volumes_are_refused(tmp_path):
    """No criteria, a threshold above 1, a volume smaller than the network, another network, a channel axis."""
    with pytest.raises(ModelError, match="no criteria for a cell"):
        detect(torch.nn.Identity(), signal(), tmp_path / "a", progress=False)
    with pytest.raises(ParameterError, match=r"threshold must be between 0 and 1.*got 2"):
        detect(screener(), signal(), tmp_path / "b", peaks=Peaks(2, 0.01), progress=False)
    with pytest.raises(ModelError, match=r"does not take a volume of \(8, 52, 46\)"):
        detect(screener(), signal().isel(z=slice(0, 8)), tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    other = models.create("unet3d", classes=2)
    with pytest.raises(ModelError, match="does not detect cells"):
        detect(other, signal(), tmp_path / "b", peaks=PEAKS, progress=False)
    with pytest.raises(DataError, match="Select a channel"):
        detect_cells(scores().expand_dims("c"), tmp_path / "c.parquet", PEAKS, progress=False)


def test_volume_without_cells_gives_an_empty_table(tmp_path):
    """With all columns."""
    empty = from_array(np.zeros((20, 20, 20), np.uint8), spacing=(0.004,) * 3)
    cells = detect_cells(empty, tmp_path / "c.parquet", PEAKS, {"signal": signal()}, progress=False)
    assert len(cells) == 0
    assert {"z", "X", "score", "size_mm3", "intensity_signal"} <= set(cells)


@pytest.mark.parametrize("shape", [(12, 12, 12), (13, 15, 22), (40, 44, 60)])
@pytest.mark.parametrize("channels", [1, pytest.param(2, marks=pytest.mark.full)])
def test_fused_convolution_and_pooling_equal_separate_layers(channels, shape):
    """The matrix product of inference equals the layers that training differentiates."""
    layer = models.create("cells3d", seed=1, in_channels=channels).body[0]
    x = torch.randn(2, channels, *shape)
    expected = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("gradients", [True, False])
def test_fused_convolution_needs_four_voxels_along_each_axis(gradients):
    """The error names the layer and the shape, also on the path of the matrix product."""
    layer = models.create("cells3d", seed=1, in_channels=1).body[0]
    with torch.set_grad_enabled(gradients):
        assert layer(torch.zeros(1, 1, 4, 5, 6)).shape[2:] == (1, 1, 2)
        with pytest.raises(ModelError, match=r"PooledConv needs 4 voxels or more along z, y, x; got \(4, 3, 6\)"):
            layer(torch.zeros(1, 1, 4, 3, 6))


def test_pooling_before_the_activation_changes_nothing():
    """Also in bfloat16, without a float32 copy of the largest tensor."""
    model = models.create("cells3d_second", seed=1).eval()
    conv, pool, relu, *rest = model.body
    x = torch.randn(1, 1, 24, 28, 22)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first = conv(x)
        assert pool(first).dtype == torch.bfloat16
        expected = torch.nn.functional.max_pool3d(relu(first).float(), 2)
        torch.testing.assert_close(relu(pool(first)).float(), expected, rtol=0, atol=0)
        torch.testing.assert_close(model(x), torch.nn.Sequential(*rest)(expected), rtol=0, atol=0)
