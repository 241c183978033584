"""Methods as rows: the order in which settings are filled, and what is refused."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from delt.config import flatten
from delt.errors import ConfigError
from delt.methods import CONTROLS, METHODS, Method, changed, configure, control_of, register, require_size, said


def test_order_preset_fidelity_method_user():
    assert configure("cifar10").recover.iterations == 4000  # the fields' own defaults
    assert configure("digits") == configure("digits", preset="demo")  # no paper has a protocol for it
    assert configure("digits", preset="paper").recover.iterations == 4000
    assert configure("digits").teacher.pad == 1  # what suits the data set
    assert configure("digits", preset="demo").recover.iterations == 400
    assert configure("digits", preset="demo", method="random").recover.iterations == 0  # the method beats the preset
    assert configure("digits", preset="demo", iterations=80).recover.iterations == 80  # and the user beats all
    assert configure("cifar10", fidelity="strict").recover.save == "jpeg75"
    assert configure("cifar10", fidelity="strict", recover_save="png").recover.save == "png"


def test_published_defaults():
    recover = configure("imagenet-1k", ipc=50).recover
    assert (recover.iterations, recover.round_iterations, recover.sub_batches) == (4000, 500, 8)
    assert (recover.lr, recover.bn_weight, recover.first_bn_multiplier, recover.jitter, recover.min_crop) == (0.25, 0.01, 10, 0, 0.08)
    assert (recover.beta1, recover.beta2, recover.group_size, recover.curriculum) == (0.5, 0.9, 100, "cosine")
    cda = configure("imagenet-1k", method="cda", ipc=50)
    assert (cda.rank.keep, cda.recover.grouping, cda.recover.sub_batches, cda.recover.jitter) == ("noise", "mixed", 1, 32)
    tiny = configure("tiny-imagenet", method="cda").recover
    assert (tiny.lr, tiny.bn_weight, tiny.jitter) == (0.4, 0.05, 4)


def test_schedule_numbers_are_filled_in():
    recover = configure("digits", ipc=5, iterations=100).recover
    assert (recover.sub_batches, recover.round_iterations) == (5, 20)
    recover = configure("digits", ipc=5, iterations=100, round_iterations=50).recover
    assert (recover.sub_batches, recover.round_iterations) == (2, 50)


@pytest.mark.parametrize("preset", ["demo", "smoke", "paper"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "tiny-imagenet", "imagenet-1k", "folder:/anywhere"])
def test_every_combination_is_valid(dataset, method, preset):
    config = configure(dataset, method=method, preset=preset)
    assert changed(config, {}) == config  # complete: nothing is left to derive
    assert flatten(config)["recover_flip"] is (dataset != "digits")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "detl"}, "unknown method 'detl': did you mean 'delt'"),
        ({"preset": "dmo"}, "unknown preset 'dmo': did you mean 'demo'"),
        ({"fidelity": "exact"}, "unknown fidelity 'exact'"),
        ({"evaluate_recipe": "comon"}, "unknown recipe 'comon': did you mean 'common'"),
        ({"techer_epochs": 3}, "unknown setting 'techer_epochs': did you mean 'teacher_epochs'"),
        ({"ipc": 5, "sub_batches": 6}, "sub_batches is 6 with ipc 5"),
        ({"ipc": 5, "iterations": 100, "sub_batches": 5, "round_iterations": 25}, "lower round_iterations to at most 24"),
        ({"method": "random", "iterations": 10}, "method random means 0"),
        ({"method": "cda", "sub_batches": 4}, "method cda means 1"),
        ({"evaluate_students": ""}, "students is empty"),
        ({"evaluate_labels": []}, "labels is empty"),
        ({"seed": 10**20}, "seed is 1"),
        ({"dataset": 5}, "dataset is 5"),
        ({"method": ["delt"]}, "unknown method"),
        ({"ipc": "five"}, "ipc is 'five'"),
        ({"data_classes": ["1"]}, "data_classes is 1; allowed are two classes or more"),
        ({"dataset": "cifar10", "data_classes": "cat,hors"}, "unknown class of cifar10 'hors': did you mean 'horse'"),
        ({"data_hold_out": 0.95}, "hold_out is 0.95; allowed is between 0 and 0.9"),
        ({"rank_folder": "/images"}, "rank_folder is for rank_keep given, and it is medium: leave it out, or choose method given"),
        ({"method": "given", "iterations": 10}, "method given means 0"),
        ({"method": "given", "rank_keep": "random"}, "method given means 'given'"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ConfigError, match=message):
        configure(**{"dataset": "digits", **given})


def test_unknown_data_set():
    with pytest.raises(ConfigError, match="unknown data set 'cifar-10': did you mean 'cifar10'"):
        configure("cifar-10")


def test_changed_derives_the_schedule_anew():
    config = configure("digits", ipc=10, iterations=800)
    assert (config.recover.sub_batches, config.recover.round_iterations) == (8, 100)
    fewer = changed(config, {"ipc": 4})
    assert (fewer.recover.sub_batches, fewer.recover.round_iterations) == (4, 200)
    assert changed(config, {"teacher_epochs": 3}).recover == config.recover


def test_numbers_that_somebody_chose_stay():
    cda = configure("digits", method="cda", ipc=5, iterations=100)
    assert changed(cda, {"iterations": 40}).recover.sub_batches == 1  # the method's choice
    two = configure("digits", ipc=6, iterations=100, sub_batches=2)
    assert (changed(two, {"ipc": 8}).recover.sub_batches, changed(two, {"iterations": 60}).recover.round_iterations) == (2, 30)
    uneven = configure("digits", ipc=6, iterations=100, round_iterations=20, sub_batches=2)
    assert changed(uneven, {"ipc": 8}).recover.round_iterations == 20
    assert changed(uneven, {"round_iterations": 50}).recover.sub_batches == 2


@pytest.mark.parametrize("method", ["sre2l", "fadrm", "gvbsm"])
def test_a_locked_schedule_stays_where_it_is_the_usual_one(method):
    """With one image per class, or nothing optimised, M is 1 for every method."""
    one, still = (configure("digits", method=method, **given) for given in ({"ipc": 1}, {"iterations": 0}))
    assert changed(one, {"ipc": 10}).recover.sub_batches == 1 == changed(still, {"iterations": 100}).recover.sub_batches
    assert changed(one, {"ipc": 10}) == configure("digits", method=method, ipc=10)


@pytest.mark.parametrize(
    "given", [{"method": "random"}, {"preset": "demo"}, {"fidelity": "strict"}, {"dataset": "cifar10"}, {"method": "bogus"}]
)
def test_what_the_rest_starts_from_cannot_be_changed_afterwards(given):
    config = configure("digits", preset="smoke")
    (name, value), *_ = given.items()
    with pytest.raises(ConfigError, match=f"made for {name} .*, not {value}: start anew"):
        changed(config, given)
    assert changed(config, {name: getattr(config, name)}) == config


def test_every_documented_value_can_be_said():
    assert configure("imagenet-1k").teacher.weights == "IMAGENET1K_V1"
    assert configure("imagenet-1k", teacher_weights="train").teacher.weights == "train"
    assert configure("imagenet-1k", data_classes="n01440764,n02102040").teacher.weights == "train"
    assert configure("digits", preset="smoke", rank_images=0).rank.images == 0
    assert configure("digits", preset="demo", teacher_arch="mobilenet_v2").teacher.width is None  # 32 was chosen for convnet3


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"preset": "demo"},
        {"preset": "smoke", "ipc": 7, "teacher_epochs": 9, "evaluate_students": "convnet4"},
        {"method": "cda", "fidelity": "strict", "iterations": 60},
        {"method": "random", "seed": 4},
        {"preset": "demo", "sub_batches": 2, "round_iterations": 80},  # one at its usual value, one not
        {"preset": "demo", "sub_batches": 5, "round_iterations": 20},
        {"ipc": 6, "iterations": 100, "sub_batches": 2, "round_iterations": 30, "evaluate_controls": []},
    ],
)
def test_what_was_said_makes_the_configuration_again(given):
    config = configure("digits", **given)
    assert configure(**said(config)) == config
    assert len(said(config)) <= 4 + len(given) + 2  # where it starts from, what was given, and the schedule that follows


@pytest.mark.parametrize(
    ("method", "recipe"),
    [("delt", "paper:delt"), ("sre2l", "paper:sre2l"), ("cda", "paper:cda"), ("delt+cda", "paper:cda"), ("rded", "paper:rded")],
)
def test_paper_is_the_methods_own_recipe(method, recipe):
    config = configure("digits", method=method, preset="smoke", evaluate_recipe="paper")
    assert config.evaluate.recipe == recipe
    assert configure(**said(config)) == config and said(config)["evaluate_recipe"] == recipe
    plain = configure("digits", method=method, preset="smoke")
    assert plain.evaluate.recipe == "common" and changed(plain, {"evaluate_recipe": "paper"}) == config
    assert control_of(config, "random").evaluate.recipe == recipe  # the control is trained as the method is


@pytest.mark.parametrize("method", ["random", "herding", "kmeans"])
def test_what_was_never_published_has_no_recipe_of_its_own(method):
    message = (
        f"^evaluate_recipe is paper, but no protocol was published for method {method}; possible are common, paper:delt, .*paper:fadrm$"
    )
    with pytest.raises(ConfigError, match=message):
        configure("digits", method=method, evaluate_recipe="paper")
    with pytest.raises(ConfigError, match=message):
        changed(configure("digits", method=method), {"evaluate_recipe": "paper"})
    assert configure("digits", method=method, evaluate_recipe="paper:rded").evaluate.recipe == "paper:rded"


def test_every_published_protocol_is_named_in_the_help():
    from delt.config import flat_fields
    from delt.recipes import RECIPES

    (text,) = [entry.help for entry in flat_fields() if entry.name == "evaluate_recipe"]
    assert all(name in text for name in RECIPES)


def test_controls_differ_from_the_run_only_where_they_must():
    config = configure("digits", ipc=5, preset="demo")
    single = control_of(config, "one_sub_batch")
    assert single.recover.sub_batches == 1 and single.rank == config.rank and single.teacher == config.teacher
    start = control_of(config, "start")
    assert start.recover.iterations == 0 and start.rank == config.rank
    random = control_of(config, "random")
    assert (random.method, random.rank.keep, random.rank.images, random.recover.iterations) == ("random", "random", 0, 0)
    assert {single.seed, start.seed, random.seed} == {config.seed}


def test_a_run_that_is_its_own_control_has_none():
    assert control_of(configure("digits", method="random"), "random") is None
    assert control_of(configure("digits", ipc=5, sub_batches=1), "one_sub_batch") is None
    assert control_of(configure("digits", ipc=5, method="random"), "one_sub_batch") is None
    assert control_of(configure("digits", ipc=5, iterations=0), "start") is None
    assert set(CONTROLS) == {"random", "start", "one_sub_batch"}


def test_every_method_has_the_controls_of_every_preset():
    """A control keeps what its method may not lose; what starts from noise has no patches to be compared with."""
    for method in METHODS:
        for preset, ipc in itertools.product(("paper", "demo", "smoke"), (1, 10)):
            config = configure("digits", method=method, preset=preset, ipc=ipc)
            found = {name: control_of(config, name) for name in CONTROLS}
            assert found["start"] is None or found["start"].recover.iterations == 0
    cda = configure("digits", method="cda", preset="demo")
    assert control_of(cda, "start") is None and control_of(cda, "random").recover.iterations == 0
    from_patches = configure("digits", method="cda", preset="demo", rank_keep="medium")
    assert control_of(from_patches, "start").recover.sub_batches == 1


def test_published_rows():
    sre2l = configure("imagenet-1k", method="sre2l", ipc=50)
    assert (sre2l.rank.keep, sre2l.recover.grouping, sre2l.recover.sub_batches, sre2l.recover.jitter) == ("noise", "mixed", 1, 32)
    assert (sre2l.recover.curriculum, sre2l.recover.min_crop, sre2l.recover.lr, sre2l.recover.bn_weight) == ("none", 0.08, 0.25, 0.01)
    tiny = configure("tiny-imagenet", method="sre2l").recover
    assert (tiny.lr, tiny.bn_weight, tiny.jitter) == (0.1, 1.0, 4)
    assert configure("cifar100", method="sre2l").recover.min_crop == 1 and not configure("cifar100", method="sre2l").recover.flip
    rded = configure("imagenet-1k", method="rded").rank
    assert (rded.keep, rded.images, rded.crops, rded.factor) == ("easy", 300, 5, 2)
    assert configure("tiny-imagenet", method="rded").rank.factor == 1 == configure("cifar10", method="rded").rank.factor
    assert configure("digits", method="rded").recover.iterations == 0


def test_published_rows_of_cda():
    rows = {name: configure(name, method="cda").recover for name in ("imagenet-1k", "tiny-imagenet", "imagenet-21k")}
    found = {name: (row.lr, row.bn_weight, row.iterations, row.jitter) for name, row in rows.items()}
    assert found == {"imagenet-1k": (0.25, 0.01, 4000, 32), "tiny-imagenet": (0.4, 0.05, 4000, 4), "imagenet-21k": (0.05, 0.25, 2000, 32)}


@pytest.mark.parametrize(
    ("method", "dataset", "save"),
    [
        ("delt", "cifar10", "jpeg75"),
        ("cda", "tiny-imagenet", "jpeg75"),
        ("gvbsm", "imagenet-1k", "jpeg75"),
        ("gvbsm", "cifar10", "png"),
        ("gvbsm", "tiny-imagenet", "png"),
        ("fadrm", "cifar100", "png"),
        ("fadrm", "imagenet-1k", "png"),
    ],
)
def test_strict_is_what_was_published_for_the_method(method, dataset, save):
    recover = configure(dataset, method=method, fidelity="strict").recover
    assert recover.save == save and recover.adam_steps == "shared"
    assert configure(dataset, method=method).recover.save == "png"


def test_published_rows_of_gvbsm():
    large = configure("imagenet-1k", method="gvbsm", ipc=10)
    assert large.teacher.others == ("mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5") and large.teacher.arch == "resnet18"
    recover = large.recover
    assert (recover.match, recover.densify, recover.sub_batches, recover.group_size) == ("bn+conv", 1.0, 1, 80)
    assert (recover.lr, recover.bn_weight, recover.average, recover.drop, recover.pad, recover.jitter) == (0.1, 0.01, 0.4, 0.0, 0, 32)
    assert large.rank.keep == "noise" and recover.iterations == 4000 and recover.curriculum == "none"
    for name, pad in (("cifar10", 4), ("cifar100", 4), ("tiny-imagenet", 8)):
        small = configure(name, method="gvbsm").recover
        assert (small.lr, small.average, small.drop, small.pad, small.group_size) == (0.05, 0.8, 0.4, pad, 100)
    assert configure("cifar10", method="gvbsm", fidelity="strict").recover.average_start == "zero"
    late = configure("cifar10", method="delt+gvbsm", ipc=10).recover
    assert (late.match, late.sub_batches) == ("bn+conv", 8)


def test_published_rows_of_fadrm():
    large = configure("imagenet-1k", method="fadrm", ipc=10)
    recover = large.recover
    assert (large.rank.keep, recover.grouping, recover.stages, recover.iterations, recover.residual) == ("medium", "mixed", 4, 2000, 0.5)
    assert round(224 * recover.small_side) == 200 and (recover.lr, recover.curriculum, recover.min_crop) == (0.25, "none", 0.08)
    tiny, nette = configure("tiny-imagenet", method="fadrm").recover, configure("imagenette", method="fadrm").recover
    assert (tiny.stages, tiny.iterations, tiny.lr, tiny.small_side) == (2, 1000, 0.01, 1.0) and nette.lr == 0.05


def test_a_short_preset_shortens_a_method_and_shrinks_its_teachers():
    assert configure("digits", method="fadrm", preset="demo").recover.iterations == 400
    assert configure("cifar100", method="sre2l").recover.iterations == 1000
    assert configure("cifar100", method="sre2l", preset="smoke").recover.iterations == 20
    assert configure("cifar10", method="gvbsm", preset="demo").teacher.others == ("convnet4-w32", "resnet18-w16")
    assert configure("cifar10", method="delt", preset="demo").teacher.others == ()
    assert configure("cifar10", method="gvbsm", preset="demo", teacher_others="resnet18").teacher.others == ("resnet18",)


def test_stages_and_statistics_that_do_not_fit_are_refused():
    for settings, message in (
        (
            {"preset": "smoke", "recover_stages": 30},
            "20 iterations do not make 30 stages: give at least 30 iterations, or",
        ),
        ({"method": "fadrm", "iterations": 3}, "3 iterations do not make 4 stages: give at least 4 iterations"),
        ({"method": "gvbsm", "recover_small_side": 0.9}, "bn.conv knows patches of the full size alone: give recover_small_side 1"),
        ({"method": "gvbsm", "recover_match": "bn"}, "recover_match is 'bn', and method gvbsm means 'bn.conv'"),
        ({"method": "gvbsm", "recover_grouping": "mixed"}, "recover_grouping is 'mixed', and method gvbsm means 'class'"),
        ({"method": "cda", "recover_densify": 1.0}, "recover_densify needs several images of a class in a group"),
        ({"recover_group_rounds": 2}, "recover_group_rounds is for mixed groups"),
        ({"recover_drop": 0.4}, "recover_match bn has none: leave it out, or give recover_match bn.conv"),
        ({"rank_keep": "given", "rank_factor": 2}, "takes whole images as they are: leave out rank_crops and rank_factor"),
        ({"recover_record_classes": "3,11"}, "unknown class of digits to record '11'"),
        ({"data_classes": "1,2", "recover_record_classes": "3"}, "unknown class of digits to record '3'"),
    ):
        with pytest.raises(ConfigError, match=message):
            configure("digits", **settings)


def test_no_network_teaches_twice_where_it_was_not_asked_for():
    assert configure("cifar10", method="gvbsm", teacher_arch="convnet3").teacher.others == ("mobilenet_v2", "shufflenet_v2_x0_5")
    assert configure("cifar10", method="gvbsm", teacher_arch="convnet3", teacher_width=128).teacher.others[0] == "mobilenet_v2"
    assert configure("cifar10", method="gvbsm", teacher_arch="convnet3", teacher_width=64).teacher.others[0] == "convnet3"
    assert configure("digits", method="gvbsm", teacher_arch="convnet4", teacher_width=32).teacher.others == ("resnet18-w16",)


def test_rows_follow_the_size_that_a_set_is_used_in():
    assert configure("tiny-imagenet", method="rded", data_size=128).rank.factor == 2
    assert configure("imagenette", method="rded", data_size=64).rank.factor == 1
    assert configure("folder:/anywhere", method="gvbsm", data_size=32).recover.pad == 4
    changed(configure("imagenette", method="rded", data_size=64), {"seed": 3})


@pytest.mark.parametrize(
    ("method", "size", "wrong"),
    [
        ("rded", 32, "rank_factor"),
        ("sre2l", 32, "recover_jitter"),
        ("delt+rded", 64, "rank_factor, recover_lr, recover_bn_weight, recover_min_crop"),
        ("fadrm", 32, "recover_jitter, recover_small_side"),
        ("fadrm", 224, ""),
        ("rded", 65, ""),
        ("delt", 32, ""),
    ],
)
def test_a_folder_of_other_images_than_were_reckoned_with_is_refused(method, size, wrong):
    """A folder tells its images' size when it is opened, after the settings were made."""
    config = configure("folder:/some/photos", method=method)
    if not wrong:
        require_size(config, size)
        return
    with pytest.raises(ConfigError, match=rf"method {re.escape(method)} sets {wrong} by the .* of photos have {size} .*--data-size {size}"):
        require_size(config, size)
    require_size(configure("folder:/some/photos", method=method, data_size=size), size)


