"""What a sweep found: accuracy over two parameters, over one, or point by point, and what it was bought with."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delt.analysis.accuracy import Accuracy
from delt.analysis.sweep import PointRow, kinds, lead, varying
from delt.analysis.table import unusual_test
from delt.config import flat_fields
from delt.errors import DataError
from delt.plots.style import (
    FAINT,
    MUTED,
    ROW_NAME,
    SETS,
    SetStyle,
    dash,
    dots,
    fill,
    in_order,
    many,
    note,
    on,
    picture,
    set_styles,
    spread_marks,
    styled,
    told_apart,
)

BEST = "#d55e00"  # the frame around the best cell
CELLS = 9  # columns whose cells have room for a spread
COLOURED = 6  # values that can have a colour each
TOP1 = "Top-1 accuracy (%)"
EMPTY = "no point is done yet"


def overview(rows: Sequence[PointRow], labels: str | None = None) -> Figure:
    """The picture that fits a sweep: a grid for two parameters that vary, lines for one, a row per point otherwise."""
    names = varying(rows)
    if len(names) == 2 and len({_place(row, *names) for row in rows}) == len(rows):
        return grid(rows, names[0], names[1], labels)
    return lines(rows, names[0]) if len(names) == 1 else points(rows, labels)


@styled
def grid(rows: Sequence[PointRow], x: str, y: str, labels: str | None = None) -> Figure:
    """Accuracy over two parameters as a heat map: mean ± std in each cell, the best one framed.

    Args:
        x, y: names of parameters.
        labels: soft or hard; by default the first kind that was trained with.

    Raises:
        DataError: two points share a cell: more than these two parameters vary.
    """
    labels = labels or _first(rows)
    columns, lanes = _values(rows, x), _values(rows, y)
    places = {_place(row, x, y): row for row in rows}
    if len(places) < len(rows):
        raise DataError(
            f"{len(rows)} points fall into {many(len(places), 'cell')} of {x} and {y}: choose the points of one cell each first"
        )
    cells = [[places.get((json.dumps(across), json.dumps(up))) for across in columns] for up in lanes]
    ahead = lead(rows, labels)
    about = _about(rows, labels, "mean ± std", *(["framed: best"] if ahead else []))
    figure = picture(f"Accuracy over {x} and {y}", about, 0.75 + 0.52 * max(2, len(lanes)))
    ax = figure.add_subplot()
    _heat(ax, cells, labels)
    if ahead:
        row, column = next((r, c) for r, line in enumerate(cells) for c, cell in enumerate(line) if cell is ahead.best)
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=BEST, linewidth=2.5, clip_on=False, zorder=4))
    ax.set_xticks(np.arange(len(columns)) + 0.5, [_text(value) for value in columns])
    ax.set_yticks(np.arange(len(lanes)) + 0.5, [_text(value) for value in lanes], rotation=0)
    ax.set(xlabel=axis_label(x), ylabel=textwrap.fill(axis_label(y), max(20, 10 * len(lanes))))
    ax.tick_params(length=0)
    ax.invert_yaxis()
    return figure


def _heat(ax: Axes, cells: list[list[PointRow | None]], labels: str) -> None:
    """The coloured cells with their numbers; a cell without a number says why."""
    import seaborn

    found = [[cell.own(labels) if cell else None for cell in line] for line in cells]
    means = np.array([[accuracy.mean if accuracy else np.nan for accuracy in line] for line in found])
    words = [[_cell(cell, labels, len(line) <= CELLS) for cell in line] for line in cells]
    ax.set_facecolor(FAINT)
    if np.isfinite(means).any():
        marks = {"annot": np.array(words), "fmt": "", "annot_kws": {"fontsize": 8, "linespacing": 1.25}}
        seaborn.heatmap(means, ax=ax, cmap="Blues", linewidths=1.5, linecolor="white", cbar_kws={"label": TOP1}, **marks)
        colours = np.asarray(ax.collections[0].get_facecolor())[np.isfinite(means).ravel()]
        for number, colour in zip(ax.texts, colours, strict=True):
            number.set_color(on(to_hex(colour)))
    else:
        ax.set(xlim=(0, means.shape[1]), ylim=(means.shape[0], 0))
        ax.vlines(range(1, means.shape[1]), 0, means.shape[0], color="white", linewidth=1.5)
        ax.hlines(range(1, means.shape[0]), 0, means.shape[1], color="white", linewidth=1.5)
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            if np.isnan(means[row, column]):  # which the heat map leaves empty
                ax.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=8, color=MUTED)


def _cell(row: PointRow | None, labels: str, roomy: bool) -> str:
    accuracy = row.own(labels) if row else None
    if row is None or accuracy is None:
        return row.state if row else "–"
    spread = "" if accuracy.std is None else f"\n± {accuracy.std:.1f}"
    return f"{accuracy.mean:.1f}{spread if roomy else ''}"


@styled
def lines(rows: Sequence[PointRow], x: str) -> Figure:
    """Accuracy over one parameter, a panel per kind of labels: a dot per student, mean ± std, the controls beside it.

    A control that is the same at every point (random real images do not depend on most settings) is a line across.
    """
    values, shown = _values(rows, x), kinds(rows) or ["soft"]
    sets = in_order(dict.fromkeys(name for row in rows for name, _ in row.accuracy if name != "full"))
    styles = set_styles(sets)
    figure = picture(f"Accuracy over {x}", _about(rows, shown[0], "a dot per student; bar: mean ± std"), 2.9, _key(styles))
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for labels, ax in zip(shown, panels, strict=True):
        series = {name: _over(rows, x, values, name, labels) for name in sets}
        across = [name for name in sets if styles[name].label != SETS["delt"].label and _constant(series[name])]
        beside = [name for name in sets if name not in across]
        for name in across:
            _across(ax, next(filter(None, series[name])), styles[name])
        for turn, name in enumerate(beside):
            _series(ax, series[name], styles[name], 0.5 * (turn - (len(beside) - 1) / 2) / len(beside), _numeric(values))
        ax.set_xticks(range(len(values)), [_text(value) for value in values])
        ax.set_xlim(-0.5, len(values) - 0.5)
        ax.set_xlabel(axis_label(x))
        ax.grid(axis="y")
        if len(shown) > 1:
            ax.set_title(f"{labels} labels")
    panels[0].set_ylabel(TOP1)
    if not sets:
        note(panels[0], EMPTY)
    return figure


def _over(rows: Sequence[PointRow], x: str, values: Sequence[Any], name: str, labels: str) -> list[Accuracy | None]:
    """The accuracies of one set in the order of the parameter's values."""
    found = {_place(row, x): row.accuracy.get((name, labels)) for row in rows}
    return [found.get((json.dumps(value),)) for value in values]


