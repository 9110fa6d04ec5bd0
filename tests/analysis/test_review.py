"""Review by a person: choice of places, pictures, the page, and the effect of decisions on annotations and counts."""

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


def on_a_line(positions, **columns):
    return table([[x, 0, 0] for x in positions], **columns)


def tissue(shape=(20, 60, 70), seed=0, name="signal"):
    """Return a volume of noise at 5 x 2 x 2 um with bright balls of 16 um, and the world points of the balls."""
    rng = np.random.default_rng(seed)
    values = rng.integers(80, 120, shape).astype(np.uint16)
    centres = np.array([[0.03, 0.04, 0.05], [0.09, 0.08, 0.05], [0.1, 0.02, 0.02]])
    world = np.moveaxis(np.indices(shape), 0, -1)[..., ::-1] * SPACING[::-1]
    for centre in centres:
        values[np.linalg.norm(world - centre, axis=-1) <= 0.008] += 900
    return from_array(values, spacing=SPACING, name=name), centres


def decisions_of(rows):
    """Return a table of decisions from tuples (x, kind, decision)."""
    decisions = on_a_line([x for x, _, _ in rows], kind=[k for _, k, _ in rows], decision=[d for _, _, d in rows])
    return decisions.assign(id=[f"X{x}" for x, _, _ in rows], score=0.5, drawn="all")


def test_errors_are_shown_first():
    """False positives by score and misses alternate, then matches follow; a second detection of a cell is a double."""
    cells = on_a_line([0.1, 0.4, 2, 3, 4], score=[0.7, 0.95, 0.6, 0.9, 0.8])
    annotations = on_a_line([0, 3.1, 7, 8])
    places = examples(cells, annotations, radius_mm=0.5)
    errors = places.iloc[:5]
    assert errors["kind"].tolist() == ["double", "miss", "false positive", "miss", "false positive"]
    assert errors["score"].dropna().tolist() == [0.95, 0.8, 0.6]
    assert sorted(errors.loc[errors["kind"] == "miss", "X"]) == [7, 8]
    matches = places.iloc[5:]
    assert sorted(zip(matches["X"], matches["score"], strict=True)) == [(0, 0.7), (3.1, 0.9)]
    np.testing.assert_allclose(places["apart_mm"].iloc[[0, 2, 4]], [0.4, 0.9, 1.1])
    assert set(places["drawn"]) == {"all"}


def test_column_drawn_says_how_places_were_chosen():
    """A kind with omitted places has the way of its choice; random false positives are not the highest ones."""
    cells = on_a_line(np.arange(50), score=np.linspace(0.5, 1, 50))
    annotations = on_a_line([100, 200])
    places = examples(cells, annotations, radius_mm=0.5, count=12)
    assert places.groupby("kind")["drawn"].unique().map(list).to_dict() == {
        "false positive": ["highest"],
        "miss": ["all"],
    }
    assert places.loc[places["kind"] == "false positive", "X"].tolist() == list(range(49, 39, -1))
    random = examples(cells, annotations, radius_mm=0.5, count=12, drawn="random", seed=1)
    false_positives = random[random["kind"] == "false positive"]
    assert set(false_positives["drawn"]) == {"random"}
    assert false_positives["X"].mean() < 40
    pd.testing.assert_frame_equal(random, examples(cells, annotations, radius_mm=0.5, count=12, drawn="random", seed=1))
    assert len(examples(cells, on_a_line(np.arange(50) + 0.1), radius_mm=0.5, count=7)) == 7


def test_ids_do_not_depend_on_the_order():
    """The id of a place comes from its coordinates; two detections at the same place have different ids."""
    cells = table(np.random.default_rng(0).normal(0, 1e-3, (20, 3)), score=np.linspace(0, 1, 20))
    forward, backward = (examples(c, count=20).set_index("id")["X"] for c in (cells, cells.iloc[::-1]))
    assert forward.sort_index().equals(backward.sort_index())
    twice = examples(pd.concat([cells, cells.iloc[:1]]), count=30)
    assert twice["id"].is_unique
    assert len(twice) == 21


