"""A sweep: points beside each other, trouble in one that leaves the others alone, and the same command that goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import delt
from delt.batch import sweep as room
from delt.batch import work
from delt.batch.engines import local
from delt.batch.notebook import NotebookError
from delt.batch.sweep import check, is_done, run_sweep
from delt.batch.work import Outcome
from delt.cli import main
from delt.errors import ConfigError, DataError, DeltError, RunError

SMALL = {"dataset": "digits", "preset": "smoke", "iterations": 8, "workers": 1, "evaluate_seeds": 1}
STAGES = "run/.work/stages"


def write(folder, points, reference=None, **fixed):
    path = folder / "a.yaml"
    more = {"reference": reference} if reference else {}
    path.write_text(json.dumps({"parameters": SMALL | fixed, "points": points, **more}))  # JSON is YAML
    return path


def command(file, out, jobs):
    """`delt sweep` in this process: (exit code, output)."""
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            main(["sweep", str(file), "--out", str(out), "--jobs", str(jobs)])
        except SystemExit as stop:
            code = stop.code
    return code, printed.getvalue()


def times(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def kill_after(folder, stage):
    """Kill the kernel of a point as soon as a stage of its run is finished."""
    for _ in range(60000):  # five minutes: kernels may begin late beside other tests
        if (folder / STAGES / f"{stage}.json").exists():
            _, pid, *_ = (folder / "run" / ".work" / "lock").read_text().split()
            assert int(pid) != os.getpid()
            os.kill(int(pid), signal.SIGKILL)
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def twice(tmp_path_factory, cache):
    """A sweep in real kernels: ipc=2 is well, ipc=134 fails, the kernel of ipc=3 is killed; then the same command again."""
    folder = tmp_path_factory.mktemp("sweep")
    file, out = write(folder, [{"ipc": 2}, {"ipc": 134}, {"ipc": 3}]), folder / "out"
    killer = threading.Thread(target=kill_after, args=(out / "ipc=3", "rank"))
    killer.start()
    facts = {"out": out, "first": command(file, out, 2)}
    killer.join()
    facts["errors"] = {path.parent.name: path.read_text() for path in out.glob("*/error.txt")}
    facts["note"] = json.loads((out / "sweep.json").read_text())
    facts["summary"] = (out / "summary.html").read_text(), (out / "summary.png").read_bytes()
    facts["before"] = times(out)
    facts["records"] = {path.stem: json.loads(path.read_text()) for path in (out / "ipc=3" / STAGES).glob("*.json")}
    facts["again"] = command(file, out, 2)
    facts["after"] = times(out)
    return facts


def test_others_go_on_and_the_exit_code_tells(twice):
    code, printed = twice["first"]
    assert code == 1 and "1 points done, 2 failed" in printed and "in use" not in printed
    assert [(point["name"], point["state"]) for point in twice["note"]["points"]] == [
        ("ipc=2", "done"),
        ("ipc=134", "failed"),
        ("ipc=3", "failed"),
    ]
    assert delt.verify(twice["out"] / "ipc=2" / "run") == []
    assert all(f"{name}/error.txt" in printed for name in ("ipc=134", "ipc=3")) and "summary.html" in printed


def test_a_failed_point_keeps_its_traceback(twice):
    assert set(twice["errors"]) == {"ipc=134", "ipc=3"}
    text = twice["errors"]["ipc=134"]
    assert text.startswith("the notebook stopped: DataError: ") and "fewer than 134" in text.splitlines()[0]
    assert "Traceback (most recent call last)" in text and "\x1b" not in text
    assert "died; the same command goes on" in twice["errors"]["ipc=3"]


def test_the_summary_says_what_is_missing(twice):
    page, picture = twice["summary"]
    assert picture.startswith(b"\x89PNG") and "data:image/png" in page
    assert "fewer than 134" in page and "ipc=3: failed" in page and "Traceback" not in page
    assert "soft labels, points of top-1, mean ± standard error, paired over seeds:" in page


def test_the_same_command_does_only_what_is_missing_or_failed(twice):
    code, printed = twice["again"]
    assert code == 1 and "2 points done, 1 failed" in printed and "1 done before, 2 to do" in printed
    assert not (twice["out"] / "ipc=3" / "error.txt").exists() and (twice["out"] / "ipc=134" / "error.txt").exists()
    assert delt.verify(twice["out"] / "ipc=3" / "run") == []
    stand = [name for name in twice["before"] if name.startswith("ipc=2/")]
    assert "ipc=2/run/manifest.json" in stand
    assert {name: twice["after"].get(name) for name in stand} == {name: twice["before"][name] for name in stand}
    assert twice["after"]["summary.html"] > twice["before"]["summary.html"]


def test_a_killed_run_goes_on_at_its_stage(twice):
    manifest = json.loads((twice["out"] / "ipc=3" / "run" / "manifest.json").read_text())
    assert {"squeeze", "rank"} <= set(twice["records"]) < set(manifest["stages"])
    for stage, record in twice["records"].items():
        assert manifest["stages"][stage]["seconds"] == record["seconds"]  # not done again
        for name in record["files"]:
            assert twice["after"][f"ipc=3/run/{name}"] == twice["before"][f"ipc=3/run/{name}"]


def test_the_notebook_of_a_killed_kernel_is_whole_again(twice):
    book = json.loads((twice["out"] / "ipc=3" / "experiment.ipynb").read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert (twice["out"] / "ipc=3" / "experiment.html").exists()


# ------------------------------------------------------- what a sweep asks of an engine


class Pretended:
    """An engine that does nothing: each point ends with the next of its outcomes."""

    pause = 0.0

    def __init__(self, room, outcomes):
        self.room, self.outcomes, self.given, self.most, self.stopped = room, outcomes, [], 0, 0
        self.live = set()

    def submit(self, works):
        self.given.append([work.folder.name for work in works])
        tasks = [PretendedTask(self, work.folder.name) for work in works]
        self.live |= set(tasks)
        self.most = max(self.most, len(self.live))
        return tasks

    def stop(self):
        self.stopped += 1


class PretendedTask:
    def __init__(self, engine, name):
        self.engine, self.name = engine, name

    def running(self):
        return self in self.engine.live

    def outcome(self):
        self.engine.live.discard(self)
        return self.engine.outcomes[self.name].pop(0)


@pytest.fixture
def pretend(monkeypatch):
    def use(room_for, outcomes):
        engine = Pretended(room_for, {name: list(each) for name, each in outcomes.items()})
        monkeypatch.setattr(room, "open_engine", lambda *given: engine)
        monkeypatch.setattr(room, "summarise", lambda folder: None)
        return engine

    return use


DONE = Outcome("done", 1.0)


def test_an_engine_has_as_many_points_as_it_has_room_for(pretend, tmp_path):
    file = write(tmp_path, [{"seed": seed} for seed in range(5)])
    names = [f"seed={seed}" for seed in range(5)]
    for space, given in ((2, [names[:2], names[2:4], names[4:]]), (99, [names])):
        engine = pretend(space, {name: [DONE] for name in names})
        assert run_sweep(file, tmp_path / "out", engine="slurm").done == tuple(names)
        assert engine.given == given and engine.most == min(space, 5) and engine.stopped == 1


def test_a_point_that_its_machine_stopped_is_given_again(pretend, tmp_path):
    engine = pretend(9, {"seed=0": [None, Outcome("stopped", 1.0), None, DONE], "seed=1": [DONE]})
    assert run_sweep(write(tmp_path, [{"seed": 0}, {"seed": 1}]), tmp_path / "out").done == ("seed=0", "seed=1")
    assert engine.given == [["seed=0", "seed=1"], ["seed=0"]]


def test_a_point_that_nobody_could_write_about_has_its_error_in_its_folder(pretend, tmp_path):
    pretend(9, {"seed=0": [Outcome("failed", 1.0, "job 7 was killed")], "seed=1": [DONE]})
    result = run_sweep(write(tmp_path, [{"seed": 0}, {"seed": 1}]), tmp_path / "out")
    assert result.failed == {"seed=0": "job 7 was killed"}
    assert (tmp_path / "out" / "seed=0" / "error.txt").read_text() == "job 7 was killed\n"


def test_an_engine_is_stopped_whatever_happens(pretend, tmp_path, monkeypatch):
    engine = pretend(9, {"seed=0": []})
    with pytest.raises(IndexError):
        run_sweep(write(tmp_path, [{"seed": 0}]), tmp_path / "out")
    assert engine.stopped == 1
    engine = pretend(9, {"seed=0": [None] * 99})
    monkeypatch.setattr(room.Board, "running", lambda *rest: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(DeltError, match="stopped by SIGTERM"):
        run_sweep(write(tmp_path, [{"seed": 0}]), tmp_path / "out")
    assert engine.stopped == 1


def test_an_engine_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="unknown engine 'cloud'"):
        run_sweep(tmp_path / "nowhere.yaml", tmp_path / "out", engine="cloud")


def test_a_gpu_may_be_elsewhere(tmp_path):
    from delt.batch.points import load_sweep

    (point,) = load_sweep(write(tmp_path, [{"device": "cuda:7"}])).points
    check(point, tmp_path, here=False)
    with pytest.raises(ConfigError, match=r"point device=cuda-7.*: device is 'cuda:7'"):
        check(point, tmp_path)


# ------------------------------------------------------- the same without kernels, whose work is tested above


@pytest.fixture
def here(monkeypatch):
    """Points are done in this process, one after the other; returns the names of those that were done."""
    turns, done = threading.Lock(), []

    def experiment(config, folder, **more):
        with turns:
            done.append(folder.name)
            delt.run(config, folder / "run", listener=lambda event: None)
            (folder / "experiment.html").write_text("a page")

    def execute(source, target, parameters, **more):
        shutil.copy(source, target)

    monkeypatch.setattr(work, "experiment", experiment)
    monkeypatch.setattr(room, "execute", execute)
    return done


@pytest.mark.filterwarnings("ignore:.*stage recover is done again")
def test_a_damaged_point_is_done_again_and_no_other(here, tmp_path):
    file, out = write(tmp_path, [{"ipc": 2}, {"ipc": 3}]), tmp_path / "out"
    result = run_sweep(file, out)
    assert (result.done, result.failed, here) == (("ipc=2", "ipc=3"), {}, ["ipc=2", "ipc=3"])
    image = sorted((out / "ipc=3" / "run" / "synthetic").rglob("*.png"))[0]
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    before = times(out / "ipc=2")
    assert run_sweep(file, out).done == ("ipc=2", "ipc=3")
    assert here == ["ipc=2", "ipc=3", "ipc=3"] and image.read_bytes() == whole and times(out / "ipc=2") == before
    before = times(out / "ipc=3")
    run_sweep(file, out)
    assert len(here) == 3 and times(out / "ipc=3") == before  # nothing is left to do


def test_a_point_without_its_page_is_not_done(here, tmp_path):
    file, out = write(tmp_path, [{"ipc": 2}]), tmp_path / "out"
    run_sweep(file, out)
    config = delt.configure(**SMALL, ipc=2)
    assert is_done(config, out / "ipc=2")
    assert is_done(replace(config, runtime=replace(config.runtime, workers=3)), out / "ipc=2")  # no result depends on it
    assert not is_done(delt.configure(**SMALL, ipc=2, seed=1), out / "ipc=2")
    (out / "ipc=2" / "experiment.html").unlink()
    assert not is_done(config, out / "ipc=2")


def test_the_summary_is_of_the_points_as_they_are(here, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    whole = room.summarise
    monkeypatch.setattr(room, "summarise", lambda folder: seen.append(len(here)) or whole(folder))
    run_sweep(write(tmp_path, [{"ipc": 2}, {"ipc": 3}]), out)
    run_sweep(write(tmp_path, [{"ipc": 2}, {"ipc": 3}]), out)
    assert len(seen) == 1  # it stands
    run_sweep(write(tmp_path, [{"ipc": 2}, {"ipc": 3}], reference={"ipc": 3}), out)
    run_sweep(write(tmp_path, [{"ipc": 2}, {"ipc": 3}], reference={"ipc": 3}), out)
    assert seen.pop() == 2 and len(seen) == 1  # others are held against another point
    run_sweep(write(tmp_path, [{"ipc": 3}]), out)
    assert len(seen) == 2  # a point left the sweep
    shutil.rmtree(out / "ipc=3")
    monkeypatch.setattr(room, "summarise", lambda folder: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        run_sweep(write(tmp_path, [{"ipc": 3}]), out)
    monkeypatch.setattr(room, "summarise", lambda folder: seen.append(len(here)) or whole(folder))
    run_sweep(write(tmp_path, [{"ipc": 3}]), out)
    assert len(seen) == 3 and len(here) == 3  # what was summed up before is old, although no point is left to do


def test_a_standing_point_of_other_settings_is_refused_before_anything_starts(here, tmp_path):
    out = tmp_path / "out"
    run_sweep(write(tmp_path, [{"ipc": 2}]), out)
    before = times(out)
    with pytest.raises(RunError, match="point ipc=2: .*of another configuration .*recover"):
        run_sweep(write(tmp_path, [{"seed": 1}, {"ipc": 2}], recover_lr=0.5), out)
    assert here == ["ipc=2"] and times(out) == before


def test_a_reference_that_is_no_point_is_refused_before_anything_starts(here, tmp_path):
    with pytest.raises(ConfigError, match="reference is {'ipc': 4}, which fits no point"):
        run_sweep(write(tmp_path, [{"ipc": 2}, {"ipc": 3}], reference={"ipc": 4}), tmp_path / "out")
    assert not here and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("points", "jobs", "message"),
    [
        ([{"ipc": 2}, {"sub_batchs": 2}], 1, "unknown setting 'sub_batchs': did you mean 'sub_batches'"),
        ([{"ipc": 2}, {"ipc": 3, "method": "dlt"}], 1, "point ipc=3,method=dlt: unknown method 'dlt'"),
        ([{"ipc": 2}, {"ipc": 3, "evaluate_students": ["convnet33"]}], 1, "point ipc=3,.*convnet33"),
        ([{"ipc": 2}, {"ipc": 500}], 1, "point ipc=500: digits has 1,347 training images in 10 classes, so not 500 of each"),
        ([{"ipc": 2}], 0, "jobs is 0; at least 1 is needed"),
    ],
)
def test_refused_before_anything_starts(points, jobs, message, here, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        run_sweep(write(tmp_path, points), tmp_path / "out", jobs)
    assert not here and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"dataset": "folder:nowhere"}, "point .*nowhere is not a folder"),
        ({"dataset": "tiny-imagenet", "data_root": "nowhere"}, "point .*tiny-imagenet is not in .*nowhere: looked for"),
        ({"dataset": "cifar10", "data_root": "nowhere", "data_download": False}, "point .*cifar10 is not in .*nowhere: give --data-root"),
    ],
)
def test_data_that_are_not_there_are_noticed_before_anything_starts(own, message, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeltError, match=message):
        (tmp_path / "a.yaml").write_text(json.dumps({"points": [{"preset": "smoke"}, {"preset": "smoke", **own}]}))
        run_sweep(tmp_path / "a.yaml", tmp_path / "out")
    assert not here and not (tmp_path / "out").exists()


def test_a_sweep_in_use_is_refused(here, tmp_path):
    from delt.artifacts.folder import RunFolder

    (tmp_path / "out").mkdir()
    with RunFolder(tmp_path / "out").hold(), pytest.raises(DeltError, match="is in use by pid") as caught:
        run_sweep(write(tmp_path, [{"ipc": 2}]), tmp_path / "out")
    assert caught.value.exit_code == 3 and not here


@pytest.fixture
def no_work(monkeypatch):
    """Points do nothing but what the test says, in threads, and there is no summary."""

    def use(experiment):
        monkeypatch.setattr(work, "experiment", experiment)
        monkeypatch.setattr(room, "summarise", lambda folder: None)

    return use


def test_jobs_run_beside_each_other_and_no_more(no_work, tmp_path):
    pair, lock, running, most = threading.Barrier(2), threading.Lock(), set(), []

    def experiment(config, folder, **more):
        with lock:
            running.add(folder.name)
            most.append(len(running))
        pair.wait(30)  # would break if each point waited for the one before
        time.sleep(0.05)
        with lock:
            running.remove(folder.name)

    no_work(experiment)
    result = run_sweep(write(tmp_path, [{"seed": seed} for seed in range(6)]), tmp_path / "out", 2)
    assert len(result.done) == 6 and result.failed == {} and max(most) == 2


def test_each_job_has_its_share_of_the_cores_and_a_gpu_where_there_are_several(no_work, tmp_path, monkeypatch):
    seen = []
    no_work(lambda config, folder, env, **more: seen.append((config.runtime.workers, env)) or time.sleep(0.2))
    monkeypatch.setattr(local, "cores", lambda: 6)
    points = [{"seed": 0}, {"seed": 1}]
    for found, workers, envs in (
        (["0"], 3, [{}, {}]),
        (["4", "7"], 3, [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}]),
    ):
        monkeypatch.setattr(local, "gpus", lambda found=found: found)
        run_sweep(write(tmp_path, points, workers=None), tmp_path / "out", 2)
        assert sorted(seen, key=str) == [(workers, env) for env in envs]
        seen.clear()
    run_sweep(write(tmp_path, points, workers=2), tmp_path / "out", 2)
    assert [workers for workers, _ in seen] == [2, 2]
    seen.clear()
    run_sweep(write(tmp_path, points, workers=None), tmp_path / "out", 1)
    assert [workers for workers, _ in seen] == [None, None]  # all of them


def test_ctrl_c_ends_the_kernels_and_what_was_running_waits(no_work, tmp_path, monkeypatch):
    ended, begun = [], threading.Event()

    def experiment(config, folder, kernels, **more):
        begun.set()
        while not kernels.stopped:
            time.sleep(0.01)
        ended.append(folder.name)
        raise NotebookError("the kernel died")

    def running(board, points):
        list(points)
        if begun.wait(30):
            raise KeyboardInterrupt

    no_work(experiment)
    monkeypatch.setattr(room.Board, "running", running)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(write(tmp_path, [{"seed": seed} for seed in range(3)]), tmp_path / "out", 1)
    assert ended == ["seed=0"] and not list(tmp_path.rglob("error.txt"))
    assert {point["state"] for point in json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]} == {"waiting"}


def test_out_is_beside_the_other_runs_by_default(no_work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    no_work(lambda *rest, **more: None)
    assert run_sweep(write(tmp_path, [{"ipc": 2}])).out == Path.cwd() / "papermill_runs" / "a"
