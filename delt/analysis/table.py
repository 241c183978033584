"""Plain tables that line up."""

from __future__ import annotations

import html
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from delt.config import RunConfig
from delt.errors import visible
from delt.schedule import Schedule

LETTERS = "margin: 0; font: 13px Menlo, Consolas, 'DejaVu Sans Mono', monospace"  # a page's own style may not have columns in mind


class Lines(str):
    """Tables as text; a notebook scrolls them sideways and breaks the notes below them between words.

    What is printed there is broken where the window ends, in the midst of a column.
    """

    def _repr_html_(self) -> str:
        parts = []
        for is_table, lines in itertools.groupby(zip(self._in_tables(), self.splitlines(), strict=True), operator.itemgetter(0)):
            style = "white-space: pre; overflow-x: auto" if is_table else "white-space: pre-wrap; word-break: normal"
            text = html.escape("".join(f"{line}\n" for _, line in lines))  # the last newline is none on a page
            parts.append(f'<pre style="{style}; {LETTERS}">{text}</pre>')
        return "".join(parts)

    def _in_tables(self) -> list[bool]:
        """Of each line, whether it is of a table: heads, the rule below them, rows, another rule as long."""
        lines, opening = self.splitlines(), 0
        found = [False] * len(lines)
        for k, line in enumerate(lines):
            if line and not line.strip("-"):
                if not opening:
                    opening = k
                elif len(line) == len(lines[opening]):
                    found[opening - 1 : k + 1] = [True] * (k + 2 - opening)
                    opening = 0
        return found

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
