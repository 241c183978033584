"""The Vendi score: how many different images a set has in effect (Friedman and Dieng, arXiv 2210.02410)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from delt.errors import DataError


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosines of all pairs: 1 for copies of one image, N for N unlike ones.

    K and the D x D matrix of the same vectors share their eigenvalues other than 0, so the smaller one is solved. The cosine
    with a zero vector is 0, as in `intra_class_cosine`, so an image without features counts as one unlike all others.

    Args:
        features: float [N,D], N at least 1.

    Raises:
        DataError: there is no image, or a vector is not finite.
    """
    if features.ndim != 2 or not len(features):
        raise DataError(f"features have shape {list(features.shape)}; allowed is [N,D] with at least one image")
    if not torch.isfinite(features).all():
        raise DataError("features are not finite, so there is no similarity; choose another network as features")
    count, directed = len(features), features.abs().amax(1) > 0
    units = F.normalize(features[directed].double(), dim=1)
    small = units @ units.T if len(units) <= units.shape[1] else units.T @ units
    lonely = units.new_full((int((~directed).sum()),), 1 / count)
    values = torch.cat([torch.linalg.eigvalsh(small / count).clamp(min=0), lonely])
    return float(torch.special.entr(values).sum().exp())


def vendi_by_class(features: Tensor, labels: Tensor) -> dict[int, float]:
    """Vendi score of each class that has images, by label: with ipc images a class it lies in 1 .. ipc."""
    return {label: vendi_score(features[labels == label]) for label in labels.unique().tolist()}
