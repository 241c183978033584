"""Sweep files: points in order, names that are safe and differ, and one line for every slip of the pen."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import delt
from delt.analysis.table import schedule_of
from delt.batch.points import LONGEST_NAME, MOST, load_sweep, named, point_name
from delt.config import FIDELITY, flatten
from delt.errors import ConfigError
from delt.grouping import make_groups
from delt.methods import said

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "papermill_runs" / "sweeps").glob("*.yaml"))
BASE = "parameters: {dataset: digits, preset: smoke}\n"


@pytest.fixture
def load(tmp_path):
    def write(text):
        path = tmp_path / "a.yaml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(path)

    return write


def test_a_grid_is_every_combination_the_last_name_fastest(load):
    sweep = load(BASE + "grid: {round_iterations: [2, 3], sub_batches: [2, 4, 5]}")
    pairs = [(r, m) for r in (2, 3) for m in (2, 4, 5)]
    assert [dict(point.parameters) for point in sweep.points] == [{"round_iterations": r, "sub_batches": m} for r, m in pairs]
    assert [point.name for point in sweep.points] == [f"round_iterations={r},sub_batches={m}" for r, m in pairs]
    wanted = [delt.configure("digits", preset="smoke", round_iterations=r, sub_batches=m) for r, m in pairs]
    assert [point.config for point in sweep.points] == wanted
    assert (sweep.name, sweep.title, sweep.jobs) == ("a", "a", None)


def test_a_list_follows_the_grid_and_a_point_may_have_nothing_of_its_own(load):
    sweep = load(BASE + "title: Both\njobs: 3\ngrid: {ipc: [6]}\npoints: [{method: random}, {}]")
    assert [point.name for point in sweep.points] == ["ipc=6", "method=random", "as_given"]
    assert (sweep.title, sweep.jobs) == ("Both", 3)
    assert sweep.points[2].config == delt.configure("digits", preset="smoke")


def test_lists_are_values(load):
    sweep = load(BASE + "grid: {evaluate_labels: [[soft], [soft, hard]]}")
    assert [point.name for point in sweep.points] == ["evaluate_labels=soft", "evaluate_labels=soft+hard"]
    assert [point.config.evaluate.labels for point in sweep.points] == [("soft",), ("soft", "hard")]


def test_the_reference_is_the_point_of_these_values_or_the_first(load):
    grid = BASE + "grid: {round_iterations: [2, 3], sub_batches: [2, 4]}\n"
    assert load(grid).reference.name == "round_iterations=2,sub_batches=2"
    assert load(grid + "reference: {sub_batches: 4, round_iterations: 3}").reference.name == "round_iterations=3,sub_batches=4"
    lists = load(BASE + "grid: {evaluate_labels: [[soft], [soft, hard]]}\nreference: {evaluate_labels: [soft, hard]}")
    assert lists.reference is lists.points[1]


def test_the_reference_may_have_what_it_does_not_name(load):
    sweep = load(BASE + "points: [{sub_batches: 2}, {method: random}]\nreference: {method: delt}")
    assert sweep.reference is sweep.points[0]
    assert named(sweep.points) == ["sub_batches", "method"]
    assert sweep.reference.values(named(sweep.points)) == {"sub_batches": 2, "method": "delt"}


def test_relative_paths_count_from_the_current_folder(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (point,) = load("points: [{dataset: 'folder:pictures', ipc: 2}]").points
    assert point.config.dataset == f"folder:{tmp_path / 'pictures'}"


def test_names_are_safe_and_differ():
    values = ["a/b", "a b", "a\\b", "..", "", "x" * 200, "x" * 201, "folder:/a", "ü", "a,b", "a=b", 1, 1.5, True, None, ["a", "b"]]
    owns = [{"data_root": value} for value in values]
    owns += [{f"name{k}": "y" * 30 + end for k in range(9)} for end in ("1", "2")]
    names = [point_name(own) for own in owns]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,~-]*", name) and len(name) <= LONGEST_NAME for name in names)
    assert names == [point_name(own) for own in owns]  # the same again, or nothing would go on


def test_names_tell_combinations_apart():
    owns = [{"a": a, "b": b} for a, b in itertools.product(["1", "1,b=1", "1+1"], repeat=2)]
    assert len({point_name(own) for own in owns}) == len(owns)


REFUSED = {
    "unknown field": (BASE + "grd: {ipc: [2]}", "unknown field 'grd': did you mean 'grid'?"),
    "unknown parameter": (BASE + "grid: {sub_batchs: [2]}", "point sub_batchs=2: unknown .*'sub_batchs': did you mean 'sub_batches'"),
    "unknown choice": (BASE + "points: [{rank_keep: medum}]", "point rank_keep=medum: .*did you mean 'medium'"),
    "parameter of a wrong type": (BASE + "points: [{ipc: five}]", "point ipc=five: ipc is 'five'"),
    "parameter that is a mapping": (BASE + "points: [{ipc: {a: 1}}]", "ipc is"),
    "parameter that is a date": (BASE + "points: [{ipc: 2020-01-01}]", "ipc is"),
    "name that is a number": (BASE + "points: [{1: 2}]", "1 is no name of a parameter"),
    "field of a wrong type": (BASE + "jobs: two\npoints: [{}]", "jobs is 'two'; allowed is a whole number"),
    "jobs that are a truth": (BASE + "jobs: yes\npoints: [{}]", "jobs is True; allowed is a whole number"),
    "no jobs": (BASE + "jobs: 0\npoints: [{}]", "jobs is 0; at least 1 is needed"),
    "grid that is a list": (BASE + "grid: [ipc]", "grid is .*; allowed is a mapping"),
    "grid value that is no list": (BASE + "grid: {ipc: 2}", "ipc in grid is 2; allowed is a list of values"),
    "grid value that is empty": (BASE + "grid: {ipc: []}", r"ipc in grid is \[\]; allowed is a list of values"),
    "point that is no mapping": (BASE + "points: [{}, ipc]", "point 2 is 'ipc'; allowed is a mapping"),
    "the same run twice": (BASE + "grid: {ipc: [2]}\npoints: [{ipc: 2}]", "points ipc=2 and ipc=2 are the same run"),
    "the same run in other words": (BASE + "points: [{}, {method: delt}]", "points as_given and method=delt are the same run"),
    "fixed and in the grid": (BASE + "grid: {preset: [smoke, demo]}", "preset is in parameters, which are the same for all"),
    "fixed and in a point": (BASE + "points: [{}, {preset: demo}]", "preset is in parameters, which are the same for all"),
    "no points": (BASE, "has 0 points; allowed are 1 to"),
    "empty grid": (BASE + "grid: {}", "has 0 points; allowed are 1 to"),
    "too many": (BASE + f"grid: {{seed: {list(range(MOST + 1))}}}", f"has {MOST + 1} points; allowed are 1 to {MOST}"),
    "a schedule that does not fit": (
        BASE + "grid: {iterations: [20], round_iterations: [2, 19], sub_batches: [2, 4]}",
        "sub_batches=4: .*round_it",
    ),
    "more sub-batches than images": (BASE + "grid: {ipc: [5], sub_batches: [6]}", "point ipc=5,sub_batches=6: sub_batches is 6 with ipc 5"),
    "a reference that is no point": (
        BASE + "grid: {sub_batches: [2, 4]}\nreference: {sub_batches: 3}",
        "reference is .*fits no point; .*of sub_",
    ),
    "a reference of another type": (BASE + "grid: {ipc: [1, 2]}\nreference: {ipc: yes}", "reference is {'ipc': True}, which fits no point"),
    "a reference to two points": (
        BASE + "grid: {round_iterations: [2, 3], sub_batches: [2, 4]}\nreference: {sub_batches: 2}",
        "fits 2 points; it has to fit one of round_iterations=2,sub_batches=2, round_iterations=3,sub_batches=2$",
    ),
    "a reference to many points": (BASE + f"grid: {{seed: {list(range(20))}}}\nreference: {{}}", "fits 20 points; .* seed=7 or 12 more$"),
    "a reference of unknown name": (BASE + "grid: {ipc: [5, 6]}\nreference: {icp: 5}", "reference: unknown parameter 'icp': did you mean"),
    "a reference to a number": (BASE + "grid: {ipc: [5, 6]}\nreference: {0: 5}", "reference: unknown parameter '0': known are ipc"),
    "a reference that is a name": (BASE + "grid: {ipc: [5]}\nreference: ipc=5", "reference is 'ipc=5'; allowed is a mapping"),
    "a number that YAML reads as text": (BASE + "points: [{teacher_lr: 1e-3}]", r"YAML takes 1e-3 for text: .*as in 1.0e-3"),
    "empty file": ("", "holds no sweep but NoneType; allowed are the fields title, jobs"),
    "list": ("[1, 2]", "holds no sweep but list"),
    "not YAML": ("grid: {ipc: [2", "a.yaml is not YAML: "),
    "a name twice": (BASE + "grid: {ipc: [5], seed: [1], ipc: [6]}", "ipc stands twice from line"),
    "a number without end": (BASE + "points: [{ipc: 0x" + "f" * 90 + "}]", "the number in line [0-9]+ is too large"),
    "a date that is none": ("grid: {ipc: [2020-02-31]}", "a.yaml is not YAML: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, load, tmp_path):
    text, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert str(tmp_path / "a.yaml") in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_other_bytes_than_text_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(ConfigError, match="a.yaml is not YAML"):
        load_sweep(tmp_path / "a.yaml")


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="no sweep at .*nowhere.*: give a YAML file"):
        load_sweep(tmp_path / "nowhere" / "ri_m.yaml")
    (tmp_path / "ri_m.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"unknown sweep .*did you mean '.*ri_m\.yaml'"):
        load_sweep(tmp_path / "ri_n.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_sweep(tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_load(path):
    sweep = load_sweep(path)
    assert len(sweep.points) > 1 and all(point.config.dataset == "digits" for point in sweep.points)
    assert all(delt.configure(**said(point.config)) == point.config for point in sweep.points)  # as its notebook will see it


def test_every_shipped_sweep_has_a_smoke_twin():
    names = {path.stem for path in SHIPPED}
    assert len(names) >= 2
    for name in (name for name in names if not name.endswith("_smoke")):
        swept, smoke = load_sweep(SHIPPED[0].with_name(f"{name}.yaml")), load_sweep(SHIPPED[0].with_name(f"{name}_smoke.yaml"))
        assert set(smoke.points[0].parameters) == set(swept.points[0].parameters)


@pytest.mark.parametrize("name", ["earlylate", "fidelity", "groups", "init", "iterations", "weights"])
def test_what_an_ablation_varies_is_all_that_differs(name):
    sweep = load_sweep(SHIPPED[0].with_name(f"{name}.yaml"))
    flats = [flatten(point.config) for point in sweep.points]
    differ = {key for key in flats[0] if len({repr(flat[key]) for flat in flats}) > 1}
    follows = {"earlylate": {"round_iterations"}, "iterations": {"round_iterations"}, "fidelity": set(FIDELITY["strict"])}
    assert differ == set(sweep.points[0].parameters) | follows.get(name, set())


def test_groups_of_the_shipped_sweep_are_what_they_say():
    shapes = []
    for point in load_sweep(SHIPPED[0].with_name("groups.yaml")).points:
        recover = point.config.recover
        groups = make_groups(10, schedule_of(point.config), recover.grouping, recover.group_size, recover.group_cut)
        assert sum(len(group.members) for group in groups) == 10 * point.config.ipc
        shapes.append((len(groups), len(groups[0].members), len({c for c, _ in groups[0].members})))
    assert shapes == [(10, 5, 1), (5, 10, 2), (1, 50, 10), (10, 5, 5), (5, 10, 10)]  # groups, their images, their classes


@pytest.mark.parametrize(
    ("name", "own"), [("earlylate", {"sub_batches": 1}), ("init", {"rank_keep": "random"}), ("fidelity", {"fidelity": "strict"})]
)
def test_shipped_sweeps_name_their_reference(name, own):
    for path in (f"{name}.yaml", f"{name}_smoke.yaml"):
        assert load_sweep(SHIPPED[0].with_name(path)).reference.parameters == own


def test_a_file_that_means_more_than_it_holds_is_refused(tmp_path):
    """A "billion laughs", one that holds itself, one that is too large, too deep, or has a number without an end."""
    path = tmp_path / "bomb.yaml"
    laughs = "\n".join(f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 9)}]" for k in range(9))
    bombs = {
        f"a0: &a0 [lol]\n{laughs}\n": "means .* values, with those that its aliases .* repeat",
        "grid: &a {x: [*a]}\n": "aliases",
        "title: " + "x" * 70_000: "larger than 65,536 bytes",
        "[" * 5000: "nested too deeply",
        "jobs: 1" + "0" * 5000: "too large|is not YAML",
        "title: !!python/object/apply:os.system [exit]": "is not YAML",
    }
    for text, message in bombs.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_sweep(path)


def test_what_a_cluster_is_asked_for_stands_in_the_file(load):
    sweep = load(BASE + "points: [{}]\nslurm: {partition: gpu, time: 240, gpus: 1}\nray: {gpus: 0.5}")
    assert (sweep.slurm.partition, sweep.slurm.time, sweep.slurm.gpus, sweep.ray.gpus) == ("gpu", 240, 1, 0.5)
    assert load(BASE + "points: [{}]").slurm.cluster == "slurm"
    with pytest.raises(ConfigError, match=r"a\.yaml, slurm: unknown field 'partion': did you mean 'partition'"):
        load(BASE + "points: [{}]\nslurm: {partion: gpu}")
    with pytest.raises(ConfigError, match=r"a\.yaml: ray is 'auto'; allowed is a mapping of names to values"):
        load(BASE + "points: [{}]\nray: auto")


def test_a_time_with_colons_is_refused(load):
    with pytest.raises(ConfigError, match="YAML takes 4:00:00 for a number to the base 60: a time is a number of minutes"):
        load(BASE + "points: [{}]\nslurm: {time: 4:00:00}")
