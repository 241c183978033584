"""CIFAR-10 with ResNet-18 on a GPU, from raw pixels to a table, in minutes: every choice made on a split of the training set.

    python -m benchmarks.cifar10_gpu --data DIR --minutes 12 --choose --state DIR

DIR holds cifar10_train.npz, or its lossy twin cifar10_train_jpeg.npz (42 dB, for a machine that takes little data), and
cifar10_test.npz. A tenth of the training images is held out: teachers, patches and syntheses never see it, the teacher's length,
the form of `common` and the settings of delt are chosen on it (--choose), and the test images for no choice. Rows come in the order in
which they tell most; what takes too long is left out and named, and the same command with the same --state does it later.
The core alone is used: no notebook packages. Results go to --out (default benchmarks/results/cifar10_gpu.json) after every step.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import delt
from delt.analysis.diversity import diversity
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import EvaluateConfig, RankConfig, RecoverConfig, RunConfig, RuntimeConfig, TeacherConfig
from delt.data.images import DataInfo, Images, RealSet, TensorImages
from delt.data.specs import DATASETS
from delt.engine.pack import PackTask
from delt.engine.step import Step
from delt.grouping import make_groups
from delt.job import Job
from delt.methods import METHODS
from delt.recipes import RECIPES, recipe_of
from delt.runtime import machine, resolve, settings, synchronise
from delt.schedule import plan
from delt.stages.evaluate import BESIDE, StudentTask, run_students, student_tasks
from delt.stages.rank import rank
from delt.stages.recover import recover
from delt.stages.squeeze import backbones, make_teacher, remember
from delt.storage import read_tensors, write_json, write_tensors

RESULTS = Path(__file__).parent / "results" / "cifar10_gpu.json"
LONG, SHORT = "60 epochs", "30 epochs"
TEACHERS = {name: TeacherConfig(epochs=int(name.split()[0]), batch=512, lr=0.4) for name in (LONG, SHORT)}
FORMS: dict[str, dict[str, Any]] = {  # of `common`, beside the one that it has
    "common": {},
    "common, smaller crops": {"smallest_crop": 0.25},
    "common, twice the rate": {"lr": 2e-3, "warmup": 50},  # narrow networks want four to eight times as much (benchmarks/LOG.md)
    "common, four times the rate": {"lr": 4e-3, "warmup": 50},
}
HOWS: dict[str, dict[str, Any]] = {  # settings of delt's synthesis, of which none were published for 32 px (benchmarks/LOG.md)
    "published": {},  # for 224 px
    "gentle": {"recover_lr": 0.02, "recover_bn_weight": 1.0, "recover_min_crop": 0.5},
}
HELD_OUT = 10  # one in so many
TEST_EVERY = 100  # epochs of `common`: a test takes as long as a hundred steps
OTHERS = ("rded", "kmeans", "fadrm", "herding", "sre2l", "gvbsm")
FIXED = ("train", "images", "held_out", "settings", "device")  # what a run that goes on must find as it was
STEP, TEST = 35e-6, 0.1  # seconds of a student's step for each image, and of a test, as far as they were measured (benchmarks/LOG.md)
SMALL = 40  # images of a step whose launches take as long as its arithmetic


class Clock:
    """Seconds since the start, and whether there is time left."""

    def __init__(self, minutes: float) -> None:
        self.begun, self.limit = time.monotonic(), 60 * minutes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float:
        return self.limit - self.seconds


def strips(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N,3,32,32] and labels [N] from image strips in an npz file."""
    packed = np.load(path)
    names = sorted(name for name in packed.files if name.startswith("strip_"))
    parts = [np.asarray(Image.open(io.BytesIO(packed[name].tobytes())).convert("RGB")) for name in names]
    pixels = torch.from_numpy(np.concatenate(parts).reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(packed["labels"].astype(np.int64))


def opened(folder: Path, device: torch.device) -> tuple[RealSet, TensorImages, str]:
    """Nine tenths of the training images with the test images; the held-out tenth; which file the training images are from."""
    spec = DATASETS["cifar10"]
    source = next((folder / name for name in ("cifar10_train.npz", "cifar10_train_jpeg.npz") if (folder / name).is_file()), None)
    if source is None:
        raise SystemExit(f"no cifar10_train.npz or cifar10_train_jpeg.npz in {folder}: give --data FOLDER")
    pixels, labels = strips(source)
    held = torch.arange(len(labels)) % HELD_OUT == 0
    test_pixels, test_labels = strips(folder / "cifar10_test.npz")
    info = DataInfo("cifar10", tuple(spec.classes or ()), 3, 32, tuple(spec.mean or ()), tuple(spec.std or ()), True, 90.0)
    train, held_out = (TensorImages(pixels[rows].to(device), labels[rows]) for rows in (~held, held))
    return RealSet(info, train, TensorImages(test_pixels.to(device), test_labels), ""), held_out, source.name


def gradients(teacher: Teacher, real: RealSet, runtime: RuntimeConfig) -> list[dict[str, Any]]:
    """How far the gradient of a step is from that of fp32, in each arithmetic, with this teacher on median patches."""
    patches = rank(teacher, real, RankConfig(images=300), 50, Job(0, runtime))
    schedule = plan(4000, 50)
    (group, *_) = make_groups(10, schedule)
    found: dict[str, Tensor] = {}
    for precision in ("fp32", "bf16") if Job(0, runtime).device.type == "cpu" else ("fp32", "tf32", "fp16", "bf16"):
        given = {"precision": precision, "train_precision": "fp32", "memory_format": "auto", "compile": "off", "graphs": "off"}
        own = resolve(replace(runtime, packing=1, **given))
        start = patches.of([member for member in group.members])
        task = PackTask((teacher,), [group], start, RecoverConfig(flip=True), frozenset(), (), 4000, Job(0, own))
        step = Step(task, Job(0, own).device)
        with settings(own), step:
            state = step.begin()
            found[precision] = step.gradient(state, step.inputs(3600), 3600, step.active(3600))[0].double()
    exact = found["fp32"]
    return [
        {
            "precision": name,
            "error": ((value - exact).norm() / exact.norm()).item(),
            "cosine": F.cosine_similarity(value.flatten(), exact.flatten(), 0).item(),
            "same_sign": (value.sign() == exact.sign()).double().mean().item(),
        }
        for name, value in found.items()
    ]


class Source(NamedTuple):
    """What a set depends on."""

    method: str
    ipc: int
    teacher: str = LONG
    precision: str = ""
    how: str = "published"

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part)


