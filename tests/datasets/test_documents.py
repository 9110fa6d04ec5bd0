"""Texts of catalogues are parsed within bounds."""

import time

import pytest

from mrhdata.datasets.documents import parse, read_text
from mrhdata.errors import CatalogError

UNITS = ["[", "{", "- ", "? ", "{a: ", "a: [", "<<: {", '"', "'", "|\n", "&a ", "!a ", "*a", ": ", "[],", "1:", "1"]


@pytest.mark.parametrize("unit", UNITS)
def test_repeated_characters_take_linear_time(unit):
    """A few hundred kilobytes of one pattern are refused at once; the scanner's work grew with the square."""
    start = time.process_time()
    with pytest.raises(CatalogError):
        parse(unit * (300_000 // len(unit)), "c.yaml")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "1" * 5000, "too many digits"),
        ("a: " + ":".join(["1"] * 5000), "too many digits"),
        ("a: " + ":".join(["1"] * 5000) + ".5", "too many digits"),
        ("a: &b 1\nc: *b", "aliases"),
        ("a: 1\na: 2", "a is there twice"),
        ("a: {b: 1, b: 2}", "b is there twice"),
        ("a: !!set {x}", "tag"),
        ("a: !!binary aaaa", "tag"),
        ("a: !!python/tuple [1]", "tag"),
        ("a: !!timestamp x", "plain YAML"),
        ("a: !!int _", "plain YAML"),
        ("a: !!bool x", "plain YAML"),
        ("a: 2001-99-99", "plain YAML"),
        ("? [a]\n: 1", "plain YAML"),
        ("a: " + "[" * 60 + "]" * 60, "nests more than"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: 1\n---\na: 2", "plain YAML"),
    ],
)
def test_yaml_beyond_plain_values_is_refused(text, message):
    """Errors of PyYAML and of its constructors are one sentence that names the file."""
    with pytest.raises(CatalogError, match=message) as caught:
        parse(text, "c.yaml")
    assert "c.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_values_keep_their_types():
    """Quoted text stays text."""
    assert parse("a: {b: [1, 1.5, true, null, '01', x]}", "c.yaml") == {"a": {"b": [1, 1.5, True, None, "01", "x"]}}


def test_large_files_folders_and_binary_files_are_refused(tmp_path):
    """Nothing beyond the limit is read."""
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    with pytest.raises(CatalogError, match="not UTF-8"):
        read_text(str(tmp_path / "c.yaml"), {})
    with pytest.raises(CatalogError, match="cannot be read"):
        read_text(str(tmp_path), {})
    with pytest.raises(CatalogError, match=r"larger than 0\.001 MB"):
        read_text("/dev/zero", {}, 1000)
