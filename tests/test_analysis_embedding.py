"""t-SNE: clusters stay apart, the seed decides, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from delt.analysis.embedding import tsne
from delt.errors import DataError


def clusters(each=20, size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 8 * torch.randn(3, size, generator=generator)
    return torch.cat([centre + torch.randn(each, size, generator=generator) for centre in centres])


def test_neighbours_on_the_plane_are_of_one_cluster():
    places = tsne(clusters(), perplexity=8)
    assert places.shape == (60, 2) and np.isfinite(places).all()
    far = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (far.argmin(1) // 20 == np.arange(60) // 20).all()


def test_the_seed_decides():
    features = clusters(8)
    assert np.array_equal(tsne(features, 5, seed=1), tsne(features, 5, seed=1))


def test_the_length_of_a_vector_does_not_count():
    features = clusters(8)
    assert np.allclose(tsne(features, 5), tsne(features * 4, 5))


@pytest.mark.parametrize(
    ("features", "perplexity", "says"),
    [
        (clusters(2), 6, "perplexity is 6; allowed is from 1 to less than the 6 images"),
        (clusters(2), 0.5, "perplexity is 0.5"),
        (torch.ones(2, 4), 1, "at least 3 images"),
        (torch.full((5, 4), float("inf")), 2, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(features, perplexity, says):
    with pytest.raises(DataError, match=says):
        tsne(features, perplexity)
