"""Fixtures that all tests share: small volumes, a trained network, and the real data if they are present."""

import contextlib
import functools
import io
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, settings
from scipy.spatial.transform import Rotation

from mrhdata.volume.construct import from_array

SHARED = Path(os.environ.get("MRHDATA_SHARED", Path(__file__).parents[2] / "shared" / "data"))

#: `make check` runs random tests at full counts.
FULL = bool(os.environ.get("MRHDATA_FULL"))

# How long an example takes is a matter of the machine, and of what else it does.
settings.register_profile(
    "untimed",
    max_examples=100 if FULL else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Skip tests that need a GPU on machines without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item in marked if not torch.cuda.is_available() else ():
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA GPU"))


@functools.cache
def commands():
    """The commands as Typer makes them out of their signatures, once: anew for each command is a sixth of a second."""
    from mrhdata.cli import app

    return typer.main.get_command(app)


def command(*words):
    """Exit code, stdout and stderr of ``mrhdata WORDS``, in this process: a new one spends five seconds on imports."""
    from mrhdata import cli

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["mrhdata", *map(str, words)]),
        mock.patch.object(cli, "app", commands()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return end.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def shared():
    """Folder of small real volumes; the tests that need it are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"the real volumes are not at {SHARED}")
    return SHARED


def oblique_affine(angles=(10, -20, 15), spacing=(0.1, 0.2, 0.3), flip=(1, 1, 1), origin=(1.0, -2.0, 3.0)):
    """Affine of a rotated, anisotropic grid in file order (first axis nearest R where `angles` are small)."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing, flip))
    affine[:3, 3] = origin
    return affine


@pytest.fixture
def oblique():
    """An oblique, anisotropic uint16 volume stored in R, A, S order, 5 x 6 x 7 voxels."""
    values = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.uint16)
    return from_array(values, affine=oblique_affine(), name="t2w", modality="mri")


@pytest.fixture(scope="session")
def trained():
    """A small trained MRH-Net, its history, its inputs (two contrasts) and its target, on one oblique grid."""
    import mrhdata
    from mrhdata.training.settings import TrainingConfig

    rng = np.random.default_rng(0)
    affine = oblique_affine()[:, [2, 1, 0, 3]]
    a, b = (from_array(rng.random((12, 10, 14)).astype(np.float32), affine=affine) for _ in range(2))
    target = from_array((300 + 100 * a.values - 50 * b.values).astype(np.float32), affine=affine)
    inputs = {"a": a, "b": b}
    train = mrhdata.patches(
        {k: v.isel(y=slice(0, 6)) for k, v in inputs.items()},
        target.isel(y=slice(0, 6)),
        shape=3,
        stride=1,
        plane="coronal",
    )
    held = mrhdata.patches(
        {k: v.isel(y=slice(7, 10)) for k, v in inputs.items()}, target.isel(y=slice(7, 10)), shape=3, plane="coronal"
    )
    model = mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1)
    history = mrhdata.fit(
        model, train, held, TrainingConfig(epochs=6, batch_size=32, learning_rate=3e-3), progress=False
    )
    return model, history, inputs, target


@pytest.fixture
def five_modalities(tmp_path):
    """One brain on five grids, in five formats, three orientations, one world; values tell the tissue."""
    import mrhdata
    from mrhdata.datasets import catalog

    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, (40, 3))
    tissue_of = rng.integers(1, 4, 40)

    def tissue(points):
        nearest = np.argmin(((points[..., None, :] - centres) ** 2).sum(-1), -1)
        return np.where(np.linalg.norm(points, axis=-1) < 1, tissue_of[nearest], 0)

    looks = {
        "mri": ("nii.gz", (0.10, "RAS", 2.4), lambda t: (100 * t).astype(np.int16)),
        "qsm": ("mha", (0.12, "LPS", 2.4), lambda t: (0.1 * t).astype(np.float32)),
        "histology": ("nrrd", (0.05, "RAS", 2.4), lambda t: (10 + t).astype(np.uint8)),
        "cleared": ("zarr", (0.04, "PIR", 2.4), lambda t: (1000 * t).astype(np.uint16)),
        "em": ("ome.tif", (0.02, "LPS", 0.6), lambda t: (255 - t).astype(np.uint8)),
    }
    back = {
        "mri": lambda v: v / 100,
        "qsm": lambda v: v * 10,
        "histology": lambda v: v - 10.0,
        "cleared": lambda v: v / 1000,
        "em": lambda v: 255.0 - v,
    }
    for name, (ending, (spacing, axes, extent), look) in looks.items():
        affine = np.eye(4)
        signs = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
        for column, letter in enumerate(axes):
            row, sign = signs[letter]
            affine[:3, column] = 0
            affine[row, column] = sign * spacing
            affine[row, 3] = -sign * extent / 2
        n = round(extent / spacing) + 1
        index = np.moveaxis(np.indices((n, n, n)), 0, -1)
        volume = from_array(look(tissue(index @ affine[:3, :3].T + affine[:3, 3])), affine=affine, modality=name)
        mrhdata.write(volume, tmp_path / f"sub-01_{name}.{ending}")
        mrhdata.write(
            volume * 0 + volume.dtype.type(7), tmp_path / f"sub-010_{name}.{ending}"
        ) if name == "em" else None
    entries = {}
    for name, (ending, *_) in looks.items():
        entries[f"sub_01_{name}"] = (f"sub-01_{name}.{ending}", {"subject": "01", "role": name, "modality": name})
    entries["sub_010_em"] = ("sub-010_em.ome.tif", {"subject": "010", "role": "em", "modality": "em"})
    catalog.write(tmp_path / "catalog.yaml", "One brain", entries)
    return tmp_path / "catalog.yaml", tissue, back
