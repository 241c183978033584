"""Points on this machine: a thread watches each, a kernel of its own does the work, with a GPU of its own where there are several."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from delt.batch.engines import Task
from delt.batch.kernels import Kernels
from delt.batch.work import Outcome, Work, run_point
from delt.runtime import cores, gpus


@dataclass(frozen=True, eq=False)
class LocalTask:
    """A point in a thread."""

    future: Future[Outcome]

    def running(self) -> bool:
        """Whether it is being worked on."""
        return self.future.running()

    def outcome(self) -> Outcome | None:
        """How it ended, or None."""
        return self.future.result() if self.future.done() else None


class LocalEngine:
    """`jobs` points at a time. With several, each has its share of the cores."""

    pause = 0.1

    def __init__(self, jobs: int) -> None:
        self.room = jobs
        self._cpus = max(1, cores() // jobs) if jobs > 1 else None
        self._kernels, self._pool, found = Kernels(), ThreadPoolExecutor(jobs), gpus()
        self._seats: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()  # the environment of each place to run a point
        for place in range(jobs):
            self._seats.put({"CUDA_VISIBLE_DEVICES": found[place % len(found)]} if len(found) > 1 else {})

    def submit(self, works: Sequence[Work]) -> Sequence[Task]:
        """Take points."""
        return [LocalTask(self._pool.submit(self._seated, work)) for work in works]

    def _seated(self, work: Work) -> Outcome:
        seat = self._seats.get()
        try:
            free = work.config.runtime.device in ("auto", "cuda")  # and does not name a GPU among all of them
            return run_point(work.config, work.folder, seat if free else {}, self._kernels, self._cpus)
        finally:
            self._seats.put(seat)

    def stop(self) -> None:
        """End the kernels after their step."""
        self._kernels.stop()
        self._pool.shutdown(cancel_futures=True)
