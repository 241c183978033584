"""The visual language: the ramp, the sets' looks, and a frame that neither takes nor leaves settings."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from test_plots_similarity import toy

from delt import plots
from delt.errors import DataError
from delt.plots import style


@style.styled
def a_figure() -> style.Picture:
    figure = style.picture("Title", "subtitle", 2.0, {"DELT": style.SETS["delt"], "random": style.SETS["random"]})
    ax = figure.add_subplot(xlabel="x", ylabel="y")
    style.dots(ax, [0, 1], [1, 0], style.SETS["delt"])
    return figure


@pytest.mark.parametrize("count", [1, 2, 8, 50])
def test_sub_batches_go_from_dark_to_light(count: int) -> None:
    colours = style.sub_batch_colours(count)
    light = [np.array([0.2126, 0.7152, 0.0722]) @ (np.array(to_rgb(colour)) ** 2.2) for colour in colours]
    assert len(colours) == count
    assert all(early < late for early, late in zip(light, light[1:], strict=False))
    assert light[-1] < 0.75  # and can be seen on white


def test_each_set_has_its_own_look_in_every_figure() -> None:
    styles = style.set_styles(["mine", "delt", "random", "real", "yours", "mine"])
    assert styles["delt"] == style.set_styles(["delt"])["delt"] == style.SETS["delt"]
    assert [name for name, look in styles.items() if look.dashed] == ["random"]
    colours = [look.colour for look in styles.values()]
    assert len(set(colours)) == len(styles) == 5
    assert len(set(to_rgb(styles["real"].colour))) == 1  # grey
    known = [look.colour for name, look in style.SETS.items() if name != "full"]  # drawn like real: it is all of them
    assert len(set(known)) == len(known)
    assert not set(known) & set(style.OTHERS)


def test_sets_stand_in_the_same_order_in_every_figure() -> None:
    assert style.in_order(["b", "real", "a", "random", "delt"]) == ["delt", "random", "real", "b", "a"]


def test_dark_colours_carry_white_letters_and_light_ones_ink() -> None:
    assert [style.on(colour) for colour in ("#000000", "#440154", "#fde725", "#ffffff")] == ["white", "white", style.INK, style.INK]


@pytest.mark.parametrize(("count", "most", "expected"), [(5, 5, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (5, 1, [0])])
def test_spread_keeps_the_first_and_the_last(count: int, most: int, expected: list[int]) -> None:
    assert style.spread(list(range(count)), most) == expected


def test_shown_labels_are_the_first_ten_or_those_asked_for() -> None:
    assert style.shown_labels(None, 100) == list(range(10))
    assert style.shown_labels(None, 3) == [0, 1, 2]
    assert style.shown_labels([2, 0], 3) == [2, 0]
    with pytest.raises(DataError, match=r"classes are \[3\]; allowed are labels from 0 to 2"):
        style.shown_labels([3], 3)


def test_numbers_and_nouns_agree() -> None:
    assert [style.many(1, "image"), style.many(2000, "image"), style.many(2, "class", "es")] == ["1 image", "2,000 images", "2 classes"]


def test_a_part_and_the_whole_are_told_apart() -> None:
    assert [style.of_all(1, 1, "class", "es"), style.of_all(3, 3, "class", "es")] == ["1 class", "all 3 classes"]
    assert [style.of_all(1, 2, "image"), style.of_all(10, 1000, "class", "es")] == ["1 of 2 images", "10 of 1,000 classes"]


@pytest.mark.parametrize(("counts", "said"), [([3, 1], ["bar: std"]), ([1, 1], ["one student each, so the spread is unknown"]), ([], [])])
def test_nothing_is_said_of_a_spread_that_is_not_there(counts: list[int], said: list[str]) -> None:
    assert style.spread_marks(counts, "bar: std") == said


def test_matplotlib_is_left_as_it_was_and_the_users_style_has_no_say(tmp_path: Path) -> None:
    plain = style.png(a_figure())
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        assert style.png(a_figure()) == plain
    assert dict(matplotlib.rcParams) == before
    a_figure().savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_notebook_shows_a_figure_by_itself() -> None:
    figure = a_figure()
    data, size = figure._repr_png_()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.width, size["width"]) == (1400, 700)
        assert abs(image.height - 2 * size["height"]) <= 1


def test_dollars_are_text() -> None:
    """A class may be called anything; mathematics would not even parse."""
    names = ("$\\frac{x$", "a$b$c", "x_y")
    figure = plots.class_similarity([replace(toy(), classes=names)])
    assert style.png(figure).startswith(b"\x89PNG")
    assert {tick.get_text() for tick in figure.axes[0].get_xticklabels()} == set(names)


def test_long_names_lose_their_middle() -> None:
    assert style.elided("short", 10) == "short" and style.elided("runs/earlylate-500", 11) == "runs/…e-500"
    assert all(len(style.elided("x" * 40, most)) <= most for most in range(5, 30))


def test_shortened_names_are_told_apart() -> None:
    rates = [f"runs/cifar10-delt-ipc10-lr{rate}-weight3-published-settings" for rate in (0.01, 0.02, 0.05)]
    assert len(set(map(partial(style.elided, most=24), rates))) == 1, "cut in the middle they would look alike"
    assert style.told_apart(rates, 24) == [f"…{rate}-weigh…hed-settings" for rate in (0.01, 0.02, 0.05)]
    draws = random.Random(0)
    for most in (8, 18, 44):
        names = ["".join(draws.choices("ab", k=draws.randint(1, 60))) for _ in range(200)]
        shown = style.told_apart(names, most)
        assert len(shown) == len(names) and all(len(look) <= most for look in shown)
        assert len(set(shown)) == len(set(names))
        assert all(look == name for name, look in zip(names, shown, strict=True) if len(name) <= most)


def test_names_in_wide_letters_are_slanted_before_they_overlap() -> None:
    for name, rotation in (("飛行機", 40), ("abc", 0)):
        ax = style.picture("", "", 2.0).subplots()
        style.class_ticks(ax, [name] * 10, 40)
        assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {rotation}
        assert style.class_ticks_height([name] * 10, 40) == pytest.approx(0.1 + 0.042 * 6 if rotation else 0.15)
