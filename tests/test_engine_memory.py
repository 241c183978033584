"""How many images pass together: chosen evenly within the memory, halved where it ran out, down to one image."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from delt.bench import Load
from delt.config import RuntimeConfig
from delt.engine import memory
from delt.engine.memory import ENOUGH, SHARE, Split, fitted, fitting
from delt.grouping import make_groups
from delt.runtime import resolve
from delt.schedule import plan


@pytest.mark.parametrize("images", [1, 7, 100])
@pytest.mark.parametrize("groups", [1, 5, 8])
def test_ever_smaller_parts_cover_a_pack_and_end_with_one_image(groups: int, images: int) -> None:
    split: Split | None = Split(groups)
    seen = []
    while split is not None:
        seen.append((split.groups, split.images or images))
        covered = [g for part in split.slices(groups) for g in range(groups)[part]]
        assert covered == list(range(groups))
        assert max(part.stop - part.start for part in split.slices(groups)) == split.groups
        split = split.smaller(images)
    sizes = [g * n for g, n in seen]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) and seen[-1] == (1, 1)
    assert len(seen) <= 2 + math.log2(groups) + math.log2(images) + 1


def test_a_chunk_that_was_cut_for_many_images_is_cut_again_for_few() -> None:
    assert Split(1, 40).smaller(100) == Split(1, 20)
    assert Split(1, 40).smaller(10) == Split(1, 5) and Split(1, 1).smaller(10) is None


def test_parts_are_named_in_words() -> None:
    assert [str(split) for split in (Split(4), Split(1), Split(1, 8), Split(1, 1))] == [
        "4 groups side by side",
        "1 group side by side",
        "8 images of a group at a time",
        "1 image of a group at a time",
    ]


@pytest.mark.parametrize("groups", [1, 5, 10, 500])
@pytest.mark.parametrize(
    ("free", "per_image", "size"), [(80e9, 3e6, 32), (80e9, 15e6, 224), (8e9, 15e6, 224), (1e6, 3e6, 32), (1e15, 1, 8)]
)
def test_packing_fits_is_even_and_no_larger_than_pays(free: float, per_image: int, size: int, groups: int) -> None:
    found = fitting(int(free), per_image, 100, size, groups)
    assert 1 <= found <= groups
    if found > 1:
        assert found * 100 * per_image <= free * SHARE and found * 100 * size**2 <= ENOUGH
        passes = math.ceil(groups / found)
        assert (groups - (passes - 1) * found) > 0 and found - (groups - (passes - 1) * found) < passes  # the last pack is nearly full


def test_on_a_cpu_nothing_is_left_to_choose() -> None:
    runtime = resolve(RuntimeConfig(device="cpu"))
    assert fitted(runtime, Load(8, "resnet18", 4).teacher, []) == runtime and runtime.packing == 1 and runtime.compile == "off"


def test_on_a_gpu_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "taken", lambda teacher, runtime: 3_000_000)
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    open_ = RuntimeConfig(device="cpu", packing=None)
    teacher = Load(32, "resnet18", 4).teacher
    groups = make_groups(10, plan(4000, 50), group_size=100)
    assert fitted(open_, teacher, groups) == replace(open_, packing=2)  # 2.3 would fit
    said = RuntimeConfig(device="cpu", packing=7)
    assert fitted(said, teacher, groups) == said
