"""Tasks side by side in threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from delt.beside import side_by_side
from delt.config import RuntimeConfig
from delt.errors import DeltError, Stopped
from delt.job import Job
from delt.runtime import Emit, seeded, settings

CPU = torch.device("cpu")


def test_results_come_in_order_and_so_many_are_in_work() -> None:
    barrier, threads = threading.Barrier(3, timeout=20), set()

    def work(task: int, emit: Emit) -> int:
        threads.add(threading.get_ident())
        emit({"done": 1})
        barrier.wait()  # passes only where three are in work
        time.sleep(0.01 * (3 - task % 3))
        return task * task

    heard: list[dict[str, Any]] = []
    assert list(side_by_side(work, range(6), 3, CPU, heard.append)) == [0, 1, 4, 9, 16, 25]
    assert len(heard) == 6 and threading.get_ident() not in threads


def test_one_thread_speaks_at_a_time() -> None:
    inside, most = [0], [0]

    def emit(event: dict[str, Any]) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1

    def work(task: int, emit: Emit) -> None:
        for _ in range(5):
            emit({})

    list(side_by_side(work, range(4), 4, CPU, emit))
    assert most == [1]


def endless(task: int, emit: Emit) -> int:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        emit({"task": task})
        time.sleep(0.001)
    return task


def test_all_stop_where_the_listener_says_so() -> None:
    said, ended = [0], []

    def emit(event: dict[str, Any]) -> None:
        said[0] += 1
        if said[0] > 20:
            raise Stopped

    def work(task: int, tell: Emit) -> int:
        try:
            return endless(task, tell)
        except Stopped:
            ended.append(task)
            raise

    with pytest.raises(Stopped):
        list(side_by_side(work, range(5), 3, CPU, emit))
    assert sorted(ended) == [0, 1, 2] and said[0] == 21, "nothing is said after that, and nothing begun"


def test_all_stop_where_one_fails() -> None:
    def work(task: int, tell: Emit) -> int:
        if task == 0:
            raise DeltError("the first one")
        return endless(task, tell)

    with pytest.raises(DeltError, match="the first one"):
        list(side_by_side(work, range(3), 3, CPU, lambda event: None))


def test_they_work_under_the_settings_of_the_thread_that_waits_and_leave_no_random_state() -> None:
    before, other = torch.get_num_threads(), RuntimeConfig(device="cpu", threads=2)

    def work(task: int, tell: Emit) -> int:
        with settings(RuntimeConfig(device="cpu", threads=1)), seeded(CPU, "task", task):
            time.sleep(0.01 * (task + 1))
            torch.rand(3)
            return torch.get_num_threads()

    state = torch.get_rng_state()
    with settings(other):  # a thread of its own would wait for the end of this
        assert list(side_by_side(work, range(3), 3, CPU, lambda event: None)) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before and torch.equal(torch.get_rng_state(), state)


def test_a_job_does_units_side_by_side() -> None:
    barrier = threading.Barrier(2, timeout=20)

    def work(task: int, emit: Emit) -> int:
        barrier.wait()
        return task

    job = Job(runtime=RuntimeConfig(device="cpu"))
    assert list(job.each(work, [1, 2], ready=lambda task: 10 * task, beside=2)) == [10, 20]