def test_settings_that_were_said_are_no_mistake():
    require_size(configure("folder:/some/photos", method="rded", rank_factor=1), 32)
    require_size(configure("imagenette", method="rded"), 32)  # whose size is known


@pytest.mark.parametrize("base", ["sre2l", "cda"])
def test_earlylate_as_a_plug_in_changes_the_schedule_alone(base):
    plain, late = (flatten(configure("tiny-imagenet", method=name, ipc=10)) for name in (base, f"delt+{base}"))
    assert {name for name in plain if plain[name] != late[name]} == {"method", "sub_batches", "round_iterations"}
    assert late["sub_batches"] == 8 and late["round_iterations"] == 500
    assert configure("digits", method=f"delt+{base}", preset="demo", rank_keep="medium").rank.keep == "medium"


@pytest.mark.parametrize(
    ("dataset", "lr", "factor"), [("cifar10", 0.02, 1), ("tiny-imagenet", 0.02, 1), ("imagenette", 0.25, 2), ("digits", 0.1, 1)]
)
def test_earlylate_on_rded_starts_from_its_images_in_steps_for_their_size(dataset, lr, factor):
    plain, late = configure(dataset, method="rded", ipc=10), configure(dataset, method="delt+rded", ipc=10)
    assert late.rank == plain.rank and late.rank.factor == factor and late.rank.keep == "easy"
    assert late.recover.lr == lr and late.recover.sub_batches == 8 and late.recover.grouping == "class"
    assert late.recover.iterations == configure(dataset, ipc=10).recover.iterations
    start = control_of(late, "start")
    assert start.rank == plain.rank and start.recover.iterations == 0
    with pytest.raises(ConfigError, match="method delt.rded means 'easy'"):
        configure(dataset, method="delt+rded", rank_keep="medium")


