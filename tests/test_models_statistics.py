"""The BatchNorm-statistics term: value and gradient against plain autograd over a loop of groups and layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from delt.models import zoo
from delt.models.statistics import StatisticsDistance, StatisticsMatch


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
    mean, var = torch.tensor([0.4, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: StatisticsDistance.apply(given, mean, var, groups), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deviation_of_zero_has_gradient_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=dtype).view(4, 1, 1, 1).repeat(1, 2, 2, 2).requires_grad_()  # mean 0, variance 1
    one, zero = (part[0] for part in torch.var_mean(x.detach()[:, None], dim=(0, 3, 4), correction=0))  # to the last bit
    assert torch.allclose(one, torch.ones(2, dtype=dtype)) and torch.allclose(zero, torch.zeros(2, dtype=dtype))
    both = StatisticsDistance.apply(x, zero, one, 1)
    assert both.item() == 0
    assert torch.equal(torch.autograd.grad(both.sum(), x)[0], torch.zeros_like(x))
    (mean_only,) = torch.autograd.grad(StatisticsDistance.apply(x, zero + 3, one, 1).sum(), x)
    assert torch.allclose(mean_only, torch.full_like(x, -(0.5**0.5) / 16))  # unit vector (-1, -1) / sqrt 2 over 16 values
    (var_only,) = torch.autograd.grad(StatisticsDistance.apply(x, zero, one + 1, 1).sum(), x)
    assert torch.allclose(var_only, -(0.5**0.5) * 2 / 16 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_are_measured_in_single_precision(dtype: torch.dtype) -> None:
    x = (batch(16, 4) * 3 + 20).to(dtype).requires_grad_()
    mean, var = torch.full((4,), 19.0), torch.full((4,), 5.0)
    distance = StatisticsDistance.apply(x, mean, var, 2)
    exact = x.detach().double().requires_grad_()
    expected = StatisticsDistance.apply(exact, mean.double(), var.double(), 2)
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
