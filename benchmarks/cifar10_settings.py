"""What delt starts from on CIFAR-10, and how it steps: chosen on held-out training images with a network that two cores can train.

    python -m benchmarks.cifar10_settings --data DIR
    python -m benchmarks.cifar10_settings --data DIR --confirm 3
    python -m benchmarks.cifar10_settings --data DIR --recipe '{"lr": 0.004}' --only "rded;random;delt" --out FILE

DIR holds cifar10_train.npz and cifar10_test.npz (see benchmarks.cifar10_gpu). A ResNet-18 of width 8 is teacher and student; the test
images are used to judge the teacher alone. --confirm makes what was chosen, and what it is held against, anew so many times and tests
it on the test images, which nothing was chosen by. --recipe changes fields of the students' recipe: what holds where they learn little
need not hold where they learn more. Eight to fifteen minutes per row on one core, the teacher eleven on two; rows that are in --out are
not done again, so several processes with other --only share the work once there is a teacher. Writes
benchmarks/results/cifar10_settings.json, or cifar10_confirmed.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import delt
from benchmarks.cifar10_gpu import opened
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.teacher import Teacher
from delt.config import EvaluateConfig, RuntimeConfig, TeacherConfig
from delt.data.images import Images, RealSet
from delt.job import Job
from delt.recipes import RECIPES, recipe_of
from delt.runtime import machine, resolve
from delt.stages.evaluate import evaluate
from delt.stages.rank import rank
from delt.stages.recover import recover
from delt.stages.squeeze import make_teacher
from delt.storage import write_json

RESULTS = Path(__file__).parent / "results"
EASY = {"rank_keep": "easy", "rank_crops": 5}  # RDED's patches
STEPS = {"recover_lr": 0.05, "recover_bn_weight": 1.0, "recover_min_crop": 0.5}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # method, and what differs from its own settings
    "random": ("random", {}),
    "kmeans": ("kmeans", {}),
    "rded": ("rded", {}),
    "median images": ("delt", {"iterations": 0}),
    "delt": ("delt", {}),
    "delt, weight .1": ("delt", {"recover_bn_weight": 0.1}),
    "delt, weight 1": ("delt", {"recover_bn_weight": 1.0}),
    "delt, weight 10": ("delt", {"recover_bn_weight": 10.0}),
    "delt, lr .05, weight 1, crops from .5": ("delt", STEPS),
    "random start": ("delt", {"rank_keep": "random"}),
    "random start, lr .05, weight 1, crops from .5": ("delt", {**STEPS, "rank_keep": "random"}),
    "kmeans start": ("delt", {"rank_keep": "kmeans"}),
    "easy images": ("delt", {"rank_keep": "easy"}),
    "easy crops": ("delt", EASY),
    "easy crops, weight 1": ("delt", {**EASY, "recover_bn_weight": 1.0}),
    "easy crops, crops from .5": ("delt", {**EASY, "recover_min_crop": 0.5}),
    "easy crops, lr .05, weight 1, crops from .5": ("delt", {**EASY, **STEPS}),
    "easy crops, lr .02, weight 3, crops from .5": ("delt", {**EASY, **STEPS, "recover_lr": 0.02, "recover_bn_weight": 3.0}),
    "easy crops, lr .01": ("delt", {**EASY, "recover_lr": 0.01}),
}
CHOSEN = "easy crops, lr .02, weight 3, crops from .5"
AT_ONCE = f"{CHOSEN}, one sub-batch"
SETTINGS[AT_ONCE] = ("delt", {**SETTINGS[CHOSEN][1], "sub_batches": 1})
CONFIRMED = (CHOSEN, "rded", AT_ONCE, "random", "delt")
APART = 10  # seeds between two syntheses: students count theirs from their synthesis' own


def measured(
    name: str, teacher: Teacher, real: RealSet, test: Images, job: Job, seeds: int, ipc: int
) -> tuple[list[float], dict[str, Any]]:
    """Top-1 in % on `test` of students with soft labels, after the last epoch, and how their set was made."""
    method, given = SETTINGS[name]
    shorter = (
        {} if delt.methods.METHODS[method].settings(delt.data.specs.DATASETS["cifar10"]).get("iterations") == 0 else {"iterations": 2000}
    )
    none = {"recover_record_classes": ["none"], "recover_record_count": 2}
    config = delt.configure("cifar10", method=method, ipc=ipc, **{**shorter, **none, **given})
    begun = time.monotonic()
    made = recover(teacher, rank(teacher, real, config.rank, ipc, job), config.recover, job)
    seconds, how = time.monotonic() - begun, EvaluateConfig(recipe="common", labels=("soft",), seeds=seeds)
    scores = evaluate(made, SoftLabels(teacher, "common"), test, how, job, name=name)
    return [row.last for row in scores], {"name": name, "method": method, "given": given, "seed": job.seed, "synthesis_s": seconds}


def rows_in(path: Path) -> list[dict[str, Any]]:
    """What is there already."""
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def compared(rows: list[dict[str, Any]]) -> list[str]:
    """Every setting's mean over its syntheses, and how far the chosen one is above it, paired over them (± standard error)."""
    value = {(row["name"], row["seed"]): statistics.fmean(row["test"]) for row in rows}
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [found for (of, _), found in value.items() if of == name]
        gaps = [value[CHOSEN, seed] - found for (of, seed), found in value.items() if of == name != CHOSEN and (CHOSEN, seed) in value]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan
        beside = f"; the chosen one is {statistics.fmean(gaps):+.2f} ± {error:.2f} above it" if gaps else ""
        lines.append(f"{name}: {statistics.fmean(own):.2f} over {len(own)}{beside}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", help="names of rows, with semicolons")
    parser.add_argument("--confirm", type=int, default=0, help="syntheses of each row, tested on the test images")
    parser.add_argument("--seeds", type=int, default=2, help="students per row")
    parser.add_argument("--recipe", type=json.loads, default={}, help="fields of the students' recipe that are others, as JSON")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=500, help="of a student")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--state", type=Path, default=Path("runs/cifar10_settings"), help="where the teacher is kept")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.confirm < 0 or not 1 <= options.seeds <= APART:
        parser.error(f"--confirm is {options.confirm} and --seeds {options.seeds}; allowed are 0 or more, and 1 to {APART}")
    wanted = options.only.split(";") if options.only else list(CONFIRMED if options.confirm else SETTINGS)
    out = options.out or RESULTS / ("cifar10_confirmed.json" if options.confirm else "cifar10_settings.json")
    if strange := [name for name in wanted if name not in SETTINGS]:
        raise SystemExit(f"unknown rows {'; '.join(strange)}: known are {'; '.join(SETTINGS)}")
    syntheses = [APART * (index + 1) for index in range(options.confirm)] or [0]  # their seeds
    job = Job(0, resolve(RuntimeConfig(workers=1)))
    real, held_out, source = opened(options.data, job.device)
    place = options.state / "teacher.safetensors"
    if not place.is_file():
        config = TeacherConfig(epochs=options.teacher_epochs, batch=256, lr=0.2, width=options.width, min_accuracy=10.0)
        make_teacher(real, config, Job(0, resolve(RuntimeConfig(workers=1, threads=torch.get_num_threads())))).save(
            options.state, "teacher"
        )
    teacher = Teacher.load(place)
    recipe = replace(recipe_of("common", "cifar10", 32, options.ipc), epochs=options.epochs, test_every=options.epochs)
    RECIPES["common"] = replace(recipe, **options.recipe)
    facts = {"machine": machine(job.runtime), "train": source, "teacher": teacher.card.accuracy, "width": teacher.card.width}
    facts |= {"ipc": options.ipc, "epochs": options.epochs, "recipe": options.recipe}
    known = {"recipe": {}, **json.loads(out.read_text())} if out.is_file() else facts
    if differ := [name for name in ("width", "ipc", "epochs", "recipe") if known[name] != facts[name]]:
        parser.error(f"{out} holds rows with another {', '.join(differ)}: give another --out")
    kind, test = ("test", real.test) if options.confirm else ("held_out", held_out)
    for seed, name in itertools.product(syntheses, wanted):
        if (name, seed) in {(row["name"], row.get("seed", 0)) for row in rows_in(out)}:
            continue
        found, how = measured(name, teacher, real, test, replace(job, seed=seed), options.seeds, options.ipc)
        print(f"{name}, seed {seed}: {statistics.fmean(found):.2f} {found}", flush=True)
        rows = [*rows_in(out), {**how, kind: found}]  # others may have written meanwhile
        write_json(out, {**facts, "rows": rows})
    if options.confirm:
        print("\n".join(compared(rows_in(out))))


if __name__ == "__main__":
    main()
