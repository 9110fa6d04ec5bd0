"""NRRD and MetaImage: axes, units and geometry of headers, and headers that must be refused."""

import bz2
import gzip
import logging
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

import mrhdata
from mrhdata.errors import FormatError, MrhdataError
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine

VALUES = np.random.default_rng(0).permutation(120).astype(np.uint16).reshape(4, 5, 6)  # z, y, x of the header
VOXELS = VALUES.tobytes()
NRRD = {
    "type": "uint16",
    "endian": "little",
    "encoding": "raw",
    "dimension": "3",
    "sizes": "6 5 4",
    "space": "left-posterior-superior",
    "space directions": "(0.1,0,0) (0,0,0.2) (0,-0.3,0)",
    "space origin": "(1,2,3)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "DimSize": "6 5 4",
    "ElementType": "MET_USHORT",
    "ElementSpacing": "0.1 0.2 0.3",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 3",
    "ElementDataFile": "LOCAL",
}


def nrrd(path, values=VOXELS, lines=(), **changes):
    """Write a NRRD whose header has some fields changed, or dropped if they are None."""
    fields = NRRD | {key.replace("_", " "): value for key, value in changes.items()}
    header = ["NRRD0005", *(f"{key}: {value}" for key, value in fields.items() if value is not None), *lines]
    path.write_bytes(("\n".join(header) + "\n\n").encode() + values)
    return path


def meta(path, values=VOXELS, **changes):
    """Write a MetaImage whose header has some fields changed, or dropped if they are None."""
    fields = {key: value for key, value in (META | changes).items() if value is not None}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + values)
    return path


def check_against_itk(path):
    """Check values and the world position of every corner against ITK."""
    image, volume = sitk.ReadImage(str(path)), mrhdata.read(path).compute()
    channels = ["c"] if "c" in volume.dims else []
    spatial = [d for d in volume.attrs["source_axes"] if d in "zyx"]
    data, affine = volume.mrh.in_order([*spatial[::-1], *channels])
    values = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(np.asarray(data), values.reshape(data.shape))
    for corner in np.ndindex(2, 2, 2):
        index = [int(i * (n - 1)) for i, n in zip(corner, image.GetSize(), strict=False)]
        world = [*image.TransformIndexToPhysicalPoint(index), 0.0][:3]
        point = affine @ [*([0] * (3 - len(index))), *index[::-1], 1]
        np.testing.assert_allclose(point[:3], np.array(world) * [-1, -1, 1], atol=1e-6)


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "LPS"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii", "hex"])
def test_nrrd_equals_that_of_itk(tmp_path, space, encoding):
    """Voxels and corners of all spaces and encodings are those of ITK."""
    pack = {
        "raw": bytes,
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "ascii": lambda values: " ".join(map(str, np.frombuffer(values, "<u2"))).encode(),
        "hex": lambda values: values.hex().encode(),
    }[encoding]
    path = nrrd(tmp_path / "a.nrrd", pack(VALUES.tobytes()), space=space, encoding=encoding)
    if encoding in ("bzip2",):
        assert (mrhdata.read(path).mrh.in_order(["y", "z", "x"])[0].compute() == VALUES).all()
    else:
        check_against_itk(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"ElementSpacing": None, "ElementSize": "0.1 0.2 0.3"},
        {"BinaryDataByteOrderMSB": "True"},
        {"ElementByteOrderMSB": "True", "TransformMatrix": None, "Position": "4 5 6", "Offset": None},
        {"NDims": "2", "DimSize": "6 20", "ElementSpacing": "0.1 0.2", "TransformMatrix": "0 1 1 0", "Offset": "1 2"},
        {"ElementNumberOfChannels": "2", "DimSize": "6 5 2"},
        {"CompressedData": "True"},
    ],
)
def test_metaimage_equals_that_of_itk(tmp_path, changes):
    """Voxels and corners are those of ITK, whatever way the header states them."""
    values = VALUES.tobytes()
    if "CompressedData" in changes:
        values = zlib.compress(values)
        changes = changes | {"CompressedDataSize": str(len(values))}
    check_against_itk(meta(tmp_path / "a.mha", values, **changes))


def test_metaimage_of_text_is_read(tmp_path):
    """Voxels that are stored as decimal numbers are read; ITK refuses such a file."""
    path = meta(tmp_path / "a.mha", " ".join(map(str, VALUES.ravel())).encode(), BinaryData="False")
    assert (mrhdata.read(path).mrh.in_order(["z", "x", "y"])[0].compute() == VALUES).all()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("channels", [False, True])
