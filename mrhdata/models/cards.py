"""Model cards of the shipped networks: training data, test score and limits.

```
weights/NAME/ config.json, model.safetensors, card.json --list--> Cards
                                                        --load NAME--> network, if the weights match the card
```
"""

from __future__ import annotations

import builtins
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mrhdata.errors import ModelError

#: Folder of the shipped networks, one subfolder each.
WEIGHTS = Path(__file__).with_name("weights")
#: Bytes of a JSON file of a model folder.
_MAX_JSON_BYTES = 1_000_000
#: Most channels that a row of a table names.
_SHOWN = 6


@dataclass(frozen=True)
class Card:
    """Card of one network.

    Attributes
    ----------
    name, title : str
        Name for :func:`mrhdata.models.load`, and a short description.
    task : {"histology", "tissue", "nuclei", "restoration", "cells"}
        Task that the network solves.
    network : str
        Name of the network for :func:`mrhdata.models.create`.
    inputs : tuple of str
        Names of the input channels in order.
    spacing_mm : tuple of float
        Voxel spacing of the training data, z, y, x.
    data : str
        Description of the training data.
    split : mapping
        Subjects for ``training``, ``validation`` and ``test``.
    score, baseline : mapping
        ``name``, ``value``, ``low`` and ``high`` (95 % interval) of the network and of the best baseline on the test
        subjects; the baseline also has its ``method``. Empty if they were not measured.
    limits : tuple of str
        Situations in which the network is unreliable.
    parameters : int
        Number of parameters.
    megabytes : float
        Size of the weights file.
    sha256 : str
        SHA-256 of the weights file.
    licence : str
        Licence of the weights.
    source : str
        Authors and licence of the network, if others trained it.
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
    source: str = ""

    def write(self, folder: Path) -> None:
        """Write ``card.json`` to a model folder."""
        (folder / "card.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def row(self) -> dict[str, str]:
        """Return the row of this network in a table."""
        score, baseline, more = self.score, self.baseline, len(self.inputs) - _SHOWN
        return {
            "name": self.name,
            "task": self.task,
            "inputs": ", ".join(self.inputs[:_SHOWN]) + (f" and {more} more" if more > 0 else ""),
            "spacing, mm": " x ".join(f"{s:.4g}" for s in self.spacing_mm),
            "MB": f"{self.megabytes:.1f}",
            "score": "{name} {value:.3f} [{low:.3f}, {high:.3f}]".format(**score) if score else "-",
            "best baseline": "{value:.3f} ({method})".format(**baseline) if baseline else "-",
        }


class Cards(tuple[Card, ...]):
    """Cards that print as a table."""

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
    """Return the cards of the shipped networks.

    Parameters
    ----------
    task : str, optional
        Only networks of this task: ``"histology"``, ``"tissue"``, ``"nuclei"``, ``"restoration"`` or ``"cells"``.

    Returns
    -------
    cards : tuple of Card

    Examples
    --------
    >>> import mrhdata
    >>> all(card.megabytes < 5 for card in mrhdata.models.list())
    True
    """
    cards = Cards(read_card(path) for path in sorted(WEIGHTS.glob("*/card.json")))
    return cards if task is None else Cards(card for card in cards if card.task == task)


def read_card(path: Path) -> Card:
    """Read a card from its file.

    Raises
    ------
    ModelError
        If the file is not a card.
    """
    try:
        content = read_json(path)
        unknown = set(content) - {f.name for f in fields(Card)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, builtins.list) else v for k, v in content.items()}
        card = Card(**{k: v for k, v in values.items() if k not in unknown})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} is not a model card ({reason}); save the network again") from error
    if unknown:
        raise ModelError(f"{path} has unknown fields {sorted(unknown)}; save the network again")
    return card


def read_json(path: Path) -> Any:
    """Read a JSON file of a model folder, of limited size and depth.

    Raises
    ------
    ValueError
        If the file is larger than 1 MB, nested too deeply, or not JSON.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_JSON_BYTES / 1e6:g} MB")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def folder_of(name: str) -> Path:
    """Return the folder of a network from its path, or from the name of a shipped network.

    An existing path takes precedence over a shipped network of the same name.

    Examples
    --------
    >>> folder_of("networks/mine").as_posix()
    'networks/mine'
    """
    path = Path(name)
    shipped = WEIGHTS / name
    return shipped if not path.exists() and path.name == name and shipped.is_dir() else path


def similar_names(name: str) -> builtins.list[str]:
    """Return the shipped networks whose names are like one that does not exist.

    Examples
    --------
    >>> similar_names("phantom-tisue")
    ['phantom-tissue']
    """
    return difflib.get_close_matches(name, [folder.name for folder in WEIGHTS.iterdir()], cutoff=0.85)


def card_of(folder: Path) -> Card | None:
    """Return the card of a model folder, None if it has no card."""
    path = folder / "card.json"
    return read_card(path) if path.exists() else None


def check_weights(folder: Path, stated: str | None = None) -> None:
    """Check that the weights of a folder match its settings and its card, as far as these state a checksum.

    Parameters
    ----------
    folder : path
    stated : str, optional
        SHA-256 of the weights in the settings, which older folders do not have.

    Raises
    ------
    ModelError
        If the SHA-256 of the weights differs.
    """
    card = card_of(folder)
    if card is None and stated is None:
        return
    weights, digest = folder / "model.safetensors", digest_of(folder)
    if card is not None and digest != card.sha256:
        raise ModelError(
            f"{weights} has SHA-256 {digest[:16]}, its card says {card.sha256[:16]}; install the package again, or "
            "delete the card if the weights are your own"
        )
    if stated is not None and digest != stated:
        raise ModelError(
            f"{weights} is damaged: its SHA-256 must be {stated[:16]}, as config.json says; got {digest[:16]}. Copy "
            "the folder again, or delete sha256 from config.json if you changed the weights"
        )


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model folder."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
