"""What images tell about their set: channels, size, mean, deviation, and the fingerprint of the whole."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delt.data.decode import BadImage, content_of, facts_of, read
from delt.data.folders import Files, Listing
from delt.data.images import Images
from delt.data.specs import Statistics

STATISTICS = 10_000  # images that tell a set's mean and standard deviation
BATCH = 64
READ = 256  # files of each part of a large set whose content is read for its fingerprint


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spread over all."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def survey(paths: Sequence[str], skip: bool = False) -> tuple[int, int]:
    """Channels and size that suit these images: 1 channel if all are grey; the median shorter side, in steps of 8.

    Raises:
        BadImage: a file is no usable image; with `skip`, not one of them is.
    """
    grey, sides = True, []
    for image in _readable(paths, skip):
        sides.append(min(image.size))
        pixels = np.asarray(image)
        grey = grey and bool((pixels == pixels[..., :1]).all())
    side = min(224, statistics.median_low(sides))
    return (1 if grey else 3), max(8, side // 8 * 8)


def _readable(paths: Sequence[str], skip: bool) -> Iterator[Image.Image]:
    bad: list[BadImage] = []
    for path in paths:
        try:
            image = read(path, 3)
        except BadImage as error:
            bad.append(error)
            if not skip or len(bad) == len(paths):
                raise bad[0] from error
        else:
            yield image


def moments(images: Images, limit: int = STATISTICS) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation per channel of pixels in 0 .. 1, over at most `limit` images spread over the set.

    A channel that never changes gets the deviation of one grey level, so that dividing by it is safe.
    """
    index = torch.tensor(spread(range(len(images)), limit))
    first = second = torch.zeros((), dtype=torch.float64)
    for pixels, _ in images.batches(index, BATCH):
        values = pixels.cpu().double() / 255
        first = first + values.mean((2, 3)).sum(0)
        second = second + values.square().mean((2, 3)).sum(0)
    mean = first / len(index)
    std = (second / len(index) - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def tensor_fingerprint(classes: tuple[str, ...], parts: Iterable[tuple[Tensor, Tensor]]) -> str:
    """sha256 over class names, shapes, pixels and labels."""
    digest = hashlib.sha256(repr(classes).encode())
    for pixels, labels in parts:
        digest.update(repr(tuple(pixels.shape)).encode())
        for part in pixels.split(1024):
            digest.update(part.contiguous().cpu().numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()


def file_fingerprint(listing: Listing, parts: Iterable[Files], channels: int, size: int) -> str:
    """sha256 over class names, image shape, the parts, each file's path below the root, size and label, and the content of some.

    A set this large takes minutes to read, so the content is that of `READ` files, spread over each part: another version of a
    set is seen, a file that was replaced by one of its size mostly not.

    Raises:
        BadImage: a path leads to no regular file, or to one that cannot be read.
    """
    digest = hashlib.sha256(repr((listing.classes, channels, size)).encode())
    for files in parts:
        rows = sorted(zip(files.paths, files.labels, strict=True))
        digest.update(repr(len(rows)).encode())
        for path, label in rows:
            digest.update(repr((path, facts_of(os.path.join(listing.root, path)).st_size, label)).encode())
        for path, _ in spread(rows, READ):
            digest.update(content_of(os.path.join(listing.root, path)))
    return digest.hexdigest()
