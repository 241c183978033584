"""A frozen network as a GPU likes it: what lies between two convolutions is one pass over memory, and so is its gradient.

- `fuse`: every BatchNorm layer takes the addition and the ReLU that follow it with it, and on the way back adds up the
  gradients of the two that took what came out; max-pooling has its own kernels, and the mean of all pixels is plain.
  Weights and the layers' names stay as they are.
- `regular_stem`: the 7 x 7 convolution of stride 2 in another order of the same sums.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from delt.models.statistics import FrozenNorm, freeze_norms, kernels_suit

RELUS: tuple[Callable[..., Any], ...] = (F.relu, F.relu_, torch.relu, torch.relu_)
SUMS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)


class Pooled(torch.autograd.Function):
    """Max-pooling by the kernels; gives what came out twice where two take it (see `Watched`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, pad: int, twice: bool) -> tuple[Any, ...]:
        from delt.models import kernels

        out, chosen = kernels.pooled(x, kernel, stride, pad)
        ctx.save_for_backward(chosen)
        ctx.given = (*x.shape[2:], kernel, stride, pad)
        return out, out.detach() if twice else None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        from delt.models import kernels

        return kernels.unpooled(grads[0], *ctx.saved_tensors, *ctx.given, more=grads[1]), None, None, None, None


class Pool(nn.MaxPool2d):
    """A MaxPool2d layer with square windows, in fewer passes where a GPU is."""

    def forward(self, x: Tensor, twice: bool = False) -> Any:
        """What came out, or a pair of it where `twice` is set."""
        if kernels_suit(x):
            out, again = Pooled.apply(x, self.kernel_size, self.stride, self.padding, twice)
        else:
            out = again = super().forward(x)
        return (out, again) if twice else out


class Average(nn.AdaptiveAvgPool2d):
    """The mean of all pixels; torch's own layer gives channels-last images a layout whose gradient costs two passes more."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Unshuffled(torch.autograd.Function):
    """2 x 2 pixels of padded images as channels, by the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: int, deep: int) -> Tensor:
        from delt.models import kernels

        ctx.given = (*x.shape[1:], pad)
        return kernels.unshuffled(x, pad, deep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from delt.models import kernels

        return kernels.shuffled(grads[0], *ctx.given), None, None


class RegularStem(nn.Module):
    """A 7 x 7 convolution of stride 2 as one of 4 x 4 and stride 1 over 2 x 2 pixels as channels: the same sums.

    The gradient with respect to a few channels at stride 2 is what GPU libraries are slowest at.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = F.pad(conv.weight.detach(), (0, 1, 0, 1))  # [O,C,8,8]
        weight = F.pixel_unshuffle(weight, 2)  # [O,4C,4,4]
        self.deep = 8 if weight.shape[1] <= 8 else 16  # channels that a GPU's matrix units take whole
        weight = F.pad(weight, (0, 0, 0, 0, 0, self.deep - weight.shape[1])).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = conv.bias

    def forward(self, images: Tensor) -> Tensor:
        """The convolution of images [N,C,H,W]."""
        return F.conv2d(self.unshuffled(images), self.weight, self.bias)

    def unshuffled(self, images: Tensor) -> Tensor:
        """2 x 2 pixels as channels [N,deep,..], with three zeros around the images."""
        if kernels_suit(images) and not torch.compiler.is_compiling():
            found: Tensor = Unshuffled.apply(images, 3, self.deep)
            return found
        height, width = images.shape[2:]
        folded = F.pixel_unshuffle(F.pad(images, (3, 3 + width % 2, 3, 3 + height % 2)), 2)
        return F.pad(folded, (0, 0, 0, 0, 0, self.deep - folded.shape[1]))


def regular_stem(model: nn.Module) -> nn.Module:
    """Replace the stem of a network for large images by a `RegularStem`, where it has the ResNets' shape: changes and returns it."""
    for name, conv in list(model.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.in_channels <= 4:
            shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
            if shape == ((7, 7), (2, 2), (3, 3), (1, 1), 1):
                model.set_submodule(name, RegularStem(conv))
    return model


class _Tracer(fx.Tracer):
    """Follows what happens around BatchNorm layers, and takes everything else as it is."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FrozenNorm) or not any(isinstance(part, FrozenNorm) for part in module.modules())


def fuse(model: nn.Module) -> nn.Module:
    """The same network, frozen, in evaluation mode, in fewer passes; as it was where its forward pass cannot be followed."""
    freeze_norms(model)
    for layer in model.modules():
        if type(layer) is nn.MaxPool2d and _is_plain(layer):
            layer.__class__ = Pool
        elif type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)):
            layer.__class__ = Average
    try:
        graph = _Tracer().trace(model)
    except Exception:  # a network that decides by what it sees; torch names no class of errors for it
        return model
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        if _is_relu(node, modules) and node.args and (found := _normed(node.args[0], modules)):
            norm, other = found
            with graph.inserting_before(node):
                fused = graph.call_module(str(norm.target), (norm.args[0], other, True))
            node.replace_all_uses_with(fused)
            for done in (node, node.args[0], norm):  # the sum may be the layer itself
                if done in graph.nodes and not done.users:
                    graph.erase_node(done)
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], FrozenNorm | Pool) and len(node.users) == 2:
            _fork(graph, node)
    graph.lint()
    made = fx.GraphModule(model, graph).eval()
    return made if _order(made) == _order(model) else model


def _fork(graph: fx.Graph, node: fx.Node) -> None:
    """Let each of the two that take what a layer gives have its own, as at a residual connection."""
    takers = list(node.users)
    node.kwargs = {**node.kwargs, "twice": True}
    with graph.inserting_after(node):
        pair = [graph.call_function(operator.getitem, (node, place)) for place in range(2)]
    for taker, own in zip(takers, pair, strict=True):
        taker.replace_input_with(node, own)


def _order(model: nn.Module) -> tuple[str, list[str]]:
    """What statistics matching needs to find in the same places: the first BatchNorm layer, and all convolutions."""
    norms, convolutions = ([name for name, part in model.named_modules() if isinstance(part, kind)] for kind in (FrozenNorm, nn.Conv2d))
    return norms[0] if norms else "", convolutions


def _is_plain(pool: nn.MaxPool2d) -> bool:
    """Whether windows are square, without gaps or extras, and small enough for their pixels to be numbered in a byte."""
    square = all(isinstance(given, int) for given in (pool.kernel_size, pool.stride, pool.padding))
    return square and int(pool.kernel_size) < 16 and pool.dilation == 1 and not (pool.ceil_mode or pool.return_indices)  # type: ignore[arg-type]


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in RELUS


def _normed(node: Any, modules: dict[str, nn.Module]) -> tuple[fx.Node, fx.Node | None] | None:
    """The BatchNorm layer whose output this is, and what was added to it; None where others need that output, too."""
    if _is_norm(node, modules):
        return node, None
    is_sum = isinstance(node, fx.Node) and node.op == "call_function" and node.target in SUMS and len(node.users) == 1
    if not is_sum or len(node.args) != 2 or not all(isinstance(part, fx.Node) for part in node.args):
        return None
    for norm, other in (node.args, node.args[::-1]):
        if _is_norm(norm, modules) and norm is not other:
            return norm, other
    return None


def _is_norm(node: Any, modules: dict[str, nn.Module]) -> bool:
    is_call = isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1
    return is_call and isinstance(modules[str(node.target)], FrozenNorm) and len(node.args) == 1
