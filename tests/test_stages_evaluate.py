"""Evaluate: losses against loops, students that repeat, resume and share their start, rows in order."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import DataConfig, EvaluateConfig, RelabelConfig, RuntimeConfig, TeacherConfig
from delt.data.augment import Mix, draw_cutmix, mixed
from delt.data.images import RealSet, TensorImages
from delt.data.load import open_set
from delt.data.views import Batch
from delt.errors import ConfigError, TeacherError
from delt.job import Job
from delt.models.zoo import build
from delt.pool import Pool
from delt.recipes import RECIPES, Case, recipe_of
from delt.runtime import Emit, silent, stream
from delt.stages import evaluate as stage
from delt.stages.evaluate import (
    Student,
    StudentTask,
    decayed,
    evaluate,
    full_tasks,
    optimizer_of,
    run_students,
    soft_loss,
    student_tasks,
    train_student,
)
from delt.stages.relabel import relabel
from delt.stages.squeeze import squeeze
from delt.world import World

CPU = torch.device("cpu")
RUNTIME = RuntimeConfig(device="cpu", threads=1)
TINY = EvaluateConfig(seeds=1, epochs=2, labels=("soft",))


@pytest.fixture(scope="module")
def real() -> RealSet:
    digits = open_set("digits", DataConfig(), CPU)
    parts = [
        TensorImages(part.fetch(torch.arange(count)), part.labels[:count]) for part, count in ((digits.train, 600), (digits.test, 100))
    ]
    return RealSet(digits.info, *parts, "")


@pytest.fixture(scope="module")
def teacher(real: RealSet) -> Teacher:
    return squeeze(real, TeacherConfig(arch="convnet3", width=8, epochs=6, batch=32, pad=1, min_accuracy=50.0), Job(runtime=RUNTIME))


@pytest.fixture(scope="module")
def synthetic(real: RealSet) -> SyntheticSet:
    """Three real images of each class stand for synthetic ones."""
    rows = torch.cat([torch.nonzero(real.train.labels == label)[:3, 0] for label in range(10)])
    zeros = torch.zeros(30, dtype=torch.int64)
    return SyntheticSet(real.train.fetch(rows), real.train.labels[rows], real.info.classes, zeros, zeros, ["train"] * 30, 0)


@pytest.fixture(scope="module")
def soft(teacher: Teacher) -> SoftLabels:
    return SoftLabels(teacher, "common")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The common recipe, quicker to learn and tested in every epoch."""
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), lr=0.02, test_every=1, full_epochs=4, full_batch=32))


def task_of(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, job: Job | None = None, **config: Any) -> StudentTask:
    made = student_tasks(synthetic, soft, real.test, replace(TINY, **config), job or Job(runtime=RUNTIME), name="delt")
    assert len(made) == 1
    return made[0]


