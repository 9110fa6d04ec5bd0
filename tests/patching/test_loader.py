"""The loader: one order for any number of workers, shares of ranks, and resuming from a state."""

import copy
import itertools
import json
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

import mrhdata
from mrhdata.errors import DataError, ParameterError
from mrhdata.patching.samplers import Uniform
from mrhdata.patching.tiles import TensorSource
from tests.conftest import FULL
from tests.patching.test_dataset import naive_patch, volume

#: Bytes that do not hold the stored volume, so that tiles are removed and read again.
SMALL_BUDGET = 200_000


@pytest.fixture(scope="module")
def small_patches():
    """Return 64 patches of two small volumes in memory: 10 batches of 7."""
    return mrhdata.patches(volume((12, 12, 12)), volume((12, 12, 12), seed=1), shape=3, stride=3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a stored volume of 27 chunks of 16 voxels."""
    folder = tmp_path_factory.mktemp("stored")
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=volume((40, 36, 38)).values, chunks=(16, 16, 16))
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    scale = [{"type": "scale", "scale": [0.1, 0.2, 0.3]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["multiscales"] = [image]
    return mrhdata.read(folder / "a.zarr")


@pytest.fixture(scope="module", params=["1 GB", SMALL_BUDGET])
def stored_patches(request, stored):
    """Return 60 patches of a stored volume that is read once, or tile by tile with a small budget."""
    return mrhdata.patches(stored, shape=6, sampler=Uniform(60), memory=request.param)


def positions_of(loader):
    """Return the positions of the batches of one pass."""
    return [tuple(map(tuple, metadata["position"].tolist())) for *_, metadata in loader]


def call_with_timeout(seconds, call):
    """Return or raise the result of a call, and fail if it hangs."""
    results = []

    def run():
        try:
            results.append((call(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        pytest.fail(f"the call still runs after {seconds} s")
    value, error = results[0]
    if error is not None:
        raise error
    return value


class TestWorkers:
    """Worker processes divide the batches, not the patches."""

    @pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
    @pytest.mark.parametrize(
        ("workers", "memory"),
        list(itertools.product((1, 2, 4), ("1 GB", SMALL_BUDGET))) if FULL else [(1, "1 GB"), (2, SMALL_BUDGET)],
    )
    def test_batches_are_equal_with_and_without_workers(self, stored, workers, memory):
        """The workers are fresh processes of a forkserver; the full test also compares a second epoch."""
        p = mrhdata.patches(stored, shape=6, sampler=Uniform(60), memory=memory)
        single, parallel = (
            p.loader(7, seed=3, return_metadata=True),
            p.loader(7, seed=3, return_metadata=True, num_workers=workers),
        )
        for _ in range(2 if FULL else 1):
            batches = list(zip(single, parallel, strict=True))
            assert len(batches) == 9
            for (x, metadata), (other_x, other_metadata) in batches:
                assert metadata["position"].tolist() == other_metadata["position"].tolist()
                torch.testing.assert_close(x, other_x, rtol=0, atol=0)

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
    @pytest.mark.parametrize("start", [0, 1, 5])
    def test_workers_take_batches_in_turn(self, stored_patches, count, start):
        """Batches taken in turn from all workers equal those of one worker, also from the middle of an epoch."""
        whole = [indices.tolist() for indices, _ in stored_patches.batches(7, seed=1)][start:]
        parts = [
            [indices.tolist() for indices, _ in stored_patches.batches(7, seed=1, start=start, worker=(w, count))]
            for w in range(count)
        ]
        assert [parts[i % count][i // count] for i in range(len(whole))] == whole
        assert sum(map(len, parts)) == len(whole)

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_forked_workers_yield_the_same_batches(self, stored_patches):
        """Threads and decoders of the parent do not disturb its children."""
        list(stored_patches.batches(7))
        loader = stored_patches.loader(7, seed=2, return_metadata=True, num_workers=2, multiprocessing_context="fork")
        assert call_with_timeout(60, lambda: positions_of(loader)) == positions_of(
            stored_patches.loader(7, seed=2, return_metadata=True)
        )

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_plain_dataloader_yields_each_patch_once(self, small_patches):
        """PyTorch's own loader reads the data set with two workers, epoch by epoch."""
        batches = small_patches.dataset(5, seed=1, return_metadata=True)
        loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork")
        orders = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            orders.append(call_with_timeout(60, lambda: positions_of(loader)))
            assert len(orders[-1]) == len(loader) == 13
            assert sorted(p for batch in orders[-1] for p in batch) == sorted(
                map(tuple, small_patches.positions.tolist())
            )
        assert orders[0] != orders[1]

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize(
        "copied", [lambda batches: batches, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
    )
    def test_workers_that_live_on_see_the_next_epoch(self, small_patches, copied):
        """Persistent workers yield the batches of new workers in each epoch, also those of a copied data set."""
        batches = copied(small_patches.dataset(5, seed=1, return_metadata=True))
        options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
        loader = DataLoader(batches, persistent_workers=True, **options)
        for epoch, start in ((0, 0), (1, 0), (5, 3)):
            batches.set_epoch(epoch, start)
            assert (batches.epoch, batches.start) == (epoch, start)
            expected = [tuple(map(tuple, m["position"].tolist())) for *_, m in batches]
            assert call_with_timeout(60, lambda: positions_of(loader)) == expected
            assert len(expected) == 13 - start

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_two_passes_of_one_loader_at_the_same_time_are_two_epochs(self, small_patches):
        """The second pass does not change the epoch of the workers of the first."""
        loader, other = (
            small_patches.loader(7, return_metadata=True, num_workers=w, multiprocessing_context="fork") for w in (1, 0)
        )
        pairs = call_with_timeout(
            60, lambda: positions_of(m for a, b in zip(loader, loader, strict=True) for m in (a, b))
        )
        assert [pairs[::2], pairs[1::2]] == [positions_of(other), positions_of(other)]

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_workers_resume_in_the_middle_of_an_epoch(self, small_patches):
        """The state counts the batches that were delivered, not those that workers prepared ahead."""
        loader = small_patches.loader(7, return_metadata=True, num_workers=2, multiprocessing_context="fork")

        def first_three():
            for number, _ in enumerate(loader):
                if number == 2:
                    return loader.state_dict()
            raise AssertionError("there are more batches")

        state = call_with_timeout(60, first_three)
        assert state["batch"] == 3
        loader.load_state_dict(state)
        assert (
            call_with_timeout(60, lambda: positions_of(loader))
            == positions_of(small_patches.loader(7, return_metadata=True))[3:]
        )

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_leaving_the_loop_ends_worker_processes(self, small_patches):
        """No process remains, and the next loop is the next epoch."""
        loader = small_patches.loader(7, return_metadata=True, num_workers=2, multiprocessing_context="fork")

        def first():
            for _ in loader:
                break

        call_with_timeout(60, first)
        assert not multiprocessing.active_children()
        expected = small_patches.loader(7, return_metadata=True)
        list(expected)
        assert call_with_timeout(60, lambda: positions_of(loader)) == positions_of(expected)

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_batches_of_workers_are_moved_to_the_device(self, small_patches):
        """Batches are on the device with and without workers."""
        for workers in (0, 1):
            loader = small_patches.loader(40, device="meta", num_workers=workers, multiprocessing_context="fork")
            devices = call_with_timeout(60, lambda loader=loader: [x.device.type for x, _ in loader])
            assert devices == ["meta", "meta"]


class TestRanks:
    """Processes that train together divide the patches of an epoch."""

    @pytest.mark.parametrize("ranks", [2, 3])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_ranks_divide_the_patches(self, stored_patches, ranks, shuffle):
        """Shares are disjoint and complete, differ by at most one patch, and do not depend on workers."""
        parts = [
            np.concatenate([r for r, _ in stored_patches.batches(7, shuffle=shuffle, rank=(i, ranks))])
            for i in range(ranks)
        ]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(stored_patches)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for i, part in enumerate(parts):
            halves = [
                list(stored_patches.batches(7, shuffle=shuffle, rank=(i, ranks), worker=(w, 2))) for w in range(2)
            ]
            count = len(halves[0]) + len(halves[1])
            indices = np.concatenate([halves[b % 2][b // 2][0] for b in range(count)])
            np.testing.assert_array_equal(indices, part)
            x = np.concatenate([halves[b % 2][b // 2][1][0] for b in range(count)])
            np.testing.assert_array_equal(x, stored_patches.gather(indices)[0])

    @pytest.mark.parametrize("ranks", [1, 2, 3, 5])
    @pytest.mark.parametrize("batch_size", [1, 5, 7, 13, 70])
    def test_drop_last_yields_equal_numbers_of_full_batches(self, small_patches, ranks, batch_size):
        """All ranks have the same number of full batches; without `drop_last` the length is as announced."""
        batch_counts = set()
        for rank in range(ranks):
            loader = small_patches.loader(batch_size, rank=(rank, ranks), drop_last=True)
            sizes = [len(x) for x, _ in loader]
            assert set(sizes) <= {batch_size}
            assert len(sizes) == len(loader) == 64 // ranks // batch_size
            batch_counts.add(len(sizes))
            whole = small_patches.loader(batch_size, rank=(rank, ranks))
            assert len(list(whole)) == len(whole)
        assert len(batch_counts) == 1

    @pytest.mark.parametrize("count", [1, 7, 10, 64])
    @pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_all_ranks_have_as_many_batches(self, small_patches, count, ranks, drop_last, shuffle):
        """No patch is twice in one rank; without `drop_last` none is lost, and fewer than `ranks` are repeated."""
        patches = small_patches._subset(np.arange(count))
        options = {"drop_last": drop_last, "shuffle": shuffle, "return_metadata": True, "seed": 2}
        loaders = [patches.loader(3, rank=(r, ranks), **options) for r in range(ranks)]
        shares = [positions_of(loader) for loader in loaders]
        assert {len(share) for share in shares} == {len(loader) for loader in loaders}
        assert len({tuple(map(len, share)) for share in shares}) == 1
        shares = [[position for batch in share for position in batch] for share in shares]
        assert all(len(set(share)) == len(share) for share in shares)
        everything = [position for share in shares for position in share]
        if drop_last:
            assert len(set(everything)) == len(everything) == count // ranks // 3 * 3 * ranks
        else:
            assert set(everything) == set(map(tuple, patches.positions.tolist()))
            assert len(everything) == -(-count // ranks) * ranks

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_workers_of_ranks_divide_their_batches(self, stored_patches, workers):
        """Batches of the workers of one rank, taken in turn, are those of the rank without workers."""
        for rank in range(7):
            options = {"seed": 1, "rank": (rank, 7), "even": True}
            whole = [i.tolist() for i, _ in stored_patches.batches(2, **options)]
            parts = [
                [i.tolist() for i, _ in stored_patches.batches(2, worker=(w, workers), **options)]
                for w in range(workers)
            ]
            assert [parts[b % workers][b // workers] for b in range(len(whole))] == whole
            assert sum(map(len, parts)) == len(whole) == 5

    def test_repeated_patches_are_logged(self, small_patches, caplog):
        """One process tells how many repeat a patch; an even division is silent."""
        caplog.set_level("INFO", "mrhdata")
        for ranks in (2, 3):
            for rank in range(ranks):
                small_patches.dataset(7, rank=(rank, ranks))
        assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
            "64 patches cannot be divided among 3 processes"
        ]

    @pytest.mark.parametrize("rank", [(2, 2), (-1, 2), (0, 0)])
    def test_invalid_ranks_and_batch_sizes_raise_parameter_error(self, small_patches, rank):
        """Ranks run from 0 to one less than the number of processes; batches have at least one patch."""
        with pytest.raises(ParameterError, match=r"rank must be \(number of this process from 0"):
            small_patches.loader(4, rank=rank)
        with pytest.raises(ParameterError, match="batch_size must be 1 or more; got 0"):
            small_patches.loader(0)

    def test_more_ranks_than_patches(self):
        """A rank without patches has no batches."""
        v = volume((40, 40, 40), chunks=8, dtype=np.float64)
        p = mrhdata.patches(v, shape=4, sampler=Uniform(2), memory=300_000)
        assert sorted(len(list(p.batches(1, rank=(r, 3)))) for r in range(3)) == [0, 1, 1]


class TestResume:
    """A run resumed after any batch continues like the uninterrupted run."""

    def passes(self, loader, epochs):
        """Return the positions of the batches of several passes."""
        return [batch for _ in range(epochs) for batch in positions_of(loader)]

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_resume_after_every_batch(self, small_patches, shuffle):
        """All 21 states of two epochs resume in a fresh loader and in the stopped one; a state is plain JSON."""
        whole = self.passes(small_patches.loader(7, seed=1, return_metadata=True, shuffle=shuffle), 3)
        assert len(whole) == 30
        stopped = small_patches.loader(7, seed=1, return_metadata=True, shuffle=shuffle)
        states = [stopped.state_dict()]
        for _ in range(2):
            for _ in stopped:
                states.append(stopped.state_dict())
        for k, state in enumerate(states):
            state = json.loads(json.dumps(state))
            for loader in (small_patches.loader(7, seed=1, return_metadata=True, shuffle=shuffle), stopped):
                loader.load_state_dict(state)
                epochs = 3 - k // 10
                assert self.passes(loader, epochs) == whole[k:]
                assert loader.state_dict()["epoch"] == 2

    def test_resume_yields_the_same_values_with_a_small_budget(self, stored_patches):
        """Resume after a few batches and across the end of an epoch."""
        whole = [x for loader in [stored_patches.loader(9, seed=5)] for _ in range(2) for x in loader]
        for k in (1, 4, 6, 7, 11):
            stopped = stored_patches.loader(9, seed=5)
            passes = (x for _ in range(2) for x in stopped)
            for _ in range(k):
                next(passes)
            state = stopped.state_dict()
            passes.close()
            fresh = stored_patches.loader(9, seed=5)
            fresh.load_state_dict(state)
            rest = [x for _ in range(2 - k // 7) for x in fresh]
            assert len(rest) == 14 - k
            for x, expected in zip(rest, whole[k:], strict=True):
                torch.testing.assert_close(x, expected, rtol=0, atol=0)

    def test_state_is_unchanged_by_loading_and_saving(self, small_patches):
        """A state is loaded and taken again before any batch, also at the end of an epoch."""
        loader = small_patches.loader(7, return_metadata=True)
        for number, _ in enumerate(loader):
            if number == 3:
                break
        fresh = small_patches.loader(7, return_metadata=True)
        fresh.load_state_dict(loader.state_dict())
        assert fresh.state_dict() == loader.state_dict()
        ended = small_patches.loader(7, return_metadata=True)
        list(ended)
        fresh.load_state_dict(ended.state_dict())
        again = small_patches.loader(7, return_metadata=True)
        again.load_state_dict(fresh.state_dict())
        assert positions_of(again) == positions_of(ended)

    @pytest.mark.parametrize(
        ("other", "key"),
        [
            ({"batch_size": 8}, "batch_size"),
            ({"seed": 1}, "seed"),
            ({"rank": (1, 2)}, "rank"),
            ({"rank": (0, 2)}, "ranks"),
        ],
    )
    def test_states_of_other_loaders_raise_data_error(self, small_patches, other, key):
        """The message has the values of both loaders: batch size, seed or rank."""
        state = small_patches.loader(**{"batch_size": 7} | other).state_dict()
        with pytest.raises(DataError, match=rf"must come from an equal loader, .*'{key}'.*; got one of .*'{key}'"):
            small_patches.loader(7).load_state_dict(state)
        with pytest.raises(DataError, match="must come from an equal loader"):
            small_patches.loader(7).load_state_dict({})

    def test_states_of_other_patches_raise_data_error(self, small_patches):
        """The other loader has another number of patches."""
        other = mrhdata.patches(volume((12, 12, 12)), shape=3, stride=2)
        with pytest.raises(DataError, match=r"'patches': 64.*'patches': 216"):
            small_patches.loader(7).load_state_dict(other.loader(7).state_dict())

    @pytest.mark.parametrize("case", ["shuffle", "positions", "memory"])
    def test_states_of_another_order_raise_or_resume_correctly(self, case):
        """Order, positions, or budget differ; a state that is accepted must resume in the same order."""
        v = volume((64, 64, 64), chunks=8, dtype=np.float32)
        p = mrhdata.patches(v, shape=9, sampler=Uniform(40), memory=450_000)
        others = {
            "shuffle": lambda: p.loader(4, return_metadata=True, shuffle=False),
            "positions": lambda: mrhdata.patches(v, shape=9, sampler=Uniform(40), memory=450_000, seed=1).loader(
                4, return_metadata=True
            ),
            "memory": lambda: mrhdata.patches(v, shape=9, sampler=Uniform(40)).loader(4, return_metadata=True),
        }
        loader, other = p.loader(4, return_metadata=True), others[case]()
        try:
            other.load_state_dict(loader.state_dict())
        except DataError:
            return
        assert positions_of(other) == positions_of(loader)


class TestBatches:
    """Content of batches: transforms, metadata."""

    def test_transform_receives_and_returns_a_batch(self, small_patches):
        """The transform receives input and target; the loader yields its result."""
        plain = list(small_patches.loader(7, seed=1))
        changed = list(
            small_patches.loader(7, seed=1, transform=lambda x, y: (2 * x, {"mean": y.mean(dim=(1, 2, 3, 4))}))
        )
        assert len(plain) == len(changed) == 10
        for (x, y), (twice, means) in zip(plain, changed, strict=True):
            torch.testing.assert_close(twice, 2 * x)
            torch.testing.assert_close(means["mean"], y.mean(dim=(1, 2, 3, 4)))

    def test_per_patch_transform_receives_single_patches(self, small_patches):
        """Tensors have no batch axis and results are stacked; also without a target, and with named inputs."""
        shapes = set()

        def turned(x, y):
            shapes.add((tuple(x.shape), tuple(y.shape)))
            return x.flip(-1) * x[0, 0, 0, 0], y[:, 0]

        for (x, y), (a, b) in zip(
            small_patches.loader(7, seed=1), small_patches.loader(7, seed=1, per_patch_transform=turned), strict=True
        ):
            torch.testing.assert_close(a, torch.stack([one.flip(-1) * one[0, 0, 0, 0] for one in x]))
            torch.testing.assert_close(b, y[:, :, 0])
        assert shapes == {((1, 3, 3, 3), (1, 3, 3, 3))}
        v = volume()
        (x,) = mrhdata.patches(v, shape=3).loader(99, shuffle=False)
        (a,) = mrhdata.patches(v, shape=3).loader(99, shuffle=False, per_patch_transform=lambda x: x + 1)
        torch.testing.assert_close(a, x + 1)
        named = mrhdata.patches({"a": v, "b": v}, shape=3, grids="native")
        (a,) = named.loader(99, shuffle=False, per_patch_transform=lambda x: {"sum": x["a"] + x["b"]})
        torch.testing.assert_close(a["sum"], 2 * x)

    @pytest.mark.parametrize("target", [True, False])
    def test_metadata_has_subject_position_and_affine(self, target):
        """The patch equals the voxels at the subject and position, and the affine maps them to the world."""
        subjects = [volume((9, 9, 9), seed=s, affine=np.diag([1.0, 2, 3, 1]) + s * np.eye(4, k=3)) for s in range(3)]
        p = mrhdata.patches(subjects, subjects if target else None, shape=(2, 3, 4), sampler=Uniform(40))
        seen = []
        for x, *y, metadata in p.loader(6, return_metadata=True):
            assert len(y) == target
            assert sorted(metadata) == ["affine", "position", "subject"]
            assert metadata["affine"].shape == (len(x), 4, 4)
            values = (metadata[key].numpy() for key in ("subject", "position", "affine"))
            for patch, s, position, affine in zip(x, *values, strict=True):
                np.testing.assert_array_equal(patch, naive_patch(subjects[s], position, p.shape))
                last = np.array([1, 2, 3])
                np.testing.assert_allclose(affine @ [*last, 1], [*subjects[s].mrh.world(position + last), 1])
                seen.append((int(s), *position.tolist()))
        assert sorted(seen) == sorted((int(s), *c) for s, c in zip(p.subject, p.positions.tolist(), strict=True))

    def test_metadata_is_not_passed_to_the_transform(self, small_patches):
        """A transform receives only the tensors."""
        batches = list(small_patches.loader(7, return_metadata=True, transform=lambda x, y: (x, y)))
        assert len(batches) == 10
        for x, y, metadata in batches:
            assert len(x) == len(y) == len(metadata["position"])


class TestThreads:
    """Threads that read ahead end with the loop."""

    def test_leaving_the_loop_ends_threads(self, stored_patches):
        """No thread remains, and the next loop is the next epoch."""
        before = set(threading.enumerate())
        loader = stored_patches.loader(4, seed=2, return_metadata=True)
        for _ in range(3):
            for _ in loader:
                break
            assert set(threading.enumerate()) <= before
        assert loader.epoch == 2
        whole = [
            positions_of(one) for one in [stored_patches.loader(4, seed=2, return_metadata=True)] for _ in range(4)
        ]
        assert positions_of(loader) == whole[3]
        assert set(threading.enumerate()) <= before

    @pytest.mark.parametrize("memory", ["1 GB", 380_000])
    @pytest.mark.parametrize("nth", [0, 1, 5])
    def test_errors_of_readers_are_raised_in_the_loop(self, stored, monkeypatch, nth, memory):
        """The error is raised unchanged for any tile; the loop does not hang and no thread remains."""
        before = set(threading.enumerate())
        counts = iter(range(10_000))
        plain = TensorSource.read

        def fails(source, tile, buffer=None):
            if next(counts) == nth:
                raise OSError("the disk is gone")
            return plain(source, tile, buffer)

        p = mrhdata.patches(stored, shape=18, sampler=Uniform(30), memory=memory)
        monkeypatch.setattr(TensorSource, "read", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            call_with_timeout(60, lambda: list(p.loader(2)))
        assert set(threading.enumerate()) <= before

    def test_errors_of_a_transform_are_raised_in_the_loop(self, small_patches):
        """The error is raised after the batches before it."""
        count = iter(range(100))

        def fails(x, y):
            if next(count) == 4:
                raise KeyError("four")
            return x, y

        seen = []
        before = set(threading.enumerate())
        with pytest.raises(KeyError, match="four"):
            call_with_timeout(60, lambda: seen.extend(small_patches.loader(7, transform=fails, prefetch=1)))
        assert len(seen) <= 4
        assert set(threading.enumerate()) <= before

    def test_errors_in_the_loop_end_threads(self, small_patches):
        """If the training step raises an error, no thread remains."""
        before = set(threading.enumerate())

        def step():
            for number, _ in enumerate(small_patches.loader(7)):
                if number == 2:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            call_with_timeout(60, step)
        assert set(threading.enumerate()) <= before

    def test_two_loaders_run_at_once(self, small_patches):
        """Two loaders of the same patches do not disturb each other."""
        pairs = list(
            zip(
                small_patches.loader(7, seed=1, return_metadata=True),
                small_patches.loader(7, seed=2, return_metadata=True),
                strict=True,
            )
        )
        assert len(pairs) == 10
        for seed, side in ((1, 0), (2, 1)):
            expected = small_patches.loader(7, seed=seed, return_metadata=True)
            for (x, _, metadata), batch in zip(expected, (pair[side] for pair in pairs), strict=True):
                assert metadata["position"].tolist() == batch[2]["position"].tolist()
                torch.testing.assert_close(x, batch[0])
