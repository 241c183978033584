import io
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from delt import plots
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Score, Scores
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.synthetic import SyntheticSet
from delt.errors import DataError
from delt.schedule import plan

NAMES = ("tench", "English springer", "cassette player")


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def a_set(
    ipc: int = 6, sub_batches: int = 3, classes: tuple[str, ...] = NAMES, channels: int = 1, size: int = 8, iterations: int = 90
) -> SyntheticSet:
    schedule, k = plan(iterations, ipc, None, sub_batches if iterations else None), len(classes)
    depth = torch.tensor(schedule.sub_batch_of).repeat(k)
    updates = torch.tensor(schedule.updates)[depth]
    labels = torch.arange(k).repeat_interleave(ipc)
    return SyntheticSet(noise(k * ipc, channels, size, size), labels, classes, depth, updates, ["noise"] * k * ipc, 0)


def some_snapshots(groups: int = 2, channels: int = 1, size: int = 8) -> Snapshots:
    """Two classes of four images in two sub-batches; the late ones join at iteration 50 of 100."""
    times, late = torch.arange(0, 101, 10), torch.tensor([0, 0, 1, 1]).repeat(2)
    images = noise(11, 8, channels, size, size)
    images[:6, late == 1] = images[0, late == 1]
    readings = [
        {"group": f"g{group}", "iteration": t, "cross_entropy": [0.1, 0.2 + group][: 1 + (t >= 50)], "bn": 3.0 + group}
        for group in range(groups)
        for t in range(0, 100, 10)
    ]
    return Snapshots(images, times.unsqueeze(1).expand(-1, 8), torch.arange(2).repeat_interleave(4), late, readings)


def some_scores() -> Scores:
    rows = [
        Score(name, "common", labels, "convnet3", seed, 30, 50 + 3 * place + seed, 60)
        for place, name in enumerate(("delt", "random", "one_sub_batch"))
        for labels in ("soft", "hard")
        for seed in range(3)
    ]
    return Scores([*rows, Score("full", "common", "hard", "convnet3", 0, 60, 97.5, 98)])


def a_ranking(keep: str = "medium") -> Ranking:
    count = 20
    score = torch.cat([torch.linspace(0.2, 1, count), torch.linspace(0.9, 0.9999, count)])
    place = torch.full((2 * count,), -1)
    place[[9, 10, 29, 30]] = torch.tensor([0, 1, 0, 1])
    zero = torch.zeros(2 * count, dtype=torch.long)
    return Ranking(("a", "b"), keep, 1, torch.arange(2).repeat_interleave(count), zero, zero, zero, zero, zero, score, place)


VALUES = {
    name: {"mean": 0.9 - 0.1 * k, **{cls: 0.9 - 0.1 * k + 0.01 * c for c, cls in enumerate(NAMES)}}
    for k, name in enumerate(("delt", "random", "real"))
}
MANY = {"delt": {"mean": 0.8, **{f"c{k}": 0.7 + k / 500 for k in range(100)}}, "random": {}}

