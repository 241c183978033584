"""What a student sees: epochs of shuffled, augmented, mixed batches that can be replayed from their key alone.

Because a view is a function of (key, epoch), stored soft labels need no crop boxes and no patched loader: the student
draws the same views again and reads the labels in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from delt.data.augment import Mix, draw_cutmix, draw_mixup, mixed, pad_crop, random_resized_crop, shuffle_patches
from delt.data.images import Images, TensorImages, normalise
from delt.data.randaugment import rand_augment
from delt.recipes import Recipe
from delt.runtime import Streams, send, stream

TOGETHER = 2**22  # pixels of a set in memory that are augmented at once, so that small batches cost few steps of the CPU
AHEAD = {"cpu": 2**16, "cuda": TOGETHER}  # the same of several passes over a small set: a CPU's caches hold less
PASSES = 16  # most of them


@dataclass(frozen=True)
class Batch:
    """One step's images, normalised [n,C,H,W], with their labels [n], rows in the set [n] and how they were mixed."""

    images: Tensor
    labels: Tensor
    index: Tensor  # on the CPU, as all draws are
    mix: Mix | None = None
    others: tuple[Tensor, Tensor] | None = None  # labels [n] of the mixing partners, and the share [] of the own label


@dataclass
class Made:
    """The newest passes of a small set, which are augmented at once, since each step of the CPU costs as much for one as for many."""

    images: Images | None = None
    first: int = 0
    passes: list[list[Batch]] = field(default_factory=list)


def together(batch: int, size: int) -> int:
    """Images of `size` pixels per side that are augmented at once: whole batches of so many."""
    return batch * max(1, TOGETHER // (batch * size**2))


def passes_at_once(images: Images) -> int:
    """Passes over a set that are augmented at once: several of a small one that is in memory."""
    if not isinstance(images, TensorImages):
        return 1
    _, _, height, width = images.pixels.shape
    return max(1, min(PASSES, AHEAD[images.pixels.device.type] // (len(images) * height * width)))


def safe_batch(count: int, batch: int) -> int:
    """`batch`, or a little more where a pass over `count` images would end in a batch of one, whose statistics BatchNorm refuses."""
    while count > batch and count % batch == 1:
        batch += 1
    return batch


def part_sizes(count: int, parts: int) -> list[int]:
    """Sizes of equal parts of a batch, fewer where one would hold a single image, whose statistics BatchNorm refuses."""
    parts = max(1, min(parts, count // 2))
    return [count // parts + (k < count % parts) for k in range(parts)]


def parts_of(images: Tensor, parts: int) -> tuple[Tensor, ...]:
    """A batch [n,..] in parts of `part_sizes`."""
    return images.split(part_sizes(len(images), parts))


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
    made: Made = field(default_factory=Made, init=False, compare=False, repr=False)

    def steps(self, images: Images) -> int:
        """Batches in a pass; the last, smaller one counts."""
        return -(-len(images) // safe_batch(len(images), self.batch))

    def epoch(self, images: Images, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one pass, on the device of the set."""
        number = epoch % self.period if self.period else epoch
        batch = safe_batch(len(images), self.batch)
        ahead = passes_at_once(images)
        if ahead == 1:
            part = together(batch, images.pixels.shape[-1]) if isinstance(images, TensorImages) else batch
            yield from self._parts(images, [number], batch, part)
            return
        first = number // ahead * ahead
        made = self.made
        if made.images is not images or made.first != first:
            numbers = list(range(first, min(first + ahead, self.period or first + ahead)))
            made.images, made.passes = None, []  # their memory is needed
            batches, steps = list(self._parts(images, numbers, batch, len(numbers) * len(images))), self.steps(images)
            made.images, made.first, made.passes = images, first, [batches[k : k + steps] for k in range(0, len(batches), steps)]
        yield from made.passes[number - first]

    def _parts(self, images: Images, numbers: list[int], batch: int, part: int) -> Iterator[Batch]:
        """The batches of some passes one after the other, `part` images of which are augmented at once: parts of one, or all of several."""
        streams = [stream(*self.key, number) for number in numbers]
        order = torch.cat([torch.randperm(len(images), generator=one) for one in streams])
        for index, (pixels, labels) in zip(order.split(part), images.batches(order, part), strict=True):
            views = self._augmented(pixels, streams)
            rows = [some for own in index.split(len(index) // len(streams)) for some in own.split(batch)]
            counts = [len(some) for some in rows]
            if self.recipe.mix == "none":
                yield from map(Batch, views.split(counts), labels.split(counts), rows)
                continue
            mixes = self._mixes(counts, views.shape[-1], streams)
            views, partner = mixed(views, mixes)
            shares = send(torch.tensor([mix.share for mix in mixes]), views.device)
            others = zip(labels[partner].split(counts), shares.unbind(), strict=True)
            yield from map(Batch, views.split(counts), labels.split(counts), rows, mixes, others)

    def _mixes(self, counts: list[int], size: int, streams: list[torch.Generator]) -> list[Mix]:
        """How batches of so many images are mixed, equally many of each pass."""
        draw, each = draw_cutmix if self.recipe.mix == "cutmix" else draw_mixup, len(counts) // len(streams)
        return [draw(count, size, self.recipe.mix_alpha, streams[k // each]) for k, count in enumerate(counts)]

    def _augmented(self, pixels: Tensor, streams: Streams) -> Tensor:
        """Normalised images from uint8 [n,C,H,W], each changed in its own way."""
        recipe = self.recipe
        if recipe.randaugment:
            pixels = rand_augment(pixels, streams)
        if recipe.shuffle > 1:
            pixels = shuffle_patches(pixels, recipe.shuffle, streams)
        if recipe.pad:  # before the normalisation, so that what comes in at the edge is black
            pixels = pad_crop(pixels.float(), recipe.pad, self.flip, streams)
        images = normalise(pixels, self.mean, self.std)
        if not recipe.pad:
            images = random_resized_crop(images, recipe.smallest_crop, self.flip, streams)
        return images
