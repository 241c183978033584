"""Rank: score real patches by the teacher's probability of their class, and keep those that start the images.

`medium` is the published choice (DELT, arXiv 2411.19946): scores sorted upwards, from the median outwards, one above,
one below, and so on. The patches nearest the median come first, so they join first and are optimised longest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from delt.artifacts.ranking import Patches, Ranking
from delt.artifacts.teacher import Teacher
from delt.config import RankConfig
from delt.coresets import herding, k_means
from delt.data.augment import draw_boxes, resizer, warp
from delt.data.given import check_order, list_given
from delt.data.images import RealSet, normalise
from delt.errors import DataError, DeltError, Stopped
from delt.runtime import Job, seed_of, settings, stream
from delt.storage import Slots

BATCH = 256  # images scored at once
PIXELS = 2**24  # or as many as have so many pixels, on a GPU
SMALLEST = 0.08  # area share of a scored crop (RDED)
CORESETS = ("herding", "kmeans")  # orders that go by features


def rank(teacher: Teacher, real: RealSet, config: RankConfig, ipc: int = 10, job: Job | None = None) -> Patches:
    """Choose `ipc` starting images per class.

    Args:
        config: `keep` says which; with `crops` the best-scored crop of each image stands for it; with `factor` f each
            starting image is a collage of f x f patches (RDED, arXiv 2312.03526). `given` takes the images of `folder`.

    Raises:
        DataError: a class has fewer candidates than are needed; images from elsewhere are not those of this data set.
    """
    job = job or Job()
    info = real.info
    if config.keep == "noise":
        return Patches(ipc, None, ["noise"] * (ipc * len(info.classes)))
    if config.keep == "given":
        return _given(teacher, real, config, ipc, job)
    needed = ipc * config.factor**2
    candidates = [_candidates(real, label, needed, config, job.seed) for label in range(len(info.classes))]
    job.emit({"stage": "rank", "total": sum(map(len, candidates)) * max(1, config.crops), "unit": "patch"})
    teacher = teacher.to(job.device)
    with settings(job.runtime):
        columns = _ranked(candidates, lambda label: _rank_class(teacher, real, label, candidates[label], needed, config, job), job)
    ranking = Ranking(info.classes, config.keep, config.factor, *columns)
    return render(ranking, real, ipc)


def _ranked(candidates: list[Tensor], rank_class: Callable[[int], tuple[Tensor, ...]], job: Job) -> list[Tensor]:
    """The columns of all classes, end to end; from time to time, and where it is stopped, what is done is kept."""
    slots = Slots(job.work / "classes") if job.work else None
    tensors, meta = (slots.load() if slots else None) or ({}, {"classes": 0})
    done = [list(tensors[name].split([len(images) for images in candidates[: meta["classes"]]])) for name in sorted(tensors)]
    tables, saved = list(zip(*done, strict=True)), time.monotonic()

    def keep() -> None:
        if slots and tables:
            columns = zip(*tables, strict=True)
            slots.save({f"{k}": torch.cat(column) for k, column in enumerate(columns)}, {"classes": len(tables)})

    job.emit({"stage": "rank", "done": sum(map(len, candidates[: len(tables)]))})
    try:
        for label in range(len(tables), len(candidates)):
            tables.append(rank_class(label))
            if time.monotonic() - saved > job.runtime.checkpoint_seconds:
                keep()
                saved = time.monotonic()
    except Stopped:
        keep()
        raise
    return [torch.cat(column) for column in zip(*tables, strict=True)]


@torch.no_grad()
def _given(teacher: Teacher, real: RealSet, config: RankConfig, ipc: int, job: Job) -> Patches:
    """The images of a folder, whose class order the teacher confirms."""
    given, card, seen = list_given(config.folder, real.info, ipc), teacher.card, []
    images = given.images()
    if note := given.changed():
        job.emit({"message": note})
    job.emit({"stage": "rank", "total": len(images), "unit": "img"})
    teacher = teacher.to(job.device)
    with settings(job.runtime):
        for part in images.split(_batch(job, card.size)):
            seen.append(teacher.logits(normalise(part.to(job.device), card.mean, card.std)).argmax(1).cpu())
            job.emit({"stage": "rank", "done": len(part)})
    job.emit({"message": check_order(given, torch.cat(seen))})
    return Patches(ipc, images, list(given.paths))


def _batch(job: Job, size: int) -> int:
    """Images that pass the teacher at once."""
    return BATCH if job.device.type == "cpu" else max(BATCH, PIXELS // size**2)


def medium_order(count: int) -> list[int]:
    """Positions in a list sorted upwards, outward from the median: ceil(n/2), one above, one below, two above, ..

    >>> medium_order(6)
    [3, 4, 2, 5, 1, 0]
    """
    middle = min((count + 1) // 2, count - 1)
    offsets = [0] + [sign * step for step in range(1, count) for sign in (1, -1)]
    return [middle + offset for offset in offsets if 0 <= middle + offset < count]


def order(keep: str, count: int, generator: torch.Generator) -> list[int]:
    """Positions in a list sorted upwards by score, in the order in which `keep` takes them."""
    if keep == "medium":
        return medium_order(count)
    if keep == "random":
        return torch.randperm(count, generator=generator).tolist()
    return list(range(count))[:: -1 if keep == "easy" else 1]


def _candidates(real: RealSet, label: int, needed: int, config: RankConfig, seed: int) -> Tensor:
    """Indices of the training images of a class that are scored: all (0), or `config.images` drawn at random."""
    images = torch.nonzero(real.train.labels == label).squeeze(1)
    if len(images) < needed:
        name = real.info.classes[label]
        raise DataError(
            f"class '{name}' has {len(images)} training images and {needed} starting patches are needed: lower ipc or rank_factor"
        )
    if not config.images or len(images) <= config.images:
        return images
    drawn = torch.randperm(len(images), generator=stream(seed, "rank", "candidates", label))[: max(config.images, needed)]
    return images[drawn.sort().values]


def _rank_class(
    teacher: Teacher, real: RealSet, label: int, images: Tensor, needed: int, config: RankConfig, job: Job
) -> tuple[Tensor, ...]:
    """Columns of the ranking for one class, in the order of `Ranking`'s fields."""
    boxes, scores = _scored(teacher, real, label, images, config, job)
    by_score = scores.argsort(stable=True)
    place = torch.full((len(images),), -1)
    turns = _turns(teacher, real, label, images[by_score], boxes[by_score], needed, config, job)
    place[turns] = torch.arange(needed)
    class_index = torch.full((len(images),), label)
    return class_index, images[by_score], *boxes[by_score].unbind(1), scores[by_score], place


