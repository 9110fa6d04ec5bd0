"""Registration on real volumes and with known transforms: Dice, correlation, errors, seconds and memory.

Brain planes to the Allen annotation (through the CCF template, whose headers agree with it up to a shift) and to
their own published resampling; labels of PD25 to CIT168's template; 48 orientations; a known deformation.

    python benchmarks/studies/registration.py ../shared/data [part ...]
"""

import json
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

import mrhdata
from mrhdata.registration import quality
from mrhdata.registration.demons import Deformation
from mrhdata.registration.initialize import letters, turns
from mrhdata.registration.pipeline import rank_orientations
from mrhdata.registration.transforms import Affine, Displacement, Transform
from mrhdata.volume.grid import Grid

#: A plane's voxel is brain above this; the published resampling reaches its Dice of 0.92 at it.
BRAIN = 40


def timed(moving, fixed, kind, **how):
    """A registration and its seconds."""
    start = time.perf_counter()
    found = mrhdata.register(moving, fixed, kind, **how)
    return found, round(time.perf_counter() - start, 1)


def dice(a, b):
    """Return the Dice score of two masks."""
    return round(float(2 * (a & b).sum() / (a.sum() + b.sum())), 4)


def correlation(a, b):
    """Return the correlation over all voxels."""
    return round(float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]), 4)


def planes(data):
    """The planes to the annotation and to the published result."""
    ccf = {"spacing": (0.1, 0.1, 0.1), "unit": "mm", "space": "CCFv3"}
    annotation = mrhdata.read(data / "mouse-mri-histology/annotation_100.nrrd", axes="PIR", kind="labels", **ccf)
    brain = annotation.values > 0
    folder = data / "mouse-mri-histology"
    template, inside = (mrhdata.read(folder / f"average_template_200um{n}.mnc") for n in ("", "_mask"))
    outline = (annotation > 0).astype(np.float32).assign_attrs(kind="image")
    shift, _ = timed(inside.astype(np.float32), outline, "rigid")
    fixed = mrhdata.resample(template, annotation, shift).compute()
    moving = mrhdata.read(
        data / "mouse-brain-planes/planes", axes="AIR", spacing=(0.05, 0.04, 0.04), unit="mm", space="brain"
    )
    published = mrhdata.read(data / "mouse-brain-planes/downsampled_standard.tiff", axes="PIR", **ccf)
    # It is stored from right to left.
    published = published.copy(data=published.values[:, :, ::-1])
    rows = {"published": {"dice": dice(published.values > BRAIN, brain)}}
    rows["published"]["r_template"] = correlation(published, fixed)
    for goal, volume in (("annotation", fixed), ("published", published)):
        for kind in ("affine", "affine+deform"):
            found, seconds = timed(moving, volume, kind)
            warped = mrhdata.resample(moving, annotation, found).values
            change = quality.jacobian(found, annotation).values[brain]
            rows[f"{kind} to {goal}"] = {
                "dice": dice(warped > BRAIN, brain),
                "r_published": correlation(warped, published),
                "r_published_log": correlation(*(np.log(np.maximum(v, 10)) for v in (warped, published.values))),
                "r_template": correlation(warped, fixed),
                "jacobian": [round(float(q), 3) for q in (change.min(), np.median(change), change.max())],
                "seconds": seconds,
            }
    return rows