def _constant(series: Sequence[Accuracy | None]) -> bool:
    """Whether a set is the same at all of several values."""
    known = [accuracy for accuracy in series if accuracy]
    return len(known) > 1 and len(set(known)) == 1


def _across(ax: Axes, accuracy: Accuracy, style: SetStyle) -> None:
    """A set that is the same at every value."""
    ax.axhline(accuracy.mean, color=style.colour, linestyle=dash(style), linewidth=1.3, zorder=1)
    if accuracy.std is not None:
        ax.axhspan(accuracy.mean - accuracy.std, accuracy.mean + accuracy.std, color=style.colour, alpha=0.08, linewidth=0)


def _series(ax: Axes, series: list[Accuracy | None], style: SetStyle, shift: float, joined: bool) -> None:
    """One set over the values of the parameter; `shift` keeps sets apart that stand at the same value."""
    known = [(place, accuracy) for place, accuracy in enumerate(series) if accuracy]
    at = [place + shift for place, _ in known]
    for place, (_, accuracy) in zip(at, known, strict=True):
        dots(ax, [place] * accuracy.n, accuracy.values, style)
    means, bars = [accuracy.mean for _, accuracy in known], [accuracy.std or 0.0 for _, accuracy in known]
    line = dash(style) if joined else "none"
    ax.errorbar(at, means, yerr=bars, color=style.colour, linestyle=line, marker="_", markersize=11, markeredgewidth=2, linewidth=1.2)


@styled
def points(rows: Sequence[PointRow], labels: str | None = None) -> Figure:
    """Accuracy point by point, in the order of the sweep: a dot per student, mean ± std, the random control as a dashed line."""
    labels = labels or _first(rows)
    names, named = [row.name for row in rows], []
    if max(map(len, names), default=0) > ROW_NAME:
        names = [", ".join(_text(row.parameters.get(name)) for name in varying(rows)) for row in rows]
        named = [f"rows: {', '.join(varying(rows))}"]
    about = _about(rows, labels, "a dot per student; bar: mean ± std", *named)
    figure = picture("Accuracy of the points", about, 0.6 + 0.27 * max(2, len(rows)))
    ax = figure.add_subplot()
    for y, row in enumerate(rows):
        if (own := row.own(labels)) is None:
            ax.annotate(row.state, (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5, color=MUTED)
            continue
        style = set_styles([row.method])[row.method]
        dots(ax, own.values, [y] * own.n, style)
        ax.errorbar(own.mean, y, xerr=own.std, color=style.colour, marker="|", markersize=11, markeredgewidth=2, elinewidth=1.5)
        ax.annotate(f"{own.mean:.1f}{_spread(own)} (n {own.n})", (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5)
        if chance := row.accuracy.get(("random", labels)):
            ax.plot([chance.mean] * 2, [y - 0.5, y + 0.5], color=SETS["random"].colour, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), told_apart(names, ROW_NAME))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    if not any(row.own(labels) for row in rows):
        ax.set_xticks([])
    ax.set_xlabel(TOP1)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    return figure


@styled
def tradeoffs(rows: Sequence[PointRow], labels: str | None = None) -> Figure:
    """Accuracy against diversity, and against the work of the synthesis: a dot per point, mean ± std over its students.

    Colours tell the values of the first parameter that varies apart, where they are few.
    """
    labels = labels or _first(rows)
    known = [(row, own) for row in rows if (own := row.own(labels))]
    measured = [row for row, _ in known]
    styles = _colours(measured)
    about = _about(rows, labels, "a dot per point; bar: mean ± std", lead_too=False)
    figure = picture("What accuracy is bought with", about, 2.9, _key(styles), lines=False)
    alike, cost = figure.subplots(1, 2, sharey=True)
    for row, own in known:
        style = styles.get(_colour_of(row, measured), SETS["delt"])
        for ax, place in ((alike, row.cosine.get(row.method)), (cost, row.work)):
            if place is not None:
                ax.errorbar(place, own.mean, yerr=own.std, color=style.colour, elinewidth=0.8, marker="o", markersize=5, mfc=fill(style))
    alike.set(xlabel="Intra-class cosine similarity (lower is more diverse)", ylabel=TOP1)
    cost.set_xlabel("Image-iterations of the synthesis")
    cost.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for ax in (alike, cost):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=ax is cost))
        ax.grid()
        if not known:
            note(ax, EMPTY)
    return figure


