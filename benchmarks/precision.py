"""Does the arithmetic of recover change what its images are worth? Students of one synthesis in each, paired over seeds.

    python -m benchmarks.precision --seeds 10

One teacher; every seed draws its own patches, crops and student, which all arithmetics share. About nine minutes for digits at IPC 5
on one core. On a CPU fp16 is torch's CPU operators in 16 bits: the same rounding of weights, activations and gradients as on a GPU,
not the same sums. Writes benchmarks/results/precision_DATASET_ipcN.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import delt
from delt.analysis.accuracy import Accuracy, Difference, paired
from delt.artifacts.soft_labels import SoftLabels
from delt.config import RunConfig
from delt.data.load import open_set
from delt.job import Job
from delt.runtime import machine, resolve
from delt.stages.evaluate import evaluate
from delt.stages.rank import rank
from delt.stages.recover import recover
from delt.stages.squeeze import make_teacher
from delt.storage import write_json

RESULTS = Path(__file__).parent / "results"


def measured(config: RunConfig, seeds: int, precisions: list[str]) -> list[dict[str, Any]]:
    """One row per seed and arithmetic: top-1 in % of one student with soft and one with hard labels, last epoch."""
    runtime = resolve(replace(config.runtime, workers=1))
    engines = {name: replace(runtime, precision=name) for name in precisions}  # refuses unknown ones before there is a teacher
    real = open_set(config.dataset, config.data, Job(0, runtime).device)
    teacher = make_teacher(real, config.teacher, Job(0, runtime))
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        job = Job(seed, runtime)
        patches = rank(teacher, real, config.rank, config.ipc, job)
        for precision, engine in engines.items():
            with patch("delt.stages.recover.resolve", lambda given: given):  # it refuses fp16 on a CPU, for its slowness
                made = recover(teacher, patches, config.recover, Job(seed, engine))
            scores = evaluate(made, SoftLabels(teacher, config.evaluate.recipe), real.test, config.evaluate, job)
            rows.append({"seed": seed, "precision": precision, **{row.labels: row.last for row in scores}})
            print(rows[-1], flush=True)
    return rows


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arithmetic minus fp32 by kind of labels, paired over seeds: mean and standard error in points of top-1."""
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows if row["precision"] != "fp32"):
        for labels in ("soft", "hard"):
            own, exact = (Accuracy(tuple(row[labels] for row in rows if row["precision"] == name)) for name in (precision, "fp32"))
            if gap := paired(own, exact):
                facts = {"mean": gap.mean, "standard_error": gap.error, "n": gap.n, "clear": gap.clear}
                found.append({"precision": precision, "labels": labels, "own": own.mean, "fp32": exact.mean, **facts})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--precisions", default="fp16,bf16", help="beside fp32, with commas")
    parser.add_argument("--data-root")
    options = parser.parse_args()
    precisions = ["fp32", *(name for name in options.precisions.split(",") if name != "fp32")]
    own = {"evaluate_seeds": 1, "evaluate_controls": [], "evaluate_full": False}
    config = delt.configure(options.dataset, preset="demo", ipc=options.ipc, data_root=options.data_root, **own)
    rows = measured(config, options.seeds, precisions)
    found = differences(rows)
    path = RESULTS / f"precision_{options.dataset}_ipc{options.ipc}.json"
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(resolve(config.runtime))}
    write_json(path, {**facts, "differences": found, "rows": rows})
    for line in found:
        print("{precision} - fp32, {labels} labels:".format(**line), Difference(line["mean"], line["standard_error"], line["n"]))
    print(path)


if __name__ == "__main__":
    main()
