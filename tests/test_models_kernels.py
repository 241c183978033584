"""The Triton kernels in Triton's interpreter against plain torch in float64; on a GPU see test_engine_gpu."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import copy

import torch
from delt.models import kernels

draws = torch.Generator().manual_seed(0)

def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=draws).to(dtype)

for count, channels, height, width, groups, dtype in (
    (6, 8, 5, 7, 2, torch.float32),
    (4, 70, 3, 3, 4, torch.float16),
    (6, 64, 16, 12, 2, torch.float16),
    (2, 3, 1, 1, 1, torch.float32),
):
    close = 2e-3 if dtype == torch.float16 else 1e-5
    shape = count, channels, height, width
    x = (normal(*shape) * 2 + 5).to(dtype).contiguous(memory_format=torch.channels_last)
    wide = x.double().unflatten(0, (-1, groups))
    exact_var, exact_mean = torch.var_mean(wide, dim=(0, 3, 4), correction=0)
    scale, shift, other, gradient = normal(channels), normal(channels), normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    offset, slope = normal(groups, channels), normal(groups, channels)
    line = (offset[:, :, None, None] + slope[:, :, None, None] * wide).flatten(0, 1)
    seen = []
    for added, relu in ((None, False), (None, True), (other, True), (other, False)):
        out, sums = kernels.normed(x, scale, shift, torch.full((channels,), 4.5), groups, added, relu)
        seen.append((sums, exact_mean, exact_var))
        mean, var = kernels.Finish([sums])([sums]).chunk(2, 1)
        exact = x.double() * scale[:, None, None] + shift[:, None, None] + (0 if added is None else added.double())
        exact = exact.relu() if relu else exact
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        assert ((out - exact).abs() / (1 + exact.abs())).max() < close
        assert (mean - exact_mean).abs().max() < 1e-5 and (var - exact_var).abs().max() < 1e-5
        assert torch.equal(kernels.applied(x, scale, shift, added, relu), out)
        near = exact.abs() < close if relu else torch.zeros_like(exact, dtype=torch.bool)  # rounding decides there
        for more in (None, normal(*shape, dtype=dtype)):
            given = {"relu": relu, "added": added is not None, "output": out}
            found, passed = kernels.pulled(gradient, x, scale, shift, offset, slope, more=more, **given)
            through = (gradient.double() + (0 if more is None else more.double())) * ((exact > 0) if relu else 1)
            expected = through * scale[:, None, None] + line
            assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
            assert ((found - expected).abs() / (1 + expected.abs()))[~near].max() < close
            assert (passed is None) == (added is None)
            if passed is not None:
                assert torch.allclose(passed[~near].double(), through[~near], rtol=close, atol=0 if more is None else close)
                assert more is not None or torch.equal(passed[~near].double(), through[~near])
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    assert kernels.normed(bad, scale, shift, shift, groups, None, True)[0][0, 0, 0, 0].isnan()
    finish, sums = kernels.Finish([one[0] for one in seen]), [one[0] for one in seen]  # all at once
    expected = torch.cat([one[1] for one in seen] + [one[2] for one in seen], 1)
    assert (finish(sums) - expected).abs().max() < 1e-5

for channels, side, kernel, stride, pad in ((8, 7, 3, 2, 1), (70, 6, 2, 2, 0), (3, 9, 3, 1, 1), (5, 8, 5, 3, 2)):
    x = torch.randint(-3, 3, (4, channels, side, side + 1), generator=draws).half().contiguous(memory_format=torch.channels_last)
    given = x.double().requires_grad_()  # with many equal values
    wanted = torch.nn.functional.max_pool2d(given, kernel, stride, pad)
    out, chosen = kernels.pooled(x, kernel, stride, pad)
    assert torch.equal(out.double(), wanted)
    pull = normal(*out.shape, dtype=torch.float16)
    more = normal(*out.shape, dtype=torch.float16)
    for second in (None, more):
        (expected,) = torch.autograd.grad(wanted, given, pull.double() + (0 if second is None else second.double()), retain_graph=True)
        found = kernels.unpooled(pull, chosen, side, side + 1, kernel, stride, pad, more=second)
        assert torch.allclose(found.double(), expected, atol=2e-2, rtol=1e-3)
    bad = x.clone()
    bad[0, 0, 2, 2] = float("nan")
    assert kernels.pooled(bad, kernel, stride, pad)[0].isnan().any()

for channels, height, width, deep in ((3, 8, 10, 16), (1, 7, 9, 8), (4, 5, 6, 16)):
    x = normal(2, channels, height, width).contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(x, (3, 3 + width % 2, 3, 3 + height % 2))
    expected = torch.nn.functional.pixel_unshuffle(padded, 2)
    found = kernels.unshuffled(x, 3, deep)
    assert torch.equal(found[:, : 4 * channels], expected) and not found[:, 4 * channels :].any()
    assert torch.equal(kernels.shuffled(found, channels, height, width, 3), x)  # each pixel is in one place

for rate, widen in ((normal(1, 1, 1, 1).abs(), normal(1, 1, 1, 1).abs()), (normal(5, 1, 1, 1).abs(), normal(5, 1, 1, 1).abs())):
    images, first, second, gradient = normal(5, 3, 33, 33), normal(5, 3, 33, 33), normal(5, 3, 33, 33).abs(), normal(5, 3, 33, 33)
    low, high = -normal(1, 3, 1, 1).abs(), normal(1, 3, 1, 1).abs()
    before = [tensor.clone() for tensor in (images, first, second)]
    given = (images, (first, second), gradient, (rate, widen), (low, high), (0.5, 0.9), 1e-8)
    kernels.adam(*given, torch.tensor(False))
    assert all(torch.equal(*pair) for pair in zip((images, first, second), before))
    kernels.adam(*given, torch.tensor(True))
    m = before[1].lerp(gradient, 0.5)
    v = before[2] * 0.9 + gradient**2 * 0.1
    x = (before[0] - rate * m / (v.sqrt() * widen + 1e-8)).clamp(low, high)
    for found, wanted in zip((images, first, second), (x, m, v)):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6), (found - wanted).abs().max()

from delt.data.augment import axis_operator, taps, warp

def of(*shape, most):
    return torch.randint(most, shape, generator=draws)

for clocks, groups, size, channels, dtype in ((1, 3, 9, 3, torch.float32), (2, 2, 13, 1, torch.float16), (1, 1, 17, 2, torch.float32)):
    each, n = clocks * groups, 4
    length = 1 + of(each, most=size)
    start = (of(each, most=size) * (size - length + 1)) // size - (2 if size == 17 else 0)  # a border of zeros, too
    length[0], start[0] = size, 0
    flips = of(each, most=2).bool()
    rows, cols = (axis_operator(start, length, size, own, of(each, most=size)).unflatten(0, (clocks, groups)) for own in (None, flips))
    held = torch.stack([taps(rows), taps(cols)], -3).float()
    place = of(n, most=clocks) if clocks > 1 else None
    images, pull = normal(n * groups, channels, size, size), normal(n * groups, channels, size, size).to(dtype)
    given = images.double().requires_grad_()
    per = (rows[place], cols[place]) if clocks > 1 else (rows, cols)
    exact = warp(given.unflatten(0, (-1, groups)), *(one.double() for one in per)).flatten(0, 1)
    (gradient,) = torch.autograd.grad(exact, given, pull.double())
    found = kernels.warped(images, (rows, cols, held), place, dtype)
    back = kernels.warped(pull, (rows, cols, held), place, torch.float32, back=True)
    close = 2e-3 if dtype == torch.float16 else 2e-6
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last) and back.is_contiguous()
    assert ((found - exact).abs() / (1 + exact.abs())).max() < close and (back - gradient).abs().max() < 2e-6 * (1 + gradient.abs().max())

from delt.models import fused, statistics
from delt.models.zoo import build

plain = build("resnet18", 5, 3, 8, 4, generator_seed=0)
for layer in plain.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
        layer.running_mean.copy_(normal(len(layer.running_mean)))
plain = plain.eval().requires_grad_(False)
network = fused.fuse(copy.deepcopy(plain).to(memory_format=torch.channels_last))
statistics.kernels_suit = lambda x: x.dtype != torch.float64 and x.is_contiguous(memory_format=torch.channels_last)  # as on a GPU
images, asked = normal(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), []
applied = kernels.applied
kernels.applied = lambda *given: asked.append(given) or applied(*given)
with torch.no_grad():
    assert torch.allclose(network(images), plain(images), rtol=1e-4, atol=1e-4)
    assert len(asked) == sum(isinstance(layer, statistics.FrozenNorm) for layer in network.modules()) == 20
network(images.requires_grad_())
assert len(asked) == 20  # what is unwatched and wants a gradient is left to torch

normed, watched = kernels.normed, []
kernels.normed = lambda *given: watched.append(given) or normed(*given)
targets = statistics.remember_convolutions(plain, [normal(8, 3, 8, 8)], 4)
for convolutions in (None, targets):  # sums alone, and beside statistics that are there already
    found = []
    for model in (plain.double(), network):
        given = images.detach().to(next(model.parameters()).dtype).requires_grad_()
        with statistics.StatisticsMatch(model, 2, convolutions=convolutions) as match:
            logits = model(given)
            distance = match.collect()
        found.append((logits, distance, *torch.autograd.grad(logits.square().sum() + distance.sum(), given)))
    for exact, ours in zip(*found):
        assert (ours - exact).abs().max() < 1e-4 * exact.abs().max(), (ours - exact).abs().max() / exact.abs().max()
assert len(watched) == 40

from dataclasses import replace

from delt.bench import Load, pack_of
from delt.config import RuntimeConfig
from delt.engine.memory import Split
from delt.engine.step import Step
from delt.runtime import lowered, resolve

def gradient(quick, clock, split):  # of a step as on a GPU, or as it is in float64
    load = Load(8, "resnet18", 4, ipc=4, group=4, iterations=8, sub_batches=2)
    runtime = resolve(RuntimeConfig(device="cpu", memory_format="channels_last" if quick else "contiguous"))
    task, _ = pack_of(load, runtime, groups=2)
    step = Step(replace(task, config=replace(task.config, clock=clock)), torch.device("cpu"))
    step.quick, step.split = quick, split
    if quick:
        step.networks = [fused.fuse(lowered(copy.deepcopy(task.teacher.model), runtime))]
        step.matches = [step.match(task.teacher, 0)]
    else:
        step.networks[0].double()
        step.start = step.start.double()
    with step:
        return step.gradient(step.begin(), step.inputs(5), 5, step.active(5))[0].double()

asked.clear()
warped = kernels.warped
kernels.warped = lambda *given, **how: asked.append(given) or warped(*given, **how)
for clock, split in (("global", Split(2)), ("own", Split(1, 3))):
    exact = gradient(False, clock, Split(2))
    assert not asked and (gradient(True, clock, split) - exact).abs().max() < 1e-5 * exact.abs().max()
    assert len(asked) == (2 if clock == "global" else 2 * 2 * 3)  # each way; chunks are asked once more for their statistics alone
    asked.clear()
print("equal")
"""


