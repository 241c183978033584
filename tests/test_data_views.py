"""Epochs of augmented batches: replayable from their key, every image once per pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from delt.data import views as module
from delt.data.augment import random_resized_crop
from delt.data.images import TensorImages, normalise
from delt.data.views import Batch, Views, parts_of, passes_at_once, safe_batch, together
from delt.recipes import Recipe, recipe_of

MEAN, STD = (0.3, 0.5, 0.4), (0.2, 0.3, 0.25)
PLAIN = replace(recipe_of("common"), mix="none", smallest_crop=1.0)
RECIPES = {
    "common": recipe_of("common"),
    "paper:delt": recipe_of("paper:delt"),
    "mixup": replace(recipe_of("common"), mix="mixup", mix_alpha=0.8),
    "plain": PLAIN,
    "shuffled": replace(recipe_of("common"), shuffle=2),
    "shifted": replace(recipe_of("common"), pad=2),
}


def pictures(count: int) -> TensorImages:
    generator = torch.Generator().manual_seed(count)
    return TensorImages(torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(count) % 5)


def views(recipe: Recipe = RECIPES["common"], *key: object, batch: int = 6, flip: bool = True, period: int | None = None) -> Views:
    return Views(recipe, MEAN, STD, flip, batch, key or ("student", 0), period)


def columns(batches: Iterator[Batch]) -> list[Tensor]:
    """Everything in a pass, as tensors to compare."""
    parts = []
    for batch in batches:
        parts += [batch.images, batch.labels, batch.index]
        parts += [batch.mix.partner, torch.tensor(batch.mix.share)] if batch.mix else []
        parts += batch.others or ()
    return parts


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_a_pass_is_a_function_of_key_and_epoch(name: str):
    images, made = pictures(20), views(RECIPES[name], "student", 3)
    first = columns(made.epoch(images, 4))
    torch.rand(9)
    list(made.epoch(images, 5))
    assert same(columns(views(RECIPES[name], "student", 3).epoch(images, 4)), first)
    for other, epoch in [(made, 5), (views(RECIPES[name], "student", 4), 4), (views(RECIPES[name], "relabel", 3), 4)]:
        assert not same(columns(other.epoch(images, epoch)), first)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13, 20])
def test_every_image_once_per_pass_with_its_label(name: str, count: int):
    images, made = pictures(count), views(RECIPES[name])
    batches = list(made.epoch(images, 1))
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(count))
    assert len(batches) == made.steps(images)
    for batch in batches:
        assert torch.equal(batch.labels, images.labels[batch.index])
        assert batch.images.shape == (len(batch.index), 3, 8, 8) and batch.images.dtype == torch.float32
        assert (batch.mix is None) == (name == "plain")
        if batch.mix and batch.others:
            assert torch.equal(batch.others[0], batch.labels[batch.mix.partner]) and batch.others[1] == torch.tensor(batch.mix.share)
            assert sorted(batch.mix.partner.tolist()) == list(range(len(batch.index))) and 0 <= batch.mix.share <= 1


def test_without_crop_and_mix_a_view_is_the_image():
    images = pictures(13)
    for batch in views(PLAIN, flip=False).epoch(images, 0):
        assert torch.equal(batch.images, normalise(images.pixels[batch.index], MEAN, STD))
    mirrored = 0
    for batch in views(PLAIN, flip=True).epoch(images, 0):
        for view, row in zip(batch.images, batch.index, strict=True):
            image = normalise(images.pixels[row][None], MEAN, STD)[0]
            assert torch.equal(view, image) or torch.equal(view, image.flip(-1))
            mirrored += torch.equal(view, image.flip(-1))
    assert 0 < mirrored < 13


def test_mixup_blends_with_the_partner():
    images = pictures(12)
    for batch in views(replace(PLAIN, mix="mixup"), flip=False).epoch(images, 2):
        assert batch.mix
        own = normalise(images.pixels[batch.index], MEAN, STD)
        for row, partner in enumerate(batch.mix.partner.tolist()):
            torch.testing.assert_close(batch.images[row], batch.mix.share * own[row] + (1 - batch.mix.share) * own[partner])


def test_cutmix_pastes_the_partner_on_the_share_that_is_left():
    images = pictures(40)
    for batch in views(replace(PLAIN, mix="cutmix"), flip=False, batch=4).epoch(images, 2):
        assert batch.mix
        own = normalise(images.pixels[batch.index], MEAN, STD)
        for row, partner in enumerate(batch.mix.partner.tolist()):
            kept = (batch.images[row] == own[row]).all(0)
            assert torch.equal(batch.images[row][:, ~kept], own[partner][:, ~kept])
            assert partner == row or kept.float().mean() == pytest.approx(batch.mix.share)


def test_passes_repeat_after_the_period():
    images, made = pictures(9), views(RECIPES["common"], "relabel", 0, period=3)
    passes = [columns(made.epoch(images, epoch)) for epoch in range(7)]
    for one in range(7):
        for other in range(7):
            assert same(passes[one], passes[other]) == (one % 3 == other % 3)
    endless = views(RECIPES["common"], "relabel", 0)
    assert same(columns(endless.epoch(images, 2)), passes[5]) and not same(columns(endless.epoch(images, 5)), passes[5])


@pytest.mark.parametrize("period", [None, 7])
@pytest.mark.parametrize("name", RECIPES)
def test_passes_made_at_once_are_those_made_alone(name: str, period: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, and with a last batch that is smaller."""
    images, order = pictures(20), [0, 1, 2, 5, 3, 7, 4, 11]
    many = views(RECIPES[name], period=period)
    monkeypatch.setattr(module, "PASSES", 4)
    found = [columns(many.epoch(images, epoch)) for epoch in order]
    assert len(many.made.passes) == (3 if period else 4)
    monkeypatch.setattr(module, "PASSES", 1)
    alone = views(RECIPES[name], period=period)
    for epoch, ours in zip(order, found, strict=True):
        assert same(ours, columns(alone.epoch(images, epoch)))
    assert not alone.made.passes
    other = pictures(19)
    assert same(columns(many.epoch(other, 11)), columns(alone.epoch(other, 11)))


