"""Samplers: counts, positions and class ratios, each compared with the volume."""

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
from mrhdata.errors import DataError, GridError, ParameterError
from mrhdata.patching.class_index import index_labels
from mrhdata.patching.positions import centre_voxels
from mrhdata.patching.samplers import ClassBalanced, Points, SamplingSpace, Uniform, Weighted
from mrhdata.patching.sources import one_grid
from mrhdata.patching.tiles import TensorSource
from mrhdata.volume.construct import from_array
from tests.conftest import FULL
from tests.patching.test_dataset import naive_patch, volume

SPACING = (0.1, 0.2, 0.3)
#: Smallest p value of a test of proportions. Seeds are fixed, so a test always passes or always fails.
LEAST_P = 1e-4


def labelled(shape=(130, 5, 6), classes=(0, 0, 0, 1, 2, 7), seed=0, chunks=None):
    """Return labels drawn at random; the default shape has three tiles."""
    values = np.random.default_rng(seed).choice(np.array(classes, np.int16), shape)
    return from_array(values if chunks is None else da.from_array(values, chunks), spacing=SPACING, kind="labels")


def centres_of(p):
    """Return the middle voxel of each patch."""
    return centre_voxels(p.positions, p.shape)


def p_of_proportions(counts, expected=None):
    """Return the p value of counts under equal or expected probabilities."""
    return chisquare(counts, None if expected is None else expected * (np.sum(counts) / np.sum(expected))).pvalue


