"""Diversity: how alike the images of a class are, by the cosine of their feature vectors; lower is more diverse.

The measure behind the diversity figure of DELT (arXiv 2411.19946), which leaves the features open. Here they are the
teacher's pooled output unless another network is named; values compare only between sets measured with the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.artifacts.teacher import Teacher, TeacherCard, load_weights
from delt.data.images import DataInfo, normalise
from delt.errors import DataError, DeltError, unknown
from delt.models import zoo
from delt.runtime import seed_of, stream

BATCH = 256  # images in one forward pass
CLASS = "class/"  # before the name of a class, which may be any word, "mean" too


class Extractor(Protocol):
    """What turns images into vectors: a teacher, or what `extractor_of` returns."""

    def features(self, images: Tensor) -> Tensor:
        """Vectors [N,D] of normalised float images [N,C,H,W]."""
        ...


def diversity(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    extractor: Extractor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, float]]:
    """Yield ("mean", value over classes) and then ("class/NAME", intra-class cosine similarity).

    A class with fewer than two images has no value and is left out, of the mean too; without any such class nothing
    is yielded.

    Args:
        images: uint8 [N,C,H,W], on any device; moved to `device` a batch at a time.
        labels: int64 [N], positions in `classes`.
        extractor: on `device`; the teacher or another (`extractor_of`).
        mean, std: per channel, of the teacher's card.

    Raises:
        DataError: labels and images do not fit together.
        DeltError: a feature is not finite.
    """
    vectors = features_of(images, extractor, mean, std, device)
    cosines = intra_class_cosine(vectors, labels.cpu(), len(classes))
    values = {f"{CLASS}{name}": value for name, value in zip(classes, cosines.tolist(), strict=True) if value == value}
    if values:
        yield "mean", sum(values.values()) / len(values)
    yield from values.items()


def intra_class_cosine(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean cosine over all pairs i < j of a class, float64 [K]; NaN for a class with fewer than two vectors.

    With unit vectors u and their sum s, the sum over ordered pairs is |s|^2 - sum |u|^2, so no N x N matrix is made.
    The vectors are not centred; the cosine with a zero vector is 0.

    Args:
        features: float [N,D].
        labels: int64 [N], in 0 .. classes - 1.

    Raises:
        DataError: labels and features do not fit together.
        DeltError: a feature is not finite.
    """
    if len(features) != len(labels) or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise DataError(
            f"{len(features)} feature vectors and {len(labels)} labels of {classes} classes; each needs one label in 0 .. {classes - 1}"
        )
    if not torch.isfinite(features).all():
        raise DeltError("features are not finite, so there is no similarity; choose another network as features")
    units = F.normalize(features.double().flatten(1), dim=1)
    counts = labels.bincount(minlength=classes).double()
    sums = units.new_zeros(classes, units.shape[1]).index_add_(0, labels, units)
    own = units.new_zeros(classes).index_add_(0, labels, units.square().sum(1))
    return (sums.square().sum(1) - own) / torch.where(counts > 1, counts * (counts - 1), torch.nan)


@torch.no_grad()
def features_of(
    images: Tensor,
    extractor: Extractor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
    batch: int = BATCH,
) -> Tensor:
    """Feature vectors, float32 [N,D] on the CPU, of uint8 images [N,C,H,W], `batch` at a time."""
    parts = [extractor.features(normalise(part.to(device), mean, std)).float().cpu() for part in images.split(batch)]
    return torch.cat(parts)


def same_number(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices int64 of `per_class` images of each class, sorted by class: real images to compare a synthetic set with.

    Drawn without replacement by the seed and the class alone; a smaller class gives all it has.
    """
    drawn = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).squeeze(1)
        order = torch.randperm(len(members), generator=stream(seed, "diversity", label))
        drawn.append(members[order[:per_class]].sort().values)
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)


def extractor_of(name: str, teacher: Teacher, device: torch.device | str = "cpu", *, pretrained: bool = True) -> Extractor:
    """The network of this name as an extractor; its images are normalised by the teacher's card whatever it is.

    Args:
        name: "teacher" for its own pooled output, or an architecture of the zoo. One that torchvision publishes gets
            the weights that torchvision prefers today (ImageNet-1k, fetched where they are not in torch's cache) and
            sees the images as these expect them: three channels, resized, with their own normalisation.
        pretrained: False for random weights there too, for a machine without a network. ConvNets, of which none are
            published, always have random weights: those of one fixed seed, untrained, so that anyone gets the same.

    Raises:
        ConfigError: no such architecture, or it cannot take these images.
        TeacherError: the weights could not be fetched; says where to put the file.
    """
    if name == "teacher":
        return teacher.to(device)
    if name not in zoo.architectures():
        raise unknown("feature extractor", name, ("teacher", *zoo.architectures()))
    published = pretrained and name not in zoo.CONVNETS
    extractor = _published(name, teacher.card) if published else _untrained(name, teacher.card)
    extractor.model.to(device).eval().requires_grad_(False)
    return extractor


@dataclass(eq=False)
class Untrained:
    """A network of the zoo with random weights."""

    model: nn.Module

    def features(self, images: Tensor) -> Tensor:
        """Pooled output [N,D]."""
        return zoo.features(self.model, images)


@dataclass(eq=False)
class Published:
    """A network of the zoo with torchvision's weights; takes the teacher's images and turns them into its own kind."""

    model: nn.Module
    own: tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of the images that come in
    expected: tuple[tuple[float, ...], tuple[float, ...]]  # and of those that the weights were trained on
    size: int  # pixels per side that the weights were tested with

    def features(self, images: Tensor) -> Tensor:
        """Pooled output [N,D]."""
        (mean, std), (their_mean, their_std) = (
            tuple(images.new_tensor(part).view(1, -1, 1, 1) for part in pair) for pair in (self.own, self.expected)
        )
        pixels = (images * std + mean).expand(-1, 3, -1, -1)  # 0 .. 1, grey as three equal channels
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)
        return zoo.features(self.model, (pixels - their_mean) / their_std)


def _untrained(arch: str, card: TeacherCard) -> Untrained:
    seed = seed_of("diversity", "untrained") % 2**31
    return Untrained(zoo.build(arch, len(card.classes), card.channels, card.size, generator_seed=seed))


def _published(arch: str, card: TeacherCard) -> Published:
    from torchvision.models import get_model_weights

    weights = get_model_weights(arch).DEFAULT
    view = weights.transforms()
    size, classes = view.crop_size[0], tuple(weights.meta["categories"])
    info = DataInfo("imagenet-1k", classes, 3, size, tuple(view.mean), tuple(view.std), True, 0.0)
    return Published(load_weights(weights.name, arch, None, info), (card.mean, card.std), (info.mean, info.std), size)
