"""Explorers for notebooks: turn the schedule by hand, watch images change, scrub through how they came to be.

>>> from delt import lab
>>> lab.ScheduleExplorer("digits", preset="demo")

Each has `.figure()`, the same for paper, and `.save_html(path)`, a page that works offline. They are ipywidgets with one
anywidget view, so they work in JupyterLab, Notebook, VS Code and, after `output.enable_custom_widget_manager()`, in Colab.
"""

from delt.lab.diversity import DiversityExplorer
from delt.lab.live import LiveRun
from delt.lab.schedule import ScheduleExplorer
from delt.lab.trajectory import TrajectoryExplorer
from delt.lab.view import View

__all__ = ["DiversityExplorer", "LiveRun", "ScheduleExplorer", "TrajectoryExplorer", "View"]