@dataclass(frozen=True)
class Row:
    """Students to train: on which set, how, how many, and what they are tested on."""

    method: str
    ipc: int
    recipe: str
    labels: str = "soft"
    seeds: int = 3
    held_out: bool = False
    teacher: str = LONG
    precision: str = ""  # of the synthesis, where it is not the usual one
    form: str = ""  # of `common`, where it is not the one that it has
    how: str = ""  # which of `HOWS` the synthesis has; where nothing is said, the one that was chosen

    @property
    def source(self) -> Source:
        """The set."""
        return Source(self.method, self.ipc, self.teacher, self.precision, self.how)

    @property
    def name(self) -> str:
        where = f"held out, teacher of {self.teacher}" if self.held_out else "test"
        how = "" if self.how == "published" else self.how
        return f"{self.method:<9} IPC {self.ipc:<3} {self.recipe:<28} {self.labels}  {where} {self.precision} {how}".rstrip()


class Table:
    """What was found so far: printed line by line, written after each, and read again by the same command."""

    def __init__(self, paths: Sequence[Path], facts: dict[str, Any], clock: Clock) -> None:
        self.paths, self.clock = paths, clock
        self.record: dict[str, Any] = {**facts, "teachers": {}, "syntheses": [], "rows": []}
        if paths[-1].is_file():
            known, given = json.loads(paths[-1].read_text()), json.loads(json.dumps(facts))
            if differ := [name for name in FIXED if known[name] != given[name]]:
                raise SystemExit(f"{paths[-1].parent} is of another run ({', '.join(differ)} differ): choose another --state, or delete it")
            self.record |= known
        self.record |= {"left_out": []}
        self.before = self.record.get("seconds", 0.0)

    def keep(self, **values: Any) -> None:
        self.record |= values
        self.record["seconds"] = round(self.before + self.clock.seconds, 1)
        for path in self.paths:
            write_json(path, self.record)

    def say(self, text: str) -> None:
        print(f"{self.clock.seconds:7.1f} s  {text}", flush=True)

    def accuracy(self, row: Row) -> float | None:
        """The mean of a row's students; None where there are none yet."""
        wanted = asdict(row)
        found = (known["last"] for known in self.record["rows"] if all(known[name] == value for name, value in wanted.items()))
        return next(map(statistics.fmean, found), None)


