"""The CIFAR-10 table: a trial run from strips of pixels to rows, and the same command again, which does nothing twice."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar10_gpu
from delt.recipes import RECIPES


def write_strips(path: Path, count: int) -> None:
    """Images of noise, one below the other, with their labels."""
    draws = np.random.default_rng(count)
    strips = {}
    for number, part in enumerate((count // 2, count - count // 2)):
        data = io.BytesIO()
        Image.fromarray(draws.integers(256, size=(32 * part, 32, 3), dtype=np.uint8)).save(data, "PNG")
        strips[f"strip_{number}"] = np.frombuffer(data.getvalue(), dtype=np.uint8)
    np.savez(path, labels=(np.arange(count) // 10 % 10).astype(np.uint8), **strips)  # so that every tenth one is of each class


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    write_strips(tmp_path / "cifar10_train.npz", 600)
    write_strips(tmp_path / "cifar10_test.npz", 40)
    for name in [*cifar10_gpu.FORMS, "paper:delt"]:
        monkeypatch.setitem(RECIPES, name, RECIPES.get(name, RECIPES["common"]))  # put back after the test
    monkeypatch.setattr(cifar10_gpu, "TEACHERS", dict(cifar10_gpu.TEACHERS))

    def run(*more: str) -> dict[str, Any]:
        places = ["--data", str(tmp_path), "--state", str(tmp_path / "state"), "--out", str(tmp_path / "out.json")]
        cifar10_gpu.main([*places, "--device", "cpu", "--smoke", *more])
        found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        return found

    return run


def test_choices_are_made_on_the_held_out_images_and_the_same_command_goes_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10_gpu, "fill", lambda *given: None)  # as if the time had ended here
        begun = command("--choose", "--minutes", "5")
    held_out = [row for row in begun["rows"] if row["held_out"]]
    forms, teachers, hows = map(len, (cifar10_gpu.FORMS, cifar10_gpu.TEACHERS, cifar10_gpu.HOWS))
    assert len(held_out) == forms + teachers - 1 + hows - 1 and begun["held_out"] == 60 and begun["images"] == 540
    chosen = begun["chosen"]
    found = {(row["recipe"], row["teacher"], row["how"]): row["last"][0] for row in held_out}
    usual = ("common", cifar10_gpu.LONG, "published")
    for place, (what, count) in enumerate({"form": forms, "teacher": teachers, "how": hows}.items()):
        others = [name for name in found if all(name[k] == usual[k] for k in range(3) if k != place)]
        best = max(others, key=lambda name: found[name])
        assert len(others) == count and found[best] == found[*usual[:place], chosen[what], *usual[place + 1 :]]
    done = command("--choose", "--minutes", "5")
    assert done["rows"][: len(begun["rows"])] == begun["rows"] and done["left_out"] == []
    assert {(row["method"], row["ipc"], row["recipe"], row["labels"]) for row in done["rows"] if not row["held_out"]} >= {
        (method, ipc, recipe, labels)
        for method in ("delt", "random", "delt+rded", "cda")
        for ipc in (3, 2)
        for recipe, labels in (("common", "soft"), ("paper:delt", "soft"), ("common", "hard"))
    }
    assert {row["precision"] for row in done["rows"]} == {"", "fp32", "bf16"}
    assert {row["teacher"] for row in done["rows"] if not row["held_out"]} == {chosen["teacher"]}
    assert all(len(row["last"]) == 2 for row in done["rows"] if not row["held_out"])
    assert command("--choose", "--minutes", "5")["rows"] == done["rows"]
    assert {row["form"] for row in done["rows"] if row["recipe"] == "common" and not row["held_out"]} == {chosen["form"]}
    monkeypatch.setattr(cifar10_gpu, "HELD_OUT", 20)
    with pytest.raises(SystemExit, match="of another run .images, held_out differ.: choose another --state"):
        command("--choose", "--minutes", "5")


def test_a_choice_that_was_left_half_way_is_made_later(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the table's rows wait for it: they would have to be made again."""
    synthetic = cifar10_gpu.Bench.synthetic

    def failing(self: Any, source: cifar10_gpu.Source) -> None:
        if (source.method, source.teacher) != ("delt", cifar10_gpu.LONG):
            raise RuntimeError("no memory")
        synthetic(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10_gpu.Bench, "synthetic", failing)
        begun = command("--choose", "--minutes", "5")
    assert "chosen" not in begun and all(row["held_out"] for row in begun["rows"])
    assert len(begun["rows"]) == len(cifar10_gpu.FORMS) + len(cifar10_gpu.HOWS) - 1
    monkeypatch.setattr(cifar10_gpu, "fill", lambda bench, *given: bench.train(cifar10_gpu.Row("delt", 3, "common", seeds=1)))
    done = command("--choose", "--minutes", "5")
    assert (
        done["chosen"]
        and sum(row["held_out"] for row in done["rows"])
        == len(cifar10_gpu.FORMS) + len(cifar10_gpu.TEACHERS) - 1 + len(cifar10_gpu.HOWS) - 1
    )
    assert {row["how"] for row in done["rows"] if not row["held_out"]} == {done["chosen"]["how"]}


def test_without_time_everything_is_named(command: Any) -> None:
    found = command("--minutes", "0")
    assert found["rows"] == [] and any("synthesis delt 3" in text for text in found["left_out"])
