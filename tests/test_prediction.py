"""Maps: patch and dense meaning, masks, borders, refusals."""

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import DataError, FormatError, GridError, ModelError
from mrhdata.mapping import Windowing
from mrhdata.models.storage import physical


def by_hand(model, inputs, z, y, x):
    """One voxel from its own 3 x 3 coronal patch, edges repeated."""
    stacked = mrhdata.volume.stack(inputs).values
    padded = np.pad(stacked, [(0, 0), (1, 1), (0, 0), (1, 1)], mode="edge")
    patch = padded[:, z : z + 3, y : y + 1, x : x + 3]
    with torch.inference_mode():
        return physical(model, torch.from_numpy(patch[None])).numpy()[0, 0, 1, 0, 1]


def test_patch_mode_is_the_centre_of_every_patch(trained, tmp_path):
    """Borders included, in the target's units, on the inputs' grid."""
    model, _, inputs, target = trained
    mapped = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert mapped.dims == ("z", "y", "x")
    assert mapped.mrh.grid.same_as(inputs["a"].mrh.grid, 1e-9)
    values = mapped.values
    for z, y, x in [(0, 0, 0), (5, 4, 7), (11, 9, 13), (0, 9, 3)]:
        assert values[z, y, x] == pytest.approx(by_hand(model, inputs, z, y, x), rel=1e-5)
    assert np.corrcoef(values.ravel(), target.values.ravel())[0, 1] > 0.95


def test_dense_mode_is_one_pass_per_plane_and_differs(trained, tmp_path):
    """Whole planes at once; not the published per-patch meaning."""
    model, _, inputs, _ = trained
    dense = mrhdata.predict(model, inputs, tmp_path / "d.zarr", mode="dense", progress=False)
    plane = mrhdata.volume.stack(inputs).values[None, :, :, 4:5, :]
    with torch.inference_mode():
        expected = physical(model, torch.from_numpy(plane)).numpy()[0, 0, :, 0]
    np.testing.assert_allclose(dense.isel(y=4), expected, rtol=1e-5)
    patch = mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    assert np.abs(dense - patch).max() > 1


def test_slabs_do_not_show(trained, tmp_path):
    """The same map for any slab thickness and batch size."""
    model, _, inputs, _ = trained
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    few = Windowing(batch_size=17)
    thin = mrhdata.predict(model, inputs, tmp_path / "b.zarr", windows=few, memory="10 MB", progress=False).values
    np.testing.assert_allclose(thin, whole, rtol=1e-5)


def test_masked_voxels_are_zero(trained, tmp_path):
    """Only the mask is computed, and what is computed does not change."""
    model, _, inputs, _ = trained
    mask = inputs["a"].copy(data=(inputs["a"].values > 0.5).astype(np.uint8))
    whole = mrhdata.predict(model, inputs, tmp_path / "a.zarr", progress=False).values
    masked = mrhdata.predict(model, inputs, tmp_path / "b.zarr", where=mask, progress=False).values
    np.testing.assert_allclose(masked, np.where(mask.values, whole, 0), rtol=1e-5)


def test_any_written_format_will_do(trained, tmp_path):
    """A map goes straight to NIfTI."""
    model, _, inputs, _ = trained
    mapped = mrhdata.predict(model, inputs, tmp_path / "p.nii.gz", progress=False)
    assert mapped.mrh.grid.distance(inputs["a"].mrh.grid) < 1e-6


def test_refusals_leave_nothing_behind(trained, tmp_path):
    """Other channels or order, NaN, an empty mask, other grids, an untrained network, an existing store."""
    model, _, inputs, _ = trained
    swapped = {"b": inputs["b"], "a": inputs["a"]}
    with pytest.raises(ModelError, match=r"trained on \('a', 'b'\) but is given \('b', 'a'\)"):
        mrhdata.predict(model, swapped, tmp_path / "p.zarr", progress=False)
    with pytest.raises(DataError, match="not finite"):
        mrhdata.predict(model, {**inputs, "b": inputs["b"] * np.nan}, tmp_path / "p.zarr", progress=False)
    with pytest.raises(DataError, match="mask is empty"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", where=inputs["a"] * 0, progress=False)
    with pytest.raises(GridError, match="shapes differ"):
        mrhdata.predict(model, {**inputs, "b": inputs["b"].isel(x=slice(5))}, tmp_path / "p.zarr", progress=False)
    with pytest.raises(ModelError, match="was not trained"):
        mrhdata.predict(mrhdata.models.create("mrhnet", blocks=1), inputs, tmp_path / "p.zarr", progress=False)
    with pytest.raises(ModelError, match="patch or dense"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="fast", progress=False)
    assert list(tmp_path.iterdir()) == []
    mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False)
    with pytest.raises(FormatError, match="exists"):
        mrhdata.predict(model, inputs, tmp_path / "p.zarr", mode="dense", progress=False)
