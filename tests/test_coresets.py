"""Coresets: the greedy choice against all candidates, clusters that each give an image, and nothing taken twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from delt.coresets import herding, k_means


def vectors(count, size=6, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_herding_takes_the_best_of_all_at_each_step(count):
    units = F.normalize(vectors(9).double(), dim=1)
    expected: list[int] = []
    for _ in range(count):
        off = {i: (units[[*expected, i]].mean(0) - units.mean(0)).norm().item() for i in range(9) if i not in expected}
        expected.append(min(off, key=lambda i: off[i]))
    assert herding(vectors(9), count) == expected


def test_herding_of_all_ends_at_the_mean_and_length_does_not_count():
    features = vectors(7)
    assert sorted(herding(features, 7)) == list(range(7))
    assert herding(features * torch.arange(1.0, 8)[:, None], 4) == herding(features, 4)


def test_k_means_takes_an_image_of_every_cluster_the_largest_first():
    centres = 5 * torch.eye(3, 6)
    features = torch.cat([centres[0] + 0.1 * vectors(4), centres[1] + 0.1 * vectors(9, seed=1), centres[2] + 0.1 * vectors(6, seed=2)])
    cluster = torch.tensor([0] * 4 + [1] * 9 + [2] * 6)
    taken = k_means(features, 3, seed=0)
    assert cluster[taken].tolist() == [1, 2, 0]
    units = F.normalize(features.double(), dim=1)
    for image in taken:
        own = units[cluster == cluster[image]]
        nearest = (own - own.mean(0)).norm(dim=1).argmin()
        assert torch.equal(own[nearest], units[image])


def test_k_means_takes_nothing_twice_even_of_copies():
    assert sorted(k_means(vectors(2).repeat(3, 1), 5, seed=0)) == sorted(set(k_means(vectors(2).repeat(3, 1), 5, seed=0)))
    assert sorted(k_means(vectors(6), 6, seed=3)) == list(range(6))


def test_the_seed_decides():
    assert k_means(vectors(40), 5, seed=1) == k_means(vectors(40), 5, seed=1)