def nuclei(data):
    """Compare PD25's nuclei, registered to CIT168's template, with those of CIT168."""
    folder = data / "dgm-atlas"
    fixed = mrhdata.read(folder / "CIT168toMNI152-2009c_T1w_brain.nii.gz")
    moving = mrhdata.read(folder / "PD25-fusion-template-1mm.nii.gz")
    drawn = mrhdata.read(folder / "PD25-subcortical-1mm.nii.gz", kind="labels")
    names = {k: [n.strip() for n in json.loads((folder / f).read_text())["labels"]] for k, f in LABELS.items()}
    theirs = cit168(mrhdata.read(folder / "CIT168.nii.gz"), fixed)
    rows = {}
    for kind in ("as headers say", "affine", "affine+deform"):
        found, seconds = (Transform(), 0.0) if kind.startswith("as") else timed(moving, fixed, kind)
        mine = mrhdata.resample(drawn, fixed, found).values
        rows[kind] = {"seconds": seconds, "nuclei": {}}
        for side in ("Left", "Right"):
            for nucleus, parts in SHARED.items():
                a = mine == names["PD25"].index(f"{side} {nucleus}")
                b = np.isin(theirs, [names["CIT168"].index(f"{side[0]} {p}") for p in parts])
                centres = [fixed.mrh.world(np.argwhere(m).mean(axis=0)) for m in (a, b)]
                away = float(np.linalg.norm(centres[0] - centres[1]))
                rows[kind]["nuclei"][f"{side} {nucleus}"] = {"dice": dice(a, b), "centroid_mm": round(away, 2)}
        every = rows[kind]["nuclei"].values()
        rows[kind] |= {k: round(float(np.mean([n[k] for n in every])), 4) for k in ("dice", "centroid_mm")}
    return rows


LABELS = {"PD25": "PD25-subcortical.json", "CIT168": "CIT168.json"}
SHARED = {
    "red nucleus": ["Red Nucleus"],
    "substantia nigra": ["Substantia Nigra pars compacta", "Substantia-Nigra-pars-reticulata"],
    "subthalamic nucleus": ["Subthalamic Nucleus"],
    "caudate": ["Caudate"],
    "putamen": ["Putamen"],
    "globus pallidus externa": ["Globus Pallidus externa"],
    "globus pallidus interna": ["Globus Pallidus interna"],
}


def cit168(volume, fixed):
    """The more probable of the two labels of each voxel, where it is more likely than background."""
    first, second, p, q = np.asarray(volume.data)
    best, chance = np.where(q > p, second, first), np.maximum(p, q)
    labels = volume.isel(c=0, drop=True).copy(data=np.where(chance >= 128, best, 0).astype(np.uint8))
    return mrhdata.resample(labels.assign_attrs(kind="labels"), fixed).values


def smooth_displacement(noise, grid, most_mm, middle=(0.0, 0.0, 0.0)):
    """A displacement of at most some mm from noise (3, z, y, x) about a place, a little wider than a grid."""
    field = np.stack([gaussian_filter(part, 1.2) for part in noise])
    nodes = np.eye(4)
    nodes[:3, :3] = grid.affine[:3, :3] * 1.2 * np.array(grid.shape) / field.shape[1:]
    nodes[:3, 3] = middle - nodes[:3, :3] @ ((np.array(field.shape[1:]) - 1) / 2)
    return Displacement(field * most_mm / np.abs(field).max(), nodes)


def known_deformation():
    """A digital mouse brain after an affine and a smooth deformation of up to half a millimetre."""
    brain = mrhdata.phantom.mouse_brain(spacing_mm=0.2)
    t2w, grid = brain["t2w"].astype(np.float32), brain["t2w"].mrh.grid
    rng = np.random.default_rng(1)
    field = np.zeros((3, 14, 16, 14), np.float32)
    field[:, 2:-2, 2:-2, 2:-2] = rng.normal(size=(3, 10, 12, 10))
    turn = np.array([[1.03, -0.17, -0.07, 0.4], [0.17, 0.94, -0.12, -0.3], [0.1, 0.12, 1.0, 0.5], [0, 0, 0, 1]])
    truth = Transform([smooth_displacement(field, grid, 0.5), Affine(turn)])
    points = grid.world(np.argwhere(brain["mask"].values > 0))
    rows = {}
    for contrast in ("t2w", "af"):
        moved = mrhdata.resample(brain[contrast], t2w, truth.inverse()).compute()
        kinds = {kind: {} for kind in ("rigid", "affine", "affine+bspline", "affine+deform")}
        kinds["affine+deform, elastic 0.7"] = {"deformation": Deformation(elastic=0.7)}
        for kind, how in kinds.items():
            found, seconds = timed(moved, t2w, kind.partition(",")[0], **how)
            away = np.linalg.norm(found.points(points) - truth.points(points), axis=1) / 0.2
            median, most = (round(float(np.quantile(away, q)), 3) for q in (0.5, 0.95))
            rows[f"{contrast} to t2w, {kind}"] = {"median": median, "p95": most, "seconds": seconds}
    return rows


