"""Sets of images side by side in one feature space: how alike their images are, and how they lie among real ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from delt.analysis.coverage import NEIGHBOURS, density_coverage
from delt.analysis.diversity import Extractor, features_of, intra_class_cosine
from delt.analysis.table import Lines, aligned
from delt.analysis.vendi import vendi_by_class, vendi_score
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import TeacherCard
from delt.data.images import Images
from delt.errors import DataError

HEADS = {
    "name": "set",
    "images": "images",
    "cosine": "cosine",
    "vendi_class": "Vendi in a class",
    "vendi": "Vendi in all",
    "density": "density",
    "coverage": "coverage",
}


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A set of images with their feature vectors, ordered by class."""

    name: str
    images: Tensor  # uint8 [N,C,H,W]
    labels: Tensor  # int64 [N], positions in `classes`
    classes: tuple[str, ...]
    source: Sequence[str]  # what started each image
    sub_batch: Tensor | None = None  # int64 [N]; None for real images
    iterations: Tensor | None = None  # int64 [N], pixel updates
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # float [N,D]

    @staticmethod
    def of(name: str, synthetic: SyntheticSet) -> FeatureSet:
        """A synthetic set, not measured yet. One of which no image was updated, such as random real images, has no sub-batches."""
        made = bool(synthetic.iterations.any())
        depth = (synthetic.sub_batch, synthetic.iterations) if made else (None, None)
        return FeatureSet(name, synthetic.images, synthetic.labels, synthetic.classes, synthetic.source, *depth)

    @staticmethod
    def real(name: str, images: Images, index: Tensor, classes: Sequence[str], part: str) -> FeatureSet:
        """Real images at `index` (int64 [n]), sorted by class, not measured yet; `part` is train or test."""
        index = index[images.labels[index].argsort(stable=True)]
        sources = [f"{part}/{place}" for place in index.tolist()]
        return FeatureSet(name, images.fetch(index).cpu(), images.labels[index], tuple(classes), sources)

    def seen_by(self, extractor: Extractor, card: TeacherCard, device: torch.device | str = "cpu") -> FeatureSet:
        """The set with the vectors that this network gives its images, which are normalised by the teacher's card."""
        return replace(self, features=features_of(self.images, extractor, card.mean, card.std, device))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def by_class(self) -> dict[int, float]:
        """Intra-class cosine similarity of each class that has two images, by label."""
        values = intra_class_cosine(self.features, self.labels, len(self.classes)).tolist()
        return {label: value for label, value in enumerate(values) if value == value}

    @property
    def cosine(self) -> float | None:
        """Mean of `by_class`; None where no class has two images."""
        return statistics.fmean(self.by_class.values()) if self.by_class else None

    def of_class(self, label: int, most: int | None = None) -> FeatureSet:
        """The images of one class, the first `most` of them."""
        rows = torch.nonzero(self.labels == label).squeeze(1)[:most]
        sub_batch, iterations = (None if part is None else part[rows] for part in (self.sub_batch, self.iterations))
        source = [self.source[row] for row in rows.tolist()]
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            source=source,
            sub_batch=sub_batch,
            iterations=iterations,
            features=self.features[rows],
        )


def pairwise_cosine(features: Tensor) -> Tensor:
    """Cosine of every pair, float64 [N,N], of vectors [N,D]; 1 on the diagonal, 0 with a zero vector."""
    units = F.normalize(features.double(), dim=1)
    return units @ units.T


def cosine_to_class(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean cosine of each image to the others of its class, float64 [N]; NaN where there is no other.

    The mean over the images of a class is that class's `intra_class_cosine`.

    Args:
        features: float [N,D].
        labels: int64 [N], in 0 .. classes - 1.
    """
    units = F.normalize(features.double(), dim=1)
    counts = labels.bincount(minlength=classes).double()
    sums = units.new_zeros(classes, units.shape[1]).index_add_(0, labels, units)
    own = (units * sums[labels]).sum(1) - units.square().sum(1)
    others = counts[labels] - 1
    return own / torch.where(others > 0, others, torch.nan)


@dataclass(frozen=True)
class Measures:
    """What was measured of one set in one feature space; None where it has no value."""

    name: str
    images: int
    cosine: float | None  # intra-class, mean over classes
    vendi_class: float | None  # Vendi score within a class, mean over classes
    vendi: float | None  # of the whole set
    density: float | None
    coverage: float | None


def measured(found: FeatureSet, real: FeatureSet, neighbours: int = NEIGHBOURS) -> Measures:
    """Measure a set; density and coverage with respect to `real`, and not at all where it is that set or too small.

    Raises:
        DataError: the sets have different classes or features.
    """
    if found.classes != real.classes:
        raise DataError(
            f"{found.name} has the classes {_some(found.classes)}, {real.name} has {_some(real.classes)}; they must be the same"
        )
    apart = found is not real and len(real) > neighbours
    density, coverage = density_coverage(real.features, found.features, neighbours) if apart else (None, None)
    within = statistics.fmean(vendi_by_class(found.features, found.labels).values())
    return Measures(found.name, len(found), found.cosine, within, vendi_score(found.features), density, coverage)


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")


def cells(row: Measures) -> list[str]:
    """The row in the order of `HEADS`."""
    formats = {"cosine": "{:.3f}", "density": "{:.2f}", "coverage": "{:.1%}", "vendi": "{:.1f}", "vendi_class": "{:.2f}", "images": "{:,}"}
    values = {name: getattr(row, name) for name in HEADS}
    return ["-" if value is None else formats.get(name, "{}").format(value) for name, value in values.items()]


def notes(real: FeatureSet, neighbours: int = NEIGHBOURS) -> list[str]:
    """What the columns mean, one line each."""
    enough = "fair between sets of one size" if len(real) > neighbours else f"they need more than {neighbours}"
    return [
        "cosine: intra-class similarity, mean over classes; lower is more diverse",
        "Vendi: effective number of different images, in a class (mean over classes) and in all; it grows with the set",
        f"density, coverage: with respect to {len(real):,} held-out real images, k = {neighbours}; {enough}",
    ]


def table(rows: Sequence[Measures], real: FeatureSet, neighbours: int = NEIGHBOURS) -> Lines:
    """Sets as a plain table, with what its columns mean below it."""
    return aligned(list(HEADS.values()), map(cells, rows), notes(real, neighbours))
