"""Uneven illumination is found on coarse cells and divided out block by block."""

import dask.array as da
import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.preprocessing.bias import bias_field, flat_field, illumination, n4
from mrhdata.preprocessing.spline_fields import coarse_cells
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine

LAYERS, WHOLE = (pytest.param(chunks, marks=pytest.mark.full) for chunks in ((1, 20, 36), (40, 44, 36)))
#: Arguments of quick fits.
QUICK = {"iterations": (8, 8, 8), "cells": 15}


def head(shape=(40, 44, 36), noise=0.1, **geometry):
    """A volume of two tissues in blobs, its true field and its mask."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    field = np.exp(0.3 * z - 0.25 * y * y + 0.3 * x * y + 0.2 * np.sin(2 * x + z))
    mask = z * z + y * y + x * x < 0.85
    tissue = 1 + 0.5 * (np.sin(9 * z) * np.sin(8 * y) * np.sin(7 * x) > 0)
    rng = np.random.default_rng(0)
    values = 500 * tissue * field * mask + 500 * noise * rng.standard_normal(shape)
    volume, inside = (
        from_array(a, name="head", **(geometry or {"spacing": (1, 1, 1)}))
        for a in (values.astype(np.float32), mask.astype(np.uint8))
    )
    return volume, field, inside


def agreement(field, truth, mask):
    """Correlation inside the mask."""
    inside = np.asarray(mask) != 0
    return np.corrcoef(np.asarray(field)[inside], np.asarray(truth)[inside])[0, 1]


class TestN4:
    """The field by cells is the field of the whole."""

    @pytest.mark.full
    def test_as_good_as_simpleitk_on_every_voxel(self):
        """Correlation with the true field within 0.01 of the whole volume's, from 27 times fewer voxels."""
        import SimpleITK as sitk

        volume, truth, mask = head((45, 45, 45))
        iterations = (15, 15, 15)
        whole = sitk.N4BiasFieldCorrectionImageFilter()
        whole.SetMaximumNumberOfIterations(iterations)
        image = sitk.GetImageFromArray(volume.values)
        whole.Execute(image, sitk.GetImageFromArray(mask.values))
        expected = agreement(np.exp(sitk.GetArrayFromImage(whole.GetLogBiasFieldAsImage(image))), truth, mask)
        got = agreement(bias_field(volume, mask=mask, cells=15, iterations=iterations), truth, mask)
        assert expected > 0.95
        assert got > expected - 0.01

    def test_one_voxel_cells_are_simpleitk(self):
        """Where no cell is larger than a voxel, the field is SimpleITK's own but for its scale."""
        import SimpleITK as sitk

        volume, _, mask = head((15, 14, 13))
        whole = sitk.N4BiasFieldCorrectionImageFilter()
        whole.SetMaximumNumberOfIterations(QUICK["iterations"])
        positive = np.where((mask.values != 0) & (volume.values > 0), volume.values, 0)
        image = sitk.GetImageFromArray(positive)
        whole.Execute(image, sitk.GetImageFromArray((positive > 0).astype(np.uint8)))
        expected = sitk.GetArrayFromImage(whole.GetLogBiasFieldAsImage(image))
        expected -= expected[positive > 0].mean()
        got = np.log(bias_field(volume, mask=mask, **QUICK).values)
        np.testing.assert_allclose(got, expected, atol=2e-5)

    def test_division_keeps_all_but_the_values(self):
        """Lazy float32 on the same grid with the same attributes, and volume = corrected * field."""
        volume, truth, mask = head(affine=oblique_affine(flip=(1, -1, 1)))
        volume = mrhdata.volume.describe(volume, units="1", modality="mri").chunk({"z": 10})
        corrected = n4(volume, mask=mask, **QUICK)
        field = bias_field(volume, mask=mask, **QUICK)
        assert isinstance(corrected.data, da.Array)
        assert isinstance(field.data, da.Array)
        assert corrected.dtype == field.dtype == np.float32
        assert corrected.attrs == volume.attrs
        assert corrected.name == volume.name
        assert corrected.chunks == volume.chunks
        for made in (corrected, field):
            assert made.mrh.grid.same_as(volume.mrh.grid, 1e-9)
        np.testing.assert_allclose(corrected * field, volume, rtol=1e-5)
        assert agreement(field, truth.transpose(2, 1, 0), mask) > 0.95

    def test_field_lies_where_the_image_does(self):
        """The same values on an oblique, anisotropic, reversed grid give the field of the same voxels."""
        plain, _, mask = head((40, 45, 36))
        oblique, _, mask_oblique = head((40, 45, 36), affine=oblique_affine()[:, [2, 1, 0, 3]])
        field = bias_field(plain, mask=mask, **QUICK)
        np.testing.assert_array_equal(bias_field(oblique, mask=mask_oblique, **QUICK), field)
        back = {"y": slice(None, None, -1)}
        turned = bias_field(oblique.isel(back), mask=mask_oblique.isel(back), **QUICK)
        np.testing.assert_allclose(turned.isel(back), field, rtol=1e-3)

    @pytest.mark.parametrize("chunks", [(7, 44, 36), (40, 9, 11), LAYERS, WHOLE])
    def test_chunks_do_not_show(self, chunks):
        """Whatever the chunks, also those that cut cells, values are equal but for the last bit."""
        volume, _, _ = head()
        expected = n4(volume, **QUICK).values
        got = n4(volume.chunk(dict(zip("zyx", chunks, strict=True))), **QUICK).values
        np.testing.assert_allclose(got, expected, rtol=3e-7)

    def test_a_coarser_level_is_enough(self, tmp_path):
        """Fitted on level 1 of a store, the finest is not read for the fit and the field is nearly the same."""
        volume, truth, mask = head((72, 80, 70), affine=oblique_affine())
        mrhdata.write(volume, tmp_path / "v.zarr")
        coarse = mrhdata.read(tmp_path / "v.zarr", level=1)
        unread = volume.copy(data=da.map_blocks(_refuse, volume.chunk().data, dtype=volume.dtype))
        field = bias_field(unread, fit_on=coarse, **QUICK)
        fine = bias_field(volume, **QUICK)
        assert agreement(field, fine, mask) > 0.99
        assert agreement(field, truth.transpose(2, 1, 0), mask) > 0.95

    @pytest.mark.full
    def test_channels_have_fields_of_their_own_or_share_one(self):
        """Each channel is corrected as it is alone; with fit_on all are divided by one field."""
        volume, _, mask = head()
        other = volume.copy(data=volume.values[:, :, ::-1])
        both = mrhdata.volume.stack({"a": volume, "b": other}).chunk({"c": 2, "z": 13})
        corrected = n4(both, mask=mask, **QUICK)
        assert corrected.dims == both.dims
        for name, alone in (("a", volume), ("b", other)):
            expected = n4(alone, mask=mask, **QUICK)
            np.testing.assert_allclose(corrected.sel(c=name), expected, rtol=1e-6)
        shared = n4(both, mask=mask, **QUICK, fit_on=volume)
        field = bias_field(volume, mask=mask, **QUICK)
        np.testing.assert_allclose(shared, both / field, rtol=1e-6)

    def test_a_plane_has_a_field(self):
        """Two axes, with z dropped or of length 1."""
        volume, truth, _ = head((3, 60, 50), noise=0.02)
        thin, plane = volume.isel(z=[1]), volume.isel(z=1)
        field = bias_field(plane, mask=plane > 200, iterations=(20, 20))
        assert field.dims == ("y", "x")
        assert agreement(field, truth[1], plane > 200) > 0.95
        np.testing.assert_array_equal(bias_field(thin, mask=thin > 200, iterations=(20, 20))[0], field)

    def test_a_brighter_copy_has_the_same_field(self):
        """The field does not change with the unit of the image, and its mean logarithm is 0 where it was fitted."""
        volume, _, mask = head()
        a, b = (bias_field(v, mask=mask, **QUICK).values for v in (volume, volume * 8))
        np.testing.assert_allclose(a, b, rtol=1e-3)
        assert abs(np.log(a[mask.values != 0]).mean()) < 1e-2


