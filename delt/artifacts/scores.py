"""Scores: the test accuracy of every student, one row each, without timings so that equal runs give equal bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from delt import storage
from delt.errors import IntegrityError

FILE = "scores.json"


@dataclass(frozen=True, order=True)
class Score:
    """One student: `last` is its top-1 accuracy in % after the last epoch, `best` the best of all tested epochs."""

    set: str  # what it was trained on: the method, a control (random, start, one_sub_batch) or full
    recipe: str
    labels: str  # soft or hard
    arch: str  # with its width where that was set: convnet3-w32
    seed: int
    epochs: int
    last: float
    best: float

    @property
    def key(self) -> tuple[str, str, str, str, int, int]:
        """What identifies the student; the rest is its result."""
        return self.set, self.recipe, self.labels, self.arch, self.seed, self.epochs


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and count over the seeds of one kind of student."""

    set: str
    recipe: str
    labels: str
    arch: str
    epochs: int
    mean: float
    std: float
    n: int
    best_mean: float


@dataclass
class Scores:
    """All rows of a run, in the order in which they were added."""

    rows: list[Score] = field(default_factory=list)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.rows)

    def add(self, rows: Iterable[Score]) -> None:
        """Add students; one that is there already is replaced."""
        merged = {row.key: row for row in (*self.rows, *rows)}
        self.rows = list(merged.values())

    def summary(self) -> list[Summary]:
        """One line per set, recipe, labels, architecture and length of training."""
        kinds: dict[tuple[str, str, str, str, int], list[Score]] = {}
        for row in self.rows:
            kinds.setdefault((row.set, row.recipe, row.labels, row.arch, row.epochs), []).append(row)
        return [Summary(*kind, *_statistics([row.last for row in rows]), _mean([row.best for row in rows])) for kind, rows in kinds.items()]

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows in their JSON form."""
        return [asdict(row) for row in self.rows]

    def save(self, folder: Path | str) -> list[Path]:
        """Write `scores.json` and return its path."""
        path = Path(folder) / FILE
        storage.write_sealed(path, {"rows": self.as_dicts()})
        return [path]

    @staticmethod
    def load(folder: Path | str) -> Scores:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        path = Path(folder) / FILE
        try:
            return Scores([Score(**row) for row in storage.read_sealed(path)["rows"]])
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{path} holds no scores: {error!r}") from error


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _statistics(values: list[float]) -> tuple[float, float, int]:
    return _mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values)
