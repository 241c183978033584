"""Runs side by side: accuracy against what a set costs and how diverse it is, and images of the same classes."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from delt.analysis.accuracy import KINDS
from delt.analysis.compare import FULL, Entry, usual
from delt.analysis.table import unusual_test
from delt.artifacts.synthetic import SyntheticSet
from delt.errors import DataError
from delt.plots.style import (
    GREY,
    ROW_NAME,
    WIDTH,
    SetStyle,
    blank,
    elided,
    fill,
    many,
    note,
    of_all,
    picture,
    set_styles,
    shown_labels,
    spread,
    spread_marks,
    styled,
    told_apart,
)

MARKERS = "osD^vP*X"  # runs of one set in turn, whose colour is the same
KEY, WORD = 24, 12  # letters of a name in the key, of which three stand in a line, and of the set in it
WIDE, WIDER = 20, 1000  # ratio of the costs from which on the axis is logarithmic, and has a tick per power of ten only
ABREAST = 3  # runs in a line of image grids


@styled
def comparison(entries: Sequence[Entry], labels: str | None = None) -> Figure:
    """Accuracy against the seconds of the synthesis and against diversity: mean ± std over the students of each set.

    A colour is a method or control, a marker a run. Only sets whose students were trained alike are drawn, as most were.

    Args:
        entries: see `delt.results.compare`.
        labels: soft or hard; by default the first kind that was trained with.
    """
    how = usual(entries)
    small = [entry for entry in entries if entry.set != FULL and entry.protocol == how]
    labels = labels or next((kind for kind in KINDS if any(kind in entry.accuracy for entry in small)), KINDS[0])
    known = [entry for entry in small if labels in entry.accuracy]
    looks = _looks(known)
    full = next((e for e in entries if e.set == FULL and how and e.protocol and e.protocol[:2] == how[:2]), None)  # of other epochs
    figure = picture("Accuracy, what it costs and how diverse the sets are", _about(entries, known, full, labels), 2.9, _key(looks))
    _show_markers(figure, [marker for _, marker in looks.values()])
    cost, alike = figure.subplots(1, 2, sharey=True)
    for entry, (style, marker) in zip(known, looks.values(), strict=True):
        accuracy = entry.accuracy[labels]
        for ax, place in ((cost, entry.seconds), (alike, entry.cosine)):
            if place is not None:
                mark: dict[str, Any] = {"marker": marker, "markersize": 6, "mfc": fill(style), "elinewidth": 0.9}
                ax.errorbar(place, accuracy.mean, yerr=accuracy.std, color=style.colour, **mark)
    for ax in (cost, alike):
        ax.grid()
        if full:
            ax.axhline(full.accuracy["hard"].mean, color=GREY, linewidth=1, zorder=1)
    _cost_axis(cost, [entry.seconds for entry in known if entry.seconds is not None])
    alike.xaxis.set_major_locator(MaxNLocator(5))
    cost.set(xlabel="Synthesis (seconds, without the teacher)", ylabel="Top-1 accuracy (%)")
    alike.set_xlabel("Intra-class cosine (lower is more diverse)")
    if known and all(entry.cosine is None for entry in known):
        note(alike, "one image of a class\nhas no similarity")
    if not known:
        note(cost, f"no student has been trained\nwith {labels} labels yet")
        blank(alike)
    return figure


def _looks(entries: Sequence[Entry]) -> dict[str, tuple[SetStyle, str]]:
    """Name in the key -> colour of the set, and a marker that no other run of that colour has."""
    styles, seen = set_styles(entry.set for entry in entries), Counter[str]()
    several = len({entry.ipc for entry in entries}) > 1
    looks: dict[str, tuple[SetStyle, str]] = {}
    for entry in entries:
        size = f", ipc {entry.ipc}" if several else ""
        what = f": {elided(entry.set, WORD)}{size}"
        name = elided(entry.run, KEY - len(what)) + what
        plain = entry.run in (entry.set, f"{entry.set}-ipc{entry.ipc}")
        if plain or not entry.own:  # a method stands for its run, a control for itself, unless two runs have different ones
            short = next((words for words in (styles[entry.set].label + size, entry.set + size) if len(words) <= KEY), name)
            name = short if short not in looks else name
        while name in looks:  # where what tells two runs apart was left out
            name += "'"
        colour = styles[entry.set].colour  # of two sets where there are more sets than colours
        looks[name] = (styles[entry.set], MARKERS[seen[colour] % len(MARKERS)])
        seen[colour] += 1
    return looks


def _key(looks: Mapping[str, tuple[SetStyle, str]]) -> dict[str, SetStyle]:
    return {name: style for name, (style, _) in looks.items()}


def _show_markers(figure: Figure, markers: Sequence[str]) -> None:
    """Give the key, which knows colours alone, the markers of the runs."""
    handles = [handle for legend in figure.legends for handle in legend.legend_handles]
    for handle, marker in zip(handles, markers, strict=True):
        if isinstance(handle, Line2D):
            handle.set(marker=marker, linestyle="none")


def _about(entries: Sequence[Entry], known: Sequence[Entry], full: Entry | None, labels: str) -> str:
    """How the students were trained, and which runs are missing, and why."""
    facts = [f"{labels} labels", *unusual_test(entry.hold_out for entry in known), *([str(known[0].protocol)] if known else [])]
    counts = sorted({entry.accuracy[labels].n for entry in known})
    facts += spread_marks(counts, f"mean ± std, n {'/'.join(map(str, counts))}")
    facts += [f"line: all real images, hard labels, {full.accuracy['hard'].mean:.1f}"] if full else []
    drawn = {(entry.run, entry.set) for entry in known}
    left = [entry for entry in entries if entry.set != FULL and (entry.run, entry.set) not in drawn]
    for reason, chosen in (
        ("not evaluated yet", [entry for entry in left if not entry.accuracy]),
        ("without these labels", [entry for entry in left if entry.accuracy and labels not in entry.accuracy]),
        ("left out, trained otherwise", [entry for entry in left if labels in entry.accuracy]),
        ("without a cosine", [entry for entry in known if entry.cosine is None]),
    ):
        names = ", ".join(dict.fromkeys(entry.run for entry in chosen))
        facts += [f"{reason}: {textwrap.shorten(names, 100, placeholder=' …')}"] if names else []
    return "; ".join(facts)


def _cost_axis(ax: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the costs are far apart, with plain numbers."""
    if values and max(values) >= WIDE * min(values) > 0:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(values) < WIDER * min(values) else (1.0,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e4 else f"{value / 1000:,.6g}k"))
        ax.xaxis.set_minor_formatter(NullFormatter())  # its own would write mathematics
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))


