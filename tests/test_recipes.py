"""Student protocols: batch sizes, rates and schedules against the published table."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from delt.errors import ConfigError
from delt.recipes import CHOICES, RECIPES, Case, Recipe, recipe_of

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


@pytest.mark.parametrize(
    ("dataset", "classes", "share"),
    [
        *(("imagenet-1k", 1000, 2), ("imagenet-100", 100, 2), ("imagenette", 10, 1)),
        *(("cifar100", 100, 1), ("tiny-imagenet", 200, 1), ("", 1000, 1)),
    ],
)
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_resnet101_takes_half_where_it_was_published_so(dataset: str, classes: int, share: int, ipc: int):
    paper = recipe_of("paper:delt", dataset, 224, ipc)
    assert paper.batch(classes, ipc, "resnet101") == paper.batch(classes, ipc) // share
    assert recipe_of("common").batch(classes, ipc, "resnet101") == recipe_of("common").batch(classes, ipc)


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_is_never_empty_nor_larger_than_the_set(name: str):
    for classes in (1, 2, 3, 7, 10, 11, 43, 100, 257, 1000, 10450):
        for ipc in (1, 2, 3, 5, 9, 10, 29, 30, 200):
            for dataset in ("", "cifar100", "imagenette"):
                for arch in ("resnet101", "convnet3"):
                    assert 1 <= recipe_of(name, dataset, 32, ipc).batch(classes, ipc, arch) <= classes * ipc


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


# ---------------------------------------------------------------- published protocols

FORMS: list[tuple[str, str, int, int, dict[str, Any]]] = [  # recipe, data set, pixels per side, ipc, what was published
    ("paper:sre2l", "imagenet-1k", 224, 50, {"epochs": 300, "batch": 1024, "accumulate": 2, "optimizer": "adamw", "lr": 1e-3}),
    ("paper:sre2l", "imagenet-1k", 224, 10, {"weight_decay": 0.01, "decay": "matrices", "warmup": 0, "slowdown": 1, "loss": "kl"}),
    ("paper:sre2l", "imagenet-1k", 224, 10, {"mix": "cutmix", "mix_alpha": 1, "smallest_crop": 0.08, "temperature": 20}),
    ("paper:sre2l", "imagenet-1k", 224, 10, {"squared_temperature": False, "report": "best", "test_every": 10, "voters": "first"}),
    ("paper:sre2l", "imagenet-1k", 224, 10, {"label_statistics": "remembered", "shuffle": 1, "pad": 0, "randaugment": False}),
    ("paper:sre2l", "tiny-imagenet", 64, 50, {"epochs": 100, "batch": 256, "accumulate": 1, "optimizer": "sgd", "lr": 0.2}),
    ("paper:sre2l", "tiny-imagenet", 64, 100, {"weight_decay": 1e-4, "decay": "all", "warmup": 5, "mix": "none", "temperature": 20}),
    ("paper:sre2l", "tiny-imagenet", 64, 50, {"squared_temperature": True, "report": "last", "test_every": 1, "smallest_crop": 0.08}),
    ("paper:sre2l", "cifar100", 32, 50, {"epochs": 400, "batch": 128, "accumulate": 1, "optimizer": "adamw", "lr": 1e-3, "pad": 4}),
    ("paper:sre2l", "cifar100", 32, 50, {"weight_decay": 0.01, "decay": "all", "mix": "mixup", "mix_alpha": 0.8, "temperature": 30}),
    ("paper:sre2l", "cifar100", 32, 10, {"label_statistics": "batch", "label_parts": 1, "squared_temperature": False, "report": "last"}),
    ("paper:cda", "imagenet-1k", 224, 200, {"epochs": 300, "batch": 128, "accumulate": 1, "optimizer": "adamw", "lr": 1e-3}),
    ("paper:cda", "imagenet-1k", 224, 50, {"mix": "cutmix", "temperature": 20, "smallest_crop": 0.08, "report": "best"}),
    ("paper:cda", "tiny-imagenet", 64, 50, {"epochs": 100, "batch": 256, "accumulate": 1, "optimizer": "sgd", "lr": 0.2, "warmup": 5}),
    ("paper:cda", "cifar100", 32, 50, {"epochs": 800, "batch": 128, "accumulate": 1, "temperature": 30, "pad": 4, "mix": "mixup"}),
    ("paper:rded", "imagenet-1k", 224, 10, {"shuffle": 2, "smallest_crop": 0.5, "batch": 100, "epochs": 300, "slowdown": 2}),
    (
        "paper:rded",
        "imagenet-1k",
        224,
        50,
        {"batch": 200, "double_forward": True, "randaugment": False, "mix": "cutmix", "temperature": 20},
    ),
    ("paper:rded", "imagenette", 224, 50, {"shuffle": 2, "batch": 100, "report": "best", "test_every": 10, "test_offset": 9}),
    ("paper:rded", "imagenette", 64, 10, {"shuffle": 1, "batch": 50}),
    ("paper:rded", "tiny-imagenet", 64, 1, {"shuffle": 1, "smallest_crop": 1, "batch": 100, "weight_decay": 0.01, "decay": "matrices"}),
    ("paper:rded", "cifar10", 32, 10, {"shuffle": 1, "smallest_crop": 1, "batch": 50, "test_from": 0.8}),
    ("paper:rded", "cifar100", 32, 10, {"shuffle": 1, "smallest_crop": 1, "batch": 100, "lr": 1e-3}),
    ("paper:gvbsm", "imagenet-1k", 224, 50, {"epochs": 300, "batch": 1024, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}),
    ("paper:gvbsm", "imagenet-1k", 224, 10, {"loss": "mse+ce", "ce_weight": 0.1, "voters": "all", "balanced": True, "mix": "cutmix"}),
    ("paper:gvbsm", "imagenet-1k", 224, 10, {"smallest_crop": 0.08, "slowdown": 1, "report": "best", "test_every": 10}),
    ("paper:gvbsm", "cifar10", 32, 10, {"epochs": 1000, "batch": 100, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0}),
    ("paper:gvbsm", "cifar10", 32, 50, {"loss": "mse+ce", "ce_weight": 0.15, "voters": "all", "balanced": False, "accumulate": 1}),
    ("paper:gvbsm", "cifar100", 32, 10, {"epochs": 1000, "batch": 64, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}),
    ("paper:gvbsm", "cifar100", 32, 1, {"ce_weight": 0.15, "balanced": False, "accumulate": 1, "label_statistics": "remembered"}),
    ("paper:gvbsm", "tiny-imagenet", 64, 50, {"epochs": 100, "batch": 100, "accumulate": 2, "optimizer": "sgd", "lr": 0.1}),
    ("paper:gvbsm", "tiny-imagenet", 64, 50, {"weight_decay": 5e-4, "ce_weight": 0.1, "balanced": False, "mix": "cutmix"}),
    ("paper:fadrm", "imagenet-1k", 224, 10, {"epochs": 300, "batch": 16, "accumulate": 2, "optimizer": "adamw", "weight_decay": 0.01}),
    ("paper:fadrm", "imagenet-1k", 224, 10, {"loss": "kl", "temperature": 20, "squared_temperature": False, "mix": "cutmix"}),
    ("paper:fadrm", "imagenet-1k", 224, 10, {"voters": "all", "balanced": False, "label_statistics": "batch", "label_parts": 2}),
    ("paper:fadrm", "imagenette", 224, 10, {"batch": 10, "epochs": 300, "report": "best", "smallest_crop": 0.08, "test_every": 10}),
    ("paper:fadrm", "imagewoof", 224, 10, {"batch": 16, "epochs": 300}),
    *(("paper:fadrm", "cifar100", 32, ipc, {"epochs": 1000, "batch": 16}) for ipc in (1, 10, 50)),
    *(("paper:fadrm", "tiny-imagenet", 64, ipc, {"epochs": epochs}) for ipc, epochs in ((1, 1000), (10, 300), (50, 300))),
    *(
        ("paper:fadrm", dataset, size, ipc, {"lr": lr, "slowdown": eta})
        for dataset, size, row in [
            ("cifar100", 32, ((5e-4, 2), (1e-3, 2), (1e-3, 1))),
            ("tiny-imagenet", 64, ((1e-3, 2), (1e-3, 2), (1e-3, 1))),
            ("imagenet-1k", 224, ((1e-3, 2), (1e-3, 2), (1e-3, 1))),
            ("imagenette", 224, ((5e-4, 2), (5e-4, 1), (5e-4, 2))),
            ("imagewoof", 224, ((5e-4, 2), (5e-4, 1), (1e-3, 2))),
        ]
        for ipc, (lr, eta) in zip((1, 10, 50), row, strict=True)
    ),
]
CLASSES = {"imagenet-1k": 1000, "tiny-imagenet": 200, "cifar100": 100, "cifar10": 10, "imagenette": 10, "imagewoof": 10}


@pytest.mark.parametrize(("name", "dataset", "size", "ipc", "published"), FORMS)
def test_published_forms(name: str, dataset: str, size: int, ipc: int, published: dict[str, Any]):
    recipe = recipe_of(name, dataset, size, ipc)
    found = {field: recipe.batch(CLASSES[dataset], ipc) if field == "batch" else getattr(recipe, field) for field in published}
    assert found == published
    assert recipe.name == name and recipe.cases == ()


def test_published_settings_by_architecture():
    gvbsm = recipe_of("paper:gvbsm", "tiny-imagenet", 64, 50)
    assert [gvbsm.weight_decay_for(arch) for arch in ("resnet18", "resnet50", "resnet101")] == [5e-4, 1e-3, 1e-3]
    assert recipe_of("paper:gvbsm").weight_decay_for("resnet50") == 0.01
    small, other = recipe_of("paper:rded", "cifar100", 32, 10), recipe_of("paper:rded", "cifar10", 32, 10)
    assert (small.rate("convnet3"), small.batch(100, 10, "convnet3"), small.rate("mobilenet_v2")) == (2e-3, 25, 2.5e-3)
    assert (other.rate("convnet3"), other.batch(10, 10, "convnet3")) == (1e-3, 50)
    assert recipe_of("paper:rded").batch(1000, 10, "resnet101") == 100  # halved by DELT alone


@pytest.mark.parametrize("name", RECIPES)
def test_digits_and_own_folders_take_the_general_form(name: str):
    plain = recipe_of(name)
    assert plain == replace(RECIPES[name], cases=())
    for dataset in ("folder:/pictures/cats", "digits"):
        assert recipe_of(name, dataset, 224, 10) == plain
        own = recipe_of(name, dataset, 32, 10)
        assert own == (replace(plain, shuffle=1, smallest_crop=1.0) if name == "paper:rded" else plain)


def test_all_that_a_case_asks_must_hold_and_what_is_unknown_does_not():
    case = Case({}, ("a", "b"), max_size=64, min_ipc=5, max_ipc=10)
    for dataset in ("a", "b", "c", ""):
        for size in (32, 64, 65, None):
            for ipc in (4, 5, 10, 11, None):
                assert case.holds(dataset, size, ipc) == (dataset in ("a", "b") and size in (32, 64) and ipc in (5, 10))
    assert Case({}).holds("", None, None)


def test_cases_apply_in_their_order(monkeypatch: pytest.MonkeyPatch):
    cases = (Case({"lr": 1.0, "epochs": 7}, ("a",)), Case({"lr": 2.0}, max_ipc=9), Case({"lr": 3.0}, ("b",)))
    monkeypatch.setitem(RECIPES, "mine", replace(recipe_of("common"), name="mine", cases=cases))
    forms = [recipe_of("mine", *given) for given in (("a", 8, 1), ("a", 8, 10), ("c", 8, 1), ("b", 8, 1), ("a",))]
    assert [(form.lr, form.epochs) for form in forms] == [(2, 7), (1, 7), (2, 300), (3, 300), (1, 7)]


def test_every_case_changes_fields_that_exist():
    names = {field.name for field in fields(Recipe)} - {"name", "cases"}
    for recipe in RECIPES.values():
        for case in recipe.cases:
            assert case.changes and set(case.changes) <= names
            replace(recipe, **case.changes)  # and only to values that are among the choices


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_that_is_no_choice_is_refused(name: str):
    with pytest.raises(ConfigError, match=f"unknown value for {name} of recipe common 'other'"):
        replace(recipe_of("common"), **{name: "other"})


def test_the_warm_up_is_the_published_line():
    recipe = recipe_of("paper:sre2l", "tiny-imagenet", 64, 50)
    published = {0: 0.002, 1: 0.0416, 2: 0.0812, 3: 0.1208, 4: 0.1604, 5: 0.2}  # the log of sre2l_tiny_4k_ipc50_rn18
    published |= {6: 0.19994532573409263, 20: 0.18794737512064896, 95: 0.0013638696597277674, 99: 5.467426590739509e-05}
    assert {epoch: 0.2 * recipe.factor(epoch, 100) for epoch in published} == pytest.approx(published, rel=1e-9)
    assert [recipe.factor(epoch, 20) for epoch in (0, 1, 20)] == pytest.approx([0.01, 1, 0], abs=1e-12)  # a fifth of the length
    for epochs in (1, 2, 3, 7):
        assert all(0 < recipe.factor(epoch, epochs) <= 1 for epoch in range(epochs))


def test_tests_come_when_they_were_published():
    def tested(name: str, epochs: int, *given: Any) -> list[int]:
        recipe = recipe_of(name, *given)
        return [epoch for epoch in range(epochs) if recipe.tests(epoch, epochs)]

    assert tested("paper:rded", 300) == [249, 259, 269, 279, 289, 299]
    assert tested("paper:rded", 25) == [24]  # 19 lies before the last fifth
    assert tested("paper:delt", 300) == tested("paper:fadrm", 300) == [*range(0, 300, 10), 299]
    assert tested("paper:sre2l", 100, "tiny-imagenet") == list(range(100))


@pytest.mark.parametrize(("ipc", "passes"), [(1, 1000), (10, 1000), (50, 1000), (100, 500), (1000, 50)])
def test_common_caps_the_updates_of_a_student(ipc: int, passes: int) -> None:
    recipe = recipe_of("common", "cifar10", 32, ipc)
    batch = recipe.batch(10, ipc)
    assert recipe.passes(10 * ipc, batch) == passes and passes * math.ceil(10 * ipc / batch) <= recipe.max_updates == 10_000
    assert recipe_of("common", "digits", 8, 5).passes(50, 10) == 300  # the general form is as long as before
    assert recipe_of("paper:delt", "cifar10", 32, 1000).passes(10_000, 100) == 300  # published protocols have no cap


def test_common_has_a_form_of_its_own_on_cifar10_that_keeps_the_rest() -> None:
    general, own = recipe_of("common"), recipe_of("common", "cifar10", 32, 50)
    assert (own.epochs, own.loss, own.ce_weight) == (1000, "mse+ce", 0.1) and (general.epochs, general.loss) == (300, "kl")
    assert replace(own, epochs=300, loss="kl", ce_weight=0.0) == general
