"""Recover against a plain loop with torch.optim.Adam and torchvision's crop, and its promises: what moves, what stays, what repeats."""

from __future__ import annotations

import io
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_models_statistics import conv_inputs, slow_distance
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from delt.artifacts.ranking import Patches
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.config import RecoverConfig, RuntimeConfig
from delt.data.images import denormalise, normalise
from delt.engine import pixels
from delt.engine import step as engine
from delt.engine.pack import PackTask, interleaved
from delt.engine.pixels import jpeg75, kept_pixels
from delt.engine.step import Finite, State, Step
from delt.errors import ConfigError, DeltError, Stopped
from delt.grouping import Group, make_groups
from delt.job import Job
from delt.models import zoo
from delt.models.statistics import remember_convolutions
from delt.pool import Pool
from delt.runtime import resolve, stream
from delt.schedule import plan
from delt.stages import recover as module
from delt.stages.recover import record_iterations, recover

CLASSES, SIZE = 3, 8


def make_teacher(arch: str = "convnet3", channels: int = 3, std: float = 0.25, classes: int = CLASSES) -> Teacher:
    """A tiny network with random BatchNorm statistics."""
    model = zoo.build(arch, classes, channels, SIZE, width=4, generator_seed=1)
    draws = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features, generator=draws) * 0.3
            layer.running_var = torch.rand(layer.num_features, generator=draws) + 0.5
    mean = (0.5, 0.4375, 0.375)[:channels]
    names = tuple(f"class {c}" for c in range(classes))
    return Teacher(model, TeacherCard(arch, 4, names, channels, SIZE, mean, (std,) * channels, True, "toy", 99.0, "trained", "", {}))


def make_patches(ipc: int, channels: int = 3, classes: int = CLASSES) -> Patches:
    draws = torch.Generator().manual_seed(3)
    count = classes * ipc
    pixels = torch.randint(0, 256, (count, channels, SIZE, SIZE), dtype=torch.uint8, generator=draws)
    return Patches(ipc, pixels, [f"train/{i}" for i in range(count)])


def job(seed: int = 0, work: Path | None = None, packing: int = 1, **more: Any) -> Job:
    return Job(seed, resolve(RuntimeConfig(device="cpu", packing=packing, checkpoint_seconds=0.0)), work, **more)


def config(**changes: Any) -> RecoverConfig:
    return RecoverConfig(**{"iterations": 9, "sub_batches": 3, "flip": True, "jitter": 2, "lr": 0.1, "bn_weight": 0.5, **changes})


def task_of(teacher: Teacher, groups: list[Group], settings: RecoverConfig, ipc: int, seed: int = 0) -> PackTask:
    patches = make_patches(ipc, teacher.card.channels, len(teacher.card.classes))
    iterations = groups[0].schedule.iterations
    rows = patches.of(interleaved(groups))
    return PackTask((teacher,), groups, rows, settings, frozenset(range(CLASSES)), (0,), iterations, job(seed))


def same(a: SyntheticSet, b: SyntheticSet) -> bool:
    """Equal to the last bit, history included."""
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "labels", "sub_batch", "iterations"))
    if a.snapshots is None or b.snapshots is None:
        return tensors and a.source == b.source and a.snapshots is b.snapshots
    shots = torch.equal(a.snapshots.images, b.snapshots.images) and a.snapshots.readings == b.snapshots.readings
    return tensors and shots and a.source == b.source


# ------------------------------------------------------------------------------------------ the slow reference


def bn_distance(model: nn.Module, inputs: dict[nn.Module, Tensor], multiplier: float) -> Tensor:
    """Sum over the BatchNorm layers of the two norms (SRe2L), by autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for position, layer in enumerate(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        assert layer.running_mean is not None and layer.running_var is not None
        x = inputs[layer]
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        term = (layer.running_var - var).norm() + (layer.running_mean - mean).norm()
        total = total + term * (multiplier if position == 0 else 1.0)
    return total


def cropped(images: Tensor, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    box, flip, shift = drawn
    out = tv.resized_crop(images, *box.tolist(), [SIZE, SIZE], antialias=True)
    return torch.roll(out.flip(-1) if bool(flip) else out, shift.tolist(), (2, 3))


def slow_group(teacher: Teacher, group: Group, start: Tensor, settings: RecoverConfig, step: Step) -> Tensor:
    """One group as the papers tell it: an optimiser per sub-batch, or one for all; float64 images in the group's order."""
    schedule, card = group.schedule, teacher.card
    labels = torch.tensor([c for c, _ in group.members])
    parts = [part.clone().requires_grad_() for part in start.split(list(schedule.sizes))]
    betas = (settings.beta1, settings.beta2)
    shared = settings.adam_steps == "shared"
    optimisers = (
        [torch.optim.Adam(parts, lr=1.0, betas=betas)] if shared else [torch.optim.Adam([part], lr=1.0, betas=betas) for part in parts]
    )
    inputs: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: inputs.__setitem__(layer, given[0])) for layer in teacher.model.modules()
    ]
    low = torch.tensor([-m / s for m, s in zip(card.mean, card.std, strict=True)]).view(-1, 1, 1).double()
    high = torch.tensor([(1 - m) / s for m, s in zip(card.mean, card.std, strict=True)]).view(-1, 1, 1).double()
    for t in range(schedule.iterations):
        joined = [k for k in range(len(parts)) if t >= k * schedule.round_iterations]
        if not sum(schedule.sizes[k] for k in joined):
            continue
        clocks = {k: (t - schedule.joins[k], schedule.updates[k]) if settings.clock == "own" else (t, schedule.iterations) for k in joined}
        views = [cropped(parts[k], step.draws.one(group, t, k if settings.clock == "own" else 0)) for k in joined]
        batch = torch.cat(views)
        logits = teacher.model(batch)
        loss = F.cross_entropy(logits, labels[: len(batch)]) + settings.bn_weight * bn_distance(
            teacher.model, inputs, settings.first_bn_multiplier
        )
        for part in parts:
            part.grad = torch.zeros_like(part)  # torch's Adam counts a step for images without a gradient, too
        loss.backward()
        for k, optimiser in enumerate(optimisers):
            if shared or k in joined:
                done, total = clocks[0 if shared else k]
                optimiser.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * done / total))
                optimiser.step()
        with torch.no_grad():
            for k in joined:
                parts[k].clamp_(low, high)
    for handle in handles:
        handle.remove()
    return torch.cat([part.detach() for part in parts])


