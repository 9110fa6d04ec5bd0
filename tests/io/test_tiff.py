"""TIFF files as microscopes write them: pyramids, scenes, parts in other files, colours, orientations and damage."""

import logging
import pickle

import numpy as np
import pytest
import tifffile

import mrhdata
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io.tiff_metadata import OME_TO_MM
from mrhdata.volume.construct import from_array
from mrhdata.volume.times import times_of, with_times
from tests.conftest import oblique_affine

VALUES = np.random.default_rng(0).integers(0, 4000, (3, 128, 160)).astype(np.uint16)
MICROMETRES = {f"PhysicalSize{axis}": step for axis, step in zip("ZYX", (2.0, 0.5, 0.5), strict=True)}


def halved(values):
    """Return the means of blocks of 2 x 2."""
    z, y, x = values.shape
    return values.reshape(z, y // 2, 2, x // 2, 2).mean(axis=(2, 4)).astype(values.dtype)


def strided(values):
    """Return every second voxel."""
    return values[:, ::2, ::2]


def write_pyramid(path, coarser, values=VALUES, **options):
    """Write a pyramid of three levels in SubIFDs, and return the levels."""
    levels = [values, coarser(values), coarser(coarser(values))]
    options = {"tile": (32, 32), "compression": "zlib"} | options
    with tifffile.TiffWriter(path) as file:
        file.write(values, subifds=2, metadata={"axes": "ZYX", **MICROMETRES}, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    return levels


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", None])
def test_level_of_a_pyramid_is_read(tmp_path, compression):
    """Each level of a tiled OME-TIFF has its voxels and its voxel size; -1 is the coarsest."""
    levels = write_pyramid(tmp_path / "a.ome.tif", halved, compression=compression)
    for level, factor in ((0, 1), (1, 2), (-1, 4)):
        volume = mrhdata.read(tmp_path / "a.ome.tif", level=level)
        np.testing.assert_array_equal(volume, levels[level])
        np.testing.assert_allclose(volume.mrh.spacing, (0.002, 0.0005 * factor, 0.0005 * factor))
    with pytest.raises(ParameterError, match="level must be 0 to 2"):
        mrhdata.read(tmp_path / "a.ome.tif", level=3)


@pytest.mark.parametrize(("coarser", "first"), [(halved, (0.5, 1.5)), (strided, (0, 0))])
@pytest.mark.parametrize("orientation", [1, 3])
def test_levels_begin_where_their_voxels_are(tmp_path, coarser, first, orientation):
    """The first voxel of a mean lies between those of the finest level, that of a selection on one of them."""
    tag = [(274, "H", 1, orientation, False)]
    values = VALUES[:, ::-1, ::-1] if orientation == 3 else VALUES
    levels = write_pyramid(tmp_path / "a.ome.tif", coarser, values, extratags=tag)
    for level in (1, 2):
        volume = mrhdata.read(tmp_path / "a.ome.tif", level=level)
        start = first[level - 1]
        stored = levels[level]
        if orientation == 3:
            start = [
                n - 1 - start - (m - 1) * 2**level for n, m in zip(VALUES.shape[1:], stored.shape[1:], strict=True)
            ]
            stored = stored[:, ::-1, ::-1]
        np.testing.assert_array_equal(volume, stored)
        np.testing.assert_allclose(volume.mrh.world([0, 0, 0])[:2], 0.0005 * np.broadcast_to(start, 2)[::-1])


def test_label_of_a_slide_is_not_the_image(tmp_path, caplog):
    """A slide is read from its largest image, with its pixel size; label and macro have names and no pixel size."""
    image = np.random.default_rng(1).integers(0, 255, (64, 80, 3)).astype(np.uint8)
    note = "Aperio Image Library v11.2.1 \r\n80x64 (16x16) |AppMag = 20|MPP = 0.4990"
    options = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(image, tile=(16, 16), description=note, **options)
        file.write(image[::4, ::4], description=note, rowsperstrip=16, **options)
        file.write(image[::2, ::2], tile=(16, 16), description=note, **options)
        file.write(
            image[:20, :30], description="Aperio Image Library v11.2.1 \r\nlabel 30x20", subfiletype=1, **options
        )
        file.write(
            image[:10, :50], description="Aperio Image Library v11.2.1 \r\nmacro 50x10", subfiletype=9, **options
        )
    volume = mrhdata.read(tmp_path / "a.svs")
    np.testing.assert_array_equal(volume.transpose("y", "x", "c"), image)
    np.testing.assert_allclose(volume.mrh.spacing[1:], 0.000499)
    assert volume.c.values.tolist() == ["R", "G", "B"]
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.svs", level=-1).mrh.spacing[1:], 0.000998)
    assert caplog.text == ""
    label = mrhdata.read(tmp_path / "a.svs", series="Label")
    assert (label.sizes["y"], label.attrs["assumed"]) == (20, ["spacing", "orientation", "space"])


@pytest.fixture
def scenes(tmp_path):
    """OME-TIFF of two images of different sizes."""
    with tifffile.TiffWriter(tmp_path / "scenes.ome.tif", ome=True) as file:
        for i, shape in enumerate(((3, 16, 20), (5, 24, 18))):
            sizes = {f"PhysicalSize{axis}": 1.0 + i for axis in "XYZ"}
            file.write(np.full(shape, i + 1, np.uint16), metadata={"axes": "ZYX", "Name": f"brain {i}", **sizes})
    return tmp_path / "scenes.ome.tif"


def test_one_of_several_images_is_chosen_by_series(scenes, caplog):
    """Index and name choose an image with its own voxel size; without them a warning lists the images."""
    for series in (1, "brain 1", "1"):
        volume = mrhdata.read(scenes, series=series)
        assert (volume.shape, volume.values.max()) == ((5, 24, 18), 2)
        np.testing.assert_allclose(volume.mrh.spacing, 0.002)
    assert caplog.text == ""
    assert mrhdata.read(scenes).values.max() == 1
    assert "1 'brain 1' (5, 24, 18); 0 is read. Pass series=" in caplog.text
    for wrong in (2, -1, "brain", True):
        with pytest.raises(ParameterError, match="series must be"):
            mrhdata.read(scenes, series=wrong)


def ome_xml(tiff_data, root="", more="", **pixels):
    """Return OME-XML of one image of 5 planes of 8 x 9."""
    attributes = {
        "DimensionOrder": "XYCZT",
        "Type": "uint16",
        "SizeX": 9,
        "SizeY": 8,
        "SizeZ": 5,
        "SizeC": 1,
        "SizeT": 1,
    }
    listed = " ".join(f'{key}="{value}"' for key, value in (attributes | pixels).items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'{root}><Image ID="Image:0"><Pixels ID="Pixels:0" {listed}>{tiff_data}{more}</Pixels></Image></OME>'
    )


def write_planes(path, values, xml, **options):
    """Write planes with a description."""
    tifffile.imwrite(path, values, description=xml.encode(), metadata=None, photometric="minisblack", **options)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_are_in_the_order_of_the_ome_xml(tmp_path, compression):
    """Pages in any order become times, channels and planes as TiffData says."""
    values = np.random.default_rng(0).integers(0, 999, (2, 3, 5, 8, 9)).astype(np.uint16)
    order = np.random.default_rng(1).permutation(30)
    shuffled, data = np.empty((30, 8, 9), np.uint16), ""
    for page, (t, c, z) in zip(order, np.ndindex(2, 3, 5), strict=True):
        shuffled[page] = values[t, c, z]
        data += f'<TiffData FirstT="{t}" FirstC="{c}" FirstZ="{z}" IFD="{page}" PlaneCount="1"/>'
    xml = ome_xml(data, SizeC=3, SizeT=2, TimeIncrement=300, TimeIncrementUnit="ms")
    write_planes(tmp_path / "a.ome.tif", shuffled, xml, compression=compression)
    volume = mrhdata.read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(volume, values)
    assert times_of(volume) == (0.3, 0.0)
    xml = ome_xml(data[: data.rfind("<TiffData")], SizeC=3, SizeT=2)
    write_planes(tmp_path / "b.ome.tif", shuffled, xml, compression=compression)
    with pytest.raises(FormatError, match="page 29 of 30 is missing"):
        mrhdata.read(tmp_path / "b.ome.tif")


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("nm", 1e-6), ("\u00b5m", 1e-3), ("\u03bcm", 1e-3), ("\u00c5", 1e-7), ("\u212b", 1e-7), ("in", 25.4)],
)
def test_units_of_ome_are_lengths(tmp_path, unit, mm):
    """Micrometres and angstroms have two signs each, and inches are 25.4 mm."""
    sizes = {f"PhysicalSize{axis}": 2 for axis in "XYZ"} | {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    write_planes(tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), ome_xml("<TiffData/>", **sizes))
    np.testing.assert_allclose(mrhdata.read(tmp_path / "a.ome.tif").mrh.spacing, 2 * mm)


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "furlong", ""])
def test_units_that_are_not_lengths_state_no_voxel_size(tmp_path, caplog, unit):
    """Sizes in pixels or in unknown units are not taken for millimetres."""
    sizes = {f"PhysicalSize{axis}": 2 for axis in "XYZ"} | {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    write_planes(tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), ome_xml("<TiffData/>", **sizes))
    assert mrhdata.read(tmp_path / "a.ome.tif").mrh.spacing.tolist() == [1, 1, 1]
    assert "states no voxel size" in caplog.text