class Fixed(nn.Module):
    """A network whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits), 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        return self.logits[: len(images)]


# ---------------------------------------------------------------- losses


def loss_of(student: Student, batch: Batch, epoch: int = 0, start: int = 0) -> Tensor:
    return student.loss_of(*student.given(batch, epoch, start))


def losses(student: Student, epoch: int) -> Iterator[Tensor]:
    return (student.loss_of(*given) for given in student.batches(epoch))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_loss_is_the_mean_kl_of_tempered_probabilities(temperature: float):
    generator = stream("kl")
    student, teacher = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(a / temperature) for a in v]
        q = [math.exp(a / temperature) for a in z]
        expected += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)) / 5
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)
    assert soft_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-12)
    assert soft_loss(student, teacher, temperature, squared=True).item() == pytest.approx(temperature**2 * expected, rel=1e-10)


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


@pytest.mark.parametrize("seed", range(6))
def test_hard_labels_of_cutmix_share_the_pixels(seed: int, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    count = 7
    grey = torch.arange(count).float().view(count, 1, 1, 1).expand(count, 1, 8, 8)  # every image one grey: pixels can be counted
    mix = draw_cutmix(count, 8, 1.0, stream("mix", seed))
    images, partner = mixed(grey, [mix])
    labels, logits = torch.tensor([3, 1, 4, 1, 5, 9, 2]), torch.randn(count, 10, generator=stream("logits", seed))
    expected = 0.0
    for row in range(count):
        for origin, pixels in zip(*images[row].unique(return_counts=True), strict=True):
            expected += int(pixels) / 64 * cross_entropy(logits[row].tolist(), int(labels[int(origin)])) / count
    student = Student(task_of(synthetic, soft, real, labels=("hard",)), Fixed(logits), CPU, silent)
    batch = Batch(images, labels, torch.arange(count), mix, (labels[partner], torch.tensor(mix.share)))
    assert loss_of(student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_hard_labels_without_mixing_are_plain_cross_entropy(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    logits, labels = torch.randn(4, 10, generator=stream(0)), torch.tensor([0, 9, 9, 2])
    student = Student(task_of(synthetic, soft, real, labels=("hard",)), Fixed(logits), CPU, silent)
    expected = sum(cross_entropy(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)) / 4
    assert loss_of(student, Batch(torch.zeros(4, 1, 8, 8), labels, labels, None)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("voters", ["first", "all"])
def test_labels_are_asked_of_copies(voters: str, teacher: Teacher):
    other = replace(teacher, model=copy.deepcopy(teacher.model))
    soft, recipe = SoftLabels(teacher, "common", others=(other,)), replace(recipe_of("common"), voters=voters)
    images, found = torch.randn(20, 1, 8, 8, generator=stream("asked")), stage.asked(soft, recipe, RUNTIME, CPU)
    assert len(found.voters(recipe)) == len(soft.voters(recipe)) == (1 if voters == "first" else 2)
    assert all(one.model is not two.model for one, two in zip(found.voters(recipe), soft.voters(recipe), strict=True))
    torch.testing.assert_close(found.online(images, recipe), soft.online(images, recipe), rtol=1e-5, atol=1e-5)


def test_labels_are_asked_in_sixteen_bits_on_a_gpu_that_trains_in_them(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    """As near to the teacher's as products in TF32 are; the teacher itself stays as it was."""
    recipe, soft, gpu = recipe_of("common"), SoftLabels(teacher, "common"), torch.device("cuda")
    half = replace(RUNTIME, train_precision="bf16", precision="fp16")
    assert not stage._quickly(recipe, replace(half, precision="fp32"), gpu)  # what fp16 cannot hold is asked for so
    assert stage._quickly(recipe, half, gpu) and not stage._quickly(recipe, half, CPU) and not stage._quickly(recipe, RUNTIME, gpu)
    assert not stage._quickly(replace(recipe, label_statistics="batch"), half, gpu)
    monkeypatch.setattr(stage, "_quickly", lambda *given: True)
    images, before = torch.randn(20, 1, 8, 8, generator=stream("asked")), teacher.digest()
    found = stage.asked(soft, recipe, half, CPU)
    logits, exact = found.online(images, recipe), soft.online(images, recipe)
    assert logits.dtype == torch.float32 and (logits - exact).abs().max() < 5e-3 * exact.abs().max()
    assert not torch.equal(logits, exact) and Teacher(teacher.model, teacher.card).digest() == before
    assert stage.asked(found, recipe, half, CPU) is found  # and is not copied again


def test_students_in_threads_share_the_networks_that_they_ask(
    synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage, "_quickly", lambda recipe, *given: recipe.label_statistics == "remembered")
    tasks = student_tasks(synthetic, soft, real.test, replace(TINY, seeds=2, labels=("soft", "hard")), Job(runtime=RUNTIME), name="delt")
    own = replace(tasks[0], recipe=replace(recipe_of("common"), label_statistics="batch"))  # whose teacher measures batches
    found = stage._with_shared_teachers([*tasks, own], CPU)
    assert len({id(task.soft) for task in found[:4]}) == 1 and isinstance(found[0].soft.teacher.model, stage.Quick)
    assert found[4].soft is soft
    networks = [Student(task, build("convnet3", 10, 1, 8, 4, 1), CPU, silent).soft.teacher.model for task in found]
    assert networks[0] is found[0].soft.teacher.model and networks[4] is not soft.teacher.model
    for task in stage._with_shared_teachers([task for task in tasks if task.score.labels == "hard"], CPU):
        assert task.soft is soft  # nothing is asked


