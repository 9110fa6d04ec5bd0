"""Every DICOM file in pydicom's wheel, read by mrhdata and compared with values and positions from other code.

Values are those of pydicom's ``pixel_array`` with the scale of the header, or of SimpleITK where pydicom cannot decode
a file with the packages that mrhdata installs. The position of the last voxel is computed here from the elements,
without mrhdata. Folders are compared series by series. Writes ``benchmarks/results/dicom_files.json`` and ``.md``.

    python benchmarks/studies/dicom_files.py
"""

import collections
import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels import apply_color_lut
from tables import markdown, written

import mrhdata
from mrhdata.errors import MrhdataError
from mrhdata.volume.assumptions import assumed

FOLDER = Path(pydicom.__file__).parent / "data"
#: Largest difference of a position, in mm: directions in headers are rounded, and mrhdata makes them unit vectors.
SAME_MM = 1e-2


def files():
    """Yield each file of the wheel that is DICOM by its ending or by its first bytes."""
    for path in sorted(p for p in FOLDER.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            begins = file.read(132)[128:] == b"DICM"
        if begins or path.suffix == ".dcm":
            yield path


def expected_values(path, tags):
    """Scaled values (frame, row, column, ...), and the library that decoded them."""
    try:
        values = tags.pixel_array
    except Exception:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO")), "SimpleITK"
    if tags.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, tags)
    values = values if int(tags.get("NumberOfFrames") or 1) > 1 else values[None]
    slope = float(tags.get("RescaleSlope", tags.get("DoseGridScaling", 1)))
    return values * slope + float(tags.get("RescaleIntercept", 0)), "pydicom"


