"""A sweep: many points, several at a time, each in a notebook with a kernel of its own.

OUT/POINT/experiment.ipynb, .html    the executed notebook
OUT/POINT/run/                       the run folder; the point is done when its manifest verifies
OUT/POINT/error.txt                  why the point failed, with the traceback, until it does not
OUT/summary.ipynb, .html, .png       all points together
OUT/sweep.json                       the points and how they ended

The same command again does what is missing or failed, and goes on inside a run that was stopped.
"""

from __future__ import annotations

import queue
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delt.artifacts.folder import RunFolder, verify
from delt.batch.board import Board
from delt.batch.notebook import NAME, RUN, NotebookError, execute, experiment, means, template, to_html
from delt.batch.points import Point, Sweep, load_sweep
from delt.batch.report import noted, read_sweep
from delt.config import RunConfig, RuntimeConfig
from delt.data.given import require_given
from delt.data.load import require_files
from delt.errors import ConfigError, DeltError, IntegrityError
from delt.pipeline import Pipeline, check_names
from delt.pool import Pool
from delt.results import read_config
from delt.runtime import cores, device_of, gpus, resolve, silent
from delt.signals import heeded
from delt.storage import remove, write_bytes

if TYPE_CHECKING:
    from delt.batch.engine import Kernels

SUMMARY, ERROR = "summary", "error.txt"
SWEEPS = Path("papermill_runs")


@dataclass(frozen=True)
class Outcome:
    """How a point ended: done, failed or stopped; `error` is one line."""

    state: str
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Result:
    """A sweep that came to its end."""

    out: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]  # point -> its error


def run_sweep(file: Path | str, out: Path | str | None = None, jobs: int | None = None) -> Result:
    """Do what is missing of a sweep, `jobs` points at a time, and put all of it together in a summary notebook.

    A point that fails is kept with its traceback and the others go on.

    Args:
        file: see `delt.batch.points`.
        out: folder of the sweep (default: papermill_runs/NAME).
        jobs: points at a time (default: the file's, or 1). With several, each uses its share of the CPU's cores, and a GPU
            of its own where there are several.

    Raises:
        DeltError: a wrong parameter, a standing point of another configuration, a folder in use: before anything starts.
    """
    sweep = load_sweep(file)
    jobs = sweep.jobs if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least 1 is needed")
    folder = Path(out or SWEEPS / sweep.name).resolve()
    for point in sweep.points:
        check(point, folder / point.name)
    with RunFolder(folder).hold():
        done = [point for point in sweep.points if is_done(point.config, folder / point.name)]
        todo = [point for point in sweep.points if point not in done]
        said = [(name, entry.get("reference")) for name, entry in noted(folder).items()]
        if todo or said != [(point.name, point is sweep.reference) for point in sweep.points]:
            remove(folder / f"{SUMMARY}.html")  # which says, where it stands, that the summary is of these points as they are
        board = Board(sweep, folder)
        board.begin(done, min(jobs, max(1, len(todo))))
        _run_all(todo, folder, jobs, board)
        if not (folder / f"{SUMMARY}.html").is_file():
            summarise(folder)
    return _result(sweep, folder, board)


def check(point: Point, folder: Path) -> None:
    """Refuse a point that cannot work on this machine, or whose folder holds artefacts of other settings.

    Raises:
        DeltError: naming the point.
    """
    try:
        check_names(point.config)
        require_files(point.config.dataset, point.config.data)
        require_given(point.config.rank, point.config.ipc)
        config = replace(point.config, runtime=resolve(point.config.runtime))
        run = RunFolder(folder / RUN)
        if run.path.is_dir():
            Pipeline(config, run, Pool(config.runtime), silent).refuse_changes()
    except IntegrityError:
        return  # damage is the point's own trouble, and is met where it runs
    except DeltError as error:
        raise type(error)(f"point {point.name}: {error}") from None


def is_done(config: RunConfig, folder: Path) -> bool:
    """Whether a point's run is whole and of this configuration, and its notebook came to its end."""
    if not (folder / f"{NAME}.html").is_file() or verify(folder / RUN):
        return False
    try:
        return means(read_config(folder / RUN / "config.json"), config)
    except DeltError:
        return False


