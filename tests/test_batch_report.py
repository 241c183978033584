"""What a sweep's folder holds: a row per point, read from the run folders."""

from __future__ import annotations

import json
import shutil

import pytest

import delt
from delt.batch.report import NOTE, headline, noted, read_sweep, stage_seconds
from delt.errors import IntegrityError, RunError


@pytest.fixture
def folder(tmp_path, smoke_run):
    """Three points: one that is done, one that failed, one that is waiting."""
    shutil.copytree(smoke_run.path, tmp_path / "ipc=5" / "run")
    states = {"ipc=5": "done", "ipc=500": "failed", "ipc=6": "waiting"}
    points = [
        {
            "name": name,
            "parameters": {"ipc": int(name[4:])},
            "state": state,
            "seconds": 1.5,
            "error": "too few" if state == "failed" else "",
        }
        for name, state in states.items()
    ]
    (tmp_path / NOTE).write_text(json.dumps({"title": "A", "points": points}))
    return tmp_path


def test_a_row_per_point(folder, smoke_run):
    done, failed, waiting = read_sweep(folder)
    assert [row.name for row in (done, failed, waiting)] == ["ipc=5", "ipc=500", "ipc=6"]
    assert [row.state for row in (done, failed, waiting)] == ["done", "failed", "waiting"]
    assert failed.error == "too few" and failed.accuracy == {} and waiting.accuracy == {}
    assert done.parameters == {"ipc": 5} and done.method == "delt"
    for labels in smoke_run.config.evaluate.labels:
        students = [row.last for row in smoke_run.scores if (row.set, row.labels) == ("delt", labels)]
        assert done.own(labels).values == tuple(students)
        assert done.own(labels).seeds == (0, 1)
    assert done.cosine["delt"] == smoke_run.diversity["delt"]["mean"]


def test_the_reference_is_read(folder):
    assert not any(row.reference for row in read_sweep(folder))  # of a sweep from before there were any
    note = json.loads((folder / NOTE).read_text())
    for name in ("ipc=5", "ipc=500"):
        for point in note["points"]:
            point["reference"] = point["name"] == name
        (folder / NOTE).write_text(json.dumps(note))
        assert [row.name for row in read_sweep(folder) if row.reference] == [name]


def test_seconds_count_the_controls_but_not_their_students_twice(smoke_run):
    def seconds(path):
        return {stage: record["seconds"] for stage, record in json.loads((path / "manifest.json").read_text())["stages"].items()}

    own = sum(seconds(smoke_run.path).values())
    others = [sum(s for stage, s in seconds(control.path).items() if stage != "evaluate") for control in smoke_run.controls.values()]
    assert len(others) == 3 and stage_seconds(smoke_run) == pytest.approx(own + sum(others))


def test_a_point_that_cannot_be_read_any_more_is_waiting(folder):
    (folder / "ipc=5" / "run" / "scores.json").unlink()
    row = read_sweep(folder)[0]
    assert row.state == "waiting" and "scores.json" in row.error and row.accuracy == {}
    assert headline(folder / "ipc=5") == ""


def test_the_headline_is_the_mean_of_its_own_set(folder):
    mean = read_sweep(folder)[0].own("soft").mean
    assert headline(folder / "ipc=5") == f"{mean:.1f} %"
    assert headline(folder / "nowhere") == ""


def test_no_sweep_and_a_damaged_one(folder, tmp_path):
    with pytest.raises(RunError, match="no sweep at .*looked for sweep.json"):
        read_sweep(tmp_path / "nowhere")
    assert list(noted(folder)) == ["ipc=5", "ipc=500", "ipc=6"]
    for damaged in ("{", "[]", "{}", '{"points": [{"name": "a"}]}', '{"points": 3}'):
        (folder / NOTE).write_text(damaged)
        with pytest.raises(IntegrityError, match="sweep.json"):
            read_sweep(folder)
        assert noted(folder) in ({}, {"a": {"name": "a"}})
    assert delt.verify(folder / "ipc=5" / "run") == []
