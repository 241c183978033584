"""Progress bars for people: one per stage, with work per second and the time left; a widget bar in a notebook."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from delt.errors import visible
from delt.runtime import Emit
from delt.storage import append_line

WORDS = {
    "squeeze": "squeeze  (teacher)",
    "rank": "rank     (patches)",
    "recover": "recover  (synthesis)",
    "relabel": "relabel  (labels)",
    "evaluate": "evaluate (students)",
}


class Unread:
    """A stream of text that takes what nobody reads any more: a terminal was closed, a pipe's reader ended.

    Where writing fails tqdm keeps its lock, so that whoever closes the bar, in another thread, would wait for ever.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # the latter: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class Bars:
    """A listener that shows events: `total` opens a bar, `done` moves it, `message` prints a line above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, event: dict[str, Any]) -> None:
        if "message" in event:
            self.close()
            print(visible(event["message"]), flush=True)
        elif event.get("total"):
            self._open(event)
        elif "done" in event and self._bar is not None and event["stage"] == self._stage:
            self._bar.update(event["done"])
            if self._bar.n >= self._bar.total:
                self.close()  # else the last part, which tqdm shows at most every 0.3 s, would wait for the next bar

    def _open(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(ImportError):
            from tqdm.auto import tqdm

            self.close()
            self._stage = event["stage"]
            name = f"{event['set']}: " if event.get("set") else ""
            label = name + WORDS.get(self._stage, self._stage)
            how: dict[str, Any] = {"unit_scale": True, "mininterval": 0.3, "dynamic_ncols": True, "file": Unread(sys.stderr)}
            self._bar = tqdm(total=event["total"], unit=event.get("unit", "it"), desc=label, **how)

    def close(self) -> None:
        """Finish the bar that is open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Meter:
    """Passes events on, and keeps what happened over time in metrics.jsonl: losses as recorded, work and rate per stage."""

    def __init__(self, path: Path, listener: Emit) -> None:
        self.path, self.listener = path, listener
        self._stage, self._done, self._begun = "", 0, 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if "total" in event:
            self.flush()
            self._stage, self._begun = event["stage"], time.monotonic()
        if "done" in event:
            self._done += event["done"]
        if "record" in event:
            self.write({"stage": event["stage"], **event["record"]})
        else:
            self.listener(event)

    def flush(self) -> None:
        """Write down the work of the stage that ends."""
        if self._done:
            seconds = time.monotonic() - self._begun
            self.write(
                {"stage": self._stage, "work": self._done, "seconds": round(seconds, 3), "per_second": round(self._done / seconds, 1)}
            )
        self._stage, self._done = "", 0

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        append_line(self.path, json.dumps(line, sort_keys=True))
