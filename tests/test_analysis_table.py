"""The table: means over seeds, costs of the synthesis, and a text that lines up."""

from __future__ import annotations

import pytest

from delt.analysis.table import HEADS, aligned, rows, schedule_of, text
from delt.artifacts.scores import Score, Scores
from delt.methods import configure, control_of


def students(name, labels, values, recipe="common", epochs=10):
    return [Score(name, recipe, labels, "convnet3", seed, epochs, value, value + 1) for seed, value in enumerate(values)]


@pytest.fixture
def table():
    config = configure("digits", ipc=5, preset="demo")
    scores = Scores(
        [
            *students("delt", "soft", [90.0, 92.0, 94.0]),
            *students("delt", "hard", [80.0, 80.0, 80.0]),
            *students("one_sub_batch", "soft", [91.0]),
            *students("full", "hard", [99.0]),
        ]
    )
    diversity = {"delt": {"mean": 0.8}, "real": {"mean": 0.7}}
    return rows(scores, diversity, {"delt": config, "one_sub_batch": control_of(config, "one_sub_batch")}, classes=10)


def test_rows(table):
    delt, single, full = table
    assert delt["soft"] == (92.0, 2.0) and delt["hard"] == (80.0, 0.0) and delt["best"] == 93.0
    assert delt["n"] == {"soft": 3, "hard": 3} and delt["epochs"] == 10 and single["soft"] == (91.0, None)
    assert delt["work"] == 10 * sum([400, 320, 240, 160, 80]) and delt["saved"] == pytest.approx(0.4)
    assert single["work"] == 10 * 5 * 400 and single["saved"] == 0 and single["cosine"] is None
    assert full["set"] == "full" and full["cosine"] == 0.7 and "work" not in full and "soft" not in full


def test_text_lines_up(table):
    lines = text(table).splitlines()
    assert all(head in lines[0] for head in HEADS.values())
    column = lines[0].index(HEADS["hard"])
    assert [line[column : column + 12] for line in lines[2:5]] == ["80.00 ± 0.00", "-           ", "99.00       "]
    assert "92.00 ± 2.00" in lines[2] and "12,000" in lines[2] and "40.00%" in lines[2]


def test_schedule_of_what_is_not_optimised():
    config = configure("digits", ipc=5, method="random")
    assert schedule_of(config).image_iterations == 0


def test_students_of_different_length_are_different_rows():
    scores = Scores([*students("delt", "soft", [70.0, 72.0], epochs=10), *students("delt", "soft", [90.0, 92.0], epochs=300)])
    short, long = rows(scores, {}, {}, classes=10)
    assert (short["epochs"], short["soft"][0], long["epochs"], long["soft"][0]) == (10, 71.0, 300, 91.0)
    assert short["n"] == long["n"] == {"soft": 2}
    column = text([short, long]).splitlines()[0].index("epochs")
    assert [line[column : column + 6].strip() for line in text([short, long]).splitlines()[2:4]] == ["10", "300"]


@pytest.mark.parametrize(("soft", "hard", "shown"), [(3, 3, "3"), (3, 4, "3/4"), (1, 0, "1"), (0, 2, "2")])
def test_each_kind_of_label_has_its_own_number_of_students(soft, hard, shown):
    scores = Scores([*students("delt", "hard", [50.0] * hard), *students("delt", "soft", [60.0] * soft)])
    head, _, line, *_ = text(rows(scores, {}, {}, classes=10)).splitlines()
    assert line[head.index("  n ") + 2 :].split()[0] == shown
    assert line.count("± 0.00") == (soft > 1) + (hard > 1)


def test_columns_stand_under_their_heads_between_rules():
    lines = aligned(["a", "long head"], [["1", "x"], ["twenty", ""]], ["a note"]).splitlines()
    assert lines == ["a       long head", "-----------------", "1       x", "twenty", "-----------------", "a note"]
    assert aligned(["a"], [], []).splitlines() == ["a", "-", "-"]
