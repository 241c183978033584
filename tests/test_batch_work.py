"""The work on one point: it never raises, says in one line how it ended, and leaves the traceback."""

from __future__ import annotations

import pytest

import delt
from delt.batch import work
from delt.batch.kernels import Kernels
from delt.batch.work import keep_error, run_point
from delt.errors import DeltError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), DeltError("one\nline"), MemoryError()])
def test_a_point_never_raises(error, monkeypatch, tmp_path):
    def experiment(*rest, **more):
        raise error

    monkeypatch.setattr(work, "experiment", experiment)
    outcome = run_point(delt.configure("digits", preset="smoke"), tmp_path)
    assert outcome.state == "failed" and outcome.error and len(outcome.error.splitlines()) == 1
    text = (tmp_path / "error.txt").read_text()
    assert text.splitlines()[0] == outcome.error and "Traceback" in text and "in experiment" in text
    monkeypatch.setattr(work, "experiment", lambda *rest, **more: None)
    assert run_point(delt.configure("digits", preset="smoke"), tmp_path).state == "done"
    assert not (tmp_path / "error.txt").exists()


def test_cores_become_workers_where_their_number_is_free(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(work, "experiment", lambda config, *rest, **more: seen.append(config.runtime.workers))
    for cpus, given in ((None, {}), (3, {}), (3, {"workers": 2})):
        run_point(delt.configure("digits", preset="smoke", device="cpu", **given), tmp_path, cpus=cpus)
    assert seen == [None, 3, 2]


def test_a_device_that_is_not_here_is_the_points_own_trouble(tmp_path):
    outcome = run_point(delt.configure("digits", preset="smoke", device="cuda:7"), tmp_path, cpus=1)
    assert outcome.state == "failed" and "device is 'cuda:7'" in outcome.error and (tmp_path / "error.txt").exists()


def test_who_was_asked_to_end_is_stopped(monkeypatch, tmp_path):
    kernels = Kernels()

    def experiment(*rest, **more):
        kernels.ask()
        raise DeltError("the kernel died")

    monkeypatch.setattr(work, "experiment", experiment)
    outcome = run_point(delt.configure("digits", preset="smoke"), tmp_path, kernels=kernels)
    assert (outcome.state, outcome.error) == ("stopped", "") and not list(tmp_path.iterdir())


def test_an_error_that_says_more_is_kept(tmp_path):
    keep_error(tmp_path, "too few", "Traceback: here")
    keep_error(tmp_path, "too few")
    assert (tmp_path / "error.txt").read_text() == "too few\n\nTraceback: here\n"
    keep_error(tmp_path, "killed")
    assert (tmp_path / "error.txt").read_text() == "killed\n"
    keep_error(tmp_path / "nowhere" / "error.txt", "no such folder")
