"""Artifact -> matplotlib Figure: one visual language for every picture. Computes nothing new, never shows a window.

Sub-batches run along one ramp from early (dark) to late (light), sets have one colour each in every figure, real images
are grey and the random control is dashed. A figure is 7 inches wide, draws itself in a notebook, and is saved with
`figure.savefig(path)` or `png(figure)`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Score, Scores, Summary
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.errors import DataError
from delt.schedule import Schedule, learning_rate, smallest_crop

P = ParamSpec("P")
F = TypeVar("F", bound=Figure)

WIDTH = 7.0  # inches
INK, MUTED, FAINT = "#222222", "#666666", "#dddddd"
GREY = "#8a8a8a"  # real images
MOST_COLUMNS = 20  # of images side by side
NAMED = 40  # classes whose names fit under an axis
LEGIBLE = 12  # sub-batches that can carry a number each
RAMP, LIGHTEST = "viridis", 0.9  # the ramp's last tenth is too pale for white paper
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class SetStyle:
    """How a set looks in every figure."""

    label: str
    colour: str
    dashed: bool = False


SETS: dict[str, SetStyle] = {  # colours of Okabe and Ito, and one of Tol, which colour-blind readers tell apart
    "delt": SetStyle("DELT", "#0072b2"),
    "one_sub_batch": SetStyle("one sub-batch", "#56b4e9"),
    "start": SetStyle("starting patches", "#009e73"),
    "cda": SetStyle("CDA", "#d55e00"),
    "sre2l": SetStyle("SRe2L", "#e69f00"),
    "rded": SetStyle("RDED", "#cc79a7"),
    "gvbsm": SetStyle("G-VBSM", "#882255"),
    "random": SetStyle("random real images", "#444444", dashed=True),
    "real": SetStyle("real images", GREY),
    "full": SetStyle("all real images", GREY),
}
OTHERS = ("#332288", "#999933", "#aa4499", "#117733", "#661100", "#6699cc")  # for sets of other names, in turn


class Picture(Figure):
    """A figure that a notebook displays by itself, sharp on any screen, without pyplot."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw in this module's style: matplotlib makes ticks only now, and would take the user's."""
        with _style():
            super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return png(self, 200), {"width": round(width * 100), "height": round(height * 100)}


def png(figure: Figure, dpi: float = 150) -> bytes:
    """The figure as PNG bytes; equal figures, equal bytes (for one version of matplotlib)."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=dpi, metadata={"Software": None})
    return sink.getvalue()


def sub_batch_colours(count: int) -> list[str]:
    """Hex colours of sub-batches 0 .. count - 1: dark (early) to light (late)."""
    ramp = matplotlib.colormaps[RAMP]
    return [to_hex(ramp(place)) for place in np.linspace(0, LIGHTEST, count)]


def set_styles(names: Iterable[str]) -> dict[str, SetStyle]:
    """The look of each set: fixed for the known names, colours of their own in turn for the rest."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in SETS]
    extra = {name: SetStyle(name, OTHERS[turn % len(OTHERS)]) for turn, name in enumerate(others)}
    return {name: SETS.get(name) or extra[name] for name in names}


def _style() -> contextlib.AbstractContextManager[None]:
    return matplotlib.style.context(["default", STYLE])


def _styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Draw in this module's style, whatever the user's is, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> F:
        with _style():
            return draw(*args, **kwargs)

    return styled


# ---------------------------------------------------------------- the schedule


