"""Images that stay files and are decoded when they are first asked for: for sets too large to hold in memory."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delt.data.decode import decode
from delt.data.images import TensorImages
from delt.data.kept import Kept
from delt.errors import DataError
from delt.runtime import cores, stream

CHUNK = 64  # images decoded at once where the caller names no batch
Decoded = np.ndarray | DataError


@dataclass
class StreamImages:
    """Labelled image files, decoded on demand (the protocol `delt.data.images.Images`).

    What comes out depends on the files and the index alone, never on the number of worker processes.
    """

    paths: Sequence[str]
    labels: Tensor  # int64 [N], on the CPU
    channels: int
    size: int
    device: torch.device
    workers: int = 0  # processes that decode ahead; 0 decodes in this one
    kept: Kept | None = None  # where decoded images are kept

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, index: Tensor) -> Tensor:
        """uint8 [n,C,H,W] of the images at `index` (int64 [n], CPU), on the device of the set."""
        pixels = torch.empty(len(index), self.channels, self.size, self.size, dtype=torch.uint8, device=self.device)
        for part, images in zip(pixels.split(CHUNK), self._decoded(index, CHUNK), strict=True):
            part.copy_(images)
        return pixels

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (uint8 [n,C,H,W], int64 [n]) over `index` in its order, on the device of the set."""
        for part, images in zip(index.split(batch), self._decoded(index, batch), strict=True):
            yield images.to(self.device), self.labels[part].to(self.device)

    def held(self) -> TensorImages:
        """The same images, all decoded and held on the device."""
        return TensorImages(self.fetch(torch.arange(len(self))), self.labels)

    def _decoded(self, index: Tensor, batch: int) -> Iterator[Tensor]:
        parts = [[(i, self.paths[i]) for i in part.tolist()] for part in index.split(batch)]
        workers = min(self.workers, len(parts)) if len(index) > CHUNK else 0  # a process costs more than a few images
        loader = DataLoader(
            _Batches(parts, self.channels, self.size, self.kept),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
            generator=stream("stream"),  # without its own, the loader would draw from the global generator
        )
        for images in loader:
            if isinstance(images, DataError):
                raise images
            yield torch.from_numpy(images)


class _Batches(Dataset[Decoded]):
    """Whole batches, by number. Arrays and not tensors, because tensors would travel in shared memory, which
    containers keep small; an error as a value, because the loader would wrap a raised one in a worker's traceback."""

    def __init__(self, parts: list[list[tuple[int, str]]], channels: int, size: int, kept: Kept | None) -> None:
        self.parts, self.channels, self.size, self.kept = parts, channels, size, kept

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Decoded:
        files = self.parts[number]
        images = torch.empty(len(files), self.channels, self.size, self.size, dtype=torch.uint8)
        try:
            for image, (place, path) in zip(images, files, strict=True):
                decoded = functools.partial(decode, path, self.channels, self.size)
                image.copy_(self.kept.get(place, decoded) if self.kept else decoded())
            return images.numpy()
        except DataError as error:
            return DataError(str(error))


def _unchanged(item: Any) -> Any:
    return item


def _context() -> BaseContext:
    """Workers come from a clean server process that has torch loaded: quick to start, and safe beside threads and CUDA."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def spare_workers() -> int:
    """How many processes may decode ahead here: none on one core, and none in a process that is a worker itself."""
    return 0 if multiprocessing.parent_process() else min(8, cores() - 1)
