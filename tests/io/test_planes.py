"""Folders of planes: order, channels and times by names, files that are not planes, and planes that differ."""

import logging
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile

import mrhdata
from mrhdata.errors import FormatError
from mrhdata.io import planes as planes_module


def write_numbered(folder, names):
    """Write one small plane per name, filled with its index in `names`."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.full((3, 4), i, np.uint16))


def indices(volume):
    """Return the index of each plane of a volume, in its order."""
    return volume.values.reshape(-1, *volume.shape[-2:])[:, 0, 0].tolist()


@pytest.mark.parametrize(
    "template", ["brain_Z{z:04}_C{c:02}.tif", "brainZ{z:04}C{c:02}.tif", "ch{c}-slice {z}.tif", "exp_w{c}_z{z}.tif"]
)
def test_channels_by_letters_become_an_axis(tmp_path, caplog, template):
    """Numbers after C, ch or w are channels and those after Z or slice are planes; a warning shows the pattern."""
    write_numbered(tmp_path, [template.format(z=z, c=c) for c in range(2) for z in range(12)])
    volume = mrhdata.read(tmp_path, spacing=1)
    assert volume.sizes == {"c": 2, "z": 12, "y": 3, "x": 4}
    assert indices(volume) == list(range(24))
    assert "{z}" in caplog.text
    assert "{c}" in caplog.text


@pytest.mark.parametrize(("files", "dims"), [(4, {"c": 4}), (30, {"z": 30})])
def test_many_numbers_after_ch_are_planes(tmp_path, caplog, files, dims):
    """A few are channels; 30 are the planes of one channel. A warning shows the pattern in both cases."""
    write_numbered(tmp_path, [f"ch{i:05}.tif" for i in range(files)])
    volume = mrhdata.read(tmp_path, spacing=1)
    assert volume.sizes == dims | {"y": 3, "x": 4}
    assert indices(volume) == list(range(files))
    assert f"ch{{{next(iter(dims))}}}.tif" in caplog.text


def test_times_by_letters_become_an_axis(tmp_path):
    """Times, channels and planes are three axes, in this order."""
    write_numbered(tmp_path, [f"T{t}_C{c}_Z{z}.tif" for t in range(2) for c in range(2) for z in range(3)])
    volume = mrhdata.read(tmp_path, spacing=1)
    assert volume.sizes == {"t": 2, "c": 2, "z": 3, "y": 3, "x": 4}
    assert indices(volume) == list(range(12))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a_{c}_{z:03}.tif", "a_{c}_{z}.tif"),
        ("{c}/{z:03}.tif", "{c}/{z}.tif"),
        ("{c}_{z}_x7.tif", "{c}_{z}_*.tif"),
    ],
)
def test_pattern_says_what_numbers_mean(tmp_path, caplog, name, pattern):
    """Placeholders name planes and channels, also by words and by folders; nothing is warned about."""
    write_numbered(tmp_path, [name.format(z=z, c=c) for c in ("dapi", "gfp") for z in range(3)])
    volume = mrhdata.read(tmp_path / pattern, spacing=1)
    assert volume.sizes == {"c": 2, "z": 3, "y": 3, "x": 4}
    assert (indices(volume), volume.c.values.tolist()) == (list(range(6)), ["dapi", "gfp"])
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["a_{0}_{1:03}.tif", "x{0}_y{1}.tif", "{0}-{1}.tif"])
def test_several_unclear_numbers_are_refused(tmp_path, name):
    """Two running numbers of unknown meaning are refused with a pattern that can settle it."""
    write_numbered(tmp_path, [name.format(i, k) for i in range(2) for k in range(3)])
    with pytest.raises(FormatError, match=r"2 running numbers.*\{z\}"):
        mrhdata.read(tmp_path)


def test_missing_combination_is_refused(tmp_path):
    """A channel that lacks a plane is refused, not filled with zeros."""
    write_numbered(tmp_path, [f"Z{z}_C{c}.tif" for c in range(2) for z in range(3)][:-1])
    with pytest.raises(FormatError, match=r"must have 6 planes; 1 are missing, the first at c = 1, z = 2"):
        mrhdata.read(tmp_path)


@pytest.mark.parametrize("name", ["MAX_b_0000.tif", "AVG_b_0001.tif", "preview.tif", "b_0002_thumb.tif", "b_mip.tif"])
@pytest.mark.parametrize("pattern", ["", "*.tif"])
def test_projections_and_previews_are_left_out(tmp_path, caplog, name, pattern):
    """Projections and previews among planes are left out, with a warning that names one."""
    write_numbered(tmp_path, [*(f"b_{i:04}.tif" for i in range(5)), name])
    assert indices(mrhdata.read(tmp_path / pattern, spacing=1)) == list(range(5))
    assert f"such as {name}" in caplog.text


def test_projections_by_themselves_are_a_stack(tmp_path, caplog):
    """Files that are all projections are read."""
    write_numbered(tmp_path, [f"MAX_{i}.tif" for i in range(3)])
    assert indices(mrhdata.read(tmp_path, spacing=1)) == [0, 1, 2]
    assert caplog.text == ""


@pytest.mark.parametrize("other", ["slide.tif", "z1_mask.tif", "other_1.tif", "z1b.tif"])
def test_names_of_another_kind_are_refused(tmp_path, other):
    """A file whose name differs in more than numbers is refused, with the patterns of both kinds."""
    write_numbered(tmp_path, ["z1.tif", "z2.tif", "z3.tif", other])
    with pytest.raises(FormatError, match=r"2 kinds.*z\*\.tif \(3\)"):
        mrhdata.read(tmp_path)
    assert indices(mrhdata.read(tmp_path / "z[0-9].tif", spacing=1)) == [0, 1, 2]


@pytest.mark.parametrize(
    "names",
    [
        [f"bregma_{place}.tif" for place in (-1.5, -0.5, 0.25, 1.75)],
        [f"bregma_{place:g}.tif" for place in (1.25, 1.5, 1.75, 2, 2.25)],
        [f"b {place:+.2f}.tif" for place in (-0.3, -0.1, 0.1, 0.3)],
        [f"s{i:03}_bregma_{i * 0.25 - 1:g}.tif" for i in range(9)],
        [f"brain-{i:03}.tif" for i in range(3)],
        [f"brain.{i:04}.tif" for i in range(12)],
        [f"2024-01-15_{i}.tif" for i in range(12)],
        [f"img_{i}_20240101{12000 + i}.tif" for i in range(12)],
    ],
)
def test_planes_are_in_the_order_of_their_numbers(tmp_path, names):
    """Signs, decimals, hyphens, dates and numbers that run together give the order of the numbers."""
    write_numbered(tmp_path, names)
    assert indices(mrhdata.read(tmp_path, spacing=1)) == list(range(len(names)))


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["b-1.5.tif", "b-0.5.tif", "b-0.25.tif"], {"b{z}.tif": [0, 1, 2], "b-{z}.tif": [2, 1, 0]}),
        (["s_-3.tif", "s_-2.tif", "s_-1.tif"], {"s_{z}.tif": [0, 1, 2], "s_-{z}.tif": [2, 1, 0]}),
        (["s1.10.tif", "s1.5.tif", "s1.9.tif"], {"s{z}.tif": [0, 1, 2], "s1.{z}.tif": [1, 2, 0]}),
        (["s0_b2.tif", "s1_b1.tif", "s2_b0.tif"], {"s{z}_b*.tif": [0, 1, 2]}),
    ],
)
def test_uncertain_order_is_refused_with_patterns(tmp_path, names, patterns):
    """Names that can be read in two orders are refused, and each pattern of the message reads one of them."""
    write_numbered(tmp_path, names)
    for pattern, order in patterns.items():
        with pytest.raises(FormatError) as error:
            mrhdata.read(tmp_path)
        assert pattern in str(error.value)
        assert indices(mrhdata.read(tmp_path / pattern, spacing=1)) == order


@pytest.mark.parametrize("names", [("z1.tif", "z01.tif"), ("z1.tif", "z1.tiff"), ("b_1.5.tif", "b_1.50.tif")])
def test_equal_numbers_are_refused(tmp_path, names):
    """Two files of one number are both named."""
    write_numbered(tmp_path, [*names, "z9.tif" if names[0][0] == "z" else "b_9.tif"])
    with pytest.raises(FormatError, match="one file per number"):
        mrhdata.read(tmp_path)


def test_case_and_hidden_files_do_not_matter(tmp_path):
    """Names in other case are planes; the hidden copies of macOS are not, by folder and by pattern."""
    write_numbered(tmp_path, ["Brain_01.tif", "brain_02.TIF", "BRAIN_03.Tif"])
    (tmp_path / "._brain_01.tif").write_bytes(b"x")
    assert indices(mrhdata.read(tmp_path, spacing=1)) == [0, 1, 2]
    assert indices(mrhdata.read(tmp_path / "*", spacing=1)) == [0, 1, 2]


def test_names_without_numbers_are_told(tmp_path, caplog):
    """Planes without numbers are in alphabetical order, with a warning."""
    write_numbered(tmp_path, ["a.tif", "b.tif", "c.tif"])
    assert indices(mrhdata.read(tmp_path, spacing=1)) == [0, 1, 2]
    assert "alphabetical" in caplog.text


@pytest.mark.parametrize("name", ["z{}.tif", "s1_z{}_c0.tif", "Z{}_C{}.tif", "b_{}.5.tif"])
def test_gaps_are_told_whatever_the_names_are(tmp_path, caplog, name):
    """A missing plane gives a warning also with several numbers, channels and decimals."""
    channels = (0, 1) if "C" in name else (0,)
    write_numbered(tmp_path, [name.format(z, c) for c in channels for z in (1, 2, 4, 5)])
    mrhdata.read(tmp_path, spacing=1)
    assert "planes are missing after" in caplog.text


@pytest.mark.parametrize("option", [{"level": 1}, {"dataset": "x"}, {"series": 0}])
def test_options_of_other_readers_are_refused(tmp_path, option):
    """A stack has no levels, datasets and series."""
    write_numbered(tmp_path, ["z1.tif", "z2.tif"])
    for source in (tmp_path, tmp_path / "z*.tif"):
        with pytest.raises(FormatError, match="is read without"):
            mrhdata.read(source, **option)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colour_planes_are_channels(tmp_path, compression):
    """Sections with separate colour planes have the colours as channels, not as rows."""
    values = np.random.default_rng(0).integers(0, 255, (5, 3, 20, 24)).astype(np.uint8)
    for i, plane in enumerate(values):
        options = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
        tifffile.imwrite(tmp_path / f"s_{i:03}.tif", plane, **options)
    volume = mrhdata.read(tmp_path, spacing=(0.05, 0.01, 0.01))
    assert volume.c.values.tolist() == ["R", "G", "B"]
    np.testing.assert_array_equal(volume, values.transpose(1, 0, 2, 3))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_orientation_of_planes_is_applied_and_compared(tmp_path, compression):
    """Planes are turned as their tag says; one with another orientation is refused."""
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 5)).astype(np.uint8)
    for orientation in (6, 1):
        tag = [(274, "H", 1, orientation, True)]
        for i in range(3 if orientation == 6 else 2):
            tifffile.imwrite(tmp_path / f"{i}.tif", values[i], extratags=tag, compression=compression)
        if orientation == 6:
            rotated = values.swapaxes(1, 2)[..., ::-1]
            np.testing.assert_array_equal(mrhdata.read(tmp_path, spacing=1), rotated)
    with pytest.raises(FormatError, match=r"2\.tif must have orientation 1, as the first plane; got 6"):
        mrhdata.read(tmp_path)


def test_palette_of_each_plane_is_applied(tmp_path):
    """Planes with palettes become colours, each by its own palette."""
    rng = np.random.default_rng(0)
    indexed = rng.integers(0, 255, (3, 4, 5)).astype(np.uint8)
    tables = rng.integers(0, 255, (3, 3, 256)).astype(np.uint16)
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", indexed[i], photometric="palette", colormap=tables[i] * 257)
    volume = mrhdata.read(tmp_path, spacing=1)
    for i in range(3):
        np.testing.assert_array_equal(volume.isel(z=i), tables[i][:, indexed[i]])


def test_voxel_size_of_planes_is_used_and_compared(tmp_path, caplog):
    """The voxel size in the planes is used; a stack whose planes differ in it gives a warning."""
    for i in range(3):
        notes = {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um", "spacing": 5.0}}
        tifffile.imwrite(tmp_path / f"{i}.tif", np.zeros((4, 5), np.uint8), **notes)
    np.testing.assert_allclose(mrhdata.read(tmp_path).mrh.spacing, (0.005, 0.0005, 0.0005))
    assert caplog.text == ""
    tifffile.imwrite(tmp_path / "2.tif", np.zeros((4, 5), np.uint8), **(notes | {"resolution": (1, 2)}))
    mrhdata.read(tmp_path)
    assert "voxel sizes of the first and the last plane differ" in caplog.text


def test_multipage_files_are_not_planes(tmp_path):
    """Files with several pages are refused, unless the others are small copies of the first."""
    for i in range(2):
        with tifffile.TiffWriter(tmp_path / f"{i}.tif") as file:
            file.write(np.full((4, 5), i, np.uint8), metadata=None)
            file.write(np.full((2, 2), 9, np.uint8), metadata=None, subfiletype=1)
    assert indices(mrhdata.read(tmp_path, spacing=1)) == [0, 1]
    tifffile.imwrite(tmp_path / "1.tif", np.zeros((3, 4, 5), np.uint8), photometric="minisblack")
    with pytest.raises(FormatError, match=r"1\.tif must hold one plane, .* got 3"):
        mrhdata.read(tmp_path)


@pytest.mark.parametrize("layout", [{"rowsperstrip": 64}, {"tile": (64, 64)}, {"rowsperstrip": 1024}])
def test_parts_of_large_compressed_planes_are_read(tmp_path, monkeypatch, layout):
    """Only needed strips or tiles are unpacked, or planes of one strip are kept; values are those of whole planes."""
    monkeypatch.setattr(planes_module, "_PARTIAL_BYTES", 1000)
    values = np.random.default_rng(0).integers(0, 60000, (3, 300, 200)).astype(np.uint16)
    for i, plane in enumerate(values):
        tifffile.imwrite(tmp_path / f"{i}.tif", plane, compression="zlib", **layout)
    volume = mrhdata.read(tmp_path, spacing=1)
    np.testing.assert_array_equal(volume[1:, 100:131, 7:9], values[1:, 100:131, 7:9])
    np.testing.assert_array_equal(volume, values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[2], values[2])


def test_unpacked_planes_are_kept_within_a_bound(monkeypatch):
    """A plane is unpacked once while it is among the last ones, and never kept if it exceeds the bound."""
    monkeypatch.setattr(planes_module, "_CACHE_BYTES", 200)
    unpacked, calls = planes_module._Unpacked(), []

    def plane(i, size):
        return unpacked.get(i, size, lambda: calls.append(i) or np.zeros(size, np.uint8))

    for i in (0, 1, 0, 1, 2, 1, 0):
        plane(i, 100)
    assert calls == [0, 1, 2, 0]
    plane(5, 300)
    plane(5, 300)
    assert calls[-2:] == [5, 5]


@pytest.mark.parametrize(("samples", "names"), [(2, ["grey", "A"]), (3, ["R", "G", "B"]), (4, ["R", "G", "B", "A"])])
def test_channels_of_png_planes_are_named(tmp_path, samples, names):
    """Colours and transparency of PNG planes are named channels, in 8 and 16 bits."""
    for dtype in (np.uint8, np.uint16):
        values = np.random.default_rng(0).integers(0, 255, (3, 4, 5, samples)).astype(dtype)
        for i, plane in enumerate(values):
            (tmp_path / f"{i}.png").write_bytes(imagecodecs.png_encode(plane))
        volume = mrhdata.read(tmp_path, spacing=1)
        assert volume.c.values.tolist() == names
        np.testing.assert_array_equal(volume, values.transpose(3, 0, 1, 2))


def test_damaged_png_is_named(tmp_path, caplog):
    """PNG files that are empty, truncated or claim absurd sizes are refused by name."""
    caplog.set_level(logging.CRITICAL)
    content = imagecodecs.png_encode(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    absurd = content[:16] + (60000).to_bytes(4, "big") * 2 + content[24:]
    for damaged in (b"", content[: len(content) // 2], b"text" * 20, absurd):
        (tmp_path / "1.png").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"1\.png"):
            mrhdata.read(tmp_path, spacing=1).compute()
