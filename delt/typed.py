"""Public functions take what their annotations say: anything else is refused by name, before work begins."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from delt.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")
PLAIN = (str, int, float, bool, Path, types.NoneType)  # shown as they are
WORDS = {int: "a whole number", str: "text", Path: "a path", types.NoneType: "None", float: "a number", Callable: "a function"}


def typed(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function refuse arguments of another kind than their annotations name; what is inside a list is not looked at.

    >>> @typed
    ... def double(number: int) -> int:
    ...     return 2 * number
    >>> double("3")
    Traceback (most recent call last):
    delt.errors.ConfigError: number is '3'; allowed is a whole number

    Raises (the function that is returned):
        ConfigError: naming the argument, what was given and what is allowed.
        TypeError: an argument is missing, unknown, or given twice.
    """
    signature = inspect.signature(function)

    @functools.cache  # when it is first called, since annotations may name what is not there before
    def kinds() -> dict[str, tuple[Any, ...]]:
        hints = typing.get_type_hints(function)
        named = [name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        return {name: _kinds(hints[name]) for name in named}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            allowed = kinds().get(name, (object,))
            if not any(_is(value, kind) for kind in allowed):
                given = repr(value) if isinstance(value, PLAIN) else _words(type(value))
                raise ConfigError(f"{name} is {given}; allowed is {' or '.join(dict.fromkeys(map(_words, allowed)))}")
        return function(*args, **kwargs)

    return checked


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The classes that an annotation allows."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    return (typing.get_origin(hint) or hint,)


def _is(value: Any, kind: Any) -> bool:
    if kind is int:  # numpy's count, and a truth value does not
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> str:
    name = kind.__name__
    return WORDS.get(kind) or f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
