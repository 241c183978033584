"""The table of data sets: complete, consistent with the configuration, and readable without torch."""

import ast
from pathlib import Path

import pytest

from delt.config import unflatten
from delt.data import specs
from delt.data.specs import DATASETS, short_name, spec_of
from delt.errors import ConfigError

ALL = sorted(DATASETS)


def test_the_table_holds_the_named_sets():
    assert list(DATASETS) == [
        "digits",
        "cifar10",
        "cifar100",
        "tiny-imagenet",
        "imagenette",
        "imagewoof",
        "imagenet-100",
        "imagenet-1k",
        "imagenet-21k",
    ]


@pytest.mark.parametrize("name", ALL)
def test_row_is_complete_and_consistent(name):
    spec = spec_of(name)
    assert spec.name == name and spec.hint
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    assert 150 / spec.count < spec.floor < 100  # above chance by more than an unknown set's floor is
    assert spec.source == "digits" or spec.folders
    if spec.classes:
        assert len(set(spec.classes)) == spec.count and list(spec.classes) == sorted(spec.classes)
    if spec.words:
        assert len(set(spec.words)) == spec.count


@pytest.mark.parametrize("name", ALL)
def test_defaults_are_settings(name):
    unflatten(spec_of(name).defaults)


def test_facts_that_others_rely_on():
    assert (spec_of("digits").channels, spec_of("digits").size, spec_of("digits").flip) == (1, 8, False)
    assert [spec_of(name).size for name in ("cifar10", "cifar100", "tiny-imagenet", "imagenette")] == [32, 32, 64, 224]
    assert all(spec_of(name).flip for name in ALL if name != "digits")
    assert spec_of("cifar100").classes[0::33] == ("apple", "forest", "raccoon", "worm")
    assert dict(zip(spec_of("imagewoof").classes, spec_of("imagewoof").words, strict=True))["n02093754"] == "Border terrier"
    assert spec_of("imagenet-1k").defaults == {"teacher_weights": "IMAGENET1K_V1", "evaluate_full": False}


def test_a_folder_of_ones_own():
    spec = spec_of("folder:/data/my birds")
    assert spec.source == "folder" and spec.classes is None and spec.size is None and spec.floor is None


@pytest.mark.parametrize(
    ("given", "message"),
    [("cifar1", "did you mean 'cifar10'"), ("CIFAR-100", "cifar100"), ("zzzz", "known are digits"), ("folder:", "folder:PATH")],
)
def test_an_unknown_name_is_refused_with_the_nearest(given, message):
    with pytest.raises(ConfigError, match=message):
        spec_of(given)


def test_the_table_needs_no_torch():
    tree = ast.parse(Path(specs.__file__).read_text(encoding="utf-8"))
    taken = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert taken == {"__future__", "collections.abc", "dataclasses", "typing", "delt.errors"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


def test_short_names_hold_no_path():
    assert short_name("digits") == "digits" and short_name("folder:/home/me/cats/") == "cats" == short_name("folder:cats")
