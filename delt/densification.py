"""Data densification: keep the images of a class from being alike (G-VBSM, arXiv 2311.17950, section 3.2).

The eigenvalues of a class's Gram matrix tell how many directions its images span. Their softmax is pulled towards the
flatter softmax at temperature 4, so that no direction stands for all of them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # larger images are pooled to it
TEMPERATURE = 4.0


def densification(images: Tensor, rows: Tensor) -> Tensor:
    """KL(softmax(l / 4) || softmax(l)) of the eigenvalues l of each class's Gram matrix, [B]; the target takes no gradient.

    Args:
        images: normalised, augmented [N,C,H,W].
        rows: int64 [B,n], the images of each of B classes; a single one has 0.
    """
    size = images.shape[-1]
    pool = _pool(size, min(SIDE, size)).to(images)
    points = (pool @ images @ pool.T).flatten(1)[rows]
    wide = points if points.dtype == torch.float64 else points.float()
    values = torch.linalg.eigvalsh(wide @ wide.mT)
    target = (values.detach() / TEMPERATURE).log_softmax(1)
    return F.kl_div(values.log_softmax(1), target, reduction="none", log_target=True).sum(1)


@functools.cache
def _pool(size: int, side: int) -> Tensor:
    """Matrix [side, size] of means over `side` stretches of pixels, as adaptive pooling cuts them; its gradient is exact on any device."""
    pixel, place = torch.arange(size), torch.arange(side)[:, None]
    inside = (pixel >= place * size // side) & (pixel < -(-(place + 1) * size // side))
    return inside / inside.sum(1, keepdim=True)