class TestOddVolumes:
    """A right answer, or one clear sentence."""

    def test_zeros_nan_and_negative_background(self):
        """Background below zero and NaN inside change the field little; NaN stay NaN."""
        volume, truth, mask = head()
        inside = mask.values != 0
        values = np.where(inside, volume.values, -40)
        values[18:22, 20:24, 15:19] = np.nan
        odd = volume.copy(data=values)
        field = bias_field(odd, **QUICK)
        assert agreement(field, truth, mask) > 0.95
        corrected = n4(odd, **QUICK)
        np.testing.assert_array_equal(np.isnan(corrected), np.isnan(values))

    @pytest.mark.parametrize("value", [7, 0.1])
    def test_constant_volume_stays(self, value):
        """Nothing varies, so the field is 1."""
        v = from_array(np.full((9, 50, 9), value), spacing=(1, 1, 1))
        np.testing.assert_array_equal(n4(v), np.full(v.shape, np.float32(value)))

    @pytest.mark.parametrize("shape", [(2, 2, 2), (1, 3, 2), (3, 5, 4)])
    def test_fewer_voxels_than_control_points(self, shape):
        """A field without numbers that are not, between a tenth and ten."""
        values = np.random.default_rng(0).uniform(1, 2, shape)
        field = bias_field(v := from_array(values, spacing=(1, 2, 3)), mask=v > 0).values
        assert field.shape == shape
        assert (field > 0.1).all()
        assert (field < 10).all()

    def test_integers_of_any_size_are_summed_exactly(self):
        """16-bit and 32-bit values near their end, in cells cut by chunks."""
        rng = np.random.default_rng(0)
        for dtype in (np.uint16, np.int32):
            a = rng.integers(np.iinfo(dtype).max - 1000, np.iinfo(dtype).max, (10, 13)).astype(dtype)
            v = from_array(da.from_array(a, chunks=(3, 4)), spacing=(1, 1))
            cells = coarse_cells(v, (4, 5))
            assert cells.means.shape == (3, 3)
            assert cells.means[2, 2] == a[8:, 10:].astype(object).sum() / 6
            assert cells.means[1, 0] == a[4:8, :5].astype(object).sum() / 20
            assert (cells.share == 1).all()

    def test_what_cannot_be_corrected_is_refused(self):
        """Labels, nothing above zero, an empty mask, another grid, a line, numbers out of range."""
        volume, _, mask = head((12, 12, 12))
        moved = from_array(mask.values, spacing=(1, 1, 2))
        with pytest.raises(DataError, match="kind 'labels'"):
            n4(mask.assign_attrs(kind="labels"))
        with pytest.raises(DataError, match="complex"):
            n4(volume.astype(complex))
        with pytest.raises(DataError, match="above 0"):
            n4(-abs(volume))
        with pytest.raises(DataError, match="above 0"):
            n4(volume, mask=mask * 0)
        with pytest.raises(DataError, match="mask voxels are NaN"):
            n4(volume, mask=mask.where(mask > 0))
        with pytest.raises(GridError, match="apart"):
            n4(volume, mask=moved)
        with pytest.raises(GridError, match="one mask for all"):
            n4(volume, mask=mask.isel(z=0))
        with pytest.raises(GridError, match="two axes"):
            n4(line := volume.isel(z=[0], y=[0]) + 1000, mask=line > 0)
        with pytest.raises(DataError, match="cells 2 "):
            n4(volume, cells=2)
        with pytest.raises(GridError, match="reaches from 0 to 5"):
            n4(volume, fit_on=volume.isel(y=slice(0, 6)))
        with pytest.raises(GridError, match="same store"):
            n4(volume, fit_on=from_array(volume.values, affine=oblique_affine()))
        with pytest.raises(GridError, match="select one image"):
            n4(volume, fit_on=mrhdata.volume.stack({"a": volume, "b": volume}))


