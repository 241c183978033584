"""The diversity explorer without a browser: choose sets, features, perplexity, pages; see what follows."""

from __future__ import annotations

import dataclasses
import io
import threading
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from delt.analysis.diversity import extractor_of
from delt.analysis.sets import FeatureSet
from delt.errors import ConfigError, DataError, DeltError, RunError
from delt.lab import DiversityExplorer, View
from delt.lab.diversity import _opened, gather, numbers, scatter_state
from delt.results import Run


@pytest.fixture(scope="module")
def explorer(smoke_run):
    return DiversityExplorer(smoke_run, perplexity=10, per_class=8).join(60)


def test_sets_stand_beside_real_images_and_the_random_control(explorer, smoke_run):
    assert [row.name for row in explorer.rows] == ["delt", "random", "real"]
    delt, random, real = explorer.rows
    assert delt.cosine == pytest.approx(smoke_run.diversity["delt"]["mean"], abs=2e-6)
    assert random.cosine == pytest.approx(smoke_run.diversity["random"]["mean"], abs=2e-6)
    assert real.images == 80 and real.coverage is None and delt.coverage is not None
    assert "random real images" in explorer.numbers.value and f"{delt.cosine:.3f}" in explorer.numbers.value
    assert f"{delt.vendi_class:.2f}" in explorer.table()


def test_a_run_without_a_control_is_given_as_many_random_images(smoke_run):
    lonely = Run(smoke_run.path)
    lonely.controls = {}
    _, sets, real = gather([lonely], 8)
    random = sets[1]
    assert random.name == "random" and len(random) == len(sets[0]) and all(source.startswith("train/") for source in random.source)
    assert random.labels.bincount().tolist() == [smoke_run.config.ipc] * 10 and all(source.startswith("test/") for source in real.source)


def test_dots_tiles_and_rows_are_of_the_same_images(explorer):
    state, (shown, real) = explorer.view.state, (explorer.shown, explorer.real)
    assert len(state["x"]) == len(state["table"]) == len(real) + len(shown) == len(state["colour"])
    assert state["shape"][: len(real)] == [0] * len(real)
    assert [shape - 1 for shape in state["shape"][len(real) :]] == shown.sub_batch.tolist()
    sheet = np.array(Image.open(io.BytesIO(explorer.view.sheets["tiles"])))
    width, height = state["size"]
    for dot in (0, len(real) - 1, len(real), len(state["x"]) - 1):
        row, column = divmod(state["tile"][dot], state["grid"])
        tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        whole = torch.cat([real.images, shown.images])[dot, 0].numpy()
        assert np.array_equal(tile, whole)
    last = state["table"][-1]
    assert last[:2] == ["DELT", "9"] and last[2] == str(int(shown.sub_batch[-1]) + 1) and last[4] == shown.source[-1]


def test_another_set_moves_no_dot(explorer):
    before = explorer.view.state["x"][: len(explorer.real)]
    explorer.view.picked = [0, 3]
    assert [row["set"] for row in explorer.picked] == ["real images", "real images"]
    explorer.shown_choice.value = "random"
    assert explorer.view.state["x"][: len(explorer.real)] == before and explorer.view.picked == []
    assert explorer.view.state["table"][-1][0] == "random real images" and set(explorer.view.state["shape"]) == {0, 1}
    explorer.shown_choice.value = "delt"


def test_perplexity_moves_dots_and_features_change_numbers(explorer):
    places, cosine = explorer.places["delt"], explorer.rows[0].cosine
    said = []
    explorer.says.observe(lambda change: said.append(change["new"]), "value")
    explorer.perplexity_slider.value = 4
    explorer.join(60)
    assert "t-SNE with perplexity 4 ..." in said[0] and "Measuring" not in said[0], "the features are those of before"
    assert not np.array_equal(places, explorer.places["delt"]) and explorer.rows[0].cosine == cosine
    explorer.features_choice.value = "convnet3"
    explorer.join(60)
    assert explorer.rows[0].cosine != cosine
    assert "features of convnet3, perplexity 4" in explorer.figure().texts[1].get_text()
    assert "features of convnet3" in explorer.figure("depth").texts[1].get_text()
    explorer.features_choice.value = "teacher"
    explorer.join(60)
    assert explorer.rows[0].cosine == cosine


def test_features_that_cannot_be_had_are_said_and_nothing_breaks(explorer, monkeypatch):
    def refuse(*args):
        raise DeltError("no weights of this network <here>")

    with monkeypatch.context() as patch:
        patch.setattr("delt.lab.diversity.extractor_of", refuse)
        explorer.features_choice.value = "resnet18"
        explorer.join(60)
        assert "no weights of this network &lt;here&gt;" in explorer.says.value
        with pytest.raises(DeltError, match="no weights of this network <here>"):
            explorer.table()
    explorer.features_choice.value = "teacher"
    assert "cosine" in explorer.join(60).table()


def test_pages_are_drawn_when_they_are_opened(explorer):
    explorer.tabs.selected_index = 2
    first = bytes(explorer.images["pairs"].value)
    assert first.startswith(b"\x89PNG")
    explorer.class_choice.value = 4
    assert bytes(explorer.images["pairs"].value) != first
    for page, name in ((1, "classes"), (3, "depth")):
        explorer.tabs.selected_index = page
        assert bytes(explorer.images[name].value).startswith(b"\x89PNG")
    explorer.tabs.selected_index = 0


