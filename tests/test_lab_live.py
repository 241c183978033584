"""A synthesis in the background: what it says, and that pause, resume and stop do what they say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import delt
from delt.lab.live import LiveRun


def settings(**given: object) -> delt.RunConfig:
    return delt.configure("digits", preset="smoke", **{"ipc": 2, "iterations": 200, "recover_record_count": 5, **given})


def wait(true: Callable[[], object], seconds: float = 60) -> None:
    """Until something is true, without a fixed sleep."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.005)


def slow_down(live: LiveRun, seconds: float = 0.01) -> LiveRun:
    """Make it last long enough to be handled: every report takes a while."""
    live.heard = lambda: time.sleep(seconds)
    return live


@pytest.mark.usefixtures("beat_each_step")
def test_it_runs_to_the_end_and_tells(tmp_path: Path) -> None:
    heard: list[str] = []
    live = LiveRun(settings(), tmp_path / "run")
    live.heard = lambda: heard.append(live.words)
    assert live.words == "not started" and not live.active and live.snapshots is None
    live.start().join(60)
    assert live.status == "done" and live.words.startswith("done in ") and "25% of the work saved" in live.words
    assert live.synthetic is not None and live.synthetic.complete and live.snapshots is not None
    assert torch.equal(live.synthetic.images, delt.load(tmp_path / "run").synthetic.images)
    assert any(words.startswith("round 1 of 2, 10 of 20 images, iteration") for words in heard)
    assert any(words.startswith("round 2 of 2, 20 of 20 images") and "img-it/s" in words and " s left" in words for words in heard)
    iterations = [t for t, _ in live.losses]
    assert iterations == sorted(iterations) and {len(values) for _, values in live.losses} == {1, 2}


@pytest.mark.usefixtures("beat_each_step")
def test_pause_resume_stop_and_go_on(tmp_path: Path) -> None:
    live = slow_down(LiveRun(settings(), tmp_path / "run")).start()
    wait(lambda: live.frame and live.frame.iteration > 3)
    live.pause()
    wait(lambda: live.status == "paused" and not live._go.is_set())
    time.sleep(0.1)  # the step under way ends
    at = live.frame and live.frame.iteration
    time.sleep(0.2)
    assert live.frame and live.frame.iteration == at and live.words.startswith("paused: round 1 of 2")
    live.resume()
    wait(lambda: live.frame and at is not None and live.frame.iteration > at + 3)
    begun = time.monotonic()
    live.stop()
    assert live.words.startswith("stopping: ")
    live.join(60)
    assert time.monotonic() - begun < 1 and live.status == "stopped" and "press Run to go on" in live.words
    part = live.synthetic
    assert part is not None and not part.complete and 0 < int(part.iterations.max()) < 200 and live.snapshots is not None
    live.heard = lambda: None
    live.start().join(60)
    assert live.status == "done"
    straight = LiveRun(settings(), tmp_path / "straight").start().join(60)
    assert straight.synthetic is not None and live.synthetic is not None
    assert torch.equal(live.synthetic.images, straight.synthetic.images)


def test_others_have_their_turn_while_a_cell_waits(tmp_path: Path) -> None:
    """In a kernel these are the messages of widgets."""
    live, turns = LiveRun(settings(), tmp_path / "run").start(), 0

    async def others() -> None:
        nonlocal turns
        while live.active:
            turns += 1
            await asyncio.sleep(0.01)

    async def cell() -> LiveRun:
        return (await asyncio.gather(live.ended(), others()))[0]

    assert asyncio.run(cell()) is live and live.status == "done" and turns > 1
    assert asyncio.run(live.ended()) is live, "what ended is not waited for"
    assert asyncio.run(LiveRun(settings(), tmp_path / "run").ended()).status == "ready"


@pytest.mark.usefixtures("beat_each_step")
def test_stopped_while_paused(tmp_path: Path) -> None:
    live = slow_down(LiveRun(settings(), tmp_path / "run")).start()
    wait(lambda: live.frame)
    live.pause()
    live.stop()
    live.join(60)
    assert live.status == "stopped"


def test_stopped_in_an_earlier_stage_there_is_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "cache"))
    live = LiveRun(settings(teacher_seed=11), tmp_path / "run")
    live.heard = live.stop
    live.start().join(60)
    assert live.status == "stopped" and live.synthetic is None and live.words == "stopped while training the teacher; press Run to go on"


def test_an_error_is_said(tmp_path: Path) -> None:
    live = LiveRun(settings(ipc=500), tmp_path / "run").start().join(60)
    assert live.status == "failed" and "fewer than 500" in live.words

    def broken() -> None:
        live.heard = lambda: None
        raise ZeroDivisionError("a bug")

    live = LiveRun(settings(), tmp_path / "other", lambda: broken())
    live.start().join(60)
    assert live.status == "failed" and "ZeroDivisionError: a bug" in live.words


def test_the_work_stays_in_this_process(tmp_path: Path) -> None:
    assert LiveRun(settings(workers=2), tmp_path).config.runtime.workers == 1


def test_stopped_before_the_first_step_it_says_so_and_can_go_on(tmp_path: Path) -> None:
    """With a cached teacher the first thing heard is a message that names no stage."""
    LiveRun(settings(), tmp_path / "first").start().join(60)
    live = LiveRun(settings(), tmp_path / "run")
    live.heard = lambda: live.stop() if live.status == "running" else None
    live.start().join(60)
    assert live.status == "stopped" and live.words == "stopped while opening the data; press Run to go on" and not live.active
    live.heard = lambda: None
    assert live.start().join(60).status == "done"


def test_the_measurement_comes_first(tmp_path: Path) -> None:
    order: list[str] = []
    live = LiveRun(settings(iterations=4), tmp_path / "run", lambda: order.append("heard"), lambda: order.append("measured"))
    live.start().join(60)
    assert order[0] == "measured" and order.count("measured") == 1 and live.status == "done"


def test_reins_pulled_after_the_end_do_nothing(tmp_path: Path) -> None:
    live = LiveRun(settings(iterations=4), tmp_path / "run").start().join(60)
    for pull in (live.pause, live.resume, live.stop):
        pull()
        assert live.status == "done"


def test_python_may_end_while_it_computes(tmp_path: Path) -> None:
    code = (
        "import delt, time\n"
        "from delt import lab\n"
        f"e = lab.ScheduleExplorer('digits', preset='smoke', iterations=4000, out={str(tmp_path)!r})\n"
        "p = e.run()\n"
        "while p.live.frame is None: time.sleep(0.01)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert not delt.load(folder).synthetic.complete
