"""Difficulty of the QSM phantom: an affine atlas prior, and a susceptibility threshold that uses it.

    python benchmarks/studies/qsm_phantom.py

Subjects 0 to 14 are for training, 15 to 19 for the test. The **atlas prior** is the mean of the training labels,
registered to subject 0 by an affine transform of T1-weighted images. It is registered to each test subject,
and each voxel gets the most likely label. The **threshold** is one number for the whole brain, with the
best mean Dice on the training subjects (with an atlas of the other fourteen). Each connected component above it
gets the nucleus to which most of its voxels are nearest, according to the atlas. It is applied in the brain and
within 3 mm of the prior's support. The last variant gives each voxel its own nearest nucleus: the threshold finds the
nuclei, and the atlas separates them. Writes ``benchmarks/results/qsm_phantom.*``.
"""

import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

import mrhdata
from mrhdata import phantom

RESULTS = Path(__file__).parents[1] / "results"
TRAIN, TEST = range(15), range(15, 20)
THRESHOLDS = np.round(np.arange(-0.01, 0.1201, 0.01), 2)
REACH_MM = 3.0
VALUES = list(phantom.ROIS.values())
WAYS = ("brain, components", "near the prior, components", "near the prior, voxels by the prior")


def dice(truth, found):
    """Return the Dice scores of the ten regions, (10,)."""
    size = max(VALUES) + 1
    both = np.bincount(truth.ravel() * size + found.ravel(), minlength=size * size).reshape(size, size)
    return np.array([2 * both[v, v] / max(1, both[v].sum() + both[:, v].sum()) for v in VALUES])


def common_labels(subjects):
    """Training labels of each region on the grid of subject 0: (subjects, 10, z, y, x) bool."""
    first, laid = subjects[0], []
    for n in TRAIN:
        labels = subjects[n]["labels"]
        if n:
            found = aligned(subjects[n], first)
            labels = mrhdata.resample(labels, first["labels"], found)
        laid.append(np.stack([labels.values == v for v in VALUES]))
    return np.stack(laid)


def aligned(moving, fixed):
    """Affine transform between two subjects by their T1-weighted images."""
    return mrhdata.register(moving["t1w"], fixed["t1w"], "affine", start="world", spacing_mm=4.0)


def prior_on(subject, first, share):
    """The atlas, (10, z, y, x) on the grid of `first`, carried to `subject`."""
    found = aligned(first, subject)
    maps = [first["qsm"].copy(data=row.astype(np.float32)) for row in share]
    return np.stack([mrhdata.resample(m, subject["qsm"], found).values for m in maps])


def by_prior(prior):
    """The likeliest label of every voxel, background among them."""
    best = np.argmax(np.concatenate([1 - prior.sum(axis=0, keepdims=True), prior]), axis=0)
    return np.array([0, *VALUES])[best]


def prepared(subject, prior):
    """Return the map, the brain, the support of the prior and the nearest nucleus of a subject."""
    atlas = by_prior(prior)
    spacing = tuple(subject["labels"].mrh.spacing)
    nearest = ndimage.distance_transform_edt(atlas == 0, spacing, return_distances=False, return_indices=True)
    support = ndimage.distance_transform_edt(prior.sum(axis=0) < 0.05, spacing) <= REACH_MM
    brain = subject["mask"].values > 0
    return subject["qsm"].values, brain, support & brain, atlas[tuple(nearest)]


def by_threshold(ready, threshold, way):
    """Labels of what is above a threshold."""
    qsm, brain, support, nearest = ready
    above = (qsm > threshold) & (brain if way.startswith("brain") else support)
    if way.endswith("by the prior"):
        return np.where(above, nearest, 0)
    parts, count = ndimage.label(above)
    votes = np.zeros((count + 1, max(VALUES) + 1))
    np.add.at(votes, (parts.ravel(), nearest.ravel()), 1)
    votes[0] = 0
    return np.where(above, votes.argmax(axis=1)[parts], 0)


