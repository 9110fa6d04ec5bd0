"""Damaged files: mutated headers and truncations end in one clear error, or in voxels."""

import resource
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

import mrhdata
from mrhdata.volume import from_array
from tests.conftest import FULL

KINDS = ["nii", "nii.gz", "nrrd", "mha", "mnc", "tif", "ome.tif", "zarr"]
#: Those of the short form, since each is a process of its own.
SHORT = ("nii.gz", "mnc", "ome.tif", "zarr")

#: Mutations of each kind of file; 63 x 8 kinds in the long form.
COUNT = 63 if FULL else 6

#: Reads mutated copies of one file in a process whose memory is limited, and prints what came of each.
CHILD = textwrap.dedent(
    """
    import logging, random, resource, shutil, signal, sys, warnings
    from pathlib import Path
    import numpy as np
    import mrhdata
    from mrhdata.errors import MrhdataError
    source, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    logging.disable()
    mrhdata.read(source).compute()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def mutate(rng, work):
        files = [p for p in (sorted(work.rglob("*")) if work.is_dir() else [work]) if p.is_file()]
        metadata = [p for p in files if p.name == "zarr.json"]
        path = rng.choice(metadata if metadata and rng.random() < 0.7 else files)
        content = bytearray(path.read_bytes())
        if rng.random() < 0.25:
            content = content[: rng.randrange(len(content))]
        else:
            header = min(len(content), rng.choice([64, 352, 2000]))
            for _ in range(rng.choice([1, 1, 2, 8])):
                at = rng.randrange(header)
                flipped = content[at] ^ (1 << rng.randrange(8))
                content[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256), flipped])
        path.write_bytes(content)

    def late(*_):
        raise SystemExit("hangs")

    signal.signal(signal.SIGALRM, late)
    for i in range(count):
        rng = random.Random(f"{seed}-{i}")
        work = source.with_name(f"mutated-{i}.{source.name.partition('.')[2]}")
        (shutil.copytree if source.is_dir() else shutil.copy)(source, work)
        mutate(rng, work)
        signal.alarm(20)
        try:
            volume = mrhdata.read(work)
            # What claims to be larger than memory is opened, as any large file is; a corner is read.
            part = volume if volume.nbytes < 100_000_000 else volume.isel({d: slice(0, 2) for d in volume.dims})
            np.asarray(part)
            volume.mrh.grid
            print("read")
        except MrhdataError as error:
            assert "\\n" not in str(error), error
            print("refused")
        signal.alarm(0)
        (shutil.rmtree if work.is_dir() else Path.unlink)(work)
    print("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
    """
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One small file of each kind."""
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
def test_mutated_files_are_read_or_refused(originals, kind):
    """No crash, no hang, no more than 1 GB, one sentence each."""
    command = [sys.executable, "-c", CHILD, str(originals / f"a.{kind}"), str(COUNT), "1"]
    limit = 12_000_000_000

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *outcomes, peak = done.stdout.split("\n")[:-1]
    assert len(outcomes) == COUNT
    assert set(outcomes) <= {"read", "refused"}
    if FULL:
        assert "refused" in outcomes
    assert int(peak.split()[1]) < 1_000_000_000
