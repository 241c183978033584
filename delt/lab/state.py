"""What the view draws, as plain numbers: schedules, losses, and images in rows of sub-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from delt.artifacts.snapshots import Frame, Snapshots
from delt.config import RecoverConfig
from delt.lab.sheet import sheet
from delt.plots.style import INK, many, spread, sub_batch_colours
from delt.schedule import Schedule, learning_rate, smallest_crop

POINTS = 120  # of a curve
LIVE_COLUMNS = 20  # images of a sub-batch that are shown while they change

State = dict[str, Any]
Losses = Sequence[tuple[int, Sequence[float | None]]]  # iteration, cross-entropy of each active sub-batch


def schedule_state(schedule: Schedule, recover: RecoverConfig, now: int | None = None) -> State:
    """The picture of `delt.plots.schedule`: bars of sub-batches, and the curves below them.

    Args:
        now: the iteration that a running synthesis is at.
    """
    colours = sub_batch_colours(schedule.sub_batches)

    def curve(value: Any) -> list[State]:
        starts = [(0, INK)] if recover.clock == "global" else list(zip(schedule.joins, colours, strict=True))
        return [{"colour": colour, "points": _curve(value, start, schedule.iterations)} for start, colour in starts]

    rate = curve(lambda t, total: learning_rate(t, total, recover.lr))
    crop = curve(lambda t, total: 100 * smallest_crop(t, total, recover.min_crop, recover.curriculum, recover.milestone))
    panels = [
        {"name": "Learning rate", "unit": "", "top": recover.lr or 1.0, "lines": rate},
        {"name": "Smallest crop", "unit": "% of area", "top": 100, "lines": crop},
    ]
    return {
        "iterations": schedule.iterations,
        "joins": list(schedule.joins),
        "sizes": list(schedule.sizes),
        "updates": list(schedule.updates),
        "colours": colours,
        "saved": schedule.saved,
        "panels": panels if schedule.iterations else [],
        "now": now,
    }


def _curve(value: Any, start: int, stop: int) -> list[list[float]]:
    if start == stop:
        return []
    times = np.linspace(start, stop, POINTS)
    return [[float(t), float(value(t - start, stop - start))] for t in times]


def losses_state(losses: Losses, iterations: int, sub_batches: int) -> State:
    """Cross-entropy of each sub-batch over the iterations."""
    colours = sub_batch_colours(sub_batches)
    lines = []
    for k, colour in enumerate(colours):
        points = [[t, value] for t, values in losses for value in values[k : k + 1] if value is not None and np.isfinite(value)]
        lines.append({"name": f"sub-batch {k + 1}", "colour": colour, "points": points})
    return {"x": "Iteration", "y": "Cross-entropy (nats)", "log": True, "span": [0, iterations], "lines": lines}


def rows_state(schedule: Schedule, images: Iterable[Sequence[int]], end: int | None = None) -> list[State]:
    """A row per sub-batch that has images; `images` are the tiles of each.

    Args:
        end: the last iteration there was, of a run that was stopped.
    """
    end = schedule.iterations if end is None else min(end, schedule.iterations)
    colours = sub_batch_colours(schedule.sub_batches)
    return [
        {
            "name": f"sub-batch {k + 1}",
            "note": many(max(0, end - schedule.joins[k]), "update"),
            "colour": colours[k],
            "join": schedule.joins[k],
            "images": list(tiles),
        }
        for k, tiles in enumerate(images)
        if tiles
    ]


def live_state(frame: Frame, schedule: Schedule) -> tuple[State, bytes]:
    """The images of a synthesis that runs, and their sheet: a row per sub-batch, images of all recorded classes in it."""
    depth = np.array(frame.sub_batch)
    chosen = [spread(np.flatnonzero(depth == k).tolist(), LIVE_COLUMNS) for k in range(schedule.sub_batches)]
    shown = [row for rows in chosen for row in rows]
    picture, tile = sheet(torch.from_numpy(frame.images[shown]).unsqueeze(1))
    starts = np.cumsum([0, *map(len, chosen)]).tolist()
    tiles = [list(range(start, start + len(rows))) for start, rows in zip(starts, chosen, strict=False)]
    state = {"labels": ["all"], "names": {}, "rows": rows_state(schedule, tiles), "tile": list(tile), "scrub": False}
    return {**state, "iterations": [frame.iteration]}, picture


class Trajectory:
    """The recorded images of a finished or stopped synthesis, a class at a time."""

    def __init__(self, snapshots: Snapshots, classes: Sequence[str], schedule: Schedule) -> None:
        self.snapshots, self.classes, self.schedule = snapshots, classes, schedule
        self.labels = [str(label) for label in snapshots.labels.unique().tolist()]
        """Recorded classes: the label as text, which is unique where names need not be."""

    def show(self, label: str) -> tuple[State, bytes]:
        """State and sheet of one class: a row of tiles per image, a column per snapshot."""
        images = self.snapshots.of_class(int(label))
        picture, tile = sheet(images.transpose(0, 1))
        depth = self.snapshots.sub_batch[self.snapshots.labels == int(label)].sort().values
        tiles = [torch.nonzero(depth == k).squeeze(1).tolist() for k in range(self.schedule.sub_batches)]
        iterations = self.iterations(label)
        return {
            "labels": self.labels,
            "names": {label: self.classes[int(label)] for label in self.labels},
            "rows": rows_state(self.schedule, tiles, iterations[-1]),
            "tile": list(tile),
            "iterations": iterations,
            "scrub": True,
        }, picture

    def iterations(self, label: str) -> list[int]:
        """The iteration of each snapshot."""
        row = int(torch.nonzero(self.snapshots.labels == int(label))[0])
        return [int(t) for t in self.snapshots.iterations[:, row].tolist()]
