"""The trajectory explorer without a browser: what its view is given, its static figure, its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import delt
from delt.errors import DataError, RunError
from delt.lab.live import LiveRun
from delt.lab.trajectory import TrajectoryExplorer, trajectory_of


def test_it_opens_on_a_class_with_start_and_end(smoke_run: delt.Run) -> None:
    explorer = TrajectoryExplorer(smoke_run)
    shots = smoke_run.snapshots
    assert shots is not None
    view = explorer.view
    assert view.kind == "frames" and view.label == "0" and set(view.sheets) == {"0"} and view.state["scrub"]
    assert view.state["labels"] == [str(label) for label in range(10)] and len(view.state["iterations"]) == len(shots.images)
    assert 0 < explorer.at < len(shots.images) - 1, "between the start and the end, which are in view anyway"


def test_another_class_brings_its_own_pictures(smoke_run: delt.Run) -> None:
    explorer = TrajectoryExplorer(smoke_run)
    before = explorer.view.sheets["0"]
    explorer.view.label = "3"  # as the browser does
    assert explorer.label == 3 and set(explorer.view.sheets) == {"3"} and explorer.view.sheets["3"] != before
    explorer.label = 0
    assert explorer.view.sheets == {"0": before}
    with pytest.raises(DataError, match="class 10 was not recorded; recorded are 0, 1, 2"):
        explorer.label = 10
    explorer.at = 1
    assert explorer.view.at == 1
    with pytest.raises(DataError, match="snapshot is 99; allowed are 0 to"):
        explorer.at = 99


def test_figure_and_page(smoke_run: delt.Run, tmp_path: Path) -> None:
    explorer = TrajectoryExplorer(smoke_run)
    explorer.label = 7
    assert "class 7" in explorer.figure().get_suptitle()
    page = explorer.save_html(tmp_path / "page.html").read_text()
    assert "<canvas" not in page.split("<script")[0] and "sub-batch 3" in page and len(page) > 20_000


def test_one_image_is_no_plural(tmp_path: Path) -> None:
    config = delt.configure("digits", preset="smoke", ipc=1, iterations=4, workers=1, recover_record_count=2)
    run = delt.run(config, tmp_path / "run", until="recover", listener=lambda event: None)
    assert TrajectoryExplorer(run).title == "delt on digits, 1 image per class"


def test_what_was_not_recorded_cannot_be_shown(smoke_run: delt.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images were recorded"):
        TrajectoryExplorer(smoke_run.controls["start"])
    with pytest.raises(DataError, match="no images were recorded"):
        trajectory_of(LiveRun(replace(smoke_run.config, seed=5), tmp_path / "run"))


def test_a_folder_will_do_and_what_is_no_run_is_refused(smoke_run: delt.Run) -> None:
    assert TrajectoryExplorer(smoke_run.path).view.state["scrub"]
    for nothing in (None, 5):
        with pytest.raises(RunError, match="allowed are what delt.load or delt.run return"):
            TrajectoryExplorer(nothing)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="steps is 0; allowed is a whole number from 2"):
        TrajectoryExplorer(smoke_run).figure(steps=0)


def test_a_page_has_the_iterations_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of a run that was stopped came to different iterations."""
    config = delt.configure("digits", preset="smoke", ipc=10, iterations=20, sub_batches=4, workers=1, recover_record_count=5)
    run = delt.run(config, tmp_path / "run", until="recover", listener=lambda event: None)
    snapshots = run.snapshots
    snapshots.iterations[:, snapshots.labels == 1] //= 2
    monkeypatch.setattr(type(run), "snapshots", snapshots)
    explorer = TrajectoryExplorer(run)
    views = json.loads(re.search(r'id="views">(.*?)</script>', explorer.save_html(tmp_path / "page.html").read_text()).group(1))  # type: ignore[union-attr]
    of_label = views[0]["state"]["of_label"]
    assert of_label["0"]["iterations"] != of_label["1"]["iterations"]
    assert all(own["iterations"] == explorer.trajectory.iterations(label) for label, own in of_label.items())
