"""The pictures of a sweep: the one that fits, every number where it belongs, and nothing that overlaps or is empty."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from delt import plots
from delt.analysis.accuracy import Accuracy
from delt.analysis.sweep import PointRow
from delt.config import flat_fields
from delt.errors import DataError
from delt.plots.sweep import BEST, axis_label


def row(name="a", soft=(), hard=(), random=(), state="done", **parameters):
    accuracy = {("delt", "soft"): soft, ("delt", "hard"): hard, ("random", "soft"): random}
    kept = {key: Accuracy(tuple(values)) for key, values in accuracy.items() if values}
    more = {"student": "convnet3", "epochs": 30, "work": 1000, "saved": 0.25, "seconds": 12.0, "cosine": {"delt": 0.8}} if kept else {}
    return PointRow(name, parameters, state, method="delt", accuracy=kept, **more)


def some(state="done", n=3, hard=False, **values):
    """A point for every combination of values."""
    found = []
    for k, own in enumerate(itertools.product(*values.values())):
        soft = [80 + 3 * np.sin(7 * k) + seed for seed in range(n)] if state == "done" else []
        parameters = dict(zip(values, own, strict=True))
        name = ",".join(f"{key}={value}" for key, value in parameters.items()) or "as_given"
        point = row(
            name, soft, [value - 9 for value in soft] if hard else [], [70.0 + seed for seed in range(len(soft))], state, **parameters
        )
        if soft:
            point = PointRow(**{**vars(point), "work": 12000 + 700 * k, "cosine": {"delt": 0.85 + 0.004 * k}})
        found.append(point)
    return found


def with_gaps(rows):
    """Every third point failed, the last one waits."""
    without = [row(point.name, state="failed", **point.parameters) if k % 3 == 1 else point for k, point in enumerate(rows)]
    return [*without[:-1], row(rows[-1].name, state="waiting", **rows[-1].parameters)]


RI, M = [20, 40, 80], [2, 3, 4, 5]
SWEEPS = {
    "none": some(),
    "one": some(iterations=[1000, 2000, 4000]),
    "one, two kinds": some(rank_keep=["medium", "easy", "hard", "random", "noise"], hard=True),
    "one, gaps": with_gaps(some(iterations=[1000, 2000, 4000, 8000, 16000])),
    "one, single students": some(iterations=[1000, 2000, 4000], n=1),
    "two": some(round_iterations=RI, sub_batches=M),
    "two, gaps": with_gaps(some(round_iterations=RI, sub_batches=M)),
    "two, long words": some(sub_batches=[2, 4], seed=[0, 1]),
    "two, wide": some(seed=list(range(12)), sub_batches=[2, 4]),
    "three": some(round_iterations=[20, 40], sub_batches=[2, 3], rank_keep=["medium", "hard"]),
    "three, gaps": with_gaps(some(round_iterations=[20, 40], sub_batches=[2, 3], rank_keep=["medium", "hard"])),
    "none is done": some("waiting", round_iterations=RI, sub_batches=M),
    "none of one is done": some("failed", iterations=[1, 2]),
    "none of three is done": some("failed", iterations=[1, 2], ipc=[3, 4], seed=[0, 1]),
}


FIGURES = {
    "grid": lambda: plots.grid(SWEEPS["two"], "round_iterations", "sub_batches"),
    "overview": lambda: plots.overview(SWEEPS["two, gaps"]),
    "lines": lambda: plots.lines(SWEEPS["one, two kinds"], "rank_keep"),
    "points": lambda: plots.points(SWEEPS["three"]),
    "tradeoffs, none": lambda: plots.tradeoffs(SWEEPS["none of three is done"]),
    "tradeoffs": lambda: plots.tradeoffs(SWEEPS["two"]),
}


def texts(figure):
    found = [word.get_text() for ax in figure.axes for word in ax.texts]
    return [*found, *(word.get_text() for word in figure.texts)]


def overlaps(figure):
    """Pairs of words in the panels, and of tick labels of one axis, that lie on each other."""
    figure.draw_without_rendering()
    found = []
    for ax in figure.axes:
        groups = [ax.texts, ax.get_xticklabels(), ax.get_yticklabels()]
        for group in groups:
            shown = [(word.get_text(), word.get_window_extent()) for word in group if word.get_text() and word.get_visible()]
            found += [(a, b) for (a, one), (b, two) in itertools.combinations(shown, 2) if one.overlaps(two)]
    return found


@pytest.mark.parametrize("draw", [plots.overview, plots.points, plots.tradeoffs], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_its_pictures(name, draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(SWEEPS[name])
        assert overlaps(figure) == []
        assert plots.png(figure).startswith(b"\x89PNG")
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02 and box.y0 >= -0.02 and box.x1 <= width + 0.02 and box.y1 <= height + 0.02


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("none", "Accuracy of the points"),
        ("one", "Accuracy over iterations"),
        ("two", "Accuracy over round_iterations and sub_batches"),
        ("three", "Accuracy of the points"),
    ],
)
def test_the_picture_fits_what_varies(name, title):
    assert plots.overview(SWEEPS[name]).get_suptitle() == title


def test_the_grid_has_every_number_in_its_cell_and_frames_the_best():
    rows = SWEEPS["two"]
    figure = plots.grid(rows, "round_iterations", "sub_batches")
    ax = figure.axes[0]
    assert [word.get_text() for word in ax.get_xticklabels()] == ["20", "40", "80"]
    assert [word.get_text() for word in ax.get_yticklabels()] == ["2", "3", "4", "5"]
    cells = {tuple(np.floor(word.get_position()).astype(int)): word.get_text() for word in ax.texts}
    for point in rows:
        place = RI.index(point.parameters["round_iterations"]), M.index(point.parameters["sub_batches"])
        assert cells[place] == f"{point.own('soft').mean:.1f}\n± {point.own('soft').std:.1f}"
    (frame,) = [patch for patch in ax.patches if patch.get_edgecolor()[:3] == to_rgb(BEST)]
    best = max(rows, key=lambda point: point.own("soft").mean)
    assert frame.get_xy() == (RI.index(best.parameters["round_iterations"]), M.index(best.parameters["sub_batches"]))


def test_numbers_can_be_read_on_their_cells():
    ax = plots.overview(SWEEPS["two, gaps"]).axes[0]
    colours = np.asarray(ax.collections[0].get_facecolor()).reshape(4, 3, 4)
    measured = [word for word in ax.texts if "±" in word.get_text()]
    assert len(measured) > 4
    for word in measured:
        column, up = np.floor(word.get_position()).astype(int)
        back, front = (sum(np.array([0.3, 0.59, 0.11]) * to_rgb(colour)) for colour in (colours[up, column], word.get_color()))
        assert abs(back - front) > 0.35


def test_cells_without_a_number_say_why():
    rows = SWEEPS["two, gaps"]
    words = texts(plots.overview(rows))
    assert words.count("failed") == 4 and words.count("waiting") == 1
    assert "5 of 12 points without a result" in " ".join(" ".join(words).split())
    lonely = [*some(m=[1], r=[1]), *some(m=[2], r=[2])]
    assert texts(plots.overview(lonely)).count("–") == 2  # no point was asked for


def test_nothing_is_said_of_what_is_not_there():
    words = [" ".join(texts(draw(SWEEPS["none is done"]))) for draw in (plots.overview, plots.points, plots.tradeoffs)]
    assert not any(mark in said for said in words for mark in ("±", "framed", "dot"))


def test_a_picture_of_held_out_images_says_so():
    held = [replace(point, hold_out=0.1) for point in SWEEPS["two"]]
    for rows, said in ((held, True), (SWEEPS["two"], False)):
        assert ("on held-out training images (10 %)" in " ".join(" ".join(texts(plots.overview(rows))).split())) == said


def test_two_points_in_a_cell_are_refused():
    with pytest.raises(DataError, match="8 points fall into 4 cells of round_iterations and sub_batches"):
        plots.grid(SWEEPS["three"], "round_iterations", "sub_batches")


def test_lines_have_a_dot_per_student_at_its_value():
    rows = SWEEPS["one"]
    figure = plots.lines(rows, "iterations")
    (ax,) = figure.axes
    assert [word.get_text() for word in ax.get_xticklabels()] == ["1,000", "2,000", "4,000"]
    drawn = sorted(float(y) for dots in ax.collections if hasattr(dots, "get_offsets") for _, y in dots.get_offsets() if y > 75)
    places = {float(x) for dots in ax.collections if hasattr(dots, "get_offsets") for x, y in dots.get_offsets() if y > 75}
    assert places == {0.0, 1.0, 2.0}  # the control is a line across, and needs no room beside
    students = sorted(value for point in rows for value in point.own("soft").values)
    assert set(np.round(students, 6)) <= set(np.round(drawn, 6))


def test_rows_of_long_names_can_be_told_apart():
    figure = plots.points(SWEEPS["three"])
    words = [word.get_text() for word in figure.axes[0].get_yticklabels()]
    assert words[:2] == ["20, 2, medium", "20, 2, hard"] and len(set(words)) == len(words)
    assert "rows: round_iterations, sub_batches, rank_keep" in " ".join(" ".join(texts(figure)).split())


def test_single_students_have_no_spread():
    words = " ".join(texts(plots.overview(SWEEPS["one, single students"])))
    assert "random real images 70.0." in " ".join(words.split()) and "±" not in words and "so the spread is unknown" in words


def test_the_labels_asked_for_are_shown():
    rows = [
        PointRow(**{**vars(point), "parameters": {**point.parameters, "seed": k % 2, "ipc": k}})
        for k, point in enumerate(SWEEPS["one, two kinds"])
    ]
    assert "hard labels" in " ".join(texts(plots.overview(rows, "hard"))) and "soft labels" in " ".join(texts(plots.overview(rows)))
    two = some(m=[1, 2], r=[1, 2], hard=True)
    assert "hard labels" in " ".join(texts(plots.overview(two, "hard")))


def test_colours_tell_the_first_parameter_apart_that_varies_among_the_points_that_are_done():
    rows = [*some(iterations=[8], sub_batches=[2, 3]), *some("failed", iterations=[3], sub_batches=[4])]
    figure = plots.tradeoffs(rows)
    (key,) = figure.legends
    assert [word.get_text() for word in key.get_texts()] == ["sub_batches 2", "sub_batches 3"]
    drawn = {line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert drawn == {handle.get_color() for handle in key.get_lines()} and len(drawn) == 2


@pytest.mark.parametrize("entry", tuple(flat_fields()), ids=lambda entry: entry.name)
def test_axis_labels_are_short_and_begin_large(entry):
    label = axis_label(entry.name)
    assert 0 < len(label) <= 45 and not label.endswith((":", " "))
    assert label == entry.name or label[0] == label[0].upper()


def test_an_axis_is_not_named_after_one_of_its_values():
    assert axis_label("fidelity") == "fidelity" and axis_label("recover_grouping") == "recover_grouping"
    assert axis_label("sub_batches") == "M: sub-batches" and axis_label("no_field") == "no_field"


def test_the_subtitle_says_whether_the_lead_is_paired():
    rows = [row(name, soft=[80.0, 82.0, 85.0], m=k) for k, name in enumerate("ab")]
    assert "paired over 3 seeds" in " ".join(" ".join(texts(plots.overview(rows))).split())


def test_the_same_rows_give_the_same_picture():
    assert plots.png(plots.overview(SWEEPS["two"])) == plots.png(plots.overview(SWEEPS["two"]))
