"""Student protocols: batch sizes, rates and schedules against the published table."""

from __future__ import annotations

import math

import pytest

from delt.errors import ConfigError
from delt.recipes import RECIPES, recipe_of

PAPER = recipe_of("paper:delt")


@pytest.mark.parametrize(
    ("classes", "ipc", "batch"),
    [
        *((10, ipc, size) for ipc, size in [(1, 10), (10, 50), (20, 50), (30, 100), (40, 100), (50, 100), (100, 100)]),
        *((100, ipc, size) for ipc, size in [(1, 20), (10, 100), (20, 100), (30, 200), (50, 200), (100, 200)]),
        *((200, ipc, 100) for ipc in (1, 10, 50, 100)),
        *((1000, ipc, size) for ipc, size in [(1, 20), (10, 100), (50, 200), (100, 200)]),
    ],
)
def test_published_batch_sizes(classes: int, ipc: int, batch: int):
    assert PAPER.batch(classes, ipc) == PAPER.batch(classes, ipc, "resnet18") == batch


@pytest.mark.parametrize(("classes", "share"), [(10, 1), (100, 2), (200, 1), (1000, 2)])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_resnet101_takes_half_where_it_was_published_so(classes: int, share: int, ipc: int):
    assert PAPER.batch(classes, ipc, "resnet101") == PAPER.batch(classes, ipc) // share
    assert recipe_of("common").batch(classes, ipc, "resnet101") == recipe_of("common").batch(classes, ipc)


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_is_never_empty_nor_larger_than_the_set(name: str):
    for classes in (1, 2, 3, 7, 10, 11, 43, 100, 257, 1000, 10450):
        for ipc in (1, 2, 3, 5, 9, 10, 29, 30, 200):
            assert 1 <= RECIPES[name].batch(classes, ipc, "resnet101") <= classes * ipc


@pytest.mark.parametrize(("name", "end"), [("paper:delt", 0.5), ("common", 0.0)])
def test_the_rate_falls_along_a_cosine(name: str, end: float):
    recipe, epochs = recipe_of(name), 300
    factors = [recipe.factor(epoch, epochs) for epoch in range(epochs + 1)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(end, abs=1e-12)
    assert all(later < earlier for earlier, later in zip(factors, factors[1:], strict=False))
    reach = 2 if name == "paper:delt" else 1  # published: .5 (1 + cos(pi e / (2 E)))
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * epoch / (reach * epochs))) for epoch in range(epochs + 1)])


def test_published_rates_by_architecture():
    published = {"resnet18": 1e-3, "resnet50": 1e-3, "resnet101": 1e-3, "convnet3": 1e-3, "mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3}
    published |= {"vgg11": 5e-4, "alexnet": 1e-4, "vit_b_16": 1e-4, "swin_v2_t": 1e-4}
    assert {arch: PAPER.rate(arch) for arch in published} == published


def test_published_settings():
    assert (PAPER.epochs, PAPER.temperature, PAPER.weight_decay, PAPER.betas, PAPER.mix, PAPER.mix_alpha) == (
        300,
        20,
        0.01,
        (0.9, 0.999),
        "cutmix",
        1,
    )
    assert PAPER.randaugment and PAPER.double_forward and PAPER.test_every == 10 and PAPER.smallest_crop == 0.25


def test_an_unknown_recipe_is_refused_with_the_nearest():
    assert {name: recipe_of(name).name for name in RECIPES} == {name: name for name in RECIPES}
    with pytest.raises(ConfigError, match="unknown recipe 'paper:delta': did you mean 'paper:delt'?"):
        recipe_of("paper:delta")
