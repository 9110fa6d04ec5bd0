"""DICOM files for tests, written by pydicom."""

import struct
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

MR, ENHANCED, CAPTURE = (
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.7",
)
AXIAL, SAGITTAL, CORONAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)


def elements(values, uid="1.2.3.4", **tags):
    """Return the elements of an image of unsigned 16-bit values (..., row, column)."""
    tags = {"SOPClassUID": MR, "SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "Modality": "MR"} | tags
    tags |= {"SOPInstanceUID": uid, "Rows": values.shape[-2], "Columns": values.shape[-1], "SamplesPerPixel": 1}
    tags = {"PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0} | tags
    tags = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15} | tags
    tags["PixelData"] = values.astype("<u2").tobytes()
    return dataset(**tags)


def dataset(**tags):
    """Return a data set of elements; None leaves one out."""
    header = Dataset()
    for name, value in tags.items():
        if value is not None:
            setattr(header, name, value)
    return header


def save(path, tags, syntax=ExplicitVRLittleEndian):
    """Write elements as a file."""
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID
    tags.file_meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", "1.2.3.4")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tags.save_as(path, enforce_file_format=True)
    return path


def plane(path, values, position=(0, 0, 0), orientation=AXIAL, number=1, **tags):
    """Write one plane."""
    geometry = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": (2, 2)}
    tags = dict(geometry, InstanceNumber=number) | tags
    geometry = {k: list(v) for k, v in tags.items() if k in geometry and v is not None}
    return save(path, elements(values, f"1.2.3.4.{tags.pop('uid', number)}", **tags | geometry))


def series(folder, z, **tags):
    """Write axial planes at positions z, whose voxels have the values 100, 101, ..."""
    for i, height in enumerate(z):
        plane(folder / f"IM{i:04}.dcm", np.full((8, 9), 100 + i), (0, 0, height), number=i + 1, **tags)
    return folder


def enhanced(path, values, places, shared=(), **tags):
    """Write one multi-frame file; `places` has the functional groups of each frame."""
    groups = {"PixelMeasuresSequence": {"PixelSpacing": [2, 2], "SliceThickness": 3}} | dict(shared)
    picture_file = elements(values, SOPClassUID=ENHANCED, NumberOfFrames=len(values), **tags)
    picture_file.SharedFunctionalGroupsSequence = Sequence([group(groups)])
    picture_file.PerFrameFunctionalGroupsSequence = Sequence([group(place) for place in places])
    return save(path, picture_file)


def group(macros):
    """Return functional groups: macro -> elements, of which a mapping is a sequence of one item."""
    inner = {k: Sequence([group(v)]) if isinstance(v, dict) else v for k, v in macros.items()}
    return dataset(**inner)


def place(position, orientation=AXIAL, **macros):
    """Return the functional groups of one frame."""
    return {
        "PlanePositionSequence": {"ImagePositionPatient": list(position)},
        "PlaneOrientationSequence": {"ImageOrientationPatient": list(orientation)},
    } | macros


def numbered(count, shape=(8, 9)):
    """Return frames of zeros with one voxel, row 2 and column 3, of the values 100, 101, ..."""
    values = np.zeros((count, *shape), np.uint16)
    values[:, 2, 3] = 100 + np.arange(count)
    return values


def world_of(volume, value):
    """Return the world position (X, Y, Z) of the one voxel with a value."""
    (index,) = np.argwhere(volume.transpose("z", "y", "x").values == value)
    return volume.mrh.world(index)


def siemens_header(**items):
    """Return Siemens' own header (CSA 2): texts by name."""
    content = b"SV10\4\3\2\1" + struct.pack("<2I", len(items), 77)
    for name, texts in items.items():
        content += struct.pack("<64si4s3i", name.encode(), len(texts), b"FD\0\0", 4, len(texts), 77)
        for text in texts:
            value = text.encode() + b"\0"
            content += struct.pack("<4i", len(value), len(value), 77, len(value)) + value + b"\0" * (-len(value) % 4)
    return content


def mosaic(path, tiles, position, side, normal=(0, 0, 1), number=1, **tags):
    """Write tiles (n, row, column) as a Siemens mosaic of side x side tiles, with the position of its first plane."""
    rows, columns = tiles.shape[1:]
    picture = np.zeros((side * rows, side * columns), np.uint16)
    for k, tile in enumerate(tiles):
        picture[k // side * rows :][:rows, k % side * columns :][:, :columns] = tile
    corner = np.array(position) - [(side - 1) * columns, (side - 1) * rows, 0]
    tags = {"SpacingBetweenSlices": 3.0, "ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]} | tags
    picture_file = elements(picture, f"1.2.3.4.{number}", PixelSpacing=[2, 2], InstanceNumber=number, **tags)
    picture_file.ImagePositionPatient, picture_file.ImageOrientationPatient = list(map(float, corner)), list(AXIAL)
    picture_file.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", len(tiles))
    if normal is not None:
        header = siemens_header(SliceNormalVector=[f"{v:.8f}" for v in normal])
        picture_file.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    return save(path, picture_file)
