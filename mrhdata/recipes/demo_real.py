"""The demo on real volumes: a mouse brain, the published voxel pairs, and the orientation of a human slab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

from mrhdata import models
from mrhdata.analysis.contrasts import Fit, row_blocks, sensitivity, voxel_table
from mrhdata.analysis.result import Sensitivity
from mrhdata.datasets import catalog
from mrhdata.errors import FormatError
from mrhdata.inference.predictor import predict
from mrhdata.inference.voxelwise import predict_rows
from mrhdata.io import conversion, formats
from mrhdata.patching.create import patches
from mrhdata.recipes import mrhnet
from mrhdata.recipes.demo_common import PERCENTILE, difference, print_scores
from mrhdata.training.loop import fit
from mrhdata.viz.plots import roc_curves, slices
from mrhdata.viz.report import Section, readable

if TYPE_CHECKING:
    from torch import nn

Group = Mapping[str, xr.DataArray]

#: Coronal blocks of the mouse brain in planes, and the gap at the start of each: three planes, as wide as a patch.
BLOCK_PLANES, GAP_PLANES = 11, 3
#: Roles of the blocks from posterior to anterior.
ROLES = ("train", "test", "train", "validation", "train", "test")


def mouse(out: Path, source: Path, seed: int, console: Console) -> list[Section]:
    """Predict the CCF autofluorescence template from the DSURQE T2w template, split by coronal blocks."""
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"real mouse brain: converting MINC to OME-Zarr in {out}")
    brain = _mouse_catalogue(out, source).select(space="CCFv3")
    mask = (brain["mri_mask"] * brain["af_mask"].mrh.like(brain["mri_mask"])).rename("mask")
    mask = mask.assign_attrs(brain["mri_mask"].attrs)
    blocks = _coronal_blocks(mask.sizes["y"])
    model, patch_count = _train_on_blocks(brain, mask, blocks, seed, console)
    models.save(model, out / "mrhnet")
    prediction = predict(
        model,
        brain["t2w"],
        out / "virtual-af.zarr",
        mask=mask,
        name="virtual_af",
        overwrite=True,
        progress=not console.quiet,
    )
    table = voxel_table({"T2w": brain["t2w"], "AF": brain["af"], "MRH-Net": prediction}, mask)
    result = _mouse_scores(table, blocks)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    names = list(result.table["contrast"])
    print_scores(console, result, names)
    volumes = {"DSURQE T2w": brain["t2w"], "CCFv3 AF": brain["af"], "MRH-Net": prediction}
    return [
        Section(
            "Real mouse brain: DSURQE T2w to CCFv3 autofluorescence",
            _mouse_text(table, result, blocks, patch_count),
            readable(result),
            [
                (roc_curves(result, names), "ROC curves on the held-out coronal blocks"),
                (slices(volumes), "T2w, autofluorescence template and prediction (including the training blocks)"),
            ],
        )
    ]


def _mouse_text(
    table: pd.DataFrame, result: Sensitivity, blocks: Sequence[tuple[str, int, int]], patch_count: int
) -> list[str]:
    """Return the paragraphs of the mouse brain."""
    correlation = table["T2w"].corr(table["AF"])
    test_planes = "; ".join(f"{low} to {high - 1}" for name, low, high in blocks if name == "test")
    best_fit = next(name for name in result.table["contrast"] if name.endswith("in T2w"))
    return [
        f"Both volumes are population averages at 0.2 mm. Over all {len(table)} voxels of both masks, T2w and "
        f"autofluorescence have a correlation of r = {correlation:.2f}.",
        f"MRH-Net was trained on {patch_count} patches and tested on the coronal planes {test_planes}, with a gap of "
        f"{GAP_PLANES} planes to the nearest training plane. Left and right are mirror images in the template, so both "
        "are in the same block.",
        f"Voxels are positive if their autofluorescence is below {result.threshold:.1f} (percentile {PERCENTILE} of "
        f"the training blocks): {result.positives} of {result.rows} voxels, in {result.blocks} bootstrap blocks.",
        *(difference(result, "MRH-Net", best_fit, "best per-voxel fit", score) for score in ("auc", "r2")),
    ]


def _mouse_catalogue(out: Path, source: Path) -> catalog.Catalog:
    """Convert the four MINC files and list them in a catalogue."""
    files = {
        "t2w": ("DSURQE_CCFv3_average_200um.mnc", "image", "mri"),
        "af": ("average_template_200um.mnc", "image", "histology"),
        "mri_mask": ("DSURQE_CCFv3_mask_200um.mnc", "mask", "mri"),
        "af_mask": ("average_template_200um_mask.mnc", "mask", "histology"),
    }
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, (file, kind, modality) in files.items():
        store = out / f"{name}.zarr"
        metadata: dict[str, Any] = {"kind": kind, "modality": modality, "space": "CCFv3"}
        conversion.convert(source / file, store, overwrite=True, progress=False, name=name, **metadata)
        entries[name] = (store.name, {"role": name, **metadata})
    catalog.write(out / "catalog.yaml", "DSURQE MRI and CCFv3 template", entries, licence="cite, non-commercial")
    return catalog.open_catalog(out / "catalog.yaml")


def _mouse_scores(table: pd.DataFrame, blocks: Sequence[tuple[str, int, int]]) -> Sensitivity:
    """Score the prediction and fits of the training blocks on the test blocks."""
    role = np.full(table["y"].max() + 1, "gap", dtype=object)
    for name, low, high in blocks:
        role[low:high] = name
    table = table.assign(role=role[table["y"]]).query("role in ('train', 'test')").reset_index(drop=True)
    train = table.pop("role").to_numpy() == "train"
    truth, prediction = table.pop("AF").to_numpy(), table.pop("MRH-Net").to_numpy()
    threshold = float(np.percentile(truth[train], PERCENTILE))
    fits = [Fit("quadratic in T2w", 2), Fit("cubic in T2w", 3)]
    predictions = {"MRH-Net": prediction}
    return sensitivity(table, truth, threshold=threshold, fits=fits, predictions=predictions, train_mask=train)


def _coronal_blocks(planes: int) -> list[tuple[str, int, int]]:
    """Return role, start and stop of each block after its gap; the last block has all remaining planes."""
    blocks = []
    for i, role in enumerate(ROLES):
        low = i * BLOCK_PLANES + (GAP_PLANES if i else 0)
        high = planes if i == len(ROLES) - 1 else (i + 1) * BLOCK_PLANES
        blocks.append((role, low, high))
    return blocks


def _train_on_blocks(
    brain: Group, mask: xr.DataArray, blocks: Sequence[tuple[str, int, int]], seed: int, console: Console
) -> tuple[nn.Module, int]:
    """Train MRH-Net on the training blocks, and return it with the number of training patches."""
    datasets = {}
    for wanted in ("train", "validation"):
        cuts = [slice(low, high) for role, low, high in blocks if role == wanted]
        datasets[wanted] = patches(
            [brain["t2w"].isel(y=c) for c in cuts],
            [brain["af"].isel(y=c) for c in cuts],
            shape=mrhnet.PATCH,
            stride=1,
            plane="coronal",
            mask=[mask.isel(y=c) for c in cuts],
        )
    model = models.create("mrhnet", in_channels=1, loop_blocks=4, seed=seed)
    settings = replace(mrhnet.RECOMMENDED, seed=seed)
    fit(model, datasets["train"], datasets["validation"], settings, progress=not console.quiet)
    return model, len(datasets["train"])


def voxel_pairs(out: Path, source: Path, seed: int, console: Console) -> list[Section]:
    """Compare fits with MRH-Net on the published voxel pairs; the test rows are the last fifth."""
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"published voxel pairs: training five networks on the first 80 % of {source.name}")
    table = pd.read_csv(source)
    truth = table.pop("AF").to_numpy()
    train = np.arange(len(table)) < int(0.8 * len(table))
    settings = replace(mrhnet.VOXELWISE, seed=5 * seed)
    networks = mrhnet.fold_ensemble(table[train], truth[train], settings, progress=not console.quiet)
    predictions = {f"MRH-Net {i + 1}": predict_rows(n, np.asarray(table)) for i, n in enumerate(networks)}
    predictions["MRH-Net ensemble"] = np.mean(list(predictions.values()), axis=0)
    blocks = row_blocks(len(table), 50)
    result = sensitivity(table, truth, threshold=0.4, blocks=blocks, train_mask=train, predictions=predictions)
    result.table.to_csv(out / "sensitivity.csv", index=False)
    names = [n for n in result.table["contrast"] if n not in {f"MRH-Net {i + 1}" for i in range(5)}]
    print_scores(console, result, names)
    single = result.table[result.table["contrast"].str.fullmatch(r"MRH-Net \d")]
    return [
        Section(
            "Published voxel pairs: five MRI parameters and autofluorescence",
            [
                f"The table has {len(table)} voxels of the MRH-Net paper. Fits and networks learned from the first "
                f"80 % of the rows, which are in raster order, and were tested on the last {result.rows}. Each of five "
                f"networks used another fifth of the training rows for early stopping: on average R2 "
                f"{single['r2'].mean():.3f}, AUC {single['auc'].mean():.3f}.",
                f"Voxels are positive if their autofluorescence is below {result.threshold}: {result.positives} "
                f"voxels. Intervals resample {result.blocks} blocks of 50 rows.",
                difference(result, "MRH-Net ensemble", "quadratic", "quadratic fit"),
                difference(result, "MRH-Net ensemble", "quadratic", "quadratic fit", "r2"),
            ],
            readable(result),
            [(roc_curves(result, names), "ROC curves on the last fifth of the rows")],
        )
    ]


def slab_orientation(source: Path) -> list[Section]:
    """Show a human slab that is stored in an unusual axis order: its axial plane must look axial."""
    slab = formats.read(source, name="T1w")
    text = (
        f"{source.name} is stored along {', '.join(slab.attrs['source_axes'])}. The volume has axes z, y, x that point "
        f"to {', '.join(slab.mrh.grid.orientation)}, with {', '.join(str(n) for n in slab.shape)} voxels."
    )
    return [Section("Orientation of a human slab", [text], None, [(slices({"T1w": slab}), "The slab in three planes")])]


def data_path(data: Path, name: str) -> Path:
    """Return the path of a real data set.

    Raises
    ------
    FormatError
        The path does not exist; the message names the source of the data.
    """
    path = data / name
    if not path.exists():
        raise FormatError(
            f"{path} does not exist. mouse-mri-histology (DSURQE and CCFv3 at 0.2 mm) is in AMBA/data/imaging of "
            "github.com/abeaucha/MouseHumanTranscriptomicSimilarity, mrhnet/paired_voxels.csv.gz is the Data "
            "table of network/linear_model_MK_normed_tabled_goodsubjs.mat of github.com/liangzifei/MRH-Net, and "
            "human-t1-tissue/sub-01_T1w.nii.gz is data/JLF/ilist1.nii.gz of github.com/stnava/ANTsTutorial"
        )
    return path