FIGURES: dict[str, Callable[[], Figure]] = {
    "schedule": lambda: plots.schedule(plan(4000, 50), 0.25, 0.08, "cosine", 1.0),
    "schedule, one sub-batch": lambda: plots.schedule(plan(300, 1)),
    "schedule, nothing to do": lambda: plots.schedule(plan(0, 5)),
    "schedule, many sub-batches": lambda: plots.schedule(plan(4000, 50, None, 50), curriculum="step", milestone=0.5),
    "schedule, own clocks": lambda: plots.schedule(plan(300, 10), clock="own"),
    "schedule, no rate": lambda: plots.schedule(plan(300, 10), base_lr=0.0),
    "images": lambda: plots.images(a_set()),
    "images, one": lambda: plots.images(a_set(ipc=1, sub_batches=1, classes=("only",))),
    "images, colour": lambda: plots.images(a_set(channels=3, size=80), per_class=2, classes=[2, 0]),
    "images, many": lambda: plots.images(a_set(ipc=50, sub_batches=8), per_class=50),
    "images, not optimised": lambda: plots.images(a_set(iterations=0), what="Random real images"),
    "trajectory": lambda: plots.trajectory(some_snapshots(), 1, name="tench"),
    "trajectory, two steps": lambda: plots.trajectory(some_snapshots(channels=3, size=80), 0, steps=2),
    "losses": lambda: plots.losses(some_snapshots()),
    "losses, one group": lambda: plots.losses(some_snapshots(groups=1)),
    "losses, none": lambda: plots.losses(some_snapshots(groups=0)),
    "accuracy": lambda: plots.accuracy(some_scores()),
    "accuracy, one student": lambda: plots.accuracy(Scores(some_scores().rows[:1])),
    "accuracy, none": lambda: plots.accuracy(Scores()),
    "diversity": lambda: plots.diversity(VALUES),
    "diversity, many classes": lambda: plots.diversity(MANY),
    "diversity, none": lambda: plots.diversity({"delt": {}}),
    "ranking": lambda: plots.ranking(a_ranking()),
    "ranking, one class": lambda: plots.ranking(a_ranking(), classes=[1]),
}


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request: pytest.FixtureRequest) -> FigureCanvasAgg:
    """Each figure, laid out and drawn once for the tests below."""
    canvas = FigureCanvasAgg(FIGURES[request.param]())
    canvas.draw()
    return canvas


def test_nothing_is_cut_off_at_the_edge(drawn: FigureCanvasAgg) -> None:
    picture = np.asarray(drawn.buffer_rgba())[:, :, :3].min(2)
    assert picture.shape[1] == 700
    assert picture.min() < 120
    assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_every_axis_says_what_it_shows(drawn: FigureCanvasAgg) -> None:
    for ax in drawn.figure.axes:
        if ax.get_label() == "<colorbar>" or ax.images:  # a grid of images has row names and a head instead
            continue
        assert any(other.get_xlabel() for other in ax.get_shared_x_axes().get_siblings(ax))
        rows = [tick.get_text() for other in ax.get_shared_y_axes().get_siblings(ax) for tick in other.get_yticklabels()]
        assert ax.get_ylabel() or any(rows)


def test_title_subtitle_and_key_lie_above_the_data(drawn: FigureCanvasAgg) -> None:
    figure, renderer = drawn.figure, drawn.get_renderer()
    assert figure.get_suptitle()
    assert len(figure.texts) == 2
    data = max(ax.get_window_extent().y1 for ax in figure.axes)
    stack = sorted((part.get_window_extent(renderer) for part in (*figure.texts, *figure.legends)), key=lambda box: -box.y0)
    assert all(box.y0 > data and box.x1 < figure.bbox.x1 for box in stack)
    assert all(upper.y0 >= lower.y1 - 4 for upper, lower in zip(stack, stack[1:], strict=False))


