"""Figures over the iterations: bars whose area is the work, and losses that are means over groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from delt import plots
from delt.artifacts.snapshots import Snapshots
from delt.schedule import plan


def some_losses(groups: int = 2) -> Snapshots:
    """Readings of two sub-batches; the late one joins at iteration 50 of 100."""
    readings = [
        {"group": f"g{group}", "iteration": t, "cross_entropy": [0.1, 0.2 + group][: 1 + (t >= 50)], "bn": 3.0 + group}
        for group in range(groups)
        for t in range(0, 100, 10)
    ]
    none = torch.zeros(0, dtype=torch.long)
    return Snapshots(torch.zeros(11, 0, 1, 8, 8, dtype=torch.uint8), none.expand(11, 0), none, none, readings)


FIGURES: dict[str, Callable[[], Figure]] = {
    "schedule": lambda: plots.schedule(plan(4000, 50), 0.25, 0.08, "cosine", 1.0),
    "schedule, one sub-batch": lambda: plots.schedule(plan(300, 1)),
    "schedule, nothing to do": lambda: plots.schedule(plan(0, 5)),
    "schedule, many sub-batches": lambda: plots.schedule(plan(4000, 50, None, 50), curriculum="step", milestone=0.5),
    "schedule, own clocks": lambda: plots.schedule(plan(300, 10), clock="own"),
    "schedule, no rate": lambda: plots.schedule(plan(300, 10), base_lr=0.0),
    "losses": lambda: plots.losses(some_losses()),
    "losses, one group": lambda: plots.losses(some_losses(groups=1)),
    "losses, none": lambda: plots.losses(some_losses(groups=0)),
}


def test_bars_of_the_schedule_are_its_work() -> None:
    schedule = plan(4000, 50)
    figure = plots.schedule(schedule)
    bars, rate, crop = figure.axes
    areas = [patch.get_width() * patch.get_height() for patch in bars.patches]  # type: ignore[attr-defined]
    assert sum(areas) == schedule.image_iterations == 115_500
    assert [patch.get_x() for patch in bars.patches] == list(schedule.joins)  # type: ignore[attr-defined]
    assert any("42.25%" in text.get_text() for text in figure.texts)
    line = rate.lines[0]
    assert np.asarray(line.get_ydata())[[0, -1]] == pytest.approx([0.25, 0])
    assert np.asarray(crop.lines[0].get_ydata())[[0, -1]] == pytest.approx([100, 8])


def test_one_update_is_no_plural() -> None:
    assert plots.schedule(plan(1, 1)).texts[1].get_text() == "1 image-iteration per class"


@pytest.mark.parametrize(("round_iterations", "says"), [(100, True), (20, False)])
def test_the_white_area_says_what_is_saved_where_there_is_room(round_iterations: int, says: bool) -> None:
    bars = plots.schedule(plan(300, 3, round_iterations, 3)).axes[0]
    assert any("33% of the work" in text.get_text() for text in bars.texts) == says


def test_sub_batches_that_have_not_joined_yet_have_their_colours() -> None:
    """Of a run that was stopped: a sub-batch has one colour in all pictures."""
    begun = replace(some_losses(), sub_batch=torch.arange(5))
    colours = [line.get_color() for line in plots.losses(begun).axes[0].lines]
    assert colours[:2] == plots.sub_batch_colours(5)[:2]


def test_losses_are_means_over_groups() -> None:
    entropy, distance, _ = plots.losses(some_losses(groups=2)).axes
    early, late = entropy.lines
    assert np.asarray(early.get_ydata()) == pytest.approx([0.1] * 10)
    assert list(late.get_xdata()) == [50, 60, 70, 80, 90]  # type: ignore[arg-type]
    assert np.asarray(late.get_ydata()) == pytest.approx([0.7] * 5)
    assert np.asarray(distance.lines[0].get_ydata()) == pytest.approx([3.5] * 10)
