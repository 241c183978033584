"""What a sweep found: one row per point, which parameters vary, which point is best and whether that is more than noise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from delt.analysis.accuracy import KINDS, Accuracy, Difference, difference
from delt.analysis.table import Lines, aligned, schedule_of, where_tested
from delt.artifacts.scores import Score, Scores
from delt.config import RunConfig


@dataclass(frozen=True)
class PointRow:
    """One point of a sweep.

    `accuracy` maps (set, label kind) to the students of the point's own recipe, of the first architecture where it trained
    several; `cosine` maps a set to its intra-class similarity. Both are empty where the point is not done.
    """

    name: str
    parameters: Mapping[str, Any]  # its own
    state: str  # waiting, running, done, failed
    reference: bool = False  # whether the others are held against it
    method: str = ""  # under which name its set stands in the two mappings
    error: str = ""
    seconds: float | None = None  # of its stages, controls included
    work: int | None = None  # image-iterations of the synthesis
    saved: float | None = None  # share of the work that EarlyLate leaves out
    student: str = ""
    epochs: int = 0
    hold_out: float = 0.0  # share of the training images that students were tested on, instead of the test images
    accuracy: Mapping[tuple[str, str], Accuracy] = field(default_factory=dict)
    cosine: Mapping[str, float] = field(default_factory=dict)

    def own(self, labels: str) -> Accuracy | None:
        """Accuracy of its own set with this kind of labels."""
        return self.accuracy.get((self.method, labels))


@dataclass(frozen=True)
class Lead:
    """The best point, the second best, and how far it is above it."""

    best: PointRow
    second: PointRow | None
    above: Difference | None  # None for a point alone

    @property
    def clear(self) -> bool:
        """Whether the difference is more than noise."""
        return self.above is not None and self.above.clear

    def __str__(self) -> str:
        if self.above is None:
            return "one point alone"
        if self.above.error is None:
            return f"{self.above.mean:.2f} points above the second; one student each, so the noise is unknown"
        how = f"standard error, paired over {self.above.n} seeds" if self.above.n else "standard error"
        words = "more than" if self.clear else "within"
        return f"{self.above.mean:.2f} ± {self.above.error:.2f} points ({how}) above the second: {words} the noise"


def measured(
    name: str,
    parameters: Mapping[str, Any],
    config: RunConfig,
    scores: Scores,
    diversity: Mapping[str, Mapping[str, float]],
    classes: int,
    seconds: float,
    student: tuple[str, int],
) -> PointRow:
    """The row of a point that is done, from what its run folder holds.

    Args:
        student: name and passes of the one that counts (`delt.stages.evaluate.first_student`): the folder may hold others, of
            earlier settings.
    """
    asked = config.evaluate
    rows = [row for row in scores if (row.recipe, row.arch, row.epochs) == (asked.recipe, *student) and row.labels in asked.labels]
    rows = [row for row in rows if config.seed <= row.seed < config.seed + asked.seeds]
    schedule = schedule_of(config)
    return PointRow(
        name,
        parameters,
        "done",
        method=config.method,
        seconds=seconds,
        work=schedule.image_iterations * classes,
        saved=schedule.saved if schedule.iterations else None,
        student=student[0] if rows else "",
        epochs=student[1] if rows else 0,
        hold_out=config.data.hold_out,
        accuracy=_by_set(rows),
        cosine={name: values["mean"] for name, values in diversity.items() if "mean" in values},
    )


def _by_set(rows: Iterable[Score]) -> dict[tuple[str, str], Accuracy]:
    found: dict[tuple[str, str], list[Score]] = {}
    for row in rows:
        found.setdefault((row.set, row.labels), []).append(row)
    return {key: Accuracy.of(group) for key, group in found.items()}


def varying(rows: Sequence[PointRow]) -> list[str]:
    """The parameters whose values differ among the points, in the order of the sweep file."""
    names = dict.fromkeys(name for row in rows for name in row.parameters)
    return [name for name in names if len({json.dumps(row.parameters.get(name)) for row in rows}) > 1]


def kinds(rows: Iterable[PointRow]) -> list[str]:
    """The kinds of labels that any point was measured with."""
    found = {labels for row in rows for _, labels in row.accuracy}
    return [labels for labels in KINDS if labels in found]


def lead(rows: Iterable[PointRow], labels: str) -> Lead | None:
    """The best point by mean accuracy and how far it is ahead; None where no point was measured."""
    known = [(accuracy, row) for row in rows if (accuracy := row.own(labels))]
    ranked = sorted(known, key=lambda pair: -pair[0].mean)
    if not ranked:
        return None
    (top, best), *others = ranked
    return Lead(best, others[0][1], difference(top, others[0][0])) if others else Lead(best, None, None)


def against(rows: Sequence[PointRow]) -> list[str]:
    """How far each point is above the reference, or above the first where none is named, a line each under a head per kind of labels.

    Paired over seeds where the students of both had the same; a line says where they had not.
    """
    if len(rows) < 2:
        return []
    names, beside = varying(rows), next((row for row in rows if row.reference), rows[0])
    lines = []
    for labels in kinds(rows):
        if (base := beside.own(labels)) is None:
            lines.append(f"{labels} labels: {_called(beside, names)}, which the others are to be held against, has no result")
            continue
        lines.append(f"{labels} labels, points of top-1, mean ± standard error, paired over seeds:")
        others = [(row, own) for row in rows if row is not beside and (own := row.own(labels))]
        lines += [f"  {_called(row, names)}: {_above(difference(own, base), _called(beside, names))}" for row, own in others]
    return lines


def _above(found: Difference, reference: str) -> str:
    remarks = [found.remark, "" if found.n else "(other seeds: not paired)"]
    return " ".join([f"{found.figures} above {reference}", *filter(None, remarks)])


def _called(row: PointRow, names: Sequence[str]) -> str:
    """A point by the parameters that vary, e.g. `sub_batches 5`."""
    return ", ".join(f"{name} {_said(row.parameters.get(name))}" for name in names) or row.name


def _said(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def flat(row: PointRow, names: Sequence[str]) -> dict[str, Any]:
    """A row as plain values, for a table or a data frame: the parameters named, then what was measured."""
    cells: dict[str, Any] = {name: row.parameters.get(name) for name in names} or {"point": row.name}
    cells["state"] = row.state
    for (name, labels), accuracy in row.accuracy.items():
        cells[f"{'own' if name == row.method else name}, {labels}"] = str(accuracy)
    cells |= {"n": max((accuracy.n for accuracy in row.accuracy.values()), default=None)}
    return cells | {"cosine": row.cosine.get(row.method), "img-it": row.work, "saved": row.saved, "seconds": row.seconds}


def table(rows: Sequence[PointRow]) -> Lines:
    """All points as a plain table; below it, what all of them share, and what its columns mean."""
    names = varying(rows)
    lines = [flat(row, names) for row in rows]
    heads = list(dict.fromkeys(head for line in lines for head in line))
    heads.sort(key=lambda head: ("," in head) + 2 * (head in ("n", "cosine", "img-it", "saved", "seconds")))
    own = {*names, "point"}
    shared = [head for head in heads if len(rows) > 1 and head not in own and len({str(line.get(head)) for line in lines}) == 1]
    heads = [head for head in heads if head not in shared]
    cells = [[_cell(head, line.get(head)) for head in heads] for line in lines]
    same = "; ".join(f"{head} {_cell(head, lines[0].get(head))}" for head in shared)
    images = where_tested(row.hold_out for row in rows if row.state == "done")
    notes = [
        *([f"the same at every point: {same}"] if shared else []),
        f"soft, hard: top-1 in % on {images} after the last epoch, mean ± std over n students; own: the point's own set",
        "cosine: intra-class, lower is more diverse; img-it: image-iterations of the synthesis, and the share saved",
    ]
    return aligned(heads, cells, notes)


def _cell(head: str, value: Any) -> str:
    if value is None:
        return "-"
    formats = {"cosine": "{:.3f}", "img-it": "{:,}", "saved": "{:.2%}", "seconds": "{:.0f}"}
    return formats.get(head, "{}").format(value)