def test_earlylate_where_it_has_no_meaning_is_explained():
    for name in ("given", "random", "kmeans"):
        with pytest.raises(ConfigError, match=f"{name} optimises nothing, so no image can join later.*; possible are delt.sre2l, delt.cda"):
            configure("digits", method=f"delt+{name}")
    with pytest.raises(ConfigError, match="delt has EarlyLate already; possible are"):
        configure("digits", method="delt+delt")
    with pytest.raises(ConfigError, match="unknown method 'delt.srel'"):
        configure("digits", method="delt+srel")


def test_a_method_from_outside_is_a_method_like_any_other(tmp_path, monkeypatch):
    import delt

    monkeypatch.setattr("delt.methods.METHODS", dict(METHODS))
    register("hardest", Method("EarlyLate on the hardest patches", lambda spec: {"rank_keep": "hard"}, ("rank_keep",)))
    config = configure("digits", method="hardest", preset="smoke", ipc=2, iterations=4, workers=1, evaluate_seeds=1)
    done = delt.run(config, tmp_path / "run", listener=lambda event: None)
    assert done.ranking.keep == "hard" and "hardest" in done.table() and delt.verify(tmp_path / "run") == []
    for name, settings in (
        ("long", {"iterations": 1000}),
        ("two", {"teacher_others": ["convnet4"]}),
        ("unseen", {"recover_record_classes": ("none",)}),
    ):
        register(name, Method("a preset shortens it", lambda spec, settings=settings: settings, tuple(settings)))
    assert configure("digits", method="long", preset="paper").recover.iterations == 1000
    with pytest.raises(ConfigError, match="iterations is 50, and method long means 1000"):
        configure("digits", method="long", preset="paper", iterations=50)
    with pytest.raises(ConfigError, match="hardest has EarlyLate already"):
        configure("digits", method="delt+hardest")
    register("plain", Method("patches, all at once", lambda spec: {"rank_keep": "easy", "sub_batches": 1}, ("sub_batches",)))
    assert configure("digits", method="plain", ipc=5).recover.sub_batches == 1
    with pytest.raises(ConfigError, match="no protocol was published for method delt.plain; possible are common"):
        configure("digits", method="delt+plain", evaluate_recipe="paper")
    assert configure("digits", method="delt+plain", ipc=5).recover.sub_batches == 5
    with pytest.raises(ConfigError, match="method hardest means 'hard'"):
        configure("digits", method="hardest", rank_keep="easy")
    with pytest.raises(ConfigError, match="method hardest is in the table already .EarlyLate on the hardest patches.; choose another"):
        register("hardest", Method("again", lambda spec: {}))
    with pytest.raises(ConfigError, match="unknown setting 'rank_kep'"):
        register("wrong", Method("a slip", lambda spec: {"rank_kep": "hard"}))
    with pytest.raises(ConfigError, match="unknown method 'wrong'"):
        configure("digits", method="wrong")


