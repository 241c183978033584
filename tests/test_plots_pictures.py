"""Grids of images: each image in its place, and heads that say which sub-batch stands below."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from delt import plots
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.errors import DataError
from delt.schedule import plan

NAMES = ("tench", "English springer", "cassette player")
TEN = tuple("0123456789")


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def a_set(
    ipc: int = 6, sub_batches: int = 3, classes: tuple[str, ...] = NAMES, channels: int = 1, size: int = 8, iterations: int = 90
) -> SyntheticSet:
    schedule, k = plan(iterations, ipc, None, sub_batches if iterations else None), len(classes)
    depth = torch.tensor(schedule.sub_batch_of).repeat(k)
    updates = torch.tensor(schedule.updates)[depth]
    labels = torch.arange(k).repeat_interleave(ipc)
    return SyntheticSet(noise(k * ipc, channels, size, size), labels, classes, depth, updates, ["noise"] * k * ipc, 0)


def some_snapshots(groups: int = 2, channels: int = 1, size: int = 8) -> Snapshots:
    """Two classes of four images in two sub-batches; the late ones join at iteration 50 of 100."""
    times, late = torch.arange(0, 101, 10), torch.tensor([0, 0, 1, 1]).repeat(2)
    images = noise(11, 8, channels, size, size)
    images[:6, late == 1] = images[0, late == 1]
    readings = [
        {"group": f"g{group}", "iteration": t, "cross_entropy": [0.1, 0.2 + group][: 1 + (t >= 50)], "bn": 3.0 + group}
        for group in range(groups)
        for t in range(0, 100, 10)
    ]
    return Snapshots(images, times.unsqueeze(1).expand(-1, 8), torch.arange(2).repeat_interleave(4), late, readings)


FIGURES: dict[str, Callable[[], Figure]] = {
    "images": lambda: plots.images(a_set()),
    "images, one": lambda: plots.images(a_set(ipc=1, sub_batches=1, classes=("only",))),
    "images, colour": lambda: plots.images(a_set(channels=3, size=80), per_class=2, classes=[2, 0]),
    "images, many": lambda: plots.images(a_set(ipc=50, sub_batches=8), per_class=50),
    "images, two blocks": lambda: plots.images(a_set(ipc=5, sub_batches=5, classes=TEN)),
    "images, blocks of three and four": lambda: plots.images(a_set(ipc=2, classes=TEN[:7], sub_batches=2)),
    "images, not optimised": lambda: plots.images(a_set(iterations=0), what="Random real images"),
    "trajectory": lambda: plots.trajectory(some_snapshots(), 1, name="tench"),
    "trajectory, long name": lambda: plots.trajectory(some_snapshots(), 1, name=25 * "long " + "tench"),
    "images, long names": lambda: plots.images(a_set(classes=tuple(20 * "long " + name for name in NAMES))),
    "trajectory, two steps": lambda: plots.trajectory(some_snapshots(channels=3, size=80), 0, steps=2),
}


def shown(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.images]


def test_images_lie_in_rows_of_classes_early_ones_left() -> None:
    synthetic = a_set(ipc=6, sub_batches=3)
    (ax,) = plots.images(synthetic, per_class=3, classes=[2, 0]).axes
    expected = synthetic.images[[12, 14, 17, 0, 2, 5], 0].numpy()
    assert all(np.array_equal(a, b) for a, b in zip(shown(ax), expected, strict=True))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cassette player", "tench"]
    assert [image.get_extent()[0] for image in ax.images[:3]] == sorted(image.get_extent()[0] for image in ax.images[:3])
    assert all(image.get_interpolation() == "nearest" for image in ax.images)
    texts = [text.get_text() for text in ax.texts]
    assert {"1", "2", "3", "90", "60", "30"} <= set(texts)


def test_one_class_and_one_image_are_no_plural() -> None:
    figure = FIGURES["images, one"]()
    assert [text.get_text() for text in figure.texts] == ["Synthetic images, 1 class", "1 image per class, early sub-batches on the left"]
    some, (title, about) = a_set(ipc=30), plots.images(a_set(ipc=30), classes=[1]).texts
    assert title.get_text() == f"Synthetic images, 1 of {len(some.classes)} classes" and about.get_text().startswith("10 of 30 images per")


def test_many_rows_of_few_columns_stand_in_two_blocks() -> None:
    synthetic = a_set(ipc=5, sub_batches=5, classes=TEN[:7])
    left, right = plots.images(synthetic).axes
    expected = synthetic.images[:, 0].numpy()
    assert all(np.array_equal(a, b) for a, b in zip(shown(left) + shown(right), expected, strict=True))
    assert [[label.get_text() for label in ax.get_yticklabels()] for ax in (left, right)] == [["0", "1", "2", "3"], ["4", "5", "6"]]
    tops = [min(image.get_extent()[3] for image in ax.images[5 * row : 5 * row + 5]) for ax in (left, right) for row in range(3)]
    assert tops == pytest.approx([0.03, 1.03, 2.03] * 2)
    assert [text.get_text() for text in left.texts] == [text.get_text() for text in right.texts]


def test_a_head_is_left_out_where_columns_differ() -> None:
    synthetic = a_set(ipc=2, sub_batches=2, classes=("a", "b"))
    synthetic.sub_batch = torch.tensor([0, 1, 0, 0])
    (ax,) = plots.images(synthetic).axes
    assert not ax.texts


def test_a_long_name_stays_in_the_title() -> None:
    title = FIGURES["trajectory, long name"]().get_suptitle()
    assert title.startswith("Images of class long") and "…" in title and title.endswith("tench while they are optimised")


def test_trajectory_begins_with_the_start_and_fades_what_waits() -> None:
    snapshots = some_snapshots()
    (ax,) = plots.trajectory(snapshots, 1, steps=3).axes
    rows = [4, 5, 6, 7]
    expected = snapshots.images[[0, 5, 10]][:, rows, 0].transpose(0, 1).flatten(0, 1).numpy()
    assert all(np.array_equal(a, b) for a, b in zip(shown(ax), expected, strict=True))
    assert [image.get_alpha() for image in ax.images] == [1, 1, 1] * 2 + [1, 0.3, 1] * 2
    assert [text.get_text() for text in ax.texts][:3] == ["start", "50", "end (100)"]


def test_trajectory_shows_each_sub_batch_where_there_are_many() -> None:
    snapshots = some_snapshots()
    snapshots.labels = torch.zeros(8, dtype=torch.long)
    snapshots.sub_batch = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    (ax,) = plots.trajectory(snapshots, 0).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"sub-batch {k}" for k in range(1, 6)]


@pytest.mark.parametrize("classes", [[3], [-1], []])
def test_refuses_classes_that_are_none(classes: list[int]) -> None:
    with pytest.raises(DataError, match="allowed are labels from 0 to 2"):
        plots.images(a_set(), classes=classes)


def test_refuses_a_class_that_was_not_recorded() -> None:
    with pytest.raises(DataError, match=r"class 7 was not recorded; recorded are \[0, 1\]"):
        plots.trajectory(some_snapshots(), 7)
