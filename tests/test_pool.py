"""Worker processes: results in order, a few tasks at a time, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from delt.artifacts.folder import Busy, RunFolder
from delt.config import RuntimeConfig
from delt.errors import DataError, RunError, Stopped
from delt.pool import AHEAD, Pool
from delt.runtime import Emit, peak_memory, silent
from tests.test_runtime import fill, only_linux


def mapped(pool: Pool, fn: Callable[..., Any], tasks: Sequence[Any], emit: Emit = silent) -> list[Any]:
    return list(pool.each(fn, tasks, emit))


def halve(task: torch.Tensor, emit: Emit) -> tuple[torch.Tensor, int, int]:
    emit({"done": int(task[0])})
    task /= 2
    return task, os.getpid(), torch.get_num_threads()


def refuse(task: int, emit: Emit) -> int:
    if task == 2:
        raise DataError("class 'cat' has 3 images; allowed is 5")
    return task


def die(task: int, emit: Emit) -> int:
    os._exit(9)


@pytest.fixture(scope="module")
def pool():
    with Pool(RuntimeConfig(device="cpu", workers=2, threads=1)) as pool:
        yield pool


def test_pool_returns_results_in_order_and_forwards_every_event(pool: Pool):
    tasks, events = [torch.tensor([float(number), 1.0]) for number in range(12)], list[dict[str, Any]]()
    results = mapped(pool, halve, tasks, events.append)
    assert [value.tolist() for value, *_ in results] == [[number / 2, 0.5] for number in range(12)]
    assert sorted(event["done"] for event in events) == list(range(12))
    assert os.getpid() not in {process for _, process, _ in results}
    assert {threads for *_, threads in results} == {1}
    assert [task.tolist() for task in tasks] == [[float(number), 1.0] for number in range(12)]  # nothing is shared


def test_starting_the_workers_is_counted_apart_from_their_work():
    with Pool(RuntimeConfig(device="cpu", workers=2, threads=1)) as pool:
        assert pool.startup == 0.0
        begun = time.monotonic()
        mapped(pool, halve, [torch.ones(1)] * 2)
        whole, started = time.monotonic() - begun, pool.startup
        assert 0 < started < whole
        mapped(pool, halve, [torch.ones(1)] * 2)
        assert pool.startup == started


def test_there_are_no_more_workers_than_a_stage_has_tasks(monkeypatch: pytest.MonkeyPatch):
    """Nor fewer, once there are more tasks; those that are up stay."""
    monkeypatch.setattr("delt.pool.FEW", 1)
    with Pool(RuntimeConfig(device="cpu", workers=3, threads=1)) as pool:
        for count, up in ((2, 2), (4, 3), (2, 3)):
            processes = {process for _, process, _ in mapped(pool, halve, [torch.ones(1)] * count)}
            assert len(processes) <= up == len(pool._executor._processes)  # type: ignore[union-attr]


def surroundings(task: int, emit: Emit) -> tuple[str | None, str | None]:
    return os.environ.get("DELT_TRIED"), os.environ.get("DELT_GONE")


def test_workers_have_the_environment_of_when_they_began(monkeypatch: pytest.MonkeyPatch):
    for given, gone in (("one", "here"), ("two", None)):
        monkeypatch.setenv("DELT_TRIED", given)
        monkeypatch.setenv("DELT_GONE", gone) if gone else monkeypatch.delenv("DELT_GONE")
        with Pool(RuntimeConfig(device="cpu", workers=2, threads=1)) as pool:
            assert mapped(pool, surroundings, range(2)) == [(given, gone)] * 2


def test_pool_passes_errors_on_with_type_and_message(pool: Pool):
    with pytest.raises(DataError, match="^class 'cat' has 3 images; allowed is 5$"):
        mapped(pool, refuse, range(4))
    assert mapped(pool, refuse, [5, 6]) == [5, 6]


def test_tasks_are_made_whole_a_few_at_a_time(pool: Pool):
    """Neither all tasks nor all results need to be in memory: what waits is bounded, however slowly results are taken."""
    made: list[int] = []

    def ready(number: int) -> torch.Tensor:
        made.append(number)
        return torch.tensor([float(number)])

    for number, (value, *_) in enumerate(pool.each(halve, range(40), silent, ready)):
        assert value.item() == number / 2
        assert len(made) <= number + 1 + AHEAD * pool.workers
    assert made == list(range(40))


def test_a_listener_that_fails_ends_the_work_with_its_error(pool: Pool):
    def listener(event: dict[str, Any]) -> None:
        raise OSError("nobody reads this")

    with pytest.raises(OSError, match="nobody reads this"):
        mapped(pool, until_stopped, range(3), listener)
    assert mapped(pool, refuse, [5, 6]) == [5, 6]


def until_stopped(task: int, emit: Emit) -> str:
    try:
        for _ in range(600):
            emit({"done": 1})
            time.sleep(0.02)
        return "never told"
    except Stopped:
        return "stopped"


def test_workers_are_told_to_stop_and_may_hand_over_what_they_have(pool: Pool):
    heard: list[dict[str, Any]] = []

    def listener(event: dict[str, Any]) -> None:
        heard.append(event)
        if len(heard) > 3:
            raise Stopped

    assert mapped(pool, until_stopped, range(3), listener) == ["stopped"] * 3
    assert mapped(pool, refuse, [5, 6]) == [5, 6]  # the next work is not stopped


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@only_linux
def test_workers_of_a_killed_process_end_and_hold_the_lock_until_then(tmp_path: Path):
    """A process is killed while its worker is busy: its lock is taken over as soon as the worker is gone, and not before."""
    code = f"""
