"""The experiment notebook: its parameters are the configuration's fields, and it runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import delt
from delt.batch import execute, experiment, parameters_cell, tagged, template
from delt.config import flat_fields
from delt.errors import DeltError

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_sources(path):
    for cell in read(path)["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count"), f"{path.name} carries outputs"
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            assert len(source(cell).splitlines()) < 15, "longer code belongs in the package"


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
    with pytest.raises(DeltError, match="the notebook stopped: DataError: .* fewer than 500 .*holds the traceback"):
        execute(template(), tmp_path / "experiment.ipynb", parameters)
    assert "DataError" in (tmp_path / "experiment.ipynb").read_text()


def test_the_wheel_holds_all_it_needs(tmp_path):
    """Built without isolation, so that nothing is downloaded; installed nowhere, just looked into."""
    import zipfile

    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(root).as_posix() for path in (root / "delt").rglob("*.py")}
    assert package <= names and "delt/notebooks/experiment.ipynb" in names
    assert any(re.fullmatch(r"delt-.*\.dist-info/licenses/LICENSE", name) for name in names)
    assert not [name for name in names if name.startswith(("tests", "papermill_runs", "benchmarks"))]
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "import delt.batch as b; assert b.template().is_file() and 'unpacked' in str(b.template()), b.template()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=unpacked, env={"PYTHONPATH": str(unpacked), "PATH": ""})
