"""Every network that can teach or learn here: ConvNet-d, ResNets with a stem for the image size, torchvision by name.

`build("resnet18", classes=10, channels=3, size=32)` is one call for all of them. State dicts keep torchvision's names,
so published weights load. Initial weights depend on `generator_seed` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from delt.errors import ConfigError, unknown
from delt.runtime import drawing

if TYPE_CHECKING:  # torchvision takes two seconds to load: only a process that builds one of its networks waits for it
    from torchvision.models import ResNet

CONVNETS = {f"convnet{depth}": depth for depth in (3, 4, 5, 6)}
SMALL = 64  # largest side in pixels that gets a stem without downsampling
SMALL_STEMS = (  # besides the ResNets: networks whose first convolution keeps the resolution of small images
    "efficientnet_b0",
    "mobilenet_v2",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
)
LEFT_OUT = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")  # auxiliary outputs; no linear head


class ConvNet(nn.Module):
    """The ConvNet-d of the field: d blocks of convolution, BatchNorm, ReLU and 2 x 2 average pooling, then one linear layer.

    Pooling is left out once the side is one pixel, so that every depth runs on every size.
    """

    def __init__(self, depth: int, classes: int, channels: int, size: int, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
            if size > 1:
                layers.append(nn.AvgPool2d(2))
                size //= 2
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width * size * size, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N,K] of normalised images [N,C,H,W]."""
        out: Tensor = self.head(self.blocks(images).flatten(1))
        return out


NO_BATCHNORM = ("alexnet", "convnext", "swin", "vgg", "vit")  # families of networks without BatchNorm (vgg: but for _bn)


def architectures() -> tuple[str, ...]:
    """Names that `build` knows, ConvNets first."""
    from torchvision import models

    published = models.list_models(module=models)
    return (*CONVNETS, *(name for name in published if name not in LEFT_OUT))


def teachers() -> tuple[str, ...]:
    """Names of the networks with BatchNorm layers, whose statistics recover needs."""
    plain = [name for name in architectures() if name.startswith(NO_BATCHNORM) and not name.endswith("_bn")]
    return tuple(name for name in architectures() if name not in plain)


def named(name: str) -> tuple[str, int | None]:
    """Architecture and width of a name such as `resnet18` or, with another width than its own, `resnet18-w16`.

    Raises:
        ConfigError: the architecture does not exist, or the width is not between 1 and 4096.
    """
    arch, mark, width = name.rpartition("-w")
    if not (mark and width.isdecimal()):
        arch, width = name, ""
    _known(arch)
    if width and not 1 <= int(width) <= 4096:
        raise ConfigError(f"{name} has width {int(width)}; allowed is between 1 and 4096")
    return arch, int(width) if width else None


def _known(arch: str) -> None:
    if arch not in CONVNETS and arch not in architectures():
        raise unknown("architecture", arch, architectures())


def own_width(arch: str, width: int | None) -> tuple[str, int | None]:
    """The same network under one name: its own width is None."""
    return arch, None if width == (128 if arch in CONVNETS else 64) else width


def build(arch: str, classes: int, channels: int, size: int, width: int | None = None, generator_seed: int | None = None) -> nn.Module:
    """A network in training mode with fresh weights, for images [N, channels, size, size].

    Args:
        arch: a name of `architectures()`.
        classes: number of logits.
        channels: of the images; the first convolution is adapted to it.
        size: side of the images in pixels; up to 64, ResNets and a few others get a stem that keeps the resolution.
        width: channels of the first stage of a ConvNet (default 128) or ResNet (default 64), scaled throughout.
        generator_seed: of the initial weights; None for weights that are about to be replaced. The global random
            state is left as it was.

    Raises:
        ConfigError: an unknown name, a width where there is none, or a size that the network cannot take.
    """
    _known(arch)
    with drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_seed or 0)  # torch.manual_seed would also reset the GPUs
        if arch in CONVNETS:
            return ConvNet(CONVNETS[arch], classes, channels, size, width or 128)
        return _published(arch, classes, channels, size, width)


