"""Commands by which a person looks at detections again, and what was judged becomes marks and counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Marks = Annotated[Path | None, typer.Option(help="Cells that were marked, as XML, CSV or Parquet.")]
RadiusUm = Annotated[float | None, typer.Option(help="Of a match; 6 voxels of the volume by default.")]


@command("mrhdata review review.html brain-3/cells.parquet brain-3.zarr --marks marks-3.xml")
def review(
    out: Annotated[Path, typer.Argument(help="HTML file on which a person judges.")],
    cells: Annotated[Path, typer.Argument(help="Cells that were found: cells.parquet of mrhdata detect, CSV, XML.")],
    volume: Annotated[Path, typer.Argument(help="Volume that they were found in.")],
    marks: Marks = None,
    count: Annotated[int, typer.Option(help="Places at most.")] = 60,
    random: Annotated[
        bool, typer.Option("--random", help="False positives at random, not those of the highest scores.")
    ] = False,
    radius_um: RadiusUm = None,
    width_um: Annotated[float, typer.Option(help="Of a picture.")] = 80,
    png: Annotated[Path | None, typer.Option(help="The same pictures as one PNG, too.")] = None,
    seed: options.Seed = 0,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    memory: options.Memory = "500 MB",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Show detections to a person: false positives and misses where there are marks, else all over the scores."""
    from mrhdata.analysis.review import examples
    from mrhdata.viz.review_page import montage_png, write_review

    image, radius = _read(volume, spacing, unit, radius_um)
    places = examples(
        _points(cells, image),
        None if marks is None else _points(marks, image),
        radius_mm=radius,
        count=count,
        drawn="random" if random else "highest",
        seed=seed,
    )
    cutting: dict[str, Any] = {"width_mm": width_um * 1e-3, "memory": memory}
    write_review(out, image, places, overwrite=overwrite, **cutting)
    if png is not None:
        montage_png(png, image, places, **cutting)
    kinds = {str(kind): int(many) for kind, many in places["kind"].value_counts(sort=False).items()}
    options.answer({"written": str(out), "places": len(places), "kinds": kinds, "radius_um": radius * 1e3}, as_json)


@command("mrhdata judge marks-3b.csv verdicts.csv brain-3.zarr --marks marks-3.xml --cells brain-3/cells.parquet")
def judge(
    out: Annotated[Path, typer.Argument(help="Marks for the next round, as CSV, Parquet or XML.")],
    verdicts: Annotated[Path, typer.Argument(help="What a page of mrhdata review saved.")],
    volume: Annotated[Path, typer.Argument(help="Volume that the page was made of.")],
    marks: Marks = None,
    cells: Annotated[Path | None, typer.Option(help="Cells that were found, to count false positives anew.")] = None,
    radius_um: RadiusUm = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make marks for the next round of what a person judged, and count the false positives that remain."""
    from mrhdata.analysis.review import adjusted_count, apply_review, read_decisions
    from mrhdata.errors import DataError
    from mrhdata.io.cell_tables import WORLD, write_points
    from mrhdata.metrics.detection import detection

    if cells is not None and marks is None:
        raise DataError(f"{cells} has no false positives without marks; give --marks too")
    image, radius = _read(volume, spacing, unit, radius_um)
    found = read_decisions(verdicts)
    before = None if marks is None else _points(marks, image)
    after = apply_review(before, found, radius)
    told: dict[str, Any] = {"written": str(out), "judged": len(found)}
    told |= {"marks_before": 0 if before is None else len(before), "marks": len(after)}
    if cells is not None and before is not None:
        made = adjusted_count(detection(before[WORLD], _points(cells, image)[WORLD], radius), found)
        told |= {"false_positives": made.false_positives, "remaining": made.remaining, "adjusted": str(made)}
        told |= {"share": [made.share.estimate, made.share.low, made.share.high]} if made.share else {}
    write_points(after, out, image, overwrite=overwrite)
    options.answer(told, as_json)


def _read(volume: Path, spacing: Any, unit: str | None, radius_um: float | None) -> tuple[xr.DataArray, float]:
    """The volume, and the radius of a match in mm."""
    from mrhdata.io import formats

    image = formats.read(str(volume), **options.options(spacing=spacing, unit=unit))
    return image, 6 * float(min(image.mrh.spacing)) if radius_um is None else radius_um * 1e-3


def _points(path: Path, image: xr.DataArray) -> pd.DataFrame:
    """Cells of a file; what another program calls no cell is none."""
    from mrhdata.analysis.review import cells_of
    from mrhdata.io.cell_tables import read_points

    return cells_of(read_points(path, image))