class TestUniform:
    """Every position has the same probability."""

    def test_positions_are_uniform(self):
        """Each of the 7 x 5 x 3 positions at which the patch fits has the expected count, and no other is drawn."""
        p = mrhdata.patches(volume(), shape=(3, 4, 5), sampler=Uniform(21_000))
        assert len(p) == 21_000
        counts = np.zeros((7, 5, 3), dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert p_of_proportions(counts.ravel()) > LEAST_P

    def test_centres_are_uniform_with_padding(self):
        """The middle voxel is any of the 9 x 8 x 7 voxels, also if patches are longer than the volume."""
        p = mrhdata.patches(volume(), shape=(4, 9, 20), sampler=Uniform(21_000), padding="edge")
        counts = np.zeros((9, 8, 7), dtype=int)
        np.add.at(counts, tuple(centres_of(p).T), 1)
        assert p_of_proportions(counts.ravel()) > LEAST_P

    @settings(max_examples=100 if FULL else 20)
    @given(st.integers(0, 2**16), st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([None, 0.3, 0.8]))
    def test_patches_lie_in_the_mask_by_centre_or_fraction(self, seed, shape, fraction):
        """Centres lie in the mask, or the requested fraction of each patch does; the count is as requested."""
        values = np.zeros((9, 8, 7), np.uint8)
        values[2:8, 1:7, :5] = 1
        values[4, 3, 2] = seed % 2
        mask = from_array(values, spacing=SPACING, kind="mask")
        p = mrhdata.patches(
            volume(), shape=shape, sampler=Uniform(50), mask=mask, min_mask_fraction=fraction, seed=seed
        )
        assert len(p) == 50
        if fraction is None:
            assert values[tuple(centres_of(p).T)].all()
        else:
            assert min(naive_patch(mask, c, shape).mean() for c in p.positions) >= fraction

    def test_positions_are_uniform_within_a_mask(self):
        """All voxels of the mask have the same probability."""
        values = np.random.default_rng(0).random((9, 8, 7)) > 0.8
        mask = from_array(values, spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume(), shape=1, sampler=Uniform(5000), mask=mask)
        counts = np.zeros((9, 8, 7), dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[~values].any()
        assert p_of_proportions(counts[values]) > LEAST_P

    def test_padding_counts_as_outside_the_mask(self):
        """The part of a patch beyond the edge counts as outside the mask."""
        mask = from_array(np.ones((9, 8, 7), np.uint8), spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume(), shape=4, sampler=Uniform(300), mask=mask, min_mask_fraction=0.9, padding="edge")
        wide = np.pad(mask.values, 6)
        covered = [wide[z : z + 4, y : y + 4, x : x + 4].mean() for z, y, x in p.positions + 6]
        assert min(covered) >= 0.9

    def test_patches_longer_than_the_volume_raise_grid_error(self):
        """A patch longer than the volume needs padding."""
        with pytest.raises(GridError, match="must fit a volume"):
            mrhdata.patches(volume(), shape=10, sampler=Uniform(3))


class TestClassBalanced:
    """The number of patches around voxels of each class is exactly as requested."""

    @settings(max_examples=60 if FULL else 12)
    @given(st.integers(1, 60), st.integers(0, 2**16), st.sampled_from([(1, 1, 1), (3, 2, 3), (1, 4, 5)]), st.booleans())
    def test_classes_have_equal_counts_by_default(self, n, seed, shape, overhang):
        """Counts differ by at most one, and the middle voxel has the class unless the patch was moved."""
        labels = labelled(seed=seed)
        v = volume((130, 5, 6))
        p = mrhdata.patches(
            v, shape=shape, sampler=ClassBalanced(n, labels), seed=seed, padding="constant" if overhang else None
        )
        counts = [(p.classes == c).sum() for c in (0, 1, 2, 7)]
        assert sum(counts) == len(p) == n
        assert max(counts) - min(counts) <= 1
        unmoved = np.ones(n, dtype=bool)
        if not overhang:
            # Patches at the first and last positions may have been moved there; a length of 1 is never moved.
            last = np.array(v.shape) - shape
            unmoved = ((np.array(shape) == 1) | ((p.positions > 0) & (p.positions < last))).all(axis=1)
        np.testing.assert_array_equal(labels.values[tuple(centres_of(p)[unmoved].T)], p.classes[unmoved])

    def test_ratios_set_the_counts_of_classes(self):
        """One positive to three negatives; the rest is drawn by size; a class of ratio 0 has no patch."""
        labels = labelled()
        v = volume((130, 5, 6))
        p = mrhdata.patches(v, shape=1, sampler=ClassBalanced(100, labels, {1: 1, "rest": 3}))
        sizes = np.array([(labels.values == c).sum() for c in (0, 2, 7)])
        assert (p.classes == 1).sum() == 25
        rest = np.array([(p.classes == c).sum() for c in (0, 2, 7)])
        assert rest.sum() == 75
        assert (np.abs(rest - 75 * sizes / sizes.sum()) < 1).all()
        p = mrhdata.patches(v, shape=1, sampler=ClassBalanced(30, labels, {2: 2, 7: 1, 0: 0}))
        assert {int(c): int((p.classes == c).sum()) for c in np.unique(p.classes)} == {2: 20, 7: 10}

    def test_voxels_of_a_class_are_uniform(self):
        """All voxels of the class have the same probability over three tiles of unequal size."""
        labels = labelled((130, 4, 4))
        p = mrhdata.patches(volume((130, 4, 4)), shape=1, sampler=ClassBalanced(8000, labels, {2: 1}))
        counts = np.zeros(labels.shape, dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[labels.values != 2].any()
        assert p_of_proportions(counts[labels.values == 2]) > LEAST_P

    def test_class_and_mask_both_hold(self):
        """With a mask of one half all centres lie in it, and the counts are as requested."""
        labels = labelled()
        half = from_array((np.arange(130) < 60)[:, None, None] * np.ones((130, 5, 6)), spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume((130, 5, 6)), shape=(3, 1, 1), sampler=ClassBalanced(40, labels), mask=half)
        assert [(p.classes == c).sum() for c in (0, 1, 2, 7)] == [10] * 4
        assert centres_of(p)[:, 0].max() < 60

    def test_ratio_of_a_missing_class_raises_data_error(self):
        """The message names the missing class and the classes of the labels."""
        with pytest.raises(DataError, match=r"must have voxels of class \[5\]; got \[0, 1, 2, 7\]"):
            mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=ClassBalanced(4, labelled(), {5: 1, "rest": 1}))

    def test_subjects_may_lack_classes_with_allow_missing(self):
        """Other classes replace the missing ones, and 'rest' may be empty."""
        sampler = ClassBalanced(30, labelled(), {5: 1, 2: 1, 7: 2}, allow_missing=True)
        p = mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=sampler)
        assert {int(c): int((p.classes == c).sum()) for c in np.unique(p.classes)} == {2: 10, 7: 20}
        all_classes_and_rest = {0: 1, 1: 1, 2: 1, 7: 1, "rest": 4}
        p = mrhdata.patches(
            volume((130, 5, 6)),
            shape=1,
            sampler=ClassBalanced(40, labelled(), all_classes_and_rest, allow_missing=True),
        )
        assert [(p.classes == c).sum() for c in (0, 1, 2, 7)] == [10] * 4

    def test_labels_of_floating_point_raise_data_error(self):
        """A map of floats has no classes."""
        with pytest.raises(DataError, match="labels must be integers; got float32"):
            mrhdata.patches(volume(), shape=1, sampler=ClassBalanced(4, volume(dtype=np.float32)))

    @pytest.mark.parametrize("ratios", [{1: -1}, {1: 0}, {1: np.nan}, {}])
    def test_invalid_ratios_raise_parameter_error(self, ratios):
        """Ratios that are negative, all zero, NaN, or empty."""
        with pytest.raises(ParameterError, match="weights must be finite, 0 or more, and not all 0"):
            mrhdata.patches(volume((130, 5, 6)), shape=1, sampler=ClassBalanced(4, labelled(), ratios))


class TestIndex:
    """Counts per tile are stored next to the data, and counted again when the data has changed."""

    @settings(max_examples=50 if FULL else 15)
    @given(
        st.tuples(st.integers(1, 140), st.integers(1, 5), st.integers(1, 70)),
        st.sampled_from([None, 7, 50, 64]),
        st.integers(0, 99),
    )
    def test_index_counts_equal_those_of_numpy(self, shape, chunks, seed):
        """Every tile and every class."""
        labels = labelled(shape, classes=(-3, 0, 200), seed=seed, chunks=chunks)
        source = SamplingSpace(labels, [one_grid(labels, (1, 1, 1), None, False)], None, None, False, False).source(
            "labels", labels
        )
        index = index_labels(source)
        assert index.classes == sorted(np.unique(labels.values).tolist())
        corners = itertools.product(*(range(0, n, t) for n, t in zip(shape, source.tile, strict=True)))
        for (z, y, x), mass in zip(corners, index.mass, strict=True):
            tile = labels.values[z : z + source.tile[0], y : y + source.tile[1], x : x + source.tile[2]]
            assert mass.tolist() == [(tile == c).sum() for c in index.classes]

    @pytest.fixture
    def store(self, tmp_path):
        """Return the path of an OME-Zarr store of labels."""
        mrhdata.write(labelled(), tmp_path / "labels.zarr")
        return tmp_path / "labels.zarr"

    @pytest.fixture
    def read(self, monkeypatch):
        """Return a list that records the boxes that are read."""
        boxes = []
        plain = TensorSource.voxels

        def recording(source, box):
            boxes.append(box)
            return plain(source, box)

        monkeypatch.setattr(TensorSource, "voxels", recording)
        return boxes

    def index_of_store(self, path):
        """Return the index of labels in a store."""
        labels = mrhdata.read(path)
        return index_labels(
            SamplingSpace(labels, [one_grid(labels, (1, 1, 1), None, False)], None, None, False, False).source(
                "labels", labels
            ),
            path,
        )

    def test_index_is_stored_next_to_the_data_and_read_again(self, store, read):
        """The second call reads no tile and returns the same counts."""
        first = self.index_of_store(store)
        tiles = len(read)
        assert tiles == len(set(read)) == len(first.mass) >= 1
        assert (store.parent / "labels.zarr.index.json").is_file()
        second = self.index_of_store(store)
        assert len(read) == tiles
        assert second.classes == first.classes == [0, 1, 2, 7]
        np.testing.assert_array_equal(second.mass, first.mass)

    def test_patches_use_the_stored_index(self, store, read):
        """With a stored index a sampler reads only the tiles from which it draws."""
        labels = mrhdata.read(store)
        first = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels), seed=3)
        index = (store.parent / "labels.zarr.index.json").read_text("utf-8")
        before = len(read)
        second = mrhdata.patches(labels, shape=1, sampler=ClassBalanced(20, labels), seed=3)
        tiles = len(json.loads(index)["tiles"])
        # At most one reading of a tile for each of the four classes.
        assert len(read) - before <= 4 * tiles
        assert before - (len(read) - before) == tiles
        np.testing.assert_array_equal(first.positions, second.positions)
        np.testing.assert_array_equal(first.classes, second.classes)

    def test_index_is_counted_again_when_the_store_changes(self, store):
        """For other labels at the same path the counts are new, and are stored in turn."""
        before = self.index_of_store(store)
        other = labelled(seed=9, classes=(0, 3))
        mrhdata.write(other, store, overwrite=True)
        for _ in range(2):
            after = self.index_of_store(store)
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
    def test_invalid_index_files_are_replaced(self, store, change):
        """Counts are correct whatever the file contains, and a valid index replaces the file."""
        first = self.index_of_store(store)
        file = store.parent / "labels.zarr.index.json"
        valid = file.read_text("utf-8")
        file.write_text(change(valid))
        index = self.index_of_store(store)
        assert index.classes == first.classes
        np.testing.assert_array_equal(index.mass, first.mass)
        assert file.read_text("utf-8") == valid

    def test_index_file_that_is_not_text_is_counted_again(self, store):
        """Bytes that are not valid UTF-8 are not an index."""
        first = self.index_of_store(store)
        (store.parent / "labels.zarr.index.json").write_bytes(b"\xff\xfe\x00")
        np.testing.assert_array_equal(self.index_of_store(store).mass, first.mass)

    def test_index_depends_on_the_position_of_the_reference(self, tmp_path):
        """Labels resampled to two grids of one shape at different positions have different counts."""
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
    """Positions are drawn in proportion to a map of weights."""

    def test_voxels_are_drawn_in_proportion(self):
        """The map has three tiles; voxels of weight 0 are never drawn."""
        rng = np.random.default_rng(0)
        weights = np.where(rng.random((130, 4, 4)) > 0.95, rng.uniform(0.2, 3, (130, 4, 4)), 0).astype(np.float32)
        p = mrhdata.patches(
            volume((130, 4, 4)), shape=1, sampler=Weighted(20_000, from_array(weights, spacing=SPACING))
        )
        counts = np.zeros(weights.shape, dtype=int)
        np.add.at(counts, tuple(p.positions.T), 1)
        assert not counts[weights == 0].any()
        assert p_of_proportions(counts[weights > 0], weights[weights > 0].astype(float)) > LEAST_P

    @pytest.mark.parametrize(
        ("value", "message"),
        [(0, "0 everywhere"), (-1, "0 or more"), (np.nan, "finite"), (np.inf, "finite")],
    )
    def test_invalid_weight_maps_raise_data_error(self, value, message):
        """Maps that are all zero, negative, NaN, or infinite."""
        weights = from_array(np.zeros((9, 8, 7)), spacing=SPACING)
        weights[3, 3, 3] = value
        with pytest.raises(DataError, match=message):
            mrhdata.patches(volume(), shape=1, sampler=Weighted(4, weights))


