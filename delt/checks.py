"""What is refused before long work begins, because only some of it could be done: one place for runs, studies, sweeps and plans."""

from __future__ import annotations

from delt.config import RunConfig
from delt.data.given import require_given
from delt.data.images import RealSet
from delt.data.load import class_counts, count_images, require_files, shape_of
from delt.data.specs import spec_of
from delt.engine.pixels import small_side
from delt.errors import ConfigError, DataError, TeacherError
from delt.methods import require_size
from delt.models.zoo import CONVNETS, build, has_batchnorm, named, require_side
from delt.recipes import recipe_of
from delt.stages.evaluate import require_one_batch, students_of
from delt.stages.squeeze import backbones


def check_names(config: RunConfig) -> None:
    """Refuse architectures that do not exist or cannot be teachers, before anything is loaded or trained.

    Raises:
        ConfigError: an unknown architecture (with the nearest), or one that cannot take these images.
        TeacherError: a teacher without BatchNorm layers.
    """
    spec = spec_of(config.dataset)
    classes, channels, size = len(config.data.classes) or spec.count or 2, spec.channels or 3, config.data.size or spec.size or 64
    for arch, width in (named(name) for name in {*config.evaluate.students, config.evaluate.features} - {"teacher"}):
        build(arch, classes, channels, size, width)
    for name, own in backbones(config.teacher).items():
        model = build(own.arch, classes, channels, size, own.width)
        if not has_batchnorm(model):
            which = f"teacher_arch {own.arch}" if name == "teacher" else f"{name} of teacher_others"
            raise TeacherError(f"{which} has no BatchNorm layers, whose statistics recover needs: `delt models` marks those that do")
        if name != "teacher" and own.weights != "train" and (own.arch in CONVNETS or own.width):
            raise ConfigError(f"teacher_weights {own.weights} holds for teacher_others, too, and {name} has no published weights")


def check_config(config: RunConfig) -> None:
    """What can be said of a run without reading a file: its names, whether the folders that it needs are there, and whether
    a published data set has images enough.

    Raises:
        DeltError: as the other functions here, `require_files` and `require_given`.
    """
    check_names(config)
    require_files(config.dataset, config.data)
    require_given(config.rank, config.ipc)
    if spec_of(config.dataset).images:
        _check_shape(config)


def check_stages(config: RunConfig, classes: int, channels: int, size: int) -> None:
    """Refuse teachers that cannot take the images of the small stages, settings for images of another size, and students
    whose batches are not those of stored labels.

    Raises:
        ConfigError: naming the network or the settings, and the size.
    """
    require_size(config, size)
    if config.relabel.mode == "stored" and "soft" in config.evaluate.labels:
        recipe = recipe_of(config.evaluate.recipe, spec_of(config.dataset).name, size, config.ipc)
        require_one_batch(recipe, students_of(config.evaluate, config.teacher.arch, config.teacher.width), classes, config.ipc)
    if config.recover.iterations and config.recover.stages > 1:
        for own in backbones(config.teacher).values():
            model = build(own.arch, classes, channels, size, own.width)
            require_side(model, own.arch, channels, small_side(size, config.recover))


def check_images(config: RunConfig, real: RealSet) -> None:
    """Refuse a set with fewer training images of a class than are needed.

    Raises:
        DataError: names the first five such classes, their images and how many more there are, and what would do.
    """
    counts, needed = class_counts(real.train, len(real.info.classes)), _needed(config)
    short = [f"{name!r} ({count})" for name, count in zip(real.info.classes, counts, strict=True) if count < needed]
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        raise DataError(
            f"{len(short)} of {len(counts)} classes of {real.info.name} have fewer than {needed} training images: "
            f"{', '.join(short[:5])}{more}; {_instead(config, min(counts))}"
        )


def check_plan(config: RunConfig) -> tuple[int, int, int]:
    """All of it as far as it can be said without opening the data set; returns its classes, channels and pixels per side.

    Raises:
        DeltError: as the other functions here, `require_given` and `shape_of`.
    """
    check_names(config)
    require_given(config.rank, config.ipc)
    return _check_shape(config)


def _check_shape(config: RunConfig) -> tuple[int, int, int]:
    """Refuse what does not suit the number, size and channels of the images; returns classes, channels and pixels per side."""
    classes, channels, size = shape_of(config.dataset, config.data)
    check_stages(config, classes, channels, size)
    train, _ = count_images(config.dataset, config.data)
    if (needed := _needed(config)) * classes > train:
        about = f"{config.dataset} has {train:,} training images in {classes:,} classes, so not {needed} of each"
        raise DataError(f"{about}: {_instead(config, train // classes)}")
    return classes, channels, size


def _needed(config: RunConfig) -> int:
    """Real training images of each class that a run draws: none for images from elsewhere, but for their random control."""
    if config.rank.keep == "given" and "random" not in config.evaluate.controls:
        return 0
    return config.ipc * _tiles(config)


def _tiles(config: RunConfig) -> int:
    """Real images in a synthetic one; noise has none, and stands beside random ones."""
    return 1 if config.rank.keep == "noise" else config.rank.factor**2


def _instead(config: RunConfig, images: int) -> str:
    """What would do where a class has no more than so many training images."""
    if config.rank.keep == "given":
        return "leave out their random control (--evaluate-controls ''), or add images"
    most = images // _tiles(config)
    return f"use --ipc {most} or less, or add images" if most else "add images"
