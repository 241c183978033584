"""What happens over the iterations: the schedule of the sub-batches, and the losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from delt.artifacts.snapshots import Snapshots
from delt.plots.style import INK, LEGIBLE, MUTED, blank, many, note, on, picture, styled, sub_batch_colours
from delt.schedule import Schedule, learning_rate, smallest_crop


@styled
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
    title = f"{many(schedule.ipc, 'image')} per class in {many(schedule.sub_batches, 'sub-batch', 'es')}"
    work = f"{many(schedule.image_iterations, 'image-iteration')} per class"
    gain = "" if one else f", {schedule.saved:.2%} fewer than with all images from the start ({schedule.ipc * schedule.iterations:,})"
    figure = picture(("EarlyLate off: " if one else "EarlyLate: ") + title, work + gain, 4.4)
    bars, rate, crop = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    _bars(bars, schedule)
    crop.set_xlim(0, max(1, schedule.iterations))
    _iteration_axis(crop)
    _curves(rate, schedule, clock, lambda t, total: learning_rate(t, total, base_lr))
    _curves(crop, schedule, clock, lambda t, total: 100 * smallest_crop(t, total, min_crop, curriculum, milestone))
    rate.set_ylabel("Learning\nrate")
    crop.set_ylabel("Smallest crop\n(% of area)")
    rate.set_ylim(0, 1.08 * base_lr or 1)
    rate.yaxis.set_major_locator(MaxNLocator(3))
    crop.set(ylim=(0, 108), yticks=[0, 50, 100])
    if not schedule.iterations:
        note(bars, "nothing is optimised: the starting images are kept")
        blank(rate, crop)
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
        ax.add_patch(Rectangle((join, tops[k]), updates, size, facecolor=colour, edgecolor="none" if thin else "white"))
        at = tops[k] + size / 2
        if not thin and updates:
            ax.annotate(f"{k + 1}", (join, at), (4, 0), textcoords="offset points", va="center", color=on(colour), fontsize=7.5)
        if k in labelled:
            which = f"{k + 1}:  " if thin else ""
            ax.annotate(f"{which}{size} × {updates:,}", (1.012, at), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    for x, text in ((0, "sub-batch"), (1.012, "images × updates")):
        ax.annotate(text, (x, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=7.5)
    if schedule.joins[-1] > 0.4 * schedule.iterations:  # there is room at the lower left
        ax.text(0.02, 0.06, f"{schedule.saved:.0%} of the work\nis saved", transform=ax.transAxes, color=MUTED, linespacing=1.3)
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


@styled
def losses(snapshots: Snapshots) -> Figure:
    """Cross-entropy of each sub-batch, and the statistics distance of all active images, over the iterations."""
    readings = snapshots.readings
    groups = len({reading["group"] for reading in readings})
    at = sorted({reading["iteration"] for reading in readings})
    marks = "one group of images; " if groups == 1 else f"mean over {groups} groups of images; bands: smallest to largest group; "
    about = (marks if readings else "") + many(len(at), "reading")
    figure = picture("Losses while the images are optimised", about, 4.0)
    entropy, distance = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1])
    count = max([1, *(len(reading["cross_entropy"]) for reading in readings), *(1 + snapshots.sub_batch).tolist()])
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
    _plain_log_axis(entropy)
    entropy.set_ylabel("Cross-entropy (nats)")
    distance.set_ylabel("BatchNorm distance")
    distance.set_ylim(bottom=0)
    _iteration_axis(distance)
    for ax in (entropy, distance):
        ax.grid(axis="y")
    if not readings:
        note(entropy, "no losses were recorded")
        blank(distance)
    if count > 1:
        _ramp_bar(figure, [entropy, distance], colours)
    figure.align_ylabels()
    return figure


def _plain_log_axis(ax: Axes) -> None:
    """Numbers as they are written, since powers of ten would be mathematics: steps over a short span, 1, 2, 5 over a longer one."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(MaxNLocator(4) if high < 4 * low else LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


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