@pytest.mark.parametrize("fidelity", ["fixed", "strict"])
def test_delt_with_one_sub_batch_is_cda_on_its_start_and_grouping(fidelity, tmp_path):
    """Byte for byte: a method is nothing but its row."""
    import delt

    small = {"preset": "smoke", "ipc": 3, "iterations": 6, "workers": 1, "fidelity": fidelity}
    cda = configure("digits", method="cda", **small)
    same = {"rank_keep": "noise", "recover_grouping": "mixed", "sub_batches": 1}
    same |= {"recover_jitter": cda.recover.jitter, "recover_bn_weight": cda.recover.bn_weight}
    as_delt = configure("digits", method="delt", **small, **same)
    made = [delt.run(config, tmp_path / config.method, until="recover", listener=lambda event: None) for config in (cda, as_delt)]
    assert torch.equal(made[0].synthetic.images, made[1].synthetic.images)
    late = delt.run(configure("digits", method="delt+cda", **small), tmp_path / "late", until="recover", listener=lambda event: None)
    assert late.synthetic.iterations.view(10, 3).tolist() == [[6, 4, 2]] * 10
    assert torch.equal(late.synthetic.images[::3], made[0].synthetic.images[::3])  # it is alone in its group


def test_groups_of_sre2l_hold_an_image_of_each_class(tmp_path):
    from delt.grouping import make_groups
    from delt.schedule import plan

    recover = configure("imagenet-100", method="sre2l", ipc=10).recover
    groups = make_groups(100, plan(4000, 10, 4000, 1), recover.grouping, recover.group_size)
    assert len(groups) == 10 and all(sorted(c for c, _ in group.members) == list(range(100)) for group in groups)


def test_rdeds_images_are_made_of_real_pixels_alone(tmp_path):
    import delt

    config = configure("digits", method="rded", preset="smoke", ipc=2, workers=1, rank_factor=2)
    done = delt.run(config, tmp_path / "run", until="recover", listener=lambda event: None)
    ranking = done.ranking
    assert ranking.keep == "easy" and ranking.factor == 2 and (done.synthetic.iterations == 0).all()
    for label in range(10):
        kept = ranking.score[ranking.kept(label)]
        assert len(kept) == 8 and kept.min() >= ranking.score[(ranking.class_index == label) & (ranking.place < 0)].max()
    real = delt.open_set("digits", config.data, torch.device("cpu"))
    tile = done.synthetic.images[0, :, :4, :4]
    row = ranking.kept(0)[0]
    top, left, height, width = (int(column[row]) for column in (ranking.top, ranking.left, ranking.height, ranking.width))
    patch = real.train.fetch(ranking.image[row : row + 1])[0, :, top : top + height, left : left + width]
    assert patch.min() <= tile.min() and tile.max() <= patch.max()
