"""The main job from end to end: raw files to a scored map of histology, and a report.

On the phantom: files, OME-Zarr and a catalogue, patches, training, a whole-brain map, and how sensitive
every contrast is. With ``data``: the same on real volumes and on the published voxel pairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from tqdm.auto import tqdm

from mrhdata import models, phantom
from mrhdata.analysis.contrasts import Fit, row_blocks, sensitivity, voxel_table
from mrhdata.analysis.result import Sensitivity
from mrhdata.datasets import catalog
from mrhdata.errors import FormatError
from mrhdata.inference.predictor import predict
from mrhdata.inference.voxelwise import predict_rows
from mrhdata.io import conversion, formats
from mrhdata.patching.create import patches
from mrhdata.recipes import mrhnet
from mrhdata.training.loop import fit
from mrhdata.viz.plots import roc_curves, slices
from mrhdata.viz.report import Section, readable, write_markdown, write_page

if TYPE_CHECKING:
    from torch import nn

Group = Mapping[str, xr.DataArray]

#: Volume of the phantom -> ending of the raw file it is written to, as labs keep them.
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

#: Positive are voxels below this percentile of the training subjects' autofluorescence.
PERCENTILE = 20

#: Coronal blocks of the real brain in planes, their roles from back to front, and the gap left at the start
#: of each: three planes, as wide as a patch.
BLOCK_PLANES, GAP_PLANES = 11, 3
#: Edge of the cubes that intervals resample.
BLOCK_VOXELS = 8
ROLES = ("train", "test", "train", "validation", "train", "test")


def run(
    folder: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None, seed: int = 0, progress: bool = True
) -> Path:
    """Run the main job and write the report.

    Parameters
    ----------
    folder : path
        Everything is written here; results of an earlier run are replaced.
    data : path, optional
        Folder of real volumes; the same path then runs on ``mouse-mri-histology`` and ``mrhnet`` in it,
        and a slab of ``human-t1-tissue`` is shown.
    seed : int
        Of the subjects, the networks' weights and the order of patches.
    progress : bool
        Say what is done, with bars, on stderr.

    Returns
    -------
    report : Path
        The HTML page; ``report.md`` beside it has its text and tables.

    Raises
    ------
    mrhdata.errors.FormatError
        A real volume is missing; the message says where to get it.
    """
    start = time.perf_counter()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    say = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not progress)
    jobs: list[Callable[[], list[Section]]] = [lambda: _on_phantom(out / "phantom", seed, say)]
    if data is not None:
        mouse, pairs = _find(Path(data), "mouse-mri-histology"), _find(Path(data), "mrhnet/paired_voxels.csv.gz")
        slab = _find(Path(data), "human-t1-tissue/sub-01_T1w.nii.gz")
        jobs = [
            lambda: _on_mouse(out / "mouse", mouse, seed, say),
            lambda: _on_pairs(out / "pairs", pairs, seed, say),
            lambda: _on_slab(slab),
        ]
    sections = [section for job in jobs for section in job()]
    report = out / "report.html"
    write_page(report, "From MRI to virtual histology", sections)
    write_markdown(out / "report.md", "From MRI to virtual histology", sections)
    say.print(f"{time.perf_counter() - start:.0f} s. Report: {report}")
    return report


def _on_phantom(out: Path, seed: int, say: Console) -> list[Section]:
    """Phantom brains, from raw files to scores."""
    out.mkdir(parents=True, exist_ok=True)
    say.print(f"1/5 four digital mouse brains as raw files, converted to OME-Zarr, in {out}")
    cat = _phantom_catalogue(out, seed, say)
    subjects = {s: cat.select(subject=s) for s in (*TRAIN, VALIDATION, TEST)}
    say.print("2/5 patches of 3 x 3 voxels and 67 channels")
    train = _planned([subjects[s] for s in TRAIN])
    validation = _planned([subjects[VALIDATION]], stride=4)
    say.print(f"    training {train}\n    validation {validation}")
    say.print("3/5 training MRH-Net, 4 loop blocks")
    model = models.create("mrhnet", in_channels=len(train.channels), loop_blocks=4, seed=seed)
    history = fit(model, train, validation, replace(mrhnet.RECOMMENDED, seed=seed), progress=not say.quiet)
    models.save(model, out / "mrhnet")
    say.print(f"4/5 map of the whole brain of subject {TEST}")
    test = subjects[TEST]
    mapped = predict(
        model,
        _inputs(test),
        out / "virtual-af.zarr",
        mask=test["mask"],
        name="virtual_af",
        overwrite=True,
        progress=not say.quiet,
    )
    say.print("5/5 sensitivity of every contrast, of fits, of the map, and of the true tissue as the ceiling")
    result, raw = _phantom_scores(subjects, mapped)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    singles = result.table[result.table["model"] == "single"]["contrast"].tolist()
    fits = [name for name in result.table["contrast"] if name.startswith(("linear", "quadratic"))]
    named = ["MRH-Net", "true tissue", *fits, *_shown(singles, raw)]
    differences = [(singles[0], "best single contrast"), (fits[0], "best per-voxel fit")]
    _say_scores(say, result, named)
    shown = {"T2w": test["t2w"], "AF histology": test["af"], "MRH-Net": mapped, "true tissue": test["af_clean"]}
    return [
        Section(
            "Phantom: virtual autofluorescence of a brain never seen",
            [
                f"MRH-Net was trained on {len(train)} patches of subjects {' and '.join(TRAIN)} in "
                f"{history.seconds:.0f} s, kept the weights of epoch {history.best_epoch + 1} by subject "
                f"{VALIDATION}, and was mapped over subject {TEST}. Fits were made on the training subjects.",
                f"Positive: autofluorescence below {result.threshold:.3f} (percentile {PERCENTILE} of the training "
                f"subjects), {result.positives} of {result.rows} voxels. Intervals: {result.level:.0%}, block "
                f"bootstrap over {result.blocks} cubes of {BLOCK_VOXELS} voxels.",
                *(_difference(result, "MRH-Net", name, label) for name, label in differences),
                f"All {len(singles)} single contrasts stand in phantom/sensitivity.csv; below, maps and best images.",
            ],
            readable(result, named),
            [
                (roc_curves(result, ["true tissue", "MRH-Net", fits[0], singles[0]]), "ROC curves on the test subject"),
                (slices(shown), "Slices of the test subject: input, histology, prediction, true tissue"),
            ],
        )
    ]


def _phantom_catalogue(out: Path, seed: int, say: Console) -> catalog.Catalog:
    """Write raw files of four subjects, convert each to OME-Zarr, list them."""
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, subject in enumerate(
        tqdm((*TRAIN, VALIDATION, TEST), desc="subjects", unit="brain", disable=say.quiet)
    ):
        brain = phantom.mouse_brain(seed=1000 * seed + number)
        folder = out / f"sub-{subject}"
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        for name, ending in RAW.items():
            raw, store = folder / "raw" / (name + ending), folder / f"{name}.zarr"
            formats.write(brain[name], raw, overwrite=True)
            held = {key: brain[name].attrs[key] for key in ("kind", "modality", "units")}
            conversion.convert(raw, store, overwrite=True, progress=False, space="phantom", name=name, **held)
            relative = store.relative_to(out).as_posix()
            entries[f"sub-{subject}_{name}"] = (
                relative,
                {"subject": subject, "role": name, **held, "space": "phantom"},
            )
    catalog.write(out / "catalog.yaml", "Phantom mouse brains", entries, licence="MIT")
    return catalog.open_catalog(out / "catalog.yaml")


def _inputs(subject: Group) -> dict[str, xr.DataArray]:
    return {name: subject[name] for name in INPUTS}


def _planned(subjects: Sequence[Group], stride: int | None = None) -> Any:
    return patches(
        [_inputs(s) for s in subjects],
        [s["af"] for s in subjects],
        shape=mrhnet.PATCH,
        stride=stride,
        plane="coronal",
        mask=[s["mask"] for s in subjects],
    )


def _phantom_scores(subjects: Mapping[str, Group], mapped: xr.DataArray) -> tuple[Sensitivity, list[str]]:
    """Rows of the training subjects to fit on and of the test subject to score, and the raw images' names."""
    tables, raw = [], []
    for subject in (*TRAIN, TEST):
        brain = subjects[subject]
        guesses = {"MRH-Net": mapped} if subject == TEST else {}
        maps = phantom.mouse_maps(brain)
        columns = {**maps, **_inputs(brain), "AF": brain["af"], "true tissue": brain["af_clean"], **guesses}
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
    guessed = {name: table.pop(name).to_numpy() for name in ("MRH-Net", "true tissue")}
    threshold = float(np.percentile(truth[train], PERCENTILE))
    return sensitivity(table, truth, threshold=threshold, fits=fits, predictions=guessed, train_mask=train), raw