def expected_positions(tags):
    """World position (RAS+ mm) of the last voxel of the first and the last frame, or None if it is not stated."""
    if not tags.get("ImagePositionPatient") or not tags.get("ImageOrientationPatient"):
        return None
    first = np.array(tags.ImagePositionPatient, float)
    to_column, to_row = np.reshape(np.array(tags.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = map(float, tags.get("PixelSpacing", (1, 1)))
    corner = to_column * between_columns * (tags.Columns - 1) + to_row * between_rows * (tags.Rows - 1)
    offsets = np.array(tags.get("GridFrameOffsetVector") or [0.0], float)[: int(tags.get("NumberOfFrames") or 1)]
    behind = np.cross(to_column, to_row) * (offsets.max() - offsets.min())
    return [(first + corner + extra) * (-1, -1, 1) for extra in (0 * behind, behind)]


def in_file_order(volume):
    """Values (plane, row, column, ...), and the world positions of the last voxel of the first and the last plane."""
    if "t" in volume.dims:
        # The frames of a film are times of one plane.
        film, (first, _) = in_file_order(volume.isel(t=0, drop=True))
        frames = [film, *(in_file_order(volume.isel(t=t, drop=True))[0] for t in range(1, volume.sizes["t"]))]
        return np.concatenate(frames), [first, first]
    order = [d for d in volume.attrs["source_axes"] if d in "zyx"]
    data, affine = volume.mrh.in_order([*order[::-1], *(["c"] if "c" in volume.dims else [])])
    depth, rows, columns = data.shape[:3]
    # The affine belongs to the axes in the order in which they are asked for: plane, row, column.
    return np.asarray(data), [(affine @ [p, rows - 1, columns - 1, 1])[:3] for p in (0, depth - 1)]


def verdict(path):
    """Return one row of the table: the content of a file, the result, and the library that it is compared with."""
    tags = pydicom.dcmread(path, force=True)
    row = {"file": str(path.relative_to(FOLDER)), "content": content(tags)}
    try:
        volume = mrhdata.read(path).compute()
    except MrhdataError as error:
        return row | {"mrhdata": "refused", "compared with": "", "remark": sentence(error)}
    values, library = expected_values(path, tags)
    data, positions = in_file_order(volume)
    same = data.shape == values.shape and np.allclose(data, values, rtol=1e-12, atol=0)
    places = expected_positions(tags)
    placed = places is None or np.allclose(positions, places, atol=SAME_MM)
    remark = ", ".join(f"{name} not stated" for name in assumed(volume))
    differs = [name for name, right in (("values", same), ("positions", placed)) if not right]
    result = f"wrong {' and '.join(differs)}" if differs else "right"
    return row | {"mrhdata": result, "compared with": library, "remark": remark}


def content(tags):
    """Return the content of a file in words."""
    if "Rows" not in tags:
        kind = tags.get("SOPClassUID")
        return kind.name if kind else "no image"
    frames = f"{tags.get('NumberOfFrames')} x " if tags.get("NumberOfFrames") not in (None, 1) else ""
    syntax = tags.file_meta.get("TransferSyntaxUID")
    name = syntax.name if syntax else "no transfer syntax"
    return f"{frames}{tags.Rows} x {tags.Columns} {tags.PhotometricInterpretation}, {name}"


def sentence(error):
    """The message of an error, without folders."""
    return str(error).replace(f"{FOLDER}/", "").replace("|", "/")


def folders():
    """Yield a verdict for each series of each folder of a set on a disc."""
    for folder in sorted({path.parent for path in files() if "dicomdirtests" in path.parts}):
        series = collections.defaultdict(list)
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            tags = pydicom.dcmread(path, force=True)
            if "PixelData" in tags:
                series[tags.SeriesInstanceUID].append(tags)
        for uid, members in series.items():
            yield series_verdict(folder, uid, members)


def series_verdict(folder, uid, members):
    """Compare a series with its slices, sorted along their normal."""
    first = members[0]
    row = {"file": str(folder.relative_to(FOLDER)), "content": f"series of {len(members)}: {content(first)}"}
    try:
        volume = mrhdata.read(folder, dataset=uid).compute()
    except MrhdataError as error:
        return row | {"mrhdata": "refused", "compared with": "", "remark": sentence(error)}
    if first.get("ImageOrientationPatient"):
        normal = np.cross(*np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3)))
        members = sorted(members, key=lambda m: normal @ np.array(m.ImagePositionPatient, float))
    values = np.stack([expected_values(m.filename, m)[0][0] for m in members])
    data, positions = in_file_order(volume)
    places = [expected_positions(m) for m in (members[0], members[-1])]
    placed = None in places or np.allclose(positions, [p[0] for p in places], atol=SAME_MM)
    right = data.shape == values.shape and np.allclose(data, values, rtol=1e-12) and placed
    remark = ", ".join(f"{name} not stated" for name in assumed(volume))
    return row | {"mrhdata": "right" if right else "wrong", "compared with": "pydicom", "remark": remark}


def grouped(rows):
    """Rows with the files of one folder that differ in their names only as one row."""
    groups = collections.defaultdict(list)
    for row in rows:
        folder, _, name = row["file"].rpartition("/")
        rest = {k: v.replace(row["file"], "the file") for k, v in row.items() if k != "file"}
        groups[(folder, *rest.items())].append(name)
    for (folder, *rest), names in groups.items():
        many = f"{folder}, {len(names)} files" if len(names) > 3 else ", ".join(f"{folder}/{name}" for name in names)
        yield {"file": many} | dict(rest)


def main():
    """Print and write the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    rows = [*(verdict(path) for path in files()), *folders()]
    empty = sum("PixelData" not in pydicom.dcmread(path, force=True) for path in files())
    counts = collections.Counter(row["mrhdata"].split(" ")[0] for row in rows)
    title = f"# DICOM files of pydicom {pydicom.__version__}"
    text = (
        "`python benchmarks/studies/dicom_files.py`: values are compared with pydicom, or with SimpleITK where pydicom "
        "lacks a decoder. World positions of the last voxels are computed from the elements and may differ by "
        f"{SAME_MM * 1000:g} um, because mrhdata makes the rounded directions of a header unit vectors. "
        f"{len(rows)} files and series: "
        + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        + f". {empty} of the refused files have no voxels."
    )
    table = markdown(list(grouped(rows)))
    written("dicom_files", [title, text, table], {"pydicom": pydicom.__version__, "files": rows})


if __name__ == "__main__":
    main()
