"""Every method on CIFAR-10 against its published numbers: cell by cell, each kept when it is done.

    python -m benchmarks.cifar10 --methods all --ipc 10,50        # ResNet-18, a GPU and hours
    python -m benchmarks.cifar10 --reduced                        # ConvNet-3, 5 classes, IPC 10: two CPU cores, an hour and a half

A cell is a method at a number of images per class. Its run is evaluated under the recipe `common` and, on a GPU, under
the paper's own; random real images stand beside it under both. The most informative cells come first, students of the
whole real set last. The same command goes on where it was stopped, and a cell that failed is tried again. Run folders
go to --out, the numbers of every finished cell to benchmarks/results/cifar10_resnet18.json or cifar10_reduced.json.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import delt
from delt.analysis.compare import Entry, as_reported, claims, differences_to, robustness, table
from delt.config import RunConfig
from delt.errors import DeltError
from delt.methods import METHODS
from delt.recipes import RECIPES
from delt.results import Run, compare
from delt.runtime import machine, resolve
from delt.storage import write_json

RESULTS = Path(__file__).parent / "results"
FIRST = ("random", "delt", "rded", "gvbsm", "delt+gvbsm", "sre2l", "cda", "fadrm", "kmeans", "herding")  # what tells most
ORDER = (*FIRST, "delt+rded", "delt+cda", "delt+sre2l", "delt+fadrm")
FULL: dict[str, Any] = {"teacher_arch": "resnet18"}
REDUCED: dict[str, Any] = {
    "data_classes": ["airplane", "automobile", "cat", "dog", "ship"],
    "teacher_arch": "convnet3",
    "teacher_width": 32,
    "teacher_others": ["convnet4-w32", "resnet18-w8"],
    "teacher_epochs": 10,
    "iterations": 500,
    "evaluate_epochs": 150,
    "recover_record_classes": ["none"],
}


def settings_of(method: str, reduced: bool, given: dict[str, Any]) -> dict[str, Any]:
    """What a cell is configured with; what the method locks, or has no use for, stays its own."""
    settings = {**(REDUCED if reduced else FULL), **given}
    own = METHODS[method].settings(delt.data.specs.spec_of("cifar10"))
    if not own.get("teacher_others"):
        settings.pop("teacher_others", None)
    if own.get("iterations") == 0:
        settings.pop("iterations", None)
    return settings


def recipes_of(method: str, reduced: bool) -> list[str]:
    """The recipes of a cell, `common` last: its configuration is the one that the folder keeps."""
    own = f"paper:{method.removeprefix('delt+')}"
    return [*([own] if own in RECIPES and not reduced else []), "common"]


def run_cell(method: str, ipc: int, reduced: bool, given: dict[str, Any], folder: Path) -> Run:
    """Do what is missing of a cell: the synthesis once, students under each recipe."""
    settings = settings_of(method, reduced, given)
    for recipe in recipes_of(method, reduced):
        alone = method == "random" or recipe != "common"  # under `common` the cell of random is the control of all
        more = {"evaluate_recipe": recipe, "evaluate_controls": ["random"] if alone else [], "evaluate_full": False}
        done = delt.run(config_of(method, ipc, {**settings, **more}), folder)
    return done


def run_full(ipc: int, reduced: bool, given: dict[str, Any], folder: Path) -> Run:
    """Add students of the whole real set to a cell of random images: two, since they take longest and vary least."""
    settings = {**settings_of("random", reduced, given), "evaluate_controls": [], "evaluate_labels": "hard"}
    delt.run(config_of("random", ipc, {**settings, "evaluate_full": True, "evaluate_seeds": 2}), folder)
    return delt.run(config_of("random", ipc, {**settings, "evaluate_full": False}), folder)


def config_of(method: str, ipc: int, settings: dict[str, Any]) -> RunConfig:
    return delt.configure("cifar10", method=method, ipc=ipc, **settings)


def record(entry: Entry, found: list[Entry]) -> dict[str, Any]:
    """A row of the comparison as JSON, with the published values beside it."""
    reported = as_reported(entry)
    values = {kind: list(accuracy.values) for kind, accuracy in entry.accuracy.items()}
    beside = [{**asdict(one), "off": one.off(reported.mean, reported.std)} for one in claims(entry)] if reported else []
    return {
        "run": entry.run,
        "set": entry.set,
        "ipc": entry.ipc,
        "protocol": entry.protocol._asdict() if entry.protocol else None,
        "top1": values,
        "best": {kind: list(accuracy.values) for kind, accuracy in entry.best.items()},
        "label_robust_score": robustness(found, entry),
        "cosine": entry.cosine,
        "image_iterations": entry.work,
        "seconds": entry.stages,
        "peak_bytes": entry.memory,
        "bytes": {"images": entry.image_bytes, "labels": entry.label_bytes, "teachers": entry.teacher_bytes},
        "published": beside,
    }


def keep(runs: dict[str, Run], failed: dict[str, str], path: Path) -> list[Entry]:
    """Write what is there so far, and return it."""
    found = compare(runs, controls=("random",))
    config = next(iter(runs.values())).config
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(resolve(config.runtime)), "failed": failed}
    facts["settings"] = {"classes": list(config.data.classes) or "all", "teacher": asdict(config.teacher)}
    write_json(path, {**facts, "rows": [record(entry, found) for entry in found]})
    return found


def wanted(methods: str) -> list[str]:
    """The methods in the order in which they tell most."""
    names = list(ORDER) if methods == "all" else [name.strip() for name in methods.split(",")]
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(f"unknown methods {', '.join(unknown)}; `delt methods` lists them")
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py/ (default: downloaded into the cache)")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--ipc", default="10", help="images per class, with commas")
    parser.add_argument("--seeds", type=int, default=3, help="students per row")
    parser.add_argument("--reduced", action="store_true", help="ConvNet-3, 5 classes, 500 iterations: what a CPU can do")
    parser.add_argument("--preset", help="smoke proves that the script works, and writes its numbers to --out")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    options = parser.parse_args()
    given = {"data_root": options.data_root, "evaluate_seeds": options.seeds, "preset": options.preset}
    place = options.out if options.preset else RESULTS
    path = place / f"cifar10_{'reduced' if options.reduced else 'resnet18'}.json"
    if options.preset:
        given |= {"teacher_arch": "convnet3", "teacher_width": 8, "teacher_others": None, "teacher_epochs": 1, "iterations": 8}
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    found: list[Entry] = []
    for ipc in map(int, options.ipc.split(",")):
        for method in wanted(options.methods):
            name = f"{method}-ipc{ipc}"
            print(f"{datetime.now(UTC):%H:%M} {name}", flush=True)
            try:
                runs[name] = run_cell(method, ipc, options.reduced, given, options.out / name)
            except (DeltError, RuntimeError) as error:  # RuntimeError: a GPU that is out of memory
                traceback.print_exc()
                failed[name] = repr(error)
            if runs:
                found = keep(runs, failed, path)
    name = next((name for name in runs if name.startswith("random-")), None)
    if name and not options.preset:  # no preset shortens it
        print(f"{datetime.now(UTC):%H:%M} all real images", flush=True)
        try:
            runs[name] = run_full(runs[name].config.ipc, options.reduced, given, options.out / name)
        except (DeltError, RuntimeError) as error:
            traceback.print_exc()
            failed["full"] = repr(error)
        found = keep(runs, failed, path)
    if found:
        print("\n".join(["", table(found), "", *differences_to(found, "random"), "", str(path)]))
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