def test_detections_without_annotations_cover_the_range_of_scores():
    """Each tenth of the range gives as many places, lowest first, although nearly all scores are high."""
    rng = np.random.default_rng(0)
    score = np.r_[np.linspace(0.5, 0.94, 45), rng.uniform(0.96, 1, 2000), 1.0]
    places = examples(on_a_line(np.arange(len(score)), score=score), count=30)
    assert set(places["kind"]) == {"detection"}
    tenth = np.minimum((places["score"] - 0.5) / 0.05, 9).astype(int)
    assert tenth.value_counts().reindex(range(10)).tolist() == [3] * 10
    assert tenth.iloc[:10].tolist() == list(range(10))


def test_places_without_detections_scores_or_radius():
    """Empty tables give empty tables, cells without scores a random order, and annotations without radius an error."""
    assert len(examples(on_a_line([], score=[]))) == 0
    assert examples(on_a_line([]), on_a_line([1]), radius_mm=1)["kind"].tolist() == ["miss"]
    assert np.isinf(examples(on_a_line([]), on_a_line([1]), radius_mm=1)["apart_mm"]).all()
    without_scores = examples(on_a_line(np.arange(30)), on_a_line([99]), radius_mm=1, count=9)
    assert set(without_scores["drawn"]) == {"random", "all"}
    with pytest.raises(DataError, match="radius_mm is missing"):
        examples(on_a_line([1]), on_a_line([1]))
    with pytest.raises(DataError, match="'lowest'"):
        examples(on_a_line([1]), drawn="lowest")


def test_pixels_are_the_nearest_voxels():
    """Pixels have the finest spacing; a ball is as high as wide although planes are 5 um apart."""
    volume, centres = tissue()
    pictures = render_places(volume, table(centres), width_mm=0.04)
    assert pictures.planes.shape == (3, 3, 21, 21)
    z, y, x = 10, 20, 15
    low, high = pictures.grey[0]
    shades = np.clip((volume.values[z, y - 10 : y + 11, x - 10 : x + 11] - low) / (high - low), 0, 1) * 255
    np.testing.assert_array_equal(pictures.planes[0, 0], np.rint(shades))
    columns = volume.values[[8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 12], y, x]
    shades = np.clip((columns - low) / (high - low), 0, 1) * 255
    np.testing.assert_array_equal(pictures.planes[0, 1, 4:17, 10], np.rint(shades))
    for plane in pictures.planes[0] > 128:
        rows, columns = plane.any(axis=1).sum(), plane.any(axis=0).sum()
        # A plane is two and a half pixels high.
        assert abs(int(rows) - int(columns)) <= 2, (rows, columns)


def test_pixels_outside_the_volume_are_black():
    """They do not change the grey window of pixels inside; a constant place is allowed."""
    volume, _ = tissue()
    corner = render_places(volume, table([[0, 0, 0], [-1, 0, 0]]), width_mm=0.04)
    assert not corner.planes[0, 0, :10].any()
    assert not corner.planes[0, 0, :, :10].any()
    assert corner.planes[0, 0, 10:, 10:].mean() > 80
    assert not corner.planes[1].any()
    assert np.isnan(corner.grey[1]).all()
    flat = from_array(np.full((9, 9, 9), 7, np.uint8), spacing=(0.002,) * 3)
    assert not render_places(flat, table([[0.008] * 3]), width_mm=0.01).planes.any()


def test_only_chunks_of_the_pictures_are_read():
    """Rendering reads only the chunks of an 8 GB volume that the planes touch, each once."""
    chunks_read = []

    def chunk(block_info):
        chunks_read.append(block_info[None]["chunk-location"])
        return np.zeros(block_info[None]["chunk-shape"], np.uint8)

    array = da.map_blocks(chunk, chunks=((100,) * 20,) * 3, dtype=np.uint8, meta=np.empty((0,) * 3, np.uint8))
    volume = from_array(array, spacing=(0.001,) * 3, name="signal")
    chunks_read.clear()
    render_places(volume, table([[1.15, 0.75, 0.15], [1.14, 0.75, 0.14], [0.0, 1.05, 0.15]]))
    assert sorted(chunks_read) == sorted({*chunks_read})
    assert set(chunks_read) == {(1, 7, 11), (1, 10, 0)}


