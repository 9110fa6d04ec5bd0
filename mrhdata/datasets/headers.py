"""Metadata of a volume for a catalogue: what the name of its file says, and what its header says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mrhdata.datasets import bids
from mrhdata.io import formats


def describe(path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Return the metadata of a volume: what its name says, and its geometry."""
    path = Path(path)
    entities = bids.parse(path.name)
    suffix = entities.pop("suffix", None)
    modality, kind = bids.SUFFIXES.get(suffix or "", (None, None))
    read_options = {**options}
    if kind is not None and read_options.get("kind") is None:
        read_options["kind"] = kind
    volume = formats.read(path, **read_options)
    grid = volume.mrh.grid
    metadata: dict[str, Any] = {**entities, "role": suffix or bids.stem(path), "kind": volume.attrs["kind"]}
    metadata["modality"] = volume.attrs.get("modality") or modality or "unknown"
    if "units" in volume.attrs:
        metadata["units"] = volume.attrs["units"]
    metadata |= {
        "space": volume.mrh.space,
        "spacing_mm": [float(f"{step:.6g}") for step in grid.spacing],
        "shape": {str(d): int(n) for d, n in volume.sizes.items()},
        "orientation": grid.orientation,
    }
    return metadata
