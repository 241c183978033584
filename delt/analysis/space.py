"""How much room will a run take on the disk? Arithmetic over its configuration, from above.

Each stage is asked for what it leaves behind and for what it holds while it works: units that are finished, and of what is in
progress two checkpoints. A run then needs what all its stages leave, and the work of the one that holds most.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from delt.analysis.speed import groups_of
from delt.config import RunConfig, TeacherConfig
from delt.grouping import packs
from delt.models.zoo import build
from delt.stages.evaluate import students_of
from delt.stages.recover import RECORD_BYTES
from delt.stages.squeeze import backbones

BLOCK = 4096  # bytes in which file systems give room to files
ROW = 9 * 8  # bytes of a ranked patch
PNG = 300  # bytes of an image's file beside its pixels, and of its row in the table
STATE = 3 * 4  # bytes per value that is optimised: itself and Adam's two moments
SLOTS = 2  # checkpoints that take turns
LOG = 2**20  # manifest, log, scores


@dataclass(frozen=True)
class Room:
    """Bytes of one stage."""

    kept: int
    work: int = 0  # beside that, until it is finished


@dataclass(frozen=True)
class Shape:
    """What the arithmetic has to know of a data set."""

    classes: int
    channels: int
    size: int
    images: int  # of the training part

    @property
    def pixels(self) -> int:
        """Bytes of an image of 8 bits."""
        return self.channels * self.size**2


def rooms(config: RunConfig, shape: Shape) -> dict[str, Room]:
    """The room that each stage takes in a run folder, without those of controls."""
    images, squeezed = config.ipc * shape.classes, teachers_room(config.teacher, shape)
    rows = shape.classes * config.rank.images if config.rank.images else shape.images
    table = ROW * min(rows, shape.images) if config.rank.keep != "noise" else 0
    labels = 2 * config.relabel.epochs * images * shape.classes if config.relabel.mode == "stored" else 0
    return {
        "squeeze": squeezed,
        "rank": Room(table, SLOTS * table),
        "recover": recover_room(config, shape),
        "relabel": Room(labels, labels),
        "evaluate": Room(LOG, evaluate_room(config, shape)),
    }


def needed(parts: Collection[tuple[Mapping[str, Room], Collection[str]]]) -> int:
    """Bytes that a run still needs: for it and each control the rooms of its stages, and the names of those that stand."""
    missing = [room for stages, standing in parts for name, room in stages.items() if name not in standing]
    return sum(room.kept for room in missing) + max((room.work for room in missing), default=0)


def teachers_room(config: TeacherConfig, shape: Shape) -> Room:
    """Their weights; while they are trained, SGD keeps as much again."""
    weights = sum(weight_bytes(own.arch, own.width, shape) for own in backbones(config).values())
    return Room(weights, SLOTS * 2 * weights if config.weights == "train" else 0)


def recover_room(config: RunConfig, shape: Shape) -> Room:
    """The set with its history; while it is made, finished groups and the checkpoints of those that each worker is at."""
    images = config.ipc * shape.classes
    file = -(-(shape.pixels + shape.pixels // 1000 + PNG) // BLOCK) * BLOCK  # noise cannot be compressed
    groups = groups_of(config, shape.classes)
    if not groups:
        return Room(images * file + shape.classes * BLOCK)
    recorded = _recorded(config, shape)
    together = max(sum(len(group.members) for group in pack) for pack in packs(groups, config.runtime.packing or 1))
    begun = min(images, together * (config.runtime.workers or 1))
    work = images * shape.pixels + recorded + SLOTS * (begun * shape.pixels * STATE + recorded)
    return Room(images * file + shape.classes * BLOCK + recorded, work + len(groups) * BLOCK)


def _recorded(config: RunConfig, shape: Shape) -> int:
    names, shots = config.recover.record_classes, (len(config.recover.record_iterations) or config.recover.record_count) + 1
    one = config.ipc * shots * shape.pixels
    if names:
        return sum(name != "none" for name in names) * one
    return min(shape.classes * one, max(one, RECORD_BYTES))


def evaluate_room(config: RunConfig, shape: Shape) -> int:
    """Two checkpoints of each student in training, with two moments of every weight."""
    students = [weight_bytes(arch, width, shape) for arch, width in students_of(config.evaluate, config.teacher.arch, config.teacher.width)]
    tasks = (
        len(students) * config.evaluate.seeds * (len(config.evaluate.labels) * (1 + len(config.evaluate.controls)) + config.evaluate.full)
    )
    return SLOTS * 3 * max(students) * min(config.runtime.workers or 1, tasks)


@functools.lru_cache(64)
def weight_bytes(arch: str, width: int | None, shape: Shape) -> int:
    """Bytes of a network's state dict."""
    state = build(arch, shape.classes, shape.channels, shape.size, width).state_dict()
    return sum(value.numel() * value.element_size() for value in state.values())
