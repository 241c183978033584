"""Rates: measured on random images in a few seconds, or read from what `delt bench` wrote and scaled by operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import delt
from delt.analysis.rates import _more, bench_files, flop, measured, read_bench
from delt.analysis.space import Shape
from delt.errors import ConfigError

DIGITS = Shape(10, 1, 8, 1347)


def test_operations_are_those_of_the_layers():
    """convnet3 of width w: three 3 x 3 convolutions at 8, 4 and 2 pixels, and a linear layer; two operations per multiply-add."""
    w = 5
    expected = 2 * (9 * 1 * w * 64 + 9 * w * w * 16 + 9 * w * w * 4 + w * 1 * 10)
    assert flop("convnet3", w, 10, 1, 8) == expected


@pytest.mark.usefixtures("own_clock")
def test_every_kind_of_work_is_measured_here():
    config = delt.configure("digits", preset="smoke", workers=1, evaluate_students="convnet3-w8,convnet4-w8", evaluate_full=True)
    rates = measured(config, DIGITS)
    assert list(rates.train) == ["teacher"] and all(0 < seconds < 0.1 for seconds in rates.train.values())
    assert set(rates.student) == {(arch, 8, kind) for arch in ("convnet3", "convnet4") for kind in ("soft", "hard", "full")}
    assert all(0 < seconds < 0.1 for seconds in (*rates.student.values(), *rates.student_look.values(), rates.look, rates.write))
    assert rates.recover.images[-1] == 50 and rates.memory is not None and rates.memory > 50e6


@pytest.mark.usefixtures("own_clock")
def test_a_wider_network_takes_longer():
    times: dict[int, list[tuple[float, float]]] = {8: [], 128: []}
    for _ in range(3):  # the least of up to three: other work may run on this machine in the middle of one
        for width, found in times.items():
            rates = measured(delt.configure("digits", preset="smoke", workers=1, teacher_width=width), DIGITS)
            found.append((rates.train["teacher"], rates.recover.seconds[-1]))
        narrow, wide = (tuple(map(min, zip(*found, strict=True))) for found in times.values())
        if all(more > 2 * less for less, more in zip(narrow, wide, strict=True)):
            return
    raise AssertionError(f"{narrow} with 8 channels, {wide} with 128: seconds of an image in training, of an iteration of recover")


@pytest.mark.parametrize(("seconds", "expected"), [([5, 1, 7], 3.0), ([5, 9, 7, 1, 7], 3.0), ([5, 9, 8, 9, 8, 9, 6], 2.0)])
def test_a_pause_of_the_machine_is_no_speed(seconds: list[float], expected: float, monkeypatch: pytest.MonkeyPatch):
    """The short run takes 1 s, the long one 7; 9 and 8 are a pause in the short one: looked at again, and never nought."""
    clock, left = [0.0], iter(seconds)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def run(passes: int) -> None:
        clock[0] += next(left)

    assert _more(run) == expected and not list(left)


@pytest.mark.parametrize("machine", ["cpu", "cuda"])
def test_results_that_come_with_the_package_are_read(machine: str):
    record = json.loads(bench_files()[machine].read_text())
    load = next(load for load in record["loads"] if load["load"]["size"] == 32)
    best = max(load["variants"].values(), key=lambda variant: variant["per_s"])
    rates = read_bench(machine, delt.configure("cifar10", ipc=50), Shape(10, 3, 32, 50_000))
    last = best["rounds"][-1]
    assert rates.recover.rate(last["images"]) == pytest.approx(last["per_s"], rel=0.01)
    assert record["machine"]["device_name"] in rates.notes[0]
    if "training" in load:
        assert rates.train["teacher"] == pytest.approx(1 / load["training"]["teacher_per_s"], rel=0.01)
        assert not any("training was not measured" in note for note in rates.notes)
    else:
        assert any("training was not measured" in note for note in rates.notes)


def test_what_was_not_measured_is_scaled_by_operations_and_said():
    shape = Shape(10, 3, 32, 50_000)
    one, other = (read_bench("cuda", delt.configure("cifar10", ipc=50, teacher_arch=arch), shape) for arch in ("resnet18", "resnet50"))
    ratio = flop("resnet50", None, 10, 3, 32) / flop("resnet18", None, 10, 3, 32)
    assert other.recover.seconds[-1] / one.recover.seconds[-1] == pytest.approx(ratio, rel=0.01)
    assert any("scaled from its resnet18 at 32 px" in note for note in other.notes)
    assert not any("scaled from" in note for note in one.notes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"loads": []}', '{"loads": [{"load": {"size": 32}}]}'])
def test_a_file_that_is_no_bench_is_refused(text: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json holds no results of `delt bench`"):
        read_bench(str(tmp_path / "x.json"), delt.configure("digits"), DIGITS)
