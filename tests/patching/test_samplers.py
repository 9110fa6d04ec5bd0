"""Where patches are taken: counts, places and shares, each against the volume itself."""

import itertools
import json

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import chisquare

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.patching.class_index import index_labels
from mrhdata.patching.positions import centre_voxels
from mrhdata.patching.samplers import ClassBalanced, Points, SamplingSpace, Uniform, Weighted
from mrhdata.patching.sources import one_grid
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.construct import from_array
from tests.conftest import FULL
from tests.patching.test_dataset import naive, volume

SPACING = (0.1, 0.2, 0.3)
#: Smallest p of a test of proportions; seeds are fixed, so it passes always or never.
LEAST_P = 1e-4


def labelled(shape=(130, 5, 6), classes=(0, 0, 0, 1, 2, 7), seed=0, chunks=None):
    """Labels drawn at random; the default shape has three tiles."""
    values = np.random.default_rng(seed).choice(np.array(classes, np.int16), shape)
    return from_array(values if chunks is None else da.from_array(values, chunks), spacing=SPACING, kind="labels")


def centres_of(p):
    """The middle voxel of each patch."""
    return centre_voxels(p.positions, p.shape)


def even(counts, expected=None):
    """Whether counts may have come from equal (or the given) probabilities."""
    return chisquare(counts, None if expected is None else expected * (np.sum(counts) / np.sum(expected))).pvalue


