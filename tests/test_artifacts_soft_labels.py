"""Soft labels: asked online, or stored and read in the order of the views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from delt.artifacts.soft_labels import FILE, SoftLabels, set_digest
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.data.views import Batch
from delt.errors import ConfigError, IntegrityError
from delt.models.zoo import build
from delt.recipes import recipe_of
from delt.storage import write_tensors

EPOCHS, IMAGES, CLASSES = 3, 7, 4


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
    assert torch.equal(SoftLabels(teacher, "common").of(view, 12, 4), teacher.model(view.images))


@pytest.mark.parametrize(("epoch", "start", "count"), [(0, 0, 3), (1, 3, 3), (2, 6, 1), (4, 0, 7), (7, 3, 2)])
def test_stored_labels_are_read_by_pass_and_position(stored: SoftLabels, epoch: int, start: int, count: int):
    assert stored.logits is not None
    expected = torch.stack([stored.logits[epoch % EPOCHS][start + row].float() for row in range(count)])
    found = stored.of(batch(count), epoch, start)
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
