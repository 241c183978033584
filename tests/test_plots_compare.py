"""Figures of several runs: a mark per set, a key that fits, and the same classes side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_plots_pictures import NAMES, TEN, a_set

from delt import plots
from delt.analysis.accuracy import Accuracy
from delt.analysis.compare import Entry, Protocol
from delt.errors import DataError

HOW = Protocol("common", "convnet3", 30)


def an_entry(run: str, name: str = "delt", mean: float = 50.0, **given: object) -> Entry:
    entry = Entry(run, name, name != "full", "digits", ipc=10, protocol=HOW, accuracy={"soft": Accuracy((mean - 1, mean, mean + 1))})
    return replace(replace(entry, cosine=0.8, seconds=100.0, teacher="t"), **given)  # type: ignore[arg-type]


FULL = an_entry("a", "full", ipc=None, seconds=None, protocol=HOW._replace(epochs=60), accuracy={"hard": Accuracy((97.0,))})
SOME = [an_entry("a"), an_entry("b", mean=60, ipc=50, cosine=0.7), an_entry("a", "random", 40, own=False, seconds=0.1, cosine=0.9), FULL]
LONG = [
    an_entry(f"sweeps/of-a-long-name/with-point-{k}", name, 40 + 3 * k, ipc=10 * k, cosine=0.6 + 0.01 * k, seconds=10.0**k)
    for k, name in enumerate(("delt", "delt", "cda", "sre2l", "random", "one_sub_batch", "a-method-of-ones-own"))
]

FIGURES: dict[str, Callable[[], Figure]] = {
    "comparison": lambda: plots.comparison(SOME),
    "comparison, one": lambda: plots.comparison(SOME[:1]),
    "comparison, none": lambda: plots.comparison([]),
    "comparison, long names": lambda: plots.comparison(LONG),
    "side_by_side": lambda: plots.side_by_side({"a": a_set(classes=TEN), "b": a_set(ipc=2, sub_batches=2, classes=TEN)}),
    "side_by_side, long names": lambda: plots.side_by_side(dict.fromkeys("ab", a_set(classes=tuple(20 * "long " + name for name in TEN)))),
    "side_by_side, colour": lambda: plots.side_by_side({f"run {k}": a_set(channels=3, size=80) for k in range(4)}, classes=[2, 0]),
}


def about(figure: Figure) -> str:
    return figure.texts[1].get_text().replace("\n", " ")


def key(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def marks(figure: Figure, panel: int) -> list[tuple[float, float, str]]:
    """Place, accuracy and marker of every set in a panel."""
    lines = [container.lines[0] for container in figure.axes[panel].containers]  # type: ignore[attr-defined]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_marker()) for line in lines]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_drawn_and_names_lie_apart(name: str) -> None:
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    for ax in figure.axes:
        ticks = [tick.label1.get_window_extent() for tick in ax.xaxis.get_major_ticks() if tick.label1.get_text()]
        shown = sorted((box for box in ticks if ax.bbox.x0 <= (box.x0 + box.x1) / 2 <= ax.bbox.x1), key=lambda box: box.x0)
        assert all(left.x1 < right.x0 for left, right in zip(shown, shown[1:], strict=False))


def test_a_set_stands_at_its_cost_and_its_diversity() -> None:
    figure = plots.comparison(SOME)
    assert marks(figure, 0) == [(100, 50, "o"), (100, 60, "s"), (0.1, 40, "o")]
    assert marks(figure, 1) == [(0.8, 50, "o"), (0.7, 60, "s"), (0.9, 40, "o")]
    assert figure.axes[0].get_xscale() == "log"
    assert key(figure) == ["a: delt, ipc 10", "b: delt, ipc 50", "random, ipc 10"]
    assert [handle.get_marker() for handle in figure.legends[0].legend_handles] == ["o", "s", "o"]  # type: ignore[union-attr]
    assert "soft labels; convnet3, recipe common, 30 epochs; mean ± std, n 3; line: all real images, hard labels, 97.0" in about(figure)


def test_single_students_have_no_spread() -> None:
    one = {"soft": Accuracy((50.0,))}
    assert about(plots.comparison([an_entry("a", accuracy=one)])).endswith("30 epochs; one student each, so the spread is unknown")
    assert about(plots.comparison([an_entry("a"), an_entry("b", accuracy=one)])).endswith("mean ± std, n 1/3")


def test_one_class_and_one_image_are_no_plural() -> None:
    figure = plots.side_by_side({"a": a_set(ipc=1, sub_batches=1, classes=("only",))})
    assert about(figure).startswith("1 class, up to 1 image per class")


def test_near_costs_have_a_plain_axis() -> None:
    assert plots.comparison(SOME[:2]).axes[0].get_xscale() == "linear"


def test_a_picture_of_held_out_images_says_so() -> None:
    for share in (0.0, 0.1):
        found = [an_entry("a", hold_out=share), an_entry("b", mean=60.0, hold_out=share)]
        assert ("on held-out training images (10 %)" in about(plots.comparison(found))) == bool(share)


def test_what_is_left_out_is_said() -> None:
    late = an_entry("late", accuracy={}, protocol=None)
    other = an_entry("other", protocol=HOW._replace(recipe="paper:delt"))
    hard = an_entry("plain", accuracy={"hard": Accuracy((1.0,))})
    single = an_entry("single", ipc=1, cosine=None)
    figure = plots.comparison([*SOME, late, other, hard, single])
    assert len(marks(figure, 0)) == 4 and len(marks(figure, 1)) == 3
    for words in (
        "not evaluated yet: late",
        "left out, trained otherwise: other",
        "without these labels: plain",
        "without a cosine: single",
    ):
        assert words in about(figure)


def test_labels_that_nobody_trained_with_leave_the_picture_empty() -> None:
    figure = plots.comparison(SOME, "hard")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no student has been trained\nwith hard labels yet"]


def test_the_key_fits_and_names_differ() -> None:
    for entries in (SOME, LONG, [an_entry(f"{'x' * 50}{k}{'y' * 50}") for k in range(5)]):
        figure = plots.comparison(entries)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1
        assert len(set(key(figure))) == len(key(figure)) == len([entry for entry in entries if entry.set != "full"])


def test_a_run_called_like_its_method_has_one_name() -> None:
    assert key(plots.comparison([an_entry("delt"), an_entry("random", "random")])) == ["DELT", "random real images"]


def test_runs_of_a_study_are_called_by_their_methods_and_no_two_look_alike() -> None:
    many = [an_entry(f"method {k}-ipc10", f"method {k}") for k in range(10)]  # more than there are colours
    figure = plots.comparison(many)
    assert key(figure) == [f"method {k}" for k in range(10)]
    drawn = [container.lines[0] for container in figure.axes[0].containers]  # type: ignore[attr-defined]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 10


def test_a_block_per_set_and_a_row_per_class() -> None:
    figure = plots.side_by_side({"a": a_set(), "b": a_set(ipc=2, sub_batches=2)}, per_class=4)
    one, other = figure.axes
    assert [ax.get_title(loc="left") for ax in (one, other)] == ["a", "b"]
    assert (len(one.images), len(other.images)) == (3 * 4, 3 * 2)
    assert [label.get_text() for label in one.get_yticklabels()] == list(NAMES)
    assert {label.get_text() for label in other.get_yticklabels()} == {""}


def test_lines_of_blocks_each_name_their_classes() -> None:
    axes = plots.side_by_side({f"run {k}": a_set() for k in range(4)}).axes
    assert [ax.get_yticklabels()[0].get_text() for ax in axes[:4]] == [NAMES[0], "", "", NAMES[0]]


def test_without_images_the_picture_says_so() -> None:
    assert about(plots.side_by_side({})) == "no run has made its images yet"


def test_sets_of_different_classes_are_refused() -> None:
    with pytest.raises(DataError, match="a and b have different classes"):
        plots.side_by_side({"a": a_set(), "b": a_set(classes=TEN)})
    with pytest.raises(DataError, match="allowed are labels from 0 to 2"):
        plots.side_by_side({"a": a_set()}, classes=[3])
