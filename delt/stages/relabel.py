"""Relabel: the teachers' soft labels for the augmented synthetic images, asked online or stored."""

from __future__ import annotations

import torch

from delt.artifacts.soft_labels import SoftLabels, set_digest
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RelabelConfig
from delt.data.images import TensorImages
from delt.data.views import Views
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
    passes = []
    with settings(job.runtime):
        for epoch in range(config.epochs):
            passes.append(torch.cat([online.of(view, epoch, 0, protocol).half().cpu() for view in views.epoch(images, epoch)]))
            job.emit({"stage": "relabel", "done": len(images)})
    digest = set_digest(synthetic.images, synthetic.labels)
    return SoftLabels(teacher, recipe, torch.stack(passes), job.seed, batch, digest, teacher.card.flip, others)


def label_views(recipe: Recipe, teacher: Teacher, batch: int, seed: int, epochs: int) -> Views:
    """The views that stored labels belong to."""
    return Views(recipe, teacher.card.mean, teacher.card.std, teacher.card.flip, batch, ("relabel", seed), epochs)