class TestPoints:
    """Patches around points, and negatives at a distance from them."""

    points = np.array([[4.5, 4.0, 2.0], [6.05, 4.0, 2.0], [7.5, 5.0, 1.5]])

    def test_each_point_is_the_middle_of_a_patch(self):
        """Each point in world X, Y, Z is the middle voxel of one patch of class 1."""
        p = mrhdata.patches(volume((40, 40, 40)), shape=(3, 5, 4), sampler=Points(self.points))
        expected = {(20, 20, 15), (20, 20, 20), (15, 25, 25)}
        assert {tuple(c) for c in centres_of(p)} == expected
        assert p.classes.tolist() == [1, 1, 1]

    @settings(max_examples=50 if FULL else 15)
    @given(st.integers(0, 2**16), st.sampled_from([(0.5, 1.0), (0.3, 0.9), (0.0, 0.4)]), st.booleans())
    def test_negatives_lie_in_the_shell_and_away_from_all_points(self, seed, distance, counted):
        """Middle voxels keep the least distance from all points, and the greatest from one, to half a voxel."""
        v = volume((60, 60, 60))
        sampler = Points(
            self.points, negatives_per_point=3, negative_distance_mm=distance, num_patches=40 if counted else None
        )
        p = mrhdata.patches(v, shape=3, sampler=sampler, seed=seed)
        assert np.bincount(p.classes).tolist() == ([30, 10] if counted else [9, 3])
        world = v.mrh.world(centres_of(p))
        distances = cdist(world, self.points)
        half = np.linalg.norm(SPACING) / 2
        assert distances[p.classes == 1].min(axis=1).max() <= half
        assert distances[p.classes == 0].min() >= distance[0] - 1e-9
        assert distances[p.classes == 0].min(axis=1).max() <= distance[1] + half

    def test_points_outside_the_mask_are_dropped(self):
        """Only the points that lie in the mask are the middle of a patch."""
        left = np.zeros((40, 40, 40), np.uint8)
        left[:, :, :18] = 1
        mask = from_array(left, spacing=SPACING, kind="mask")
        p = mrhdata.patches(volume((40, 40, 40)), shape=3, sampler=Points(self.points), mask=mask)
        assert centres_of(p).tolist() == [[20, 20, 15]]

    def test_points_outside_the_volume_raise_data_error(self):
        """Points in micrometres lie outside the volume."""
        with pytest.raises(DataError, match="points must lie in the volume; none of 3 lies in that of subject 0"):
            mrhdata.patches(volume((40, 40, 40)), shape=3, sampler=Points(1000 * self.points))

    def test_impossible_negatives_raise_errors(self):
        """A shell outside the volume, points that are too dense, and distances in the wrong order."""
        v = volume((40, 40, 40))
        with pytest.raises(
            DataError, match=r"too few samples lie in the volume .*; got \d+ of \d+ drawn at 15 to 16 mm"
        ):
            mrhdata.patches(v, shape=3, sampler=Points(self.points, 1, (15, 16)))
        everywhere = v.mrh.world(np.moveaxis(np.indices((40, 40, 40)), 0, -1)[::4, ::4, ::4].reshape(-1, 3))
        inner = everywhere[((everywhere > 3) & (everywhere < 6)).all(axis=1) | (everywhere[:, 2] < 9)]
        with pytest.raises(DataError, match="Pass a smaller least distance"):
            mrhdata.patches(v, shape=3, sampler=Points(inner, 1, (1.0, 1.001)))
        with pytest.raises(ParameterError, match="the least and the greatest"):
            mrhdata.patches(v, shape=3, sampler=Points(self.points, 1, (2, 1)))


