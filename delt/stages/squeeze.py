"""Squeeze: train, or load, the frozen BatchNorm teacher, and measure it before anything is built on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.artifacts.teacher import FILES, Teacher, TeacherCard, check_classes, load_weights
from delt.config import TeacherConfig
from delt.data.augment import pad_crop, random_resized_crop
from delt.data.images import RealSet, normalise
from delt.data.views import safe_batch, together
from delt.errors import ConfigError, TeacherError
from delt.job import Job
from delt.models import zoo
from delt.models.statistics import patch_side, remember_convolutions
from delt.models.zoo import build, has_batchnorm
from delt.runtime import for_training, in_training, resolve, settings, stream, trainable
from delt.schedule import cosine
from delt.storage import Slots
from delt.team import Team
from delt.training import Given, accuracy, fit, sgd
from delt.typed import typed

SMALLEST = 0.08  # area share of a crop of a large image


@typed
def squeeze(real: RealSet, config: TeacherConfig, job: Job | None = None) -> Teacher:
    """Return a teacher for a data set: trained as configured, or loaded from `config.weights`.

    Raises:
        TeacherError: it has no BatchNorm layers, was made for other classes, or is weaker than the floor.
    """
    teacher = make_teacher(real, config, job)
    check_strength(teacher.card, real, config)
    return teacher


def make_teacher(real: RealSet, config: TeacherConfig, job: Job | None = None) -> Teacher:
    """A teacher, however weak, with its test accuracy on its card."""
    job = job or Job()
    return _trained(real, config, job) if config.weights == "train" else _loaded(real, config, job)


def backbones(config: TeacherConfig) -> dict[str, TeacherConfig]:
    """Name -> settings of every teacher that a configuration means: `teacher`, then the others, each one's alone.

    A torchvision weight name holds for all of them; beside a teacher from a file or folder the others are trained.

    Raises:
        ConfigError: an architecture does not exist, or one would teach twice.
    """
    alone = dataclasses.replace(config, others=())
    theirs = dataclasses.replace(alone, weights="train") if _is_place(config.weights) else alone
    others = {name: zoo.named(name) for name in config.others}
    known = {zoo.own_width(config.arch, config.width): "teacher_arch"}
    for name, network in others.items():
        if (same := known.setdefault(zoo.own_width(*network), name)) != name:
            raise ConfigError(f"teacher_others has {name}, which is {same} already: each network teaches once, leave it out")
    return {"teacher": alone} | {name: dataclasses.replace(theirs, arch=arch, width=width) for name, (arch, width) in others.items()}


def _is_place(weights: str) -> bool:
    return weights != "train" and (Path(weights).exists() or weights.endswith(FILES))


def remember(teacher: Teacher, real: RealSet, job: Job | None = None) -> Teacher:
    """Let a teacher remember what its convolutions see of the training images: changes and returns it (G-VBSM).

    One shuffled pass: 64 images at a time, cropped as in the teacher's training; above 64 pixels 256, cropped and resized.
    """
    job, card = job or Job(), teacher.card
    generator = stream(0, "remember", card.arch, card.width)
    order = torch.randperm(len(real.train), generator=generator)  # a batch of one class would not vary as the set does
    large = card.size > 64

    def batches() -> Iterator[Tensor]:
        for pixels, _ in real.train.batches(order, 256 if large else 64):
            images = normalise(pixels.to(job.device), card.mean, card.std)
            if large:
                yield random_resized_crop(images, SMALLEST, card.flip, generator)
            else:
                yield pad_crop(images, card.config.get("pad", TeacherConfig().pad), card.flip, generator)
            job.emit({"stage": "recover", "done": 0})  # who listens can stop here

    with settings(job.runtime):
        teacher.convolutions = remember_convolutions(teacher.to(job.device).model, batches(), patch_side(card.size))
    return teacher


def check_strength(card: TeacherCard, real: RealSet, config: TeacherConfig) -> None:
    """Refuse a teacher below the floor of its data set, or below the one that was asked for."""
    floor = real.info.floor if config.min_accuracy is None else config.min_accuracy
    if card.accuracy < floor:
        raise TeacherError(
            f"the teacher {card.arch} reaches {card.accuracy:.2f} % on real images of {real.info.name} and the floor is {floor:g} %: "
            "train it longer (teacher_epochs), check its class order, or lower teacher_min_accuracy to go on all the same"
        )


def _loaded(real: RealSet, config: TeacherConfig, job: Job) -> Teacher:
    path = Path(config.weights)
    if path.is_dir() or path.with_suffix(".json").is_file():  # one of our own, with its card
        teacher = Teacher.load(path)
        check_classes(teacher.card, real.info)
        model, card = teacher.model, teacher.card
    else:
        model = load_weights(config.weights, config.arch, config.width, real.info)
        card = _card(real, config, config.weights)
    _require_batchnorm(model, card.arch)
    return _measured(model, card, real, job)


def _require_batchnorm(model: nn.Module, arch: str) -> None:
    if not has_batchnorm(model):
        raise TeacherError(
            f"teacher_arch {arch} has no BatchNorm2d layers, whose statistics recover needs; `delt models` marks those that do"
        )


def _trained(real: RealSet, config: TeacherConfig, job: Job) -> Teacher:
    info = real.info
    model, team = build(config.arch, len(info.classes), info.channels, info.size, config.width, config.seed), Team(job.world)
    _require_batchnorm(model, config.arch)
    model = team.synced(trainable(model, job.device, info.size), job.device)
    network, emit = team.network(model, job.device), team.calm(job.emit)
    batch = safe_batch(len(real.train), config.batch)
    steps = -(-len(real.train) // batch)
    part = together(batch, info.size)
    optimizer = sgd(model.parameters(), config.lr, job.device, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    job.emit({"stage": "squeeze", "total": config.epochs * len(real.train), "unit": "img"})

    def batches(epoch: int) -> Iterator[Given]:
        generator = stream(config.seed, "squeeze", epoch)
        order = torch.randperm(len(real.train), generator=generator)
        for pixels, labels in real.train.batches(order, part):
            views = pad_crop(normalise(pixels.to(job.device), info.mean, info.std), config.pad, info.flip, generator)
            for images, own in zip(views.split(batch), labels.to(job.device).split(batch), strict=True):
                yield images, own
                emit({"stage": "squeeze", "done": len(own)})

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with in_training(job.runtime):
            logits = network(images)
        return F.cross_entropy(logits.float(), labels, label_smoothing=config.smoothing)

    slots = Slots(job.work / "teacher") if job.work else None
    with settings(for_training(job.runtime)):
        history = fit(
            model,
            optimizer,
            config.epochs,
            batches,
            loss,
            lambda epoch: _rate(epoch, config),
            steps,
            seed=config.seed,
            slots=slots,
            every=job.runtime.checkpoint_seconds,
            graphs=resolve(job.runtime).graphs == "on",
            team=team,
        )
    for record in history:
        job.emit({"stage": "squeeze", "record": record})
    model = model.to(memory_format=torch.contiguous_format)  # as one that is loaded
    return _measured(model, _card(real, config, "trained"), real, job, team)


def _rate(epoch: float, config: TeacherConfig) -> float:
    """Linear climb over the first `warmup` share of the training, then a cosine to zero."""
    warm = config.warmup * config.epochs
    if epoch < warm:
        return config.lr * (epoch + 1e-3) / (warm + 1e-3)
    return config.lr * cosine(epoch - warm, config.epochs - warm)


def _card(real: RealSet, config: TeacherConfig, source: str) -> TeacherCard:
    info = real.info
    return TeacherCard(
        arch=config.arch,
        width=config.width,
        classes=info.classes,
        channels=info.channels,
        size=info.size,
        mean=info.mean,
        std=info.std,
        flip=info.flip,
        dataset=info.name,
        accuracy=0.0,
        source=source,
        fingerprint=real.fingerprint,
        config={name: value for name, value in dataclasses.asdict(config).items() if name != "others"},
    )


def _measured(model: nn.Module, card: TeacherCard, real: RealSet, job: Job, team: Team | None = None) -> Teacher:
    with settings(for_training(job.runtime)):
        top1 = accuracy(model.to(job.device), real.test, card.mean, card.std, job.device, team=team)
    return Teacher(model, dataclasses.replace(card, accuracy=round(top1, 4)))
