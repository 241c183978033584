"""The Vendi score: its two ends, and the definition by the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from delt.analysis.vendi import vendi_by_class, vendi_score
from delt.errors import DataError


def vectors(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def by_definition(features):
    """exp of the entropy of the eigenvalues of K / n, with numpy."""
    units = features.double().numpy()
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    values = np.linalg.eigvals(units @ units.T / len(units)).real
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


@pytest.mark.parametrize(("count", "size"), [(3, 8), (8, 3), (6, 6), (1, 4)])
def test_it_equals_the_definition(count, size):
    features = vectors(count, size)
    assert vendi_score(features) == pytest.approx(by_definition(features))


def test_copies_count_once_and_unlike_images_all():
    assert vendi_score(vectors(1, 5).expand(7, -1)) == pytest.approx(1)
    assert vendi_score(torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(3).repeat(4, 1)) == pytest.approx(3)


def test_length_of_a_vector_does_not_count():
    features = vectors(5, 4)
    assert vendi_score(features * torch.tensor([1.0, 2, 3, 4, 5])[:, None]) == pytest.approx(vendi_score(features))


def test_classes_are_scored_alone():
    features, labels = vectors(7, 4), torch.tensor([2, 2, 2, 0, 0, 2, 0])
    found = vendi_by_class(features, labels)
    assert found == {0: pytest.approx(vendi_score(features[[3, 4, 6]])), 2: pytest.approx(vendi_score(features[[0, 1, 2, 5]]))}


def test_an_image_without_features_is_unlike_all_others():
    assert vendi_score(torch.tensor([[1.0, 0], [0, 1], [0, 0]])) == pytest.approx(3)
    assert vendi_score(torch.tensor([[1.0, 0], [1, 0], [0, 0]])) == pytest.approx(vendi_score(torch.eye(2)[[0, 0, 1]]))
    assert vendi_score(torch.zeros(4, 3)) == pytest.approx(4)


@pytest.mark.parametrize("features", [torch.empty(0, 3), torch.tensor([[1.0, float("nan")]]), torch.ones(3)])
def test_what_cannot_be_scored_is_refused(features):
    with pytest.raises(DataError, match="choose another network|at least one image"):
        vendi_score(features)
