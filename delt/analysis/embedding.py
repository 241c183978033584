"""Feature vectors as places on a plane, by scikit-learn's t-SNE (van der Maaten and Hinton, JMLR 2008)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from delt.errors import DataError

ENOUGH = 50  # dimensions that are kept of the features, as the paper does


def tsne(features: Tensor, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Places float64 [N,2] of feature vectors [N,D], by the cosine distance's order (vectors are scaled to length 1).

    The same features, perplexity and seed give the same places on one machine. Distances between far clusters, and the
    sizes of clusters, mean nothing in such a picture.

    Args:
        perplexity: about how many neighbours count; at least 1 and less than N.

    Raises:
        DataError: fewer than 3 vectors, one that is not finite, or a perplexity that does not fit.
    """
    if features.ndim != 2 or len(features) < 3 or not torch.isfinite(features).all():
        raise DataError(f"features are {list(features.shape)}; allowed is [N,D], finite, with at least 3 images")
    if not 1 <= perplexity < len(features):
        raise DataError(f"perplexity is {perplexity:g}; allowed is from 1 to less than the {len(features)} images")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = F.normalize(features.double().flatten(1), dim=1).numpy()
    if min(vectors.shape) > ENOUGH:
        vectors = PCA(ENOUGH, svd_solver="randomized", random_state=seed).fit_transform(vectors)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(vectors)
    return places.astype(np.float64)
