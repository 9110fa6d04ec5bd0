"""Training of a restoration network, and restoration of stacks and watched folders."""

import json

import numpy as np

import mrhdata
from mrhdata.volume.construct import from_array
from tests.conftest import command as run


def test_restoration_from_a_stack_to_a_watched_folder(tmp_path):
    """Train on slices, restore a stack in its own range, and files of a folder; unreadable files are named."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    planes = [np.cos(0.3 * x + 0.2 * y + 0.1 * z) * 60 + 128 + rng.normal(0, 2, x.shape) for z in range(20)]
    good = from_array(np.stack(planes).astype(np.uint8), spacing=(1e-5, 1e-5, 1e-5))
    mrhdata.write(good, tmp_path / "good.ome.tif")
    quick = ["--patch-size", 32, "--patches-per-epoch", 8, "--epochs", 1, "--context-slices", 1]
    words = ["train", "restoration", tmp_path / "good.ome.tif"]
    code, out, err = run(*words, "-o", tmp_path / "net", *quick, "--json")
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    low = good.isel(y=slice(0, None, 4), x=slice(0, None, 4))
    (tmp_path / "scope").mkdir()
    mrhdata.write(low, tmp_path / "scope" / "tile-1.ome.tif")
    mrhdata.write(low, tmp_path / "scan.zarr")
    code, out, err = run("restore", tmp_path / "net", tmp_path / "scan.zarr", "-o", tmp_path / "r.zarr", "--json")
    assert code == 0, err
    restored = mrhdata.read(tmp_path / "r.zarr")
    assert (restored.dtype, restored.shape) == (np.uint8, (20, 64, 64))
    np.testing.assert_allclose(restored.mrh.spacing, (1e-5, 1e-5, 1e-5))
    (tmp_path / "scope" / "broken.tif").write_bytes(b"no picture")
    watch = ["--watch", tmp_path / "scope", "--stop-after", 1, "--stable-for", 0.2]
    code, out, err = run("restore", tmp_path / "net", "-o", tmp_path / "done", *watch)
    assert code == 0, err
    assert "left out" in err
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "done" / "tile-1.ome.tif").values, restored.values)


def test_restoration_errors_are_one_sentence(tmp_path):
    good = from_array(np.zeros((8, 16, 16), np.uint8), spacing=(1e-5, 1e-5, 1e-5))
    mrhdata.write(good, tmp_path / "good.ome.tif")
    code, _, err = run("restore", "phantom-em", "-o", tmp_path / "x.zarr")
    assert (code, "either a stack" in err) == (2, True)
    words = ["train", "restoration", tmp_path / "good.ome.tif", "-o", tmp_path / "n2"]
    code, _, err = run(*words, "--crappifier", "jpeg")
    assert (code, "--crappifier must be one of" in err) == (2, True)
    code, _, err = run(*words, "--context-slices", 2)
    assert (code, "em has 8 slices, too few to train on 5 at a time and to validate" in err) == (2, True), err
