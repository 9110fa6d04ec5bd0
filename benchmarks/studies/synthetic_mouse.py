"""Regions of the mouse brain in three contrasts, by a network that saw one label map and by registration.

Run: python benchmarks/studies/synthetic_mouse.py ../shared/data WORK [--epochs 60] [--threads 1]
     writes benchmarks/results/synthetic_mouse.md and .json

The label map is DSURQE's on the grid of the Allen CCFv3, 0.2 mm. The test shows its T2w average, the autofluorescence
template of the CCFv3 and a cleared brain (registered to the template by its publishers), each after random known
deformations. Training and test share the geometry of one atlas, so only these displacements are a test; other strains,
ages and lesions are not in it. Registration gets the undeformed image of the same contrast and carries its labels; for
the cleared brain it gets the template. The terms of the atlas are non-commercial, so the network is not shipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from registration import dice, smooth_displacement
from scipy.spatial.transform import Rotation
from tables import markdown, written

import mrhdata
from mrhdata import models
from mrhdata.inference.segmenter import segment
from mrhdata.preprocessing.regrid import crop_or_pad
from mrhdata.recipes.synthetic import SyntheticRecipe, train
from mrhdata.registration.transforms import Affine, Transform
from mrhdata.synthesis.structures import Anatomy, Structure

#: Regions by their number in the ontology of the Allen atlas.
REGIONS = {
    315: "isocortex",
    1089: "hippocampal formation",
    698: "olfactory areas",
    703: "cortical subplate",
    623: "cerebral nuclei",
    549: "thalamus",
    1097: "hypothalamus",
    313: "midbrain",
    1065: "hindbrain",
    512: "cerebellum",
    1009: "fiber tracts",
    73: "ventricles",
}
NAMES = dict(enumerate(REGIONS.values(), start=1))
#: Tissue of each structure by the table of DSURQE, and of nuclei by their region.
TISSUES = {"GM": "grey", "WM": "white", "CSF": "csf"}
NUCLEI = {"cerebral nuclei": "striatum", "thalamus": "thalamus", "midbrain": "brain stem", "hindbrain": "brain stem"}
#: A mouse brain's length as a share of that of man, by which ranges in mm are scaled.
SCALE = 0.07
#: Seeds of the deformations; largest turn in degrees, change of size, shift and displacement in mm.
SEEDS, TURN, SIZE, SHIFT_MM, DISPLACEMENT_MM = range(5), 15.0, 0.1, 1.0, 0.4

#: Voxels by which the images of the test are wider than the atlas.
MARGIN = 16


def structures(folder: Path) -> pd.DataFrame:
    """Label, name, tissue and region of each structure of DSURQE; the name begins with its side."""
    ontology = json.loads((folder / "allen_ontology.json").read_text())["msg"][0]
    paths = dict(_paths(ontology, ()))
    table = pd.read_csv(folder / "DSURQE_40micron_R_mapping_long.csv").dropna(subset=["ABI"])
    rows = []
    for row in table.itertuples():
        path = paths.get(row.ABI.lower(), (1009,))  # one fibre tract has another spelling
        region = next((REGIONS[number] for number in path if number in REGIONS), None)
        tissue = TISSUES.get(str(row[3]), "grey")
        if tissue == "grey":
            tissue = NUCLEI.get(str(region), "grey")
        rows.append({"label": int(row.Label), "name": row.Structure, "tissue": tissue, "region": region})
    return pd.DataFrame(rows)


def _paths(node: dict[str, Any], above: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name of each structure of the ontology with its path from the root."""
    path = (*above, node["id"])
    yield node["name"].lower(), path
    for child in node["children"]:
        yield from _paths(child, path)


def recipe(table: pd.DataFrame, epochs: int) -> SyntheticRecipe:
    """Patches that show the whole brain."""
    base = SyntheticRecipe()
    ranges = replace(
        base.synthesis.scaled(SCALE),
        modalities=("mouse t2w", "autofluorescence"),
        random_share=0.5,
        contrast_width=(0.05, 0.5),
        surroundings={"drawn": 1.0},
        neck_probability=0.0,
        black_air_probability=0.7,
    )
    numbers = {name: number for number, name in NAMES.items()}
    targets = {row.label: numbers[row.region] for row in table.itertuples() if row.region in numbers}
    return replace(
        base,
        targets=targets,
        names=NAMES,
        quality_volumes=0,
        shape=(48, 80, 64),
        patches=100,
        label_share=0.0,
        validation_maps=1,
        synthesis=ranges,
        training=replace(base.training, epochs=epochs, learning_rate=2.5e-3),
    )


