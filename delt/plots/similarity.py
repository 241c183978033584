"""How alike the images of sets are, by class, by pair and by depth, and where they lie among real ones."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from delt.analysis.sets import FeatureSet, cosine_to_class, pairwise_cosine
from delt.errors import DataError
from delt.plots.style import (
    INK,
    MUTED,
    SetStyle,
    class_colours,
    class_ticks,
    class_ticks_height,
    dash,
    elided,
    fill,
    many,
    note,
    picture,
    scattered,
    set_styles,
    shown_labels,
    styled,
    told_apart,
)

NAMED = 14  # classes whose names fit under bars
COLOURED = 10  # classes that have a colour of their own
LETTER = 0.075  # inches of a title
LEVEL = 30  # letters of all names that fit side by side
ANNOTATED = 6  # images of a class whose pairs have room for a number each
# Of sub-batches, early ones first; the same as the explorer's.
MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", (5, 1, 0), (4, 1, 0), (6, 1, 0))
COSINE = "Mean cosine of pairs"
Points = np.ndarray  # float [N,2]


@styled
def class_similarity(sets: Sequence[FeatureSet], features: str = "the teacher's features") -> Figure:
    """Intra-class cosine similarity of each class as sorted bars, and the mean over the classes: a panel per set.

    Args:
        features: what the similarity was measured in.
    """
    styles = _styles(sets)
    columns = min(2, len(sets)) or 1
    lanes = -(-len(sets) // columns) or 1
    count = max((len(found.by_class) for found in sets), default=0)
    names = max((class_ticks_height(found.classes, LEVEL) for found in sets if len(found.classes) <= NAMED), default=0.15)
    marks = f"; a bar per class, each panel in its own order; line: mean over {many(count, 'class', 'es')}" if count else ""
    figure = picture("Intra-class cosine similarity, lower is more diverse", features + marks, 0.3 + (1.5 + names) * lanes)
    panels = list(figure.subplots(lanes, columns, squeeze=False, sharey=True).flat)
    for found, ax in zip(sets, panels, strict=False):
        _sorted_bars(ax, found, styles[found.name])
    for ax in panels[len(sets) :]:
        ax.remove()
    for lane in range(0, len(sets), columns):
        _name_heights(panels[lane : lane + columns])
    return figure


def _name_heights(lane: Sequence[Axes]) -> None:
    """The heights of the panels of a row, which they share, at the left of the first that has bars."""
    ax = next((ax for ax in lane if ax.patches), None)
    if ax:
        ax.tick_params(labelleft=True)
    (ax or lane[0]).set_ylabel(COSINE)


def _sorted_bars(ax: Axes, found: FeatureSet, style: SetStyle) -> None:
    ranked = sorted(found.by_class.items(), key=lambda item: -item[1])
    values = [value for _, value in ranked]
    ax.bar(range(len(values)), values, color=style.colour, alpha=0.75, width=0.8 if len(values) <= NAMED else 1.0)
    mean = found.cosine
    label = elided(style.label, 28)
    ax.set_title(label if mean is None else f"{label}: mean {mean:.3f}")
    if mean is None:
        note(ax, "no class has two images")
        ax.set_xlabel("Class")
        return
    ax.axhline(mean, color=INK, linewidth=1.2, linestyle=dash(style))
    ax.axhline(0, color=INK, linewidth=0.8)
    if len(values) <= NAMED:
        names = [found.classes[label] for label, _ in ranked]
        class_ticks(ax, names, LEVEL)
        ax.set_xlabel("Class")
    else:
        ax.set_xlabel(f"{len(values):,} classes, most alike first")
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y")


@styled
def pairs(sets: Sequence[FeatureSet], label: int, most: int = 50, features: str = "the teacher's features") -> Figure:
    """Cosine of every pair of images of one class as a heat map per set, early sub-batches first; the diagonal is left out.

    Args:
        label: the class.
        most: images of each set at most: the first ones.

    Raises:
        DataError: a label that is none, or no set.
    """
    import seaborn

    if not sets:
        raise DataError("there is no set; give at least one")
    shown_labels([label], len(sets[0].classes))
    styles, parts = _styles(sets), [found.of_class(label, most) for found in sets]
    columns = 4 if len(sets) == 4 else min(3, len(sets))
    lanes = -(-len(sets) // columns)
    matrices = [_without_diagonal(part) for part in parts]
    known = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices] or [np.zeros(1)])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    low, high = (low, high) if low < high else (max(-1.0, low - 0.05), min(1.0, high + 0.05))  # all alike: a bar beside them all the same
    marks = f"; a row and a column per image, the first {most} at most; white: the image itself" if len(known) else ""
    side = 6.0 / max(2, columns)
    figure = picture(f"Pairs of images of class {sets[0].classes[label]}", features + marks, lanes * (side + 0.35))
    panels = figure.subplots(lanes, columns, squeeze=False)
    titles = told_apart([styles[found.name].label for found in sets], int(side / LETTER))
    for title, part, matrix, ax in zip(titles, parts, matrices, panels.flat, strict=False):
        numbers = np.array([[_short(value) for value in row] for row in matrix]) if len(part) <= ANNOTATED else False
        bare = {"square": True, "cbar": False, "xticklabels": False, "yticklabels": False}
        seaborn.heatmap(matrix, ax=ax, vmin=low, vmax=high, cmap="cividis", annot=numbers, fmt="", annot_kws={"fontsize": 7}, **bare)
        mean = _mean(matrix)
        ax.set_title(title + ("" if mean is None else f"\nmean {mean:.3f}"))
        _mark_sub_batches(ax, part)
        if mean is None:
            note(ax, "one image has no pairs")
    for ax in panels.flat[len(sets) :]:
        ax.remove()
    if len(known):
        figure.colorbar(panels.flat[0].collections[0], ax=list(panels.flat[: len(sets)]), label="Cosine", shrink=0.8, aspect=30)
    return figure


def _short(value: float) -> str:
    """.91 for 0.91: cells are small."""
    return f"{value:.2f}".replace("0.", ".", 1) if np.isfinite(value) else ""


def _mean(matrix: np.ndarray) -> float | None:
    """Mean of the entries that are numbers; None where there is none."""
    return float(np.nanmean(matrix)) if np.isfinite(matrix).any() else None


def _without_diagonal(part: FeatureSet) -> np.ndarray:
    matrix: np.ndarray = pairwise_cosine(part.features).numpy().copy()
    np.fill_diagonal(matrix, np.nan)
    return matrix


def _mark_sub_batches(ax: Axes, part: FeatureSet) -> None:
    """Lines between sub-batches and their numbers beside the rows."""
    ax.set(xlabel="Image", ylabel="Image" if part.sub_batch is None else "Sub-batch")
    if part.sub_batch is None:
        return
    depth = part.sub_batch.numpy()
    edges = [0, *(np.flatnonzero(np.diff(depth)) + 1).tolist(), len(depth)]
    for edge in edges[1:-1]:
        ax.axhline(edge, color="white", linewidth=1.2)
        ax.axvline(edge, color="white", linewidth=1.2)
    centres = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    ax.set_yticks(centres, [str(depth[edge] + 1) for edge in edges[:-1]], rotation=0, fontsize=7)
    ax.tick_params(axis="y", length=0)


@styled
def depth(sets: Sequence[FeatureSet], features: str = "the teacher's features") -> Figure:
    """How alike an image is to the others of its class, by the sub-batch that it joined with and by its updates.

    A dot per image and a bar for mean ± std; sets without sub-batches are a line at their mean.
    """
    styles = _styles(sets)
    made = [found for found in sets if found.sub_batch is not None]
    known = [found for found in made if found.by_class]
    marks = "; a dot per image: its mean cosine to the others of its class; bar: mean ± std" if known else ""
    key = {style.label: style for style in styles.values()} if known else None
    figure = picture("Similarity by depth, lower is more diverse", features + marks, 2.9, key)
    by_number, by_updates = figure.subplots(1, 2, sharey=True)
    step = 0.7 / max(1, len(made))
    for found in sets if known else ():
        similarity = cosine_to_class(found.features, found.labels, len(found.classes)).numpy()
        if found.sub_batch is None or found.iterations is None:
            mean = _mean(similarity)
            for ax in (by_number, by_updates) if mean is not None else ():
                ax.axhline(mean, color=styles[found.name].colour, linestyle=dash(styles[found.name]), linewidth=1.2)
            continue
        shift = step * (made.index(found) - (len(made) - 1) / 2)
        _clouds(by_number, found.sub_batch.numpy() + 1 + shift, similarity, styles[found.name], 0.3 * step)
        updates = found.iterations.numpy()
        _clouds(by_updates, updates, similarity, styles[found.name], 0.008 * float(updates.max() or 1))
    by_number.set(xlabel="Sub-batch, in the order of joining", ylabel="Mean cosine to its class")
    by_updates.set_xlabel("Pixel updates of the image")
    by_number.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_updates.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in (by_number, by_updates):
        ax.grid(axis="y")
        if not known:
            note(ax, "no class has two images" if made else "no set was optimised")
    return figure


def _clouds(ax: Axes, x: np.ndarray, y: np.ndarray, style: SetStyle, width: float) -> None:
    """Dots spread around each place, and their mean ± std."""
    for place in np.unique(x):
        values = y[(x == place) & np.isfinite(y)]
        if not len(values):
            continue
        beside = place + 2 * width * scattered(len(values))
        ax.scatter(beside, values, s=8, color=fill(style), edgecolors=style.colour, linewidths=0.4, alpha=0.35, zorder=2)
        std = values.std(ddof=1) if len(values) > 1 else None
        ax.errorbar(place, values.mean(), yerr=std, color=style.colour, marker="_", markersize=12, markeredgewidth=2.2, zorder=3)


@styled
def embedding(places: Points, real: FeatureSet, places_real: Points, found: FeatureSet, about: str = "") -> Figure:
    """A set over real images on a plane: the colour is the class, the mark the sub-batch.

    Args:
        places: float [N,2] of `found`; `places_real` float [M,2] of `real`.
        about: how the places came to be.

    Raises:
        DataError: places and images do not agree.
    """
    if len(places) != len(found) or len(places_real) != len(real):
        raise DataError(f"{len(places)} and {len(places_real)} places for {len(found)} and {len(real)} images; they must agree")
    style = _styles([found])[found.name]
    colours = np.array(class_colours(len(real.classes)))
    marks = f"small dots: {many(len(real), 'held-out real image')}; large marks: {many(len(found), 'image')}"
    subtitle = f"{about}; {marks}" if about else marks
    if len(real.classes) > COLOURED:
        subtitle += f"; colour: the class ({many(len(real.classes), 'class', 'es')} share {COLOURED} colours)"
    figure = picture(f"{style.label} among real images", f"{subtitle}; distances between far clusters mean nothing", 4.4)
    ax = figure.add_subplot()
    ax.scatter(places_real[:, 0], places_real[:, 1], s=5, c=colours[real.labels.numpy()], alpha=0.4, linewidths=0)
    depth = np.zeros(len(found), dtype=int) if found.sub_batch is None else found.sub_batch.numpy()
    for number in np.unique(depth):
        rows = depth == number
        inside, marker = colours[found.labels.numpy()[rows]], MARKERS[number % len(MARKERS)]
        ax.scatter(places[rows, 0], places[rows, 1], s=46, c=inside, marker=marker, edgecolors="white", linewidths=0.8)
    handles = [_mark(name, "o", colours[label]) for label, name in enumerate(real.classes)] if len(real.classes) <= COLOURED else []
    if found.sub_batch is not None:
        handles += [_mark(f"sub-batch {n + 1}", MARKERS[n % len(MARKERS)], MUTED) for n in np.unique(depth)[: len(MARKERS)]]
    if handles:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    return figure


def _mark(name: str, marker: Any, colour: str) -> Line2D:
    shown = textwrap.shorten(name, 24, placeholder="…") or name[:24]
    return Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=6, label=shown)


def _styles(sets: Sequence[FeatureSet]) -> dict[str, SetStyle]:
    return set_styles(found.name for found in sets)
