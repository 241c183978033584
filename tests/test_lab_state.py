"""What the view draws, against the artefacts that it is drawn from."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_plots_pictures import some_snapshots
from torch import Tensor

from delt.artifacts.snapshots import Frame
from delt.config import RecoverConfig
from delt.lab.state import LIVE_COLUMNS, Trajectory, live_state, losses_state, rows_state, schedule_state
from delt.plots import sub_batch_colours
from delt.schedule import learning_rate, plan


def tiles(picture: bytes, tile: list[int]) -> np.ndarray:
    """[rows, columns, h, w] of a grey picture, or with a last axis of colours."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    w, h = tile
    return pixels.reshape(pixels.shape[0] // h, h, pixels.shape[1] // w, w, *pixels.shape[2:]).swapaxes(1, 2)


def grey(picture: bytes, tile: list[int]) -> np.ndarray:
    found = tiles(picture, tile)
    return found if found.ndim == 4 else found[..., 0]


@pytest.mark.parametrize("clock", ["global", "own"])
def test_a_schedule_is_plain_numbers(clock: str) -> None:
    schedule, recover = plan(400, 5, 80, 5), RecoverConfig(lr=0.1, clock=clock, min_crop=0.3)
    state = json.loads(json.dumps(schedule_state(schedule, recover, now=7)))
    assert state["joins"] == [0, 80, 160, 240, 320] and state["updates"] == [400, 320, 240, 160, 80] and state["now"] == 7
    assert state["sizes"] == [1] * 5 and state["saved"] == pytest.approx(0.4) and state["colours"] == sub_batch_colours(5)
    rate, crop = state["panels"]
    assert len(rate["lines"]) == len(crop["lines"]) == (1 if clock == "global" else 5)
    for k, line in enumerate(rate["lines"]):
        join = 80 * k if clock == "own" else 0
        assert line["points"][0][0] == join and line["points"][-1] == pytest.approx([400, 0], abs=1e-9)
        assert all(v == pytest.approx(learning_rate(t - join, 400 - join, 0.1)) for t, v in line["points"])
    assert crop["lines"][0]["points"][0][1] == 100 and crop["lines"][0]["points"][-1][1] == pytest.approx(30)


def test_nothing_is_drawn_of_nothing() -> None:
    assert schedule_state(plan(0, 5), RecoverConfig())["panels"] == []


def test_losses_leave_out_what_was_not_measured() -> None:
    state = losses_state([(0, [1.0]), (3, [0.5, None]), (6, [float("nan"), 2.0])], 9, 2)
    assert [line["points"] for line in state["lines"]] == [[[0, 1.0], [3, 0.5]], [[6, 2.0]]]
    assert state["span"] == [0, 9] and [line["colour"] for line in state["lines"]] == sub_batch_colours(2)


def test_one_update_is_no_plural() -> None:
    assert [row["note"] for row in rows_state(plan(2, 2, 1, 2), [[0], [1]])] == ["2 updates", "1 update"]


def test_a_stopped_run_says_the_updates_that_its_images_had() -> None:
    rows = rows_state(plan(400, 5, 80, 5), [[k] for k in range(5)], 170)
    assert [row["note"] for row in rows] == ["170 updates", "90 updates", "10 updates", "0 updates", "0 updates"]


def a_frame(per_sub_batch: int) -> tuple[Frame, Tensor]:
    depth = (0, 1, 2) * per_sub_batch
    pixels = torch.randint(0, 256, (len(depth), 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Frame(5, 9, pixels.numpy(), (0,) * len(depth), depth, 4, len(depth), []), pixels


@pytest.mark.parametrize("count", [2, 30])
def test_a_frame_has_a_row_for_each_sub_batch(count: int) -> None:
    frame, pixels = a_frame(count)
    state, picture = live_state(frame, plan(9, 3, 3, 3))
    found = grey(picture, state["tile"])[:, 0]
    assert [row["name"] for row in state["rows"]] == ["sub-batch 1", "sub-batch 2", "sub-batch 3"]
    assert [row["join"] for row in state["rows"]] == [0, 3, 6] and state["iterations"] == [5] and not state["scrub"]
    for k, row in enumerate(state["rows"]):
        assert len(row["images"]) == min(count, LIVE_COLUMNS)
        assert np.array_equal(found[row["images"][0]], pixels[k, 0].numpy())
        assert np.array_equal(found[row["images"][-1]], pixels[3 * (count - 1) + k, 0].numpy())


def test_a_trajectory_shows_a_class_at_a_time() -> None:
    snapshots = some_snapshots()
    trajectory = Trajectory(snapshots, ("tench", "tench"), plan(100, 4, 50, 2))
    assert trajectory.labels == ["0", "1"]
    state, picture = trajectory.show("1")
    assert state["names"] == {"0": "tench", "1": "tench"} and state["scrub"] and json.dumps(state)
    assert state["iterations"] == list(range(0, 101, 10))
    assert [row["images"] for row in state["rows"]] == [[0, 1], [2, 3]] and [row["join"] for row in state["rows"]] == [0, 50]
    assert np.array_equal(grey(picture, state["tile"]), snapshots.of_class(1).transpose(0, 1)[:, :, 0].numpy())
