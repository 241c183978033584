"""Room on the disk: the estimate is above what a run takes and not far above, and a run that will not fit is not begun."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import delt
from delt.analysis.space import Room, Shape, needed, rooms, weight_bytes
from delt.storage import StorageError

DIGITS = Shape(10, 1, 8, 1347)


def taken(folder: Path) -> int:
    """Bytes on the disk, whole blocks and folders counted."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in (parent, *(os.path.join(parent, name) for name in names)):
            try:
                found += 512 * os.stat(name).st_blocks
            except FileNotFoundError:
                continue
    return found


@pytest.mark.parametrize(
    "given",
    [
        {"relabel_mode": "stored", "relabel_epochs": 40, "ipc": 20},
        {"method": "cda", "ipc": 10, "evaluate_controls": ("random", "start"), "recover_record_classes": ("none",)},
        {"method": "random", "ipc": 30, "teacher_arch": "resnet18", "teacher_width": 8},
    ],
    ids=lambda given: given.get("method", "delt"),
)
def test_a_run_takes_what_was_expected(given: dict[str, Any], tmp_path: Path) -> None:
    settings = {"iterations": 12, "evaluate_seeds": 1, "workers": 1, "checkpoint_seconds": 0, **given}
    if given.get("method") == "random":
        del settings["iterations"]
    config, peaks = delt.configure("digits", preset="smoke", **settings), [0]
    delt.run(config, tmp_path / "run", listener=lambda event: peaks.append(taken(tmp_path / "run")))
    controls = [delt.methods.control_of(config, name) for name in config.evaluate.controls]
    parts = [(rooms(part, DIGITS), ()) for part in (config, *controls) if part]
    assert max(peaks) <= needed(parts) <= 3 * max(peaks) + 2**22


def test_what_stands_is_not_counted_and_the_largest_work_is() -> None:
    stages = {"squeeze": Room(10, 100), "rank": Room(1, 50), "recover": Room(1000, 70)}
    assert needed([(stages, ())]) == 1011 + 100
    assert needed([(stages, ("squeeze",))]) == 1001 + 70
    assert needed([(stages, stages), (stages, ("squeeze", "recover"))]) == 1 + 50
    assert needed([(stages, stages)]) == 0


def test_imagenet_by_hand() -> None:
    """50 images per class of 3 x 224 x 224 pixels: what the published set takes, and its checkpoints."""
    config = delt.configure("imagenet-1k", ipc=50, workers=1)
    found = rooms(replace(config, runtime=replace(config.runtime, packing=1)), Shape(1000, 3, 224, 1_281_167))
    pixels = 3 * 224 * 224
    file = (pixels + pixels // 1000 + 300 + 4095) // 4096 * 4096
    recorded = 8 * 50 * 42 * pixels // 8  # at least one class, which is above the budget
    assert found["recover"].kept == 50_000 * file + 1000 * 4096 + recorded
    assert 50_000 * pixels < found["recover"].work < 52_000 * pixels + 4 * recorded + 2 * 100 * pixels * 12
    assert found["rank"].kept == 1000 * 300 * 72
    assert found["squeeze"].kept == weight_bytes("resnet18", None, Shape(1000, 3, 224, 1_281_167)) > 4 * 11_000_000
    assert found["squeeze"].work == 0  # published weights


@pytest.mark.parametrize("free", [100_000, 10**9])
def test_a_run_that_will_not_fit_is_not_begun(free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, usage, events = delt.configure("digits", preset="smoke", workers=1), shutil.disk_usage(tmp_path), []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))
    if free == 10**9:
        delt.run(config, tmp_path / "run", until="rank", listener=events.append)
        return
    with pytest.raises(StorageError, match=r"disk full: .*run needs [0-9]{6,} bytes and 100000 bytes are free; free some space"):
        delt.run(config, tmp_path / "run", listener=events.append)
    assert not events and [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_finished_run_needs_no_room(smoke_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(smoke_run.path, tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=0))
    delt.run(smoke_run.config, tmp_path / "run", listener=lambda event: None)
