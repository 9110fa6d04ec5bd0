"""Names of labels from the tables that other programs write."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from mrhdata.errors import FormatError

#: Columns of the number and of the name of a label, the first that a table has.
_NUMBER = ("index", "label", "id", "value", "intensity")
_NAME = ("name", "structure", "label_name", "region", "acronym", "abbreviation")
#: Line of a FreeSurfer colour table: number, name, red, green, blue, transparency.
_FREESURFER = re.compile(r"^\s*(\d+)\s+(\S+)\s+\d+\s+\d+\s+\d+\s+\d+\s*$")
#: Line of an ITK-SNAP label file: number, colours, visibilities, name in quotes.
_SNAP = re.compile(r'^\s*(\d+)\s+\d+\s+\d+\s+\d+\s+\S+\s+\d+\s+\d+\s+"(.*)"\s*$')


def read_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    r"""Read the names of labels.

    Parameters
    ----------
    path : path
        Table of BIDS (``_dseg.tsv``) or BrainGlobe (``structures.csv``), or any CSV or TSV with a column of numbers
        (``index``, ``label``, ``id``) and one of names (``name``, ``structure``); colour table of FreeSurfer or label
        file of ITK-SNAP (``.txt``, ``.label``); JSON of the Allen Institute, of BrainGlobe, of nnU-Net
        (``dataset.json``), or only names, ``{"1": "left", "2": "right"}``.

    Returns
    -------
    names : dict of int to str

    Raises
    ------
    FormatError
        If the file is missing or names no label.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "sub-01_dseg.tsv"
    >>> _ = file.write_text("index\tname\tcolor\n1\tcortex\t#ff0000\n")
    >>> read_label_names(file)
    {1: 'cortex'}
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"{path} does not exist. Check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _of_json(json.loads(text)) if path.suffix.lower() == ".json" else _of_table(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        raise FormatError(f"{path} has no names of labels ({type(error).__name__}: {error}). {_REMEDY}") from error
    if not names:
        raise FormatError(f"{path} has no names of labels. {_REMEDY}")
    return names


_REMEDY = 'Pass a table with the columns index and name, a FreeSurfer colour table, or JSON such as {"1": "left"}'


def _of_table(text: str) -> dict[int, str]:
    """Return the names of a colour table, a label file, a CSV or a TSV."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for pattern in (_FREESURFER, _SNAP):
        matches = [pattern.match(line) for line in lines]
        if any(matches):
            return {int(match[1]): match[2] for match in matches if match}
    header = lines[0] if lines else ""
    separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    rows = list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter=separator))
    columns = {str(column).strip().lower(): column for column in (rows[0] if rows else {})}
    number, name = (next((columns[c] for c in choices if c in columns), None) for choices in (_NUMBER, _NAME))
    if number is None or name is None:
        return {}
    return {int(float(row[number])): str(row[name]).strip() for row in rows}


def _of_json(content: Any) -> dict[int, str]:
    """Return the names of a structure graph, a dataset.json, or a mapping of numbers to names."""
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        # nnU-Net: names to numbers, and names of regions to lists of them.
        return {value: str(name) for name, value in content["labels"].items() if isinstance(value, int)}
    if isinstance(content, dict) and content and all(str(key).lstrip("-").isdigit() for key in content):
        return {int(key): str(name) for key, name in content.items()}
    names: dict[int, str] = {}
    remaining = [content]
    while remaining:
        entry = remaining.pop()
        if isinstance(entry, dict):
            if "id" in entry and "name" in entry:
                names[int(entry["id"])] = str(entry["name"])
            remaining.extend(entry.values())
        elif isinstance(entry, list):
            remaining.extend(entry)
    return names
