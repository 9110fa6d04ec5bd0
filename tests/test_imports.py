"""Cost of imports, and public names that do not change their meaning with the order of imports."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import mrhdata
from tests.conftest import FULL

MODULES = sorted(m.name for m in pkgutil.walk_packages(mrhdata.__path__, "mrhdata."))
#: Names that `import mrhdata` promises: functions, and the rooms behind them.
PUBLIC = [name for name in mrhdata.__all__ if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if not isinstance(getattr(mrhdata, name), ModuleType)]


def python(code):
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light():
    """Neither NumPy nor anything that is built on it is among the imported modules."""
    heavy = ("torch", "intake", "zarr", "dask", "xarray", "pandas", "numpy")
    assert python(f"import sys, mrhdata; print([m for m in {heavy} if m in sys.modules])") == "[]"


ORDERS = ["xarray as xr, mrhdata", "mrhdata.volume.grid, xarray as xr"]


@pytest.mark.parametrize("first", [*ORDERS, pytest.param("mrhdata, xarray as xr", marks=pytest.mark.full)])
def test_the_accessor_is_there_after_the_import(first):
    """Importing the package, before xarray or after, is enough for .mrh on a volume made elsewhere."""
    python(f"import {first}; assert xr.DataArray(0).mrh.space == 'scanner'; assert xr.__spec__.loader.get_data")


def test_each_name_is_there_after_a_bare_import():
    """Each name is touched in a process of its own, which has imported nothing else of the package.

    The processes are copies of one that has imported the package and the libraries of others, which take the time.
    The short form touches every fourth name.
    """
    code = f"""
import os
import mrhdata
import dask.array, pandas, torch, xarray, zarr
missing = []
for name in {PUBLIC if FULL else PUBLIC[::4]!r}:
    process = os.fork()
    if process == 0:
        try:
            getattr(mrhdata, name)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        missing.append(name)
print(missing)
"""
    assert python(code) == "[]"
    assert len(PUBLIC) > 25


def test_data_without_torch():
    """Everything up to the catalogue works where torch is not installed."""
    modules = [
        "volume.construct",
        "io.formats",
        "datasets.catalog",
        "io.conversion",
        "phantom.mouse",
        "degrade",
        "registration.pipeline",
    ]
    python("\n".join(["import sys", "sys.modules['torch'] = None", *(f"import mrhdata.{m}" for m in modules)]))


@pytest.mark.full
def test_functions_stay_functions_in_any_order():
    """Import two modules anew, then touch every public name: a submodule never shadows a function.

    Three hundred ordered pairs at random, since all are the square of the modules.
    """
    modules = MODULES
    code = f"""
import importlib, itertools, random, sys
pairs = list(itertools.permutations({modules!r}, 2))
for pair in random.Random(0).sample(pairs, 300):
    for name in [m for m in sys.modules if m.partition(".")[0] == "mrhdata"]:
        del sys.modules[name]
    for module in pair:
        importlib.import_module(module)
    import mrhdata
    for name in {FUNCTIONS!r}:
        assert type(getattr(mrhdata, name)).__name__ == "function", (pair, name)
"""
    python(code)


def test_every_public_name_can_be_called(tmp_path, trained):
    """After importing every module, each function runs."""
    for module in MODULES:
        importlib.import_module(module)
    model, _, inputs, target = trained
    mrhdata.write(inputs["a"], tmp_path / "a.nii")
    assert mrhdata.read(tmp_path / "a.nii").shape == inputs["a"].shape
    assert mrhdata.convert(tmp_path / "a.nii", tmp_path / "a.zarr").shape == inputs["a"].shape
    mrhdata.datasets.catalog.write(tmp_path / "c.yaml", "One", {"a": ("a.zarr", {"subject": "1"})})
    assert list(mrhdata.open_catalog(tmp_path / "c.yaml")) == ["a"]
    p = mrhdata.patches(inputs, target, shape=3, plane="coronal")
    fresh = mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1)
    assert mrhdata.fit(fresh, p, p, mrhdata.training.TrainingConfig(epochs=1), progress=False).training
    assert mrhdata.predict(model, inputs, tmp_path / "p.zarr", progress=False).shape == target.shape
    assert len(mrhdata.sensitivity(inputs, target, threshold=325, blocks=4).table) == 4
    assert mrhdata.register(inputs["b"], inputs["b"], "rigid").source == "scanner"
    assert mrhdata.resample(target, inputs["a"]).shape == target.shape
    assert mrhdata.phantom.mouse_brain(0.8)["mask"].any()
    with pytest.raises(AttributeError, match="nothing"):
        _ = mrhdata.nothing
    assert set(mrhdata.__all__) <= set(dir(mrhdata))
