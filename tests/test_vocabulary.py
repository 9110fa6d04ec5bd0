"""Names: one definition of each shared idea, and locals that say what they hold."""

from tests.vocabulary import definitions, roles

#: Largest number of locals of the package that are named by their grammatical role.
MOST_ROLES = 20


def test_each_shared_idea_is_defined_once():
    """One box, one interface of patch sets, one parser of memory sizes, one subject."""
    assert definitions("Box", "Span") == ["volume/box.py:Box"]
    assert definitions("Source", "PatchSet") == ["patching/patch_set.py:PatchSet"]
    assert definitions("in_bytes", "_bytes", "parse_memory") == ["_runtime/memory.py:parse_memory"]
    assert definitions("Subject", "Case", "Scan", "Brain") == ["datasets/subjects.py:Subject", "phantom/qsm.py:Scan"]


def test_locals_say_what_they_hold():
    """Fewer than twenty are called found, given, held, made, told, said or shown."""
    counts = roles()
    assert sum(counts.values()) < MOST_ROLES, counts.most_common(10)
