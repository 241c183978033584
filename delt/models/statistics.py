"""The BatchNorm-statistics term: how far the images' layer statistics are from those the teacher remembers.

For every BatchNorm layer and every group of images (SRe2L, arXiv 2306.13092, equation 5; norms not squared):

    |running_var - var(x)|_2 + |running_mean - mean(x)|_2

over the layer's input x, biased variance, first layer weighted. Groups lie interleaved along the batch axis, image i of
group g at i * groups + g, so that several independent groups share one forward pass and active images stay one
contiguous slice. The gradient is taken in closed form and needs the layer's input alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StatisticsDistance(torch.autograd.Function):
    """Distance per group [G] between the statistics of x [N,C,H,W] and the targets [C].

    d/dx = 2/n * u * (x - mean) + 1/n * w, with n the values per channel and group, u and w the unit vectors of the
    variance's and the mean's deviation; a deviation of exactly zero has gradient zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, target_mean: Tensor, target_var: Tensor, groups: int) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()  # statistics need 32 bits, whatever the layers run in
        var, mean = torch.var_mean(wide.unflatten(0, (-1, groups)), dim=(0, 3, 4), correction=0)
        var_off, mean_off = var - target_var, mean - target_mean
        var_norm, mean_norm = var_off.norm(dim=1, keepdim=True), mean_off.norm(dim=1, keepdim=True)
        tiny = torch.finfo(wide.dtype).tiny
        ctx.save_for_backward(x, mean, var_off / var_norm.clamp_min(tiny), mean_off / mean_norm.clamp_min(tiny))
        ctx.groups = groups
        return (var_norm + mean_norm).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, mean, var_unit, mean_unit = ctx.saved_tensors
        count = x.numel() / (x.shape[1] * ctx.groups)
        weight = grads[0].unsqueeze(1) / count
        slope = 2 * weight * var_unit
        offset = weight * mean_unit - slope * mean
        grouped = x.unflatten(0, (-1, ctx.groups))
        gradient = torch.addcmul(offset[:, :, None, None], grouped, slope[:, :, None, None])
        return gradient.flatten(0, 1).to(x.dtype), None, None, None


class StatisticsMatch:
    """The one BatchNorm hook: while its `with` block runs, forward passes of the model are measured.

    >>> with StatisticsMatch(model, groups=2, first_multiplier=10) as match:
    ...     logits = model(images)          # image i of group g at i * 2 + g
    ...     distance = match.collect()      # [2], differentiable
    """

    def __init__(self, model: nn.Module, groups: int = 1, first_multiplier: float = 10.0) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.groups = groups
        self.first_multiplier = first_multiplier
        self._terms: list[Tensor] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> StatisticsMatch:
        self._handles = [layer.register_forward_pre_hook(self._measure) for layer in self.layers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._terms.clear()

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
        distance = StatisticsDistance.apply(inputs[0], layer.running_mean, layer.running_var, self.groups)
        self._terms.append(distance * self.first_multiplier if layer is self.layers[0] else distance)

    def collect(self) -> Tensor:
        """Weighted sum over the layers, per group [G], of what was measured since the last call: call it after each forward pass."""
        total = torch.stack(self._terms).sum(0)
        self._terms.clear()
        return total
