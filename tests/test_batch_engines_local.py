"""Points on this machine: places with a GPU each, and an end for all of them."""

from __future__ import annotations

import time

import pytest

import delt
from delt.batch.engines import local
from delt.batch.engines.local import LocalEngine
from delt.batch.work import Outcome, Work


@pytest.fixture
def engine(monkeypatch):
    """An engine on a machine with these GPUs, and the environments of the points that it did."""

    def make(found, jobs, work=lambda kernels: None):
        seen = []

        def run_point(config, folder, env, kernels, cpus):
            seen.append((config.runtime.device, env, cpus))
            work(kernels)
            return Outcome("stopped" if kernels.stopped else "done", 1.0)

        monkeypatch.setattr(local, "run_point", run_point)
        monkeypatch.setattr(local, "gpus", lambda: found)
        monkeypatch.setattr(local, "cores", lambda: 7)
        return LocalEngine(jobs), seen

    return make


def works(tmp_path, *devices):
    return [Work(delt.configure("digits", preset="smoke", device=device), tmp_path) for device in devices]


def outcomes(tasks):
    while any(task.outcome() is None for task in tasks):
        time.sleep(0.01)
    return [task.outcome().state for task in tasks]


def test_a_point_has_a_gpu_of_its_own_unless_it_names_one(engine, tmp_path):
    place, seen = engine(["4", "7"], 2)
    for device, env in (("auto", {"CUDA_VISIBLE_DEVICES": "4"}), ("cuda", {"CUDA_VISIBLE_DEVICES": "7"}), ("cuda:1", {}), ("cpu", {})):
        (task,) = place.submit(works(tmp_path, device))
        assert outcomes([task]) == ["done"] and seen.pop() == (device, env, 3) and not task.running()
    place.stop()


def test_one_gpu_and_one_place_are_left_as_they_are(engine, tmp_path):
    for found, jobs, cpus in ((["0"], 2, 3), ([], 1, None)):
        place, seen = engine(found, jobs)
        assert place.room == jobs and outcomes(place.submit(works(tmp_path, "auto"))) == ["done"]
        assert seen == [("auto", {}, cpus)]
        place.stop()


def test_the_end_is_for_those_that_run_and_those_that_wait(engine, tmp_path):
    def work(kernels):
        while not kernels.stopped:
            time.sleep(0.01)

    place, seen = engine([], 1, work)
    first, second = place.submit(works(tmp_path, "cpu", "cpu"))
    while not first.running():
        time.sleep(0.01)
    assert first.outcome() is None and not second.running()
    place.stop()
    assert first.outcome().state == "stopped" and len(seen) == 1 and not second.running()
