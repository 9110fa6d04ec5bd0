"""Review by a person: which places are shown, pictures that are true, and verdicts that change what they should."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from mrhdata.analysis.review import adjusted_count, apply_review, examples, read_decisions
from mrhdata.errors import DataError, FormatError
from mrhdata.metrics.detection import detection
from mrhdata.viz.review_page import montage_png, render_places, write_review
from mrhdata.volume.construct import from_array

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SPACING = (0.005, 0.002, 0.002)


def table(places, **columns):
    return pd.DataFrame(np.array(places, float).reshape(-1, 3), columns=["X", "Y", "Z"]).assign(**columns)


def on_a_line(at, **columns):
    return table([[x, 0, 0] for x in at], **columns)


def tissue(shape=(20, 60, 70), seed=0, name="signal"):
    """Noise at 5 x 2 x 2 um, and bright balls of 16 um at these world points."""
    rng = np.random.default_rng(seed)
    values = rng.integers(80, 120, shape).astype(np.uint16)
    centres = np.array([[0.03, 0.04, 0.05], [0.09, 0.08, 0.05], [0.1, 0.02, 0.02]])
    world = np.moveaxis(np.indices(shape), 0, -1)[..., ::-1] * SPACING[::-1]
    for centre in centres:
        values[np.linalg.norm(world - centre, axis=-1) <= 0.008] += 900
    return from_array(values, spacing=SPACING, name=name), centres


def verdicts(rows):
    """Of (x, kind, verdict)."""
    found = on_a_line([x for x, _, _ in rows], kind=[k for _, k, _ in rows], verdict=[v for _, _, v in rows])
    return found.assign(id=[f"X{x}" for x, _, _ in rows], score=0.5, drawn="all")


def test_errors_are_shown_first():
    """False positives by score and misses in turn, then matches; a second detection of a cell is a double."""
    cells = on_a_line([0.1, 0.4, 2, 3, 4], score=[0.7, 0.95, 0.6, 0.9, 0.8])
    marks = on_a_line([0, 3.1, 7, 8])
    places = examples(cells, marks, radius_mm=0.5)
    errors = places.iloc[:5]
    assert errors["kind"].tolist() == ["double", "miss", "false positive", "miss", "false positive"]
    assert errors["score"].dropna().tolist() == [0.95, 0.8, 0.6]
    assert sorted(errors.loc[errors["kind"] == "miss", "X"]) == [7, 8]
    matches = places.iloc[5:]
    assert sorted(zip(matches["X"], matches["score"], strict=True)) == [(0, 0.7), (3.1, 0.9)]
    np.testing.assert_allclose(places["apart_mm"].iloc[[0, 2, 4]], [0.4, 0.9, 1.1])
    assert set(places["drawn"]) == {"all"}


def test_what_was_left_out_is_told():
    """Kinds of which only some are shown say how these were chosen, and random ones are not the highest."""
    cells = on_a_line(np.arange(50), score=np.linspace(0.5, 1, 50))
    marks = on_a_line([100, 200])
    places = examples(cells, marks, radius_mm=0.5, count=12)
    assert places.groupby("kind")["drawn"].unique().map(list).to_dict() == {
        "false positive": ["highest"],
        "miss": ["all"],
    }
    assert places.loc[places["kind"] == "false positive", "X"].tolist() == list(range(49, 39, -1))
    drawn = examples(cells, marks, radius_mm=0.5, count=12, drawn="random", seed=1)
    false = drawn[drawn["kind"] == "false positive"]
    assert set(false["drawn"]) == {"random"}
    assert false["X"].mean() < 40
    pd.testing.assert_frame_equal(drawn, examples(cells, marks, radius_mm=0.5, count=12, drawn="random", seed=1))
    assert len(examples(cells, on_a_line(np.arange(50) + 0.1), radius_mm=0.5, count=7)) == 7


def test_places_are_called_the_same_in_any_order():
    """The name of a place hangs on where it is; two detections in one place have two names."""
    cells = table(np.random.default_rng(0).normal(0, 1e-3, (20, 3)), score=np.linspace(0, 1, 20))
    one, other = (examples(c, count=20).set_index("id")["X"] for c in (cells, cells.iloc[::-1]))
    assert one.sort_index().equals(other.sort_index())
    twice = examples(pd.concat([cells, cells.iloc[:1]]), count=30)
    assert twice["id"].is_unique
    assert len(twice) == 21


def test_detections_without_marks_cover_the_scores():
    """As many of each tenth of the range as can be, the lowest first, though nearly all score high."""
    rng = np.random.default_rng(0)
    score = np.r_[np.linspace(0.5, 0.94, 45), rng.uniform(0.96, 1, 2000), 1.0]
    places = examples(on_a_line(np.arange(len(score)), score=score), count=30)
    assert set(places["kind"]) == {"detection"}
    part = np.minimum((places["score"] - 0.5) / 0.05, 9).astype(int)
    assert part.value_counts().reindex(range(10)).tolist() == [3] * 10
    assert part.iloc[:10].tolist() == list(range(10))


def test_nothing_found_and_nothing_known():
    """Empty tables give empty ones; cells without scores are shown at random; a radius is needed with marks."""
    assert len(examples(on_a_line([], score=[]))) == 0
    assert examples(on_a_line([]), on_a_line([1]), radius_mm=1)["kind"].tolist() == ["miss"]
    assert np.isinf(examples(on_a_line([]), on_a_line([1]), radius_mm=1)["apart_mm"]).all()
    blind = examples(on_a_line(np.arange(30)), on_a_line([99]), radius_mm=1, count=9)
    assert set(blind["drawn"]) == {"random", "all"}
    with pytest.raises(DataError, match="radius_mm"):
        examples(on_a_line([1]), on_a_line([1]))
    with pytest.raises(DataError, match="'lowest'"):
        examples(on_a_line([1]), drawn="lowest")


def test_pictures_are_the_voxels():
    """Pixels of the finest step are the nearest voxels; a ball is as high as wide though planes are 5 um apart."""
    volume, centres = tissue()
    made = render_places(volume, table(centres), width_mm=0.04)
    assert made.planes.shape == (3, 3, 21, 21)
    z, y, x = 10, 20, 15
    low, high = made.grey[0]
    shades = np.clip((volume.values[z, y - 10 : y + 11, x - 10 : x + 11] - low) / (high - low), 0, 1) * 255
    np.testing.assert_array_equal(made.planes[0, 0], np.rint(shades))
    columns = volume.values[[8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 12], y, x]
    shades = np.clip((columns - low) / (high - low), 0, 1) * 255
    np.testing.assert_array_equal(made.planes[0, 1, 4:17, 10], np.rint(shades))
    for plane in made.planes[0] > 128:
        rows, columns = plane.any(axis=1).sum(), plane.any(axis=0).sum()
        # A plane is two and a half pixels high.
        assert abs(int(rows) - int(columns)) <= 2, (rows, columns)


def test_beyond_the_volume_it_is_black():
    """And does not change the grey of what lies within; a flat place is no error."""
    volume, _ = tissue()
    corner = render_places(volume, table([[0, 0, 0], [-1, 0, 0]]), width_mm=0.04)
    assert not corner.planes[0, 0, :10].any()
    assert not corner.planes[0, 0, :, :10].any()
    assert corner.planes[0, 0, 10:, 10:].mean() > 80
    assert not corner.planes[1].any()
    assert np.isnan(corner.grey[1]).all()
    flat = from_array(np.full((9, 9, 9), 7, np.uint8), spacing=(0.002,) * 3)
    assert not render_places(flat, table([[0.008] * 3]), width_mm=0.01).planes.any()


def test_only_what_is_shown_is_read():
    """Of a volume of 8 GB, the chunks that the planes touch, each once."""
    read = []

    def chunk(block_info):
        where = block_info[None]["chunk-location"]
        read.append(where)
        return np.zeros(block_info[None]["chunk-shape"], np.uint8)

    array = da.map_blocks(chunk, chunks=((100,) * 20,) * 3, dtype=np.uint8, meta=np.empty((0,) * 3, np.uint8))
    volume = from_array(array, spacing=(0.001,) * 3, name="signal")
    read.clear()
    render_places(volume, table([[1.15, 0.75, 0.15], [1.14, 0.75, 0.14], [0.0, 1.05, 0.15]]))
    assert sorted(read) == sorted({*read})
    assert set(read) == {(1, 7, 11), (1, 10, 0)}


def test_wrong_volumes_and_widths():
    volume, centres = tissue()
    with pytest.raises(DataError, match="select a channel"):
        render_places(volume.expand_dims(c=["a"]), table(centres))
    with pytest.raises(DataError, match="three voxels"):
        render_places(volume, table(centres), width_mm=0.003)
    with pytest.raises(DataError, match="no place"):
        write_review("unwritten.html", volume, examples(on_a_line([], score=[])))


def test_montage_shows_every_place(tmp_path):
    """A picture whose parts are bright where the balls are."""
    volume, centres = tissue()
    montage_png(tmp_path / "m.png", volume, examples(table(centres, score=[0.9, 0.8, 0.7])), width_mm=0.04)
    image = imread(tmp_path / "m.png")
    assert image.ndim == 3
    middle = image[:, :, 0] > 0.95
    assert middle.any(axis=0).sum() > 9 * 2 * 5
    with pytest.raises(FormatError, match=r"end in \.png"):
        montage_png(tmp_path / "m.jpg", volume, examples(table(centres)))


def test_page_holds_everything_and_escapes_names(tmp_path):
    """No name becomes markup, nothing is fetched, each picture has a text, and 200 of noise are below 10 MB."""
    rng = np.random.default_rng(0)
    name = "<script>alert(1)</script>"
    volume = from_array(rng.integers(0, 60000, (99, 99, 99)).astype(np.uint16), spacing=(0.0005,) * 3, name=name)
    places = examples(table(rng.uniform(0, 0.05, (200, 3)), score=rng.random(200)), count=200)
    write_review(tmp_path / "r.html", volume, places)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert len(text) < 10e6
    assert html.escape(name) in text
    assert "<script>alert" not in text
    assert not re.findall(r"""(?:https?:)?//[a-z]|@import|url\(|src="(?!data:)""", re.sub(r"base64,[^\"]*", "", text))
    alternatives = re.findall(r'<img src="data:image/png;base64,([^"]*)"[^>]*alt="([^"]+)"', text)
    assert len({alt for _, alt in alternatives}) == 200
    shown = imread(io.BytesIO(base64.b64decode(alternatives[0][0])))
    np.testing.assert_array_equal(np.rint(shown * 255), render_places(volume, places.iloc[:1]).joined(0))
    with pytest.raises(FormatError, match="exists"):
        write_review(tmp_path / "r.html", volume, places, overwrite=False)


