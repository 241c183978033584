"""Pixels at both ends of recover: what images start from, and what is kept of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from delt.artifacts.teacher import Teacher
from delt.config import RecoverConfig
from delt.data.images import denormalise, normalise
from delt.engine.pack import PackTask
from delt.runtime import stream


def small_side(size: int, config: RecoverConfig) -> int:
    """Pixels per side of the images in the small stages, of a set of this size."""
    return max(1, round(size * config.small_side))


def starting_images(task: PackTask) -> Tensor:
    """The normalised images [N,C,H,W] that a pack starts from."""
    card = task.teacher.card
    return noise(task.teacher, task.members, task.job.seed) if task.start is None else normalise(task.start, card.mean, card.std)


def resized(images: Tensor, side: int) -> Tensor:
    """Float images [N,C,H,W] at `side` pixels, bilinear; untouched where they have that size."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def noise(teacher: Teacher, members: Sequence[tuple[int, int]], seed: int) -> Tensor:
    """Standard normal images [n,C,H,W] in normalised space, each from a stream of its own."""
    card = teacher.card
    shape = (card.channels, card.size, card.size)
    return torch.stack([torch.randn(shape, generator=stream(seed, "noise", c, i)) for c, i in members])


def kept_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], how: str) -> Tensor:
    """The uint8 pixels on the CPU that are kept of normalised images: rounded, or truncated and through JPEG (published)."""
    if how == "png":
        return denormalise(images, mean, std).cpu()
    shape = (1, -1, 1, 1)
    pixels = (images * images.new_tensor(std).view(shape) + images.new_tensor(mean).view(shape)) * 255
    return torch.stack([jpeg75(image) for image in pixels.clamp(0, 255).to(torch.uint8).cpu()])


def jpeg75(image: Tensor) -> Tensor:
    """A uint8 image [C,H,W] after JPEG at Pillow's default quality."""
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "JPEG", quality=75)
    back = np.array(Image.open(buffer))
    return torch.from_numpy(back if back.ndim == 3 else back[..., None]).permute(2, 0, 1)
