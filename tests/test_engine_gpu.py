"""The engine on a GPU: its arithmetic against float64 on the CPU, recorded steps against plain ones, memory that runs out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from delt.bench import Load
from delt.config import RecoverConfig, RuntimeConfig
from delt.data.augment import warp
from delt.engine.memory import Split, fitted
from delt.engine.pack import PackTask
from delt.engine.step import State, Step
from delt.grouping import make_groups
from delt.job import Job
from delt.models.statistics import patch_side, remember_convolutions
from delt.runtime import resolve, settings, silent
from delt.schedule import plan

if torch.cuda.is_available():
    from delt.models import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOAD = Load(32, "resnet18", 16, ipc=6, group=6, iterations=40, sub_batches=2)


def task_of(load: Load = LOAD, groups: int = 3, **runtime: Any) -> PackTask:
    own = resolve(RuntimeConfig(**{"device": "cuda", "packing": groups, "compile": "off", **runtime}))
    made = make_groups(load.classes, plan(load.iterations, load.ipc, None, load.sub_batches), "class", load.group)[:groups]
    return PackTask(
        (load.teacher,), made, None, RecoverConfig(iterations=load.iterations, flip=True), frozenset(), (), load.iterations, Job(0, own)
    )


def run(task: PackTask, steps: int = 30, **changes: Any) -> tuple[State, Step]:
    step = Step(task, torch.device("cuda"))
    for name, value in changes.items():
        setattr(step, name, value)
    state = step.begin()
    with settings(task.job.runtime), step:
        for state.t in range(steps):
            step(state)
    return state, step


def gradient_of(task: PackTask, device: str = "cuda") -> Tensor:
    """Of the first iteration at which all images are active."""
    step = Step(task, torch.device(device))
    if device == "cpu":
        task.teacher.model.double()
        step.start = step.start.double()
    state = step.begin()
    t = task.schedule.joins[-1]
    with settings(task.job.runtime), step:
        gradient, *_ = step.gradient(state, step.inputs(t), t, step.active(t))
    return gradient.double().cpu()


@pytest.mark.parametrize(
    ("precision", "error", "cosine"), [("fp32", 5e-3, 0.9999), ("tf32", 0.15, 0.99), ("fp16", 0.15, 0.99), ("bf16", 0.4, 0.9)]
)
@pytest.mark.parametrize("size", [32, 96])  # the larger one has the stem of large images and max-pooling
def test_gradients_are_those_of_double_precision(precision: str, error: float, cosine: float, size: int) -> None:
    load = replace(LOAD, size=size, width=None, ipc=20, group=20)
    found = gradient_of(task_of(load, 2, precision=precision))
    plain = task_of(replace(load), 2, precision="fp32", memory_format="contiguous")
    expected = gradient_of(replace(plain, job=Job(0, resolve(RuntimeConfig(device="cpu", packing=2)))), "cpu")
    off, alike = error_of(found, expected), F.cosine_similarity(found.flatten(), expected.flatten(), 0).item()
    print(f"{precision}: error {off:.2e}, cosine {alike:.6f}, signs {(found.sign() == expected.sign()).double().mean():.4f}")
    assert off < error and alike > cosine


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative error of the median image: where rounding decides what a ReLU or a pooling takes, one image's gradient jumps."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).median())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_recorded_steps_are_the_plain_ones(precision: str) -> None:
    recorded, step = run(task_of(precision=precision, graphs="on"))
    plain, _ = run(task_of(precision=precision, graphs="off"))
    assert step.replay.on
    assert (recorded.images - plain.images).abs().max() < (1e-3 if precision == "fp32" else 0.1)
    again, _ = run(task_of(precision=precision, graphs="on"))
    assert torch.equal(recorded.images, again.images) and torch.equal(recorded.second, again.second)


def test_steps_that_match_convolutions_are_recorded_too() -> None:
    """At 40 px layers see images that are no multiple of a patch, and are stretched by matrices that lie on the GPU before."""
    load = replace(LOAD, size=40)
    seen = remember_convolutions(load.teacher.model, [torch.randn(8, 3, 40, 40)], patch_side(40))

    def of(graphs: str) -> PackTask:
        task = task_of(load, precision="fp16", graphs=graphs)
        return replace(task, teachers=(replace(load.teacher, convolutions=seen),), config=replace(task.config, match="bn+conv"))

    recorded, step = run(of("on"))
    assert step.replay.on
    assert (recorded.images - run(of("off"))[0].images).abs().max() < 0.1


def in_double(task: PackTask, split: Split | None = None, say: Any = silent) -> tuple[Tensor, Step]:
    """Images after three iterations in float64."""
    task.teacher.model.double()
    try:
        step = Step(task, torch.device("cuda"), say)
        step.start = step.start.double()
        step.split = split or step.split
        state = step.begin()
        with settings(task.job.runtime), step:
            for state.t in range(3):
                step(state)
        return state.images, step
    finally:
        task.teacher.model.float()


def test_packed_groups_and_chunks_are_those_alone() -> None:
    plain = {"precision": "fp32", "memory_format": "contiguous", "graphs": "off"}
    together, _ = in_double(task_of(**plain))
    for g in range(3):
        whole = task_of(**plain)
        alone, _ = in_double(replace(whole, groups=whole.groups[g : g + 1]))
        assert (together[g::3] - alone).abs().max() < 1e-7  # Adam makes the last bits of a gradient near zero larger
    for split in (Split(2), Split(1), Split(1, 2)):
        assert (in_double(task_of(**plain), split)[0] - together).abs().max() < 1e-7


def test_crops_are_torchvisions() -> None:
    task = task_of()
    step = Step(task, torch.device("cuda"))
    images = torch.rand(4, 1, 3, 32, 32, device="cuda")
    with settings(resolve(RuntimeConfig(device="cuda", precision="fp32"))):
        for t in range(20, 40):
            inputs, (box, flip, shift) = step.inputs(t), step.draws.one(task.groups[0], t)
            operators = inputs.rows[:, :1], inputs.cols[:, :1], inputs.taps[:, :1]
            ours = warp(images, *operators[:2]).squeeze(1)
            assert step.quick
            assert (step.augment(images.squeeze(1), operators, step.place[:4]) - ours).abs().max() < 1e-6
            theirs = tv.resized_crop(images.squeeze(1), *box.tolist(), [32, 32], antialias=True)
            theirs = torch.roll(theirs.flip(-1) if bool(flip) else theirs, shift.tolist(), (2, 3))
            assert (ours - theirs).abs().max() < 2e-6


def test_where_memory_runs_out_the_run_goes_on_in_smaller_parts() -> None:
    load, plain = replace(LOAD, size=64, width=64, ipc=40, group=40), {"precision": "fp32", "memory_format": "contiguous"}
    expected, _ = in_double(task_of(load, **plain))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved() + 700 * 2**20
    torch.cuda.set_per_process_memory_fraction(before / torch.cuda.get_device_properties(0).total_memory)
    said: list[dict[str, Any]] = []
    try:
        found, step = in_double(task_of(load, **plain), say=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print([event["message"] for event in said])
    assert said and step.split.groups < 3
    assert (found - expected).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("count", "channels", "side", "groups"), [(12, 64, 16, 3), (4, 70, 5, 4), (2, 8, 1, 1), (100, 128, 28, 2)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_kernels_are_plain_torch(count: int, channels: int, side: int, groups: int, added: bool, relu: bool, dtype: torch.dtype) -> None:
    shape, last = (count, channels, side, side), torch.channels_last
    x = (torch.randn(shape, device="cuda") * 2 + 5).to(dtype).contiguous(memory_format=last)
    scale, shift, centre = (torch.randn(channels, device="cuda") for _ in range(3))
    gradient, other = torch.randn_like(x), torch.randn_like(x) if added else None
    out, sums = kernels.normed(x, scale, shift, centre + 4.5, groups, other, relu)
    mean, var = kernels.Finish([sums])([sums]).chunk(2, 1)
    wide, close = x.double(), 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(kernels.applied(x, scale, shift, other, relu), out, rtol=close, atol=close)
    wanted = torch.var_mean(wide.unflatten(0, (-1, groups)), dim=(0, 3, 4), correction=0)
    assert (mean - wanted[1]).abs().max() < 1e-5 and (var - wanted[0]).abs().max() < 1e-4
    exact = wide * scale[:, None, None] + shift[:, None, None] + (0 if other is None else other.double())
    exact = exact.relu() if relu else exact
    assert ((out - exact).abs() / (1 + exact.abs())).max() < close
    offset, slope = (torch.randn(groups, channels, device="cuda") for _ in range(2))
    line = (offset[:, :, None, None] + slope[:, :, None, None] * wide.unflatten(0, (-1, groups))).flatten(0, 1)
    clear = exact.abs() >= close if relu else torch.ones_like(exact, dtype=torch.bool)  # elsewhere rounding decides
    for more in (None, torch.randn_like(x)):
        found, passed = kernels.pulled(gradient, x, scale, shift, offset, slope, more=more, relu=relu, added=added, output=out)
        through = (gradient.double() + (0 if more is None else more.double())) * ((exact > 0) if relu else 1)
        expected = through * scale[:, None, None] + line
        assert found.is_contiguous(memory_format=last)
        assert ((found - expected).abs() / (1 + expected.abs()))[clear].max() < close
        assert (passed is None) == (not added)
        if passed is not None:
            torch.testing.assert_close(passed[clear].double(), through[clear], rtol=close, atol=0 if more is None else close)


@pytest.mark.parametrize("own", [False, True])
def test_the_kernel_of_the_step_is_plain_torch(own: bool) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    images, first, second, gradient = (torch.randn(5, 3, 45, 45, device="cuda", generator=draws) for _ in range(4))
    second, factors = second.abs(), torch.rand(2, 5 if own else 1, 1, 1, 1, device="cuda", generator=draws) + 0.1
    low, high = torch.full((1, 3, 1, 1), -0.5, device="cuda"), torch.full((1, 3, 1, 1), 0.7, device="cuda")
    m, v = first.lerp(gradient, 0.5), second * 0.9 + gradient**2 * 0.1
    x = (images - factors[0] * m / (v.sqrt() * factors[1] + 1e-8)).clamp(low, high)
    for well in (False, True):
        before = images.clone(), first.clone(), second.clone()
        given = (images, (first, second), gradient, (factors[0], factors[1]), (low, high), (0.5, 0.9), 1e-8)
        kernels.adam(*given, torch.tensor(well, device="cuda"))
        wanted = (x, m, v) if well else before
        assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-5) for pair in zip((images, first, second), wanted, strict=True))


def test_packing_is_chosen_from_the_memory_at_hand() -> None:
    groups = make_groups(200, plan(400, 50), "class", 100)
    runtime = resolve(RuntimeConfig(device="cuda"))
    chosen = fitted(runtime, replace(LOAD, size=64, width=None).teacher, groups)
    assert chosen.packing is not None and 1 <= chosen.packing <= 100
