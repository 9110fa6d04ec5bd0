"""The command that segments volumes, and the files that it writes for a volume or a study."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.errors import DataError, UnfamiliarError

if TYPE_CHECKING:
    import xarray as xr

_Reader: TypeAlias = "Callable[[Mapping[str, str]], dict[str, xr.DataArray]]"

#: File of the predicted Dice in a folder of cases, and number of the lowest ones that are printed.
_QUALITY, _LOWEST = "quality.csv", 3


@command(
    "mrhdata segment gm-wm/network sub-07_T1w.mnc -o labels.mnc --montage labels.png",
    "mrhdata segment tumour/network imagesTs/ -o labels/",
)
def segment_(
    model: options.Model,
    inputs: options.Cases,
    out: Annotated[
        Path, options.output("File of the labels, whose ending sets the format; for a folder of cases a folder.")
    ],
    montage: Annotated[Path | None, typer.Option(help="PNG of slices with their labels; a folder for cases.")] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(help="True labels, to score; for cases a folder with files of the same names.")
    ] = None,
    region_stats: Annotated[
        Path | None, typer.Option(help="CSV of the first volume's values in each label; a folder for cases.")
    ] = None,
    label_spacing: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Voxel size of the labels in mm, such as 1; by default the volume's own."),
    ] = None,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    memory: options.Memory = "4 GB",
    device: options.Device = None,
    precision: options.Precision = "float32",
    force: options.Force = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Segment volumes with a trained network.

    Labels lie on the volume's own grid, in any format that can be written: NIfTI, MINC2, NRRD, OME-Zarr. With several
    channels the first one sets the grid. For thick slices --label-spacing 1 gives labels of 1 mm between them. Names
    and colours of the labels, if the network has names, are in a table next to them (.tsv, as in BIDS).

    Networks from label maps also predict the Dice of each label, and refuse volumes that they cannot label; for a
    folder of cases quality.csv lists the predictions, the lowest first.
    """
    from mrhdata import models
    from mrhdata.inference.segmenter import segment

    network = models.load(model)
    spec: Any = network.spec

    def run(volumes: Any) -> xr.DataArray:
        return segment(
            network,
            volumes,
            memory=memory,
            device=device,
            precision=precision,
            force=force,
            progress=options.bars(progress),
        )

    read = functools.partial(
        _read,
        corrections=options.read_options(orientation=orientation, unit=unit, spacing=spacing),
        spacing_mm=None if label_spacing is None else options.spacing_of("--label-spacing", label_spacing),
    )
    extras = _Extras(montage, ground_truth, region_stats, spec)
    cases = options.case_files(inputs, network.spec)
    if cases:
        files = {case: options.case_channels(spec, case, paths) for case, paths in cases.items()}
        digest = options.network_digest(model)
        _segment_cases(
            run,
            files,
            out,
            extras,
            read,
            settings=[digest, str(montage), str(region_stats), read.keywords, options.precision_on(precision, device)],
            overwrite=overwrite,
            as_json=as_json,
        )
    else:
        _segment_volume(run, inputs, out, extras, read, overwrite, as_json)


def _read(files: Mapping[str, str], corrections: Any, spacing_mm: Any) -> dict[str, xr.DataArray]:
    """Read the channels of a case, in the voxel size of the labels."""
    from mrhdata.io import formats
    from mrhdata.registration.resampling import resample

    volumes = {name: formats.read(file, **corrections).rename(name) for name, file in files.items()}
    if spacing_mm is None:
        return volumes
    return {name: resample(volume, spacing_mm=spacing_mm) for name, volume in volumes.items()}


