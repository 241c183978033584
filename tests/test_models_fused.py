"""Fused networks against the same networks as they are, in value and gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from delt.models.fused import RegularStem, fuse, regular_stem
from delt.models.statistics import StatisticsMatch
from delt.models.zoo import build


def frozen(arch: str, size: int = 16, width: int | None = None) -> nn.Module:
    """A network in float64 whose layers remember statistics that are not those of its inputs."""
    model = build(arch, 5, 3, size, width, generator_seed=0).double()
    draws = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight, layer.bias):
                assert tensor is not None
                tensor.data.copy_(torch.randn(len(tensor), generator=draws))
    return model.eval().requires_grad_(False)


def pulled(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, distances and gradient of two groups."""
    with StatisticsMatch(model, 2) as match:
        logits = model(images)
        distance = match.collect()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]) + distance.sum(), images)
    return logits, distance, gradient


def relus(model: nn.Module) -> int:
    """ReLUs that are still run on their own."""
    assert isinstance(model, fx.GraphModule)
    modules = dict(model.named_modules())
    called = [modules[node.target] if node.op == "call_module" else node.target for node in model.graph.nodes]
    return sum(isinstance(found, nn.ReLU) or found is F.relu for found in called)


@pytest.mark.parametrize(
    ("arch", "size", "width"),
    [
        ("convnet3", 16, 8),
        ("resnet18", 16, 8),
        ("resnet50", 64, 8),
        ("resnet18", 80, 8),
        ("vgg11_bn", 32, None),
        ("densenet121", 32, None),
        ("mobilenet_v2", 16, None),  # has ReLU6, which is not a ReLU
        ("shufflenet_v2_x0_5", 16, None),
    ],
)
def test_a_fused_network_is_the_network(arch: str, size: int, width: int | None) -> None:
    model = frozen(arch, size, width)
    images = torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = pulled(copy.deepcopy(model), images)
    fused = fuse(copy.deepcopy(model))
    assert relus(fused) == 0
    for found, wanted in zip(pulled(fused, images), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-9 * (1 + wanted.abs().max())
    assert (fused(images) - model(images)).abs().max() < 1e-9 * (1 + model(images).abs().max()), "unwatched, too"
    names = [[name for name, part in each.named_modules() if isinstance(part, nn.BatchNorm2d)] for each in (fused, model)]
    assert names[0][0] == names[1][0] and sorted(names[0]) == sorted(names[1])


class Added(TorchDispatchMode):
    """Counts sums of images that autograd takes on the way back."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node = torch._C._current_autograd_node()
        self.count += func is torch.ops.aten.add.Tensor and node is not None and node.name() != "WatchedBackward"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("size", "left"), [(16, 0), (80, 1)])  # max-pooling hands out one alone where no kernel takes it
def test_gradients_that_meet_at_a_residual_are_added_by_the_layer(size: int, left: int) -> None:
    model, images = frozen("resnet18", size, 8), torch.randn(4, 3, size, size, dtype=torch.float64).requires_grad_()
    with Added() as plain:
        torch.autograd.grad(model(images).sum(), images)
    fused = fuse(copy.deepcopy(model))
    with StatisticsMatch(fused, 2), Added() as added:
        torch.autograd.grad(fused(images).sum(), images)
    assert (plain.count, added.count) == (8, left)


class Shared(nn.Module):
    """A layer whose output is wanted before and after the ReLU, and a sum that is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        total = self.second(x) + x
        found: Tensor = (F.relu(one) + one + torch.relu(total) * total).mean((2, 3))
        return found


class Twice(nn.Module):
    """The same layer's output added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.norm(x)
        return F.relu(one + one).mean((2, 3))


class Spread(nn.Module):
    """A sum of a layer's output and of one number per image and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x) + x.mean((2, 3), keepdim=True)).mean((2, 3))


class Deciding(nn.Module):
    """A forward pass that depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x)).mean((2, 3)) if x.sum() > 0 else self.norm(x).mean((2, 3))


@pytest.mark.parametrize("kind", [Shared, Twice, Spread, Deciding])
def test_what_others_need_too_is_left(kind: type[nn.Module]) -> None:
    model = kind().double().eval().requires_grad_(False)
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected, fused = pulled(copy.deepcopy(model), images), fuse(copy.deepcopy(model))
    assert isinstance(fused, fx.GraphModule) == (kind is not Deciding)
    assert all(torch.allclose(found, wanted, rtol=1e-12) for found, wanted in zip(pulled(fused, images), expected, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_regular_stem_has_the_same_sums_and_gradient(channels: int) -> None:
    model = build("resnet18", 4, channels, 224, generator_seed=3).double().eval().requires_grad_(False)
    images = torch.randn(2, channels, 64, 97, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = model.conv1(images)
    changed = regular_stem(copy.deepcopy(model))
    assert isinstance(changed.conv1, RegularStem) and not isinstance(model.conv1, RegularStem)
    found = changed.conv1(images)
    pull = torch.randn_like(plain)
    assert (found - plain).abs().max() < 1e-12
    assert (torch.autograd.grad(found, images, pull)[0] - torch.autograd.grad(plain, images, pull)[0]).abs().max() < 1e-12
    small = build("resnet18", 4, 3, 32)
    assert regular_stem(small) is small and not any(isinstance(module, RegularStem) for module in small.modules())
