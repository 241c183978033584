"""Batched augmentation with explicit generators: draws are plain numbers made on the CPU, images never leave the device.

Crop, resize, mirror and circular shift of a square image are one linear map per axis, `rows @ image @ cols.T`, which is
differentiable, deterministic on every device and may differ from image to image at no extra cost.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from delt.runtime import Streams, drawn, send

RATIOS = (3 / 4, 4 / 3)  # aspect ratios of RandomResizedCrop
ATTEMPTS = 10
CPU = torch.device("cpu")
BOX = 2 * ATTEMPTS + 2  # uniform numbers behind a box: areas, aspect ratios, place


def draw_boxes(count: int, size: int, smallest: float, streams: Streams, ratios: tuple[float, float] = RATIOS) -> Tensor:
    """Boxes of RandomResizedCrop in a square of `size` pixels: int64 [count, 4] as top, left, height, width.

    Args:
        ratios: least and greatest width / height, between which 1 lies.
    """
    numbers = drawn(lambda rows, stream: torch.rand(rows, BOX, generator=stream), count, streams)
    return boxes_of(numbers, size, torch.tensor(smallest), ratios)


def boxes_of(numbers: Tensor, size: int, smallest: Tensor, ratios: tuple[float, float] = RATIOS) -> Tensor:
    """The boxes that uniform numbers [n, BOX] mean, int64 [n, 4]; `smallest` is one share for all or [n, 1].

    As torchvision does: area share uniform in [smallest, 1], log-uniform aspect ratio, ten attempts, else the whole image.
    """
    area, ratio, place = numbers.split([ATTEMPTS, ATTEMPTS, 2], 1)
    area = size * size * (smallest + (1 - smallest) * area)
    log_low, log_high = math.log(ratios[0]), math.log(ratios[1])
    ratio = torch.exp(log_low + (log_high - log_low) * ratio)
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    height = torch.where(found, height.gather(1, first).squeeze(1), size)
    width = torch.where(found, width.gather(1, first).squeeze(1), size)
    top, left = (place[:, 0] * (size - height + 1)).long(), (place[:, 1] * (size - width + 1)).long()
    return torch.stack([top, left, height, width], 1)


def axis_operator(start: Tensor, length: Tensor, size: int, flip: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Matrices [n, size, size] that cut `length` pixels from `start`, stretch them to `size` (bilinear), mirror, then roll.

    Args:
        start, length: int64 [n], in pixels; what lies outside the image is zero.
        flip: bool [n]; shift: int64 [n], pixels of circular shift towards higher indices.
    """
    place = torch.arange(size, device=start.device).expand(len(start), size)
    if shift is not None:
        place = (place - shift[:, None]) % size
    if flip is not None:
        place = torch.where(flip[:, None], size - 1 - place, place)
    centre = (place + 0.5) * length[:, None] / size - 0.5
    centre = torch.minimum(centre.clamp_min(0), length[:, None] - 1.0)  # edge pixels repeat, as in bilinear resizing
    low = centre.floor().long()
    high = torch.minimum(low + 1, length[:, None] - 1)
    weight = (centre - low).unsqueeze(2)
    operator = torch.zeros(len(start), size, size, device=start.device)
    for index, share in ((start[:, None] + low, 1 - weight), (start[:, None] + high, weight)):
        inside = (index >= 0) & (index < size)
        operator.scatter_add_(2, index.clamp(0, size - 1).unsqueeze(2), share * inside.unsqueeze(2))
    return operator