def test_units_differ_by_case():
    """A megametre is not a millimetre."""
    assert OME_TO_MM["Mm"] == 1e9
    assert OME_TO_MM["mm"] == 1


def test_stage_position_is_told(tmp_path, caplog):
    """A position of the stage is not used, and a warning names the option that places the image."""
    plane = '<Plane TheZ="0" TheC="0" TheT="0" PositionX="100" PositionXUnit="um" PositionY="20" PositionYUnit="um"/>'
    write_planes(
        tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), ome_xml("<TiffData/>", more=plane, **MICROMETRES)
    )
    mrhdata.read(tmp_path / "a.ome.tif")
    assert "stage position (0.1, 0.02, 0.0) mm" in caplog.text
    assert "origin=" in caplog.text


@pytest.fixture
def parts(tmp_path):
    """Values and files of an OME-TIFF of which each channel is in a file of its own, by a companion file."""
    values = np.random.default_rng(0).integers(0, 999, (3, 5, 8, 9)).astype(np.uint16)
    names = [f"part_{c}.ome.tif" for c in range(3)]
    data = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID>'
        "</TiffData>"
        for c, name in enumerate(names)
        for z in range(5)
    )
    (tmp_path / "a.companion.ome").write_text(ome_xml(data, SizeC=3, root='UUID="urn:uuid:9"'))
    for c, name in enumerate(names):
        root = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{c}">'
        xml = f'{root}<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:9"/></OME>'
        write_planes(tmp_path / name, values[c], xml, compression="zlib")
    return values, [tmp_path / name for name in names]


