"""The table: means over seeds, costs of the synthesis, and a text that lines up."""

from __future__ import annotations

import pytest

from delt.analysis.table import HEADS, rows, schedule_of, text
from delt.artifacts.scores import Score, Scores
from delt.methods import configure, control_of


def students(name, labels, values, recipe="common"):
    return [Score(name, recipe, labels, "convnet3", seed, 10, value, value + 1) for seed, value in enumerate(values)]


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
    assert delt["soft"] == (92.0, 2.0) and delt["hard"] == (80.0, 0.0) and delt["best"] == 93.0 and delt["n"] == 3
    assert delt["work"] == 10 * sum([400, 320, 240, 160, 80]) and delt["saved"] == pytest.approx(0.4)
    assert single["work"] == 10 * 5 * 400 and single["saved"] == 0 and single["cosine"] is None
    assert full["set"] == "full" and full["cosine"] == 0.7 and "work" not in full and "soft" not in full


def test_text_lines_up(table):
    lines = text(table).splitlines()
    assert all(head in lines[0] for head in HEADS.values())
    column = lines[0].index(HEADS["hard"])
    assert [line[column : column + 12] for line in lines[2:5]] == ["80.00 ± 0.00", "-           ", "99.00 ± 0.00"]
    assert "92.00 ± 2.00" in lines[2] and "12,000" in lines[2] and "40.00%" in lines[2]


def test_schedule_of_what_is_not_optimised():
    config = configure("digits", ipc=5, method="random")
    assert schedule_of(config).image_iterations == 0
