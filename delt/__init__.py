"""delt: dataset distillation with EarlyLate, from real images to a small set that trains a network, and its accuracy.

>>> import delt
>>> done = delt.run(delt.configure("digits", preset="demo"), out="runs/a")
>>> done.scores.summary()

The names below are imported when they are first used, so that `import delt` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "DeltError",
    "Job",
    "Patches",
    "Ranking",
    "RealSet",
    "Run",
    "RunConfig",
    "Schedule",
    "Scores",
    "Snapshots",
    "SoftLabels",
    "Stopped",
    "SyntheticSet",
    "Teacher",
    "configure",
    "evaluate",
    "load",
    "open_set",
    "plan",
    "rank",
    "recover",
    "relabel",
    "run",
    "squeeze",
    "verify",
]

_HOMES = {
    "squeeze": "delt.stages.squeeze",
    "rank": "delt.stages.rank",
    "recover": "delt.stages.recover",
    "relabel": "delt.stages.relabel",
    "evaluate": "delt.stages.evaluate",
    "configure": "delt.methods",
    "RunConfig": "delt.config",
    "run": "delt.pipeline",
    "load": "delt.results",
    "Run": "delt.results",
    "verify": "delt.artifacts.folder",
    "open_set": "delt.data.load",
    "plan": "delt.schedule",
    "Schedule": "delt.schedule",
    "Teacher": "delt.artifacts.teacher",
    "RealSet": "delt.data.images",
    "Patches": "delt.artifacts.ranking",
    "Ranking": "delt.artifacts.ranking",
    "SyntheticSet": "delt.artifacts.synthetic",
    "Snapshots": "delt.artifacts.snapshots",
    "SoftLabels": "delt.artifacts.soft_labels",
    "Scores": "delt.artifacts.scores",
    "Job": "delt.job",
    "DeltError": "delt.errors",
    "Stopped": "delt.errors",
}

if TYPE_CHECKING:
    from delt.artifacts.folder import verify
    from delt.artifacts.ranking import Patches, Ranking
    from delt.artifacts.scores import Scores
    from delt.artifacts.snapshots import Snapshots
    from delt.artifacts.soft_labels import SoftLabels
    from delt.artifacts.synthetic import SyntheticSet
    from delt.artifacts.teacher import Teacher
    from delt.config import RunConfig
    from delt.data.images import RealSet
    from delt.data.load import open_set
    from delt.errors import DeltError, Stopped
    from delt.job import Job
    from delt.methods import configure
    from delt.pipeline import run
    from delt.results import Run, load
    from delt.schedule import Schedule, plan
    from delt.stages.evaluate import evaluate
    from delt.stages.rank import rank
    from delt.stages.recover import recover
    from delt.stages.relabel import relabel
    from delt.stages.squeeze import squeeze


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'delt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
