"""The yardstick of `delt bench`: EarlyLate as one would write it down from the papers, one group at a time.

It is an honest one: the network's weights are frozen, only joined images are given to it, TF32 is allowed on a GPU, and
there is no synchronisation beyond the one per iteration that keeps the best images. It has 700 to 780 operator launches per
iteration with ResNet-18. What makes it slow is plain style: statistics by hooks and autograd layer by layer, one norm
per layer, images of the group picked and scattered by index, 32-bit arithmetic in the default layout.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv


class LayerStatistics:
    """Keeps how far a BatchNorm layer's input is from what the layer remembers."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.distance = torch.zeros(())
        layer.register_forward_hook(self.measure)

    def measure(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        values = inputs[0]
        channels = values.shape[1]
        mean = values.mean([0, 2, 3])
        variance = values.permute(1, 0, 2, 3).reshape(channels, -1).var(1, unbiased=False)
        self.distance = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)


class ReferenceLoop:
    """Optimises one group of class-sorted images.

    Args:
        model: a frozen network in evaluation mode; it gets hooks that stay.
        images: normalised starting images [N,C,H,W].
        labels: class of each [N].
        joins: iteration at which each image joins [N].
        iterations: length of the run.
        mean, std: of the normalisation, per channel.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        joins: Tensor,
        iterations: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        lr: float = 0.25,
        bn_weight: float = 0.01,
        first_multiplier: float = 10.0,
        min_crop: float = 0.08,
    ) -> None:
        self.model, self.labels, self.joins, self.iterations = model, labels, joins, iterations
        self.mean, self.std, self.lr = mean, std, lr
        self.bn_weight, self.first_multiplier, self.min_crop = bn_weight, first_multiplier, min_crop
        self.statistics = [LayerStatistics(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.images = images.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=lr, betas=(0.5, 0.9), eps=1e-8)
        self.best, self.best_loss = images.clone(), math.inf
        self.random = random.Random(0)

    def box(self, side: int, smallest: float) -> list[int]:
        """Top, left, height and width of a random crop for the whole batch."""
        for _ in range(10):
            area = side * side * self.random.uniform(smallest, 1)
            ratio = math.exp(self.random.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= side and 0 < height <= side:
                return [self.random.randint(0, side - height), self.random.randint(0, side - width), height, width]
        return [0, 0, side, side]

    def step(self, t: int) -> float:
        """One iteration; returns the loss."""
        side = self.images.shape[-1]
        progress = 0.5 * (1 + math.cos(math.pi * t / self.iterations))
        smallest = self.min_crop + (1 - self.min_crop) * progress
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * progress
        active = torch.nonzero(self.joins <= t).squeeze(1).to(self.images.device)
        views = tv.resized_crop(self.images[active], *self.box(side, smallest), [side, side], antialias=True)
        if self.random.random() < 0.5:
            views = tv.horizontal_flip(views)
        views = torch.roll(views, [0, 0], [2, 3])
        self.optimizer.zero_grad()
        entropy = F.cross_entropy(self.model(views), self.labels[active])
        weights = [self.first_multiplier] + [1.0] * (len(self.statistics) - 1)
        distance = sum(weight * layer.distance for weight, layer in zip(weights, self.statistics, strict=True))
        loss = entropy + self.bn_weight * distance
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
                self.images[:, channel] = torch.clamp(self.images[:, channel], -mean / std, (1 - mean) / std)
        value = float(loss.item())
        if value < self.best_loss:
            self.best = self.images.detach().clone()
        return value
