"""Damaged files: mutated and truncated files are read, or raise a message of one line."""

import logging
import random
import resource
import shutil
import signal
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

import mrhdata
from mrhdata.errors import MrhdataError
from mrhdata.volume.construct import from_array
from tests.conftest import FULL
from tests.processes import run_in_process

KINDS = ["nii", "nii.gz", "nrrd", "mha", "mnc", "tif", "ome.tif", "zarr"]
#: Kinds that are tested in the short run, since each needs its own process.
SHORT = ("nii.gz", "mnc", "ome.tif", "zarr")

#: Mutations of each kind of file; 63 x 8 kinds in the full run.
COUNT = 63 if FULL else 6


def mutate(rng, work):
    """Truncate a file of `work`, or change a few bytes of its header."""
    files = [p for p in (sorted(work.rglob("*")) if work.is_dir() else [work]) if p.is_file()]
    metadata = [p for p in files if p.name == "zarr.json"]
    path = rng.choice(metadata if metadata and rng.random() < 0.7 else files)
    content = bytearray(path.read_bytes())
    if rng.random() < 0.25:
        content = content[: rng.randrange(len(content))]
    else:
        header = min(len(content), rng.choice([64, 352, 2000]))
        for _ in range(rng.choice([1, 1, 2, 8])):
            position = rng.randrange(header)
            flipped = content[position] ^ (1 << rng.randrange(8))
            content[position] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256), flipped])
    path.write_bytes(content)


def outcome(work):
    """Return ``"read"`` or the error message; a read that hangs ends the process."""
    signal.alarm(20)
    try:
        volume = mrhdata.read(work)
        # Of a file that claims to be larger than memory only a corner is read.
        part = volume if volume.nbytes < 100_000_000 else volume.isel({d: slice(0, 2) for d in volume.dims})
        np.asarray(part)
        assert volume.mrh.grid
    except MrhdataError as error:
        return str(error)
    finally:
        signal.alarm(0)
    return "read"


def read_mutated(tell, source):
    """Read mutated copies of a file with limited memory, and send the outcomes and the additional bytes of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000, 12_000_000_000))
    warnings.simplefilter("ignore")
    logging.disable()
    mrhdata.read(source).compute()
    base, outcomes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for i in range(COUNT):
        work = source.with_name(f"mutated-{i}.{source.name.partition('.')[2]}")
        (shutil.copytree if source.is_dir() else shutil.copy)(source, work)
        mutate(random.Random(f"1-{i}"), work)
        outcomes.append(outcome(work))
        (shutil.rmtree if work.is_dir() else Path.unlink)(work)
    tell((outcomes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folder with one small file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    values = np.random.default_rng(0).integers(0, 999, (9, 10, 11)).astype(np.int16)
    volume = from_array(values, affine=np.diag([1, 2, 3, 1]), name="a")
    for kind in KINDS:
        path = folder / f"a.{kind}"
        if kind == "nii":
            image = nib.Nifti1Image(values, np.eye(4))
            nib.save(image, path)
        elif kind == "mha":
            sitk.WriteImage(sitk.GetImageFromArray(values), str(path), useCompression=False)
        elif kind == "tif":
            tifffile.imwrite(path, values, photometric="minisblack", imagej=True)
        else:
            mrhdata.write(volume, path)
    return folder


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in SHORT else pytest.mark.full) for k in KINDS])
def test_mutated_files_are_read_or_raise(originals, kind):
    """Mutated files neither crash nor hang nor take more than 1 GB, and messages have one line."""
    outcomes, additional_bytes = run_in_process(read_mutated, originals / f"a.{kind}", seconds=500)
    assert len(outcomes) == COUNT
    assert not any("\n" in message for message in outcomes)
    if FULL:
        assert set(outcomes) > {"read"}
    assert additional_bytes < 1_000_000_000
