"""Errors that a user can act on: each names what was given, what is allowed and the fix.

The command line prints their one line and exits with their `exit_code`: 2, but 3 where a folder is in use, 130 or 143 where
the work was stopped. Python callers catch `DeltError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeltError(Exception):
    """Base of every error that `delt` raises on purpose."""

    exit_code = 2


class ConfigError(DeltError):
    """A setting is unknown, of the wrong type, out of range, or does not fit the others."""


class DataError(DeltError):
    """A data set is missing, damaged or too small."""


class TeacherError(DeltError):
    """A teacher does not fit the data, or is too weak to build on."""


class IntegrityError(DeltError):
    """A file is not what its record says (wrong hash, truncated, missing)."""


class RunError(DeltError):
    """A run folder cannot be used as asked (another configuration, another process)."""


class Stopped(DeltError):
    """The work was stopped on request, between two steps; the same command goes on where it was.

    A listener raises it, or a signal came (delt.signals); `partial` is what was made so far, where that can be used (a
    SyntheticSet of `recover`).
    """

    exit_code = 130

    def __init__(
        self, message: str = "stopped; the same command goes on where it was", partial: object = None, exit_code: int = 130
    ) -> None:
        super().__init__(message)
        self.partial, self.exit_code = partial, exit_code

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: no traceback, since nothing went wrong."""
        return [str(self)]


def visible(text: object) -> str:
    """A text in one line that a terminal shows and does not obey: what cannot be printed stands as in a Python string.

    Names of classes, files and folders may hold escape sequences, line ends and characters that turn the writing round.

    >>> visible("\x1b[2Jcat\ndog")
    '\\x1b[2Jcat\\ndog'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def unknown(what: str, given: object, allowed: Iterable[str], error: type[DeltError] = ConfigError) -> DeltError:
    """Return the error for a name that is not in a table: with the nearest name, or all where none is near.

    >>> str(unknown("data set", "cifar1", ["cifar10", "digits"]))
    "unknown data set 'cifar1': did you mean 'cifar10'?"
    """
    names = list(allowed)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"
    return error(f"unknown {what} '{given}': {hint}")
