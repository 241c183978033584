"""Where the points of a sweep run: on this machine, in Slurm jobs, or on a Ray cluster, behind one small interface.

local    a thread and a kernel per point, and a GPU of its own where there are several
slurm    a job per point through submitit, requeued where it is preempted; `slurm:` in the sweep file says what each asks for
ray      a task per point on a running cluster or one of its own; `ray:` in the sweep file says what each asks for

Everything that a point leaves is the same: each engine calls `delt.batch.work.run_point` in the point's folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from delt.errors import ConfigError, unknown

if TYPE_CHECKING:
    from delt.batch.points import Sweep
    from delt.batch.work import Outcome, Work

PACKAGES = {"local": "", "slurm": "submitit", "ray": "ray"}  # engine -> the package that it needs


class Task(Protocol):
    """A point that was given to an engine."""

    def running(self) -> bool:
        """Whether it is being worked on, as far as is known; if not, it waits for its turn or has ended."""

    def outcome(self) -> Outcome | None:
        """How it ended; None as long as it has not. One that ends `stopped` without being asked to is to be given again."""


class Engine(Protocol):
    """A place for points."""

    room: int  # points that it takes before any has ended
    pause: float  # seconds between two looks at its tasks

    def submit(self, works: Sequence[Work]) -> Sequence[Task]:
        """Take points, which run as soon as there is a place for them."""

    def stop(self) -> None:
        """Give back what is not running; let what is come to the end of its step and write a checkpoint. Then leave."""


def require(name: str) -> None:
    """Refuse an engine that is not known or lacks its package.

    Raises:
        ConfigError: with the names that are known, or the command that installs the package.
    """
    if name not in PACKAGES:
        raise unknown("engine", name, PACKAGES)
    try:
        if PACKAGES[name]:
            importlib.import_module(PACKAGES[name])
    except ImportError:
        words = f"engine {name} needs the package {PACKAGES[name]}, which is not installed: pip install 'delt[{name}]'"
        raise ConfigError(words) from None


def open_engine(name: str, sweep: Sweep, jobs: int, out: Path) -> Engine:
    """The engine of this name, with `jobs` points at a time.

    Args:
        out: folder of the sweep, which every machine of a cluster has to see under the same path.

    Raises:
        DeltError: there is no cluster, or it cannot give what a point asks for.
    """
    if name == "slurm":
        from delt.batch.engines.slurm import SlurmEngine

        return SlurmEngine(sweep.slurm, jobs, out / "logs", sweep.name)
    if name == "ray":
        from delt.batch.engines.ray import RayEngine

        return RayEngine(sweep.ray, jobs)
    from delt.batch.engines.local import LocalEngine

    return LocalEngine(jobs)
