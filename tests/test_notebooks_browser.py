"""Notebooks in a real JupyterLab: sliders by keyboard, images that change, buttons that work, a quiet console."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest

PRESET = "demo" if os.environ.get("DELT_SCREENSHOTS") else "smoke"  # pictures for people are worth the wait
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[Any, str, Path]]:
    """(page, address, folder of notebooks) of a fresh JupyterLab."""
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    home.mkdir()
    with browser.opened_page() as page, browser.jupyter_lab(root, home) as address:
        yield page, address, root


def drawings(view: Any) -> int:
    return int(view.get_attribute("data-drawn") or 0)


def until(true: Any, seconds: float = 30) -> float:
    """Wait until something is true; returns the seconds it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "it never came to pass"
        time.sleep(0.01)
    return time.monotonic() - begun


def test_02_explorer(lab: tuple[Any, str, Path]) -> None:
    page, address, root = lab
    browser.with_parameters(NOTEBOOKS / "02_earlylate_explorer.ipynb", root / "02.ipynb", preset="smoke", ipc=10, iterations=400)
    browser.open_notebook(page, address, "02.ipynb")
    browser.run_all(page)
    explorer = page.locator(".delt-schedule").first
    plan, numbers = explorer.locator(".delt-view[data-kind=schedule]"), explorer.locator(".delt-numbers")
    plan.scroll_into_view_if_needed()
    numbers.locator("text=about").wait_for()

    # a slider by keyboard: picture, numbers and words follow
    slider(page, explorer, ".delt-m", 8)
    before, count = numbers.inner_text(), drawings(plan)
    handle = explorer.locator(".delt-ri .noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowRight")
    took = until(lambda: drawings(plan) > count)
    until(lambda: numbers.inner_text() != before)
    print(f"slider to picture: {1000 * took:.0f} ms")
    for _ in range(8):
        page.keyboard.press("PageUp")
    until(lambda: "lowered from" in explorer.locator(".delt-says").inner_text())
    browser.keep(explorer, "explorer")

    # a run whose images change, and that stops
    slider(page, explorer, ".delt-mi", 4000)
    slider(page, explorer, ".delt-ri", 400)
    slider(page, explorer, ".delt-m", 8)
    explorer.locator("button.delt-run").click()
    panel = explorer.locator(".delt-panel").last
    live = panel.locator(".delt-view[data-kind=frames]")
    canvas = live.locator("canvas.delt-canvas")
    until(lambda: "of 100 images" in panel.locator(".delt-words").inner_text())
    seen = canvas.evaluate("canvas => canvas.toDataURL()")
    until(lambda: canvas.evaluate("canvas => canvas.toDataURL()") != seen)
    count = drawings(plan)
    handle.focus()
    page.keyboard.press("ArrowRight")
    print(f"slider to picture while it computes: {1000 * until(lambda: drawings(plan) > count):.0f} ms")
    panel.locator("button.delt-pause").click()
    until(lambda: "paused" in panel.locator(".delt-words").inner_text(), 1.5)
    panel.locator("button.delt-resume").click()
    until(lambda: "left" in panel.locator(".delt-words").inner_text())
    panel.locator(".delt-view[data-kind=curves]").scroll_into_view_if_needed()
    time.sleep(2)  # for a picture with something in it
    browser.keep(panel, "live")
    panel.locator("button.delt-stop").click()
    until(lambda: "stopped at iteration" in panel.locator(".delt-words").inner_text(), 1.5)

    # the scrubber changes the images, without the kernel
    trajectory = page.locator(".delt-trajectory .delt-view").first
    trajectory.scroll_into_view_if_needed()
    until(lambda: trajectory.get_attribute("data-at") is not None)
    at, shown = int(trajectory.get_attribute("data-at")), browser.picture(page, ".delt-trajectory canvas.delt-canvas")
    trajectory.locator(".delt-scrub").focus()
    page.keyboard.press("ArrowLeft")
    until(lambda: trajectory.get_attribute("data-at") == str(at - 1))
    assert browser.picture(page, ".delt-trajectory canvas.delt-canvas") != shown
    trajectory.locator(".delt-class").select_option("7")
    until(lambda: trajectory.get_attribute("data-label") == "7")
    browser.keep(trajectory, "scrubber")
    assert not browser.ours(page.errors)


def test_02_answers_while_its_cells_wait(lab: tuple[Any, str, Path]) -> None:
    """After Run All, as most people begin: the cells below wait for the synthesis, the widgets do not wait for the cells."""
    page, address, root = lab
    browser.with_parameters(NOTEBOOKS / "02_earlylate_explorer.ipynb", root / "02.ipynb", preset="smoke", ipc=10, iterations=40_000)
    browser.open_notebook(page, address, "02.ipynb")
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    explorer = page.locator(".delt-schedule").first
    answers(page, explorer)
    page.locator(".delt-trajectory .delt-view").first.wait_for()
    answers(page, explorer)  # the run beside it, which a later cell begins
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'")
    assert not browser.ours(page.errors)


