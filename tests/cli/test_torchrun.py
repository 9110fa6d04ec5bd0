"""Train commands that torchrun starts in two processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mrhdata"]
ONE = [sys.executable, "-m", "mrhdata"]

pytestmark = pytest.mark.full


def run(command, folder):
    """Run a command in a folder, with one thread per process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def train(start, out):
    """Return a command that trains two small networks, one after the other."""
    words = "train histology t2.nii --histology af.nii --mask mask.nii --epochs 2 --loop-blocks 1 --device cpu --json"
    return [*start, *words.split(), "--stride", "2", "--ensemble-size", "2", "-o", out]


def test_two_processes_train_as_one_and_write_once(files):
    """Only the first one prepares, scores and prints; losses are those of one process within rounding."""
    alone, together = run(train(ONE, "alone"), files), run(train(TWO, "together"), files)
    assert (alone.returncode, together.returncode) == (0, 0), together.stderr
    answers = [json.loads(result.stdout) for result in (alone, together)]
    assert [answer["networks"] for answer in answers] == [2, 2]
    histories = [json.loads((files / name / "history.json").read_text()) for name in ("alone", "together")]
    for losses in ("training", "validation"):
        np.testing.assert_allclose(histories[1][losses], histories[0][losses], atol=1e-5)
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--split", "1,1"], "--split must be shares of train, validation and test"),
        (["--device", "cuda:99"], "device must be auto or one that this machine has"),
    ],
)
def test_an_error_ends_both_processes(files, words, sentence):
    """Before any training, and within it."""
    result = run([*train(TWO, "net"), *words], files)
    assert result.returncode != 0
    assert sentence in result.stderr
    assert not [path for path in files.iterdir() if path.suffix != ".nii"]
