"""The flags of the command line: one for every field of the configuration, and a look at what was typed before it is parsed."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from delt.config import FlatField, flat_fields
from delt.errors import ConfigError, unknown


def _type_of(entry: FlatField) -> Any:
    """The type of a flag that may be left out; lists are one text with commas."""
    kind: Any = entry.type
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        kind = str
    elif entry.choices:
        kind = typing.Literal.__getitem__(entry.choices)
    return kind | None


def _default_of(entry: FlatField) -> str:
    default = ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
    return "" if default in (None, "") else f"(default: {default})"


def _metavar_of(entry: FlatField) -> str:
    kind = _type_of(entry)
    if entry.choices:
        return ("," if typing.get_origin(entry.type) is tuple else "|").join(entry.choices)
    names = {int: "INT", float: "FLOAT", bool: "True|False", str: "NAME,NAME" if typing.get_origin(entry.type) is tuple else "TEXT"}
    return next(name for known, name in names.items() if known in typing.get_args(kind))


ALIASES = {"evaluate_students": ("--students",), "evaluate_recipe": ("--recipe",), "data_on_bad_image": ("--on-bad-image",)}
SAID = {"images_of": "dataset"}  # other words on the command line
SWITCHES = ("allow_drift",)  # flags without a value: not given means no


def flag(name: str, kind: Any, help: str, metavar: str, default: str = "", positional: bool = False) -> tuple[str, Any, Any]:
    """An entry of a dataclass that the parser makes an option of, not given by default."""
    place: Any = tyro.conf.Positional if positional else Annotated
    shown = None if kind is bool else metavar
    note = tyro.conf.arg(name=SAID.get(name), help=help, metavar=shown, help_behavior_hint=default, aliases=ALIASES.get(name))
    kind = tyro.conf.FlagCreatePairsOff[bool] if kind is bool else kind
    return name, place[Annotated[kind, note]] if positional else place[kind, note], field(default=False if shown is None else None)


def settings(name: str = "Settings", *more: tuple[str, Any, Any], out: str = "runs/DATASET-METHOD-ipcN-seedN") -> type:
    """A flat dataclass with every field of RunConfig; None means not given."""
    flags: list[Any] = [
        flag("dataset", str | None, "Data set (`delt datasets` lists them) or folder:PATH.", "DATASET", positional=True),
        flag("out", Path | None, "Run folder; one that was stopped goes on.", "FOLDER", f"(default: {out})"),
        flag("config", Path | None, "Replay a run's config.json; flags given beside it win.", "FILE"),
    ]
    return make_dataclass(name, [*flags, *more, *field_flags("dataset")], frozen=True)


def field_flags(*without: str, **defaults: str) -> list[tuple[str, Any, Any]]:
    """A flag for every field of the configuration but these; `defaults` say in words what differs from the fields' own."""
    return [
        flag(
            entry.name,
            bool if entry.name in SWITCHES else _type_of(entry),
            f"{entry.help[0].upper()}{entry.help[1:]}.",
            _metavar_of(entry),
            defaults.get(entry.name) or _default_of(entry),
        )
        for entry in flat_fields()
        if entry.name not in without
    ]


Settings: Any = settings()
ImageSettings: Any = settings(
    "ImageSettings",
    flag("images", Path | None, "Distilled images from elsewhere, FOLDER/CLASS/*: short for --method given.", "FOLDER"),
    flag("images_of", str | None, "Data set of the images.", "DATASET"),
    out="runs/DATASET-METHOD-ipcN-seedN, with --images runs/DATASET-given-FOLDER-seedN",
)
PlanSettings: Any = settings(
    "PlanSettings",
    flag("machine", str | None, "Whose speed counts: here, cuda, cpu, or a file that `delt bench` wrote.", "NAME|FILE", "(default: here)"),
)


STUDY_DEFAULTS = {
    "evaluate_seeds": "(default: 5; of preset smoke: 2)",
    "evaluate_controls": "(default: none, as random is a run; with --recipe paper: random)",
}