import sys, time
from delt.artifacts.folder import RunFolder
from delt.artifacts.folder import Busy, RunFolder
from delt.config import RuntimeConfig
from delt.pool import AHEAD, Pool
from tests.test_pool import mapped, until_stopped
if __name__ == "__main__":
    with RunFolder({str(tmp_path)!r}).hold() as folder, Pool(RuntimeConfig(device="cpu", workers=2, threads=1), folder.lock) as pool:
        mapped(pool, until_stopped, range(2), lambda event: print("busy", flush=True))
"""
    script = tmp_path.parent / "holder.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    workers = [pid for server in children(process.pid) for pid in children(server)]
    assert len(workers) == 2
    with pytest.raises(Busy, match=f"pid {process.pid} on"), RunFolder(tmp_path).hold():
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with RunFolder(tmp_path).hold():  # waits for the workers
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists() and "forkserver" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_a_pool_whose_process_dies_says_so_and_starts_afresh(pool: Pool):
    with pytest.raises(RunError, match="a worker process died.*--workers"):
        mapped(pool, die, range(2))
    assert mapped(pool, refuse, [0, 1]) == [0, 1]


def die_beside_another(task: Path | None, emit: Emit) -> None:
    if task is None:
        time.sleep(0.2)
        os._exit(9)
    task.write_text(until_stopped(0, emit))


def test_who_is_left_beside_a_dead_process_stops_between_two_steps(tmp_path: Path):
    """Nobody will ask for what it makes, and the program could not end before it."""
    note = tmp_path / "note"
    with Pool(RuntimeConfig(device="cpu", workers=2, threads=1)) as pool:
        with pytest.raises(RunError, match="a worker process died"):
            mapped(pool, die_beside_another, [None, note])
        until = time.monotonic() + 10
        while not (note.exists() and note.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
    assert note.read_text() == "stopped"


@pytest.mark.parametrize(("workers", "count"), [(1, 3), (2, 1)])
def test_little_work_stays_in_this_process(workers: int, count: int):
    events: list[dict[str, Any]] = []
    with Pool(RuntimeConfig(workers=workers)) as pool:
        results = mapped(pool, halve, [torch.tensor([float(n)]) for n in range(count)], events.append)
    assert {process for _, process, _ in results} == {os.getpid()}
    assert [event["done"] for event in events] == list(range(count))


@only_linux
def test_the_peak_of_a_stage_is_that_of_its_largest_worker(pool: Pool):
    peaks = []
    for megabytes in (300, 150):
        pool.reset_peak()
        assert pool.peak == 0
        assert mapped(pool, fill, [1, megabytes, 1]) == [10**6, megabytes * 10**6, 10**6]
        assert pool.peak_memory() == max(pool.peak, peak_memory(pool.runtime))
        peaks.append(pool.peak)
        assert peaks[-1] > 1e6 * megabytes
    assert peaks[1] < peaks[0] - 100e6