class _Extras:
    """Outputs of a segmentation besides the labels: a montage, scores, and values in each label."""

    def __init__(self, montage: Path | None, truth: Path | None, region_stats: Path | None, spec: Any) -> None:
        self.montage, self.truth, self.region_stats, self.spec = montage, truth, region_stats, spec

    def of_case(self, case: str) -> _Extras:
        """Return those of one case, whose files are in folders."""
        from mrhdata.datasets.nnunet import cases_in

        truth = None
        if self.truth is not None:
            files = cases_in(self.truth).get(case, [])
            if len(files) != 1:
                raise DataError(f"--ground-truth {self.truth} has no labels of {case}; name its files as the cases")
            truth = files[0]
        montage = None if self.montage is None else self.montage / f"{case}.png"
        region_stats = None if self.region_stats is None else self.region_stats / f"{case}.csv"
        return _Extras(montage, truth, region_stats, self.spec)

    def read_truth(self, volumes: Mapping[str, xr.DataArray]) -> xr.DataArray | None:
        """Return the true labels; a wrong grid is found here, before hours of work."""
        from mrhdata.io import formats
        from mrhdata.volume.groups import on_grid_of

        if self.truth is None:
            return None
        labels = formats.read(self.truth, kind="labels")
        grid = next((channel for channel in self.spec.channels if channel in volumes), next(iter(volumes)))
        on_grid_of("truth", labels, repr(grid), volumes[grid])
        return labels

    def write(self, first: xr.DataArray, truth: xr.DataArray | None, labels: xr.DataArray) -> None:
        """Write the montage and the values of the first volume in each label."""
        import numpy as np

        from mrhdata._runtime.atomic import atomic_write
        from mrhdata.metrics.overlap import roi_table
        from mrhdata.viz import plots

        if self.montage is not None:
            plots.montage(first, truth, labels, self.montage, names=self.spec.names)
        if self.region_stats is not None:
            names = {int(v): self.spec.names.get(int(v), str(v)) for v in self.spec.labels[1:]}
            table = roi_table(first.values, labels.values, names, float(np.prod(labels.mrh.spacing)))
            with atomic_write(self.region_stats, overwrite=True) as draft:
                table.to_csv(draft, index=False)


