"""Illumination correction: fields are fitted to coarse bins and divided out block by block."""

import dask.array as da
import numpy as np
import pytest

import mrhdata
from mrhdata.errors import DataError, GridError
from mrhdata.preprocessing.bias import bias_field, flat_field, illumination, n4
from mrhdata.preprocessing.spline_fields import coarse_means
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine

LAYERS, WHOLE = (pytest.param(chunks, marks=pytest.mark.full) for chunks in ((1, 20, 36), (40, 44, 36)))
#: Arguments for quick fits.
QUICK = {"iterations": (8, 8, 8), "max_bins": 15}


def head(shape=(40, 44, 36), noise=0.1, **geometry):
    """Return a volume with two tissues in blobs, its true field and its mask."""
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
    """Return the correlation inside the mask."""
    inside = np.asarray(mask) != 0
    return np.corrcoef(np.asarray(field)[inside], np.asarray(truth)[inside])[0, 1]


class TestN4:
    """Fields fitted to coarse bins agree with fields fitted to all voxels."""

    @pytest.mark.full
    def test_coarse_fit_is_as_good_as_simpleitk_on_every_voxel(self):
        """With 27 times fewer voxels, the correlation with the true field is lower by less than 0.01."""
        import SimpleITK as sitk

        volume, truth, mask = head((45, 45, 45))
        iterations = (15, 15, 15)
        correction = sitk.N4BiasFieldCorrectionImageFilter()
        correction.SetMaximumNumberOfIterations(iterations)
        image = sitk.GetImageFromArray(volume.values)
        correction.Execute(image, sitk.GetImageFromArray(mask.values))
        expected = agreement(np.exp(sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image))), truth, mask)
        coarse = agreement(bias_field(volume, mask=mask, max_bins=15, iterations=iterations), truth, mask)
        assert expected > 0.95
        assert coarse > expected - 0.01

    def test_field_of_one_voxel_bins_equals_simpleitk(self):
        """If every bin is one voxel, the field is SimpleITK's up to a constant factor."""
        import SimpleITK as sitk

        volume, _, mask = head((15, 14, 13))
        correction = sitk.N4BiasFieldCorrectionImageFilter()
        correction.SetMaximumNumberOfIterations(QUICK["iterations"])
        positive = np.where((mask.values != 0) & (volume.values > 0), volume.values, 0)
        image = sitk.GetImageFromArray(positive)
        correction.Execute(image, sitk.GetImageFromArray((positive > 0).astype(np.uint8)))
        expected = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image))
        expected -= expected[positive > 0].mean()
        log_field = np.log(bias_field(volume, mask=mask, **QUICK).values)
        np.testing.assert_allclose(log_field, expected, atol=2e-5)

    def test_n4_is_lazy_and_keeps_grid_and_attributes(self):
        """The result is lazy float32 on the same grid with the same attributes, and volume = corrected * field."""
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
        for result in (corrected, field):
            assert result.mrh.grid.same_as(volume.mrh.grid, 1e-9)
        np.testing.assert_allclose(corrected * field, volume, rtol=1e-5)
        assert agreement(field, truth.transpose(2, 1, 0), mask) > 0.95

    def test_field_does_not_depend_on_orientation(self):
        """The same values on an oblique, anisotropic, reversed grid give the same field."""
        plain, _, mask = head((40, 45, 36))
        oblique, _, mask_oblique = head((40, 45, 36), affine=oblique_affine()[:, [2, 1, 0, 3]])
        field = bias_field(plain, mask=mask, **QUICK)
        np.testing.assert_array_equal(bias_field(oblique, mask=mask_oblique, **QUICK), field)
        reverse = {"y": slice(None, None, -1)}
        reversed_field = bias_field(oblique.isel(reverse), mask=mask_oblique.isel(reverse), **QUICK)
        np.testing.assert_allclose(reversed_field.isel(reverse), field, rtol=1e-3)

    @pytest.mark.parametrize("chunks", [(7, 44, 36), (40, 9, 11), LAYERS, WHOLE])
    def test_n4_does_not_depend_on_chunks(self, chunks):
        """Values are equal up to the last bit, also if chunks cut through bins."""
        volume, _, _ = head()
        expected = n4(volume, **QUICK).values
        chunked = n4(volume.chunk(dict(zip("zyx", chunks, strict=True))), **QUICK).values
        np.testing.assert_allclose(chunked, expected, rtol=3e-7)

    def test_fit_on_a_coarser_level_does_not_read_the_finest(self, tmp_path):
        """A fit on level 1 of a store gives nearly the same field."""
        volume, truth, mask = head((72, 80, 70), affine=oblique_affine())
        mrhdata.write(volume, tmp_path / "v.zarr")
        coarse = mrhdata.read(tmp_path / "v.zarr", level=1)
        unreadable = volume.copy(data=da.map_blocks(_fail, volume.chunk().data, dtype=volume.dtype))
        field = bias_field(unreadable, fit_on=coarse, **QUICK)
        fine_field = bias_field(volume, **QUICK)
        assert agreement(field, fine_field, mask) > 0.99
        assert agreement(field, truth.transpose(2, 1, 0), mask) > 0.95

    @pytest.mark.full
    def test_channels_have_separate_fields_unless_fit_on_is_passed(self):
        """Each channel is corrected like a single volume; with fit_on, all channels are divided by one field."""
        volume, _, mask = head()
        other = volume.copy(data=volume.values[:, :, ::-1])
        both = mrhdata.volume.stack({"a": volume, "b": other}).chunk({"c": 2, "z": 13})
        corrected = n4(both, mask=mask, **QUICK)
        assert corrected.dims == both.dims
        for name, channel in (("a", volume), ("b", other)):
            expected = n4(channel, mask=mask, **QUICK)
            np.testing.assert_allclose(corrected.sel(c=name), expected, rtol=1e-6)
        shared = n4(both, mask=mask, **QUICK, fit_on=volume)
        field = bias_field(volume, mask=mask, **QUICK)
        np.testing.assert_allclose(shared, both / field, rtol=1e-6)

    def test_field_of_a_single_plane(self):
        """A plane without z and a plane with z of length 1 have the same field."""
        volume, truth, _ = head((3, 60, 50), noise=0.02)
        thin, plane = volume.isel(z=[1]), volume.isel(z=1)
        field = bias_field(plane, mask=plane > 200, iterations=(20, 20))
        assert field.dims == ("y", "x")
        assert agreement(field, truth[1], plane > 200) > 0.95
        np.testing.assert_array_equal(bias_field(thin, mask=thin > 200, iterations=(20, 20))[0], field)

    def test_field_does_not_depend_on_image_scale(self):
        """A brighter copy has the same field, whose mean logarithm over the fitted voxels is 0."""
        volume, _, mask = head()
        a, b = (bias_field(v, mask=mask, **QUICK).values for v in (volume, volume * 8))
        np.testing.assert_allclose(a, b, rtol=1e-3)
        assert abs(np.log(a[mask.values != 0]).mean()) < 1e-2


