"""A study: a run per method and size, the control always there, nothing done twice, everything checked first."""

from __future__ import annotations

import pytest

import delt
from delt.errors import ConfigError, DataError
from delt.study import SEEDS, planned, study

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
        ("digits", ["delt+kmeans"], {}, ConfigError, "kmeans optimises nothing, .*; possible are delt.sre2l, delt.cda"),
        ("digits", [], {}, ConfigError, "name at least one beside random"),
        ("digits", ["cda"], {"sub_batches": 2}, ConfigError, "method cda: sub_batches is 2, and method cda means 1"),
        ("folder:nowhere", ["delt"], {}, DataError, "method random: .*nowhere is not a folder"),
        ("digits", ["delt"], {"evaluate_students": ["resnet19"]}, ConfigError, "resnet19"),
        ("digits", ["delt"], {"ipc": 3}, ConfigError, r"ipc is 3, and a study has several: say ipcs=\[3, 10\]"),
        ("digits", ["delt"], {"method": "cda"}, ConfigError, "method is 'cda', and a study has several: say methods="),
        ("digits", ["delt"], {"ipcs": 3}, ConfigError, r"ipcs is 3; allowed is a list, as in \[3, 10\]"),
        ("digits", ["delt"], {"ipcs": []}, ConfigError, r"ipcs is \[\]; allowed is a list"),
        ("digits", "delt,rded", {}, ConfigError, "methods is 'delt,rded'; allowed is a list"),
        ("digits", ["rded"], {"ipcs": [1, 500], "preset": "smoke"}, DataError, "method random: digits has 1,347 training images"),
        ("digits", ["rded"], {"ipcs": [1, 134], "preset": "smoke"}, DataError, "2 of 10 classes of digits have fewer than 134"),
    ],
)
def test_refused_before_anything_starts(dataset, methods, given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        study(dataset, methods, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_under_their_own_recipes_methods_stand_beside_random_images_each(tmp_path):
    found = study("digits", ["rded", "random", "delt"], tmp_path, [1], **small(evaluate_recipe="paper", iterations=4))
    assert list(found.runs) == ["rded-ipc1", "delt-ipc1"]
    assert [(entry.set, entry.protocol.recipe) for entry in found.entries] == [
        ("rded", "paper:rded"),
        ("delt", "paper:delt"),
        ("random", "paper:rded"),
        ("random", "paper:delt"),
    ]
    lines = found.table().split("top-1 above random, paired over seeds")[1].splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["rded-ipc1", "delt-ipc1"]
    assert "! students were not trained alike" in found.table()


def test_controls_that_were_asked_for_are_kept_under_any_recipe():
    settings = {"preset": "demo", "evaluate_recipe": "paper", "evaluate_controls": ["start"]}
    assert planned("digits", ["delt"], [1], settings)["delt-ipc1"].evaluate.controls == ("start",)
    for method, error in (("random", "name at least one beside random"), ("kmeans", "method kmeans: .*kmeans")):
        with pytest.raises(ConfigError, match=error):
            planned("digits", [method], [1], settings)


def test_rows_have_students_enough_for_a_difference():
    def seeds(**given):
        return {config.evaluate.seeds for config in planned("digits", ["delt"], [1], given).values()}

    assert seeds() == seeds(preset="demo") == seeds(evaluate_seeds=None) == {SEEDS} == {5}
    assert seeds(preset="smoke") == {2} and seeds(preset="demo", evaluate_seeds=3) == {3}


def test_the_control_comes_first_and_once():
    assert list(planned("digits", ["delt", "random"], [3], {"preset": "demo"})) == ["random-ipc3", "delt-ipc3"]
    configs = planned("digits", ["delt"], [None], {"preset": "demo"})
    assert all(config.evaluate.controls == () for config in configs.values()), "a set of its own stands for the control"


def test_images_from_elsewhere_take_part_and_only_they_have_the_folder(tmp_path):
    for name in "0123456789":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").touch()
    configs = planned("digits", ["delt", "given"], [1], {"preset": "smoke", "rank_folder": str(tmp_path / "images"), "iterations": 8})
    assert {name: (config.rank.folder is not None, config.recover.iterations) for name, config in configs.items()} == {
        "random-ipc1": (False, 0),
        "delt-ipc1": (False, 8),
        "given-ipc1": (True, 0),
    }
    with pytest.raises(DataError, match="method given: .* has 1 images of each class, and ipc is 2: give --ipc 1"):
        planned("digits", ["given"], [2], {"preset": "smoke", "rank_folder": str(tmp_path / "images")})


def test_more_teachers_are_for_methods_that_have_several():
    configs = planned("digits", ["gvbsm", "delt"], [1], {"preset": "smoke", "teacher_others": "convnet5-w4"})
    assert {name: config.teacher.others for name, config in configs.items()} == {
        "random-ipc1": (),
        "gvbsm-ipc1": ("convnet5-w4",),
        "delt-ipc1": (),
    }
