"""Tables line up, and a schedule is read off a configuration."""

from __future__ import annotations

import re

from IPython.lib.pretty import pretty

from delt.analysis.table import Lines, aligned, schedule_of, unusual_test, where_tested
from delt.methods import configure


def test_schedule_of_what_is_not_optimised():
    config = configure("digits", ipc=5, method="random")
    assert schedule_of(config).image_iterations == 0
    assert schedule_of(configure("digits", ipc=5)).image_iterations == sum([400, 320, 240, 160, 80])


def test_what_was_tested_on_is_said_in_words():
    assert where_tested([]) == where_tested([0.0, 0.0]) == "real test images"
    assert where_tested([0.1, 0.0]) == "real test images or held-out training images (10 %)"
    assert unusual_test([0.0]) == [] and unusual_test([0.1, 0.1]) == ["on held-out training images (10 %)"]


def test_columns_stand_under_their_heads_between_rules():
    lines = aligned(["a", "long head"], [["1", "x"], ["twenty", ""]], ["a note"]).splitlines()
    assert lines == ["a       long head", "-----------------", "1       x", "twenty", "-----------------", "a note"]
    assert aligned(["a"], [], []).splitlines() == ["a", "-", "-"]


def test_a_notebook_keeps_the_lines_of_a_table() -> None:
    shown = aligned(["run", "x"], [["<b>", "1"], ["-", ""]], ["a note"])
    found = re.findall(r"white-space: ([a-z-]+).*?>(.*?)</pre>", Lines(f"{shown}\n\n{shown}\n! more")._repr_html_(), re.DOTALL)
    table = "run  x\n------\n&lt;b&gt;  1\n-\n------\n"
    assert found == [("pre", table), ("pre-wrap", "a note\n\n"), ("pre", table), ("pre-wrap", "a note\n! more\n")]
    assert shown._repr_html_().count("monospace") == shown._repr_html_().count("<pre")
    assert pretty(shown) == str(shown), "in a terminal it is itself"