def _shown(singles: list[str], raw: list[str]) -> list[str]:
    """The maps, and of the raw images the best three."""
    return [s for s in singles if s not in raw or s == "T2w"] + [s for s in singles if s in raw and s != "T2w"][:3]


def _on_mouse(out: Path, source: Path, seed: int, say: Console) -> list[Section]:
    """DSURQE T2w to the CCF autofluorescence template, split by coronal blocks."""
    out.mkdir(parents=True, exist_ok=True)
    say.print(f"real volumes: MINC to OME-Zarr, in {out}")
    brain = _mouse_catalogue(out, source).select(space="CCFv3")
    mask = (brain["mri_mask"] * brain["af_mask"].mrh.like(brain["mri_mask"])).rename("mask")
    mask = mask.assign_attrs(brain["mri_mask"].attrs)
    regions = _coronal_blocks(mask.sizes["y"])
    model, planned = _trained_on_blocks(brain, mask, regions, seed, say)
    models.save(model, out / "mrhnet")
    mapped = predict(
        model,
        brain["t2w"],
        out / "virtual-af.zarr",
        mask=mask,
        name="virtual_af",
        overwrite=True,
        progress=not say.quiet,
    )
    table = voxel_table({"T2w": brain["t2w"], "AF": brain["af"], "MRH-Net": mapped}, mask)
    correlation = table["T2w"].corr(table["AF"])
    result = _mouse_scores(table, regions)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    names = list(result.table["contrast"])
    _say_scores(say, result, names)
    shown = {"DSURQE T2w": brain["t2w"], "CCFv3 AF": brain["af"], "MRH-Net": mapped}
    tested = "; ".join(f"{low} to {high - 1}" for name, low, high in regions if name == "test")
    best = next(name for name in names if name.endswith("in T2w"))
    return [
        Section(
            "Real mouse brain: DSURQE T2w to CCFv3 autofluorescence",
            [
                f"Both are population averages at 0.2 mm. Over all {len(table)} voxels of both masks T2w and "
                f"autofluorescence correlate with r = {correlation:.2f}.",
                f"Trained on {planned} patches; tested on the coronal planes {tested}, "
                f"{GAP_PLANES} planes from any plane that was trained on. Left and right are mirror images in the "
                "template, so both stand in the same block.",
                f"Positive: autofluorescence below {result.threshold:.1f} (percentile {PERCENTILE} of the training "
                f"blocks), {result.positives} of {result.rows} voxels, {result.blocks} blocks.",
                *(_difference(result, "MRH-Net", best, "best per-voxel fit", score) for score in ("auc", "r2")),
            ],
            readable(result),
            [
                (roc_curves(result, names), "ROC curves on the held-out coronal blocks"),
                (slices(shown), "T2w, autofluorescence template and prediction (trained blocks included)"),
            ],
        )
    ]


