"""Training on a GPU: recorded steps train as plain ones, dropout and BatchNorm included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.bench import Load
from delt.config import EvaluateConfig, RuntimeConfig
from delt.data.images import TensorImages
from delt.job import Job
from delt.recipes import recipe_of
from delt.runtime import in_training, resolve, seeded, settings, stream, trainable
from delt.stages import evaluate
from delt.training import Given, adamw, fit, sgd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


def trained(make: Any, graphs: bool, precision: str = "fp32") -> tuple[list[Tensor], list[float]]:
    runtime = resolve(RuntimeConfig(device="cuda", precision="fp32", train_precision=precision))
    with seeded(torch.device("cpu"), "network"):
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 4))
        model = trainable(nn.Sequential(*layers), CUDA, 8)

    def batches(epoch: int) -> Iterator[Given]:
        for step in range(6):
            draws = stream("batch", epoch, step)
            count = 16 if step < 5 else 7
            yield torch.randn(count, 3, 8, 8, generator=draws).to(CUDA), torch.randint(4, (count,), generator=draws).to(CUDA)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with in_training(runtime):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    with settings(runtime):
        history = fit(model, make(model.parameters(), 0.05, CUDA), 4, batches, loss, lambda epoch: 0.05 / (1 + epoch), 6, graphs=graphs)
    return [value.clone() for value in model.state_dict().values()], [record["loss"] for record in history]


@pytest.mark.parametrize("make", [sgd, adamw])
def test_recorded_steps_train_as_plain_ones(make: Any) -> None:
    (_, before), (_, after) = trained(make, False), trained(make, True)
    assert before[-1] < before[0] and after[-1] < after[0]
    for one, two in zip(before, after, strict=True):
        assert abs(one - two) < 0.3
    assert trained(make, True)[1] == after
    assert trained(make, True, "bf16")[1][-1] < before[0]


def test_students_side_by_side_are_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(32, "resnet18", 8)
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (200, 3, 32, 32), generator=draws).to(torch.uint8), torch.arange(200) // 20
    zeros, names = torch.zeros(200, dtype=torch.int64), tuple(map(str, range(10)))
    synthetic = SyntheticSet(images, labels, names, zeros, zeros, ["train"] * 200, 0)
    job = Job(runtime=resolve(RuntimeConfig(device="cuda")))
    config = EvaluateConfig(recipe="common", seeds=4, epochs=12, labels=("soft", "hard"))
    test = TensorImages(images[:100], labels[:100])

    def scores(count: int) -> list[Score]:
        monkeypatch.setattr(evaluate, "_beside", lambda tasks, job: count)
        tasks = evaluate.student_tasks(synthetic, SoftLabels(load.teacher, "common"), test, config, job, name="delt")
        return evaluate.run_students(tasks, job)

    alone = scores(1)
    assert scores(4) == alone and len({score.last for score in alone}) > 1


def test_labels_in_sixteen_bits_are_as_near_as_those_of_tf32() -> None:
    teacher = Load(32, "resnet18", None).teacher
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = teacher.to("cpu").model.double()(images.double())
    teacher.model.float().to(CUDA)
    runtime, recipe, soft = resolve(RuntimeConfig(device="cuda")), recipe_of("common"), SoftLabels(teacher, "common")
    found = evaluate.asked(soft, recipe, runtime, CUDA)
    with settings(runtime):
        errors = [((labels.online(images.to(CUDA), recipe).cpu() - exact).norm() / exact.norm()).item() for labels in (found, soft)]
    print(f"fp16 {errors[0]:.2e}, TF32 {errors[1]:.2e}")
    assert isinstance(found.teacher.model, evaluate.Quick) and errors[0] < max(5e-3, 2 * errors[1])