def in_double(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let recover run in float64, and catch the images of each pack before they are rounded."""
    caught: list[Tensor] = []

    def keep(images: Tensor, *rest: Any) -> Tensor:
        caught.append(images.clone())
        return kept_pixels(images, *rest)

    monkeypatch.setattr(pixels, "normalise", lambda images, mean, std: normalise(images, mean, std, torch.float64))
    monkeypatch.setattr(engine, "kept_pixels", keep)
    return caught


CASES: dict[str, dict[str, Any]] = {
    "fixed": {},
    "no crop, no mirror, no shift": {"min_crop": 1.0, "flip": False, "jitter": 0},
    "shared Adam": {"adam_steps": "shared"},
    "own clock": {"clock": "own"},
    "one sub-batch": {"sub_batches": 1},
    "sre2l": {"sub_batches": 1, "grouping": "mixed", "curriculum": "none", "min_crop": 0.2},
    "mixed in rounds": {"grouping": "mixed", "group_rounds": 2},
    "mixed and late": {"grouping": "mixed", "curriculum": "linear", "milestone": 0.5},
    "cut classes": {"group_size": 2, "group_cut": "contiguous"},
    "cut classes, own clock": {"group_size": 2, "group_cut": "contiguous", "clock": "own"},
    "strict": {"group_size": 3, "group_cut": "contiguous", "drop_empty_rounds": True, "adam_steps": "shared", "save": "jpeg75"},
    "other numbers": {"beta1": 0.9, "beta2": 0.99, "bn_weight": 0.01, "first_bn_multiplier": 3.0, "curriculum": "step", "milestone": 0.3},
    "cross-entropy alone": {"bn_weight": 0.0},
}


@pytest.mark.parametrize(("name", "channels"), [*((name, 3) for name in CASES), ("fixed", 1), ("strict", 1)])
def test_the_whole_run_is_the_slow_references(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, settings, ipc = make_teacher(channels=channels), config(**CASES[name]), 4
    teacher.model.double()
    patches = make_patches(ipc, channels)
    assert patches.images is not None
    caught = in_double(monkeypatch)
    made = recover(teacher, patches, settings, job())
    schedule = plan(9, ipc, None, settings.sub_batches)
    how = (settings.grouping, settings.group_size, settings.group_cut, settings.drop_empty_rounds, settings.group_rounds)
    groups = make_groups(CLASSES, schedule, *how)
    packs = module.packs(groups, 1)
    assert len(caught) == len(packs) == len(groups)
    for floats, (group,) in zip(caught, packs, strict=True):
        rows = [c * ipc + i for c, i in group.members]
        start = normalise(patches.images[rows], teacher.card.mean, teacher.card.std, torch.float64)
        step = Step(task_of(teacher, [group], settings, ipc), torch.device("cpu"))
        expected = slow_group(teacher, group, start, settings, step)
        assert (expected - start).abs().max() > 0.02
        assert (floats - expected).abs().max() < 1e-5
        updates = [group.schedule.updates[k] for k in group.schedule.sub_batch_of]
        assert made.iterations[rows].tolist() == updates
        kept = made.images[rows].int()
        if settings.save == "png":
            assert (kept - denormalise(expected, teacher.card.mean, teacher.card.std).int()).abs().max() <= 1
        else:
            assert torch.equal(kept, kept_pixels(floats, teacher.card.mean, teacher.card.std, "jpeg75").int())


@pytest.mark.parametrize("changes", [{}, {"adam_steps": "shared", "clock": "own"}])
def test_packed_groups_come_out_as_one_by_one(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, settings = make_teacher(), config(group_size=4, **changes)
    teacher.model.double()
    caught = in_double(monkeypatch)
    alone = recover(teacher, make_patches(4), settings, job(packing=1))
    together = recover(teacher, make_patches(4), settings, job(packing=3))
    assert [len(images) for images in caught] == [4, 4, 4, 12]
    for g in range(3):  # image i of group g at i * 3 + g
        assert (caught[3][g::3] - caught[g]).abs().max() < 1e-9
    assert (alone.images.int() - together.images.int()).abs().max() <= 1
    assert alone.snapshots is not None and together.snapshots is not None
    for label in range(CLASSES):
        assert (alone.snapshots.of_class(label).int() - together.snapshots.of_class(label).int()).abs().max() <= 1
    key = lambda reading: (reading["group"], reading["iteration"])  # noqa: E731
    assert [key(r) for r in sorted(alone.snapshots.readings, key=key)] == [key(r) for r in sorted(together.snapshots.readings, key=key)]


def test_draws_follow_the_settings_and_differ_from_group_to_group_and_step_to_step() -> None:
    groups, total = make_groups(CLASSES, plan(400, 1), group_size=1), 400

    def draws(k: int = 0, times: range = range(total), **changes: Any) -> list[list[int]]:
        step = Step(task_of(make_teacher(), groups[:1], config(**changes), 1), torch.device("cpu"))
        drawn = [step.draws.one(groups[k], t) for t in times]
        return [[*box.tolist(), int(flip), *shift.tolist()] for box, flip, shift in drawn]

    usual = draws(min_crop=0.1)
    for t, (top, left, height, width, flip, down, right) in enumerate(usual):
        least = 0.1 + 0.9 * (1 + math.cos(math.pi * t / total)) / 2
        assert height * width >= SIZE**2 * least - 0.5 * (height + width) - 0.25  # but for the rounding of both sides
        assert top >= 0 and left >= 0 and top + height <= SIZE and left + width <= SIZE
        assert flip in (0, 1) and 0 <= down <= 2 and 0 <= right <= 2
    late = usual[300:]
    assert min(height * width for _, _, height, width, *_ in late) < 0.3 * SIZE**2 < max(height * width for _, _, height, width, *_ in late)
    flips, shifts = sum(row[4] for row in usual), [row[5:] for row in usual]
    assert 160 < flips < 240 and all(20 < shifts.count([a, b]) < 70 for a in range(3) for b in range(3))
    assert draws(min_crop=0.1) == usual != draws(1, min_crop=0.1)
    assert all(row == [0, 0, SIZE, SIZE, 0, 0, 0] for row in draws(min_crop=1.0, flip=False, jitter=0))
    assert all(row[4] == 0 for row in draws(flip=None))


# ------------------------------------------------------------------------------------------ several teachers, stages


def make_others() -> list[Teacher]:
    """A deeper one and a wider one beside the teacher, that remember convolutions, in float64."""
    found = []
    for arch, width in (("convnet3", 4), ("convnet4", 3), ("resnet18", 2)):
        model = zoo.build(arch, CLASSES, 3, SIZE, width=width, generator_seed=width).double().eval()
        images = torch.randn(6, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
        found.append(Teacher(model, replace(make_teacher().card, arch=arch, width=width), remember_convolutions(model, [images], 4)))
    return found


def shifted(images: Tensor, drawn: tuple[Tensor, Tensor, Tensor], pad: int) -> Tensor:
    box, flip, shift = drawn
    top, left = (pad + box[:2]).tolist()
    out = F.pad(images, [pad] * 4)[:, :, top : top + SIZE, left : left + SIZE]
    return torch.roll(out.flip(-1) if bool(flip) else out, shift.tolist(), (2, 3))


def slow_density(views: Tensor, labels: Tensor) -> Tensor:
    """G-VBSM's data densification, class by class, with the general eigenvalues of a plain matrix."""
    total = torch.zeros((), dtype=torch.float64)
    for label in labels.unique():
        points = views[labels == label].flatten(1)
        values = torch.linalg.eigvals(points @ points.T).real
        q, p = (values / 4).softmax(0).detach(), values.softmax(0)
        total = total + sum(a * (a.log() - b.log()) for a, b in zip(q, p, strict=True) if a > 0)
    return total


@pytest.mark.parametrize("start", ["first", "zero"])
def test_gvbsm_is_its_slow_reference(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers, ipc = make_others(), 2
    own = {"match": "bn+conv", "average": 0.8, "average_start": start, "drop": 0.4, "densify": 1.0, "pad": 2}
    settings = config(iterations=8, sub_batches=2, group_size=4, lr=0.05, bn_weight=0.1, **own)
    patches = make_patches(ipc)
    assert patches.images is not None
    caught = in_double(monkeypatch)
    recover(teachers[0], patches, settings, job(seed=3), teachers[1:])
    for floats, group in zip(caught, make_groups(CLASSES, plan(8, ipc, None, 2), group_size=4), strict=True):
        rows, schedule = [c * ipc + i for c, i in group.members], group.schedule
        labels = torch.tensor([c for c, _ in group.members])
        images = normalise(patches.images[rows], teachers[0].card.mean, teachers[0].card.std, torch.float64)
        parts = [part.clone().requires_grad_() for part in images.split(list(schedule.sizes))]
        optimisers = [torch.optim.Adam([part], betas=(settings.beta1, settings.beta2)) for part in parts]
        step = Step(task_of(teachers[0], [group], settings, ipc, seed=3), torch.device("cpu"))
        past: list[dict[str, list[Tensor]]] = [{} for _ in teachers]
        for t in range(8):
            teacher, own_past = teachers[t % 3], past[t % 3]
            joined = [k for k in range(2) if t >= schedule.joins[k]]
            views = shifted(torch.cat([parts[k] for k in joined]), step.draws.one(group, t), 2)
            names = [name for name, layer in teacher.model.named_modules() if isinstance(layer, nn.Conv2d)]
            draws = torch.rand(len(names), generator=stream(3, "drop", group.key, t)) < 0.4
            dropped = {name for name, out in zip(names, draws.tolist(), strict=True) if out}
            inputs = conv_inputs(teacher.model, views)
            distance = slow_distance(teacher.model, teacher.convolutions, inputs, own_past, dropped, 0.8, start == "zero", 10.0)
            loss = F.cross_entropy(teacher.model(views), labels[: len(views)]) + 0.1 * distance
            loss = loss + slow_density(views, labels[: len(views)])
            for part, gradient in zip(parts, torch.autograd.grad(loss, [parts[k] for k in joined]), strict=False):
                part.grad = gradient
            for k in joined:
                optimisers[k].param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * t / 8))
                optimisers[k].step()
                with torch.no_grad():
                    parts[k].clamp_(step.low, step.high)
        expected = torch.cat([part.detach() for part in parts])
        assert (expected - images).abs().max() > 0.02 and (floats - expected).abs().max() < 1e-5