class Bench:
    """Teachers, sets and students on one machine: what was made is kept in a folder, so that the same command goes on."""

    def __init__(self, real: RealSet, held_out: TensorImages, table: Table, job: Job, state: Path, shorter: dict[str, Any]) -> None:
        self.real, self.held_out, self.table, self.job, self.state = real, held_out, table, job, state
        self.shorter = shorter  # settings of a trial run
        self.sets: dict[Source, SyntheticSet] = {}
        self.teachers: dict[str, Teacher] = {}

    @property
    def chosen(self) -> str:
        """The teacher of the table's rows."""
        return str(self.table.record.get("chosen", {}).get("teacher", LONG))

    def form(self, recipe: str) -> str:
        """The form of `common` in the table's rows, where one was chosen."""
        return str(self.table.record.get("chosen", {}).get("form", "")) if recipe == "common" else ""

    def how(self, method: str) -> str:
        """How the method's syntheses are set: a choice is made for delt alone."""
        return str(self.table.record.get("chosen", {}).get("how", "published")) if method == "delt" else "published"

    def source(self, method: str, ipc: int, precision: str = "") -> Source:
        """A set as it was chosen."""
        return Source(method, ipc, self.chosen, precision, self.how(method))

    def step(self, what: str, needs: float, work: Callable[[], Any]) -> Any:
        """Do one thing, where there is time for it; what fails is named and the rest goes on."""
        if self.table.clock.left() < needs:
            self.table.record["left_out"].append(what)
            self.table.say(f"left out for lack of time: {what}")
            return None
        try:
            return work()
        except Exception as error:
            traceback.print_exc()
            self.table.record["left_out"].append(f"{what}: {error}")
            self.table.keep()
            return None

    def teacher(self, name: str, config: TeacherConfig | None = None) -> Teacher:
        """Trained, or as it was left."""
        place = self.place("teacher", name)
        if name not in self.teachers and place.is_file():
            self.teachers[name] = Teacher.load(place)
        if name not in self.teachers:
            config, begun = config or TEACHERS[name], time.monotonic()
            made = self.teachers[name] = make_teacher(self.real, config, self.job)
            took = time.monotonic() - begun
            made.save(self.state, place.stem)
            self.table.say(f"teacher {name}: {made.card.accuracy:.2f} %, {took:.1f} s")
            self.table.record["teachers"][name] = {**asdict(config), "accuracy": made.card.accuracy, "seconds": took}
            self.table.keep()
        return self.teachers[name]

    def place(self, *key: object) -> Path:
        return self.state / f"{'-'.join(str(part).replace(' ', '-') for part in key if part)}.safetensors"

    def configured(self, method: str, ipc: int, how: str) -> RunConfig:
        """The method's own settings for CIFAR-10, with what `how` changes; shorter in a trial, where it optimises at all."""
        own = METHODS[method].settings(DATASETS["cifar10"])
        shorter = {} if own.get("iterations") == 0 else {name: value for name, value in self.shorter.items() if own.get(name) != 1}
        given = {"recover_record_classes": ["none"], "recover_record_count": 2, **HOWS[how], **shorter}
        return delt.configure("cifar10", method=method, ipc=ipc, **given)

    def synthetic(self, source: Source) -> None:
        """Rank and recover, or read what was left."""
        method, ipc, teacher, precision, how = source
        place = self.place(*source)
        names, zeros = self.real.info.classes, torch.zeros(10 * ipc, dtype=torch.int64)
        if place.is_file():
            found, _ = read_tensors(place)
            self.sets[source] = SyntheticSet(found["images"], found["labels"], names, zeros, zeros, ["train"] * len(zeros), 0)
            return
        config = self.configured(method, ipc, how)
        runtime = replace(self.job.runtime, precision=precision, memory_format="auto", packing=None) if precision else self.job.runtime
        job = replace(self.job, runtime=resolve(runtime))
        mine, quarter = self.teacher(teacher), max(1, TEACHERS[LONG].epochs // 4)
        backbone = backbones(replace(config.teacher, epochs=quarter, batch=512, lr=0.4))
        others = [self.teacher(name, own) for name, own in backbone.items() if name != "teacher"]
        if config.recover.match == "bn+conv":
            for one in (mine, *others):
                remember(one, self.real, job)
        begun = time.monotonic()
        patches = rank(mine, self.real, config.rank, ipc, job)
        ranked = time.monotonic()
        made = recover(mine, patches, config.recover, job, tuple(others))
        synchronise(job.device)
        done = time.monotonic()
        card = mine.card
        alike = dict(diversity(made.images, made.labels, card.classes, mine.to(job.device), card.mean, card.std, job.device))
        facts: dict[str, Any] = {**source._asdict(), "precision": job.runtime.precision}
        work = int(made.iterations.sum())
        facts |= {"rank_s": ranked - begun, "recover_s": done - ranked, "image_iterations": work, "cosine": alike["mean"]}
        self.sets[source] = made
        write_tensors(place, {"images": made.images, "labels": made.labels}, {})
        self.table.record["syntheses"].append(facts)
        self.table.say(
            "{method} IPC {ipc} {precision} {how}: ranking {rank_s:.2f} s, recover {recover_s:.2f} s, cosine {cosine:.3f}".format(**facts)
        )
        self.table.keep()

    def make(self, *sources: Source, needs: float = 25) -> None:
        """Syntheses, where there is time (so many seconds each) or they are there."""
        for source in dict.fromkeys(sources):
            if source not in self.sets:
                wanted = 0 if self.place(*source).is_file() else needs
                self.step(f"synthesis {source}", wanted, partial(self.synthetic, source))

    def tasks(self, row: Row) -> list[StudentTask]:
        config = EvaluateConfig(recipe=row.recipe, labels=(row.labels,), seeds=row.seeds)
        soft = SoftLabels(self.teacher(row.teacher), row.recipe)
        test = self.held_out if row.held_out else self.real.test
        return student_tasks(self.sets[row.source], soft, test, config, replace(self.job, seed=0), name=str(row.source))

    def train(self, *rows: Row) -> None:
        """Train the students of some rows side by side, where there is time."""
        known = [row if row.held_out else replace(row, teacher=self.chosen, form=self.form(row.recipe)) for row in rows]
        known = [replace(row, how=row.how or self.how(row.method)) for row in known]
        known = [row for row in known if row.source in self.sets and self.table.accuracy(row) is None]
        while known:  # as many as pass side by side: what is done is kept, and what does not fit leaves room for what does
            count = max(1, BESIDE // known[0].seeds)
            some, known = known[:count], known[count:]
            tasks = [self.tasks(row) for row in some]
            needs = 0.0 if self.shorter else sum(seconds_of(task) for own in tasks for task in own)
            self.step("; ".join(row.name for row in some), needs, partial(self._train, some, tasks))

    def _train(self, rows: list[Row], tasks: list[list[StudentTask]]) -> None:
        begun = time.monotonic()
        scores = iter(run_students([task for own in tasks for task in own], self.job))
        beside = {"students": sum(map(len, tasks)), "seconds": time.monotonic() - begun}
        for row, own in zip(rows, tasks, strict=True):
            found = [next(scores) for _ in own]
            values, best = [score.last for score in found], [score.best for score in found]
            facts = {"last": values, "best": best, "updates": updates(own[0]), "batch": own[0].batch, "together": beside}
            self.table.record["rows"].append({**asdict(row), **facts})
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            text = f"{row.name}: {statistics.fmean(values):.2f} ± {spread:.2f} (best epoch {statistics.fmean(best):.2f})"
            self.table.say(f"{text}  {updates(own[0]):,} updates")
        self.table.say("{students} students in {seconds:.1f} s".format(**beside))
        self.table.keep()


def updates(task: StudentTask) -> int:
    """Steps of a student."""
    return task.score.epochs * -(-len(task.train) // task.batch)


def seconds_of(task: StudentTask) -> float:
    """What a student takes beside five others, about; smaller batches are no quicker."""
    passes = 1 + 0.25 * task.recipe.double_forward
    return STEP * updates(task) * max(SMALL, task.batch) * passes + TEST * task.score.epochs / task.recipe.test_every


def choose(bench: Bench, ipc: int, forms: Sequence[str]) -> None:
    """By one student each of delt on the held-out images: the form of `common`, the teacher's length and how delt is set, each by
    itself, so that all train side by side; no choice as long as one of them has no student.
    """
    if "chosen" in bench.table.record:
        return
    usual = Row("delt", ipc, "common", seeds=1, held_out=True, how="published")
    changed = {
        "form": {form: replace(usual, recipe=form) for form in forms},
        "teacher": {teacher: replace(usual, teacher=teacher) for teacher in TEACHERS},
        "how": {how: replace(usual, how=how) for how in HOWS},
    }
    rows = list(dict.fromkeys(row for those in changed.values() for row in those.values()))
    bench.make(*(row.source for row in rows), needs=60)
    bench.train(*rows)
    found = {row: value for row in rows if (value := bench.table.accuracy(row)) is not None}
    if len(found) == len(rows):
        chosen = {what: max(those, key=lambda name: found[those[name]]) for what, those in changed.items()}
        bench.table.say(f"best on the held-out images: {chosen}")
        bench.table.keep(chosen=chosen)


def fill(bench: Bench, ipcs: tuple[int, int], seeds: int, others: Sequence[str]) -> None:
    """The rows of the table, in the order in which they tell most."""
    large, small = ipcs
    both = ("delt", "random", "delt+rded")
    three = (*both, "cda")
    others_than_fp16 = ("fp32", "bf16")

    def rows(methods: Sequence[str], ipc: int, recipe: str, labels: str = "soft") -> list[Row]:
        return [Row(method, ipc, recipe, labels, seeds) for method in methods]

    bench.make(*(bench.source(method, small) for method in three))
    bench.train(*rows(three, small, "common"), *rows(three, small, "paper:delt"))
    bench.make(*(bench.source(method, large) for method in both))
    bench.train(*rows(("delt", "random"), large, "common"))
    bench.train(*rows(three, small, "common", "hard"))
    bench.make(*(bench.source("delt", small, precision) for precision in others_than_fp16), needs=40)
    bench.train(*(Row("delt", small, "common", seeds=seeds, precision=name) for name in others_than_fp16))
    bench.train(*rows(("delt+rded",), large, "common"), *rows(both, large, "paper:delt"))
    bench.make(bench.source("cda", large))
    bench.train(*rows(("cda",), large, "common"), *rows(("cda",), large, "paper:delt"))
    bench.train(*rows(both, large, "common", "hard"))
    if bench.how("delt") != "published":
        bench.make(*(Source("delt", ipc, bench.chosen) for ipc in ipcs))
        bench.train(
            *(replace(row, how="published") for ipc in ipcs for recipe in ("common", "paper:delt") for row in rows(("delt",), ipc, recipe))
        )
    bench.train(*(Row("delt", small, "paper:delt", seeds=seeds, precision=name) for name in others_than_fp16))
    bench.train(*rows(("cda",), large, "common", "hard"))
    for ipc in (small, large):
        for method in others:
            bench.make(bench.source(method, ipc))
            bench.train(*rows((method,), ipc, "common"), *rows((method,), ipc, "paper:delt"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--state", type=Path, default=Path("runs/cifar10_gpu"), help="where teachers and sets are kept, for the same command to go on"
    )
    parser.add_argument(
        "--choose", action="store_true", help="choose the teacher's length, the form of `common` and delt's settings on the held-out images"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few images: that the script runs")
    options = parser.parse_args(arguments)
    clock = Clock(options.minutes)
    runtime = resolve(RuntimeConfig(device=options.device, workers=1))
    job = Job(0, runtime)
    real, held_out, source = opened(options.data, job.device)
    options.state.mkdir(parents=True, exist_ok=True)
    recipes = {
        form: replace(recipe_of("common", "cifar10", 32, 50), name=form, test_every=TEST_EVERY, **own) for form, own in FORMS.items()
    }
    recipes |= {"paper:delt": RECIPES["paper:delt"]}
    seeds, ipcs, shorter = 3, (50, 10), dict[str, Any]()
    others: Sequence[str] = OTHERS
    if options.smoke:
        real.train = TensorImages(*first(real.train, 2000))
        real.test = TensorImages(*first(real.test, 200))
        seeds, ipcs, others, shorter = 2, (3, 2), ("fadrm",), {"iterations": 8, "sub_batches": 2}
        TEACHERS.update({name: replace(config, epochs=1, width=4) for name, config in TEACHERS.items()})
        recipes = {name: replace(recipe, epochs=1, cases=()) for name, recipe in recipes.items()}
    facts: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(runtime), "train": source}
    trained = {name: asdict(config) for name, config in TEACHERS.items()}
    of_students = {name: asdict(recipe) for name, recipe in recipes.items()}
    facts["settings"] = {"teachers": trained, "shorter": shorter, "hows": HOWS, "recipes": of_students}
    facts["device"] = facts["machine"]["device_name"]
    facts |= {"held_out": len(held_out), "images": len(real.train), "published": {"delt 10": 43.0, "delt 50": 64.9}}
    table = Table((options.out, options.state / "table.json"), facts, clock)
    bench = Bench(real, held_out, table, job, options.state, shorter)
    RECIPES.update(recipes)
    if options.choose:
        choose(bench, ipcs[0], list(FORMS))
        if "chosen" not in table.record:  # rows would have to be trained again once there is a choice
            table.keep()
            table.say("no choice yet: the same command goes on")
            return
    RECIPES["common"] = replace(recipes[table.record.get("chosen", {}).get("form", "common")], name="common")
    if not table.record.get("gradients"):
        found = bench.step("gradients", 60, lambda: gradients(bench.teacher(bench.chosen), real, runtime))
        for row in found or ():
            table.say("gradient  {precision}: error {error:.4f}, cosine {cosine:.5f}, same sign {same_sign:.4f}".format(**row))
        table.keep(gradients=found)
    fill(bench, ipcs, seeds, others)
    table.keep()
    table.say("done")


def first(images: Images, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a set, with their labels."""
    return images.fetch(torch.arange(min(count, len(images)))), images.labels[:count]


if __name__ == "__main__":
    main()
