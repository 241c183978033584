"""The measurement: what it counts is right, the plain loop is an honest one, and the engine keeps its lead by ratio and launches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from delt import bench
from delt.bench import Launches, Load, Rival, against_reference, ceilings, count_launches, pack_of, rounds
from delt.cli import main
from delt.config import RuntimeConfig
from delt.errors import ConfigError
from delt.models import zoo
from delt.runtime import resolve

TINY = Load(8, "resnet18", 4, ipc=4, sub_batches=2, iterations=20, group=8, seconds=0.01)
CPU = resolve(RuntimeConfig(device="cpu"))


def test_launches_are_operators_that_work() -> None:
    x = torch.ones(4, 4)
    with Launches() as counted:
        y = (x.view(16).unsqueeze(0).T + 1).relu_()  # two launches, three views
        torch.empty(3), y.sum().item()  # one launch, an allocation, a read
    assert counted.count == 3


def test_an_iteration_has_the_published_number_of_launches_and_ours_half_of_it() -> None:
    load = replace(TINY, size=32)
    assert 700 <= Rival(load, CPU, 8).launches() <= 780
    assert count_launches(load, CPU) <= 350
    assert count_launches(load, resolve(RuntimeConfig(device="cpu", precision="bf16"))) <= 350


@pytest.mark.usefixtures("own_clock")
def test_the_engine_is_faster_than_the_plain_loop() -> None:
    """By ratio in one process, in turns; noise can only hide it, so it is looked for three times."""
    load = replace(TINY, size=16, width=16, ipc=8, group=16, seconds=0.5)
    found = (against_reference(load, {"fp32": CPU}) for _ in range(3))
    assert any(one["ratio"]["fp32"] > 1.1 and one["images"] == 16 for one in found)


def test_the_plain_loop_is_the_papers() -> None:
    """Without crop and mirror: the images after two steps are those of Adam on the written-out loss."""
    model = zoo.build("resnet18", 3, 3, 8, 4, generator_seed=1).double().eval().requires_grad_(False)
    start = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    labels, joins = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    loop = bench.reference().ReferenceLoop(model, start, labels, joins, 10, (0.5,) * 3, (0.25,) * 3, min_crop=1.0)
    loop.random.random = lambda: 0.9  # never mirrored
    plain = start.clone().requires_grad_()
    adam = torch.optim.Adam([plain], betas=(0.5, 0.9))
    twin, inputs = zoo.build("resnet18", 3, 3, 8, 4, generator_seed=1).double().eval().requires_grad_(False), []
    norms = [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    for t in range(2):
        loop.step(t)
        inputs.clear()
        adam.param_groups[0]["lr"] = 0.25 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * t / 10)).item())
        seen = torch.nonzero(joins <= t).squeeze(1)
        loss = F.cross_entropy(twin(plain[seen]), labels[seen])
        for k, (layer, x) in enumerate(zip(norms, inputs, strict=True)):
            off = (x.var((0, 2, 3), correction=0) - layer.running_var).norm() + (x.mean((0, 2, 3)) - layer.running_mean).norm()
            loss = loss + 0.01 * off * (10 if k == 0 else 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            plain.clamp_(-2, 2)
    assert (loop.images - plain).abs().max() < 1e-5


def test_the_work_of_an_image_is_the_networks() -> None:
    expected = {32: 2.222, 64: 8.887}  # GFLOP of ResNet-18 with a small stem, forward and back to the pixels
    for size, gflop in expected.items():
        assert Load(size).flop / 1e9 == pytest.approx(gflop, abs=0.001)


def test_rounds_are_those_of_the_schedule() -> None:
    found = rounds(TINY, CPU)
    assert [(row["iterations"], row["images"]) for row in found["rounds"]] == [(10, 4), (10, 8)]
    assert all(row["per_s"] == pytest.approx(row["images"] / row["seconds"]) for row in found["rounds"])
    whole = sum(row["iterations"] * row["seconds"] for row in found["rounds"])
    assert found["saved"] == pytest.approx(1 - whole / (20 * found["rounds"][-1]["seconds"])) and found["saved_ideal"] == 0.25
    assert found["per_s"] == pytest.approx(120 / whole) and found["tflops"] == pytest.approx(120 / whole * TINY.flop / 1e12)
    _, packs = pack_of(TINY, CPU)
    assert packs == 5 and found["predicted_hours"] == pytest.approx(5 * whole / 3600)  # two of ten classes in each of five groups


def test_ceilings_are_positive_numbers() -> None:
    assert all(value > 0 for value in ceilings(CPU, 0.01).values())


def test_a_smoke_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--smoke", "--device", "cpu", "--variants", "fp32,bf16", "--out", str(tmp_path / "bench.json")])
    out, record = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert {"date", "machine", "loads"} == set(record) and [entry["load"]["size"] for entry in record["loads"]] == [8, 16]
    for entry in record["loads"]:
        assert set(entry["variants"]) == set(entry["against_reference"]["ratio"]) == {"fp32", "bf16"}
    assert out.count("image-iterations/s") == 6 and "plain loop" in out


def test_bad_input_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="variant is 'fp32\\+fast'; allowed are"):
        bench.bench("cpu", variants=["fp32+fast"])
    with pytest.raises(SystemExit):
        main(["bench", "--sizes", "thirty"])
    assert "sizes is 'thirty'; allowed are whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_seconds_that_cannot_be_are_refused_before_anything_is_measured(seconds, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--smoke", "--seconds", seconds])
    assert "allowed is a finite number above 0" in capsys.readouterr().err


def test_a_crop_is_the_same_as_the_plain_loops() -> None:
    """The loop's boxes are made of whole pixels inside the image, as those of the engine are."""
    loop = Rival(TINY, CPU, 4).loop
    boxes = [loop.box(8, 0.08) for _ in range(500)]
    assert all(top >= 0 and left >= 0 and top + height <= 8 and left + width <= 8 for top, left, height, width in boxes)
    assert min(height * width for _, _, height, width in boxes) < 12
