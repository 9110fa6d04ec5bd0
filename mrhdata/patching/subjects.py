"""Names of subjects, read from the paths of their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


#: Who was scanned, in a path such as BIDS has them.
_SUBJECT = re.compile(r"(?:^|[/\\])(sub-[A-Za-z0-9]+)")


def subject_name(sources: Iterable[str]) -> str | None:
    """Whose volumes these are, by the names of their files and folders; None where those do not say, or disagree."""
    found = {named[-1] for source in sources if (named := _SUBJECT.findall(source))}
    return found.pop() if len(found) == 1 else None
