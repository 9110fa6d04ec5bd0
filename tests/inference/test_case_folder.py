"""A folder with an output for each case: file names, formats, and cases that a second run repeats."""

import pytest

from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.inference.case_folder import process_cases


@pytest.fixture
def cases(tmp_path):
    """Two cases in two formats, of which the second cannot be written."""
    for name in ("a_0000.mnc", "b_0000.mgz"):
        (tmp_path / name).write_text(name)
    return {"a": {"t1w": str(tmp_path / "a_0000.mnc")}, "b": {"t1w": str(tmp_path / "b_0000.mgz")}}


@pytest.fixture
def run(cases, tmp_path):
    """Run the cases; returns the names of those that were processed."""

    def run(settings="net", overwrite=False, fail=None):
        names = []

        def process(case, files, target):
            if case == fail:
                raise GridError("grids differ")
            target.write_text(files["t1w"])
            names.append(case)

        outputs = process_cases(cases, tmp_path / "out", process, settings=settings, overwrite=overwrite)
        assert [path.name for path in outputs.values()] == ["a.mnc", "b.nii.gz"]
        return names

    return run


def test_second_run_processes_only_cases_whose_input_changed(run, cases, tmp_path):
    assert run() == ["a", "b"]
    assert run() == []
    (tmp_path / "out" / "a.mnc").unlink()
    assert run() == ["a"]
    assert run(overwrite=True) == ["a", "b"]
    (tmp_path / "b_0000.mgz").write_text("another image")
    with pytest.raises(FormatError, match=r"b.nii.gz exists and is not of this run; choose another folder"):
        run()
    assert run(overwrite=True) == ["a", "b"]


def test_outputs_of_other_settings_are_refused_before_anything_is_processed(run, tmp_path):
    assert run() == ["a", "b"]
    (tmp_path / "out" / "a.mnc").unlink()
    with pytest.raises(FormatError, match="not of this run"):
        run(settings="another net")
    assert not (tmp_path / "out" / "a.mnc").exists()


def test_a_case_with_an_error_does_not_keep_the_others_from_being_processed(run):
    """A second run processes only that one."""
    with pytest.raises(GridError, match=r"^1 of 2 cases have an error, and the others are written. case a: grids diff"):
        run(fail="a")
    assert run() == ["a"]


def test_a_message_names_five_cases_with_an_error(tmp_path):
    def process(case, files, target):
        raise DataError("no brain")

    files = {str(n): {"t1w": str(tmp_path / f"{n}.nii")} for n in range(7)}
    for channels in files.values():
        open(channels["t1w"], "w").close()
    with pytest.raises(DataError, match=r"^7 of 7 cases .* case 4: no brain; and 2 more$"):
        process_cases(files, tmp_path / "out", process, settings="net")
    with pytest.raises(DataError, match=r"^case 0: no brain$"):
        process_cases({"0": files["0"]}, tmp_path / "out", process, settings="net")


def test_inputs_are_never_outputs(cases, tmp_path):
    (tmp_path / "a.mnc").write_text("a")
    cases["a"] = {"t1w": str(tmp_path / "a.mnc")}
    with pytest.raises(DataError, match=r"a.mnc is an input; choose another folder"):
        process_cases(cases, tmp_path, lambda *_: None, settings="net", overwrite=True)


def test_damaged_record_is_named(cases, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cases.json").write_text("{")
    with pytest.raises(FormatError, match=r"cases.json cannot be read .*; remove it"):
        run()