def _colours(rows: Sequence[PointRow]) -> dict[str, SetStyle]:
    """A colour for each value of the first parameter that varies; none where they are many, or there is none."""
    names = varying(rows)
    values = _values(rows, names[0]) if names else []
    if not 1 < len(values) <= COLOURED:
        return {}
    palette = list(SETS.values())
    return {json.dumps(value): SetStyle(f"{names[0]} {_text(value)}", palette[k].colour) for k, value in enumerate(values)}


def _colour_of(row: PointRow, rows: Sequence[PointRow]) -> str:
    names = varying(rows)
    return json.dumps(row.parameters.get(names[0])) if names else ""


def axis_label(name: str) -> str:
    """A parameter's own explanation, as far as it fits under an axis.

    >>> axis_label("sub_batches")
    'M: sub-batches'
    """
    entry = next((entry for entry in flat_fields() if entry.name == name), None)
    if entry is None or entry.help.split(":")[0] in (entry.item.metadata["choices"] or ()):  # which explains values, not the parameter
        return name
    words = entry.help.split(";")[0].split(" (")[0]
    short = next((part for part in (words, words.split(": ")[0], words.split(",")[0]) if len(part) <= 45), None)
    return short[0].upper() + short[1:] if short else name


def _about(rows: Sequence[PointRow], labels: str, marks: str, *more: str, lead_too: bool = True) -> str:
    """What was trained and how, the controls that are the same at every point, and how far the best point is ahead.

    Args:
        marks: what dots and bars are, where there is a spread; `more` is said of any picture.
    """
    done = [row for row in rows if row.accuracy]
    counts = sorted({own.n for row in done if (own := row.own(labels))})
    facts = [f"{labels} labels", *unusual_test(row.hold_out for row in done)]
    facts += sorted({f"{row.student}, {many(row.epochs or 0, 'epoch')}" for row in done})[:2]
    facts += ["n " + " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))] if counts else []
    facts += [*spread_marks(counts, marks), *more, *_references(done, labels)]
    facts += [f"{len(rows) - len(done)} of {many(len(rows), 'point')} without a result"] if len(done) < len(rows) else []
    ahead = lead(rows, labels) if lead_too else None
    return "; ".join(facts) + (f". Best: {ahead}" if ahead and ahead.second else "")


def _references(done: Sequence[PointRow], labels: str) -> list[str]:
    """The controls that have one value at every point."""
    found: dict[str, set[Accuracy]] = {}
    for row in done:
        for (name, kind), accuracy in row.accuracy.items():
            if kind == labels and name not in (row.method, "full"):
                found.setdefault(name, set()).add(accuracy)
    same = {name: values.pop() for name, values in found.items() if len(values) == 1}
    return [f"{set_styles([name])[name].label} {same[name].mean:.1f}{_spread(same[name])}" for name in in_order(same)]


def _spread(accuracy: Accuracy) -> str:
    return "" if accuracy.std is None else f" ± {accuracy.std:.1f}"


def _first(rows: Sequence[PointRow]) -> str:
    return (kinds(rows) or ["soft"])[0]


def _key(styles: Mapping[str, SetStyle]) -> dict[str, SetStyle]:
    return {style.label: style for style in styles.values()}


def _place(row: PointRow, *names: str) -> tuple[str, ...]:
    return tuple(json.dumps(row.parameters.get(name)) for name in names)


def _values(rows: Sequence[PointRow], name: str) -> list[Any]:
    """The values of a parameter: numbers from small to large, others as they come."""
    found = {json.dumps(row.parameters.get(name)): row.parameters.get(name) for row in rows}
    values = list(found.values())
    return sorted(values) if _numeric(values) else values


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
