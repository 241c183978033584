"""EarlyLate as a value: which images are optimised when, how fast, under which crop, and what that costs.

`plan(iterations=4000, ipc=50)` is the published schedule (DELT, arXiv 2411.19946): eight sub-batches of
7, 7, 6, 6, 6, 6, 6, 6 images per class join 500 iterations apart, and 42.25 % of the work is saved.
Nothing here touches a tensor: plain numbers that can be tested, printed and drawn.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

from delt.errors import ConfigError
from delt.typed import typed

DEFAULT_SUB_BATCHES = 8


@dataclass(frozen=True)
class Round:
    """A stretch of iterations `start <= t < stop` in which the first `sub_batches` sub-batches are active."""

    start: int
    stop: int
    sub_batches: int
    images: int  # active images per class


@dataclass(frozen=True)
class Schedule:
    """Sub-batch k (k = 0 .. M-1) joins at iteration k * round_iterations and runs to `iterations`.

    `sizes[k]` is the number of images per class in sub-batch k. A size of 0 is allowed (a group that holds none
    of a class's k-th sub-batch). Make one with `plan`, which fills what is not given and checks the rest.
    """

    iterations: int
    round_iterations: int
    sizes: tuple[int, ...]

    @property
    def sub_batches(self) -> int:
        return len(self.sizes)

    @property
    def ipc(self) -> int:
        return sum(self.sizes)

    @cached_property
    def joins(self) -> tuple[int, ...]:
        """Iteration at which each sub-batch joins."""
        return tuple(k * self.round_iterations for k in range(self.sub_batches))

    @cached_property
    def updates(self) -> tuple[int, ...]:
        """Pixel updates that an image of each sub-batch receives."""
        return tuple(self.iterations - join for join in self.joins)

    @cached_property
    def sub_batch_of(self) -> tuple[int, ...]:
        """Sub-batch of image 0, 1, .., ipc-1 of a class: early ones first."""
        return tuple(k for k, size in enumerate(self.sizes) for _ in range(size))

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The phases between two joins; empty when nothing is optimised."""
        stops = (*self.joins[1:], self.iterations)
        spans = zip(self.joins, stops, itertools.accumulate(self.sizes), strict=True)
        return tuple(Round(a, b, k + 1, n) for k, (a, b, n) in enumerate(spans) if b > a)

    def active(self, iteration: int) -> int:
        """Sub-batches that are being optimised at `iteration`."""
        return sum(join <= iteration < self.iterations for join in self.joins)

    @property
    def image_iterations(self) -> int:
        """Pixel updates of one class: sum over its images of their updates."""
        return sum(size * updates for size, updates in zip(self.sizes, self.updates, strict=True))

    @property
    def saved(self) -> float:
        """Share of the work saved against optimising every image for all iterations (0 .. 1)."""
        full = self.ipc * self.iterations
        return 1 - self.image_iterations / full if full else 0.0


def split(ipc: int, sub_batches: int) -> tuple[int, ...]:
    """Images per class in each sub-batch: as equal as can be, the larger ones first.

    >>> split(50, 8)
    (7, 7, 6, 6, 6, 6, 6, 6)
    """
    base, extra = divmod(ipc, sub_batches)
    return tuple(base + (k < extra) for k in range(sub_batches))


@typed
def plan(iterations: int, ipc: int, round_iterations: int | None = None, sub_batches: int | None = None) -> Schedule:
    """Fill in and check MI, RI and M.

    Unset M is min(8, ipc), unset RI is MI // M; RI alone gives M = min(MI // RI, ipc). Zero iterations mean that
    the starting images are kept as they are.

    Raises:
        ConfigError: a number is not whole or too small, M is larger than ipc, or the last sub-batch would join at or after the end.
    """
    if ipc < 1:
        raise ConfigError(f"ipc is {ipc}; at least one image per class is needed")
    if iterations < 0:
        raise ConfigError(f"iterations is {iterations}; allowed are 0 (keep the starting images) and above")
    if round_iterations is not None and round_iterations < 1:
        raise ConfigError(f"round_iterations is {round_iterations}; at least 1 is needed")
    if sub_batches is not None and not 1 <= sub_batches <= ipc:
        raise ConfigError(
            f"sub_batches is {sub_batches} with ipc {ipc}; allowed are 1 to {ipc}: every sub-batch needs an image of each class"
        )
    if iterations == 0:
        return Schedule(0, 0, (ipc,))
    if sub_batches is None:
        wanted = DEFAULT_SUB_BATCHES if round_iterations is None else max(1, iterations // round_iterations)
        sub_batches = min(wanted, ipc, iterations)
    if round_iterations is None:
        round_iterations = max(1, iterations // sub_batches)
    if (sub_batches - 1) * round_iterations >= iterations:
        most = (iterations - 1) // (sub_batches - 1)
        fix = f"lower round_iterations to at most {most}" if most else f"lower sub_batches to at most {iterations}"
        raise ConfigError(
            f"the last of {sub_batches} sub_batches would join at iteration {(sub_batches - 1) * round_iterations}, but the run "
            f"ends at {iterations}: {fix} or raise iterations"
        )
    return Schedule(iterations, round_iterations, split(ipc, sub_batches))


def cosine(t: float, total: float) -> float:
    """Half a cosine wave from 1 at t = 0 down to 0 at t = total."""
    return 0.5 * (1 + math.cos(math.pi * t / total))


def learning_rate(t: float, total: float, base: float) -> float:
    """Rate of step t of `total`: cosine to zero without warm-up, set before the step (SRe2L, CDA, DELT)."""
    return base * cosine(t, total)


def smallest_crop(t: float, total: float, least: float, curriculum: str, milestone: float) -> float:
    """Smallest area share that a random crop may take at iteration t (CDA, arXiv 2311.18838).

    `cosine`, `linear` and `step` go from 1 to `least` within `milestone * total` iterations; `none` is SRe2L's
    constant range. The largest share is always 1.
    """
    end = milestone * total
    if curriculum == "none" or t >= end:
        return least
    if curriculum == "step":
        return 1.0
    share = cosine(t, end) if curriculum == "cosine" else 1 - t / end
    return least + (1 - least) * share