def test_soft_labels_are_the_teachers_of_the_mixed_images(teacher: Teacher, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    logits, mixed = torch.randn(3, 10, generator=stream(0)), torch.randn(3, 1, 8, 8, generator=stream(1))
    student = Student(task_of(synthetic, soft, real), Fixed(logits), CPU, silent)
    batch = Batch(mixed, torch.tensor([0, 1, 2]), torch.arange(3), Mix(torch.tensor([2, 0, 1]), 0.3))
    assert loss_of(student, batch, 0, 0).item() == pytest.approx(soft_loss(logits, teacher.model(mixed), 20.0).item(), rel=1e-5)


def test_a_part_of_a_set_is_trained_on_with_a_warning(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    config = EvaluateConfig(seeds=1, labels=("hard",))
    with pytest.warns(UserWarning, match="synthesis of set 'delt' was stopped before its end: its students train on unfinished images"):
        student_tasks(replace(synthetic, complete=False), soft, real.test, config, Job(), name="delt")
    student_tasks(synthetic, soft, real.test, config, Job(), name="delt")  # a warning would be an error here
    with pytest.warns(UserWarning, match="unfinished images") as caught:
        evaluate(replace(synthetic, complete=False), soft, real.test, replace(TINY, labels=("hard",)), Job(runtime=RUNTIME))
    assert caught[0].filename == __file__, "it names the line that asked for the students"


def test_weight_decay_is_on_filters_and_matrices_only():
    model = build("resnet18", 10, 3, 32, 4)
    heavy, light = decayed(model, 0.01)
    assert (heavy["weight_decay"], light["weight_decay"]) == (0.01, 0.0)
    of = {id(p): name for name, p in model.named_parameters()}
    names = [[of[id(p)] for p in group["params"]] for group in (heavy, light)]
    assert sorted(names[0] + names[1]) == sorted(of.values())
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"} <= set(names[0])
    assert {"bn1.weight", "bn1.bias", "layer2.0.downsample.1.weight", "fc.bias"} <= set(names[1])
    assert not any("bn" in name or "bias" in name for name in names[0])


def test_squared_error_and_the_own_hard_label(synthetic: SyntheticSet, teacher: Teacher, soft: SoftLabels, real: RealSet):
    """The hard label is the image's own, however much of a partner it shows."""
    logits, mixed = torch.randn(3, 10, generator=stream(0)), torch.randn(3, 1, 8, 8, generator=stream(1))
    task = task_of(synthetic, soft, real)
    task.recipe = replace(task.recipe, loss="mse+ce", ce_weight=0.15)
    batch = Batch(mixed, torch.tensor([7, 1, 2]), torch.arange(3), Mix(torch.tensor([2, 0, 1]), 0.3))
    target = teacher.logits(mixed).tolist()
    squares = [(a - b) ** 2 for own, asked in zip(logits.tolist(), target, strict=True) for a, b in zip(own, asked, strict=True)]
    hard = sum(cross_entropy(row, label) for row, label in zip(logits.tolist(), (7, 1, 2), strict=True)) / 3
    assert loss_of(Student(task, Fixed(logits), CPU, silent), batch, 0, 0).item() == pytest.approx(
        sum(squares) / 30 + 0.15 * hard, rel=1e-5
    )


@pytest.mark.parametrize("loss", ["kl", "mse+ce"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_accumulation_normalises_the_parts_and_averages_their_losses(
    loss: str, labels: str, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet
):
    task = task_of(synthetic, soft, real, labels=(labels,))
    task.recipe = replace(task.recipe, accumulate=2, loss=loss, ce_weight=0.3, mix="none")
    batch = Batch(torch.randn(7, 1, 8, 8, generator=stream(1)), torch.arange(7), torch.arange(7), None)
    whole, parted = (build("convnet3", 10, 1, 8, 4, 1).train() for _ in range(2))
    found = loss_of(Student(task, parted, CPU, silent), batch, 0, 0)
    found.backward()
    single = replace(task, recipe=replace(task.recipe, accumulate=1))
    expected = torch.zeros(())
    for rows in (slice(0, 4), slice(4, 7)):  # one after another through the plain student, each with its share of the images
        part = Batch(batch.images[rows], batch.labels[rows], batch.index[rows], None)
        share = len(part.index) / 7 * loss_of(Student(single, whole, CPU, silent), part, 0, 0)
        share.backward()
        expected += share.detach()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, one), other in zip(parted.named_parameters(), whole.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-3, msg=name)
    for name, value in parted.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], msg=name)
    norm: Any = next(module for module in parted.modules() if isinstance(module, nn.BatchNorm2d))
    convolution: Any = next(module for module in parted.modules() if isinstance(module, nn.Conv2d))
    mean = torch.zeros(4)
    for half in (batch.images[:4], batch.images[4:]):
        mean = 0.9 * mean + 0.1 * convolution(half).mean((0, 2, 3)).detach()
    torch.testing.assert_close(norm.running_mean, mean)
    assert norm.num_batches_tracked == 2


def test_all_teachers_label_where_the_recipe_asks_all(synthetic: SyntheticSet, teacher: Teacher, real: RealSet):
    other = Teacher(build("resnet18", 10, 1, 8, 4, 2), teacher.card)
    logits, mixed = torch.randn(3, 10, generator=stream(0)), torch.randn(3, 1, 8, 8, generator=stream(1))
    batch = Batch(mixed, torch.tensor([0, 1, 2]), torch.arange(3), None)
    task = task_of(synthetic, SoftLabels(teacher, "", others=(other,)), real)
    for voters, target in (("first", teacher.logits(mixed)), ("all", (teacher.logits(mixed) + other.logits(mixed)) / 2)):
        task.recipe = replace(task.recipe, voters=voters)
        found = loss_of(Student(task, Fixed(logits), CPU, silent), batch, 0, 0).item()
        assert found == pytest.approx(soft_loss(logits, target, 20.0).item(), rel=1e-5)


def test_the_optimizer_is_the_recipes():
    model, common = build("convnet3", 10, 1, 8, 4, 1), recipe_of("common")
    sgd = optimizer_of(model, replace(common, optimizer="sgd", lr=0.3, weight_decay_of={"vgg11": 0.5}), "vgg11", CPU)
    assert isinstance(sgd, torch.optim.SGD)
    assert [(group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) for group in sgd.param_groups] == [
        (0.3, 0.9, 0.5, False),
        (0.3, 0.9, 0.0, False),
    ]
    adamw = optimizer_of(model, replace(common, decay="all"), "convnet3", CPU)
    assert isinstance(adamw, torch.optim.AdamW) and len(adamw.param_groups) == 1
    (group,) = adamw.param_groups
    assert group["weight_decay"] == 0.01 and len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(("recipe", "times"), [("common", 1), ("paper:delt", 2)])
def test_double_forward_moves_the_running_statistics_twice(
    recipe: str, times: int, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet
):
    task = task_of(synthetic, soft, real, recipe=recipe)
    model = build("convnet3", 10, 1, 8, 4, 1).train()
    norm: Any = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    convolution: Any = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    student = Student(task, model, CPU, silent)
    mean, passes = torch.zeros(4), list(student.views.epoch(student.train, 0))
    for batch, _ in zip(passes, losses(student, 0), strict=True):
        with torch.no_grad():
            own = convolution(batch.images).mean((0, 2, 3))
        for _ in range(times):
            mean = 0.9 * mean + 0.1 * own
    torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-4)
    assert norm.num_batches_tracked == times * len(passes)


