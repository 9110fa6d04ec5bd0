"""Typical mistakes in Python: each is one sentence with the argument, the value and the remedy."""

import re

import numpy as np
import pytest
import xarray as xr

import mrhdata
from mrhdata import models, samplers
from mrhdata.errors import MrhdataError
from mrhdata.volume.construct import from_array


class World:
    """Volume, array, file, patches and network of the calls."""

    def __init__(self, folder):
        self.tmp = folder
        self.arr = np.random.default_rng(0).random((12, 14, 16)).astype("float32")
        self.v = from_array(self.arr, spacing=(1, 1, 1), name="t2")
        mrhdata.write(self.v, folder / "v.nii.gz")
        self.file = str(folder / "v.nii.gz")
        self.model = models.create("mrhnet", in_channels=1, loop_blocks=1)
        self.p = mrhdata.patches(self.v, target=self.v, shape=3, plane="axial")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("mistakes"))


CALLS = {
    "read int": lambda w: mrhdata.read(5),
    "read None": lambda w: mrhdata.read(None),
    "read list": lambda w: mrhdata.read([w.file]),
    "read array": lambda w: mrhdata.read(w.arr),
    "read missing": lambda w: mrhdata.read(w.tmp / "nothing.nii"),
    "read spacing str": lambda w: mrhdata.read(w.file, spacing="1mm"),
    "read spacing two": lambda w: mrhdata.read(w.file, spacing=(1, 2)),
    "read unknown option": lambda w: mrhdata.read(w.file, spaceing=1),
    "read kind": lambda w: mrhdata.read(w.file, kind="label"),
    "read axes": lambda w: mrhdata.read(w.file, axes="XYZ"),
    "write array": lambda w: mrhdata.write(w.arr, w.tmp / "a.nii"),
    "write path first": lambda w: mrhdata.write(w.tmp / "a.nii", w.v),
    "write ending": lambda w: mrhdata.write(w.v, w.tmp / "a.xyz"),
    "write exists": lambda w: mrhdata.write(w.v, w.file),
    "write Dataset": lambda w: mrhdata.write(w.v.to_dataset(), w.tmp / "b.nii"),
    "from_array no spacing": lambda w: mrhdata.from_array(w.arr),
    "from_array spacing str": lambda w: mrhdata.from_array(w.arr, spacing="1"),
    "from_array 2d": lambda w: mrhdata.from_array(w.arr[0], spacing=(1, 1, 1)),
    "from_array affine 3x3": lambda w: mrhdata.from_array(w.arr, affine=np.eye(3)),
    "from_array negative": lambda w: mrhdata.from_array(w.arr, spacing=(-1, 1, 1)),
    "patches array": lambda w: mrhdata.patches(w.arr, shape=3),
    "patches path": lambda w: mrhdata.patches(w.file, shape=3),
    "patches None": lambda w: mrhdata.patches(None, shape=3),
    "patches float shape": lambda w: mrhdata.patches(w.v, shape=16.5),
    "patches zero": lambda w: mrhdata.patches(w.v, shape=0),
    "patches str shape": lambda w: mrhdata.patches(w.v, shape="3"),
    "patches too big": lambda w: mrhdata.patches(w.v, shape=100),
    "patches target array": lambda w: mrhdata.patches(w.v, target=w.arr, shape=3),
    "patches mask array": lambda w: mrhdata.patches(w.v, mask=w.arr > 0.5, shape=3),
    "patches mask bool": lambda w: mrhdata.patches(w.v, mask=True, shape=3),
    "patches plane": lambda w: mrhdata.patches(w.v, plane="horizontal", shape=3),
    "patches stride": lambda w: mrhdata.patches(w.v, shape=3, stride=0),
    "patches stride str": lambda w: mrhdata.patches(w.v, shape=3, stride="2"),
    "patches sampler str": lambda w: mrhdata.patches(w.v, shape=3, sampler="grid"),
    "patches sampler class": lambda w: mrhdata.patches(w.v, shape=3, sampler=samplers.Grid),
    "patches patch_size": lambda w: mrhdata.patches(w.v, patch_size=3),
    "patches list of arrays": lambda w: mrhdata.patches([w.arr, w.arr], shape=3),
    "patches dict of arrays": lambda w: mrhdata.patches({"a": w.arr}, shape=3),
    "patches grids": lambda w: mrhdata.patches({"a": w.v, "b": w.v.isel(x=slice(0, 8))}, shape=3),
    "split str": lambda w: w.p.split("0.7,0.3"),
    "split by": lambda w: w.p.split([1, 1], by="patient"),
    "split 0": lambda w: w.p.split([0, 0]),
    "loader batch 0": lambda w: w.p.loader(batch_size=0),
    "loader batch str": lambda w: w.p.loader(batch_size="8"),
    "loader memory": lambda w: w.p.loader(batch_size=4, memory="1 gigabyte"),
    "patch index str": lambda w: w.p["a"],
    "create name": lambda w: models.create("mrhnett"),
    "create option": lambda w: models.create("mrhnet", in_channels=1, loops=3),
    "create str": lambda w: models.create("mrhnet", in_channels="1"),
    "load missing": lambda w: models.load(w.tmp / "no"),
    "load None": lambda w: models.load(None),
    "load name": lambda w: models.load("phantom-tisue"),
    "save not model": lambda w: models.save("a", w.tmp / "m"),
    "fit swapped": lambda w: mrhdata.fit(w.p, w.model, w.p),
    "fit no validation": lambda w: mrhdata.fit(w.model, w.p, None),
    "fit settings dict": lambda w: mrhdata.fit(w.model, w.p, w.p, {"epochs": 2}),
    "fit tensor": lambda w: mrhdata.fit(w.model, w.arr, w.arr),
    "config epochs str": lambda w: mrhdata.training.TrainingConfig(epochs="3"),
    "config lr neg": lambda w: mrhdata.training.TrainingConfig(learning_rate=-1),
    "config loss": lambda w: mrhdata.training.TrainingConfig(loss="mean"),
    "predict array": lambda w: mrhdata.predict(w.model, w.arr),
    "predict path": lambda w: mrhdata.predict(w.model, w.file),
    "predict model str": lambda w: mrhdata.predict("phantom-nf", w.v),
    "predict memory": lambda w: mrhdata.predict(w.model, w.v, memory="lots"),
    "predict device": lambda w: mrhdata.predict(w.model, w.v, device="gpu"),
    "segment str": lambda w: mrhdata.segment("phantom-tissue", w.v),
    "segment array": lambda w: mrhdata.segment(models.load("phantom-tissue"), w.arr),
    "segment regression": lambda w: mrhdata.segment(models.load("phantom-nf"), w.v),
    "register arrays": lambda w: mrhdata.register(w.arr, w.arr),
    "register kind": lambda w: mrhdata.register(w.v, w.v, "elastic"),
    "register path": lambda w: mrhdata.register(w.file, w.v),
    "resample like array": lambda w: mrhdata.resample(w.v, w.arr),
    "resample nothing": lambda w: mrhdata.resample(w.v),
    "resample array": lambda w: mrhdata.resample(w.arr, w.v),
    "resample order": lambda w: mrhdata.resample(w.v, spacing_mm=2, order=7),
    "sensitivity array": lambda w: mrhdata.sensitivity(w.arr, w.v, threshold=0.5),
    "sensitivity volume": lambda w: mrhdata.sensitivity(w.v, w.v, threshold=0.5),
    "sensitivity threshold": lambda w: mrhdata.sensitivity({"a": w.v}, w.v, threshold="low"),
    "sensitivity none": lambda w: mrhdata.sensitivity({"a": w.v}, w.v, threshold=None),
    "sensitivity histology array": lambda w: mrhdata.sensitivity({"a": w.v}, w.arr, threshold=0.5),
    "sensitivity mask array": lambda w: mrhdata.sensitivity({"a": w.v}, w.v, threshold=0.5, mask=w.arr > 0),
    "catalog missing": lambda w: mrhdata.open_catalog(w.tmp / "c.yaml"),
    "catalog None": lambda w: mrhdata.open_catalog(None),
    "convert array": lambda w: mrhdata.convert(w.arr, w.tmp / "c.zarr"),
    "convert memory": lambda w: mrhdata.convert(w.file, w.tmp / "c.zarr", memory="much"),
    "detect str": lambda w: mrhdata.detect("phantom-cells", w.v, w.tmp / "d.parquet"),
    "detect array": lambda w: mrhdata.detect(models.load("phantom-cells"), w.arr, w.tmp / "d"),
    "uniform str": lambda w: samplers.Uniform("10"),
    "uniform neg": lambda w: samplers.Uniform(-1),
    "mrh on plain": lambda w: xr.DataArray(w.arr).mrh.grid,
    "like str": lambda w: w.v.mrh.like("x"),
    "label_scores none": lambda w: mrhdata.analysis.scores.label_scores([("a", w.arr, w.arr)]),
}
#: Errors of arguments that a function does not have, which Python raises as TypeError.
UNKNOWN = re.compile(r"has no (argument|options) .*; (use|it has) ")


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_one_sentence_with_the_remedy(name, world):
    """It names the argument and the value; errors of Python that name neither do not reach the user."""
    with pytest.raises((MrhdataError, TypeError)) as error:
        CALLS[name](world)
    text = str(error.value)
    if not isinstance(error.value, MrhdataError):
        assert UNKNOWN.search(text), text
    assert "object has no attribute" not in text
    assert 20 < len(text) < 700
    assert "\n" not in text
