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

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.data.augment import enlarger, warp

if TYPE_CHECKING:
    from delt.models.kernels import Finish, Sums  # where a GPU is

Targets = Mapping[str, Tensor]  # name of a convolution -> channel means, variances, patch means, variances, end to end


def mean_and_variance(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per group and channel of x [N,C,H,W]: two of [G,C]."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # statistics need 32 bits, whatever the layers run in
    parts, others = x.unflatten(0, (-1, groups)), (0, 3, 4)
    if x.is_cuda or torch.compiler.is_compiling():
        var, mean = torch.var_mean(parts.to(wide), dim=others, correction=0)
        return mean, var
    # On a CPU torch's var takes as long as a convolution, five times what follows (benchmarks/LOG.md).
    mean = parts.mean(others, dtype=wide)
    off = F.mse_loss(parts, mean[:, :, None, None].expand_as(parts), reduction="none")
    return mean, off.mean(others)


def _channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of x [N,C,H,W] lie side by side, and not the pixels of a channel."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def straight(x: Tensor, offset: Tensor, slope: Tensor) -> Tensor:
    """offset + slope * x, a line [G,C] per group and channel of x [N,C,H,W], in the layout of x and at least 32 bits."""
    groups = len(offset)
    if _channels_last(x):
        pixels = x.permute(0, 2, 3, 1).unflatten(0, (-1, groups))  # [n,G,H,W,C]: the last axis is that of the line, which is quick
        found = torch.addcmul(offset[:, None, None], pixels, slope[:, None, None])
        return found.flatten(0, 1).permute(0, 3, 1, 2)
    return torch.addcmul(offset[:, :, None, None], x.unflatten(0, (-1, groups)), slope[:, :, None, None]).flatten(0, 1)


class Moments(torch.autograd.Function):
    """Mean and biased variance per group and channel of x [N,C,H,W]: two of [G,C].

    What it takes back is not their gradient but the straight line (offset, slope) that `Lines` makes of it for all layers at
    once: the gradient of x is offset + slope * x, in one pass over x, and nothing but x is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return mean_and_variance(x, groups)

    @staticmethod
    def backward(ctx: Any, *line: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return straight(x, *line).to(x.dtype), None  # in 32 bits: a mean far from zero would drown the rest in 16


class Lines(torch.autograd.Function):
    """Means and variances of many layers end to end, [G, 2S], unchanged; their gradient becomes the lines that `Moments` takes.

    d/dx of mean and variance, weighted by u and w: (u + 2 w (x - mean)) / n, with n [S] the values behind each of them.
    """

    @staticmethod
    def forward(ctx: Any, measured: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(measured, values)
        return measured.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        measured, values = ctx.saved_tensors
        return lines(measured, grads[0], torch.cat([1 / values, 2 / values])), None


def lines(measured: Tensor, gradient: Tensor, share: Tensor) -> Tensor:
    """Offsets, then slopes [G, 2S] of the gradient with respect to the layers' inputs, from that of their means and variances.

    Args:
        share: [2S], one over the values behind each mean, then two over those behind each variance.
    """
    line = gradient * share
    (mean, _), (offset, slope) = measured.chunk(2, 1), line.chunk(2, 1)
    offset.addcmul_(slope, mean, value=-1)
    return line


class Distance(torch.autograd.Function):
    """Sums per group [G] of the weighted norms of what statistics [G, 2S] are off by, vector by vector; sums are in 64 bits.

    Like `Lines` it gives back not the gradient of what was measured, but the lines that `Moments` takes. A vector without
    deviation has none.
    """

    @staticmethod
    def forward(ctx: Any, measured: Tensor, value: Tensor, share: Tensor, weights: Tensor, plan: _Plan) -> Tensor:
        off = value - plan.targets
        norms = (off.square().double() @ plan.members).sqrt()
        ctx.save_for_backward(measured, share, weights, off, norms, plan.vector_of)
        return (norms * weights).sum(1).to(measured.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        measured, share, weights, off, norms, vector_of = ctx.saved_tensors
        pull = grads[0][:, None] * weights / norms.clamp_min(torch.finfo(off.dtype).tiny ** 0.5)
        return lines(measured, off * pull.to(off.dtype)[:, vector_of], share), None, None, None, None


class Watched(torch.autograd.Function):
    """A frozen BatchNorm layer, what is added to its output and the ReLU after it, with the `Moments` of its input.

    Gives the output, means and variances, and the output once more: of two that take it, each has its own, so that their
    gradients arrive apart. One pass over them and the input gives the gradient of all, as a line per channel and group:
    gradient * scale + offset + slope * x. Where the kernels ran, means and variances are empty until `Finished` has made
    those of all layers from the sums that come last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenNorm, groups: int, other: Tensor | None, relu: bool, twice: bool) -> tuple[Any, ...]:
        ctx.relu, ctx.added = relu, other is not None
        if kernels_suit(x):
            from delt.models import kernels

            assert layer.running_mean is not None
            out, sums = kernels.normed(x, layer.scale, layer.shift, layer.running_mean, groups, other, relu)
            mean, var = torch.empty(2, groups, x.shape[1], dtype=torch.float32, device=x.device)
        else:
            out, sums, (mean, var) = layer.plain(x, other, relu), None, mean_and_variance(x, groups)
        # what a ReLU after a sum cut is seen in its output alone
        ctx.save_for_backward(x, layer.scale, layer.shift, out if relu and ctx.added else None)
        return out, mean, var, out.detach() if twice else None, sums

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (x, scale, shift, output), (gradient, offset, slope, more, _) = ctx.saved_tensors, grads
        if kernels_suit(x):
            from delt.models import kernels

            line = scale, shift, offset, slope
            own, passed = kernels.pulled(gradient, x, *line, more=more, relu=ctx.relu, added=ctx.added, output=output)
        else:
            passed = gradient if more is None else gradient + more
            if ctx.relu:
                reached = torch.addcmul(shift[:, None, None], x, scale[:, None, None]) if output is None else output
                passed = passed * (reached > 0)
            own = (passed * scale[:, None, None] + straight(x, offset, slope)).to(x.dtype)
        return own, None, None, passed if ctx.added else None, None, None


