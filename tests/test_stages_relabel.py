"""Relabel: stored labels are what the teacher says online about the replayed views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from delt import storage
from delt.artifacts.soft_labels import FILE, SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.config import RelabelConfig, RuntimeConfig
from delt.data.images import TensorImages
from delt.errors import ConfigError, DeltError, Stopped
from delt.job import Job
from delt.models.zoo import build
from delt.recipes import RECIPES, Case, recipe_of
from delt.stages.relabel import label_views, relabel

CLASSES, IPC, EPOCHS = tuple("0123456789"), 3, 2
JOB = Job(7, RuntimeConfig(device="cpu", threads=1))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = build("convnet3", 10, 1, 8, 4, 1)
    with torch.no_grad():  # statistics that are not those of a fresh network: train mode would give other labels
        model.train()(3 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 1)
    return Teacher(model, TeacherCard("convnet3", 4, CLASSES, 1, 8, (0.5,), (0.3,), True, "toy", 50.0, "trained", "", {}))


@pytest.fixture(scope="module")
def synthetic() -> SyntheticSet:
    images = torch.randint(256, (10 * IPC, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    zeros = torch.zeros(10 * IPC, dtype=torch.int64)
    return SyntheticSet(images, torch.arange(10).repeat_interleave(IPC), CLASSES, zeros, zeros, ["noise"] * 10 * IPC, 0)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_stored_labels_replay_the_online_ones(recipe: str, flip: bool, teacher: Teacher, synthetic: SyntheticSet):
    teacher = Teacher(teacher.model, replace(teacher.card, flip=flip))
    others = (Teacher(build("resnet18", 10, 1, 8, 4, 2), teacher.card),)
    protocol = recipe_of(recipe, "toy", 8, IPC)
    stored = relabel(teacher, synthetic, RelabelConfig("stored", EPOCHS), JOB, recipe, others)
    online = relabel(teacher, synthetic, RelabelConfig("online"), JOB, recipe, others)
    assert stored.logits is not None and stored.logits.shape == (EPOCHS, 30, 10) and stored.logits.dtype == torch.float16
    assert (stored.seed, stored.recipe, stored.batch) == (7, recipe, protocol.batch(10, IPC))
    assert online.logits is None and online.recipe == recipe
    views = label_views(protocol, teacher, stored.batch, 7, EPOCHS)
    for epoch in range(2 * EPOCHS):  # the passes repeat
        start = 0
        for batch in views.epoch(TensorImages(synthetic.images, synthetic.labels), epoch):
            expected = online.of(batch, epoch, start, protocol)
            torch.testing.assert_close(stored.of(batch, epoch, start, protocol), expected, atol=1e-4, rtol=1e-3)  # 11 bits of float16
            start += len(batch.index)
        assert start == 30
    assert not torch.equal(stored.logits[0], stored.logits[1])
    alone = relabel(teacher, synthetic, RelabelConfig("stored", EPOCHS), JOB, recipe).logits
    assert alone is not None and torch.equal(alone, stored.logits) == (protocol.voters == "first")


def test_labels_depend_on_the_seed_alone(teacher: Teacher, synthetic: SyntheticSet):
    def logits(seed: int) -> torch.Tensor:
        torch.rand(3)
        found = relabel(teacher, synthetic, RelabelConfig("stored", EPOCHS), Job(seed, JOB.runtime)).logits
        assert found is not None
        return found

    assert torch.equal(logits(1), logits(1)) and not torch.equal(logits(1), logits(2))


def test_the_teacher_is_left_as_it_was(teacher: Teacher, synthetic: SyntheticSet):
    before = teacher.digest()
    for recipe in ("common", "paper:fadrm"):
        relabel(teacher, synthetic, RelabelConfig("stored", EPOCHS), JOB, recipe)
        assert storage.sha256_bytes(teacher.to_bytes()) == before and not any(module.training for module in teacher.model.modules())


def test_the_form_that_holds_for_the_set_is_the_one_that_labels(teacher: Teacher, synthetic: SyntheticSet, monkeypatch: pytest.MonkeyPatch):
    cases = (Case({"batches": {10: (7, 7, 7)}}, ("toy",), max_size=8, min_ipc=IPC, max_ipc=IPC),)
    monkeypatch.setitem(RECIPES, "common", replace(recipe_of("common"), cases=cases))
    assert relabel(teacher, synthetic, RelabelConfig("stored", 1), JOB).batch == 7


def test_size_on_disk_and_what_comes_back(teacher: Teacher, synthetic: SyntheticSet, tmp_path: Path):
    soft = relabel(teacher, synthetic, RelabelConfig("stored", 5), JOB)
    soft.save(tmp_path)
    numbers = 5 * IPC * 10**2 * 2  # epochs x IPC x classes^2 x 2 bytes
    assert numbers <= (tmp_path / FILE).stat().st_size < numbers + 400
    back = SoftLabels.load(tmp_path, teacher)
    assert soft.logits is not None and back.logits is not None and torch.equal(back.logits, soft.logits)
    assert (back.recipe, back.seed, back.batch) == (soft.recipe, soft.seed, soft.batch)


def test_progress_adds_up_and_online_has_none(teacher: Teacher, synthetic: SyntheticSet):
    events: list[dict[str, Any]] = []
    job = Job(0, JOB.runtime, emit=events.append)
    relabel(teacher, synthetic, RelabelConfig("online"), job)
    assert events == []
    relabel(teacher, synthetic, RelabelConfig("stored", 3), job)
    assert events[0]["total"] == sum(event.get("done", 0) for event in events[1:]) == 90


def test_an_unknown_recipe_is_refused(teacher: Teacher, synthetic: SyntheticSet):
    with pytest.raises(ConfigError, match="unknown recipe 'comon': did you mean 'common'?"):
        relabel(teacher, synthetic, RelabelConfig("stored"), JOB, "comon")


@pytest.mark.parametrize("damage", [False, True])
def test_passes_that_are_done_are_read_back(
    damage: bool, teacher: Teacher, synthetic: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected, config, done = relabel(teacher, synthetic, RelabelConfig("stored", 3), JOB).logits, RelabelConfig("stored", 3), list[int]()

    def stop_in_the_third(event: dict[str, Any]) -> None:
        done.append(event.get("done", 0))
        if sum(done) > 2 * len(synthetic):
            raise Stopped

    with pytest.raises(Stopped):
        relabel(teacher, synthetic, config, replace(JOB, work=tmp_path, emit=stop_in_the_third))
    units = sorted(tmp_path.iterdir())
    assert [unit.name for unit in units] == ["pass-0000.safetensors", "pass-0001.safetensors"]
    if damage:
        units[0].write_bytes(units[0].read_bytes()[:-1] + b"\1")
    asked, real = [0], SoftLabels.online
    monkeypatch.setattr(SoftLabels, "online", lambda self, *given: (asked.__setitem__(0, asked[0] + len(given[0])), real(self, *given))[1])
    again = replace(JOB, work=tmp_path)
    if damage:
        with pytest.warns(UserWarning, match=r"pass-0000 is done again: .*pass-0000\.safetensors is damaged: expected sha256"):
            found = relabel(teacher, synthetic, config, again).logits
    else:
        found = relabel(teacher, synthetic, config, again).logits
    assert found is not None and expected is not None and torch.equal(found, expected)
    assert asked[0] == len(synthetic) * (2 if damage else 1)


def test_a_label_that_does_not_fit_into_16_bits_is_refused(synthetic: SyntheticSet, teacher: Teacher):
    loud = Teacher(build("convnet3", 10, 1, 8, 4, 1), teacher.card)
    loud.model.head.weight.data.mul_(1e9)
    with pytest.raises(DeltError, match="a label of pass 0 is not finite in 16 bits; use relabel_mode online"):
        relabel(loud, synthetic, RelabelConfig("stored", 1), JOB)
