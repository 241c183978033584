"""The Vendi score: how many different images a set has in effect (Friedman and Dieng, arXiv 2210.02410)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from delt.errors import DataError


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosines of all pairs: 1 for copies of one image, N for N unlike ones.

    K and the D x D matrix of the same vectors share their eigenvalues other than 0, so the smaller one is solved.

    Args:
        features: float [N,D], N at least 1.

    Raises:
        DataError: there is no image, or a vector is zero or not finite, so that it has no direction.
    """
    if features.ndim != 2 or not len(features):
        raise DataError(f"features have shape {list(features.shape)}; allowed is [N,D] with at least one image")
    if not torch.isfinite(features).all() or not features.abs().amax(1).gt(0).all():
        raise DataError("a feature vector is zero or not finite, so it has no direction; choose another network as features")
    units = F.normalize(features.double(), dim=1)
    small = units @ units.T if len(units) <= units.shape[1] else units.T @ units
    values = torch.linalg.eigvalsh(small / len(units)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())


def vendi_by_class(features: Tensor, labels: Tensor) -> dict[int, float]:
    """Vendi score of each class that has images, by label: with ipc images a class it lies in 1 .. ipc."""
    return {label: vendi_score(features[labels == label]) for label in labels.unique().tolist()}
