"""The BatchNorm-statistics term: value and gradient against plain autograd over a loop of groups and layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.models import zoo
from delt.models.statistics import (
    Lines,
    Moments,
    StatisticsMatch,
    convolution_moments,
    freeze_norms,
    mean_and_variance,
    patch_side,
    patches,
    remember_convolutions,
    straight,
)


def network(arch: str = "convnet3", channels: int = 3) -> nn.Module:
    """A frozen float64 network with random BatchNorm statistics."""
    model = zoo.build(arch, 4, channels, 8, width=4, generator_seed=1).double().eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(2)
    for layer in norms(model):
        size = layer.num_features
        layer.running_mean = torch.randn(size, dtype=torch.float64, generator=draws)
        layer.running_var = torch.rand(size, dtype=torch.float64, generator=draws) + 0.3
        layer.weight.copy_(torch.rand(size, dtype=torch.float64, generator=draws) + 0.5)
        layer.bias.copy_(torch.randn(size, dtype=torch.float64, generator=draws))
    return model


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def batch(count: int, channels: int = 3, seed: int = 3) -> Tensor:
    return torch.randn(count, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(model: nn.Module, images: Tensor, groups: int, multiplier: float) -> Tensor:
    """One forward pass per group; per layer and channel a sum over values, and norms written out: [G]."""
    total = []
    for g in range(groups):
        inputs: list[Tensor] = []
        handles = [layer.register_forward_pre_hook(lambda _, given, to=inputs: to.append(given[0])) for layer in norms(model)]
        model(images[g::groups])
        for handle in handles:
            handle.remove()
        distance = torch.zeros((), dtype=torch.float64)
        for position, (layer, x) in enumerate(zip(norms(model), inputs, strict=True)):
            assert layer.running_mean is not None and layer.running_var is not None
            mean_off, var_off = [], []
            for c in range(x.shape[1]):
                values = x[:, c].flatten()
                mean = values.sum() / len(values)
                mean_off.append(mean - layer.running_mean[c])
                var_off.append(((values - mean) ** 2).sum() / len(values) - layer.running_var[c])
            term = sum(d**2 for d in mean_off) ** 0.5 + sum(d**2 for d in var_off) ** 0.5
            distance = distance + term * (multiplier if position == 0 else 1.0)
        total.append(distance)
    return torch.stack(total)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("multiplier", [10.0, 1.0, 0.0])
@pytest.mark.parametrize(("arch", "channels"), [("convnet3", 3), ("convnet3", 1), ("resnet18", 3)])
def test_loss_and_gradient_are_the_written_out_ones(arch: str, channels: int, groups: int, multiplier: float) -> None:
    model, weights = network(arch, channels), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)[:groups]
    images = batch(2 * groups, channels).requires_grad_()
    with StatisticsMatch(model, groups, multiplier) as match:
        model(images)
        distance = match.collect()
    assert distance.shape == (groups,)
    (gradient,) = torch.autograd.grad((distance * weights).sum(), images)
    plain = images.detach().clone().requires_grad_()
    expected = reference(model, plain, groups, multiplier)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), plain)
    assert torch.allclose(distance, expected, rtol=1e-12, atol=0)
    assert (gradient - wanted).abs().max() < 1e-12 * max(1, wanted.abs().max().item())


def test_packed_groups_equal_one_by_one() -> None:
    model, groups = network(), 5
    images = batch(4 * groups).requires_grad_()
    with StatisticsMatch(model, groups) as match:
        model(images)
        packed = match.collect()
    (gradient,) = torch.autograd.grad(packed.sum(), images)
    for g in range(groups):
        alone = images.detach()[g::groups].requires_grad_()
        with StatisticsMatch(model) as match:
            model(alone)
            distance = match.collect()
        (own,) = torch.autograd.grad(distance.sum(), alone)
        assert abs(distance.item() - packed[g].item()) < 1e-12
        assert (own - gradient[g::groups]).abs().max() < 1e-12
    with StatisticsMatch(model) as match:  # and it matters: one merged group is another loss
        model(images)
        assert abs(match.collect().item() - packed.mean().item()) > 1e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups: int) -> None:
    x = batch(3 * groups, 2)[:, :, :3, :3].clone().requires_grad_()
    values = torch.full((2,), 3.0 * 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: Lines.apply(torch.cat(Moments.apply(given, groups), 1), values), (x,))


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_layer_is_the_layer_in_value_and_gradient(affine: bool) -> None:
    layer = nn.BatchNorm2d(3, affine=affine).double().eval().requires_grad_(False)
    layer.running_mean, layer.running_var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.1
    if affine:
        layer.weight.copy_(torch.randn(3))
        layer.bias.copy_(torch.randn(3))
    plain, frozen = nn.Sequential(layer), freeze_norms(copy.deepcopy(nn.Sequential(layer)))
    x, pull = batch(4).requires_grad_(), batch(4, seed=5)
    assert torch.equal(plain(x), frozen(x)) and isinstance(frozen[0], nn.BatchNorm2d)
    found = []
    for network in (plain, frozen):
        with StatisticsMatch(network, 2) as match:
            out = network(x)
            value = (out * pull).sum() + match.collect().sum()
        found.append((value, *torch.autograd.grad(value, x)))
    assert all(torch.allclose(one, two, rtol=1e-12) for one, two in zip(*found, strict=True))
    assert frozen[0].watch is None


class One(nn.Module):
    """A network that is one BatchNorm layer, which remembers these statistics."""

    def __init__(self, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self.layer = nn.BatchNorm2d(len(mean)).to(mean.dtype)
        self.layer.running_mean, self.layer.running_var = mean, var
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layer(images)
        return out


LAYOUTS = {"pixels of a channel side by side": torch.contiguous_format, "channels of a pixel": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "side"), [(5, 7), (1, 4), (3, 1), (64, 8)])
@pytest.mark.parametrize("centre", [0.0, 300.0])  # standard deviations from zero
def test_means_and_variances_are_those_in_double_precision(
    channels: int, side: int, centre: float, dtype: torch.dtype, groups: int, layout: str
) -> None:
    x = torch.randn(12, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + centre
    x = x.to(dtype).contiguous(memory_format=LAYOUTS[layout])
    mean, var = mean_and_variance(x, groups)
    for g in range(groups):
        own = x[g::groups].double()
        exact = own.mean((0, 2, 3))
        near = 1e-12 if dtype == torch.float64 else 1e-5
        assert (mean[g] - exact).abs().max() <= near * (1 + centre)
        assert (var[g] - ((own - exact[:, None, None]) ** 2).mean((0, 2, 3))).abs().max() <= near * (3 + centre / 10)
    assert mean.shape == var.shape == (groups, channels) and mean.dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_numbers_add_up_exactly(layout: str) -> None:
    """Added up one by one in 32 bits, as torch's BatchNorm does for one of the layouts, a variance is 0.1 % off here."""
    x = torch.randn(60, 4, 64, 64, generator=torch.Generator().manual_seed(0)).relu_().contiguous(memory_format=LAYOUTS[layout])
    mean, var = mean_and_variance(x, 1)
    exact, middle = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert ((mean[0] - middle).abs() / middle).max() < 1e-6 and ((var[0] - exact).abs() / exact).max() < 1e-6
    assert ((torch.batch_norm_update_stats(x, None, None, 0.0)[1] - exact).abs() / exact).max() < 1e-2


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_line_per_channel_is_the_same_in_either_layout(dtype: torch.dtype, groups: int) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, 4, generator=draws).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    offset, slope = (torch.randn(groups, 5, generator=draws).to(wide) for _ in range(2))
    expected = torch.stack([offset[n % groups, :, None, None] + slope[n % groups, :, None, None] * x[n].to(wide) for n in range(6)])
    for layout in LAYOUTS.values():
        found = straight(x.contiguous(memory_format=layout), offset, slope)
        assert found.dtype == wide and found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found, expected)


