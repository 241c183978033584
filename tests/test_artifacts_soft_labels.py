"""Soft labels: asked online, or stored and read in the order of the views."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from delt.artifacts.soft_labels import FILE, SoftLabels, ask, batch_statistics, consensus, set_digest
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.data.views import Batch
from delt.errors import ConfigError, IntegrityError, TeacherError
from delt.models.zoo import build
from delt.recipes import recipe_of
from delt.storage import write_tensors

EPOCHS, IMAGES, CLASSES = 3, 7, 4
COMMON = recipe_of("common")
ALL = replace(COMMON, voters="all")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    classes = tuple("abcd")
    card = TeacherCard("convnet3", 4, classes, 1, 8, (0.5,), (0.5,), False, "toy", 50.0, "trained", "", {})
    return Teacher(build("convnet3", CLASSES, 1, 8, 4, 0), card)


@pytest.fixture(scope="module")
def stored(teacher: Teacher) -> SoftLabels:
    logits = torch.randn(EPOCHS, IMAGES, CLASSES, generator=torch.Generator().manual_seed(0)).half()
    return SoftLabels(teacher, "common", logits, seed=5, batch=3, images_sha256="ab", flip=False)


def batch(count: int) -> Batch:
    index = torch.arange(count)
    return Batch(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), index % CLASSES, index, None)


def test_online_labels_are_the_teachers_own(teacher: Teacher):
    view = batch(5)
    assert torch.equal(SoftLabels(teacher, "common").of(view, 12, 4, COMMON), teacher.model(view.images))


@pytest.mark.parametrize(("epoch", "start", "count"), [(0, 0, 3), (1, 3, 3), (2, 6, 1), (4, 0, 7), (7, 3, 2)])
def test_stored_labels_are_read_by_pass_and_position(stored: SoftLabels, epoch: int, start: int, count: int):
    assert stored.logits is not None
    expected = torch.stack([stored.logits[epoch % EPOCHS][start + row].float() for row in range(count)])
    found = stored.of(batch(count), epoch, start, ALL)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_what_is_saved_comes_back(stored: SoftLabels, tmp_path: Path):
    assert stored.logits is not None
    assert stored.save(tmp_path) == [tmp_path / FILE]
    back = SoftLabels.load(tmp_path, stored.teacher)
    assert back.logits is not None and torch.equal(back.logits, stored.logits) and back.logits.dtype == torch.float16
    assert (back.recipe, back.seed, back.batch, back.teacher) == ("common", 5, 3, stored.teacher)
    assert (back.images_sha256, back.flip) == ("ab", False)
    replace(stored, flip=True).save(tmp_path)
    assert SoftLabels.load(tmp_path, stored.teacher).flip is True
    size = (tmp_path / FILE).stat().st_size
    assert EPOCHS * IMAGES * CLASSES * 2 <= size < EPOCHS * IMAGES * CLASSES * 2 + 500  # two bytes each and a header


def test_online_labels_leave_no_file(teacher: Teacher, tmp_path: Path):
    assert SoftLabels(teacher, "common").save(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_damaged_or_foreign_files_are_named(teacher: Teacher, tmp_path: Path):
    with pytest.raises(IntegrityError, match=FILE):
        SoftLabels.load(tmp_path, teacher)
    good = {"recipe": "common", "seed": "0", "batch": "1", "images_sha256": "", "flip": "no"}
    whole, other = {"logits": torch.zeros(1)}, {"other": torch.zeros(1)}
    nameless = {name: fact for name, fact in good.items() if name != "images_sha256"}
    bad = [nameless, {**good, "flip": "maybe"}, {**good, "seed": "x"}, {}]
    for tensors, facts in [(other, good), *((whole, facts) for facts in bad)]:
        write_tensors(tmp_path / FILE, tensors, facts)
        with pytest.raises(IntegrityError, match=f"{FILE} holds no soft labels"):
            SoftLabels.load(tmp_path, teacher)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(IntegrityError, match=FILE):
        SoftLabels.load(tmp_path, teacher)


def test_the_digest_is_of_pixels_labels_and_shape():
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    labels = torch.tensor([0, 1])
    digest = set_digest(images, labels)
    turned = images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)  # the same pixels, another order in memory
    assert digest == set_digest(images.clone(), labels.clone()) == set_digest(turned, labels) and len(digest) == 64
    other = images.clone()
    other[1, 2, 3, 3] ^= 1
    changed = [(other, labels), (images, labels.flip(0)), (images.flip(0), labels), (images.view(2, 3, 2, 8), labels)]
    assert len({digest, *(set_digest(*pair) for pair in changed)}) == 5


def test_stored_labels_serve_only_their_own_set(teacher: Teacher):
    images, labels = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % CLASSES
    recipe = recipe_of("common")
    batch, sha = recipe.batch(CLASSES, 2), set_digest(images, labels)
    good = SoftLabels(teacher, "common", torch.zeros(2, 8, CLASSES), 0, batch, sha, flip=False)
    good.check(images, labels, recipe)
    SoftLabels(teacher, "").check(images, labels, recipe)  # asked online: they fit any set
    wrong = {"recipe": ("paper:delt", "common"), "images_sha256": ("cd", sha), "flip": (True, False)}
    for name, (own, asked) in wrong.items():
        word = name.replace("images_sha256", "sha256 of the images")
        with pytest.raises(ConfigError, match=f"another set or recipe .{word}: {own} in the labels, {asked} in the training.: relabel"):
            replace(good, **{name: own}).check(images, labels, recipe)
    with pytest.raises(ConfigError, match=r"sha256 of the images: .*; recipe: common in the labels, paper:delt in the training"):
        good.check(images + 1, labels, recipe_of("paper:delt"))
    with pytest.raises(ConfigError, match="sha256 of the images: not recorded in the labels"):
        replace(good, images_sha256="").check(images, labels, recipe)
    with pytest.raises(ConfigError, match=r"\(images: 8 in the labels, 4 in the training"):
        good.check(images[:4], labels[:4], recipe)


# ---------------------------------------------------------------- several teachers


@pytest.fixture(scope="module")
def others(teacher: Teacher) -> tuple[Teacher, ...]:
    """Two more backbones; the statistics of one were moved, and it drops out in training."""
    made = [build("convnet3", CLASSES, 1, 8, 6, 1), build("resnet18", CLASSES, 1, 8, 4, 2)]
    with torch.no_grad():
        made[1].train()(3 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 1)
    made[1].fc = nn.Sequential(nn.Dropout(0.5), made[1].fc)
    return tuple(Teacher(model, replace(teacher.card, arch=arch)) for model, arch in zip(made, ("convnet3", "resnet18"), strict=True))


def test_who_labels_is_the_recipes_choice(teacher: Teacher, others: tuple[Teacher, ...]):
    view, soft = batch(5), SoftLabels(teacher, "common", others=others)
    own = teacher.logits(view.images)
    votes = [own, *(other.logits(view.images) for other in others)]
    assert torch.equal(soft.of(view, 0, 0, COMMON), own)
    torch.testing.assert_close(soft.of(view, 0, 0, ALL), sum(votes) / 3)
    assert torch.equal(SoftLabels(teacher, "common").of(view, 0, 0, replace(ALL, balanced=True)), own)  # alone: nothing to balance
    torch.testing.assert_close(soft.of(view, 0, 0, replace(ALL, balanced=True)), consensus(votes, balanced=True))


def test_balanced_votes_have_one_norm():
    generator = torch.Generator().manual_seed(3)
    votes = [scale * torch.randn(5, 4, generator=generator, dtype=torch.float64) for scale in (0.1, 1.0, 30.0)]
    norms = [sum(value**2 for row in vote.tolist() for value in row) ** 0.5 for vote in votes]
    plain, balanced = consensus(votes), consensus(votes, balanced=True)
    for row in range(5):
        for label in range(4):
            numbers = [float(vote[row, label]) for vote in votes]
            assert plain[row, label].item() == pytest.approx(sum(numbers) / 3)
            scaled = [number / norm * sum(norms) / 3 for number, norm in zip(numbers, norms, strict=True)]
            assert balanced[row, label].item() == pytest.approx(sum(scaled) / 3)
    assert consensus([torch.zeros(2, 2), torch.ones(2, 2)], balanced=True).isfinite().all()


def test_teachers_of_other_classes_or_images_cannot_label_together(teacher: Teacher):
    for change in ({"classes": tuple("abdc")}, {"size": 16}, {"mean": (0.4,)}, {"std": (0.4,)}, {"channels": 3}):
        other = Teacher(teacher.model, replace(teacher.card, arch="vgg11", **change))
        with pytest.raises(TeacherError, match=f"vgg11 cannot label beside convnet3: {next(iter(change))} differ; squeeze"):
            SoftLabels(teacher, "common", others=(other,))


@pytest.mark.parametrize(("count", "parts", "sizes"), [(6, 1, [6]), (6, 2, [3, 3]), (7, 2, [4, 3]), (3, 2, [3])])
def test_labels_by_the_batchs_statistics(others: tuple[Teacher, ...], count: int, parts: int, sizes: list[int]):
    """Against a copy of the teacher whose BatchNorm layers, and no others, are put into training mode."""
    teacher, view = others[1], batch(count)
    before, modes = teacher.to_bytes(), [module.training for module in teacher.model.modules()]
    tracked = [layer.track_running_stats for layer in teacher.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    found = ask(teacher, view.images, replace(COMMON, label_statistics="batch", label_parts=parts))
    model = copy_of(teacher)
    expected = torch.cat([model(part) for part in view.images.split(sizes)])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, teacher.logits(view.images), atol=1e-3)
    assert teacher.to_bytes() == before and [module.training for module in teacher.model.modules()] == modes
    assert [layer.track_running_stats for layer in teacher.model.modules() if isinstance(layer, nn.BatchNorm2d)] == tracked


def copy_of(teacher: Teacher) -> nn.Module:
    model = copy.deepcopy(teacher.model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    return model


def test_the_teachers_come_back_whole_after_an_error(others: tuple[Teacher, ...]):
    model = others[1].model
    with pytest.raises(RuntimeError, match="stop"), batch_statistics(model):
        assert sum(module.training for module in model.modules()) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        raise RuntimeError("stop")
    assert not any(module.training for module in model.modules())
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))