class TestUnusualVolumes:
    """Unusual volumes are corrected, or refused with a clear message."""

    def test_nan_and_negative_background_hardly_change_the_field(self):
        """The field agrees with the truth despite a negative background and NaN inside; NaN stay NaN."""
        volume, truth, mask = head()
        inside = mask.values != 0
        values = np.where(inside, volume.values, -40)
        values[18:22, 20:24, 15:19] = np.nan
        unusual = volume.copy(data=values)
        field = bias_field(unusual, **QUICK)
        assert agreement(field, truth, mask) > 0.95
        corrected = n4(unusual, **QUICK)
        np.testing.assert_array_equal(np.isnan(corrected), np.isnan(values))

    @pytest.mark.parametrize("value", [7, 0.1])
    def test_constant_volume_is_unchanged(self, value):
        """The field of a constant volume is 1."""
        v = from_array(np.full((9, 50, 9), value), spacing=(1, 1, 1))
        np.testing.assert_array_equal(n4(v), np.full(v.shape, np.float32(value)))

    @pytest.mark.parametrize("shape", [(2, 2, 2), (1, 3, 2), (3, 5, 4)])
    def test_field_is_finite_with_fewer_voxels_than_control_points(self, shape):
        """The field of a tiny volume is between 0.1 and 10."""
        values = np.random.default_rng(0).uniform(1, 2, shape)
        field = bias_field(v := from_array(values, spacing=(1, 2, 3)), mask=v > 0).values
        assert field.shape == shape
        assert (field > 0.1).all()
        assert (field < 10).all()

    def test_bin_means_of_large_integers_are_exact(self):
        """Means are exact for 16-bit and 32-bit values near their maximum, in bins cut by chunks."""
        rng = np.random.default_rng(0)
        for dtype in (np.uint16, np.int32):
            a = rng.integers(np.iinfo(dtype).max - 1000, np.iinfo(dtype).max, (10, 13)).astype(dtype)
            v = from_array(da.from_array(a, chunks=(3, 4)), spacing=(1, 1))
            bins = coarse_means(v, (4, 5))
            assert bins.means.shape == (3, 3)
            assert bins.means[2, 2] == a[8:, 10:].astype(object).sum() / 6
            assert bins.means[1, 0] == a[4:8, :5].astype(object).sum() / 20
            assert (bins.share == 1).all()

    def test_n4_refuses_invalid_arguments(self):
        """Labels, values below zero, an empty mask, another grid, a line and numbers out of range are refused."""
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
        with pytest.raises(DataError, match="max_bins=2, "):
            n4(volume, max_bins=2)
        with pytest.raises(GridError, match="got 0 to 5 mm"):
            n4(volume, fit_on=volume.isel(y=slice(0, 6)))
        with pytest.raises(GridError, match="same store"):
            n4(volume, fit_on=from_array(volume.values, affine=oblique_affine()))
        with pytest.raises(GridError, match="Select one image"):
            n4(volume, fit_on=mrhdata.volume.stack({"a": volume, "b": volume}))


