"""One run inside a notebook: the experiment notebook, executed by papermill, beside its HTML copy and its run folder.

out/experiment.ipynb    the executed notebook
out/experiment.html     the same for a browser
out/run/                the run folder
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delt.artifacts import cache
from delt.artifacts.folder import RunFolder, verify
from delt.config import FlatField, RunConfig, flat_fields, flatten
from delt.drift import SETTINGS
from delt.errors import DeltError, RunError
from delt.methods import said
from delt.pipeline import absolute
from delt.results import read_config
from delt.signals import heeded
from delt.storage import holds, make_folder, write_bytes

if TYPE_CHECKING:
    from delt.batch.kernels import Kernels

NAME = "experiment"
RUN = "run"  # the run folder beside the notebook
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDE = "<style>.jp-OutputArea-output pre { white-space: pre; overflow-x: auto; }</style>"  # a table is not folded, but moved
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a traceback on a terminal
ANYHOW = ("workers", "checkpoint_seconds", "allow_drift")  # settings that no result depends on
PRESET = {"dataset": "digits", "preset": "demo"}  # what the notebook does when it is opened and run as it is


class NotebookError(DeltError):
    """A notebook did not come to its end; `traceback` is that of the cell that failed, as plain text."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


def template(name: str = NAME) -> Path:
    """The source of a notebook: beside the package in a checkout, inside it in an installation."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "notebooks" / f"{name}.ipynb", package.parent / "notebooks" / f"{name}.ipynb"]
    return next((place for place in places if place.is_file()), places[0])


def experiment(
    config: RunConfig, out: Path | str, *, env: Mapping[str, str] | None = None, bar: bool = True, kernels: Kernels | None = None
) -> tuple[Path, Path]:
    """Do a run through the notebook and return the executed notebook and its HTML copy.

    The run goes on where it was if `out` holds an earlier attempt.

    Args:
        env, bar, kernels: see `execute`.

    Raises:
        NotebookError: a cell failed (the notebook keeps its traceback), or the kernel died.
        Stopped: a signal came (Ctrl-C, SIGTERM).
        DeltError: `out` cannot be used, or the run did not finish.
    """
    folder = Path(out).expanduser().resolve()
    cache.settle()
    RunFolder(folder).require_no_run("an experiment")
    _require_own(folder / f"{NAME}.ipynb")
    try:
        make_folder(folder)
    except OSError as error:
        raise DeltError(f"cannot use {folder}: {error.strerror or error}; choose another --out") from error
    from delt.batch.kernels import Kernels

    notebook, kernels = folder / f"{NAME}.ipynb", kernels or Kernels()
    with heeded(kernels.ask) as reins:
        try:
            execute(template(), notebook, {**said(absolute(config)), "out": RUN}, env=env, bar=bar, kernels=kernels)
        except NotebookError:
            reins.check()  # it ended because it was told to
            raise
    if problems := verify(folder / RUN):  # a killed kernel can leave a notebook that says it completed
        raise DeltError(f"{folder / RUN} is not whole: {problems[0]}")
    if not means(read_config(folder / RUN / "config.json"), absolute(config)):
        raise DeltError(f"{folder / RUN} is of another configuration than the notebook was to run: please report it")
    return notebook, to_html(notebook)


def _require_own(notebook: Path) -> None:
    """Refuse to replace a notebook that was not executed here.

    Raises:
        RunError: there is one.
    """
    if os.path.isfile(notebook) and not holds(notebook, b'"papermill"'):
        raise RunError(f"{notebook} is no experiment that was executed here: choose another --out")


def means(found: RunConfig, wanted: RunConfig) -> bool:
    """Whether a run's configuration gives the results that were wanted; what was left to the machine may be anything."""
    have, want = flatten(found), flatten(wanted)
    free = {name for name in SETTINGS if want[name] in (None, "auto")}
    return all(want[name] == have[name] for name in want if name not in {*ANYHOW, *free})


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    bar: bool = True,
    kernels: Kernels | None = None,
) -> None:
    """Execute a notebook with parameters, in a kernel of its own whose working folder is the target's. Threads may do so at once.

    Args:
        parameters: JSON values.
        env: environment variables of the kernel, beside those of this process.
        bar: show a progress bar over the cells.
        kernels: through which another thread can end the kernel.

    Raises:
        NotebookError: a cell failed, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from delt.batch.kernels import NAME as ENGINE
    from delt.batch.kernels import Kernels

    try:
        papermill.execute_notebook(
            _literally(source),
            _literally(target),
            dict(parameters),
            engine_name=ENGINE,
            kernel_name="python3",
            progress_bar={"desc": target.parent.name, "unit": "cell"} if bar else False,
            folder=str(target.parent),
            env={"PYDEVD_DISABLE_FILE_VALIDATION": "1", **(env or {})},
            kernels=kernels or Kernels(),
        )
    except PapermillExecutionError as error:
        words = f"the notebook stopped: {error.ename}: {error.evalue} ({target} holds the traceback)"
        raise NotebookError(words, COLOUR.sub("", "\n".join(error.traceback))) from None
    except DeadKernelError:
        raise NotebookError(f"the kernel of {target} died; the same command goes on where it was") from None


def _literally(path: Path) -> str:
    """A path for papermill, which would put parameters in the place of {braces}."""
    return str(path).replace("{", "{{").replace("}", "}}")


def to_html(notebook: Path) -> Path:
    """Write the HTML copy of a notebook beside it, pictures inside, without progress bars: those need a live kernel."""
    import nbformat
    from nbconvert import HTMLExporter

    page = notebook.with_suffix(".html")
    book = nbformat.read(notebook, 4)
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    body, _ = HTMLExporter().from_notebook_node(book)
    write_bytes(page, body.replace("</head>", f"{WIDE}</head>", 1).encode())
    return page


def parameters_cell() -> str:
    """The text of the notebook's parameters cell: every field of the configuration, None where it is not given."""
    lines = ["# Every setting of a run; None takes the value of the preset, the method and the data set", f'out = "{RUN}"  # run folder']
    return "\n".join([*lines, *(_parameter(entry) for entry in flat_fields())])


def _parameter(entry: FlatField) -> str:
    choices = f" ({', '.join(entry.choices)})" if entry.choices else ""
    value = f'"{PRESET[entry.name]}"' if entry.name in PRESET else None
    return f"{entry.name} = {value}  # {entry.help}{choices}"


def refresh(notebook: Path) -> None:
    """Write `parameters_cell` into a notebook's cell tagged `parameters`."""
    import nbformat

    book = nbformat.read(notebook, 4)
    for cell in tagged(book):
        cell["source"] = parameters_cell()
    nbformat.write(book, notebook)


def tagged(book: Any, tag: str = "parameters") -> Iterator[Any]:
    """Cells of a notebook with a tag."""
    return (cell for cell in book["cells"] if tag in cell["metadata"].get("tags", []))