def _turns(
    teacher: Teacher, real: RealSet, label: int, images: Tensor, boxes: Tensor, needed: int, config: RankConfig, job: Job
) -> list[int]:
    """Positions of the kept patches among the candidates in the order of their scores."""
    if config.keep not in CORESETS:
        return order(config.keep, len(images), stream(job.seed, "rank", "order", label))[:needed]
    features = _features(teacher, real, images, boxes, job)
    if config.keep == "herding":
        return herding(features, needed)
    return k_means(features, needed, seed_of(job.seed, "rank", "kmeans", label) % 2**32)


@torch.no_grad()
def _features(teacher: Teacher, real: RealSet, images: Tensor, boxes: Tensor, job: Job) -> Tensor:
    """The teacher's features [n,D] of a box of each image, at full size."""
    card, parts = teacher.card, []
    batch = _batch(job, card.size)
    for rows, own in zip(images.split(batch), boxes.split(batch), strict=True):
        pixels = real.train.fetch(rows).to(job.device)
        parts.append(teacher.features(_cut(normalise(pixels, card.mean, card.std), own, pixels.shape[-1])).float().cpu())
    return torch.cat(parts)


def _scored(teacher: Teacher, real: RealSet, label: int, images: Tensor, config: RankConfig, job: Job) -> tuple[Tensor, Tensor]:
    """Best box [n,4] of each image and its score [n]; orders that need no scores have none, and their boxes are the whole image."""
    size = real.info.size
    whole = torch.tensor([[0, 0, size, size]]).expand(len(images), 4)
    if config.keep in ("random", *CORESETS) and not config.crops:
        job.emit({"stage": "rank", "done": len(images)})
        return whole, torch.full((len(images),), float("nan"))
    tries = max(1, config.crops)
    boxes = whole.repeat_interleave(tries, 0)
    if config.crops:
        boxes = draw_boxes(len(boxes), size, SMALLEST, stream(job.seed, "rank", "crops", label))
    batch = _batch(job, size)
    parts = zip(images.split(batch), boxes.split(batch * tries), strict=True)
    scores = torch.cat([_scores(teacher, real, label, some, own, config.factor, job) for some, own in parts])
    best = scores.view(-1, tries).argmax(1) + torch.arange(len(images)) * tries
    return boxes[best], scores[best]


def _scores(teacher: Teacher, real: RealSet, label: int, images: Tensor, boxes: Tensor, factor: int, job: Job) -> Tensor:
    """Scores [n*T] of T boxes of each of n images: every image is decoded once and its patches are cut from that."""
    pixels = real.train.fetch(images).to(job.device)
    tries = len(boxes) // len(images)
    parts = torch.arange(len(boxes)).split(_batch(job, pixels.shape[-1]))
    return torch.cat([_score(teacher, pixels[(rows // tries).to(job.device)], boxes[rows], label, factor, job) for rows in parts])


@torch.no_grad()
def _score(teacher: Teacher, pixels: Tensor, boxes: Tensor, label: int, factor: int, job: Job) -> Tensor:
    """Probability of `label` for each patch; a patch below full size stands on the mean colour (RDED)."""
    card, size = teacher.card, pixels.shape[-1]
    side = size // factor
    patches = _cut(normalise(pixels, card.mean, card.std), boxes, side)
    before = (size - side) // 2
    after = size - side - before
    logits = teacher.logits(F.pad(patches, (before, after, before, after)))
    if not torch.isfinite(logits).all():
        raise DeltError(f"rank: the teacher's score of a patch of class '{card.classes[label]}' is not finite; choose --precision fp32")
    job.emit({"stage": "rank", "done": len(pixels)})
    return logits.float().softmax(1)[:, label].cpu()


def _cut(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Boxes of float images [N,C,H,W] resized to side x side; a whole image at its own size keeps its exact pixels."""
    top, left, height, width = boxes.unbind(1)
    return warp(images, resizer(top, height, images.shape[-1], side), resizer(left, width, images.shape[-1], side))


def render(ranking: Ranking, real: RealSet, ipc: int) -> Patches:
    """Cut the kept patches out of the real images: image i of a class takes patches i, ipc + i, .. as its tiles."""
    images, sources = [], []
    side, factor = real.info.size // ranking.factor, ranking.factor
    for label in range(len(ranking.classes)):
        rows = ranking.kept(label)[: ipc * factor**2]
        boxes = torch.stack([ranking.top[rows], ranking.left[rows], ranking.height[rows], ranking.width[rows]], 1)
        pixels = real.train.fetch(ranking.image[rows]).float()
        tiles = _cut(pixels, boxes, side).round().clamp(0, 255).to(torch.uint8).cpu()
        images.append(collage(tiles, factor, real.info.size))
        sources += [_source(ranking, rows[i::ipc]) for i in range(ipc)]
    return Patches(ipc, torch.cat(images), sources, ranking)


def collage(tiles: Tensor, factor: int, size: int) -> Tensor:
    """Tiles [factor^2 * n, C, h, h] to images [n, C, size, size]; tile k of image i is tiles[k * n + i], row by row."""
    grid = tiles.unflatten(0, (factor, factor, -1))  # [row, column, n, C, h, h]
    joined = grid.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    gap = size - joined.shape[-1]  # where factor does not divide size, the last rows and columns repeat
    return F.pad(joined.float(), (0, gap, 0, gap), mode="replicate").to(torch.uint8) if gap else joined


def _source(ranking: Ranking, rows: Tensor) -> str:
    columns = (ranking.image, ranking.top, ranking.left, ranking.height, ranking.width)
    parts = [tuple(int(column[row]) for column in columns) for row in rows.tolist()]
    return " ".join("train/{}[{},{},{},{}]".format(*part) for part in parts)
