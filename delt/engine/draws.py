"""Which part of the images the teacher sees in each iteration: one crop, mirroring and shift per group (SRe2L, CDA).

The random numbers of a group are a function of seed, group and iteration, drawn for many iterations at once: one stream
gives those of BLOCK iterations, whoever asks for which of them. With `clock` own each sub-batch has draws of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delt.config import RecoverConfig
from delt.data.augment import BOX, axis_operator, boxes_of
from delt.grouping import Group
from delt.runtime import send, stream
from delt.schedule import Schedule, smallest_crop

BLOCK = 256  # iterations whose numbers come from one stream
NUMBERS = BOX + 5  # uniform numbers per draw: a box, two shifts of a border, the mirror, two circular shifts


@dataclass(frozen=True)
class Crops:
    """What is done to the images, for any number of draws side by side."""

    size: int  # of the images, in pixels
    boxes: Tensor  # int64 [..., 4]: top, left, height, width
    flips: Tensor  # bool [...]
    shifts: Tensor  # int64 [..., 2]: rows, columns

    def operators(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The linear maps of both axes, [..., size, size] each, made on a device."""
        shape = self.boxes.shape[:-1]
        boxes, flips, shifts = (
            send(part, device) for part in (self.boxes.flatten(0, -2), self.flips.flatten(), self.shifts.flatten(0, -2))
        )
        top, left, height, width = boxes.unbind(1)
        rows = axis_operator(top, height, self.size, shift=shifts[:, 0])
        cols = axis_operator(left, width, self.size, flips, shifts[:, 1])
        return rows.unflatten(0, shape), cols.unflatten(0, shape)


Operators = tuple[Tensor, Tensor, Tensor]  # rows [K,G,H,H], cols, and what `taps` finds in both [K,G,2,4,H]


class Warped(torch.autograd.Function):
    """`warp` of images and the cast to what a network takes, by the kernel."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, operators: Operators, place: Tensor | None, dtype: torch.dtype) -> Tensor:
        from delt.models import kernels

        ctx.operators, ctx.place, ctx.dtype = operators, place, images.dtype
        return kernels.warped(images, operators, place, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from delt.models import kernels

        return kernels.warped(grads[0], ctx.operators, ctx.place, ctx.dtype, back=True), None, None, None


class Draws:
    """The draws of groups side by side.

    Args:
        schedule: the one that all groups have.
        side: pixels per side of the images at an iteration.
    """

    def __init__(self, seed: int, groups: Sequence[Group], schedule: Schedule, config: RecoverConfig, side: Callable[[int], int]) -> None:
        self.seed, self.groups, self.schedule, self.config, self.side = seed, groups, schedule, config, side
        self._blocks: dict[tuple[str, int], tuple[int, Tensor]] = {}

    def clocks(self, t: int) -> list[tuple[int, int]]:
        """(iterations done, iterations in all) that set rate and crop: one for all, or one per active sub-batch."""
        if self.config.clock == "global":
            return [(t, self.schedule.iterations)]
        joins = self.schedule.joins[: self.schedule.active(t)]
        return [(t - join, self.schedule.iterations - join) for join in joins]

    def crops(self, start: int, stop: int) -> Crops:
        """The crops [T,K,G] of iterations in which image size and active sub-batches stay as they are; K is the number of clocks."""
        times, clocks = range(start, stop), [self.clocks(t) for t in range(start, stop)]
        numbers = torch.stack(
            [torch.stack([self.numbers(group, k, start, stop) for group in self.groups], 1) for k in range(len(clocks[0]))], 1
        )
        least = torch.tensor([[self.least(*clock) for clock in own] for own in clocks])
        return self._crops(numbers, least.unsqueeze(2).expand(numbers.shape[:3]), self.side(times[0]))

    def one(self, group: Group, t: int, k: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Box [4], mirror and shifts [2] of a group (and its k-th clock) at an iteration."""
        least = torch.tensor([self.least(*self.clocks(t)[k])])
        found = self._crops(self.numbers(group, k, t, t + 1), least, self.side(t))
        return found.boxes[0], found.flips[0], found.shifts[0]

    def least(self, done: int, total: int) -> float:
        """Smallest area share of a crop by this clock."""
        config = self.config
        return smallest_crop(done, total, config.min_crop, config.curriculum, config.milestone)

    def numbers(self, group: Group, k: int, start: int, stop: int) -> Tensor:
        """Uniform numbers [stop - start, NUMBERS] of a group's k-th clock."""
        parts = []
        for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            first = block * BLOCK
            parts.append(self._block(group, k, block)[max(0, start - first) : stop - first])
        return torch.cat(parts)

    def _block(self, group: Group, k: int, block: int) -> Tensor:
        known, numbers = self._blocks.get((group.key, k), (-1, torch.empty(0)))
        if known != block:
            numbers = torch.rand(BLOCK, NUMBERS, generator=stream(self.seed, "recover", group.key, k, block))
            self._blocks[group.key, k] = block, numbers
        return numbers

    def _crops(self, numbers: Tensor, least: Tensor, size: int) -> Crops:
        config, shape = self.config, numbers.shape[:-1]
        box, border, mirror, shift = numbers.split([BOX, 2, 1, 2], -1)
        if config.pad:
            place = (border * (2 * config.pad + 1)).long() - config.pad
            boxes = torch.cat([place, torch.full_like(place, size)], -1)
        else:
            boxes = boxes_of(box.reshape(-1, BOX), size, least.reshape(-1, 1)).unflatten(0, shape)
        flips = mirror.squeeze(-1) < 0.5 if config.flip else torch.zeros(shape, dtype=torch.bool)
        return Crops(size, boxes, flips, (shift * (config.jitter + 1)).long())
