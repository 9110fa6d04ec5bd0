"""One network trained by several processes, compared with one process."""

import os
import socket

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import ModelError
from mrhdata.training import TrainingConfig
from mrhdata.training.processes import Processes, current_processes, lost_process_errors
from tests.processes import FORKED

#: Steps per epoch 3, of which the last is short; two epochs.
SETTINGS = TrainingConfig(epochs=2, batch_size=24, noise=0.0, device="cpu")


def patches():
    """Return patches of a random volume, 60 in all."""
    values = np.random.default_rng(0).random((3, 6, 7)).astype(np.float32)
    volume = mrhdata.from_array(values, spacing=(1, 1, 1), name="a")
    target = mrhdata.from_array(3 * values + 1, spacing=(1, 1, 1))
    return mrhdata.patches(volume, target, shape=3, stride=1, plane="axial")


def train(rank, count, port, folder, interrupt):
    """Train in one of several processes, and write its losses and weights."""
    torch.set_num_threads(1)
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    model = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1, seed=0)
    if interrupt:
        from mrhdata.training.run import TrainingRun

        epoch = TrainingRun.epoch

        def end_in_second(self, *arguments):
            if len(self.history.training) == 1:
                os._exit(9)
            epoch(self, *arguments)

        if rank == count - 1:
            TrainingRun.epoch = end_in_second
    try:
        history = mrhdata.fit(model, patches(), patches(), SETTINGS, checkpoint=folder / "run.pt", progress=False)
    except ModelError as error:
        (folder / f"error-{rank}").write_text(str(error))
        return
    weights = torch.cat([p.detach().ravel() for p in model.parameters()])
    torch.save({"training": history.training, "validation": history.validation, "weights": weights}, folder / f"{rank}")


def run(count, folder, interrupt=False):
    """Train in `count` processes and return what each wrote, or None for those that ended early."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [FORKED.Process(target=train, args=(r, count, port, folder, interrupt)) for r in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode is not None
    return [torch.load(folder / f"{r}") if (folder / f"{r}").exists() else None for r in range(count)]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_processes_take_the_steps_of_one(count, tmp_path):
    """Losses are those of one process within rounding, and weights of all processes are equal."""
    (alone,) = run(1, tmp_path / "alone")
    together = run(count, tmp_path / "together")
    for result in together:
        np.testing.assert_allclose(result["training"], alone["training"], atol=1e-5)
        np.testing.assert_allclose(result["validation"], alone["validation"], atol=1e-5)
        assert torch.equal(result["weights"], together[0]["weights"])
    assert not torch.equal(alone["weights"], torch.zeros_like(alone["weights"]))


@pytest.mark.full
def test_training_resumes_after_a_process_was_killed(tmp_path):
    """The others end with one sentence; a second run continues from the checkpoint to the same losses."""
    whole = run(2, tmp_path / "whole")
    interrupted = run(2, tmp_path / "killed", interrupt=True)
    assert interrupted == [None, None]
    assert "a process of the training ended" in (tmp_path / "killed" / "error-0").read_text()
    resumed = run(2, tmp_path / "killed")
    assert resumed[0]["training"] == whole[0]["training"]
    assert torch.equal(resumed[0]["weights"], whole[0]["weights"])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_parts_of_batches_lose_and_double_no_patch(count):
    """The parts of all processes together are the batches of one process, also of the last, short batch."""
    whole = [set(indices.tolist()) for indices, _ in patches().batches(24, seed=1)]
    parts = [[indices.tolist() for indices, _ in patches().batches(24, seed=1, part=(r, count))] for r in range(count)]
    assert [len(batches) for batches in parts] == [len(whole)] * count
    for number, batch in enumerate(whole):
        joined = [index for batches in parts for index in batches[number]]
        assert set(joined) == batch
        assert len(joined) == len(batch)


def test_a_process_without_a_patch_of_a_short_batch_gets_its_first_one():
    """It must take part in the step, with weight 0."""
    last = [[i.tolist() for i, _ in patches().batches(59, part=(r, 3), shuffle=False)][-1] for r in range(3)]
    assert len(patches()) == 60
    assert last == [[59], [59], [59]]


def test_one_process_is_the_first_and_sums_alone():
    assert current_processes() == Processes(0, 1)
    assert Processes().first
    assert Processes().sum([1.5, 2]).tolist() == [1.5, 2.0]


def test_errors_of_other_kinds_pass():
    with pytest.raises(RuntimeError, match="shape"), lost_process_errors():
        raise RuntimeError("shape mismatch")
    with pytest.raises(ModelError, match="a process of the training ended"), lost_process_errors():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
