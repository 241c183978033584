"""Turn MI, RI, M and IPC by hand: the plan follows at once, and Run makes the images while you watch.

>>> from delt import lab
>>> lab.ScheduleExplorer("digits", preset="demo")
"""

from __future__ import annotations

import atexit
import html
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from delt import plots
from delt.analysis.speed import Speed, duration, groups_of, measure
from delt.checks import check_names
from delt.config import RunConfig
from delt.data.load import shape_of
from delt.data.specs import short_name, spec_of
from delt.errors import ConfigError, DeltError
from delt.lab.dials import SHORT, Dials
from delt.lab.page import save_html
from delt.lab.panel import ROW, RunPanel, words
from delt.lab.state import schedule_state
from delt.lab.view import View
from delt.methods import METHODS, SCHEDULE, changed, configure
from delt.plots.style import many
from delt.runtime import resolve

RECORDED = 61  # snapshots of a run that is started here: the start, the end, and what is between
NEWEST: weakref.WeakValueDictionary[Path, ScheduleExplorer] = weakref.WeakValueDictionary()
"""The explorer that was opened last on each folder of runs."""
HELP = {
    "iterations": "MI: pixel updates of the earliest images",
    "round_iterations": "RI: iterations between two joins",
    "sub_batches": "M: sub-batches",
    "ipc": "IPC: images per class",
}


