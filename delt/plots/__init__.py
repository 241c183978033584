"""Artifact -> matplotlib Figure: one visual language for every picture. Computes nothing new, never shows a window.

>>> from delt import plots
>>> plots.images(done.synthetic).savefig("images.png")

A figure is 7 inches wide, draws itself in a notebook, and is saved with `figure.savefig(path)` or `png(figure)`.
"""

from delt.plots.compare import comparison, side_by_side
from delt.plots.curves import losses, schedule
from delt.plots.measures import accuracy, diversity, ranking
from delt.plots.pictures import images, trajectory
from delt.plots.similarity import class_similarity, depth, embedding, pairs
from delt.plots.style import SETS, Picture, SetStyle, png, set_styles, sub_batch_colours
from delt.plots.sweep import grid, lines, overview, points, tradeoffs

__all__ = [
    "SETS",
    "Picture",
    "SetStyle",
    "accuracy",
    "comparison",
    "class_similarity",
    "depth",
    "diversity",
    "embedding",
    "grid",
    "images",
    "lines",
    "losses",
    "overview",
    "pairs",
    "png",
    "points",
    "ranking",
    "schedule",
    "set_styles",
    "side_by_side",
    "sub_batch_colours",
    "tradeoffs",
    "trajectory",
]