@pytest.mark.parametrize("train_precision", ["fp32", "bf16"])
def test_a_first_pass_takes_no_gradient_from_the_second(train_precision: str, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    """The first one casts every weight without a gradient, and a cast that is kept would be taken by the second."""
    runtime = replace(RUNTIME, train_precision=train_precision)
    model = build("convnet3", 10, 1, 8, 4, 1).train()
    student = Student(task_of(synthetic, soft, real, Job(runtime=runtime), recipe="paper:delt"), model, CPU, silent)
    next(iter(losses(student, 0))).backward()
    assert all(part.grad is not None and part.grad.abs().max() > 0 for part in model.parameters())


# ---------------------------------------------------------------- students


@pytest.mark.usefixtures("short")
def test_last_is_the_last_epoch_and_best_the_best(
    synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch
):
    tested: list[float] = []

    def recorded(*given: Any) -> float:
        tested.append(measure(*given))
        return tested[-1]

    measure = stage.accuracy
    monkeypatch.setattr(stage, "accuracy", recorded)
    score = train_student(task_of(synthetic, soft, real, epochs=40), silent)
    assert len(tested) == 40
    assert (score.last, score.best) == (pytest.approx(tested[-1], abs=1e-4), pytest.approx(max(tested), abs=1e-4))
    assert score.best >= score.last > 30  # three times chance: something was learnt


def test_tests_come_every_ten_epochs_and_at_the_end(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    student = Student(task_of(synthetic, soft, real, epochs=25), build("convnet3", 10, 1, 8, 4, 1), CPU, silent)
    assert [epoch for epoch in range(25) if student.tested(epoch)] == [0, 10, 20, 24]


def test_the_form_that_holds_for_the_set_trains_its_students(
    synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch
):
    """The card's data set and size, and the set's own ipc; the whole real set has none, and its images stay whole."""
    cases = (Case({"lr": 0.5}, ("digits",), max_size=8), Case({"epochs": 7, "slowdown": 3.0}, min_ipc=3, max_ipc=3), Case({"shuffle": 2}))
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), cases=cases))
    task = task_of(synthetic, soft, real, epochs=None)
    assert (task.recipe.lr, task.recipe.epochs, task.recipe.slowdown, task.recipe.shuffle, task.score.epochs) == (0.5, 7, 3, 2, 7)
    full = full_tasks(real, soft, TINY, Job(runtime=RUNTIME))[0].recipe
    assert (full.lr, full.epochs, full.slowdown, full.shuffle, full.mix) == (0.5, 300, 1, 1, "none")