@_styled
def schedule(
    schedule: Schedule,
    base_lr: float = 0.25,
    min_crop: float = 0.08,
    curriculum: str = "cosine",
    milestone: float = 1.0,
    clock: str = "global",
) -> Figure:
    """When each sub-batch is optimised, at what rate and under which crops.

    A bar is as high as its sub-batch has images, so the coloured area is the work and the white area what is saved.

    Args:
        base_lr, min_crop, curriculum, milestone, clock: as in `RecoverConfig`.
    """
    one = schedule.sub_batches == 1
    title = f"{_many(schedule.ipc, 'image')} per class in {_many(schedule.sub_batches, 'sub-batch', 'es')}"
    work = f"{schedule.image_iterations:,} image-iterations per class"
    gain = "" if one else f", {schedule.saved:.2%} fewer than with all images from the start ({schedule.ipc * schedule.iterations:,})"
    figure = _picture(("EarlyLate off: " if one else "EarlyLate: ") + title, work + gain, 4.4)
    bars, rate, crop = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    _bars(bars, schedule)
    crop.set_xlim(0, max(1, schedule.iterations))
    _iteration_axis(crop)
    if not schedule.iterations:
        _note(bars, "nothing is optimised: the starting images are kept")
    _curves(rate, schedule, clock, lambda t, total: learning_rate(t, total, base_lr))
    _curves(crop, schedule, clock, lambda t, total: 100 * smallest_crop(t, total, min_crop, curriculum, milestone))
    rate.set_ylabel("Learning\nrate")
    crop.set_ylabel("Smallest crop\n(% of area)")
    rate.set_ylim(0, 1.08 * base_lr or 1)
    rate.yaxis.set_major_locator(MaxNLocator(3))
    crop.set(ylim=(0, 108), yticks=[0, 50, 100])
    figure.align_ylabels()
    return figure