def run_point(config: RunConfig, folder: Path, env: Mapping[str, str] | None = None, kernels: Kernels | None = None) -> Outcome:
    """Do one point in its folder and say how it ended; never raises for what happens inside. Other engines call it, too.

    Args:
        env: environment variables of its kernel.
        kernels: through which another thread in this process can end it.
    """
    begun = time.monotonic()
    try:
        for name in (f"{NAME}.html", ERROR):  # of an earlier attempt
            remove(folder / name)
        experiment(config, folder, env=env, bar=False, kernels=kernels)
        return Outcome("done", time.monotonic() - begun)
    except Exception as error:  # whatever it is, the other points go on
        if kernels and kernels.stopped:
            return Outcome("stopped", time.monotonic() - begun)
        words = [] if isinstance(error, DeltError) else [type(error).__name__]
        line = ": ".join([*words, *filter(None, [" ".join(str(error).split())])])
        trace = error.traceback if isinstance(error, NotebookError) else traceback.format_exc()
        _keep_error(folder / ERROR, f"{line}\n\n{trace}".rstrip() + "\n")
        return Outcome("failed", time.monotonic() - begun, line)


def _keep_error(path: Path, text: str) -> None:
    try:
        write_bytes(path, text.encode())
    except DeltError:  # the disk is full: the line in sweep.json and on the screen has to do
        return


def _run_all(todo: Sequence[Point], folder: Path, jobs: int, board: Board) -> None:
    """Run points side by side; where a signal comes all kernels come to the end of their step, and what they did stays."""
    from delt.batch.engine import Kernels

    kernels, seats = Kernels(), _seats(todo, jobs)

    def seated(point: Point) -> Outcome:
        env = seats.get()
        try:
            return run_point(_shared(point.config, min(jobs, len(todo))), folder / point.name, env, kernels)
        finally:
            seats.put(env)

    with heeded() as reins, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(seated, point): point for point in todo}
        waiting = set(futures)
        try:
            while waiting:
                reins.check()
                board.running(futures[future] for future in futures if future.running())
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    outcome = future.result()
                    board.ended(futures[future], outcome.state, outcome.seconds, outcome.error)
        finally:  # with nothing left to stop at the usual end
            kernels.stop()
            pool.shutdown(cancel_futures=True)
            board.close()


def _seats(todo: Sequence[Point], jobs: int) -> queue.SimpleQueue[dict[str, str]]:
    """The environment of each place to run a point: one GPU each where there are several and no point names its own."""
    found = gpus() if all(point.config.runtime.device in ("auto", "cuda") for point in todo) else []
    seats: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in range(jobs):
        seats.put({"CUDA_VISIBLE_DEVICES": found[place % len(found)]} if len(found) > 1 else {})
    return seats


def _shared(config: RunConfig, jobs: int) -> RunConfig:
    """The configuration with its share of the cores, where several points run and it does not name its workers."""
    runtime: RuntimeConfig = config.runtime
    if jobs == 1 or runtime.workers is not None or device_of(runtime).type != "cpu":
        return config
    return replace(config, runtime=replace(runtime, workers=max(1, cores() // jobs)))


def summarise(folder: Path) -> Path:
    """Execute the summary notebook over a sweep's folder; returns its HTML copy. The picture is kept as a file, too.

    Raises:
        NotebookError: a cell failed.
    """
    from delt import plots

    write_bytes(folder / f"{SUMMARY}.png", plots.png(plots.overview(read_sweep(folder))))
    notebook = folder / f"{SUMMARY}.ipynb"
    execute(template(SUMMARY), notebook, {"sweep": "."}, bar=False)
    return to_html(notebook)


def _result(sweep: Sweep, folder: Path, board: Board) -> Result:
    entries: Any = board.entries
    done = tuple(point.name for point in sweep.points if entries[point.name]["state"] == "done")
    return Result(folder, done, {name: entry["error"] for name, entry in entries.items() if entry["state"] == "failed"})
