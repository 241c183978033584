"""Ray: a cluster of this machine's own, in a process of its own, whose worker is killed; and how a task's end is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

import delt
from delt.batch.engines.ray import RayEngine
from delt.batch.engines.settings import RaySettings
from delt.batch.work import Outcome, Work
from delt.errors import DeltError

pytestmark = pytest.mark.timeout(480)  # Ray starts a dozen processes, which takes long beside other tests
SMALL = {"dataset": "digits", "preset": "smoke", "iterations": 8, "workers": 1, "evaluate_seeds": 1}
FILES = ("scores.json", "synthetic.parquet")
SCRIPT = """
import json, signal, sys, threading
from pathlib import Path
from delt.batch import sweep
sys.path.append(sys.argv[3])
from test_batch_engines_slurm import hit

sweep.summarise = lambda folder: None
file, out = Path(sys.argv[1]), Path(sys.argv[2])
before = signal.getsignal(signal.SIGTERM)
killer = threading.Thread(target=hit, args=(out / "ipc=3", "rank", signal.SIGKILL))
killer.start()
first = sweep.run_sweep(file, out, engine="ray")
killer.join()
told = (out / "ipc=3" / "error.txt").read_text()
again = sweep.run_sweep(file, out, engine="ray")
assert signal.getsignal(signal.SIGTERM) is before
Path(sys.argv[2] + ".json").write_text(json.dumps([first.done, dict(first.failed), told, again.done, dict(again.failed)]))
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory, cache):
    """A sweep in which the worker of ipc=3 is killed; then the same command again."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "a.yaml").write_text(json.dumps({"parameters": SMALL, "points": [{"ipc": 2}, {"ipc": 3}]}))
    command = [sys.executable, "-c", SCRIPT, folder / "a.yaml", folder / "out", os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", json.loads((folder / "out.json").read_text())


def test_a_killed_worker_fails_its_point_alone_and_the_same_command_does_the_rest(twice):
    out, (first, failed, told, again, left) = twice
    assert first == ["ipc=2"] and list(failed) == ["ipc=3"] and (again, left) == (["ipc=2", "ipc=3"], {})
    assert "the Ray worker was lost (WorkerCrashedError): it was killed, ran out of memory, or lost its node" in failed["ipc=3"]
    assert told == failed["ipc=3"] + "\n" and not list(out.glob("*/error.txt"))


def test_the_bytes_are_those_of_a_plain_run(twice, tmp_path):
    for ipc in (2, 3):
        delt.run(delt.configure(**SMALL, ipc=ipc), tmp_path / str(ipc), listener=lambda event: None)
        for name in FILES:
            assert (twice[0] / f"ipc={ipc}" / "run" / name).read_bytes() == (tmp_path / str(ipc) / name).read_bytes(), name


# ------------------------------------------------------- a pretended cluster


class Reference:
    def __init__(self, given):
        self.given = given


@pytest.fixture
def cluster(monkeypatch):
    """A cluster with 8 cores and 2 GPUs, on which nothing runs; what was asked of it."""
    seen = SimpleNamespace(asked={}, cancelled=[], left=0, init={}, ends={})

    def remote(**asked):
        seen.asked = asked
        return lambda work: SimpleNamespace(remote=lambda *given: Reference(given))

    monkeypatch.setattr(ray, "init", lambda address, **more: seen.init.update(more, address=address))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda tasks, **more: ([task for task in tasks if task in seen.ends], []))
    monkeypatch.setattr(ray, "get", lambda task: seen.ends[task])
    monkeypatch.setattr(ray, "cancel", seen.cancelled.append)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(seen, "left", seen.left + 1))
    return seen


@pytest.mark.parametrize(
    ("settings", "gpus"), [(RaySettings(cpus=2), 1.0), (RaySettings(gpus=0.5, cpus=2), 0.5), (RaySettings(gpus=0, cpus=2), 0)]
)
def test_a_point_asks_for_its_gpus(settings, gpus, cluster):
    assert RayEngine(settings, 3).room == 3
    assert cluster.asked == {"num_cpus": 2, "num_gpus": gpus, "max_retries": 0}
    assert cluster.init["address"] == "local" and not cluster.init["include_dashboard"] and not cluster.init["log_to_driver"]


def test_who_asks_for_no_gpu_sees_none(cluster, tmp_path):
    for gpus, hidden in ((0, True), (1, False)):
        (task,) = RayEngine(RaySettings(gpus=gpus), 1).submit([Work(delt.configure("digits", preset="smoke"), tmp_path)])
        assert ("CUDA_VISIBLE_DEVICES" in task.reference.given[2]) == hidden


def test_an_address_is_that_of_a_cluster_that_runs(cluster):
    RayEngine(RaySettings(address="head:6379"), 1)
    assert cluster.init["address"] == "head:6379" and "include_dashboard" not in cluster.init


@pytest.mark.parametrize(
    ("settings", "message"),
    [(RaySettings(gpus=4), "4 GPU and the whole Ray cluster has 2"), (RaySettings(cpus=9), "9 CPU and the whole Ray cluster has 8")],
)
def test_more_than_there_is_is_refused(settings, message, cluster):
    with pytest.raises(DeltError, match=f"a point asks for {message}: see `ray:` in the file"):
        RayEngine(settings, 1)
    assert cluster.left == 1


def test_no_cluster_at_an_address_is_one_line(cluster, monkeypatch):
    def init(*rest, **more):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(DeltError, match="no Ray cluster at auto .nobody there.: start one with `ray start --head`"):
        RayEngine(RaySettings(address="auto"), 1)


def test_stop_cancels_what_has_not_ended_and_leaves(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("DELT_CACHE", "/cache")
    engine = RayEngine(RaySettings(), 3)
    one, two = engine.submit([Work(delt.configure("digits", preset="smoke", seed=seed), tmp_path) for seed in (0, 1)])
    assert one.reference.given[2]["DELT_CACHE"] == "/cache" and one.running() and one.outcome() is None
    cluster.ends[one.reference] = Outcome("done", 1.0)
    assert one.outcome() == Outcome("done", 1.0) and not one.running()
    engine.stop()
    assert cluster.cancelled == [two.reference] and cluster.left == 1


def test_a_task_that_could_not_begin_tells_why(cluster, tmp_path, monkeypatch):
    def get(reference):
        raise ray.exceptions.RayTaskError("work_on", "Traceback:\nModuleNotFoundError: No module named 'delt'", ModuleNotFoundError("delt"))

    monkeypatch.setattr(ray, "get", get)
    (task,) = RayEngine(RaySettings(), 3).submit([Work(delt.configure("digits", preset="smoke"), tmp_path)])
    cluster.ends[task.reference] = None
    found = task.outcome()
    assert found.state == "failed" and "failed before its run began: ModuleNotFoundError: No module named 'delt'; " in found.error
