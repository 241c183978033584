"""Statistics matching: how far the images' layer statistics are from those that the teacher remembers.

For every BatchNorm layer and every group of images (SRe2L, arXiv 2306.13092, equation 5; norms not squared):

    |running_var - var(x)|_2 + |running_mean - mean(x)|_2

over the layer's input x, biased variance, first layer weighted. G-VBSM (arXiv 2311.17950) adds the same for the input of
every convolution, by channel and by cell of a grid of patches, against statistics that `remember_convolutions` took
from real images, and lets a moving average stand for the measured value while the gradient goes through the current one.

Groups lie interleaved along the batch axis, image i of group g at i * groups + g, so that several independent groups
share one forward pass and active images stay one contiguous slice. The gradient of the statistics is taken in closed
form and needs the layer's input alone; everything after them is arithmetic on short vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.data.augment import enlarger, warp

Targets = Mapping[str, Tensor]  # name of a convolution -> channel means, variances, patch means, variances, end to end


class Moments(torch.autograd.Function):
    """Mean and biased variance per group and channel of x [N,C,H,W], end to end: [G, 2C].

    d/dx of mean and variance, weighted by u and w: (u + 2 w (x - mean)) / n, with n the values per channel and group.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()  # statistics need 32 bits, whatever the layers run in
        var, mean = torch.var_mean(wide.unflatten(0, (-1, groups)), dim=(0, 3, 4), correction=0)
        ctx.save_for_backward(x, mean)
        ctx.groups = groups
        return torch.cat([mean, var], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        of_mean, of_var = (grads[0] / (x.numel() / mean.numel())).chunk(2, 1)
        slope = 2 * of_var
        offset = of_mean - slope * mean
        gradient = torch.addcmul(offset[:, :, None, None], x.unflatten(0, (-1, ctx.groups)), slope[:, :, None, None])
        return gradient.flatten(0, 1).to(x.dtype), None


def patches(x: Tensor, side: int) -> Tensor:
    """The grid cells of x [N,C,H,W] as channels: [N, cells, C, side^2], after a bilinear resize to the next multiple of `side`."""
    height, width = (-(-extent // side) * side for extent in x.shape[2:])
    if (height, width) != x.shape[2:]:  # by matrices: the gradient of interpolate adds up in a random order on a GPU
        x = warp(x, *(enlarger(*pair).to(x) for pair in zip(x.shape[2:], (height, width), strict=True)))
    grid = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [N, C, rows, side, columns, side]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)


def patch_side(size: int) -> int:
    """Pixels per side of a patch for images of this size: 16 for large images, 4 for those of up to 64 pixels (G-VBSM)."""
    return 16 if size > 64 else 4


def convolution_moments(x: Tensor, side: int, groups: int = 1) -> Tensor:
    """Statistics of a convolution's input per group, [G, 2C + 2P]: by channel, then by patch of `side` pixels."""
    return torch.cat([Moments.apply(x, groups), Moments.apply(patches(x, side), groups)], 1)


@torch.no_grad()
def remember_convolutions(model: nn.Module, batches: Iterable[Tensor], side: int) -> dict[str, Tensor]:
    """What a convolution of a frozen model sees of real images: `convolution_moments`, averaged over batches.

    Variances are means of the batches' variances, as published, not those of all images at once.

    Args:
        batches: normalised images [n,C,H,W]; each counts by its number of images.

    Returns:
        name of the convolution -> [2C + 2P].
    """
    total: dict[str, Tensor] = {}
    seen = 0

    def hook(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            moments = convolution_moments(inputs[0], side)[0].double() * len(inputs[0])
            total[name] = total[name] + moments if name in total else moments

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    try:
        for images in batches:
            model(images)
            seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (value / seen).float() for name, value in total.items()}


class StatisticsMatch:
    """The one statistics hook: while its `with` block runs, forward passes of the model are measured.

    >>> with StatisticsMatch(model, groups=2, first_multiplier=10) as match:
    ...     logits = model(images)          # image i of group g at i * 2 + g
    ...     distance = match.collect()      # [2], differentiable

    Args:
        groups: G, whose images lie interleaved.
        first_multiplier: weight of the first BatchNorm layer, or of the first convolution where those count too.
        convolutions: what `remember_convolutions` gave: convolutions count too. Empty for BatchNorm alone.
        side: pixels per side of their patches.
        average: share that the past keeps in the moving average of the statistics; 0 is the current ones alone.
        from_zero: the average starts at zero (as published), not at the first measurement.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: int = 1,
        first_multiplier: float = 10.0,
        *,
        convolutions: Targets | None = None,
        side: int = 4,
        average: float = 0.0,
        from_zero: bool = False,
    ) -> None:
        counted = (nn.BatchNorm2d, nn.Conv2d) if convolutions else nn.BatchNorm2d
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, counted)}
        self.groups, self.first_multiplier = groups, first_multiplier
        self.remembered, self.side = convolutions or {}, side
        self.average, self.from_zero = average, from_zero
        self.past: Tensor | None = None  # [G, S]: the moving average of all statistics, end to end
        self._measured: dict[str, Tensor] = {}
        self._plan: _Plan | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def convolutions(self) -> list[str]:
        """Names of the convolutions that count."""
        return [name for name, layer in self.layers.items() if isinstance(layer, nn.Conv2d)]

    def __enter__(self) -> StatisticsMatch:
        self._handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in self.layers.items()]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._measured.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            plain = isinstance(layer, nn.BatchNorm2d)
            self._measured[name] = Moments.apply(x, self.groups) if plain else convolution_moments(x, self.side, self.groups)

        return measure

    def collect(self, dropped: Tensor | None = None) -> Tensor:
        """Weighted distance per group [G] of what was measured in the newest forward pass: call it after each.

        Args:
            dropped: bool [G, convolutions]: those that are left out this time, and whose average stays as it was (but for the very
                first measurement, which an average that does not start from zero starts from all the same).
        """
        if self._plan is None or self._plan.names != [*self._measured]:
            self._plan = self._planned()
        plan, measured = self._plan, torch.cat([*self._measured.values()], 1)
        self._measured.clear()
        kept = None if dropped is None else plan.kept(dropped.to(measured.device))
        if self.average:
            measured = self._averaged(measured, None if kept is None else kept.repeat_interleave(plan.lengths, 1))
        norms = _norms(measured - plan.targets.to(measured), plan.sizes)
        return (norms * plan.weights.to(norms) * (1.0 if kept is None else kept)).sum(1)

    def _averaged(self, measured: Tensor, kept: Tensor | None) -> Tensor:
        """The moving average in value, the measured statistics in gradient (G-VBSM's score distillation)."""
        now = measured.detach()
        if self.past is None:
            self.past = torch.zeros_like(now) if self.from_zero else now
        moved = self.past.lerp(now, 1 - self.average)
        self.past = moved if kept is None else torch.where(kept, moved, self.past)
        return self.past + measured - now

    def _planned(self) -> _Plan:
        targets, sizes, weights, owners = [], [], [], []
        first = next(iter(self.convolutions if self.remembered else self.layers))
        for name, measured in self._measured.items():
            layer = self.layers[name]
            target, parts = self._target(layer, name, measured.shape[1])
            targets.append(target.to(measured))
            sizes += parts
            weights += [self.first_multiplier if name == first else 1.0] * len(parts)
            owners += [name] * len(parts)
        device = targets[0].device
        place = {name: column for column, name in enumerate(self.convolutions)}
        columns = torch.tensor([place.get(name, len(place)) for name in owners], device=device)
        return _Plan([*self._measured], torch.cat(targets), sizes, torch.tensor(weights, device=device), columns)

    def _target(self, layer: nn.Module, name: str, length: int) -> tuple[Tensor, list[int]]:
        """What a layer remembers, end to end, and how long each of its vectors is."""
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            return torch.cat([layer.running_mean, layer.running_var]), [length // 2] * 2
        assert isinstance(layer, nn.Conv2d)
        cells = (length - 2 * layer.in_channels) // 2
        return self.remembered[name], [layer.in_channels] * 2 + [cells] * 2


@dataclass
class _Plan:
    """How the statistics of one forward pass lie end to end: in the order in which the layers ran."""

    names: list[str]  # of the layers
    targets: Tensor  # [S]
    sizes: list[int]  # of the vectors
    weights: Tensor  # of the vectors
    columns: Tensor  # number of the convolution that each vector belongs to; one more for BatchNorm, which is never left out

    @cached_property
    def lengths(self) -> Tensor:
        """`sizes` as a tensor beside the others."""
        return torch.tensor(self.sizes, device=self.targets.device)

    def kept(self, dropped: Tensor) -> Tensor:
        """bool [G, vectors]: whether each vector counts, from bool [G, convolutions]."""
        return ~F.pad(dropped, (0, 1))[:, self.columns]


def _norms(deviation: Tensor, sizes: list[int]) -> Tensor:
    """Length of each vector that lies end to end in [G, S]: [G, vectors]; one of exactly zero has gradient zero."""
    squares = torch.stack([part.sum(1) for part in deviation.square().split(sizes, 1)], 1)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt() * (squares > 0)