def deformation(seed: int, like: xr.DataArray) -> Transform:
    """A random turn, change of size, shift and smooth displacement about the middle of a volume."""
    rng, grid = np.random.default_rng([11, seed]), like.mrh.grid
    x, y, z = rng.uniform(-TURN, TURN, 3)
    matrix = np.diag(rng.uniform(1 - SIZE, 1 + SIZE, 3))
    matrix = matrix @ Rotation.from_euler("XYZ", [x, -y, z], degrees=True).as_matrix()
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, middle - matrix @ middle + rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    noise = rng.normal(size=(3, 14, 16, 14)).astype(np.float32)
    return Transform([smooth_displacement(noise, grid, DISPLACEMENT_MM, middle), Affine(affine)])


def images(data: Path) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    """The image of each contrast, and the one that registration carries labels from; on the grid of the labels."""
    folder = data / "mouse-mri-histology"
    t2w = mrhdata.read(folder / "DSURQE_CCFv3_average_200um.mnc").astype(np.float32)
    template = mrhdata.read(folder / "average_template_200um.mnc").astype(np.float32)
    published = data / "mouse-brain-planes" / "downsampled_standard.tiff"
    ccf = {"spacing": (0.1, 0.1, 0.1), "unit": "mm"}
    cleared = mrhdata.read(published, axes="PIR", **ccf)
    # It is stored from right to left, and its origin is not that of the template.
    cleared = cleared.copy(data=cleared.values[:, :, ::-1]).astype(np.float32)
    shift = mrhdata.register(cleared, template, "rigid")
    cleared = mrhdata.resample(cleared, template, shift).compute()
    return {
        "T2w": (t2w, t2w),
        "autofluorescence": (template, template),
        "cleared brain": (cleared, template),
    }


def scores(labels: xr.DataArray, truth: xr.DataArray) -> dict[str, float]:
    """Dice of each region."""
    return {name: dice(labels.values == number, truth.values == number) for number, name in NAMES.items()}


def label_map(folder: Path) -> xr.DataArray:
    """The structures of DSURQE."""
    drawn = mrhdata.read(folder / "DSURQE_CCFv3_labels_200um.mnc")
    return drawn.copy(data=np.rint(drawn.values).astype(np.int16)).assign_attrs(kind="labels")


def trained(drawn: xr.DataArray, table: pd.DataFrame, settings: SyntheticRecipe, work: Path) -> Any:
    """The network of WORK, which is trained first."""
    if not (work / "network").exists():
        anatomy = Anatomy(tuple(Structure(row.label, row.name, row.tissue) for row in table.itertuples(index=False)))
        # Validation shows other images of the one map.
        maps = {"training": drawn, "validation": drawn}
        model, history = train(settings, maps, anatomy=anatomy, folder=work)
        models.save(model, work / "network")
        (work / "seconds.txt").write_text(str(history.seconds))
    return models.load(work / "network")


def tested(network: Any, atlas: xr.DataArray, data: Path) -> list[dict[str, Any]]:
    """Scores and seconds of both methods on each deformed image."""
    rows = []
    for contrast, (image, source) in images(data).items():
        # With a margin, so that no part of a turned brain is lost.
        grid = crop_or_pad(image.mrh.grid, [n + MARGIN for n in image.shape])
        for seed in SEEDS:
            transform = deformation(seed, image)
            moved = mrhdata.resample(image, grid, transform).compute()
            truth = mrhdata.resample(atlas, grid, transform).compute()
            start = time.perf_counter()
            labels = segment(network, moved.rename("image"), force=True, progress=False)
            middle = time.perf_counter()
            carried = mrhdata.resample(atlas, moved, mrhdata.register(source, moved, "affine+deform")).compute()
            end = time.perf_counter()
            for method, answer, seconds in (
                ("network", labels, middle - start),
                ("registration", carried, end - middle),
            ):
                rows.append({"contrast": contrast, "method": method, "seconds": seconds, **scores(answer, truth)})
    return rows


def main() -> None:
    """Train, and test."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.data / "mouse-mri-histology"
    table, drawn = structures(folder), label_map(folder)
    settings = recipe(table, options.epochs)
    network = trained(drawn, table, settings, options.work)
    regions = np.zeros(int(drawn.max()) + 1, np.uint8)
    regions[list(settings.targets)] = list(settings.targets.values())
    rows = tested(network, drawn.copy(data=regions[drawn.values]), options.data)
    means = pd.DataFrame(rows).groupby(["contrast", "method"], sort=False).mean().reset_index()
    means.insert(2, "mean", means[list(NAMES.values())].mean(axis=1))
    hours = float((options.work / "seconds.txt").read_text()) / 3600
    texts = [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in r.items()} for r in means.to_dict("records")]
    parts = [
        "# Regions of the mouse brain",
        f"{__doc__.splitlines()[0]} Dice, means over {len(SEEDS)} deformations; threads {options.threads}. Training: "
        f"{hours:.1f} h of one core. Training and test share the geometry of one atlas.",
        markdown(texts),
    ]
    written("synthetic_mouse", parts, {"threads": options.threads, "hours": hours, "rows": rows})


if __name__ == "__main__":
    main()
