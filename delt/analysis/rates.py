"""How long does each kind of work take in one process? Measured here in a few seconds, or read from what `delt bench` wrote.

Here, the stages themselves are timed on random images with networks of random weights: the time does not depend on what a
network knows. What is paid once (imports, the first step) is left out.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from delt.analysis.space import Shape
from delt.analysis.speed import Speed, groups_of, measure, stand_ins
from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import png_bytes, writers
from delt.artifacts.teacher import Teacher
from delt.config import RunConfig, TeacherConfig
from delt.data.images import DataInfo, RealSet, TensorImages
from delt.errors import ConfigError
from delt.job import Job
from delt.models.zoo import build
from delt.recipes import recipe_of
from delt.runtime import machine, peak_memory, reset_peak, resolve, settings, silent
from delt.stages.evaluate import StudentTask, students_of, train_student
from delt.stages.rank import units_of
from delt.stages.squeeze import backbones, make_teacher
from delt.training import accuracy

BUDGET = 2e10  # floating-point operations of a measurement, about half a second of a CPU
TRIES = 3  # of a measurement that other work on the machine disturbed
Student = tuple[str, int | None, str]  # architecture, width, kind of labels; or "full", of the whole real set


@dataclass(frozen=True)
class Rates:
    """Seconds of one process for one image of each kind of work."""

    where: str
    recover: Speed  # an iteration, by its images
    train: Mapping[str, float]  # teacher's name -> an image in its training
    look: float  # an image through the first teacher
    student: Mapping[Student, float]  # an image in a student's training
    student_look: Mapping[tuple[str, int | None], float]
    write: float  # an image into its file
    memory: int | None = None  # bytes that recover took, with as many images as were measured at most
    notes: tuple[str, ...] = field(default=())
    gpu: bool = False


def labelling(config: RunConfig, size: int) -> list[TeacherConfig]:
    """The teachers whose labels the recipe of a run asks for."""
    recipe, every = recipe_of(config.evaluate.recipe, config.dataset, size, config.ipc), list(backbones(config.teacher).values())
    return every if recipe.voters == "all" else every[:1]


@functools.lru_cache(64)
def flop(arch: str, width: int | None, classes: int, channels: int, size: int) -> int:
    """Floating-point operations of one image on its way through a network."""
    with torch.device("meta"):
        model = build(arch, classes, channels, size, width)
        model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, channels, size, size))
    return int(counter.get_total_flops())


# ---------------------------------------------------------------------------------------------- here


def measured(config: RunConfig, shape: Shape) -> Rates:
    """Time the stages of this configuration on this machine, in a few seconds."""
    job = Job(config.seed, resolve(config.runtime))
    teachers = stand_ins(config)
    teacher = teachers[0]
    largest = max((len(group.members) for group in groups_of(config, shape.classes)), default=1)
    with settings(job.runtime):
        reset_peak(job.runtime)
        sizes = sorted({max(1, largest // 20), max(1, largest // 4), largest})
        speed = measure(config, sizes, budget=4.0)
        memory = peak_memory(job.runtime)
        students, looks = {}, {}
        for arch, width in students_of(config.evaluate, config.teacher.arch, config.teacher.width):
            looks[arch, width] = _look(build(arch, shape.classes, shape.channels, shape.size, width), shape, config, job)
            for labels in (*config.evaluate.labels, *(("full",) if config.evaluate.full else ())):
                students[arch, width, labels] = _student(teachers, config, shape, (arch, width, labels), job)
        names = backbones(config.teacher)
        trained = {name: _train(replace(config, teacher=own), shape, job) for name, own in names.items() if own.weights == "train"}
        ranked, name = _ranked(teacher, config, shape, job), machine(job.runtime)["device_name"]
        return Rates(name, speed, trained, ranked, students, looks, _write(shape), memory, gpu=job.device.type == "cuda")


def _real(shape: Shape, count: int) -> RealSet:
    """Random images of every class in turn."""
    grey, names = (0.5,) * shape.channels, tuple(map(str, range(shape.classes)))
    info = DataInfo("random", names, shape.channels, shape.size, grey, (0.25,) * shape.channels, True, 0.0)
    return RealSet(info, _random(shape, count), _random(shape, 1), "")


def _random(shape: Shape, count: int) -> TensorImages:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, shape.channels, shape.size, shape.size), dtype=torch.uint8, generator=draws)
    return TensorImages(pixels, (torch.arange(count) % shape.classes).sort().values)


def _count(arch: str, width: int | None, shape: Shape, most: int) -> int:
    """Images of a measurement: as many as the budget allows for a pass forward and back."""
    one = 3 * flop(arch, width, shape.classes, shape.channels, shape.size)
    return max(2, min(most, int(BUDGET / max(1, one))))


def _more(run: Callable[[int], object], first: int = 1, more: int = 2) -> float:
    """Seconds of one more pass: what is paid once does not count, unless the machine is too busy for the difference to show."""
    run(first)
    for _ in range(TRIES):
        begun = time.perf_counter()
        run(first)
        middle = time.perf_counter()
        run(first + more)
        short, long = middle - begun, time.perf_counter() - middle
        if long > short:
            return (long - short) / more
    return long / (first + more)


def _train(config: RunConfig, shape: Shape, job: Job) -> float:
    own = config.teacher
    count = _count(own.arch, own.width, shape, 8 * own.batch)
    real = _real(shape, count)
    batch = min(own.batch, max(2, count))
    return _more(lambda epochs: make_teacher(real, replace(own, batch=batch, epochs=epochs, others=()), job)) / count


def _look(model: torch.nn.Module, shape: Shape, config: RunConfig, job: Job) -> float:
    count = _count(config.teacher.arch, config.teacher.width, shape, 512)
    images, grey = _random(shape, count), (0.5,) * shape.channels
    model.to(job.device)
    return _more(lambda times: [accuracy(model, images, grey, grey, job.device, job.runtime) for _ in range(times)]) / count


def _ranked(teacher: Teacher, config: RunConfig, shape: Shape, job: Job) -> float:
    """Of a candidate, with its class's share of what a class costs."""
    own = config.rank
    if own.keep in ("noise", "given"):
        return _look(teacher.model, shape, config, job)
    fewer = replace(shape, classes=min(shape.classes, 2))
    least, each = config.ipc * own.factor**2, own.images or -(-shape.images // shape.classes)
    per_class = max(least, min(each, _count(config.teacher.arch, config.teacher.width, shape, 600) // 2))
    real = _real(fewer, fewer.classes * per_class)
    tries = max(1, own.crops)

    def run(times: int) -> None:
        for _ in range(times):
            list(units_of(teacher, real, replace(own, images=0), config.ipc, job))

    return _more(run) / (len(real.train) * tries)


def _student(teachers: tuple[Teacher, ...], config: RunConfig, shape: Shape, student: Student, job: Job) -> float:
    arch, width, labels = student
    recipe, whole = recipe_of(config.evaluate.recipe, config.dataset, shape.size, config.ipc), labels == "full"
    batch = recipe.full_batch if whole else recipe.batch(shape.classes, config.ipc, arch)
    count = _count(arch, width, shape, min(shape.images, 8 * batch) if whole else config.ipc * shape.classes)
    if whole:
        recipe, labels = replace(recipe, mix="none", shuffle=1), "hard"
    images, score = _random(shape, count), Score("plan", recipe.name, labels, arch, 0, 1, 0.0, 0.0)
    soft = SoftLabels(teachers[0], "", others=teachers[1:])
    task = StudentTask(score, recipe, arch, width, min(batch, count), images, _random(shape, 1), soft, job)
    passes = max(2, min(20, 512 // count))  # a few images take many, since a pass of them is short
    return _more(lambda epochs: train_student(replace(task, score=replace(score, epochs=epochs)), silent), more=passes) / count


def _write(shape: Shape) -> float:
    """Of an image, compressed into a file's bytes by as many threads as do so here; what the disk takes is not known."""
    image = _random(shape, 1).pixels[0]
    return _more(lambda times: [png_bytes(image) for _ in range(times)], more=30) / writers()


# ---------------------------------------------------------------------------------------------- from a bench


def bench_files() -> dict[str, Path]:
    """Name -> file of the bench results that come with the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "benchmarks" / "results", package / "benchmarks" / "results"):
        if found := {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.json"))}:
            return found
    return {}


def read_bench(machine: str, config: RunConfig, shape: Shape) -> Rates:
    """The rates of another machine, scaled from the nearest size that was measured there by the operations of an image.

    Args:
        machine: a name of `bench_files`, or a file that `delt bench` wrote.

    Raises:
        ConfigError: no such results, or a file that holds none.
    """
    path = bench_files().get(machine, Path(machine))
    try:
        record = json.loads(path.read_text())
        load = min(record["loads"], key=lambda load: abs(math.log(load["load"]["size"] / shape.size)))
        return _scaled(record, load, config, shape)
    except OSError:
        known = ", ".join(["here", *bench_files()])
        raise ConfigError(f"machine is {machine!r}; allowed are {known}, or a file that `delt bench` wrote") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no results of `delt bench` ({error!r}); run it there again") from None


def _scaled(record: dict[str, Any], load: dict[str, Any], config: RunConfig, shape: Shape) -> Rates:
    forward = load["gflop"] * 1e9 / 2  # of the network that was measured; gflop counts the way back to the pixels, too
    name, variant = max(load["variants"].items(), key=lambda item: item[1]["per_s"])

    def ratio(arch: str, width: int | None) -> float:
        return flop(arch, width, shape.classes, shape.channels, shape.size) / forward

    own = config.teacher
    scale = ratio(own.arch, own.width)
    points = sorted({part["images"]: part["seconds"] * scale for part in variant["rounds"]}.items())
    speed = Speed(tuple(images for images, _ in points), tuple(seconds for _, seconds in points))
    trained_there = load.get("training")
    train = 1 / trained_there["teacher_per_s"] if trained_there else 1.5 / variant["full_per_s"]
    soft = 1 / trained_there["student_per_s"] if trained_there else train * 4 / 3
    more = sum(ratio(other.arch, other.width) for other in labelling(config, shape.size)[1:]) * train / 3  # beside the first teacher
    students = {
        (arch, width, labels): ratio(arch, width) * soft + more if labels == "soft" else ratio(arch, width) * train
        for arch, width in students_of(config.evaluate, own.arch, own.width)
        for labels in (*config.evaluate.labels, "full")
    }
    looks = {(arch, width): ratio(arch, width) * train / 3 for arch, width, _ in students}
    trained = {teacher: ratio(one.arch, one.width) * train for teacher, one in backbones(own).items() if one.weights == "train"}
    size = load["load"]["size"]
    there, date = record["machine"]["device_name"], record["date"][:10]
    notes = [f"rates of {there} at {size} px ({name}), measured {date}; images are written as here"]
    alike = abs(scale - 1) <= 0.05
    if not alike:
        notes.append(f"scaled from its {load['load']['arch']} at {size} px by the operations of an image ({scale:.3g} times)")
    if not trained_there:
        notes.append("training was not measured there: a step is taken for 1.5 times an image-iteration of recover, by their operations")
    notes.append("a pass forward is taken for a third of a step in training; what decoding files takes is not counted")
    memory = int(variant["peak_memory"]) if alike else None  # operations do not tell it
    gpu = record["machine"]["device"].startswith("cuda")
    return Rates(there, speed, trained, scale * train / 3, students, looks, _write(shape), memory, tuple(notes), gpu)
