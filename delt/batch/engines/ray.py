"""Points as tasks of a Ray cluster: one that runs, or one of this machine's own for as long as the sweep takes.

Ray gives each point its GPUs and the kernel of the point sees no others.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from delt.batch.engines import Task
from delt.batch.engines.settings import RaySettings
from delt.batch.work import Outcome, Work, run_point
from delt.config import RunConfig
from delt.errors import DeltError
from delt.signals import unheard

GRACE = 30.0  # seconds that a run has for its step and its checkpoint
STORE = 100_000_000  # bytes for what tasks hand on, which here is a line of text
OURS = ("DELT_CACHE", "OMP_NUM_THREADS")  # environment variables that go to the other machines


def work_on(config: RunConfig, folder: Path, env: Mapping[str, str], cpus: int) -> Outcome:
    """What a Ray task does; one that is cancelled finds a Ctrl-C in its process, and ends with a checkpoint."""
    return run_point(config, folder, env, cpus=cpus)


class RayTask:
    """A point in a Ray task."""

    def __init__(self, reference: Any) -> None:
        self.reference, self._begun = reference, time.monotonic()

    def running(self) -> bool:
        """Whether it was given; Ray does not say whether it waits for a free place."""
        return self.outcome() is None

    def outcome(self) -> Outcome | None:
        """How it ended, or None."""
        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            found: Outcome = ray.get(self.reference)
            return found
        except ray.exceptions.RayTaskError as error:
            what = f"the Ray task failed before its run began: {str(error).strip().splitlines()[-1]}"
        except ray.exceptions.RayError as error:
            what = f"the Ray worker was lost ({type(error).__name__}): it was killed, ran out of memory, or lost its node"
        return Outcome("failed", time.monotonic() - self._begun, f"{what}; the same command goes on where it was")


class RayEngine:
    """A task per point.

    Args:
        asked: what each point asks for, and of which cluster.
        jobs: points at a time, at most; Ray starts fewer where they ask for more than it has.

    Raises:
        DeltError: there is no cluster at the address, or it has not what a point asks for.
    """

    pause = 0.2

    def __init__(self, asked: RaySettings, jobs: int) -> None:
        self.room, self.tasks = jobs, list[RayTask]()
        _connect(asked.address)
        has = ray.cluster_resources()
        gpus = min(1.0, has.get("GPU", 0)) if asked.gpus is None else asked.gpus
        for what, wanted in (("CPU", asked.cpus), ("GPU", gpus)):
            if wanted > has.get(what, 0):
                ray.shutdown()
                raise DeltError(
                    f"a point asks for {wanted:g} {what} and the whole Ray cluster has {has.get(what, 0):g}: see `ray:` in the file"
                )
        self._cpus, self._env = asked.cpus, {name: os.environ[name] for name in OURS if name in os.environ}
        if not gpus:  # Ray hides them only from those that ask for some
            self._env["CUDA_VISIBLE_DEVICES"] = ""
        self._run = ray.remote(num_cpus=asked.cpus, num_gpus=gpus, max_retries=0)(work_on)

    def submit(self, works: Sequence[Work]) -> Sequence[Task]:
        """Take points."""
        tasks = [RayTask(self._run.remote(work.config, work.folder, self._env, self._cpus)) for work in works]
        self.tasks += tasks
        return tasks

    def stop(self) -> None:
        """Cancel what is left of the tasks, gracefully, and leave the cluster; one of our own ends."""
        left = [task for task in self.tasks if task.outcome() is None]
        for task in left:
            ray.cancel(task.reference)
        ray.wait([task.reference for task in left], num_returns=len(left), timeout=GRACE) if left else None
        ray.shutdown()


def _connect(address: str) -> None:
    """Join the cluster at an address, or start one."""
    own: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": STORE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    before = signal.getsignal(signal.SIGTERM)
    try:
        with unheard():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        words = "start one with `ray start --head`, or leave the address out for one of this machine's own"
        raise DeltError(f"no Ray cluster at {address or 'this machine'} ({' '.join(str(error).split())}): {words}") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray puts its own in the place
