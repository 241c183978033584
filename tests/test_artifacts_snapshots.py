"""Snapshots: an exact round trip through one file, and the order in which a class is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from delt.artifacts.snapshots import FILE, Snapshots
from delt.errors import IntegrityError


def make(images: int = 6) -> Snapshots:
    draws = torch.Generator().manual_seed(0)
    return Snapshots(
        images=torch.randint(0, 256, (4, images, 1, 3, 3), dtype=torch.uint8, generator=draws),
        iterations=torch.tensor([0, 5, 10, 15]).unsqueeze(1).expand(-1, images),
        labels=torch.tensor([0, 1, 0, 1, 0, 1])[:images],
        sub_batch=torch.tensor([0, 0, 2, 1, 1, 1])[:images],
        readings=[{"group": "0.0-1.2", "iteration": 0, "cross_entropy": [1.5, 0.25], "bn": 3.125}],
    )


@pytest.mark.parametrize("images", [0, 6])
def test_round_trip_is_exact(tmp_path: Path, images: int) -> None:
    made = make(images)
    assert made.save(tmp_path) == [tmp_path / FILE]
    read = Snapshots.load(tmp_path)
    for name in ("images", "iterations", "labels", "sub_batch"):
        one, other = getattr(made, name), getattr(read, name)
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other), name
    assert read.readings == made.readings
    data = (tmp_path / FILE).read_bytes()
    read.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == data


def test_of_class_shows_early_sub_batches_first() -> None:
    made = make()
    assert torch.equal(made.of_class(0), made.images[:, [0, 4, 2]])
    assert torch.equal(made.of_class(1), made.images[:, [1, 3, 5]])
    assert made.of_class(7).shape == (4, 0, 1, 3, 3)


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, cut: int) -> None:
    with pytest.raises(IntegrityError, match=FILE):
        Snapshots.load(tmp_path)
    path = make().save(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError, match=FILE):
        Snapshots.load(tmp_path)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    from delt import storage

    tensors = {name: getattr(make(), name) for name in ("images", "iterations", "labels", "sub_batch")}
    for wrong, meta in [
        ({"images": tensors["images"]}, {"readings": "[]"}),
        ({**tensors, "more": tensors["labels"]}, {"readings": "[]"}),
        (tensors, {}),
        (tensors, {"readings": "[NaN]"}),
        (tensors, {"readings": "[["}),
    ]:
        storage.write_tensors(tmp_path / FILE, wrong, meta)
        with pytest.raises(IntegrityError, match=FILE):
            Snapshots.load(tmp_path)