class TestFixed:
    """Positions chosen by the user."""

    @settings(max_examples=50 if FULL else 15)
    @given(st.integers(1, 30), st.integers(0, 2**16))
    def test_positions_and_repeats_are_preserved(self, n, seed):
        """Every position occurs as often as it was passed, and `draw_index` is its place in the argument."""
        positions = np.random.default_rng(seed).integers(0, (7, 6, 5), (n, 3))
        p = mrhdata.patches(volume(chunks=3), shape=3, sampler=positions)
        np.testing.assert_array_equal(p.positions, positions[p.draw_index])
        assert sorted(p.draw_index) == list(range(n))
        as_list = mrhdata.patches(volume(chunks=3), shape=3, sampler=positions.tolist())
        np.testing.assert_array_equal(as_list.positions, p.positions)

    def test_each_subject_has_its_own_positions(self):
        """Pass one array for each subject; fewer arrays raise an error."""
        v = volume()
        p = mrhdata.patches([v, v], shape=2, sampler=[np.array([[1, 2, 3]]), np.array([[4, 4, 4], [0, 0, 0]])])
        assert sorted(zip(p.subject.tolist(), p.positions.tolist(), strict=True)) == [
            (0, [1, 2, 3]),
            (1, [0, 0, 0]),
            (1, [4, 4, 4]),
        ]
        with pytest.raises(ParameterError, match="got 1 for 2 or more subjects"):
            mrhdata.patches([v, v], shape=2, sampler=[np.array([[1, 2, 3]])])

    @pytest.mark.parametrize("position", [(7, 0, 0), (0, 6, 0), (0, 0, 5), (-1, 0, 0)])
    def test_positions_outside_the_volume_raise_grid_error(self, position):
        """The message has the patch shape, the volume and the first position that does not fit."""
        with pytest.raises(
            GridError,
            match=r"patches of \(3, 3, 3\) must lie within all volumes, the first of \(9, 8, 7\); 1 positions do not, "
            rf"the first at \[{', '.join(map(str, position))}\]",
        ):
            mrhdata.patches(volume(), shape=3, sampler=[(0, 0, 0), position])

    @pytest.mark.parametrize("position", [(9, 0, 0), (-3, 0, 0), (0, 8, 0)])
    def test_padded_positions_must_touch_the_volume(self, position):
        """A patch of only padding raises an error; a patch with one voxel in the volume does not."""
        with pytest.raises(GridError, match="1 positions do not, the first at"):
            mrhdata.patches(volume(), shape=3, sampler=[position], padding="edge")
        touching = np.clip(position, -2, (8, 7, 6))
        assert mrhdata.patches(volume(), shape=3, sampler=[touching], padding="edge").positions.tolist() == [
            touching.tolist()
        ]

    @pytest.mark.parametrize("positions", [np.zeros((2, 3)), np.zeros((2, 2), int), np.zeros((2, 2, 3), int)])
    def test_invalid_position_arrays_raise_parameter_error(self, positions):
        """Floats, two numbers per position, and too many axes."""
        with pytest.raises(ParameterError, match=r"positions must be whole numbers \(n, 3\)"):
            mrhdata.patches(volume(), shape=2, sampler=positions)

    def test_empty_positions_raise_data_error(self):
        """An empty array, and an empty list."""
        for positions in (np.zeros((0, 3), int), []):
            with pytest.raises(DataError, match="no patch lies within all volumes"):
                mrhdata.patches(volume(), shape=2, sampler=positions)


