"""Judge a set by eye and by number: its images among real ones, the random control beside it, in features of your choice.

>>> from delt import lab
>>> lab.DiversityExplorer("runs/a")
"""

from __future__ import annotations

import atexit
import html
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure

from delt import plots
from delt.analysis.diversity import extractor_of, same_number
from delt.analysis.embedding import tsne
from delt.analysis.sets import HEADS, FeatureSet, Measures, cells, measured, notes, table
from delt.analysis.table import Lines
from delt.artifacts.teacher import Teacher
from delt.data.images import RealSet
from delt.data.load import open_set
from delt.data.specs import short_name
from delt.errors import ConfigError, DataError, DeltError, unknown
from delt.lab.live import LiveRun
from delt.lab.page import save_html
from delt.lab.panel import ROW, words
from delt.lab.sheet import grid
from delt.lab.state import State
from delt.lab.trajectory import opened
from delt.lab.view import View
from delt.models import zoo
from delt.plots.style import MUTED, class_colours, set_styles
from delt.results import Run, load, load_all, short_names
from delt.runtime import device_of

PER_CLASS = 40  # held-out real images
MOST_REAL = 1500  # of all classes together: dots that can be told apart, and t-SNE in seconds
FEWEST = 6  # of a class
NAMED = 10  # classes that have a colour of their own
COLUMNS = ("set", "class", "sub-batch", "updates", "source")
OTHERS = ("random", "real")  # sets beside the runs
PICTURES = ("embedding", "classes", "pairs", "depth")
TITLES = ("t-SNE", "By class", "Pairs of a class", "By depth")
AnyRun = Run | LiveRun | Path | str


