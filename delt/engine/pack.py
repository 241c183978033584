"""A pack: groups of one schedule side by side, the unit of work of recover. A value that travels to worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from delt.artifacts.teacher import Teacher
from delt.config import RecoverConfig
from delt.grouping import Group
from delt.job import Job
from delt.schedule import Schedule


def interleaved(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(class, image) of each row of a pack: image i of group g at i * G + g."""
    return [member for row in zip(*(group.members for group in groups), strict=True) for member in row]


@dataclass
class Unit:
    """A pack that is finished, or stopped before: images and recorded snapshots in the task's row order."""

    images: Tensor  # uint8 [n*G,C,H,W]
    recorded: Tensor  # uint8 [S,R,C,H,W]
    iterations: int  # that were done
    readings: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class PackTask:
    """Everything that one unit of work needs; travels to a worker process."""

    teachers: tuple[Teacher, ...]
    groups: list[Group]
    start: Tensor | None  # uint8 [n*G,C,H,W], image i of group g at i*G+g; None: noise, or its turn has not come
    config: RecoverConfig
    classes: frozenset[int]  # whose images are recorded
    record_at: tuple[int, ...]  # iterations of the whole run
    iterations: int  # of the whole run; a group may have fewer
    job: Job
    unit: Unit | None = None  # where it was finished before

    @property
    def teacher(self) -> Teacher:
        """The first: all have its classes, size and normalisation."""
        return self.teachers[0]

    @property
    def schedule(self) -> Schedule:
        return self.groups[0].schedule

    @property
    def image_iterations(self) -> int:
        """Pixel updates of all its images together."""
        return sum(group.schedule.image_iterations for group in self.groups)

    @property
    def members(self) -> list[tuple[int, int]]:
        """(class, image) of each row."""
        return interleaved(self.groups)

    @property
    def watched(self) -> Tensor:
        """Rows [R] whose images are recorded."""
        return torch.tensor([row for row, (c, _) in enumerate(self.members) if c in self.classes], dtype=torch.long)

    @property
    def marks(self) -> list[int]:
        """Iterations of this pack at which its images are recorded."""
        return [t * self.schedule.iterations // self.iterations for t in self.record_at]

    @property
    def name(self) -> str:
        return f"{self.groups[0].key}_{len(self.groups)}"

    def places(self, ipc: int) -> Tensor:
        """Row of each member in the class-sorted set."""
        return torch.tensor([c * ipc + i for c, i in self.members])
