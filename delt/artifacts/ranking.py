"""Ranking: the score of every candidate patch and which of them start the synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from delt import storage
from delt.artifacts import cache
from delt.artifacts.tables import read_table, table_bytes
from delt.errors import IntegrityError

FILE = "ranking.parquet"
COLUMNS = ("class_index", "image", "top", "left", "height", "width", "score", "place")

Member = tuple[int, int]  # class, and number within the class


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
        first, last = torch.searchsorted(self.class_index, torch.tensor([label, label + 1])).tolist()
        place = self.place[first:last]
        rows = torch.nonzero(place >= 0).squeeze(1)
        return first + rows[place[rows].argsort()]

    def save(self, folder: Path | str) -> list[Path]:
        """Write `ranking.parquet` and return its path."""
        names = [self.classes[i] for i in self.class_index.tolist()]
        columns = {name: getattr(self, name).numpy() for name in COLUMNS}
        table = pa.table({"class_index": columns.pop("class_index"), "class_name": pa.array(names, pa.string()), **columns})
        facts: dict[str, str | bytes] = {
            "classes": storage.json_bytes(list(self.classes)),
            "keep": self.keep,
            "factor": str(self.factor),
        }
        path = Path(folder) / FILE
        storage.write_bytes(path, table_bytes(table, facts, "zstd"))
        return [path]

    @staticmethod
    def load(folder: Path | str) -> Ranking:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        path = Path(folder) / FILE
        table = read_table(path)
        try:
            facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
            columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in COLUMNS}
            classes = tuple(storage.parse_json(facts["classes"], path))
            return Ranking(classes, facts["keep"], int(facts["factor"]), **columns)
        except Exception as error:  # pyarrow promises no types, and any of them means the same here
            raise IntegrityError(f"{path} is not a ranking: {error}") from error


@dataclass
class Patches:
    """Starting images, sorted by class, early sub-batches first: pixels, or a way to cut them when they are wanted.

    Neither means Gaussian noise.
    """

    ipc: int
    pixels: Tensor | None  # uint8 [K*ipc,C,H,W]
    sources: list[str]  # what each image starts from, e.g. train/123[0,4,20,24] or noise
    ranking: Ranking | None = field(default=None, repr=False)
    cut: Callable[[Sequence[Member]], Tensor] | None = field(default=None, repr=False)

    def of(self, members: Sequence[Member]) -> Tensor | None:
        """The starting images uint8 [n,C,H,W] of (class, image) pairs."""
        if self.cut:
            return self.cut(members)
        return None if self.pixels is None else self.pixels[[c * self.ipc + i for c, i in members]]

    @cached_property
    def images(self) -> Tensor | None:
        """All of them, uint8 [K*ipc,C,H,W]."""
        if not self.cut:
            return self.pixels
        members = [(row // self.ipc, row % self.ipc) for row in range(len(self.sources))]
        images = cache.pixels((len(members), *self.cut(members[:1]).shape[1:]))
        for first in range(0, len(members), self.ipc):
            images[first : first + self.ipc] = self.cut(members[first : first + self.ipc])
        return images
