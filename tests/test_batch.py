"""The room's face, and the wheel that carries its notebooks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import delt.batch


def test_the_face_names_what_is_there():
    assert delt.batch.__all__ == sorted(delt.batch.__all__)
    assert all(hasattr(delt.batch, name) for name in delt.batch.__all__)


def test_the_notebooks_are_beside_the_package():
    assert delt.batch.template() == Path(__file__).resolve().parents[1] / "notebooks" / "experiment.ipynb"
    assert delt.batch.template("summary").is_file()


def test_the_wheel_holds_all_it_needs(tmp_path):
    """Built without isolation, so that nothing is downloaded; installed nowhere, just looked into."""
    import zipfile

    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "delt/benchmarks/reference_loop.py" in names  # the yardstick of `delt bench`
    package = {path.relative_to(root).as_posix() for path in (root / "delt").rglob("*.py")}
    assert package <= names and {"delt/notebooks/experiment.ipynb", "delt/notebooks/summary.ipynb"} <= names
    assert {"delt/lab/view.js", "delt/lab/view.css"} <= names
    assert any(re.fullmatch(r"delt-.*\.dist-info/licenses/LICENSE", name) for name in names)
    assert not [name for name in names if name.startswith(("tests", "papermill_runs", "benchmarks"))]
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "import delt.batch as b; found = [b.template(), b.template('summary')]; "
    code += "assert all(path.is_file() and 'unpacked' in str(path) for path in found), found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=unpacked, env={"PYTHONPATH": str(unpacked), "PATH": ""})
