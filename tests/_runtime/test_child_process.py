"""Files read in a child process: answers, messages, crashes and time limits."""

import os

import numpy as np
import pytest

import mrhdata
from mrhdata._runtime import child_process
from mrhdata._runtime.child_process import ChildReader
from mrhdata.datasets import build
from mrhdata.errors import FormatError, ParameterError
from mrhdata.io import inspection
from mrhdata.volume.construct import from_array
from tests.conftest import command

#: A child that is killed by every file named bad, as a C++ library would be, and that hangs at those named slow.
FRAGILE = """
import os, time
from mrhdata._runtime.child_process import serve
from mrhdata.io import nifti
read = nifti.read
def fragile(path, **options):
    if "slow" in path.name:
        time.sleep(60)
    return os.kill(os.getpid(), 11) if "bad" in path.name else read(path, **options)
nifti.read = fragile
serve()
"""


@pytest.fixture
def nifti_files(tmp_path, monkeypatch):
    """Return a folder with a good file, and equal ones whose names end or stop the child that reads them."""
    monkeypatch.setattr(child_process, "_CHILD", FRAGILE)
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "good.nii")
    for name in ("bad.nii", "slow.nii"):
        (tmp_path / name).write_bytes((tmp_path / "good.nii").read_bytes())
    return tmp_path


@pytest.mark.full
def test_file_that_ends_its_reader_is_left_out_of_a_catalogue(nifti_files, caplog):
    """The files before and after it are entries of the catalogue, and messages of their readers are passed on."""
    for old, new in (("good", "sub-01_T1w"), ("bad", "sub-02_bad"), ("slow", "sub-03_T1w")):
        (nifti_files / f"{old}.nii").rename(nifti_files / f"{new}.nii")
    header = "NDims = 3\nDimSize = 4 3 2\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    (nifti_files / "sub-04_T2w.mha").write_bytes(header.encode() + bytes(96))
    (nifti_files / "sub-05_T1w.nii").write_bytes(b"no image")
    entries = mrhdata.open_catalog(build.build(nifti_files))
    assert sorted(entries) == ["sub_01_T1w", "sub_03_T1w", "sub_04_T2w"]
    assert "sub-02_bad.nii cannot be read: reading its header ends the process with code -11" in caplog.text
    assert "sub-05_T1w.nii cannot be read" in caplog.text
    assert "sub-04_T2w.mha: the file states no voxel size" in caplog.text


def test_safe_read_of_a_file_that_ends_the_process_is_an_error(nifti_files, monkeypatch):
    """A good file is read as without `safe`; one that hangs is an error after the time limit."""
    np.testing.assert_array_equal(
        mrhdata.read(nifti_files / "good.nii", safe=True), mrhdata.read(nifti_files / "good.nii")
    )
    with pytest.raises(FormatError, match=r"bad\.nii cannot be read: reading its header ends the process with code"):
        mrhdata.read(nifti_files / "bad.nii", safe=True)
    with pytest.raises(TypeError, match="no options"):
        mrhdata.read(nifti_files / "good.nii", safe=True, unknown=1)
    monkeypatch.setattr(child_process, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(child_process, "SECONDS", 0.5)
    with pytest.raises(FormatError, match=r"slow\.nii cannot be read: reading its header takes longer than 0\.5 s"):
        mrhdata.read(nifti_files / "slow.nii", safe=True)


@pytest.mark.full
def test_safe_info_answers_the_same_and_exits_with_2_after_a_crash(nifti_files, monkeypatch):
    """The sentence names the file as it was passed."""
    monkeypatch.chdir(nifti_files)
    plain = inspection.inspect("good.nii")
    assert inspection.inspect("good.nii", safe=True) == plain
    code, _, error = command("info", "bad.nii", "--safe")
    assert code == 2
    assert error.strip() == (
        "mrhdata: bad.nii cannot be read: reading it ends the process with code -11. Remove or repair the file"
    )


def test_error_of_a_safe_reader_has_its_own_class(tmp_path):
    """Wrong options raise the same exception as without a child."""
    mrhdata.write(from_array(np.zeros((2, 3, 4)), spacing=(1, 1, 1)), tmp_path / "a.nii")
    for safe in (False, True):
        with pytest.raises(ParameterError, match="time must be 0 to 0"):
            inspection.inspect(tmp_path / "a.nii", safe=safe, time=3)


@pytest.mark.parametrize(
    ("code", "reason"), [("import time; time.sleep(60)", "takes longer than 0.5 s"), ("raise SystemExit(3)", "code 3")]
)
def test_reader_that_does_not_answer_is_ended(tmp_path, monkeypatch, code, reason):
    """A child that hangs is ended after the time limit, and the message about one that fails has its code."""
    monkeypatch.setattr(child_process, "_CHILD", code)
    with (
        ChildReader("a:b", seconds=0.5 if "sleep" in code else 60) as reader,
        pytest.raises(FormatError, match=rf"a\.nii .*{reason}"),
    ):
        reader.read(tmp_path / "a.nii", {})


def test_requests_and_answers_are_plain(tmp_path, monkeypatch):
    """Options of NumPy are passed on, and unknown options raise TypeError as they do without a child."""
    code = "import sys, json; r = json.loads(sys.stdin.readline()); print(json.dumps({'messages': [], 'result': r}))"
    monkeypatch.setattr(child_process, "_CHILD", code)
    options = {"spacing": np.array([1, 2, 3]), "axes": "RAS", "level": np.int64(1)}
    with ChildReader("a:b") as reader:
        answer = reader.read(tmp_path / "a.nii", options)
    assert answer == {
        "function": "a:b",
        "path": os.path.abspath(tmp_path / "a.nii"),
        "options": {"spacing": [1, 2, 3], "axes": "RAS", "level": 1},
    }
    monkeypatch.setattr(child_process, "_CHILD", code.replace("'result': r", "'error': ['TypeError', 'no option']"))
    with ChildReader("a:b") as reader, pytest.raises(TypeError, match="no option"):
        reader.read(tmp_path / "a.nii", {"unknown": 1})
