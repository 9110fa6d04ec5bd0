"""Headers read in a child process: answers, messages, crashes and time limits."""

import numpy as np
import pytest

import mrhdata
from mrhdata.datasets import build, isolated
from mrhdata.datasets.isolated import HeaderReader
from mrhdata.errors import FormatError
from mrhdata.volume.construct import from_array

#: A child that is killed by every file named bad, as a C++ library would be.
FRAGILE = """
import os
from mrhdata.datasets import isolated
describe = isolated.describe
isolated.describe = lambda path, options: os.kill(os.getpid(), 9) if "bad" in path.name else describe(path, options)
isolated.serve()
"""


@pytest.mark.full
def test_file_that_ends_its_reader_is_left_out_by_name(tmp_path, monkeypatch, caplog):
    """The files before and after it are entries of the catalogue, and messages of their readers are passed on."""
    monkeypatch.setattr(isolated, "_CHILD", FRAGILE)
    values = np.zeros((2, 3, 4), np.float32)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "sub-01_T1w.nii")
    for name in ("sub-02_bad.nii", "sub-03_T1w.nii"):
        (tmp_path / name).write_bytes((tmp_path / "sub-01_T1w.nii").read_bytes())
    header = "NDims = 3\nDimSize = 4 3 2\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    (tmp_path / "sub-04_T2w.mha").write_bytes(header.encode() + values.tobytes())
    (tmp_path / "sub-05_T1w.nii").write_bytes(b"no image")
    entries = mrhdata.open_catalog(build.build(tmp_path))
    assert sorted(entries) == ["sub_01_T1w", "sub_03_T1w", "sub_04_T2w"]
    assert "sub-02_bad.nii cannot be read: reading its header ends the process with code -9" in caplog.text
    assert "sub-05_T1w.nii cannot be read" in caplog.text
    assert "sub-04_T2w.mha: the file states no voxel size" in caplog.text


@pytest.mark.parametrize(
    ("code", "reason"), [("import time; time.sleep(60)", "takes longer than 0.5 s"), ("raise SystemExit(3)", "code 3")]
)
def test_reader_that_does_not_answer_is_ended(tmp_path, monkeypatch, code, reason):
    """A child that hangs is ended after the time limit, and the message about one that fails has its code."""
    monkeypatch.setattr(isolated, "_CHILD", code)
    with (
        HeaderReader(0.5 if "sleep" in code else 60) as reader,
        pytest.raises(FormatError, match=rf"a\.nii .*{reason}"),
    ):
        reader.describe(tmp_path / "a.nii", {})


def test_requests_and_answers_are_plain(tmp_path, monkeypatch):
    """Options of NumPy are passed on, and unknown options raise TypeError as they do without a child."""
    code = "import sys, json; r = json.loads(sys.stdin.readline()); print(json.dumps({'messages': [], 'metadata': r}))"
    monkeypatch.setattr(isolated, "_CHILD", code)
    with HeaderReader() as reader:
        answer = reader.describe(
            tmp_path / "a.nii", {"spacing": np.array([1, 2, 3]), "axes": "RAS", "level": np.int64(1)}
        )
    assert answer["options"] == {"spacing": [1, 2, 3], "axes": "RAS", "level": 1}
    monkeypatch.setattr(isolated, "_CHILD", code.replace("'metadata': r", "'error': ['TypeError', 'no option']"))
    with HeaderReader() as reader, pytest.raises(TypeError, match="no option"):
        reader.describe(tmp_path / "a.nii", {"unknown": 1})
