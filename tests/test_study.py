"""A study: a run per method and size, the control always there, nothing done twice, everything checked first."""

from __future__ import annotations

import pytest

import delt
from delt.errors import ConfigError, DataError
from delt.study import planned, study

SMALL = {"preset": "smoke", "ipc": None, "iterations": 8, "workers": 1, "evaluate_labels": ["soft"]}


def small(**given):
    return {name: value for name, value in {**SMALL, **given}.items() if name != "ipc"}


def test_a_run_per_method_and_size_beside_the_control(tmp_path):
    found = study("digits", ["rded", "kmeans"], tmp_path, [1, 2], **small())
    assert list(found.runs) == ["random-ipc1", "rded-ipc1", "kmeans-ipc1", "random-ipc2", "rded-ipc2", "kmeans-ipc2"]
    assert all(delt.verify(tmp_path / name) == [] for name in found.runs)
    assert [(entry.set, entry.ipc) for entry in found.entries] == [(name, ipc) for ipc in (1, 2) for name in ("random", "rded", "kmeans")]
    text = (tmp_path / "table.txt").read_text()
    assert "top-1 above random, paired over seeds" in text and "rded-ipc2: soft " in text and "random-ipc1: soft" not in text
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    def times():
        return {
            (name, file): (tmp_path / name / file).stat().st_mtime_ns for name in found.runs for file in ("scores.json", "ranking.parquet")
        }

    before = times()
    again = study("digits", ["rded", "kmeans"], tmp_path, [1, 2], **small())
    assert times() == before
    assert again.table() == found.table()


@pytest.mark.parametrize(
    ("dataset", "methods", "given", "error", "message"),
    [
        ("digits", ["dlt"], {}, ConfigError, "method dlt: unknown method 'dlt': did you mean 'delt'"),
        ("digits", ["delt+rded"], {}, ConfigError, "rded optimises nothing, .*; possible are delt.sre2l, delt.cda"),
        ("digits", [], {}, ConfigError, "name at least one beside random"),
        ("digits", ["cda"], {"sub_batches": 2}, ConfigError, "method cda: sub_batches is 2, and method cda means 1"),
        ("folder:nowhere", ["delt"], {}, DataError, "method random: .*nowhere is not a folder"),
        ("digits", ["delt"], {"evaluate_students": ["resnet19"]}, ConfigError, "resnet19"),
    ],
)
def test_refused_before_anything_starts(dataset, methods, given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        study(dataset, methods, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_control_comes_first_and_once():
    assert list(planned("digits", ["delt", "random"], [3], {"preset": "demo"})) == ["random-ipc3", "delt-ipc3"]
    configs = planned("digits", ["delt"], [None], {"preset": "demo"})
    assert all(config.evaluate.controls == () for config in configs.values()), "a set of its own stands for the control"