class TestUniform:
    """Drawn with one probability for every place."""

    def test_every_place_is_as_likely(self):
        """Each of the 7 x 5 x 3 places at which the patch fits gets its share, and no other any."""
        p = mrhdata.patches(volume(), shape=(3, 4, 5), sampler=Uniform(21_000))
        assert len(p) == 21_000
        counts = np.zeros((7, 5, 3), dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert even(counts.ravel()) > LEAST_P

    def test_with_padding_every_centre_is_as_likely(self):
        """The middle voxel is any of the 9 x 8 x 7 voxels, also for patches longer than the volume."""
        p = mrhdata.patches(volume(), shape=(4, 9, 20), sampler=Uniform(21_000), padding="edge")
        counts = np.zeros((9, 8, 7), dtype=int)
        np.add.at(counts, tuple(centres_of(p).T), 1)
        assert even(counts.ravel()) > LEAST_P

    @settings(max_examples=100 if FULL else 20)
    @given(st.integers(0, 2**16), st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([None, 0.3, 0.8]))
    def test_masks_hold(self, seed, shape, inside):
        """Centres lie in the mask, or the asked share of the patch does; as many as asked for."""
        values = np.zeros((9, 8, 7), np.uint8)
        values[2:8, 1:7, :5] = 1
        values[4, 3, 2] = seed % 2
        mask = from_array(values, spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume(), shape=shape, sampler=Uniform(50), mask=mask, min_mask_fraction=inside, seed=seed)
        assert len(p) == 50
        if inside is None:
            assert values[tuple(centres_of(p).T)].all()
        else:
            assert min(naive(mask, c, shape).mean() for c in p.positions) >= inside

    def test_masks_leave_every_place_as_likely(self):
        """Within the mask all places have one probability."""
        values = np.random.default_rng(0).random((9, 8, 7)) > 0.8
        mask = from_array(values, spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume(), shape=1, sampler=Uniform(5000), mask=mask)
        counts = np.zeros((9, 8, 7), dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[~values].any()
        assert even(counts[values]) > LEAST_P

    def test_padded_patches_beyond_the_edge_count_as_outside(self):
        """The share of a patch that hangs over the edge is no part of the mask."""
        mask = from_array(np.ones((9, 8, 7), np.uint8), spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume(), shape=4, sampler=Uniform(300), mask=mask, min_mask_fraction=0.9, padding="edge")
        wide = np.pad(mask.values, 6)
        covered = [wide[z : z + 4, y : y + 4, x : x + 4].mean() for z, y, x in p.positions + 6]
        assert min(covered) >= 0.9

    def test_patches_that_do_not_fit_are_refused(self):
        """A patch longer than the volume needs padding."""
        with pytest.raises(GridError, match="does not fit"):
            mrhdata.patches(volume(), shape=10, sampler=Uniform(3))


class TestBalanced:
    """Exactly the asked number of patches about voxels of each class."""

    @settings(max_examples=60 if FULL else 12)
    @given(st.integers(1, 60), st.integers(0, 2**16), st.sampled_from([(1, 1, 1), (3, 2, 3), (1, 4, 5)]), st.booleans())
    def test_classes_get_equal_shares(self, n, seed, shape, overhang):
        """Numbers differ by one at most, and the middle voxel has the class where the patch was not moved."""
        labels = labelled(seed=seed)
        v = volume((130, 5, 6))
        p = mrhdata.patches(
            v, shape=shape, sampler=ClassBalanced(n, labels), seed=seed, padding="constant" if overhang else None
        )
        counts = [(p.classes == c).sum() for c in (0, 1, 2, 7)]
        assert sum(counts) == len(p) == n
        assert max(counts) - min(counts) <= 1
        kept = np.ones(n, dtype=bool)
        if not overhang:
            # At the first and last places it may have been moved there; a length of 1 never is.
            last = np.array(v.shape) - shape
            kept = ((np.array(shape) == 1) | ((p.positions > 0) & (p.positions < last))).all(axis=1)
        np.testing.assert_array_equal(labels.values[tuple(centres_of(p)[kept].T)], p.classes[kept])

    def test_shares_are_those_asked_for(self):
        """One positive to three negatives; the rest goes by size; a class of share 0 gets none."""
        labels = labelled()
        v = volume((130, 5, 6))
        p = mrhdata.patches(v, shape=1, sampler=ClassBalanced(100, labels, {1: 1, "rest": 3}))
        sizes = np.array([(labels.values == c).sum() for c in (0, 2, 7)])
        assert (p.classes == 1).sum() == 25
        found = np.array([(p.classes == c).sum() for c in (0, 2, 7)])
        assert found.sum() == 75
        assert (np.abs(found - 75 * sizes / sizes.sum()) < 1).all()
        p = mrhdata.patches(v, shape=1, sampler=ClassBalanced(30, labels, {2: 2, 7: 1, 0: 0}))
        assert {int(c): int((p.classes == c).sum()) for c in np.unique(p.classes)} == {2: 20, 7: 10}

    def test_voxels_of_a_class_are_as_likely(self):
        """Over three tiles of unequal size each voxel of the class gets its share."""
        labels = labelled((130, 4, 4))
        p = mrhdata.patches(volume((130, 4, 4)), shape=1, sampler=ClassBalanced(8000, labels, {2: 1}))
        counts = np.zeros(labels.shape, dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[labels.values != 2].any()
        assert even(counts[labels.values == 2]) > LEAST_P

    def test_a_mask_holds_too(self):
        """Class and mask both: with a mask of one half all centres lie in it, in the asked numbers."""
        labels = labelled()
        half = from_array((np.arange(130) < 60)[:, None, None] * np.ones((130, 5, 6)), spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume((130, 5, 6)), shape=(3, 1, 1), sampler=ClassBalanced(40, labels), mask=half)
        assert [(p.classes == c).sum() for c in (0, 1, 2, 7)] == [10] * 4
        assert centres_of(p)[:, 0].max() < 60

    def test_classes_that_do_not_occur_are_refused(self):
        """The message names the class, and those there are."""
        with pytest.raises(DataError, match=r"no voxel of class \[5\]; they hold \[0, 1, 2, 7\]"):
            mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=ClassBalanced(4, labelled(), {5: 1, "rest": 1}))

    def test_subjects_may_lack_classes_where_that_is_said(self):
        """The others have their part, and where nothing is left over there is no rest."""
        how = ClassBalanced(30, labelled(), {5: 1, 2: 1, 7: 2}, allow_missing=True)
        p = mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=how)
        assert {int(c): int((p.classes == c).sum()) for c in np.unique(p.classes)} == {2: 10, 7: 20}
        all_of_it = {0: 1, 1: 1, 2: 1, 7: 1, "rest": 4}
        p = mrhdata.patches(
            volume((130, 5, 6)), shape=1, sampler=ClassBalanced(40, labelled(), all_of_it, allow_missing=True)
        )
        assert [(p.classes == c).sum() for c in (0, 1, 2, 7)] == [10] * 4

    def test_labels_of_floating_point_are_refused(self):
        """A map of floats has no classes."""
        with pytest.raises(DataError, match="labels are integers, not float32"):
            mrhdata.patches(volume(), shape=1, sampler=ClassBalanced(4, volume(dtype=np.float32)))

    @pytest.mark.parametrize("shares", [{1: -1}, {1: 0}, {1: np.nan}, {}])
    def test_shares_that_make_no_sense_are_refused(self, shares):
        """Negative, all zero, NaN, none."""
        with pytest.raises(DataError, match="weights are numbers from 0 up"):
            mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=ClassBalanced(4, labelled(), shares))


