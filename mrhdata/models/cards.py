"""Cards: what a network that is shipped learned from, how good it is, and where it fails.

```
weights/NAME/ config.json, model.safetensors, card.json --list--> Cards
                                                        --load NAME--> network, if the weights are those of the card
```
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mrhdata.errors import ModelError

#: Folder of the networks that are shipped, one folder each.
WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Card:
    """One network.

    Attributes
    ----------
    name, title : str
        As it is loaded, and what it does.
    task : {"histology", "tissue", "nuclei", "restoration", "cells"}
        What its answers are.
    network : str
        For :func:`mrhdata.models.create`.
    inputs : tuple of str
        Channels in order.
    spacing_mm : tuple of float
        Voxels of training, z, y, x.
    data : str
        What it learned from.
    split : mapping
        Subjects for ``training``, ``stopping`` and ``test``.
    score, baseline : mapping
        ``name``, ``value``, ``low`` and ``high`` (95 %) on the test subjects; of the best baseline, with its
        ``method``.
    limits : tuple of str
        Where it is not to be trusted.
    parameters : int
    megabytes : float
    sha256 : str
        Of the file of weights.
    licence : str
    """

    name: str
    title: str
    task: str
    network: str
    inputs: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    data: str
    split: Mapping[str, Any]
    score: Mapping[str, Any]
    baseline: Mapping[str, Any]
    limits: tuple[str, ...]
    parameters: int
    megabytes: float
    sha256: str
    licence: str = "MIT"

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        (folder / "card.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def row(self) -> dict[str, str]:
        """What a list shows."""
        score = self.score
        return {
            "name": self.name,
            "task": self.task,
            "inputs": ", ".join(self.inputs),
            "spacing, mm": " x ".join(f"{s:.4g}" for s in self.spacing_mm),
            "MB": f"{self.megabytes:.1f}",
            "score": f"{score['name']} {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
            "best baseline": f"{self.baseline['value']:.3f} ({self.baseline['method']})",
        }


class Cards(tuple[Card, ...]):
    """Cards that show themselves as a table."""

    def __repr__(self) -> str:
        rows = [card.row() for card in self]
        if not rows:
            return "no networks"
        lines = [builtins.list(rows[0]), *(builtins.list(row.values()) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(f"{v:{w}}" for v, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        from mrhdata._runtime.html import panel, table

        rows = [card.row() for card in self]
        return panel("Networks", table([*rows[0]] if rows else [], [[*row.values()] for row in rows]))


def list(task: str | None = None) -> Cards:
    """Networks that are shipped with the package, trained on phantoms.

    Parameters
    ----------
    task : str, optional
        Those of one kind: ``"histology"``, ``"tissue"``, ``"nuclei"``, ``"restoration"`` or ``"cells"``.

    Returns
    -------
    cards : tuple of Card

    Examples
    --------
    >>> import mrhdata
    >>> all(card.megabytes < 5 for card in mrhdata.models.list())
    True
    """
    found = Cards(read_card(path) for path in sorted(WEIGHTS.glob("*/card.json")))
    return found if task is None else Cards(card for card in found if card.task == task)


def read_card(path: Path) -> Card:
    """A card from its file.

    Raises
    ------
    ModelError
        It is no card.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(held) - {f.name for f in fields(Card)}
        if unknown:
            raise ModelError(f"{path} has fields that no card has, {sorted(unknown)}; save the network again")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, builtins.list) else v for k, v in held.items()}
        return Card(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no card ({' '.join(str(error).split())[:200]}); save the network again") from error


def folder_of(name: str) -> Path:
    """Folder of a network: a path, or else the name of one that is shipped.

    Examples
    --------
    >>> folder_of("networks/mine").as_posix()
    'networks/mine'
    """
    path = Path(name)
    shipped = WEIGHTS / name
    return shipped if not path.exists() and path.name == name and shipped.is_dir() else path


def card_of(folder: Path) -> Card | None:
    """The card beside the weights, None where there is none."""
    path = folder / "card.json"
    return read_card(path) if path.exists() else None


def check_weights(folder: Path) -> None:
    """Refuse weights that are not those of their card; without a card there is nothing to compare.

    Raises
    ------
    ModelError
        They differ.
    """
    card = card_of(folder)
    if card is not None:
        found = digest_of(folder)
        if found != card.sha256:
            raise ModelError(
                f"{folder / 'model.safetensors'} has SHA-256 {found[:16]}, its card says {card.sha256[:16]}; install "
                "the package again, or take the card away if the weights are your own"
            )


def digest_of(folder: Path) -> str:
    """SHA-256 of a network's file of weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
