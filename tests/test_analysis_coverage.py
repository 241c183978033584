"""Density and coverage against loops over all pairs."""

from __future__ import annotations

import math

import pytest
import torch

from delt.analysis.coverage import density_coverage
from delt.errors import DataError


def vectors(count, size=4, seed=0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(real, synthetic, k):
    """The paper's sums, one pair at a time."""
    inside, covered = 0, 0
    for i, centre in enumerate(real.tolist()):
        radius = sorted(math.dist(centre, other) for j, other in enumerate(real.tolist()) if j != i)[k - 1]
        hits = [math.dist(centre, image) < radius for image in synthetic.tolist()]
        inside, covered = inside + sum(hits), covered + any(hits)
    return inside / (k * len(synthetic)), covered / len(real)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_it_equals_the_sums_of_the_paper(k, shift, monkeypatch):
    monkeypatch.setattr("delt.analysis.coverage.CHUNK", 7)  # parts of unequal size
    real, synthetic = vectors(40).double(), vectors(15, seed=1, shift=shift).double()
    assert density_coverage(real, synthetic, k) == pytest.approx(by_loops(real, synthetic, k))


def test_far_images_cover_nothing_and_copies_of_all_cover_everything():
    real = vectors(30)
    assert density_coverage(real, vectors(10, shift=100.0)) == (0, 0)
    assert density_coverage(real, real)[1] == 1


def test_one_image_repeated_covers_less_than_many():
    real = vectors(200)
    assert density_coverage(real, vectors(1, seed=3).expand(50, -1))[1] < density_coverage(real, vectors(50, seed=3))[1]


def test_sets_of_one_distribution_have_density_near_one():
    density, coverage = density_coverage(vectors(800), vectors(800, seed=1))
    assert density == pytest.approx(1, abs=0.1) and coverage > 0.9


@pytest.mark.parametrize(
    ("real", "synthetic", "k", "says"),
    [
        (vectors(5), vectors(5), 5, "5 real and 5 synthetic images for 5 nearest"),
        (vectors(5), vectors(5), 0, "for 0 nearest"),
        (vectors(9), vectors(0), 5, "9 real and 0 synthetic"),
        (vectors(9), vectors(9, size=3), 5, r"shapes \[9, 4\] and \[9, 3\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(real, synthetic, k, says):
    with pytest.raises(DataError, match=says):
        density_coverage(real, synthetic, k)