COMPILE = """
import pathlib
import subprocess
import sys
import tempfile

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Absent:
    '''A GPU of this kind, as far as compiling goes.'''

    get_current_target = staticmethod(lambda: GPUTarget("cuda", int(sys.argv[1]), 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Absent())

from delt.models import kernels

made = {}

def compiled(self, grid):
    def take(*given, **sizes):
        made.setdefault(self.__name__, []).append(self.warmup(*given, grid=grid, **sizes).asm["cubin"])
    return take

JITFunction.__getitem__ = compiled
for shape, groups in (((70, 64, 32, 32), 10), ((6, 3, 5, 7), 2)):
    x, channels = torch.randn(shape).half().contiguous(memory_format=torch.channels_last), shape[1]
    one, line = torch.randn(channels), torch.randn(groups, 2 * channels).chunk(2, 1)
    sums = []
    for added, relu, more in ((None, True, None), (x, True, x)):
        out, its = kernels.normed(x, one, one, one, groups, added, relu)
        sums.append(its)
        kernels.applied(x, one, one, added, relu)
        kernels.pulled(x, x, one, one, *line, more=more, relu=relu, added=added is not None, output=out)
    kernels.Finish(sums)(sums)
    out, chosen = kernels.pooled(x, 3, 2, 1)
    kernels.unpooled(out, chosen, *shape[2:], 3, 2, 1, more=out)
images, one = torch.randn(6, 3, 32, 32), torch.ones(1, 1, 1, 1)
kernels.shuffled(kernels.unshuffled(images.half().contiguous(memory_format=torch.channels_last), 3, 16), 3, 32, 32, 3)
for clocks in (1, 2):
    operators = torch.zeros(clocks, 2, 32, 32), torch.zeros(clocks, 2, 32, 32), torch.zeros(clocks, 2, 2, 4, 32)
    place = torch.zeros(3, dtype=torch.long) if clocks > 1 else None
    kernels.warped(kernels.warped(images, operators, place, torch.float16), operators, place, torch.float32, back=True)
kernels.adam(images, (images, images), images, (one, one), (one.expand(1, 3, 1, 1),) * 2, (0.5, 0.9), 1e-8, torch.tensor(True))
kinds = {name for name, value in vars(kernels).items() if isinstance(value, JITFunction)}
assert set(made) == kinds, kinds - set(made)
look = pathlib.Path(nvidia.__file__).parent / "bin" / "cuobjdump"
for name, codes in made.items():
    for code in codes:
        assert code[:4] == b"\\x7fELF"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            used = subprocess.run([look, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        assert "STACK:0 " in used and "LOCAL:0 " in used, (name, used)  # all that it reckons with stays in registers
print("compiled", sum(map(len, made.values())))
"""


def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    pytest.importorskip("triton.backends.nvidia")
    done = subprocess.run([sys.executable, "-W", "error", "-c", COMPILE, "90"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("compiled"), done.stderr


def test_kernels_are_plain_torch() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr
