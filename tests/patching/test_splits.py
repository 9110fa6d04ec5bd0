"""Splits share nothing: checked voxel by voxel."""

import itertools

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mrhdata
from mrhdata.errors import DataError, ParameterError
from mrhdata.patching.samplers import Uniform
from mrhdata.volume.construct import from_array
from tests.conftest import FULL


def volume(shape=(24, 9, 8), seed=0):
    """Return a volume of noise."""
    return from_array(np.random.default_rng(seed).random(shape, dtype=np.float32), spacing=(0.1, 0.2, 0.3))


def covered_voxels(p, subject=0, grow=0):
    """Return a mask of the voxels that patches of a subject cover, grown by `grow` voxels along z."""
    covered = np.zeros(p.sources[subject][0].grid.shape, dtype=bool)
    for z, y, x in p.positions[p.subject == subject]:
        covered[max(0, z - grow) : z + p.shape[0] + grow, y : y + p.shape[1], x : x + p.shape[2]] = True
    return covered


@settings(max_examples=60 if FULL else 15)
@given(st.integers(1, 4), st.integers(0, 5), st.lists(st.integers(1, 3), min_size=2, max_size=3), st.integers(0, 99))
def test_parts_along_an_axis_keep_the_guard(length, guard, sizes, seed):
    """At least `guard` planes lie between patches of any two parts."""
    p = mrhdata.patches(volume((48, 6, 6)), shape=(length, 2, 2), sampler=Uniform(400), seed=seed)
    # Every part is long enough for patches.
    assume(min(sizes) / sum(sizes) * 48 > 2 * (guard + length))
    parts = p.split(sizes, by="z", guard=guard)
    planes = [covered_voxels(part).any(axis=(1, 2)) for part in parts]
    for a, b in itertools.pairwise(planes):
        assert np.flatnonzero(b)[0] - np.flatnonzero(a)[-1] > guard
    for a, b in itertools.combinations(parts, 2):
        a.check_leakage(b)


def test_sizes_are_fractions_of_patches_not_of_the_axis():
    """A brain in the middle of its volume is divided in the requested fractions, less the gaps."""
    distance = np.linalg.norm(np.indices((60, 30, 30)).T - [34, 15, 15], axis=-1).T
    brain = volume((60, 30, 30)).copy(data=(distance < 14).astype(np.uint8))
    p = mrhdata.patches(volume((60, 30, 30)), shape=1, stride=1, mask=brain)
    counts = np.array([len(part) for part in p.split([0.6, 0.2, 0.2], by="z")])
    np.testing.assert_allclose(counts / len(p), [0.6, 0.2, 0.2], atol=0.08)


def test_default_guard_is_the_longest_side_of_a_patch():
    """The longest side of the patch lies between training and test."""
    p = mrhdata.patches(volume((60, 9, 8)), shape=(3, 5, 2), stride=1)
    train, test = p.split([2, 1], by="z")
    assert test.positions[:, 0].min() - (train.positions[:, 0].max() + 3) == 5


def test_larger_targets_widen_the_gap():
    """A target that is larger than its input keeps parts apart by its own size."""
    v = volume((60, 9, 8))
    p = mrhdata.patches(v, v, shape=(1, 1, 1), target_shape=(9, 1, 1), stride=1, padding="edge")
    train, test = p.split([1, 1], by="z", guard=0)
    assert test.positions[:, 0].min() - train.positions[:, 0].max() >= 9
    train.check_leakage(test)


def test_split_by_subject_keeps_subjects_whole():
    """Each subject is in one part; too few subjects raise an error."""
    p = mrhdata.patches([volume(seed=i) for i in range(7)], shape=4)
    parts = p.split([0.6, 0.2, 0.2], seed=1)
    subjects = [set(part.subject.tolist()) for part in parts]
    assert sorted(map(len, subjects)) == [1, 2, 4]
    assert set.union(*subjects) == set(range(7))
    assert sum(map(len, parts)) == len(p)
    for a, b in itertools.combinations(parts, 2):
        a.check_leakage(b)
    with pytest.raises(ParameterError, match=r"got \[1, 1\] for 1 subjects, which leaves part 1 empty"):
        mrhdata.patches(volume(), shape=2).split([1, 1])


def test_part_with_some_of_the_subjects_is_planned_and_read():
    """The plan of a part has no subjects of the other part."""
    p = mrhdata.patches([{"v": volume((6, 9, 8), seed)} for seed in range(3)], shape=3)
    train, test = p.split([2, 1], by="subject")
    for part in (train, test):
        indices = np.concatenate([indices for indices, _ in part.batches(8)])
        assert np.array_equal(np.sort(indices), np.arange(len(part)))
        assert part.explain(8).patches == len(part)


def test_part_counts_and_names_its_own_subjects(tmp_path):
    """The text, the cost report and the notebook view count the subjects of the part; files name a few of them."""
    for who in range(6):
        mrhdata.write(volume((6, 9, 8), who), tmp_path / f"sub-{who:02}_T1w.nii")
    subjects = [{"t1w": mrhdata.read(path)} for path in sorted(tmp_path.glob("*.nii"))]
    p = mrhdata.patches(subjects, shape=3, stride=3)
    train, test = p.split([5, 1], seed=1)
    assert "1 channel, 5 subjects, 5 chunks)" in repr(train)
    (number,) = set(test.subject.tolist())
    assert f"1 subject (sub-{number:02}), 1 chunk)" in repr(test)
    assert [part.explain().subjects for part in (p, train, test)] == [6, 5, 1]
    for part in p.split([3, 3], seed=1):
        assert all(f"sub-{number:02}" in repr(part) for number in set(part.subject.tolist()))
        assert "of the first subject" in part._repr_html_()