@styled
def side_by_side(sets: Mapping[str, SyntheticSet], classes: Sequence[int] | None = None, per_class: int = 5) -> Figure:
    """Images of the same classes of several sets: a block per set, a row per class, early sub-batches on the left.

    Args:
        sets: by name, of one data set.
        classes: labels to show, in this order; the first ten where not given.
        per_class: most images of a class, spread evenly from the earliest to the latest; no more than 10 can be seen.

    Raises:
        DataError: the sets have different classes, or a label is none.
    """
    if not sets:
        return picture("Images of the same classes", "no run has made its images yet", 0.1)
    names = next(iter(sets.values())).classes
    if other := next((name for name, one in sets.items() if one.classes != names), None):
        raise DataError(f"{next(iter(sets))} and {other} have different classes: compare sets of one data set")
    labels = shown_labels(classes, len(names))
    rows = {name: [_of_class(one, label, per_class) for label in labels] for name, one in sets.items()}
    columns = max((len(row) for block in rows.values() for row in block), default=1)
    beside = told_apart([names[label] for label in labels], ROW_NAME)
    margin = 0.35 + 0.066 * max(map(len, beside))
    abreast = min(ABREAST, len(sets))
    side = min((WIDTH - margin) / (abreast * (columns + 0.3)), 0.5)
    lines = -(-len(sets) // abreast)
    shown = of_all(len(labels), len(names), "class", "es")
    about = f"{shown}, up to {many(columns, 'image')} per class, early sub-batches on the left"
    figure = picture("Images of the same classes", about, lines * (side * len(labels) + 0.35))
    grid = figure.subplots(lines, abreast, squeeze=False, subplot_kw={"anchor": "NW"})
    for ax in grid.flat[len(sets) :]:
        ax.remove()
    titles = told_apart(list(rows), int(columns * side / 0.075))
    for turn, (ax, block) in enumerate(zip(grid.flat, rows.values(), strict=False)):
        _sheet(ax, block, columns)
        ax.set_title(titles[turn])
        ax.set_yticks(np.arange(len(labels)) + 0.5, beside if turn % abreast == 0 else [""] * len(labels))
    return figure


def _of_class(one: SyntheticSet, label: int, per_class: int) -> list[Tensor]:
    """Images uint8 [C,H,W] of a class."""
    places: list[int] = (one.labels == label).nonzero().squeeze(1).tolist()
    return [one.images[place] for place in spread(places, max(1, min(per_class, 10)))]


def _sheet(ax: Axes, rows: Sequence[Sequence[Tensor]], columns: int) -> None:
    """Rows of images in cells of size 1, their pixels as squares unless they are large."""
    ax.set(xlim=(0, columns), ylim=(len(rows), 0), xticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            pixels = image.permute(1, 2, 0).numpy()
            how: Any = "nearest" if max(pixels.shape) <= 64 else "auto"
            extent = (x + 0.03, x + 0.97, y + 0.97, y + 0.03)
            grey = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
            ax.imshow(grey, "gray", vmin=0, vmax=255, extent=extent, interpolation=how, aspect="equal")
    ax.set(xlim=(0, columns), ylim=(len(rows), 0))
