"""Commands on tables of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command


@command("mrhdata count cells.parquet regions.nii.gz counts.csv --names ontology.json")
def count_(
    cells: Annotated[Path, typer.Argument(help="Table of cells: .parquet, .csv, napari's points, cellfinder's .xml.")],
    regions: Annotated[str, typer.Argument(help="Label volume, of any size.")],
    out: Annotated[Path, typer.Argument(help="CSV of counts and densities by region.")],
    names: Annotated[Path | None, typer.Option(help="JSON of names and parents, as the Allen ontology.")] = None,
    like: Annotated[str | None, typer.Option(help="Volume of the cells, where the table holds voxels alone.")] = None,
    transform: Annotated[
        str | None, typer.Option(help="As mrhdata register BRAIN REGIONS wrote it; its inverse carries the cells.")
    ] = None,
    axes: options.Axes = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    origin: options.Origin = None,
    space: options.Space = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Count cells in the regions of a label volume; --axes to --space put that volume's header right."""
    from mrhdata._runtime.atomic import atomic_write, check_target
    from mrhdata.analysis import region_counts
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import CELL, read_points
    from mrhdata.registration import itk

    check_target(out, overwrite)
    given = options.options(axes=axes, unit=unit, spacing=spacing, origin=origin, space=space, kind="labels")
    labels = formats.read(regions, **given)
    table = read_points(cells, like=None if like is None else formats.read(like))
    ontology = None if names is None else region_counts.read_ontology(names)
    through = None if transform is None else itk.read(transform, source=labels.mrh.space).inverse()
    found = region_counts.count(table, labels, ontology, through)
    with atomic_write(out, overwrite=overwrite) as draft:
        found.to_csv(draft, index=False)
    real = int((table["type"] == CELL).sum()) if "type" in table else len(table)
    said = {"written": str(out), "cells": real, "of other types": len(table) - real}
    options.answer(said | {"outside": int(found["count"].iloc[0]), "regions": len(found) - 1}, as_json)
