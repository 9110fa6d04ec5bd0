"""Notebook HTML: correct values, escaped, without scripts, and cheap to make."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata._runtime import html
from mrhdata.datasets import catalog
from mrhdata.patching import summary
from mrhdata.patching.readers import VolumeReader
from mrhdata.volume.construct import from_array

EVIL = "<script>alert('x')</script>\"&"
VOID = {"img", "image", "br", "rect", "line", "circle", "meta"}


class Checker(HTMLParser):
    """Record open tags, all tags, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def parse_checked(html):
    """Return text and tags of HTML; check that it is well-formed, has no script and inherits all colours."""
    parser = Checker()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.seen
    assert set(re.findall(r"(?<![\w-])(?:color|background)\s*:\s*([^;\"]+)", html)) <= {"inherit", "transparent"}
    return " ".join(" ".join(parser.text).split()), parser.seen


@pytest.fixture
def volume():
    values = np.random.default_rng(0).integers(0, 999, (12, 20, 16)).astype(np.uint16)
    return from_array(values, spacing=(0.2, 0.1, 0.05), name=EVIL, space="CCFv3")


def test_geometry_panel_states_the_grid_and_escapes_the_name(volume, oblique):
    """Shape, spacing, extent, space and affine are those of the volume."""
    text, tags = parse_checked(volume.mrh._repr_html_())
    for expected in (EVIL, "z 12, y 20, x 16", "200 um", "2.4 mm", "CCFv3", "none known", "uint16", "z 200 um"):
        assert expected in text
    assert tags.count("line") == 12
    text, _ = parse_checked(oblique.mrh._repr_html_())
    assert oblique.mrh.grid.orientation in text
    assert f"{oblique.mrh.grid.affine[0, 3]:.4g}" in text
    text, _ = parse_checked((volume * 1).drop_attrs().mrh._repr_html_())
    assert "has no affine" in text


def test_patches_panel_draws_each_patch_that_crosses_the_plane(volume):
    """It also states counts and shapes."""
    patches = mrhdata.patches(volume, volume, shape=(4, 8, 8), stride=(4, 8, 8))
    html = patches._repr_html_()
    text, tags = parse_checked(html)
    crossing = (patches.positions[:, 0] <= 6) & (patches.positions[:, 0] + 4 > 6)
    assert f"{len(patches)} patches of 4 x 8 x 8" in text
    assert f"{crossing.sum()} of the {crossing.sum()} patches that cross z = " in text
    assert tags.count("rect") == crossing.sum() == 6
    assert "(1, 4, 8, 8)" in text
    # 20 rows of 0.1 mm are 260 pixels; the lowest patches touch the bottom and are 8 rows high.
    boxes = [
        tuple(map(float, b))
        for b in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)', html)
    ]
    assert max(y + tall for _, y, tall in boxes) == pytest.approx(260, abs=0.2)
    assert {tall for *_, tall in boxes} == {104.0}


def test_patches_panel_shows_only_boxes_if_the_plane_needs_too_many_bytes(volume, tmp_path, monkeypatch):
    """Nothing is read then."""
    mrhdata.write(volume, tmp_path / "a.zarr")
    patches = mrhdata.patches(mrhdata.read(tmp_path / "a.zarr"), shape=4, memory="1 MB")
    assert "image" in parse_checked(patches._repr_html_())[1]
    monkeypatch.setattr(summary, "_MAX_SHOWN_BYTES", 100)
    monkeypatch.setattr(VolumeReader, "into", None)
    patches = mrhdata.patches(mrhdata.read(tmp_path / "a.zarr"), shape=4, memory="1 MB")
    _, tags = parse_checked(patches._repr_html_())
    assert "image" not in tags
    assert "rect" in tags


def test_catalogue_panel_has_a_row_for_each_entry(volume, tmp_path, monkeypatch):
    """Local volumes have a picture; missing, remote and too large ones have a message."""
    mrhdata.write(volume.rename("a"), tmp_path / "a.zarr")
    mrhdata.write(volume.rename("b"), tmp_path / "b.nii")
    metadata = {"subject": EVIL, "role": "t2w"}
    entries = {"a": ("a.zarr", metadata), "b": ("b.nii", metadata), "gone": ("gone.nii", metadata)}
    catalog.write(tmp_path / "c.yaml", "Two", entries | {"far": ("https://example.org/a.zarr", metadata)})
    text, tags = parse_checked(mrhdata.open_catalog(tmp_path / "c.yaml")._repr_html_())
    assert tags.count("image") == 2
    assert tags.count("tr") == 5
    for expected in (EVIL, "4 volumes", "12 x 20 x 16 of 200 um x 100 um x 50 um", "gone.nii does not exist", "remote"):
        assert expected in text
    monkeypatch.setattr(catalog, "_MAX_DECODED_BYTES", volume.nbytes)
    text, tags = parse_checked(mrhdata.open_catalog(tmp_path / "c.yaml")._repr_html_())
    assert tags.count("image") == 1
    assert "too large for a picture" in text
    monkeypatch.setattr(catalog, "_MAX_ROWS", 1)
    text, tags = parse_checked(mrhdata.open_catalog(tmp_path / "c.yaml")._repr_html_())
    assert tags.count("tr") == 2
    assert "the first 1" in text


def test_thumbnail_is_read_from_the_coarsest_level(tmp_path):
    """Only the bytes of the last pyramid level are decoded."""
    values = np.random.default_rng(0).random((8, 300, 200)).astype(np.float32)
    mrhdata.write(from_array(values, spacing=(1, 1, 1)), tmp_path / "a.zarr")
    coarsest = mrhdata.read(tmp_path / "a.zarr", level=-1)
    assert max(coarsest.shape) < 100
    source = catalog.VolumeSource(str(tmp_path / "a.zarr"))
    _, size, decoded_bytes = catalog._thumbnail(source, 10**9)
    assert decoded_bytes == coarsest.nbytes
    assert size.startswith("8 x 300 x 200 of 1 mm")


def test_sensitivity_panel_draws_estimates_and_intervals():
    """The table has the same numbers, and the dots of the bars are at the estimates."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(40), 10)
    table = pd.DataFrame({EVIL: truth + rng.normal(0, 0.3, 400), "poor": rng.random(400)})
    blocks = np.arange(400) // 10
    result = mrhdata.sensitivity(table, truth, threshold=0.4, positive_side="above", blocks=blocks, fits=[])
    html = result._repr_html_()
    text, tags = parse_checked(html)
    assert EVIL in text
    for auc, low, high in result.table[["auc", "auc_low", "auc_high"]].to_numpy():
        assert f"{auc:.3f} [{low:.3f}, {high:.3f}]" in text
    assert tags.count("circle") == 2
    lowest = min(0.5, result.table["auc_low"].min())
    dots = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', html)]
    np.testing.assert_allclose(dots, 4 + 112 * (result.table["auc"] - lowest) / (1 - lowest), atol=0.1)


def test_picture_has_its_first_row_at_the_bottom():
    """Planes of NaN and constant planes work too."""
    import base64

    import imagecodecs

    plane = np.zeros((4, 6))
    plane[0, 5] = 1
    svg = html.picture(plane, plane.shape, (2, 1), "a corner")
    (encoded,) = re.findall(r"base64,([^\"]+)", svg)
    pixels = imagecodecs.png_decode(base64.b64decode(encoded))
    assert pixels[3, 5] == 255 == pixels.max()
    assert (pixels == 255).sum() == 1
    assert 'width="195.0" height="260.0"' in svg
    for odd in (np.full((3, 3), np.nan), np.ones((3, 3), bool)):
        parse_checked(html.picture(odd, odd.shape, (1, 1), "odd"))


def test_geometry_in_a_terminal():
    """The repr states the same facts, one per line."""
    volume = from_array(np.zeros((2, 3, 4), np.uint8), spacing=(0.5, 1, 1), name="t2w")
    text = repr(volume.mrh)
    assert text.splitlines()[0] == "t2w: geometry"
    assert "z 500 um" in text
    assert "orientation  none known" in text
    assert "no valid geometry" in repr((volume.assign_attrs(affine=None)).mrh)
