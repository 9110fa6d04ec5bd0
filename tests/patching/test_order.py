"""Order, plan and reading ahead: each against the plain way to say the same."""

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


def table_of(rng, cells):
    """Cells of three subjects at distinct places."""
    every = np.array(list(itertools.product(range(3), range(5), range(4), range(6))))
    return every[np.sort(rng.permutation(len(every))[:cells])]


class TestOrder:
    """Each row once, whatever the layout."""

    @settings(max_examples=200 if FULL else 40)
    @given(
        st.integers(0, 2**16),
        st.integers(1, 60),
        st.integers(1, 200),
        st.tuples(st.integers(0, 2), st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 12)),
        st.integers(1, 4),
    )
    def test_it_is_a_permutation(self, seed, cells, rows, layout, ranks):
        """Rows of all ranks together; every rank has its share, one off at most; a walk leads through each cell."""
        rng = np.random.default_rng(seed)
        table, cell = table_of(rng, cells), rng.integers(0, cells, rows)
        assume(rows >= ranks)
        laid = order.Layout(*layout)
        parts = [order.order(table, cell, laid, np.random.default_rng(seed), r, ranks) for r in range(ranks)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        again = order.order(table, cell, laid, np.random.default_rng(seed), 0, ranks)
        np.testing.assert_array_equal(again, parts[0])
        assert sorted(laid.walk(table, np.random.default_rng(seed)).tolist()) == list(range(cells))

    def test_a_walk_goes_bar_by_bar_and_layer_by_layer(self):
        """Cells of a bar follow each other, and within it those of a layer."""
        table = np.array(list(itertools.product(range(2), range(5), range(4), range(6))))
        walk = table[order.Layout(0, (1, 2, 3)).walk(table, np.random.default_rng(0))]
        bars = [(s, y // 2, x // 3) for s, _, y, x in walk.tolist()]
        assert len([b for b, _ in itertools.groupby(bars)]) == len(set(bars)) == 2 * 2 * 2
        layers = [(*b, z) for b, (_, z, _, _) in zip(bars, walk.tolist(), strict=True)]
        assert len([x for x, _ in itertools.groupby(layers)]) == len(set(layers))
        rows = [(*b, y) for b, (_, _, y, _) in zip(layers, walk.tolist(), strict=True)]
        assert len([x for x, _ in itertools.groupby(rows)]) == len(set(rows))

    @pytest.mark.parametrize("seed", range(3))
    def test_batches_mix_as_many_cells_as_lanes(self, seed):
        """Batches of 64 rows from 216 cells of 40 each come from 8 cells or more, and orders differ by seed."""
        table = np.array(list(itertools.product(range(1), range(6), range(6), range(6))))
        cell = np.repeat(np.arange(216), 40)
        rows = order.order(table, cell, order.Layout(0, (1, 2, 3), 8), np.random.default_rng(seed))
        found = [len(np.unique(cell[rows[i : i + 64]])) for i in range(0, len(rows), 64)]
        assert min(found) >= 8
        assert not np.array_equal(
            rows, order.order(table, cell, order.Layout(0, (1, 2, 3), 8), np.random.default_rng(99))
        )

    def test_batches_of_patches_mix_chunks(self):
        """Through `patches`: with a budget of a fraction of the volume, full batches come from 8 chunks or more."""
        p = mrhdata.patches(
            volume((64, 64, 64), chunks=8, dtype=np.float32), shape=3, sampler=Uniform(6000), memory=900_000
        )
        for rows, _ in itertools.islice(p.batches(64), 20):
            assert len(np.unique(p.positions[rows] // 8, axis=0)) >= 8


@settings(max_examples=200 if FULL else 50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 8))
def test_visits_are_uses_without_a_long_pause(cells, pause):
    """By walking through the times of each cell."""
    expected = set()
    for cell in set(cells):
        times = [t for t, c in enumerate(cells) if c == cell]
        begin = times[0]
        for before, after in itertools.pairwise([*times, np.inf]):
            if after - before > pause:
                expected.add((cell, begin, before))
                begin = after
    found = list(zip(*(v.tolist() for v in order.visits(np.array(cells), pause)), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected


USES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=25)


@settings(max_examples=200 if FULL else 50)
@given(USES, st.integers(0, 6))
def test_lifetimes_join_what_lies_near(uses, pause):
    """By painting the times of each thing, and filling gaps of a pause at most."""
    things, first, length = map(np.array, zip(*uses, strict=True))
    expected = []
    for thing in sorted(set(things.tolist())):
        used = sorted({t for f, n in zip(first[things == thing], length[things == thing], strict=True)
                       for t in range(f, f + n + 1)})  # fmt: skip
        begin = used[0]
        for before, after in itertools.pairwise([*used, np.inf]):
            # Uses side by side are joined where they touch within a pause: a step of one is no pause.
            if after - before > max(1, pause):
                expected.append((thing, begin, before))
                begin = after
    found = [x.tolist() for x in order.lifetimes(things, first, first + length, pause)]
    assert found[1] == sorted(found[1])
    joined = sorted(zip(*found, strict=True))
    if pause:
        assert joined == sorted(expected)
    # Without a pause uses that follow at once stay two; all the same they cover the same times.
    times = Counter((t, k) for t, a, b in joined for k in range(a, b + 1))
    assert set(times) == {(t, k) for t, a, b in expected for k in range(a, b + 1) if pause or used_at(uses, t, k)}
    assert max(times.values()) == 1


def used_at(uses, thing, time):
    """Whether a thing is used at a time."""
    return any(t == thing and f <= time <= f + n for t, f, n in uses)


@settings(max_examples=200 if FULL else 50)
@given(USES)
def test_the_peak_is_the_most_at_any_time(uses):
    """By summing at each time."""
    sizes, first, length = map(np.array, zip(*uses, strict=True))
    at = [sizes[(first <= t) & (t <= first + length)].sum() for t in range(30)]
    assert order.peak(first, first + length, sizes) == max(at)


@settings(max_examples=200 if FULL else 50)
@given(st.integers(0, 50), st.integers(1, 7))
def test_parts_are_even_and_in_order(rows, ranks):
    """Together all, in turn; lengths differ by one at most."""
    parts = [order.rank_share(np.arange(rows), r, ranks) for r in range(ranks)]
    assert np.concatenate(parts).tolist() == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Watched(dict):
    """Tiles in memory, counted as they come and go."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most, self.lock = 0, 0, threading.Lock()

    def begun(self, size):
        """A reading has begun: its memory is taken."""
        with self.lock:
            self.bytes += size
            self.most = max(self.most, self.bytes)

    def __setitem__(self, key, value):
        with self.lock:
            self.bytes -= self[key].nbytes if key in self else 0
        super().__setitem__(key, value)

    def __delitem__(self, key):
        with self.lock:
            self.bytes -= self[key].nbytes
        super().__delitem__(key)


def loads_of(uses):
    """Readings in the order of their first batch."""
    uses = sorted(uses, key=lambda use: use[1])
    tile, first, length, size = (np.array(x) for x in zip(*uses, strict=True))
    return Loads(tile, first, first + length, size, 0, 0)


class TestReadAhead:
    """Within the budget, in time, and nothing is left."""

    @settings(max_examples=150 if FULL else 40)
    @given(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(1, 50)), min_size=1, max_size=30),
        st.integers(0, 300),
        st.integers(1, 3),
    )
    def test_it_holds_no_more_than_it_may(self, uses, budget, threads):
        """The larger of the budget and what one batch needs; all that a batch needs is there; all is let go of."""
        loads = loads_of([(number, *use) for number, use in enumerate(uses)])
        tiles, read = Watched(), []

        def decode(number, room):
            (row,) = np.flatnonzero(loads.tile == number)
            size = int(loads.size[row])
            tiles.begun(size)
            read.append(number)
            return np.full(size, number, np.uint8)

        alive = [(loads.first <= b) & (b <= loads.last) for b in range(20)]
        with ReadAhead(loads, tiles, decode, budget, threads) as ahead:
            for batch, needed in enumerate(alive):
                ahead.wait_for(batch)
                for number in loads.tile[needed].tolist():
                    assert (tiles[number] == number).all()
                ahead.done_with(batch)
        assert tiles.most <= max(budget, *(int(loads.size[needed].sum()) for needed in alive))
        assert not tiles
        assert sorted(read) == list(range(len(uses)))

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_tile_that_is_read_again_is_kept_for_both(self, threads):
        """Its next reading may be done before its last use: it goes after the second."""
        loads = Loads(np.array([5, 5]), np.array([0, 2]), np.array([1, 3]), np.array([8, 8]), 0, 0)
        tiles = {}
        with ReadAhead(loads, tiles, lambda n, room: np.zeros(8, np.uint8), 100, threads) as ahead:
            for batch in range(4):
                ahead.wait_for(batch)
                assert list(tiles) == [5]
                ahead.done_with(batch)
        assert not tiles

    def test_a_later_reading_that_is_there_first_stays(self):
        """The memory of the first reading is given back, and used for another tile, while the second counts."""
        loads = Loads(np.array([5, 5, 6]), np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([8] * 3), 0, 0)
        tiles, calls = {}, []

        def decode(number, room):
            calls.append(number)
            first = calls == [5]
            while first and 5 not in tiles:
                time.sleep(0.001)
            room[:] = number
            return room

        with ReadAhead(loads, tiles, decode, 16, 2, BufferPool()) as ahead:
            ahead.wait_for(0)
            ahead.done_with(0)
            ahead.wait_for(1)
            while 6 not in tiles:
                time.sleep(0.001)
            assert (tiles[5] == 5).all()
            assert (tiles[6] == 6).all()

    @pytest.mark.parametrize("threads", [1, 3])
    def test_errors_reach_who_waits(self, threads):
        """The error of the reading itself; threads end."""
        loads = loads_of([(n, n, 0, 1) for n in range(6)])
        before = set(threading.enumerate())

        def decode(number, room):
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

    def test_leaving_early_stops_it(self):
        """In the middle of all readings."""
        loads = loads_of([(n, n, 0, 1) for n in range(1000)])
        read = []
        before = set(threading.enumerate())
        with ReadAhead(loads, {}, lambda n, room: read.append(n) or np.zeros(1, np.uint8), 5, 2) as ahead:
            ahead.wait_for(0)
        assert set(threading.enumerate()) <= before
        assert 1 <= len(read) <= 6


def needed_by(p, plan, row):
    """Tiles of a patch, voxel by voxel of its edges along each axis."""
    found = set()
    subject = int(p.subject[row])
    for i, stream in enumerate(plan.sources[subject]):
        start = stream.starts(p.positions[row][None])[0]
        axes = []
        for s, n, top, t in zip(start, stream.shape, stream.grid.shape, stream.tile, strict=True):
            voxels = np.pad(np.arange(top), 40, mode="reflect" if plan.padding == "reflect" else "edge")
            axes.append(sorted(set((voxels[s + 40 : s + 40 + n] // t).tolist())))
        for number in itertools.product(*axes):
            found.add(plan.offset(subject, i) + int(np.ravel_multi_index(number, stream.tiles)))
    return found


class TestPlan:
    """What is read, and when, is what the patches need."""

    @settings(max_examples=60 if FULL else 15)
    @given(
        st.integers(0, 2**16),
        st.tuples(*[st.integers(1, 9)] * 3),
        st.sampled_from([None, "edge", "reflect"]),
        st.integers(1, 9),
        st.booleans(),
        st.sampled_from([300_000, 420_000, "1 GB"]),
    )
    def test_each_batch_has_its_tiles(self, seed, shape, padding, batch_size, shuffle, memory):
        """Every tile of every patch is there while it is used, once, and within the bytes of plan and budget."""
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
            rows = plan.rows(shuffle, seed, 0, batch_size)
        except DataError:
            assert memory != "1 GB"
            return
        loads = plan.loads(rows, batch_size)
        assert sorted(rows.tolist()) == list(range(60))
        batches = [rows[i : i + batch_size] for i in range(0, 60, batch_size)]
        assert (np.diff(loads.first) >= 0).all()
        np.testing.assert_array_equal(loads.size, plan.sizes(loads.tile))
        held = []
        for number, batch in enumerate(batches):
            there = loads.tile[(loads.first <= number) & (number <= loads.last)].tolist()
            needed = set().union(*(needed_by(p, plan, row) for row in batch))
            assert len(there) == len(set(there))
            assert needed <= set(there)
            assert {int(t) for t in loads.tile[loads.first == number]} <= set().union(
                *(needed_by(p, plan, row) for row in np.flatnonzero(np.isin(plan.cell, plan.cell[batch])))
            )
            held.append(sum(plan.sizes(np.array(there)).tolist()))
        assert max(held) <= loads.needed
        if shuffle and memory != "1 GB":
            assert loads.needed <= plan.budget

    @pytest.mark.parametrize("memory", [1_000_000, 700_000])
    def test_with_room_for_all_each_tile_is_read_once(self, memory):
        """Kept in memory for good, or let go of after the last use."""
        v = volume((40, 36, 44), chunks=8, dtype=np.float32)
        p = mrhdata.patches(v, shape=17, stride=5, memory=memory)
        plan = p.plan(1)
        for epoch in range(3):
            loads = plan.loads(plan.rows(True, 0, epoch, 1), 1)
            assert len(loads.tile) == len(set(loads.tile.tolist())) == np.prod(plan.sources[0][0].tiles)

    def test_tiles_that_are_there_are_not_read_again(self):
        """What is left of the readings where some tiles are in memory."""
        loads = loads_of([(n, n, 1, 4) for n in range(5)])
        rest = loads.without({1: None, 3: None})
        assert [x.tolist() for x in (rest.tile, rest.first, rest.last)] == [[0, 2, 4], [0, 2, 4], [1, 3, 5]]
        assert loads.without({}).tile.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("shape", [5, 17])
    def test_tiles_are_those_of_a_numbering(self, shape):
        """Each number reads its own tile: together they are the volumes."""
        subjects = [volume((20, 18, 22), chunks=8), volume((9, 19, 17), chunks=5, seed=1)]
        if shape == 17:
            subjects[1] = volume((19, 19, 17), chunks=5, seed=1)
        p = mrhdata.patches(subjects, subjects, shape=shape, memory=200_000)
        plan = p.plan(1)
        for subject, streams in enumerate(plan.sources):
            for i, stream in enumerate(streams):
                whole = np.zeros(stream.grid.shape, np.float32)
                for k, number in enumerate(itertools.product(*map(range, stream.tiles))):
                    tile = plan.read(plan.offset(subject, i) + k)
                    values = tile[..., 0] if stream.small else tile[0]
                    low = np.multiply(number, stream.tile)
                    whole[tuple(slice(a, a + n) for a, n in zip(low, values.shape, strict=True))] = values
                np.testing.assert_array_equal(whole, subjects[subject].values)