def orientations():
    """A brain with one hemisphere dimmed, its axes in every order and direction."""
    brain = mrhdata.phantom.mouse_brain(spacing_mm=0.4)["t2w"].astype(np.float32)
    right = np.zeros(brain.shape, bool)
    right[:, :, brain.sizes["x"] // 2 :] = True
    brain = brain.where(~right, 0.6 * brain).assign_attrs(brain.attrs)
    rows, start = {}, time.perf_counter()
    edge = max(brain.shape)
    first = -0.2 * (edge - 1)
    cube = Grid((edge,) * 3, np.array([[0, 0, 0.4, first], [0, 0.4, 0, first], [0.4, 0, 0, first], [0, 0, 0, 1.0]]))
    for turn in turns(True):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn, (30, -20, 10)
        lost = mrhdata.resample(brain, Grid(cube.shape, affine @ cube.affine), Transform([Affine(affine)]).inverse())
        ranking = rank_orientations(lost, brain)
        rows[letters(turn)] = {
            "found": ranking[0].name.split()[1],
            "score": round(ranking[0].score, 4),
            "second": round(ranking[1].score, 4),
        }
    right = sum(name == row["found"] for name, row in rows.items())
    return {"right": right, "of": len(rows), "seconds": round(time.perf_counter() - start, 1), "each": rows}


def sizes():
    """Resampling a large lazy volume through an affine and a displacement: voxels per second and memory."""
    import dask
    import dask.array as da

    edge = 384
    data = da.random.default_rng(0).integers(0, 1000, (edge,) * 3, dtype=np.uint16, chunks=128)
    volume = mrhdata.volume.from_array(data, spacing=(0.01,) * 3)
    nodes = np.array([[0, 0, 0.8, -0.5], [0, 0.8, 0, -0.5], [0.8, 0, 0, -0.5], [0, 0, 0, 1]])
    bend = Displacement(np.random.default_rng(0).normal(0, 0.05, (3, 12, 12, 12)).astype(np.float32), nodes)
    turn = Affine(np.array([[0.99, -0.1, 0, 0.4], [0.1, 0.99, 0, -0.4], [0, 0, 1, 0], [0, 0, 0, 1]]))
    rows, target = {}, _Nowhere()
    for name, steps in (("affine", [turn]), ("affine+displacement", [bend, turn])):
        start = time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=2):
            da.store(mrhdata.resample(volume, volume, Transform(steps), chunks=128).data, target, lock=False)
        rows[name] = {"megavoxels_per_second": round(edge**3 / 1e6 / (time.perf_counter() - start), 2)}
    return rows


class _Nowhere:
    """A store that keeps nothing."""

    shape, dtype = (384,) * 3, np.dtype(np.float32)

    def __setitem__(self, key, value):
        pass


def main(data, *wanted):
    """Print and write the figures of all parts, or of those that are named; the others stay as they are."""
    parts = {"sizes": sizes, "known_deformation": known_deformation, "orientations": orientations}
    parts |= {"planes": lambda: planes(data), "nuclei": lambda: nuclei(data)}
    out = Path(__file__).parents[1] / "results" / "registration.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    results |= {"python": platform.python_version(), "simpleitk": sitk.Version_VersionString(), "threads": 1}
    for name in wanted or parts:
        results[name] = parts[name]()
        results[name + "_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        print(f"\n{name} (peak memory so far {results[name + '_peak_gb']} GB)")
        for key, row in results[name].items():
            print(f"  {key:32}", json.dumps(row) if key != "each" else "", flush=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
