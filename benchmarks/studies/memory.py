"""Peak memory of conversions whose source has large parts that can only be read at once.

Run: python benchmarks/studies/memory.py WORK [--gigabytes 2] [--memory '200 MB'] [--only NAME ...]

Each source is converted in a process of its own. The figure is the peak of resident memory (Linux) above what the
process had after it had converted a small file. If the budget is refused, the source is converted with the one that
the error names.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numcodecs
import numpy as np
import zarr
from tables import committed, markdown, merged, written

SIDE, PLANE = 1000, 8192
CODE = """
import pathlib, re, sys, mrhdata
source, target, memory, small = sys.argv[1:]
mrhdata.convert(small, target + ".small.zarr", progress=False, overwrite=True)
size = lambda name: int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1e3
rest = size("VmRSS")
# The peak is reset, because it includes that of the process that started this one.
pathlib.Path("/proc/self/clear_refs").write_text("5")
try:
    mrhdata.convert(source, target, memory=memory, progress=False, overwrite=True, spacing=1)
except mrhdata.errors.ParameterError as error:
    print("refused", error)
else:
    print("peak", size("VmHWM") - rest)
"""


def plane(shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    """Return a plane of noise that compresses to about two thirds."""
    return np.random.default_rng(0).normal(1000, 50, shape).astype(np.int16)


def one_chunk(path: Path, size: int) -> Path:
    """Write an OME-Zarr of one Blosc chunk."""
    values = np.broadcast_to(plane(), (size // (2 * SIDE**2), SIDE, SIDE))
    group = zarr.open_group(path := path.with_suffix(".zarr"), mode="w", zarr_format=2)
    compressor = numcodecs.Blosc("lz4", 1, 1)
    group.create_array("0", shape=values.shape, chunks=values.shape, dtype="i2", compressors=compressor)
    (path / "0" / "0.0.0").write_bytes(compressor.encode(np.ascontiguousarray(values)))
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": d, "type": "space", "unit": "millimeter"} for d in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def nifti(path: Path, size: int) -> Path:
    """Write a compressed NIfTI."""
    header = nib.Nifti1Header()
    header.set_data_shape((SIDE, SIDE, size // (2 * SIDE**2)))
    header.set_data_dtype("i2")
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = plane().tobytes()
    with gzip.open(path := path.with_suffix(".nii.gz"), "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(size // len(content)):
            file.write(content)
    return path


def minc(path: Path, size: int) -> Path:
    """Write a MINC 2 file."""
    import dask.array as da

    import mrhdata

    values = da.from_array(plane())[None].repeat(size // (2 * SIDE**2), axis=0).rechunk((4, SIDE, SIDE))
    mrhdata.write(mrhdata.from_array(values, spacing=(1, 1, 1)), path := path.with_suffix(".mnc"), overwrite=True)
    return path


def zlib_planes(path: Path, size: int) -> Path:
    """Write TIFF planes of 8192 x 8192 voxels, each in one compressed strip."""
    import tifffile

    path.mkdir()
    values = plane((PLANE, PLANE)).astype(np.uint16)
    for i in range(max(2, size // values.nbytes)):
        options = {"compression": "zlib", "compressionargs": {"level": 1}, "rowsperstrip": PLANE}
        tifffile.imwrite(path / f"p{i:03}.tif", values, **options)
    return path


def png_planes(path: Path, size: int) -> Path:
    """Write PNG planes of 8192 x 8192 voxels."""
    from PIL import Image

    path.mkdir()
    values = plane((PLANE, PLANE)).astype(np.uint16)
    for i in range(max(2, size // values.nbytes)):
        Image.fromarray(values).save(path / f"p{i:03}.png", compress_level=1)
    return path


def enhanced_dicom(path: Path, size: int) -> Path:
    """Write one enhanced multi-frame DICOM file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    def item(**elements: object) -> Dataset:
        result = Dataset()
        for name, value in elements.items():
            setattr(result, name, value)
        return result

    count, uid = size // (2 * SIDE**2), "1.2.840.10008.5.1.4.1.1.4.1"
    file = item(SOPClassUID=uid, SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2", StudyInstanceUID="1", Modality="MR")
    file.update(item(Rows=SIDE, Columns=SIDE, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"))
    file.update(item(BitsAllocated=16, BitsStored=16, HighBit=15, PixelRepresentation=1, NumberOfFrames=count))
    measures = item(PixelSpacing=[1, 1], SliceThickness=1)
    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    file.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    file.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])]) for z in range(count)
    ]
    file.PixelData = plane().tobytes() * count
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID, file.file_meta.MediaStorageSOPInstanceUID = uid, "1.2.3"
    file.save_as(path := path.with_suffix(".dcm"), enforce_file_format=True)
    return path


SOURCES: dict[str, tuple[str, Callable[[Path, int], Path]]] = {
    "chunk": ("OME-Zarr, one Blosc chunk", one_chunk),
    "nifti": ("compressed NIfTI", nifti),
    "minc": ("MINC 2", minc),
    "zlib": ("TIFF planes of 8192 x 8192, one zlib strip each", zlib_planes),
    "png": ("PNG planes of 8192 x 8192", png_planes),
    "dicom": ("enhanced DICOM", enhanced_dicom),
}


def convert(source: Path, target: Path, memory: str, small: Path) -> str:
    """Convert in a process of its own, and return its last line."""
    command = [sys.executable, "-c", CODE, str(source), str(target), memory, str(small)]
    result = subprocess.run(command, capture_output=True, text=True)
    return (result.stdout.strip() or f"failed {result.stderr.strip()}").splitlines()[-1]


def measure(name: str, work: Path, size: int, memory: str) -> dict[str, object]:
    """Return one row of the table."""
    label = SOURCES[name][0]
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    small = nifti(folder / "small", 4 * SIDE**2)
    # The source is made in a process of its own, whose memory a child would inherit in its peak.
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import memory, pathlib; "
    code += f"print(memory.SOURCES[{name!r}][1](pathlib.Path({str(folder / 'source')!r}), {size}))"
    maker = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = Path(maker.stdout.strip().splitlines()[-1])
    first = convert(source, folder / "a.zarr", memory, small)
    budget = memory
    if first.startswith("refused"):
        budget = re.search(r"at least ([\d.]+ [MG]B)", first)[1]  # type: ignore[index]
    last = first if budget == memory else convert(source, folder / "a.zarr", budget, small)
    shutil.rmtree(folder)
    kind, _, figure = last.partition(" ")
    peak = f"{float(figure):.0f} MB" if kind == "peak" else last[:120]
    return {
        "source": label,
        "voxels": f"{size / 1e9:.2g} GB",
        "budget asked": memory,
        "budget used": budget if budget != memory else "the same",
        "peak above rest": peak,
    }


def main() -> None:
    """Measure each source, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--memory", default="200 MB")
    parser.add_argument("--only", nargs="*", default=list(SOURCES))
    options = parser.parse_args()
    rows = [measure(name, options.work, int(options.gigabytes * 1e9), options.memory) for name in options.only]
    rows = merged(committed("memory").get("rows", []), rows, "source")
    written("memory", ["# Memory of conversions of awkward sources", markdown(rows)], {"rows": rows})


if __name__ == "__main__":
    main()
