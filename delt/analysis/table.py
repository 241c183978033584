"""Plain tables that line up."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from delt.config import RunConfig
from delt.errors import visible
from delt.schedule import Schedule


class Lines(str):
    """Text that a notebook shows line by line: what is printed there is broken where the window ends, in the midst of a column."""

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre; overflow-x: auto; margin: 0; font-size: 13px">{html.escape(self)}</pre>'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def schedule_of(config: RunConfig) -> Schedule:
    """The schedule of one class of a run."""
    return config.recover.schedule(config.ipc)


def where_tested(hold_outs: Iterable[float]) -> str:
    """The images that accuracies were measured on, in words, from the `hold_out` of their runs."""
    names = [f"held-out training images ({100 * share:.3g} %)" if share else "real test images" for share in sorted({*hold_outs})]
    return " or ".join(names) or "real test images"


def unusual_test(hold_outs: Iterable[float]) -> list[str]:
    """What a picture says of the images that accuracies were measured on: nothing where they are the test images."""
    shares = {*hold_outs}
    return [f"on {where_tested(shares)}"] if any(shares) else []


def aligned(heads: Sequence[str], cells: Iterable[Sequence[str]], notes: Iterable[str]) -> Lines:
    """A plain table: heads, a rule, the rows under them in columns, a rule, and notes."""
    lines = [[visible(cell) for cell in line] for line in (heads, *cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "-" * max(map(len, body))
    return Lines("\n".join([body[0], rule, *body[1:], rule, *map(visible, notes)]))
