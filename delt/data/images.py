"""A data set is images and labels: uint8 tensors on the device where they fit, decoded on the way where they do not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from delt.runtime import send


@runtime_checkable
class Images(Protocol):
    """Labelled images of one size."""

    labels: Tensor  # int64 [N], on the CPU

    def __len__(self) -> int:
        """How many there are."""

    def fetch(self, index: Tensor) -> Tensor:
        """uint8 [n,C,H,W] of the images at `index` (int64 [n], CPU)."""

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (uint8 images, labels) over `index` in its order, on the device of the set."""


@dataclass
class TensorImages:
    """Images held as one uint8 tensor [N,C,H,W]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor) -> Tensor:
        return self.pixels[send(index, self.pixels.device)]

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in index.split(batch):
            yield self.fetch(part), send(self.labels[part], self.pixels.device)


@dataclass(frozen=True)
class DataInfo:
    """What every stage needs to know of a data set; the order of `classes` is the meaning of the labels."""

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int  # pixels per side
    mean: tuple[float, ...]  # per channel, of pixels in 0 .. 1
    std: tuple[float, ...]
    flip: bool  # whether a mirror image is still of its class
    floor: float  # test accuracy in % below which a teacher is refused


@dataclass(frozen=True)
class Notes:
    """What was met when the files of a set were opened."""

    skipped: tuple[tuple[str, str], ...] = ()  # files left out: path below the root, cause
    over_white: int = 0  # images with transparency, which was laid over white


@dataclass
class RealSet:
    """The original data set."""

    info: DataInfo
    train: Images
    test: Images
    fingerprint: str  # sha256 that equal data share; see `delt.data.facts`
    notes: Notes = Notes()


@functools.lru_cache(64)
def per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number per channel as [1,C,1,1]; kept, since every copy to a GPU costs time."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [N,C,H,W] to (x / 255 - mean) / std per channel."""
    centre, scale = (per_channel(values, dtype, images.device) for values in (mean, std))
    return (images.to(dtype) / 255 - centre) / scale


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The inverse of `normalise`: normalised [N,C,H,W] to uint8, rounded and clipped."""
    centre, scale = (per_channel(values, images.dtype, images.device) for values in (mean, std))
    return ((images * scale + centre) * 255).round().clamp(0, 255).to(torch.uint8)
