"""Memory budgets next to a source whose smallest part is large."""

import re

import pytest

from mrhdata._runtime.memory import reading_threads, remaining_memory
from mrhdata.errors import ParameterError


def test_budget_named_by_the_error_is_enough():
    """One byte per million less is refused, and the figure of the error is accepted."""
    needed, least = 400_000_000, 30_000_000
    with pytest.raises(ParameterError, match=r"of which 400 MB are needed at once; got 463 MB") as caught:
        remaining_memory(needed, 463_000_000, "a.nii.gz", least)
    figure = int(re.search(r"at least (\d+) MB", str(caught.value))[1]) * 1_000_000
    assert remaining_memory(needed, figure, "a.nii.gz", least) == figure - needed


def test_small_parts_leave_the_budget_as_it_is():
    """Parts of up to a quarter are within the share of reading; fewer threads read larger ones."""
    assert remaining_memory(25, 100, "a.nii") == 100
    assert remaining_memory(0, 0, "a.nii") == 0
    assert [reading_threads(part, 100, 8) for part in (0, 1, 6, 25, 90)] == [8, 8, 4, 1, 1]
    assert reading_threads(90, None, 8) == 8
