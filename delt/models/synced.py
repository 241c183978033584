"""BatchNorm over the batches of all ranks, as if they were one: DataParallel and plain DDP take the statistics of a part."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class JointSum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return joint_sum(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return joint_sum(gradients[0].clone())


class SyncNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm for CPUs, which it does not know: two differentiable sums over the ranks, mean before variance."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        count = torch.full((1,), images.numel() / images.shape[1], dtype=images.dtype)
        joint: Tensor = JointSum.apply(torch.cat([images.sum((0, 2, 3)), count]))
        count = joint[-1]
        mean = joint[:-1] / count
        centred = images - mean.view(1, -1, 1, 1)
        variance: Tensor = JointSum.apply((centred * centred).sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synced(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the BatchNorm layers of a network measure the batches of all ranks; its parameters and their names stay. Changes the network."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncNorm
    return model


def joint_sum(values: Tensor) -> Tensor:
    """The sum over all ranks, in place; takes no gradient."""
    dist.all_reduce(values)
    return values
