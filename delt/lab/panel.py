"""One synthesis on the screen: buttons, a line of words, the images of every sub-batch, and their losses, while it runs."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets

from delt.analysis.speed import Speed
from delt.config import RunConfig
from delt.lab.dials import Dials
from delt.lab.live import LiveRun
from delt.lab.state import live_state, losses_state
from delt.lab.trajectory import follow, trajectory_of
from delt.lab.view import View

ROW = ipywidgets.Layout(align_items="center", flex_flow="row wrap")
BUTTON = {"width": "88px"}


def words(text: str, tone: str = "") -> str:
    """A line of plain text for an HTML widget; whatever is in it cannot become markup."""
    return f'<span class="delt-words {tone}" style="font-size: 13px; line-height: 1.4">{html.escape(text)}</span>'


class RunPanel(ipywidgets.VBox):
    """Shows a `LiveRun` and holds its reins. From the run's thread only traits are set.

    Args:
        heard: called after each refresh, in the run's thread.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path | str,
        heard: Callable[[], None] = lambda: None,
        speed: Callable[[], Speed | None] = lambda: None,
    ) -> None:
        self.config, self.dials, self.heard = config, Dials.of(config), heard
        self.live = LiveRun(config, out, self._hear, speed)
        self.heading = ipywidgets.HTML(f"<b>{html.escape(self.dials.title)}</b>")
        self.words = ipywidgets.HTML(words(self.live.words))
        self.pause = self._button("Pause", "pause", self.live.pause)
        self.resume = self._button("Resume", "play", self.live.resume)
        self.stop = self._button("Stop", "stop", self.live.stop)
        self.images, self.losses = View(kind="frames"), View(kind="curves")
        buttons = ipywidgets.HBox([self.heading, self.pause, self.resume, self.stop], layout=ROW)
        super().__init__([buttons, self.words, self.images, self.losses], layout={"flex": "1 1 420px", "min_width": "380px"})
        self.add_class("delt-panel")
        self.refresh()

    def _button(self, name: str, icon: str, act: Any) -> ipywidgets.Button:
        button = ipywidgets.Button(description=name, icon=icon, layout=BUTTON)
        button.add_class(f"delt-{name.lower()}")

        def pressed(_: Any) -> None:
            act()
            self.refresh()

        button.on_click(pressed)
        return button

    def _hear(self) -> None:
        self.refresh()
        self.heard()

    def refresh(self) -> None:
        """Bring the traits up to date with the run."""
        live = self.live
        self.words.value = words(live.words, "delt-failed" if live.status == "failed" else "")
        self._allow(self.pause, live.status == "running", "Wait after the current step", "Nothing is running")
        self._allow(self.resume, live.status == "paused", "Go on", "It is not paused")
        self._allow(self.stop, live.active, "End here; the images are kept as they are", "Nothing is running")
        if not live.active and live.snapshots is not None and len(live.snapshots.labels):
            follow(self.images, trajectory_of(live))
            self.losses.state = losses_state(self._read(), live.schedule.iterations, live.schedule.sub_batches)
        elif live.frame is not None and live.frame.labels:
            state, picture = live_state(live.frame, live.schedule)
            with self.images.hold_sync():
                self.images.label, self.images.state, self.images.sheets = "all", state, {"all": picture}
            self.losses.state = losses_state(live.losses, live.schedule.iterations, live.schedule.sub_batches)

    def _read(self) -> list[tuple[int, list[float | None]]]:
        """The live readings, or those that were recorded where they are more: the run was quick, or stood already."""
        readings = self.live.snapshots.readings if self.live.snapshots else []
        kept = [(line["iteration"], line["cross_entropy"]) for line in readings if line["group"] == readings[0]["group"]]
        return kept if len(kept) > len(self.live.losses) else self.live.losses

    @staticmethod
    def _allow(button: ipywidgets.Button, allowed: bool, does: str, why_not: str) -> None:
        button.disabled, button.tooltip = not allowed, does if allowed else why_not
