"""What a student sees: epochs of shuffled, augmented, mixed batches that can be replayed from their key alone.

Because a view is a function of (key, epoch), stored soft labels need no crop boxes and no patched loader: the student
draws the same views again and reads the labels in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from delt.data.augment import Mix, cutmix, mixup, pad_crop, random_resized_crop, shuffle_patches
from delt.data.images import Images, TensorImages, normalise
from delt.data.randaugment import rand_augment
from delt.recipes import Recipe
from delt.runtime import stream

TOGETHER = 2**22  # pixels of a set in memory that are augmented at once, so that small batches cost few launches


@dataclass(frozen=True)
class Batch:
    """One step's images, normalised [n,C,H,W], with their labels [n], rows in the set [n] and mixing partners."""

    images: Tensor
    labels: Tensor
    index: Tensor
    mix: Mix | None


def together(batch: int, size: int) -> int:
    """Images of `size` pixels per side that are augmented at once: whole batches of so many."""
    return batch * max(1, TOGETHER // (batch * size**2))


def safe_batch(count: int, batch: int) -> int:
    """`batch`, or a little more where a pass over `count` images would end in a batch of one, whose statistics BatchNorm refuses."""
    while count > batch and count % batch == 1:
        batch += 1
    return batch


def parts_of(images: Tensor, parts: int) -> tuple[Tensor, ...]:
    """A batch [n,..] in equal parts, fewer where one would hold a single image, whose statistics BatchNorm refuses."""
    return images.tensor_split(max(1, min(parts, len(images) // 2)))


@dataclass(frozen=True)
class Views:
    """The augmented passes over a set under a recipe."""

    recipe: Recipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    batch: int
    key: tuple[object, ...]  # of the random streams
    period: int | None = None  # passes after which the views repeat (stored labels)

    def steps(self, images: Images) -> int:
        """Batches in a pass; the last, smaller one counts."""
        return -(-len(images) // safe_batch(len(images), self.batch))

    def epoch(self, images: Images, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one pass, on the device of the set."""
        generator = stream(*self.key, epoch % self.period if self.period else epoch)
        order = torch.randperm(len(images), generator=generator)
        batch = safe_batch(len(images), self.batch)
        part = together(batch, images.pixels.shape[-1]) if isinstance(images, TensorImages) else batch
        pairs = zip(order.split(part), images.batches(order, part), strict=True)
        for index, (pixels, labels) in pairs:
            views = self._augmented(pixels, generator)
            for given in zip(views.split(batch), labels.split(batch), index.split(batch), strict=True):
                yield self._mixed(*given, generator)

    def _augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images from uint8 [n,C,H,W], each changed in its own way."""
        recipe = self.recipe
        if recipe.randaugment:
            pixels = rand_augment(pixels, generator)
        if recipe.shuffle > 1:
            pixels = shuffle_patches(pixels, recipe.shuffle, generator)
        if recipe.pad:  # before the normalisation, so that what comes in at the edge is black
            pixels = pad_crop(pixels.float(), recipe.pad, self.flip, generator)
        images = normalise(pixels, self.mean, self.std)
        if not recipe.pad:
            images = random_resized_crop(images, recipe.smallest_crop, self.flip, generator)
        return images

    def _mixed(self, images: Tensor, labels: Tensor, index: Tensor, generator: torch.Generator) -> Batch:
        recipe = self.recipe
        if recipe.mix == "none":
            return Batch(images, labels, index, None)
        mixed, mix = (cutmix if recipe.mix == "cutmix" else mixup)(images, generator, recipe.mix_alpha)
        return Batch(mixed, labels, index, mix)
