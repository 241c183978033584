"""Soft labels: the teacher itself, asked online, or its stored logits on replayable views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from delt import storage
from delt.artifacts.teacher import Teacher
from delt.data.views import Batch
from delt.errors import IntegrityError

FILE = "soft_labels.safetensors"


@dataclass
class SoftLabels:
    """Labels for the views of a synthetic set.

    Online (`logits` is None) the teacher labels each batch. Stored, `logits[e, step]` of pass e are replayed with the
    views of key ("relabel", seed): no boxes are stored, only float16 logits [E, N, K] in the order of the views.
    """

    teacher: Teacher
    recipe: str
    logits: Tensor | None = None
    seed: int = 0
    batch: int = 0

    def of(self, batch: Batch, epoch: int, start: int) -> Tensor:
        """Logits [n,K] of a batch that begins at position `start` of its pass."""
        if self.logits is None:
            return self.teacher.logits(batch.images)
        stored = self.logits[epoch % len(self.logits), start : start + len(batch.index)]
        return stored.to(batch.images)

    def save(self, folder: Path) -> list[Path]:
        """Write `soft_labels.safetensors` where labels are stored; return the paths written."""
        if self.logits is None:
            return []
        facts = {"recipe": self.recipe, "seed": str(self.seed), "batch": str(self.batch)}
        storage.write_tensors(folder / FILE, {"logits": self.logits}, facts)
        return [folder / FILE]

    @staticmethod
    def load(folder: Path, teacher: Teacher) -> SoftLabels:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        tensors, facts = storage.read_tensors(folder / FILE)
        try:
            return SoftLabels(teacher, facts["recipe"], tensors["logits"], int(facts["seed"]), int(facts["batch"]))
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"{folder / FILE} holds no soft labels: {error!r}") from error
