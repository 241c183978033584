"""Ctrl-C, SIGTERM and a closed terminal: the step in work is finished, a checkpoint is written, and the run ends with a word.

A first signal is only taken note of. Work meets it between two steps, where a guarded listener raises `Stopped`, and every
stage knows what to do then. A second signal ends the process at once; what it did since its last checkpoint is lost.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from delt.errors import Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not known everywhere
# Receives progress events between two steps, and may raise `Stopped`. An event has some of these entries:
#   stage    squeeze, rank, recover, relabel or evaluate; "" where nothing is said but who listens can stop
#   total    the stage begins, with so much work in all, counted in `unit` (img, patch, img-it)
#   done     work since the last event; may be 0
#   set      the control that the work is for; none for the run's own set
#   message  a line for people, without a stage
#   frame    the images as they are, where they are watched (delt.artifacts.snapshots.Frame)
#   record   a line of metrics.jsonl: the pipeline writes it there, and does not pass it on
Emit = Callable[[dict[str, Any]], None]
NOTHING = {"stage": "", "done": 0}  # said where nothing is to be said, so that who listens can stop


class Reins:
    """What was heard: `signal` is its number, 0 for none."""

    def __init__(self, at_once: Callable[[], None] | None = None) -> None:
        self.signal, self._at_once = 0, at_once

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def check(self) -> None:
        """Between two steps: go on, or not.

        Raises:
            Stopped: a signal came.
        """
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Stopped(f"stopped by {name}; the same command goes on where it was", exit_code=self.exit_code)

    def guard(self, emit: Emit) -> Emit:
        """The same listener, which raises `Stopped` once a signal came; once it raised it, it does so at every word."""
        said: list[Stopped] = []

        def heard(event: dict[str, Any]) -> None:
            if said:
                raise said[0]
            try:
                emit(event)
                self.check()
            except Stopped as stop:
                said.append(stop)
                raise

        return heard

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        self.signal = number
        with contextlib.suppress(RuntimeError, OSError):  # the signal came in the middle of another print, or nobody reads
            print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)
        if self._at_once:
            self._at_once()


_held: Reins | None = None  # signals belong to the process, and so does this


@contextlib.contextmanager
def heeded(at_once: Callable[[], None] | None = None, *, passed_on: bool = False) -> Iterator[Reins]:
    """Take note of signals while the block runs; a block inside another shares its reins.

    Only the main thread of a process can be told of signals: in any other, nothing is heard. A signal that was ignored
    before (nohup) still is.

    Args:
        at_once: called when the first signal comes.
        passed_on: what asks the whole process to end (all but Ctrl-C) is raised again after the block, which alone cannot end it.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield Reins()
        return
    if _held is not None:
        yield _held
        return
    reins, before = Reins(at_once), {}
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by other than Python
            before[number] = signal.signal(number, reins._hear)
    _held = reins
    try:
        yield reins
    finally:
        _held = None
        for number, handler in before.items():
            signal.signal(number, handler)
        if passed_on and reins.signal not in (0, signal.SIGINT):
            signal.raise_signal(reins.signal)


@contextlib.contextmanager
def unheard(*others: signal.Signals) -> Iterator[None]:
    """Processes that start in the block hear nothing of Ctrl-C and of a closed terminal, which tells all of its processes, nor of `others`.

    This one hears of it after the block, or at once where it has other threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def deafen(*_: object) -> None:
    """In a worker process: leave signals to the process that started it, since a terminal sends them to all."""
    for name in NAMES:
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
