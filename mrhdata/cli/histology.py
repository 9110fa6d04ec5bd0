"""Commands that train networks on histology, and predict whole-brain maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable
from mrhdata.cli.machine import Machine, machine_options
from mrhdata.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mrhdata.patching.dataset import Patches
    from mrhdata.training.history import History
    from mrhdata.training.settings import TrainingConfig

Study = Annotated[Path, options.argument("STUDY", "Folder with files such as sub-01_T2w.nii.gz or sub-01_..._T2w.mnc.")]


@command("mrhdata train histology t2w=t2w.zarr mt=mt.zarr --histology af.zarr -o virtual-af/ --mask brain.mha")
@machine_options
def train_histology(
    contrasts: Annotated[list[str], options.argument("CONTRASTS", "Volumes as FILE or CHANNEL=FILE.")],
    histology: Annotated[str, typer.Option(help="Histology to predict, on the grid of the contrasts.")],
    out: Annotated[Path, options.output("Folder of the network, its history and the parts of the brain.")],
    mask: options.Mask = None,
    grids: options.Grids = "same",
    split_axis: Annotated[str, typer.Option(help="Axis that is cut into train, validation and test: z, y or x.")] = "y",
    split: options.Split = "0.6,0.2,0.2",
    stride: options.Stride = 1,
    loop_blocks: options.LoopBlocks = 4,
    epochs: options.Epochs = None,
    machine: Machine = None,
    ensemble_size: Annotated[
        int, typer.Option(min=1, help="Number of networks; several also give an uncertainty.")
    ] = 1,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train MRH-Net on parts of one brain.

    The brain is cut along an axis into train, validation and test, with gaps between them. The parts are written as
    labels 1, 2 and 3 to parts.zarr in the folder of the network, for mrhdata sensitivity and report. Maps of several
    networks have three channels: mean, uncertainty, and how unusual the inputs are.

    An interrupted training resumes when you run the command again; --overwrite repeats a finished one.
    """
    import json
    from dataclasses import asdict, replace

    from mrhdata import models
    from mrhdata._runtime.atomic import atomic_write, resumable_folder
    from mrhdata.analysis import robustness
    from mrhdata.io import fingerprint, formats
    from mrhdata.patching import splits
    from mrhdata.patching.create import patches
    from mrhdata.recipes import mrhnet

    options.check_training_target(out, overwrite)
    if split_axis not in ("z", "y", "x"):
        raise ParameterError(f"--split-axis must be z, y or x, the axes of mrhdata info; got {split_axis!r}")
    inputs = {name: formats.read(file) for name, file in options.channels(contrasts).items()}
    target, tissue = formats.read(histology), options.read_optional(mask, "mask")
    planned = patches(inputs, target, shape=mrhnet.PATCH, stride=stride, plane="coronal", mask=tissue, grids=grids)
    parts = planned.split(options.three_shares(split), by=split_axis)
    settings = replace(mrhnet.RECOMMENDED, seed=seed, **options.set_options(epochs=epochs), **machine)
    volumes = [*inputs.values(), target, *([] if tissue is None else [tissue])]
    prints = [fingerprint.fingerprint(volume) for volume in volumes]
    identity = fingerprint.digest([prints, list(inputs), grids, split_axis, split, stride, loop_blocks, repr(settings)])
    bars = options.bars(progress)
    with resumable(), resumable_folder(out, identity) as state:
        checkpoints = [state / f"{n}.pt" for n in range(ensemble_size)]
        networks, histories = _fit_each(parts, settings, loop_blocks, checkpoints, bars)
        model = networks[0] if ensemble_size == 1 else robustness.calibrated_ensemble(networks, parts[0], parts[1])
        with atomic_write(out, overwrite=overwrite) as draft:
            models.save(model, draft)
            (draft / "history.json").write_text(json.dumps(asdict(histories[0])) + "\n", encoding="utf-8")
            formats.write(splits.labelled(parts, split_axis, next(iter(inputs.values()))), draft / "parts.zarr")
    values = {
        "written": str(out),
        "patches": [len(part) for part in parts],
        "epochs": len(histories[0].validation),
        "best": histories[0].best_epoch + 1,
        "seconds": round(sum(history.seconds for history in histories)),
        "networks": ensemble_size,
    }
    options.answer(values, as_json)


