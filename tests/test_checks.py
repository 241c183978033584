"""What is refused before long work begins, by runs, studies and plans alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import delt
from delt.checks import check_images, check_names, check_plan, check_stages
from delt.data.images import DataInfo, RealSet, TensorImages
from delt.errors import ConfigError, DataError, DeltError, TeacherError


def set_of(*counts: int) -> RealSet:
    """A set with so many training images of each class."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = TensorImages(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels)
    info = DataInfo("toy", tuple("abcdef"[: len(counts)]), 1, 8, (0.5,), (0.25,), False, 0.0)
    return RealSet(info, images, images, "")


def small(**given: Any) -> delt.RunConfig:
    return delt.configure("digits", preset="smoke", **given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"evaluate_students": "resnet19"}, ConfigError, "did you mean 'resnet18'"),
        ({"evaluate_features": "foo"}, ConfigError, "foo"),
        ({"teacher_arch": "vit_b_16"}, TeacherError, "teacher_arch vit_b_16 has no BatchNorm layers"),
        ({"method": "fadrm", "recover_small_side": 0.1}, ConfigError, "convnet3"),
        ({"ipc": 500}, DataError, "digits has 1,347 training images in 10 classes, so not 500 of each: use --ipc 134 or less"),
        ({"ipc": 100, "rank_factor": 2}, DataError, "so not 400 of each: use --ipc 33 or less"),
        ({"method": "given"}, ConfigError, "method given needs its images"),
        ({"method": "given", "rank_folder": "nope"}, DataError, "nope"),
    ],
)
def test_a_plan_refuses_what_a_run_does(given: dict[str, Any], error: type[DeltError], message: str, tmp_path: Any) -> None:
    with pytest.raises(error, match=message):
        check_plan(small(**given))
    with pytest.raises(error):
        delt.run(small(**given, workers=1), tmp_path / "run", listener=lambda event: None)
    assert not (tmp_path / "run" / "teachers").exists()


def test_what_a_run_can_do_is_planned() -> None:
    assert check_plan(small()) == (10, 1, 8)
    assert check_plan(small(method="fadrm")) == (10, 1, 8) and check_plan(delt.configure("imagenet-1k")) == (1000, 3, 224)


def test_stages_need_images_that_the_teacher_can_take() -> None:
    check_stages(small(method="fadrm"), 10, 1, 8)
    with pytest.raises(ConfigError, match="--data-size 32"):
        check_stages(delt.configure("folder:x", method="rded"), 10, 3, 32)


def test_stored_labels_belong_to_batches_of_one_size() -> None:
    given: dict[str, Any] = {
        "method": "delt",
        "evaluate_recipe": "paper:delt",
        "relabel_mode": "stored",
        "evaluate_students": "resnet18,convnet3",
    }
    says = "paper:delt trains convnet3 in batches of 25 images, and stored labels belong to batches of 100: set relabel_mode to online"
    with pytest.raises(ConfigError, match=says):
        check_stages(delt.configure("cifar100", **given), 100, 3, 32)
    for fits in ({"relabel_mode": "online"}, {"evaluate_students": "resnet18"}, {"evaluate_labels": "hard"}):
        check_stages(delt.configure("cifar100", **{**given, **fits}), 100, 3, 32)
    check_stages(delt.configure("tiny-imagenet", **given), 200, 3, 64)


def test_published_weights_of_others_are_not_invented() -> None:
    config = delt.configure("imagenet-1k", method="gvbsm", teacher_others="convnet3")
    with pytest.raises(
        ConfigError, match="teacher_weights IMAGENET1K_V1 holds for teacher_others, too, and convnet3 has no published weights"
    ):
        check_names(config)


def test_too_few_images_are_named() -> None:
    digits = delt.open_set("digits", small().data, torch.device("cpu"))
    check_images(small(ipc=130), digits)
    with pytest.raises(
        DataError, match=r"1 of 10 classes of digits have fewer than 131 training images: '8' \(130\); use --ipc 130 or less"
    ):
        check_images(small(ipc=131), digits)
    with pytest.raises(DataError, match=r"10 of 10 .*: '0' \(134\), '1' \(136\), '2' \(133\), '3' \(137\), '4' \(136\) and 5 more;"):
        check_images(small(ipc=200), digits)


def test_images_of_each_class_are_counted() -> None:
    check_images(small(ipc=3), set_of(3, 4))
    with pytest.raises(DataError, match=r"1 of 2 classes of toy have fewer than 4 training images: 'a' \(3\); use --ipc 3 or less"):
        check_images(small(ipc=4), set_of(3, 4))
    with pytest.raises(DataError, match="fewer than 8 .*; use --ipc 1 or less"):
        check_images(small(ipc=2, rank_factor=2), set_of(7, 8))
    check_images(small(ipc=4, method="sre2l", rank_factor=2), set_of(4, 4))


def test_images_from_elsewhere_need_real_ones_for_their_random_control_alone() -> None:
    given = {"method": "given", "rank_folder": "x", "ipc": 8}
    with pytest.raises(DataError, match="fewer than 8 training images: .*; leave out their random control"):
        check_images(small(**given), set_of(6, 6))
    check_images(small(**given, evaluate_controls=[]), set_of(6, 6))
