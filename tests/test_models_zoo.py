from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from delt.errors import ConfigError
from delt.models import zoo

LIGHT = ("convnet3", "convnet6", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5", "densenet121")


def pictures(channels: int = 3, size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", LIGHT)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_gives_logits_and_features(arch: str, channels: int) -> None:
    model = zoo.build(arch, 7, channels, 32, generator_seed=0)
    assert model.training
    assert zoo.has_batchnorm(model)
    model.eval()
    images = pictures(channels)
    pooled = zoo.features(model, images)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(head(pooled), model(images))
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize(("arch", "size"), [("vit_b_32", 64), ("swin_t", 32), ("vgg11", 32)])
def test_networks_without_batchnorm(arch: str, size: int) -> None:
    with torch.device("meta"):  # their size does not matter here, only how they are built
        model = zoo.build(arch, 3, 3, size)
    assert not zoo.has_batchnorm(model)
    assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("depth", [3, 4, 5, 6])
@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_convnet_is_the_one_of_the_field(depth: int, size: int) -> None:
    model = zoo.build(f"convnet{depth}", 10, 3, size, width=16)
    side = size
    for _ in range(depth):
        side = max(1, side // 2)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == [(3, 16)] + [(16, 16)] * (depth - 1)
    assert zoo.features(model, pictures(size=size)).shape == (2, 16 * side * side)


def test_convnet_against_a_plain_reference() -> None:
    model: Any = zoo.build("convnet3", 10, 1, 8, width=4, generator_seed=3)
    out = pictures(1, 8, 5)
    images = out.clone()
    for layer in range(3):
        conv, norm = model.blocks[4 * layer], model.blocks[4 * layer + 1]
        out = torch.conv2d(out, conv.weight, conv.bias, padding=1)
        mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), correction=0, keepdim=True)
        out = ((out - mean) / (var + norm.eps).sqrt()).relu()
        out = out.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    expected = out.flatten(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected)


def test_convnet_width_is_128_unless_given() -> None:
    assert zoo.features(zoo.build("convnet3", 10, 3, 32), pictures()).shape == (2, 128 * 4 * 4)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnet_for_large_images_is_torchvisions(arch: str) -> None:
    ours = zoo.build(arch, 5, 3, 96, generator_seed=0).eval()
    theirs = torchvision.models.get_model(arch, weights=None, num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: same names, same shapes
    images = pictures(size=96, count=1)
    assert torch.equal(ours(images), theirs(images))


def test_resnet_for_small_images_keeps_the_resolution() -> None:
    model: Any = zoo.build("resnet18", 5, 3, 32)
    reference = torchvision.models.resnet18(num_classes=5)
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)  # the change that published CIFAR teachers were trained with
    reference.maxpool = nn.Identity()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(pictures()), reference.eval()(pictures()))
    assert model.layer1(model.maxpool(model.conv1(pictures()))).shape == (2, 64, 32, 32)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101"])
def test_resnet_width_scales_every_stage(arch: str) -> None:
    with torch.device("meta"):
        narrow, normal = zoo.build(arch, 10, 3, 32, width=16), zoo.build(arch, 10, 3, 32)
    for (name, small), (same, full) in zip(narrow.state_dict().items(), normal.state_dict().items(), strict=True):
        assert name == same
        fixed = {"conv1.weight": (4, 1, 1, 1), "fc.weight": (1, 4), "fc.bias": (1,)}  # axes of images and classes stay
        factors = fixed.get(name, (4, 4, 1, 1)[: small.ndim])
        assert tuple(full.shape) == tuple(side * factor for side, factor in zip(small.shape, factors, strict=True)), name


def test_narrow_resnet_runs_and_is_initialised_as_torchvision_does() -> None:
    model: Any = zoo.build("resnet18", 10, 1, 8, width=16, generator_seed=0)
    assert zoo.features(model, pictures(1, 8)).shape == (2, 128)
    weight = model.layer4[1].conv2.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)  # He, fan out


def test_given_default_width_changes_nothing() -> None:
    with_width, without = (zoo.build("resnet18", 10, 3, 32, width=width, generator_seed=1).state_dict() for width in (64, None))
    assert all(torch.equal(with_width[name], without[name]) for name in without)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0"])
def test_small_stems(arch: str) -> None:
    def stride(size: int) -> tuple[int, ...]:
        with torch.device("meta"):
            model = zoo.build(arch, 10, 3, size) if arch != "regnet_y_400mf" else None
        model = model or zoo.build(arch, 10, 3, size)  # this one cannot be built without memory
        return next(module for module in model.modules() if isinstance(module, nn.Conv2d)).stride

    assert stride(64) == (1, 1)
    assert stride(65) == (2, 2)


