"""A sweep: many points, several at a time, each in a notebook with a kernel of its own, through one of `delt.batch.engines`.

OUT/POINT/experiment.ipynb, .html    the executed notebook
OUT/POINT/run/                       the run folder; the point is done when its manifest verifies
OUT/POINT/error.txt                  why the point failed, with the traceback, until it does not
OUT/summary.ipynb, .html, .png       all points together
OUT/sweep.json                       the points and how they ended
OUT/logs/                            what Slurm jobs wrote

The same command again does what is missing or failed, and goes on inside a run that was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from delt.artifacts import cache
from delt.artifacts.folder import RunFolder, verify
from delt.batch.board import Board
from delt.batch.engines import Engine, Task, open_engine, require
from delt.batch.notebook import NAME, RUN, execute, means, template, to_html
from delt.batch.points import Point, Sweep, load_sweep
from delt.batch.report import noted, read_sweep
from delt.batch.work import Work, keep_error
from delt.checks import check_config
from delt.config import RunConfig
from delt.errors import ConfigError, DeltError, IntegrityError
from delt.pipeline import Pipeline
from delt.pool import Pool
from delt.results import read_config
from delt.runtime import resolve, silent
from delt.signals import heeded
from delt.storage import remove, write_bytes

SUMMARY = "summary"
SWEEPS = Path("papermill_runs")


@dataclass(frozen=True)
class Result:
    """A sweep that came to its end."""

    out: Path
    done: tuple[str, ...]
    failed: Mapping[str, str]  # point -> its error


def run_sweep(file: Path | str, out: Path | str | None = None, jobs: int | None = None, engine: str = "local") -> Result:
    """Do what is missing of a sweep, `jobs` points at a time, and put all of it together in a summary notebook.

    A point that fails is kept with its traceback and the others go on.

    Args:
        file: see `delt.batch.points`.
        out: folder of the sweep (default: papermill_runs/NAME).
        jobs: points at a time (default: the file's, or 1 on this machine and as many as fit on a cluster).
        engine: where points run: "local", "slurm" or "ray"; see `delt.batch.engines`.

    Raises:
        DeltError: a wrong parameter, a package that is missing, a standing point of another configuration, a folder in use:
            before anything starts.
    """
    require(engine)
    sweep = load_sweep(file)
    jobs = sweep.jobs if jobs is None else jobs
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least 1 is needed")
    folder = Path(out or SWEEPS / sweep.name).expanduser().resolve()
    cache.settle()
    RunFolder(folder).require_no_run("a sweep")
    for point in sweep.points:
        check(point, folder / point.name, here=engine == "local")
    with RunFolder(folder).hold():
        done = [point for point in sweep.points if is_done(point.config, folder / point.name)]
        todo = [point for point in sweep.points if point not in done]
        said = [(name, entry.get("reference")) for name, entry in noted(folder).items()]
        if todo or said != [(point.name, point is sweep.reference) for point in sweep.points]:
            remove(folder / f"{SUMMARY}.html")  # which says, where it stands, that the summary is of these points as they are
        board = Board(sweep, folder)
        jobs = min(jobs or (1 if engine == "local" else len(todo)), max(1, len(todo)))
        board.begin(done, jobs)
        if todo:
            _run_all(todo, folder, open_engine(engine, sweep, jobs, folder), board)
        if not (folder / f"{SUMMARY}.html").is_file():
            summarise(folder)
    return _result(sweep, folder, board)


def check(point: Point, folder: Path, here: bool = True) -> None:
    """Refuse a point that cannot work, or whose folder holds artefacts of other settings.

    Args:
        here: it is to work on this machine; elsewhere there may be a GPU that this one has not.

    Raises:
        DeltError: naming the point.
    """
    try:
        check_config(point.config)
        try:
            config = replace(point.config, runtime=resolve(point.config.runtime))
        except ConfigError:
            if here:
                raise
            return
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


def _run_all(todo: Sequence[Point], folder: Path, engine: Engine, board: Board) -> None:
    """Give points to an engine as it has room for them; where a signal comes, all of them come to the end of their step."""
    waiting, tasks = list(todo), dict[Task, Point]()
    with heeded() as reins:
        try:
            while waiting or tasks:
                reins.check()
                if chosen := waiting[: engine.room - len(tasks)]:
                    del waiting[: len(chosen)]
                    tasks |= zip(engine.submit([Work(point.config, folder / point.name) for point in chosen]), chosen, strict=True)
                board.running(point for task, point in tasks.items() if task.running())
                time.sleep(engine.pause)
                for task, outcome in [(task, outcome) for task in tasks if (outcome := task.outcome())]:
                    point = tasks.pop(task)
                    if outcome.state == "stopped":  # by its machine, which was wanted for something else: it goes on elsewhere
                        waiting.append(point)
                        continue
                    if outcome.error:
                        keep_error(folder / point.name, outcome.error)
                    board.ended(point, outcome.state, outcome.seconds, outcome.error)
        finally:  # with nothing left to stop at the usual end
            engine.stop()
            board.close()


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
