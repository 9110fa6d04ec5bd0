"""Virtual histology of the phantom: important inputs, robustness to noise, and detection of unreliable predictions.

    python benchmarks/studies/robustness.py

MRH-Net with 67 channels: importance of each image by noise (as published), by permutation, and of groups
of images by retraining without them; Rician noise on all inputs, at test time only and in training too;
uncertainty and OOD score of an ensemble of five, on intact and corrupted subjects. Two training
subjects, one for early stopping and calibration, and test subjects that are only scored.
"""

import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from phantom_brains import (
    INPUTS,
    PERCENTILE,
    SETTINGS,
    STRIDE,
    TARGET,
    TEST,
    THREADS,
    TRAIN,
    VALIDATION,
    brain,
    planned,
    scored,
    table,
    threshold,
    trained,
)

from mrhdata.analysis import robustness
from mrhdata.inference.voxelwise import centres, predict_patches

RESULTS = Path(__file__).parents[1] / "results"
MEMBERS = 5
#: Standard deviation of added noise, parts of each image's mean; the phantom's own noise is 1/40 to 1/30.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)
#: Further subjects as they are.
NORMAL = (4, 5)
#: Centre (z, y, x, parts of the volume) and radius in voxels of a lesion in cortex and white matter.
LESION, RADIUS = (0.62, 0.5, 0.25), 4
GROUPS = {
    "T2w": [64],
    "MT pair": [65, 66],
    "b=2000 shell": list(range(32)),
    "b=5000 shell": list(range(32, 64)),
    "both shells": list(range(64)),
}


def changed(subject, change):
    """A subject whose inputs, a list of arrays (c, z, y, x) in the order of `INPUTS`, went through a function."""
    stacks = [np.atleast_3d(subject[n].values).reshape(-1, *subject["mask"].shape).astype(np.float32) for n in INPUTS]
    inside = subject["mask"].values > 0
    found = change(stacks, inside)
    return subject | {
        n: subject[n].copy(data=part.reshape(subject[n].shape)) for n, part in zip(INPUTS, found, strict=True)
    }


def with_noise(subject, share, seed):
    """Rician noise on all images, as `robustness.noisy` adds it to patches."""
    rng = np.random.default_rng(seed)

    def change(stacks, inside):
        return [
            robustness.rician(s, share * s[:, inside].mean(axis=1).astype(np.float32).reshape(-1, 1, 1, 1), rng)
            for s in stacks
        ]

    return changed(subject, change)


def sphere(subject):
    """A lesion's voxels."""
    shape = np.array(subject["mask"].shape)
    away = np.indices(shape) - (shape * LESION).astype(int).reshape(3, 1, 1, 1)
    inside = ((away**2).sum(axis=0) <= RADIUS**2) & (subject["mask"].values > 0)
    return subject["mask"].copy(data=inside.astype(np.uint8))


def bleeding(subject):
    """A lesion of iron: T2w falls to a fifth, the diffusion images to 0.7, the MT pair stays."""
    here = sphere(subject).values > 0

    def change(stacks, inside):
        for stack, factor in zip(stacks, (0.7, 0.7, 0.2, 1.0, 1.0), strict=True):
            stack[:, here] *= factor
        return stacks

    return changed(subject, change) | {"lesion": sphere(subject)}


def swelling(subject):
    """A lesion of free water: half of every signal is that of the ventricles."""
    here = sphere(subject).values > 0
    water = subject["tissue"].values == 11

    def change(stacks, inside):
        for stack in stacks:
            stack[:, here] = 0.5 * stack[:, here] + 0.5 * stack[:, water].mean(axis=1, keepdims=True)
        return stacks

    return changed(subject, change) | {"lesion": sphere(subject)}


def swapped(first, second):
    """Two inputs in each other's place."""
    a, b = INPUTS.index(first), INPUTS.index(second)

    def change(stacks, inside):
        stacks[a], stacks[b] = stacks[b], stacks[a]
        return stacks

    return lambda subject: changed(subject, change)


