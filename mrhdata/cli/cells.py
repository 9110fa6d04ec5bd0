"""Commands on cells: train a detector, detect, count, review."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.cli.machine import Machine, machine_options
from mrhdata.errors import DataError, ModelError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from mrhdata.datasets.subjects import Subject

Marks = Annotated[Path | None, typer.Option(help="Marked cells as XML, CSV or Parquet.")]


@command("mrhdata train detection brain-1.zarr=marks-1.xml brain-2.zarr=marks-2.xml -o neurons/")
@machine_options
def train_detection(
    brains: Annotated[
        list[str], options.argument("BRAINS", "Each brain as VOLUME=MARKS, with marks as XML, CSV or Parquet.")
    ],
    out: Annotated[Path, options.output("Folder of the network, its scores and checkpoints.")],
    validation_brains: Annotated[
        int, typer.Option(help="Number of brains, the last ones, that set the last epoch and the threshold.")
    ] = 1,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Allow for cells without a mark, which are not background then.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="Recipe: corrected, or published (2020).")] = "corrected",
    cell_counter: options.CellCounter = None,
    radius_um: options.RadiusUm = None,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Number of further rounds, with the errors of the one before.")
    ] = None,
    epochs: options.Epochs = None,
    patches_per_brain: Annotated[
        int | None, typer.Option(min=1, help="Patches of each brain; those of the recipe by default.")
    ] = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    machine: Machine = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train a network to detect cells from marked brains.

    The network is OUT/network, for mrhdata detect. An interrupted training resumes when you run the command again;
    --overwrite removes another one from the folder.
    """
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes import cells
    from mrhdata.recipes.run_plan import claim

    read_options = options.read_options(spacing=spacing, unit=unit)
    marked = [_read_brain(word, read_options, cell_counter, complete=not incomplete) for word in brains]
    if not 0 < validation_brains < len(marked):
        raise DataError(
            f"--validation-brains must leave one of {len(marked)} brains or more for training, and be at least 1; got "
            f"{validation_brains}"
        )
    voxel_mm = float(min(next(iter(marked[0].inputs.values())).mrh.spacing))
    recipes = {"corrected": cells.recommended_recipe, "published": cells.published_recipe}
    if recipe not in recipes:
        raise ModelError(f"--recipe must be one of {', '.join(recipes)}; got {recipe!r}")
    settings = recipes[recipe](voxel_mm)
    settings = replace(
        settings, training=replace(settings.training, **machine), again=replace(settings.again, **machine)
    )
    if epochs is not None:
        settings = replace(settings, training=replace(settings.training, epochs=epochs, patience=epochs))
    settings = replace(settings, **options.set_options(rounds=rounds, patches_per_brain=patches_per_brain))
    radius_mm = options.match_radius_mm(radius_um, voxel_mm)
    about = {"brains": brains, "validation_brains": validation_brains, "recipe": repr(settings), "seed": seed}
    claim(out / "plan.json", about | {"volumes": fingerprint_cases(marked)}, overwrite=overwrite)
    parts = marked[:-validation_brains], marked[-validation_brains:]
    bars = options.bars(progress)
    with resumable():
        trained = cells.train(settings, *parts, radius_mm=radius_mm, seed=seed, folder=out, progress=bars)
    models.save(trained.model, out / "network")
    spec: Any = trained.model.spec
    values = {
        "written": str(out / "network"),
        "marks": [len(brain.points) for brain in marked],
        "radius_um": radius_mm * 1e3,
        "threshold": round(spec.finish[0][1]["threshold"], 4),
    }
    options.answer(values, as_json)


def _read_brain(word: str, read_options: Any, cell_counter: str | None, *, complete: bool) -> Subject:
    from mrhdata.datasets.subjects import Subject
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import CELL, WORLD, read_points

    volume, equals, marks = word.partition("=")
    if not equals:
        raise DataError(f"{word} has no marks; write a brain as VOLUME=MARKS")
    image = formats.read(volume, **read_options)
    table = read_points(Path(marks), image, cell_counter=cell_counter)
    points = (table[table["type"] == CELL] if "type" in table else table)[WORLD].to_numpy()
    name = Path(volume).name.split(".")[0]
    return Subject(name, {"signal": image.rename("signal")}, points=points, points_complete=complete)


