"""The one view: draws what ipywidgets lacks, from plain numbers and pictures, in a notebook and on a static page.

kind        state
schedule    bars of sub-batches, and curves below them       (delt.lab.state.schedule_state)
curves      losses of the sub-batches                        (losses_state)
frames      images in rows of sub-batches, with a scrubber   (Trajectory.show, live_state)
scatter     dots with an image each                          (delt.lab.diversity.scatter_state)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from delt.errors import DeltError

KINDS = ("schedule", "curves", "frames", "scatter")
SCRIPT, STYLE = (Path(__file__).with_name(name) for name in ("view.js", "view.css"))


class View(anywidget.AnyWidget):
    """A picture that the browser draws.

    Raises:
        DeltError: a state that is no JSON (NaN, a tensor), which would fail only in the browser.
    """

    _esm = SCRIPT
    _css = STYLE
    kind = traitlets.Enum(KINDS, "schedule").tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    sheets = traitlets.Dict().tag(sync=True)
    """Name -> an encoded picture that holds tiles in a grid (bytes)."""
    at = traitlets.Int(0).tag(sync=True)
    """frames: index of the snapshot that is shown."""
    label = traitlets.Unicode("").tag(sync=True)
    """frames: the class that is shown, one of state["labels"]."""
    difference = traitlets.Bool(False).tag(sync=True)
    """frames: show the change since the start."""
    picked = traitlets.List(traitlets.Int()).tag(sync=True)
    """scatter: indices of the chosen dots."""

    @traitlets.validate("state")
    def _plain(self, proposal: Any) -> dict[str, Any]:
        state: dict[str, Any] = proposal["value"]
        try:
            json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DeltError(f"the state of a {self.kind} view holds what is no JSON ({error}); use plain numbers, texts, lists") from None
        return state
