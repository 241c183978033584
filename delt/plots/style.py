"""The visual language of every figure: colours, type, the frame with title and key, and the small marks.

Sub-batches run along one ramp from early (dark) to late (light), sets have one colour each in every figure, real images
are grey and the random control is dashed. A figure is 7 inches wide.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from delt.errors import DataError

P = ParamSpec("P")
F = TypeVar("F", bound=Figure)

WIDTH = 7.0  # inches
MARGIN = 0.1  # inches, left and right
INK, MUTED, FAINT, BAND = "#222222", "#666666", "#dddddd", "#f4f4f4"
GREY = "#8a8a8a"  # real images
LEGIBLE = 12  # sub-batches that can carry a number each
TITLE, ROW_NAME, CLASS_NAME = 70, 44, 18  # letters of a title, of a name beside a row, and of a class's at an axis
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
    "text.parse_math": False,  # class names may hold dollars
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
    "fadrm": SetStyle("FADRM", "#44aa99"),
    "random": SetStyle("random real images", "#444444", dashed=True),
    "real": SetStyle("real images", GREY),
    "full": SetStyle("all real images", GREY),
}
CLASSES = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#777777")
OTHERS = ("#332288", "#999933", "#aa4499", "#117733", "#661100", "#6699cc")  # for sets of other names, in turn


class Picture(Figure):
    """A figure that a notebook displays by itself, sharp on any screen, without pyplot."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw in this module's style: matplotlib makes ticks only now, and would take the user's."""
        with _style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in other letters: boxes say it all
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


def class_colours(count: int) -> list[str]:
    """Hex colours of classes 0 .. count - 1: Tol's muted ones, which colour-blind readers tell apart, in turn.

    More than ten classes share colours, so a figure names its classes, too.
    """
    return [CLASSES[label % len(CLASSES)] for label in range(count)]


def set_styles(names: Iterable[str]) -> dict[str, SetStyle]:
    """The look of each set: fixed for the known names, colours of their own in turn for the rest."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in SETS]
    extra = {name: SetStyle(name, OTHERS[turn % len(OTHERS)]) for turn, name in enumerate(others)}
    return {name: SETS.get(name) or extra[name] for name in names}


def in_order(names: Iterable[str]) -> list[str]:
    """The known names in the order of `SETS`, then the rest as given: the same order in every figure."""
    known = list(SETS)
    return sorted(names, key=lambda name: known.index(name) if name in SETS else len(known))


def _style() -> contextlib.AbstractContextManager[None]:
    return matplotlib.style.context(["default", STYLE])


def styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Draw in this module's style, whatever the user's is, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> F:
        with _style():
            return draw(*args, **kwargs)

    return styled


def picture(title: str, subtitle: str, body: float, key: Mapping[str, SetStyle] | None = None, lines: bool = True) -> Picture:
    """A figure with its title, subtitle and key stacked at the upper left, and `body` inches below for the axes."""
    about = textwrap.wrap(subtitle, 105)
    rows = -(-len(key) // 3) if key else 0
    height = body + 0.4 + 0.16 * len(about) + 0.2 * rows
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, body / height), w_pad=MARGIN)
    figure = Picture(figsize=(WIDTH, height), layout=layout, facecolor="white")
    figure.suptitle(elided(title, TITLE), x=MARGIN / WIDTH, y=1 - 0.08 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    figure.text(MARGIN / WIDTH, 1 - 0.31 / height, "\n".join(about), va="top", color=MUTED)
    if key:
        place = (0.0, 1 - (0.31 + 0.16 * len(about)) / height)
        handles = [_handle(style, lines) for style in key.values()]
        spacing = {"columnspacing": 1.5, "borderpad": 0.4, "handlelength": 2.6 if lines else 1}
        legend = figure.legend(handles, list(key), loc="upper left", bbox_to_anchor=place, ncols=3, **spacing)
        legend.set_in_layout(False)
    return figure


def _handle(style: SetStyle, line: bool) -> Line2D:
    return Line2D(
        [], [], color=style.colour, marker="o", markersize=5, linestyle=dash(style) if line else "none", markerfacecolor=fill(style)
    )


def dots(ax: Axes, x: Sequence[float], y: Sequence[float], style: SetStyle) -> None:
    """Draw the students or classes of one set: filled dots, hollow ones for a dashed style."""
    edge, width = (style.colour, 0.9) if style.dashed else ("white", 0.5)
    ax.scatter(x, y, s=26, color=fill(style), edgecolors=edge, linewidths=width, zorder=3)


def dash(style: SetStyle) -> Literal["-", "--"]:
    """The line of a set."""
    return "--" if style.dashed else "-"


def fill(style: SetStyle) -> str:
    """The inside of a set's dots."""
    return "white" if style.dashed else style.colour


