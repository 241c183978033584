"""Recover: optimise the starting images so that the teacher knows their class and meets its own layer statistics.

    loss = cross-entropy + bn_weight * sum over BatchNorm layers |var - running_var| + |mean - running_mean|

Several teachers take turns, one per iteration; convolutions' statistics and data densification join the loss where a
method has them (G-VBSM, arXiv 2311.17950); stages blend the images with their start (FADRM).

EarlyLate (DELT, arXiv 2411.19946): sub-batches join every round_iterations, newcomers are optimised in the same forward
and backward pass as those running. The unit of work is a pack of groups: it has random streams of its own, checkpoints
of its own, and a finished file of its own, so the result does not depend on who computes what and when.
"""

from __future__ import annotations

import io
import math
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from delt import storage
from delt.artifacts.ranking import Patches
from delt.artifacts.snapshots import Frame, Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RecoverConfig
from delt.data.augment import axis_operator, draw_boxes, warp
from delt.data.images import denormalise, normalise
from delt.densification import densification
from delt.errors import ConfigError, DeltError, Stopped, unknown
from delt.grouping import Group, make_groups, packs
from delt.models.statistics import StatisticsMatch, patch_side
from delt.models.zoo import require_side
from delt.runtime import Emit, Job, autocast, device_of, laid_out, resolve, settings, stream
from delt.schedule import Schedule, learning_rate, plan, smallest_crop

EPS = 1e-8  # of Adam
RECORD_BYTES = 64 * 2**20  # of snapshots, where the configuration does not say how many classes


def recover(
    teacher: Teacher, patches: Patches, config: RecoverConfig, job: Job | None = None, others: Sequence[Teacher] = ()
) -> SyntheticSet:
    """Optimise the starting images of every class; the result carries its history as `snapshots`.

    Where the job's listener raises `Stopped`, the current step is finished, a checkpoint written, and the images are
    returned as they are, with `complete` False.

    Args:
        teacher: frozen network with BatchNorm2d layers; its card holds the normalisation.
        patches: starting images, `ipc` per class, or noise.
        config: what to minimise and when; see `RecoverConfig`.
        others: more teachers of the same classes and images; iteration t asks the (t mod n)-th of all.

    Raises:
        ConfigError: the schedule does not fit (`delt.schedule.plan`), or convolutions are to be matched that no teacher
            remembers (`delt.stages.squeeze.remember`).
        DeltError: a loss is not finite; names group and iteration.
    """
    job = job or Job()
    runtime = resolve(job.runtime)
    config = replace(config, flip=teacher.card.flip if config.flip is None else config.flip)
    schedule = plan(config.iterations, patches.ipc, config.round_iterations, config.sub_batches)
    teachers = (teacher, *others)
    if config.match == "bn+conv" and not all(one.convolutions for one in teachers):
        raise ConfigError("recover_match is bn+conv, but a teacher remembers no convolutions: call squeeze.remember(teacher, real)")
    if not schedule.iterations:
        return _collect(teacher, patches, schedule, {}, _starting_pixels(teacher, patches, job.seed), job.seed)
    if config.stages > 1:
        for one in teachers:
            require_side(one.model, one.card.arch, one.card.channels, small_side(one.card.size, config))
    groups = make_groups(
        len(teacher.card.classes),
        schedule,
        config.grouping,
        config.group_size,
        config.group_cut,
        config.drop_empty_rounds,
        config.group_rounds,
    )
    job.emit({"stage": "recover", "total": sum(group.schedule.image_iterations for group in groups), "unit": "img-it"})
    local = Job(job.seed, runtime, job.work, watch=job.watch)  # the pool and the listener stay with this process
    shortest = min(group.schedule.iterations for group in groups)
    marks = record_iterations(config, schedule.iterations, shortest)
    classes = recorded_classes(config, teacher, patches.ipc * (len(marks) + 1))
    tasks = [
        PackTask(teachers, pack, patches.of(interleaved(pack)), config, classes, marks, schedule.iterations, local)
        for pack in packs(groups, runtime.packing or 1)
    ]
    units = job.map(recover_pack, tasks)
    images = torch.empty(_shape(teacher, patches.ipc), dtype=torch.uint8)
    for task, unit in zip(tasks, units, strict=True):
        images[task.places(patches.ipc)] = unit.images
    done = {group: unit.iterations for task, unit in zip(tasks, units, strict=True) for group in task.groups}
    synthetic = _collect(teacher, patches, schedule, done, images, job.seed)
    complete = all(done[group] == group.schedule.iterations for group in groups)
    return replace(synthetic, complete=complete, snapshots=_snapshots(tasks, units, schedule))


