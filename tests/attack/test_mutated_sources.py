"""Thousands of mutated sources: each is read, or refused in one sentence that names it and a remedy."""

import pytest

from tests.attack.attack import attack, faults
from tests.attack.sources import SOURCES
from tests.conftest import FULL

#: Mutated copies of each source, more than 3000 in all in the long form.
LONG = 130
COPIES = LONG if FULL else 3
#: Sources of the short form, because each needs a process of its own.
SHORT = ("a.nii.gz", "a.zarr", "catalogue")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.full) for n in SOURCES])
def test_mutated_sources_are_read_or_refused(name, tmp_path):
    """No crash, hang, foreign traceback or bomb; nothing wrong in silence that a checksum or a count tells."""
    outcomes = attack(name, tmp_path, COPIES)
    assert len(outcomes) == COPIES
    assert faults(name, tmp_path, outcomes) == []


def test_the_long_form_has_three_thousand_copies():
    assert len(SOURCES) * LONG >= 3000