def test_one_channel_stem_keeps_the_spread_of_its_output() -> None:
    models: list[Any] = [zoo.build("mobilenet_v2", 10, channels, 32, generator_seed=0) for channels in (3, 1)]
    three, one = (model.features[0][0] for model in models)
    assert (one.in_channels, one.weight.shape[1]) == (1, 1)
    noise = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert float(one(noise[:, :1]).detach().std()) == pytest.approx(float(three(noise).detach().std()), rel=0.15)


@pytest.mark.parametrize("arch", ["convnet3", "resnet18", "mobilenet_v2"])
def test_seed_alone_decides_the_weights(arch: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([tensor.flatten().float() for tensor in zoo.build(arch, 10, 1, 16, generator_seed=seed).state_dict().values()])

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    assert torch.equal(first, weights(5))
    assert not torch.equal(first, weights(6))


@pytest.mark.parametrize("seed", [None, 4])
def test_global_random_state_is_left_alone(seed: int | None) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    zoo.build("resnet18", 10, 3, 32, width=8, generator_seed=seed)
    assert torch.equal(torch.rand(3), expected)


def test_features_leave_no_hook_and_pass_the_gradient() -> None:
    model = zoo.build("convnet3", 10, 1, 8, width=8).eval()
    images = pictures(1, 8).requires_grad_()
    zoo.features(model, images).sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    with pytest.raises(RuntimeError):
        zoo.features(model, torch.zeros(1, 2, 8, 8))  # two channels: the forward pass fails
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_list_of_architectures() -> None:
    names = zoo.architectures()
    assert len(set(names)) == len(names)
    assert {"convnet3", "convnet4", "convnet5", "convnet6", "resnet18", "resnet50", "resnet101", "vit_b_16", "swin_t"} <= set(names)
    assert not {"googlenet", "inception_v3", "squeezenet1_0"} & set(names)


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (28, 4), (32, 4), (36, 6), (64, 8)])
def test_a_vision_transformer_cuts_a_small_image_into_small_patches(size: int, patch: int) -> None:
    with torch.device("meta"):
        model, published = zoo.build("vit_b_16", 10, 1, size), torchvision.models.vit_b_16()
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 10)
    assert model.conv_proj.weight.shape == (768, 1, patch, patch) and model.seq_length == (size // patch) ** 2 + 1
    theirs = {name: tensor.shape for name, tensor in published.state_dict().items() if "layers" in name}
    assert theirs == {name: tensor.shape for name, tensor in model.state_dict().items() if "layers" in name}


def test_a_name_may_carry_a_width() -> None:
    assert zoo.named("resnet18") == ("resnet18", None) and zoo.named("resnet18-w16") == ("resnet18", 16)
    assert zoo.named("wide_resnet50_2") == ("wide_resnet50_2", None)
    for name, message in (
        ("resnet18-w16x", "unknown architecture 'resnet18-w16x'"),
        ("resnt18-w16", "unknown architecture 'resnt18': did you mean 'resnet18'"),
        ("convnet3-w0", "convnet3-w0 has width 0; allowed is between 1 and 4096"),
        ("convnet3-w99999999", "allowed is between 1 and 4096"),
    ):
        with pytest.raises(ConfigError, match=message):
            zoo.named(name)


def test_its_own_width_is_the_same_network() -> None:
    assert zoo.own_width("convnet3", 128) == zoo.own_width("convnet3", None) != zoo.own_width("convnet3", 64)
    assert zoo.own_width("resnet18", 64) == ("resnet18", None) != zoo.own_width("resnet18", 128)


@pytest.mark.parametrize("training", [True, False])
def test_another_side_is_tried_out_and_leaves_the_network_as_it_was(training: bool) -> None:
    model = zoo.build("resnet18", 10, 3, 32, width=4).double().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zoo.require_side(model, "resnet18", 3, 28)
    assert model.training == training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"convnet3 cannot take images of 28 x 28 pixels .*recover_small_side 1"):
        zoo.require_side(zoo.build("convnet3", 10, 3, 32), "convnet3", 3, 28)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'resnet81': did you mean 'resnet"):
        zoo.build("resnet81", 10, 3, 32)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "resnext50_32x4d"])
def test_width_is_refused_where_there_is_none(arch: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"width is 32, but {arch} has none"):
        zoo.build(arch, 10, 3, 128, width=32)


@pytest.mark.parametrize(("arch", "size"), [("vit_b_32", 37), ("maxvit_t", 30), ("alexnet", 16)])
def test_size_that_a_network_cannot_take(arch: str, size: int) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{arch} cannot take images of {size} x {size} pixels"):
        zoo.build(arch, 10, 3, size)
