"""Density and coverage of a set with respect to real images (Naeem et al., arXiv 2002.09797).

Around every real image lies a ball that reaches to its k-th nearest real neighbour. Density asks how many balls a
synthetic image lies in, coverage how many balls hold a synthetic image. A ball that belongs to the image itself would
flatter the set, so the real images are ones that it was not made from.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from delt.errors import DataError

NEIGHBOURS = 5
CHUNK = 1024  # real images whose distances are held at once


def density_coverage(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Density, which is 1 where both sets are alike and may be more, and coverage, in 0 .. 1 (section 3 of the paper).

    Few images cannot cover many: compare sets of one size, such as the random control of as many real images.

    Args:
        real: float [N,D], feature vectors of real images that the set was not made from.
        synthetic: float [M,D].
        neighbours: k, less than N.

    Raises:
        DataError: there are too few images, or their features have different lengths.
    """
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise DataError(f"features have shapes {list(real.shape)} and {list(synthetic.shape)}; allowed are [N,D] and [M,D]")
    if not 1 <= neighbours < len(real) or not len(synthetic):
        given = f"{len(real)} real and {len(synthetic)} synthetic images for {neighbours} nearest neighbours"
        raise DataError(f"{given}; needed are a neighbour, more real images than neighbours, and a synthetic one")
    inside, covered = 0, 0
    for part, radii in _balls(real.double(), neighbours):
        within = _distances(part, synthetic.double()) < radii
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (neighbours * len(synthetic)), covered / len(real)


def _balls(real: Tensor, neighbours: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Centres [n,D] and radii [n,1], a part at a time; the nearest neighbour of an image is itself and does not count."""
    for part in real.split(CHUNK):
        yield part, _distances(part, real).kthvalue(neighbours + 1, dim=1, keepdim=True).values


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, exactly 0 between equal vectors."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
