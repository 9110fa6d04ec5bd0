"""Layouts of TIFF that programs write, read by mrhdata and by tifffile, and compared with the image they hold.

The files are made in a temporary folder. "Right" means that all values are those of the image, in any order of axes for
tifffile, and that the voxel size is that of the file. Writes ``benchmarks/results/tiff_files.json`` and ``.md``.

    python benchmarks/studies/tiff_files.py
"""

import itertools
import logging
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from tables import markdown, written

import mrhdata
from mrhdata.errors import MrhdataError

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (5, 64, 96)).astype(np.uint16)
COLOURS = np.kron(RNG.integers(0, 255, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
UM = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
ZYX = {"axes": "ZYX", **UM}
#: Voxel size of `UM` in mm.
STEPS = (0.002, 0.0005, 0.0005)
#: Largest difference of a value after JPEG, which is lossy.
JPEG = 12
GREY = {"photometric": "minisblack"}
TURNED = {
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.T,
    6: lambda v: v.T[:, ::-1],
    7: lambda v: v.T[::-1, ::-1],
    8: lambda v: v.T[::-1],
}


def single(name, values, truth=None, read=None, steps=None, **options):
    """A file that tifffile writes in one call."""

    def write(folder):
        tifffile.imwrite(folder / name, values, **options)
        return folder / name

    return write, values if truth is None else truth, read or {}, steps


def several(name, levels, truth, read=None, steps=None, ome=True, **options):
    """A file of several images; those after the first are levels of a pyramid if `subifds` is passed."""

    def write(folder):
        count = options.get("subifds", 0)
        rest = {key: value for key, value in options.items() if key not in ("subifds", "metadata")}
        with tifffile.TiffWriter(folder / name, ome=ome) as file:
            for i, level in enumerate(levels):
                pyramid = {"subifds": count} if count and i == 0 else {"subfiletype": 1} if count else {}
                metadata = options.get("metadata") if not count or i == 0 else None
                file.write(level, metadata=metadata, **pyramid, **rest)
        return folder / name

    return write, truth, read or {}, steps


def damaged(layout, cut):
    """A file without its last bytes, or one that holds no intensities; no array is right."""
    write, _, read, _ = layout

    def write_part(folder):
        path = write(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * (1 - cut))])
        return path

    return write_part, None, read, None


def planes(names, values, truth, read=None, pattern="", **options):
    """A folder of planes."""

    def write(folder):
        for name, plane in zip(names, values, strict=True):
            tifffile.imwrite(folder / name, plane, **options)
        return folder / pattern

    return write, truth, read or {}, None


def layouts():
    """Return name -> function that writes a file, the image, options of read, and the voxel size."""
    halves = [STACK, STACK[:, ::2, ::2], STACK[:, ::4, ::4]]
    table = RNG.integers(0, 255, (3, 256)).astype(np.uint16)
    index = RNG.integers(0, 255, (64, 96)).astype(np.uint8)
    hyper = RNG.integers(0, 999, (2, 5, 3, 24, 30)).astype(np.uint16)
    imagej = {"imagej": True, "resolution": (2, 2)}
    scenes = [STACK, STACK[:3, :20, :30]]
    tiled = {"tile": (32, 32), "compression": "zlib"}
    pyramid = {"subifds": 2, "metadata": ZYX, **tiled}
    rgb = {"photometric": "rgb"}
    jpeg = {**rgb, "compression": "jpeg", "tile": (32, 32), "compressionargs": {"level": 98}, "subsampling": (1, 1)}
    channels = [f"brain_Z{z:03}_C{c:02}.tif" for c in range(2) for z in range(3)]
    places = [f"bregma_{place:g}.tif" for place in (-0.5, -0.25, 0, 0.25, 0.5)]
    rows = {
        "BigTIFF, big-endian": single("a.tif", STACK, bigtiff=True, byteorder=">", **GREY),
        "OME, pyramid, level 0": several("a.ome.tif", halves, STACK, steps=STEPS, **pyramid),
        "OME, pyramid, coarsest level": several("a.ome.tif", halves, halves[2], {"level": -1}, (0.002,) * 3, **pyramid),
        "pyramid in SubIFDs, no OME": several("a.tif", [h[0] for h in halves], STACK[0], ome=False, subifds=2, **tiled),
        "OME, second of two scenes": several("a.ome.tif", scenes, scenes[1], {"series": 1}, STEPS, metadata=ZYX),
        "OME, second of two scenes, not chosen": several("a.ome.tif", scenes, STACK, steps=STEPS, metadata=ZYX),
        "ImageJ hyperstack": single("a.tif", hyper, hyper.transpose(0, 2, 1, 3, 4), steps=(0.003, 0.0005, 0.0005),
                                    metadata={"axes": "TZCYX", "spacing": 3.0, "unit": "um"}, **imagej),
        "RGB, colours of each pixel": single("a.tif", COLOURS, COLOURS.transpose(2, 0, 1), **rgb),
        "RGB, colours in planes": single("a.tif", COLOURS.transpose(2, 0, 1).copy(), planarconfig="separate", **rgb),
        "RGB, JPEG": single("a.tif", COLOURS, COLOURS.transpose(2, 0, 1), **jpeg),
        "palette": single("a.tif", index, table[:, index], photometric="palette", colormap=table * 257),
        "palette of ImageJ, for display": single("a.tif", index, photometric="palette", colormap=table * 257, **imagej),
        "0 is white": single("a.tif", index, photometric="miniswhite"),
        "1 bit": single("a.tif", index > 99, **GREY),
        "CIELAB": damaged(single("a.tif", COLOURS, photometric="cielab", metadata=None), 0),
    }  # fmt: skip
    for compression in ("zlib", "lzw", "zstd", "packbits", "lzma"):
        rows[f"strips, {compression}"] = single("a.tif", STACK, compression=compression, **GREY)
        rows[f"tiles, {compression}"] = single("a.tif", STACK, compression=compression, tile=(32, 32), **GREY)
    for tag, turn in TURNED.items():
        layout = single("a.tif", STACK[0], turn(STACK[0]), extratags=[(274, "H", 1, tag, True)], metadata=None)
        rows[f"orientation {tag}"] = layout
    for cut in (0.1, 0.5):
        rows[f"without the last {cut:.0%}"] = damaged(single("a.tif", STACK, metadata=None, **GREY), cut)
        rows[f"ImageJ without the last {cut:.0%}"] = damaged(single("a.tif", STACK, compression="zlib", **imagej), cut)
        rows[f"OME without the last {cut:.0%}"] = damaged(
            single("a.ome.tif", STACK, compression="zlib", metadata=ZYX), cut
        )
    small = np.arange(6, dtype=np.uint16)[:, None, None] * np.ones((1, 8, 9), np.uint16)
    rows["planes of two channels"] = planes(channels, small, small.reshape(2, 3, 8, 9))
    rows["planes named by position"] = planes(places, small[:5], small[:5])
    rows["planes and a projection"] = planes([*(f"b_{i}.tif" for i in range(5)), "MAX_b.tif"], small, small[:5])
    return rows