def test_written_files_are_those_of_itk(tmp_path, ending, channels):
    """Files with an oblique grid, written through SimpleITK, are read to the same voxels and corners."""
    shape, dims = ((3, 4, 5, 6), "czyx") if channels else ((4, 5, 6), "zyx")
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    volume = from_array(values, affine=oblique_affine(), dims=dims)
    mrhdata.write(volume, tmp_path / f"a{ending}")
    check_against_itk(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(mrhdata.read(tmp_path / f"a{ending}"), volume)


@pytest.mark.parametrize(
    ("units", "mm"), [("microns", 1e-3), ("um", 1e-3), ("µm", 1e-3), ("nm", 1e-6), ("cm", 10.0), ("m", 1e3)]
)
def test_nrrd_units_become_millimetres(tmp_path, units, mm):
    """`space units` scale the directions of the world, and `units` the spacings of the axes."""
    three = f'"{units}" "{units}" "{units}"'
    path = nrrd(tmp_path / "a.nrrd", space_units=three)
    np.testing.assert_allclose(mrhdata.read(path).mrh.spacing, np.array([0.2, 0.3, 0.1]) * mm)
    np.testing.assert_allclose(mrhdata.read(path, unit="mm").mrh.spacing, [0.2, 0.3, 0.1])
    path = nrrd(
        tmp_path / "b.nrrd", space=None, space_directions=None, space_origin=None, spacings="1 2 3", units=three
    )
    np.testing.assert_allclose(mrhdata.read(path).mrh.spacing, np.array([3, 2, 1]) * mm)


def test_nrrd_units_that_differ_scale_their_own_axis(tmp_path):
    """Lengths in mm along one axis and in um along another are each converted."""
    path = nrrd(tmp_path / "a.nrrd", space_units='"mm" "um" "mm"', space_directions="(1,0,0) (0,2,0) (0,0,3)")
    np.testing.assert_allclose(mrhdata.read(path).mrh.spacing, [3, 0.002, 1])


@pytest.mark.parametrize(
    ("changes", "assumed"),
    [
        ({}, ["space"]),
        ({"space_units": '"pixel" "pixel" "pixel"'}, ["unit", "space"]),
        ({"space": None, "space_dimension": "3"}, ["unit", "orientation", "space"]),
        ({"space": "scanner-xyz"}, ["unit", "orientation", "space"]),
        ({"space": None, "space_directions": None, "space_origin": None}, ["spacing", "orientation", "space"]),
    ],
)
def test_nrrd_lists_what_its_header_does_not_state(tmp_path, caplog, changes, assumed):
    """A missing or unknown unit, space or spacing is assumed; a unit and a spacing give a warning, too."""
    volume = mrhdata.read(nrrd(tmp_path / "a.nrrd", **changes))
    assert volume.attrs["assumed"] == assumed
    assert bool(caplog.records) == bool({"unit", "spacing"} & set(assumed))


VECTORS = np.random.default_rng(1).random((4, 5, 6, 3)).astype(np.float32)
FIRST, LAST = VECTORS.tobytes(), np.ascontiguousarray(np.moveaxis(VECTORS, -1, 0)).tobytes()
AXES = "(1,0,0) (0,2,0) (0,0,3)"


@pytest.mark.parametrize(
    ("values", "changes", "dim"),
    [
        (FIRST, {"sizes": "3 6 5 4", "kinds": "vector domain domain domain", "space directions": f"none {AXES}"}, "c"),
        (FIRST, {"sizes": "3 6 5 4", "kinds": "RGB-color space space space", "space directions": f"none {AXES}"}, "c"),
        (FIRST, {"sizes": "3 6 5 4", "space directions": f"none {AXES}"}, "c"),
        (FIRST, {"sizes": "3 6 5 4", "kinds": "time domain domain domain", "space directions": f"none {AXES}"}, "t"),
        (LAST, {"sizes": "6 5 4 3", "kinds": "space space space list", "space directions": f"{AXES} none"}, "c"),
        (LAST, {"sizes": "6 5 4 3", "kinds": "domain domain domain time", "space directions": f"{AXES} none"}, "t"),
        (
            LAST,
            {"sizes": "6 5 4 3", "space directions": None, "spacings": "1 2 3 nan", "labels": '"x" "y" "z" "c"'},
            "c",
        ),
        (LAST, {"sizes": "6 5 4 3", "space directions": None, "spacings": "1 2 3 1"}, "t"),
    ],
)
def test_nrrd_axes_follow_their_names(tmp_path, values, changes, dim):
    """Components and times lie on the axis that kinds, directions or labels name, wherever it is."""
    fields = {key.replace(" ", "_"): value for key, value in changes.items()}
    if changes["space directions"] is None:
        fields |= {"space": None, "space_origin": None}
    path = nrrd(tmp_path / "a.nrrd", values, type="float", dimension="4", **fields)
    volume = mrhdata.read(path).compute()
    assert volume.dims == (dim, "z", "y", "x")
    np.testing.assert_array_equal(volume.values, np.moveaxis(VECTORS, -1, 0))
    np.testing.assert_allclose(volume.mrh.spacing, [3, 2, 1])


def test_nrrd_colours_times_and_complex_values(tmp_path, caplog):
    """Colours are named, a time step with a unit becomes times in seconds, and pairs are complex numbers."""
    four = {"type": "float", "dimension": "4"}
    colours = nrrd(
        tmp_path / "c.nrrd", FIRST, sizes="3 6 5 4", kinds="RGB-color domain domain domain",
        space_directions=f"none {AXES}", **four,
    )  # fmt: skip
    assert mrhdata.read(colours).c.values.tolist() == ["R", "G", "B"]
    times = nrrd(
        tmp_path / "t.nrrd", LAST, sizes="6 5 4 3", kinds="space space space time", space=None, space_origin=None,
        space_directions=None, spacings="1 2 3 500", units='"mm" "mm" "mm" "ms"', **four,
    )  # fmt: skip
    assert mrhdata.read(times).t.values.tolist() == [0, 0.5, 1]
    pairs = VECTORS[..., :2].tobytes()
    path = nrrd(
        tmp_path / "z.nrrd", pairs, sizes="2 6 5 4", kinds="complex domain domain domain",
        space_directions=f"none {AXES}", **four,
    )  # fmt: skip
    np.testing.assert_allclose(mrhdata.read(path).values, np.hypot(VECTORS[..., 0], VECTORS[..., 1]), rtol=1e-6)
    assert "magnitude" in caplog.text


def test_voxels_in_other_files_are_read_from_the_folder_of_the_header(tmp_path):
    """One file, a list and a numbered series are read, with bytes and lines in front of the voxels skipped."""
    (tmp_path / "voxels").mkdir()
    (tmp_path / "voxels" / "all.raw").write_bytes(b"two\nlines\nabc" + VALUES.tobytes())
    for i, plane in enumerate(VALUES):
        (tmp_path / f"p_{i:02d}.raw").write_bytes(plane.tobytes())
    planes = [f"p_{i:02d}.raw" for i in range(4)]
    headers = [
        nrrd(tmp_path / "a.nhdr", b"", data_file="voxels/all.raw", line_skip="2", byte_skip="3"),
        nrrd(tmp_path / "b.nhdr", b"", data_file="voxels/all.raw", byte_skip="-1"),
        nrrd(tmp_path / "c.nhdr", b"", lines=["data file: LIST", *planes]),
        nrrd(tmp_path / "d.nhdr", b"", data_file="p_%02d.raw 0 3 1"),
    ]
    for path in headers:
        assert (mrhdata.read(path).mrh.in_order(["y", "z", "x"])[0].compute() == VALUES).all()
    headers = [
        meta(tmp_path / "a.mhd", b"", ElementDataFile="voxels/all.raw", HeaderSize="13"),
        meta(tmp_path / "b.mhd", b"", ElementDataFile="voxels/all.raw", HeaderSize="-1"),
        meta(tmp_path / "c.mhd", "\n".join(planes).encode(), ElementDataFile="LIST"),
        meta(tmp_path / "d.mhd", b"", ElementDataFile="p_%02d.raw 0 3 1"),
    ]
    for path in headers:
        assert (mrhdata.read(path).mrh.in_order(["z", "x", "y"])[0].compute() == VALUES).all()


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "a/../../secret", "C:\\secret", "missing.raw"])
def test_data_files_elsewhere_are_refused(tmp_path, name):
    """A header may name files of its own folder only; absolute paths, paths that lead out and missing files raise."""
    (tmp_path / "secret").write_bytes(bytes(1000))
    (tmp_path / "download").mkdir()
    for path in (
        nrrd(tmp_path / "download" / "a.nrrd", b"", data_file=name),
        nrrd(tmp_path / "download" / "b.nhdr", b"", lines=["data file: LIST", name]),
        meta(tmp_path / "download" / "a.mha", b"", ElementDataFile=name),
    ):
        with pytest.raises(FormatError, match=rf"{path.name}.*(folder of the header|no data file)"):
            mrhdata.read(path)


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (meta, {"ElementDataFile": "%n%n%n%n 1 7 1"}),
        (meta, {"ElementDataFile": "%s%s 1 7 1"}),
        (meta, {"ElementDataFile": "%d 1 7 0"}),
        (meta, {"ElementDataFile": "%d.raw 1 999999999 1"}),
        (meta, {"NDims": "100"}),
        (meta, {"NDims": "-1"}),
        (meta, {"DimSize": "1000000 1000000 1000"}),
        (meta, {"DimSize": "6 5 -4"}),
        (meta, {"DimSize": "6 5"}),
        (meta, {"ElementSpacing": "0 1 1"}),
        (meta, {"ElementSpacing": "nan 1 1"}),
        (meta, {"ElementType": "MET_OTHER"}),
        (meta, {"CompressedData": "True", "DimSize": "100000 100000 100000"}),
        (meta, {"ElementNumberOfChannels": "0"}),
        (nrrd, {"data_file": "%99999999d.raw 1 7 1 2"}),
        (nrrd, {"dimension": "17"}),
        (nrrd, {"dimension": "-1"}),
        (nrrd, {"sizes": "1000000 1000000 1000"}),
        (nrrd, {"sizes": "99999999999999999999 1 1"}),
        (nrrd, {"encoding": "gzip", "sizes": "100000 100000 100000"}),
        (nrrd, {"space_directions": "(1,0,0) (0,1,0)"}),
        (nrrd, {"space_directions": "(1,0,0) (0,1,0) (0,0,0)"}),
        (nrrd, {"space_directions": "(1,0,0) (0,1,0) (0,0,inf)"}),
        (nrrd, {"endian": None}),
        (nrrd, {"type": "block"}),
        (nrrd, {"encoding": "zrl"}),
        (nrrd, {"line_skip": "-5"}),
    ],
)
def test_headers_that_ask_for_the_impossible_are_refused(tmp_path, write, changes):
    """Formats, numbers of axes, sizes, steps and types that no file has raise before any memory is allocated."""
    path = write(tmp_path / "a.nrrd" if write is nrrd else tmp_path / "a.mha", **changes)
    with pytest.raises(MrhdataError, match=r"a\.(nrrd|mha)") as error:
        mrhdata.read(path)
    assert "\n" not in str(error.value)