class Finished(torch.autograd.Function):
    """Means of several layers, then their variances, end to end [G, 2S], from the sums that the kernels took.

    Args:
        blank: those that `Watched` gave of each layer: all means, then all variances. What comes back is handed to them.
    """

    @staticmethod
    def forward(ctx: Any, finish: Finish, sums: Sequence[Sums], *blank: Tensor) -> Tensor:
        ctx.sizes = [one.shape[1] for one in blank]
        return finish(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *grads[0].split(ctx.sizes, 1)


def kernels_suit(x: Tensor) -> bool:
    """Whether `delt.models.kernels` can take this tensor [N,C,H,W]."""
    return x.is_cuda and x.dtype != torch.float64 and x.is_contiguous(memory_format=torch.channels_last)


class FrozenNorm(nn.BatchNorm2d):
    """A BatchNorm2d layer in evaluation mode which measures its input in the same pass, where it is watched."""

    watch: Callable[[Tensor, Tensor, Tensor, Sums | None], None] | None = None  # takes input, means, variances, what they are made of
    groups = 1

    @cached_property
    def scale(self) -> Tensor:
        """Factor per channel [C]."""
        assert self.running_var is not None
        root = (self.running_var + self.eps).sqrt()
        return 1 / root if self.weight is None else self.weight / root

    @cached_property
    def shift(self) -> Tensor:
        """Summand per channel [C]."""
        assert self.running_mean is not None
        return (0 if self.bias is None else self.bias) - self.running_mean * self.scale

    def plain(self, x: Tensor, other: Tensor | None = None, relu: bool = False) -> Tensor:
        """The layer in torch's operators, plus `other`, cut at zero where `relu` is set."""
        return _followed(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps), other, relu)

    def forward(self, x: Tensor, other: Tensor | None = None, relu: bool = False, twice: bool = False) -> Any:
        """The layer, plus `other`, cut at zero where `relu` is set; as a pair of the same, one for each that takes it, where `twice` is."""
        fits = other is None or other.shape == x.shape  # one that is spread over the images is added as ever
        if self.watch is None and fits and kernels_suit(x) and not torch.is_grad_enabled():
            from delt.models import kernels

            out = again = kernels.applied(x, self.scale, self.shift, other, relu)
        elif self.watch is None:
            out = again = self.plain(x, other, relu)
        else:
            out, mean, var, again, sums = Watched.apply(x, self, self.groups, other if fits else None, relu and fits, twice and fits)
            self.watch(x, mean, var, sums)
            if not fits:
                out = again = _followed(out, other, relu)
        return (out, again) if twice else out


def _followed(out: Tensor, other: Tensor | None, relu: bool) -> Tensor:
    out = out if other is None else out + other
    return out.relu() if relu else out


def freeze_norms(model: nn.Module) -> nn.Module:
    """Let every BatchNorm2d layer of a network in evaluation mode be a `FrozenNorm`: changes and returns it."""
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = FrozenNorm
    return model