@pytest.mark.parametrize("by", ["subject", "z", "y"])
def test_folds_test_each_patch_once(by):
    """Every patch within one block is tested once, and shares no voxel with the training patches."""
    p = mrhdata.patches([volume((30, 20, 8), seed=i) for i in range(4)], shape=2, stride=2)
    folds = p.folds(3, by=by)
    tested = [tuple(item) for _, test in folds for item in np.column_stack([test.subject, test.positions])]
    assert len(tested) == len(set(tested))
    if by == "subject":
        assert len(tested) == len(p)
    else:
        across = p.positions[:, "zyx".index(by)]
        length = {"z": 30, "y": 20}[by]
        borders = [round(length * i / 3) for i in (1, 2)]
        within_one_block = np.all([(across + 2 <= b) | (across >= b) for b in borders], axis=0)
        assert len(tested) == within_one_block.sum()
    assert len(folds) == 3
    for train, test in folds:
        train.check_leakage(test)


def test_check_leakage_counts_patches_that_share_voxels():
    """One of three patches shares voxels with the other set; patches one voxel apart share none."""
    v = volume((20, 9, 8))
    a = mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[0, 0, 0], [5, 0, 0], [9, 4, 4]]))
    with pytest.raises(DataError, match=r"1 of 3 patches share voxels with the other set, the first at \[5, 0, 0\]"):
        a.check_leakage(mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[6, 2, 1], [7, 0, 0]])))
    a.check_leakage(mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[7, 0, 0], [2, 0, 0], [9, 1, 4]])))


def test_check_leakage_identifies_slices_and_files(tmp_path):
    """A file read twice and a sliced array are the same subject; another array is another subject."""
    v = volume((20, 9, 8))
    mrhdata.write(v, tmp_path / "a.zarr")
    one, two = (mrhdata.patches(mrhdata.read(tmp_path / "a.zarr"), shape=4) for _ in range(2))
    with pytest.raises(DataError, match="share voxels"):
        one.check_leakage(two)
    stored = mrhdata.read(tmp_path / "a.zarr")
    low, high = (mrhdata.patches(stored.isel(z=part), shape=4) for part in (slice(0, 12), slice(8, 20)))
    with pytest.raises(DataError, match="share voxels"):
        low.check_leakage(high)
    mrhdata.patches(stored.isel(z=slice(0, 10)), shape=4).check_leakage(
        mrhdata.patches(stored.isel(z=slice(10, 20)) * 2, shape=4)
    )
    with pytest.raises(DataError, match="share voxels"):
        mrhdata.patches(v, shape=4).check_leakage(mrhdata.patches(v.isel(z=slice(2, None)), shape=4))
    mrhdata.patches(v, shape=4).check_leakage(mrhdata.patches(volume((20, 9, 8), seed=1), shape=4))
    lazy = v.copy(data=da.from_array(v.values, chunks=5))
    with pytest.raises(DataError, match="share voxels"):
        mrhdata.patches(lazy, shape=4).check_leakage(mrhdata.patches(lazy.isel(z=slice(4, None)), shape=2))


def test_split_along_x_warns_of_mirror_images(caplog):
    """A split along x separates the hemispheres."""
    mrhdata.patches(volume((6, 6, 40)), shape=2).split([1, 1], by="x")
    assert "mirror images" in caplog.text


def test_invalid_splits_raise_errors():
    """An unknown axis, one fold, a negative guard, and a guard that leaves a part empty."""
    p = mrhdata.patches(volume(), shape=4)
    with pytest.raises(ParameterError, match="by must be one of subject, z, y, x; got 'axial'"):
        p.split([1, 1], by="axial")
    with pytest.raises(ParameterError, match="k must be 2 folds or more; got 1"):
        p.folds(1)
    with pytest.raises(ParameterError, match="guard must be 0 voxels or more; got -1"):
        p.split([1, 1], by="z", guard=-1)
    with pytest.raises(DataError, match=r"must have patches; got none\. Pass a larger share"):
        p.split([1, 1], by="z", guard=40)


def test_check_leakage_identifies_a_file_by_any_path(tmp_path, monkeypatch):
    """Relative paths and symbolic links lead to the same file."""
    monkeypatch.chdir(tmp_path)
    mrhdata.write(from_array(np.zeros((8, 8, 8), np.float32), spacing=(1, 1, 1)), "a.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    first = mrhdata.patches(mrhdata.read("a.zarr"), shape=4)
    for path in (tmp_path / "a.zarr", tmp_path / "link.zarr", tmp_path / ".." / tmp_path.name / "a.zarr"):
        with pytest.raises(DataError, match="share voxels"):
            first.check_leakage(mrhdata.patches(mrhdata.read(path), shape=4))


def test_check_leakage_is_symmetric_for_rotated_grids():
    """A volume resampled to a grid rotated by 43 degrees shares voxels with itself, in both directions."""
    turn = np.deg2rad(43)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = [8, -2, 0]
    volume = from_array(np.zeros((4, 24, 24), np.float32), spacing=(1, 1, 1))
    grid = from_array(np.zeros((16, 16, 4), np.float32), affine=affine, dims=("x", "y", "z"))
    turned = mrhdata.patches(grid, volume, shape=(2, 8, 1), grids="resample")
    for position in turned.positions[:: len(turned.positions) // 12]:
        single = mrhdata.patches(grid, volume, shape=(2, 8, 1), sampler=[position[None]], grids="resample")
        whole = mrhdata.patches(volume, shape=1)
        for one, other in ((single, whole), (whole, single)):
            with pytest.raises(DataError, match="share voxels"):
                one.check_leakage(other)
