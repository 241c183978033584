"""Runs inside notebooks, executed by papermill: one experiment, or a sweep of many points beside each other.

`python -m delt.batch` rewrites the parameters cell of the experiment notebook from the configuration's fields.
"""

from delt.batch.notebook import NotebookError, execute, experiment, parameters_cell, refresh, tagged, template, to_html
from delt.batch.points import Point, Sweep, load_sweep
from delt.batch.report import read_sweep
from delt.batch.sweep import run_sweep
from delt.batch.work import Outcome, run_point

__all__ = [
    "NotebookError",
    "Outcome",
    "Point",
    "Sweep",
    "execute",
    "experiment",
    "load_sweep",
    "parameters_cell",
    "read_sweep",
    "refresh",
    "run_point",
    "run_sweep",
    "tagged",
    "template",
    "to_html",
]
