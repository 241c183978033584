"""RandAugment for whole batches of uint8 images: timm's `rand-m6-n2-mstd1.0`, without PIL and without workers.

Each image takes `ops` operations, one after the other: drawn uniformly with replacement from 15, each carried out with
probability 0.5, at a level drawn from N(magnitude, spread) and clipped to 0 .. 10. What is drawn is a value (`Step`)
before anything is done, so one generator gives the same images on every device up to rounding.

Tones follow Pillow to the grey level or next to it. Moves are interpolated bilinearly or bicubically, as the coin falls;
the cubic is torch's (a = -0.75), Pillow's is sharper (a = -1).

Papers: https://arxiv.org/abs/1909.13719; operations and levels as in timm's auto_augment (non-increasing set).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from delt.errors import ConfigError
from delt.runtime import Streams, drawn, send

FILL = (124, 116, 104)  # the ImageNet mean in 0 .. 255, for what a move uncovers
PROBABILITY = 0.5  # of carrying out a drawn operation
TOP = 10.0  # the highest level


@dataclass(frozen=True)
class Step:
    """One operation per image, as drawn: CPU tensors [N]."""

    op: Tensor  # int64, position in OPERATIONS; -1 leaves the image alone
    level: Tensor  # float, 0 .. 10
    sign: Tensor  # float, -1 or 1: direction of a move
    cubic: Tensor  # bool: bicubic in place of bilinear interpolation of a move


def rand_augment(images: Tensor, streams: Streams, magnitude: float = 6.0, ops: int = 2, spread: float = 1.0) -> Tensor:
    """Augmented copies of uint8 images [N,C,H,W] with 1 or 3 channels, on their device.

    Args:
        streams: of the CPU; the number of draws depends on N and `ops` only.
        magnitude: mean level, 0 .. 10.
        ops: operations per image.
        spread: standard deviation of the level.

    Raises:
        ConfigError: the images are not uint8 [N,C,H,W] with 1 or 3 channels.

    >>> rand_augment(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 8, 8])
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"RandAugment was given {images.dtype} {list(images.shape)}; allowed are uint8 [N,C,H,W] with 1 or 3 channels")
    for _ in range(ops):
        images = apply(images, draw(len(images), streams, magnitude, spread))
    return images


def draw(count: int, streams: Streams, magnitude: float, spread: float) -> Step:
    """Draw one operation for each of `count` images."""
    op = drawn(lambda rows, stream: torch.randint(len(OPERATIONS), (rows,), generator=stream), count, streams)
    skipped = drawn(lambda rows, stream: torch.rand(rows, generator=stream), count, streams) >= PROBABILITY
    level = magnitude + spread * drawn(lambda rows, stream: torch.randn(rows, generator=stream), count, streams)
    sign, cubic = drawn(lambda rows, stream: torch.randint(2, (2, rows), generator=stream).T, count, streams).unbind(1)
    return Step(op.masked_fill(skipped, -1), level.clamp(0, TOP), sign * 2.0 - 1.0, cubic.bool())


def apply(images: Tensor, step: Step) -> Tensor:
    """Carry out one operation per image of a uint8 batch [N,C,H,W], grouped so that each runs once; returns a new batch."""
    images = images.clone()
    for code, tone in enumerate(TONES.values()):
        rows = (step.op == code).nonzero().flatten()
        if len(rows):
            level = send(step.level[rows].view(-1, 1, 1, 1), images.device)
            rows = send(rows, images.device)
            images[rows] = tone(images[rows], level)
    for cubic in (False, True):
        rows = ((step.op >= len(TONES)) & (step.cubic == cubic)).nonzero().flatten()
        if len(rows):
            matrix = send(matrices(step, rows, *images.shape[-2:]), images.device)
            rows = send(rows, images.device)
            images[rows] = warp(images[rows], matrix, "bicubic" if cubic else "bilinear")
    return images


# Moves: a matrix [n,2,3] per image, from the pixel position (x, y, 1) of the result to that of the source.


def matrices(step: Step, rows: Tensor, height: int, width: int) -> Tensor:
    """float [n,2,3]: the moves that `step` holds for the images at `rows`."""
    share = step.level * step.sign / TOP
    out = torch.empty(len(rows), 2, 3)
    for code, move in enumerate(MOVES.values(), start=len(TONES)):
        mine = step.op[rows] == code
        out[mine] = move(share[rows][mine], height, width)
    return out


