"""Soft labels: the teacher itself, asked online, or its stored logits on replayable views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from delt import storage
from delt.artifacts.teacher import Teacher
from delt.data.views import Batch
from delt.errors import ConfigError, IntegrityError
from delt.recipes import Recipe

FILE = "soft_labels.safetensors"
FLIP = ("no", "yes")  # words for False and True in the file


@dataclass
class SoftLabels:
    """Labels for the views of a synthetic set.

    Online (`logits` is None) the teacher labels each batch. Stored, `logits[e, step]` of pass e are replayed with the
    views of key ("relabel", seed): no boxes are stored, only float16 logits [E, N, K] in the order of the views. They
    belong to one set, named by `images_sha256` (`set_digest`), seen in batches of `batch` images, mirrored or not (`flip`).
    """

    teacher: Teacher
    recipe: str
    logits: Tensor | None = None
    seed: int = 0
    batch: int = 0
    images_sha256: str = ""
    flip: bool = True

    def of(self, batch: Batch, epoch: int, start: int) -> Tensor:
        """Logits [n,K] of a batch that begins at position `start` of its pass."""
        if self.logits is None:
            return self.teacher.logits(batch.images)
        stored = self.logits[epoch % len(self.logits), start : start + len(batch.index)]
        return stored.to(batch.images)

    def check(self, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
        """Refuse stored labels that are to be replayed on another set or on other views; labels online fit any.

        Args:
            images: uint8 [N,C,H,W] of the set that is to be trained on, with its labels int64 [N].

        Raises:
            ConfigError: naming all that differs.
        """
        if self.logits is None:
            return
        pairs = {
            "images": (self.logits.shape[1], len(labels)),
            "sha256 of the images": (self.images_sha256 or "not recorded", set_digest(images, labels)),
            "recipe": (self.recipe, recipe.name),
            "flip": (self.flip, self.teacher.card.flip),
        }
        differ = [f"{name}: {own} in the labels, {asked} in the training" for name, (own, asked) in pairs.items() if own != asked]
        if differ:
            raise ConfigError(
                f"the stored labels are those of another set or recipe ({'; '.join(differ)}): relabel it, or set relabel_mode to online"
            )

    def save(self, folder: Path) -> list[Path]:
        """Write `soft_labels.safetensors` where labels are stored; return the paths written."""
        if self.logits is None:
            return []
        facts = {"recipe": self.recipe, "seed": str(self.seed), "batch": str(self.batch)}
        facts |= {"images_sha256": self.images_sha256, "flip": FLIP[self.flip]}
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
            seed, batch, flip = int(facts["seed"]), int(facts["batch"]), bool(FLIP.index(facts["flip"]))
            return SoftLabels(teacher, facts["recipe"], tensors["logits"], seed, batch, facts["images_sha256"], flip)
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"{folder / FILE} holds no soft labels: {error!r}") from error


def set_digest(images: Tensor, labels: Tensor) -> str:
    """sha256 over the shape, the pixels (uint8 [N,C,H,W]) and the labels (int64 [N]) of a set, on any device."""
    digest = hashlib.sha256(repr((tuple(images.shape), tuple(labels.shape))).encode())
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
