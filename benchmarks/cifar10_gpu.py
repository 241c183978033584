"""CIFAR-10 with ResNet-18 on a GPU, from raw pixels to a table, in minutes: every choice made on a split of the training set.

    python -m benchmarks.cifar10_gpu --data DIR --minutes 12       # an H200 had four rows of IPC 50 after 4.4 minutes

DIR holds cifar10_train.npz, or its lossy twin cifar10_train_jpeg.npz (42 dB, for a machine that takes little data), and
cifar10_test.npz. A tenth of the training images is held out: teachers, patches and syntheses never see it, the recipe is chosen
on it, and the test images are used once, at the end. What takes too long is left out and named. The core alone is used: no
notebook packages. Results go to --out (default benchmarks/results/cifar10_gpu.json) after every step.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from delt.analysis.diversity import diversity
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import EvaluateConfig, RankConfig, RecoverConfig, RuntimeConfig, TeacherConfig
from delt.data.images import DataInfo, RealSet, TensorImages
from delt.data.specs import DATASETS
from delt.engine.pack import PackTask
from delt.engine.step import Step
from delt.grouping import make_groups
from delt.job import Job
from delt.recipes import RECIPES, recipe_of
from delt.runtime import machine, resolve, settings, synchronise
from delt.schedule import plan
from delt.stages.evaluate import run_students, student_tasks
from delt.stages.rank import rank
from delt.stages.recover import recover
from delt.stages.squeeze import make_teacher
from delt.storage import write_json

RESULTS = Path(__file__).parent / "results" / "cifar10_gpu.json"
TEACHER = TeacherConfig(epochs=60, batch=512, lr=0.4)
HELD_OUT = 10  # one in so many
TEST_EVERY = 100  # epochs of `common`: a test takes as long as a hundred steps
GENERAL = recipe_of("common")  # in the form that holds where nothing else is said
CANDIDATES = {
    "kl-300": replace(GENERAL, name="kl-300"),
    "kl-1000": replace(GENERAL, name="kl-1000", epochs=1000),
    "kl-1000-batch-statistics": replace(GENERAL, name="kl-1000-batch-statistics", epochs=1000, label_statistics="batch"),
    "mse-1000": replace(GENERAL, name="mse-1000", epochs=1000, loss="mse+ce", ce_weight=0.1),
}


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


def synthesis(method: str, ipc: int, teacher: Teacher, real: RealSet, job: Job, **changes: Any) -> tuple[SyntheticSet, dict[str, Any]]:
    """The images of a method and the seconds of ranking and recovering."""
    keep = {"delt": "medium", "cda": "noise", "random": "random"}[method]
    begun = time.monotonic()
    patches = rank(teacher, real, RankConfig(keep=keep, images=0 if method == "random" else 300), ipc, job)
    ranked = time.monotonic()
    config = RecoverConfig(record_classes=("none",), record_count=2, **changes)
    if method == "random":
        config = replace(config, iterations=0)
    if method == "cda":
        config = replace(config, sub_batches=1, grouping="mixed", jitter=4)
    made = recover(teacher, patches, config, job)
    synchronise(job.device)
    done = time.monotonic()
    work = int(made.iterations.sum())
    facts = {"method": method, "ipc": ipc, "rank_s": ranked - begun, "recover_s": done - ranked, "image_iterations": work}
    card = teacher.card
    alike = dict(diversity(made.images, made.labels, card.classes, teacher.to(job.device), card.mean, card.std, job.device))
    return made, {**facts, "cosine": alike["mean"]}


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


class Table:
    """What was found so far: printed line by line, and written after each."""

    def __init__(self, path: Path, facts: dict[str, Any], clock: Clock) -> None:
        self.path, self.clock = path, clock
        self.record: dict[str, Any] = {**facts, "syntheses": [], "rows": [], "left_out": []}

    def keep(self, **values: Any) -> None:
        self.record |= values
        self.record["seconds"] = round(self.clock.seconds, 1)
        write_json(self.path, self.record)

    def say(self, text: str) -> None:
        print(f"{self.clock.seconds:7.1f} s  {text}", flush=True)


@dataclass(frozen=True)
class Row:
    """Students to train: on which set, how, how many, and what they are tested on."""

    method: str
    ipc: int
    recipe: str
    labels: str = "soft"
    seeds: int = 3
    held_out: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        where = "held out" if self.held_out else "test"
        return f"{self.method:<7} IPC {self.ipc:<3} {self.recipe:<28} {self.labels}  {where}{self.note}"


def students(
    table: Table, rows: list[Row], sets: dict[Any, SyntheticSet], teacher: Teacher, tests: tuple[Any, Any], job: Job
) -> list[float]:
    """Train the students of some rows side by side, and keep the rows; returns their mean accuracies."""
    begun, tasks = time.monotonic(), []
    for row in rows:
        config = EvaluateConfig(recipe=row.recipe, labels=(row.labels,), seeds=row.seeds)
        soft = SoftLabels(teacher, row.recipe)
        name = f"{row.method}{row.note}"
        synthetic = sets[row.method, row.ipc]
        tasks.append(student_tasks(synthetic, soft, tests[row.held_out], config, replace(job, seed=0), name=name))
    scores = iter(run_students([task for own in tasks for task in own], job))
    seconds = (time.monotonic() - begun) / sum(map(len, tasks))
    means = []
    for row, own in zip(rows, tasks, strict=True):
        found = [next(scores) for _ in own]
        values, best = [score.last for score in found], [score.best for score in found]
        updates = own[0].score.epochs * -(-len(own[0].train) // own[0].batch)
        facts = {"last": values, "best": best, "updates": updates, "batch": own[0].batch, "seconds_per_student": seconds}
        table.record["rows"].append({**asdict(row), **facts})
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        means.append(statistics.fmean(values))
        text = f"{row.name}: {means[-1]:.2f} ± {spread:.2f} (best epoch {statistics.fmean(best):.2f})"
        table.say(f"{text}  {updates:,} updates, {seconds:.1f} s per student")
    table.keep()
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--choose", action="store_true", help="also the forms that `common` was chosen from, on the held-out images")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few images: that the script runs")
    options = parser.parse_args()
    clock = Clock(options.minutes)
    runtime = resolve(RuntimeConfig(device=options.device, workers=1))
    device = Job(0, runtime).device
    real, held_out, source = opened(options.data, device)
    teacher_config, iterations, seeds, ipcs = TEACHER, 4000, 3, (50, 10)
    if options.smoke:
        teacher_config = replace(TEACHER, epochs=1, width=4)
        real.train = TensorImages(real.train.pixels[:2000], real.train.labels[:2000])
        real.test = TensorImages(real.test.pixels[:200], real.test.labels[:200])
        iterations, seeds, ipcs = 8, 2, (3, 2)
        for name, recipe in (*CANDIDATES.items(), *((name, RECIPES[name]) for name in ("paper:delt", "common"))):
            CANDIDATES[name] = RECIPES[name] = replace(recipe, epochs=1, cases=())
        del CANDIDATES["paper:delt"], CANDIDATES["common"]
    RECIPES.update(CANDIDATES)
    RECIPES["common"] = replace(RECIPES["common"], test_every=TEST_EVERY)
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(runtime), "train": source}
    table = Table(options.out, {**facts, "held_out": len(held_out), "published": {"delt 10": 43.0, "delt 50": 64.9}}, clock)
    job = Job(0, runtime)

    def step(what: str, needs: float, work: Callable[[], Any]) -> Any:
        """Do one thing, where there is time for it; what fails is named and the rest goes on."""
        if clock.left() < needs:
            table.record["left_out"].append(what)
            table.say(f"left out for lack of time: {what}")
            return None
        try:
            return work()
        except Exception as error:
            traceback.print_exc()
            table.record["left_out"].append(f"{what}: {error}")
            table.keep()
            return None

    begun = time.monotonic()
    teacher = make_teacher(real, teacher_config, job)
    took = time.monotonic() - begun
    table.say(f"teacher: {teacher.card.accuracy:.2f} % after {teacher_config.epochs} epochs, {took:.1f} s")
    table.keep(teacher={**asdict(teacher_config), "accuracy": teacher.card.accuracy, "seconds": took, "images": len(real.train)})
    found = step("gradients", 10, lambda: gradients(teacher, real, runtime))
    for row in found or ():
        table.say("gradient  {precision}: error {error:.4f}, cosine {cosine:.5f}, same sign {same_sign:.4f}".format(**row))
    table.keep(gradients=found)

    sets: dict[tuple[str, int], SyntheticSet] = {}

    def make(method: str, ipc: int) -> None:
        changes = {"iterations": iterations} | ({"sub_batches": 2} if options.smoke and method == "delt" else {})
        sets[method, ipc], facts = synthesis(method, ipc, teacher, real, job, **changes)
        table.record["syntheses"].append(facts)
        table.say("{method} IPC {ipc}: ranking {rank_s:.2f} s, recover {recover_s:.2f} s, cosine {cosine:.3f}".format(**facts))
        table.keep()

    for ipc in ipcs:
        for method in ("delt", "random"):
            step(f"synthesis {method} {ipc}", 20, lambda method=method, ipc=ipc: make(method, ipc))
    # a machine on which recordings fail still gives its numbers, slower
    modes = [job, replace(job, runtime=replace(runtime, graphs="off"))]

    def worked(known: list[Row]) -> list[float]:
        while True:
            try:
                return students(table, known, sets, teacher, (real.test, held_out), modes[0])
            except Exception:
                if len(modes) == 1:
                    raise
                traceback.print_exc()
                modes.pop(0)

    def train(seconds: float, *rows: Row) -> list[float] | None:
        """Train the students of these rows, which take about so many seconds."""
        known = [row for row in rows if (row.method, row.ipc) in sets]
        needs = 0.0 if options.smoke or not known else seconds
        names = "; ".join(row.name for row in known)
        return step(names, needs, lambda: worked(known)) if known else None

    large, small = ipcs
    both = ("delt", "random")
    if options.choose:
        names = list(CANDIDATES)
        found = train(60, *(Row("delt", large, name, seeds=1, held_out=True) for name in names))
        if found:
            best = max(zip(found, names, strict=True))[1]
            table.say(f"best on the held-out images: {best}")
            table.keep(chosen=best)
    three = (*both, "cda")
    train(80, *(Row(method, large, "common", seeds=seeds) for method in both))
    train(30, *(Row(method, large, "paper:delt", seeds=seeds) for method in both))
    for ipc in ipcs:
        step(f"synthesis cda {ipc}", 30, lambda ipc=ipc: make("cda", ipc))
    train(50, *(Row(method, small, recipe, seeds=seeds) for recipe in ("common", "paper:delt") for method in three))
    train(60, Row("cda", large, "common", seeds=seeds), Row("cda", large, "paper:delt", seeds=seeds))
    train(50, *(Row(method, large, "common", "hard", seeds) for method in both))
    train(35, *(Row(method, small, "common", "hard", seeds) for method in three))
    for precision in () if options.smoke else ("fp32", "bf16"):
        own = resolve(replace(runtime, precision=precision, memory_format="auto", packing=None))

        def again(own: RuntimeConfig = own) -> None:
            sets[own.precision, small], about = synthesis("delt", small, teacher, real, Job(0, own), iterations=iterations)
            table.record["syntheses"].append({**about, "precision": own.precision})

        step(f"synthesis delt {small} in {precision}", 40, again)
        train(10, Row(precision, small, "paper:delt", seeds=seeds))
    table.keep()
    table.say("done")


if __name__ == "__main__":
    main()