def fits(values, truth, tolerance):
    """Return whether values are those of the image, in any order of axes."""
    values = np.squeeze(values)
    orders = [
        order for order in itertools.permutations(range(truth.ndim)) if truth.transpose(order).shape == values.shape
    ]
    exact = [np.abs(values.astype(float) - truth.transpose(order).astype(float)).max() <= tolerance for order in orders]
    return any(exact)


def ours(path, truth, options, steps, tolerance):
    """Return the result of mrhdata and its message."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("mrhdata")
    logger.addHandler(handler)
    try:
        volume = mrhdata.read(path, **options).compute()
    except MrhdataError as error:
        return "refused", short(error, path)
    finally:
        logger.removeHandler(handler)
    right = truth is not None and volume.shape == truth.shape and fits(volume.values, truth, tolerance)
    right = right and (steps is None or np.allclose(volume.mrh.spacing, steps))
    messages = [short(message, path) for message in messages if "states no" not in message]
    return "right" if right else "wrong", "; ".join(messages)


def short(message, path):
    """Return a message without folders."""
    folder = path.parent if path.suffix else path
    return str(message).replace(f"{folder}/", "").replace(str(folder), "the folder").replace("|", "/")[:220]


def theirs(path, truth, tolerance):
    """Return the result of tifffile's imread."""
    try:
        values = tifffile.imread(sorted(path.glob("*.tif")) if path.is_dir() else path)
    except Exception as error:
        return type(error).__name__
    return "right" if truth is not None and fits(values, truth, tolerance) else "another image"


def main():
    """Write and read every layout."""
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    logging.getLogger("tifffile").propagate = False
    logging.getLogger("mrhdata").propagate = False
    rows = []
    for name, (write, truth, options, steps) in layouts().items():
        tolerance = JPEG if "JPEG" in name else 0
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder))
            result, message = ours(path, truth, options, steps, tolerance)
            other = theirs(path, truth, tolerance)
        rows.append({"layout": name, "mrhdata": result, "tifffile.imread": other, "message": message})
    counts = {tool: {word: sum(r[tool] == word for r in rows) for word in dict.fromkeys(r[tool] for r in rows)}
              for tool in ("mrhdata", "tifffile.imread")}  # fmt: skip
    text = (
        f"`python benchmarks/studies/tiff_files.py`, tifffile {tifffile.__version__}. {len(rows)} layouts, made with "
        f"tifffile and compared with the image that they hold. mrhdata: {sentence(counts['mrhdata'])}. tifffile's "
        "`imread`, which is asked for an array and not for a level, a scene or the meaning of tags: "
        f"{sentence(counts['tifffile.imread'])}. The message is mrhdata's error or warning, without "
        "those about a voxel size that a file does not state."
    )
    written("tiff_files", ["# Layouts of TIFF", text, markdown(rows)], {"counts": counts, "rows": rows})


def sentence(counts):
    """Return counts in words."""
    return ", ".join(f"{count} {word}" for word, count in counts.items())


if __name__ == "__main__":
    main()
