"""Ranking: the score of every candidate patch and which of them start the synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from delt import storage
from delt.artifacts.tables import read_table, table_bytes
from delt.errors import IntegrityError

FILE = "ranking.parquet"
COLUMNS = ("class_index", "image", "top", "left", "height", "width", "score", "place")


@dataclass
class Ranking:
    """One row per candidate patch, sorted by class and then by rising score (hard to easy).

    Box columns are in pixels of the real image; `score` is the teacher's probability of the true class (NaN where the
    order does not need one); `place` is the patch's turn among those kept for its class, or -1.
    """

    classes: tuple[str, ...]
    keep: str
    factor: int
    class_index: Tensor
    image: Tensor  # index in the training set
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    score: Tensor  # float32
    place: Tensor

    def __len__(self) -> int:
        return len(self.class_index)

    def kept(self, label: int) -> Tensor:
        """Rows kept for a class, in the order of their turn."""
        rows = torch.nonzero((self.class_index == label) & (self.place >= 0)).squeeze(1)
        return rows[self.place[rows].argsort()]

    def save(self, folder: Path) -> list[Path]:
        """Write `ranking.parquet` and return its path."""
        names = [self.classes[i] for i in self.class_index.tolist()]
        columns = {name: getattr(self, name).numpy() for name in COLUMNS}
        table = pa.table({"class_index": columns.pop("class_index"), "class_name": pa.array(names, pa.string()), **columns})
        facts: dict[str, str | bytes] = {
            "classes": storage.json_bytes(list(self.classes)),
            "keep": self.keep,
            "factor": str(self.factor),
        }
        storage.write_bytes(folder / FILE, table_bytes(table, facts, "zstd"))
        return [folder / FILE]

    @staticmethod
    def load(folder: Path) -> Ranking:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        table = read_table(folder / FILE)
        try:
            facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
            columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in COLUMNS}
            classes = tuple(storage.parse_json(facts["classes"], folder / FILE))
            return Ranking(classes, facts["keep"], int(facts["factor"]), **columns)
        except Exception as error:  # pyarrow promises no types, and any of them means the same here
            raise IntegrityError(f"{folder / FILE} is not a ranking: {error}") from error


@dataclass
class Patches:
    """Starting images: uint8 [K*ipc,C,H,W] sorted by class, or None for Gaussian noise; early sub-batches first."""

    ipc: int
    images: Tensor | None
    sources: list[str]  # what each image starts from, e.g. train/123[0,4,20,24] or noise
    ranking: Ranking | None = field(default=None, repr=False)

    def of(self, members: Sequence[tuple[int, int]]) -> Tensor | None:
        """The starting images of (class, image) pairs."""
        if self.images is None:
            return None
        return self.images[[c * self.ipc + i for c, i in members]]