def words(ax: Axes) -> Iterator[Text]:
    """Texts that are seen: no ticks outside the limits, none that slant."""
    (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    yield from ax.texts
    yield from (text for text in ax.get_xticklabels() if left <= text.get_position()[0] <= right)
    yield from (text for text in ax.get_yticklabels() if low <= text.get_position()[1] <= high)


def test_words_do_not_overlap(drawn: FigureCanvasAgg) -> None:
    texts = [text for ax in drawn.figure.axes for text in words(ax) if text.get_text() and text.get_visible() and not text.get_rotation()]
    spans = [(text.get_text(), text.get_window_extent(drawn.get_renderer())) for text in texts]
    assert spans
    for k, (first, one) in enumerate(spans):
        for second, other in spans[k + 1 :]:
            overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
            assert overlap[0] <= 1 or overlap[1] <= 3, f"{first!r} lies on {second!r}"


@pytest.mark.parametrize("count", [1, 2, 8, 50])
def test_sub_batches_go_from_dark_to_light(count: int) -> None:
    colours = plots.sub_batch_colours(count)
    light = [np.array([0.2126, 0.7152, 0.0722]) @ (np.array(to_rgb(colour)) ** 2.2) for colour in colours]
    assert len(colours) == count
    assert all(early < late for early, late in zip(light, light[1:], strict=False))
    assert light[-1] < 0.75  # and can be seen on white


def test_each_set_has_its_own_look_in_every_figure() -> None:
    styles = plots.set_styles(["mine", "delt", "random", "real", "yours", "mine"])
    assert styles["delt"] == plots.set_styles(["delt"])["delt"] == plots.SETS["delt"]
    assert [name for name, style in styles.items() if style.dashed] == ["random"]
    colours = [style.colour for style in styles.values()]
    assert len(set(colours)) == len(styles) == 5
    assert len(set(to_rgb(styles["real"].colour))) == 1  # grey
    known = [style.colour for name, style in plots.SETS.items() if name != "full"]  # drawn like real: it is all of them
    assert len(set(known)) == len(known)
    assert not set(known) & set(plots.OTHERS)


def test_bars_of_the_schedule_are_its_work() -> None:
    schedule = plan(4000, 50)
    figure = plots.schedule(schedule)
    bars, rate, crop = figure.axes
    areas = [patch.get_width() * patch.get_height() for patch in bars.patches]  # type: ignore[attr-defined]
    assert sum(areas) == schedule.image_iterations == 115_500
    assert [patch.get_x() for patch in bars.patches] == list(schedule.joins)  # type: ignore[attr-defined]
    assert any("42.25%" in text.get_text() for text in figure.texts)
    line = rate.lines[0]
    assert np.asarray(line.get_ydata())[[0, -1]] == pytest.approx([0.25, 0])
    assert np.asarray(crop.lines[0].get_ydata())[[0, -1]] == pytest.approx([100, 8])


def shown(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.images]


def test_images_lie_in_rows_of_classes_early_ones_left() -> None:
    synthetic = a_set(ipc=6, sub_batches=3)
    (ax,) = plots.images(synthetic, per_class=3, classes=[2, 0]).axes
    expected = synthetic.images[[12, 14, 17, 0, 2, 5], 0].numpy()
    assert all(np.array_equal(a, b) for a, b in zip(shown(ax), expected, strict=True))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cassette player", "tench"]
    assert [image.get_extent()[0] for image in ax.images[:3]] == sorted(image.get_extent()[0] for image in ax.images[:3])
    assert all(image.get_interpolation() == "nearest" for image in ax.images)
    texts = [text.get_text() for text in ax.texts]
    assert {"1", "2", "3", "90", "60", "30"} <= set(texts)


def test_a_head_is_left_out_where_columns_differ() -> None:
    synthetic = a_set(ipc=2, sub_batches=2, classes=("a", "b"))
    synthetic.sub_batch = torch.tensor([0, 1, 0, 0])
    (ax,) = plots.images(synthetic).axes
    assert not ax.texts


def test_trajectory_begins_with_the_start_and_fades_what_waits() -> None:
    snapshots = some_snapshots()
    (ax,) = plots.trajectory(snapshots, 1, steps=3).axes
    rows = [4, 5, 6, 7]
    expected = snapshots.images[[0, 5, 10]][:, rows, 0].transpose(0, 1).flatten(0, 1).numpy()
    assert all(np.array_equal(a, b) for a, b in zip(shown(ax), expected, strict=True))
    assert [image.get_alpha() for image in ax.images] == [1, 1, 1] * 2 + [1, 0.3, 1] * 2
    assert [text.get_text() for text in ax.texts][:3] == ["start", "50", "end (100)"]


def test_trajectory_shows_each_sub_batch_where_there_are_many() -> None:
    snapshots = some_snapshots()
    snapshots.labels = torch.zeros(8, dtype=torch.long)
    snapshots.sub_batch = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    (ax,) = plots.trajectory(snapshots, 0).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"sub-batch {k}" for k in range(1, 6)]