def require_side(model: nn.Module, arch: str, channels: int, side: int) -> None:
    """Refuse a network that cannot take images of another size than the one it was built for, which recover's small stages have.

    Raises:
        ConfigError: naming network and size.
    """
    try:
        _try_out(model, arch, channels, side)
    except ConfigError as error:
        raise ConfigError(f"{error}, or recover_small_side 1, which keeps the images of all stages at full size") from error


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Pooled output [N,D] of a network: what goes into its last linear layer.

    The gradient flows to the images, and the model is left without a trace.
    """
    caught: list[Tensor] = []
    handle = _head(model).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        model(images)
    finally:
        handle.remove()
    return caught[-1]


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a network holds BatchNorm statistics of images, which recover needs of its teacher."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _published(arch: str, classes: int, channels: int, size: int, width: int | None) -> nn.Module:
    from torchvision.models import ResNet

    model = _constructed(arch, classes, size)
    scalable = isinstance(model, ResNet) and model.groups == 1
    if width is not None and not scalable:
        raise ConfigError(f"width is {width}, but {arch} has none; leave it out, or choose a convnet or resnet")
    if isinstance(model, ResNet):
        _fit_resnet(model, size, width or 64)
    elif size <= SMALL and arch in SMALL_STEMS:
        _stem(model).stride = (1, 1)
    if channels != 3:
        _fit_channels(_stem(model), channels)
    if size <= SMALL and not isinstance(model, ResNet):
        _try_out(model, arch, channels, size)
    return model


def _constructed(arch: str, classes: int, size: int) -> nn.Module:
    """torchvision's network with random weights; the two families that are built for one size get it."""
    from torchvision import models

    if arch.startswith("vit_") and size <= SMALL:
        return _small_vit(arch, classes, size)
    sized = {"image_size": size} if arch.startswith("vit_") else {"input_size": (size, size)} if arch.startswith("maxvit") else {}
    try:
        model: nn.Module = models.get_model(arch, weights=None, num_classes=classes, **sized)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(arch, size, error) from error
    return model


def _small_vit(arch: str, classes: int, size: int) -> nn.Module:
    """A vision transformer on the finest grid of 4 x 4 to 8 x 8 patches that tiles a small image; its own patches have 14 to 32 pixels."""
    from torchvision import models

    patch = next((side for side in range(-(-size // 8), size // 4 + 1) if size % side == 0), None)
    if patch is None:
        raise _wrong_size(arch, size, ValueError("no grid of 4 x 4 to 8 x 8 patches tiles them"))
    published = models.get_model(arch, weights=None, num_classes=1)
    layers = published.encoder.layers
    return models.VisionTransformer(
        image_size=size,
        patch_size=patch,
        num_layers=len(layers),
        num_heads=layers[0].num_heads,
        hidden_dim=published.hidden_dim,
        mlp_dim=published.mlp_dim,
        num_classes=classes,
    )


def _fit_resnet(model: ResNet, size: int, width: int) -> None:
    """Give torchvision's ResNet a stem for the image size and `width` channels in its first stage, under its own names."""
    if size <= SMALL:
        model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    if width != 64:
        _scale_resnet(model, width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _scale_resnet(model: ResNet, width: int) -> None:
    """Rebuild the stages of a ResNet on `width`, 2, 4 and 8 times `width` channels; torchvision fixes them at 64."""
    model.bn1 = nn.BatchNorm2d(width)
    model.inplanes = width
    for stage in range(4):
        blocks: nn.Sequential = getattr(model, f"layer{stage + 1}")
        scaled = model._make_layer(type(blocks[0]), width << stage, len(blocks), stride=2 if stage else 1)
        setattr(model, f"layer{stage + 1}", scaled)
    model.fc = nn.Linear(model.inplanes, model.fc.out_features)


def _fit_channels(conv: nn.Conv2d, channels: int) -> None:
    """Let a convolution of 3 channels take another number: reuse its random weights, at equal spread of the output."""
    weight = conv.weight.detach()[:, torch.arange(channels) % conv.in_channels]
    conv.weight = nn.Parameter(weight * (conv.in_channels / channels) ** 0.5)
    conv.in_channels = channels


def _try_out(model: nn.Module, arch: str, channels: int, size: int) -> None:
    """One image through the network: some cannot take small images, and only their forward pass knows it."""
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(next(model.parameters()).new_zeros(1, channels, size, size))
    except (RuntimeError, ValueError) as error:
        raise _wrong_size(arch, size, error) from error
    model.train(training)


def _wrong_size(arch: str, size: int, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0]
    return ConfigError(f"{arch} cannot take images of {size} x {size} pixels ({reason}); choose another data_size or a resnet")


def _stem(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def _head(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