USED = """<script>(async () => {
const key = k => document.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
const choose = (id, value) => {
  const list = document.querySelector(id); list.value = value; list.dispatchEvent(new Event("change"));
};
const cards = () => [...document.querySelectorAll("article")].filter(card => !card.hidden);
let text; const link = URL.createObjectURL;
URL.createObjectURL = blob => { text = blob.text(); return link(blob); };
HTMLAnchorElement.prototype.click = function () { document.body.dataset.file = this.download; };
["1", "2", "3", "k", "0", "2", "k", "k", "k", "3"].forEach(key);
document.querySelector("#save").click();
choose("#order", "low");
const lowest = cards().map(card => card.dataset.score).join(" ");
choose("#show", "left");
const left = cards().length;
document.body.dataset.told = JSON.stringify([await text, lowest, left, document.querySelector("output").textContent,
  Object.keys(JSON.parse(localStorage.getItem(document.body.dataset.key))).length]);
})();</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_page_in_a_browser(tmp_path):
    """Keys judge and move, the order and the filter do what they say, and what is saved can be read back."""
    volume, centres = tissue()
    cells = table([*centres[:2], [0.05, 0.1, 0.03]], score=[0.9, 0.8, 0.7])
    places = examples(cells, table(centres[[0, 2]]), radius_mm=0.01)
    assert places["kind"].tolist() == ["false positive", "miss", "false positive", "match"]
    write_review(tmp_path / "r.html", volume, places)
    page = (tmp_path / "r.html").read_text("utf-8").replace("</body>", USED)
    (tmp_path / "used.html").write_text(page)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += f" --enable-logging=stderr --virtual-time-budget=3000 --user-data-dir={tmp_path / 'profile'} --dump-dom"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), (tmp_path / "used.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    told = json.loads(html.unescape(re.search(r'data-told="([^"]*)"', done.stdout)[1]))
    assert told[1:] == ["0.7 0.8 0.9 ", 1, "3 of 4 judged: 0 cell, 2 no cell, 1 unsure", 3]
    assert 'data-file="verdicts.csv"' in done.stdout
    (tmp_path / "verdicts.csv").write_text(told[0])
    found = read_decisions(tmp_path / "verdicts.csv")
    assert found["verdict"].tolist() == ["unsure", "no cell", "no cell"]
    pd.testing.assert_frame_equal(found.drop(columns="verdict"), places.iloc[:3][found.columns[:-1]], check_dtype=False)
    after = apply_review(table(centres[[0, 2]]), found, 0.01)
    np.testing.assert_allclose(after[["X", "Y", "Z"]], centres[:1])


def test_verdicts_are_checked(tmp_path):
    """Columns, kinds, verdicts, and places that stand there twice, each in one sentence."""
    good = verdicts([(0, "miss", "cell"), (1, "match", "unsure")])
    wrong = {
        "no column verdict": good.drop(columns="verdict"),
        "verdict of X0 is 'yes'": good.assign(verdict="yes"),
        "kind of X0 is 'vessel'": good.assign(kind="vessel"),
        "X0 was judged twice": good.assign(id="X0"),
        "no finite number": good.assign(Y=["a", "b"]),
    }
    path = tmp_path / "v.csv"
    good.to_csv(path, index=False)
    assert read_decisions(path)["verdict"].tolist() == ["cell", "unsure"]
    for message, bad in wrong.items():
        bad.to_csv(path, index=False)
        with pytest.raises(FormatError, match=message):
            read_decisions(path)


def test_marks_of_the_next_round():
    """Cells are added, what is none goes, unsure changes nothing, and no cell is marked twice."""
    marks = on_a_line([0, 1, 2, 3], type=[2, 2, 2, 1], who="a").assign(x=0.0, y=0.0, z=0.0)
    seen = verdicts(
        [
            (0, "match", "no cell"),
            (1, "miss", "cell"),
            (2, "miss", "unsure"),
            (5, "false positive", "cell"),
            (6, "false positive", "no cell"),
            (7, "false positive", "unsure"),
            (1.05, "double", "cell"),
            (5.05, "false positive", "cell"),
        ]
    ).assign(score=[0.9, np.nan, np.nan, 0.5, 0.5, 0.5, 0.5, 0.8])
    after = apply_review(marks, seen, radius_mm=0.1)
    assert after["X"].tolist() == [1, 2, 5.05]
    assert after["type"].tolist() == [2, 2, 2]
    assert list(after) == ["X", "Y", "Z", "type", "who"]
    # To make the same marks anew of what they are now is refused, since one has gone.
    with pytest.raises(DataError, match="1 of 3 marks that were judged are not among the 3"):
        apply_review(after, seen, radius_mm=0.1)
    again = apply_review(after, seen[seen["kind"] == "false positive"], radius_mm=0.1)
    pd.testing.assert_frame_equal(again, after)
    first = apply_review(None, verdicts([(4, "detection", "cell"), (5, "detection", "no cell")]), radius_mm=0.1)
    assert first["X"].tolist() == [4]
    assert len(apply_review(None, verdicts([(5, "detection", "no cell")]), radius_mm=0.1)) == 0


def test_adjusted_count_takes_away_cells_alone():
    """Nothing is extrapolated; where some were not judged the share has an interval and says whose it is."""
    rows = [(x, "false positive", "cell") for x in range(6)] + [(x, "false positive", "no cell") for x in range(6, 9)]
    rows += [(10, "double", "cell"), (11, "false positive", "unsure"), (12, "miss", "no cell"), (13, "match", "cell")]
    found = verdicts(rows)
    held = detection(on_a_line([50]), on_a_line(np.arange(100, 130)), radius_mm=1)
    made = adjusted_count(held, found.assign(drawn="highest"))
    assert (made.false_positives, made.judged, made.cells, made.unsure, made.remaining) == (30, 10, 6, 1, 24)
    # Wilson 1927, by hand: (p + z2 / 2n -+ z sqrt(p q / n + z2 / 4n2)) / (1 + z2 / n) of 6 in 10.
    assert made.share.low == pytest.approx(0.3127, abs=1e-4)
    assert made.share.high == pytest.approx(0.8318, abs=1e-4)
    assert "20 others count as false" in str(made)
    assert "not that of the others" in str(made)
    assert "one of all" in str(adjusted_count(30, found.assign(drawn="random")))
    assert "need not be" in str(adjusted_count(30, found))
    whole = adjusted_count(10, found[found["verdict"] != "unsure"])
    assert str(whole) == "4 of 10 false positives remain: 6 of 10 judged were cells"
    assert (whole.share.low, whole.share.high) == (0.6, 0.6)
    none = adjusted_count(3, found[found["kind"] == "miss"])
    assert (none.remaining, none.share) == (3, None)
    assert str(none).startswith("3 of 3 false positives remain")
    with pytest.raises(DataError, match="11 false positives were judged and there are 5"):
        adjusted_count(5, found)
