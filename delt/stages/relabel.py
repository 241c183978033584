"""Relabel: the teachers' soft labels for the augmented synthetic images, asked online or stored."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from delt import storage
from delt.artifacts.soft_labels import SoftLabels, set_digest
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RelabelConfig
from delt.data.images import TensorImages
from delt.data.views import Views
from delt.errors import DeltError, IntegrityError
from delt.recipes import Recipe, recipe_of
from delt.runtime import Job, settings


def relabel(
    teacher: Teacher,
    synthetic: SyntheticSet,
    config: RelabelConfig,
    job: Job | None = None,
    recipe: str = "common",
    others: tuple[Teacher, ...] = (),
) -> SoftLabels:
    """Return soft labels for students that follow `recipe`.

    Online labels cost nothing here; stored ones hold `config.epochs` passes of float16 logits [E,N,K].

    Args:
        others: further backbones, which label, too, where the recipe asks all.
    """
    job = job or Job()
    if config.mode == "online":
        return SoftLabels(teacher, recipe, others=others)
    ipc = len(synthetic) // len(synthetic.classes)
    protocol = recipe_of(recipe, teacher.card.dataset, teacher.card.size, ipc)
    batch = protocol.batch(len(synthetic.classes), ipc)
    views = label_views(protocol, teacher, batch, job.seed, config.epochs)
    images = TensorImages(synthetic.images.to(job.device), synthetic.labels)
    online = SoftLabels(teacher, recipe, others=others)
    for voter in online.voters(protocol):
        voter.to(job.device)
    job.emit({"stage": "relabel", "total": config.epochs * len(images), "unit": "img"})
    with settings(job.runtime):
        passes = [_labelled(epoch, views, images, online, protocol, job) for epoch in range(config.epochs)]
    digest = set_digest(synthetic.images, synthetic.labels)
    return SoftLabels(teacher, recipe, torch.stack(passes), job.seed, batch, digest, teacher.card.flip, others)


def _labelled(epoch: int, views: Views, images: TensorImages, online: SoftLabels, protocol: Recipe, job: Job) -> Tensor:
    """Logits float16 [N,K] of one pass: a unit of work, kept where a job has a place for it.

    Raises:
        DeltError: a logit is not finite, or too large for 16 bits.
    """
    unit = job.work / f"pass-{epoch:04d}.safetensors" if job.work else None
    if unit and unit.exists():
        try:
            logits = storage.read_tensors(unit)[0]["logits"]
            job.emit({"stage": "relabel", "done": len(images)})
            return logits
        except IntegrityError as error:
            warnings.warn(f"pass {epoch} is labelled again: {error}", stacklevel=2)
    parts = []
    for view in views.epoch(images, epoch):
        parts.append(online.of(view, epoch, 0, protocol).half().cpu())
        job.emit({"stage": "relabel", "done": len(view.index)})
    logits = torch.cat(parts)
    if not torch.isfinite(logits).all():
        raise DeltError(f"relabel: a label of pass {epoch} is not finite in 16 bits; use relabel_mode online, or another teacher")
    if unit:
        storage.write_tensors(unit, {"logits": logits})
    return logits


def label_views(recipe: Recipe, teacher: Teacher, batch: int, seed: int, epochs: int) -> Views:
    """The views that stored labels belong to."""
    return Views(recipe, teacher.card.mean, teacher.card.std, teacher.card.flip, batch, ("relabel", seed), epochs)