def scored(truths, ready):
    """Return the Dice scores (subjects, 10) of each use of the best threshold of the training subjects."""
    found = {}
    for way in WAYS:
        means = [np.mean([dice(truths[n], by_threshold(ready[n], t, way)) for n in TRAIN]) for t in THRESHOLDS]
        best = float(THRESHOLDS[int(np.argmax(means))])
        test = np.stack([dice(truths[n], by_threshold(ready[n], best, way)) for n in TEST])
        found[way] = {"threshold": best, "train": float(max(means)), "test": test}
        print(f"threshold {best:.3f} ppm, {way}: train {max(means):.3f}, test {test.mean():.3f}", flush=True)
    return found


def means(subjects):
    """Mean and deviation over subjects and sides of each nucleus's mean, true and mapped, and of its volume."""
    rows = {}
    for name in ("RN", "SN", "GP", "PU", "CN"):
        inside = [(s, s["labels"].values == phantom.ROIS[f"{name} {side}"]) for s in subjects for side in "LR"]
        row = {what: [s[what].values[w].mean() for s, w in inside] for what in ("chi", "qsm")}
        row["mm3"] = [w.sum() * float(np.prod(s["labels"].mrh.spacing)) for s, w in inside]
        rows[name] = {k: [round(float(np.mean(v)), 4), round(float(np.std(v)), 4)] for k, v in row.items()}
        print(name, rows[name], flush=True)
    return rows


def text(result):
    """The result in Markdown."""
    lines = [
        "# How hard the QSM phantom is",
        "",
        "`python benchmarks/studies/qsm_phantom.py`",
        "",
        "Dice on test subjects 15 to 19, mean over the ten regions; subjects 0 to 14 made the atlas and chose the "
        f"threshold. A subject took {result['seconds']} s; the process that held all twenty peaked at "
        f"{result['peak_mb']} MB.",
        "",
        "| method | " + " | ".join(phantom.ROIS) + " | mean |",
        "|" + " --- |" * 12,
    ]
    for name, row in result["dice"].items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in row) + f" | {np.mean(row):.3f} |")
    lines += ["", "Mean and standard deviation over 20 subjects and both sides:", ""]
    lines += ["| nucleus | true ppm | mapped ppm | mm3 |", "| --- | --- | --- | --- |"]
    for name, row in result["means"].items():
        ppm = " | ".join(f"{row[k][0]:.3f} ± {row[k][1]:.3f}" for k in ("chi", "qsm"))
        lines.append(f"| {name} | {ppm} | {row['mm3'][0]:.0f} ± {row['mm3'][1]:.0f} |")
    return "\n".join(lines) + "\n"


def main():
    """Make subjects, score both, write."""
    start = time.perf_counter()
    subjects = [phantom.deep_grey(n) for n in (*TRAIN, *TEST)]
    seconds = (time.perf_counter() - start) / len(subjects)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = means(subjects)
    laid = common_labels(subjects)
    total, priors = laid.sum(axis=0, dtype=np.float32), []
    for n, subject in enumerate(subjects):
        # A training subject's prior holds the others only, or its threshold would be too good.
        share = (total - laid[n]) / (len(TRAIN) - 1) if n in TRAIN else total / len(TRAIN)
        priors.append(share if n == 0 else prior_on(subject, subjects[0], share))
    truths = [s["labels"].values.astype(int) for s in subjects]
    atlas = np.stack([dice(truths[n], by_prior(priors[n])) for n in TEST])
    print(f"affine atlas prior: test {atlas.mean():.3f}", flush=True)
    found = scored(truths, [prepared(s, p) for s, p in zip(subjects, priors, strict=True)])
    result = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seconds": round(seconds, 1),
        "peak_mb": round(peak),
        "thresholds": {way: row["threshold"] for way, row in found.items()},
        "dice": {"affine atlas prior": atlas.mean(axis=0).round(4).tolist()}
        | {f"threshold: {way}": row["test"].mean(axis=0).round(4).tolist() for way, row in found.items()},
        "per_subject": {"affine atlas prior": atlas.mean(axis=1).round(4).tolist()}
        | {f"threshold: {way}": row["test"].mean(axis=1).round(4).tolist() for way, row in found.items()},
        "means": rows,
    }
    (RESULTS / "qsm_phantom.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "qsm_phantom.md").write_text(text(result))
    print(text(result), f"in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
