"""Images that stay files and are decoded when they are first asked for: for sets too large to hold in memory."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delt import processes
from delt.data.decode import BadImage, decode, see_through
from delt.data.images import TensorImages
from delt.data.kept import Kept
from delt.errors import DataError
from delt.runtime import cores, stream

CHUNK = 64  # images decoded at once where the caller names no batch
HEADERS = 4096  # headers read at once
Decoded = np.ndarray | DataError
Part = Sequence[tuple[int, str]]  # number in `kept` and path of each file


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
    places: Sequence[int] | None = None  # at which number each image is kept; None: at its index

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

    def faults(self) -> dict[int, str]:
        """Index -> cause of every file that is no usable image. All are decoded, apart from those that were kept before."""
        index = [i for i in range(len(self)) if not (self.kept and self.kept.holds(self._place(i)))]
        parts = torch.tensor(index, dtype=torch.int64).split(CHUNK)
        causes = self._worked(self._decoder().causes, parts)
        return {i: cause for part, found in zip(parts, causes, strict=True) for i, cause in zip(part.tolist(), found, strict=True) if cause}

    def _decoded(self, index: Tensor, batch: int) -> Iterator[Tensor]:
        for images in self._worked(self._decoder().batch, index.split(batch)):
            if isinstance(images, DataError):
                raise images
            yield torch.from_numpy(images)

    def _worked(self, work: Callable[[Part], Any], index: Sequence[Tensor]) -> Iterator[Any]:
        parts = [[(self._place(i), self.paths[i]) for i in part.tolist()] for part in index]
        few = sum(map(len, parts)) <= CHUNK  # a process costs more than these
        return _each(work, parts, 0 if few else self.workers)

    def _place(self, index: int) -> int:
        return self.places[index] if self.places else index

    def _decoder(self) -> _Decoder:
        return _Decoder(self.channels, self.size, self.kept)


def over_white(paths: Sequence[str], workers: int) -> int:
    """How many of these images have transparency, as their headers say.

    Raises:
        DataError: a file is no usable image.
    """
    parts = [paths[start : start + HEADERS] for start in range(0, len(paths), HEADERS)]
    count = 0
    for found in _each(_count_see_through, parts, workers if len(parts) > 1 else 0):
        if isinstance(found, DataError):
            raise found
        count += found
    return count


def _count_see_through(paths: Sequence[str]) -> int | DataError:
    try:
        return sum(map(see_through, paths))
    except DataError as error:
        return DataError(str(error))


@dataclass
class _Decoder:
    """What is done to the files of one part. Arrays and not tensors, because tensors would travel in shared memory, which
    containers keep small; an error as a value, because the loader would wrap a raised one in a worker's traceback."""

    channels: int
    size: int
    kept: Kept | None

    def batch(self, files: Part) -> Decoded:
        images = torch.empty(len(files), self.channels, self.size, self.size, dtype=torch.uint8)
        try:
            for image, (place, path) in zip(images, files, strict=True):
                image.copy_(self._image(place, path))
            return images.numpy()
        except DataError as error:
            return DataError(str(error))

    def causes(self, files: Part) -> list[str]:
        """Why each file is no usable image; empty where it is one."""
        return [self._cause(place, path) for place, path in files]

    def _cause(self, place: int, path: str) -> str:
        try:
            self._image(place, path)
        except BadImage as error:
            return error.cause
        return ""

    def _image(self, place: int, path: str) -> Tensor:
        decoded = functools.partial(decode, path, self.channels, self.size)
        return self.kept.get(place, decoded) if self.kept else decoded()


class _Work(Dataset[Any]):
    """A function's value for each part, by the part's number."""

    def __init__(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
        self.work, self.parts = work, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Any:
        return self.work(self.parts[number])


def _each(work: Callable[[Any], Any], parts: Sequence[Any], workers: int) -> Iterator[Any]:
    """The values of `work` for the parts, in their order; 0 workers: in this process."""
    workers = min(workers, len(parts))
    return iter(
        DataLoader(
            _Work(work, parts),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=processes.context() if workers else None,
            worker_init_fn=_begin,
            generator=stream("stream"),  # without its own, the loader would draw from the global generator
        )
    )


def _unchanged(item: Any) -> Any:
    return item


def _begin(number: int) -> None:
    """In a process of the loader, which ends its processes by SIGTERM where they do not end by themselves."""
    processes.hear()


def spare_workers() -> int:
    """How many processes may decode ahead here: none on one core, and none in a process that is a worker itself."""
    return 0 if multiprocessing.parent_process() else min(8, cores() - 1)