def small_side(size: int, config: RecoverConfig) -> int:
    """Pixels per side of the images in the small stages, of a set of this size."""
    return max(1, round(size * config.small_side))


def recorded_classes(config: RecoverConfig, teacher: Teacher, images: int) -> frozenset[int]:
    """Labels of the classes that are recorded, where one takes `images` images: those named, or what fits the budget.

    Raises:
        ConfigError: a name that is no class, with the nearest that is.
    """
    known = teacher.card.classes
    for name in config.record_classes:
        if name not in (*known, "none"):
            raise unknown("class to record", name, known)
    if config.record_classes:
        return frozenset(known.index(name) for name in config.record_classes if name in known)
    one = images * teacher.card.channels * teacher.card.size**2
    return frozenset(range(min(10, max(1, RECORD_BYTES // one))))


def record_iterations(config: RecoverConfig, iterations: int, shortest: int) -> tuple[int, ...]:
    """Iterations whose images, before their update, are recorded; the finished images come on top.

    Raises:
        ConfigError: an iteration at or after the end.
    """
    if config.record_iterations:
        if max(config.record_iterations) >= iterations:
            raise ConfigError(f"recover_record_iterations has {max(config.record_iterations)}; allowed are 0 to {iterations - 1}")
        return tuple(sorted(config.record_iterations))
    count = min(config.record_count, shortest + 1) - 1
    return tuple(iterations * k // count for k in range(count))


def interleaved(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(class, image) of each row of a pack: image i of group g at i * G + g."""
    return [member for row in zip(*(group.members for group in groups), strict=True) for member in row]


@dataclass
class PackTask:
    """Everything that one unit of work needs; travels to a worker process."""

    teachers: tuple[Teacher, ...]
    groups: list[Group]
    start: Tensor | None  # uint8 [n*G,C,H,W], image i of group g at i*G+g; None: noise
    config: RecoverConfig
    classes: frozenset[int]  # whose images are recorded
    record_at: tuple[int, ...]  # iterations of the whole run
    iterations: int  # of the whole run; a group may have fewer
    job: Job

    @property
    def teacher(self) -> Teacher:
        """The first: all have its classes, size and normalisation."""
        return self.teachers[0]

    @property
    def schedule(self) -> Schedule:
        return self.groups[0].schedule

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


@dataclass
class Unit:
    """A pack that is finished, or stopped before: images and recorded snapshots in the task's row order."""

    images: Tensor  # uint8 [n*G,C,H,W]
    recorded: Tensor  # uint8 [S,R,C,H,W]
    iterations: int  # that were done
    readings: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class State:
    """The optimisation at iteration t: normalised images [N,C,H,W], Adam's two moments, and the averages of statistics."""

    images: Tensor
    first: Tensor
    second: Tensor
    recorded: list[Tensor] = field(default_factory=list)
    readings: list[dict[str, Any]] = field(default_factory=list)
    past: dict[int, Tensor] = field(default_factory=dict)  # of each teacher that was asked
    t: int = 0

    def save(self, slots: storage.Slots) -> None:
        """Write a checkpoint; refuses values that are not finite, so that a good one is never replaced by a bad one."""
        if not torch.isfinite(self.images).all():
            raise DeltError(f"recover: pixels are not finite at iteration {self.t}; lower recover_lr")
        tensors = {"images": self.images, "first": self.first, "second": self.second}
        tensors |= {f"recorded/{s}": images for s, images in enumerate(self.recorded)}
        tensors |= {f"past/{turn}": value for turn, value in self.past.items()}
        slots.save(tensors, {"t": self.t, "readings": self.readings})

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        device = self.images.device
        self.images, self.first, self.second = (tensors[name].to(device) for name in ("images", "first", "second"))
        self.past = {int(name[5:]): value.to(device) for name, value in tensors.items() if name.startswith("past/")}
        self.recorded = [tensors[f"recorded/{s}"] for s in range(sum(name.startswith("recorded/") for name in tensors))]
        self.readings, self.t = meta["readings"], meta["t"]


def recover_pack(task: PackTask, emit: Emit) -> Unit:
    """Optimise one pack from its start or its newest checkpoint; a finished pack is its own last checkpoint."""
    slots = storage.Slots(task.job.work / task.name) if task.job.work else None
    saved = slots.load() if slots else None
    if saved and saved[1].get("finished"):
        emit({"stage": "recover", "done": task.schedule.image_iterations * len(task.groups)})
        return Unit(saved[0]["images"], saved[0]["recorded"], task.schedule.iterations, saved[1]["readings"])
    unit = _optimise(task, emit, slots, saved)
    if slots and unit.iterations == task.schedule.iterations:
        slots.save({"images": unit.images, "recorded": unit.recorded}, {"readings": unit.readings, "finished": True})
    return unit


def _optimise(task: PackTask, emit: Emit, slots: storage.Slots | None, saved: tuple[dict[str, Tensor], dict[str, Any]] | None) -> Unit:
    step = Step(task, device_of(task.job.runtime))
    state = step.begin()
    if saved:
        state.load(*saved)
    pulse = Pulse(emit, (lambda: step.frame(state)) if task.job.watch else None, _work_until(task.schedule, state.t) * len(task.groups))
    with settings(task.job.runtime), step:
        try:
            _steps(step, state, pulse, slots)
        except Stopped:  # a listener's word, which comes between two steps
            if slots and state.t:
                state.save(slots)
    return step.finish(state)


def _steps(step: Step, state: State, pulse: Pulse, slots: storage.Slots | None) -> None:
    """Take the steps from `state.t` to the end; the pulse may raise `Stopped` between two of them."""
    task, marks, clock = step.task, Counter(step.task.marks), time.monotonic()
    pulse.beat(0, now=True)
    for t in range(state.t, task.schedule.iterations):
        if t in marks:
            state.recorded += [step.watched_pixels(state)] * marks[t]
        step.enter_stage(state)
        if step.active(t):  # none before the first join of a group without early images
            losses = step(state)
            if t in marks:
                state.readings.extend(step.readings(t, losses))
        state.t = t + 1
        if slots and time.monotonic() - clock > task.job.runtime.checkpoint_seconds:
            state.save(slots)
            clock = time.monotonic()
        pulse.beat(step.active(t))
    pulse.beat(0, now=True)


class Step:
    """One iteration: augment the active images, measure the loss, take Adam's step, clamp to valid pixels.

    Statistics are measured inside its `with` block.
    """

    def __init__(self, task: PackTask, device: torch.device) -> None:
        self.task, self.device, self.card = task, device, task.teacher.card
        self.teachers = [teacher.to(device) for teacher in task.teachers]
        self.config, self.schedule, self.runtime = task.config, task.schedule, task.job.runtime
        self.groups = len(task.groups)
        self.labels = torch.tensor([c for c, _ in task.members], device=device)
        depth = [k for k in self.schedule.sub_batch_of for _ in task.groups]
        self.depth = torch.tensor(depth)
        self.joins = torch.tensor([self.schedule.joins[k] for k in depth], device=device).view(-1, 1, 1, 1)
        self.watched = task.watched.to(device)
        shape = (1, self.card.channels, 1, 1)
        mean, std = torch.tensor(self.card.mean).view(shape), torch.tensor(self.card.std).view(shape)
        self.low, self.high = (-mean / std).to(device), ((1 - mean) / std).to(device)
        self.last: tuple[int, tuple[Tensor, Tensor]] | None = None  # the newest iteration and its losses
        self.start = _start(task).to(device)
        self.stages = [self.schedule.iterations * k // self.config.stages for k in range(self.config.stages)]  # their first iterations
        self.matches = [self.match(teacher) for teacher in self.teachers]
        self.hooks = ExitStack()
        self.classmates: dict[int, list[Tensor]] = {}  # active images -> rows of each class, those with as many images together

    def __enter__(self) -> Step:
        for match in self.matches:
            self.hooks.enter_context(match)
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.close()

    def match(self, teacher: Teacher) -> StatisticsMatch:
        """What measures the statistics of a teacher."""
        config = self.config
        return StatisticsMatch(
            teacher.model,
            self.groups,
            config.first_bn_multiplier,
            convolutions=teacher.convolutions if config.match == "bn+conv" else None,
            side=patch_side(self.card.size),
            average=config.average,
            from_zero=config.average_start == "zero",
        )

    def begin(self) -> State:
        """The state before the first iteration."""
        return State(self.start.clone(), torch.zeros_like(self.start), torch.zeros_like(self.start))

    def side(self, t: int) -> int:
        """Pixels per side of the images at iteration t: every other stage is small, the last is full."""
        size, left = self.card.size, len(self.stages) - bisect(self.stages, t)
        return small_side(size, self.config) if left % 2 else size

    def enter_stage(self, state: State) -> None:
        """Where a stage begins: resize the images, blend those in work with their start, and forget Adam's moments (FADRM)."""
        t = state.t
        if len(self.stages) == 1 or t not in self.stages:
            return
        start, images = resized(self.start, self.side(t)), resized(state.images.detach(), self.side(t))
        count = self.active(t - 1) if t else 0
        state.images = torch.cat([images[:count].lerp(start[:count], self.config.residual), start[count:]])
        state.first, state.second = torch.zeros_like(state.images), torch.zeros_like(state.images)

    def active(self, t: int) -> int:
        """Images that are optimised at iteration t, over all groups of the pack."""
        return self.groups * sum(self.schedule.sizes[: self.schedule.active(t)])

    def __call__(self, state: State) -> tuple[Tensor, Tensor]:
        """Take step `state.t`; return cross-entropy per image [N] and statistics distance per group [G]."""
        t, count = state.t, self.active(state.t)
        turn = t % len(self.teachers)
        images = state.images[:count].requires_grad_()
        views = self.augment(images, t)
        with autocast(self.runtime):
            logits = self.teachers[turn].model(laid_out(views, self.runtime))
        entropy = F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, self.labels[:count], reduction="none")
        distance = self.distance(turn, state)
        loss = (entropy.unflatten(0, (-1, self.groups)).mean(0) + self.config.bn_weight * distance).sum()
        if self.config.densify:
            loss = loss + self.config.densify * self.densification(views)
        (gradient,) = torch.autograd.grad(loss, images)
        with torch.no_grad():
            self.adam(state, gradient, count)
        losses = entropy.detach(), distance.detach()
        self.last = t, losses
        return losses

    def distance(self, turn: int, state: State) -> Tensor:
        """Statistics distance per group [G] of the teacher that was asked, whose moving average goes on from the state's."""
        match = self.matches[turn]
        match.past = state.past.get(turn)
        distance = match.collect(self.dropped(match, state.t))
        if match.past is not None:
            state.past[turn] = match.past
        return distance

    def dropped(self, match: StatisticsMatch, t: int) -> Tensor | None:
        """Which convolutions each group leaves out at iteration t, bool [G, convolutions]; None where that is never done."""
        if not self.config.drop:
            return None
        streams = [stream(self.task.job.seed, "drop", group.key, t) for group in self.task.groups]
        return torch.stack([torch.rand(len(match.convolutions), generator=draws) < self.config.drop for draws in streams])

    def densification(self, views: Tensor) -> Tensor:
        """Data densification of the active images, summed over groups and their classes."""
        if len(views) not in self.classmates:
            classes: dict[tuple[int, int], list[int]] = {}
            for row, label in enumerate(self.labels[: len(views)].tolist()):
                classes.setdefault((row % self.groups, label), []).append(row)
            alike: dict[int, list[list[int]]] = {}
            for rows in classes.values():
                alike.setdefault(len(rows), []).append(rows)
            self.classmates[len(views)] = [torch.tensor(rows, device=self.device) for rows in alike.values()]
        return torch.stack([densification(views, rows).sum() for rows in self.classmates[len(views)]]).sum()

    def augment(self, images: Tensor, t: int) -> Tensor:
        """Crop, mirror and shift: one draw per group and iteration (per sub-batch too where each has its own clock)."""
        rows, cols = self.operators(t)
        grouped = images.unflatten(0, (-1, self.groups))
        if self.config.clock == "own":
            depth = torch.tensor(self.schedule.sub_batch_of)[: len(grouped)]
            rows, cols = rows[depth], cols[depth]
        return warp(grouped, rows.to(images.device), cols.to(images.device)).flatten(0, 1)

    def operators(self, t: int) -> tuple[Tensor, Tensor]:
        """Axis operators of iteration t, [K,G,H,H] and [K,G,W,W], with K = 1 or the active sub-batches."""
        clocks = self.clocks(t)
        drawn = [self.draw(group, t, k, *clock) for k, clock in enumerate(clocks) for group in self.task.groups]
        boxes, flips, shifts = (torch.stack(column) for column in zip(*drawn, strict=True))
        top, left, height, width = boxes.unbind(1)
        size, shape = self.side(t), (len(clocks), self.groups)
        rows = axis_operator(top, height, size, shift=shifts[:, 0])
        cols = axis_operator(left, width, size, flips, shifts[:, 1])
        return rows.unflatten(0, shape), cols.unflatten(0, shape)

    def clocks(self, t: int) -> list[tuple[int, int]]:
        """(iterations done, iterations in all) that set rate and crop: one for all, or one per active sub-batch."""
        if self.config.clock == "global":
            return [(t, self.schedule.iterations)]
        joins = self.schedule.joins[: self.schedule.active(t)]
        return [(t - join, self.schedule.iterations - join) for join in joins]

    def draw(self, group: Group, t: int, k: int, done: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Box [4], mirror and shifts [2] of a group at iteration t."""
        config, generator = self.config, stream(self.task.job.seed, "recover", group.key, t, k)
        least = smallest_crop(done, total, config.min_crop, config.curriculum, config.milestone)
        box = self.draw_shift(t, generator) if config.pad else draw_boxes(1, self.side(t), least, generator)[0]
        flip = torch.rand((), generator=generator) < 0.5 if config.flip else torch.tensor(False)
        return box, flip, torch.randint(config.jitter + 1, (2,), generator=generator)

    def draw_shift(self, t: int, generator: torch.Generator) -> Tensor:
        """Box [4] of full size, up to `pad` pixels off."""
        pad, side = self.config.pad, self.side(t)
        return torch.cat([torch.randint(-pad, pad + 1, (2,), generator=generator), torch.tensor([side, side])])

    def adam(self, state: State, gradient: Tensor, count: int) -> None:
        """Adam without weight decay on the first `count` images; a sub-batch's step count starts when it joins, and with each stage."""
        config, t = self.config, state.t
        begun = self.stages[bisect(self.stages, t) - 1]
        joins = self.joins[:count].clamp_min(begun) if config.adam_steps == "sub_batch" else torch.full_like(self.joins[:count], begun)
        first, second = state.first[:count], state.second[:count]
        first.lerp_(gradient, 1 - config.beta1)
        second.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
        steps = (t + 1 - joins).to(gradient.dtype)
        rate = self.rates(t, count).to(gradient) / (1 - config.beta1**steps)
        scale = (second / (1 - config.beta2**steps)).sqrt_().add_(EPS)
        images = state.images.detach()[:count]
        images.sub_(rate * first / scale)
        torch.clamp(images, self.low, self.high, out=images)

    def rates(self, t: int, count: int) -> Tensor:
        """Learning rate [1] or, with a clock per sub-batch, [count,1,1,1]."""
        rates = torch.tensor([learning_rate(done, total, self.config.lr) for done, total in self.clocks(t)])
        return rates if len(rates) == 1 else rates[self.depth[:count]].view(-1, 1, 1, 1)

    def watched_pixels(self, state: State) -> Tensor:
        """The recorded images as they are now, uint8 [R,C,H,W] on the CPU."""
        images = resized(state.images.detach()[self.watched], self.card.size)
        return denormalise(images, self.card.mean, self.card.std).cpu()

    def frame(self, state: State) -> Frame:
        """What a listener that watches gets to see."""
        depth, rows = self.depth.tolist(), self.task.watched.tolist()
        labels = tuple(self.task.members[row][0] for row in rows)
        images = self.watched_pixels(state).numpy()
        active = self.active(self.last[0]) if self.last else 0
        readings = list(self.readings(*self.last)) if self.last else []
        return Frame(state.t, self.task.iterations, images, labels, tuple(depth[row] for row in rows), active, len(depth), readings)

    def finish(self, state: State) -> Unit:
        """The images as they are in the pixels that are kept."""
        if not torch.isfinite(state.images).all():
            raise DeltError(f"recover: pixels of group {self.task.groups[0].key} are not finite; lower recover_lr")
        images = kept_pixels(resized(state.images.detach(), self.card.size), self.card.mean, self.card.std, self.config.save)
        return Unit(images, torch.stack([*state.recorded, images[self.task.watched]]), state.t, state.readings)

    def readings(self, t: int, losses: tuple[Tensor, Tensor]) -> Iterator[dict[str, Any]]:
        """Loss terms at iteration t, one row per group; cross-entropy per sub-batch (None: it is empty), statistics are joint."""
        entropy, distance = (part.cpu() for part in losses)
        sizes = self.schedule.sizes[: self.schedule.active(t)]
        for g, group in enumerate(self.task.groups):
            own = entropy.unflatten(0, (-1, self.groups))[:, g]
            value = distance[g].item()
            if not math.isfinite(value) or not torch.isfinite(own).all():
                raise DeltError(f"recover: group {group.key} has a loss that is not finite at iteration {t}; lower recover_lr")
            per_sub_batch = [round(part.mean().item(), 6) if len(part) else None for part in own.split(sizes)]
            yield {"stage": "recover", "group": group.key, "iteration": t, "cross_entropy": per_sub_batch, "bn": round(value, 6)}


@dataclass
class Pulse:
    """Reports finished image-iterations a few times per second, with a frame where somebody watches."""

    emit: Emit
    look: Callable[[], Frame] | None = None
    every: ClassVar[float] = 0.25  # seconds
    pending: int = 0
    last: float = 0.0

    def beat(self, amount: int, now: bool = False) -> None:
        self.pending += amount
        if now or time.monotonic() - self.last > self.every:
            seen = {"frame": self.look()} if self.look else {}
            self.emit({"stage": "recover", "done": self.pending, **seen})
            self.pending, self.last = 0, time.monotonic()


def _work_until(schedule: Schedule, t: int) -> int:
    """Image-iterations of a group before iteration t."""
    spans = zip(schedule.sizes, schedule.joins, strict=True)
    return sum(size * max(0, t - join) for size, join in spans)


def _start(task: PackTask) -> Tensor:
    """The normalised images [N,C,H,W] that a pack starts from."""
    card = task.teacher.card
    return _noise(task.teacher, task.members, task.job.seed) if task.start is None else normalise(task.start, card.mean, card.std)


def resized(images: Tensor, side: int) -> Tensor:
    """Float images [N,C,H,W] at `side` pixels, bilinear; untouched where they have that size."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def _noise(teacher: Teacher, members: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """Standard normal images [n,C,H,W] in normalised space, each from a stream of its own."""
    card = teacher.card
    shape = (card.channels, card.size, card.size)
    return torch.stack([torch.randn(shape, generator=stream(seed, "noise", c, i)) for c, i in members])


def _starting_pixels(teacher: Teacher, patches: Patches, seed: int) -> Tensor:
    """The starting images of all classes, uint8 [K*ipc,C,H,W]; of noise what fits into pixels."""
    if patches.images is not None:
        return patches.images
    members = [(c, i) for c in range(len(teacher.card.classes)) for i in range(patches.ipc)]
    return denormalise(_noise(teacher, members, seed), teacher.card.mean, teacher.card.std)


def kept_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], how: str) -> Tensor:
    """The uint8 pixels on the CPU that are kept of normalised images: rounded, or truncated and through JPEG (published)."""
    if how == "png":
        return denormalise(images, mean, std).cpu()
    shape = (1, -1, 1, 1)
    pixels = (images * images.new_tensor(std).view(shape) + images.new_tensor(mean).view(shape)) * 255
    return torch.stack([jpeg75(image) for image in pixels.clamp(0, 255).to(torch.uint8).cpu()])


def jpeg75(image: Tensor) -> Tensor:
    """A uint8 image [C,H,W] after JPEG at Pillow's default quality."""
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "JPEG", quality=75)
    back = np.array(Image.open(buffer))
    return torch.from_numpy(back if back.ndim == 3 else back[..., None]).permute(2, 0, 1)


def _shape(teacher: Teacher, ipc: int) -> tuple[int, int, int, int]:
    card = teacher.card
    return (len(card.classes) * ipc, card.channels, card.size, card.size)


def _collect(teacher: Teacher, patches: Patches, schedule: Schedule, done: Mapping[Group, int], images: Tensor, seed: int) -> SyntheticSet:
    """The set of these images; `done` holds the iterations of each group, which may be fewer than the class's."""
    classes, depth = teacher.card.classes, torch.tensor(schedule.sub_batch_of)
    iterations = torch.zeros(len(images), dtype=torch.long)
    for group, end in done.items():
        for (c, i), k in zip(group.members, group.schedule.sub_batch_of, strict=True):
            iterations[c * patches.ipc + i] = max(0, end - group.schedule.joins[k])
    return SyntheticSet(
        images=images,
        labels=torch.arange(len(classes)).repeat_interleave(patches.ipc),
        classes=classes,
        sub_batch=depth.repeat(len(classes)),
        iterations=iterations,
        source=patches.sources,
        seed=seed,
    )


def _snapshots(tasks: list[PackTask], units: list[Unit], schedule: Schedule) -> Snapshots:
    """Put the recorded images and the loss readings of all packs side by side."""
    iterations, members, recorded = [], [], []
    longest = max(len(unit.recorded) for unit in units)
    for task, unit in zip(tasks, units, strict=True):
        shots = [*range(len(unit.recorded)), *[-1] * (longest - len(unit.recorded))]  # one that was stopped early stays as it is
        marks = [*task.marks[: len(unit.recorded) - 1], unit.iterations]
        iterations.append(torch.tensor(marks)[shots].unsqueeze(1).expand(-1, len(task.watched)))
        recorded.append(unit.recorded[shots])
        members += [task.members[row] for row in task.watched.tolist()]
    labels = torch.tensor([c for c, _ in members], dtype=torch.long)
    depth = torch.tensor([schedule.sub_batch_of[i] for _, i in members], dtype=torch.long)
    readings = [reading for unit in units for reading in unit.readings]
    return Snapshots(torch.cat(recorded, 1), torch.cat(iterations, 1), labels, depth, readings)