def answers(page: Any, explorer: Any) -> None:
    """Move a slider, pause, resume and stop the newest run while it works."""
    panel, plan = explorer.locator(".delt-panel").last, explorer.locator(".delt-view[data-kind=schedule]")
    words = panel.locator(".delt-words")
    until(lambda: "images, iteration" in words.inner_text(), 60)
    time.sleep(1)  # the cell that waits has begun
    count = drawings(plan)
    explorer.locator(".delt-ri .noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    until(lambda: drawings(plan) > count, 5)
    panel.locator("button.delt-pause").click()
    until(lambda: "paused" in words.inner_text(), 5)
    panel.locator("button.delt-resume").click()
    until(lambda: "paused" not in words.inner_text(), 5)
    panel.locator("button.delt-stop").click()
    until(lambda: "stopped at iteration" in words.inner_text(), 5)


def test_03_diversity(lab: tuple[Any, str, Path]) -> None:
    page, address, root = lab
    browser.with_parameters(NOTEBOOKS / "03_diversity.ipynb", root / "03.ipynb", preset=PRESET, perplexity=20)
    browser.open_notebook(page, address, "03.ipynb")
    browser.run_all(page)
    explorer = page.locator(".delt-diversity").first
    scatter = explorer.locator(".delt-view[data-kind=scatter]")
    scatter.wait_for()
    until(lambda: drawings(scatter) > 0)
    until(lambda: "Point at a dot" in explorer.locator(".delt-says").inner_text())
    assert "random real images" in explorer.locator(".delt-numbers").inner_text()
    scatter.locator("canvas.delt-canvas").scroll_into_view_if_needed()

    # pointing at dots shows their images, and clicking lists one
    first = point_at_a_dot(page, scatter, after=0)
    tooltip = scatter.locator(".delt-tooltip")
    shown, says = browser.picture(page, ".delt-tooltip canvas"), tooltip.inner_text()
    assert "class: " in says and "source: " in says
    point_at_a_dot(page, scatter, after=first)
    assert browser.picture(page, ".delt-tooltip canvas") != shown and tooltip.inner_text() != says
    page.mouse.down()
    page.mouse.up()
    until(lambda: scatter.locator(".delt-picked td canvas").count() == 1)
    box = scatter.locator("canvas.delt-canvas").bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.6), (0.02, 0.6), (0.02, 0.02)]
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 0.02 * box["height"])
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
    page.mouse.up()
    until(lambda: scatter.locator(".delt-picked td canvas").count() > 5)
    point_at_a_dot(page, scatter, after=0.5)
    browser.keep(explorer, "diversity")

    # the widgets: another perplexity, another set, another page
    count = drawings(scatter)
    explorer.locator(".delt-perplexity .noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    until(lambda: drawings(scatter) > count and "Point at a dot" in explorer.locator(".delt-says").inner_text())
    count = drawings(scatter)
    explorer.locator(".delt-set select").select_option("random real images")
    until(lambda: drawings(scatter) > count)
    explorer.get_by_role("tab", name="Pairs of a class").click()
    heat = explorer.locator("img.widget-image:visible")
    until(lambda: heat.evaluate("image => image.naturalWidth") > 600)
    before = heat.get_attribute("src")
    explorer.locator(".delt-class select").select_option("3  3")
    until(lambda: heat.get_attribute("src") != before)

    # every picture is as narrow as the window makes it
    page.set_viewport_size({"width": 900, "height": 1300})
    for name in ("By class", "Pairs of a class", "By depth"):
        explorer.get_by_role("tab", name=name).click()
        until(lambda: heat.evaluate("image => image.complete && image.naturalWidth") > 600)
        assert heat.evaluate("image => image.getBoundingClientRect().right - image.parentElement.getBoundingClientRect().right") <= 0
    assert not browser.ours(page.errors)


def point_at_a_dot(page: Any, scatter: Any, after: float) -> float:
    """Move the mouse over the scatter from left to right until a dot shows its image; returns how far that was, 0 .. 1."""
    box = scatter.locator("canvas.delt-canvas").bounding_box()
    tooltip, dot = scatter.locator(".delt-tooltip"), None
    for column in range(int(after * 60) + 1, 60):
        for row in range(1, 40):
            page.mouse.move(box["x"] + column / 60 * box["width"], box["y"] + row / 40 * box["height"])
            dot = tooltip.evaluate("tip => tip.style.display === 'block' ? tip.dataset.dot : null")
            if dot is not None:
                return column / 60
    raise AssertionError("no dot was found")


def slider(page: Any, explorer: Any, name: str, value: int) -> None:
    """Type a slider's value into its readout."""
    readout = explorer.locator(f"{name} .widget-readout")
    readout.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(value))
    page.keyboard.press("Enter")
    until(lambda: readout.inner_text().replace(",", "") == str(value))