class TestIndex:
    """Counts per tile, kept beside the data, and counted again when they are not of it."""

    @settings(max_examples=50 if FULL else 15)
    @given(
        st.tuples(st.integers(1, 140), st.integers(1, 5), st.integers(1, 70)),
        st.sampled_from([None, 7, 50, 64]),
        st.integers(0, 99),
    )
    def test_counts_are_those_of_the_voxels(self, shape, chunks, seed):
        """Every tile, every class, by counting with NumPy."""
        labels = labelled(shape, classes=(-3, 0, 200), seed=seed, chunks=chunks)
        stream = SamplingSpace(labels, [one_grid(labels, (1, 1, 1), None, False)], None, None, False, False).stream(
            "labels", labels
        )
        index = index_labels(stream)
        assert index.classes == sorted(np.unique(labels.values).tolist())
        corners = itertools.product(*(range(0, n, t) for n, t in zip(shape, stream.tile, strict=True)))
        for (z, y, x), mass in zip(corners, index.mass, strict=True):
            tile = labels.values[z : z + stream.tile[0], y : y + stream.tile[1], x : x + stream.tile[2]]
            assert mass.tolist() == [(tile == c).sum() for c in index.classes]

    @pytest.fixture
    def store(self, tmp_path):
        """Path of labels in an OME-Zarr store."""
        mrhdata.write(labelled(), tmp_path / "labels.zarr")
        return tmp_path / "labels.zarr"

    @pytest.fixture
    def read(self, monkeypatch):
        """Boxes of voxels that were read."""
        boxes = []
        plain = TensorSource.voxels

        def counted(stream, box):
            boxes.append(box)
            return plain(stream, box)

        monkeypatch.setattr(TensorSource, "voxels", counted)
        return boxes

    def indexed(self, path):
        """The index of labels in a store."""
        labels = mrhdata.read(path)
        return index_labels(
            SamplingSpace(labels, [one_grid(labels, (1, 1, 1), None, False)], None, None, False, False).stream(
                "labels", labels
            ),
            path,
        )

    def test_it_is_kept_beside_the_store_and_used_again(self, store, read):
        """The second time no tile is read, and the numbers are the same."""
        first = self.indexed(store)
        tiles = len(read)
        assert tiles == len(set(read)) == len(first.mass) >= 1
        assert (store.parent / "labels.zarr.index.json").is_file()
        second = self.indexed(store)
        assert len(read) == tiles
        assert second.classes == first.classes == [0, 1, 2, 7]
        np.testing.assert_array_equal(second.mass, first.mass)

    def test_patches_use_it(self, store, read):
        """A chooser that draws no patch from a kept index reads nothing but the tiles that it draws from."""
        labels = mrhdata.read(store)
        first = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels), seed=3)
        kept = (store.parent / "labels.zarr.index.json").read_text("utf-8")
        before = len(read)
        second = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels), seed=3)
        tiles = len(json.loads(kept)["tiles"])
        # One reading of a tile for each of the four classes at most.
        assert len(read) - before <= 4 * tiles
        assert before - (len(read) - before) == tiles
        np.testing.assert_array_equal(first.positions, second.positions)
        np.testing.assert_array_equal(first.classes, second.classes)

    def test_it_is_counted_again_when_the_store_changes(self, store):
        """Other labels at the same path: the counts are theirs, and are kept in turn."""
        before = self.indexed(store)
        other = labelled(seed=9, classes=(0, 3))
        mrhdata.write(other, store, overwrite=True)
        for _ in range(2):
            after = self.indexed(store)
            assert after.classes == [0, 3] != before.classes
            assert after.mass.sum(axis=0).tolist() == [(other.values == c).sum() for c in (0, 3)]

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "",
            lambda text: "no json",
            lambda text: "[]",
            lambda text: "null",
            lambda text: "{}",
            lambda text: text[: len(text) // 2],
            lambda text: json.dumps({**json.loads(text), "tiles": []}),
            lambda text: json.dumps({**json.loads(text), "tiles": 3}),
            lambda text: json.dumps({**json.loads(text), "classes": ["a"]}),
            lambda text: json.dumps({**json.loads(text), "tiles": [3] * len(json.loads(text)["tiles"])}),
            lambda text: json.dumps({**json.loads(text), "store": "of another store"}),
        ],
    )
    def test_files_that_are_no_index_are_counted_again(self, store, change):
        """Whatever lies there, the counts are right, and an index lies there after."""
        first = self.indexed(store)
        kept = store.parent / "labels.zarr.index.json"
        good = kept.read_text("utf-8")
        kept.write_text(change(good))
        found = self.indexed(store)
        assert found.classes == first.classes
        np.testing.assert_array_equal(found.mass, first.mass)
        assert kept.read_text("utf-8") == good

    def test_files_that_are_no_text_are_counted_again(self, store):
        """Bytes that are no UTF-8 are no index."""
        first = self.indexed(store)
        (store.parent / "labels.zarr.index.json").write_bytes(b"\xff\xfe\x00")
        np.testing.assert_array_equal(self.indexed(store).mass, first.mass)

    def test_references_that_lie_elsewhere_have_an_index_of_their_own(self, tmp_path):
        """The same labels, resampled to grids of one shape at two places: each has its own counts."""
        values = np.zeros((4, 4, 130), np.uint8)
        values[:, :, :70] = 1
        mrhdata.write(from_array(values, spacing=(1, 1, 1), kind="labels"), tmp_path / "labels.zarr")
        labels = mrhdata.read(tmp_path / "labels.zarr", kind="labels")
        for shift, last in ((0.25, 69), (66.25, 3)):
            reference = from_array(np.zeros((4, 4, 130), np.float32), spacing=(1, 1, 1))
            reference = reference.assign_coords(x=reference.x + shift)
            reference.x.attrs |= {"spacing_mm": 1.0, "units": "mm"}
            p = mrhdata.patches(reference, shape=1, grids="resample", sampler=ClassBalanced(200, labels, {1: 1}))
            assert p.positions[:, 2].max() == last


