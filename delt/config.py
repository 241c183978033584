"""What a run is: one frozen dataclass per stage, every field checked when it is made.

Every field has one flat name, the same in Python, in the notebook's parameters and as a flag:
`teacher.epochs` is `teacher_epochs` and `--teacher-epochs`; the fields of RunConfig and RuntimeConfig and the three
numbers of EarlyLate need no prefix. `flatten` and `unflatten` go between the two forms; `delt.methods.configure` fills
what a user leaves out.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from delt.errors import ConfigError, unknown
from delt.schedule import Schedule, plan

STAGES = ("squeeze", "rank", "recover", "relabel", "evaluate")  # of a run, in their order
MOST_INT = 2**63
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and bytes of a path that are no text
UNPREFIXED = {"iterations", "round_iterations", "sub_batches"}  # of RecoverConfig: the dials everyone turns


def option(
    default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None, least: int = 0
) -> Any:
    """A dataclass field that carries its explanation and its limits; `least` is the number of entries of a list."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "least": least})


def checked(item: dataclasses.Field[Any], kind: Any, value: Any, name: str | None = None) -> Any:
    """Return `value` in the field's type, or raise a ConfigError that names the field and what is allowed."""
    name = name or item.name
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    value = _convert(name, kind, value)
    choices, low, high, least = (item.metadata[key] for key in ("choices", "low", "high", "least"))
    if isinstance(value, tuple) and len(value) < least:
        raise ConfigError(f"{name} is empty; at least {least} is needed")
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, str) and UNWRITABLE.search(part):
            raise ConfigError(f"{name} is {part!r}; allowed is text that a file can hold and be named by")
        if choices and part not in choices:
            raise unknown(f"value for {name}", part, choices)
        if isinstance(part, float) and math.isinf(part):
            raise ConfigError(f"{name} is {part}; allowed is a finite number")
        if (low is not None and not part >= low) or (high is not None and not part <= high):  # `not`: refuses NaN
            limits = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ConfigError(f"{name} is {part}; allowed is {limits}")
    return value


def _convert(name: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        inner = typing.get_args(kind)[0]
        if isinstance(value, (list, tuple)):
            parts = [int(part) if inner is int and isinstance(part, str) and part.isdecimal() else part for part in value]
            if all(isinstance(part, inner) and not isinstance(part, bool) for part in parts):
                return tuple(dict.fromkeys(parts))  # said twice is said once
        words = "names" if inner is str else "whole numbers"
        raise ConfigError(f"{name} is {value!r}; allowed is a list of {words} or one text with commas")
    if isinstance(value, int) and abs(value) >= MOST_INT:  # nor can it be a float, or be written down
        shown = value if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"  # Python refuses to write very long ones
        raise ConfigError(f"{name} is {shown}, which is too large; allowed are whole numbers below 2^63")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} is {value!r}; allowed is a value of type {kind.__name__}")


