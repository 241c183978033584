"""Choosing images of a class that stand for it, by their features: the coreset controls of the field, without any training.

Both work on unit vectors, as cosine decides elsewhere, and return positions in the order in which they are taken.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

TRIES = 4  # starts of k-means, of which the best counts


def herding(features: Tensor, count: int) -> list[int]:
    """Greedily take the image that brings the mean of those taken nearest to the class's mean (iCaRL, arXiv 1611.07725, algorithm 4).

    Args:
        features: float [N,D] of one class.
        count: how many to take, at most N.
    """
    units = F.normalize(features.double(), dim=1)
    mean, total = units.mean(0), torch.zeros_like(units[0])
    free = torch.ones(len(units), dtype=torch.bool)
    taken: list[int] = []
    for number in range(1, count + 1):
        distance = ((total + units) / number - mean).norm(dim=1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        total, free[best] = total + units[best], False
        taken.append(best)
    return taken


def k_means(features: Tensor, count: int, seed: int) -> list[int]:
    """Cluster into `count` parts and take the image nearest to each centre, the largest cluster's first (scikit-learn's KMeans).

    Args:
        features: float [N,D] of one class.
        count: how many to take, at most N.
        seed: of the starting centres, 0 .. 2^32 - 1.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    units = F.normalize(features.double(), dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters: the rest is filled up below
        found = KMeans(count, n_init=TRIES, random_state=seed).fit(units.numpy())
    sizes = torch.from_numpy(found.labels_).bincount(minlength=count)
    # Both images of a cluster of two are as near to its centre: without rounding the last bit would choose.
    distance = torch.cdist(torch.from_numpy(found.cluster_centers_).double(), units).mul(1e5).round()
    taken: list[int] = []
    for cluster in sizes.argsort(descending=True, stable=True).tolist():
        distance[:, taken[-1:]] = torch.inf
        taken.append(int(distance[cluster].argmin()))
    return taken