def test_channels_small_widths_and_empty_tables_are_refused():
    volume, centres = tissue()
    with pytest.raises(DataError, match="Select a channel"):
        render_places(volume.expand_dims(c=["a"]), table(centres))
    with pytest.raises(DataError, match="three voxels"):
        render_places(volume, table(centres), width_mm=0.003)
    with pytest.raises(DataError, match="places is empty"):
        write_review("unwritten.html", volume, examples(on_a_line([], score=[])))


def test_montage_shows_every_place(tmp_path):
    """The pictures in the PNG have bright balls."""
    volume, centres = tissue()
    montage_png(tmp_path / "m.png", volume, examples(table(centres, score=[0.9, 0.8, 0.7])), width_mm=0.04)
    image = imread(tmp_path / "m.png")
    assert image.ndim == 3
    bright = image[:, :, 0] > 0.95
    assert bright.any(axis=0).sum() > 9 * 2 * 5
    with pytest.raises(FormatError, match=r"end in \.png"):
        montage_png(tmp_path / "m.jpg", volume, examples(table(centres)))


def test_distance_below_rounding_is_one_place(tmp_path):
    """A second detection on an annotation is not 0 nm away from it."""
    volume = from_array(np.zeros((5, 5, 5), np.uint8), spacing=(0.002,) * 3)
    found, marks = table(np.array([[0, 0, 0], [0, 0, 0.0]]), score=[0.9, 0.8]), table(np.zeros((1, 3)))
    write_review(tmp_path / "r.html", volume, examples(found, marks, radius_mm=0.005))
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "nearest annotation at the same place" in text
    assert "0 nm" not in text


def test_page_is_self_contained_and_escapes_names(tmp_path):
    """No name becomes markup, nothing is fetched, pictures have texts, and 200 pictures of noise are below 10 MB."""
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
    picture = imread(io.BytesIO(base64.b64decode(alternatives[0][0])))
    np.testing.assert_array_equal(np.rint(picture * 255), render_places(volume, places.iloc[:1]).joined(0))
    with pytest.raises(FormatError, match="exists"):
        write_review(tmp_path / "r.html", volume, places, overwrite=False)


