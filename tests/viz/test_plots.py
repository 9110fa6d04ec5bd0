"""Figures of volumes and scores: orientation, letters, legends, captions and pages."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mrhdata
from mrhdata.analysis.contrasts import row_blocks, sensitivity
from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.training.history import History
from mrhdata.viz.plots import montage, roc_curves, slices, training_curve
from mrhdata.viz.report import Section, as_markdown, contribution_section, readable, sensitivity_sections, write_page
from mrhdata.volume.construct import from_array


def landmarks(order, signs):
    """Return a brain of ones with values 2, 3, 4 at its right, anterior and superior ends, in a storage order."""
    ras = np.ones((9, 9, 9))
    ras[8, 4, 4], ras[4, 8, 4], ras[4, 4, 8] = 2, 3, 4
    values = np.transpose(ras, order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign
        if sign < 0:
            values = np.flip(values, axis)
            affine[world, 3] = 8
    return from_array(values, affine=affine)


@pytest.mark.parametrize(
    ("order", "signs"),
    [((0, 1, 2), (1, 1, 1)), ((1, 2, 0), (-1, 1, 1)), ((2, 0, 1), (-1, -1, -1)), ((1, 0, 2), (1, -1, 1))],
)
def test_slices_have_the_orientation_of_their_letters(order, signs):
    """Superior and anterior are up and right is on the right in each of the three planes."""
    axial, coronal, sagittal = (ax.images[0].get_array() for ax in slices({"v": landmarks(order, signs)}).axes)
    # The origin is at the lower left, so the last row is the top of the picture.
    assert axial[4, 8] == 2
    assert axial[8, 4] == 3
    assert coronal[4, 8] == 2
    assert coronal[8, 4] == 4
    assert sagittal[4, 8] == 3
    assert sagittal[8, 4] == 4
    letters = [t.get_text() for t in slices({"v": landmarks(order, signs)}).axes[0].texts[:4]]
    assert letters == ["A", "P", "R", "L"]


def test_anisotropic_voxels_are_drawn_in_proportion():
    """Extents are in mm, and the scale bar has a round length."""
    figure = slices({"v": from_array(np.random.default_rng(0).random((4, 10, 20)), spacing=(2.0, 0.5, 0.5))})
    assert figure.axes[1].images[0].get_extent() == [0, 10, 0, 8]
    assert figure.axes[1].texts[4].get_text().strip() == "2 mm"


def test_letters_and_scale_bars_lie_outside_of_slices():
    """They cover no voxel of tall or flat volumes."""
    for shape in ((20, 60, 12), (4, 30, 60)):
        figure = slices({"v": from_array(np.random.default_rng(0).random(shape), affine=np.eye(4))})
        figure.draw_without_rendering()
        assert len(figure.axes) == 3
        for ax in figure.axes:
            image = ax.images[0].get_window_extent().padded(-1)
            assert len(ax.texts) == 5
            assert not any(image.overlaps(mark.get_window_extent()) for mark in (*ax.texts, *ax.lines))


def draw_montage(path, monkeypatch, labels, **options):
    """Return the figure of a montage whose true and predicted labels (z, y, x) are equal."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    image = from_array(labels.astype(np.float32), spacing=(1, 1, 1))
    label_volume = mrhdata.volume.describe(from_array(labels, spacing=(1, 1, 1)), kind="labels")
    montage(image, label_volume, label_volume, path / "m.png", **options)
    return figures[0]


def test_legend_of_a_montage_has_values_names_and_colours(tmp_path, monkeypatch):
    """Colours are those of the slices, and no two are alike."""
    labels = np.zeros((3, 20, 20), np.uint8)
    for i, value in enumerate((1, 2, 19, 21, 200)):
        labels[:, 2:18, 3 * i + 2 : 3 * i + 5] = value
    figure = draw_montage(tmp_path, monkeypatch, labels, names={2: "cortex"})
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["1", "2 cortex", "19", "21", "200"]
    image = figure.axes[1].images[0]
    colours = image.to_rgba(image.get_array())[10, 3:17:3, :3]
    np.testing.assert_allclose(colours, [p.get_facecolor()[:3] for p in legend.get_patches()], atol=1e-6)
    # The distance of neighbouring colours in RGB; two blues of one hue had 0.6.
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.5
    assert len(np.unique(colours.round(3), axis=0)) == 5


def test_legend_of_many_labels_counts_the_rest(tmp_path, monkeypatch):
    """A long legend would hide the slices; a montage without labels has no legend."""
    many = np.arange(3 * 20 * 20, dtype=np.uint16).reshape(3, 20, 20) % 31
    (legend,) = draw_montage(tmp_path, monkeypatch, many).legends
    assert [t.get_text() for t in legend.get_texts()][-2:] == ["18", "and 12 more, colours repeat"]
    (tmp_path / "none").mkdir()
    assert not draw_montage(tmp_path / "none", monkeypatch, np.zeros((3, 20, 20), np.uint8)).legends


def test_channels_and_empty_mappings_are_refused():
    """Slices need at least one volume with the dims z, y, x."""
    with pytest.raises(GridError, match="Select a channel"):
        slices({"v": from_array(np.zeros((2, 3, 3, 3)), spacing=(1, 1, 1))})
    with pytest.raises(GridError, match="Pass at least one"):
        slices({})


