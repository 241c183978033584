"""Published accuracies: a row for each value that a paper or its repository names, `published.tsv` beside this file.

A value that another paper reports again has that paper as its source. Sources that disagree stand side by side and are
never merged.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("published.tsv")


@dataclass(frozen=True)
class Published:
    """One published accuracy of students trained from scratch, with soft labels and by the paper's own recipe."""

    method: str
    dataset: str  # as in delt.data.specs
    ipc: int
    student: str  # as in delt.models.zoo, of its own width
    top1: float  # in %
    std: float | None  # over students; None where none was published
    source: str

    def off(self, mean: float, std: float | None) -> float | None:
        """How far a measured mean is above it, in standard deviations of both, as far as these are known.

        Returns:
            (mean - top1) / sqrt(std^2 + published std^2); None where neither is known.
        """
        spread = math.hypot(std or 0.0, self.std or 0.0)
        return (mean - self.top1) / spread if spread else None

    def __str__(self) -> str:
        return f"{self.top1}" if self.std is None else f"{self.top1} ± {self.std}"


def published(method: str, dataset: str, ipc: int, student: str) -> list[Published]:
    """What was published for a method on a data set with so many images per class and this student; empty where nothing was.

    >>> [str(row) for row in published("delt", "imagenette", 50, "resnet18")]
    ['88.2 ± 1.2']
    """
    return [row for row in every() if (row.method, row.dataset, row.ipc, row.student) == (method, dataset, ipc, student)]


@cache
def every() -> tuple[Published, ...]:
    """All rows of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_row(**cells) for cells in csv.DictReader(file, delimiter="\t"))


def _row(method: str, dataset: str, ipc: str, student: str, top1: str, std: str, source: str) -> Published:
    return Published(method, dataset, int(ipc), student, float(top1), float(std) if std else None, source)


def distinct(rows: Iterable[Published]) -> list[Published]:
    """One row per value: where sources agree, that which also has its spread."""
    found: dict[float, Published] = {}
    for row in rows:
        if row.top1 not in found or found[row.top1].std is None:
            found[row.top1] = row
    return list(found.values())