class DiversityExplorer(ipywidgets.VBox):
    """Sets of images among held-out real ones: t-SNE where each dot shows its image, similarity by class, pair and depth.

    All sets are measured in one feature space, which the first run's teacher or another network spans. The random control
    is that of the first run that has one; otherwise as many random training images are drawn.

    Args:
        runs: a run or several, of one data set, their folders, or patterns such as "runs/*"; a stopped live run counts, too.
        features: "teacher", or an architecture of the zoo (see `delt.analysis.diversity.extractor_of`).
        perplexity: of t-SNE.
        per_class: held-out real images of a class; fewer where there are many classes.

    Raises:
        RunError: a folder without a run.
        DataError: no run, or runs of different data sets.
    """

    def __init__(
        self, runs: AnyRun | Sequence[AnyRun], *, features: str = "teacher", perplexity: float = 30, per_class: int = PER_CLASS
    ) -> None:
        given = _opened(runs)
        _checked(perplexity, per_class)
        self.teacher, self._bare, self._bare_real = gather(given, per_class)
        self.device = device_of(replace(given[0].config.runtime, device="auto"))
        self.sets: list[FeatureSet] = []
        """The sets with their features, real images last."""
        self.rows: list[Measures] = []
        self.places: dict[str, np.ndarray] = {}
        """Name of a set -> float [N,2]."""
        self.settled, self.error = False, ""
        """Whether the numbers and pictures are of the chosen features and perplexity, and why not if they cannot be."""
        self._turn, self._busy = 0, threading.Lock()
        self._thread: threading.Thread | None = None
        self._known = ("", 0.0)
        self._build(features, perplexity)
        self._change()

    # ------------------------------------------------------------------------------------------ the widget

    def _build(self, features: str, perplexity: float) -> None:
        names = [found.name for found in self._bare]
        styles = set_styles(names)
        most = max(2, sum(map(len, [*self._bare, self._bare_real])) - 1)
        choices = ("teacher", *zoo.architectures())
        if features not in choices:
            raise unknown("feature extractor", features, choices)
        self.shown_choice = _choice("set", [(styles[name].label, name) for name in names], names[0])
        self.features_choice = _choice("features", choices, features)
        classes = self._bare_real.classes  # names need not be unique
        self.class_choice = _choice("class", [(f"{label}  {name}", label) for label, name in enumerate(classes)], 0)
        self.perplexity_slider = ipywidgets.FloatSlider(
            min(perplexity, most),
            min=1,
            max=min(100, most),
            step=1,
            description="perplexity",
            continuous_update=False,
            readout_format=".0f",
        )
        self.perplexity_slider.add_class("delt-perplexity")
        self.says, self.numbers, self.view = ipywidgets.HTML(), ipywidgets.HTML(), View(kind="scatter")
        self.numbers.add_class("delt-numbers")
        self.says.add_class("delt-says")
        self.images = {name: ipywidgets.Image(format="png", layout={"max_width": "min(760px, 100%)"}) for name in PICTURES[1:]}
        pairs = ipywidgets.VBox([self.class_choice, self.images["pairs"]])
        pages = (self.view, self.images["classes"], pairs, self.images["depth"])
        self.tabs = ipywidgets.Tab(pages, titles=TITLES, layout={"max_width": "1000px"})
        controls = ipywidgets.HBox([self.shown_choice, self.features_choice, self.perplexity_slider], layout=ROW)
        super().__init__([controls, self.says, self.numbers, self.tabs])
        self.add_class("delt-diversity")
        for control in (self.features_choice, self.perplexity_slider):
            control.observe(lambda _: self._change(), "value")
        self.shown_choice.observe(lambda _: self._draw(), "value")
        self.class_choice.observe(lambda _: self._draw(), "value")
        self.tabs.observe(lambda _: self._draw(), "selected_index")

    def _change(self) -> None:
        """Measure anew in the background; a newer wish replaces one that still waits."""
        self._turn += 1
        self.settled = False
        features = self.features_choice.value
        first = "" if self._known[0] == features else f"Measuring in the features of {features}, then "
        self.says.value = words(f"{first}t-SNE with perplexity {self.perplexity_slider.value:g} ...")
        args = (self._turn, self.features_choice.value, self.perplexity_slider.value)
        self._thread = threading.Thread(target=self._work, args=args, name="delt diversity", daemon=True)
        self._thread.start()

    def _work(self, turn: int, features: str, perplexity: float) -> None:
        atexit.register(self._leave)  # a thread that is inside torch when Python ends would abort the process
        with self._busy:
            if turn == self._turn:
                error = self._outcome(features, perplexity)
                if turn == self._turn:  # else a newer wish is on its way and will have its own
                    self._settle(error)
        if turn == self._turn:  # the last one to work
            atexit.unregister(self._leave)

    def _outcome(self, features: str, perplexity: float) -> str:
        """Measure; why it could not be done, or ""."""
        try:
            self._measure(features)
            self._embed(perplexity)
        except DeltError as error:
            return str(error)
        except Exception:  # a bug must reach the user: nobody reads a thread's stderr in a notebook
            return traceback.format_exc()
        return ""

    def _settle(self, error: str) -> None:
        """Show what was measured, or why it was not."""
        self.error, self.settled = error, True
        try:
            self._draw()
        except Exception:  # as above
            self.error = traceback.format_exc()
        how_to = "Point at a dot to see its image; click or draw around dots to list them."
        self.says.value = words(self.error, "delt-failed") if self.error else words(how_to)

    def _leave(self) -> None:
        self._turn += 1
        self.join(10)

    def _measure(self, features: str) -> None:
        """Vectors of all images, and the numbers that follow from them."""
        if self._known[0] == features:
            return
        extractor, card = extractor_of(features, self.teacher, self.device), self.teacher.card
        sets = [found.seen_by(extractor, card, self.device) for found in (*self._bare, self._bare_real)]
        self.rows = [measured(found, sets[-1]) for found in sets]
        self.sets, self._known = sets, (features, 0.0)
        self.numbers.value = numbers(self.rows, self.real)

    def _embed(self, perplexity: float) -> None:
        """All sets on one plane, so that a dot stays where it is when another set is shown."""
        if self._known[1] == perplexity:
            return
        places = tsne(torch.cat([found.features for found in self.sets]), perplexity)
        parts = np.split(places, np.cumsum([len(found) for found in self.sets])[:-1])
        self.places = {found.name: part for found, part in zip(self.sets, parts, strict=True)}
        self._known = (self._known[0], perplexity)

    def _draw(self) -> None:
        """Bring the page that is open up to date; while it is being measured, that is done at the end."""
        if not self.settled or self.error:
            return
        name = PICTURES[self.tabs.selected_index or 0]
        if name != "embedding":
            self.images[name].value = plots.png(self._figure(name))
            return
        state, picture = scatter_state(self.real, self.places[self.real.name], self.shown, self.places[self.shown.name])
        with self.view.hold_sync():
            self.view.picked = []
            self.view.state, self.view.sheets = state, {"tiles": picture}

    # ------------------------------------------------------------------------------------------ for programs

    def join(self, timeout: float | None = None) -> DiversityExplorer:
        """Wait until all is measured, in an executed notebook or a test."""
        if self._thread:
            self._thread.join(timeout)
        return self

    @property
    def real(self) -> FeatureSet:
        """The held-out real images.

        Raises:
            DeltError: nothing is measured yet, or it could not be.
        """
        if not self.sets:
            raise DeltError(self.error or "nothing is measured yet: wait for it with join()")
        return self.sets[-1]

    @property
    def shown(self) -> FeatureSet:
        """The set that lies over the real images."""
        return next(found for found in self.sets if found.name == self.shown_choice.value)

    @property
    def picked(self) -> list[dict[str, str]]:
        """What is known of the dots that were selected."""
        rows = [self.view.state["table"][dot] for dot in self.view.picked]
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def table(self) -> Lines:
        """The numbers of all sets as text."""
        self._ready()
        return table(self.rows, self.real)

    def figure(self, what: str = "embedding") -> Figure:
        """A static figure: `embedding` (t-SNE of the shown set), `classes`, `pairs` (of the chosen class) or `depth`.

        Raises:
            ConfigError: no such figure.
            DeltError: it could not be measured.
        """
        if what not in PICTURES:
            raise unknown("figure", what, PICTURES)
        self._ready()
        return self._figure(what)

    def _figure(self, what: str) -> Figure:
        features = self._features_in_words()
        if what == "classes":
            return plots.class_similarity(self.sets, features)
        if what == "pairs":
            label = int(self.class_choice.value)
            most = max(len(found.of_class(label)) for found in self.sets[:-1])
            return plots.pairs(self.sets, label, max(2, min(50, most)), features)
        if what == "depth":
            return plots.depth(self.sets, features)
        about = f"t-SNE of {features}, perplexity {self._known[1]:g}"
        return plots.embedding(self.places[self.shown.name], self.real, self.places[self.real.name], self.shown, about)

    def save_html(self, path: Path | str) -> Path:
        """Write the shown set among real images, with the numbers of all sets, as a page that works offline."""
        self._ready()
        styles = set_styles(row.name for row in self.rows)
        facts = [(styles[row.name].label, _in_words(row)) for row in self.rows]
        title = f"{styles[self.shown.name].label} on {short_name(self.teacher.card.dataset)}, among real images"
        view = View(kind="scatter", state=self.view.state, sheets=self.view.sheets)
        about = f"t-SNE of {self._features_in_words()}, perplexity {self._known[1]:g}. {'; '.join(notes(self.real))}."
        return save_html(path, title, about, [view], facts)

    def _ready(self) -> None:
        """Wait for the measurement, and say why where there is none."""
        self.join()
        if self.error or not self.settled:
            raise DeltError(self.error or "it is still being measured; wait for it with join()")

    def _features_in_words(self) -> str:
        name = self._known[0]
        return "the teacher's features" if name == "teacher" else f"features of {name}"