def test_losses_are_means_over_groups() -> None:
    entropy, distance, _ = plots.losses(some_snapshots(groups=2)).axes
    early, late = entropy.lines
    assert np.asarray(early.get_ydata()) == pytest.approx([0.1] * 10)
    assert list(late.get_xdata()) == [50, 60, 70, 80, 90]  # type: ignore[arg-type]
    assert np.asarray(late.get_ydata()) == pytest.approx([0.7] * 5)
    assert np.asarray(distance.lines[0].get_ydata()) == pytest.approx([3.5] * 10)


def test_accuracy_has_a_dot_per_student_and_says_mean_and_spread() -> None:
    soft, hard = plots.accuracy(some_scores()).axes
    assert [ax.get_title(loc="left") for ax in (soft, hard)] == ["soft labels", "hard labels"]
    dots = [
        np.asarray(dots.get_offsets())[:, 0].tolist()
        for dots in soft.collections
        if hasattr(dots, "get_offsets") and len(dots.get_offsets()) > 0
    ]
    assert [50, 51, 52] in dots
    assert [97.5] in dots  # the reference stands in both panels
    texts = [text.get_text() for text in soft.texts]
    assert texts == ["51.0 ± 1.0 (n 3)", "54.0 ± 1.0 (n 3)", "57.0 ± 1.0 (n 3)", "97.5 (n 1)"]
    rows = [label.get_text() for label in soft.get_yticklabels()]
    assert rows == ["DELT", "random real images", "one sub-batch", "all real images"]


def test_diversity_shows_each_class_and_the_mean() -> None:
    figure = plots.diversity(VALUES)
    (ax,) = figure.axes
    heights = [np.asarray(dots.get_offsets())[:, 1] for dots in ax.collections]
    assert heights[0] == pytest.approx([VALUES["delt"][name] for name in NAMES])
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][0] == "DELT: mean 0.900"
    assert [label.get_text() for label in ax.get_xticklabels()] == list(NAMES)


def test_ranking_marks_the_kept_patches() -> None:
    ranking = a_ranking()
    (ax,) = plots.ranking(ranking).axes
    kept = [np.asarray(dots.get_offsets())[:, 0] for dots in ax.collections][1::2]
    for label, dots in enumerate(kept):
        assert sorted(dots) == pytest.approx(ranking.score[ranking.kept(label)].double().sort().values.tolist())
    low, high = ax.get_xlim()
    assert low <= 0.2 and high >= 1 - 1e-6


def test_ranking_without_scores_says_so() -> None:
    ranking = a_ranking("random")
    ranking.score = ranking.score * torch.nan
    (ax,) = plots.ranking(ranking).axes
    assert [text.get_text() for text in ax.texts] == ["random order: the candidates were not scored"]


@pytest.mark.parametrize("classes", [[3], [-1], []])
def test_refuses_classes_that_are_none(classes: list[int]) -> None:
    with pytest.raises(DataError, match="allowed are labels from 0 to 2"):
        plots.images(a_set(), classes=classes)


def test_refuses_a_class_that_was_not_recorded() -> None:
    with pytest.raises(DataError, match=r"class 7 was not recorded; recorded are \[0, 1\]"):
        plots.trajectory(some_snapshots(), 7)


def test_matplotlib_is_left_as_it_was_and_the_users_style_has_no_say(tmp_path: Path) -> None:
    plain = plots.png(plots.diversity(VALUES))
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        assert plots.png(plots.diversity(VALUES)) == plain
    assert dict(matplotlib.rcParams) == before
    plots.diversity(VALUES).savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_notebook_shows_a_figure_by_itself() -> None:
    figure = plots.diversity(VALUES)
    data, size = figure._repr_png_()  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.width, size["width"]) == (1400, 700)
