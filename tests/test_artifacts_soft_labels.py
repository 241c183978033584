"""Soft labels: asked online, or stored and read in the order of the views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from delt.artifacts.soft_labels import FILE, SoftLabels
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.data.views import Batch
from delt.errors import IntegrityError
from delt.models.zoo import build
from delt.storage import write_tensors

EPOCHS, IMAGES, CLASSES = 3, 7, 4


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    classes = tuple("abcd")
    card = TeacherCard("convnet3", 4, classes, 1, 8, (0.5,), (0.5,), "toy", 50.0, "trained", "", {})
    return Teacher(build("convnet3", CLASSES, 1, 8, 4, 0), card)


@pytest.fixture(scope="module")
def stored(teacher: Teacher) -> SoftLabels:
    logits = torch.randn(EPOCHS, IMAGES, CLASSES, generator=torch.Generator().manual_seed(0)).half()
    return SoftLabels(teacher, "common", logits, seed=5, batch=3)


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
    size = (tmp_path / FILE).stat().st_size
    assert EPOCHS * IMAGES * CLASSES * 2 <= size < EPOCHS * IMAGES * CLASSES * 2 + 400  # two bytes each and a header


def test_online_labels_leave_no_file(teacher: Teacher, tmp_path: Path):
    assert SoftLabels(teacher, "common").save(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_damaged_or_foreign_files_are_named(teacher: Teacher, tmp_path: Path):
    with pytest.raises(IntegrityError, match=FILE):
        SoftLabels.load(tmp_path, teacher)
    for tensors, facts in [({"logits": torch.zeros(1)}, {}), ({"other": torch.zeros(1)}, {"recipe": "common", "seed": "0", "batch": "1"})]:
        write_tensors(tmp_path / FILE, tensors, facts)
        with pytest.raises(IntegrityError, match=f"{FILE} holds no soft labels"):
            SoftLabels.load(tmp_path, teacher)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(IntegrityError, match=FILE):
        SoftLabels.load(tmp_path, teacher)
