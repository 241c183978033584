"""Epochs of augmented batches: replayable from their key, every image once per pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from delt.data.images import TensorImages, normalise
from delt.data.views import Batch, Views, safe_batch
from delt.recipes import Recipe, recipe_of

MEAN, STD = (0.3, 0.5, 0.4), (0.2, 0.3, 0.25)
PLAIN = replace(recipe_of("common"), mix="none", smallest_crop=1.0)
RECIPES = {
    "common": recipe_of("common"),
    "paper:delt": recipe_of("paper:delt"),
    "mixup": replace(recipe_of("common"), mix="mixup", mix_alpha=0.8),
    "plain": PLAIN,
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
        if batch.mix:
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


def test_no_pass_ends_in_a_batch_of_one():
    for count in range(2, 120):
        for batch in range(2, 40):
            size = safe_batch(count, batch)
            assert size >= batch and len(torch.arange(count).split(size)[-1]) > 1
            assert size == batch or len(torch.arange(count).split(batch)[-1]) == 1  # changed only where it must be
    assert safe_batch(10, 1) == 1