def test_parts_of_an_ome_tiff_are_one_image(parts):
    """Every part reads as the whole image, also in another process, and its files are all known."""
    values, paths = parts
    for path in paths:
        volume = mrhdata.read(path, spacing=1)
        np.testing.assert_array_equal(volume, values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)), values)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_missing_part_is_named(parts, damage):
    """A part that is missing, truncated or not a TIFF is named, and never zeros."""
    _, paths = parts
    content = paths[1].read_bytes()
    paths[1].unlink()
    if damage != "missing":
        paths[1].write_bytes(content[: len(content) // 2] if damage == "truncated" else b"text")
    with pytest.raises(FormatError, match=r"missing or damaged are part_1\.ome\.tif"):
        mrhdata.read(paths[0])


def test_missing_companion_is_named(parts):
    """A part whose companion file is missing names it."""
    _, paths = parts
    (paths[0].parent / "a.companion.ome").unlink()
    with pytest.raises(FormatError, match=r"a\.companion\.ome"):
        mrhdata.read(paths[0])


@pytest.mark.parametrize("name", ["../part.ome.tif", "/etc/part.ome.tif", "..\\part.ome.tif"])
def test_parts_outside_the_folder_are_refused(tmp_path, name):
    """A file cannot name files in other folders."""
    data = f'<TiffData IFD="0" PlaneCount="5"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>'
    write_planes(tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), ome_xml(data, root='UUID="urn:uuid:0"'))
    with pytest.raises(FormatError, match="must name files in its own folder"):
        mrhdata.read(tmp_path / "a.ome.tif")


def test_xml_with_entities_is_refused(tmp_path):
    """Entities of XML, which can expand to any size, are refused before they are parsed."""
    xml = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><OME xmlns="x"><Image><Pixels/></Image></OME>'
    write_planes(tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), xml)
    with pytest.raises(FormatError, match="document type"):
        mrhdata.read(tmp_path / "a.ome.tif")


