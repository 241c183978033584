"""What was measured: accuracy of students, diversity of sets, and the teacher's scores of the candidate patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from delt.analysis.diversity import CLASS
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Score, Scores, Summary
from delt.plots.style import (
    BAND,
    CLASS_NAME,
    GREY,
    INK,
    SETS,
    SetStyle,
    class_ticks,
    class_ticks_height,
    dash,
    dots,
    fill,
    in_order,
    many,
    note,
    of_all,
    picture,
    scattered,
    set_styles,
    shown_labels,
    spread_marks,
    styled,
    told_apart,
)

NAMED, LEVEL = 30, 75  # classes whose names fit under an axis when they slant, and letters of all when they do not
EDGE = 1e-6  # a logit axis has no 0 and no 1


@styled
def accuracy(scores: Scores) -> Figure:
    """Test accuracy of students: a dot each, mean and standard deviation per set, soft and hard labels side by side."""
    lines = scores.summary()
    small = [line for line in lines if line.set != "full"]
    kinds = list(dict.fromkeys((line.recipe, line.arch) for line in small or lines))
    labels = sorted({line.labels for line in small or lines}, reverse=True)
    sets = [list(dict.fromkeys((line.set, line.epochs) for line in _of(lines, kind))) for kind in kinds]
    sets = [sorted(rows, key=lambda row: row[0] == "full") for rows in sets]
    about = [f"{kinds[0][1]}, recipe {kinds[0][0]}"] if len(kinds) == 1 else []
    about += spread_marks((line.n for line in lines), "a dot per student; bar: mean ± std")
    about += ["line: all real images, hard labels"] if len(small) < len(lines) else []
    body = 0.55 + max(0.6, sum(0.3 * len(rows) + 0.35 for rows in sets))
    figure = picture("Accuracy of students trained from scratch, last epoch", "; ".join(about), body)
    shape = max(1, len(kinds)), max(1, len(labels))
    grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey="row", height_ratios=[len(rows) for rows in sets] or None)
    for kind, rows, panels in zip(kinds, sets, grid, strict=False):
        for kept, ax in zip(labels, panels, strict=True):
            _students(ax, scores, [line for line in _of(lines, kind) if line.labels == kept or line.set == "full"], rows)
            ax.set_title(f"{kept} labels" if len(kinds) == 1 else f"{kind[1]}, {kind[0]}, {kept} labels")
    for ax in grid[-1]:
        ax.set_xlabel("Top-1 accuracy (%)")
    if not lines:
        grid[0, 0].set_ylabel("Set")
        note(grid[0, 0], "no student has been trained yet")
    return figure


def _of(lines: list[Summary], kind: tuple[str, str]) -> list[Summary]:
    return [line for line in lines if (line.recipe, line.arch) == kind]


def _students(ax: Axes, scores: Scores, lines: list[Summary], rows: list[tuple[str, int]]) -> None:
    """A row of dots per set; the mean over all real images runs through all of them."""
    styles = set_styles(name for name, _ in rows)
    repeated = len({name for name, _ in rows}) < len(rows)
    for line in lines:
        y, style = rows.index((line.set, line.epochs)), styles[line.set]
        values = [row.last for row in scores if _is(row, line)]
        if line.set == "full":
            ax.axvline(line.mean, color=style.colour, linewidth=1, zorder=1)
        dots(ax, values, [y] * len(values), style)
        ax.errorbar(
            line.mean,
            y,
            xerr=line.std if line.n > 1 else None,
            color=style.colour,
            marker="|",
            markersize=13,
            markeredgewidth=2,
            elinewidth=1.5,
        )
        spread = f" ± {line.std:.1f}" if line.n > 1 else ""
        ax.annotate(f"{line.mean:.1f}{spread} (n {line.n})", (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    ax.set_yticks(range(len(rows)), [styles[name].label + (f", {many(epochs, 'epoch')}" if repeated else "") for name, epochs in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)


def _is(row: Score, line: Summary) -> bool:
    return (row.set, row.recipe, row.labels, row.arch, row.epochs) == (line.set, line.recipe, line.labels, line.arch, line.epochs)


@styled
def diversity(values: Mapping[str, Mapping[str, float]], features: str = "the teacher's features") -> Figure:
    """Intra-class cosine similarity of each class, and its mean over the classes, for one or several sets.

    Args:
        values: set name -> what `delt.analysis.diversity.diversity` yields, as a dict.
        features: what the similarity was measured in.
    """
    values = {name: values[name] for name in in_order(values)}
    classes = list(dict.fromkeys(name for of_set in values.values() for name in _by_class(of_set)))
    about = features + (f"; one dot per class, line: mean over {many(len(classes), 'class', 'es')}" if classes else "")
    title = "Intra-class cosine similarity, lower is more diverse"
    if len(classes) > NAMED:
        figure = picture(title, about, 0.6 + 0.45 * len(values))
        _class_clouds(figure.add_subplot(), values)
        return figure
    styles = set_styles(values)
    key = {f"{styles[name].label}: mean {of_set['mean']:.3f}": styles[name] for name, of_set in values.items() if "mean" in of_set}
    figure = picture(title, about, 2.7 + class_ticks_height(classes, LEVEL), key)
    ax = figure.add_subplot()
    for turn, (name, of_set) in enumerate(values.items()):
        shift = 0.75 * (turn - (len(values) - 1) / 2) / len(values)  # sets stand side by side in a class
        found = _by_class(of_set)
        own = [(x + shift, found[label]) for x, label in enumerate(classes) if label in found]
        dots(ax, [x for x, _ in own], [y for _, y in own], styles[name])
        if "mean" in of_set:
            ax.axhline(of_set["mean"], color=styles[name].colour, linewidth=1.2, linestyle=dash(styles[name]), zorder=1)
    _class_axis(ax, classes)
    ax.set_ylabel("Mean cosine of pairs")
    ax.grid(axis="y")
    if not classes:
        note(ax, "no class has two images to compare")
    return figure


def _by_class(of_set: Mapping[str, float]) -> dict[str, float]:
    """The values of the classes alone, by name."""
    return {name.removeprefix(CLASS): value for name, value in of_set.items() if name.startswith(CLASS)}


def _class_axis(ax: Axes, classes: Sequence[str]) -> None:
    """A tick per class with its name, on a band of its own."""
    class_ticks(ax, classes, LEVEL)
    ax.set_xlim(-0.5, max(1, len(classes)) - 0.5)
    ax.set_xlabel("Class")
    for x in range(0, len(classes), 2):  # a band behind every other class keeps its dots together
        ax.axvspan(x - 0.5, x + 0.5, facecolor=BAND, edgecolor="none", zorder=0)


def _class_clouds(ax: Axes, values: Mapping[str, Mapping[str, float]]) -> None:
    """A row per set: the classes, too many to name, as a cloud of dots, and their mean."""
    styles = set_styles(values)
    for y, (name, of_set) in enumerate(values.items()):
        x = list(_by_class(of_set).values())
        ax.scatter(
            x, y + 0.6 * scattered(len(x)), s=9, facecolors=fill(styles[name]), edgecolors=styles[name].colour, linewidths=0.6, alpha=0.6
        )
        if x:
            ax.plot([of_set["mean"]] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=1.6)
            ax.annotate(
                f"mean {of_set['mean']:.3f} (n {len(x):,})", (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5
            )
    ax.set_yticks(range(len(values)), [styles[name].label for name in values])
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set(xlabel="Mean cosine of pairs", ylabel="Set")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


@styled
def ranking(ranking: Ranking, classes: Sequence[int] | None = None) -> Figure:
    """How the teacher scores the candidate patches of each class, and which of them start the synthetic images.

    Scores nearer to 0 or 1 than a millionth are drawn at the axis' end, and counted in the subtitle.

    Args:
        classes: labels to show, in this order; the first ten where not given.

    Raises:
        DataError: a label that is none.
    """
    labels = shown_labels(classes, len(ranking.classes))
    kept = int((ranking.place >= 0).sum())
    shown = f"; {of_all(len(labels), len(ranking.classes), 'class', 'es')} shown" if len(labels) < len(ranking.classes) else ""
    beyond = int(((ranking.score < EDGE) | (ranking.score > 1 - EDGE)).sum())
    edge = f"; {beyond:,} beyond {100 * EDGE:.4f}% or {100 - 100 * EDGE:.4f}% are drawn there" if beyond else ""
    about = f"{many(len(ranking), 'candidate')}, {kept:,} kept ({ranking.keep}){shown}{edge}"
    key = {"candidate": SetStyle("candidate", GREY), "kept, starts a synthetic image": SETS["delt"]}
    figure = picture("Real patches that start the synthetic images, by difficulty", about, 0.8 + 0.42 * len(labels), key, lines=False)
    ax = figure.add_subplot()
    ax.set_xscale("logit")
    for y, label in enumerate(labels):
        rows = ranking.class_index == label
        _patches(ax, y, ranking.score[rows], ranking.place[rows] >= 0)
    ax.set_yticks(range(len(labels)), told_apart([ranking.classes[label] for label in labels], CLASS_NAME))
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set(ylabel="Class", xlabel="Teacher's probability of the true class (hard to easy)")
    ax.tick_params(axis="y", length=0)
    _percent_axis(ax)
    if not bool(ranking.score.isfinite().any()):
        note(ax, f"{ranking.keep} order: the candidates were not scored")
    return figure


def _patches(ax: Axes, y: int, score: Tensor, kept: Tensor) -> None:
    """The candidates of a class as a band of dots; those that are kept stand out."""
    known = score.isfinite()
    x = score.double().clamp(EDGE, 1 - EDGE).numpy()
    height = y + 0.6 * scattered(len(x))
    for mask, colour, size, alpha in ((known & ~kept, GREY, 7, 0.45), (known & kept, SETS["delt"].colour, 14, 1.0)):
        ax.scatter(x[mask.numpy()], height[mask.numpy()], s=size, c=colour, alpha=alpha, linewidths=0, clip_on=False)


def _percent_axis(ax: Axes) -> None:
    """Plain percentages on a logit axis, from the round one below the data to the one above."""
    odds = np.array([EDGE, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - EDGE])
    low, high = ax.dataLim.intervalx if np.isfinite(ax.dataLim.intervalx).all() else (0.1, 0.99)
    first = min(max(0, int((odds <= low).sum()) - 1), len(odds) - 2)
    last = max(first + 1, int((odds < high).sum()))
    ticks = odds[first : last + 1]
    ax.set_xlim(ticks[0], ticks[-1])
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
    ax.minorticks_off()
    ax.grid(axis="x")
