"""Figures of measures: a dot per student, class or patch, and the means beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from delt import plots
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Score, Scores
from delt.errors import DataError

NAMES = ("tench", "English springer", "cassette player")


def some_scores() -> Scores:
    rows = [
        Score(name, "common", labels, "convnet3", seed, 30, 50 + 3 * place + seed, 60)
        for place, name in enumerate(("delt", "random", "one_sub_batch"))
        for labels in ("soft", "hard")
        for seed in range(3)
    ]
    return Scores([*rows, Score("full", "common", "hard", "convnet3", 0, 60, 97.5, 98)])


def a_ranking(keep: str = "medium") -> Ranking:
    count = 20
    score = torch.cat([torch.linspace(0.2, 1, count), torch.linspace(0.9, 0.9999, count)])
    place = torch.full((2 * count,), -1)
    place[[9, 10, 29, 30]] = torch.tensor([0, 1, 0, 1])
    zero = torch.zeros(2 * count, dtype=torch.long)
    return Ranking(("a", "b"), keep, 1, torch.arange(2).repeat_interleave(count), zero, zero, zero, zero, zero, score, place)


VALUES = {
    name: {"mean": 0.9 - 0.1 * k, **{f"class/{cls}": 0.9 - 0.1 * k + 0.01 * c for c, cls in enumerate(NAMES)}}
    for k, name in enumerate(("delt", "random", "real"))
}
LONG = [f"a rather long name of class number {k} of very many" for k in range(30)]


def by_class(names: Sequence[str]) -> dict[str, float]:
    return {"mean": 0.8, **{f"class/{name}": 0.7 + k / 500 for k, name in enumerate(names)}}


MANY = {"delt": by_class([f"c{k}" for k in range(100)]), "random": {}}


FIGURES: dict[str, Callable[[], Figure]] = {
    "accuracy": lambda: plots.accuracy(some_scores()),
    "accuracy, one student": lambda: plots.accuracy(Scores(some_scores().rows[:1])),
    "accuracy, none": lambda: plots.accuracy(Scores()),
    "diversity": lambda: plots.diversity(VALUES),
    "diversity, many classes": lambda: plots.diversity(MANY),
    "diversity, long names": lambda: plots.diversity({"delt": by_class(LONG)}),
    "diversity, none": lambda: plots.diversity({"delt": {}}),
    "ranking": lambda: plots.ranking(a_ranking()),
    "ranking, long names": lambda: plots.ranking(replace(a_ranking(), classes=(LONG[0] * 3, LONG[1] * 3))),
    "ranking, one class": lambda: plots.ranking(a_ranking(), classes=[1]),
}


def test_accuracy_has_a_dot_per_student_and_says_mean_and_spread() -> None:
    soft, hard = plots.accuracy(some_scores()).axes
    assert [ax.get_title(loc="left") for ax in (soft, hard)] == ["soft labels", "hard labels"]
    dots = [
        np.asarray(dots.get_offsets())[:, 0].tolist()
        for dots in soft.collections
        if hasattr(dots, "get_offsets") and len(dots.get_offsets()) > 0
    ]
    assert [50, 51, 52] in dots
    assert [97.5] in dots  # the reference stands in both panels
    texts = [text.get_text() for text in soft.texts]
    assert texts == ["51.0 ± 1.0 (n 3)", "54.0 ± 1.0 (n 3)", "57.0 ± 1.0 (n 3)", "97.5 (n 1)"]
    rows = [label.get_text() for label in soft.get_yticklabels()]
    assert rows == ["DELT", "random real images", "one sub-batch", "all real images"]


@pytest.mark.parametrize(
    ("students", "said"), [(1, "one student each, so the spread is unknown"), (3, "a dot per student; bar: mean ± std")]
)
def test_accuracy_says_whether_there_is_a_spread(students: int, said: str) -> None:
    about = plots.accuracy(Scores([row for row in some_scores() if row.seed < students])).texts[1].get_text()
    assert about == f"convnet3, recipe common; {said}; line: all real images, hard labels"


def test_diversity_shows_each_class_and_the_mean() -> None:
    figure = plots.diversity(VALUES)
    (ax,) = figure.axes
    heights = [np.asarray(dots.get_offsets())[:, 1] for dots in ax.collections]
    assert heights[0] == pytest.approx([VALUES["delt"][f"class/{name}"] for name in NAMES])
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][0] == "DELT: mean 0.900"
    assert [label.get_text() for label in ax.get_xticklabels()] == list(NAMES)


@pytest.mark.parametrize("count", [10, 30])
def test_long_names_of_classes_leave_room_for_the_dots(count: int) -> None:
    figure = plots.diversity({"delt": by_class(LONG[:count])})
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert len(ax.get_xticklabels()) == count and ax.bbox.height > 1.2 * figure.dpi and ax.bbox.width > 5 * figure.dpi
    apart = (ax.bbox.width / count) * np.sin(np.radians(ax.get_xticklabels()[0].get_rotation()))  # of slanted lines
    assert apart > 8 / 72 * figure.dpi


def test_more_classes_than_names_fit_are_a_cloud() -> None:
    (ax,) = plots.diversity({"delt": by_class([*LONG, "one more"])}).axes
    assert ax.get_ylabel() == "Set" and len(ax.collections[0].get_offsets()) == 31


def test_a_class_called_mean_is_a_class() -> None:
    (ax,) = plots.diversity({"delt": {"mean": 0.5, "class/mean": 0.4, "class/other": 0.6}}).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mean", "other"]
    assert np.asarray(ax.collections[0].get_offsets())[:, 1].tolist() == [0.4, 0.6] and ax.lines[0].get_ydata()[0] == 0.5


def test_diversity_draws_sets_in_their_usual_order() -> None:
    """A run writes them in the alphabet's."""
    (legend,) = plots.diversity({name: VALUES["delt"] for name in sorted(("delt", "one_sub_batch", "start", "random", "real"))}).legends
    expected = ["DELT", "one sub-batch", "starting patches", "random real images", "real images"]
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == expected


def test_ranking_marks_the_kept_patches() -> None:
    ranking = a_ranking()
    (ax,) = plots.ranking(ranking).axes
    kept = [np.asarray(dots.get_offsets())[:, 0] for dots in ax.collections][1::2]
    for label, dots in enumerate(kept):
        assert sorted(dots) == pytest.approx(ranking.score[ranking.kept(label)].double().sort().values.tolist())
    low, high = ax.get_xlim()
    assert low <= 0.2 and high >= 1 - 1e-6


def test_ranking_says_how_many_patches_lie_beyond_its_axis() -> None:
    def about(ranking: Ranking) -> str:
        return plots.ranking(ranking).texts[1].get_text()

    ranking = a_ranking()
    ranking.score = ranking.score.clamp(1e-4, 1 - 1e-4)
    assert "beyond" not in about(ranking)
    ranking.score[:3] = torch.tensor([1.0, 0.0, 1 - 1e-7])
    assert "3 beyond" in about(ranking)


@pytest.mark.parametrize("classes", [[2], []])
def test_ranking_refuses_classes_that_are_none(classes: list[int]) -> None:
    with pytest.raises(DataError, match="allowed are labels from 0 to 1"):
        plots.ranking(a_ranking(), classes=classes)


def test_ranking_without_scores_says_so() -> None:
    ranking = a_ranking("random")
    ranking.score = ranking.score * torch.nan
    (ax,) = plots.ranking(ranking).axes
    assert [text.get_text() for text in ax.texts] == ["random order: the candidates were not scored"]
