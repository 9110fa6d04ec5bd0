"""Draw the picture of README: ``python -m docs.figures`` writes docs/_static/overview.png in about three minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import mrhdata

#: Voxel size of the digital mice, and world position of the coronal slice.
SPACING_MM, SLICE_MM = 0.25, -1.0


def main() -> None:
    """Train on two digital mice, validate on a third, and draw the map and the scores of a fourth."""
    mice = [mrhdata.phantom.mouse_brain(spacing_mm=SPACING_MM, seed=seed) for seed in range(4)]
    contrasts = [{"t2w": mouse["t2w"], "mt": mouse["mt_on"]} for mouse in mice]
    histology, masks = [mouse["af"] for mouse in mice], [mouse["mask"] for mouse in mice]
    patches = mrhdata.patches(contrasts[:3], histology[:3], shape=3, stride=2, plane="coronal", mask=masks[:3])
    train, validation = patches.split([2, 1], by="subject", seed=0)
    model = mrhdata.models.create("mrhnet", in_channels=2, loop_blocks=1)
    config = mrhdata.training.TrainingConfig(epochs=8, batch_size=64, learning_rate=3e-3)
    mrhdata.fit(model, train, validation, config, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        virtual = mrhdata.predict(model, contrasts[3], f"{folder}/virtual.zarr", mask=masks[3], progress=False).load()
    scores = mrhdata.sensitivity(
        contrasts[3], histology[3], threshold="20%", mask=masks[3], predictions={"virtual": virtual}
    )
    panels = {
        "input: T2-weighted": contrasts[3]["t2w"],
        "input: MT-weighted": contrasts[3]["mt"],
        "autofluorescence": histology[3],
        "virtual autofluorescence": virtual,
    }
    figure = Figure(figsize=(10.5, 2.1), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.05])
    for axis, (title, volume) in zip(axes, panels.items(), strict=False):
        row = round(volume.mrh.grid.index([0, SLICE_MM, 0])[1])
        image, inside = volume.isel(y=row).values, masks[3].isel(y=row).values > 0
        low, high = np.percentile(image[inside], (1, 99))
        axis.imshow(np.where(inside, image, low), cmap="gray", vmin=low, vmax=high, origin="lower")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    for name, label in (("virtual", "virtual"), ("t2w", "T2w"), ("mt", "MT")):
        auc = scores.table.set_index("contrast").loc[name, "auc"]
        axes[4].plot(*scores.curves[name], label=f"{label}, AUC {auc:.2f}", lw=1.4)
    axes[4].plot([0, 1], [0, 1], color="0.7", lw=0.8, ls="--")
    axes[4].set_title("low autofluorescence", fontsize=9)
    axes[4].set_xlabel("1 - specificity", fontsize=8)
    axes[4].set_ylabel("sensitivity", fontsize=8)
    axes[4].tick_params(labelsize=7)
    axes[4].set_box_aspect(0.72)
    axes[4].legend(fontsize=7, frameon=False)
    figure.savefig(Path(__file__).parent / "_static" / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
