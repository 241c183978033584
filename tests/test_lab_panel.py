"""One synthesis on the screen, without a browser: what its parts show while it runs, and what may be pressed."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_lab_live import settings, slow_down, wait

import delt
from delt.lab.panel import RunPanel, words


def allowed(panel: RunPanel) -> set[str]:
    return {button.description for button in (panel.pause, panel.resume, panel.stop) if not button.disabled}


@pytest.mark.usefixtures("beat_each_step")
def test_images_and_losses_come_and_go_on(tmp_path: Path) -> None:
    panel = RunPanel(settings(), tmp_path / "run")
    assert allowed(panel) == set() and all(button.tooltip for button in (panel.pause, panel.resume, panel.stop))
    heard = panel.live.heard
    slow_down(panel.live)
    slow = panel.live.heard
    panel.live.heard = lambda: (heard(), slow())[0]
    panel.live.start()
    wait(lambda: panel.images.sheets)
    first, state = panel.images.sheets["all"], panel.images.state
    assert not state["scrub"] and [row["name"] for row in state["rows"]] == ["sub-batch 1", "sub-batch 2"]
    wait(lambda: panel.images.sheets["all"] != first)
    assert allowed(panel) == {"Pause", "Stop"}
    panel.pause.click()
    assert allowed(panel) == {"Resume", "Stop"} and "paused" in panel.words.value
    panel.resume.click()
    points = len(panel.losses.state["lines"][0]["points"])
    wait(lambda: len(panel.losses.state["lines"][0]["points"]) > points)
    panel.stop.click()
    panel.live.join(60)
    assert allowed(panel) == set() and "stopped at iteration" in panel.words.value
    assert panel.images.state["scrub"] and panel.images.label == "0"
    panel.images.label = "4"
    assert set(panel.images.sheets) == {"4"}


def test_a_run_that_stood_shows_what_was_recorded(tmp_path: Path) -> None:
    RunPanel(settings(), tmp_path / "run").live.start().join(60)
    panel = RunPanel(settings(), tmp_path / "run")
    panel.live.start().join(60)
    assert panel.live.frame is None and panel.images.state["scrub"]
    assert len(panel.losses.state["lines"]) == 2 and all(line["points"] for line in panel.losses.state["lines"])


def test_a_failure_is_text_and_nothing_else(tmp_path: Path) -> None:
    panel = RunPanel(settings(ipc=500), tmp_path / "run")
    panel.live.start().join(60)
    assert "fewer than 500" in panel.words.value and "delt-failed" in panel.words.value
    assert "<b>" not in words("<b>") and "&lt;b&gt;" in words("<b>")


def test_a_quick_run_ends_with_the_losses_that_were_recorded(tmp_path: Path) -> None:
    """It is over before a second report would come."""
    config = delt.configure("digits", preset="smoke", recover_record_count=11)
    panel = RunPanel(config, tmp_path / "run")
    panel.live.start().join(60)
    readings = panel.live.snapshots.readings if panel.live.snapshots else []
    first = [line for line in panel.losses.state["lines"] if line["name"] == "sub-batch 1"][0]
    assert len(first["points"]) > 3 and len(readings) >= len(first["points"])
