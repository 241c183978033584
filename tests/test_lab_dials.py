"""The dials: whatever is turned, a schedule exists, only what must move moves, and the words say what did."""

from __future__ import annotations

import itertools

import pytest

import delt
from delt.lab.dials import SHORT, Dials

START = [Dials(4000, 500, 8, 50), Dials(400, 80, 5, 5), Dials(7, 3, 2, 2), Dials(1, 1, 1, 1), Dials(100, 1, 50, 50)]
VALUES = [-3, 1, 2, 3, 7, 8, 50, 99, 100, 499, 4000]


@pytest.mark.parametrize(("dials", "name", "value"), list(itertools.product(START, SHORT, VALUES)))
def test_a_schedule_always_exists_and_what_was_asked_for_holds(dials: Dials, name: str, value: int) -> None:
    turned, note = dials.turned(name, value)
    schedule = turned.schedule
    assert (schedule.iterations, schedule.round_iterations, schedule.sub_batches, schedule.ipc) == tuple(
        getattr(turned, field) for field in SHORT
    )
    wanted = max(1, value)
    assert getattr(turned, name) == (min(wanted, dials.ipc, dials.iterations) if name == "sub_batches" else wanted)
    moved = [field for field in SHORT if field != name and getattr(turned, field) != getattr(dials, field)]
    assert set(moved) <= {"round_iterations", "sub_batches"}
    assert all(f"{SHORT[field]} lowered from {getattr(dials, field):,}" in note for field in moved)
    assert bool(note) == bool(moved) or name == "sub_batches"


def test_nothing_moves_that_need_not() -> None:
    assert Dials(4000, 500, 8, 50).turned("sub_batches", 4) == (Dials(4000, 500, 4, 50), "")
    assert Dials(4000, 500, 8, 50).turned("iterations", 8000) == (Dials(8000, 500, 8, 50), "")
    assert Dials(4000, 500, 8, 50).turned("round_iterations", 571) == (Dials(4000, 571, 8, 50), "")  # 7 * 571 = 3,997


@pytest.mark.parametrize(
    ("name", "value", "expected", "note"),
    [
        ("iterations", 2000, Dials(2000, 250, 8, 50), "RI lowered from 500 to 250, so that the last of 8 sub-batches joins before the end"),
        (
            "round_iterations",
            1000,
            Dials(4000, 1000, 4, 50),
            "M lowered from 8 to 4, so that the last of 4 sub-batches joins before the end",
        ),
        (
            "round_iterations",
            4000,
            Dials(4000, 4000, 1, 50),
            "M lowered from 8 to 1, so that every sub-batch joins before the end at 4,000",
        ),
        ("sub_batches", 20, Dials(4000, 200, 20, 50), "RI lowered from 500 to 200"),
        ("ipc", 3, Dials(4000, 500, 3, 3), "M lowered from 8 to 3, since every sub-batch needs an image of each class"),
        ("iterations", 5, Dials(5, 1, 5, 50), "RI lowered from 500 to 1 and M lowered from 8 to 5"),
    ],
)
def test_what_moves_and_why(name: str, value: int, expected: Dials, note: str) -> None:
    turned, words = Dials(4000, 500, 8, 50).turned(name, value)
    assert turned == expected and words.startswith(note)


def test_they_are_those_of_a_configuration() -> None:
    dials = Dials.of(delt.configure("digits", preset="demo"))
    assert dials == Dials(400, 80, 5, 5)
    assert dials.title == "MI 400, RI 80, M 5, IPC 5" and dials.slug == "mi400-ri80-m5-ipc5"