def _fit_each(
    parts: Sequence[Patches], settings: TrainingConfig, loop_blocks: int, checkpoints: Sequence[Path], progress: bool
) -> tuple[list[nn.Module], list[History]]:
    """Train a network for each checkpoint, with weights and an order of patches of its own."""
    from dataclasses import replace

    from mrhdata import models
    from mrhdata.training.loop import fit

    networks, histories = [], []
    for number, path in enumerate(checkpoints):
        own = replace(settings, seed=settings.seed + number)
        network = models.create("mrhnet", in_channels=len(parts[0].channels), loop_blocks=loop_blocks, seed=own.seed)
        histories.append(fit(network, parts[0], parts[1], own, checkpoint=path, progress=progress))
        networks.append(network)
    return networks, histories


@command(
    "mrhdata train histology-study study/ --input t2w=T2w --input mt=MTR --histology AF --mask mask -o virtual-af/",
    "mrhdata train histology-study study/ --input 't2w=*T2w*' --histology '*NF*' -o virtual-nf/ --stride 2 --epochs 6",
)
@machine_options
def train_histology_study(
    study: Study,
    inputs: options.Inputs,
    histology: Annotated[str, typer.Option(metavar="PATTERN", help="Pattern of the histology to predict.")],
    out: Annotated[Path, options.output("Folder of the network, and of the maps and scores of the test subjects.")],
    mask: Annotated[str | None, typer.Option(metavar="PATTERN", help="Pattern of the tissue masks.")] = None,
    split: options.Split = "0.7,0.15,0.15",
    stride: options.Stride = 1,
    loop_blocks: options.LoopBlocks = 4,
    epochs: options.Epochs = None,
    machine: Machine = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train MRH-Net on a folder of subjects; map others.

    Whole subjects are assigned to train, validation and test. The network is OUT/network, for mrhdata predict; maps of
    the test subjects are compared with their histology.

    An interrupted training resumes when you run the command again; --overwrite removes another one from the folder.
    """
    from dataclasses import asdict, replace

    import pandas as pd

    from mrhdata import models
    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.datasets.subjects import split_subjects
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes import mrhnet, virtual_histology
    from mrhdata.recipes.run_plan import claim

    brains = virtual_histology.find_brains(study, options.channels(inputs), histology, mask)
    parts = split_subjects(brains, options.three_shares(split), seed)
    settings = replace(mrhnet.RECOMMENDED, seed=seed, **options.set_options(epochs=epochs), **machine)
    subjects = {part: [brain.id for brain in members] for part, members in parts.items()}
    about = {"inputs": inputs, "histology": histology, "mask": mask, "stride": stride, "loop_blocks": loop_blocks}
    volumes = fingerprint_cases(brains)
    plan = {**about, **subjects, "settings": repr(settings), "volumes": volumes}
    claim(out / "split.json", plan, overwrite=overwrite)
    bars = options.bars(progress)
    with resumable():
        model, history = virtual_histology.train(
            parts["training"], parts["validation"], settings, stride=stride, loop_blocks=loop_blocks,
            checkpoint=out / "mrhnet.pt", progress=bars,
        )  # fmt: skip
        models.save(model, out / "network")
        scores = {
            brain.id: virtual_histology.map_and_score(model, brain, out, progress=bars) for brain in parts["test"]
        }
    options.write_json(out / "network" / "history.json", asdict(history))
    with atomic_write(out / "scores.csv", overwrite=True) as draft:
        pd.DataFrame.from_dict(scores, orient="index").to_csv(draft, index_label="subject")
    values: dict[str, Any] = {"written": str(out), "subjects": len(brains)}
    values |= {part: ", ".join(members) for part, members in subjects.items()}
    r2 = {subject: round(row["R2"], 4) for subject, row in scores.items()}
    options.answer(values | {"best": history.best_epoch + 1, "seconds": round(history.seconds), "R2": r2}, as_json)


@command(
    "mrhdata predict virtual-af/ t2w=t2w.nii.gz mt=mt.nii.gz -o map.zarr --mask brain.mha",
    "mrhdata predict net/ em.zarr -o membranes.zarr --mode dense --activation sigmoid --threshold 0.5 --memory '2 GB'",
    "mrhdata predict net/ brains/ -o maps/",
)
def predict(
    model: options.Model,
    inputs: options.Cases,
    out: Annotated[Path, options.output("OME-Zarr or file; for a folder of cases a folder.")],
    mask: options.MaskOrStored = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Strategy: sliding_window, patch_centre, or dense, which equals one pass over the volume; that of the "
            "network by default."
        ),
    ] = None,
    window: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Voxels of a window.")] = None,
    overlap: Annotated[float, typer.Option(help="Overlap of windows, from 0 to below 1.")] = 0.5,
    blend: Annotated[
        str | None, typer.Option(help="Weights of overlapping windows: gaussian, hann or constant.")
    ] = None,
    activation: Annotated[str | None, typer.Option(help="Activation of the output: softmax or sigmoid.")] = None,
    argmax: Annotated[bool, typer.Option("--argmax", help="Write the label of the highest channel.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest value of the mask that is written instead of values.")
    ] = None,
    grids: options.Grids = "same",
    maximum: Annotated[
        float | None, typer.Option(help="Highest value of the scan, for the published MRH-Nets (mrhnet-af-10).")
    ] = None,
    orientation: options.Orientation = None,
    unit: options.Unit = None,
    spacing: options.Spacing = None,
    memory: options.Memory = "1 GB",
    device: options.Device = None,
    precision: options.Precision = "float32",
    skip_corrupt: options.SkipCorrupt = False,
    force: options.Force = False,
    overwrite: options.Overwrite = False,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Predict maps of volumes of any size with a trained network.

    An interrupted run resumes when you run the command again.
    """
    from mrhdata import models
    from mrhdata.inference import predictor
    from mrhdata.inference.case_folder import process_cases
    from mrhdata.inference.output import Output
    from mrhdata.inference.strategies.sliding_window import SlidingWindow
    from mrhdata.io import formats

    if argmax and threshold is not None:
        raise ParameterError("--argmax and --threshold exclude each other; pass one of them")
    network = models.load(model, maximum=maximum)
    region = options.mask_or_stored(mask)
    corrections = options.read_options(orientation=orientation, unit=unit, spacing=spacing)
    shape = None if window is None else options.whole_numbers("--window", window)
    windows, written_as = SlidingWindow(shape, overlap, blend), Output(activation, argmax, threshold)

    def run(files: Mapping[str, str], target: Path) -> Any:
        volumes = {name: formats.read(file, **corrections) for name, file in files.items()}
        options.warn_of_unfamiliar(network, volumes)
        return predictor.predict(
            network,
            volumes,
            target,
            mask=region,
            mode=mode,
            windows=windows,
            grids=grids,
            output=written_as,
            memory=memory,
            device=device,
            precision=precision,
            skip_corrupt=skip_corrupt,
            force=force,
            overwrite=overwrite,
            progress=options.bars(progress),
        )

    cases = options.case_files(inputs, network.spec)
    with resumable():
        if cases:
            files = {case: options.case_channels(network.spec, case, paths) for case, paths in cases.items()}
            settings = [options.network_digest(model), options.mask_identity(region), mode, windows, written_as]
            settings += [grids, maximum, skip_corrupt, corrections, options.precision_on(precision, device)]
            outputs = process_cases(
                files, out, lambda _, channels, target: run(channels, target), settings=settings, overwrite=overwrite
            )
            options.answer({"written": str(out), "cases": len(outputs)}, as_json)
            return
        prediction = run(options.channels(inputs), out)
    values: dict[str, Any] = {"written": str(out), "shape": dict(prediction.sizes), "dtype": str(prediction.dtype)}
    values |= options.unfamiliar(prediction.attrs)
    skipped = prediction.attrs.get("provenance", {}).get("skipped", [])
    options.answer(values | ({"skipped": skipped} if skipped else {}), as_json)
