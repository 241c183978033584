"""The work on one point of a sweep, wherever it is done: in a thread, a Slurm job or a Ray task."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from delt.batch.notebook import NAME, NotebookError, experiment
from delt.config import RunConfig
from delt.errors import DeltError
from delt.runtime import device_of
from delt.storage import remove, write_bytes

if TYPE_CHECKING:
    from delt.batch.kernels import Kernels

ERROR = "error.txt"


class Work(NamedTuple):
    """A point as a machine sees it: what to do, and in which folder."""

    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a point ended: done, failed or stopped; `error` is one line."""

    state: str
    seconds: float
    error: str = ""


def run_point(
    config: RunConfig,
    folder: Path,
    env: Mapping[str, str] | None = None,
    kernels: Kernels | None = None,
    cpus: int | None = None,
) -> Outcome:
    """Do one point in its folder and say how it ended; never raises for what happens inside.

    Args:
        env: environment variables of its kernel.
        kernels: through which another thread in this process can end it.
        cpus: cores that are its own; without a GPU it has as many workers, where it does not name their number.
    """
    begun = time.monotonic()
    kernels = kernels or _new_kernels()
    try:
        for name in (f"{NAME}.html", ERROR):  # of an earlier attempt
            remove(folder / name)
        experiment(_with_workers(config, cpus), folder, env=env, bar=False, kernels=kernels)
        return Outcome("done", time.monotonic() - begun)
    except Exception as error:  # whatever it is, the other points go on
        if kernels.stopped:
            return Outcome("stopped", time.monotonic() - begun)
        words = [] if isinstance(error, DeltError) else [type(error).__name__]
        line = ": ".join([*words, *filter(None, [" ".join(str(error).split())])])
        trace = error.traceback if isinstance(error, NotebookError) else traceback.format_exc()
        keep_error(folder, line, trace)
        return Outcome("failed", time.monotonic() - begun, line)


def _new_kernels() -> Kernels:
    from delt.batch.kernels import Kernels

    return Kernels()


def _with_workers(config: RunConfig, cpus: int | None) -> RunConfig:
    runtime = config.runtime
    if cpus is None or runtime.workers is not None or device_of(runtime).type != "cpu":
        return config
    return replace(config, runtime=replace(runtime, workers=cpus))


def keep_error(folder: Path, line: str, trace: str = "") -> None:
    """Write why a point failed into its folder; what stands there of the same error says more and is kept."""
    path = folder / ERROR
    try:
        if not (path.is_file() and path.read_text(errors="replace").startswith(f"{line}\n")):
            write_bytes(path, f"{line}\n\n{trace}".rstrip().encode() + b"\n")
    except (DeltError, OSError):  # the disk is full: the line in sweep.json and on the screen has to do
        return
