"""Squeeze: a teacher trained in a moment, loaded, measured, and refused where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delt.artifacts.teacher import Teacher
from delt.config import DataConfig, RuntimeConfig, TeacherConfig
from delt.data.augment import pad_crop
from delt.data.images import RealSet, TensorImages, normalise
from delt.data.load import open_set
from delt.errors import ConfigError, TeacherError
from delt.job import Job
from delt.models.statistics import remember_convolutions
from delt.models.zoo import build
from delt.runtime import stream
from delt.stages.squeeze import _rate, backbones, remember, squeeze

QUICK = TeacherConfig(arch="convnet3", width=8, epochs=4, batch=32, pad=1)
RUNTIME = RuntimeConfig(device="cpu", threads=1)


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return open_set("digits", DataConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def small(digits: RealSet) -> RealSet:
    """The first 65 digits: enough where quality does not matter."""
    train = TensorImages(digits.train.fetch(torch.arange(65)), digits.train.labels[:65])
    return replace(digits, train=train, info=replace(digits.info, floor=0.0))


@pytest.fixture(scope="module")
def teacher(digits: RealSet) -> Teacher:
    return squeeze(digits, QUICK, Job(runtime=RUNTIME))


def test_a_small_convnet_learns_digits(digits: RealSet, teacher: Teacher):
    assert teacher.card.accuracy > 90
    pixels, labels = digits.test.fetch(torch.arange(450)), digits.test.labels
    guess = teacher.model(normalise(pixels, digits.info.mean, digits.info.std)).argmax(1)
    assert teacher.card.accuracy == pytest.approx(100 * (guess == labels).double().mean().item(), abs=1e-4)


def test_the_card_says_what_the_teacher_is(digits: RealSet, teacher: Teacher):
    card, info = teacher.card, digits.info
    assert (card.classes, card.channels, card.size, card.mean, card.std) == (info.classes, info.channels, info.size, info.mean, info.std)
    assert (card.arch, card.width, card.source, card.dataset, card.fingerprint) == ("convnet3", 8, "trained", "digits", digits.fingerprint)
    assert not teacher.model.training and not any(value.requires_grad for value in teacher.model.parameters())


def test_equal_seeds_give_equal_bits_and_others_do_not(small: RealSet):
    config = replace(QUICK, epochs=2)
    first = squeeze(small, config, Job(seed=1, runtime=RUNTIME)).digest()
    torch.rand(3)
    assert squeeze(small, config, Job(seed=2, runtime=RUNTIME)).digest() == first  # the run's seed is not the teacher's
    assert squeeze(small, replace(config, seed=1), Job(seed=1, runtime=RUNTIME)).digest() != first


def test_a_teacher_with_dropout_repeats_too(small: RealSet):
    small = replace(small, train=TensorImages(small.train.fetch(torch.arange(16)), small.train.labels[:16]))
    config = TeacherConfig(arch="mobilenet_v2", epochs=1, batch=8, pad=0)
    assert squeeze(small, config, Job(runtime=RUNTIME)).digest() == squeeze(small, config, Job(runtime=RUNTIME)).digest()


class Listening(TensorImages):
    """Images that note what dropout would draw."""

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.draw = torch.rand(1).item()
        return super().batches(index, batch)


def test_dropout_follows_the_teachers_seed(small: RealSet):
    def draw(seed: int) -> float:
        train = Listening(small.train.fetch(torch.arange(16)), small.train.labels[:16])
        config = TeacherConfig(arch="mobilenet_v2", epochs=1, batch=8, pad=0, seed=seed)
        squeeze(replace(small, train=train), config, Job(runtime=RUNTIME))
        return train.draw

    assert draw(0) == draw(0) != draw(1)


class Halting(TensorImages):
    """Images that stop the process at the start of a pass."""

    passes = 0

    def batches(self, index: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        if self.passes == 3:
            raise KeyboardInterrupt
        return super().batches(index, batch)


def test_stopped_and_resumed_gives_the_same_teacher(small: RealSet, tmp_path: Path):
    job = Job(runtime=replace(RUNTIME, checkpoint_seconds=0.0), work=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        squeeze(replace(small, train=Halting(small.train.fetch(torch.arange(65)), small.train.labels)), QUICK, job)
    assert list(tmp_path.iterdir())
    events: list[dict[str, Any]] = []
    resumed = squeeze(small, QUICK, replace(job, emit=events.append))
    assert resumed.digest() == squeeze(small, QUICK, Job(runtime=RUNTIME)).digest()
    assert sum(event.get("done", 0) for event in events) == 2 * 65  # only the two passes that were missing


def test_a_last_batch_of_one_image_is_avoided(small: RealSet):
    config = TeacherConfig(arch="convnet4", width=4, epochs=1, batch=32, pad=0)  # convnet4 ends at one pixel; 65 = 2 * 32 + 1
    assert squeeze(small, config, Job(runtime=RUNTIME)).card.arch == "convnet4"


def test_the_rate_climbs_and_falls():
    config = TeacherConfig(lr=0.2, epochs=10, warmup=0.2)
    rates = [_rate(epoch / 50, config) for epoch in range(501)]
    assert rates[0] < 0.001 and max(rates) == rates[100] == 0.2 and rates[500] == pytest.approx(0, abs=1e-12)
    assert rates[:101] == sorted(rates[:101]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[300] == pytest.approx(0.1)
    plain = [_rate(epoch, replace(config, warmup=0.0)) for epoch in range(11)]
    assert plain == pytest.approx([0.1 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(11)])


# ---------------------------------------------------------------- loaded


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_saved_teacher_is_loaded_and_measured_again(what: str, digits: RealSet, teacher: Teacher, tmp_path: Path):
    path = teacher.save(tmp_path)
    loaded = squeeze(digits, replace(QUICK, weights=str(path if what == "file" else tmp_path)), Job(runtime=RUNTIME))
    assert loaded.digest() == teacher.digest() and loaded.card == teacher.card


def test_a_plain_state_dict_is_loaded_with_the_normalisation_of_the_data(digits: RealSet, teacher: Teacher, tmp_path: Path):
    torch.save(teacher.model.state_dict(), tmp_path / "plain.pth")
    loaded = squeeze(digits, replace(QUICK, weights=str(tmp_path / "plain.pth")), Job(runtime=RUNTIME))
    assert loaded.digest() == teacher.digest()
    assert (loaded.card.source, loaded.card.accuracy) == (str(tmp_path / "plain.pth"), teacher.card.accuracy)


def test_a_weak_teacher_is_refused_unless_asked_for(digits: RealSet, teacher: Teacher, tmp_path: Path):
    model = build("convnet3", 10, 1, 8, 8, 5)
    torch.save(model.state_dict(), tmp_path / "fresh.pth")
    config = replace(QUICK, weights=str(tmp_path / "fresh.pth"))
    with pytest.raises(TeacherError, match=r"reaches \d+\.\d\d % on real images of digits and the floor is 90 %: .*teacher_min_accuracy"):
        squeeze(digits, config, Job(runtime=RUNTIME))
    assert squeeze(digits, replace(config, min_accuracy=0.0), Job(runtime=RUNTIME)).card.accuracy < 50
    with pytest.raises(TeacherError, match="the floor is 99.9 %"):
        squeeze(digits, replace(QUICK, weights=str(teacher.save(tmp_path)), min_accuracy=99.9), Job(runtime=RUNTIME))


def test_a_teacher_of_another_class_order_is_refused(digits: RealSet, teacher: Teacher, tmp_path: Path):
    path = teacher.save(tmp_path)
    turned = replace(digits, info=replace(digits.info, classes=tuple("1023456789")))
    with pytest.raises(TeacherError, match="class 0 is '1' in the data set and '0' in the teacher, class 1 is '0'"):
        squeeze(turned, replace(QUICK, weights=str(path)), Job(runtime=RUNTIME))
    fewer = replace(digits, info=replace(digits.info, classes=tuple("01234")))
    with pytest.raises(TeacherError, match="a teacher for 10 classes, the data set has 5"):
        squeeze(fewer, replace(QUICK, weights=str(path)), Job(runtime=RUNTIME))


def plain(*_: object) -> nn.Module:
    """A network without BatchNorm that is quicker to make than those of the zoo."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_network_without_batchnorm_is_refused(small: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    big = replace(small, info=replace(small.info, size=32))
    with pytest.raises(TeacherError, match="teacher_arch swin_t has no BatchNorm2d layers"):
        squeeze(big, TeacherConfig(arch="swin_t", epochs=1), Job(runtime=RUNTIME))
    monkeypatch.setattr("delt.artifacts.teacher.zoo.build", plain)
    torch.save(plain().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(TeacherError, match="teacher_arch vgg11 has no BatchNorm2d layers"):
        squeeze(small, TeacherConfig(arch="vgg11", weights=str(tmp_path / "plain.pth")), Job(runtime=RUNTIME))


# ---------------------------------------------------------------- several teachers


def test_each_of_several_teachers_is_trained_like_the_first(tmp_path: Path):
    config = replace(QUICK, others=("convnet4-w16", "resnet18"))
    found = backbones(config)
    assert list(found) == ["teacher", "convnet4-w16", "resnet18"] and found["teacher"] == QUICK
    assert found["convnet4-w16"] == replace(QUICK, arch="convnet4", width=16)
    assert found["resnet18"] == replace(QUICK, arch="resnet18", width=None)
    assert backbones(replace(config, weights="IMAGENET1K_V1"))["resnet18"].weights == "IMAGENET1K_V1"
    for place in (str(tmp_path), "some.pth"):
        loaded = backbones(replace(config, weights=place))
        assert (loaded["teacher"].weights, loaded["resnet18"].weights) == (place, "train")


@pytest.mark.parametrize(
    ("others", "same"),
    [(("convnet3-w8",), "teacher_arch"), (("resnet18", "resnet18-w64"), "resnet18"), (("resnet18-w008", "resnet18-w8"), "resnet18-w008")],
)
def test_a_network_that_would_teach_twice_is_refused(others: tuple[str, ...], same: str):
    with pytest.raises(ConfigError, match=f"teacher_others has {others[-1]}, which is {same} already"):
        backbones(replace(QUICK, others=others))


def test_convolutions_are_remembered_over_one_shuffled_pass(small: RealSet, teacher: Teacher):
    """Sorted by class, a batch would vary less than the set does."""
    order = torch.argsort(small.train.labels)
    by_class = replace(small, train=TensorImages(small.train.fetch(order), small.train.labels[order]))
    remember(teacher, by_class, Job(runtime=RUNTIME))
    generator = stream(0, "remember", "convnet3", 8)
    shuffled = torch.randperm(65, generator=generator)
    assert len(by_class.train.labels[shuffled[:10]].unique()) > 4
    batches = [
        pad_crop(normalise(by_class.train.fetch(rows), teacher.card.mean, teacher.card.std), 1, False, generator)
        for rows in (shuffled[:64], shuffled[64:])
    ]
    expected = remember_convolutions(teacher.model, batches, 4)
    assert list(teacher.convolutions) == list(expected) and len(expected) == 3
    assert all(torch.equal(teacher.convolutions[name], expected[name]) for name in expected)
    assert "convolutions" not in str(teacher.card) and not teacher.model.training