@pytest.mark.parametrize(("count", "size", "passes"), [(50, 8, 16), (500, 8, 2), (100, 32, 1), (5, 224, 1)])
def test_as_many_passes_at_once_as_the_caches_hold(count: int, size: int, passes: int) -> None:
    images = TensorImages(torch.zeros(count, 3, size, size, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    assert passes_at_once(images) == passes
    assert module.AHEAD["cuda"] == module.TOGETHER >= module.AHEAD["cpu"]


class Operators(TorchDispatchMode):
    """Counts what torch is told to do."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_passes_made_at_once_are_little_work_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that are trained side by side wait for each other's Python: with RandAugment one pass alone takes a thousand operators."""
    images = TensorImages(torch.zeros(100, 3, 32, 32, dtype=torch.uint8), torch.arange(100) % 10)

    def operators(at_once: int) -> float:
        monkeypatch.setitem(module.AHEAD, "cpu", at_once)
        made = views(RECIPES["paper:delt"], batch=50)
        with Operators() as seen:
            for epoch in range(16):
                list(made.epoch(images, epoch))
        return seen.count / 16

    assert operators(module.TOGETHER) < 150 < 800 < operators(1)


def test_no_pass_ends_in_a_batch_of_one():
    for count in range(2, 120):
        for batch in range(2, 40):
            size = safe_batch(count, batch)
            assert size >= batch and len(torch.arange(count).split(size)[-1]) > 1
            assert size == batch or len(torch.arange(count).split(batch)[-1]) == 1  # changed only where it must be
    assert safe_batch(10, 1) == 1


def test_shuffled_views_hold_the_patches_of_their_image():
    images = pictures(13)
    moved = 0
    for batch in views(replace(PLAIN, shuffle=2), flip=False).epoch(images, 0):
        for view, row in zip(batch.images, batch.index, strict=True):
            image = normalise(images.pixels[row][None], MEAN, STD)[0]
            orders = [image, image.roll(4, 1), image.roll(4, 2), image.roll((4, 4), (1, 2))]
            assert any(torch.equal(view, other) for other in orders)
            moved += not torch.equal(view, image)
    assert 3 < moved <= 13


def test_shifted_views_come_in_over_black():
    images = TensorImages(torch.full((30, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(30, dtype=torch.int64))
    black, white = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8), MEAN, STD)[0] for value in (0, 255))
    edges = []
    for batch in views(replace(PLAIN, pad=2), flip=True).epoch(images, 0):
        for view in batch.images:
            dark = (view == black).all(0)
            assert torch.equal(view == black, dark.expand(3, 8, 8)) and (view == white)[:, ~dark].all()
            edges.append((int(dark.all(1).sum()), int(dark.all(0).sum())))
    assert {edge for pair in edges for edge in pair} == {0, 1, 2}


def test_the_patches_change_places_before_the_crop(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def noted(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (order.append(name), made(*given))[1]

    for name in ("shuffle_patches", "random_resized_crop", "pad_crop", "mixed"):
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    list(views(RECIPES["shuffled"], batch=99).epoch(pictures(9), 0))
    list(views(RECIPES["shifted"], batch=99).epoch(pictures(9), 0))
    assert order == ["shuffle_patches", "random_resized_crop", "mixed", "pad_crop", "mixed"]


def test_what_a_recipe_does_not_use_draws_nothing():
    """The views of recipes without patches and shifts are what they were before there were any."""
    images = pictures(9)
    (batch,) = views(RECIPES["common"], "student", 0, batch=9).epoch(images, 2)
    generator = module.stream("student", 0, 2)
    order = torch.randperm(9, generator=generator)
    crops = random_resized_crop(normalise(images.pixels[order], MEAN, STD), 0.5, True, generator)
    mix = module.draw_cutmix(9, 8, 1.0, generator)
    assert torch.equal(batch.images, module.mixed(crops, [mix])[0]) and batch.mix and torch.equal(batch.mix.partner, mix.partner)


def test_no_part_of_a_batch_is_a_single_image():
    for count in range(1, 40):
        images = torch.arange(count)
        for parts in (1, 2, 3, 8):
            cut = parts_of(images, parts)
            assert torch.equal(torch.cat(cut), images) and len(cut) <= parts
            sizes = [len(part) for part in cut]
            assert max(sizes) - min(sizes) <= 1 and (min(sizes) > 1 or count == 1)
            assert len(cut) == parts or count < 2 * parts


@pytest.mark.parametrize(("batch", "size", "images"), [(50, 32, 4050), (128, 32, 4096), (100, 224, 100), (7, 64, 1022), (5000, 32, 5000)])
def test_whole_batches_of_a_bounded_number_of_pixels_are_augmented_at_once(batch: int, size: int, images: int) -> None:
    assert together(batch, size) == images and images % batch == 0


def test_views_made_together_are_those_of_one_pass_whatever_the_batch_is_cut_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches follow the order of the pass, and each image keeps its label and row."""
    pixels = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8).contiguous()
    plain = replace(recipe_of("common"), mix="none", smallest_crop=1.0)
    images = TensorImages(pixels, torch.arange(40) % 7)
    views = Views(plain, (0.0,), (1 / 255,), False, 6, ("key",))
    for pixels_at_once in (1, 6 * 64, 18 * 64, 2**22):
        monkeypatch.setattr("delt.data.views.TOGETHER", pixels_at_once)
        batches = list(views.epoch(images, 3))
        assert [len(batch.index) for batch in batches] == [6] * 6 + [4]
        for batch in batches:
            assert torch.equal(batch.images[:, 0, 0, 0].round().long(), batch.index) and torch.equal(batch.labels, batch.index % 7)
        assert sorted(int(row) for batch in batches for row in batch.index) == list(range(40))
