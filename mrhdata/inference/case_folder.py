"""A folder with an output for each case; a second run writes only what is missing, so that interrupted runs resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mrhdata._runtime.atomic import atomic_write
from mrhdata.errors import DataError, FormatError, MrhdataError
from mrhdata.io import formats
from mrhdata.io.fingerprint import digest, file_state

#: File in the folder: fingerprint of each case that is finished.
_RECORD = "cases.json"
#: Number of cases with an error that a message names.
_NAMED = 5


def process_cases(
    cases: Mapping[str, Mapping[str, str]],
    folder: str | Path,
    process: Callable[[str, Mapping[str, str], Path], Any],
    *,
    settings: Any,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Process cases that are not finished yet; a case with an error does not keep the others from being processed.

    Parameters
    ----------
    cases : mapping of str to mapping of str to str
        Files of each case by channel.
    folder : path
        Folder of the outputs, which is created as needed. An output has the name of its case, and the ending of its
        first file if that format can be written, else ``.nii.gz``.
    process : callable
        Writes one output: ``process(case, files, target)``.
    settings : JSON-like
        Network and settings of the run. An output of other settings or other files is not finished.
    overwrite : bool
        Whether to process finished cases again, and replace other files of their names.

    Returns
    -------
    outputs : dict of str to pathlib.Path
        Output of each case.

    Raises
    ------
    FormatError
        If an output exists that this run did not write.
    DataError
        If `folder` is the folder of the inputs, so that an output would replace an input.
    MrhdataError
        If cases had an error, behind the last case. It is of the type of the first one, and names them.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "a_0000.nii").write_bytes(b"")
    >>> cases = {"a": {"t1w": str(root / "a_0000.nii")}}
    >>> def process(case, files, target):
    ...     print("processing", case)
    ...     target.touch()
    >>> outputs = process_cases(cases, root / "out", process, settings="net")
    processing a
    >>> outputs["a"].name, process_cases(cases, root / "out", process, settings="net") == outputs
    ('a.nii', True)
    """
    out = Path(folder)
    targets = {case: out / f"{case}{formats.written_as(next(iter(files.values())))}" for case, files in cases.items()}
    digests = {
        case: digest([settings, [[c, f, file_state(f)] for c, f in files.items()]]) for case, files in cases.items()
    }
    record = _read_record(out / _RECORD)
    waiting = [case for case in cases if overwrite or not targets[case].exists() or record.get(case) != digests[case]]
    for case in waiting:
        _check_target(targets[case], cases[case], overwrite)
    out.mkdir(parents=True, exist_ok=True)
    errors: dict[str, MrhdataError] = {}
    for case in waiting:
        try:
            process(case, cases[case], targets[case])
        except MrhdataError as error:
            errors[case] = error
            continue
        record[case] = digests[case]
        with atomic_write(out / _RECORD) as draft:
            draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if errors:
        first = next(iter(errors.values()))
        raise type(first)(_sentence(errors, len(cases))) from first
    return targets


def _sentence(errors: Mapping[str, MrhdataError], count: int) -> str:
    """Return the errors of cases, and how many of all cases they are."""
    named = [f"case {case}: {error}" for case, error in errors.items()]
    if len(named) == count == 1:
        return named[0]
    more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
    return f"{len(named)} of {count} cases have an error, and the others are written. " + "; ".join(
        named[:_NAMED] + more
    )


def _check_target(target: Path, files: Mapping[str, str], overwrite: bool) -> None:
    if target.resolve() in {Path(file).resolve() for file in files.values()}:
        raise DataError(f"{target} is an input; choose another folder for the outputs")
    if target.exists() and not overwrite:
        raise FormatError(f"{target} exists and is not of this run; choose another folder, or pass --overwrite")


def _read_record(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FormatError(f"{path} cannot be read ({error}); remove it") from error
    return dict(content)
