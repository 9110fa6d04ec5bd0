"""Order, plan and prefetch, each compared with a plain implementation."""

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mrhdata
from mrhdata.errors import DataError
from mrhdata.patching import order
from mrhdata.patching.prefetch import BufferPool, Loads, ReadAhead
from mrhdata.patching.samplers import Uniform
from tests.conftest import FULL
from tests.patching.test_dataset import volume


def random_table(rng, home_tiles):
    """Return distinct home tiles of three subjects."""
    every = np.array(list(itertools.product(range(3), range(5), range(4), range(6))))
    return every[np.sort(rng.permutation(len(every))[:home_tiles])]


class TestOrder:
    """Each patch occurs once, whatever the layout."""

    @settings(max_examples=200 if FULL else 40)
    @given(
        st.integers(0, 2**16),
        st.integers(1, 60),
        st.integers(1, 200),
        st.tuples(st.integers(0, 2), st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 12)),
        st.integers(1, 4),
    )
    def test_order_is_a_permutation_for_any_layout_and_rank(self, seed, home_tiles, count, layout, ranks):
        """All ranks together have each patch once; rank sizes differ by at most one; a walk has each home tile once."""
        rng = np.random.default_rng(seed)
        table, home_tile = random_table(rng, home_tiles), rng.integers(0, home_tiles, count)
        assume(count >= ranks)
        layout = order.Layout(*layout)
        parts = [order.order(table, home_tile, layout, np.random.default_rng(seed), r, ranks) for r in range(ranks)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        again = order.order(table, home_tile, layout, np.random.default_rng(seed), 0, ranks)
        np.testing.assert_array_equal(again, parts[0])
        assert sorted(layout.walk(table, np.random.default_rng(seed)).tolist()) == list(range(home_tiles))

    def test_walk_goes_bar_by_bar_and_layer_by_layer(self):
        """Home tiles of a bar are consecutive, within it those of a layer, and within that those of a row."""
        table = np.array(list(itertools.product(range(2), range(5), range(4), range(6))))
        walk = table[order.Layout(0, (1, 2, 3)).walk(table, np.random.default_rng(0))]
        bars = [(s, y // 2, x // 3) for s, _, y, x in walk.tolist()]
        assert len([b for b, _ in itertools.groupby(bars)]) == len(set(bars)) == 2 * 2 * 2
        layers = [(*b, z) for b, (_, z, _, _) in zip(bars, walk.tolist(), strict=True)]
        assert len([x for x, _ in itertools.groupby(layers)]) == len(set(layers))
        rows = [(*b, y) for b, (_, _, y, _) in zip(layers, walk.tolist(), strict=True)]
        assert len([x for x, _ in itertools.groupby(rows)]) == len(set(rows))

    @pytest.mark.parametrize("seed", range(3))
    def test_batches_mix_as_many_home_tiles_as_lanes(self, seed):
        """Batches of 64 patches come from 8 or more of 216 home tiles with 40 patches each; orders differ by seed."""
        table = np.array(list(itertools.product(range(1), range(6), range(6), range(6))))
        home_tile = np.repeat(np.arange(216), 40)
        indices = order.order(table, home_tile, order.Layout(0, (1, 2, 3), 8), np.random.default_rng(seed))
        home_tiles_per_batch = [len(np.unique(home_tile[indices[i : i + 64]])) for i in range(0, len(indices), 64)]
        assert min(home_tiles_per_batch) >= 8
        assert not np.array_equal(
            indices, order.order(table, home_tile, order.Layout(0, (1, 2, 3), 8), np.random.default_rng(99))
        )

    def test_batches_of_patches_mix_chunks(self):
        """With a memory budget below the volume, full batches come from 8 chunks or more."""
        p = mrhdata.patches(
            volume((64, 64, 64), chunks=8, dtype=np.float32), shape=3, sampler=Uniform(6000), memory=900_000
        )
        chunks = [len(np.unique(p.positions[i] // 8, axis=0)) for i, _ in itertools.islice(p.batches(64), 20)]
        assert len(chunks) == 20
        assert min(chunks) >= 8


@settings(max_examples=200 if FULL else 50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 8))
def test_visits_are_uses_without_a_long_pause(home_tiles, pause):
    """The expected visits come from a loop over the times of each home tile."""
    expected = set()
    for home_tile in set(home_tiles):
        times = [t for t, c in enumerate(home_tiles) if c == home_tile]
        begin = times[0]
        for before, after in itertools.pairwise([*times, np.inf]):
            if after - before > pause:
                expected.add((home_tile, begin, before))
                begin = after
    visits = list(zip(*(v.tolist() for v in order.visits(np.array(home_tiles), pause)), strict=True))
    assert len(visits) == len(expected)
    assert set(visits) == expected


USES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=25)


@settings(max_examples=200 if FULL else 50)
@given(USES, st.integers(0, 6))
def test_lifetimes_join_uses_that_are_near_in_time(uses, pause):
    """The expected lifetimes come from the set of times of each tile, with gaps of at most a pause filled."""
    tiles, first, length = map(np.array, zip(*uses, strict=True))
    expected = []
    for tile_number in sorted(set(tiles.tolist())):
        used = sorted({t for f, n in zip(first[tiles == tile_number], length[tiles == tile_number], strict=True)
                       for t in range(f, f + n + 1)})  # fmt: skip
        begin = used[0]
        for before, after in itertools.pairwise([*used, np.inf]):
            # Times that differ by one are contiguous: a step of one does not count as a pause.
            if after - before > max(1, pause):
                expected.append((tile_number, begin, before))
                begin = after
    lifetimes = [x.tolist() for x in order.lifetimes(tiles, first, first + length, pause)]
    assert lifetimes[1] == sorted(lifetimes[1])
    joined = sorted(zip(*lifetimes, strict=True))
    if pause:
        assert joined == sorted(expected)
    # Without a pause, uses that follow each other at once stay separate but cover the same times.
    times = Counter((t, k) for t, a, b in joined for k in range(a, b + 1))
    assert set(times) == {(t, k) for t, a, b in expected for k in range(a, b + 1) if pause or used_at(uses, t, k)}
    assert max(times.values()) == 1


def used_at(uses, tile_number, time):
    """Return whether a tile is used at a time."""
    return any(t == tile_number and f <= time <= f + n for t, f, n in uses)


@settings(max_examples=200 if FULL else 50)
@given(USES)
def test_peak_is_the_maximum_over_time(uses):
    """The expected peak comes from the sum at each time."""
    sizes, first, length = map(np.array, zip(*uses, strict=True))
    at = [sizes[(first <= t) & (t <= first + length)].sum() for t in range(30)]
    assert order.peak(first, first + length, sizes) == max(at)


@settings(max_examples=200 if FULL else 50)
@given(st.integers(0, 50), st.integers(1, 7))
def test_rank_shares_are_even_and_in_order(count, ranks):
    """Shares are consecutive and complete; lengths differ by at most one."""
    parts = [order.rank_share(np.arange(count), r, ranks) for r in range(ranks)]
    assert np.concatenate(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class TileRecorder(dict):
    """Mapping of tiles in memory that records the bytes in memory and their peak."""

    def __init__(self):
        super().__init__()
        self.bytes, self.peak_bytes, self.lock = 0, 0, threading.Lock()

    def count_reading(self, size):
        """Count the memory of a reading that begins."""
        with self.lock:
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)

    def __setitem__(self, key, value):
        with self.lock:
            self.bytes -= self[key].nbytes if key in self else 0
        super().__setitem__(key, value)

    def __delitem__(self, key):
        with self.lock:
            self.bytes -= self[key].nbytes
        super().__delitem__(key)


def make_loads(uses):
    """Return a schedule of readings in the order of their first batch."""
    uses = sorted(uses, key=lambda use: use[1])
    tile, first, length, size = (np.array(x) for x in zip(*uses, strict=True))
    return Loads(tile, first, first + length, size, 0, 0)


class TestReadAhead:
    """Tiles are read within the budget and in time, and are removed after their last use."""

    @settings(max_examples=150 if FULL else 40)
    @given(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(1, 50)), min_size=1, max_size=30),
        st.integers(0, 300),
        st.integers(1, 3),
    )
    def test_tiles_stay_within_the_budget_and_are_removed(self, uses, budget, threads):
        """The limit is the larger of the budget and one batch; each batch has its tiles; no tile is left at the end."""
        loads = make_loads([(number, *use) for number, use in enumerate(uses)])
        tiles, read = TileRecorder(), []

        def decode(number, buffer):
            (row,) = np.flatnonzero(loads.tile == number)
            size = int(loads.size[row])
            tiles.count_reading(size)
            read.append(number)
            return np.full(size, number, np.uint8)

        needed_by_batch = [(loads.first <= b) & (b <= loads.last) for b in range(20)]
        with ReadAhead(loads, tiles, decode, budget, threads) as ahead:
            for batch, needed in enumerate(needed_by_batch):
                ahead.wait_for(batch)
                for number in loads.tile[needed].tolist():
                    assert (tiles[number] == number).all()
                ahead.done_with(batch)
        assert tiles.peak_bytes <= max(budget, *(int(loads.size[needed].sum()) for needed in needed_by_batch))
        assert not tiles
        assert sorted(read) == list(range(len(uses)))

    @pytest.mark.parametrize("threads", [1, 2])
    def test_tile_that_is_read_twice_stays_for_both_uses(self, threads):
        """The second reading may finish before the last use of the first; the tile is removed after the second."""
        loads = Loads(np.array([5, 5]), np.array([0, 2]), np.array([1, 3]), np.array([8, 8]), 0, 0)
        tiles = {}
        with ReadAhead(loads, tiles, lambda n, buffer: np.zeros(8, np.uint8), 100, threads) as ahead:
            for batch in range(4):
                ahead.wait_for(batch)
                assert list(tiles) == [5]
                ahead.done_with(batch)
        assert not tiles

    def test_later_reading_that_finishes_first_is_not_overwritten(self):
        """The buffer of the first reading is returned and reused for another tile while the second reading is valid."""
        loads = Loads(np.array([5, 5, 6]), np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([8] * 3), 0, 0)
        tiles, calls = {}, []

        def decode(number, buffer):
            calls.append(number)
            first = calls == [5]
            while first and 5 not in tiles:
                time.sleep(0.001)
            buffer[:] = number
            return buffer

        with ReadAhead(loads, tiles, decode, 16, 2, BufferPool()) as ahead:
            ahead.wait_for(0)
            ahead.done_with(0)
            ahead.wait_for(1)
            while 6 not in tiles:
                time.sleep(0.001)
            assert (tiles[5] == 5).all()
            assert (tiles[6] == 6).all()

    @pytest.mark.parametrize("threads", [1, 3])
    def test_decoding_errors_are_raised_while_waiting(self, threads):
        """The error is that of the decoder, and all threads end."""
        loads = make_loads([(n, n, 0, 1) for n in range(6)])
        before = set(threading.enumerate())

        def decode(number, buffer):
            if number == 3:
                raise ValueError("tile 3")
            return np.zeros(1, np.uint8)

        with ReadAhead(loads, {}, decode, 2, threads) as ahead:
            for batch in range(3):
                ahead.wait_for(batch)
                ahead.done_with(batch)
            with pytest.raises(ValueError, match="tile 3"):
                ahead.wait_for(3)
        assert set(threading.enumerate()) <= before

    def test_leaving_the_context_early_stops_all_threads(self):
        """The context ends after the first of 1,000 batches."""
        loads = make_loads([(n, n, 0, 1) for n in range(1000)])
        read = []
        before = set(threading.enumerate())
        with ReadAhead(loads, {}, lambda n, buffer: read.append(n) or np.zeros(1, np.uint8), 5, 2) as ahead:
            ahead.wait_for(0)
        assert set(threading.enumerate()) <= before
        assert 1 <= len(read) <= 6


def tiles_needed_by(p, plan, index):
    """Return the tiles of a patch, from its padded voxel numbers along each axis."""
    tiles = set()
    subject = int(p.subject[index])
    for i, source in enumerate(plan.sources[subject]):
        start = source.starts(p.positions[index][None])[0]
        axes = []
        for s, n, top, t in zip(start, source.shape, source.grid.shape, source.tile, strict=True):
            voxels = np.pad(np.arange(top), 40, mode="reflect" if plan.padding == "reflect" else "edge")
            axes.append(sorted(set((voxels[s + 40 : s + 40 + n] // t).tolist())))
        for number in itertools.product(*axes):
            tiles.add(plan.offset(subject, i) + int(np.ravel_multi_index(number, source.tiles)))
    return tiles


class TestPlan:
    """The plan reads the tiles that patches need, when they need them."""

    @settings(max_examples=60 if FULL else 15)
    @given(
        st.integers(0, 2**16),
        st.tuples(*[st.integers(1, 9)] * 3),
        st.sampled_from([None, "edge", "reflect"]),
        st.integers(1, 9),
        st.booleans(),
        st.sampled_from([300_000, 420_000, "1 GB"]),
    )
    def test_plan_has_the_tiles_of_each_batch_within_the_budget(
        self, seed, shape, padding, batch_size, shuffle, memory
    ):
        """Every tile of a batch is in memory once while the batch is cut, within the bytes of plan and budget."""
        rng = np.random.default_rng(seed)
        subjects = [volume((30, 32, 28), chunks=c) for c in (7, (6, 8, 9))]
        targets = [volume((30, 32, 28), chunks=c) for c in (5, 16)]
        p = mrhdata.patches(
            subjects,
            targets,
            shape=shape,
            sampler=Uniform(60),
            padding=padding,
            memory=memory,
            seed=int(rng.integers(99)),
        )
        plan = p.plan(batch_size)
        try:
            indices = plan.indices(shuffle, seed, 0, batch_size)
        except DataError:
            assert memory != "1 GB"
            return
        loads = plan.loads(indices, batch_size)
        assert sorted(indices.tolist()) == list(range(60))
        batches = [indices[i : i + batch_size] for i in range(0, 60, batch_size)]
        assert (np.diff(loads.first) >= 0).all()
        np.testing.assert_array_equal(loads.size, plan.sizes(loads.tile))
        bytes_in_memory = []
        for number, batch in enumerate(batches):
            in_memory = loads.tile[(loads.first <= number) & (number <= loads.last)].tolist()
            needed = set().union(*(tiles_needed_by(p, plan, index) for index in batch))
            assert len(in_memory) == len(set(in_memory))
            assert needed <= set(in_memory)
            assert {int(t) for t in loads.tile[loads.first == number]} <= set().union(
                *(
                    tiles_needed_by(p, plan, index)
                    for index in np.flatnonzero(np.isin(plan.home_tile, plan.home_tile[batch]))
                )
            )
            bytes_in_memory.append(sum(plan.sizes(np.array(in_memory)).tolist()))
        assert len(bytes_in_memory) == -(-60 // batch_size)
        assert max(bytes_in_memory) <= loads.needed
        if shuffle and memory != "1 GB":
            assert loads.needed <= plan.budget

    @pytest.mark.parametrize("memory", [1_000_000, 700_000])
    def test_each_tile_is_read_once_if_all_fit_in_memory(self, memory):
        """With the larger budget tiles stay in memory; with the smaller one they are removed after their last use."""
        v = volume((40, 36, 44), chunks=8, dtype=np.float32)
        p = mrhdata.patches(v, shape=17, stride=5, memory=memory)
        plan = p.plan(1)
        for epoch in range(3):
            loads = plan.loads(plan.indices(True, 0, epoch, 1), 1)
            assert len(loads.tile) == len(set(loads.tile.tolist())) == np.prod(plan.sources[0][0].tiles)

    def test_tiles_in_memory_are_not_read_again(self):
        """`without` drops the readings of tiles that are in memory."""
        loads = make_loads([(n, n, 1, 4) for n in range(5)])
        rest = loads.without({1: None, 3: None})
        assert [x.tolist() for x in (rest.tile, rest.first, rest.last)] == [[0, 2, 4], [0, 2, 4], [1, 3, 5]]
        assert loads.without({}).tile.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("shape", [5, 17])
    def test_global_tile_numbers_cover_all_volumes(self, shape):
        """Tiles read by their global numbers compose the volumes."""
        subjects = [volume((20, 18, 22), chunks=8), volume((9, 19, 17), chunks=5, seed=1)]
        if shape == 17:
            subjects[1] = volume((19, 19, 17), chunks=5, seed=1)
        p = mrhdata.patches(subjects, subjects, shape=shape, memory=200_000)
        plan = p.plan(1)
        for subject, sources in enumerate(plan.sources):
            for i, source in enumerate(sources):
                whole = np.zeros(source.grid.shape, np.float32)
                for k, number in enumerate(itertools.product(*map(range, source.tiles))):
                    tile = plan.read(plan.offset(subject, i) + k)
                    values = tile[..., 0] if source.small else tile[0]
                    low = np.multiply(number, source.tile)
                    whole[tuple(slice(a, a + n) for a, n in zip(low, values.shape, strict=True))] = values
                np.testing.assert_array_equal(whole, subjects[subject].values)
