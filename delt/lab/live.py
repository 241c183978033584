"""A synthesis in a background thread that can be watched, paused and stopped: the state, without a widget."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from delt.analysis.speed import Speed, duration, groups_of
from delt.analysis.table import schedule_of
from delt.artifacts.snapshots import Frame, Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.config import RunConfig
from delt.errors import DeltError, Stopped
from delt.pipeline import run
from delt.plots.style import many
from delt.results import Run
from delt.runtime import resolve

WINDOW = 3.0  # seconds that the rate is taken over
LOOK = 0.05  # seconds between two looks whether it ended
DOING = {"squeeze": "training the teacher", "rank": "ranking real patches", "recover": "optimising images"}


class LiveRun:
    """Teacher, ranking and synthesis of a run, in a thread of this process.

    What stands in the folder is not done again, and a run that was stopped goes on when it is started again.

    Args:
        config: see `delt.methods.configure`; the work is done in this process, whatever `workers` says.
        out: run folder.
        heard: called in the background thread whenever something changed, a few times per second.
        speed: asked in the background thread before it begins, where a measurement may be waited for; lets the time left
            know that rounds with few images are slow for each of them.

    `status` is one of ready, running, paused, stopping, stopped, done, failed.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path | str,
        heard: Callable[[], None] = lambda: None,
        speed: Callable[[], Speed | None] = lambda: None,
    ) -> None:
        self.config, self.out, self.heard = replace(config, runtime=replace(config.runtime, workers=1)), Path(out).expanduser(), heard
        self.schedule, self._measured = schedule_of(config), speed
        self.speed: Speed | None = None
        self.status, self.stage, self.error = "ready", "", ""
        self.frame: Frame | None = None
        self.losses: list[tuple[int, list[float | None]]] = []
        """Cross-entropy of each active sub-batch, an entry per report."""
        self.done, self.total, self.unit = 0, 0, ""
        self.run: Run | None = None
        self.synthetic: SyntheticSet | None = None
        """The images: finished, or as they were when it was stopped."""
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()  # one change of `status` at a time
        self._go, self._halt = threading.Event(), threading.Event()
        self._beats: deque[tuple[float, int]] = deque()
        self._began, self._seconds = 0.0, 0.0

    # ------------------------------------------------------------------------------------------ the reins

    def start(self) -> LiveRun:
        """Begin, or go on after a stop; a run that is under way goes on as it is."""
        with self._turn:
            if not self.active:
                self._go.set()
                self._halt.clear()
                self.status, self.stage, self.error, self._began = "running", "", "", time.monotonic()
                self._thread = threading.Thread(target=self._work, name="delt synthesis", daemon=True)
                self._thread.start()
        return self

    def pause(self) -> None:
        """Wait after the current step."""
        with self._turn:
            if self.status == "running":
                self._go.clear()
                self.status = "paused"

    def resume(self) -> None:
        """Go on after a pause."""
        with self._turn:
            if self.status == "paused":
                self._beats.clear()
                self.status = "running"
                self._go.set()

    def stop(self) -> None:
        """End after the current step; the images stay as they are then, and `start` goes on from there."""
        with self._turn:
            if self.active:
                self.status = "stopping"
                self._halt.set()
                self._go.set()

    def join(self, timeout: float | None = None) -> LiveRun:
        """Wait for the end in a program; in a notebook this would keep every button from answering, so use `await live.ended()`."""
        if self._thread:
            self._thread.join(timeout)
        return self

    async def ended(self) -> LiveRun:
        """Wait for the end in a cell of a notebook, whose buttons and sliders answer meanwhile."""
        while self._thread and self._thread.is_alive():
            await asyncio.sleep(LOOK)
        return self

    @property
    def active(self) -> bool:
        """Whether the thread is at work, or waits."""
        return self.status in ("running", "paused", "stopping")

    @property
    def snapshots(self) -> Snapshots | None:
        """How the images came to be, once the synthesis ended or was stopped."""
        if self.run:
            return self.run.snapshots
        return self.synthetic.snapshots if self.synthetic else None

    # ------------------------------------------------------------------------------------------ the work

    def _work(self) -> None:
        atexit.register(self._leave)
        status = self._outcome()
        atexit.unregister(self._leave)
        self._seconds = time.monotonic() - self._began
        with self._turn:
            self.status = status
        self.heard()

    def _outcome(self) -> str:
        """Do the work; how it ended."""
        try:
            self.speed = self._measured()
            self.run = run(self.config, self.out, until="recover", listener=self._hear, watch=True)
            self.synthetic = self.run.synthetic
            return "done"
        except Stopped as stop:
            self.synthetic = stop.partial if isinstance(stop.partial, SyntheticSet) else None
            return "stopped"
        except DeltError as error:
            self.error = str(error)
        except Exception:  # a bug must reach the user: nobody reads a thread's stderr in a notebook
            self.error = traceback.format_exc()
        return "failed"

    def _leave(self) -> None:
        """Python ends: stop first, since a thread that is inside torch then would abort the process."""
        self.stop()
        self.join(10)

    def _hear(self, event: dict[str, Any]) -> None:
        """Take note of an event between two steps; wait while paused, raise where it should end."""
        if event.get("total"):
            self.stage, self.total, self.unit, self.done = event["stage"], event["total"], event.get("unit", ""), 0
            self._beats.clear()
        self.done += event.get("done", 0)
        self._beats.append((time.monotonic(), self.done))
        while self._beats[-1][0] - self._beats[0][0] > WINDOW:
            self._beats.popleft()
        if frame := event.get("frame"):
            self._look(frame)
        self.heard()
        self._go.wait()
        if self._halt.is_set():
            raise Stopped

    def _look(self, frame: Frame) -> None:
        if self.frame and frame.iteration < self.frame.iteration:
            self.losses.clear()  # the next group begins
        self.frame = frame
        for reading in frame.readings[:1]:
            self.losses.append((reading["iteration"], reading["cross_entropy"]))

    # ------------------------------------------------------------------------------------------ in words

    @property
    def rate(self) -> float:
        """Units of work per second, over the last seconds."""
        if len(self._beats) < 2:
            return 0.0
        (a, before), (b, now) = self._beats[0], self._beats[-1]
        return (now - before) / (b - a) if b > a else 0.0

    @property
    def words(self) -> str:
        """What it is doing: "round 3 of 8, 26 of 50 images, iteration 600, 1,240 img-it/s, 14 s left"."""
        if self.status == "failed":
            return f"failed: {self.error}"
        if self.status == "done":
            return f"done in {self._seconds:,.1f} s, {self.schedule.saved:.0%} of the work saved"
        if self.status == "stopped":
            return f"stopped {self._at() if self.synthetic else f'while {self._stage_in_words}'}; press Run to go on"
        if self.status == "ready":
            return "not started"
        doing = self._doing()
        return doing if self.status == "running" else f"{self.status}: {doing}"

    @property
    def _stage_in_words(self) -> str:
        return DOING.get(self.stage, "opening the data")

    def _at(self) -> str:
        """How far a stopped synthesis got."""
        made = int(self.synthetic.iterations.max()) if self.synthetic is not None else 0
        return f"at iteration {made:,} of {self.schedule.iterations:,}"

    def _doing(self) -> str:
        parts = [self._round() if self.stage == "recover" and self.frame else self._stage_in_words]
        if self.status == "running" and (rate := self.rate):
            parts += [f"{rate:,.0f} {self.unit}/s", f"{duration(self._left(rate))} left"]
        return ", ".join(parts)

    def _left(self, rate: float) -> float:
        """Seconds to the end of the stage, at the pace of the last seconds."""
        frame = self.frame
        if self.stage != "recover" or frame is None or self.speed is None or not frame.active:
            return (self.total - self.done) / rate
        groups = groups_of(self.config, round(self.total / self.schedule.image_iterations))
        pace = self.speed.rate(frame.active) / rate
        return pace * self.speed.synthesis(groups, resolve(self.config.runtime).packing or 1, self.done)

    def _round(self) -> str:
        frame, schedule = self.frame, self.schedule
        assert frame is not None
        round_ = max(1, schedule.active(max(0, min(frame.iteration, schedule.iterations) - 1)))
        return f"round {round_} of {schedule.sub_batches}, {frame.active} of {many(frame.size, 'image')}, iteration {frame.iteration:,}"
