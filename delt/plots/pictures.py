"""Grids of images: a set's, and how a class's images changed while they were optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from delt.artifacts.snapshots import Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.errors import DataError
from delt.plots.style import MUTED, ROW_NAME, WIDTH, of_all, on, picture, shown_labels, spread, styled, sub_batch_colours, told_apart

MOST_COLUMNS = 20  # of images side by side


@styled
def images(synthetic: SyntheticSet, per_class: int = 10, classes: Sequence[int] | None = None, what: str = "Synthetic images") -> Figure:
    """The images of a set, a row per class and early sub-batches on the left.

    Args:
        per_class: most images of a class, spread evenly from the earliest to the latest; no more than 20 can be seen.
        classes: labels to show, in this order; the first ten where not given.
        what: the set's name in the title.

    Raises:
        DataError: a label that is none.
    """
    labels = shown_labels(classes, len(synthetic.classes))
    rows = [spread(_where(synthetic.labels == label), max(1, min(per_class, MOST_COLUMNS))) for label in labels]
    columns = max(1, *map(len, rows))
    head = _Head.of(synthetic, rows)
    shown = of_all(len(labels), len(synthetic.classes), "class", "es")
    most = max(1, int(synthetic.labels.bincount(minlength=1).max()))
    names = told_apart([synthetic.classes[label] for label in labels], ROW_NAME)
    about = f"{of_all(columns, most, 'image')} per class, {head.says}"
    figure, blocks, side = _grid(f"{what}, {shown}", about, names, columns, head.inches)
    for place, row in enumerate(rows):
        ax, y = _place(blocks, len(rows), place)
        for x, index in enumerate(row):
            _tile(ax, synthetic.images[index], x, y)
    for ax in blocks:
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
                ax.text(start + count / 2, bar, f"{k + 1}", ha="center", va="center", color=on(self.colours[k]), fontsize=7.5)
            if side * count > 0.36:
                ax.text(start + count / 2, above, f"{updates:,}", ha="center", va="bottom", fontsize=7.5, color=MUTED)
        if self.runs:
            ax.text(-0.07 / side, bar, "sub-batch", ha="right", va="center", fontsize=7.5, color=MUTED)
            ax.text(-0.07 / side, above, "updates", ha="right", va="bottom", fontsize=7.5, color=MUTED)


@styled
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
    times = spread(list(range(len(snapshots.images))), max(2, min(steps, MOST_COLUMNS)))
    depth = [int(snapshots.sub_batch[r]) for r in rows]
    colours = sub_batch_colours(int(snapshots.sub_batch.max()) + 1)
    recorded = len(_where(snapshots.labels == label))
    about = f"{of_all(len(rows), recorded, 'recorded image')}, one per row; faded: not joined yet"
    title = f"Images of class {name or label} while they are optimised"
    figure, (ax,), _ = _grid(title, about, [f"sub-batch {k + 1}" for k in depth], len(times), 0.2)
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
            f"class {label} was not recorded; recorded are {snapshots.labels.unique().tolist()}, and recover_record_classes names them"
        )
    firsts = list({int(snapshots.sub_batch[row]): row for row in reversed(rows)}.values())[::-1]
    return spread(firsts if len(firsts) >= 5 else rows, 5)


def _grid(title: str, subtitle: str, names: Sequence[str], columns: int, head: float) -> tuple[Figure, list[Axes], float]:
    """A figure of square cells with a name on the left of each row, its axes, and a cell's side; `head` and the side are in inches.

    Many rows of few columns would leave half of the figure white: they stand in two blocks, side by side.
    """
    margin = 0.3 + 0.066 * max([9, *map(len, names)])
    half = (WIDTH / 2 - margin) / columns
    two = len(names) >= 6 and half >= 0.45
    per_block = -(-len(names) // 2) if two else len(names)
    side = min(half if two else (WIDTH - margin) / columns, max(0.64, 6 / per_block), 1.2)
    figure = picture(title, subtitle, side * per_block + head + 0.1)
    axes = list(figure.subplots(1, 2 if two else 1, squeeze=False, subplot_kw={"anchor": "NW"})[0])
    for ax, first in zip(axes, (0, per_block), strict=False):
        own = names[first : first + per_block]
        ax.set(xlim=(-0.12, columns), ylim=(per_block, -head / side), xticks=[])
        ax.set_yticks([y + 0.5 for y in range(len(own))], own)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_aspect("equal")
    return figure, axes, side


def _place(blocks: list[Axes], rows: int, row: int) -> tuple[Axes, int]:
    """The block that a row of the whole grid stands in, and its row there."""
    block, y = divmod(row, -(-rows // len(blocks)))
    return blocks[block], y


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


def _where(mask: Tensor) -> list[int]:
    places: list[int] = mask.nonzero().squeeze(1).tolist()
    return places