def drift(subject):
    """The receiver's gain rises by 10 % from the first image to the last."""

    def change(stacks, inside):
        gain = np.linspace(1.0, 1.1, sum(len(s) for s in stacks), dtype=np.float32).reshape(-1, 1, 1, 1)
        ends = np.cumsum([len(s) for s in stacks])
        return [s * gain[end - len(s) : end] for s, end in zip(stacks, ends, strict=True)]

    return changed(subject, change)


def louder(subject):
    """All images 10 % brighter."""
    return changed(subject, lambda stacks, inside: [1.1 * s for s in stacks])


def ghost(subject):
    """A ghost of motion: 15 % of every image, moved by half the field of view along y."""
    return changed(subject, lambda stacks, inside: [s + 0.15 * np.roll(s, s.shape[2] // 2, axis=2) for s in stacks])


def judged(ensemble, subject, stride=STRIDE, where="mask", target=TARGET):
    """Answers at the patches of one subject, and the truth."""
    patches = planned([subject], stride=stride, mask=where, target=target)
    parts = patches.gather(np.arange(len(patches)))
    return predict_patches(ensemble, parts[0]), centres(parts[1])[:, 0]


def flags(ensemble, subject):
    """Fraction flagged, and mean absolute error and uncertainty within and without the flags."""
    rows = []
    damaged = bleeding(subject), swelling(subject)
    cases = [("normal, the test subject", subject, STRIDE, "mask")]
    cases += [(f"normal, subject {seed}", brain(seed), STRIDE, "mask") for seed in NORMAL]
    cases += [
        ("lesion, iron: its voxels", damaged[0], (1, 1, 1), "lesion"),
        ("lesion, water: its voxels", damaged[1], (1, 1, 1), "lesion"),
        ("where the lesion is, before", subject | {"lesion": sphere(subject)}, (1, 1, 1), "lesion"),
        ("MT pair swapped", swapped("mt_off", "mt_on")(subject), STRIDE, "mask"),
        ("shells swapped", swapped("dwi2000", "dwi5000")(subject), STRIDE, "mask"),
        ("T2w and MT off swapped", swapped("t2w", "mt_off")(subject), STRIDE, "mask"),
        ("gain drifts by 10 %", drift(subject), STRIDE, "mask"),
        ("all 10 % brighter", louder(subject), STRIDE, "mask"),
        ("ghost of 15 %", ghost(subject), STRIDE, "mask"),
    ]
    for name, one, stride, where in cases:
        answers, truth = judged(ensemble, one, stride, where)
        flagged = answers[:, 2] > 1
        error = np.abs(answers[:, 0] - truth)
        rows.append(
            {
                "case": name,
                "voxels": len(truth),
                "flagged": float(flagged.mean()),
                "error": float(error.mean()),
                "uncertainty": float(answers[:, 1].mean()),
                "error_flagged": float(error[flagged].mean()) if flagged.any() else None,
                "error_not_flagged": float(error[~flagged].mean()) if not flagged.all() else None,
            }
        )
        print(rows[-1], flush=True)
    return rows


def doubt(ensemble, subject):
    """Coverage, and error by fifths of uncertainty, on the test subject."""
    answers, truth = judged(ensemble, subject)
    error = np.abs(answers[:, 0] - truth)
    fifth = pd.qcut(answers[:, 1], 5, labels=False)
    parts = [
        {
            "fifth": k + 1,
            "uncertainty": float(answers[fifth == k, 1].mean()),
            "error": float(error[fifth == k].mean()),
            "rmse": float(np.sqrt((error[fifth == k] ** 2).mean())),
            **{
                f"covered_{round(100 * row.level)}": row.covered
                for row in robustness.coverage(truth[fifth == k], answers[fifth == k]).itertuples()
            },
        }
        for k in range(5)
    ]
    clean = np.abs(answers[:, 0] - judged(ensemble, subject, target="af_clean")[1])
    ranks = {
        name: float(pd.Series(answers[:, 1]).corr(pd.Series(values), method="spearman"))
        for name, values in (("histology", error), ("histology without noise", clean))
    }
    covered = robustness.coverage(truth, answers).to_dict("records")
    return {"coverage": covered, "fifths": parts, "rank_correlation": ranks}


def sweeps(members, subjects, held):
    """Return the scores with noise at test time only, and in training too."""
    alone = robustness.noise_sweep(members[0], held, SHARES)
    rows = []
    for number, share in enumerate(SHARES[1:]):
        noisy = {s: with_noise(subjects[s], share, (number, s)) for s in (*TRAIN, VALIDATION)}
        model, _ = trained(planned([noisy[s] for s in TRAIN]), planned([noisy[VALIDATION]]))
        # The same noise on the test inputs as in the sweep above.
        rng = np.random.default_rng((0, number + 1))
        rows.append(
            {"share": share} | held.row(predict_patches(model, robustness.noisy(held.inputs, share, rng))[:, 0])
        )
    return {"at test": alone.to_dict("records"), "at training too": [alone.iloc[0].to_dict(), *rows]}


def retrained(subjects, held):
    """Losses of networks that never had a group of images."""

    def train(channels):
        # Groups leave out whole volumes.
        used = [name for name in INPUTS if {held.channels[c].partition(":")[0] for c in channels} >= {name}]
        parts = (planned([subjects[s] for s in group], names=used) for group in (TRAIN, (VALIDATION,)))
        return trained(*parts)[0]

    return robustness.retraining_importance(train, held, groups=GROUPS)


def main():
    """Measure and write."""
    start = time.perf_counter()
    subjects = {seed: brain(seed) for seed in (*TRAIN, VALIDATION, TEST)}
    training, validation = planned([subjects[s] for s in TRAIN]), planned([subjects[VALIDATION]])
    held = robustness.held_out(planned([subjects[TEST]]), threshold([subjects[s] for s in TRAIN]), most=3000)
    print(held.channels[62:], flush=True)
    members = [trained(training, validation, seed)[0] for seed in range(MEMBERS)]
    answers = [predict_patches(member, held.inputs)[:, 0] for member in members]
    ensemble = robustness.calibrated_ensemble(members, training, validation)
    found = {
        "members": [held.row(answer) for answer in answers],
        "ensemble": held.row(predict_patches(ensemble, held.inputs)[:, 0]),
        "chance": [held.loss(answers[0], other) for other in answers[1:]],
        "calibration": {n: float(getattr(ensemble, n)) for n in ("factor", "floor", "limit")},
    }
    print(found["members"], found["ensemble"], found["calibration"], time.perf_counter() - start, flush=True)
    found["doubt"] = doubt(ensemble, subjects[TEST])
    print(found["doubt"], flush=True)
    found["flags"] = flags(ensemble, subjects[TEST])
    print("flags", time.perf_counter() - start, flush=True)
    found["noise"] = robustness.noise_contribution(members[0], held).to_dict("records")
    found["noise_groups"] = robustness.noise_contribution(members[0], held, groups=GROUPS).to_dict("records")
    print("noise", time.perf_counter() - start, flush=True)
    found["permutation"] = robustness.permutation_importance(members[0], held).to_dict("records")
    found["permutation_groups"] = robustness.permutation_importance(members[0], held, groups=GROUPS).to_dict("records")
    print("permutation", time.perf_counter() - start, flush=True)
    found["retraining"] = retrained(subjects, held).to_dict("records")
    print("retraining", time.perf_counter() - start, flush=True)
    found["sweeps"] = sweeps(members, subjects, held)
    found["settings"] = {
        "threads": THREADS,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "patches": len(training),
        "epochs": SETTINGS.epochs,
        "held_out": len(held.truth),
        "threshold": held.threshold,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time()),
    }
    (RESULTS / "robustness.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "robustness.md").write_text(text(found))
    print(text(found))


def text(found):
    """The result in Markdown."""
    made = found["settings"]
    lines = [
        "# Robustness of virtual histology",
        "",
        "`python benchmarks/studies/robustness.py`",
        "",
        f"MRH-Net, 4 blocks, 67 channels, {made['patches']} patches of two phantom subjects, {made['epochs']} epochs; "
        f"scores on {made['held_out']} patches of a test subject, positive below percentile {PERCENTILE} of the "
        "training subjects' autofluorescence, 95 % intervals over blocks as long as tissue is alike, widened. "
        f"Threads: {made['threads']}; {made['seconds']} s in all, {made['cpu_seconds']} s of the processor.",
        "",
        *_members(found),
        *_inputs(found),
        *_sweeps(found),
        *_doubt(found),
        *_flags(found),
    ]
    return "\n".join(lines)


def _members(found):
    rows = [(f"member {n}", scored(r, "auc"), scored(r, "r2")) for n, r in enumerate(found["members"])]
    rows.append(("mean of five", scored(found["ensemble"], "auc"), scored(found["ensemble"], "r2")))
    return ["## The networks", "", *table(["network", "AUC", "R2"], rows), ""]


def _inputs(found):
    chance = max(abs(row["r2_loss"]) for row in found["chance"]), max(abs(row["auc_loss"]) for row in found["chance"])
    tables = {k: {r["input"]: r for r in found[k]} for k in ("noise_groups", "permutation_groups", "retraining")}
    groups = [
        (
            name,
            tables["noise_groups"][name]["rmse"],
            *(
                scored(tables[k][name], f"{s}_loss")
                for k in ("permutation_groups", "retraining")
                for s in ("auc", "r2")
            ),
        )
        for name in GROUPS
    ]
    by_shuffling = {r["input"]: r for r in found["permutation"]}
    best = [(r["input"], r["contribution"], scored(by_shuffling[r["input"]], "r2_loss")) for r in found["noise"][:10]]
    shares = np.cumsum([r["contribution"] for r in found["noise"]])
    parts = ", ".join(f"{n}: {shares[n - 1]:.0%}" for n in (4, 17, 38))
    return [
        "## Important inputs",
        "",
        "Losses of a network that was shuffled or retrained, against the whole one. Two networks that differ only in "
        f"their seed differ by up to {chance[1]:.4f} AUC and {chance[0]:.3f} R2: "
        "smaller retraining losses mean nothing.",
        "",
        *table(
            ["images", "RMSE, 10 % noise", "AUC, shuffled", "R2, shuffled", "AUC, retrained", "R2, retrained"], groups
        ),
        "",
        f"Single images by noise, contributions adding up to 1. Share of the first images, {parts} (published, of "
        "another network and real data: 28 %, 50 %, 75 %). All 67 stand in robustness.json.",
        "",
        *table(["image", "contribution", "R2 lost when shuffled"], best),
        "",
    ]


def _sweeps(found):
    both = zip(found["sweeps"]["at test"], found["sweeps"]["at training too"], strict=True)
    rows = [(a["share"], *(scored(r, s) for r in (a, b) for s in ("auc", "r2"))) for a, b in both]
    head = ["noise, part of the mean", "AUC, at test", "R2, at test", "AUC, at training too", "R2, at training too"]
    return ["## Noise on all images", "", *table(head, rows), ""]


def _doubt(found):
    ranks = " and ".join(f"{value:.2f} against {name}" for name, value in found["doubt"]["rank_correlation"].items())
    covered = ", ".join(f"{r['level']:.0%}: {r['covered']:.1%}" for r in found["doubt"]["coverage"])
    fifths = [tuple(row.values()) for row in found["doubt"]["fifths"]]
    return [
        "## Uncertainty, on the test subject",
        "",
        f"Truth within the intervals of {covered}. Spearman correlation of uncertainty and absolute error: "
        f"{ranks}. Factor {found['calibration']['factor']:.2f}, floor "
        f"{found['calibration']['floor']:.4f}, from the validation subject.",
        "",
        *table(["fifth", "uncertainty", "mean error", "RMSE", "in 50 %", "in 80 %", "in 95 %"], fifths),
        "",
    ]


def _flags(found):
    rows = [
        (r["case"], r["voxels"], f"{r['flagged']:.1%}", *("" if v is None else v for v in list(r.values())[3:]))
        for r in found["flags"]
    ]
    head = ["inputs", "voxels", "flagged", "mean error", "uncertainty", "error where flagged", "error elsewhere"]
    return ["## Out-of-distribution inputs", "", *table(head, rows), ""]


if __name__ == "__main__":
    main()