class TestFlatField:
    """Planes of one microscope share one pattern."""

    def planes(self, dark=0.0):
        """Sparse cells on a bright ground that moves from plane to plane, under one pattern."""
        rng = np.random.default_rng(0)
        y, x = np.meshgrid(np.linspace(-1, 1, 90), np.linspace(-1, 1, 70), indexing="ij")
        pattern = 1 - 0.25 * (x - 0.2) ** 2 - 0.2 * y**2 + 0.1 * x * y
        tissue = 300 * (1 + (rng.random((40, 90, 70)) > 0.9)) * rng.uniform(0.8, 1.2, (40, 1, 1))
        return from_array((tissue * pattern + dark).astype(np.float32), spacing=(0.01, 0.002, 0.002)), pattern, tissue

    def test_pattern_is_found(self):
        """Within 3 % of the truth at every pixel, corners too, and 1.5 % on average from every fourth plane."""
        volume, pattern, tissue = self.planes(dark=100)
        found = illumination(volume, dark=100).values
        assert (found == found[:1]).all()
        ratio = found[0] / pattern
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)
        ratio = illumination(volume, dark=100, planes=10).values[0] / pattern
        assert ratio.std() / ratio.mean() < 0.015
        corrected = flat_field(volume, dark=100)
        ratio = corrected.values / tissue
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)
        assert corrected.mrh.grid.same_as(volume.mrh.grid, 1e-12)
        assert corrected.attrs == volume.attrs

    def test_chunks_and_channels(self):
        """Chunks do not show, and a second channel has its own pattern."""
        volume, _, _ = self.planes()
        expected = flat_field(volume).values
        np.testing.assert_allclose(flat_field(volume.chunk({"z": 1, "y": 17})), expected, rtol=3e-7)
        both = mrhdata.volume.stack({"a": volume, "b": volume.copy(data=volume.values[:, ::-1])})
        corrected = flat_field(both).values
        np.testing.assert_allclose(corrected[0], expected, rtol=3e-7)
        np.testing.assert_allclose(corrected[1], expected[:, ::-1], rtol=1e-5)

    def test_empty_corners_take_the_smooth_continuation(self):
        """Where the mask shows nothing, the pattern is finite and goes on smoothly."""
        volume, pattern, _ = self.planes()
        mask = volume.copy(data=np.ones(volume.shape, np.uint8))
        mask[:, :15, :15] = 0
        found = illumination(volume.where(mask > 0, np.nan), mask=mask).values[0]
        ratio = found / pattern
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)

    def test_a_single_plane_and_what_is_refused(self):
        """A plane is its own sample; percentiles end at 100, and nothing above dark is an error."""
        volume, _, _ = self.planes()
        plane = flat_field(volume.isel(z=3))
        assert plane.dims == ("y", "x")
        assert plane.std() / plane.mean() < volume.isel(z=3).std() / volume.isel(z=3).mean()
        with pytest.raises(DataError, match="percentile 101"):
            flat_field(volume, percentile=101)
        with pytest.raises(DataError, match="above 0"):
            flat_field(volume, dark=1e6)
        with pytest.raises(GridError, match="whole planes"):
            flat_field(volume.isel(y=0, x=0))


def test_a_deep_volume_is_read_once_and_never_held():
    """Few blocks are in memory at a time, and a block that was summed is not read again for the fit."""
    alive, most, made = set(), [0], [0]

    class Block(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make(block_info):
        made[0] += 1
        block = np.ones((4, 16, 16), np.float32).view(Block)
        alive.add(id(block))
        most[0] = max(most[0], len(alive))
        return block

    deep = da.map_blocks(make, chunks=((4,) * 200, (16,), (16,)), dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    # While one thread imports what the first fit needs, the other one would read on.
    bias_field(from_array(np.ones((8, 16, 16), np.float32), spacing=(1, 1, 1)))
    bias_field(from_array(deep, spacing=(1, 1, 1)))
    assert made[0] == 200
    assert most[0] <= 24


def _refuse(block):
    raise AssertionError("the finest level was read")