def patches(x: Tensor, side: int) -> Tensor:
    """The grid cells of x [N,C,H,W] as channels: [N, cells, C, side^2], after a bilinear resize to the next multiple of `side`."""
    height, width = (-(-extent // side) * side for extent in x.shape[2:])
    if (height, width) != x.shape[2:]:  # by matrices: the gradient of interpolate adds up in a random order on a GPU
        x = warp(x, *(enlarger(*pair, x.device, x.dtype) for pair in zip(x.shape[2:], (height, width), strict=True)))
    grid = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [N, C, rows, side, columns, side]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)


def patch_side(size: int) -> int:
    """Pixels per side of a patch for images of this size: 16 for large images, 4 for those of up to 64 pixels (G-VBSM)."""
    return 16 if size > 64 else 4


def convolution_moments(x: Tensor, side: int, groups: int = 1) -> Tensor:
    """Statistics of a convolution's input per group, [G, 2C + 2P]: by channel, then by patch of `side` pixels."""
    found = []
    for part in (x, patches(x, side)):
        values = torch.full((part.shape[1],), part.numel() / groups / part.shape[1], dtype=x.dtype, device=x.device)
        found.append(Lines.apply(torch.cat(Moments.apply(part, groups), 1), values))
    return torch.cat(found, 1)


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
        self.model = model
        counted = (nn.BatchNorm2d, nn.Conv2d) if convolutions else nn.BatchNorm2d
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, counted)}
        self.groups, self.first_multiplier = groups, first_multiplier
        self.remembered, self.side = convolutions or {}, side
        self.average, self.from_zero = average, from_zero
        self.past: Tensor | None = None  # [G, S]: the moving average of all statistics, end to end
        self._means: list[Tensor] = []  # of the newest forward pass, [G, ..], layer by layer in the order in which they ran
        self._vars: list[Tensor] = []
        self._sums: list[Sums | None] = []  # what means and variances are still to be made of
        self._shapes: list[tuple[str, int]] = []  # name of the layer, values per image behind each of its statistics
        self._images = 0  # per group
        self._plan: _Plan | None = None
        self._finish: dict[tuple[Any, ...], Finish] = {}  # by the shapes of the sums; a recording may not make them anew
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def convolutions(self) -> list[str]:
        """Names of the convolutions that count."""
        return [name for name, layer in self.layers.items() if isinstance(layer, nn.Conv2d)]

    def __enter__(self) -> StatisticsMatch:
        self._handles = [self.model.register_forward_pre_hook(lambda *_: self._begin())]
        for name, layer in self.layers.items():
            if isinstance(layer, FrozenNorm):
                layer.watch = self._watch(name)
            else:
                self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            if isinstance(layer, FrozenNorm):
                layer.watch = None
        self._forget()

    def _forget(self) -> None:
        self._means, self._vars, self._sums, self._shapes = [], [], [], []

    def _begin(self) -> None:
        """A forward pass begins."""
        self._forget()
        for layer in self.layers.values():
            if isinstance(layer, FrozenNorm):
                layer.groups = self.groups

    def _watch(self, name: str) -> Callable[[Tensor, Tensor, Tensor, Sums | None], None]:
        def note(x: Tensor, mean: Tensor, var: Tensor, sums: Sums | None) -> None:
            self._note(name, x, mean, var, sums)
            self._images = x.shape[0] // self.groups

        return note

    def _note(self, name: str, part: Tensor, mean: Tensor, var: Tensor, sums: Sums | None = None) -> None:
        self._means.append(mean)
        self._vars.append(var)
        self._sums.append(sums)
        self._shapes.append((name, math.prod(part.shape[2:])))

    def _hook(self, name: str) -> Callable[..., None]:
        def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            for part in [x] if isinstance(layer, nn.BatchNorm2d) else [x, patches(x, self.side)]:
                self._note(name, part, *Moments.apply(part, self.groups))
            self._images = x.shape[0] // self.groups

        return measure

    def measured(self) -> Measured:
        """What the newest forward pass gave: call it, or `collect`, after each."""
        if self._plan is None or self._plan.shapes != self._shapes:
            self._plan = self._planned()
        found = Measured(self._joined(), self._images)
        self._forget()
        return found

    def _joined(self) -> Tensor:
        """All means, then all variances, end to end [G, 2S]."""
        means, variances = list(self._means), list(self._vars)
        layers = [k for k, sums in enumerate(self._sums) if sums is not None]
        if layers:
            from delt.models.kernels import Finish

            sums = [one for one in self._sums if one is not None]
            if (shapes := Finish.of(sums)) not in self._finish:
                self._finish[shapes] = Finish(sums)
            found: Tensor = Finished.apply(self._finish[shapes], sums, *(means[k] for k in layers), *(variances[k] for k in layers))
            if len(layers) == len(means):
                return found
            parts = found.split([means[k].shape[1] for k in layers] * 2, 1)
            for k, mean, var in zip(layers, parts[: len(layers)], parts[len(layers) :], strict=True):
                means[k], variances[k] = mean, var
        return torch.cat([*means, *variances], 1)

    def collect(self, dropped: Tensor | None = None) -> Tensor:
        """Weighted distance per group [G] of what was measured in the newest forward pass: call it after each.

        Args:
            dropped: bool [G, convolutions]: those that are left out this time, and whose average stays as it was (but for the very
                first measurement, which an average that does not start from zero starts from all the same).
        """
        found = self.measured()
        return self.distance(found.values, found.images, dropped)

    def distance(self, measured: Tensor, images: int, dropped: Tensor | None = None) -> Tensor:
        """Weighted distance per group [G] of statistics [G, 2S] of so many images each, that lie as in `Measured`.

        Its gradient is that of a layer's input, as `Moments` takes it; the moving average counts in its value alone (G-VBSM's
        score distillation).
        """
        assert self._plan is not None
        plan, value, weights = self._plan, measured.detach(), self._plan.weights
        if dropped is not None:
            kept = plan.kept(dropped.to(measured.device))
            weights = weights * kept
        if self.average:
            value = self._averaged(value, None if dropped is None else kept[:, plan.vector_of])
        found: Tensor = Distance.apply(measured, value, plan.share(images), weights, plan)
        return found

    def _averaged(self, now: Tensor, kept: Tensor | None) -> Tensor:
        """The moving average, brought up to date with what was measured."""
        if self.past is None:
            self.past = torch.zeros_like(now) if self.from_zero else now
        moved = self.past.lerp(now, 1 - self.average)
        self.past = moved if kept is None else torch.where(kept, moved, self.past)
        return self.past

    def _planned(self) -> _Plan:
        means, variances, owners = [], [], [name for name, _ in self._shapes]
        first = next(iter(self.convolutions if self.remembered else self.layers))
        seen: set[str] = set()
        for (name, _), mean in zip(self._shapes, self._means, strict=True):
            mean_target, var_target = self._target(name, mean.shape[1], name in seen)
            seen.add(name)
            means.append(mean_target.to(mean))
            variances.append(var_target.to(mean))
        device, sizes = means[0].device, [len(target) for target in means]
        weights = torch.tensor([self.first_multiplier if name == first else 1.0 for name in owners] * 2, device=device)
        place = {name: column for column, name in enumerate(self.convolutions)}
        columns = torch.tensor([place.get(name, len(place)) for name in owners] * 2, device=device)
        vector_of = torch.arange(2 * len(sizes)).repeat_interleave(torch.tensor(sizes * 2)).to(device)
        values = torch.tensor([float(number) for _, number in self._shapes], dtype=means[0].dtype, device=device)
        targets = torch.cat([*means, *variances])
        return _Plan(self._shapes, targets, values[vector_of[: len(targets) // 2]], weights, columns, vector_of)

    def _target(self, name: str, length: int, of_patches: bool) -> tuple[Tensor, Tensor]:
        """Means and variances that a layer remembers: of its channels or of its patches."""
        layer = self.layers[name]
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            return layer.running_mean, layer.running_var
        own = self.remembered[name][-2 * length :] if of_patches else self.remembered[name][: 2 * length]
        return own[:length], own[length:]


@dataclass
class Measured:
    """Statistics of one forward pass, as `Moments` gave them."""

    values: Tensor  # [G, 2S]: all means, then all variances, end to end, in the order in which the layers ran
    images: int  # of a group

    def with_more(self, other: Measured) -> Measured:
        """The statistics of both passes' images together (Chan, Golub, LeVeque 1979)."""
        part, (mean, var), (more, more_var) = other.images / (self.images + other.images), self.values.chunk(2, 1), other.values.chunk(2, 1)
        means = mean + (more - mean) * part
        variances = var + (more_var - var) * part + (more - mean) ** 2 * part * (1 - part)
        return Measured(torch.cat([means, variances], 1), self.images + other.images)


@dataclass
class _Plan:
    """How the statistics of one forward pass lie end to end: in the order in which the layers ran, all means before all variances."""

    shapes: list[tuple[str, int]]  # of the layers; a convolution comes twice, for its channels and its patches
    targets: Tensor  # [2S]
    values: Tensor  # [S]: values per image behind each
    weights: Tensor  # of the vectors: a layer's means, or its variances
    columns: Tensor  # number of the convolution that each vector belongs to; one more for BatchNorm, which is never left out
    vector_of: Tensor  # [2S]: which vector each number belongs to

    def __post_init__(self) -> None:
        self.members = F.one_hot(self.vector_of).double()  # [2S, V]: one column per vector, with ones where its numbers are
        self._shares: dict[int, Tensor] = {}

    def share(self, images: int) -> Tensor:
        """What `lines` asks for, for so many images; kept, since every step wants the same."""
        if images not in self._shares:
            self._shares[images] = torch.cat([1 / self.values, 2 / self.values]) / images
        return self._shares[images]

    def kept(self, dropped: Tensor) -> Tensor:
        """bool [G, vectors]: whether each vector counts, from bool [G, convolutions]."""
        return ~F.pad(dropped, (0, 1))[:, self.columns]