@command(
    "mrhdata detect neurons/network brain-3.zarr -o brain-3/ --points brain-3.xml",
    "mrhdata detect neurons/network signal=ch1.zarr background=ch2.zarr -o brain-3/ --memory '4 GB'",
)
def detect(
    model: options.Model,
    inputs: Annotated[list[str], options.argument("INPUTS", "Volumes on one grid, as FILE or CHANNEL=FILE.")],
    out: Annotated[Path, options.output("Folder of scores.zarr and cells.parquet.")],
    points: Annotated[
        Path | None, typer.Option(help="Second output of the cells, as XML, CSV or napari's CSV.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score of a cell; that of the training by default.")
    ] = None,
    mask: options.MaskOrStored = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    precision: options.Precision = "float32",
    skip_corrupt: options.SkipCorrupt = False,
    force: options.Force = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Detect the cells of a brain of any size.

    An interrupted run resumes when you run the command again.
    """
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.inference import detector
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import write_points

    network = models.load(model)
    spec: Any = network.spec
    read_options = options.read_options(spacing=spacing, unit=unit)
    files = options.channels(inputs)
    # A single volume needs no name.
    names = list(spec.channels) if len(files) == len(spec.channels) == 1 else list(files)
    volumes = {n: formats.read(f, **read_options).rename(n) for n, f in zip(names, files.values(), strict=True)}
    peaks = replace(detector.stored_peaks(spec), **options.set_options(threshold=threshold))
    options.warn_of_unfamiliar(network, volumes)
    with resumable():
        cells = detector.detect(
            network,
            volumes,
            out,
            peaks=peaks,
            mask=options.mask_or_stored(mask),
            memory=memory,
            device=device,
            precision=precision,
            skip_corrupt=skip_corrupt,
            force=force,
            overwrite=overwrite,
            progress=options.bars(progress),
        )
    if points is not None:
        write_points(cells, points, next(iter(volumes.values())))
    values = {"written": str(out), "cells": len(cells), "threshold": round(peaks.threshold, 4)}
    options.answer(values | options.unfamiliar(cells.attrs), as_json)


@command(
    "mrhdata count cells.parquet regions.nii.gz -o counts.csv --names ontology.json",
    "mrhdata count cells.parquet -o summary.csv --atlas allen_mouse_25um --transform brain_to_atlas.json",
)
def count_(
    cells: Annotated[
        Path, options.argument("CELLS", "Table of cells: .parquet, .csv, napari's points or cellfinder's .xml.")
    ],
    *,
    regions: Annotated[str | None, options.argument("[REGIONS]", "Label volume of any size.")] = None,
    out: Annotated[Path, options.output("CSV of counts and densities by region.")],
    atlas: Annotated[
        str | None,
        typer.Option(help="Atlas that BrainGlobe has installed, such as allen_mouse_25um, in place of REGIONS."),
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="JSON of region names and parents, such as the Allen ontology.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Volume in which the cells were detected, if the table has voxels only.")
    ] = None,
    cell_counter: options.CellCounter = None,
    transform: Annotated[
        str | None, typer.Option(help="Transform of mrhdata register BRAIN REGIONS; its inverse moves the cells.")
    ] = None,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Count cells in the regions of a label volume.

    The options --orientation, --unit, --spacing, --origin and --space correct the header of the label volume.
    """
    from mrhdata._runtime.atomic import atomic_write, check_target
    from mrhdata.analysis import region_counts
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import CELL, read_points
    from mrhdata.registration import itk

    check_target(out, overwrite)
    corrections = options.read_options(orientation=orientation, unit=unit, spacing=spacing, origin=origin, space=space)
    labels, names = _read_regions(regions, atlas, names, corrections)
    table = read_points(cells, like=None if like is None else formats.read(like), cell_counter=cell_counter)
    ontology = None if names is None else region_counts.read_ontology(names)
    to_regions = None if transform is None else itk.read(transform, source=labels.mrh.space).inverse()
    counts = region_counts.count(table, labels, ontology, to_regions)
    with atomic_write(out, overwrite=overwrite) as draft:
        counts.to_csv(draft, index=False)
    of_type_cell = int((table["type"] == CELL).sum()) if "type" in table else len(table)
    values = {
        "written": str(out),
        "cells": of_type_cell,
        "of other types": len(table) - of_type_cell,
        "outside": int(counts["count"].iloc[0]),
        "regions": len(counts) - 1,
    }
    options.answer(values, as_json)


@command("mrhdata review brain-3/cells.parquet brain-3.zarr -o review.html --marks marks-3.xml")
def review(
    cells: Annotated[Path, options.argument("CELLS", "Detected cells: cells.parquet of mrhdata detect, CSV or XML.")],
    volume: Annotated[Path, options.argument("VOLUME", "Volume in which they were detected.")],
    out: Annotated[Path, options.output("HTML page on which a person decides.")],
    marks: Marks = None,
    cell_counter: options.CellCounter = None,
    count: Annotated[int, typer.Option(min=1, help="Maximum number of places.")] = 60,
    random: Annotated[
        bool, typer.Option("--random", help="Draw false positives at random, not those of the highest scores.")
    ] = False,
    radius_um: options.RadiusUm = None,
    width_um: Annotated[float, typer.Option(help="Width of a picture in um.")] = 80,
    png: Annotated[Path | None, typer.Option(help="PNG of the same pictures.")] = None,
    seed: options.Seed = 0,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "500 MB",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a page on which a person judges detections.

    With --marks it shows false positives and misses, otherwise detections of all scores.
    """
    from mrhdata.analysis.review import examples
    from mrhdata.viz.review_page import montage_png, write_review

    image, radius_mm = _read_volume(volume, spacing, unit, radius_um)
    places = examples(
        _read_cells(cells, image, cell_counter),
        None if marks is None else _read_cells(marks, image, cell_counter),
        radius_mm=radius_mm,
        count=count,
        drawn="random" if random else "highest",
        seed=seed,
    )
    pictures: dict[str, Any] = {"width_mm": width_um * 1e-3, "memory": memory}
    write_review(out, image, places, overwrite=overwrite, **pictures)
    if png is not None:
        montage_png(png, image, places, **pictures)
    kinds = {str(kind): int(number) for kind, number in places["kind"].value_counts(sort=False).items()}
    values = {"written": str(out), "places": len(places), "kinds": kinds, "radius_um": radius_mm * 1e3}
    options.answer(values, as_json)


@command(
    "mrhdata review-apply decisions.csv brain-3.zarr -o marks-3b.csv --marks marks-3.xml --cells brain-3/cells.parquet"
)
def review_apply(
    decisions: Annotated[Path, options.argument("DECISIONS", "File that a page of mrhdata review saved.")],
    volume: Annotated[Path, options.argument("VOLUME", "Volume of the page.")],
    out: Annotated[Path, options.output("Marks for the next round, as CSV, Parquet or XML.")],
    marks: Marks = None,
    cell_counter: options.CellCounter = None,
    cells: Annotated[
        Path | None, typer.Option(help="Detected cells, to count the false positives that remain.")
    ] = None,
    radius_um: options.RadiusUm = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Turn the decisions of a review into marks for training."""
    from mrhdata.analysis.review import adjusted_count, apply_review, read_decisions
    from mrhdata.io.cell_tables import WORLD, write_points
    from mrhdata.metrics.detection import detection

    if cells is not None and marks is None:
        raise DataError(f"{cells} has false positives only in comparison with marks; pass --marks too")
    image, radius_mm = _read_volume(volume, spacing, unit, radius_um)
    table = read_decisions(decisions)
    before = None if marks is None else _read_cells(marks, image, cell_counter)
    after = apply_review(before, table, radius_mm)
    values: dict[str, Any] = {"written": str(out), "judged": len(table)}
    values |= {"marks_before": 0 if before is None else len(before), "marks": len(after)}
    if cells is not None and before is not None:
        detections = detection(before[WORLD], _read_cells(cells, image, cell_counter)[WORLD], radius_mm)
        adjusted = adjusted_count(detections, table)
        values |= {"false_positives": adjusted.false_positives, "remaining": adjusted.remaining}
        values["adjusted"] = str(adjusted)
        if adjusted.share:
            values["share"] = [adjusted.share.estimate, adjusted.share.low, adjusted.share.high]
    write_points(after, out, image, overwrite=overwrite)
    options.answer(values, as_json)


def _read_regions(
    regions: str | None, atlas: str | None, names: Path | None, corrections: dict[str, Any]
) -> tuple[xr.DataArray, Path | None]:
    """Return the label volume of a file or of an installed atlas, and the file of its names."""
    from mrhdata.datasets.brainglobe import read_atlas
    from mrhdata.io import formats

    if (regions is None) == (atlas is None):
        raise ParameterError(f"pass either REGIONS or --atlas; got {regions!r} and {atlas!r}")
    if regions is not None:
        return formats.read(regions, kind="labels", **corrections), names
    if corrections:
        raise ParameterError(
            f"{', '.join(corrections)} must not be passed with --atlas, whose metadata state them. Leave them out"
        )
    installed = read_atlas(str(atlas))
    return installed.annotation, names or installed.structures


def _read_volume(
    volume: Path, spacing: str | None, unit: str | None, radius_um: float | None
) -> tuple[xr.DataArray, float]:
    """Return a volume and the radius of a match in mm."""
    from mrhdata.io import formats

    image = formats.read(str(volume), **options.read_options(spacing=spacing, unit=unit))
    return image, options.match_radius_mm(radius_um, float(min(image.mrh.spacing)))


def _read_cells(path: Path, image: xr.DataArray, cell_counter: str | None) -> pd.DataFrame:
    """Return the cells of a file, without the objects that another program marked as no cell."""
    from mrhdata.analysis.review import cells_of
    from mrhdata.io.cell_tables import read_points

    return cells_of(read_points(path, image, cell_counter=cell_counter))
