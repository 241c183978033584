"""How many images go through the teacher together: chosen from the memory at hand, and cut down where it ran out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from delt.artifacts.teacher import Teacher
from delt.config import RuntimeConfig
from delt.grouping import Group
from delt.models.statistics import StatisticsMatch
from delt.runtime import device_of, free_memory, given_to, lowered

SHARE = 0.7  # of the free memory that a pack may take
ENOUGH = 2**25  # pixels in a forward pass beyond which more images side by side make a GPU no faster
TRIAL = 16  # images


@dataclass(frozen=True)
class Split:
    """Groups that pass together, and images of a group that do; all results are the same but for rounding."""

    groups: int
    images: int | None = None  # None: all that are active

    def slices(self, groups: int) -> Iterator[slice]:
        """The groups of a pack, pass by pass."""
        return (slice(first, min(first + self.groups, groups)) for first in range(0, groups, self.groups))

    def smaller(self, images: int) -> Split | None:
        """The next smaller one, for groups with `images` active images each; None where one image is alone already."""
        if self.groups > 1:
            return Split(-(-self.groups // 2))
        now = min(self.images or images, images)
        return Split(1, -(-now // 2)) if now > 1 else None

    def __str__(self) -> str:
        if self.images is None:
            return f"{self.groups} group{'s' * (self.groups > 1)} side by side"
        return f"{self.images} image{'s' * (self.images > 1)} of a group at a time"


def fitting(free: int, per_image: int, images: int, size: int, groups: int) -> int:
    """Groups per forward pass.

    Args:
        free: bytes of memory at hand.
        per_image: bytes that an image takes on its way through the teacher and back.
        images: of the largest group.
        size: pixels per side.
        groups: how many there are.
    """
    most = min(free * SHARE / (per_image * images), max(1, ENOUGH / (images * size * size)), groups)
    passes = math.ceil(groups / max(1, math.floor(most)))
    return math.ceil(groups / passes)  # evenly: ten groups of which eight fit pass five at a time


def fitted(runtime: RuntimeConfig, teacher: Teacher, groups: Sequence[Group]) -> RuntimeConfig:
    """A resolved configuration with nothing left to choose: packing, where it was not given."""
    size = teacher.card.size
    if runtime.packing is None:
        images = max((len(group.members) for group in groups), default=1)
        per_image = taken(teacher, runtime)
        packing = fitting(free_memory(device_of(runtime)), per_image, images, size, max(1, len(groups)))
        runtime = replace(runtime, packing=packing)
    return runtime


def taken(teacher: Teacher, runtime: RuntimeConfig) -> int:
    """Bytes that an image takes on a GPU on its way through the teacher and back, as tried with a few."""
    device, card = device_of(runtime), teacher.card
    network = lowered(teacher.to(device).model, runtime)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    images = torch.zeros(TRIAL, card.channels, card.size, card.size, device=device, requires_grad=True)
    with StatisticsMatch(network) as match:
        logits = network(given_to(images, runtime))
        torch.autograd.grad(logits.sum() + match.collect().sum(), images)
    return (torch.cuda.max_memory_allocated(device) - before) // TRIAL
