"""Cost reports compared with counted reads, and sample reports compared with the voxels."""

import dask.array as da
import numpy as np
import pytest

import mrhdata
from mrhdata.io.omezarr.chunks import Chunks
from mrhdata.patching.samplers import ClassBalanced, Uniform
from mrhdata.volume.construct import from_array


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return an OME-Zarr store of noise added to a ramp, 128 x 96 x 96 voxels in chunks of 32."""
    import zarr

    folder = tmp_path_factory.mktemp("explained") / "v.zarr"
    values = np.random.default_rng(0).integers(0, 50, (128, 96, 96)) + np.arange(128)[:, None, None] * 20
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    group.create_array("0", data=values.astype(np.uint16), chunks=(32, 32, 32))
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    scale = [{"type": "scale", "scale": [0.1, 0.1, 0.1]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["multiscales"] = [image]
    return folder


def test_cost_report_counts_the_chunks_that_a_pass_reads(store, monkeypatch):
    """Decoded bytes are those of the chunks that a pass reads; naive bytes are those of patch-by-patch reading."""
    read = []
    plain = Chunks.read
    monkeypatch.setattr(Chunks, "read", lambda self, at, out=None: read.append(tuple(at)) or plain(self, at, out))
    p = mrhdata.patches(mrhdata.read(store), shape=20, sampler=Uniform(150), memory=3_500_000)
    explanation = p.explain(batch_size=4)
    assert not read
    indices = [r for r, _ in p.batches(4)]
    chunk = 2 * 32**3
    assert explanation.decoded_bytes == len(read) * chunk
    assert explanation.chunks == len(set(read))
    assert explanation.decodes == pytest.approx(len(read) / len(set(read)))
    naive = [np.prod((c + 19) // 32 - c // 32 + 1) for c in p.positions]
    assert explanation.naive_bytes == sum(naive) * chunk
    assert explanation.naive_bytes > 3 * explanation.decoded_bytes
    assert explanation.needed_bytes <= explanation.memory == 3_500_000
    assert explanation.patches == sum(map(len, indices)) == 150
    assert explanation.delivered_bytes == 150 * 4 * 20**3
    assert not explanation.in_memory
    assert mrhdata.patches(mrhdata.read(store), shape=20).explain().in_memory
    assert "150 patches of 1 subject" in str(explanation)
    assert not explanation.advice


def test_unsuitable_chunks_lead_to_advice(store):
    """Advice for chunks that are too large or computed by Dask; none for suitable chunks."""
    slabs = from_array(da.zeros((64, 96, 96), chunks=(1, 96, 96), dtype=np.float32), spacing=(1, 1, 1))
    assert "computed by Dask; convert it to OME-Zarr with mrhdata.convert" in str(
        mrhdata.patches(slabs, shape=8).explain()
    )
    large = mrhdata.patches(mrhdata.read(store), shape=(4, 40, 40), sampler=Uniform(200), memory=1_900_000)
    assert "chunks of (32, 32, 32) voxels (262 kB) allow batches from 1 places of a volume" in str(large.explain(1))
    small = mrhdata.patches(mrhdata.read(store), shape=(128, 96, 96))
    assert not small.explain(1).advice
    wide = from_array(np.zeros((8, 8, 8), np.float32), spacing=(1, 1, 1))
    assert mrhdata.patches(wide, shape=2).explain().advice == []


def test_sample_report_equals_statistics_of_the_voxels(store):
    """Means, standard deviations, class fractions and coverage are computed with NumPy."""
    v = mrhdata.read(store)
    labels = from_array((np.indices(v.shape)[0] // 64 + 3).astype(np.uint8), spacing=(0.1, 0.1, 0.1), kind="labels")
    p = mrhdata.patches(v, labels, shape=16)
    report = p.diagnose(len(p), batch_size=16)
    assert report.patches == len(p)
    assert report.coverage == 1.0
    assert report.classes == {3: 0.5, 4: 0.5}
    values = v.values.astype(float)
    assert report.mean["image"] == pytest.approx(values.mean())
    assert report.sd["image"] == pytest.approx(values.std())
    drawn = mrhdata.patches(v, shape=8, sampler=ClassBalanced(80, labels, {3: 3, 4: 1})).diagnose(80, batch_size=8)
    assert drawn.classes == {3: 0.75, 4: 0.25}
    assert 0 < drawn.coverage < 1
    assert "classes: 3 75.0%, 4 25.0%" in str(drawn)


def test_drift_is_small_for_shuffled_and_large_for_ordered_batches(store, monkeypatch):
    """Batches in the order of the ramp have very different means; shuffled batches do not."""
    p = mrhdata.patches(mrhdata.read(store), shape=4, sampler=Uniform(6000), memory=4_700_000)
    shuffled = p.diagnose(6000).drift["image"]
    batches = p.batches
    monkeypatch.setattr(p, "batches", lambda size, seed: batches(size, shuffle=False))
    assert shuffled < 5 < 50 < p.diagnose(6000).drift["image"]


def test_plot_draws_a_box_for_each_patch_that_crosses_the_plane(store):
    """Rectangles have the positions of the patches."""
    p = mrhdata.patches(mrhdata.read(store), shape=(16, 8, 8), sampler=np.array([[10, 5, 60], [12, 40, 20]]))
    figure = p.plot()
    axial = figure.axes[0]
    assert sorted(box.get_xy() for box in axial.patches) == [(19.5, 39.5), (59.5, 4.5)]
    assert axial.get_title() == "z = 19: 2 of 2 patches"
