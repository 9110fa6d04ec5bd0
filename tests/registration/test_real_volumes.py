"""Registration of real brains at half their resolution; the benchmark uses the full resolution."""

import json

import numpy as np
import pytest

import mrhdata
from mrhdata.registration import quality
from mrhdata.registration.transforms import Transform


def dice(a, b):
    """Return the Dice coefficient of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.full
def test_registered_brain_planes_fill_the_annotation(shared):
    """A mouse brain of 270 planes, registered to its own published resampling, overlaps the Allen annotation."""
    ccf = {"spacing": (0.1, 0.1, 0.1), "unit": "mm", "space": "CCFv3", "axes": "PIR"}
    annotation = mrhdata.read(shared / "mouse-mri-histology" / "annotation_100.nrrd", kind="labels", **ccf)
    folder = shared / "mouse-brain-planes"
    published = mrhdata.read(folder / "downsampled_standard.tiff", **ccf)
    # The published volume is stored from right to left.
    published = published.copy(data=published.values[:, :, ::-1])
    planes = mrhdata.read(folder / "planes", axes="AIR", spacing=(0.05, 0.04, 0.04), unit="mm", space="brain")
    transform = mrhdata.register(planes, published, spacing_mm=0.2)
    warped = mrhdata.resample(planes, annotation, transform).values
    assert dice(warped > 40, annotation.values > 0) > 0.915
    assert np.corrcoef(np.log1p(warped).ravel(), np.log1p(published.values).ravel())[0, 1] > 0.97
    change = quality.jacobian(transform, annotation).values[annotation.values > 0]
    assert change.min() > 0


@pytest.mark.full
def test_registration_improves_dice_of_nuclei(shared):
    """PD25's hand-drawn nuclei overlap those of CIT168 more than with the headers only: Dice rises by over 0.02."""
    folder = shared / "dgm-atlas"
    fixed = mrhdata.read(folder / "CIT168toMNI152-2009c_T1w_brain.nii.gz")
    moving = mrhdata.read(folder / "PD25-fusion-template-1mm.nii.gz")
    moving_labels = mrhdata.read(folder / "PD25-subcortical-1mm.nii.gz", kind="labels")
    atlas = mrhdata.read(folder / "CIT168.nii.gz")
    first, second, p, q = np.asarray(atlas.data)
    best = np.where(np.maximum(p, q) >= 128, np.where(q > p, second, first), 0)
    names = [n.strip() for n in json.loads((folder / "CIT168.json").read_text("utf-8"))["labels"]]
    pairs = {1: "L Red Nucleus", 2: "R Red Nucleus", 9: "L Putamen", 10: "R Putamen", 7: "L Caudate", 8: "R Caudate"}
    fixed_labels = mrhdata.resample(atlas.isel(c=0, drop=True).copy(data=best), fixed).values
    scores = []
    for transform in (Transform(), mrhdata.register(moving, fixed, spacing_mm=2)):
        moved = mrhdata.resample(moving_labels, fixed, transform).values
        by_nucleus = [dice(moved == value, fixed_labels == names.index(name)) for value, name in pairs.items()]
        scores.append(np.mean(by_nucleus))
    assert scores[0] > 0.75
    assert scores[1] > scores[0] + 0.02