def class_ticks(ax: Axes, names: Sequence[str], level: int) -> None:
    """A tick per class with its name, slanted where all of them together have more than `level` letters."""
    shown = told_apart(names, CLASS_NAME)
    slant = sum(map(_wide, names)) > level
    ax.set_xticks(range(len(shown)), shown, rotation=40 if slant else 0, ha="right" if slant else "center", rotation_mode="anchor")
    ax.tick_params(axis="x", length=0)


def class_ticks_height(names: Sequence[str], level: int) -> float:
    """Inches that the names of `class_ticks` take below their axis."""
    longest = max((_wide(name[:CLASS_NAME]) for name in names), default=0)
    return 0.1 + 0.042 * longest if sum(map(_wide, names)) > level else 0.15


def _wide(name: str) -> int:
    """Letters, of which those of East Asia and emoji count twice: they are drawn twice as wide."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in name)


def blank(*axes: Axes) -> None:
    """Take ticks and grid from axes that nothing is drawn in: their numbers would mean nothing."""
    for ax in axes:
        ax.grid(False)
        ax.tick_params(which="both", length=0, labelleft=False, labelbottom=False)


def note(ax: Axes, text: str) -> None:
    """Say in the middle of an empty picture why it is empty; the last thing that is done to it."""
    blank(ax)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED)


def on(colour: str) -> str:
    """White or black, whichever can be read on this colour."""
    red, green, blue = to_rgb(colour)
    return INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def scattered(count: int) -> np.ndarray:
    """Places from -1/2 to 1/2 for dots that would hide each other; the golden ratio sets neighbours apart."""
    places: np.ndarray = np.arange(count) * 0.618034 % 1 - 0.5
    return places


def many(count: int, noun: str, plural: str = "s") -> str:
    """A count with its noun, e.g. `3 classes`."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def spread_marks(counts: Iterable[int], marks: str) -> list[str]:
    """What a subtitle says of dots and bars: `marks` where a mean is of several students, nothing where there is none."""
    most = max(counts, default=0)
    return [marks] if most > 1 else ["one student each, so the spread is unknown"] if most else []


def of_all(shown: int, count: int, noun: str, plural: str = "s") -> str:
    """How many of how many are shown: `1 class`, `all 3 classes`, `3 of 10 classes`."""
    words = many(count, noun, plural)
    return f"{shown:,} of {words}" if shown < count else words if count == 1 else f"all {words}"


def spread(items: list[int], most: int) -> list[int]:
    """At most `most` of the items, evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]


def shown_labels(classes: Sequence[int] | None, count: int) -> list[int]:
    """The labels asked for, or the first ten."""
    labels = list(range(min(10, count))) if classes is None else list(classes)
    if not labels or not all(0 <= label < count for label in labels):
        raise DataError(f"classes are {labels}; allowed are labels from 0 to {count - 1}")
    return labels


def elided(name: str, most: int) -> str:
    """A name with its middle left out where it is too long: runs often differ at the end."""
    head = (max(most, 5) - 1) // 2
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - max(most, 5) :]}"


def told_apart(names: Sequence[str], most: int) -> list[str]:
    """Names with at most `most` letters each, of which no two look alike: what differs in the middle alone is kept, or numbered."""
    shown = {name: elided(name, most) for name in names}
    for look in [look for look, count in Counter(shown.values()).items() if count > 1]:
        alike = [name for name in shown if shown[name] == look]
        differ = max(0, len(os.path.commonprefix(alike)) - 3)  # where they begin to differ
        shown |= {name: elided(f"…{name[differ:]}", most) for name in alike}
    taken: set[str] = set()
    for name, look in shown.items():
        marks = ("", *(f"~{number}" for number in range(2, len(shown) + 1)))
        shown[name] = next(text for mark in marks if (text := look[: most - len(mark)] + mark) not in taken)
        taken.add(shown[name])
    return [shown[name] for name in names]
