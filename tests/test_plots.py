"""The face of the figures: every one is there, and none breaks the rules that hold for all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
import test_plots_compare
import test_plots_curves
import test_plots_measures
import test_plots_pictures
import test_plots_similarity
import test_plots_sweep
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from delt import plots

ROOMS = (test_plots_curves, test_plots_measures, test_plots_pictures, test_plots_similarity, test_plots_compare, test_plots_sweep)
FIGURES = {name: draw for room in ROOMS for name, draw in room.FIGURES.items()}
HELPERS = {"SETS", "Picture", "SetStyle", "png", "set_styles", "sub_batch_colours"}  # the rest of the face are figures


@pytest.mark.parametrize("name", sorted(set(plots.__all__) - HELPERS))
def test_every_figure_is_there(name: str) -> None:
    draw = getattr(plots, name)
    assert name in plots.__all__
    assert inspect.getdoc(draw)
    assert inspect.signature(draw).return_annotation in ("Figure", Figure)
    assert name in FIGURES, "and is looked at below"


def test_all_names_are_there() -> None:
    assert sorted(plots.__all__) == sorted(name for name in plots.__all__ if hasattr(plots, name))
    assert plots.png(FIGURES["schedule"](), 20).startswith(b"\x89PNG")


EMPTY = [
    "accuracy, none",
    "comparison, none",
    "class_similarity, no pairs",
    "depth, no pairs",
    "diversity, none",
    "losses, none",
    "pairs, none",
    "schedule, nothing to do",
    "tradeoffs, none",
]


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_picture_says_why_and_claims_nothing(name: str) -> None:
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    reasons = ("no ", "one image has no pairs", "nothing is optimised")
    assert any(text.get_text().startswith(reasons) for ax in figure.axes for text in ax.texts)
    about = figure.texts[1].get_text()
    assert not any(word in about for word in ("line", "bar", "dot", "±", "mean", "framed", "row", "band")), about
    for ax in figure.axes:
        assert not any(len(line.get_xdata()) for line in ax.lines) and ax.get_label() != "<colorbar>"  # type: ignore[arg-type]
        assert not any(patch.get_window_extent().width for patch in ax.patches)
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            assert not any(part.get_visible() for tick in ticks for part in (tick.label1, tick.gridline))
            assert not any(tick.tick1line.get_visible() and tick.tick1line.get_markersize() for tick in ticks)


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request: pytest.FixtureRequest) -> FigureCanvasAgg:
    """Each figure, laid out and drawn once for the tests below."""
    canvas = FigureCanvasAgg(FIGURES[request.param]())
    canvas.draw()
    return canvas


def test_nothing_is_cut_off_at_the_edge(drawn: FigureCanvasAgg) -> None:
    picture = np.asarray(drawn.buffer_rgba())[:, :, :3].min(2)
    assert picture.shape[1] == 700
    assert picture.min() < 120
    assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_every_axis_says_what_it_shows(drawn: FigureCanvasAgg) -> None:
    for ax in drawn.figure.axes:
        if ax.get_label() == "<colorbar>" or ax.images:  # a grid of images has row names and a head instead
            continue
        assert any(other.get_xlabel() for other in ax.get_shared_x_axes().get_siblings(ax))
        beside = ax.get_shared_y_axes().get_siblings(ax)
        assert any(other.get_ylabel() for other in beside) or any(tick.get_text() for other in beside for tick in other.get_yticklabels())


def test_title_subtitle_and_key_lie_above_the_data(drawn: FigureCanvasAgg) -> None:
    figure, renderer = drawn.figure, drawn.get_renderer()
    assert figure.get_suptitle()
    assert len(figure.texts) == 2
    data = max(ax.get_window_extent().y1 for ax in figure.axes)
    assert figure._suptitle.get_window_extent(renderer).x1 < figure.bbox.x1
    stack = sorted((part.get_window_extent(renderer) for part in (*figure.texts, *figure.legends)), key=lambda box: -box.y0)
    assert all(box.y0 > data and box.x1 < figure.bbox.x1 for box in stack)
    assert all(upper.y0 >= lower.y1 - 4 for upper, lower in zip(stack, stack[1:], strict=False))


def words(ax: Axes) -> Iterator[Text]:
    """Texts that are seen: no ticks outside the limits, none that slant."""
    (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    yield from ax.texts
    yield from ax.get_legend().get_texts() if ax.get_legend() else ()
    yield from (text for text in ax.get_xticklabels() if left <= text.get_position()[0] <= right)
    yield from (text for text in ax.get_yticklabels() if low <= text.get_position()[1] <= high)


def test_no_word_is_bare_mathematics(drawn: FigureCanvasAgg) -> None:
    """Texts are not parsed as mathematics, so matplotlib's own formatters of powers have to be replaced."""
    for text in drawn.figure.findobj(Text):
        assert "mathdefault" not in text.get_text()


def test_words_do_not_overlap(drawn: FigureCanvasAgg) -> None:
    texts = [text for ax in drawn.figure.axes for text in words(ax) if text.get_text() and text.get_visible() and not text.get_rotation()]
    spans = [(text.get_text(), text.get_window_extent(drawn.get_renderer())) for text in texts]
    assert spans
    for k, (first, one) in enumerate(spans):
        for second, other in spans[k + 1 :]:
            overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
            assert overlap[0] <= 1 or overlap[1] <= 3, f"{first!r} lies on {second!r}"
