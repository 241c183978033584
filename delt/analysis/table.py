"""The table that ends every run: accuracy of each set under one recipe, its diversity and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from delt.artifacts.scores import Scores
from delt.config import RunConfig
from delt.schedule import Schedule, plan

HEADS = {
    "set": "set",
    "recipe": "recipe",
    "student": "student",
    "epochs": "epochs",
    "soft": "soft labels",
    "hard": "hard labels",
    "best": "best*",
    "n": "n",
    "cosine": "cosine",
    "work": "img-it",
    "saved": "saved",
}


def schedule_of(config: RunConfig) -> Schedule:
    """The schedule of one class of a run."""
    recover = config.recover
    return plan(recover.iterations, config.ipc, recover.round_iterations, recover.sub_batches)


def rows(
    scores: Scores, diversity: Mapping[str, Mapping[str, float]], configs: Mapping[str, RunConfig], classes: int
) -> list[dict[str, Any]]:
    """One dict per set, recipe, student architecture and length of training.

    Args:
        diversity: set -> {"mean": intra-class cosine similarity, ..}.
        configs: set -> configuration, of the run and its controls.

    Values: `soft` and `hard` are (mean, std) of the last epoch's top-1 in %, without a std where one student was trained;
    `n` is {label kind: students}; `best` the mean over soft students of their best epoch, `work` image-iterations of the
    synthesis, `saved` the share that EarlyLate leaves out.
    """
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for line in scores.summary():
        names = {"set": line.set, "recipe": line.recipe, "student": line.arch, "epochs": line.epochs}
        row = found.setdefault((line.set, line.recipe, line.arch, line.epochs), {**names, "n": {}})
        row[line.labels] = (line.mean, line.std if line.n > 1 else None)
        row["n"][line.labels] = line.n
        if line.labels == "soft":
            row["best"] = line.best_mean
    for row in found.values():
        row["cosine"] = diversity.get("real" if row["set"] == "full" else row["set"], {}).get("mean")
        if config := configs.get(row["set"]):
            schedule = schedule_of(config)
            row["work"] = schedule.image_iterations * classes
            row["saved"] = schedule.saved if schedule.iterations else None
    return list(found.values())


def text(lines: Iterable[Mapping[str, Any]]) -> str:
    """The rows as a plain table, with what its columns mean below it."""
    cells = [[_cell(key, row.get(key)) for key in HEADS] for row in lines]
    notes = [
        "soft, hard labels: top-1 in % on real test images after the last epoch, mean ± std over n students",
        "cosine: intra-class, lower is more diverse; img-it: image-iterations of the synthesis, and the share saved",
        "* best epoch of the soft students, chosen by the test set itself: only beside published values that were",
    ]
    return aligned(list(HEADS.values()), cells, notes)


def aligned(heads: Sequence[str], cells: Iterable[Sequence[str]], notes: Iterable[str]) -> str:
    """A plain table: heads, a rule, the rows under them in columns, a rule, and notes."""
    lines = [heads, *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "-" * max(map(len, body))
    return "\n".join([body[0], rule, *body[1:], rule, *notes])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        mean, std = value
        return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    if isinstance(value, dict):
        counts = [str(value[labels]) for labels in ("soft", "hard") if labels in value]
        return "/".join(dict.fromkeys(counts))  # one number where both kinds have as many
    formats = {"best": "{:.2f}", "cosine": "{:.3f}", "work": "{:,}", "saved": "{:.2%}"}
    return formats.get(key, "{}").format(value)
