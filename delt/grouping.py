"""Which images have their BatchNorm statistics matched together: the unit of work of recover, as a value.

A group's random streams and files are named by its content, so the same group comes out the same in any run that
holds it, on any worker. Groups of equal shape may be packed into one forward pass (`packs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from delt.schedule import Schedule


@dataclass(frozen=True)
class Group:
    """Images (class, index within the class), early sub-batches first, and when each joins."""

    members: tuple[tuple[int, int], ...]
    schedule: Schedule  # its sizes count images of the group, not of one class

    @property
    def key(self) -> str:
        """Names the group's content, e.g. `3.0-3.49` for class 3, images 0 to 49."""
        ordered = sorted(self.members)
        return "-".join(f"{c}.{i}" for c, i in dict.fromkeys((ordered[0], ordered[-1])))


def cut_whole(classes: Sequence[int], ipc: int, group_size: int) -> list[list[tuple[int, int]]]:
    """Whole classes per group; a class larger than `group_size` is dealt out so that each part has every depth."""
    if ipc <= group_size:
        per_group = group_size // ipc
        chunks = [classes[i : i + per_group] for i in range(0, len(classes), per_group)]
        return [[(c, i) for c in chunk for i in range(ipc)] for chunk in chunks]
    parts = -(-ipc // group_size)
    return [[(c, i) for i in range(part, ipc, parts)] for c in classes for part in range(parts)]


def cut_contiguous(classes: Sequence[int], ipc: int, group_size: int) -> list[list[tuple[int, int]]]:
    """Chunks of `group_size` of the class-sorted list, whatever class they cut (the published loader)."""
    images = [(c, i) for c in classes for i in range(ipc)]
    return [images[i : i + group_size] for i in range(0, len(images), group_size)]


def cut_mixed(classes: Sequence[int], ipc: int, group_size: int, rounds: int = 1) -> list[list[tuple[int, int]]]:
    """One image of each of up to `group_size` different classes (SRe2L, CDA), or `rounds` images of each of fewer."""
    breadth = max(1, group_size // rounds)
    chunks = [classes[i : i + breadth] for i in range(0, len(classes), breadth)]
    return [[(c, i) for i in range(first, min(first + rounds, ipc)) for c in chunk] for first in range(0, ipc, rounds) for chunk in chunks]


def make_groups(
    classes: int,
    schedule: Schedule,
    grouping: str = "class",
    group_size: int = 100,
    cut: str = "whole",
    drop_empty: bool = False,
    rounds: int = 1,
) -> list[Group]:
    """Divide `classes` x `schedule.ipc` images into groups.

    Args:
        schedule: of one class; `schedule.sub_batch_of[i]` is the sub-batch of its i-th image.
        rounds: images of each class in a mixed group.
        drop_empty: leave out the rounds before the first image of a group joins; its run and schedules shrink.
    """
    ipc = schedule.ipc
    if grouping == "mixed":
        chunks = cut_mixed(range(classes), ipc, group_size, rounds)
    elif cut == "contiguous":
        chunks = cut_contiguous(range(classes), ipc, group_size)
    else:
        chunks = cut_whole(range(classes), ipc, group_size)
    return [_group(chunk, schedule, drop_empty) for chunk in chunks]


def _group(images: list[tuple[int, int]], schedule: Schedule, drop_empty: bool) -> Group:
    depth = schedule.sub_batch_of
    members = tuple(sorted(images, key=lambda image: (depth[image[1]], image)))
    counts = Counter(depth[i] for _, i in members)
    sizes = [counts[k] for k in range(schedule.sub_batches)]
    empty = depth[members[0][1]] if drop_empty else 0  # rounds in which nothing is optimised yet
    iterations = schedule.iterations - empty * schedule.round_iterations
    return Group(members, Schedule(iterations, schedule.round_iterations, tuple(sizes[empty:])))


def packs(groups: Sequence[Group], packing: int) -> list[list[Group]]:
    """Put up to `packing` groups with one schedule side by side; groups of another shape start packs of their own."""
    alike: dict[Schedule, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.schedule, []).append(group)
    return [same[i : i + packing] for same in alike.values() for i in range(0, len(same), packing)]
