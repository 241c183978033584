"""Student protocols as values: everything that decides how a student is trained, apart from its images.

`paper:NAME` is the published protocol of a method; `common` is ours, the same for every method. Published protocols differ
by data set, image size and images per class: a recipe is its general form (ImageNet-1K's, where there are several) with
`cases`, and `recipe_of` gives the form that holds. Accuracy depends on the recipe as much as on the images, so every number
names its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from delt.errors import unknown
from delt.schedule import cosine

CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "decay": ("matrices", "all"),
    "loss": ("kl", "mse+ce"),
    "mix": ("cutmix", "mixup", "none"),
    "voters": ("first", "all"),
    "label_statistics": ("remembered", "batch"),
    "report": ("last", "best"),
}
WARMUP_START = 0.01  # share of the peak rate in the first epoch of a warm-up


@dataclass(frozen=True)
class Case:
    """Where a published protocol departs from its general form. All that is given must hold; a value that is not known holds nowhere."""

    changes: Mapping[str, Any]  # fields of the recipe
    datasets: tuple[str, ...] = ()
    max_size: int | None = None  # pixels per side
    min_ipc: int | None = None
    max_ipc: int | None = None

    def holds(self, dataset: str, size: int | None, ipc: int | None) -> bool:
        """Whether this is the case for a data set of images with `size` pixels per side and `ipc` of them per class."""
        return (
            (not self.datasets or dataset in self.datasets)
            and (self.max_size is None or (size is not None and size <= self.max_size))
            and (self.min_ipc is None or (ipc is not None and ipc >= self.min_ipc))
            and (self.max_ipc is None or (ipc is not None and ipc <= self.max_ipc))
        )


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Raises:
        ConfigError: a value that is none of the field's choices.
    """

    name: str
    epochs: int  # passes over the set
    batches: Mapping[int, tuple[int, int, int]]  # classes -> images per step for ipc below 10, below 30, and above
    max_updates: int | None = None  # fewer passes where all of them would take more steps than that
    half_batch: tuple[str, ...] = ()  # architectures that take half of it
    batch_of: Mapping[str, int] = field(default_factory=dict)  # architectures with a batch of their own
    accumulate: int = 1  # parts in which a step's batch goes through the student: BatchNorm sees the parts
    optimizer: str = "adamw"  # or sgd, with momentum 0.9
    lr: float = 1e-3
    lr_of: Mapping[str, float] = field(default_factory=dict)  # architectures with a rate of their own
    weight_decay: float = 0.01
    weight_decay_of: Mapping[str, float] = field(default_factory=dict)
    decay: str = "matrices"  # what decays: weights of more than one dimension, or all parameters
    betas: tuple[float, float] = (0.9, 0.999)  # of adamw
    warmup: int = 0  # of the epochs, in which the rate rises in a line from a hundredth of its peak; a shorter training warms up less
    slowdown: float = 1.0  # rate at epoch e of E is lr * cosine(e / (slowdown * E)): 2 stops at half the rate
    shuffle: int = 1  # n x n patches whose columns, then rows change places in each image; 1: they stay
    pad: int = 0  # pixels by which an image is shifted over black; 0: a resized crop instead
    smallest_crop: float = 0.25
    randaugment: bool = False
    mix: str = "cutmix"
    mix_alpha: float = 1.0
    loss: str = "kl"  # KL(teacher || student), or mean squared error of the logits + ce_weight * cross-entropy with the own hard label
    ce_weight: float = 0.0
    temperature: float = 20.0  # of teacher and student in the KL
    squared_temperature: bool = False  # the KL times T^2
    voters: str = "first"  # whose labels: the first teacher's, or all teachers' mean
    balanced: bool = False  # the teachers' logits are brought to one norm before the mean
    label_statistics: str = "remembered"  # what the teachers' BatchNorm layers use while labelling: theirs, or the batch's
    label_parts: int = 1  # parts of the batch that each have statistics of their own, where they are the batch's
    double_forward: bool = False  # a second train-mode pass per step, which moves the running statistics twice
    test_every: int = 10
    test_offset: int = 0  # tests come after epochs e, counted from 0, with e % test_every = test_offset
    test_from: float = 0.0  # share of the epochs before which there are none
    report: str = "last"  # the epoch whose accuracy was published
    full_epochs: int = 60  # passes over the whole real set for the full-data control (hard labels)
    full_batch: int = 128
    cases: tuple[Case, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise unknown(f"value for {name} of recipe {self.name}", getattr(self, name), allowed)

    def batch(self, classes: int, ipc: int, arch: str = "") -> int:
        """Images per step, of the table's row nearest in classes, and never more than the set holds."""
        nearest = min(self.batches, key=lambda known: abs(known - classes))
        size = self.batch_of.get(arch, self.batches[nearest][0 if ipc < 10 else 1 if ipc < 30 else 2])
        if arch in self.half_batch:
            size //= 2
        return min(size, ipc * classes)

    def passes(self, images: int, batch: int) -> int:
        """Passes over a set of so many images."""
        if self.max_updates is None:
            return self.epochs
        return max(1, min(self.epochs, self.max_updates // -(-images // batch)))

    def rate(self, arch: str) -> float:
        """Peak learning rate for an architecture."""
        return self.lr_of.get(arch, self.lr)

    def weight_decay_for(self, arch: str) -> float:
        """Weight decay for an architecture."""
        return self.weight_decay_of.get(arch, self.weight_decay)

    def factor(self, epoch: float, epochs: int) -> float:
        """Share of the peak rate after `epoch` of `epochs` passes."""
        warmup = self.warmup * epochs / self.epochs
        if epoch < warmup:
            return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
        return cosine(epoch - warmup, self.slowdown * (epochs - warmup))

    def tests(self, epoch: int, epochs: int) -> bool:
        """Whether the student is tested after `epoch`, counted from 0; after the last it always is."""
        planned = epoch % self.test_every == self.test_offset and epoch >= self.test_from * epochs
        return planned or epoch == epochs - 1


_COMMON = Recipe(
    name="common",
    epochs=300,
    batches={10: (10, 25, 50), 100: (20, 100, 100), 200: (50, 100, 100), 1000: (20, 100, 200)},
    smallest_crop=0.5,
    max_updates=10_000,
    cases=(  # of four forms, chosen with one student each on training images that were held out (benchmarks/LOG.md)
        Case({"epochs": 1000, "loss": "mse+ce", "ce_weight": 0.1}, datasets=("cifar10",)),
    ),
)

_RATES = {"mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4, "alexnet": 1e-4, "vit_b_16": 1e-4, "swin_v2_t": 1e-4}
# Published for a teacher of three layers, too; with others nothing was.
_CIFAR100_CONVNET = Case({"lr_of": {**_RATES, "convnet3": 2e-3}, "batch_of": {"convnet3": 25}}, datasets=("cifar100",))

_DELT = Recipe(  # VILA-Lab/DELT, evaluation scripts; methods of arXiv 2411.19946
    name="paper:delt",
    epochs=300,
    batches={10: (10, 50, 100), 100: (20, 100, 200), 200: (100, 100, 100), 1000: (20, 100, 200)},
    lr_of=_RATES,
    slowdown=2.0,
    randaugment=True,
    double_forward=True,
    report="best",
    full_epochs=200,
    cases=(Case({"half_batch": ("resnet101",)}, datasets=("imagenet-100", "imagenet-1k")), _CIFAR100_CONVNET),
)

_RDED = Recipe(  # LINs-lab/RDED, argument.py and validation/; arXiv 2312.03526
    name="paper:rded",
    epochs=_DELT.epochs,
    batches=_DELT.batches,
    lr_of=_RATES,
    slowdown=2.0,
    shuffle=2,
    smallest_crop=0.5,
    double_forward=True,
    test_offset=9,
    test_from=0.8,
    report="best",
    full_epochs=200,
    cases=(
        Case({"shuffle": 1, "smallest_crop": 1.0}, max_size=64),
        _CIFAR100_CONVNET,
    ),
)

_SRE2L = Recipe(  # VILA-Lab/SRe2L, validate/train_FKD.sh; arXiv 2306.13092
    name="paper:sre2l",
    epochs=300,
    batches={1000: (1024, 1024, 1024)},
    accumulate=2,
    smallest_crop=0.08,
    report="best",
    full_epochs=200,
    cases=(
        Case(  # zeyuanyin/tiny-imagenet, script/train_kd.sh and its log, whose last epoch is the published number
            {
                "epochs": 100,
                "batches": {200: (256, 256, 256)},
                "accumulate": 1,
                "optimizer": "sgd",
                "lr": 0.2,
                "weight_decay": 1e-4,
                "decay": "all",
                "warmup": 5,
                "mix": "none",
                "squared_temperature": True,
                "test_every": 1,
                "report": "last",
            },
            datasets=("tiny-imagenet",),
        ),
        Case(  # relabel_cifar.py of SRe2L's small data sets: its teacher was never put into evaluation mode
            {
                "epochs": 400,
                "batches": {100: (128, 128, 128)},
                "accumulate": 1,
                "decay": "all",
                "pad": 4,
                "mix": "mixup",
                "mix_alpha": 0.8,
                "temperature": 30.0,
                "label_statistics": "batch",
                "report": "last",
            },
            datasets=("cifar100",),
        ),
    ),
)

_CDA = replace(  # as SRe2L but for the batch (VILA-Lab/SRe2L, issue 27) and CIFAR-100's length (table 11 of arXiv 2311.18838)
    _SRE2L,
    name="paper:cda",
    batches={1000: (128, 128, 128)},
    accumulate=1,
    cases=(*_SRE2L.cases, Case({"epochs": 800}, datasets=("cifar100",))),
)

_SMALL_GVBSM: dict[str, Any] = {"accumulate": 1, "balanced": False, "epochs": 1000, "ce_weight": 0.15}

_GVBSM = Recipe(  # shaoshitong/G_VBSM_Dataset_Condensation, train/ and relabel/ of its branches; arXiv 2311.17950
    name="paper:gvbsm",
    epochs=300,
    batches={1000: (1024, 1024, 1024)},
    accumulate=2,  # two GPUs
    smallest_crop=0.08,
    loss="mse+ce",
    ce_weight=0.1,
    voters="all",
    balanced=True,
    report="best",
    full_epochs=200,
    cases=(
        Case({**_SMALL_GVBSM, "batches": {10: (100, 100, 100)}, "weight_decay": 0.0}, datasets=("cifar10",)),
        Case({**_SMALL_GVBSM, "batches": {100: (64, 64, 64)}, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}, datasets=("cifar100",)),
        Case(
            {
                "epochs": 100,
                "batches": {200: (100, 100, 100)},
                "optimizer": "sgd",
                "lr": 0.1,
                "weight_decay": 5e-4,
                "weight_decay_of": {"resnet50": 1e-3, "resnet101": 1e-3},
                "balanced": False,
            },
            datasets=("tiny-imagenet",),
        ),
    ),
)

_FADRM = Recipe(  # Jiacheng8/FADRM, relabel/ and validate/; rates of its ResNet-18; the teachers' statistics stay as they were
    name="paper:fadrm",
    epochs=300,
    batches={1000: (16, 16, 16)},
    accumulate=2,
    slowdown=2.0,
    smallest_crop=0.08,
    voters="all",
    label_statistics="batch",
    label_parts=2,
    report="best",
    full_epochs=200,
    cases=(
        Case({"slowdown": 1.0}, min_ipc=30),
        Case({"epochs": 1000}, datasets=("cifar100",)),
        Case({"epochs": 1000}, datasets=("tiny-imagenet",), max_ipc=9),
        Case({"lr": 5e-4}, datasets=("cifar100",), max_ipc=9),
        Case({"batches": {10: (10, 10, 10)}}, datasets=("imagenette",)),
        Case({"lr": 5e-4}, datasets=("imagenette", "imagewoof")),
        Case({"slowdown": 1.0}, datasets=("imagenette", "imagewoof"), min_ipc=10, max_ipc=29),
        Case({"slowdown": 2.0}, datasets=("imagenette", "imagewoof"), min_ipc=30),
        Case({"lr": 1e-3}, datasets=("imagewoof",), min_ipc=30),
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (_COMMON, _DELT, _SRE2L, _CDA, _RDED, _GVBSM, _FADRM)}


def recipe_of(name: str, dataset: str = "", size: int | None = None, ipc: int | None = None) -> Recipe:
    """The recipe of this name in the form that holds for a data set, its pixels per side and the images per class.

    What is left out is not known: no case that asks for it holds. The result has no cases left.

    >>> recipe_of("paper:fadrm", "imagenette", 224, 10).slowdown, recipe_of("paper:fadrm").slowdown
    (1.0, 2.0)

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]
    for case in recipe.cases:
        if case.holds(dataset, size, ipc):
            recipe = replace(recipe, **case.changes)
    return replace(recipe, cases=())