SAMPLERS = {
    "uniform": lambda n: Uniform(n),
    "class_balanced": lambda n: ClassBalanced(n, labelled()),
    "weighted": lambda n: Weighted(n, labelled()),
    "points": lambda n: Points([[0.6, 0.4, 5.0], [0.9, 0.6, 9.0]], 1, (0.2, 0.5), n),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_positions_depend_on_the_seed(name):
    """Equal seeds draw equal positions; another seed draws other positions."""
    v = volume((130, 5, 6))
    drawn = [mrhdata.patches(v, shape=1, sampler=SAMPLERS[name](60), seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0].positions, drawn[1].positions)
    np.testing.assert_array_equal(drawn[0].draw_index, drawn[1].draw_index)
    assert sorted(map(tuple, drawn[0].positions)) != sorted(map(tuple, drawn[2].positions))


@pytest.mark.parametrize("name", SAMPLERS)
def test_subject_weights_set_patches_per_subject(name):
    """Counts are equal by default, and in proportion to `subject_weights`."""
    subjects = [volume((130, 5, 6), seed=s) for s in range(3)]
    p = mrhdata.patches(subjects, shape=1, sampler=SAMPLERS[name](20), subject_weights=[3, 1, 1])
    assert np.bincount(p.subject).tolist() == [12, 4, 4]
    p = mrhdata.patches(subjects, shape=1, sampler=SAMPLERS[name](21))
    assert np.bincount(p.subject).tolist() == [7, 7, 7]
    if p.classes is not None:
        assert len(p.classes) == 21


def test_each_subject_has_its_own_labels():
    """With a sequence of label volumes each subject's classes come from its own labels."""
    labels = [labelled(seed=1), labelled(seed=2)]
    p = mrhdata.patches([volume((130, 5, 6))] * 2, shape=1, sampler=ClassBalanced(40, labels))
    for subject, own in enumerate(labels):
        selected = p.subject == subject
        assert selected.sum() == 20
        np.testing.assert_array_equal(own.values[tuple(p.positions[selected].T)], p.classes[selected])


def test_subject_weights_need_one_number_per_subject():
    """A list of another length raises an error; an array works like a list."""
    v = volume()
    with pytest.raises(ParameterError, match="subject_weights must have one number for each subject; got 2 for 3"):
        mrhdata.patches([v, v, v], shape=2, sampler=Uniform(6), subject_weights=[1, 2])
    p = mrhdata.patches([v, v], shape=2, sampler=Uniform(6), subject_weights=np.array([1, 2]))
    assert np.bincount(p.subject).tolist() == [2, 4]


def test_even_patches_are_centred_on_points_to_half_a_voxel():
    """The centre of an even patch lies between voxels, at most half a voxel from its point."""
    rng = np.random.default_rng(0)
    volume = from_array(np.zeros((40, 50, 60), np.float32), spacing=(2.0, 1.0, 0.5))
    points = volume.mrh.world(rng.uniform(8, 30, (50, 3)))
    p = mrhdata.patches(volume, shape=12, sampler=Points(points, negatives_per_point=4, negative_distance_mm=(6, 9)))
    centres = p.positions + 5.5
    voxels = volume.mrh.index(points)[p.draw_index[p.classes == 1]]
    assert np.abs(centres[p.classes == 1] - voxels).max() <= 0.5 + 1e-9
    negatives = volume.mrh.world(centres[p.classes == 0])
    nearest = np.linalg.norm(negatives[:, None] - points[None], axis=2).min(axis=1)
    assert nearest.min() >= 6 - 1e-9
