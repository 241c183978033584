"""The experiment notebook: its parameters are the configuration's fields, and it runs."""

from __future__ import annotations

import json

import pytest

import delt
from delt.batch.notebook import NotebookError, execute, experiment, means, parameters_cell, refresh, tagged, template, to_html
from delt.config import flat_fields
from delt.errors import DeltError
from delt.methods import said


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def test_the_parameters_cell_equals_the_configuration():
    (cell,) = tagged(read(template()))
    assert source(cell) == parameters_cell(), "run `make notebook`"
    values = {}
    exec(source(cell), values)
    names = [entry.name for entry in flat_fields()]
    assert set(names) | {"out"} == set(values) - {"__builtins__"}
    assert delt.configure(**{name: values[name] for name in names}) == delt.configure("digits", preset="demo")


def test_papermill_finds_the_parameters():
    import papermill

    found = papermill.inspect_notebook(str(template()))
    assert set(found) == {entry.name for entry in flat_fields()} | {"out"}
    assert all(item["help"] for item in found.values())


def test_the_experiment_runs_and_goes_on(tmp_path):
    settings = {"preset": "smoke", "ipc": 2, "iterations": 8, "workers": 1, "evaluate_seeds": 1}
    notebook, page = experiment(delt.configure("digits", **settings), tmp_path / "out")
    assert delt.verify(tmp_path / "out" / "run") == []
    outputs = [output for cell in read(notebook)["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = page.read_text(encoding="utf-8")
    assert "data:image/png" in text and "soft labels" in text and "widget-view" not in text
    assert (tmp_path / "out" / "run" / "controls" / "random" / "manifest.json").exists()


def test_a_failing_cell_keeps_its_traceback(tmp_path):
    parameters = {"dataset": "digits", "preset": "smoke", "ipc": 500, "out": "run"}
    with pytest.raises(NotebookError, match="the notebook stopped: DataError: .* fewer than 500 .*holds the traceback") as caught:
        execute(template(), tmp_path / "experiment.ipynb", parameters, bar=False)
    assert "Traceback (most recent call last)" in caught.value.traceback and "\x1b" not in caught.value.traceback
    assert "DataError" in (tmp_path / "experiment.ipynb").read_text()


@pytest.mark.parametrize("m", [1, 2, 4, 5])
@pytest.mark.parametrize("ri", [2, 4, 20, 40, 80])
@pytest.mark.parametrize("preset", ["smoke", "demo"])
def test_the_parameters_mean_the_very_configuration(preset, ri, m):
    config = delt.configure("digits", preset=preset, iterations=400, sub_batches=m, round_iterations=ri)
    assert delt.configure(**said(config)) == config


def test_the_parameters_are_few():
    config = delt.configure("digits", preset="smoke", ipc=7)
    assert delt.configure(**said(config)) == config and len(said(config)) < 10
    config = delt.configure("digits", method="random")
    assert delt.configure(**said(config)) == config and not {"round_iterations", "sub_batches"} & set(said(config))


def test_what_is_left_to_the_machine_may_be_anything():
    wanted = delt.configure("digits", preset="smoke")
    assert means(delt.configure("digits", preset="smoke", workers=3, device="cpu", threads=1), wanted)
    assert not means(delt.configure("digits", preset="smoke", threads=1), delt.configure("digits", preset="smoke", threads=2))
    assert not means(delt.configure("digits", preset="smoke", round_iterations=2), wanted)


def test_a_notebook_that_ran_something_else_is_not_believed(tmp_path, smoke_run, monkeypatch):
    (tmp_path / "run").symlink_to(smoke_run.path)
    monkeypatch.setattr("delt.batch.notebook.execute", lambda *args, **more: None)
    with pytest.raises(DeltError, match="is of another configuration"):
        experiment(delt.configure("digits", preset="smoke", seed=9), tmp_path)


def test_refresh_writes_the_parameters_cell_and_nothing_else(tmp_path):
    book = read(template())
    (cell,) = tagged(book)
    cell["source"] = "ipc = 7"
    stale = tmp_path / "stale.ipynb"
    stale.write_text(json.dumps(book), encoding="utf-8")
    refresh(stale)
    assert [source(cell) for cell in read(stale)["cells"]] == [source(cell) for cell in read(template())["cells"]]


def test_the_html_copy_has_pictures_and_no_widgets(tmp_path):
    import nbformat

    picture = nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "a picture"})
    widget = nbformat.v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Progress(1)"}
    )
    cells = [nbformat.v4.new_code_cell("draw()", outputs=[picture, widget])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    page = to_html(tmp_path / "a.ipynb")
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "a.html" and "data:image/png;base64,AAAA" in text and "Progress(1)" not in text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltError, match="cannot use .*file.out.*choose another --out"):
        experiment(delt.configure("digits", preset="smoke"), tmp_path / "file" / "out")