@pytest.mark.parametrize("dataset", ["digits", "cifar100", "tiny-imagenet", "imagenette"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_form_of_every_recipe_trains(recipe: str, dataset: str, synthetic: SyntheticSet, teacher: Teacher, real: RealSet):
    teacher = Teacher(teacher.model, replace(teacher.card, dataset=dataset))
    labels = SoftLabels(teacher, "", others=(Teacher(build("resnet18", 10, 1, 8, 4, 2), teacher.card),))
    score = train_student(task_of(synthetic, labels, real, recipe=recipe, epochs=2), silent)
    assert 0 < score.last <= score.best


def test_a_stopped_student_of_sgd_goes_on_with_its_momentum(
    synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), optimizer="sgd", lr=0.1, warmup=100, test_every=1))
    expected = weights(task_of(synthetic, soft, real, epochs=6))
    task = task_of(synthetic, soft, real, Job(0, replace(RUNTIME, checkpoint_seconds=0.0), tmp_path), epochs=6)
    with pytest.raises(KeyboardInterrupt):
        train_student(task, halting())
    assert all(torch.equal(a, b) for a, b in zip(weights(task), expected, strict=True))


def test_rate_follows_the_recipe_per_epoch(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def caught(
        model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, batches: Any, loss: Any, rate: Any, steps: int, **_: Any
    ) -> list[dict[str, Any]]:
        asked.update(optimizer=optimizer, rates=[rate(quarter / 4) for quarter in range(4 * epochs)])
        return [{"top1": 1.0}]

    monkeypatch.setattr(stage, "fit", caught)
    train_student(task_of(synthetic, soft, real, recipe="paper:delt", students=("mobilenet_v2",), epochs=3), silent)
    expected = [2.5e-3 * 0.5 * (1 + math.cos(math.pi * epoch / 6)) for epoch in (0, 1, 2) for _ in range(4)]
    assert asked["rates"] == pytest.approx(expected)
    assert isinstance(asked["optimizer"], torch.optim.AdamW) and asked["optimizer"].defaults["betas"] == (0.9, 0.999)


def starts(task: StudentTask, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The initial weights of a student."""
    found: list[Tensor] = []

    def caught(model: nn.Module, *_: Any, **__: Any) -> list[dict[str, Any]]:
        found.extend(value.detach().clone() for value in model.parameters())
        return [{"top1": 1.0}]

    monkeypatch.setattr(stage, "fit", caught)
    train_student(task, silent)
    return found


def test_paired_seeds_share_their_start(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch):
    other = replace(synthetic, images=255 - synthetic.images)
    first = starts(task_of(synthetic, soft, real), monkeypatch)
    for task in (
        task_of(other, soft, real),
        task_of(synthetic, soft, real, labels=("hard",)),
        *full_tasks(real, soft, TINY, Job(runtime=RUNTIME)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(starts(task, monkeypatch), first, strict=True))
    second = starts(task_of(synthetic, soft, real, Job(1, RUNTIME)), monkeypatch)
    assert not any(torch.equal(a, b) for a, b in zip(second, first, strict=True) if a.ndim > 1)


@pytest.mark.parametrize(("labels", "arch"), [("soft", "teacher"), ("hard", "teacher"), ("soft", "mobilenet_v2")])
def test_a_student_repeats_bit_for_bit(labels: str, arch: str, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    task = task_of(synthetic, soft, real, labels=(labels,), students=(arch,))
    first = weights(task)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(weights(task), first, strict=True))


def weights(task: StudentTask) -> list[Tensor]:
    """All that a student has learnt in a run of `train_student`."""
    models: list[nn.Module] = []

    class Watched(Student):
        def __init__(self, task: StudentTask, model: nn.Module, *rest: Any) -> None:
            super().__init__(task, model, *rest)
            models.append(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "Student", Watched)
        train_student(task, silent)
    return [value.clone() for value in models[0].state_dict().values()]


class Listening(TensorImages):
    """Images that note what dropout would draw."""

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        DRAWS.append(torch.rand(1).item())
        return super().batches(index, batch)


DRAWS: list[float] = []


def test_dropout_follows_the_students_seed(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "_on", lambda images, device: Listening(images.pixels, images.labels))
    DRAWS.clear()
    for seed in (0, 0, 1):
        train_student(task_of(synthetic, soft, real, Job(seed, RUNTIME), epochs=1, students=("mobilenet_v2",)), silent)
    assert DRAWS[0] == DRAWS[1] != DRAWS[2]


def halting() -> Emit:
    """A listener that stops the process after the last step of the third pass."""
    left = 3 * 30

    def heard(event: dict[str, Any]) -> None:
        nonlocal left
        left -= event.get("done", 0)
        if not left:
            raise KeyboardInterrupt

    return heard


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_stopped_and_resumed_scores_the_same(labels: str, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, tmp_path: Path):
    expected = train_student(task_of(synthetic, soft, real, labels=(labels,), epochs=6), silent)
    job = Job(0, replace(RUNTIME, checkpoint_seconds=0.0), tmp_path)
    task = task_of(synthetic, soft, real, job, labels=(labels,), epochs=6)
    with pytest.raises(KeyboardInterrupt):
        train_student(task, halting())
    assert list(tmp_path.glob("*.ckpt"))
    events: list[dict[str, Any]] = []
    assert train_student(task, events.append) == expected
    assert sum(event.get("done", 0) for event in events) == 4 * 30  # three passes were missing, and the third is passed over
    assert not list(tmp_path.glob("*.ckpt"))
    count = len(events)
    assert train_student(task, events.append) == expected and len(events) == count  # finished: nothing is done again


# ---------------------------------------------------------------- rows


def test_rows_come_in_order_and_known_ones_are_not_computed_again(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    config = EvaluateConfig(seeds=2, epochs=1, students=("teacher", "convnet3"), labels=("soft", "hard"))
    known = [
        Score("delt", "common", "hard", "convnet3-w8", 4, 1, 1.25, 2.5),
        Score("delt", "common", "hard", "convnet3-w8", 4, 2, 9.0, 9.0),
    ]
    events: list[dict[str, Any]] = []
    rows = evaluate(synthetic, soft, real.test, config, Job(3, RUNTIME, emit=events.append), known=known)
    expected = [(arch, labels, seed) for arch in ("convnet3-w8", "convnet3") for labels in ("soft", "hard") for seed in (3, 4)]
    assert [(row.arch, row.labels, row.seed) for row in rows] == expected
    assert {(row.set, row.recipe, row.epochs) for row in rows} == {("delt", "common", 1)}
    assert rows[3] == known[0]
    assert events[0]["total"] == sum(event.get("done", 0) for event in events[1:]) == 7 * 30


def test_a_student_named_twice_is_trained_once(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, teacher: Teacher):
    plain = SoftLabels(Teacher(teacher.model, replace(teacher.card, width=None)), "common")
    config = replace(TINY, students=("teacher", "convnet3", "convnet3-w128", "convnet3"))
    for labels, names in ((soft, ["convnet3-w8", "convnet3"]), (plain, ["convnet3"])):
        tasks = student_tasks(synthetic, labels, real.test, config, Job(runtime=RUNTIME), name="delt")
        assert [task.score.arch for task in tasks] == names


def test_epochs_and_batch_come_from_the_recipe(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    task = task_of(synthetic, soft, real, recipe="paper:delt", epochs=None)
    assert (task.score.epochs, task.batch) == (300, 10)


@pytest.mark.usefixtures("short")
def test_full_students_learn_the_real_labels(soft: SoftLabels, real: RealSet):
    tasks = full_tasks(real, soft, replace(TINY, seeds=2, labels=("soft", "hard")), Job(5, RUNTIME))
    assert [task.score.key for task in tasks] == [("full", "common", "hard", "convnet3-w8", seed, 4) for seed in (0, 1)]
    assert all(task.recipe.mix == "none" and task.batch == 32 for task in tasks)
    assert run_students(tasks[:1], Job(5, RUNTIME))[0].last > 50


@pytest.mark.parametrize("recipe", ["common", "paper:delt"])
def test_stored_labels_train_as_online_ones_do(recipe: str, teacher: Teacher, synthetic: SyntheticSet, real: RealSet):
    stored = relabel(teacher, synthetic, RelabelConfig("stored", 2), Job(9, RUNTIME), recipe)
    model = build("convnet3", 10, 1, 8, 4, 1).eval()
    student = Student(task_of(synthetic, stored, real, recipe=recipe), model, CPU, silent)
    for epoch in range(4):
        for batch, loss in zip(student.views.epoch(student.train, epoch), losses(student, epoch), strict=True):
            online = soft_loss(model(batch.images), teacher.logits(batch.images), 20.0)
            torch.testing.assert_close(loss, online, atol=1e-5, rtol=1e-2)


def test_views_are_those_of_the_labels_or_of_the_students_seed(teacher: Teacher, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet):
    def views(labels: str, soft: SoftLabels, seed: int) -> tuple[object, ...]:
        found = Student(task_of(synthetic, soft, real, Job(seed, RUNTIME), labels=(labels,)), nn.Identity(), CPU, silent).views
        return found.key, found.period, found.batch

    stored = replace(relabel(teacher, synthetic, RelabelConfig("stored", 2), Job(9, RUNTIME), "common"), batch=7)
    assert views("soft", stored, 3) == (("relabel", 9), 2, 7)
    assert views("hard", stored, 3) == views("soft", soft, 3) == (("student", 3), None, 10)
    assert views("soft", soft, 4) == (("student", 4), None, 10)


def test_stored_labels_of_another_recipe_or_set_are_refused(teacher: Teacher, synthetic: SyntheticSet, real: RealSet):
    stored = relabel(teacher, synthetic, RelabelConfig("stored", 1), Job(0, RUNTIME), "common")
    with pytest.raises(ConfigError, match="recipe: common in the labels, paper:delt in the training"):
        evaluate(synthetic, stored, real.test, replace(TINY, recipe="paper:delt"), Job(runtime=RUNTIME))
    parts = (
        synthetic.images[:20],
        synthetic.labels[:20],
        synthetic.classes,
        synthetic.sub_batch[:20],
        synthetic.iterations[:20],
        synthetic.source[:20],
        0,
    )
    with pytest.raises(ConfigError, match="images: 30 in the labels, 20 in the training"):
        evaluate(SyntheticSet(*parts), stored, real.test, TINY, Job(runtime=RUNTIME))
    assert len(evaluate(synthetic, stored, real.test, replace(TINY, epochs=1), Job(runtime=RUNTIME))) == 1


def test_students_in_other_batches_than_stored_labels_are_refused(
    teacher: Teacher, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), batch_of={"convnet3": 6}))
    stored = relabel(teacher, synthetic, RelabelConfig("stored", 1), Job(0, RUNTIME), "common")
    with pytest.raises(ConfigError, match="common trains convnet3-w8 in batches of 6 images, and stored labels belong to batches of 10"):
        evaluate(synthetic, stored, real.test, TINY, Job(runtime=RUNTIME))
    (task, *_) = student_tasks(synthetic, soft, real.test, TINY, Job(runtime=RUNTIME), name="delt")
    assert task.batch == 6


@pytest.mark.parametrize(("size", "batch", "shared"), [(2, 16, 1), (2, 15, 0), (3, 24, 2), (5, 100, 0), (7, 56, 5), (7, 55, 0)])
def test_what_is_left_when_each_rank_had_as_many_is_trained_by_all_where_batches_are_large(
    size: int, batch: int, shared: int, synthetic: SyntheticSet, soft: SoftLabels, real: RealSet
):
    """Five students; a batch gives each rank eight images or more, or the exchange of gradients would take longer than the step."""
    job = Job(runtime=RUNTIME, world=World(0, size, dist.HashStore()))
    tasks = student_tasks(synthetic, soft, real.test, replace(TINY, seeds=5), job, name="delt")
    for task in tasks:
        task.batch = batch
    whole, together = stage._dealt(tasks, job)
    assert len(together) == shared and [*whole, *together] == tasks
    assert stage._dealt(tasks, Job(runtime=RUNTIME)) == (tasks, [])


def test_a_finished_student_is_not_left_over(synthetic: SyntheticSet, soft: SoftLabels, real: RealSet, tmp_path: Path):
    job = Job(runtime=RUNTIME, work=tmp_path, world=World(0, 2, dist.HashStore()))
    tasks = student_tasks(synthetic, soft, real.test, replace(TINY, seeds=3), job, name="delt")
    for task in tasks:
        task.batch = 16
    assert len(stage._dealt(tasks, job)[1]) == 1
    stage._result(tasks[0], tmp_path).write_text("{}")
    assert stage._dealt(tasks, job)[1] == [], "two are left, one for each rank"


# ---------------------------------------------------------------- side by side


@pytest.mark.parametrize("statistics", ["remembered", "batch"])
def test_students_side_by_side_are_those_alone(
    statistics: str, real: RealSet, synthetic: SyntheticSet, soft: SoftLabels, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), label_statistics=statistics))
    config = replace(TINY, seeds=3, labels=("soft", "hard"), epochs=3)
    tasks = student_tasks(synthetic, soft, real.test, config, Job(runtime=RUNTIME), name="delt")
    alone = run_students(tasks, Job(runtime=RUNTIME))
    monkeypatch.setattr(stage, "_beside", lambda tasks, job: 3)
    told: list[dict[str, Any]] = []
    assert run_students(tasks, Job(runtime=RUNTIME, emit=told.append)) == alone
    assert sum(event.get("done", 0) for event in told) == 6 * 3 * 30
    assert len({score.last for score in alone}) > 1


def test_how_many_students_a_gpu_trains(real: RealSet, synthetic: SyntheticSet, soft: SoftLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, seeds=3)
    tasks = student_tasks(synthetic, soft, real.test, config, Job(runtime=RUNTIME), name="delt")
    assert stage._beside(tasks, Job(runtime=RUNTIME)) == 1, "on a CPU"
    monkeypatch.setattr(Job, "device", torch.device("cuda"))
    monkeypatch.setattr(stage, "free_memory", lambda device: 80 * 2**30)
    gpu = Job(runtime=RUNTIME)
    assert stage._beside(tasks, gpu) == stage.BESIDE
    assert stage._beside(tasks[:1], gpu) == 1
    assert stage._beside(tasks, replace(gpu, pool=Pool(replace(RUNTIME, workers=2)))) == 1
    assert stage._beside([*tasks, replace(tasks[0], arch="mobilenet_v2", width=None)], gpu) == 1, "it has dropout"
    monkeypatch.setattr(stage, "free_memory", lambda device: 7 * 2**30)
    assert stage._beside(tasks, gpu) == 2
    large = replace(soft, teacher=replace(soft.teacher, card=replace(soft.teacher.card, size=224)))
    assert stage._beside([replace(task, soft=large) for task in tasks], gpu) == 1, "large images fill it"


@pytest.mark.parametrize("mode", ["online", "stored"])
def test_a_set_of_other_classes_or_images_is_neither_labelled_nor_trained_on(
    mode: str, teacher: Teacher, synthetic: SyntheticSet, real: RealSet
):
    config, labels = RelabelConfig(mode=mode, epochs=1), SoftLabels(teacher, "common")
    for other, words in (
        (replace(synthetic, classes=synthetic.classes[::-1]), "class 0 is '9' in the synthetic set and '0' in the teacher"),
        (replace(synthetic, classes=(*synthetic.classes, "10")), "a teacher for 10 classes, the synthetic set has 11"),
        (replace(synthetic, images=synthetic.images.expand(-1, 3, -1, -1)), "images of 1 x 8 x 8 values, the synthetic set has 3 x 8 x 8"),
    ):
        with pytest.raises(TeacherError, match=words):
            relabel(teacher, other, config, Job(runtime=RUNTIME))
        with pytest.raises(TeacherError, match=words):
            evaluate(other, labels, real.test, TINY, Job(runtime=RUNTIME))
    with pytest.raises(ConfigError, match="unknown recipe 'comon': did you mean 'common'"):
        relabel(teacher, synthetic, config, Job(runtime=RUNTIME), "comon")
