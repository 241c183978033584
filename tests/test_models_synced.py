"""A synced BatchNorm layer in a world of one process is BatchNorm (tests/test_team.py has two processes)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from delt.models.synced import JointSum, SyncNorm, joint_sum, synced
from delt.models.zoo import build

CPU = torch.device("cpu")


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_alone_it_is_batchnorm(momentum: float | None, group: None):
    plain, other = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    synced(other, CPU)
    assert isinstance(other, SyncNorm)
    draws = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(5, 3, 4, 6, generator=draws, dtype=torch.float64) * 2 + 5
        inputs, outputs = [], []
        for layer in (plain, other):
            inputs.append(images.clone().requires_grad_())
            outputs.append(layer(inputs[-1]))
            (outputs[-1] ** 3).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for (name, value), expected in zip(other.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)
    torch.testing.assert_close(other.weight.grad, plain.weight.grad)
    assert torch.equal(
        other.eval()(images), torch.nn.functional.batch_norm(images, other.running_mean, other.running_var, other.weight, other.bias)
    )


def test_only_batchnorm_layers_change_and_no_parameter_does():
    model = build("resnet18", 4, 3, 32, 4, 0)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    count = sum(type(layer) is nn.BatchNorm2d for layer in model.modules())
    assert synced(model, CPU) is model and sum(type(layer) is SyncNorm for layer in model.modules()) == count > 5
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_a_sum_over_one_rank_is_the_value(group: None):
    values = torch.arange(3.0, requires_grad=True)
    total = JointSum.apply(2 * values)
    total.sum().backward()
    assert total.tolist() == [0, 2, 4] and values.grad.tolist() == [2, 2, 2]  # type: ignore[union-attr]
    assert joint_sum(torch.tensor([3])).tolist() == [3]