def _write_names(names: Mapping[int, str], path: Path) -> None:
    """Write the names and colours of labels, as the table of a BIDS segmentation."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.viz.plots import label_colours

    rows = [(0, "background", "#000000"), *((v, name, label_colours(names)[v]) for v, name in names.items())]
    with atomic_write(path, overwrite=True) as draft:
        pd.DataFrame(rows, columns=["index", "name", "color"]).to_csv(draft, sep="\t", index=False)


def _names_path(out: Path) -> Path:
    """Return the path of the table that names the labels of a file."""
    from mrhdata.datasets import bids

    return out.with_name(f"{bids.stem(out)}.tsv")


def _segment_volume(
    run: Callable[[Any], xr.DataArray],
    inputs: list[str],
    out: Path,
    extras: _Extras,
    read: _Reader,
    overwrite: bool,
    as_json: bool,
) -> None:
    from mrhdata._runtime.atomic import check_target
    from mrhdata.datasets.subjects import Subject
    from mrhdata.inference.segmenter import score_labels
    from mrhdata.io import formats

    check_target(out, overwrite)
    formats.writer_of(out)
    if extras.spec.names:
        check_target(_names_path(out), overwrite)
    volumes = read(options.channels(inputs))
    truth = extras.read_truth(volumes)
    first = next(iter(volumes.values()))
    # One volume without a name is the only channel, whatever its file is called.
    labels = run(first if len(volumes) == 1 and "=" not in inputs[0] else volumes)
    formats.write(labels, out, overwrite=overwrite)
    extras.write(first, truth, labels)
    values: dict[str, Any] = {"written": str(out), "labels": [int(v) for v in extras.spec.labels]}
    if extras.spec.names:
        _write_names(extras.spec.names, _names_path(out))
        values["names"] = str(_names_path(out))
    values |= options.unfamiliar(labels.attrs)
    values |= labels.attrs.get("quality", {}) if as_json else _quality_words(labels.attrs.get("quality"))
    if truth is not None:
        scores = score_labels(Subject("1", {}, truth), labels, extras.spec.labels)
        values["dice"] = dict(zip(scores.label.astype(str), scores.dice.round(4).tolist(), strict=True))
        values["accuracy"] = round(float(scores.accuracy[0]), 4)
    options.answer(values, as_json)


def _segment_cases(
    run: Callable[[Any], xr.DataArray],
    cases: Mapping[str, Mapping[str, str]],
    out: Path,
    extras: _Extras,
    read: _Reader,
    *,
    settings: Any,
    overwrite: bool,
    as_json: bool,
) -> None:
    from mrhdata.inference.case_folder import process_cases
    from mrhdata.io import formats

    def process(case: str, files: Mapping[str, str], target: Path) -> None:
        volumes, own = read(files), own_extras[case]
        truth = own.read_truth(volumes)
        labels = _label_case(run, volumes, case, out / _QUALITY)
        formats.write(labels, target, overwrite=overwrite)
        own.write(next(iter(volumes.values())), truth, labels)
        if extras.spec.names:
            _write_names(extras.spec.names, out / "dseg.tsv")

    own_extras = {case: extras.of_case(case) for case in cases}
    for case, files in cases.items():
        own_extras[case].read_truth(read(files))
    for folder in (extras.montage, extras.region_stats):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with resumable():
        outputs = process_cases(cases, out, process, settings=settings, overwrite=overwrite)
    values: dict[str, Any] = {
        "written": str(out),
        "cases": len(outputs),
        "labels": [int(v) for v in extras.spec.labels],
    }
    if (out / _QUALITY).exists():
        values["quality"] = str(out / _QUALITY)
    if extras.truth is not None:
        values["dice"] = _score_cases(outputs, own_extras, out / "scores.csv")
    options.answer(values, as_json)


def _label_case(run: Callable[[Any], xr.DataArray], volumes: Any, case: str, table: Path) -> xr.DataArray:
    """Return the labels of a case. Its predicted Dice is added to a table, also if the case is refused."""
    try:
        labels = run(volumes)
    except UnfamiliarError as error:
        if error.quality is not None:
            _add_quality(table, case, error.quality, refused=True)
        raise
    if "quality" in labels.attrs:
        _add_quality(table, case, labels.attrs["quality"], refused=False)
    return labels


def _quality_words(quality: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what is printed about the predicted Dice of a volume: its mean, and the lowest ones."""
    if quality is None:
        return {}
    lowest = sorted(quality["labels"].items(), key=lambda row: row[1])[:_LOWEST]
    return {
        "predicted Dice": f"{quality['predicted_dice']:.2f}, within {quality['error']:.2f} on average; lowest: "
        + ", ".join(f"{name} {dice:.2f}" for name, dice in lowest),
        "contrast": f"shown {quality['contrast']}" + (f" to {quality['network']}" if "network" in quality else ""),
    }


def _add_quality(path: Path, case: str, quality: Mapping[str, Any], *, refused: bool) -> None:
    """Add a case to the table of predicted Dice, which begins with the lowest."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write

    predicted, contrast = quality["predicted_dice"], quality.get("contrast", "")
    row = {"case": case, "predicted_dice": predicted, "refused": refused, "contrast": contrast}
    row["network"] = quality.get("network", "")
    table = pd.DataFrame([row | quality["labels"]])
    if path.exists():
        known = pd.read_csv(path, dtype={"case": str})
        table = pd.concat([known[known["case"] != case], table], ignore_index=True)
    with atomic_write(path, overwrite=True) as draft:
        table.sort_values("predicted_dice", kind="stable").to_csv(draft, index=False)


def _score_cases(outputs: Mapping[str, Path], extras: Mapping[str, _Extras], path: Path) -> dict[str, Any]:
    """Write the scores of all cases; return the mean Dice of each label."""
    import pandas as pd

    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.datasets.subjects import Subject
    from mrhdata.inference.segmenter import score_labels
    from mrhdata.io import formats
    from mrhdata.metrics.overlap import pool_over_subjects

    tables = []
    for case, file in outputs.items():
        truth = formats.read(str(extras[case].truth), kind="labels")
        labels = formats.read(file, kind="labels")
        tables.append(score_labels(Subject(case, {}, truth), labels, extras[case].spec.labels))
    scores = pd.concat(tables, ignore_index=True)
    with atomic_write(path, overwrite=True) as draft:
        scores.to_csv(draft, index=False)
    return {str(label): str(interval) for label, interval in pool_over_subjects(scores, "dice").items()}
