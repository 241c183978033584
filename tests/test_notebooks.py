"""Every notebook runs from top to bottom with smoke settings, and shows what it promises; each is kept as a source."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_batch_notebook import read, source

from delt.batch import execute, tagged

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
ELSEWHERE = {"experiment", "summary"}  # executed by the tests of runs and sweeps
SMALL = {  # parameters, pictures at least, words in the output
    "01_quickstart": ({"preset": "smoke"}, 3, ("best*",)),
    "02_earlylate_explorer": ({"preset": "smoke", "iterations": 40}, 5, ()),
    "03_diversity": ({"preset": "smoke", "perplexity": 10}, 4, ("Vendi", "coverage")),
    "04_compare": ({"preset": "smoke"}, 3, ("bytes", "random")),
}


def outputs(path):
    return [output for cell in read(path)["cells"] for output in cell.get("outputs", [])]


def test_every_notebook_is_executed_somewhere():
    assert {path.stem for path in NOTEBOOKS} == set(SMALL) | ELSEWHERE


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_sources(path):
    for cell in read(path)["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count"), f"{path.name} carries outputs"
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            assert len(source(cell).splitlines()) < 15, "longer code belongs in the package"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in SMALL], ids=lambda path: path.name)
def test_notebooks_run(path, tmp_path):
    parameters, pictures, words = SMALL[path.stem]
    (cell,) = tagged(read(path))
    values = {}
    exec(source(cell), values)
    assert set(parameters) <= set(values), "a parameter that the notebook does not have"
    done = tmp_path / path.name
    execute(path, done, parameters)
    found = outputs(done)
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in found) >= pictures
    text = "".join("".join(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in found)
    assert all(word in text for word in words)


def test_the_quickstart_reads_like_the_paper():
    """Five stages, five cells, in their order."""
    (path,) = (path for path in NOTEBOOKS if path.stem == "01_quickstart")
    cells = [source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    starts = (
        "teacher = delt.squeeze",
        "patches = delt.rank",
        "synthetic = delt.recover",
        "labels = delt.relabel",
        "scores = delt.evaluate",
    )
    places = [next(n for n, text in enumerate(cells) if text.startswith(start)) for start in starts]
    assert places == list(range(places[0], places[0] + 5))