def test_damaged_note_of_mrhdata_is_refused(tmp_path):
    """A note without affine, or with one that is not 4 x 4, is refused with the file's name."""
    for note in ('<M K="space">"x"</M>', '<M K="affine">[1, 2]</M>', f'<M K="affine">{"[" * 2000}</M>'):
        annotation = f'<MapAnnotation ID="A" Namespace="mrhdata"><Value>{note}</Value></MapAnnotation>'
        xml = ome_xml("<TiffData/>").replace(
            "</OME>", f"<StructuredAnnotations>{annotation}</StructuredAnnotations></OME>"
        )
        write_planes(tmp_path / "a.ome.tif", np.zeros((5, 8, 9), np.uint16), xml)
        with pytest.raises(FormatError, match=r"a\.ome\.tif"):
            mrhdata.read(tmp_path / "a.ome.tif")


def test_voxel_size_that_another_program_changed_replaces_the_stored_affine(tmp_path):
    """If PhysicalSize no longer fits the stored affine, the affine is not used."""
    mrhdata.write(from_array(np.zeros((4, 5, 6), np.uint8), affine=oblique_affine()), tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        xml = file.ome_metadata
    size = xml.partition('PhysicalSizeX="')[2].partition('"')[0]
    xml = xml.replace(f'PhysicalSizeX="{size}"', 'PhysicalSizeX="7.5"')
    write_planes(tmp_path / "b.ome.tif", np.zeros((6, 5, 4), np.uint8), xml)
    assert mrhdata.read(tmp_path / "b.ome.tif").mrh.spacing[2] == 7.5


def test_imagej_hyperstack_has_its_axes_sizes_and_times(tmp_path):
    """Frames, slices and channels of ImageJ become t, z and c, with steps in its unit and seconds."""
    values = np.random.default_rng(0).integers(0, 999, (2, 5, 3, 8, 9)).astype(np.uint16)
    for unit, mm in (("um", 1e-3), ("inch", 25.4)):
        notes = {"axes": "TZCYX", "spacing": -3.0, "unit": unit, "finterval": 2.5}
        tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata=notes, resolution=(2, 2))
        volume = mrhdata.read(tmp_path / "a.tif")
        np.testing.assert_array_equal(volume, values.transpose(0, 2, 1, 3, 4))
        np.testing.assert_allclose(volume.mrh.spacing, np.array((3, 0.5, 0.5)) * mm)
        assert times_of(volume) == (2.5, 0.0)


def test_stack_of_imagej_with_one_directory_is_whole(tmp_path):
    """ImageJ writes large stacks with one directory and the planes behind each other; a truncated one is refused."""
    values = np.random.default_rng(0).integers(0, 999, (7, 20, 30)).astype(">u2")
    note = "ImageJ=1.54f\nimages=7\nslices=7\nunit=micron\nspacing=5.0\nloop=false\n"
    tags = {"resolution": (1 / 1.8, 1 / 1.8), "resolutionunit": "NONE", "byteorder": ">"}
    tifffile.imwrite(tmp_path / "a.tif", values[0], description=note, metadata=None, **tags)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        header = (tmp_path / "a.tif").read_bytes()[: file.pages[0].dataoffsets[0]]
    (tmp_path / "a.tif").write_bytes(header + values.tobytes())
    volume = mrhdata.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume, values)
    np.testing.assert_allclose(volume.mrh.spacing, (0.005, 0.0018, 0.0018), rtol=1e-4)
    (tmp_path / "a.tif").write_bytes(header + values[:6].tobytes())
    with pytest.raises(FormatError, match="truncated"):
        mrhdata.read(tmp_path / "a.tif")


SHOWN = {
    1: lambda v: v,
    2: lambda v: v[..., ::-1],
    3: lambda v: v[..., ::-1, ::-1],
    4: lambda v: v[..., ::-1, :],
    5: lambda v: v.swapaxes(-1, -2),
    6: lambda v: v.swapaxes(-1, -2)[..., ::-1],
    7: lambda v: v.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda v: v.swapaxes(-1, -2)[..., ::-1, :],
}


