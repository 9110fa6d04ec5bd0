"""Names of files in the Brain Imaging Data Structure (BIDS), such as ``sub-01_ses-02_T1w.nii.gz``.

Names are parsed exactly: ``sub-1`` is never ``sub-10``.
"""

from __future__ import annotations

import re
from pathlib import Path

from mrhdata.io.formats import FORMATS

_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
_LONG_NAMES = {"sub": "subject", "ses": "session"}

#: Suffix of a BIDS name -> modality, and kind if the file is not an image.
SUFFIXES: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("T1w", "T2w", "PDw", "T2starw", "FLAIR", "T1map", "T2map", "R2starmap", "MTRmap"), ("mri", None)),
    **dict.fromkeys(("MEGRE", "MTS", "UNIT1", "bold", "dwi", "sbref", "FA", "MD", "MK", "angio"), ("mri", None)),
    **dict.fromkeys(("QSM", "Chimap"), ("qsm", None)),
    **dict.fromkeys(("SPIM", "2PE", "CONF", "FLUO"), ("cleared", None)),
    **dict.fromkeys(("SEM", "TEM", "uCT"), ("em", None)),
    **dict.fromkeys(("BF", "DF", "PC", "DIC", "NLO", "OCT"), ("histology", None)),
    "dseg": ("labels", "labels"),
    "mask": ("labels", "mask"),
    "probseg": ("labels", None),
}


def parse(name: str) -> dict[str, str]:
    """Return the entities and the suffix of a BIDS name, or an empty dict for any other name.

    Examples
    --------
    >>> parse("sub-01_ses-2_acq-gre_T2starw.nii.gz")
    {'subject': '01', 'session': '2', 'acq': 'gre', 'suffix': 'T2starw'}
    >>> parse("brain.nii.gz")
    {}
    """
    *parts, suffix = name.partition(".")[0].split("_")
    matches = [_ENTITY.fullmatch(part) for part in parts]
    if not matches or None in matches or not suffix.isalnum() or not parts[0].startswith("sub-"):
        return {}
    return {_LONG_NAMES.get(m[1], m[1]): m[2] for m in matches if m is not None} | {"suffix": suffix}


def parse_loosely(name: str) -> dict[str, str]:
    """Return the entities of a name that follows BIDS only in part, such as those of minc_keras.

    Examples
    --------
    >>> parse_loosely("sub-01_task-01_ses-01_T1w_anat_rsl.mnc")
    {'subject': '01', 'task': '01', 'session': '01'}
    """
    matches = [_ENTITY.fullmatch(part) for part in name.partition(".")[0].split("_")]
    return {_LONG_NAMES.get(m[1], m[1]): m[2] for m in matches if m is not None}


def stem(path: Path) -> str:
    """Return a file name without the ending of its format.

    Examples
    --------
    >>> stem(Path("sub-01_T1w.nii.gz"))
    'sub-01_T1w'
    """
    lower = path.name.lower()
    ending = next((e for e in FORMATS if lower.endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def find_images(root: Path) -> dict[str, Path]:
    """Return the images of a BIDS data set by the names that labels of them have in a derivative.

    Parameters
    ----------
    root : path
        Folder of a data set. A folder without folders such as ``sub-01`` has no images.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "sub-01" / "anat").mkdir(parents=True)
    >>> (root / "sub-01" / "anat" / "sub-01_acq-gre_T1w.nii.gz").touch()
    >>> [(name, path.name) for name, path in find_images(root).items()]
    [('sub-01_acq-gre_desc-T1w_dseg', 'sub-01_acq-gre_T1w.nii.gz')]
    """
    images = {}
    for path in sorted(root.glob("sub-*/**/*")):
        suffix = parse(path.name).get("suffix", "")
        is_image = suffix in SUFFIXES and SUFFIXES[suffix][1] is None and suffix != "probseg"
        if is_image and path.name.lower().endswith(tuple(FORMATS)):
            images[f"{stem(path).removesuffix(suffix)}desc-{suffix}_dseg"] = path
    return images