@dataclass(frozen=True)
class Section:
    """Base of all configuration sections: checks types, choices and ranges when an instance is made."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value, kind = getattr(self, item.name), hints[item.name]
            if item.metadata:
                object.__setattr__(self, item.name, checked(item, kind, value))
            elif not isinstance(value, kind):  # a section, which has checked itself
                raise ConfigError(f"{item.name} is {value!r}; allowed is a {kind.__name__}, or delt.configure({item.name}_...=...)")


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the real images come from."""

    root: str | None = option(None, "folder that holds the data set, or receives the download")
    size: int | None = option(None, "side of the square images in pixels (default: the data set's own)", low=4, high=4096)
    download: bool = option(True, "download where the data set allows it and the files are missing")
    val_fraction: float = option(0.2, "share held out for testing where a folder has no val/ or test/", low=0.01, high=0.9)
    classes: tuple[str, ...] = option((), "only these classes of the data set, in this order (default: all)")
    hold_out: float = option(
        0.0,
        "share of each class's training images to test on instead of the test images, which are not touched: to choose settings by",
        low=0,
        high=0.9,
    )
    on_bad_image: str = option(
        "fail",
        "fail: a file that is no usable image ends the run; skip: the set goes on without it, as if it were not there",
        choices=("fail", "skip"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) == 1:
            raise ConfigError(f"data_classes is {self.classes[0]}; allowed are two classes or more, or none for all")


@dataclass(frozen=True)
class TeacherConfig(Section):
    """Squeeze: the frozen BatchNorm network that knows the data set (defaults: SRe2L's CIFAR recipe)."""

    arch: str = option("resnet18", "teacher architecture (`delt models` lists them)")
    width: int | None = option(None, "channels of the first stage (default: the architecture's own)", low=1, high=4096)
    others: tuple[str, ...] = option(
        (), "more teachers, trained alike, that recover asks in turn (G-VBSM), with a width where it matters: resnet18,convnet4-w32"
    )
    weights: str = option(
        "train",
        "train, or load instead: a run's teacher, a .safetensors/.pth state dict, or a torchvision weight name (IMAGENET1K_V1)",
    )
    epochs: int = option(200, "passes over the training set", low=1)
    batch: int = option(128, "images per step", low=2)
    lr: float = option(0.1, "peak learning rate of SGD with momentum 0.9, cosine to zero", low=0)
    weight_decay: float = option(5e-4, "L2 penalty", low=0)
    warmup: float = option(0.05, "share of the steps in which the rate climbs linearly", low=0, high=0.9)
    pad: int = option(4, "pixels of padding for the random-crop augmentation (shift range)", low=0)
    smoothing: float = option(0.0, "label smoothing", low=0, high=0.9)
    seed: int = option(0, "seed of the teacher, apart from the run's seed so that runs share teachers", low=0, high=2**31 - 1)
    min_accuracy: float | None = option(
        None, "refuse a teacher below this test accuracy in % (default: the data set's floor)", low=0, high=100
    )


@dataclass(frozen=True)
class RankConfig(Section):
    """Rank: which real patches start the synthetic images (DELT section 3; RDED for patches)."""

    keep: str = option(
        "medium",
        "which patches start the images: medium goes outward from the median score, herding and kmeans by the teacher's features",
        choices=("medium", "easy", "hard", "random", "noise", "herding", "kmeans", "given"),
    )
    folder: str | None = option(None, "folder of images from elsewhere, for rank_keep given: FOLDER/CLASS/*")
    images: int = option(300, "candidate images per class, drawn at random (as published); 0 takes all", low=0)
    crops: int = option(0, "random crops scored per image; 0 scores the whole image", low=0)
    factor: int = option(1, "patches per side of a synthetic image (1: one patch; 2: a 2 x 2 collage)", low=1, high=4)


@dataclass(frozen=True)
class RecoverConfig(Section):
    """Recover: EarlyLate optimisation of the synthetic images (DELT; SRe2L's loss with CDA's crops).

    Where the published program and a repaired one differ, one field says so; `--fidelity strict` sets all of
    them to the published value (but what was published otherwise for a method, as FADRM's PNG):
    `adam_steps`, `group_cut`, `drop_empty_rounds`, `save`, `average_start`.
    """

    iterations: int = option(4000, "MI: pixel updates of the earliest images; 0 keeps the starting images", low=0)
    round_iterations: int | None = option(None, "RI: iterations between two joins (default MI // M)", low=1)
    sub_batches: int | None = option(
        None, "M: sub-batches (default min(8, ipc), or min(MI // RI, ipc) where RI is given); 1 switches EarlyLate off", low=1
    )
    lr: float = option(0.25, "step size of Adam in normalised pixel units, cosine to zero", low=0)
    beta1: float = option(0.5, "Adam's first moment decay", low=0, high=0.9999)
    beta2: float = option(0.9, "Adam's second moment decay", low=0, high=0.9999)
    bn_weight: float = option(0.01, "weight of the BatchNorm-statistics term (r_bn)", low=0)
    first_bn_multiplier: float = option(10.0, "extra weight of the first BatchNorm layer (of the first convolution in bn+conv)", low=0)
    match: str = option(
        "bn", "statistics that are matched: bn (SRe2L), or those of every convolution's input, too (G-VBSM)", choices=("bn", "bn+conv")
    )
    average: float = option(0.0, "moving average of the measured statistics: the share that the past keeps (G-VBSM)", low=0, high=0.9999)
    average_start: str = option(
        "first", "what the moving average starts from: the first measurement, or zero (published)", choices=("first", "zero")
    )
    drop: float = option(0.0, "probability that a convolution's statistics are left out of an iteration (G-VBSM)", low=0, high=1)
    densify: float = option(0.0, "weight of data densification, which keeps a class's images from being alike (G-VBSM)", low=0)
    jitter: int = option(0, "largest circular shift in pixels", low=0)
    pad: int = option(0, "shift by up to so many pixels over a zero border instead of cropping and resizing (G-VBSM's CIFAR)", low=0)
    flip: bool | None = option(None, "mirror half of the iterations' images (default: where the data set allows it)")
    curriculum: str = option(
        "cosine", "how the smallest crop falls from 1 to min_crop (CDA); none is SRe2L", choices=("cosine", "linear", "step", "none")
    )
    milestone: float = option(1.0, "share of the iterations in which the curriculum reaches min_crop", low=0, high=1)
    min_crop: float = option(0.08, "smallest area share of a random crop", low=0.01, high=1)
    stages: int = option(
        1, "equally long stages, each with a fresh Adam; between two the images are blended with their start (FADRM)", low=1
    )
    small_side: float = option(1.0, "side of the images in every other stage, the last being full: a share of it (FADRM)", low=0.1, high=1)
    residual: float = option(0.5, "share of the starting image in the blend between two stages (FADRM)", low=0, high=1)
    grouping: str = option(
        "class",
        "class: a group holds whole classes (DELT); mixed: one image of each of many classes (SRe2L, CDA)",
        choices=("class", "mixed"),
    )
    group_size: int = option(100, "images whose BatchNorm statistics are matched together", low=1)
    group_rounds: int = option(1, "images of each class in a mixed group (published: 1)", low=1)
    group_cut: str = option(
        "whole",
        "whole: no class is cut where ipc allows, since a part of one biases the statistics; contiguous: class-sorted chunks (published)",
        choices=("whole", "contiguous"),
    )
    drop_empty_rounds: bool = option(
        False,
        "leave out the rounds before the first image of a group joins (published): its run is shorter, so results depend on group_size",
    )
    adam_steps: str = option(
        "sub_batch",
        "step count of Adam: per sub_batch, or shared by all images (published), which makes a late image's first step 1.58 x lr",
        choices=("sub_batch", "shared"),
    )
    clock: str = option(
        "global",
        "learning rate and crop range follow the run's clock (published), or each sub-batch its own from its join",
        choices=("global", "own"),
    )
    save: str = option(
        "png",
        "png: rounded, lossless; jpeg75: truncated and passed through JPEG quality 75 (published), which hurts small images most",
        choices=("png", "jpeg75"),
    )
    record_classes: tuple[str, ...] = option(
        (), "names of the classes recorded while they change; none records none (default: the first ten, within 64 MiB)"
    )
    record_count: int = option(41, "snapshots and loss readings, evenly over the run", low=2)
    record_iterations: tuple[int, ...] = option((), "take them at these iterations instead; the end always counts")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match == "bn+conv" and self.small_side < 1:
            raise ConfigError("recover_match bn+conv knows patches of the full size alone: give recover_small_side 1, or recover_match bn")

    def schedule(self, ipc: int) -> Schedule:
        """The plan of one class with `ipc` images, what is not given filled in.

        Raises:
            ConfigError: as `delt.schedule.plan`.
        """
        return plan(self.iterations, ipc, self.round_iterations, self.sub_batches)


@dataclass(frozen=True)
class RelabelConfig(Section):
    """Relabel: soft labels of the teacher on the augmented images."""

    mode: str = option(
        "online",
        "online: the teacher labels each batch while a student trains; stored: labels of label_epochs passes are written and replayed",
        choices=("online", "stored"),
    )
    epochs: int = option(20, "stored passes over the set; students cycle through them", low=1)


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Evaluate: students trained from scratch on the synthetic set, tested on real images."""

    recipe: str = option(
        "common",
        "student protocol: common (ours, the same for every method), paper (the method's own), or one of paper:delt, paper:sre2l, "
        "paper:cda, paper:rded, paper:gvbsm, paper:fadrm",
    )
    students: tuple[str, ...] = option(
        ("teacher",), "student architectures; teacher stands for the teacher's own architecture and width", least=1
    )
    seeds: int = option(3, "students per row, seeds seed, seed + 1, ..", low=1)
    epochs: int | None = option(None, "passes over the synthetic set (default: the recipe's)", low=1)
    labels: tuple[str, ...] = option(("soft", "hard"), "label kinds to train with", choices=("soft", "hard"), least=1)
    controls: tuple[str, ...] = option(
        ("random",), "sets evaluated beside the method under the same recipe and seeds", choices=("random", "start", "one_sub_batch")
    )
    full: bool = option(True, "also train on the whole real set (cached per data set, recipe and student)")
    features: str = option("teacher", "network whose pooled features the diversity is measured in: teacher, or an architecture")


@dataclass(frozen=True)
class RuntimeConfig(Section):
    """How the work is laid on the machine. Results are byte-identical for equal values of all but `workers` (delt.drift)."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    workers: int | None = option(None, "processes that share the work (default: the CPU's cores, 1 on a GPU)", low=1)
    threads: int | None = option(None, "threads per process (default: 1 on CPU)", low=1)
    precision: str = option(
        "auto",
        "arithmetic of the teacher in recover (auto: fp16 on a GPU, else fp32)",
        choices=("auto", "fp32", "tf32", "fp16", "bf16"),
    )
    train_precision: str = option(
        "auto", "arithmetic of teachers and students in training (auto: bf16 on a GPU, else fp32)", choices=("auto", "fp32", "tf32", "bf16")
    )
    memory_format: str = option("auto", "layout of image tensors in recover", choices=("auto", "contiguous", "channels_last"))
    packing: int | None = option(None, "groups per forward pass in recover (default: one on a CPU, on a GPU what its memory holds)", low=1)
    compile: str = option(
        "auto",
        "torch.compile in recover: pays in long runs on a CPU (auto: off; a GPU has kernels that are faster)",
        choices=("auto", "on", "off"),
    )
    graphs: str = option("auto", "replay steps as CUDA graphs (auto: on a GPU)", choices=("auto", "on", "off"))
    checkpoint_seconds: float = option(60.0, "time between two checkpoints inside a stage", low=0)
    allow_drift: bool = option(
        False, "go on with a run that was begun on another machine, with other settings of it or another torch; the manifest notes it"
    )


@dataclass(frozen=True)
class RunConfig(Section):
    """One method on one data set: the whole experiment."""

    dataset: str = option("digits", "data set (`delt datasets` lists them) or folder:PATH")
    method: str = option("delt", "distillation method")
    ipc: int = option(10, "synthetic images per class", low=1)
    preset: str = option(
        "paper",
        "starting point for everything that is not given (demo for digits); the defaults named here are those of paper and delt, and data "
        "set, preset and method have others",
        choices=("paper", "demo", "smoke"),
    )
    fidelity: str = option(
        "fixed", "strict: the published recover arithmetic, quirks and all; fixed: repaired", choices=("strict", "fixed")
    )
    seed: int = option(0, "seed of ranking, synthesis and students", low=0, high=2**31 - 1)
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    rank: RankConfig = RankConfig()
    recover: RecoverConfig = RecoverConfig()
    relabel: RelabelConfig = RelabelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()


FIDELITY: dict[str, dict[str, Any]] = {
    "fixed": {},
    "strict": {
        "recover_adam_steps": "shared",
        "recover_group_cut": "contiguous",
        "recover_drop_empty_rounds": True,
        "recover_save": "jpeg75",
        "recover_average_start": "zero",
    },
}

_SMALL = {"teacher_arch": "convnet3", "teacher_weights": "train", "teacher_lr": 0.1, "teacher_batch": 64, "ipc": 5}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},  # the fields' own defaults
    "demo": {  # a minute on two CPU cores with digits
        **_SMALL,
        "teacher_width": 32,
        "teacher_others": ["convnet4-w32", "resnet18-w16"],  # where a method has others
        "teacher_epochs": 40,
        "iterations": 400,
        "evaluate_epochs": 120,
        "evaluate_controls": ["one_sub_batch", "start", "random"],
    },
    "smoke": {  # seconds: proves that everything works, and nothing about quality
        **_SMALL,
        "teacher_width": 8,
        "teacher_others": ["convnet4-w8"],
        "teacher_epochs": 2,
        "teacher_min_accuracy": 0.0,
        "rank_images": 50,
        "iterations": 20,
        "recover_record_count": 5,
        "evaluate_epochs": 2,
        "evaluate_seeds": 2,
        "evaluate_full": False,
    },
}