@pytest.mark.parametrize("orientation", SHOWN)
def test_orientation_turns_rows_and_columns(tmp_path, orientation):
    """All eight orientations are read as they are seen, with the pixel sizes of the stored rows and columns."""
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    tags = {"extratags": [(274, "H", 1, orientation, True)], "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", values, resolution=(10000, 20000), photometric="minisblack", **tags)
    volume = mrhdata.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume, SHOWN[orientation](values))
    wanted = (0.001, 0.0005) if orientation > 4 else (0.0005, 0.001)
    np.testing.assert_allclose(volume.mrh.spacing[1:], wanted)


def test_unknown_orientation_is_refused(tmp_path):
    """An orientation beyond 8 is refused; 0 is written for none."""
    for orientation in (9, 0):
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / f"{orientation}.tif", np.zeros((4, 5), np.uint8), extratags=tags, metadata=None)
    with pytest.raises(FormatError, match="orientation from 1 to 8"):
        mrhdata.read(tmp_path / "9.tif")
    assert mrhdata.read(tmp_path / "0.tif", spacing=1).shape == (4, 5)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colour_planes_are_channels(tmp_path, compression):
    """Colours in separate planes and colours of each pixel give the same channels."""
    values = np.random.default_rng(0).integers(0, 255, (5, 3, 20, 24)).astype(np.uint8)
    options = {"photometric": "rgb", "compression": compression}
    tifffile.imwrite(tmp_path / "separate.tif", values, planarconfig="separate", **options)
    tifffile.imwrite(tmp_path / "contig.tif", values.transpose(0, 2, 3, 1).copy(), **options)
    for name in ("separate.tif", "contig.tif"):
        volume = mrhdata.read(tmp_path / name, spacing=1)
        assert volume.sizes == {"c": 3, "z": 5, "y": 20, "x": 24}
        np.testing.assert_array_equal(volume, values.transpose(1, 0, 2, 3))


@pytest.mark.parametrize(("extra", "name"), [("unassalpha", "A"), ("assocalpha", "A"), ("unspecified", "extra")])
def test_transparency_is_a_named_channel(tmp_path, extra, name):
    """The fourth sample of a pixel is named, so that it is not taken for an intensity."""
    values = np.random.default_rng(0).integers(0, 255, (20, 24, 4)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra])
    volume = mrhdata.read(tmp_path / "a.tif", spacing=1)
    assert volume.c.values.tolist() == ["R", "G", "B", name]
    np.testing.assert_array_equal(volume.transpose("y", "x", "c"), values)


@pytest.mark.parametrize("imagej", [False, True])
def test_palette_gives_colours_unless_it_is_for_display(tmp_path, caplog, imagej):
    """Indices of a palette become colours; values that ImageJ displays by a table are kept, with a warning."""
    rng = np.random.default_rng(0)
    indices, table = rng.integers(0, 255, (20, 24)).astype(np.uint8), rng.integers(0, 255, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=table * 257, imagej=imagej)
    volume = mrhdata.read(tmp_path / "a.tif", spacing=1)
    np.testing.assert_array_equal(volume, indices if imagej else table[:, indices])
    assert ("table of colours" in caplog.text) == imagej


def test_inverted_values_are_told(tmp_path, caplog):
    """Values whose 0 is white are read as stored, with a warning and a mark."""
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    volume = mrhdata.read(tmp_path / "a.tif", spacing=1)
    np.testing.assert_array_equal(volume, values)
    assert "MinIsWhite" in caplog.text
    assert "values" in volume.attrs["assumed"]


@pytest.mark.parametrize("photometric", ["cielab", "separated", "cfa", "ycbcr"])
def test_other_colour_spaces_are_refused(tmp_path, photometric):
    """Values of CIELAB, CMYK, unprocessed colour filters and YCbCr are not intensities."""
    values = np.zeros((20, 24, {"separated": 4, "cfa": 1}.get(photometric, 3)), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values.squeeze(), photometric=photometric, metadata=None)
    with pytest.raises(FormatError, match=f"grey or RGB values; got {photometric.upper()}"):
        mrhdata.read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "packbits"])
