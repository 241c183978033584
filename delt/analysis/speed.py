"""How long will the synthesis take? A short measurement on this machine, then arithmetic over the schedule.

`measure(config).synthesis(groups)` times a few real steps of recover at two or three batch sizes, with a network of the
teacher's architecture: the time does not depend on what the network knows, so none has to be trained first.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delt.artifacts.teacher import Teacher, TeacherCard
from delt.config import RunConfig
from delt.data.load import shape_of
from delt.engine.pack import PackTask
from delt.engine.step import Step
from delt.grouping import Group, packs
from delt.job import Job
from delt.models import zoo
from delt.models.statistics import patch_side, remember_convolutions
from delt.runtime import resolve, settings
from delt.schedule import Schedule
from delt.stages import recover
from delt.stages.squeeze import backbones

STEPS = 5  # timed at each size, after one that warms up; their median counts
LEAST = 0.15  # seconds; shorter steps are timed again and again for so long, since other work on the machine may stop them all


@dataclass(frozen=True)
class Speed:
    """Seconds of one iteration by the images in it, as measured; between and beyond the measured sizes along straight lines."""

    images: tuple[int, ...]  # ascending
    seconds: tuple[float, ...]

    def iteration(self, images: int) -> float:
        """Seconds of an iteration with this many active images."""
        if not images:
            return 0.0
        if len(self.images) > 1 and images > self.images[-1]:
            (a, b), (s, t) = self.images[-2:], self.seconds[-2:]
            return t + max(0.0, (t - s) / (b - a)) * (images - b)
        return float(np.interp(images, self.images, self.seconds))

    def rate(self, images: int) -> float:
        """Image-iterations per second with this many active images."""
        return images / self.iteration(images)

    def synthesis(self, groups: Sequence[Group], packing: int = 1, done: int = 0) -> float:
        """Seconds of the whole synthesis in one process, or of what is left when `done` image-iterations were made."""
        priced = functools.cache(self._pack)  # most packs are alike
        seconds = 0.0
        for pack in packs(groups, packing):
            work, whole = priced(pack[0].schedule, len(pack), 0)
            made = min(done, work)
            done -= made
            seconds += self._pack(pack[0].schedule, len(pack), made)[1] if made else whole
        return seconds

    def _pack(self, schedule: Schedule, groups: int, made: int) -> tuple[int, float]:
        """Image-iterations of groups side by side, and the seconds of those that are left when `made` were made."""
        total, seconds = 0, 0.0
        for part in schedule.rounds:
            images = part.images * groups
            work = (part.stop - part.start) * images
            left = work - min(work, max(0, made - total))
            total += work
            seconds += left / images * self.iteration(images) if images else 0.0
        return total, seconds


def groups_of(config: RunConfig, classes: int) -> list[Group]:
    """The groups that a run of this configuration optimises; none where nothing is optimised."""
    return recover.groups_of(config.recover, classes, config.ipc)


def duration(seconds: float) -> str:
    """Seconds in words: 1.4 s, 14 s, 3 min, 2.5 h.

    >>> duration(200)
    '3 min'
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def measure(config: RunConfig, sizes: Sequence[int] = (5, 25, 100), budget: float = 2.0) -> Speed:
    """Time steps of recover at these batch sizes, smallest first, and leave out what would not fit into `budget` seconds.

    Args:
        config: its data set, teacher architecture, augmentation and runtime are those measured.
    """
    teachers = stand_ins(config)
    found: dict[int, float] = {}
    begun = time.monotonic()
    for size in sorted(sizes):
        if found:
            known = Speed(tuple(found), tuple(found.values()))
            expected = (STEPS + 1) * len(teachers) * known.seconds[-1] * size / known.images[-1]
            if time.monotonic() - begun + max(LEAST, expected) > budget:
                break
        found[size] = _seconds(teachers, config, size)
    return Speed(tuple(found), tuple(found.values()))


def stand_ins(config: RunConfig) -> tuple[Teacher, ...]:
    """Untrained networks of the teachers' shapes."""
    classes, channels, size = shape_of(config.dataset, config.data)
    names, grey = tuple(map(str, range(classes))), (0.5,) * channels
    found = []
    for own in backbones(config.teacher).values():
        model = zoo.build(own.arch, classes, channels, size, own.width, generator_seed=0).eval()
        card = TeacherCard(own.arch, own.width, names, channels, size, grey, grey, False, "", 0.0, "", "", {})
        black = [torch.zeros(2, channels, size, size)]
        seen = remember_convolutions(model, black, patch_side(size)) if config.recover.match == "bn+conv" else {}
        found.append(Teacher(model, card, seen))
    return tuple(found)


def _seconds(teachers: tuple[Teacher, ...], config: RunConfig, size: int) -> float:
    """Seconds of a step with `size` images: the median of each teacher's, and the mean of those."""
    turns = len(teachers)
    steps = (STEPS + 1) * turns
    job = Job(config.seed, resolve(config.runtime))
    classes = len(teachers[0].card.classes)
    group = Group(tuple((i % classes, i // classes) for i in range(size)), Schedule(steps, steps, (size,)))
    task = PackTask(teachers, [group], None, config.recover, frozenset(), (), steps, job)
    times: list[list[float]] = []
    while sum(map(sum, times)) < LEAST:
        times.append(_timed(task, job, steps))
    return statistics.fmean(statistics.median(taken for own in times for taken in own[turns + turn :: turns]) for turn in range(turns))


def _timed(task: PackTask, job: Job, steps: int) -> list[float]:
    """Seconds of each of the first steps."""
    step, times = Step(task, job.device), []
    state = step.begin()
    with settings(job.runtime), step:
        for state.t in range(steps):
            begun = time.perf_counter()
            step.enter_stage(state)
            step(state)[0].sum().item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
    return times