@dataclass(frozen=True)
class FlatField:
    """One field under its flat name: where it lives, its type, default, explanation and limits."""

    name: str
    section: str  # "" for a field of RunConfig itself
    item: dataclasses.Field[Any]
    type: Any

    @property
    def help(self) -> str:
        return str(self.item.metadata["help"])

    @property
    def default(self) -> Any:
        return self.item.default

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.item.metadata["choices"])


def flat_fields() -> Iterator[FlatField]:
    """Yield every field of RunConfig and its sections, in order, under its flat name."""
    hints = typing.get_type_hints(RunConfig)
    for item in dataclasses.fields(RunConfig):
        if item.metadata:
            yield FlatField(item.name, "", item, hints[item.name])
            continue
        section = hints[item.name]
        inner = typing.get_type_hints(section)
        for sub in dataclasses.fields(section):
            bare = item.name == "runtime" or (item.name == "recover" and sub.name in UNPREFIXED)
            yield FlatField(sub.name if bare else f"{item.name}_{sub.name}", item.name, sub, inner[sub.name])


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return the flat, JSON-ready form of a configuration (tuples become lists)."""
    values = {}
    for entry in flat_fields():
        owner = getattr(config, entry.section) if entry.section else config
        value = getattr(owner, entry.item.name)
        values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values


def unflatten(flat: Mapping[str, Any]) -> RunConfig:
    """Build and check a configuration from flat names; what is missing takes the field's default.

    Raises:
        ConfigError: an unknown name (with the nearest one), a wrong type, a value outside its range.
    """
    known = {entry.name: entry for entry in flat_fields()}
    for name in flat:
        if name not in known:
            raise unknown("setting", name, known)
    sections: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        entry = known[name]
        sections.setdefault(entry.section, {})[entry.item.name] = checked(entry.item, entry.type, value, name)
    hints = typing.get_type_hints(RunConfig)
    made = {name: hints[name](**values) for name, values in sections.items() if name}
    return RunConfig(**sections.get("", {}), **made)