def distance_of(x: Tensor, mean: Tensor, var: Tensor, groups: int = 1) -> Tensor:
    with StatisticsMatch(One(mean, var), groups, 1.0) as match:
        match._hook("layer")(nn.BatchNorm2d(len(mean)), (x,))
        return match.collect()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deviation_of_zero_has_gradient_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=dtype).view(4, 1, 1, 1).repeat(1, 2, 2, 2).requires_grad_()  # mean 0, variance 1
    zero, one = (part[0] for part in mean_and_variance(x.detach(), 1))  # to the last bit
    assert torch.allclose(one, torch.ones(2, dtype=dtype)) and torch.allclose(zero, torch.zeros(2, dtype=dtype))
    both = distance_of(x, zero, one)
    assert both.item() == 0
    assert torch.equal(torch.autograd.grad(both.sum(), x)[0], torch.zeros_like(x))
    (mean_only,) = torch.autograd.grad(distance_of(x, zero + 3, one).sum(), x)
    assert torch.allclose(mean_only, torch.full_like(x, -(0.5**0.5) / 16))  # unit vector (-1, -1) / sqrt 2 over 16 values
    (var_only,) = torch.autograd.grad(distance_of(x, zero, one + 1).sum(), x)
    assert torch.allclose(var_only, -(0.5**0.5) * 2 / 16 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_are_measured_in_single_precision(dtype: torch.dtype) -> None:
    x = (batch(16, 4) * 3 + 20).to(dtype).requires_grad_()
    mean, var = torch.full((4,), 19.0), torch.full((4,), 5.0)
    distance = distance_of(x, mean, var, 2)
    exact = x.detach().double().requires_grad_()
    expected = distance_of(exact, mean.double(), var.double(), 2)
    assert distance.dtype == torch.float32 and torch.allclose(distance.double(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert gradient.dtype == dtype and torch.allclose(gradient.double(), wanted, rtol=0.01, atol=1e-6)


def test_hooks_live_in_the_block_alone() -> None:
    model = network()
    match = StatisticsMatch(model)
    assert not any(layer._forward_pre_hooks for layer in norms(model))
    with match:
        assert all(len(layer._forward_pre_hooks) == 1 for layer in norms(model))
    assert not any(layer._forward_pre_hooks for layer in norms(model))
    with pytest.raises(KeyError), StatisticsMatch(model):
        raise KeyError("anything")
    assert not any(layer._forward_pre_hooks for layer in norms(model))


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = batch(4).requires_grad_()
    plain = model(images)
    with StatisticsMatch(model, 2) as match:
        assert torch.equal(model(images), plain)
        match.collect().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_collect_forgets() -> None:
    model, images = network(), batch(4)
    with StatisticsMatch(model) as match:
        model(images)
        first = match.collect()
        model(batch(4, seed=9))
        second = match.collect()
        model(images)
        assert torch.equal(match.collect(), first) and not torch.equal(first, second)


# ------------------------------------------------------------------------------------------ convolutions (G-VBSM)


def slow_cells(x: Tensor, side: int) -> list[Tensor]:
    """The values of each grid cell of one batch [N,C,H,W], row by row."""
    height, width = (math.ceil(extent / side) * side for extent in x.shape[2:])
    if (height, width) != tuple(x.shape[2:]):
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return [x[:, :, i : i + side, j : j + side].flatten() for i in range(0, height, side) for j in range(0, width, side)]


def slow_moments(x: Tensor, side: int) -> list[Tensor]:
    """Channel means and variances, then those of the cells: four vectors."""
    channels, cells = [x[:, c].flatten() for c in range(x.shape[1])], slow_cells(x, side)
    biased = lambda values: ((values - values.mean()) ** 2).mean()  # noqa: E731
    return [torch.stack([f(part) for part in parts]) for parts in (channels, cells) for f in (torch.mean, biased)]


def conv_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What every convolution and BatchNorm layer is given, in the order in which they run."""
    caught: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: caught.__setitem__(name, given[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return caught


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 1), (12, 4)])
def test_patches_are_the_cells_of_a_grid(height: int, width: int) -> None:
    x = torch.randn(3, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found, expected = patches(x, 4), slow_cells(x, 4)
    assert found.shape == (3, len(expected), 2, 16)
    for cell, values in enumerate(expected):
        assert torch.allclose(found[:, cell].flatten().sort().values, values.sort().values)


def test_patches_of_small_images_are_four_pixels_wide_and_of_large_ones_sixteen() -> None:
    assert [patch_side(size) for size in (8, 32, 64, 65, 224)] == [4, 4, 4, 16, 16]


def test_convolutions_remember_the_mean_of_the_batches_moments() -> None:
    model, parts = network(), [batch(5, seed=1), batch(2, seed=2)]
    found = remember_convolutions(model, parts, 4)
    assert list(found) == [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    seen = [conv_inputs(model, images) for images in parts]
    for name, value in found.items():
        slow = [torch.cat(slow_moments(inputs[name], 4)) for inputs in seen]
        assert torch.allclose(value.double(), (5 * slow[0] + 2 * slow[1]) / 7, atol=1e-6)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def slow_distance(
    model: nn.Module,
    remembered: dict[str, Tensor],
    inputs: dict[str, Tensor],
    past: dict[str, list[Tensor]],
    dropped: set[str],
    average: float,
    from_zero: bool,
    multiplier: float,
) -> Tensor:
    """G-VBSM's sum of norms of one group, vector by vector; `past` holds the moving averages and is brought up to date."""
    total, first = torch.zeros((), dtype=torch.float64), next(name for name, x in inputs.items() if name in remembered)
    for name, x in inputs.items():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            targets, vectors = [layer.running_mean, layer.running_var], slow_moments(x, 4)[:2]
        else:
            c = x.shape[1]
            cells = (len(remembered[name]) - 2 * c) // 2
            targets, vectors = list(remembered[name].double().split([c, c, cells, cells])), slow_moments(x, 4)
        if name not in past:
            past[name] = [torch.zeros_like(v) if from_zero else v.detach() for v in vectors]
        if name in dropped:
            continue
        past[name] = [average * old + (1 - average) * new.detach() for old, new in zip(past[name], vectors, strict=True)]
        for old, new, target in zip(past[name], vectors, targets, strict=True):
            value = old + new - new.detach() if average else new
            total = total + (value - target).norm() * (multiplier if name == first else 1.0)
    return total


@pytest.mark.parametrize(("average", "from_zero"), [(0.0, False), (0.8, False), (0.8, True)])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("arch", "groups"), [("convnet3", 1), ("convnet3", 2), ("resnet18", 2)])
def test_convolutions_are_matched_as_written_out(arch: str, groups: int, average: float, from_zero: bool, drop: bool) -> None:
    model = network(arch)
    remembered = remember_convolutions(model, [batch(6, seed=8)], 4)
    past: list[dict[str, list[Tensor]]] = [{} for _ in range(groups)]
    with StatisticsMatch(model, groups, 10.0, convolutions=remembered, average=average, from_zero=from_zero) as match:
        for step in range(3):
            images = batch(3 * groups, seed=20 + step).requires_grad_()
            plain = images.detach().clone().requires_grad_()
            draws = torch.rand(groups, len(match.convolutions), generator=torch.Generator().manual_seed(step)) < 0.4
            model(images)
            distance = match.collect(draws if drop else None)
            (gradient,) = torch.autograd.grad(distance.sum(), images)
            expected = []
            for g in range(groups):
                gone = {name for name, out in zip(match.convolutions, draws[g].tolist(), strict=True) if out and drop}
                inputs = {name: x[g::groups] for name, x in conv_inputs(model, plain).items()}
                expected.append(slow_distance(model, remembered, inputs, past[g], gone, average, from_zero, 10.0))
            (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), plain)
            assert torch.allclose(distance, torch.stack(expected), rtol=1e-6)
            assert (gradient - wanted).abs().max() < 1e-6 * max(1, wanted.abs().max().item())


def test_the_moments_of_a_convolution_lie_end_to_end_and_its_gradient_is_right() -> None:
    x = batch(4, 2)[:, :, :5, :5].clone().requires_grad_()
    assert torch.allclose(convolution_moments(x, 4)[0], torch.cat(slow_moments(x, 4)))
    assert torch.autograd.gradcheck(lambda given: convolution_moments(given, 4, 2), (x,))
