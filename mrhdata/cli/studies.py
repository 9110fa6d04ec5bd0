"""The command that trains a network on the brains of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrhdata.cli import options
from mrhdata.cli.app import command, resumable


@command(
    "mrhdata train-maps virtual-af/ study/ --input t2w=T2w --input mt=MTR --histology AF --where mask",
    "mrhdata train-maps virtual-nf/ study/ --input 't2w=*T2w*' --histology '*NF*' --stride 2 --epochs 6",
)
def train_maps(
    out: Annotated[Path, typer.Argument(help="Folder of the network, and of maps and scores of the test subjects.")],
    folder: Annotated[Path, typer.Argument(help="Folder with files such as sub-01_T2w.nii.gz or sub-01_..._T2w.mnc.")],
    inputs: options.Inputs,
    histology: Annotated[str, typer.Option(help="Pattern of the histology that is to be predicted.")],
    where: Annotated[str | None, typer.Option(help="Pattern of masks of the tissue.")] = None,
    shares: options.Shares = "0.7,0.15,0.15",
    stride: options.Stride = 1,
    blocks: options.Blocks = 4,
    epochs: options.Epochs = None,
    seed: options.Seed = 0,
    progress: options.Progress = None,
    as_json: options.Json = False,
) -> None:
    """Train MRH-Net on the brains of a folder, subject by subject apart; map and score those that it never saw.

    A run that was stopped goes on when it is called again. The network is OUT/network, for mrhdata predict.
    """
    import json
    from dataclasses import asdict, replace

    import pandas as pd

    from mrhdata import models
    from mrhdata._runtime.atomic import atomic_write
    from mrhdata.io.fingerprint import fingerprint_cases
    from mrhdata.recipes import mrhnet, virtual_histology
    from mrhdata.recipes.cases import split_subjects
    from mrhdata.recipes.cross_validation import claim

    found = virtual_histology.find_brains(folder, options.channels(inputs), histology, where)
    parts = split_subjects(found, options.shares(shares), seed)
    settings = replace(mrhnet.RECOMMENDED, seed=seed, **options.options(epochs=epochs))
    subjects = {part: [brain.subject for brain in held] for part, held in parts.items()}
    about = {"inputs": inputs, "histology": histology, "where": where, "stride": stride, "blocks": blocks}
    claim(out / "split.json", {**about, **subjects, "settings": repr(settings), "volumes": fingerprint_cases(found)})
    bars = options.shown(progress)
    with resumable():
        model, history = virtual_histology.train(
            parts["training"], parts["validation"], settings, stride=stride, blocks=blocks,
            checkpoint=out / "mrhnet.pt", progress=bars,
        )  # fmt: skip
        models.save(model, out / "network")
        scores = {
            brain.subject: virtual_histology.map_and_score(model, brain, out, progress=bars) for brain in parts["test"]
        }
    with atomic_write(out / "network" / "history.json", overwrite=True) as draft:
        draft.write_text(json.dumps(asdict(history)) + "\n", encoding="utf-8")
    with atomic_write(out / "scores.csv", overwrite=True) as draft:
        pd.DataFrame.from_dict(scores, orient="index").to_csv(draft, index_label="subject")
    told = {"written": str(out), "subjects": len(found), **{part: ", ".join(held) for part, held in subjects.items()}}
    r2 = {subject: round(held["R2"], 4) for subject, held in scores.items()}
    options.answer(told | {"best": history.best_epoch + 1, "seconds": round(history.seconds), "R2": r2}, as_json)
