"""Does the arithmetic of recover change what its images are worth? Students of one synthesis in each, paired over seeds.

    python -m benchmarks.precision --seeds 10

One teacher; every seed draws its own patches, crops and student, which all arithmetics share. About nine minutes for digits at IPC 5
on one core. On a CPU fp16 is torch's CPU operators in 16 bits: the same rounding of weights, activations and gradients as on a GPU,
not the same sums. Writes benchmarks/results/precision_DATASET_ipcN.json.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import delt
from delt.analysis.accuracy import Accuracy, paired
from delt.artifacts.soft_labels import SoftLabels
from delt.data.load import open_set
from delt.job import Job
from delt.runtime import machine, resolve
from delt.stages.evaluate import evaluate
from delt.stages.rank import rank
from delt.stages.recover import recover
from delt.stages.squeeze import make_teacher
from delt.storage import write_json

RESULTS = Path(__file__).parent / "results"


def measured(dataset: str, seeds: int, given: dict[str, Any], precisions: list[str]) -> list[dict[str, Any]]:
    """One row per seed and arithmetic: top-1 in % of one student with soft and one with hard labels, last epoch."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        config = delt.configure(dataset, preset="demo", seed=seed, evaluate_seeds=1, evaluate_controls=[], evaluate_full=False, **given)
        plain = Job(seed, resolve(replace(config.runtime, workers=1)))
        if seed == 0:
            real = open_set(dataset, config.data, plain.device)
            teacher = make_teacher(real, config.teacher, plain)
        patches = rank(teacher, real, config.rank, config.ipc, plain)
        for precision in precisions:
            job = Job(seed, replace(plain.runtime, precision=precision))
            with patch("delt.stages.recover.resolve", lambda runtime: runtime):  # it refuses fp16 on a CPU, for its slowness
                made = recover(teacher, patches, config.recover, job)
            scores = evaluate(made, SoftLabels(teacher, config.evaluate.recipe), real.test, config.evaluate, plain)
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
    parser.add_argument("--precisions", default="fp32,fp16,bf16")
    parser.add_argument("--data-root")
    options = parser.parse_args()
    given = {"ipc": options.ipc, "data_root": options.data_root}
    rows = measured(options.dataset, options.seeds, given, options.precisions.split(","))
    found, exact = differences(rows), [row["soft"] for row in rows if row["precision"] == "fp32"]
    spread = statistics.stdev(exact) if len(exact) > 1 else None
    runtime = resolve(delt.configure(options.dataset, preset="demo", **given).runtime)
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(runtime), "std_over_seeds": spread}
    path = RESULTS / f"precision_{options.dataset}_ipc{options.ipc}.json"
    write_json(path, {**facts, "differences": found, "rows": rows})
    for line in found:
        print("{precision} - fp32, {labels} labels: {mean:+.2f} ± {standard_error:.2f} (n {n})".format(**line))
    print(path)


if __name__ == "__main__":
    main()
