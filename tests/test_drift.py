"""Drift: the machine that a run was begun on is taken over, and a change of it is refused, or noted where it is allowed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

import delt
from delt import drift, pipeline
from delt.artifacts.folder import RunFolder
from delt.config import RuntimeConfig
from delt.drift import Drift, remembered
from delt.errors import RunError, Stopped
from delt.runtime import resolve
from delt.storage import read_sealed

HERE = resolve(RuntimeConfig(device="cpu"))


def quiet(event):
    pass


def config(**given):
    return delt.configure("digits", preset="smoke", evaluate_controls=[], ipc=2, workers=1, **given)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has a teacher and a ranking, on two threads."""
    out = tmp_path_factory.mktemp("begun") / "run"
    delt.run(config(threads=2), out, until="rank", listener=quiet)
    return out


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def test_what_is_left_open_is_taken_over(run):
    done = delt.run(config(), run, listener=quiet)
    assert done.config.runtime.threads == 2 and "drift" not in done.manifest
    assert done.manifest["settings"]["threads"] == 2 and not (run / ".work").exists()
    more = delt.run(config(evaluate_seeds=3), run, listener=quiet)  # a finished run remembers, too
    assert more.config.runtime.threads == 2 and "drift" not in more.manifest


@pytest.mark.parametrize("change", ["threads", "torch", "device_name", "memory_format"])
def test_a_change_is_refused_by_name_and_noted_where_it_is_allowed(change, run, monkeypatch):
    given = {"threads": {"threads": 1}, "memory_format": {"memory_format": "contiguous"}}.get(change, {})
    if not given:
        real = drift.machine
        for place in (drift, pipeline):
            monkeypatch.setattr(place, "machine", lambda runtime: real(runtime) | {change: "another one"})
    before = (run / "ranking.parquet").read_bytes()
    with pytest.raises(RunError, match=rf"was begun otherwise \({change}: was .*, now .*\).*--allow-drift"):
        delt.run(config(**given), run, listener=quiet)
    assert (run / "ranking.parquet").read_bytes() == before and (run / ".work" / "machine.json").is_file()
    done = delt.run(config(**given, allow_drift=True), run, listener=quiet)
    (note,) = done.manifest["drift"]
    assert list(note["changed"]) == [change] and delt.verify(run) == []
    assert done.config.runtime.allow_drift is False  # it is said each time
    delt.run(config(**given), run, listener=quiet)  # nothing is left to do, and the new machine is the known one
    again = delt.run(config(**given, evaluate_seeds=3), run, listener=quiet)
    assert len(again.manifest["drift"]) == 1


@pytest.mark.usefixtures("beat_each_step")
def test_begun_work_goes_on_where_drift_is_allowed(run):
    """It is not thrown away: who allows drift wants to go on."""
    for given, expected in (({}, [0, 10]), ({"threads": 1, "allow_drift": True}, [10])):  # the second finds ten images' step done
        heard: list[int] = []

        def stop(event, heard=heard):
            if event.get("stage") == "recover" and "done" in event:
                heard.append(event["done"])
                if event["done"]:
                    raise Stopped

        with pytest.raises(Stopped):
            delt.run(config(evaluate_full=False, **given), run, listener=stop)
        assert heard == expected


def test_a_device_that_is_not_here_is_refused_until_drift_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folder = RunFolder(tmp_path)
    on_a_gpu = replace(HERE, device="cuda", precision="fp16", threads=8)
    with folder.hold():
        monkeypatch.setattr(drift, "machine", lambda runtime: dict.fromkeys(drift.FACTS, "a GPU"))
        Drift(folder).settle(on_a_gpu)
        auto = RuntimeConfig()
        with pytest.raises(RunError, match="was begun on cuda, which is not here .*0 CUDA devices.*--allow-drift"):
            remembered(auto, folder)
        assert remembered(replace(auto, allow_drift=True), folder) == replace(auto, allow_drift=True)
        assert remembered(replace(auto, device="cpu"), folder).threads is None  # what it was on a GPU says nothing here
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert remembered(auto, folder) == replace(on_a_gpu, workers=None)
        Drift(folder).settle(replace(on_a_gpu, device="cuda:1"))  # another of several equal ones


def test_a_damaged_record_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.hold():
        Drift(folder).settle(HERE)
        path = tmp_path / ".work" / "machine.json"
        assert read_sealed(path)["settings"]["threads"] == 1
        path.write_bytes(path.read_bytes().replace(b'"threads": 1', b'"threads": 2'))
        with pytest.warns(UserWarning, match=r"not known any more on what machine.*machine\.json is damaged: expected sha256"):
            assert remembered(RuntimeConfig(), folder) == RuntimeConfig()