def _mouse_catalogue(out: Path, source: Path) -> catalog.Catalog:
    """Convert the four MINC files and list them."""
    files = {
        "t2w": ("DSURQE_CCFv3_average_200um.mnc", "image", "mri"),
        "af": ("average_template_200um.mnc", "image", "histology"),
        "mri_mask": ("DSURQE_CCFv3_mask_200um.mnc", "mask", "mri"),
        "af_mask": ("average_template_200um_mask.mnc", "mask", "histology"),
    }
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, (file, kind, modality) in files.items():
        store = out / f"{name}.zarr"
        options: dict[str, Any] = {"kind": kind, "modality": modality, "space": "CCFv3", "name": name}
        conversion.convert(source / file, store, overwrite=True, progress=False, **options)
        entries[name] = (store.name, {"role": name, "modality": modality, "kind": kind, "space": "CCFv3"})
    catalog.write(out / "catalog.yaml", "DSURQE MRI and CCFv3 template", entries, licence="cite, non-commercial")
    return catalog.open_catalog(out / "catalog.yaml")


def _mouse_scores(table: pd.DataFrame, regions: Sequence[tuple[str, int, int]]) -> Sensitivity:
    """Fits made on the training blocks, scored with the map on the test blocks; gaps and validation left out."""
    role = np.full(table["y"].max() + 1, "gap", dtype=object)
    for name, low, high in regions:
        role[low:high] = name
    table = table.assign(role=role[table["y"]]).query("role in ('train', 'test')").reset_index(drop=True)
    train = table.pop("role").to_numpy() == "train"
    truth, guess = table.pop("AF").to_numpy(), table.pop("MRH-Net").to_numpy()
    threshold = float(np.percentile(truth[train], PERCENTILE))
    fits = [Fit("quadratic in T2w", 2), Fit("cubic in T2w", 3)]
    return sensitivity(table, truth, threshold=threshold, fits=fits, predictions={"MRH-Net": guess}, train_mask=train)


def _coronal_blocks(planes: int) -> list[tuple[str, int, int]]:
    """Role, first plane and end of each block, gaps left out; the last block takes what is left."""
    regions = []
    for i, role in enumerate(ROLES):
        low = i * BLOCK_PLANES + (GAP_PLANES if i else 0)
        high = planes if i == len(ROLES) - 1 else (i + 1) * BLOCK_PLANES
        regions.append((role, low, high))
    return regions


