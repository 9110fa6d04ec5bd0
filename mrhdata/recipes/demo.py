"""The demo: from raw files to a scored map of virtual histology, and a report.

The phantom covers every step: raw files, OME-Zarr and a catalogue, patches, training, a whole-brain map, and the
sensitivity of every contrast. With ``data`` the same steps run on real volumes (:mod:`mrhdata.recipes.demo_real`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from tqdm.auto import tqdm

from mrhdata import models, phantom
from mrhdata.analysis.contrasts import Fit, sensitivity, voxel_table
from mrhdata.analysis.result import Sensitivity
from mrhdata.datasets import catalog
from mrhdata.inference.predictor import predict
from mrhdata.io import conversion, formats
from mrhdata.patching.create import patches
from mrhdata.recipes import demo_real, mrhnet
from mrhdata.recipes.demo_common import BLOCK_VOXELS, PERCENTILE, difference, print_scores
from mrhdata.training.loop import fit
from mrhdata.viz.plots import roc_curves, slices
from mrhdata.viz.report import Section, readable, write_markdown, write_page

Group = Mapping[str, xr.DataArray]

#: Ending of the raw file of each phantom volume, in the mixture of formats that labs have.
RAW = {
    "t2w": ".nii.gz",
    "mt_off": ".mnc",
    "mt_on": ".mnc",
    "dwi2000": ".nii.gz",
    "dwi5000": ".nii.gz",
    "af": ".nrrd",
    "af_clean": ".nrrd",
    "mask": ".mha",
}
INPUTS = ("dwi2000", "dwi5000", "t2w", "mt_off", "mt_on")
TRAIN, VALIDATION, TEST = ("01", "02"), "03", "04"
TITLE = "From MRI to virtual histology"


def run(
    folder: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None, seed: int = 0, progress: bool = True
) -> Path:
    """Run the demo and write the report.

    Parameters
    ----------
    folder : path
        Output folder; results of an earlier run are replaced.
    data : path, optional
        Folder of real volumes. The demo then uses its ``mouse-mri-histology`` and ``mrhnet`` instead of the phantom,
        and plots a slab of ``human-t1-tissue``.
    seed : int
        Random seed of the subjects, the networks' weights and the order of patches.
    progress : bool
        Whether to print steps and progress bars on stderr.

    Returns
    -------
    report : Path
        HTML page; ``report.md`` in the same folder has its text and tables.

    Raises
    ------
    mrhdata.errors.FormatError
        A real volume does not exist; the message names its source.
    """
    start = time.perf_counter()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not progress)
    sections = [section for job in _jobs(out, data, seed, console) for section in job()]
    report = out / "report.html"
    write_page(report, TITLE, sections)
    write_markdown(out / "report.md", TITLE, sections)
    console.print(f"finished after {time.perf_counter() - start:.0f} s. Report: {report}")
    return report


def _jobs(
    out: Path, data: str | os.PathLike[str] | None, seed: int, console: Console
) -> list[Callable[[], list[Section]]]:
    """Return the parts of the demo; all real data must exist before the first part runs."""
    if data is None:
        return [lambda: _phantom(out / "phantom", seed, console)]
    mouse = demo_real.data_path(Path(data), "mouse-mri-histology")
    pairs = demo_real.data_path(Path(data), "mrhnet/paired_voxels.csv.gz")
    slab = demo_real.data_path(Path(data), "human-t1-tissue/sub-01_T1w.nii.gz")
    return [
        lambda: demo_real.mouse(out / "mouse", mouse, seed, console),
        lambda: demo_real.voxel_pairs(out / "pairs", pairs, seed, console),
        lambda: demo_real.slab_orientation(slab),
    ]


def _phantom(out: Path, seed: int, console: Console) -> list[Section]:
    """Run all steps on phantom brains."""
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"1/5 writing four digital mouse brains as raw files and converting them to OME-Zarr in {out}")
    cat = _write_catalogue(out, seed, console)
    subjects = {s: cat.select(subject=s) for s in (*TRAIN, VALIDATION, TEST)}
    console.print("2/5 planning patches of 3 x 3 voxels and 67 channels")
    train = _create_patches([subjects[s] for s in TRAIN])
    validation = _create_patches([subjects[VALIDATION]], stride=4)
    console.print(f"    training {train}\n    validation {validation}")
    console.print("3/5 training MRH-Net with 4 loop blocks")
    model = models.create("mrhnet", in_channels=len(train.channels), loop_blocks=4, seed=seed)
    history = fit(model, train, validation, replace(mrhnet.RECOMMENDED, seed=seed), progress=not console.quiet)
    models.save(model, out / "mrhnet")
    console.print(f"4/5 predicting the whole brain of subject {TEST}")
    test = subjects[TEST]
    prediction = predict(
        model,
        _inputs(test),
        out / "virtual-af.zarr",
        mask=test["mask"],
        name="virtual_af",
        overwrite=True,
        progress=not console.quiet,
    )
    console.print("5/5 scoring contrasts, fits, the prediction, and the true tissue as the upper limit")
    result, raw = _scores(subjects, prediction)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    training = (
        f"MRH-Net learned from {len(train)} patches of subjects {' and '.join(TRAIN)} in {history.seconds:.0f} s. "
        f"Epoch {history.best_epoch + 1} had the lowest loss on subject {VALIDATION}. The map is that of subject "
        f"{TEST}, and fits were made on the training subjects."
    )
    volumes = {"T2w": test["t2w"], "AF histology": test["af"], "MRH-Net": prediction, "true tissue": test["af_clean"]}
    return [_section(result, raw, training, volumes, console)]


def _section(
    result: Sensitivity, raw: list[str], training: str, volumes: Mapping[str, xr.DataArray], console: Console
) -> Section:
    """Return the report section of the phantom, and print its scores."""
    singles = result.table[result.table["model"] == "single"]["contrast"].tolist()
    fits = [name for name in result.table["contrast"] if name.startswith(("linear", "quadratic"))]
    names = ["MRH-Net", "true tissue", *fits, *_best_contrasts(singles, raw)]
    print_scores(console, result, names)
    comparisons = [(singles[0], "best single contrast"), (fits[0], "best per-voxel fit")]
    return Section(
        "Phantom: virtual autofluorescence of a held-out brain",
        [
            training,
            f"Voxels are positive if their autofluorescence is below {result.threshold:.3f} (percentile {PERCENTILE} "
            f"of the training subjects): {result.positives} of {result.rows} voxels. Intervals are {result.level:.0%} "
            f"block bootstrap intervals over {result.blocks} cubes of {BLOCK_VOXELS} voxels.",
            *(difference(result, "MRH-Net", name, label) for name, label in comparisons),
            f"The file phantom/sensitivity.csv has all {len(singles)} single contrasts. The table below has the maps "
            "and the best raw images.",
        ],
        readable(result, names),
        [
            (roc_curves(result, ["true tissue", "MRH-Net", fits[0], singles[0]]), "ROC curves on the test subject"),
            (slices(volumes), "Slices of the test subject: input, histology, prediction, true tissue"),
        ],
    )


def _write_catalogue(out: Path, seed: int, console: Console) -> catalog.Catalog:
    """Write raw files of four subjects, convert each to OME-Zarr, and list them in a catalogue."""
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    subjects = tqdm((*TRAIN, VALIDATION, TEST), desc="subjects", unit="brain", disable=console.quiet)
    for number, subject in enumerate(subjects):
        brain = phantom.mouse_brain(seed=1000 * seed + number)
        folder = out / f"sub-{subject}"
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        for name, ending in RAW.items():
            raw, store = folder / "raw" / (name + ending), folder / f"{name}.zarr"
            formats.write(brain[name], raw, overwrite=True)
            metadata = {key: brain[name].attrs[key] for key in ("kind", "modality", "units")}
            conversion.convert(raw, store, overwrite=True, progress=False, space="phantom", name=name, **metadata)
            entries[f"sub-{subject}_{name}"] = (
                store.relative_to(out).as_posix(),
                {"subject": subject, "role": name, **metadata, "space": "phantom"},
            )
    catalog.write(out / "catalog.yaml", "Phantom mouse brains", entries, licence="MIT")
    return catalog.open_catalog(out / "catalog.yaml")


def _inputs(subject: Group) -> dict[str, xr.DataArray]:
    return {name: subject[name] for name in INPUTS}


def _create_patches(subjects: Sequence[Group], stride: int | None = None) -> Any:
    return patches(
        [_inputs(s) for s in subjects],
        [s["af"] for s in subjects],
        shape=mrhnet.PATCH,
        stride=stride,
        plane="coronal",
        mask=[s["mask"] for s in subjects],
    )


def _scores(subjects: Mapping[str, Group], prediction: xr.DataArray) -> tuple[Sensitivity, list[str]]:
    """Score contrasts, fits and the prediction on the test subject, and return the names of the raw images too."""
    tables, raw = [], []
    for subject in (*TRAIN, TEST):
        brain = subjects[subject]
        predictions = {"MRH-Net": prediction} if subject == TEST else {}
        maps = phantom.mouse_maps(brain)
        columns = {**maps, **_inputs(brain), "AF": brain["af"], "true tissue": brain["af_clean"], **predictions}
        table = voxel_table({k: v for k, v in columns.items() if k != "t2w"}, brain["mask"], block_voxels=BLOCK_VOXELS)
        tables.append(table.assign(subject=subject))
        raw = [str(c) for c in table if ":" in str(c)] + ["mt_off", "mt_on", "T2w"]
    table = pd.concat(tables, ignore_index=True)
    train = table.pop("subject").to_numpy() != TEST
    truth = table.pop("AF").to_numpy()
    fits = [
        Fit("linear, 5 maps", 1, list(maps)),
        Fit("quadratic, 5 maps", 2, list(maps)),
        Fit("linear, 67 images", 1, raw),
    ]
    scored = {name: table.pop(name).to_numpy() for name in ("MRH-Net", "true tissue")}
    threshold = float(np.percentile(truth[train], PERCENTILE))
    return sensitivity(table, truth, threshold=threshold, fits=fits, predictions=scored, train_mask=train), raw


def _best_contrasts(singles: list[str], raw: list[str]) -> list[str]:
    """Return all maps, and the best three raw images."""
    return [s for s in singles if s not in raw or s == "T2w"] + [s for s in singles if s in raw and s != "T2w"][:3]
