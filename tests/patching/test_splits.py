"""Splits share nothing: checked voxel by voxel."""

import itertools

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.patching.samplers import Uniform
from mrhdata.volume.construct import from_array
from tests.conftest import FULL


def volume(shape=(24, 9, 8), seed=0):
    """A volume of noise."""
    return from_array(np.random.default_rng(seed).random(shape, dtype=np.float32), spacing=(0.1, 0.2, 0.3))


def painted(p, subject=0, grow=0):
    """Voxels that patches of a subject cover, and those within `grow` of them along z."""
    covered = np.zeros(p.sources[subject][0].grid.shape, dtype=bool)
    for z, y, x in p.positions[p.subject == subject]:
        covered[max(0, z - grow) : z + p.shape[0] + grow, y : y + p.shape[1], x : x + p.shape[2]] = True
    return covered


@settings(max_examples=60 if FULL else 15)
@given(st.integers(1, 4), st.integers(0, 5), st.lists(st.integers(1, 3), min_size=2, max_size=3), st.integers(0, 99))
def test_blocks_keep_their_distance(length, guard, sizes, seed):
    """Between patches of any two parts lie at least `guard` planes, and no part is a fringe of another."""
    p = mrhdata.patches(volume((48, 6, 6)), shape=(length, 2, 2), sampler=Uniform(400), seed=seed)
    # Every part has room for patches.
    assume(min(sizes) / sum(sizes) * 48 > 2 * (guard + length))
    parts = p.split(sizes, by="z", guard=guard)
    planes = [painted(part).any(axis=(1, 2)) for part in parts]
    for a, b in itertools.pairwise(planes):
        assert np.flatnonzero(b)[0] - np.flatnonzero(a)[-1] > guard
    for a, b in itertools.combinations(parts, 2):
        a.check_leakage(b)


def test_shares_are_of_patches_and_not_of_the_axis():
    """A brain that fills the middle of its volume and tapers off is shared out as asked, save for the gaps."""
    away = np.linalg.norm(np.indices((60, 30, 30)).T - [34, 15, 15], axis=-1).T
    brain = volume((60, 30, 30)).copy(data=(away < 14).astype(np.uint8))
    p = mrhdata.patches(volume((60, 30, 30)), shape=1, stride=1, mask=brain)
    counts = np.array([len(part) for part in p.split([0.6, 0.2, 0.2], by="z")])
    np.testing.assert_allclose(counts / len(p), [0.6, 0.2, 0.2], atol=0.08)


def test_the_guard_is_a_patch_unless_it_is_given():
    """The longest side of the patch lies between training and test."""
    p = mrhdata.patches(volume((60, 9, 8)), shape=(3, 5, 2), stride=1)
    train, test = p.split([2, 1], by="z")
    assert test.positions[:, 0].min() - (train.positions[:, 0].max() + 3) == 5


def test_targets_count_too():
    """A target larger than its input keeps the parts apart by its own size."""
    v = volume((60, 9, 8))
    p = mrhdata.patches(v, v, shape=(1, 1, 1), target_shape=(9, 1, 1), stride=1, padding="edge")
    train, test = p.split([1, 1], by="z", guard=0)
    assert test.positions[:, 0].min() - train.positions[:, 0].max() >= 9
    train.check_leakage(test)


def test_subjects_stay_whole():
    """Each subject lies in one part; too few subjects are an error."""
    p = mrhdata.patches([volume(seed=i) for i in range(7)], shape=4)
    parts = p.split([0.6, 0.2, 0.2], seed=1)
    subjects = [set(part.subject.tolist()) for part in parts]
    assert sorted(map(len, subjects)) == [1, 2, 4]
    assert set.union(*subjects) == set(range(7))
    assert sum(map(len, parts)) == len(p)
    for a, b in itertools.combinations(parts, 2):
        a.check_leakage(b)
    with pytest.raises(DataError, match=r"1 subjects do not make parts of \[1, 1\]"):
        mrhdata.patches(volume(), shape=2).split([1, 1])


def test_a_part_of_few_subjects_is_planned_and_read():
    """Subjects that went to the other part leave no trace in the plan."""
    p = mrhdata.patches([{"v": volume((6, 9, 8), seed)} for seed in range(3)], shape=3)
    train, test = p.split([2, 1], by="subject")
    for part in (train, test):
        rows = np.concatenate([rows for rows, _ in part.batches(8)])
        assert np.array_equal(np.sort(rows), np.arange(len(part)))
        assert part.explain(8).patches == len(part)


