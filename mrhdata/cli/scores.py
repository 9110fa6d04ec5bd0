"""Commands that score labels, maps and cells against the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Truth = Annotated[str, options.argument("TRUTH", "File of the truth, or a folder with a file per case.")]
Prediction = Annotated[str, options.argument("PREDICTION", "File to score, or a folder with files of the same names.")]
Out = Annotated[Path, options.output("CSV with a row per case, and per label for labels.")]


@command(
    "mrhdata score labels manual.nii.gz network.nii.gz -o scores.csv",
    "mrhdata score labels labelsTs/ predictions/ -o scores.csv --label-names dataset.json",
)
def score_labels(
    truth: Truth,
    prediction: Prediction,
    out: Out,
    label_names: Annotated[
        Path | None,
        typer.Option(help="Names of labels: BIDS, BrainGlobe, FreeSurfer, ITK-SNAP, nnU-Net or Allen's JSON."),
    ] = None,
    grids: options.Grids = "same",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Score labels: Dice, surface distance and volumes of each label.

    Labels that only one of the two has count with a Dice of 0. Several cases are pooled, with 95 % intervals over
    cases. Names come from --label-names, or from a table next to the files as mrhdata segment writes it.
    """
    from mrhdata._runtime.atomic import check_target
    from mrhdata.analysis import scores
    from mrhdata.io.label_names import read_label_names

    check_target(out, overwrite)
    files = scores.pairs(truth, prediction)
    first = next(iter(files.values()))
    known = (
        read_label_names(label_names)
        if label_names
        else {**scores.names_beside(first[1]), **scores.names_beside(first[0])}
    )
    table = scores.label_scores(_volumes(files, "labels", grids), known)
    _write(table, out, overwrite)
    _answer(_summary(table, ["dice", "hd95_mm", "volume_error"], "name"), table, out, as_json)


@command(
    "mrhdata score images histology.nii.gz virtual.nii.gz -o scores.csv --mask brain.nii.gz",
)
def score_images(
    truth: Truth,
    prediction: Prediction,
    out: Out,
    mask: options.Mask = None,
    grids: options.Grids = "same",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Score maps: R2 and RMSE with intervals, correlation, PSNR, SSIM.

    Intervals (95 %) are those of a bootstrap over blocks of voxels. SSIM is computed without a mask only.
    """
    import pandas as pd

    from mrhdata._runtime.atomic import check_target
    from mrhdata.analysis import scores

    check_target(out, overwrite)
    voxels = options.read_optional(mask, "mask")
    volumes = _volumes(scores.pairs(truth, prediction), "image", grids)
    table = pd.DataFrame([scores.image_scores(case, a, b, voxels) for case, a, b in volumes])
    _write(table, out, overwrite)
    columns = ["r2", "rmse", "correlation", "psnr", "ssim"]
    _answer(_summary(table, columns), table, out, as_json)


@command(
    "mrhdata score cells marks.xml cells.parquet -o scores.csv --radius-um 10 --volume brain.zarr",
)
def score_cells(
    truth: Annotated[str, options.argument("TRUTH", "Marked cells as XML, CSV or Parquet, or a folder of them.")],
    prediction: Annotated[str, options.argument("DETECTIONS", "Detected cells, or a folder of them.")],
    out: Out,
    radius_um: options.RadiusUm = None,
    volume: Annotated[
        str | None, typer.Option(help="Volume of the cells: for tables without world points, or without --radius-um.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of the detections that count.")] = None,
    cell_counter: options.CellCounter = None,
    spacing: options.Spacing = None,
    unit: options.Unit = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Score detected cells: precision, recall, F1, error of the count.

    Every cell must be marked: a detection without a mark counts as false.
    """
    import pandas as pd

    from mrhdata._runtime.atomic import check_target
    from mrhdata.analysis import scores
    from mrhdata.analysis.review import cells_of
    from mrhdata.errors import DataError, ParameterError
    from mrhdata.io import formats
    from mrhdata.io.cell_tables import WORLD, read_points

    check_target(out, overwrite)
    like = None if volume is None else formats.read(volume, **options.read_options(spacing=spacing, unit=unit))
    if like is None and radius_um is None:
        raise ParameterError("score cells needs --radius-um or --volume; got neither. Pass the distance in um")
    radius_mm = options.match_radius_mm(radius_um, 0.0 if like is None else float(min(like.mrh.spacing)))

    def read(path: Path) -> pd.DataFrame:
        table = cells_of(read_points(path, like, cell_counter=cell_counter))
        if not set(WORLD) <= set(table.columns):
            raise DataError(
                f"{path} must have world points X, Y, Z; got {[*table.columns]}. Pass the volume (--volume)"
            )
        return table

    rows = [
        scores.cell_scores(case, read(first), read(second), radius_mm, min_score)
        for case, (first, second) in scores.pairs(truth, prediction).items()
    ]
    table = pd.DataFrame(rows)
    _write(table, out, overwrite)
    columns = ["precision", "recall", "f1", "count_error"]
    _answer(_summary(table, columns), table, out, as_json)


def _volumes(
    files: dict[str, tuple[Path, Path]], kind: str, grids: str
) -> Iterator[tuple[str, xr.DataArray, xr.DataArray]]:
    """Yield name, truth and prediction of each case."""
    from mrhdata._runtime.arguments import check_choice
    from mrhdata.io import formats
    from mrhdata.registration.resampling import resample

    check_choice("--grids", grids, ("same", "resample"))
    for case, paths in files.items():
        truth, prediction = (formats.read(path, kind=kind) for path in paths)
        if grids == "resample":
            prediction = resample(prediction, truth, order=0 if kind == "labels" else 1)
        yield case, truth, prediction


def _summary(table: pd.DataFrame, columns: list[str], by: str | None = None) -> pd.DataFrame:
    """Return the scores as text: of one case its values, of several the mean with its interval over cases."""
    import pandas as pd

    rows = []
    for name, group in table.groupby(by, sort=False) if by else [("all", table)]:
        row = {by: name} if by else {}
        row |= {"cases": group["subject"].nunique(), **{column: _text(group, column) for column in columns}}
        rows.append(row)
    return pd.DataFrame(rows).set_index(by or "cases")


def _text(group: pd.DataFrame, column: str) -> str:
    """Return a score with its interval; the number of cases without it follows, such as those without a label."""
    from mrhdata.metrics.bootstrap import Interval
    from mrhdata.metrics.overlap import pool_over_subjects

    valid = group.dropna(subset=[column])
    missing = f" ({len(group) - len(valid)} without)" if len(valid) < len(group) else ""
    if not len(valid):
        return "-"
    if len(valid) > 1:
        return f"{pool_over_subjects(valid, column, by=None)['all']}{missing}"
    row = valid.iloc[0]
    if f"{column}_low" in row:
        return str(Interval(row[column], row[f"{column}_low"], row[f"{column}_high"]))
    return f"{row[column]:.3f}{missing}"


def _write(table: pd.DataFrame, out: Path, overwrite: bool) -> None:
    from mrhdata._runtime.atomic import atomic_write

    with atomic_write(out, overwrite=overwrite) as draft:
        table.to_csv(draft, index=False)


def _answer(summary: pd.DataFrame, table: pd.DataFrame, out: Path, as_json: bool) -> None:
    """Print the summary, or as JSON all rows, where NaN is null."""
    import json

    if as_json:
        options.answer({"written": str(out), "scores": json.loads(table.to_json(orient="records"))}, as_json)
    else:
        options.table(summary)
        options.answer({"written": str(out)}, as_json)
