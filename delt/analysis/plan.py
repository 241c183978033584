"""Plan before you pay: what a run will compute, write and take, stage by stage, before any of it is done.

Work and operations are arithmetic over the configuration; hours are that work times rates (delt.analysis.rates).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from delt.analysis.rates import Rates, flop, labelling, measured, read_bench
from delt.analysis.space import Shape, needed, rooms
from delt.analysis.speed import duration, groups_of
from delt.analysis.table import aligned
from delt.checks import check_plan
from delt.config import RunConfig
from delt.data.load import count_images
from delt.engine.memory import ENOUGH
from delt.engine.pixels import small_side
from delt.grouping import packs
from delt.methods import control_of
from delt.recipes import recipe_of
from delt.runtime import resolve
from delt.stages.evaluate import epochs_of, students_of
from delt.stages.squeeze import backbones

GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Row:
    """One stage, controls included."""

    stage: str
    work: int
    unit: str
    flop: float
    disk: int  # bytes that it leaves
    phases: tuple[tuple[float, ...], ...]  # seconds of its units of work, which are dealt whole; a set comes after the other
    shared: float = 0.0  # seconds of work that all processes do together, in ideal shares
    alone: float = 0.0  # seconds that the first process needs, whatever their number
    once: bool = False  # its units are for ranks alone: worker processes of one rank leave them to it

    def seconds(self, ranks: int, workers: int = 1) -> float:
        """With so many ranks, and so many worker processes in each."""
        processes = ranks if self.once else ranks * workers
        return sum(makespan(units, processes) for units in self.phases) + self.shared / ranks + self.alone


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    rows: tuple[Row, ...]
    workers: int  # processes that share the work of one rank
    gpu: bool
    memory: int | None  # bytes of recover in one process, at the packing below
    packing: int
    disk: int  # bytes at most, while it works
    notes: tuple[str, ...]

    def seconds(self, ranks: int = 1, workers: int | None = None) -> float:
        """Of the whole run."""
        return sum(row.seconds(ranks, workers or self.workers) for row in self.rows)

    def table(self) -> str:
        """All of it for people."""
        unit, units = ("GPU", "GPUs") if self.gpu else ("process", "processes")
        here = [] if self.gpu else [f"as configured ({self.workers} worker{'s' * (self.workers > 1)})"]
        heads = ["stage", "work", "operations", "disk", *here, *(f"{count} {unit if count == 1 else units}" for count in GPUS)]
        cells = [
            [row.stage, f"{row.work:,} {row.unit}", quantity(row.flop, "FLOP"), quantity(row.disk, "B")]
            + [duration(row.seconds(1, self.workers)) for _ in here]
            + [duration(row.seconds(count)) for count in GPUS]
            for row in self.rows
        ]
        total = ["all", "", quantity(sum(row.flop for row in self.rows), "FLOP"), quantity(sum(row.disk for row in self.rows), "B")]
        total += [duration(self.seconds()) for _ in here] + [duration(self.seconds(count, 1)) for count in GPUS]
        memory = "not known" if self.memory is None else quantity(self.memory, "B")
        facts = [f"memory of recover in one {unit} with {self.packing} group{'s' * (self.packing > 1)} side by side: {memory}"]
        return aligned(heads, [*cells, total], [*facts, f"disk while it works: at most {quantity(self.disk, 'B')}", *self.notes])


def plan_of(config: RunConfig, machine: str = "here") -> Plan:
    """What a run of this configuration will take.

    Args:
        machine: `here`, where some real steps are timed, or whose bench results count: see `rates.read_bench`.

    Raises:
        ConfigError: a schedule that does not fit; results of no machine.
        DeltError: what a run would refuse, too, as far as it can be told without opening the data set (`delt.checks`).
    """
    classes, channels, size = check_plan(config)
    train, test = count_images(config.dataset, config.data)
    shape = Shape(classes, channels, size, train)
    parts = [config, *filter(None, (control_of(config, name) for name in config.evaluate.controls))]
    here = machine == "here"
    rates = measured(config, shape) if here else read_bench(machine, config, shape)
    gpu = rates.gpu
    packing = packing_of(config, shape, rates, gpu)
    workers = 1 if gpu else resolve(config.runtime).workers or 1
    stages = (squeeze_row, rank_row, recover_row, relabel_row, evaluate_row)
    rows = tuple(stage(parts, shape, rates, packing, test) for stage in stages)
    notes = ["training is shared ideally; packs and students are dealt whole, the dearest first", *rates.notes]
    if any(own.weights == "train" for own in backbones(config.teacher).values()):
        notes.append("a teacher that stands in the cache takes no time")
    room = [(rooms(part, shape), ()) for part in parts]
    memory = rates.memory if rates.memory is None else int(rates.memory * _largest(config, shape, packing) / max(rates.recover.images))
    notes = [f"rates of {rates.where}", *notes] if here else notes
    return Plan(rows, workers, gpu, memory, packing, needed(room), tuple(notes))


def squeeze_row(parts: Sequence[RunConfig], shape: Shape, rates: Rates, packing: int, test: int) -> Row:
    """Train the teachers, or load them, and test them."""
    work, operations, seconds = 0, 0.0, 0.0
    for name, own in backbones(parts[0].teacher).items():
        one = flop(own.arch, own.width, shape.classes, shape.channels, shape.size)
        images = own.epochs * shape.images if own.weights == "train" else 0
        work += images + test
        operations += one * (3 * images + test)
        seconds += images * rates.train.get(name, 0.0) + test * rates.look
    return Row("squeeze", work, "images", operations, rooms(parts[0], shape)["squeeze"].kept * len(parts), (), shared=seconds)


def rank_row(parts: Sequence[RunConfig], shape: Shape, rates: Rates, packing: int, test: int) -> Row:
    """Score the candidates."""
    work, scored, phases, one = 0, 0, [], _teacher_flop(parts[0], shape)
    for part in parts:
        own = part.rank
        if own.keep in ("noise", "given"):
            continue
        each = -(-shape.images // shape.classes)
        images = min(each, own.images or each) * shape.classes
        looked = images * max(1, own.crops) if own.crops or own.keep != "random" else 0
        work, scored = work + images, scored + looked
        phases.append((looked * rates.look / shape.classes,) * shape.classes)
    return Row("rank", work, "images", one * scored, sum(rooms(part, shape)["rank"].kept for part in parts), tuple(phases), once=True)


def recover_row(parts: Sequence[RunConfig], shape: Shape, rates: Rates, packing: int, test: int) -> Row:
    """Optimise the images, pack by pack; the first process puts them into files."""
    work, operations, phases, images = 0, 0.0, [], 0
    for part in parts:
        groups, share = groups_of(part, shape.classes), _small(part, shape)
        own = sum(group.schedule.image_iterations for group in groups)
        work, images = work + own, images + part.ipc * shape.classes
        operations += 2 * own * share * _mean_flop(part, shape)
        phases.append(tuple(share * rates.recover.synthesis(pack, len(pack)) for pack in packs(groups, packing)))
    disk = sum(rooms(part, shape)["recover"].kept for part in parts)
    return Row("recover", work, "image-iterations", operations, disk, tuple(phases), alone=images * rates.write)


def relabel_row(parts: Sequence[RunConfig], shape: Shape, rates: Rates, packing: int, test: int) -> Row:
    """Store soft labels, where they are stored."""
    stored = [part for part in parts if part.relabel.mode == "stored"]
    work = sum(part.relabel.epochs * part.ipc * shape.classes for part in stored)
    labels = _label_flop(parts[0], shape)
    look = rates.look * labels / _teacher_flop(parts[0], shape)
    phases = tuple((part.ipc * shape.classes * look,) * part.relabel.epochs for part in stored)
    disk = sum(rooms(part, shape)["relabel"].kept for part in parts)
    return Row("relabel", work, "images", work * labels, disk, phases, once=True)


def evaluate_row(parts: Sequence[RunConfig], shape: Shape, rates: Rates, packing: int, test: int) -> Row:
    """Train and test the students of all sets, and those of the whole real set."""
    config = parts[0]
    recipe = recipe_of(config.evaluate.recipe, config.dataset, shape.size, config.ipc)
    work, operations, pieces = 0, 0.0, list[float]()
    for arch, width in students_of(config.evaluate, config.teacher.arch, config.teacher.width):
        one, images = flop(arch, width, shape.classes, shape.channels, shape.size), config.ipc * shape.classes
        epochs = epochs_of(config.evaluate, recipe, arch, shape.classes, images)
        kinds = [(labels, images, epochs) for _ in parts for labels in config.evaluate.labels]
        kinds += [("full", shape.images, recipe.full_epochs)] if config.evaluate.full else []
        for labels, count, passes in kinds * config.evaluate.seeds:
            online = labels == "soft" and config.relabel.mode == "online"
            tests = sum(recipe.tests(epoch, passes) for epoch in range(passes)) * test
            work += count * passes
            operations += one * ((3 + recipe.double_forward) * count * passes + tests)
            operations += online * count * passes * _label_flop(config, shape)
            pieces.append(count * passes * rates.student[arch, width, labels] + tests * rates.student_look[arch, width])
    return Row("evaluate", work, "images", operations, rooms(config, shape)["evaluate"].kept, (tuple(pieces),))


def makespan(costs: Iterable[float], processes: int) -> float:
    """Seconds until all units are done, dealt to processes one by one, the dearest first, each to whoever is free."""
    free = [0.0] * max(1, processes)
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def packing_of(config: RunConfig, shape: Shape, rates: Rates, gpu: bool) -> int:
    """Groups side by side: as configured, or on a GPU as many as make it no faster (a run also asks for the memory at hand)."""
    groups = groups_of(config, shape.classes)
    if config.runtime.packing or not gpu or not groups:
        return config.runtime.packing or 1
    largest = max(len(group.members) for group in groups)
    most = max(max(rates.recover.images), ENOUGH // shape.size**2) // largest
    return max(1, min(len(groups), most))


def _largest(config: RunConfig, shape: Shape, packing: int) -> int:
    """Images of the largest pack."""
    groups = groups_of(config, shape.classes)
    return max((sum(len(group.members) for group in pack) for pack in packs(groups, packing)), default=1)


def _teacher_flop(config: RunConfig, shape: Shape) -> int:
    return flop(config.teacher.arch, config.teacher.width, shape.classes, shape.channels, shape.size)


def _label_flop(config: RunConfig, shape: Shape) -> int:
    """Of an image through all teachers that label it."""
    every = labelling(config, shape.size)
    return sum(flop(own.arch, own.width, shape.classes, shape.channels, shape.size) for own in every)


def _mean_flop(config: RunConfig, shape: Shape) -> float:
    """Of the teachers, which take turns."""
    found = [flop(own.arch, own.width, shape.classes, shape.channels, shape.size) for own in backbones(config.teacher).values()]
    return sum(found) / len(found)


def _small(config: RunConfig, shape: Shape) -> float:
    """Share of the pixels that is left where every other stage works on small images."""
    stages, side = config.recover.stages, small_side(shape.size, config.recover)
    return 1 - (stages // 2) / stages * (1 - (side / shape.size) ** 2)


def quantity(number: float, unit: str) -> str:
    """A number with the prefix that makes it short.

    >>> quantity(3.14e15, "FLOP")
    '3.14 PFLOP'
    """
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
