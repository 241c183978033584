"""The view without a browser: what it takes, what it refuses, and that its script speaks of the same traits and kinds."""

from __future__ import annotations

import re

import pytest
import torch
import traitlets

from delt.errors import DeltError
from delt.lab.view import KINDS, SCRIPT, View

PROGRAM = SCRIPT.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), torch.zeros(2), {1, 2}, b"bytes"], ids=["nan", "inf", "tensor", "set", "bytes"]
)
def test_a_state_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(DeltError, match="the state of a curves view holds what is no JSON .*; use plain numbers, texts, lists"):
        View(kind="curves", state={"lines": [{"points": [[0, value]]}]})


def test_a_refused_state_leaves_the_one_before() -> None:
    view = View(kind="curves", state={"lines": []})
    with pytest.raises(DeltError):
        view.state = {"lines": [float("nan")]}
    assert view.state == {"lines": []}


def test_every_change_of_state_reaches_an_observer_once() -> None:
    view, heard = View(), []
    view.observe(lambda change: heard.append(change["new"]), "state")
    view.state = {"joins": (0, 5), "now": None}
    view.state = {"joins": (0, 5), "now": None}
    assert heard == [{"joins": (0, 5), "now": None}]


def test_other_kinds_are_refused() -> None:
    with pytest.raises(traitlets.TraitError, match="pie"):
        View(kind="pie")


def test_picked_dots_are_integers() -> None:
    with pytest.raises(traitlets.TraitError):
        View(kind="scatter", picked=["a"])


def test_views_share_nothing() -> None:
    one, other = View(), View()
    one.sheets, one.picked = {"tiles": b"x"}, [1]
    assert other.sheets == {} and other.picked == [] and other.state == {}


def test_the_script_draws_exactly_these_kinds() -> None:
    (names,) = re.findall(r"const KINDS = \{ (.*?) \};", PROGRAM)
    assert tuple(names.split(", ")) == KINDS


def test_the_script_reads_and_writes_only_traits_that_travel() -> None:
    used = set(re.findall(r'(?:model\.[gs]et|\bset)\("(\w+)"', PROGRAM)) | set(re.findall(r'"change:(\w+)"', PROGRAM))
    assert used == {"kind", "state", "sheets", "at", "label", "difference", "picked"}
    assert used <= set(View().traits(sync=True))


def test_the_script_never_takes_text_for_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", PROGRAM)