def _iteration_axis(ax: Axes) -> None:
    ax.set_xlabel("Iteration")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _bars(ax: Axes, schedule: Schedule) -> None:
    """One bar per sub-batch from its join to the end, early ones on top."""
    tops = np.cumsum((0, *schedule.sizes[:-1]))
    thin = schedule.sub_batches > LEGIBLE
    labelled = range(0, schedule.sub_batches, -(-schedule.sub_batches // LEGIBLE))
    for k, colour in enumerate(sub_batch_colours(schedule.sub_batches)):
        join, size, updates = schedule.joins[k], schedule.sizes[k], schedule.updates[k]
        ax.add_patch(Rectangle((join, tops[k]), updates, size, facecolor=colour, edgecolor="white", linewidth=0.2 if thin else 1))
        at = tops[k] + size / 2
        if not thin and updates:
            ax.annotate(f"{k + 1}", (join, at), (4, 0), textcoords="offset points", va="center", color=_on(colour), fontsize=7.5)
        if k in labelled:
            which = f"{k + 1}:  " if thin else ""
            ax.annotate(f"{which}{size} × {updates:,}", (1.012, at), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    for x, text in ((0, "sub-batch"), (1.012, "images × updates")):
        ax.annotate(text, (x, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=7.5)
    ax.set_ylim(schedule.ipc, 0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylabel("Images per class")


def _curves(ax: Axes, schedule: Schedule, clock: str, curve: Callable[[float, float], float]) -> None:
    """A quantity over the iterations with a dot at each join; one curve per sub-batch where each has its own clock."""
    total, colours = schedule.iterations, sub_batch_colours(schedule.sub_batches)
    ax.grid(axis="y")
    if not total:
        return
    starts = [(0, INK)] if clock == "global" else list(zip(schedule.joins, colours, strict=True))
    for start, colour in starts:
        t = np.linspace(start, total, 400)
        ax.plot(t, [curve(at - start, total - start) for at in t], color=colour, linewidth=1.2)
    heights = [curve(join, total) if clock == "global" else curve(0, total - join) for join in schedule.joins]
    if len(colours) <= LEGIBLE:
        ax.scatter(schedule.joins, heights, s=22, c=colours, zorder=3, edgecolors="white", linewidths=0.7, clip_on=False)


# ---------------------------------------------------------------- images


@_styled
def images(synthetic: SyntheticSet, per_class: int = 10, classes: Sequence[int] | None = None, what: str = "Synthetic images") -> Figure:
    """The images of a set, a row per class and early sub-batches on the left.

    Args:
        per_class: most images of a class, spread evenly from the earliest to the latest; no more than 20 can be seen.
        classes: labels to show, in this order; the first ten where not given.
        what: the set's name in the title.

    Raises:
        DataError: a label that is none.
    """
    labels = _labels(classes, len(synthetic.classes))
    rows = [_spread(_where(synthetic.labels == label), max(1, min(per_class, MOST_COLUMNS))) for label in labels]
    columns = max(1, *map(len, rows))
    head = _Head.of(synthetic, rows)
    shown = f"{len(labels)} of {len(synthetic.classes)}" if len(labels) < len(synthetic.classes) else f"all {len(labels)}"
    most = max(1, int(synthetic.labels.bincount(minlength=1).max()))
    some = f"{columns} of {most}" if columns < most else f"all {most}"
    names = [synthetic.classes[label] for label in labels]
    figure, ax, side = _grid(f"{what}, {shown} classes", f"{some} images per class, {head.says}", names, columns, head.inches)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            _tile(ax, synthetic.images[index], x, y)
    head.draw(ax, side)
    return figure


@dataclass
class _Head:
    """The strip above the columns of an image grid that says which sub-batch they are of."""

    runs: list[tuple[int, int, int, int]]  # sub-batch, first column, columns, updates
    colours: list[str]
    says: str

    @staticmethod
    def of(synthetic: SyntheticSet, rows: list[list[int]]) -> _Head:
        """Empty where nothing was optimised, or where columns hold images of different sub-batches."""
        kinds = [[(int(synthetic.sub_batch[i]), int(synthetic.iterations[i])) for i in row] for row in rows]
        first = max(kinds, key=len, default=[])
        if not any(updates for _, updates in first):
            return _Head([], [], "not optimised")
        if any(kind != first[: len(kind)] for kind in kinds):
            return _Head([], [], "early sub-batches on the left")
        runs = [(kind[0], first.index(kind), first.count(kind), kind[1]) for kind in dict.fromkeys(first)]
        return _Head(runs, sub_batch_colours(int(synthetic.sub_batch.max()) + 1), "early sub-batches on the left")

    @property
    def inches(self) -> float:
        """Its height."""
        return 0.42 if self.runs else 0.0

    def draw(self, ax: Axes, side: float) -> None:
        """A coloured bar per sub-batch with its number inside and the updates of its images above."""
        bar, above = -0.14 / side, -0.26 / side  # a cell is `side` inches
        for k, start, count, updates in self.runs:
            ax.add_patch(Rectangle((start + 0.03, 1.6 * bar), count - 0.06, -1.2 * bar, facecolor=self.colours[k], edgecolor="none"))
            if side * count > 0.2:
                ax.text(start + count / 2, bar, f"{k + 1}", ha="center", va="center", color=_on(self.colours[k]), fontsize=7.5)
            if side * count > 0.36:
                ax.text(start + count / 2, above, f"{updates:,}", ha="center", va="bottom", fontsize=7.5, color=MUTED)
        if self.runs:
            ax.text(-0.07 / side, bar, "sub-batch", ha="right", va="center", fontsize=7.5, color=MUTED)
            ax.text(-0.07 / side, above, "updates", ha="right", va="bottom", fontsize=7.5, color=MUTED)


@_styled
def trajectory(snapshots: Snapshots, label: int, steps: int = 6, name: str | None = None) -> Figure:
    """Images of one class while they are optimised: a row per image (at most five, early on top), the start at the left.

    An image that has not joined yet is faded.

    Args:
        label: one of the recorded classes (`snapshots.labels`).
        steps: columns, the start and the finished images among them.
        name: the class's name.

    Raises:
        DataError: the class was not recorded.
    """
    rows = _recorded(snapshots, label)
    times = _spread(list(range(len(snapshots.images))), max(2, min(steps, MOST_COLUMNS)))
    depth = [int(snapshots.sub_batch[r]) for r in rows]
    colours = sub_batch_colours(int(snapshots.sub_batch.max()) + 1)
    about = f"{len(rows)} of {len(_where(snapshots.labels == label))} images, one per row; faded: not joined yet"
    title = f"Images of class {name or label} while they are optimised"
    figure, ax, _ = _grid(title, about, [f"sub-batch {k + 1}" for k in depth], len(times), 0.2)
    for y, (row, k) in enumerate(zip(rows, depth, strict=True)):
        ax.add_patch(Rectangle((-0.1, y + 0.03), 0.06, 0.94, facecolor=colours[k], edgecolor="none"))
        for x, s in enumerate(times):
            waits = x > 0 and bool((snapshots.images[: s + 1, row] == snapshots.images[0, row]).all())
            _tile(ax, snapshots.images[s, row], x, y, 0.3 if waits else 1.0)
    marks = [f"{int(snapshots.iterations[s, rows[0]]):,}" for s in times]
    for x, text in enumerate(["start", *marks[1:-1], f"end ({marks[-1]})"]):
        ax.text(x + 0.5, -0.05, text, ha="center", va="bottom", fontsize=8)
    ax.text(-0.13, -0.05, "iteration", ha="right", va="bottom", fontsize=8, color=MUTED)
    return figure


def _recorded(snapshots: Snapshots, label: int) -> list[int]:
    """At most five recorded images of a class: one per sub-batch where there are that many, early ones first."""
    rows = sorted(_where(snapshots.labels == label), key=lambda row: int(snapshots.sub_batch[row]))
    if not rows:
        raise DataError(
            f"class {label} was not recorded; recorded are {snapshots.labels.unique().tolist()}, and recover_record_classes sets how many"
        )
    firsts = list({int(snapshots.sub_batch[row]): row for row in reversed(rows)}.values())[::-1]
    return _spread(firsts if len(firsts) >= 5 else rows, 5)


def _labels(classes: Sequence[int] | None, count: int) -> list[int]:
    """The labels asked for, or the first ten."""
    labels = list(range(min(10, count))) if classes is None else list(classes)
    if not labels or not all(0 <= label < count for label in labels):
        raise DataError(f"classes are {labels}; allowed are labels from 0 to {count - 1}")
    return labels


def _grid(title: str, subtitle: str, names: Sequence[str], columns: int, head: float) -> tuple[Figure, Axes, float]:
    """A figure of square cells with a name on the left of each row, its axes, and a cell's side; `head` and the side are in inches."""
    margin = 0.3 + 0.066 * max([9, *map(len, names)])
    side = min((WIDTH - margin) / columns, max(0.64, 6 / len(names)), 1.2)
    figure = _picture(title, subtitle, side * len(names) + head + 0.1)
    ax = figure.add_subplot(anchor="NW")
    ax.set(xlim=(-0.12, columns), ylim=(len(names), -head / side), xticks=[])
    ax.set_yticks([y + 0.5 for y in range(len(names))], names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal")
    return figure, ax, side


def _tile(ax: Axes, image: Tensor, column: int, row: int, alpha: float = 1.0) -> None:
    """A uint8 image [C,H,W] in one cell, its pixels as squares unless it is larger than the cell."""
    pixels = image.permute(1, 2, 0).numpy()
    extent = (column + 0.03, column + 0.97, row + 0.97, row + 0.03)
    limits = ax.get_xlim(), ax.get_ylim()
    how: Any = "nearest" if max(pixels.shape) <= 64 else "auto"
    ax.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, "gray", vmin=0, vmax=255, extent=extent, interpolation=how, alpha=alpha
    )
    ax.set(xlim=limits[0], ylim=limits[1])


# ---------------------------------------------------------------- losses


@_styled
def losses(snapshots: Snapshots) -> Figure:
    """Cross-entropy of each sub-batch, and the statistics distance of all active images, over the iterations."""
    readings = snapshots.readings
    groups = len({reading["group"] for reading in readings})
    at = sorted({reading["iteration"] for reading in readings})
    about = "one group of images" if groups == 1 else f"mean over {groups} groups of images; bands: smallest to largest group"
    figure = _picture("Losses while the images are optimised", f"{about}; {len(at)} readings", 4.0)
    entropy, distance = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1])
    count = max((len(reading["cross_entropy"]) for reading in readings), default=1)
    colours = sub_batch_colours(count)
    for k in range(count):
        _line(
            entropy,
            at,
            [[value for r in readings if r["iteration"] == t for value in r["cross_entropy"][k : k + 1] if value is not None] for t in at],
            colours[k],
        )
    _line(distance, at, [[r["bn"] for r in readings if r["iteration"] == t] for t in at], INK)
    entropy.set_yscale("log", nonpositive="mask")
    entropy.set_ylabel("Cross-entropy (nats)")
    distance.set_ylabel("BatchNorm distance")
    distance.set_ylim(bottom=0)
    _iteration_axis(distance)
    for ax in (entropy, distance):
        ax.grid(axis="y")
    if not readings:
        _note(entropy, "no losses were recorded")
    if count > 1:
        _ramp_bar(figure, [entropy, distance], colours)
    figure.align_ylabels()
    return figure


def _line(ax: Axes, at: list[int], values: list[list[float]], colour: str) -> None:
    """The mean at each iteration, with a band from the smallest to the largest value where there are several."""
    known = [(t, v) for t, v in zip(at, values, strict=True) if v]
    t = [t for t, _ in known]
    ax.plot(t, [float(np.mean(v)) for _, v in known], color=colour, linewidth=1.3)
    if any(len(v) > 1 for _, v in known):
        ax.fill_between(t, [min(v) for _, v in known], [max(v) for _, v in known], color=colour, alpha=0.15, linewidth=0)


def _ramp_bar(figure: Figure, axes: list[Axes], colours: list[str]) -> None:
    """The key of the sub-batches' ramp at the right of the axes, early on top."""
    norm = BoundaryNorm([k + 0.5 for k in range(len(colours) + 1)], len(colours))
    ticks = range(1, len(colours) + 1, -(-len(colours) // 10))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, aspect=30, pad=0.02, ticks=list(ticks))
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.ax.spines[:].set_visible(False)
    bar.set_label("Sub-batch (early to late)")


# ---------------------------------------------------------------- measures


@_styled
def accuracy(scores: Scores) -> Figure:
    """Test accuracy of students: a dot each, mean and standard deviation per set, soft and hard labels side by side."""
    lines = scores.summary()
    small = [line for line in lines if line.set != "full"]
    kinds = list(dict.fromkeys((line.recipe, line.arch) for line in small or lines))
    labels = sorted({line.labels for line in small or lines}, reverse=True)
    sets = [list(dict.fromkeys((line.set, line.epochs) for line in _of(lines, kind))) for kind in kinds]
    sets = [sorted(rows, key=lambda row: row[0] == "full") for rows in sets]
    about = [f"{kinds[0][1]}, recipe {kinds[0][0]}"] if len(kinds) == 1 else []
    about += ["a dot per student (seed); bar: mean ± standard deviation"]
    about += ["grey: all real images"] if len(small) < len(lines) else []
    body = 0.55 + max(0.6, sum(0.3 * len(rows) + 0.35 for rows in sets))
    figure = _picture("Accuracy of students trained from scratch, last epoch", "; ".join(about), body)
    shape = max(1, len(kinds)), max(1, len(labels))
    grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey="row", height_ratios=[len(rows) for rows in sets] or None)
    for kind, rows, panels in zip(kinds, sets, grid, strict=False):
        for kept, ax in zip(labels, panels, strict=True):
            _students(ax, scores, [line for line in _of(lines, kind) if line.labels == kept or line.set == "full"], rows)
            ax.set_title(f"{kept} labels" if len(kinds) == 1 else f"{kind[1]}, {kind[0]}, {kept} labels")
    for ax in grid[-1]:
        ax.set_xlabel("Top-1 accuracy (%)")
    if not lines:
        _note(grid[0, 0], "no student has been trained yet")
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
        _dots(ax, values, [y] * len(values), style)
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
    ax.set_yticks(range(len(rows)), [styles[name].label + (f", {epochs} epochs" if repeated else "") for name, epochs in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)


def _is(row: Score, line: Summary) -> bool:
    return (row.set, row.recipe, row.labels, row.arch, row.epochs) == (line.set, line.recipe, line.labels, line.arch, line.epochs)


@_styled
def diversity(values: Mapping[str, Mapping[str, float]], features: str = "the teacher's features") -> Figure:
    """Intra-class cosine similarity of each class, and its mean over the classes, for one or several sets.

    Args:
        values: set name -> what `delt.analysis.diversity.diversity` yields, as a dict.
        features: what the similarity was measured in.
    """
    classes = list(dict.fromkeys(name for of_set in values.values() for name in of_set if name != "mean"))
    about = f"{features}; one dot per class, line: mean over {_many(len(classes), 'class', 'es')}"
    title = "Intra-class cosine similarity, lower is more diverse"
    if len(classes) > NAMED:
        figure = _picture(title, about, 0.6 + 0.45 * len(values))
        _class_clouds(figure.add_subplot(), values)
        return figure
    styles = set_styles(values)
    key = {f"{styles[name].label}: mean {of_set['mean']:.3f}": styles[name] for name, of_set in values.items() if "mean" in of_set}
    figure = _picture(title, about, 3.0, key)
    ax = figure.add_subplot()
    for turn, (name, of_set) in enumerate(values.items()):
        shift = 0.5 * (turn - (len(values) - 1) / 2) / len(values)  # sets stand side by side in a class
        own = [(x + shift, of_set[label]) for x, label in enumerate(classes) if label in of_set]
        _dots(ax, [x for x, _ in own], [y for _, y in own], styles[name])
        if "mean" in of_set:
            ax.axhline(of_set["mean"], color=styles[name].colour, linewidth=1.2, linestyle=_dash(styles[name]), zorder=1)
    _class_axis(ax, classes)
    ax.set_ylabel("Mean cosine of pairs")
    ax.grid(axis="y")
    if not classes:
        _note(ax, "no class has two images to compare")
    return figure


def _class_axis(ax: Axes, classes: Sequence[str]) -> None:
    """A tick per class with its name, slanted where they are long."""
    slant = sum(map(len, classes)) > 75
    ax.set_xticks(range(len(classes)), classes, rotation=40 if slant else 0, ha="right" if slant else "center", rotation_mode="anchor")
    ax.set_xlim(-0.6, max(1, len(classes)) - 0.4)
    ax.set_xlabel("Class")


def _class_clouds(ax: Axes, values: Mapping[str, Mapping[str, float]]) -> None:
    """A row per set: the classes, too many to name, as a cloud of dots, and their mean."""
    styles = set_styles(values)
    for y, (name, of_set) in enumerate(values.items()):
        x = [value for label, value in of_set.items() if label != "mean"]
        ax.scatter(
            x, y + _scattered(len(x)), s=9, facecolors=_fill(styles[name]), edgecolors=styles[name].colour, linewidths=0.6, alpha=0.6
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


@_styled
def ranking(ranking: Ranking, classes: Sequence[int] | None = None) -> Figure:
    """How the teacher scores the candidate patches of each class, and which of them start the synthetic images.

    Scores nearer to 0 or 1 than a millionth are drawn at the axis' end.

    Args:
        classes: labels to show, in this order; the first ten where not given.

    Raises:
        DataError: a label that is none.
    """
    labels = _labels(classes, len(ranking.classes))
    kept = int((ranking.place >= 0).sum())
    shown = "" if len(labels) == len(ranking.classes) else f"; {len(labels)} of {len(ranking.classes)} classes shown"
    about = f"{len(ranking):,} candidates, {kept:,} kept ({ranking.keep}){shown}"
    key = {"candidate": SetStyle("candidate", GREY), "kept, starts a synthetic image": SETS["delt"]}
    figure = _picture("Real patches that start the synthetic images, by difficulty", about, 0.8 + 0.42 * len(labels), key, lines=False)
    ax = figure.add_subplot()
    ax.set_xscale("logit")
    for y, label in enumerate(labels):
        rows = ranking.class_index == label
        _patches(ax, y, ranking.score[rows], ranking.place[rows] >= 0)
    ax.set_yticks(range(len(labels)), [ranking.classes[label] for label in labels])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set(ylabel="Class", xlabel="Teacher's probability of the true class (hard to easy)")
    ax.tick_params(axis="y", length=0)
    _percent_axis(ax)
    if not bool(ranking.score.isfinite().any()):
        _note(ax, f"{ranking.keep} order: the candidates were not scored")
    return figure


def _patches(ax: Axes, y: int, score: Tensor, kept: Tensor) -> None:
    """The candidates of a class as a band of dots; those that are kept stand out."""
    known = score.isfinite()
    x = score.double().clamp(1e-6, 1 - 1e-6).numpy()
    height = y + _scattered(len(x))
    for mask, colour, size, alpha in ((known & ~kept, GREY, 7, 0.45), (known & kept, SETS["delt"].colour, 14, 1.0)):
        ax.scatter(x[mask.numpy()], height[mask.numpy()], s=size, c=colour, alpha=alpha, linewidths=0, clip_on=False)


def _scattered(count: int) -> np.ndarray:
    """Heights in a row, -0.3 .. 0.3, for dots that would hide each other; the golden ratio sets neighbours apart."""
    heights: np.ndarray = 0.6 * (np.arange(count) * 0.618034 % 1 - 0.5)
    return heights


def _percent_axis(ax: Axes) -> None:
    """Plain percentages on a logit axis, from the round one below the data to the one above."""
    odds = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6])
    low, high = ax.dataLim.intervalx if np.isfinite(ax.dataLim.intervalx).all() else (0.1, 0.99)
    first = min(max(0, int((odds <= low).sum()) - 1), len(odds) - 2)
    last = max(first + 1, int((odds < high).sum()))
    ticks = odds[first : last + 1]
    ax.set_xlim(ticks[0], ticks[-1])
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
    ax.minorticks_off()
    ax.grid(axis="x")


# ---------------------------------------------------------------- shared


def _picture(title: str, subtitle: str, body: float, key: Mapping[str, SetStyle] | None = None, lines: bool = True) -> Picture:
    """A figure with its title, subtitle and key stacked at the upper left, and `body` inches below for the axes."""
    about = textwrap.wrap(subtitle, 105)
    rows = -(-len(key) // 3) if key else 0
    height = body + 0.4 + 0.16 * len(about) + 0.2 * rows
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, body / height))
    figure = Picture(figsize=(WIDTH, height), layout=layout, facecolor="white")
    figure.suptitle(title, x=0.1 / WIDTH, y=1 - 0.08 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    figure.text(0.1 / WIDTH, 1 - 0.31 / height, "\n".join(about), va="top", color=MUTED)
    if key:
        place = (0.0, 1 - (0.31 + 0.16 * len(about)) / height)
        handles = [_handle(style, lines) for style in key.values()]
        legend = figure.legend(
            handles, list(key), loc="upper left", bbox_to_anchor=place, ncols=3, columnspacing=1.5, borderpad=0.4, handlelength=2.6
        )
        legend.set_in_layout(False)
    return figure


def _handle(style: SetStyle, line: bool) -> Line2D:
    return Line2D(
        [], [], color=style.colour, marker="o", markersize=5, linestyle=_dash(style) if line else "none", markerfacecolor=_fill(style)
    )


def _dots(ax: Axes, x: Sequence[float], y: Sequence[float], style: SetStyle) -> None:
    edge, width = (style.colour, 0.9) if style.dashed else ("white", 0.5)
    ax.scatter(x, y, s=26, color=_fill(style), edgecolors=edge, linewidths=width, zorder=3)


def _dash(style: SetStyle) -> Literal["-", "--"]:
    return "--" if style.dashed else "-"


def _fill(style: SetStyle) -> str:
    return "white" if style.dashed else style.colour


def _note(ax: Axes, text: str) -> None:
    """Say in the middle of an empty picture why it is empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _on(colour: str) -> str:
    """White or black, whichever can be read on this colour."""
    red, green, blue = to_rgb(colour)
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def _many(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def _where(mask: Tensor) -> list[int]:
    places: list[int] = mask.nonzero().squeeze(1).tolist()
    return places


def _spread(items: list[int], most: int) -> list[int]:
    """At most `most` of the items, evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]
