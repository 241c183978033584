"""Recover: optimise the starting images so that the teacher knows their class and meets its own layer statistics.

    loss = cross-entropy + bn_weight * sum over BatchNorm layers |var - running_var| + |mean - running_mean|

Several teachers take turns, one per iteration; convolutions' statistics and data densification join the loss where a
method has them (G-VBSM, arXiv 2311.17950); stages blend the images with their start (FADRM).

EarlyLate (DELT, arXiv 2411.19946): sub-batches join every round_iterations, newcomers are optimised in the same forward
and backward pass as those running. The unit of work is a pack of groups: it has random streams of its own, checkpoints
of its own, and a finished file of its own, so the result does not depend on who computes what and when.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from delt import storage
from delt.artifacts import cache
from delt.artifacts.ranking import Patches
from delt.artifacts.snapshots import Frame, Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RecoverConfig
from delt.data.images import denormalise
from delt.engine.memory import fitted
from delt.engine.pack import PackTask, Unit
from delt.engine.pixels import noise, small_side
from delt.engine.step import State, Step
from delt.errors import ConfigError, DataError, Stopped, unknown
from delt.grouping import Group, make_groups, packs
from delt.job import Job
from delt.models.zoo import require_side
from delt.runtime import Emit, device_of, resolve, settings
from delt.schedule import Schedule
from delt.signals import heeded
from delt.typed import typed

RECORD_BYTES = 64 * 2**20  # of snapshots, where the configuration does not say how many classes


@typed
def recover(
    teacher: Teacher, patches: Patches, config: RecoverConfig, job: Job | None = None, others: Sequence[Teacher] = ()
) -> SyntheticSet:
    """Optimise the starting images of every class; the result carries its history as `snapshots`.

    Where the job's listener raises `Stopped`, or Ctrl-C or a notebook's stop button does, the current step is finished, a
    checkpoint written, and the images are returned as they are, with `complete` False. SIGTERM ends a program of your own
    after that checkpoint.

    Args:
        teacher: frozen network with BatchNorm2d layers; its card holds the normalisation.
        patches: starting images, `ipc` per class, or noise.
        config: what to minimise and when; see `RecoverConfig`.
        others: more teachers of the same classes and images; iteration t asks the (t mod n)-th of all.

    Raises:
        ConfigError: the schedule does not fit (`delt.schedule.plan`), or convolutions are to be matched that no teacher
            remembers (`delt.stages.squeeze.remember`).
        DataError: there are more or fewer starting images than the teacher's classes ask for, or they are of another size.
        DeltError: a loss is not finite; names group and iteration.
    """
    job, teachers = job or Job(), (teacher, *others)
    _check_start(teacher, patches)
    tasks = packs_of(teachers, patches.ipc, config, job)
    schedule = config.schedule(patches.ipc)
    if not tasks:
        return _collect(teacher, patches, schedule, {}, _starting_pixels(teacher, patches, job.seed), job.seed)
    images, units = cache.pixels(_shape(teacher, patches.ipc)), []
    for task, unit in zip(tasks, units_of(tasks, patches, job), strict=True):
        images[task.places(patches.ipc)] = unit.images
        units.append(replace(unit, images=torch.empty(0)))  # all of a large set would not fit into memory
    done = {group: unit.iterations for task, unit in zip(tasks, units, strict=True) for group in task.groups}
    synthetic = _collect(teacher, patches, schedule, done, images, job.seed)
    complete = all(end == group.schedule.iterations for group, end in done.items())
    return replace(synthetic, complete=complete, snapshots=_snapshots(tasks, units, schedule))


def _check_start(teacher: Teacher, patches: Patches) -> None:
    """Refuse starting images of other classes or another size than the teacher's."""
    here, classes, shape = len(patches.sources), len(teacher.card.classes), _shape(teacher, patches.ipc)
    if here != shape[0]:
        raise DataError(f"there are {here} starting images; {patches.ipc} for each of the teacher's {classes} classes are needed")
    if patches.pixels is not None and patches.pixels.shape != shape:
        raise DataError(f"the starting images are {list(patches.pixels.shape)}, the teacher's {list(shape)}: rank them with this teacher")


def packs_of(teachers: tuple[Teacher, ...], ipc: int, config: RecoverConfig, job: Job) -> list[PackTask]:
    """The units of work of a synthesis, without the images that they start from; none where nothing is optimised.

    Raises:
        ConfigError: as `recover`.
    """
    teacher = teachers[0]
    config = replace(config, flip=teacher.card.flip if config.flip is None else config.flip)
    groups = groups_of(config, len(teacher.card.classes), ipc)
    if not groups:
        return []
    if config.match == "bn+conv" and not all(one.convolutions for one in teachers):
        raise ConfigError("recover_match is bn+conv, but a teacher remembers no convolutions: call squeeze.remember(teacher, real)")
    if config.stages > 1:
        for one in teachers:
            require_side(one.model, one.card.arch, one.card.channels, small_side(one.card.size, config))
    runtime = fitted(resolve(job.runtime), teacher, groups)
    local = Job(job.seed, runtime, job.work, watch=job.watch)  # the pool and the listener stay with this process
    marks = record_iterations(config, config.iterations, min(group.schedule.iterations for group in groups))
    classes = recorded_classes(config, teacher, ipc * (len(marks) + 1))
    return [
        PackTask(teachers, pack, None, config, classes, marks, config.iterations, local) for pack in packs(groups, runtime.packing or 1)
    ]