def test_a_part_counts_and_names_its_own_subjects(tmp_path):
    """In what is printed, in the plan and in a notebook; names are those of the files, where they are few."""
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
def test_folds_test_everything_once(by):
    """Every patch that lies within one block is tested once, and shares nothing with its training."""
    p = mrhdata.patches([volume((30, 20, 8), seed=i) for i in range(4)], shape=2, stride=2)
    folds = p.folds(3, by=by)
    tested = [tuple(row) for _, test in folds for row in np.column_stack([test.subject, test.positions])]
    assert len(tested) == len(set(tested))
    if by == "subject":
        assert len(tested) == len(p)
    else:
        across = p.positions[:, "zyx".index(by)]
        length = {"z": 30, "y": 20}[by]
        borders = [round(length * i / 3) for i in (1, 2)]
        whole = np.all([(across + 2 <= b) | (across >= b) for b in borders], axis=0)
        assert len(tested) == whole.sum()
    for train, test in folds:
        train.check_leakage(test)


def test_leakage_is_found_by_painting():
    """Patches that share a voxel, counted by hand; one voxel apart is none."""
    v = volume((20, 9, 8))
    a = mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[0, 0, 0], [5, 0, 0], [9, 4, 4]]))
    with pytest.raises(DataError, match=r"1 of 3 patches share voxels with the other set, the first at \[5, 0, 0\]"):
        a.check_leakage(mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[6, 2, 1], [7, 0, 0]])))
    a.check_leakage(mrhdata.patches(v, shape=(2, 3, 2), sampler=np.array([[7, 0, 0], [2, 0, 0], [9, 1, 4]])))


def test_leakage_sees_through_slices_files_and_names(tmp_path):
    """One file read twice, one array sliced: the same subject. Another array: another subject."""
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


def test_mirror_images_are_pointed_out(caplog):
    """Along x the hemispheres are parted."""
    mrhdata.patches(volume((6, 6, 40)), shape=2).split([1, 1], by="x")
    assert "mirror images" in caplog.text


def test_splits_that_make_no_sense():
    """Unknown axes, one fold, negative guards, parts that the guard eats."""
    p = mrhdata.patches(volume(), shape=4)
    with pytest.raises(GridError, match="by subject, z, y or x, not 'axial'"):
        p.split([1, 1], by="axial")
    with pytest.raises(DataError, match="two folds or more, not 1"):
        p.folds(1)
    with pytest.raises(GridError, match="0 or more, not -1"):
        p.split([1, 1], by="z", guard=-1)
    with pytest.raises(DataError, match="no patches; give it a larger share"):
        p.split([1, 1], by="z", guard=40)


def test_a_file_by_another_way_to_it_is_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mrhdata.write(from_array(np.zeros((8, 8, 8), np.float32), spacing=(1, 1, 1)), "a.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    first = mrhdata.patches(mrhdata.read("a.zarr"), shape=4)
    for path in (tmp_path / "a.zarr", tmp_path / "link.zarr", tmp_path / ".." / tmp_path.name / "a.zarr"):
        with pytest.raises(DataError, match="share voxels"):
            first.check_leakage(mrhdata.patches(mrhdata.read(path), shape=4))


def test_patches_of_turned_axes_are_seen_from_both_sides():
    """A volume resampled to a grid that is turned by 43 degrees shares voxels with itself, whoever asks."""
    turn = np.deg2rad(43)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = [8, -2, 0]
    volume = from_array(np.zeros((4, 24, 24), np.float32), spacing=(1, 1, 1))
    grid = from_array(np.zeros((16, 16, 4), np.float32), affine=affine, dims=("x", "y", "z"))
    turned = mrhdata.patches(grid, volume, shape=(2, 8, 1), grids="resample")
    for position in turned.positions[:: len(turned.positions) // 12]:
        mine = mrhdata.patches(grid, volume, shape=(2, 8, 1), sampler=[position[None]], grids="resample")
        whole = mrhdata.patches(volume, shape=1)
        for one, other in ((mine, whole), (whole, mine)):
            with pytest.raises(DataError, match="share voxels"):
                one.check_leakage(other)
