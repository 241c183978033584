"""What a sweep found: rows, what varies, the best point and the noise around it, and a table that lines up."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from delt.analysis.accuracy import Accuracy
from delt.analysis.sweep import PointRow, against, flat, kinds, lead, measured, table, varying
from delt.artifacts.scores import Score, Scores
from delt.methods import configure

STUDENT = ("convnet3", 30)


def row(name="a", soft=(), hard=(), random=(), state="done", **parameters):
    accuracy = {("delt", "soft"): soft, ("delt", "hard"): hard, ("random", "soft"): random}
    kept = {key: Accuracy(tuple(values)) for key, values in accuracy.items() if values}
    more = {"student": "convnet3", "epochs": 30, "work": 1000, "saved": 0.25, "seconds": 12.0, "cosine": {"delt": 0.8}} if kept else {}
    return PointRow(name, parameters, state, method="delt", accuracy=kept, **more)


def test_measured_takes_the_own_recipe_of_the_first_architecture():
    config = configure("digits", ipc=5, preset="demo", evaluate_recipe="common")
    scores = Scores(
        [
            *[Score("delt", "common", "soft", "convnet3", seed, 30, 90.0 + seed, 99.0) for seed in (1, 0)],
            Score("delt", "common", "soft", "resnet18", 0, 30, 10.0, 10.0),
            Score("delt", "paper", "soft", "convnet3", 0, 30, 20.0, 20.0),
            Score("delt", "common", "soft", "convnet3", 0, 2, 9.0, 9.0),
            Score("delt", "common", "soft", "convnet3", 7, 30, 9.0, 9.0),
            Score("random", "common", "soft", "convnet3", 0, 30, 70.0, 70.0),
            Score("full", "common", "hard", "convnet3", 0, 60, 98.0, 98.0),
        ]
    )
    found = measured(
        "a", {"ipc": 5}, config, scores, {"delt": {"mean": 0.8}, "real": {}}, classes=10, seconds=3.0, student=("convnet3", 30)
    )
    assert found.accuracy == {("delt", "soft"): Accuracy((90.0, 91.0), (0, 1)), ("random", "soft"): Accuracy((70.0,), (0,))}
    assert (found.student, found.epochs, found.state, found.method) == ("convnet3", 30, "done", "delt")
    assert found.cosine == {"delt": 0.8} and found.hold_out == 0
    assert measured("a", {}, configure("digits", data_hold_out=0.1), scores, {}, classes=10, seconds=3.0, student=STUDENT).hold_out == 0.1
    again = measured("a", {}, config, scores, {}, classes=10, seconds=3.0, student=("convnet3", 2))
    assert again.accuracy == {("delt", "soft"): Accuracy((9.0,), (0,))} and again.epochs == 2, "what the settings now ask for"
    assert found.work == 10 * sum([400, 320, 240, 160, 80]) and found.saved == pytest.approx(0.4)


def test_a_run_without_students_or_synthesis_is_a_row_too():
    config = configure("digits", ipc=5, preset="demo", method="random")
    found = measured("a", {}, config, Scores(), {}, classes=10, seconds=1.0, student=STUDENT)
    assert found.accuracy == {} and found.saved is None and found.work == 0 and found.student == ""


def test_varying_keeps_the_order_of_the_file():
    rows = [row(m=2, preset="demo", r=1), row(m=4, preset="demo", r=1), row(m=2, preset="demo", r=[1])]
    assert varying(rows) == ["m", "r"] and varying(rows[:1]) == [] and varying([]) == []
    assert varying([row(m=1), row(m=True)]) == ["m"]  # which Python takes for the same


def test_kinds_has_soft_first():
    assert kinds([row(hard=[1]), row(soft=[1])]) == ["soft", "hard"]
    assert kinds([row(hard=[1])]) == ["hard"] and kinds([row(state="failed")]) == []


def test_the_lead_and_its_noise():
    low, high, none = row("low", soft=[70.0, 72.0, 71.0]), row("high", soft=[80.0, 84.0, 82.0]), row("none", state="failed")
    found = lead([low, none, high], "soft")
    assert (found.best, found.second, found.above.mean) == (high, low, 11.0)
    assert found.above.error == pytest.approx(statistics.stdev([80 - 70, 84 - 72, 82 - 71]) / math.sqrt(3))
    assert found.clear and str(found) == "11.00 ± 0.58 points (standard error, paired over 3 seeds) above the second: more than the noise"
    close = lead([row(soft=[80.0, 84.0]), row(soft=[81.0, 84.0])], "soft")
    assert not close.clear and "within the noise" in str(close)
    single = lead([row(soft=[80.0]), row(soft=[70.0, 71.0])], "soft")
    assert single.above.error is None and not single.clear and "the noise is unknown" in str(single)
    assert str(lead([high, none], "soft")) == "one point alone"
    assert lead([none], "soft") is None and lead([high], "hard") is None


def test_the_lead_is_not_paired_where_the_seeds_differ():
    low, high = seeded("low", [70.0, 72.0], (0, 1)), seeded("high", [80.0, 84.0], (1, 2))
    errors = [statistics.stdev(values) / math.sqrt(2) for values in ([70, 72], [80, 84])]
    found = lead([low, high], "soft")
    assert found.above.error == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2))
    assert str(found) == "11.00 ± 2.24 points (standard error) above the second: more than the noise"


def seeded(name, values, seeds, **parameters):
    return PointRow(name, parameters, "done", method="delt", accuracy={("delt", "soft"): Accuracy(tuple(values), tuple(seeds))})


def test_each_point_is_held_against_the_reference():
    rows = [
        seeded("a", [83.0, 87.0, 85.0], range(3), m=5, keep=["x", "y"]),
        replace(seeded("b", [78.0, 81.0, 81.0], range(3), m=1, keep=["x"]), reference=True),
        seeded("c", [78.0, 80.0, 81.0], range(3), m=2, keep=["x"]),
        seeded("d", [70.0, 71.0, 70.0], (1, 2, 3), m=3, keep=["x"]),
        row("e", state="failed", m=4, keep=["x"]),
    ]
    assert against(rows) == [
        "soft labels, points of top-1, mean ± standard error, paired over seeds:",
        "  m 5, keep x+y: +5.00 ± 0.58 above m 1, keep x",
        "  m 2, keep x: -0.33 ± 0.33 above m 1, keep x (inside the noise)",
        "  m 3, keep x: -9.67 ± 1.05 above m 1, keep x (other seeds: not paired)",
    ]


def test_without_a_named_reference_it_is_the_first_point():
    first, second = row(soft=[80.0, 82.0], hard=[60.0, 62.0], m=1), row(soft=[83.0, 85.1], hard=[60.0, 62.0], m=2)
    lines = against([first, second])
    assert [line.split()[0] for line in lines] == ["soft", "m", "hard", "m"]
    assert lines[1] == "  m 2: +3.05 ± 0.05 above m 1" and lines[3] == "  m 2: +0.00 ± 0.00 above m 1 (no difference)"
    assert against([first]) == against([]) == []


def test_a_reference_without_a_result_is_said():
    rows = [row("a", state="failed", m=1), row("b", soft=[80.0], m=2)]
    assert against(rows) == ["soft labels: m 1, which the others are to be held against, has no result"]


def test_flat_has_the_parameters_first():
    cells = flat(row(soft=[80.0, 84.0], random=[70.0], m=2, r=4), ["r"])
    assert list(cells.items())[:4] == [("r", 4), ("state", "done"), ("own, soft", "82.00 ± 2.83"), ("random, soft", "70.00")]
    assert cells["n"] == 2 and cells["cosine"] == 0.8
    assert list(flat(row("b", state="failed"), []).items())[:2] == [("point", "b"), ("state", "failed")]


def test_what_all_points_share_is_said_once():
    rows = [row(soft=[80.0, 84.0], random=[70.0, 71.0], m=2), row(soft=[81.0, 82.0], random=[70.0, 71.0], m=4)]
    head, *_ = lines = table(rows).splitlines()
    assert head.split() == ["m", "own,", "soft"]
    assert "the same at every point: state done; random, soft 70.50 ± 0.71; n 2; cosine 0.800" in lines[5]
    assert "the same" not in table(rows[:1])


def test_the_table_lines_up():
    rows = [row(soft=[80.0, 84.0], random=[70.0, 71.0], m=2), row(state="failed", m=10), row(soft=[9.0], hard=[8.0], m=4)]
    head, rule, *body = table(rows).splitlines()[:5]
    assert set(rule) == {"-"} and len(rule) == max(map(len, [head, *body]))
    for name in ("state", "own, soft", "random, soft", "own, hard", "n ", "cosine", "img-it", "saved", "seconds"):
        place = head.index(name)
        assert all(line[place - 1] == " " and line[place : place + 1].strip() for line in body)
    assert body[0].split() == ["2", "done", "82.00", "±", "2.83", "70.50", "±", "0.71", "-", "2", "0.800", "1,000", "25.00%", "12"]
    assert body[1].split() == ["10", "failed", *"--------"]
    assert "top-1 in % on real test images after" in table(rows)
    assert "top-1 in % on held-out training images (10 %) after" in table([replace(one, hold_out=0.1) for one in rows])
