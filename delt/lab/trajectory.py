"""Scrub through a synthesis: the images of a class from the real patch to the end, a row per sub-batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from delt import plots
from delt.analysis.table import schedule_of
from delt.artifacts.snapshots import Snapshots
from delt.data.specs import short_name
from delt.errors import DataError, RunError
from delt.lab.live import LiveRun
from delt.lab.page import save_html
from delt.lab.state import Trajectory
from delt.lab.view import View
from delt.plots.style import many
from delt.results import Run, load
from delt.schedule import Schedule


class TrajectoryExplorer(ipywidgets.VBox):
    """Slider, play button and arrow keys over the recorded iterations; the start and the end stay in view.

    >>> TrajectoryExplorer(delt.load("runs/a"))

    Args:
        run: a finished run or its folder, or a live one that ended or was stopped.

    Raises:
        RunError: a folder without a run.
        DataError: nothing was recorded.
    """

    def __init__(self, run: Run | LiveRun | Path | str) -> None:
        run = opened(run)
        self.title = f"{run.config.method} on {short_name(run.config.dataset)}, {many(run.config.ipc, 'image')} per class"
        self.trajectory = trajectory_of(run)
        self.view = follow(View(kind="frames"), self.trajectory)
        super().__init__([self.view])
        self.add_class("delt-trajectory")

    @property
    def label(self) -> int:
        """The class that is shown."""
        return int(self.view.label)

    @label.setter
    def label(self, label: int) -> None:
        if str(label) not in self.trajectory.labels:
            raise DataError(f"class {label} was not recorded; recorded are {', '.join(self.trajectory.labels)}")
        self.view.label = str(label)

    @property
    def at(self) -> int:
        """The snapshot that is shown, 0 .. S - 1."""
        return int(self.view.at)

    @at.setter
    def at(self, at: int) -> None:
        last = len(self.trajectory.snapshots.images) - 1
        if not 0 <= at <= last:
            raise DataError(f"snapshot is {at}; allowed are 0 to {last}")
        self.view.at = at

    def figure(self, steps: int = 6) -> Figure:
        """The shown class as a static figure, with this many columns, the start and the end among them.

        Raises:
            DataError: `steps` is no whole number from 2.
        """
        if not isinstance(steps, int) or steps < 2:
            raise DataError(f"steps is {steps!r}; allowed is a whole number from 2")
        return plots.trajectory(self.trajectory.snapshots, self.label, steps, self.trajectory.classes[self.label])

    def save_html(self, path: Path | str) -> Path:
        """Write a page that works offline, with all recorded classes."""
        shown = {label: self.trajectory.show(label) for label in self.trajectory.labels}
        state: dict[str, Any] = {
            **self.view.state,
            "of_label": {label: {"rows": own["rows"], "iterations": own["iterations"]} for label, (own, _) in shown.items()},
        }
        view = View(kind="frames", state=state, sheets={label: sheet for label, (_, sheet) in shown.items()})
        view.set_trait("label", self.view.label)
        view.set_trait("at", self.view.at)
        about = "Images while they are optimised, from the real patch they start from to the end. Rows are sub-batches: early ones above."
        return save_html(path, self.title, about, [view])


def opened(run: Run | LiveRun | Path | str) -> Run | LiveRun:
    """A run as it is, or that of a folder.

    Raises:
        RunError: there is none, or this is none.
    """
    if isinstance(run, (Run, LiveRun)):
        return run
    if not isinstance(run, (Path, str)):
        raise RunError(f"run is {run!r}; allowed are what delt.load or delt.run return, a live run, or a run folder")
    return load(run)


def trajectory_of(run: Run | LiveRun) -> Trajectory:
    """The recorded images of a run.

    Raises:
        DataError: nothing was recorded.
    """
    schedule = run.schedule if isinstance(run, LiveRun) else schedule_of(run.config)
    return recorded(run.snapshots, run.synthetic.classes if run.synthetic else (), schedule)


def recorded(snapshots: Snapshots | None, classes: Sequence[str], schedule: Schedule) -> Trajectory:
    """What there is to scrub through.

    Raises:
        DataError: nothing was recorded.
    """
    if snapshots is None or not len(snapshots.labels):
        raise DataError("no images were recorded: the run was not optimised, or recover_record_classes is none")
    return Trajectory(snapshots, classes, schedule)


def follow(view: View, trajectory: Trajectory) -> View:
    """Let a view scrub through a trajectory from now on, and answer when another class is chosen in it."""

    def answer(change: dict[str, Any] | None = None) -> None:
        if view.label not in trajectory.labels:
            return  # it shows something else now
        state, picture = trajectory.show(view.label)
        with view.hold_sync():
            view.state, view.sheets = state, {view.label: picture}

    view.unobserve_all("label")
    with view.hold_sync():
        if view.label not in trajectory.labels:
            view.label = trajectory.labels[0]
        answer()
        view.at = len(trajectory.snapshots.images) // 2
    view.observe(answer, "label")
    return view
