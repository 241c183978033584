"""What a person sees of a sweep: a line per point that ended, a bar on a terminal, and sweep.json."""

from __future__ import annotations

import json
import sys

import pytest

from delt.batch.board import Board, stage_of
from delt.batch.points import load_sweep
from delt.config import flatten
from delt.pipeline import STAGES


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("title: Three\nparameters: {dataset: digits, preset: smoke}\ngrid: {ipc: [5, 6]}\npoints: [{sub_batches: 2}]")
    return load_sweep(path)


def written(out):
    return json.loads((out / "sweep.json").read_text())


def test_from_the_beginning_to_the_end(sweep, tmp_path, capsys):
    board = Board(sweep, tmp_path)
    one, two, three = sweep.points
    board.begin([one], 2)
    assert [point["state"] for point in written(tmp_path)["points"]] == ["done", "waiting", "waiting"]
    board.running([two, three])
    assert [point["state"] for point in written(tmp_path)["points"]] == ["done", "running", "running"]
    board.ended(two, "done", 12.34)
    board.ended(three, "failed", 3.0, "DataError: too few")
    board.close()
    note = written(tmp_path)
    assert note["title"] == "Three" and [point["reference"] for point in note["points"]] == [True, False, False]
    assert [(p["state"], p["seconds"], p["error"]) for p in note["points"]] == [
        ("done", None, ""),
        ("done", 12.3, ""),
        ("failed", 3.0, "DataError: too few"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Three: 3 points, 1 done before, 2 to do, 2 at a time; in {tmp_path}"
    assert [line.split()[:2] for line in lines[1:]] == [["ipc=5", "done"], ["ipc=6", "done"], ["sub_batches=2", "failed"]]
    assert "DataError: too few" in lines[3] and board.count("done") == 2 and board.count("failed") == 1


def test_every_point_has_a_value_of_every_parameter_that_any_point_names(sweep, tmp_path):
    board = Board(sweep, tmp_path)
    board.begin([], 1)
    six = flatten(sweep.points[1].config)["sub_batches"]
    values = [point["parameters"] for point in written(tmp_path)["points"]]
    assert values == [{"ipc": 5, "sub_batches": 5}, {"ipc": 6, "sub_batches": six}, {"ipc": 5, "sub_batches": 2}]


def test_what_was_running_waits_after_the_end(sweep, tmp_path):
    board = Board(sweep, tmp_path)
    board.begin([], 1)
    board.running(sweep.points[:1])
    board.close()
    assert {point["state"] for point in written(tmp_path)["points"]} == {"waiting"}


def test_seconds_of_points_that_stand_are_kept(sweep, tmp_path):
    first = Board(sweep, tmp_path)
    first.begin([], 1)
    first.ended(sweep.points[0], "done", 7.0)
    first.close()
    second = Board(sweep, tmp_path)
    second.begin(sweep.points[:1], 1)
    assert [point["seconds"] for point in written(tmp_path)["points"]] == [7.0, None, None]
    (tmp_path / "sweep.json").write_text("[")
    assert [entry["seconds"] for entry in Board(sweep, tmp_path).entries.values()] == [None, None, None]


def test_a_terminal_has_a_bar(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    board = Board(sweep, tmp_path)
    board.begin([], 3)
    board.running(sweep.points)
    board.ended(sweep.points[0], "failed", 1.0, "too few")
    board.running(sweep.points[1:])
    board.close()
    captured = capsys.readouterr()
    assert "1/3" in captured.err and "1 failed; ipc=6 (starting); sub_batches=2 (starting)" in captured.err
    assert "ipc=5          failed  1 s  too few" in captured.out


def test_the_stage_is_the_first_without_a_record(tmp_path):
    run = tmp_path / "run"
    assert stage_of(run) == "starting"
    records = run / ".work" / "stages"
    records.mkdir(parents=True)
    assert stage_of(run) == STAGES[0]
    for stage, after in zip(STAGES, [*STAGES[1:], STAGES[-1]], strict=True):
        (records / f"{stage}.json").write_text("{}")
        assert stage_of(run) == after
