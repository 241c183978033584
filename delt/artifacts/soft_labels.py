"""Soft labels: the teachers themselves, asked online, or their stored logits on replayable views."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from delt import storage
from delt.artifacts.teacher import Teacher
from delt.data.views import Batch, parts_of
from delt.errors import ConfigError, IntegrityError, TeacherError
from delt.recipes import Recipe

FILE = "soft_labels.safetensors"
SHARED = ("classes", "channels", "size", "mean", "std")  # what teachers that label together must agree in
FLIP = ("no", "yes")  # words for False and True in the file


@dataclass
class SoftLabels:
    """Labels for the views of a synthetic set.

    Online (`logits` is None) the teacher labels each batch, together with `others` where the recipe asks all. Stored,
    `logits[e]` are replayed in pass e with the views of key ("relabel", seed): no boxes are stored, only float16
    logits [E, N, K], image by image in the order in which pass e shows them. They belong to one set, named by
    `images_sha256` (`set_digest`), seen in batches of `batch` images, mirrored or not (`flip`).

    Raises:
        TeacherError: one of the others was made for other classes or other images than the teacher.
    """

    teacher: Teacher
    recipe: str
    logits: Tensor | None = None
    seed: int = 0
    batch: int = 0
    images_sha256: str = ""
    flip: bool = True
    others: tuple[Teacher, ...] = ()  # further backbones for the same images

    def __post_init__(self) -> None:
        for other in self.others:
            if differ := [name for name in SHARED if getattr(other.card, name) != getattr(self.teacher.card, name)]:
                raise TeacherError(
                    f"{other.card.arch} cannot label beside {self.teacher.card.arch}: {', '.join(differ)} differ; "
                    "squeeze all teachers on the same data set at the same size"
                )

    def of(self, batch: Batch, epoch: int, start: int, recipe: Recipe) -> Tensor:
        """Logits [n,K] of a batch that begins at position `start` of its pass, as the recipe wants them."""
        if self.logits is None:
            return self.online(batch.images, recipe)
        stored = self.logits[epoch % len(self.logits), start : start + len(batch.index)]
        return stored.to(batch.images)

    def online(self, images: Tensor, recipe: Recipe) -> Tensor:
        """The teachers' logits [n,K] of normalised images, as the recipe wants them."""
        return consensus([ask(teacher, images, recipe) for teacher in self.voters(recipe)], recipe.balanced)

    def voters(self, recipe: Recipe) -> tuple[Teacher, ...]:
        """The teachers that label: all where the recipe says so, else the first alone."""
        return (self.teacher, *self.others) if recipe.voters == "all" else (self.teacher,)

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

    def save(self, folder: Path | str) -> list[Path]:
        """Write `soft_labels.safetensors` where labels are stored; return the paths written."""
        if self.logits is None:
            return []
        facts = {"recipe": self.recipe, "seed": str(self.seed), "batch": str(self.batch)}
        facts |= {"images_sha256": self.images_sha256, "flip": FLIP[self.flip]}
        path = Path(folder) / FILE
        storage.write_tensors(path, {"logits": self.logits}, facts)
        return [path]

    @staticmethod
    def load(folder: Path | str, teacher: Teacher) -> SoftLabels:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        path = Path(folder) / FILE
        tensors, facts = storage.read_tensors(path)
        try:
            seed, batch, flip = int(facts["seed"]), int(facts["batch"]), bool(FLIP.index(facts["flip"]))
            return SoftLabels(teacher, facts["recipe"], tensors["logits"], seed, batch, facts["images_sha256"], flip)
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"{path} holds no soft labels: {error!r}") from error


def consensus(votes: Sequence[Tensor], balanced: bool = False) -> Tensor:
    """The mean of several teachers' logits for the same images, each [n,K].

    Balanced (G-VBSM, arXiv 2311.17950): each is first scaled so that its Frobenius norm is the mean of all norms, and none
    outvotes the others by the size of its logits. A single vote stays as it is.
    """
    if len(votes) == 1:
        return votes[0]
    logits = torch.stack(list(votes))
    if balanced:
        norms = logits.flatten(1).norm(dim=1).view(-1, 1, 1)
        logits = logits / norms.clamp_min(torch.finfo(logits.dtype).tiny) * norms.mean()
    return logits.mean(0)


@torch.no_grad()
def ask(teacher: Teacher, images: Tensor, recipe: Recipe) -> Tensor:
    """One teacher's logits [n,K] of normalised images [n,C,H,W], with the BatchNorm statistics that the recipe wants."""
    if recipe.label_statistics == "remembered":
        return teacher.logits(images)
    with batch_statistics(teacher.model):
        return torch.cat([teacher.logits(part) for part in parts_of(images, recipe.label_parts)])


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers use the batch's statistics and remember none; all other layers stay as they are."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False  # untracked: the running statistics are neither read nor moved
        yield
    finally:
        for layer, (training, tracked) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracked


def set_digest(images: Tensor, labels: Tensor) -> str:
    """sha256 over the shape, the pixels (uint8 [N,C,H,W]) and the labels (int64 [N]) of a set, on any device."""
    digest = hashlib.sha256(repr((tuple(images.shape), tuple(labels.shape))).encode())
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