class TestWeighted:
    """In proportion to a map."""

    def test_voxels_are_drawn_in_proportion(self):
        """Over three tiles; where the map is 0 nothing is drawn."""
        rng = np.random.default_rng(0)
        weights = np.where(rng.random((130, 4, 4)) > 0.95, rng.uniform(0.2, 3, (130, 4, 4)), 0).astype(np.float32)
        p = mrhdata.patches(
            volume((130, 4, 4)), shape=1, sampler=Weighted(20_000, from_array(weights, spacing=SPACING))
        )
        counts = np.zeros(weights.shape, dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[weights == 0].any()
        assert even(counts[weights > 0], weights[weights > 0].astype(float)) > LEAST_P

    @pytest.mark.parametrize(
        ("value", "message"),
        [(0, "0 everywhere"), (-1, "0 or more"), (np.nan, "finite"), (np.inf, "finite")],
    )
    def test_maps_that_are_no_weights_are_refused(self, value, message):
        """All zero, negative, NaN, infinite."""
        weights = from_array(np.zeros((9, 8, 7)), spacing=SPACING)
        weights[3, 3, 3] = value
        with pytest.raises(DataError, match=message):
            mrhdata.patches(volume(), shape=1, sampler=Weighted(4, weights))


class TestAround:
    """About points, and beside them."""

    points = np.array([[4.5, 4.0, 2.0], [6.05, 4.0, 2.0], [7.5, 5.0, 1.5]])

    def test_each_point_is_the_middle_of_a_patch(self):
        """World X, Y, Z becomes the voxel z, y, x that it lies in; every point once, class 1."""
        p = mrhdata.patches(volume((40, 40, 40)), shape=(3, 5, 4), sampler=Points(self.points))
        by_hand = {(20, 20, 15), (20, 20, 20), (15, 25, 25)}
        assert {tuple(c) for c in centres_of(p)} == by_hand
        assert p.classes.tolist() == [1, 1, 1]

    @settings(max_examples=50 if FULL else 15)
    @given(st.integers(0, 2**16), st.sampled_from([(0.5, 1.0), (0.3, 0.9), (0.0, 0.4)]), st.booleans())
    def test_negatives_lie_in_the_shell_and_away_from_all(self, seed, distance, counted):
        """No middle voxel is nearer than the least to any point, nor farther from one than half a voxel more."""
        v = volume((60, 60, 60))
        at = Points(
            self.points, negatives_per_point=3, negative_distance_mm=distance, num_patches=40 if counted else None
        )
        p = mrhdata.patches(v, shape=3, sampler=at, seed=seed)
        assert np.bincount(p.classes).tolist() == ([30, 10] if counted else [9, 3])
        world = v.mrh.world(centres_of(p))
        far = cdist(world, self.points)
        half = np.linalg.norm(SPACING) / 2
        assert far[p.classes == 1].min(axis=1).max() <= half
        assert far[p.classes == 0].min() >= distance[0] - 1e-9
        assert far[p.classes == 0].min(axis=1).max() <= distance[1] + half

    def test_points_outside_the_mask_are_left_out(self):
        """Only the points that lie in the mask are the middle of a patch."""
        left = np.zeros((40, 40, 40), np.uint8)
        left[:, :, :18] = 1
        mask = from_array(left, spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume((40, 40, 40)), shape=3, sampler=Points(self.points), mask=mask)
        assert centres_of(p).tolist() == [[20, 20, 15]]

    def test_points_that_lie_elsewhere_are_refused(self):
        """Points in micrometres lie outside the volume."""
        with pytest.raises(DataError, match="none of 3 points lies in the volume of subject 0; are they world mm"):
            mrhdata.patches(volume((40, 40, 40)), shape=3, sampler=Points(1000 * self.points))

    def test_places_that_cannot_be_found_are_refused(self):
        """A shell that lies outside the volume, points without room between them, distances in no order."""
        v = volume((40, 40, 40))
        with pytest.raises(DataError, match=r"of \d+ places at 15 to 16 mm from a point hardly any lies in the volume"):
            mrhdata.patches(v, shape=3, sampler=Points(self.points, 1, (15, 16)))
        everywhere = v.mrh.world(np.moveaxis(np.indices((40, 40, 40)), 0, -1)[::4, ::4, ::4].reshape(-1, 3))
        inner = everywhere[((everywhere > 3) & (everywhere < 6)).all(axis=1) | (everywhere[:, 2] < 9)]
        with pytest.raises(DataError, match="use a smaller least distance"):
            mrhdata.patches(v, shape=3, sampler=Points(inner, 1, (1.0, 1.001)))
        with pytest.raises(GridError, match="the least and the greatest"):
            mrhdata.patches(v, shape=3, sampler=Points(self.points, 1, (2, 1)))


class TestGiven:
    """Positions of the user's own."""

    @settings(max_examples=50 if FULL else 15)
    @given(st.integers(1, 30), st.integers(0, 2**16))
    def test_they_are_kept(self, n, seed):
        """Each once, repeats too, and `given` says which it was."""
        positions = np.random.default_rng(seed).integers(0, (7, 6, 5), (n, 3))
        p = mrhdata.patches(volume(chunks=3), shape=3, sampler=positions)
        np.testing.assert_array_equal(p.positions, positions[p.draw_index])
        assert sorted(p.draw_index) == list(range(n))
        as_list = mrhdata.patches(volume(chunks=3), shape=3, sampler=positions.tolist())
        np.testing.assert_array_equal(as_list.positions, p.positions)

    def test_each_subject_has_its_own(self):
        """One array for each; too few are refused."""
        v = volume()
        p = mrhdata.patches([v, v], shape=2, sampler=[np.array([[1, 2, 3]]), np.array([[4, 4, 4], [0, 0, 0]])])
        assert sorted(zip(p.subject.tolist(), p.positions.tolist(), strict=True)) == [
            (0, [1, 2, 3]),
            (1, [0, 0, 0]),
            (1, [4, 4, 4]),
        ]
        with pytest.raises(GridError, match="there are 1 items for 2 or more subjects"):
            mrhdata.patches([v, v], shape=2, sampler=[np.array([[1, 2, 3]])])

    @pytest.mark.parametrize("at", [(7, 0, 0), (0, 6, 0), (0, 0, 5), (-1, 0, 0)])
    def test_positions_that_do_not_fit_are_refused(self, at):
        """The message has the position, the patch and the volume."""
        with pytest.raises(
            GridError,
            match=rf"1 positions do not fit, the first being \[{', '.join(map(str, at))}\]: a patch of \(3, 3, 3\) in "
            r"a volume of \(9, 8, 7\)",
        ):
            mrhdata.patches(volume(), shape=3, sampler=[(0, 0, 0), at])

    @pytest.mark.parametrize("at", [(9, 0, 0), (-3, 0, 0), (0, 8, 0)])
    def test_with_padding_they_must_touch_the_volume(self, at):
        """A patch of padding alone is refused; one voxel more inside it is not."""
        with pytest.raises(GridError, match="1 positions do not fit"):
            mrhdata.patches(volume(), shape=3, sampler=[at], padding="edge")
        towards = np.clip(at, -2, (8, 7, 6))
        assert mrhdata.patches(volume(), shape=3, sampler=[towards], padding="edge").positions.tolist() == [
            towards.tolist()
        ]

    @pytest.mark.parametrize("at", [np.zeros((2, 3)), np.zeros((2, 2), int), np.zeros((2, 2, 3), int)])
    def test_what_is_no_list_of_positions_is_refused(self, at):
        """Floats, two numbers each, too many axes."""
        with pytest.raises(GridError, match=r"positions are whole numbers \(n, 3\)"):
            mrhdata.patches(volume(), shape=2, sampler=at)

    def test_an_empty_list_leaves_no_patch(self):
        """As an empty array does."""
        for at in (np.zeros((0, 3), int), []):
            with pytest.raises(DataError, match="there is no place"):
                mrhdata.patches(volume(), shape=2, sampler=at)


CHOOSERS = {
    "uniform": lambda n: Uniform(n),
    "balanced": lambda n: ClassBalanced(n, labelled()),
    "weighted": lambda n: Weighted(n, labelled()),
    "around": lambda n: Points([[0.6, 0.4, 5.0], [0.9, 0.6, 9.0]], 1, (0.2, 0.5), n),
}


@pytest.mark.parametrize("name", CHOOSERS)
def test_seeds_give_positions(name):
    """The same seed the same ones, another seed others."""
    v = volume((130, 5, 6))
    drawn = [mrhdata.patches(v, shape=1, sampler=CHOOSERS[name](60), seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0].positions, drawn[1].positions)
    np.testing.assert_array_equal(drawn[0].draw_index, drawn[1].draw_index)
    assert sorted(map(tuple, drawn[0].positions)) != sorted(map(tuple, drawn[2].positions))


@pytest.mark.parametrize("name", CHOOSERS)
def test_subjects_share_by_weight(name):
    """Equal shares where none are given; in proportion where they are."""
    subjects = [volume((130, 5, 6), seed=s) for s in range(3)]
    p = mrhdata.patches(subjects, shape=1, sampler=CHOOSERS[name](20), subject_weights=[3, 1, 1])
    assert np.bincount(p.subject).tolist() == [12, 4, 4]
    p = mrhdata.patches(subjects, shape=1, sampler=CHOOSERS[name](21))
    assert np.bincount(p.subject).tolist() == [7, 7, 7]
    if p.classes is not None:
        assert len(p.classes) == 21


def test_each_subject_has_its_own_labels():
    """A sequence of label volumes: each subject's classes are those of its own."""
    labels = [labelled(seed=1), labelled(seed=2)]
    p = mrhdata.patches([volume((130, 5, 6))] * 2, shape=1, sampler=ClassBalanced(40, labels))
    for subject, own in enumerate(labels):
        mine = p.subject == subject
        assert mine.sum() == 20
        np.testing.assert_array_equal(own.values[tuple(p.positions[mine].T)], p.classes[mine])


def test_weights_are_one_for_each_subject():
    """Other numbers of them are refused in a sentence; an array is as good as a list."""
    v = volume()
    with pytest.raises((DataError, GridError)):
        mrhdata.patches([v, v, v], shape=2, sampler=Uniform(6), subject_weights=[1, 2])
    p = mrhdata.patches([v, v], shape=2, sampler=Uniform(6), subject_weights=np.array([1, 2]))
    assert np.bincount(p.subject).tolist() == [2, 4]


def test_even_patches_about_points():
    """The centre of an even patch, between voxels, is never more than half a voxel from its point."""
    rng = np.random.default_rng(0)
    volume = from_array(np.zeros((40, 50, 60), np.float32), spacing=(2.0, 1.0, 0.5))
    points = volume.mrh.world(rng.uniform(8, 30, (50, 3)))
    p = mrhdata.patches(volume, shape=12, sampler=Points(points, negatives_per_point=4, negative_distance_mm=(6, 9)))
    centres = p.positions + 5.5
    places = volume.mrh.index(points)[p.draw_index[p.classes == 1]]
    assert np.abs(centres[p.classes == 1] - places).max() <= 0.5 + 1e-9
    beside = volume.mrh.world(centres[p.classes == 0])
    nearest = np.linalg.norm(beside[:, None] - points[None], axis=2).min(axis=1)
    assert nearest.min() >= 6 - 1e-9