def study_settings() -> type:
    """The flags of `delt compare`: those of a run, with several methods and sizes."""
    flags: list[Any] = [
        flag("dataset", str | None, "Data set (`delt datasets` lists them) or folder:PATH.", "DATASET", positional=True),
        flag("methods", str | None, "Methods (`delt methods` lists them); random is always there.", "NAME,NAME"),
        flag("ipc", str | None, "Images per class, one or several numbers.", "INT,INT", "(default: the preset's)"),
        flag("out", Path | None, "Folder that receives a run folder per method and size.", "FOLDER", "(default: runs/DATASET-compare)"),
    ]
    return make_dataclass("StudySettings", [*flags, *field_flags("dataset", "method", "ipc", **STUDY_DEFAULTS)], frozen=True)


StudySettings: Any = study_settings()


def flags_given(settings: Any) -> dict[str, Any]:
    """The flags that were given."""
    values = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value is not None and (value or name not in SWITCHES)}


# ---------------------------------------------------------------- before they are parsed


def check_options(command: str, function: Callable[..., None], arguments: Sequence[str]) -> None:
    """Refuse misspelt options, and numbers that are none, in one line: the parser would put either into a page of boxes.

    Raises:
        ConfigError: naming the option, and the nearest ones or what is allowed.
    """
    known, places = _options(function)
    words, loose = iter(arguments), []
    for word in words:
        if not word.startswith("-"):
            loose.append(word)
        elif not word.startswith("--") and word != "-h":
            raise ConfigError(f"unknown option '{word}' of `delt {command}`: they begin with two dashes (`delt {command} --help`)")
        name, given, value = word.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not word.startswith("--") or name in ("", "help") or name.startswith("tyro-") or known.get(name.removeprefix("no-")) is bool:
            continue
        if name not in known:
            advice = f"leave out the word --{name}" if name in places else _advice(command, name, known)
            raise ConfigError(f"unknown option '--{name}' of `delt {command}`: {advice}")
        value = value if given else next(words, "--")
        if not given and value.startswith("--"):
            raise ConfigError(f"--{name} of `delt {command}` has no value: write it after it")
        _check_value(name, known[name], value)
    if command != "show" and len(loose) > len(places):  # which takes any number
        allowed = f"one, {', '.join(places)}, and settings as --NAME VALUE" if places else "nothing of that kind"
        raise ConfigError(f"`delt {command}` was given {', '.join(map(repr, loose))}; allowed is {allowed}")


def _options(function: Callable[..., None]) -> tuple[dict[str, Any], set[str]]:
    """The options of a command by each of their names, with the kind of their values; and the names of what is no option."""
    hints = typing.get_type_hints(function, include_extras=True)
    if "settings" in hints:
        hints = {entry.name: entry.type for entry in dataclasses.fields(hints["settings"])}
    hints.pop("return", None)
    places = {name for name, kind in hints.items() if tyro.conf.Positional in getattr(kind, "__metadata__", ())}
    found = {}
    for name, kind in hints.items():
        if name not in places:
            names = (SAID.get(name, name), *(alias.removeprefix("--") for alias in ALIASES.get(name, ())))
            found.update(dict.fromkeys((each.replace("_", "-") for each in names), _bare(kind)))
    return found, places


def _bare(kind: Any) -> Any:
    """A type without what is written beside it, and without None."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if kind == bool | None:
        return typing.Literal["True", "False"]  # its value is written out; a bool alone is a flag
    return _bare(parts[0]) if typing.get_origin(kind) in (types.UnionType, typing.Union) and len(parts) == 1 else kind


def _advice(command: str, name: str, known: Iterable[str]) -> str:
    starts = [other for other in known if other.startswith(f"{name}-")]
    near = (starts or difflib.get_close_matches(name, list(known), n=3))[:4]
    ask = f"`delt {command} --help` explains all"
    return f"did you mean {', '.join('--' + other for other in near)}? {ask}" if near else ask


def _check_value(name: str, kind: Any, value: str) -> None:
    """Refuse what is no number where one is wanted, and none of a field's choices."""
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise unknown(f"value of --{name}", value, typing.get_args(kind))
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise ConfigError(f"--{name} is {value!r}; allowed is a {what}") from None
