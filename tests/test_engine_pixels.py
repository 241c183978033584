"""What images start from, and what is kept of them; the JPEG and the rounding are in test_stages_recover."""

from __future__ import annotations

import pytest
import torch

from delt.bench import Load, pack_of
from delt.config import RecoverConfig, RuntimeConfig
from delt.data.images import normalise
from delt.engine.pixels import noise, resized, small_side, starting_images
from delt.runtime import resolve

LOAD = Load(8, "resnet18", 4, ipc=4, sub_batches=2, iterations=20, group=8)


def test_noise_is_an_images_own() -> None:
    teacher = LOAD.teacher
    one, two = noise(teacher, [(0, 0), (0, 1), (3, 2)], 5), noise(teacher, [(3, 2), (0, 1)], 5)
    assert torch.equal(one[[2, 1]], two) and not torch.equal(one[0], one[1])
    assert not torch.equal(one, noise(teacher, [(0, 0), (0, 1), (3, 2)], 6))


def test_a_pack_starts_from_its_patches_or_from_noise() -> None:
    task, _ = pack_of(LOAD, resolve(RuntimeConfig(device="cpu")), groups=2)
    assert torch.equal(starting_images(task), noise(LOAD.teacher, task.members, 0))
    task.start = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(starting_images(task), normalise(task.start, LOAD.teacher.card.mean, LOAD.teacher.card.std))


@pytest.mark.parametrize(("size", "share", "side"), [(224, 1.0, 224), (224, 0.857, 192), (32, 0.5, 16), (8, 0.1, 1), (4, 0.1, 1)])
def test_the_small_side_is_a_share_of_the_large_one(size: int, share: float, side: int) -> None:
    assert small_side(size, RecoverConfig(small_side=share)) == side
    images = torch.rand(2, 3, size, size)
    assert resized(images, side).shape[-1] == side and (resized(images, size) is images)
