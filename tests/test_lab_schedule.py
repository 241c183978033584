"""The schedule explorer without a browser: a slider's value is set, and what follows is asserted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image
from test_lab_live import wait

import delt
from delt.analysis.speed import Speed
from delt.errors import ConfigError, DataError, TeacherError
from delt.lab.schedule import ScheduleExplorer


@pytest.fixture
def explorer(tmp_path: Path) -> ScheduleExplorer:
    made = ScheduleExplorer("digits", out=tmp_path, preset="smoke", ipc=5, iterations=100)
    made._measuring.join(60)
    return made


def test_it_opens_in_a_useful_state(explorer: ScheduleExplorer) -> None:
    assert {name: slider.value for name, slider in explorer.sliders.items()} == {
        "iterations": 100,
        "round_iterations": 20,
        "sub_batches": 5,
        "ipc": 5,
    }
    assert explorer.view.kind == "schedule" and explorer.view.state["joins"] == [0, 20, 40, 60, 80]
    facts = dict(explorer.facts())
    assert (
        facts["image-iterations per class"] == "300" and facts["in all (10 classes)"] == "3,000" and facts["saved by EarlyLate"] == "40.0%"
    )
    assert facts["synthesis on this device"].startswith("about ") and facts["synthesis on this device"] in explorer.numbers.value


def test_a_slider_moves_the_picture_the_numbers_and_what_must_follow(explorer: ScheduleExplorer) -> None:
    explorer.sliders["round_iterations"].value = 40
    assert explorer.sliders["sub_batches"].value == 3 and explorer.dials.sub_batches == 3
    assert "M lowered from 5 to 3" in explorer.says.value and "before the end at 100" in explorer.says.value
    assert explorer.view.state["joins"] == [0, 40, 80] and explorer.view.state["sizes"] == [2, 2, 1]
    assert "<td>60</td>" in explorer.numbers.value
    explorer.sliders["ipc"].value = 2
    assert explorer.dials.sub_batches == 2 and explorer.sliders["sub_batches"].max == 2
    explorer.sliders["iterations"].value = 30
    assert explorer.dials.round_iterations == 15 and explorer.sliders["round_iterations"].max == 30
    assert explorer.config.recover.iterations == 30 and explorer.config.ipc == 2
    with pytest.raises(ConfigError, match="no dial 'MI'; there are iterations, "):
        explorer.turn("MI", 3)


def test_a_method_without_earlylate_has_nothing_to_turn(tmp_path: Path) -> None:
    made = ScheduleExplorer("digits", out=tmp_path, preset="smoke", method="fadrm", ipc=5)
    made._measuring.join(60)
    assert {name for name, slider in made.sliders.items() if slider.disabled} == {"round_iterations", "sub_batches"}
    made.sliders["sub_batches"].value = 3  # by Python alone
    assert made.sliders["sub_batches"].value == 1 == made.config.recover.sub_batches and "method fadrm means 1" in made.says.value
    made.sliders["iterations"].value = 2
    assert made.sliders["iterations"].value == 20 and "2 iterations do not make 4 stages" in made.says.value
    made.sliders["iterations"].value = 40
    assert made.config.recover.iterations == 40 and "do not make" not in made.says.value
    assert made.save_html(tmp_path / "page.html").exists()


def test_what_cannot_be_a_teacher_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="vit_b_16 has no BatchNorm layers"):
        ScheduleExplorer("digits", out=tmp_path, preset="smoke", teacher_arch="vit_b_16")


@pytest.mark.parametrize(
    ("error", "says"), [(DataError("no images"), "no images"), (ValueError("odd"), "could not be measured: ValueError: odd")]
)
def test_a_speed_that_cannot_be_measured_is_not_waited_for(
    error: Exception, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: object) -> None:
        raise error

    monkeypatch.setattr("delt.lab.schedule.measure", broken)
    made = ScheduleExplorer("digits", out=tmp_path, preset="smoke")
    made._measuring.join(60)
    assert says in made.says.value and dict(made.facts())["synthesis on this device"] == "not known" and "not known" in made.numbers.value


def test_it_answers_in_150_ms(explorer: ScheduleExplorer) -> None:
    times = []
    for value in range(1, 21):
        begun = time.process_time()  # of this process alone, whatever else the machine does
        explorer.sliders["round_iterations"].value = value
        times.append(time.process_time() - begun)
    assert sorted(times)[len(times) // 2] < 0.15


def test_the_prediction_comes_from_the_measurement(explorer: ScheduleExplorer) -> None:
    explorer.speed = Speed((10, 20), (0.5, 1.0))
    assert explorer.seconds == pytest.approx(20 * sum(n * 0.05 for n in (10, 20)) + 20 * (1.5 + 2 + 2.5))
    explorer.speed = None
    assert explorer.seconds is None and dict(explorer.facts())["synthesis on this device"] == "measuring ..."


def test_runs_stand_side_by_side(explorer: ScheduleExplorer) -> None:
    first = explorer.run()
    first.live.join(60)
    assert first.live.status == "done" and first.images.state["scrub"] and not explorer.run_button.disabled
    explorer.turn("sub_batches", 1)
    second = explorer.run()
    second.live.join(60)
    assert explorer.runs.children == (first, second) and first.live.out != second.live.out
    assert second.live.synthetic is not None and second.live.synthetic.iterations.eq(100).all()
    explorer.turn("sub_batches", 2)
    third = explorer.run()
    third.live.join(60)
    assert explorer.runs.children == (second, third)
    explorer.turn("sub_batches", 1)
    assert explorer.run() is second, "the same settings are the same run"
    second.live.join(60)


@pytest.mark.usefixtures("beat_each_step")
def test_one_run_at_a_time(explorer: ScheduleExplorer) -> None:
    explorer.turn("iterations", 2000)
    panel = explorer.run()
    wait(lambda: panel.live.frame)

    def slowest() -> float:
        """Seconds that a slider takes to answer: of forty moves the third slowest."""
        times = []
        for value in range(1, 41):
            begun = time.perf_counter()
            explorer.sliders["round_iterations"].value = value
            times.append(time.perf_counter() - begun)
        return sorted(times)[-3]

    assert any(slowest() < 0.2 for _ in range(3)), "sliders stay live while it computes"  # other work can only hide it
    explorer.turn("round_iterations", 20)
    assert explorer.running and explorer.run_button.disabled and "under way" in explorer.run_button.tooltip
    assert explorer.run() is panel
    panel.stop.click()
    panel.live.join(60)
    assert not explorer.running and not explorer.run_button.disabled


@pytest.mark.usefixtures("beat_each_step")
def test_a_cell_that_is_run_again_keeps_the_reins(explorer: ScheduleExplorer) -> None:
    explorer.turn("iterations", 2000)
    panel = explorer.run()
    wait(lambda: panel.live.frame)
    again = ScheduleExplorer("digits", out=explorer.out, preset="smoke", ipc=5, iterations=100)
    other = ScheduleExplorer("digits", out=explorer.out / "other", preset="smoke", ipc=5, iterations=100)
    assert again.runs.children == (panel,) and again.run_button.disabled and not other.panels
    panel.stop.click()
    panel.live.join(60)
    assert panel.live.status == "stopped" and not again.run_button.disabled and again.run() is not panel, "other settings are another run"
    assert not explorer.run_button.disabled, "the one before may still be on the page"
    again.panels[-1].live.join(60)
    assert not ScheduleExplorer("digits", out=explorer.out, preset="smoke").panels, "what ended is not taken over"


def test_figure_and_page(explorer: ScheduleExplorer, tmp_path: Path) -> None:
    explorer.turn("sub_batches", 2)
    assert "5 images per class in 2 sub-batches" in explorer.figure().get_suptitle()
    page = explorer.save_html(tmp_path / "page.html").read_text()
    assert "EarlyLate: MI 100, RI 20, M 2, IPC 5" in page and "image-iterations per class" in page
    assert "synthesis on this device" in page and "measuring" not in page, "a page cannot say it later"


def test_a_configuration_is_taken_as_it_is(tmp_path: Path) -> None:
    config = delt.configure("digits", preset="demo", seed=3)
    assert ScheduleExplorer(config, out=tmp_path).config == config
    with pytest.raises(ConfigError, match="no schedule to explore"):
        ScheduleExplorer("digits", method="random", preset="smoke", out=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        ScheduleExplorer("digit", out=tmp_path)


@pytest.mark.parametrize("value", ["abc", 2.5, None, True])
def test_a_dial_takes_whole_numbers_alone(explorer: ScheduleExplorer, value: object) -> None:
    before = explorer.dials
    with pytest.raises(ConfigError, match="iterations is .*; allowed is a whole number from 1"):
        explorer.turn("iterations", value)  # type: ignore[arg-type]
    assert explorer.dials == before


def test_an_own_folders_classes_are_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog", "a$b$c"):
        for part, count in (("train", 3), ("val", 1)):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / f"{k}.png")
    made = ScheduleExplorer(f"folder:{tmp_path / 'data'}", preset="smoke", ipc=2, out=tmp_path / "out")
    made._measuring.join(60)
    assert made.classes == 3 and any(name == "in all (3 classes)" for name, _ in made.facts())
    assert str(tmp_path) not in made._folder and made._folder.startswith("data-delt-smoke-")


def test_large_plans_answer_in_time(tmp_path: Path) -> None:
    large = ScheduleExplorer("imagenet-1k", ipc=50, sub_batches=50, data_root=str(tmp_path), out=tmp_path)
    large._measuring.join(60)
    large.speed = Speed((5, 25), (0.5, 1.0))
    times = []
    for value in range(1, 12):
        begun = time.process_time()
        large.sliders["round_iterations"].value = value
        times.append(time.process_time() - begun)
    assert sorted(times)[len(times) // 2] < 0.15
