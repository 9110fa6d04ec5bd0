"""A folder of another run says what differs, and is removed on request only."""

from dataclasses import dataclass, field

import pytest

from mrhdata.errors import DataError
from mrhdata.recipes.run_plan import claim


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    loss: str = "dice, soft"


@dataclass(frozen=True)
class Recipe:
    epochs: int = 4
    shape: tuple = (1, 2)
    training: Inner = field(default_factory=Inner)


PLAN = {"seed": 0, "recipe": repr(Recipe()), "subjects": [f"sub-{i:02d}" for i in range(20)]}


@pytest.fixture
def path(tmp_path):
    """The plan of a run, in a folder with a checkpoint."""
    claim(tmp_path / "net" / "plan.json", PLAN)
    (tmp_path / "net" / "run.pt").write_text("state")
    return tmp_path / "net" / "plan.json"


def test_the_same_plan_continues(path):
    claim(path, dict(PLAN))
    assert (path.parent / "run.pt").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": repr(Recipe(epochs=2))}, "epochs was 4, now 2. Pass another folder"),
        ({"recipe": repr(Recipe(shape=(1, 3)))}, r"shape was \(1, 2\), now \(1, 3\)\. "),
        (
            {"recipe": repr(Recipe(training=Inner(0.2, "dice, hard"))), "seed": 1},
            "seed was 0, now 1; rate was 0.1, now 0.2; loss was 'dice, soft', now 'dice, hard'. ",
        ),
        ({"subjects": ["sub-00"]}, "another run: subjects differ. "),
        ({"mask": "*brain*"}, 'mask was null, now "*brain*". '),
        (dict.fromkeys("abcdef", 1), "; d was null, now 1 and 2 more. "),
    ],
)
def test_another_plan_names_what_differs(path, change, words):
    """Settings by name with both values, long entries by name only."""
    with pytest.raises(DataError, match="holds another run") as error:
        claim(path, PLAN | change)
    assert words.replace("\\", "") in str(error.value)
    assert (path.parent / "run.pt").exists()


def test_a_damaged_plan_is_named(path):
    path.write_text("{")
    with pytest.raises(DataError, match=r"another run: plan\.json is damaged\. Pass another folder, or --overwrite"):
        claim(path, PLAN)


def test_another_run_is_removed_on_request_only(path):
    """The same run is not removed, even then."""
    claim(path, PLAN, overwrite=True)
    assert (path.parent / "run.pt").exists()
    claim(path, PLAN | {"seed": 1}, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]
    with pytest.raises(DataError, match="seed was 1, now 0"):
        claim(path, PLAN)
