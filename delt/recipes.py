"""Student protocols as values: everything that decides how a student is trained, apart from its images.

`paper:delt` is the published protocol of DELT's evaluation (RDED's evaluator with its changes); `common` is ours, the
same for every method. Accuracy depends on the recipe as much as on the images, so every number names its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from delt.errors import unknown
from delt.schedule import cosine


@dataclass(frozen=True)
class Recipe:
    """How a student is trained; AdamW throughout, weight decay on matrices and filters only."""

    name: str
    epochs: int
    batches: Mapping[int, tuple[int, int, int]]  # classes -> images per step for ipc below 10, below 30, and above
    half_batch: tuple[tuple[str, int], ...] = ()  # (architecture, classes) that take half of it
    lr: float = 1e-3
    lr_of: Mapping[str, float] = field(default_factory=dict)  # architectures with a rate of their own
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    slowdown: float = 1.0  # rate at epoch e of E is lr * cosine(e / (slowdown * E)): 2 stops at half the rate
    mix: str = "cutmix"  # cutmix, mixup or none
    mix_alpha: float = 1.0
    temperature: float = 20.0  # of teacher and student in the soft-label loss KL(teacher || student), without T^2
    randaugment: bool = False
    smallest_crop: float = 0.25
    double_forward: bool = False  # a second train-mode pass per step, which moves the running statistics twice
    test_every: int = 10
    full_epochs: int = 60  # passes over the whole real set for the full-data control (hard labels)
    full_batch: int = 128

    def batch(self, classes: int, ipc: int, arch: str = "") -> int:
        """Images per step, of the table's row nearest in classes, and never more than the set holds."""
        nearest = min(self.batches, key=lambda known: abs(known - classes))
        size = self.batches[nearest][0 if ipc < 10 else 1 if ipc < 30 else 2]
        if (arch, nearest) in self.half_batch:
            size //= 2
        return min(size, ipc * classes)

    def rate(self, arch: str) -> float:
        """Peak learning rate for an architecture."""
        return self.lr_of.get(arch, self.lr)

    def factor(self, epoch: float, epochs: int) -> float:
        """Share of the peak rate after `epoch` of `epochs` passes."""
        return cosine(epoch, self.slowdown * epochs)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="common",
            epochs=300,
            batches={10: (10, 25, 50), 100: (20, 100, 100), 200: (50, 100, 100), 1000: (20, 100, 200)},
            smallest_crop=0.5,
        ),
        Recipe(  # VILA-Lab/DELT, evaluation scripts; methods of arXiv 2411.19946
            name="paper:delt",
            epochs=300,
            batches={10: (10, 50, 100), 100: (20, 100, 200), 200: (100, 100, 100), 1000: (20, 100, 200)},
            half_batch=(("resnet101", 100), ("resnet101", 1000)),
            lr_of={
                "mobilenet_v2": 2.5e-3,
                "efficientnet_b0": 2e-3,
                "vgg11": 5e-4,
                "alexnet": 1e-4,
                "vit_b_16": 1e-4,
                "swin_v2_t": 1e-4,
            },
            slowdown=2.0,
            randaugment=True,
            double_forward=True,
            full_epochs=200,
        ),
    )
}


def recipe_of(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
