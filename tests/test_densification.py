"""Data densification: the formula written out, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from delt.densification import densification


def images(count: int, size: int = 6, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.mark.parametrize("size", [6, 32, 40])
def test_it_is_the_formula(size: int) -> None:
    x, rows = images(6, size), torch.tensor([[0, 2, 4], [5, 3, 1]])
    found = densification(x, rows)
    for value, row in zip(found.tolist(), rows.tolist(), strict=True):
        points = F.adaptive_avg_pool2d(x[row], min(size, 32)).flatten(1)
        gram = torch.tensor([[float((a * b).sum()) for b in points] for a in points], dtype=torch.float64)
        eigenvalues = torch.linalg.eigvals(gram).real.tolist()
        powers = ([math.exp(value / t) for value in eigenvalues] for t in (4.0, 1.0))
        q, p = ([power / sum(part) for power in part] for part in powers)
        assert value == pytest.approx(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)), rel=1e-9)


def test_sixteen_bits_are_summed_in_thirty_two() -> None:
    x, rows = images(4).half(), torch.tensor([[0, 1], [2, 3]])
    found = densification(x, rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), densification(x.double(), rows), rtol=1e-2, atol=1e-4)


def test_a_single_image_has_none_and_the_gradient_spreads_what_is_alike() -> None:
    assert densification(images(2), torch.tensor([[0], [1]])).tolist() == [0.0, 0.0]
    alike = (images(1).repeat(3, 1, 1, 1) + 0.01 * images(3, seed=1)).requires_grad_()
    loss = densification(alike, torch.tensor([[0, 1, 2]])).sum()
    (gradient,) = torch.autograd.grad(loss, alike)
    moved = alike.detach() - 0.1 * gradient
    spread = lambda x: torch.linalg.eigvalsh(x.flatten(1) @ x.flatten(1).mT)[-1] / x.square().sum()  # noqa: E731
    assert loss > 0 and spread(moved) < spread(alike.detach())  # the largest direction holds less of all


def test_the_target_takes_no_gradient() -> None:
    x, rows = images(4, 3, 1).requires_grad_(), torch.tensor([[0, 1], [2, 3]])
    (gradient,) = torch.autograd.grad(densification(x, rows).sum(), x)
    spectrum = lambda given: torch.linalg.eigvalsh(given.flatten(1)[rows] @ given.flatten(1)[rows].mT)  # noqa: E731
    fixed = (spectrum(x.detach()) / 4).softmax(1)
    value = lambda given: (fixed * (fixed.log() - spectrum(given).log_softmax(1))).sum()  # noqa: E731
    step, direction = 1e-6, images(4, 3, 1, seed=5)
    slope = (value(x.detach() + step * direction) - value(x.detach() - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)
