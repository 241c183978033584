"""What delt starts from on CIFAR-10, and how it steps: chosen on held-out training images with a network that two cores can train.

    python -m benchmarks.cifar10_settings --data DIR

DIR holds cifar10_train.npz and cifar10_test.npz (see benchmarks.cifar10_gpu). A ResNet-18 of width 8 is teacher and student; the test
images are used to judge the teacher alone. Eight to fifteen minutes per row on one core, the teacher eleven on two; rows that are in
--out are not done again, so several processes with other --only share the work once there is a teacher. Writes
benchmarks/results/cifar10_settings.json.
"""

from __future__ import annotations

import argparse
import json
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

RESULTS = Path(__file__).parent / "results" / "cifar10_settings.json"
IPC, EPOCHS = 10, 500
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


def measured(name: str, teacher: Teacher, real: RealSet, held_out: Images, job: Job, seeds: int) -> dict[str, Any]:
    """Top-1 in % on the held-out images of students with soft labels, after the last epoch."""
    method, given = SETTINGS[name]
    shorter = (
        {} if delt.methods.METHODS[method].settings(delt.data.specs.DATASETS["cifar10"]).get("iterations") == 0 else {"iterations": 2000}
    )
    none = {"recover_record_classes": ["none"], "recover_record_count": 2}
    config = delt.configure("cifar10", method=method, ipc=IPC, **{**shorter, **none, **given})
    begun = time.monotonic()
    made = recover(teacher, rank(teacher, real, config.rank, IPC, job), config.recover, job)
    seconds, how = time.monotonic() - begun, EvaluateConfig(recipe="common", labels=("soft",), seeds=seeds)
    scores = evaluate(made, SoftLabels(teacher, "common"), held_out, how, job, name=name)
    return {"name": name, "method": method, "given": given, "held_out": [row.last for row in scores], "synthesis_s": seconds}


def rows_in(path: Path) -> list[dict[str, Any]]:
    """What is there already."""
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default=";".join(SETTINGS), help="names of rows, with semicolons")
    parser.add_argument("--seeds", type=int, default=2, help="students per row")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--state", type=Path, default=Path("runs/cifar10_settings"), help="where the teacher is kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = options.only.split(";")
    if strange := [name for name in wanted if name not in SETTINGS]:
        raise SystemExit(f"unknown rows {'; '.join(strange)}: known are {'; '.join(SETTINGS)}")
    job = Job(0, resolve(RuntimeConfig(workers=1)))
    real, held_out, source = opened(options.data, job.device)
    place = options.state / "teacher.safetensors"
    if not place.is_file():
        config = TeacherConfig(epochs=options.teacher_epochs, batch=256, lr=0.2, width=options.width, min_accuracy=10.0)
        make_teacher(real, config, Job(0, resolve(RuntimeConfig(workers=1, threads=torch.get_num_threads())))).save(
            options.state, "teacher"
        )
    teacher = Teacher.load(place)
    RECIPES["common"] = replace(recipe_of("common", "cifar10", 32, IPC), epochs=EPOCHS, test_every=EPOCHS)
    facts = {"machine": machine(job.runtime), "train": source, "teacher": teacher.card.accuracy, "width": teacher.card.width}
    for name in [name for name in wanted if name not in {row["name"] for row in rows_in(options.out)}]:
        row = measured(name, teacher, real, held_out, job, options.seeds)
        print(f"{name}: {statistics.fmean(row['held_out']):.2f} {row['held_out']}", flush=True)
        rows = [*rows_in(options.out), row]  # others may have written meanwhile
        write_json(options.out, {**facts, "ipc": IPC, "epochs": EPOCHS, "rows": rows})


if __name__ == "__main__":
    main()