def test_training_curve_shows_every_epoch():
    """Three lines have the numbers of the history, and a fourth marks the best epoch."""
    history = History(training=[3, 2, 1], validation=[4, 2, 3], rmse=[40, 20, 30], best_epoch=1)
    losses, errors = training_curve(history).axes
    assert [list(line.get_ydata()) for line in losses.lines[:2]] == [history.training, history.validation]
    assert list(errors.lines[0].get_ydata()) == history.rmse
    assert list(errors.lines[0].get_xdata()) == [1, 2, 3]
    assert list(losses.lines[2].get_xdata()) == [2, 2]
    for epochs in (1, 2, 3, 40):
        history = History(training=[1.0] * epochs, validation=[1.0] * epochs, rmse=[1.0] * epochs, best_epoch=0)
        for ax in training_curve(history).axes:
            ticks = [t for t in ax.get_xticks() if 0.5 <= t <= epochs + 0.5]
            assert ticks
            assert all(t == round(t) >= 1 for t in ticks)
    with pytest.raises(DataError, match="no epoch"):
        training_curve(History())


def test_history_prints_in_three_lines():
    """The text has epochs, seconds, the best epoch and its error, not every number."""
    history = History(training=[3, 2, 1], validation=[4, 2, 3], rmse=[40, 20, 30], best_epoch=1, seconds=12.34)
    assert str(history).splitlines() == [
        "3 epochs in 12.3 s",
        "best: epoch 2, on the validation part loss 2, RMSE 20",
        "last: training loss 1, validation loss 3",
    ]
    assert "mean Dice 0.5" in repr(History(training=[3], validation=[4], dice=[0.5], best_epoch=0))
    assert str(History()) == "no epoch yet"


def test_markdown_lists_the_captions_of_figures():
    """A section with figures only is not empty."""
    lines = as_markdown("T", [Section("Volumes", figures=[(Figure(), "t2w, af")]), Section("B", ["b"])]).splitlines()
    assert lines == [
        "# T", "", "## Volumes", "", "Figures in the HTML page:", "", "- t2w, af", "", "## B", "", "b"
    ]  # fmt: skip


def test_captions_explain_bars():
    """Contribution, AUC loss and partial correlation are explained at their figures."""
    tables = {"noise": {"contribution": [0.7, 0.3]}, "shuffled": {"auc_loss": [0.2, 0.1]}}
    section = contribution_section({k: pd.DataFrame({"input": ["a", "b"]} | v) for k, v in tables.items()})
    first, second = (caption for _, caption in section.figures)
    assert first.startswith("noise. The contribution of an input is")
    assert second.startswith("shuffled. The AUC loss of an input is")
    table = pd.DataFrame({"a": np.linspace(0, 1, 40), "b": np.cos(np.arange(40))})
    result = sensitivity(table, table["a"], threshold=0.5, blocks=row_blocks(40, 4), fits=[])
    *_, (_, caption) = sensitivity_sections("AF", result)[0].figures
    assert caption.startswith("Partial correlation of each contrast with the histology")


def test_page_is_self_contained(tmp_path):
    """The page is one file that fetches nothing; pictures have texts, and values are escaped."""
    table = pd.DataFrame({"<a>": np.linspace(0, 1, 40)})
    result = sensitivity(table, table["<a>"], threshold=0.5, blocks=row_blocks(40, 4), fits=[])
    write_page(
        tmp_path / "r.html",
        "Title & more",
        [Section("One", ["Text"], readable(result), [(roc_curves(result, ["<a>"]), 'curves of "<a>"')])],
    )
    html = (tmp_path / "r.html").read_text("utf-8")
    assert not re.search(r"(src|href)=.?(http|//)", html)
    assert html.count("<img") == html.count('alt="') == 1
    assert "&lt;a&gt;" in html
    assert "<a>" not in html
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert mrhdata.__version__


def test_mask_sets_the_grey_window():
    """In maps of ratios background noise has a wider range than tissue."""
    rng = np.random.default_rng(0)
    mask = from_array(np.zeros((12, 12, 12), np.uint8), spacing=(1, 1, 1), kind="mask")
    mask.values[3:9, 3:9, 3:9] = 1
    values = np.where(mask.values, rng.uniform(0.2, 0.6, mask.shape), rng.normal(0, 100, mask.shape))
    volume = mask.copy(data=values).assign_attrs(kind="image").rename("mtr")
    (low, high), (least, most) = (
        slices({"mtr": volume}, where=where).axes[0].images[0].get_clim() for where in (mask, None)
    )
    assert 0.19 < low < high < 0.61
    assert most - least > 100


@pytest.mark.parametrize("at", [(100, 0, 0), (0, -3, 0)])
def test_points_outside_of_the_volume_are_refused(at):
    volume = from_array(np.zeros((4, 5, 6)), spacing=(1, 1, 1))
    with pytest.raises(GridError, match="at must lie in the first volume, which extends from"):
        slices({"a": volume}, at=at)


def test_page_must_end_in_html(tmp_path):
    with pytest.raises(FormatError, match=r"must end in \.html"):
        write_page(tmp_path / "report.txt", "A", [])