def test_orientation_of_metaimage(tmp_path, caplog):
    """Without TransformMatrix the orientation is assumed; letters that disagree with it give a warning."""
    volume = mrhdata.read(meta(tmp_path / "a.mha", TransformMatrix=None))
    assert volume.attrs["assumed"] == ["orientation", "space"]
    mrhdata.read(meta(tmp_path / "b.mha", TransformMatrix="1 0 0 0 1 0 0 0 1", AnatomicalOrientation="RAI"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        mrhdata.read(meta(tmp_path / "c.mha", TransformMatrix="1 0 0 0 1 0 0 0 1", AnatomicalOrientation="ASL"))
    assert "AnatomicalOrientation = ASL" in caplog.text


def test_units_and_scale_of_metaimage(tmp_path):
    """DistanceUnits scale the spacing; a scale of the values that no program applies is reported."""
    volume = mrhdata.read(meta(tmp_path / "a.mha", DistanceUnits="um"))
    np.testing.assert_allclose(sorted(volume.mrh.spacing), [1e-4, 2e-4, 3e-4])
    assert mrhdata.read(meta(tmp_path / "b.mha", DistanceUnits="?")).attrs["assumed"] == ["unit", "space"]
    scaled = mrhdata.read(meta(tmp_path / "c.mha", ElementToIntensityFunctionSlope="2.5"))
    assert "values" in scaled.attrs["assumed"]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_damaged_compressed_voxels_are_refused(tmp_path, ending):
    """A flipped bit in the compressed voxels raises unless it changes none, and so does a missing checksum."""
    path = tmp_path / f"a{ending}"
    mrhdata.write(from_array(VALUES, spacing=(1, 1, 1)), path)
    good, rng = path.read_bytes(), np.random.default_rng(0)
    begin = good.index(b"\n\n") + 12 if ending == ".nrrd" else good.index(b"LOCAL\n") + 8
    for position in rng.integers(begin, len(good) - 4, 40):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(mrhdata.read(path), VALUES)
        except FormatError:
            continue
    path.write_bytes(good[:-6])
    with pytest.raises(FormatError, match=path.name):
        mrhdata.read(path).compute()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_float_labels_are_written_as_integers(tmp_path, ending):
    """Whole numbers in floating point become integers if they are labels; fractions raise."""
    labels = from_array(np.array([[[0.0, 7, 614454277]]]), spacing=(1, 1, 1), kind="labels")
    mrhdata.write(labels, tmp_path / f"a{ending}")
    assert mrhdata.read(tmp_path / f"a{ending}").dtype == np.int32
    with pytest.raises(FormatError, match="must be whole numbers"):
        mrhdata.write((labels + 0.5).assign_attrs(labels.attrs), tmp_path / f"b{ending}")