def test_bilevel_images_are_read(tmp_path, compression):
    """Images of one bit per pixel are unpacked."""
    values = np.random.default_rng(0).random((20, 27)) > 0.5
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", compression=compression, metadata=None)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.tif", spacing=1), values)


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<i8", "<u8", "<f2", "<i1"])
def test_types_and_byte_orders_are_exact(tmp_path, dtype):
    """Both byte orders, 64-bit integers and half precision are read exactly, in native order."""
    values = np.random.default_rng(0).integers(0, 100, (3, 9, 10)).astype(dtype)
    options = {"byteorder": ">" if dtype[0] == ">" else "<", "bigtiff": True, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    volume = mrhdata.read(tmp_path / "a.tif", spacing=1)
    np.testing.assert_array_equal(volume, values)
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("dtype", ["int64", "uint64", "complex64"])
def test_types_that_ome_tiff_lacks_are_refused(tmp_path, dtype):
    """Wide integers are refused with the conversion that helps, complex values with their magnitude."""
    with pytest.raises(FormatError, match=r"astype\(|magnitude"):
        mrhdata.write(from_array(np.zeros((2, 3, 4), dtype), spacing=(1, 1, 1)), tmp_path / "a.ome.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bool", "float16", "int8", "uint32", "float64"])
def test_types_are_written_exactly(tmp_path, dtype):
    """Types of OME-TIFF, and those that fit into one, are written without loss."""
    volume = from_array((np.arange(24).reshape(2, 3, 4) % 2).astype(dtype), affine=np.eye(4), dims="zyx")
    mrhdata.write(volume, tmp_path / "a.tif")
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.tif").astype(float), volume.astype(float))


def test_times_are_written(tmp_path):
    """The time step of a series is stored in OME-TIFF."""
    series = with_times(from_array(np.zeros((3, 2, 4, 5), np.uint8), spacing=(1, 1, 1), dims="tzyx"), 2.5)
    mrhdata.write(series, tmp_path / "a.ome.tif")
    assert times_of(mrhdata.read(tmp_path / "a.ome.tif")) == (2.5, 0.0)


LAYOUTS = {
    "plain": {},
    "compressed": {"compression": "zlib"},
    "pages": {"metadata": None},
    "tiles": {"metadata": None, "tile": (32, 32)},
    "bigtiff": {"metadata": None, "bigtiff": True, "compression": "lzw"},
    "imagej": {"imagej": True},
    "imagej-compressed": {"imagej": True, "compression": "zlib"},
    "ome": {"ome": True},
    "ome-compressed": {"ome": True, "compression": "zlib"},
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "mrhdata"])
def test_truncated_file_is_refused_or_whole(tmp_path, layout, caplog):
    """A file that is cut anywhere is read with all its voxels and its geometry, or refused."""
    caplog.set_level(logging.CRITICAL)
    values = np.random.default_rng(0).integers(0, 999, (7, 40, 36)).astype(np.uint16)
    path = tmp_path / ("a.ome.tif" if "ome" in layout or layout == "mrhdata" else "a.tif")
    if layout == "mrhdata":
        mrhdata.write(from_array(values, affine=oblique_affine(), dims="zyx"), path)
    else:
        tifffile.imwrite(path, values, photometric="minisblack", **LAYOUTS[layout])
    whole, content = mrhdata.read(path).compute(), path.read_bytes()
    refused = 0
    for cut in (1, 2, 9, 60, len(content) // 10, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:-cut])
        try:
            volume = mrhdata.read(path).compute()
        except FormatError:
            refused += 1
            continue
        np.testing.assert_array_equal(volume, whole)
        assert volume.mrh.grid.same_as(whole.mrh.grid)
    assert refused >= 3


def test_missing_strips_are_not_zeros(tmp_path):
    """A strip without bytes is refused, though tifffile reads it as zeros."""
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0], compression="zlib", rowsperstrip=16, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        tag = file.pages[0].tags["StripByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with pytest.raises(FormatError, match="strips or tiles of page 0 are missing"):
        mrhdata.read(tmp_path / "a.tif")


def test_absurd_size_is_refused_before_anything_is_allocated(tmp_path):
    """A header that claims far more voxels than its bytes can hold is refused."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((64, 64), np.uint8), compression="zlib", metadata=None, rowsperstrip=64
    )
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(60000)
    with pytest.raises(FormatError, match="claims 3600000000 bytes"):
        mrhdata.read(tmp_path / "a.tif")


def test_harmless_notes_do_not_prevent_reading(tmp_path):
    """A damaged private tag of a company is ignored."""
    private = [(50000, "B", 4, b"abcd", True), (305, "s", 0, b"caf\xe9 \xff", True)]
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0], extratags=private, metadata=None)
    np.testing.assert_array_equal(mrhdata.read(tmp_path / "a.tif", spacing=1), VALUES[0])