def _choice(name: str, options: Any, value: Any) -> ipywidgets.Dropdown:
    choice = ipywidgets.Dropdown(options=options, value=value, description=name, style={"description_width": "64px"})
    choice.add_class(f"delt-{name}")
    return choice


# ------------------------------------------------------------------------------------------ sets of runs


def _opened(runs: AnyRun | Sequence[AnyRun]) -> list[Run | LiveRun]:
    """Runs of runs, folders and patterns, in their order."""
    found: list[Run | LiveRun] = []
    for run in [runs] if isinstance(runs, (Run, LiveRun, Path, str)) or not isinstance(runs, Sequence) else runs:
        found += load_all([run]).values() if isinstance(run, (Path, str)) else [opened(run)]
    return found


def _checked(perplexity: float, per_class: int) -> None:
    if not isinstance(perplexity, (int, float)) or not perplexity >= 1:
        raise ConfigError(f"perplexity is {perplexity!r}; allowed are numbers from 1 (more than there are images counts as all of them)")
    if not isinstance(per_class, int) or per_class < FEWEST:
        raise ConfigError(f"per_class is {per_class!r}; allowed is a whole number from {FEWEST}: a neighbourhood has {FEWEST} images")


def gather(runs: Sequence[Run | LiveRun], per_class: int = PER_CLASS) -> tuple[Teacher, list[FeatureSet], FeatureSet]:
    """The first run's teacher, the sets of the runs and a random control, and held-out real images; nothing is measured yet.

    Raises:
        DataError: no run, runs of different data sets, or one without images.
    """
    if not runs:
        raise DataError("there is no run to look at; give at least one run folder")
    first = runs[0]
    for run in runs:
        if run.config.dataset != first.config.dataset:
            raise DataError(
                f"{_path(run)} is of {run.config.dataset}, {_path(first)} of {first.config.dataset}; allowed are runs of one data set"
            )
        if run.synthetic is None:
            raise DataError(f"{_path(run)} has no images yet: start it first")
    real = open_set(first.config.dataset, first.config.data, torch.device("cpu"))
    teacher = first.teacher if isinstance(first, Run) else load(first.out).teacher
    sets = [FeatureSet.of(name, run.synthetic) for name, run in zip(_names(runs), runs, strict=True) if run.synthetic]
    if not any(run.config.method == "random" for run in runs):
        sets.append(_random(runs, real))
    count = min(per_class, max(FEWEST, MOST_REAL // len(real.info.classes)))
    held_out = same_number(real.test.labels, count, first.config.seed)
    return teacher, sets, FeatureSet.real("real", real.test, held_out, real.info.classes, "test")


def _random(runs: Sequence[Run | LiveRun], real: RealSet) -> FeatureSet:
    """The random control of the first run that has one, or as many random training images as the first run has."""
    for run in runs:
        if isinstance(run, Run) and "random" in run.controls:
            return FeatureSet.of("random", run.controls["random"].synthetic)
    config = runs[0].config
    return FeatureSet.real("random", real.train, same_number(real.train.labels, config.ipc, config.seed), real.info.classes, "train")


def _path(run: Run | LiveRun) -> Path:
    return run.path if isinstance(run, Run) else run.out


def _names(runs: Sequence[Run | LiveRun]) -> list[str]:
    """The method of a single run; of several, as much of their paths as tells them apart."""
    paths = [_path(run).resolve() for run in runs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise DataError(f"{twice[0]} is given twice; give each run once")
    names = short_names([path.parts for path in paths]) if len(runs) > 1 else [runs[0].config.method]
    return [f"run {name}" if name in OTHERS and len(runs) > 1 else name for name in names]


# ------------------------------------------------------------------------------------------ what the browser draws


def scatter_state(real: FeatureSet, places_real: np.ndarray, found: FeatureSet, places: np.ndarray) -> tuple[State, bytes]:
    """Dots of real images and of a set over them, and the picture with a tile for each, in the same order."""
    colours = class_colours(len(real.classes))
    xy = np.concatenate([places_real, places]).round(4)
    picture, size, columns = grid(torch.cat([real.images, found.images]))
    depth = [0] * len(found) if found.sub_batch is None else found.sub_batch.tolist()
    numbers = sorted(set(depth))
    shapes = [{"name": "real", "shape": 0}]
    if found.sub_batch is not None:
        shapes += [{"name": f"sub-batch {number + 1}", "shape": number + 1} for number in numbers]
    else:
        shapes += [{"name": set_styles([found.name])[found.name].label, "shape": 1}]
    key = [{"name": name, "colour": colour} for name, colour in zip(real.classes, colours, strict=True)]
    shared = [{"name": f"{len(key)} classes share {NAMED} colours", "colour": MUTED}]
    return {
        "x": xy[:, 0].tolist(),
        "y": xy[:, 1].tolist(),
        "axes": ["t-SNE 1", "t-SNE 2"],
        "colour": [colours[label] for label in (*real.labels.tolist(), *found.labels.tolist())],
        "shape": [0] * len(real) + [number + 1 for number in depth],
        "tile": list(range(len(xy))),
        "size": list(size),
        "grid": columns,
        "columns": list(COLUMNS),
        "table": [*_rows(real), *_rows(found)],
        "legend": key if len(key) <= NAMED else shared,
        "shapes": shapes,
    }, picture


def _rows(found: FeatureSet) -> list[list[str]]:
    """What is known of each image, in the order of `COLUMNS`."""
    label = set_styles([found.name])[found.name].label
    blank = ["-"] * len(found)
    depth = blank if found.sub_batch is None else [str(number + 1) for number in found.sub_batch.tolist()]
    updates = blank if found.iterations is None else [f"{count:,}" for count in found.iterations.tolist()]
    names = [found.classes[label] for label in found.labels.tolist()]
    return [[label, *row] for row in zip(names, depth, updates, found.source, strict=True)]


def numbers(rows: Sequence[Measures], real: FeatureSet) -> str:
    """The table as HTML; whatever is in a name cannot become markup."""
    styles = set_styles(row.name for row in rows)
    lines = [[styles[row.name].label, *cells(row)[1:]] for row in rows]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADS.values())
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    about = "".join(f"<div>{html.escape(line)}</div>" for line in notes(real))
    return f'<table class="delt-table delt-measures"><tr>{head}</tr>{body}</table><div class="delt-about">{about}</div>'


def _in_words(row: Measures) -> str:
    return ", ".join(f"{head} {cell}" for head, cell in zip(list(HEADS.values())[1:], cells(row)[1:], strict=True) if cell != "-")