def test_every_page_has_its_figure(explorer):
    titles = {name: explorer.figure(name)._suptitle.get_text() for name in ("embedding", "classes", "pairs", "depth")}
    assert titles["embedding"] == "DELT among real images" and titles["pairs"].startswith("Pairs of images of class")
    assert isinstance(explorer.figure(), Figure) and len(set(titles.values())) == 4
    with pytest.raises(ConfigError, match="no figure 'tsne'|unknown figure"):
        explorer.figure("tsne")


def test_several_runs_are_named_by_their_folders(explorer, smoke_run, tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder in folders:
        folder.parent.mkdir()
        folder.symlink_to(smoke_run.path)
    real_paths = [Run(folder) for folder in folders]
    with pytest.raises(DataError, match="is given twice"):
        gather(real_paths)
    control = smoke_run.controls["one_sub_batch"]
    control.__dict__["teacher"] = smoke_run.teacher
    _, sets, _ = gather([smoke_run, control])
    assert [found.name for found in sets] == ["run", "one_sub_batch", "random"]


def test_bad_input_is_refused(smoke_run, tmp_path):
    with pytest.raises(RunError, match="no run at"):
        DiversityExplorer(tmp_path)
    with pytest.raises(DataError, match="there is no run to look at"):
        DiversityExplorer([])
    with pytest.raises(ConfigError, match="resnet1"):
        DiversityExplorer(smoke_run, features="resnet1")
    other = Run(smoke_run.path)
    other.config = dataclasses.replace(smoke_run.config, dataset="cifar10")
    with pytest.raises(DataError, match="is of cifar10, .* of digits; allowed are runs of one data set"):
        gather([smoke_run, other])


def test_names_are_text_in_html(explorer):
    rows = [dataclasses.replace(explorer.rows[0], name="<img src=x>")]
    assert "<img" not in numbers(rows, explorer.real) and "&lt;img" in numbers(rows, explorer.real)


def test_many_classes_share_colours_and_have_a_name_each():
    labels = torch.arange(12)
    found = FeatureSet("x", torch.zeros(12, 3, 4, 4, dtype=torch.uint8), labels, tuple(f"c{k}" for k in range(12)), ["noise"] * 12)
    state, _ = scatter_state(found, np.zeros((12, 2)), found, np.ones((12, 2)))
    assert [entry["name"] for entry in state["legend"]] == ["12 classes share 10 colours"]
    assert state["table"][11] == [
        "x",
        "c11",
        "-",
        "-",
        "noise",
    ]
    View(kind="scatter", state=state)


def test_the_page_holds_everything(explorer, tmp_path):
    text = explorer.save_html(tmp_path / "page.html").read_text()
    assert "DELT on digits, among real images" in text and "coverage" in text and "http-equiv" in text
    assert "https://" not in text


def test_another_perplexity_while_another_page_is_open(smoke_run):
    """The open page is drawn again, in the background, where nothing may wait for itself."""
    own = DiversityExplorer(smoke_run, perplexity=10, per_class=8).join(60)
    own.tabs.selected_index = 3
    before = bytes(own.images["depth"].value)
    own.features_choice.value = "convnet3"
    own.join(60)
    assert own.settled and not own.error and bytes(own.images["depth"].value) != before


def test_the_last_wish_counts_and_an_older_error_is_forgotten(smoke_run, monkeypatch):
    own = DiversityExplorer(smoke_run, perplexity=10, per_class=8).join(60)
    entered, leave = threading.Event(), threading.Event()

    def stuck(name, *args):
        if name == "teacher":
            return extractor_of(name, *args)
        entered.set()
        leave.wait(10)
        raise DeltError("no weights")

    monkeypatch.setattr("delt.lab.diversity.extractor_of", stuck)
    own.features_choice.value = "resnet18"
    assert entered.wait(10)
    begun = time.monotonic()
    own.tabs.selected_index = 1
    assert time.monotonic() - begun < 1, "the kernel does not wait for the measurement"
    own.features_choice.value = "teacher"
    leave.set()
    assert "cosine" in own.join(60).table() and own.settled and bytes(own.images["classes"].value).startswith(b"\x89PNG")


@pytest.mark.parametrize("where", ["tsne", "scatter_state"])
def test_a_bug_reaches_the_screen(where, smoke_run, monkeypatch):
    own = DiversityExplorer(smoke_run, perplexity=10, per_class=8).join(60)
    monkeypatch.setattr(f"delt.lab.diversity.{where}", lambda *args: 1 / 0)
    own.perplexity_slider.value = 7
    assert "ZeroDivisionError" in own.join(60).says.value


@pytest.mark.parametrize("given", [{"perplexity": 0.5}, {"perplexity": "x"}, {"per_class": 0}, {"per_class": "many"}])
def test_numbers_are_checked(given, smoke_run):
    (name, value), *_ = given.items()
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; allowed"):
        DiversityExplorer(smoke_run, **given)


@pytest.mark.parametrize("runs", [None, 5, [1, 2]])
def test_what_is_no_run_is_refused(runs):
    with pytest.raises(RunError, match="allowed are what delt.load or delt.run return"):
        DiversityExplorer(runs)


def test_folders_and_patterns_are_opened(smoke_run, tmp_path):
    (tmp_path / "a").symlink_to(smoke_run.path)
    assert [found.name for found in gather(_opened(str(tmp_path / "*")), 8)[1]] == ["delt", "random"]