class TestFlatField:
    """Planes of one microscope share one illumination pattern."""

    def planes(self, dark=0.0):
        """Return planes of sparse cells on a background of varying brightness, their pattern and their tissue."""
        rng = np.random.default_rng(0)
        y, x = np.meshgrid(np.linspace(-1, 1, 90), np.linspace(-1, 1, 70), indexing="ij")
        pattern = 1 - 0.25 * (x - 0.2) ** 2 - 0.2 * y**2 + 0.1 * x * y
        tissue = 300 * (1 + (rng.random((40, 90, 70)) > 0.9)) * rng.uniform(0.8, 1.2, (40, 1, 1))
        return from_array((tissue * pattern + dark).astype(np.float32), spacing=(0.01, 0.002, 0.002)), pattern, tissue

    def test_pattern_is_estimated_within_three_percent(self):
        """The error is at most 3 % at every pixel, and below 1.5 % on average with only 10 of 40 planes."""
        volume, pattern, tissue = self.planes(dark=100)
        estimate = illumination(volume, dark=100).values
        assert (estimate == estimate[:1]).all()
        ratio = estimate[0] / pattern
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)
        ratio = illumination(volume, dark=100, planes=10).values[0] / pattern
        assert ratio.std() / ratio.mean() < 0.015
        corrected = flat_field(volume, dark=100)
        ratio = corrected.values / tissue
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)
        assert corrected.mrh.grid.same_as(volume.mrh.grid, 1e-12)
        assert corrected.attrs == volume.attrs

    def test_flat_field_of_chunks_and_channels(self):
        """The result does not depend on chunks, and a second channel has its own pattern."""
        volume, _, _ = self.planes()
        expected = flat_field(volume).values
        np.testing.assert_allclose(flat_field(volume.chunk({"z": 1, "y": 17})), expected, rtol=3e-7)
        both = mrhdata.volume.stack({"a": volume, "b": volume.copy(data=volume.values[:, ::-1])})
        corrected = flat_field(both).values
        np.testing.assert_allclose(corrected[0], expected, rtol=3e-7)
        np.testing.assert_allclose(corrected[1], expected[:, ::-1], rtol=1e-5)

    def test_pattern_is_extrapolated_smoothly_outside_the_mask(self):
        """The pattern is within 3 % of the truth in a corner that the mask excludes."""
        volume, pattern, _ = self.planes()
        mask = volume.copy(data=np.ones(volume.shape, np.uint8))
        mask[:, :15, :15] = 0
        estimate = illumination(volume.where(mask > 0, np.nan), mask=mask).values[0]
        ratio = estimate / pattern
        np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.03)

    def test_flat_field_of_a_single_plane_and_invalid_arguments(self):
        """A single plane becomes more even; a wrong percentile, values below dark and a line are refused."""
        volume, _, _ = self.planes()
        plane = flat_field(volume.isel(z=3))
        assert plane.dims == ("y", "x")
        assert plane.std() / plane.mean() < volume.isel(z=3).std() / volume.isel(z=3).mean()
        with pytest.raises(DataError, match="percentile=101"):
            flat_field(volume, percentile=101)
        with pytest.raises(DataError, match="above 0"):
            flat_field(volume, dark=1e6)
        with pytest.raises(GridError, match="whole planes"):
            flat_field(volume.isel(y=0, x=0))


def test_fit_reads_each_block_once_and_holds_few_in_memory():
    """At most 24 of 200 blocks are in memory at a time, and each is read once."""
    in_memory, most_in_memory, blocks_read = set(), [0], [0]

    class Block(np.ndarray):
        def __del__(self):
            in_memory.discard(id(self))

    def read(block_info):
        blocks_read[0] += 1
        block = np.ones((4, 16, 16), np.float32).view(Block)
        in_memory.add(id(block))
        most_in_memory[0] = max(most_in_memory[0], len(in_memory))
        return block

    deep = da.map_blocks(read, chunks=((4,) * 200, (16,), (16,)), dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    # The first fit imports modules: one thread would wait for them while the other reads more blocks.
    bias_field(from_array(np.ones((8, 16, 16), np.float32), spacing=(1, 1, 1)))
    bias_field(from_array(deep, spacing=(1, 1, 1)))
    assert blocks_read[0] == 200
    assert most_in_memory[0] <= 24


def _fail(block):
    raise AssertionError("the finest level was read")
