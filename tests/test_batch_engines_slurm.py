"""Slurm: real jobs of submitit on this machine, one preempted and one killed; and what is said to Slurm, to a pretended one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import submitit

import delt
from delt.batch import sweep as room
from delt.batch.engines import slurm
from delt.batch.engines.settings import SlurmSettings
from delt.batch.engines.slurm import Job, SlurmEngine
from delt.batch.sweep import run_sweep
from delt.batch.work import Outcome, Work
from delt.errors import DeltError

SMALL = {"dataset": "digits", "preset": "smoke", "iterations": 8, "workers": 1, "evaluate_seeds": 1}
FILES = ("scores.json", "synthetic.parquet")


def hit(folder, stage, number):
    """Send a signal to the job that does a point, as soon as a stage of its run is finished."""
    for _ in range(60000):  # five minutes: jobs may begin late beside other tests
        if (folder / "run" / ".work" / "stages" / f"{stage}.json").exists():
            _, kernel, *_ = (folder / "run" / ".work" / "lock").read_text().split()
            job = int(Path(f"/proc/{kernel}/stat").read_text().rsplit(")", 1)[1].split()[1])  # the kernel's parent
            assert job != os.getpid()
            os.kill(job, number)
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def twice(tmp_path_factory, cache):
    """A sweep in which ipc=2 is preempted and ipc=3 is killed; then the same command again."""
    folder = tmp_path_factory.mktemp("slurm")
    file, out = folder / "a.yaml", folder / "out"
    about = {"parameters": SMALL, "points": [{"ipc": 2}, {"ipc": 3}], "slurm": {"cluster": "local"}}
    file.write_text(json.dumps(about))
    threads = [threading.Thread(target=hit, args=(out / "ipc=2", "squeeze", signal.SIGUSR2))]
    threads += [threading.Thread(target=hit, args=(out / "ipc=3", "rank", signal.SIGKILL))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "summarise", lambda folder: None)
        for thread in threads:
            thread.start()
        first = run_sweep(file, out, engine="slurm")
        for thread in threads:
            thread.join()
        told = (out / "ipc=3" / "error.txt").read_text()
        again = run_sweep(file, out, engine="slurm")
    return {"out": out, "first": first, "told": told, "again": again}


def test_a_preempted_job_goes_on_and_a_killed_one_fails(twice):
    assert twice["first"].done == ("ipc=2",) and list(twice["first"].failed) == ["ipc=3"]
    words = twice["first"].failed["ipc=3"]
    assert "ended without a result: it was killed, ran out of memory, or lost its node" in words and len(words.splitlines()) == 1
    assert twice["told"] == f"{words}\n"
    logs = "".join(path.read_text() for path in (twice["out"] / "logs").rglob("*_log.out"))
    assert "this job is preempted" in logs and logs.count("Requeued job") == 1


def test_the_same_command_does_the_rest_with_the_bytes_of_a_plain_run(twice, tmp_path):
    assert twice["again"].done == ("ipc=2", "ipc=3") and not twice["again"].failed
    assert not list(twice["out"].glob("*/error.txt"))
    for ipc in (2, 3):
        delt.run(delt.configure(**SMALL, ipc=ipc), tmp_path / str(ipc), listener=lambda event: None)
        for name in FILES:
            assert (twice["out"] / f"ipc={ipc}" / "run" / name).read_bytes() == (tmp_path / str(ipc) / name).read_bytes(), name


# ------------------------------------------------------- a pretended Slurm, of which each command is a line of shell


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """The folder in which sbatch leaves its script as script.sh and scancel its words, and from which sacct reads states."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    number = f"{time.time_ns() % 10**9}$(wc -l < {folder}/count)"  # submitit remembers numbers of jobs
    commands = {
        "srun": "exit 1",
        "sbatch": f'cp "$1" {folder}/script.sh; echo x >> {folder}/count; echo "Submitted batch job {number}"',
        "sacct": f"echo 'JobID|State|NodeList'; cat {folder}/states",
        "scancel": f"echo $* >> {folder}/cancelled; sed -i 's/RUNNING/CANCELLED by 7/' {folder}/states",
    }
    for name, line in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    (folder / "states").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "PATIENCE", 0.0)
    return folder


def given(pretended, tmp_path, points=1, **asked):
    """An engine with some points in the queue, and its tasks."""
    engine = SlurmEngine(SlurmSettings(**asked), 2, tmp_path / "logs", "a")
    engine.pause = 0.01
    works = [Work(delt.configure("digits", preset="smoke", seed=seed), tmp_path / str(seed)) for seed in range(points)]
    return engine, engine.submit(works)


