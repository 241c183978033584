"""Runs inside a notebook: the experiment notebook, executed by papermill, beside its HTML copy and its run folder.

    out/experiment.ipynb    the executed notebook
    out/experiment.html     the same for a browser
    out/run/                the run folder

`python -m delt.batch` rewrites the parameters cell of the notebook from the configuration's fields.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delt.artifacts.folder import verify
from delt.config import FlatField, RunConfig, flat_fields
from delt.errors import DeltError
from delt.methods import said
from delt.pipeline import absolute
from delt.storage import make_folder

NAME = "experiment"
WIDGET = "application/vnd.jupyter.widget-view+json"
PRESET = {"dataset": "digits", "preset": "demo"}  # what the notebook does when it is opened and run as it is


def template() -> Path:
    """The experiment notebook's source: beside the package in a checkout, inside it in an installation."""
    here = Path(__file__).resolve().parent
    places = [here / "notebooks" / f"{NAME}.ipynb", here.parent / "notebooks" / f"{NAME}.ipynb"]
    return next((place for place in places if place.is_file()), places[0])


def experiment(config: RunConfig, out: Path | str) -> tuple[Path, Path]:
    """Do a run through the notebook and return the executed notebook and its HTML copy.

    The run goes on where it was if `out` holds an earlier attempt.

    Raises:
        DeltError: a cell failed; the notebook keeps its traceback.
    """
    folder = Path(out).resolve()
    try:
        make_folder(folder)
    except OSError as error:
        raise DeltError(f"cannot use {folder}: {error.strerror or error}; choose another --out") from error
    notebook = folder / f"{NAME}.ipynb"
    execute(template(), notebook, {**said(absolute(config)), "out": "run"})
    page = to_html(notebook)
    if problems := verify(folder / "run"):  # a killed kernel can leave a notebook that says it completed
        raise DeltError(f"{folder / 'run'} is not whole: {problems[0]}")
    return notebook, page


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook with parameters, in a kernel of its own whose working folder is the target's."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    quiet = Config({"KernelManager": {"transport_encryption": "auto"}})
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            progress_bar={"desc": target.parent.name, "unit": "cell"},
            resources={"metadata": {"path": str(target.parent)}},
            config=quiet,
        )
    except PapermillExecutionError as error:
        raise DeltError(f"the notebook stopped: {error.ename}: {error.evalue} ({target} holds the traceback)") from None
    except DeadKernelError:
        raise DeltError(f"the kernel of {target} died; the same command goes on where it was") from None


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
    page.write_text(body, encoding="utf-8")
    return page


def parameters_cell() -> str:
    """The text of the notebook's parameters cell: every field of the configuration, None where it is not given."""
    lines = ["# Every setting of a run; None takes the value of the preset, the method and the data set", 'out = "run"  # run folder']
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


if __name__ == "__main__":
    refresh(template())
