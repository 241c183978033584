"""Accuracy over seeds, and how far one set is above another: paired where their students had the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from delt.artifacts.scores import Score
from delt.errors import DataError

KINDS = ("soft", "hard")  # of labels; the first that was trained with is the one that counts
ROUNDING = 1e-3  # points: half a test image of 50,000


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in % of one kind of student after the last epoch, by seed.

    Raises:
        DataError: there are seeds, but not one per value.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()  # of the students, in the order of values; none where they are not known

    def __post_init__(self) -> None:
        if self.seeds and len(self.seeds) != len(self.values):
            raise DataError(f"{len(self.values)} accuracies of students with {len(self.seeds)} seeds: give one seed per value, or none")

    @staticmethod
    def of(scores: Iterable[Score]) -> Accuracy:
        """Of students that differ in nothing but their seeds, in the order of these."""
        rows = sorted(scores, key=lambda row: row.seed)
        return Accuracy(tuple(row.last for row in rows), tuple(row.seed for row in rows))

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single student."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for a single student."""
        return None if self.std is None else self.std / math.sqrt(self.n)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


class Difference(NamedTuple):
    """How far a set is above another in points of top-1."""

    mean: float
    error: float | None  # standard error; None for a single student
    n: int  # seeds that it is paired over; 0 where the students are not paired

    @property
    def clear(self) -> bool:
        """Whether zero lies outside its 95 % confidence interval: Student's t for pairs, the normal's 2 where it is not paired.

        Accuracies are whole test images: a few pairs that differ alike have no spread, which says nothing of the noise.
        """
        if self.error is None or self.error < ROUNDING:
            return False
        from scipy.special import stdtrit  # takes as long to load as all of this package

        reach = float(stdtrit(self.n - 1, 0.975)) if self.n > 1 else 2.0
        return abs(self.mean) > reach * self.error

    @property
    def figures(self) -> str:
        """The mean with its sign and its standard error."""
        mean = f"{round(self.mean, 2) + 0.0:+.2f}"  # no -0.00
        return mean if self.error is None else f"{mean} ± {self.error:.2f}"

    @property
    def remark(self) -> str:
        """What speaks against reading the mean as it is; empty where nothing does."""
        if self.error is None:
            return "(one student each, so the noise is unknown)"
        if abs(self.mean) < ROUNDING > self.error:
            return "(no difference)"
        if self.error < ROUNDING:
            return "(the same in all pairs, so the noise is unknown)"
        return "" if self.clear else "(inside the noise)"

    def __str__(self) -> str:
        return f"{self.figures} {self.remark}".rstrip()


def paired(one: Accuracy, other: Accuracy) -> Difference | None:
    """The difference of two sets whose students had the same seeds: the same starting weights and views of the data.

    Returns:
        None where the seeds differ, or only one side's are known. Where neither's are, values at equal places are pairs,
        and None means that they are not as many.
    """
    if one.seeds != other.seeds or one.n != other.n:
        return None
    off = [a - b for a, b in zip(one.values, other.values, strict=True)]
    error = statistics.stdev(off) / math.sqrt(len(off)) if len(off) > 1 else None
    return Difference(statistics.fmean(off), error, len(off))


def difference(one: Accuracy, other: Accuracy) -> Difference:
    """The difference of two sets, paired where it can be; otherwise as of students that have nothing in common."""
    if pairs := paired(one, other):
        return pairs
    errors = [side.error for side in (one, other) if side.error is not None]
    return Difference(one.mean - other.mean, math.hypot(*errors) if len(errors) == 2 else None, 0)
