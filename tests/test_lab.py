"""The explorers' face: importable without a notebook, and each with its static forms."""

from __future__ import annotations

import subprocess
import sys

import ipywidgets

from delt import lab


def test_every_explorer_has_its_static_forms() -> None:
    explorers = [getattr(lab, name) for name in lab.__all__ if name.endswith("Explorer")]
    assert len(explorers) >= 2
    for explorer in explorers:
        assert issubclass(explorer, ipywidgets.VBox) and callable(explorer.figure) and callable(explorer.save_html)


def test_importable_without_a_notebook() -> None:
    code = "import delt.lab as lab; print(sorted(lab.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ScheduleExplorer" in done.stdout
