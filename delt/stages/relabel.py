"""Relabel: the teachers' soft labels for the augmented synthetic images, asked online or stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from delt.artifacts.soft_labels import SoftLabels, set_digest
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher, check_set
from delt.config import RelabelConfig
from delt.data.images import TensorImages
from delt.data.views import Views
from delt.errors import DeltError
from delt.job import Job
from delt.recipes import Recipe, recipe_of
from delt.runtime import Emit, settings
from delt.typed import typed


@typed
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

    Raises:
        TeacherError: the set is not of the teacher's classes and images.
        ConfigError: an unknown recipe.
        DeltError: a stored label is not finite, or too large for 16 bits.
    """
    job = job or Job()
    check_set(teacher.card, synthetic.classes, synthetic.images)
    recipe_of(recipe)
    if config.mode == "online":
        return SoftLabels(teacher, recipe, others=others)
    passes = torch.stack(list(units_of(teacher, synthetic, config, job, recipe, others)))
    digest = set_digest(synthetic.images, synthetic.labels)
    batch = _protocol(teacher, synthetic, recipe)[1]
    return SoftLabels(teacher, recipe, passes, job.seed, batch, digest, teacher.card.flip, others)


def units_of(
    teacher: Teacher, synthetic: SyntheticSet, config: RelabelConfig, job: Job, recipe: str, others: tuple[Teacher, ...]
) -> Iterator[Tensor]:
    """Label the passes, or find them labelled: yields float16 [N,K] of one after the other, in ranks that follow none.

    Raises:
        DeltError: a logit is not finite, or too large for 16 bits.
    """
    protocol, batch = _protocol(teacher, synthetic, recipe)
    views = label_views(protocol, teacher, batch, job.seed, config.epochs)
    images = TensorImages(synthetic.images.to(job.device), synthetic.labels)
    online = SoftLabels(teacher, recipe, others=others)
    for voter in online.voters(protocol):
        voter.to(job.device)
    job.emit({"stage": "relabel", "total": config.epochs * len(images), "unit": "img"})

    def labelled(epoch: int, emit: Emit) -> Tensor:
        def make() -> dict[str, Tensor]:
            parts = []
            for view in views.epoch(images, epoch):
                parts.append(online.of(view, epoch, 0, protocol).half().cpu())
                emit({"stage": "relabel", "done": len(view.index)})
            logits = torch.cat(parts)
            if not torch.isfinite(logits).all():
                raise DeltError(f"relabel: a label of pass {epoch} is not finite in 16 bits; use relabel_mode online, or another teacher")
            return {"logits": logits}

        return job.unit(f"pass-{epoch:04d}", make, lambda: emit({"stage": "relabel", "done": len(images)}))["logits"]

    with settings(job.runtime):
        yield from replace(job, pool=None).each(labelled, range(config.epochs))


def _protocol(teacher: Teacher, synthetic: SyntheticSet, recipe: str) -> tuple[Recipe, int]:
    """The recipe, and the images of a batch under it."""
    ipc = len(synthetic) // len(synthetic.classes)
    protocol = recipe_of(recipe, teacher.card.dataset, teacher.card.size, ipc)
    return protocol, protocol.batch(len(synthetic.classes), ipc)


def label_views(recipe: Recipe, teacher: Teacher, batch: int, seed: int, epochs: int) -> Views:
    """The views that stored labels belong to."""
    return Views(recipe, teacher.card.mean, teacher.card.std, teacher.card.flip, batch, ("relabel", seed), epochs)
