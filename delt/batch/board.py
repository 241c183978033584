"""What a person sees of a sweep while it runs: a line per point that ended, a bar over all, and sweep.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from delt.batch.notebook import RUN
from delt.batch.points import Point, Sweep, named
from delt.batch.report import NOTE, headline, noted
from delt.config import STAGES
from delt.errors import visible
from delt.storage import write_json

NAMED = 3  # running points that have room behind the bar


class Board:
    """The state of every point, in words, in a bar where there is a terminal, and in OUT/sweep.json.

    The file is for people and for the summary; whether a point is done is asked of its run folder.
    """

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self.sweep, self.out = sweep, out
        names, before = named(sweep.points), noted(out)
        self.entries: dict[str, dict[str, Any]] = {}
        for point in sweep.points:
            about = {"name": point.name, "parameters": point.values(names), "reference": point is sweep.reference}
            seconds = before.get(point.name, {}).get("seconds")
            self.entries[point.name] = about | {"state": "waiting", "seconds": seconds, "error": ""}
        self._width = max(len(point.name) for point in sweep.points)
        self._begun: dict[str, float] = {}
        self._bar: Any = None

    def begin(self, done: Sequence[Point], jobs: int) -> None:
        """Say which points stand from before, and open the bar."""
        for point in done:
            self.entries[point.name]["state"] = "done"
        left = len(self.entries) - len(done)
        self._say(f"{self.sweep.title}: {len(self.entries)} points, {len(done)} done before, {left} to do, {jobs} at a time; in {self.out}")
        for point in done:
            self._say(f"{point.name:<{self._width}}  done before  {headline(self.out / point.name)}")
        self._write()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=len(self.entries), initial=len(done), unit="point", desc=self.sweep.name, dynamic_ncols=True)

    def running(self, points: Iterable[Point]) -> None:
        """These points are being done now."""
        words = []
        for point in points:
            entry = self.entries[point.name]
            if entry["state"] != "running":
                entry["state"], self._begun[point.name] = "running", time.monotonic()
                self._write()
            words.append(f"{point.name} ({stage_of(self.out / point.name / RUN)})")
        if self._bar is not None:
            more = f" +{len(words) - NAMED}" if len(words) > NAMED else ""
            self._bar.set_postfix_str(f"{self.count('failed')} failed; " + "; ".join(words[:NAMED]) + more)

    def ended(self, point: Point, state: str, seconds: float, error: str = "") -> None:
        """A point came to its end."""
        self.entries[point.name] |= {"state": state, "seconds": round(seconds, 1), "error": error}
        self._write()
        what = headline(self.out / point.name) if state == "done" else error
        self._say(f"{point.name:<{self._width}}  {state}  {seconds:.0f} s  {what}")
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Close the bar; what was running waits again."""
        if self._bar is not None:
            self._bar.close()
        for entry in self.entries.values():
            if entry["state"] == "running":
                entry["state"] = "waiting"
        self._write()

    def count(self, state: str) -> int:
        """Points in this state."""
        return sum(entry["state"] == state for entry in self.entries.values())

    def _write(self) -> None:
        write_json(self.out / NOTE, {"title": self.sweep.title, "points": list(self.entries.values())})

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(visible(line))
        else:
            print(visible(line), flush=True)


def stage_of(run: Path) -> str:
    """The stage that a run is in."""
    done = {path.stem for path in (run / ".work" / "stages").glob("*.json")}
    return next((stage for stage in STAGES if stage not in done), STAGES[-1]) if run.is_dir() else "starting"
