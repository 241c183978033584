"""Published accuracies: the file holds what it says, sources that disagree stay apart, and a difference has its unit."""

from __future__ import annotations

import math

import pytest

from delt.analysis.published import FILE, Published, distinct, every, published
from delt.data.specs import DATASETS
from delt.models.zoo import architectures

ROW = Published("delt", "cifar10", 10, "resnet18", 43.0, 0.9, "a table")


def test_every_row_is_one_that_a_run_can_have():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(every()) == len(lines) - 1 > 200 and len(set(lines)) == len(lines)
    for row in every():
        assert row.dataset in DATASETS and row.student in architectures() and row.ipc in (1, 10, 20, 50, 100, 200), row
        assert 0 < row.top1 < 100 and (row.std is None or 0 < row.std < 10) and row.source, row
    assert {row.method for row in every()} == {"delt", "sre2l", "cda", "rded", "gvbsm", "fadrm", "fadrm+"}


def test_a_source_says_one_thing_about_one_cell():
    cells = [(row.method, row.dataset, row.ipc, row.student, row.source) for row in every()]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        (("delt", "imagenet-1k", 50, "resnet18"), {"46.8", "59.2 ± 0.4"}),
        (("delt", "tiny-imagenet", 50, "resnet18"), {"28.3", "55.7 ± 0.5"}),
        (("rded", "cifar10", 50, "resnet101"), {"63.5", "51.6"}),
        (("sre2l", "imagenet-1k", 50, "resnet101"), {"60.8", "57.6"}),
        (("sre2l", "tiny-imagenet", 1, "resnet18"), {"2.62"}),
        (("cda", "imagenet-1k", 200, "resnet50"), {"67.6"}),
        (("cda", "imagenet-21k", 20, "resnet18"), {"26.4"}),
        (("gvbsm", "cifar100", 50, "convnet3"), {"45.7"}),
        (("fadrm", "imagenette", 10, "resnet18"), {"64.8"}),
        (("fadrm+", "imagenet-1k", 50, "resnet101"), {"66.2"}),
        (("delt", "cifar100", 50, "resnet18"), set()),
        (("delt", "cifar10", 50, "convnet3-w32"), set()),
        (("fadrm", "imagenet-1k", 50, "resnet101"), set()),
    ],
)
def test_what_was_published(cell, values):
    assert {str(row) for row in published(*cell)} == values


def test_the_card_and_the_table_are_two_sources():
    rows = published("delt", "cifar10", 50, "resnet18")
    assert {row.source: row.top1 for row in rows} == {"card of DELT (arXiv 2411.19946)": 82.1, "VILA-Lab/DELT, README table": 64.9}


def test_values_that_agree_stand_once_with_what_is_known_of_their_spread():
    rows = published("delt", "imagenet-1k", 50, "resnet101")
    assert [row.std for row in rows].count(None) == 1 and [str(row) for row in distinct(rows)] == ["66.1 ± 0.5"]
    for some in (rows, rows[::-1]):
        assert [row.std for row in distinct(some)] == [0.5]
    assert distinct([]) == []


def test_a_difference_is_in_standard_deviations_of_what_is_known():
    assert ROW.off(45.0, 1.2) == pytest.approx(2.0 / math.sqrt(1.2**2 + 0.9**2))
    assert ROW.off(42.1, None) == pytest.approx(-1.0)
    alone = Published("delt", "cifar10", 10, "resnet18", 43.0, None, "a card")
    assert alone.off(44.0, 0.5) == pytest.approx(2.0) and alone.off(44.0, None) is None and alone.off(44.0, 0.0) is None