def test_teachers_take_turns() -> None:
    teachers = make_others()
    asked: list[int] = []
    for k, teacher in enumerate(teachers):
        teacher.model.float().register_forward_hook(lambda *_, k=k: asked.append(k))
    recover(teachers[0], make_patches(2), config(iterations=5, sub_batches=1), job(), teachers[1:])
    assert asked == [0, 1, 2, 0, 1]


def test_without_remembered_convolutions_they_cannot_be_matched() -> None:
    with pytest.raises(ConfigError, match=r"remembers no convolutions: call squeeze\.remember"):
        recover(make_teacher(), make_patches(2), config(match="bn+conv", sub_batches=1), job())


@pytest.mark.parametrize("sub_batches", [1, 3])
@pytest.mark.parametrize("side", [1.0, 0.75])
def test_fadrm_is_its_slow_reference(side: float, sub_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four stages at two sizes: resize, blend what moved with its patch, begin Adam anew; one cosine over all."""
    teacher, ipc = make_others()[2], 3
    settings = config(iterations=8, sub_batches=sub_batches, stages=4, small_side=side, residual=0.3, curriculum="none", min_crop=0.4)
    patches = make_patches(ipc)
    assert patches.images is not None
    caught = in_double(monkeypatch)
    made = recover(teacher, patches, settings, job())
    (group,) = make_groups(CLASSES, plan(8, ipc, None, sub_batches))
    rows, schedule = [c * ipc + i for c, i in group.members], group.schedule
    labels = torch.tensor([c for c, _ in group.members])
    start = normalise(patches.images[rows], teacher.card.mean, teacher.card.std, torch.float64)
    resize = lambda images, size: F.interpolate(images, (size, size), mode="bilinear", align_corners=False)  # noqa: E731
    step = Step(task_of(teacher, [group], settings, ipc), torch.device("cpu"))
    inputs: dict[nn.Module, Tensor] = {}
    for layer in teacher.model.modules():
        layer.register_forward_pre_hook(lambda layer, given: inputs.__setitem__(layer, given[0]))
    images = start
    for t in range(8):
        size = round(SIZE * side) if (t // 2) % 2 == 0 else SIZE
        if t % 2 == 0:
            patch = resize(start, size)
            moved = torch.tensor([float(t > schedule.joins[k]) for k in schedule.sub_batch_of]).view(-1, 1, 1, 1)
            images = patch if t == 0 else moved * (0.7 * resize(images, size) + 0.3 * patch) + (1 - moved) * patch
            parts = [part.clone().requires_grad_() for part in images.split(list(schedule.sizes))]
            optimisers = [torch.optim.Adam([part], betas=(settings.beta1, settings.beta2)) for part in parts]
        joined = [k for k in range(sub_batches) if t >= schedule.joins[k]]
        box, flip, shift = step.draws.one(group, t)
        assert int(box[0] + box[2]) <= size and int(box[1] + box[3]) <= size
        views = tv.resized_crop(torch.cat([parts[k] for k in joined]), *box.tolist(), [size, size], antialias=True)
        views = torch.roll(views.flip(-1) if bool(flip) else views, shift.tolist(), (2, 3))
        loss = F.cross_entropy(teacher.model(views), labels[: len(views)]) + 0.5 * bn_distance(teacher.model, inputs, 10.0)
        for k, gradient in zip(joined, torch.autograd.grad(loss, [parts[k] for k in joined]), strict=True):
            parts[k].grad = gradient
            optimisers[k].param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * t / 8))
            optimisers[k].step()
            with torch.no_grad():
                parts[k].clamp_(step.low, step.high)
        images = torch.cat([part.detach() for part in parts])
    assert (caught[0] - images).abs().max() < 1e-5 and (images - start).abs().max() > 0.02
    assert made.images.shape[-1] == SIZE and made.snapshots is not None and made.snapshots.images.shape[-1] == SIZE


# ------------------------------------------------------------------------------------------ what moves and what stays


class Watch:
    """Records the images before and after every step of recover."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, Tensor, Tensor]] = []
        real = Step.__call__

        def call(step: Step, state: State) -> tuple[Tensor, Tensor]:
            before = state.images.clone()
            losses = real(step, state)
            self.steps.append((state.t, before, state.images.clone()))
            return losses

        monkeypatch.setattr(Step, "__call__", call)


@pytest.mark.parametrize("changes", [{}, {"adam_steps": "shared"}, {"clock": "own"}])
def test_only_active_images_move_and_pixels_stay_in_range(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    watch, teacher, ipc = Watch(monkeypatch), make_teacher(), 4
    recover(teacher, make_patches(ipc), config(group_size=ipc, lr=2.0, **changes), job())
    schedule = plan(9, ipc, None, 3)
    assert [t for t, _, _ in watch.steps] == list(range(9)) * CLASSES
    low, high = -teacher.card.mean[0] / 0.25, (1 - teacher.card.mean[2]) / 0.25
    edge = 0
    for t, before, after in watch.steps:
        moved = (before != after).flatten(1).any(1).tolist()
        assert moved == [t >= schedule.joins[k] for k in schedule.sub_batch_of]
        for c, (m, s) in enumerate(zip(teacher.card.mean, teacher.card.std, strict=True)):
            assert after[:, c].min() >= -m / s - 1e-6 and after[:, c].max() <= (1 - m) / s + 1e-6
        edge += int((after.min() <= low + 1e-6) or (after.max() >= high - 1e-6))
    assert edge > 0  # the limits were reached


def test_the_teacher_is_left_bit_equal_and_the_starting_images_too() -> None:
    teacher, patches = make_teacher(), make_patches(4)
    assert patches.images is not None
    before, pixels = teacher.to_bytes(), patches.images.clone()
    recover(teacher, patches, config(), job(packing=2))
    assert teacher.to_bytes() == before and torch.equal(patches.images, pixels)
    assert not teacher.model.training
    for part in teacher.model.modules():
        assert not part._forward_pre_hooks and not part._forward_hooks
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize(("how", "expected"), [("shared", 0.5 / math.sqrt(0.1)), ("sub_batch", 1.0)])
def test_first_step_of_a_late_image(how: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pytest.approx(1.58, abs=0.002) == 0.5 / math.sqrt(0.1)  # the published figure
    watch = Watch(monkeypatch)
    settings = config(iterations=120, sub_batches=2, lr=0.05, adam_steps=how, min_crop=1.0, jitter=0)
    recover(make_teacher(std=0.02), make_patches(2), settings, job())
    t, before, after = watch.steps[60]
    rate = 0.05 * 0.5  # half of the cosine
    change = (after - before)[CLASSES:].abs() / rate  # rows of a group: early images of all classes, then late ones
    inside = after[CLASSES:].abs() < 15  # away from the limits
    assert t == 60 and inside.double().mean() > 0.5
    assert change[inside].quantile(0.1) == pytest.approx(expected, abs=0.01)
    assert change[inside].quantile(0.9) == pytest.approx(expected, abs=0.01)


def test_a_clock_of_its_own_starts_a_late_image_at_the_full_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    settings = config(iterations=60, sub_batches=2, lr=0.05, clock="own", curriculum="cosine", jitter=0)
    recover(make_teacher(std=0.02), make_patches(2), settings, job())
    t, before, after = watch.steps[30]
    assert t == 30 and (after - before)[CLASSES:].abs().median() == pytest.approx(0.05, rel=0.01)
    group = make_groups(CLASSES, plan(60, 2, None, 2))[0]
    step = Step(task_of(make_teacher(), [group], settings, 2), torch.device("cpu"))
    assert step.draws.clocks(29) == [(29, 60)] and step.draws.clocks(30) == [(30, 60), (0, 30)]
    assert step.draws.one(group, 30, 1)[0].tolist() == [0, 0, SIZE, SIZE]  # newcomers see the whole image first


# ------------------------------------------------------------------------------------------ what repeats


def test_equal_seeds_give_equal_bytes_and_another_seed_does_not() -> None:
    teacher = make_teacher()
    one, two = (recover(teacher, make_patches(4), config(), job(seed=5)) for _ in range(2))
    assert same(one, two)
    other = recover(teacher, make_patches(4), config(), job(seed=6))
    assert not torch.equal(one.images, other.images)
    assert (one.seed, other.seed) == (5, 6)


def test_the_global_random_state_has_no_say() -> None:
    teacher = make_teacher()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        one = recover(teacher, Patches(2, None, ["noise"] * 6), config(sub_batches=2), job())
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert same(one, recover(teacher, Patches(2, None, ["noise"] * 6), config(sub_batches=2), job()))


def test_a_group_comes_out_the_same_in_a_larger_run() -> None:
    """Streams belong to the group: other groups beside it change nothing."""
    settings, teacher = config(group_size=4), make_teacher()
    whole = recover(teacher, make_patches(4), settings, job())
    group = make_groups(CLASSES, plan(9, 4, None, 3), group_size=4)[1]
    alone = module.recover_pack(task_of(teacher, [group], settings, 4), lambda event: None)
    assert torch.equal(alone.images, whole.images[4:8])


def test_worker_processes_give_the_same_bytes(tmp_path: Path) -> None:
    teacher, settings = make_teacher(), config(group_size=4, iterations=6)
    plain = recover(teacher, make_patches(4), settings, job())
    events: list[dict[str, Any]] = []
    with Pool(resolve(RuntimeConfig(device="cpu", workers=2))) as pool:
        spread = recover(teacher, make_patches(4), settings, job(work=tmp_path, pool=pool, emit=events.append))
    assert same(plain, spread)
    assert sum(event.get("done", 0) for event in events) == events[0]["total"]


# ------------------------------------------------------------------------------------------ stopping and going on


class Stop(BaseException):
    """Stands for Ctrl-C or a lost machine."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    real, count = Step.__call__, [0]

    def call(step: Step, state: State) -> tuple[Tensor, Tensor]:
        count[0] += 1
        if count[0] > steps:
            raise Stop
        return real(step, state)

    monkeypatch.setattr(Step, "__call__", call)


STAGED = {"stages": 3, "small_side": 0.6}


@pytest.mark.parametrize("steps", [0, 1, 5, 9, 13, 26])
@pytest.mark.parametrize("changes", [{}, {"clock": "own", "adam_steps": "shared", "record_classes": ("none",)}, {"average": 0.7, **STAGED}])
def test_a_stopped_run_goes_on_and_ends_byte_identical(steps: int, changes: dict[str, Any], tmp_path: Path) -> None:
    settings, teacher = config(group_size=4, **changes), make_teacher("resnet18" if changes.get("stages") else "convnet3")
    undisturbed = recover(teacher, make_patches(4), settings, job())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            recover(teacher, make_patches(4), settings, job(work=tmp_path))
    events: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        resumed = recover(teacher, make_patches(4), settings, job(work=tmp_path, emit=events.append))
    assert same(undisturbed, resumed)
    assert len(watch.steps) == 27 - steps  # nothing was done twice
    assert sum(event.get("done", 0) for event in events) == events[0]["total"]


def test_a_listener_that_raises_stops_the_run_and_no_work_is_lost(tmp_path: Path) -> None:
    teacher, settings = make_teacher(), config(group_size=4)

    def emit(event: dict[str, Any]) -> None:
        heard.append(event)
        if len(heard) == 4:
            raise Stop

    heard: list[dict[str, Any]] = []
    with pytest.raises(Stop):
        recover(teacher, make_patches(4), settings, job(work=tmp_path, emit=emit))
    assert same(recover(teacher, make_patches(4), settings, job()), recover(teacher, make_patches(4), settings, job(work=tmp_path)))


def test_a_finished_run_is_read_back_without_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, settings = make_teacher(), config(group_size=4)
    first = recover(teacher, make_patches(4), settings, job(work=tmp_path))
    watch = Watch(monkeypatch)
    assert same(first, recover(teacher, make_patches(4), settings, job(work=tmp_path))) and not watch.steps


def test_a_damaged_finished_unit_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, settings = make_teacher(), config(group_size=4)
    first = recover(teacher, make_patches(4), settings, job(work=tmp_path))
    (file,) = tmp_path.glob(f"{make_groups(CLASSES, plan(9, 4, None, 3), group_size=4)[1].key}_1.*.ckpt")  # pixels, and no moments any more
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    watch = Watch(monkeypatch)
    with pytest.warns(UserWarning, match="checkpoint passed over"):
        again = recover(teacher, make_patches(4), settings, job(work=tmp_path))
    assert same(first, again) and len(watch.steps) == 9
    assert same(first, recover(teacher, make_patches(4), settings, job(work=tmp_path)))  # and it stands again


# ------------------------------------------------------------------------------------------ bad numbers, no numbers


def spoiled(value: float) -> Teacher:
    teacher = make_teacher()
    head = teacher.model.head
    assert isinstance(head, nn.Linear)
    head.weight.fill_(value)
    return teacher


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_with_its_place(value: float) -> None:
    with pytest.raises(DeltError, match=r"group 0\.0-2\.3 .*not finite at iteration 0"):
        recover(spoiled(value), make_patches(4), config(), job())


def test_pixels_that_are_not_finite_never_reach_the_result_or_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finite, "__call__", lambda self, gradient, entropy, distance, inputs: inputs)  # nobody looks
    monkeypatch.setattr(Step, "readings", lambda *args: [])
    with pytest.raises(DeltError, match="pixels are not finite at iteration 1"):
        recover(spoiled(math.nan), make_patches(4), config(), job(work=tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_iterations_return_the_starting_patches() -> None:
    patches = make_patches(4)
    assert patches.images is not None
    made = recover(make_teacher(), patches, config(iterations=0, sub_batches=None, save="jpeg75"), job())
    assert torch.equal(made.images, patches.images) and made.iterations.tolist() == [0] * 12
    assert made.source == patches.sources and made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert made.snapshots is None


def test_no_iterations_of_noise_return_the_start_that_a_run_has() -> None:
    teacher, noise = make_teacher(), Patches(2, None, ["noise"] * 6)
    start = recover(teacher, noise, config(iterations=0, sub_batches=None), job(seed=4))
    run = recover(teacher, noise, config(sub_batches=2), job(seed=4)).snapshots
    assert run is not None and start.images.shape == (6, 3, SIZE, SIZE)
    for label in range(CLASSES):
        assert torch.equal(run.of_class(label)[0], start.images[start.labels == label])
    other = recover(teacher, noise, config(iterations=0, sub_batches=None), job(seed=5))
    assert not torch.equal(start.images, other.images)


def test_a_schedule_that_does_not_fit_is_refused_before_any_work() -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(ConfigError, match="sub_batches is 5"):
        recover(make_teacher(), make_patches(4), config(sub_batches=5), job(emit=events.append))
    assert not events


# ------------------------------------------------------------------------------------------ what is recorded and kept


def test_snapshots_go_from_the_start_to_the_final_set() -> None:
    patches = make_patches(4)
    assert patches.images is not None
    made = recover(make_teacher(), patches, config(record_classes=("class 0", "class 1"), record_count=4, group_size=8), job())
    shots, final = made.snapshots, made
    assert shots is not None and shots.images.shape == (4, 8, 3, SIZE, SIZE)
    assert sorted(shots.labels.tolist()) == [0] * 4 + [1] * 4
    assert torch.equal(shots.iterations, torch.tensor([0, 3, 6, 9])[:, None].expand(4, 8))
    for label in (0, 1):
        rows = final.labels == label
        seen = shots.of_class(label)
        assert torch.equal(seen[0], patches.images[rows]) and torch.equal(seen[-1], final.images[rows])
        for s, t in enumerate((0, 3, 6)):  # joins at 0, 3, 6: until then as at the start
            for place, k in enumerate(plan(9, 4, None, 3).sub_batch_of):
                assert torch.equal(seen[s, place], patches.images[rows][place]) == (t <= 3 * k)
    assert {reading["iteration"] for reading in made.snapshots.readings} == {0, 3, 6}
    assert [len(reading["cross_entropy"]) for reading in made.snapshots.readings if reading["group"] == "0.0-1.3"] == [1, 2, 3]


def test_readings_are_the_losses_of_the_reference() -> None:
    teacher = make_teacher()
    patches = make_patches(4)
    assert patches.images is not None
    settings = config(min_crop=1.0, flip=False, jitter=0)
    reading = recover(teacher, patches, settings, job()).snapshots.readings[0]
    rows = [0, 1, 4, 5, 8, 9]  # sub-batch 0 of each class: 2 of 4 images
    inputs: dict[nn.Module, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: inputs.__setitem__(layer, given[0])) for layer in teacher.model.modules()
    ]
    logits = teacher.logits(normalise(patches.images[rows], teacher.card.mean, teacher.card.std))
    for handle in handles:
        handle.remove()
    assert reading["cross_entropy"] == pytest.approx([F.cross_entropy(logits, torch.tensor([0, 0, 1, 1, 2, 2])).item()], abs=1e-5)
    assert reading["bn"] == pytest.approx(bn_distance(teacher.model, inputs, 10.0).item(), rel=1e-5)
    assert (reading["group"], reading["iteration"], reading["stage"]) == ("0.0-2.3", 0, "recover")


@pytest.mark.parametrize(("iterations", "count"), [(1, 2), (9, 2), (9, 10), (4000, 40), (7, 5)])
def test_recorded_iterations_are_distinct_and_start_at_the_start(iterations: int, count: int) -> None:
    marks = record_iterations(RecoverConfig(record_count=count), iterations, iterations)
    assert len(marks) == count - 1 == len(set(marks)) and marks[0] == 0 and marks[-1] < iterations and list(marks) == sorted(marks)


def test_chosen_iterations_and_classes_are_recorded() -> None:
    made = recover(make_teacher(), make_patches(4), config(record_classes=("class 2",), record_iterations=(5, 2)), job())
    assert made.snapshots is not None and set(made.snapshots.labels.tolist()) == {2}
    assert made.snapshots.iterations[:, 0].tolist() == [2, 5, 9]
    assert [reading["iteration"] for reading in made.snapshots.readings] == [2, 5]
    with pytest.raises(ConfigError, match="recover_record_iterations has 9; allowed are 0 to 8"):
        recover(make_teacher(), make_patches(4), config(record_iterations=(9,)), job())
    with pytest.raises(ConfigError, match="unknown class to record 'clas 1': did you mean 'class 1'"):
        recover(make_teacher(), make_patches(4), config(record_classes=("clas 1",)), job())


def test_nothing_is_recorded_where_nothing_is_asked_for() -> None:
    made = recover(make_teacher(), make_patches(4), config(record_classes=("none",)), job())
    assert made.snapshots is not None and not len(made.snapshots.labels) and made.snapshots.readings


def test_the_number_of_recorded_classes_fits_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_teacher()
    assert module.recorded_classes(RecoverConfig(), teacher, 10) == frozenset(range(10))
    assert module.recorded_classes(RecoverConfig(record_classes=("class 1",)), teacher, 10**9) == {1}
    one = 10 * 3 * SIZE * SIZE
    monkeypatch.setattr(module, "RECORD_BYTES", 4 * one)
    assert module.recorded_classes(RecoverConfig(), teacher, 10) == frozenset(range(4))
    assert module.recorded_classes(RecoverConfig(), teacher, 100) == {0}


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg75_is_pillows_round_trip_of_truncated_pixels(channels: int) -> None:
    draws = torch.Generator().manual_seed(7)
    images = torch.rand(3, channels, 16, 16, generator=draws) * 4.4 - 2.2
    mean, std = (0.5,) * channels, (0.25,) * channels
    kept = kept_pixels(images, mean, std, "jpeg75")
    for image, own in zip(images, kept, strict=True):
        cut = np.floor((image * 0.25 + 0.5).clamp(0, 1).numpy() * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(cut[:, :, 0] if channels == 1 else cut).save(buffer, "JPEG")  # Pillow's default quality is 75
        expected = np.asarray(Image.open(buffer)).reshape(16, 16, channels).transpose(2, 0, 1)
        assert np.array_equal(own.numpy(), expected)
        assert torch.equal(jpeg75(torch.from_numpy(cut.transpose(2, 0, 1).copy())), own)
    assert torch.equal(kept_pixels(images, mean, std, "png"), denormalise(images, mean, std))
    assert not torch.equal(kept, kept_pixels(images, mean, std, "png"))


@pytest.mark.parametrize("runtime", [{"precision": "bf16"}, {"memory_format": "channels_last"}])
def test_other_arithmetic_runs_and_lands_near(runtime: dict[str, Any]) -> None:
    teacher, settings = make_teacher(), config(iterations=3)
    plain = recover(teacher, make_patches(4), settings, job()).images.double()
    made = recover(teacher, make_patches(4), settings, Job(0, RuntimeConfig(device="cpu", **runtime))).images.double()
    assert (made - plain).abs().mean() < (3 if "precision" in runtime else 0.5)


# ------------------------------------------------------------------------------------------ watched, and stopped on request


def stop_at_report(steps: int) -> Any:
    """A listener that raises `Stopped` at its (steps + 1)-th report of the recover stage; the first comes before any step."""
    left = [steps]

    def listener(event: dict[str, Any]) -> None:
        if "done" in event:
            if left[0] == 0:
                raise Stopped
            left[0] -= 1

    return listener


@pytest.mark.usefixtures("beat_each_step")
@pytest.mark.parametrize("steps", [0, 1, 5, 8])
def test_stopped_it_is_a_usable_part_and_goes_on_with_the_same_bits(tmp_path: Path, steps: int) -> None:
    teacher, patches, settings = make_teacher(), make_patches(3), config(record_count=4)
    whole = recover(teacher, patches, settings, job())
    part = recover(teacher, patches, settings, job(work=tmp_path, emit=stop_at_report(steps)))
    assert whole.complete and not part.complete
    assert part.iterations.view(CLASSES, 3).tolist() == [[max(0, steps - 3 * k) for k in range(3)]] * CLASSES
    waiting = part.iterations == 0
    assert patches.images is not None and torch.equal(part.images[waiting], patches.images[waiting])
    assert part.snapshots is not None and whole.snapshots is not None
    shots = part.snapshots
    assert all(torch.equal(shots.of_class(c)[-1], part.images[part.labels == c]) for c in range(CLASSES))
    assert shots.iterations[-1].eq(steps).all()
    assert torch.equal(shots.images[:-1], whole.snapshots.images[: len(shots.images) - 1])
    assert same(recover(teacher, patches, settings, job(work=tmp_path)), whole)


@pytest.mark.parametrize(("name", "left"), [("SIGINT", 0), ("SIGTERM", -signal.SIGTERM)])
def test_a_program_of_ones_own_ends_where_it_is_told_to(name: str, left: int, tmp_path: Path) -> None:
    """Ctrl-C ends the synthesis alone, as the stop button of a notebook does; what ends processes ends this one, after a checkpoint."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_stages_recover import config, job, make_patches, make_teacher
from delt.stages.recover import recover
ear = lambda event: os.kill(os.getpid(), signal.{name}) if event.get("done") else None
made = recover(make_teacher(), make_patches(3), config(iterations=900), job(work=Path({str(tmp_path)!r}), emit=ear))
print("complete" if made.complete else "a part", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == left and done.stdout == ("a part\n" if left == 0 else ""), done.stderr
    assert "stopping after this step" in done.stderr and list(tmp_path.glob("*.ckpt"))


@pytest.mark.usefixtures("beat_each_step")
def test_stopped_between_groups_the_rest_is_not_begun(tmp_path: Path) -> None:
    teacher, patches, settings = make_teacher(), make_patches(3), config(group_size=3, record_count=4)
    part = recover(teacher, patches, settings, job(work=tmp_path, emit=stop_at_report(11 + 5)))  # 11 reports of the first group
    assert part.iterations.view(CLASSES, 3).tolist() == [[9, 6, 3], [5, 2, 0], [0, 0, 0]]
    assert patches.images is not None and torch.equal(part.images[6:], patches.images[6:])
    shots = part.snapshots
    assert shots is not None and shots.iterations[-1].tolist() == [9] * 3 + [5] * 3 + [0] * 3
    assert all(torch.equal(shots.of_class(c)[-1], part.images[part.labels == c]) for c in range(CLASSES))
    part.save(tmp_path / "saved")
    assert SyntheticSet.load(tmp_path / "saved").complete is False
    assert same(recover(teacher, patches, settings, job(work=tmp_path)), recover(teacher, patches, settings, job()))


@pytest.mark.usefixtures("beat_each_step")
@pytest.mark.parametrize(("word", "ends"), [(0, [[0] * 3] * 3), (1, [[0] * 3] * 3), (6, [[5, 2, 0], [0] * 3, [0] * 3])])
def test_a_listener_says_stop_once(word: int, ends: list[list[int]]) -> None:
    """Whether it is the first thing that it hears or a later one: what comes after is not begun, and the part is handed over."""
    heard: list[dict[str, Any]] = []

    def listener(event: dict[str, Any]) -> None:
        heard.append(event)
        if len(heard) == word + 1:
            raise Stopped

    patches = make_patches(3)
    part = recover(make_teacher(), patches, config(group_size=3), job(emit=listener))
    assert not part.complete and part.iterations.view(CLASSES, 3).tolist() == ends and len(heard) == word + 1
    assert patches.images is not None and torch.equal(part.images[3:], patches.images[3:])


@pytest.mark.usefixtures("beat_each_step")
@pytest.mark.parametrize("packing", [1, 3])
def test_who_watches_sees_the_images_as_they_are(packing: int) -> None:
    events: list[dict[str, Any]] = []
    settings = config(group_size=3, record_iterations=(0, 4, 8), record_classes=("class 0", "class 2"))
    seen = recover(make_teacher(), make_patches(3), settings, job(packing=packing, emit=events.append, watch=True))
    assert same(seen, recover(make_teacher(), make_patches(3), settings, job(packing=packing)))
    frames = [event["frame"] for event in events if "frame" in event and event["frame"].labels]
    first = [frame for frame in frames if frame.labels[0] == 0]
    shots = seen.snapshots
    assert shots is not None
    for s, t in enumerate((0, 4, 8)):
        (frame,) = [frame for frame in first if frame.iteration == t]
        rows = [
            list(zip(shots.labels.tolist(), shots.sub_batch.tolist(), strict=True)).index(key)
            for key in zip(frame.labels, frame.sub_batch, strict=True)
        ]
        assert np.array_equal(frame.images, shots.images[s, rows].numpy()) and frame.iterations == 9
    assert first[0].readings == [] and first[0].active == 0 and first[5].active == 2 * packing
    assert first[5].readings == [reading for reading in shots.readings if reading["iteration"] == 4][:packing]
    assert not [event for event in events if "frame" in event and isinstance(event["frame"].images, Tensor)]
