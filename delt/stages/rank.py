"""Rank: score real patches by the teacher's probability of their class, and keep those that start the images.

`medium` is the published choice (DELT, arXiv 2411.19946): scores sorted upwards, from the median outwards, one above,
one below, and so on. The patches nearest the median come first, so they join first and are optimised longest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from delt.artifacts.ranking import COLUMNS, Member, Patches, Ranking
from delt.artifacts.teacher import Teacher, check_classes
from delt.config import RankConfig
from delt.coresets import herding, k_means
from delt.data.augment import draw_boxes, resizer, warp
from delt.data.given import check_order, list_given
from delt.data.images import RealSet, normalise
from delt.data.stream import CHUNK
from delt.errors import ConfigError, DataError, DeltError
from delt.job import Job
from delt.runtime import Emit, seed_of, settings, stream
from delt.typed import typed

BATCH = 256  # images scored at once
PIXELS = 2**24  # or as many as have so many pixels, on a GPU
SMALLEST, SQUARE = 0.08, (1.0, 1.0)  # area share of a scored crop, and its aspect ratios (RDED)
BLOCK = 1024  # images of the classes that are one unit of work
CORESETS = ("herding", "kmeans")  # orders that go by features


@typed
def rank(teacher: Teacher, real: RealSet, config: RankConfig, ipc: int = 10, job: Job | None = None) -> Patches:
    """Choose `ipc` starting images per class.

    Args:
        config: `keep` says which; with `crops` the best-scored crop of each image stands for it; with `factor` f each
            starting image is a collage of f x f patches (RDED, arXiv 2312.03526). `given` takes the images of `folder`.

    Raises:
        ConfigError: no images are asked for.
        TeacherError: the teacher was made for other classes, another class order or other images.
        DataError: a class has fewer candidates than are needed; images from elsewhere are not those of this data set.
    """
    if ipc < 1:
        raise ConfigError(f"ipc is {ipc}; at least one image per class is needed")
    job = job or Job()
    info = real.info
    check_classes(teacher.card, info)
    if config.keep == "noise":
        return Patches(ipc, None, ["noise"] * (ipc * len(info.classes)))
    if config.keep == "given":
        return _given(teacher, real, config, ipc, job)
    columns = [list(unit.values()) for unit in units_of(teacher, real, config, ipc, job)]
    ranking = Ranking(info.classes, config.keep, config.factor, *(torch.cat(parts) for parts in zip(*columns, strict=True)))
    return render(ranking, real, ipc)


def units_of(teacher: Teacher, real: RealSet, config: RankConfig, ipc: int, job: Job) -> Iterator[dict[str, Tensor]]:
    """Rank the classes, or find them ranked: yields columns of the table, some classes at a time, in ranks that follow none."""
    needed = ipc * config.factor**2
    candidates = _candidates(real, needed, config, job.seed)
    job.emit({"stage": "rank", "total": sum(map(len, candidates)) * max(1, config.crops), "unit": "patch"})
    teacher = teacher.to(job.device)

    def ranked(labels: range, emit: Emit) -> dict[str, Tensor]:
        own, count = replace(job, emit=emit), sum(len(candidates[label]) for label in labels) * max(1, config.crops)

        def make() -> dict[str, Tensor]:
            columns = [_rank_class(teacher, real, label, candidates[label], needed, config, own) for label in labels]
            return {name: torch.cat(parts) for name, parts in zip(COLUMNS, zip(*columns, strict=True), strict=True)}

        unit = job.unit(f"classes-{labels.start:06d}", make, lambda: emit({"stage": "rank", "done": count}))
        return {name: unit[name] for name in COLUMNS}

    with settings(job.runtime):
        yield from replace(job, pool=None).each(ranked, _blocks(candidates))


def _blocks(candidates: list[Tensor]) -> list[range]:
    """Classes that are ranked together as one unit of work: as many as have so many candidates."""
    starts, count = [0], 0
    for label, images in enumerate(candidates):
        if count and count + len(images) > BLOCK:
            starts.append(label)
            count = 0
        count += len(images)
    return [range(first, last) for first, last in itertools.pairwise([*starts, len(candidates)])]


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


def _candidates(real: RealSet, needed: int, config: RankConfig, seed: int) -> list[Tensor]:
    """For each class, indices of the training images that are scored: all (0), or `config.images` drawn at random.

    Raises:
        DataError: a class has too few.
    """
    labels, names = real.train.labels, real.info.classes
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    few = next((label for label, count in enumerate(counts) if count < needed), None)
    if few is not None:
        raise DataError(
            f"class '{names[few]}' has {counts[few]} training images and {needed} starting patches are needed: lower ipc or rank_factor"
        )
    found = []
    for label, images in enumerate(labels.argsort(stable=True).split(counts)):
        if config.images and len(images) > config.images:
            drawn = torch.randperm(len(images), generator=stream(seed, "rank", "candidates", label))[: max(config.images, needed)]
            images = images[drawn.sort().values]
        found.append(images)
    return found


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
        boxes = draw_boxes(len(boxes), size, SMALLEST, stream(job.seed, "rank", "crops", label), SQUARE)
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
    """The kept patches, which are cut out of the real images when they are wanted: image i of a class takes patches i, ipc + i, .."""
    rows = torch.stack([ranking.kept(label)[: ipc * ranking.factor**2] for label in range(len(ranking.classes))])
    tiles = rows.view(len(rows), ranking.factor**2, ipc)  # [K,tile,image]
    sources = [_source(ranking, tiles[label, :, i]) for label in range(len(rows)) for i in range(ipc)]
    return Patches(ipc, None, sources, ranking, lambda members: cut_out(ranking, real, tiles, members))


def cut_out(ranking: Ranking, real: RealSet, tiles: Tensor, members: Sequence[Member]) -> Tensor:
    """The starting images uint8 [n,C,H,W] of (class, image) pairs; tiles [K,tile,image] are rows of the ranking."""
    size, images = real.info.size, []
    labels, numbers = (torch.tensor(part) for part in zip(*members, strict=True))
    for own in tiles[labels, :, numbers].split(max(1, CHUNK // ranking.factor**2)):  # few enough to be decoded without other processes
        rows = own.T.flatten()
        boxes = torch.stack([ranking.top[rows], ranking.left[rows], ranking.height[rows], ranking.width[rows]], 1)
        pixels = _cut(real.train.fetch(ranking.image[rows]).float(), boxes, size // ranking.factor)
        images.append(collage(pixels.round().clamp(0, 255).to(torch.uint8).cpu(), ranking.factor, size))
    return torch.cat(images)


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
