"""Score rows: added, replaced, summed up, saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from delt import storage
from delt.artifacts.scores import FILE, Score, Scores
from delt.errors import IntegrityError

ROW = Score("delt", "common", "soft", "convnet3", 0, 30, 90.0, 91.0)


def test_a_known_student_is_replaced_in_its_place():
    scores = Scores([ROW, replace(ROW, seed=1)])
    scores.add([replace(ROW, last=80.0), replace(ROW, set="random"), replace(ROW, set="random", last=1.0)])
    assert list(scores) == [replace(ROW, last=80.0), replace(ROW, seed=1), replace(ROW, set="random", last=1.0)]


@pytest.mark.parametrize(("name", "other"), [("set", "x"), ("recipe", "x"), ("labels", "hard"), ("arch", "x"), ("seed", 9), ("epochs", 9)])
def test_every_part_of_the_key_makes_another_student(name: str, other: object):
    scores = Scores([ROW])
    scores.add([replace(ROW, **{name: other})])
    assert len(scores.rows) == 2
    assert len(scores.summary()) == (1 if name == "seed" else 2)


def test_summary_is_mean_and_sample_deviation_over_the_seeds():
    last, best = [90.0, 92.5, 89.0], [91.0, 93.0, 90.5]
    rows = [replace(ROW, seed=seed, last=last[seed], best=best[seed]) for seed in range(3)]
    delt, single = Scores([rows[0], replace(ROW, set="random", last=70.0, best=71.0), *rows[1:]]).summary()
    assert (delt.set, delt.n, delt.epochs) == ("delt", 3, 30)
    assert (delt.mean, delt.std, delt.best_mean) == pytest.approx((np.mean(last), np.std(last, ddof=1), np.mean(best)))
    assert (single.set, single.n, single.mean, single.std, single.best_mean) == ("random", 1, 70.0, 0.0, 71.0)


def test_what_is_saved_comes_back_byte_for_byte(tmp_path: Path):
    scores = Scores([ROW, replace(ROW, last=100 / 3)])
    assert scores.save(tmp_path) == [tmp_path / FILE]
    first = (tmp_path / FILE).read_bytes()
    back = Scores.load(tmp_path)
    assert back == scores
    back.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == first


@pytest.mark.parametrize("content", ['[{"set": "delt"}]', '{"a": 1}', "[1]", "3", "[", ""])
def test_a_damaged_file_is_named(content: str, tmp_path: Path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(IntegrityError, match=FILE):
        Scores.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(IntegrityError, match=FILE):
        Scores.load(tmp_path)


def test_rows_of_another_kind_are_named(tmp_path: Path):
    for rows in ([{"name": "a"}], [1], None):
        storage.write_sealed(tmp_path / FILE, {"rows": rows})
        with pytest.raises(IntegrityError, match="scores.json holds no scores"):
            Scores.load(tmp_path)