def units_of(tasks: Sequence[PackTask], patches: Patches, job: Job) -> Iterator[Unit]:
    """Optimise the packs, or find them finished: yields their results one after the other, in ranks that follow none."""

    def ready(task: PackTask) -> PackTask:
        unit = finished(task)
        return replace(task, unit=unit) if unit else replace(task, start=patches.of(task.members))

    with heeded(passed_on=True) as reins:
        emit = reins.guard(job.emit)
        with contextlib.suppress(Stopped):  # then every pack finds it raised before its first step
            emit({"stage": "recover", "total": sum(task.image_iterations for task in tasks), "unit": "img-it"})
        yield from replace(job, emit=emit).each(recover_pack, tasks, ready, lambda task: task.image_iterations)


def groups_of(config: RecoverConfig, classes: int, ipc: int) -> list[Group]:
    """The groups that are optimised of `classes` classes with `ipc` images each; none where nothing is."""
    schedule = config.schedule(ipc)
    if not schedule.iterations:
        return []
    how = (config.grouping, config.group_size, config.group_cut, config.drop_empty_rounds, config.group_rounds)
    return make_groups(classes, schedule, *how)


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


def recover_pack(task: PackTask, emit: Emit) -> Unit:
    """Optimise one pack from its start or its newest checkpoint; a finished pack is its own last checkpoint."""
    if task.unit:
        emit({"stage": "recover", "done": task.image_iterations})
        return task.unit
    slots = _slots(task)
    unit = _optimise(task, emit, slots)
    if slots and unit.iterations == task.schedule.iterations:
        slots.save({"images": unit.images, "recorded": unit.recorded}, {"readings": unit.readings, "finished": True}, last=True)
    return unit


def finished(task: PackTask) -> Unit | None:
    """The result of a pack that was finished before, from its file."""
    slots = _slots(task)
    saved = slots.load() if slots else None
    if saved is None or not saved[1].get("finished"):
        return None
    return Unit(saved[0]["images"], saved[0]["recorded"], task.schedule.iterations, saved[1]["readings"])


def _slots(task: PackTask) -> storage.Slots | None:
    return storage.Slots(task.job.work / task.name) if task.job.work else None


def _optimise(task: PackTask, emit: Emit, slots: storage.Slots | None) -> Unit:
    step = Step(task, device_of(task.job.runtime), emit)
    state = step.begin()
    if slots and (saved := slots.load()):
        state.load(*saved)
    pulse = Pulse(emit, (lambda: step.frame(state)) if task.job.watch else None, _work_until(task.schedule, state.t) * len(task.groups))
    with settings(task.job.runtime), step:
        try:
            _steps(step, state, pulse, slots)
        except Stopped:  # a listener's word, which comes between two steps
            if slots and state.t:
                step.settle(state)
                state.save(slots)
    return step.finish(state)


def _steps(step: Step, state: State, pulse: Pulse, slots: storage.Slots | None) -> None:
    """Take the steps from `state.t` to the end; the pulse may raise `Stopped` between two of them."""
    task, marks, joins, clock = step.task, Counter(step.task.marks), set(step.schedule.joins), time.monotonic()
    pulse.beat(0, now=True)
    for t in range(state.t, task.schedule.iterations):
        if t in marks:
            state.recorded += [step.watched_pixels(state)] * marks[t]
        step.enter_stage(state)
        if step.active(t):  # none before the first join of a group without early images
            losses = step(state)
            if t in marks:
                step.note(t, losses)
        state.t = t + 1
        if step.device.type == "cpu" or state.t in joins:
            step.settle(state)
        if slots and time.monotonic() - clock > task.job.runtime.checkpoint_seconds:
            step.settle(state)
            state.save(slots)
            clock = time.monotonic()
        pulse.beat(step.active(t))
    pulse.beat(0, now=True)


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


def _starting_pixels(teacher: Teacher, patches: Patches, seed: int) -> Tensor:
    """The starting images of all classes, uint8 [K*ipc,C,H,W]; of noise what fits into pixels."""
    if patches.images is not None:
        return patches.images
    members = [(c, i) for c in range(len(teacher.card.classes)) for i in range(patches.ipc)]
    return denormalise(noise(teacher, members, seed), teacher.card.mean, teacher.card.std)


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
