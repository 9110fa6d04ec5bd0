"""The loader: one order whatever the workers, parts for ranks, and a place that it goes on from."""

import itertools
import json
import multiprocessing
import threading

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

import mrhdata
from mrhdata.errors import DataError
from mrhdata.patching.samplers import Uniform
from mrhdata.patching.tiles import TensorSource
from tests.conftest import FULL
from tests.patching.test_dataset import naive, volume

#: Does not hold the volume below, so that tiles come and go.
LITTLE = 200_000


@pytest.fixture(scope="module")
def few():
    """64 patches of two small volumes in memory: 10 batches of 7."""
    return mrhdata.patches(volume((12, 12, 12)), volume((12, 12, 12), seed=1), shape=3, stride=3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A volume in 27 chunks of 16."""
    folder = tmp_path_factory.mktemp("stored")
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=volume((40, 36, 38)).values, chunks=(16, 16, 16))
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    scale = [{"type": "scale", "scale": [0.1, 0.2, 0.3]}]
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["multiscales"] = [image]
    return mrhdata.read(folder / "a.zarr")


@pytest.fixture(scope="module", params=["1 GB", LITTLE])
def many(request, stored):
    """60 patches of a stored volume: read once, or tile by tile within a budget."""
    return mrhdata.patches(stored, shape=6, sampler=Uniform(60), memory=request.param)


def places(loader):
    """Positions of the batches of one pass."""
    return [tuple(map(tuple, where["position"].tolist())) for *_, where in loader]


def within(seconds, call):
    """What a call returns or raises, and a failure where it hangs."""
    found = []

    def run():
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        pytest.fail(f"it still runs after {seconds} s")
    value, error = found[0]
    if error is not None:
        raise error
    return value


class TestWorkers:
    """Processes share out the batches, not the patches."""

    @pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
    @pytest.mark.parametrize(
        ("workers", "memory"),
        list(itertools.product((1, 2, 4), ("1 GB", LITTLE))) if FULL else [(1, "1 GB"), (2, LITTLE)],
    )
    def test_the_order_is_that_of_none(self, stored, workers, memory):
        """Each batch, and in the long form those of a second epoch, from fresh processes of a forkserver."""
        p = mrhdata.patches(stored, shape=6, sampler=Uniform(60), memory=memory)
        alone, shared = (
            p.loader(7, seed=3, return_metadata=True),
            p.loader(7, seed=3, return_metadata=True, num_workers=workers),
        )
        for _ in range(2 if FULL else 1):
            for (x, where), (same, there) in zip(alone, shared, strict=True):
                assert where["position"].tolist() == there["position"].tolist()
                torch.testing.assert_close(x, same, rtol=0, atol=0)

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
    @pytest.mark.parametrize("start", [0, 1, 5])
    def test_each_takes_every_so_many_th_batch(self, many, count, start):
        """Batches taken in turn from all workers are those of one, also from the middle of an epoch."""
        whole = [rows.tolist() for rows, _ in many.stream(7, seed=1)][start:]
        parts = [
            [rows.tolist() for rows, _ in many.stream(7, seed=1, start=start, worker=(w, count))] for w in range(count)
        ]
        assert [parts[i % count][i // count] for i in range(len(whole))] == whole
        assert sum(map(len, parts)) == len(whole)

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_forks_of_this_process_do_too(self, many):
        """Threads and decoders of this process do no harm to its children."""
        list(many.stream(7))
        loader = many.loader(7, seed=2, return_metadata=True, num_workers=2, multiprocessing_context="fork")
        assert within(60, lambda: places(loader)) == places(many.loader(7, seed=2, return_metadata=True))

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_a_plain_dataloader_gives_each_patch_once(self, few):
        """PyTorch's own loader over the data set, with two workers, epoch by epoch."""
        batches = few.dataset(5, seed=1, return_metadata=True)
        loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork")
        orders = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            orders.append(within(60, lambda: places(loader)))
            assert len(orders[-1]) == len(loader) == 13
            assert sorted(p for batch in orders[-1] for p in batch) == sorted(map(tuple, few.positions.tolist()))
        assert orders[0] != orders[1]

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_they_go_on_in_the_middle_too(self, few):
        """With workers a state holds what was handed out, not what they have made ahead."""
        loader = few.loader(7, return_metadata=True, num_workers=2, multiprocessing_context="fork")

        def first_three():
            for number, _ in enumerate(loader):
                if number == 2:
                    return loader.state_dict()
            raise AssertionError("there are more batches")

        state = within(60, first_three)
        assert state["batch"] == 3
        loader.load_state_dict(state)
        assert within(60, lambda: places(loader)) == places(few.loader(7, return_metadata=True))[3:]

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_breaking_out_ends_them(self, few):
        """No process is left, and the next loop is the next epoch."""
        loader = few.loader(7, return_metadata=True, num_workers=2, multiprocessing_context="fork")

        def first():
            for _ in loader:
                break

        within(60, first)
        assert not multiprocessing.active_children()
        expected = few.loader(7, return_metadata=True)
        list(expected)
        assert within(60, lambda: places(loader)) == places(expected)

    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_their_batches_are_moved_too(self, few):
        """To the device, as without workers."""
        for workers in (0, 1):
            loader = few.loader(40, device="meta", num_workers=workers, multiprocessing_context="fork")
            devices = within(60, lambda loader=loader: [x.device.type for x, _ in loader])
            assert devices == ["meta", "meta"]


class TestRanks:
    """Processes that train together see each patch once between them."""

    @pytest.mark.parametrize("ranks", [2, 3])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_they_share_the_patches(self, many, ranks, shuffle):
        """Disjoint, together all, numbers that differ by one at most, the same order for any workers."""
        parts = [np.concatenate([r for r, _ in many.stream(7, shuffle=shuffle, rank=(i, ranks))]) for i in range(ranks)]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(many)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for i, part in enumerate(parts):
            halves = [list(many.stream(7, shuffle=shuffle, rank=(i, ranks), worker=(w, 2))) for w in range(2)]
            count = len(halves[0]) + len(halves[1])
            rows = np.concatenate([halves[b % 2][b // 2][0] for b in range(count)])
            np.testing.assert_array_equal(rows, part)
            x = np.concatenate([halves[b % 2][b // 2][1][0] for b in range(count)])
            np.testing.assert_array_equal(x, many.gather(rows)[0])

    @pytest.mark.parametrize("ranks", [1, 2, 3, 5])
    @pytest.mark.parametrize("batch_size", [1, 5, 7, 13, 70])
    def test_drop_last_gives_all_as_many(self, few, ranks, batch_size):
        """Full batches alone, and as many for every rank; without it as many as it says."""
        numbers = set()
        for rank in range(ranks):
            loader = few.loader(batch_size, rank=(rank, ranks), drop_last=True)
            sizes = [len(x) for x, _ in loader]
            assert set(sizes) <= {batch_size}
            assert len(sizes) == len(loader) == 64 // ranks // batch_size
            numbers.add(len(sizes))
            whole = few.loader(batch_size, rank=(rank, ranks))
            assert len(list(whole)) == len(whole)
        assert len(numbers) == 1

    @pytest.mark.parametrize("rank", [(2, 2), (-1, 2), (0, 0)])
    def test_ranks_that_do_not_exist_are_refused(self, few, rank):
        """Numbers run from 0 to one less than there are; batches hold one patch or more."""
        with pytest.raises(DataError, match="rank is its number from 0"):
            few.loader(4, rank=rank)
        with pytest.raises(DataError, match="batch_size is 1 or more, not 0"):
            few.loader(0)

    def test_more_ranks_than_patches(self):
        """A rank without a patch has no batch."""
        v = volume((40, 40, 40), chunks=8, dtype=np.float64)
        p = mrhdata.patches(v, shape=4, sampler=Uniform(2), memory=300_000)
        assert sorted(len(list(p.batches(1, rank=(r, 3)))) for r in range(3)) == [0, 1, 1]


class TestResume:
    """From the state after any batch, the rest is that of the run that was not stopped."""

    def passes(self, loader, epochs):
        """Batches of several passes."""
        return [batch for _ in range(epochs) for batch in places(loader)]

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_after_every_batch(self, few, shuffle):
        """All 21 places in two epochs, in a fresh loader and in the one that was stopped; the state is plain JSON."""
        whole = self.passes(few.loader(7, seed=1, return_metadata=True, shuffle=shuffle), 3)
        assert len(whole) == 30
        stopped = few.loader(7, seed=1, return_metadata=True, shuffle=shuffle)
        states = [stopped.state_dict()]
        for _ in range(2):
            for _ in stopped:
                states.append(stopped.state_dict())
        for k, state in enumerate(states):
            state = json.loads(json.dumps(state))
            for loader in (few.loader(7, seed=1, return_metadata=True, shuffle=shuffle), stopped):
                loader.load_state_dict(state)
                epochs = 3 - k // 10
                assert self.passes(loader, epochs) == whole[k:]
                assert loader.state_dict()["epoch"] == 2

    def test_with_tiles_that_come_and_go(self, many):
        """The values too, after a few batches and across the end of an epoch."""
        whole = [x for loader in [many.loader(9, seed=5)] for _ in range(2) for x in loader]
        for k in (1, 4, 6, 7, 11):
            stopped = many.loader(9, seed=5)
            passes = (x for _ in range(2) for x in stopped)
            for _ in range(k):
                next(passes)
            state = stopped.state_dict()
            passes.close()
            fresh = many.loader(9, seed=5)
            fresh.load_state_dict(state)
            rest = [x for _ in range(2 - k // 7) for x in fresh]
            assert len(rest) == 14 - k
            for x, same in zip(rest, whole[k:], strict=True):
                torch.testing.assert_close(x, same, rtol=0, atol=0)

    def test_a_state_of_a_state_is_the_same(self, few):
        """Loaded and taken again before any batch, also at the end of an epoch."""
        loader = few.loader(7, return_metadata=True)
        for number, _ in enumerate(loader):
            if number == 3:
                break
        fresh = few.loader(7, return_metadata=True)
        fresh.load_state_dict(loader.state_dict())
        assert fresh.state_dict() == loader.state_dict()
        ended = few.loader(7, return_metadata=True)
        list(ended)
        fresh.load_state_dict(ended.state_dict())
        again = few.loader(7, return_metadata=True)
        again.load_state_dict(fresh.state_dict())
        assert places(again) == places(ended)

    @pytest.mark.parametrize(
        ("other", "key"),
        [
            ({"batch_size": 8}, "batch_size"),
            ({"seed": 1}, "seed"),
            ({"rank": (1, 2)}, "rank"),
            ({"rank": (0, 2)}, "ranks"),
        ],
    )
    def test_states_of_other_loaders_are_refused(self, few, other, key):
        """Another batch size, seed or rank; the message has both."""
        state = few.loader(**{"batch_size": 7} | other).state_dict()
        with pytest.raises(DataError, match=rf"taken from a loader of .*'{key}'.* but this one has .*'{key}'"):
            few.loader(7).load_state_dict(state)
        with pytest.raises(DataError, match="taken from a loader"):
            few.loader(7).load_state_dict({})

    def test_states_of_other_patches_are_refused(self, few):
        """Another number of them."""
        other = mrhdata.patches(volume((12, 12, 12)), shape=3, stride=2)
        with pytest.raises(DataError, match=r"'patches': 216.*'patches': 64"):
            few.loader(7).load_state_dict(other.loader(7).state_dict())

    @pytest.mark.parametrize("case", ["shuffle", "positions", "memory"])
    def test_states_of_another_order_are_refused_or_right(self, case):
        """Rows in another order, other positions of one number, another budget and so another walk."""
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
        assert places(other) == places(loader)


class TestBatches:
    """What a batch holds."""

    def test_a_transform_takes_a_batch(self, few):
        """Input and target go in as they are handed out, what it returns comes out."""
        plain = list(few.loader(7, seed=1))
        changed = list(few.loader(7, seed=1, transform=lambda x, y: (2 * x, {"mean": y.mean(dim=(1, 2, 3, 4))})))
        assert len(plain) == len(changed) == 10
        for (x, y), (twice, means) in zip(plain, changed, strict=True):
            torch.testing.assert_close(twice, 2 * x)
            torch.testing.assert_close(means["mean"], y.mean(dim=(1, 2, 3, 4)))

    def test_a_transform_takes_a_patch_at_a_time(self, few):
        """With `each`: tensors without the batch axis, stacked again; also of inputs alone and of named ones."""
        shapes = set()

        def turned(x, y):
            shapes.add((tuple(x.shape), tuple(y.shape)))
            return x.flip(-1) * x[0, 0, 0, 0], y[:, 0]

        for (x, y), (a, b) in zip(
            few.loader(7, seed=1), few.loader(7, seed=1, per_patch_transform=turned), strict=True
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
    def test_info_says_what_each_patch_is(self, target):
        """Subject, position and affine: the patch is cut from there, and its voxels lie there."""
        subjects = [volume((9, 9, 9), seed=s, affine=np.diag([1.0, 2, 3, 1]) + s * np.eye(4, k=3)) for s in range(3)]
        p = mrhdata.patches(subjects, subjects if target else None, shape=(2, 3, 4), sampler=Uniform(40))
        seen = []
        for x, *y, where in p.loader(6, return_metadata=True):
            assert len(y) == target
            assert sorted(where) == ["affine", "position", "subject"]
            assert where["affine"].shape == (len(x), 4, 4)
            told = (where[key].numpy() for key in ("subject", "position", "affine"))
            for patch, s, at, affine in zip(x, *told, strict=True):
                np.testing.assert_array_equal(patch, naive(subjects[s], at, p.shape))
                last = np.array([1, 2, 3])
                np.testing.assert_allclose(affine @ [*last, 1], [*subjects[s].mrh.world(at + last), 1])
                seen.append((int(s), *at.tolist()))
        assert sorted(seen) == sorted((int(s), *c) for s, c in zip(p.subject, p.positions.tolist(), strict=True))

    def test_info_goes_past_the_transform(self, few):
        """A transform sees the tensors alone."""
        for x, y, where in few.loader(7, return_metadata=True, transform=lambda x, y: (x, y)):
            assert len(x) == len(y) == len(where["position"])


class TestThreads:
    """What runs ahead ends with the loop."""

    def test_breaking_out_stops_them(self, many):
        """No thread is left, and the next loop is the next epoch."""
        before = set(threading.enumerate())
        loader = many.loader(4, seed=2, return_metadata=True)
        for _ in range(3):
            for _ in loader:
                break
            assert set(threading.enumerate()) <= before
        assert loader.epoch == 2
        whole = [places(one) for one in [many.loader(4, seed=2, return_metadata=True)] for _ in range(4)]
        assert places(loader) == whole[3]
        assert set(threading.enumerate()) <= before

    @pytest.mark.parametrize("memory", ["1 GB", 380_000])
    @pytest.mark.parametrize("nth", [0, 1, 5])
    def test_errors_of_readers_reach_the_loop(self, stored, monkeypatch, nth, memory):
        """The error itself, once, whichever tile it was; nothing hangs and no thread is left."""
        before = set(threading.enumerate())
        counts = iter(range(10_000))
        plain = TensorSource.read

        def fails(stream, tile, room=None):
            if next(counts) == nth:
                raise OSError("the disk is gone")
            return plain(stream, tile, room)

        p = mrhdata.patches(stored, shape=18, sampler=Uniform(30), memory=memory)
        monkeypatch.setattr(TensorSource, "read", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            within(60, lambda: list(p.loader(2)))
        assert set(threading.enumerate()) <= before

    def test_errors_of_a_transform_reach_the_loop(self, few):
        """Raised after the batches before it."""
        count = iter(range(100))

        def fails(x, y):
            if next(count) == 4:
                raise KeyError("four")
            return x, y

        seen = []
        before = set(threading.enumerate())
        with pytest.raises(KeyError, match="four"):
            within(60, lambda: seen.extend(few.loader(7, transform=fails, prefetch=1)))
        assert len(seen) <= 4
        assert set(threading.enumerate()) <= before

    def test_errors_of_the_loop_end_them(self, few):
        """Whatever the training step raises, no thread is left."""
        before = set(threading.enumerate())

        def step():
            for number, _ in enumerate(few.loader(7)):
                if number == 2:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            within(60, step)
        assert set(threading.enumerate()) <= before

    def test_two_loops_at_once(self, few):
        """Two loaders of the same patches do not disturb each other."""
        pairs = list(
            zip(few.loader(7, seed=1, return_metadata=True), few.loader(7, seed=2, return_metadata=True), strict=True)
        )
        for seed, side in ((1, 0), (2, 1)):
            expected = few.loader(7, seed=seed, return_metadata=True)
            for (x, _, where), batch in zip(expected, (pair[side] for pair in pairs), strict=True):
                assert where["position"].tolist() == batch[2]["position"].tolist()
                torch.testing.assert_close(x, batch[0])