def warp(images: Tensor, matrix: Tensor, mode: str) -> Tensor:
    """Move uint8 images [n,C,H,W] by their matrices [n,2,3]; the edge is hard, and what is uncovered takes FILL.

    Positions count from the corner of the image, so the first pixel's centre is at 0.5, as in Pillow.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device)[:, None] + 0.5
    a, b, c, d, e, f = matrix.view(-1, 6, 1, 1).unbind(1)
    source = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=-1)  # not a matmul: TF32 would lose the position
    size = source.new_tensor([width, height])
    inside = ((source >= 0) & (source < size)).all(-1)
    moved = F.grid_sample(images.float(), source * 2 / size - 1, mode, padding_mode="border", align_corners=False)
    moved = (moved + 1e-3).clamp(0, 255).to(torch.uint8)  # truncates as Pillow does; 254.9999 is 255
    return torch.where(inside[:, None], moved, _fill(images))


def _fill(images: Tensor) -> Tensor:
    colour = torch.tensor(FILL, device=images.device, dtype=torch.uint8).view(1, 3, 1, 1)
    return _grey(colour) if images.shape[1] == 1 else colour


def _rotation(share: Tensor, height: int, width: int) -> Tensor:
    """About the middle, up to 30 degrees, counter-clockwise for a positive share."""
    angle, x, y = share * math.radians(30), width / 2, height / 2
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], dim=1).view(-1, 2, 3)


def _identity_but(row: int, column: int, value: Tensor) -> Tensor:
    matrix = torch.eye(2, 3).repeat(len(value), 1, 1)
    matrix[:, row, column] = value
    return matrix


MOVES: dict[str, Callable[[Tensor, int, int], Tensor]] = {  # (signed share of the top level [n], height, width) -> [n,2,3]
    "Rotate": _rotation,
    "ShearX": lambda share, height, width: _identity_but(0, 1, 0.3 * share),
    "ShearY": lambda share, height, width: _identity_but(1, 0, 0.3 * share),
    "TranslateXRel": lambda share, height, width: _identity_but(0, 2, 0.45 * width * share),
    "TranslateYRel": lambda share, height, width: _identity_but(1, 2, 0.45 * height * share),
}


# Tones: uint8 images [n,C,H,W] and levels [n,1,1,1] to uint8 images.


def _autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0 .. 255, in doubles as Pillow does; a channel of one value stays."""
    low, high = images.amin((2, 3), keepdim=True).double(), images.amax((2, 3), keepdim=True).double()
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1.0)
    offset = torch.where(high > low, -low * scale, 0.0)
    return (images * scale + offset).clamp(0, 255).to(torch.uint8)


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    lost = 8 - (level / TOP * 4).int()  # keeps 0 to 4 bits: harder at a low level
    return (images.int() >> lost << lost).to(torch.uint8)


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    threshold = (level / TOP * 256).int()  # harder at a low level
    return torch.where(images < threshold, images, 255 - images)


def _solarize_add(images: Tensor, level: Tensor) -> Tensor:
    lifted = (images.int() + (level / TOP * 110).int()).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, lifted, images)


def _colour(images: Tensor, level: Tensor) -> Tensor:
    return _enhanced(images, _grey(images), level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    mean = _grey(images).double().mean(dim=(1, 2, 3), keepdim=True)
    return _enhanced(images, (mean + 0.5).floor(), level)


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return _enhanced(images, torch.zeros_like(images), level)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    smooth = images.float()
    centre = smooth[..., 1:-1, 1:-1]
    box = 9 * F.avg_pool2d(smooth, 3, stride=1)
    smooth[..., 1:-1, 1:-1] = ((box + 4 * centre) / 13).round()  # the border stays, as in Pillow's SMOOTH
    return _enhanced(images, smooth, level)


def _enhanced(images: Tensor, poorest: Tensor, level: Tensor) -> Tensor:
    """Go from the version without the quality (0) through the image (1) and beyond: 0.1 at level 0, 1.9 at level 10."""
    factor = level / TOP * 1.8 + 0.1
    start = poorest.float()
    return (start + factor * (images.float() - start)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma [n,1,H,W] in Pillow's fixed-point arithmetic; images of one channel as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def _equalized(images: Tensor) -> Tensor:
    """Levels spread so that each is as frequent as it can be."""
    from torchvision.transforms.v2.functional import equalize  # takes long to load, and few students need it

    out: Tensor = equalize(images)
    return out


TONES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": lambda images, level: _autocontrast(images),
    "Equalize": lambda images, level: _equalized(images),
    "Invert": lambda images, level: 255 - images,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _colour,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}

OPERATIONS = (*TONES, *MOVES)
