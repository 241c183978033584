"""Does the synthesis do something? delt against random real images, its own starting patches and one sub-batch, paired over seeds.

    python -m benchmarks.paired --seeds 5 --epochs 120,300

Every seed draws its own patches, synthesis, random images and student; the sets of one seed share the student's initial
weights, batch order and augmentation. About four minutes for digits at IPC 5 on two cores. Writes
benchmarks/results/paired_DATASET_ipcN.json. Expect delt above random by several points at 120 epochs and all sets close
together at 300: with enough updates the teacher's labels alone carry this small set.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import delt
from delt.runtime import machine, resolve
from delt.storage import write_json

CONTROLS = ("one_sub_batch", "start", "random")
RESULTS = Path(__file__).parent / "results"


def measured(dataset: str, seeds: int, epochs: list[int], given: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One row per seed, length of training and set: top-1 in % of one student with soft labels, last epoch."""
    rows = []
    for seed in range(seeds):
        for length in epochs:
            settings = {
                "evaluate_seeds": 1,
                "evaluate_labels": "soft",
                "evaluate_controls": list(CONTROLS),
                "evaluate_full": False,
                **given,
            }
            config = delt.configure(dataset, preset="demo", seed=seed, evaluate_epochs=length, **settings)
            done = delt.run(config, folder / f"seed{seed}", listener=lambda event: None)
            found = [row for row in done.scores if row.epochs == length]
            rows += [{"seed": seed, "epochs": length, "set": row.set, "top1": row.last} for row in found]
            print(seed, length, {row.set: round(row.last, 2) for row in found}, flush=True)
    return rows


def differences(rows: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """delt minus each control over the seeds: mean, standard deviation and standard error, in points of top-1."""
    value = {(row["set"], row["seed"]): row["top1"] for row in rows if row["epochs"] == length}
    seeds = sorted({seed for _, seed in value})
    lines = []
    for control in CONTROLS:
        gaps = [value["delt", seed] - value[control, seed] for seed in seeds]
        spread = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
        line = {"epochs": length, "control": control, "mean": statistics.fmean(gaps), "std": spread, "n": len(gaps)}
        lines.append(
            {**line, "standard_error": spread / len(gaps) ** 0.5, "control_mean": statistics.fmean(value[control, s] for s in seeds)}
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", default="120,300", help="lengths of the students' training, with commas")
    parser.add_argument("--data-root")
    options = parser.parse_args()
    epochs = [int(part) for part in options.epochs.split(",")]
    given = {"ipc": options.ipc, "data_root": options.data_root}
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(options.dataset, options.seeds, epochs, given, Path(folder))
    config = delt.configure(options.dataset, preset="demo", **given)
    summary = [line for length in epochs for line in differences(rows, length)]
    means = {f"delt, {n} epochs": statistics.fmean(r["top1"] for r in rows if r["set"] == "delt" and r["epochs"] == n) for n in epochs}
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(resolve(config.runtime)), "seeds": options.seeds}
    path = RESULTS / f"paired_{options.dataset}_ipc{options.ipc}.json"
    write_json(path, {**facts, "means": means, "differences": summary, "rows": rows})
    for line in summary:
        gap = f"{line['mean']:+.2f} ± {line['standard_error']:.2f} (standard error, n {line['n']})"
        print(f"{line['epochs']:>4} epochs  delt - {line['control']:<14} {gap}")
    print(path)


if __name__ == "__main__":
    main()