def resizer(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Matrices [n, side, size] that cut `length` of `size` pixels from `start` and resize them to `side`: bilinear, antialiased."""
    start, length, pixel = start[:, None, None], length[:, None, None], torch.arange(size)
    centre = (torch.arange(side)[:, None] + 0.5) * length / side
    reach = (length / side).clamp_min(1)  # a shrunk pixel is the mean of all that it covers
    weight = (1 - (pixel - start + 0.5 - centre).abs() / reach).clamp_min(0)
    weight = weight * ((pixel >= start) & (pixel < start + length))
    return weight / weight.sum(2, keepdim=True)


@functools.cache
def enlarger(size: int, side: int, device: torch.device = CPU, dtype: torch.dtype = torch.float64) -> Tensor:
    """Matrix [side, size] that stretches all of `size` pixels to `side` of them; made once, since every step asks for it, and
    copying it anew would make a GPU wait.
    """
    return resizer(torch.tensor([0]), torch.tensor([size]), size, side)[0].to(device, dtype)


def warp(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Apply axis operators [..., H, H] and [..., W, W] to images [..., C, H, W]; leading axes broadcast."""
    return rows.to(images).unsqueeze(-3) @ images @ cols.to(images).unsqueeze(-3).mT


def taps(operators: Tensor) -> Tensor:
    """Where operators [..., size, size] are not zero, int32 [..., 4, size]: first place and number in each row, then in each column.

    In those of `axis_operator` such places lie side by side, on past the end to the beginning.
    """
    held, found = operators != 0, []
    for axis in (-1, -2):
        begins = held & ~held.roll(1, axis)
        found += [begins.to(torch.uint8).argmax(axis), held.sum(axis)]
    return torch.stack(found, -2).to(torch.int32)


def random_resized_crop(images: Tensor, smallest: float, flip: bool, streams: Streams) -> Tensor:
    """A crop, and a mirroring with probability one half where `flip` is set, of its own for each image [N,C,H,W]."""
    size = images.shape[-1]
    boxes = draw_boxes(len(images), size, smallest, streams)
    mirrored = _coins(len(images), streams) if flip else None
    top, left, height, width = send(boxes, images.device).unbind(1)
    mirrored = None if mirrored is None else send(mirrored, images.device)
    return warp(images, axis_operator(top, height, size), axis_operator(left, width, size, mirrored))


def pad_crop(images: Tensor, pad: int, flip: bool, streams: Streams) -> Tensor:
    """Shift each image [N,C,H,W] by up to `pad` pixels over zeros, and mirror half of them where `flip` is set."""
    count, _, size, _ = images.shape
    shift = drawn(lambda rows, stream: torch.randint(-pad, pad + 1, (rows, 2), generator=stream), count, streams)
    mirrored = _coins(count, streams) if flip else torch.zeros(count, dtype=torch.bool)
    shift, mirrored = send(shift, images.device), send(mirrored, images.device)
    place = torch.arange(size, device=images.device).expand(count, size)
    rows = _pick(place + shift[:, :1], size)
    cols = _pick(torch.where(mirrored[:, None], size - 1 - place, place) + shift[:, 1:], size)
    return warp(images, rows, cols)


def shuffle_patches(images: Tensor, parts: int, streams: Streams) -> Tensor:
    """Cut each image [N,C,H,W] into `parts` column strips that change places, then into as many row strips (RDED, arXiv 2312.03526).

    Each image has an order of its own. The strips are equally wide, or differ by one pixel where the size is no multiple of `parts`.
    """
    count, _, height, width = images.shape
    cols = send(_permuted(count, width, parts, streams), images.device)
    rows = send(_permuted(count, height, parts, streams), images.device)
    images = images.gather(3, cols[:, None, None, :].expand_as(images))
    return images.gather(2, rows[:, None, :, None].expand_as(images))


def _coins(count: int, streams: Streams) -> Tensor:
    """bool [count], true with probability one half."""
    return drawn(lambda rows, stream: torch.rand(rows, generator=stream), count, streams) < 0.5


def _permuted(count: int, size: int, parts: int, streams: Streams) -> Tensor:
    """int64 [count, size]: which pixel of a line comes to each place when its strips are put in a random order."""
    strip = torch.arange(size) * parts // size
    rank = drawn(lambda rows, stream: torch.rand(rows, parts, generator=stream), count, streams)
    return rank[:, strip].argsort(dim=1, stable=True)


def _pick(source: Tensor, size: int) -> Tensor:
    """Matrices [n, size, size] that copy pixel `source[n, y]` to y, and zero where it lies outside."""
    return (source.unsqueeze(2) == torch.arange(size, device=source.device)).float()


@dataclass(frozen=True)
class Mix:
    """Which image of a batch each was mixed with, and the share of its own pixels that is left."""

    partner: Tensor  # int64 [N]
    share: float
    box: tuple[int, int, int, int] | None = None  # top, left, bottom, right of what is pasted; None: all pixels are blended


def draw_cutmix(count: int, size: int, alpha: float, generator: torch.Generator) -> Mix:
    """A box, the same for all of a batch's images, to be pasted from a random partner (arXiv 1905.04899, as SRe2L and RDED use it).

    One lam ~ Beta(alpha, alpha) per batch; side = int(size * sqrt(1 - lam)); uniform centre; edges clipped, so the share
    is counted from the box that is left.
    """
    side = int(size * math.sqrt(1 - beta(alpha, generator)))
    middle = torch.randint(size, (2,), generator=generator).tolist()
    (top, bottom), (left, right) = ((max(c - side // 2, 0), min(c + side // 2, size)) for c in middle)
    partner = torch.randperm(count, generator=generator)
    return Mix(partner, 1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def draw_mixup(count: int, size: int, alpha: float, generator: torch.Generator) -> Mix:
    """A random partner to blend with, one lam ~ Beta(alpha, alpha) per batch (arXiv 1710.09412)."""
    lam = beta(alpha, generator)
    return Mix(torch.randperm(count, generator=generator), lam)


def mixed(images: Tensor, mixes: Sequence[Mix]) -> tuple[Tensor, Tensor]:
    """Batches [N,C,H,W] that lie end to end, each mixed in its own way, and the row of each image's partner [N]: few steps for all."""
    counts = [len(mix.partner) for mix in mixes]
    starts = itertools.accumulate(counts, initial=0)
    partner = send(torch.cat([mix.partner + start for mix, start in zip(mixes, starts, strict=False)]), images.device)
    others = images[partner]
    if mixes[0].box is None:
        shares = torch.tensor([[mix.share, 1 - mix.share] for mix in mixes]).repeat_interleave(torch.tensor(counts), 0)
        own, rest = send(shares.to(images.dtype), images.device)[:, :, None, None, None].unbind(1)
        return own * images + rest * others, partner
    boxes = torch.tensor([mix.box for mix in mixes]).repeat_interleave(torch.tensor(counts), 0)
    top, left, bottom, right = send(boxes, images.device)[:, :, None].unbind(1)
    place = torch.arange(images.shape[-1], device=images.device)
    rows, cols = (place >= top) & (place < bottom), (place >= left) & (place < right)
    return torch.where((rows[:, :, None] & cols[:, None, :])[:, None], others, images), partner


def beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); torch has no Beta that takes a generator, so numpy is seeded from it."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