def _trained_on_blocks(
    brain: Group, mask: xr.DataArray, regions: Sequence[tuple[str, int, int]], seed: int, say: Console
) -> tuple[nn.Module, int]:
    planned = {}
    for wanted in ("train", "validation"):
        cuts = [slice(low, high) for role, low, high in regions if role == wanted]
        planned[wanted] = patches(
            [brain["t2w"].isel(y=c) for c in cuts],
            [brain["af"].isel(y=c) for c in cuts],
            shape=mrhnet.PATCH,
            stride=1,
            plane="coronal",
            mask=[mask.isel(y=c) for c in cuts],
        )
    model = models.create("mrhnet", in_channels=1, loop_blocks=4, seed=seed)
    fit(model, planned["train"], planned["validation"], replace(mrhnet.RECOMMENDED, seed=seed), progress=not say.quiet)
    return model, len(planned["train"])


def _on_pairs(out: Path, source: Path, seed: int, say: Console) -> list[Section]:
    """The published voxel pairs: linear, quadratic and MRH-Net, tested on the last fifth of the rows."""
    out.mkdir(parents=True, exist_ok=True)
    say.print(f"published voxel pairs: five networks on the first 80 % of {source.name}")
    table = pd.read_csv(source)
    truth = table.pop("AF").to_numpy()
    train = np.arange(len(table)) < int(0.8 * len(table))
    settings = replace(mrhnet.VOXELWISE, seed=5 * seed)
    networks = mrhnet.fold_ensemble(table[train], truth[train], settings, progress=not say.quiet)
    guesses = {f"MRH-Net {i + 1}": predict_rows(n, np.asarray(table)) for i, n in enumerate(networks)}
    guesses["MRH-Net ensemble"] = np.mean(list(guesses.values()), axis=0)
    blocks = row_blocks(len(table), 50)
    result = sensitivity(table, truth, threshold=0.4, blocks=blocks, train_mask=train, predictions=guesses)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    names = [n for n in result.table["contrast"] if n not in {f"MRH-Net {i + 1}" for i in range(5)}]
    _say_scores(say, result, names)
    single = result.table[result.table["contrast"].str.fullmatch(r"MRH-Net \d")]
    return [
        Section(
            "Published voxel pairs: five MRI parameters and autofluorescence",
            [
                f"{len(table)} voxels of the MRH-Net paper. Fitted and trained on the first 80 % of the rows, "
                f"which are in raster order, tested on the last {result.rows}. Five networks, each stopping on a "
                f"fifth of the training rows of its own: R2 {single['r2'].mean():.3f}, AUC "
                f"{single['auc'].mean():.3f} on average.",
                f"Positive: autofluorescence below {result.threshold}, {result.positives} voxels; intervals over "
                f"{result.blocks} blocks of 50 rows.",
                _difference(result, "MRH-Net ensemble", "quadratic", "quadratic fit"),
                _difference(result, "MRH-Net ensemble", "quadratic", "quadratic fit", "r2"),
            ],
            readable(result),
            [(roc_curves(result, names), "ROC curves on the last fifth of the rows")],
        )
    ]


def _on_slab(source: Path) -> list[Section]:
    """Show a human slab stored in an unusual order: axial must look axial."""
    slab = formats.read(source, name="T1w")
    text = (
        f"{source.name} is stored along {', '.join(slab.attrs['source_axes'])}; as a volume its axes z, y, x run to "
        f"{', '.join(slab.mrh.grid.orientation)} and hold {', '.join(str(n) for n in slab.shape)} voxels."
    )
    return [Section("Orientation of a human slab", [text], None, [(slices({"T1w": slab}), "The slab in three planes")])]


def _difference(result: Sensitivity, first: str, second: str, label: str, score: str = "auc") -> str:
    found = result.difference(first, second, score)
    return f"{score.upper()} of {first} less that of {second} ({label}): {found}, paired over blocks."


def _say_scores(say: Console, result: Sensitivity, names: Sequence[str]) -> None:
    say.print(readable(result, names).to_string(index=False))


def _find(data: Path, name: str) -> Path:
    path = data / name
    if not path.exists():
        raise FormatError(
            f"{path} is missing; mouse-mri-histology (DSURQE and CCFv3 at 0.2 mm) is in AMBA/data/imaging of "
            "github.com/abeaucha/MouseHumanTranscriptomicSimilarity, and mrhnet/paired_voxels.csv.gz is the Data "
            "table of network/linear_model_MK_normed_tabled_goodsubjs.mat of github.com/liangzifei/MRH-Net; "
            "human-t1-tissue/sub-01_T1w.nii.gz is data/JLF/ilist1.nii.gz of github.com/stnava/ANTsTutorial"
        )
    return path