class ScheduleExplorer(ipywidgets.VBox):
    """Sliders for the schedule, its picture and its price, and the synthesis itself beside it.

    Args:
        dataset: a data set, or a whole configuration.
        out: folder that receives a run folder for every setting that is run.
        given: further settings, as in `delt.configure`.

    Raises:
        ConfigError: as `delt.configure`; also for a configuration that optimises nothing.
        TeacherError: a teacher without BatchNorm layers.
    """

    def __init__(self, dataset: str | RunConfig = "digits", out: Path | str = "runs/explorer", **given: Any) -> None:
        if not isinstance(dataset, RunConfig):
            given = {"recover_record_count": RECORDED, **given}
        self.base = changed(dataset, given) if isinstance(dataset, RunConfig) else configure(dataset, **given)
        check_names(self.base)
        if not self.base.recover.iterations:
            raise ConfigError("iterations is 0, so there is no schedule to explore; give at least 1")
        self.out, self.dials, self.note = Path(out).expanduser(), Dials.of(self.base), ""
        self.speed: Speed | None = None
        self._failed = False  # it could not be measured
        known = len(self.base.data.classes) or spec_of(self.base.dataset).count
        self.classes, self.counted = known or 10, known is not None
        """Classes of the data set, and whether that is known: of an own folder ten are assumed until it has been read."""
        self.panels: list[RunPanel] = []
        self._quiet, self._turn = False, threading.RLock()  # the picture is of the dials, whichever thread brings it up to date
        self._build()
        self._take_over()
        self._show()
        self._measuring = threading.Thread(target=self._measure, name="delt speed", daemon=True)
        atexit.register(self._measuring.join, 10)  # a thread that is inside torch when Python ends would abort the process
        self._measuring.start()

    # ------------------------------------------------------------------------------------------ the widget

    def _build(self) -> None:
        tops = {"iterations": max(4000, 2 * self.dials.iterations), "ipc": max(200, 2 * self.dials.ipc)}
        self.sliders = {name: self._slider(name, tops.get(name, 1)) for name in SHORT}
        self.run_button = ipywidgets.Button(description="Run", icon="play", button_style="primary", layout={"width": "88px"})
        self.run_button.add_class("delt-run")
        self.run_button.on_click(lambda _: self.run())
        self.says, self.numbers = ipywidgets.HTML(), ipywidgets.HTML()
        self.says.add_class("delt-says")
        self.numbers.add_class("delt-numbers")
        self.view = View(kind="schedule", layout={"flex": "1 1 480px", "min_width": "380px"})
        self.runs = ipywidgets.HBox([], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        controls = ipywidgets.HBox([*self.sliders.values(), self.run_button], layout=ROW)
        picture = ipywidgets.HBox([self.view, self.numbers], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        super().__init__([controls, self.says, picture, self.runs])
        self.add_class("delt-schedule")

    def _take_over(self) -> None:
        """A cell that is run again keeps the reins of what the one before started: nobody else could stop it."""
        before = NEWEST.get(self.out.resolve())
        NEWEST[self.out.resolve()] = self
        self.panels = [panel for panel in before.panels if panel.live.active] if before else []
        self.runs.children = tuple(self.panels)
        for panel in self.panels:
            panel.heard = self._beside(panel.heard)

    def _beside(self, other: Callable[[], None]) -> Callable[[], None]:
        """Both hear: the explorer before may still be on the page."""

        def heard() -> None:
            other()
            self._follow()

        return heard

    def _slider(self, name: str, top: int) -> ipywidgets.IntSlider:
        slider = ipywidgets.IntSlider(
            getattr(self.dials, name),
            1,
            max(top, getattr(self.dials, name)),
            description=SHORT[name],
            tooltip=f"{HELP[name]}; beyond the end of the slider: turn({name!r}, NUMBER)",
            disabled=name in SCHEDULE and "sub_batches" in METHODS[self.base.method].locked,  # one round: there is nothing to turn
            style={"description_width": "28px"},
            layout={"width": "210px"},
        )
        slider.add_class(f"delt-{SHORT[name].lower()}")
        slider.observe(lambda change: None if self._quiet else self.turn(name, change["new"]), "value")
        return slider

    def turn(self, name: str, value: int) -> None:
        """Set one dial (iterations, round_iterations, sub_batches or ipc); others follow where they must, and `note` says why."""
        if name not in SHORT:
            raise ConfigError(f"no dial {name!r}; there are {', '.join(SHORT)}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; allowed is a whole number from 1")
        with self._turn:
            dials, note = self.dials.turned(name, value)
            try:
                self._config_of(dials)
                self.dials, self.note = dials, note
            except ConfigError as error:  # the method means something else: all stays as it was
                self.note = str(error)
            self._show()

    def _show(self) -> None:
        """Bring every trait up to date with the dials."""
        with self._silently():
            self.sliders["round_iterations"].max = self.dials.iterations
            self.sliders["sub_batches"].max = min(self.dials.ipc, self.dials.iterations)
            for name, slider in self.sliders.items():
                slider.max = max(slider.max, getattr(self.dials, name))
                slider.value = getattr(self.dials, name)
        self.says.value = words(self.note or "Turn a slider: RI and M stay consistent with MI.", "delt-note" if self.note else "")
        self.view.state = schedule_state(self.dials.schedule, self.base.recover)
        self.numbers.value = self._table()
        self._allow_run()

    @contextmanager
    def _silently(self) -> Iterator[None]:
        """Move sliders without taking that for a user's hand."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    # ------------------------------------------------------------------------------------------ the price

    @property
    def config(self) -> RunConfig:
        """The configuration of a run with these dials."""
        return self._config_of(self.dials)

    def _config_of(self, dials: Dials) -> RunConfig:
        return changed(self.base, {name: getattr(dials, name) for name in SHORT})

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of the synthesis on this machine; None while the speed is being measured."""
        if self.speed is None:
            return None
        return self.speed.synthesis(groups_of(self.config, self.classes), resolve(self.base.runtime).packing or 1)

    def facts(self) -> list[tuple[str, str]]:
        """What the schedule costs, as (name, text)."""
        schedule, seconds = self.dials.schedule, self.seconds
        counted = many(self.classes, "class", "es") + ("" if self.counted else " assumed")
        waiting = "not known" if self._failed else "measuring ..."
        return [
            ("image-iterations per class", f"{schedule.image_iterations:,}"),
            (f"in all ({counted})", f"{schedule.image_iterations * self.classes:,}"),
            ("saved by EarlyLate", f"{schedule.saved:.1%}"),
            ("synthesis on this device", waiting if seconds is None else f"about {duration(seconds)}"),
        ]

    def _table(self) -> str:
        schedule = self.dials.schedule
        head = "<tr><th>sub-batch</th><th>images</th><th>joins at</th><th>updates</th></tr>"
        rows = [
            f"<tr><td>{k + 1}</td><td>{schedule.sizes[k]}</td><td>{schedule.joins[k]:,}</td><td>{schedule.updates[k]:,}</td></tr>"
            for k in range(schedule.sub_batches)
        ]
        facts = [f'<tr><td colspan="3">{html.escape(name)}</td><td>{html.escape(text)}</td></tr>' for name, text in self.facts()]
        return f'<table class="delt-table"><tbody class="delt-facts">{"".join(facts)}</tbody>{head}{"".join(rows)}</table>'

    def _measure(self) -> None:
        """A short measurement, so that the prediction is no guess."""
        try:
            self.classes, self.counted = shape_of(self.base.dataset, self.base.data)[0], True
            self.speed = measure(self.base)
        except Exception as error:  # nobody else would hear of it; the data or the device may not be there
            self._failed = True
            said = str(error) if isinstance(error, DeltError) else f"the speed could not be measured: {type(error).__name__}: {error}"
            self.says.value = words(said, "delt-failed")
        with self._turn:
            self.numbers.value = self._table()
        atexit.unregister(self._measuring.join)

    def _measured(self) -> Speed | None:
        """The speed, once it is known: a run that began before would be slow, and measured as if all were."""
        self._measuring.join()
        return self.speed

    # ------------------------------------------------------------------------------------------ a run

    def run(self) -> RunPanel:
        """Start a synthesis with these dials in the background, beside the one before; a stopped one goes on."""
        if self.running:
            return self.panels[-1]
        found = [panel for panel in self.panels if panel.config == self.config]
        panel = found[0] if found else RunPanel(self.config, self.out / self._folder, self._follow, self._measured)
        self.panels = [*(other for other in self.panels if other is not panel), panel][-2:]
        self.runs.children = tuple(self.panels)
        panel.live.start()
        panel.refresh()
        self._allow_run()
        return panel

    @property
    def _folder(self) -> str:
        return f"{short_name(self.base.dataset)}-{self.base.method}-{self.base.preset}-{self.dials.slug}"

    @property
    def running(self) -> bool:
        """Whether a synthesis is under way or paused."""
        return any(panel.live.active for panel in self.panels)

    def _follow(self) -> None:
        """Mark in the picture where the newest run is, as long as the dials are its own."""
        live = self.panels[-1].live
        with self._turn:
            if live.frame is not None and live.schedule == self.dials.schedule:
                now = live.frame.iteration if live.active else None
                self.view.state = schedule_state(self.dials.schedule, self.base.recover, now)
            self._allow_run()

    def _allow_run(self) -> None:
        self.run_button.disabled = self.running
        self.run_button.tooltip = "A synthesis is under way: stop it, or wait" if self.running else "Make the images with these settings"

    # ------------------------------------------------------------------------------------------ on paper

    def figure(self) -> Figure:
        """The plan as a static figure."""
        recover = self.base.recover
        return plots.schedule(self.dials.schedule, recover.lr, recover.min_crop, recover.curriculum, recover.milestone, recover.clock)

    def save_html(self, path: Path | str) -> Path:
        """Write the plan and its numbers as a page that works offline."""
        about = f"{self.base.method} on {self.base.dataset}: when each sub-batch of images joins, and what the plan costs."
        view = View(kind="schedule", state=schedule_state(self.dials.schedule, self.base.recover))
        self._measuring.join(10)  # a page cannot say it later
        facts = self.facts() if self.seconds is not None else self.facts()[:-1]
        return save_html(path, f"EarlyLate: {self.dials.title}", about, [view], facts)
