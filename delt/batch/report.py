"""What a sweep's folder holds, as rows and as a picture.

OUT/sweep.json says which points there are and how they ended; whether one is done is asked of its run folder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from delt.analysis.accuracy import KINDS
from delt.analysis.sweep import PointRow, measured
from delt.artifacts.folder import RunFolder
from delt.batch.notebook import RUN
from delt.errors import DeltError, IntegrityError, RunError
from delt.results import Run, load
from delt.stages.evaluate import first_student
from delt.storage import read_json

NOTE = "sweep.json"


def read_sweep(out: Path | str) -> list[PointRow]:
    """One row per point of a sweep, in the order of its file; those that are not done have no accuracy.

    Raises:
        RunError: there is no sweep in the folder.
        IntegrityError: sweep.json is damaged.
    """
    folder = Path(out)
    if not (folder / NOTE).is_file():
        raise RunError(f"no sweep at {folder}: looked for {NOTE} in it")
    try:
        return [_row(folder / point["name"], point) for point in read_json(folder / NOTE)["points"]]
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{folder / NOTE} is no list of points: {error!r}; `delt sweep` writes it anew") from error


def noted(out: Path) -> dict[str, Any]:
    """The points in an earlier sweep.json by name; an unreadable one is as good as none."""
    try:
        return {point["name"]: point for point in read_json(out / NOTE)["points"]}
    except (IntegrityError, KeyError, TypeError):
        return {}


def _row(folder: Path, point: Mapping[str, Any]) -> PointRow:
    """A point that was done and cannot be read any more counts as waiting, with the reason."""
    name, parameters, reference = point["name"], point["parameters"], point.get("reference", False)
    if point["state"] != "done":
        return PointRow(name, parameters, point["state"], reference, error=point["error"])
    try:
        run = load(folder / RUN)
        student = first_student(run.config, run.teacher.card)
        row = measured(name, parameters, run.config, run.scores, run.diversity, len(run.classes), stage_seconds(run), student)
        return replace(row, reference=reference)
    except DeltError as error:
        return PointRow(name, parameters, "waiting", reference, error=str(error))


def stage_seconds(run: Run) -> float:
    """Seconds that the stages of a run took, those of its controls included."""
    own = [record["seconds"] for record in RunFolder(run.path).records().values()]
    for control in run.controls.values():  # whose students were trained together with the run's
        own += [record["seconds"] for stage, record in RunFolder(control.path).records().items() if stage != "evaluate"]
    return float(sum(own))


def headline(folder: Path) -> str:
    """The mean accuracy of a point's own set, e.g. `90.5 %`; empty where it cannot be read."""
    row = _row(folder, {"name": folder.name, "parameters": {}, "state": "done"})
    own = next((accuracy for labels in KINDS if (accuracy := row.own(labels))), None)
    return f"{own.mean:.1f} %" if own else ""