#: Script that uses the page as a person would, and leaves the results in ``data-results``.
USER_SCRIPT = """<script>(async () => {
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
choose("#show", "open");
const open = cards().length;
document.body.dataset.results = JSON.stringify([await text, lowest, open, document.querySelector("output").textContent,
  Object.keys(JSON.parse(localStorage.getItem(document.body.dataset.key))).length]);
})();</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_page_in_a_browser(tmp_path):
    """Keys decide and move, order and filter work, and the saved decisions can be read back."""
    volume, centres = tissue()
    cells = table([*centres[:2], [0.05, 0.1, 0.03]], score=[0.9, 0.8, 0.7])
    places = examples(cells, table(centres[[0, 2]]), radius_mm=0.01)
    assert places["kind"].tolist() == ["false positive", "miss", "false positive", "match"]
    write_review(tmp_path / "r.html", volume, places)
    page = (tmp_path / "r.html").read_text("utf-8").replace("</body>", USER_SCRIPT)
    (tmp_path / "used.html").write_text(page)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += f" --enable-logging=stderr --virtual-time-budget=3000 --user-data-dir={tmp_path / 'profile'} --dump-dom"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), (tmp_path / "used.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    results = json.loads(html.unescape(re.search(r'data-results="([^"]*)"', done.stdout)[1]))
    assert results[1:] == ["0.7 0.8 0.9 ", 1, "3 of 4 decided: 0 cell, 2 no cell, 1 unsure", 3]
    assert 'data-file="decisions.csv"' in done.stdout
    (tmp_path / "decisions.csv").write_text(results[0])
    decisions = read_decisions(tmp_path / "decisions.csv")
    assert decisions["decision"].tolist() == ["unsure", "no cell", "no cell"]
    columns = decisions.columns[:-1]
    pd.testing.assert_frame_equal(decisions[columns], places.iloc[:3][columns], check_dtype=False)
    after = apply_review(table(centres[[0, 2]]), decisions, 0.01)
    np.testing.assert_allclose(after[["X", "Y", "Z"]], centres[:1])


def test_invalid_decisions_are_refused(tmp_path):
    """Missing columns, unknown kinds or decisions, repeated places and invalid numbers each have a message."""
    good = decisions_of([(0, "miss", "cell"), (1, "match", "unsure")])
    wrong = {
        "must have the column decision": good.drop(columns="decision"),
        "decision of X0 must be .* got 'yes'": good.assign(decision="yes"),
        "kind of X0 must be .* got 'vessel'": good.assign(kind="vessel"),
        "X0 has two decisions": good.assign(id="X0"),
        "Y must be finite": good.assign(Y=["a", "b"]),
    }
    path = tmp_path / "v.csv"
    good.to_csv(path, index=False)
    assert read_decisions(path)["decision"].tolist() == ["cell", "unsure"]
    for message, bad in wrong.items():
        bad.to_csv(path, index=False)
        with pytest.raises(FormatError, match=message):
            read_decisions(path)


def test_annotations_of_the_next_round():
    """Cells are added, objects that are not cells removed, unsure changes nothing, and each cell is annotated once."""
    annotations = on_a_line([0, 1, 2, 3], type=[2, 2, 2, 1], who="a").assign(x=0.0, y=0.0, z=0.0)
    decisions = decisions_of(
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
    after = apply_review(annotations, decisions, radius_mm=0.1)
    assert after["X"].tolist() == [1, 2, 5.05]
    assert after["type"].tolist() == [2, 2, 2]
    assert list(after) == ["X", "Y", "Z", "type", "who"]
    # The same decisions cannot be applied twice, because one annotation is gone.
    with pytest.raises(DataError, match="1 of 3 are not among the 3"):
        apply_review(after, decisions, radius_mm=0.1)
    again = apply_review(after, decisions[decisions["kind"] == "false positive"], radius_mm=0.1)
    pd.testing.assert_frame_equal(again, after)
    first = apply_review(None, decisions_of([(4, "detection", "cell"), (5, "detection", "no cell")]), radius_mm=0.1)
    assert first["X"].tolist() == [4]
    assert len(apply_review(None, decisions_of([(5, "detection", "no cell")]), radius_mm=0.1)) == 0


def test_adjusted_count_subtracts_only_cells():
    """Nothing is extrapolated; if some were not reviewed, the share has an interval and the text its meaning."""
    rows = [(x, "false positive", "cell") for x in range(6)] + [(x, "false positive", "no cell") for x in range(6, 9)]
    rows += [(10, "double", "cell"), (11, "false positive", "unsure"), (12, "miss", "no cell"), (13, "match", "cell")]
    decisions = decisions_of(rows)
    detections = detection(on_a_line([50]), on_a_line(np.arange(100, 130)), radius_mm=1)
    count = adjusted_count(detections, decisions.assign(drawn="highest"))
    assert (count.false_positives, count.judged, count.cells, count.unsure, count.remaining) == (30, 10, 6, 1, 24)
    # Wilson 1927, by hand: (p + z2 / 2n -+ z sqrt(p q / n + z2 / 4n2)) / (1 + z2 / n) of 6 in 10.
    assert count.share.low == pytest.approx(0.3127, abs=1e-4)
    assert count.share.high == pytest.approx(0.8318, abs=1e-4)
    assert "20 others count as false" in str(count)
    assert "does not apply to the others" in str(count)
    assert "estimates that of all" in str(adjusted_count(30, decisions.assign(drawn="random")))
    assert "may not apply" in str(adjusted_count(30, decisions))
    whole = adjusted_count(10, decisions[decisions["decision"] != "unsure"])
    assert str(whole) == "4 of 10 false positives remain: 6 of 10 reviewed were cells"
    assert (whole.share.low, whole.share.high) == (0.6, 0.6)
    none = adjusted_count(3, decisions[decisions["kind"] == "miss"])
    assert (none.remaining, none.share) == (3, None)
    assert str(none).startswith("3 of 3 false positives remain")
    with pytest.raises(DataError, match="these 5 false positives; got 11"):
        adjusted_count(5, decisions)
