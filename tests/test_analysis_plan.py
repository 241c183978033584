"""Plans: arithmetic against slow obvious sums, properties, and a small run on digits that takes about what was predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import delt
from delt.analysis.plan import GPUS, Plan, makespan, packing_of, plan_of, quantity
from delt.analysis.rates import bench_files, flop, read_bench
from delt.analysis.space import Shape
from delt.analysis.speed import groups_of
from delt.errors import ConfigError
from delt.grouping import packs
from delt.recipes import recipe_of
from delt.schedule import plan
from delt.stages.squeeze import backbones


@pytest.fixture(scope="module")
def imagenet() -> Plan:
    return plan_of(delt.configure("imagenet-1k", ipc=50, evaluate_controls=[]), "cuda")


def row(plan: Plan, stage: str) -> Any:
    return next(row for row in plan.rows if row.stage == stage)


def test_imagenet_takes_the_published_work(imagenet: Plan):
    """115.5 million image-iterations: IPC 50, MI 4000, eight sub-batches (DELT, arXiv 2411.19946)."""
    assert row(imagenet, "recover").work == 115_500_000
    per_image = flop("resnet18", None, 1000, 3, 224)
    assert per_image == pytest.approx(3.63e9, rel=0.01)  # 1.8 thousand million multiply-adds, as published
    assert row(imagenet, "recover").flop == 2 * 115_500_000 * per_image
    assert row(imagenet, "squeeze").work == 50_000, "published weights are tested alone"
    assert row(imagenet, "rank").work == 300 * 1000
    assert 1.0 < imagenet.seconds(1, 1) / 3600 < 24


def test_imagenet_21k_is_planned_without_its_files():
    found = plan_of(delt.configure("imagenet-21k", ipc=20, evaluate_controls=[]), "cuda")
    schedule = plan(2000, 20, None, 8)
    expected = sum(sum(schedule.sizes[: schedule.active(t)]) for t in range(2000)) * 10_450
    assert row(found, "recover").work == expected
    assert row(found, "squeeze").work == 200 * 11_060_223 + 522_500
    assert "imagenet" not in found.table() and "64 GPUs" in found.table()


def test_one_gpu_has_all_the_work_and_more_are_never_slower(imagenet: Plan):
    for stage in imagenet.rows:
        whole = sum(sum(units) for units in stage.phases) + stage.shared + stage.alone
        assert stage.seconds(1) == pytest.approx(whole)
        times = [stage.seconds(count) for count in (1, 2, 3, 8, 64, 1000)]
        assert times == sorted(times, reverse=True)
        assert times[-1] >= stage.alone
        assert all(stage.seconds(count) >= whole / count - 1e-9 for count in GPUS)


def test_twice_the_iterations_are_twice_the_work():
    one, two = (plan_of(delt.configure("cifar10", ipc=10, iterations=count, evaluate_controls=[]), "cuda") for count in (400, 800))
    assert row(two, "recover").work == 2 * row(one, "recover").work
    assert row(two, "recover").flop == 2 * row(one, "recover").flop
    assert row(two, "recover").seconds(1) > 1.5 * row(one, "recover").seconds(1)
    assert row(two, "evaluate").seconds(1) == row(one, "evaluate").seconds(1)


def test_controls_count():
    plain, more = (
        plan_of(delt.configure("cifar10", ipc=10, evaluate_full=False, evaluate_controls=names), "cuda")
        for names in ([], ["one_sub_batch", "random"])
    )
    assert row(more, "recover").work > 2 * row(plain, "recover").work
    assert row(more, "evaluate").flop == pytest.approx(3 * row(plain, "evaluate").flop) and len(row(more, "recover").phases) == 3
    assert more.disk > plain.disk


def slow_makespan(costs: list[float], processes: int) -> float:
    ends = [0.0] * processes
    for cost in sorted(costs)[::-1]:
        first = min(range(processes), key=lambda place: ends[place])
        ends[first] += cost
    return max(ends)


@pytest.mark.parametrize("costs", [[], [3.0], [1.0] * 20, [5.0, 1.0, 1.0, 1.0, 1.0, 1.0], [float(k * k % 17) for k in range(40)]])
@pytest.mark.parametrize("processes", [1, 2, 7, 64])
def test_units_are_dealt_the_dearest_first(costs: list[float], processes: int):
    found = makespan(costs, processes)
    assert found == pytest.approx(slow_makespan(costs, processes))
    assert found >= max([*costs, sum(costs) / processes]) - 1e-9 and found <= sum(costs) + 1e-9


def test_packing_is_as_configured_or_what_keeps_a_gpu_busy():
    config, shape = delt.configure("cifar10", ipc=50), Shape(10, 3, 32, 50_000)
    rates = read_bench("cuda", config, shape)
    assert packing_of(delt.configure("cifar10", ipc=50, packing=3), shape, rates, True) == 3
    assert packing_of(config, shape, rates, False) == 1
    assert packing_of(config, shape, rates, True) == len(packs(groups_of(config, 10), 1)) == 5


@pytest.mark.parametrize(("name", "place", "gpu"), [("cuda", "cpu-lab/h200.json", True), ("cpu", "cuda-lab/mine.json", False)])
def test_whether_it_is_a_gpu_is_in_the_file_and_not_in_its_name(name: str, place: str, gpu: bool, tmp_path: Path):
    (tmp_path / place).parent.mkdir()
    (tmp_path / place).write_bytes(bench_files()[name].read_bytes())
    config = delt.configure("cifar10", ipc=10)
    found, known = plan_of(config, str(tmp_path / place)), plan_of(config, name)
    assert found.gpu == known.gpu == gpu and found.packing == known.packing


@pytest.mark.parametrize("mode", ["online", "stored"])
def test_labels_by_all_teachers_count_all_of_them(mode: str, monkeypatch: pytest.MonkeyPatch):
    given = {"method": "gvbsm", "evaluate_recipe": "paper:gvbsm", "evaluate_controls": [], "evaluate_full": False}
    config = delt.configure("cifar10", ipc=10, evaluate_labels=["soft"], relabel_mode=mode, **given)
    others = [flop(one.arch, one.width, 10, 3, 32) for one in backbones(config.teacher).values()][1:]
    found = plan_of(config, "cuda")
    monkeypatch.setattr("delt.analysis.rates.recipe_of", lambda *given: replace(recipe_of(*given), voters="first"))
    alone, stage = plan_of(config, "cuda"), "evaluate" if mode == "online" else "relabel"
    work = row(found, stage).work
    assert len(others) > 2 and row(found, stage).flop - row(alone, stage).flop == work * sum(others)
    assert sum(map(sum, row(found, stage).phases)) > sum(map(sum, row(alone, stage).phases))


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 FLOP"), (999, "999 FLOP"), (1.155e8, "116 MFLOP"), (8.38e17, "838 PFLOP"), (2.62e19, "26.2 EFLOP")]
)
def test_quantities_are_short(number: float, words: str):
    assert quantity(number, "FLOP") == words


@pytest.mark.parametrize("machine", ["h300", "nowhere/bench.json"])
def test_a_machine_nobody_measured_is_refused(machine: str):
    with pytest.raises(ConfigError, match=f"machine is '{machine}'; allowed are here, cpu, cuda, or a file that `delt bench` wrote"):
        plan_of(delt.configure("digits"), machine)


def taken(out: Path) -> float:
    """Seconds of all stages of a run and its controls, which share one evaluation."""
    total = 0.0
    for place in (out, *sorted((out / "controls").iterdir())):
        stages = json.loads((place / "manifest.json").read_text())["stages"]
        total += sum(stage["seconds"] for name, stage in stages.items() if name not in ("evaluate", "diversity"))
    return total + json.loads((out / "manifest.json").read_text())["stages"]["evaluate"]["seconds"]


def test_a_run_on_digits_takes_what_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within 30 %, in one of four attempts: other processes may disturb either half of one."""
    settings = {"preset": "demo", "evaluate_epochs": 12, "evaluate_full": False, "teacher_epochs": 8, "iterations": 100}
    config = delt.configure("digits", workers=1, evaluate_seeds=2, teacher_min_accuracy=0.0, **settings)  # type: ignore[arg-type]
    found = []
    for attempt in range(4):
        monkeypatch.setenv("DELT_CACHE", str(tmp_path / f"cache{attempt}"))
        predicted = plan_of(config).seconds()
        delt.run(config, tmp_path / f"{attempt}", listener=lambda event: None)
        found.append(predicted / taken(tmp_path / f"{attempt}"))
        if 0.7 < found[-1] < 1.3:
            return
    raise AssertionError(f"predicted over taken: {found}")