def test_the_settings_reach_slurm(pretended, tmp_path):
    asked = {"partition": "gpu", "account": "us", "time": 240, "gpus": 1, "cpus": 8, "memory": 64, "options": {"constraint": "a100"}}
    engine, tasks = given(pretended, tmp_path, 3, **asked)
    assert engine.room >= 1000 and len(tasks) == 3
    lines = (pretended / "script.sh").read_text().splitlines()
    for option in ("partition=gpu", "account=us", "time=240", "gpus-per-node=1", "cpus-per-task=8", "mem=64GB", "constraint=a100"):
        assert f"#SBATCH --{option}" in lines
    assert {"#SBATCH --array=0-2%2", "#SBATCH --requeue", "#SBATCH --signal=USR2@90", "#SBATCH --job-name=a"} <= set(lines)
    assert not any("--qos" in line for line in lines)


def test_what_is_not_asked_for_is_left_to_the_cluster(pretended, tmp_path):
    given(pretended, tmp_path, options={"requeue": False, "no_kill": True})
    script = (pretended / "script.sh").read_text()
    assert "--time=60" in script and "#SBATCH --no-kill\n" in script
    assert not any(word in script for word in ("partition", "gpus", "--mem", "array", "requeue"))


def state(pretended, task, word):
    (pretended / "states").write_text(f"{task.job.job_id}|{word}|node1\n")
    submitit.SlurmJob.watcher.update()


def result(task, found):
    task.job.paths.result_pickle.parent.mkdir(exist_ok=True)
    submitit.core.utils.cloudpickle_dump(found, task.job.paths.result_pickle)


def test_how_a_job_ends(pretended, tmp_path):
    _, (task,) = given(pretended, tmp_path)
    state(pretended, task, "PENDING")
    assert task.outcome() is None and not task.running()
    state(pretended, task, "RUNNING")
    assert task.outcome() is None and task.running()
    result(task, ("success", Outcome("done", 3.0)))
    assert task.outcome() == Outcome("done", 3.0)


def test_a_job_that_could_not_begin_tells_why(pretended, tmp_path):
    _, (task,) = given(pretended, tmp_path)
    result(task, ("error", "Traceback:\n  a line\nModuleNotFoundError: No module named 'delt'\n"))
    found = task.outcome()
    assert found.error.startswith(f"job {task.job.job_id} failed before its run began: ModuleNotFoundError: No module named 'delt'; ")
    assert found.state == "failed" and len(found.error.splitlines()) == 1


@pytest.mark.parametrize(("word", "outcome"), [("RUNNING", "stopped"), ("COMPLETED", "stopped"), ("CANCELLED by 1000", "failed")])
def test_a_job_that_was_stopped_goes_on_unless_somebody_cancelled_it(word, outcome, pretended, tmp_path):
    _, (task,) = given(pretended, tmp_path)
    state(pretended, task, word)
    result(task, ("success", Outcome("stopped", 3.0)))
    found = task.outcome()
    assert found.state == outcome and ("was cancelled with scancel" in found.error) == (outcome == "failed")


@pytest.mark.parametrize("word", ["FAILED", "OUT_OF_MEMORY", "NODE_FAIL"])
def test_a_job_that_left_nothing_failed(word, pretended, tmp_path):
    _, (task,) = given(pretended, tmp_path)
    state(pretended, task, word)
    found = task.outcome()
    assert found.state == "failed" and f"(Slurm says {word})" in found.error and "killed, ran out of memory" in found.error


def test_a_preempted_job_that_is_not_requeued_is_given_again(pretended, tmp_path, monkeypatch):
    engine, (task,) = given(pretended, tmp_path)
    state(pretended, task, "PREEMPTED")
    monkeypatch.setattr(slurm, "PATIENCE", 60.0)
    assert task.outcome() is None  # Slurm may be about to requeue it
    monkeypatch.setattr(slurm, "PATIENCE", 0.0)
    assert task.outcome().state == "stopped"
    assert (pretended / "cancelled").read_text() == f"{task.job.job_id}\n"  # so that it is not in work twice
    begun = time.monotonic()
    engine.stop()
    assert time.monotonic() - begun < 5  # it is not waited for


def test_stop_cancels_all_that_is_left(pretended, tmp_path):
    engine, (one, two) = given(pretended, tmp_path, 2)
    (pretended / "states").write_text(f"{one.job.job_id}|RUNNING|a\n{two.job.job_id}|RUNNING|a\n")
    begun = time.monotonic()
    engine.stop()
    assert (pretended / "cancelled").read_text() == f"{one.job.job_id} {two.job.job_id}\n" and time.monotonic() - begun < 20


def test_a_refusal_of_slurm_is_one_line(pretended, tmp_path):
    (pretended / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    with pytest.raises(DeltError, match="Slurm took no jobs: .*invalid partition"):
        given(pretended, tmp_path)


def test_without_slurm_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeltError, match=r"no Slurm here .*`slurm: {cluster: local}`"):
        SlurmEngine(SlurmSettings(), 1, tmp_path, "a")


def test_a_job_that_has_not_begun_can_be_put_back(tmp_path):
    work = Work(delt.configure("digits", preset="smoke"), tmp_path)
    delayed = Job(work, 3).checkpoint()
    assert delayed.function.work == work and delayed.function.cpus == 3
