"""Sweep files: a grid or a list over the parameters of the experiment, read into points that are checked one by one.

title: EarlyLate                # optional
jobs: 2                         # points at a time
parameters: {preset: demo}      # the same for all points
grid:                           # every combination of these
  round_iterations: [40, 80]
  sub_batches: [2, 4]
points:                         # and these
  - {method: random}
reference: {method: random}     # the point that the summary holds the others against (default: the first)
slurm: {partition: gpu, gpus: 1}  # what each point asks for with --engine slurm: see delt.batch.engines.settings
ray: {address: auto, gpus: 1}     # and with --engine ray

Names and types are those of the notebook's parameters. Relative paths count from the current folder.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delt.batch.engines.settings import RaySettings, SlurmSettings, settings
from delt.config import MOST_INT, RunConfig, flatten
from delt.errors import ConfigError, DeltError, unknown
from delt.methods import configure
from delt.pipeline import absolute
from delt.storage import sha256_bytes

FIELDS: dict[str, type] = {"title": str, "jobs": int, "parameters": dict, "grid": dict, "points": list, "reference": dict}
FIELDS |= {"slurm": dict, "ray": dict}
WORDS = {str: "a text", int: "a whole number", dict: "a mapping of names to values", list: "a list of mappings"}
MOST = 1000  # points; more are a slip of the pen
LARGEST, EXPANDED = 64 * 1024, 20_000  # bytes of a file, and values in it, with what its aliases repeat
DEEPEST = 32  # values in each other
NAMED = 8  # points in an error's list
LONGEST_NAME, LONGEST_VALUE = 120, 32  # characters; a folder's name may have 255 bytes
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")  # characters that some file system or shell minds


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder's name, the parameters of its own, and its whole configuration."""

    name: str
    parameters: Mapping[str, Any]
    config: RunConfig

    def values(self, names: Iterable[str]) -> dict[str, Any]:
        """Its value of each of these parameters, whether it names them itself or not."""
        known = flatten(self.config) | dict(self.parameters)
        return {name: known[name] for name in names}


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked."""

    name: str  # the file's, without its ending
    title: str
    jobs: int | None  # points at a time; None: the engine's own choice
    points: tuple[Point, ...]
    reference: Point  # the one that the others are held against
    slurm: SlurmSettings
    ray: RaySettings


def load_sweep(file: Path | str) -> Sweep:
    """Read a sweep file and check every point of it.

    Raises:
        ConfigError: there is no such file, it is no sweep, a point has an unknown or wrong parameter or a schedule that does
            not fit, or the reference is no point; the message names the file and the point.
    """
    path = Path(file)
    content = _content(path)
    fixed, points, seen = content.get("parameters", {}), [], dict[RunConfig, str]()
    for own in _own(content, path):
        point = _point(own, fixed, path)
        if point.config in seen:
            raise ConfigError(f"{path}: points {seen[point.config]} and {point.name} are the same run: leave one out")
        seen[point.config] = point.name
        points.append(point)
    reference = _reference(content["reference"], points, path) if "reference" in content else points[0]
    slurm = settings(SlurmSettings, content.get("slurm", {}), f"{path}, slurm")
    ray = settings(RaySettings, content.get("ray", {}), f"{path}, ray")
    return Sweep(path.stem, content.get("title", path.stem), content.get("jobs"), tuple(points), reference, slurm, ray)


def named(points: Iterable[Point]) -> list[str]:
    """Every parameter that any of these points names."""
    return list(dict.fromkeys(name for point in points for name in point.parameters))


def _reference(wanted: Mapping[str, Any], points: Sequence[Point], path: Path) -> Point:
    """The one point that has these values."""
    names = named(points)
    if odd := [name for name in wanted if name not in names]:
        raise ConfigError(f"{path}, reference: {unknown('parameter', odd[0], names)}")
    text = _text(wanted)  # in which 1 and true differ, as they do not in Python
    found = [point for point in points if _text(point.values(wanted)) == text]
    if len(found) == 1:
        return found[0]
    fits, near = f"{len(found)} points" if found else "no point", [point.name for point in found or points]
    shown = ", ".join(near[:NAMED]) + (f" or {len(near) - NAMED} more" if len(near) > NAMED else "")
    raise ConfigError(f"{path}: reference is {wanted!r}, which fits {fits}; it has to fit one of {shown}")


def _text(meaning: Any) -> str:
    return json.dumps(meaning, sort_keys=True, default=str)


def point_name(own: Mapping[str, Any]) -> str:
    """The folder name of a point, from the parameters of its own: safe in any file system, another for any other point.

    >>> point_name({"round_iterations": 40, "sub_batches": 4})
    'round_iterations=40,sub_batches=4'
    """
    name = ",".join(f"{key}={_word(value)}" for key, value in own.items()) or "as_given"
    return name if len(name) <= LONGEST_NAME else _shortened(name, LONGEST_NAME, own)


def _word(value: Any) -> str:
    """A value as a part of a file name; with a hash where characters had to go."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    safe = UNSAFE.sub("-", text)
    return safe if safe == text and 0 < len(text) <= LONGEST_VALUE else _shortened(safe, LONGEST_VALUE, value)


def _shortened(text: str, length: int, meaning: Any) -> str:
    digest = sha256_bytes(_text(meaning).encode())[:8]
    return f"{text[: length - 9]}~{digest}"


def _content(path: Path) -> dict[str, Any]:
    """The file's content, with only known fields of the right kinds in it."""
    content = _parsed(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no sweep but {type(content).__name__}; allowed are the fields {', '.join(FIELDS)}")
    for name, value in content.items():
        if name not in FIELDS:
            raise ConfigError(f"{path}: {unknown('field', name, FIELDS)}")
        if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {value!r}; allowed is {WORDS[FIELDS[name]]}")
    if content.get("jobs", 1) < 1:
        raise ConfigError(f"{path}: jobs is {content['jobs']}; at least 1 is needed")
    return content


def _parsed(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """yaml takes the last of two equal names; here that is a slip. Nor does it count how deep values lie in each other."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > DEEPEST:
                raise ConfigError(f"{path} is no sweep: its values are nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            found: dict[Any, Any] = super().construct_mapping(node, deep)  # which refuses a name that is a list
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ConfigError(f"{path}: {twice[0]} stands twice from line {node.start_mark.line + 1} on: leave one out")
            return found

    def whole(loader: Any, node: Any) -> int:
        if ":" in node.value:
            raise ConfigError(f"{path}: YAML takes {node.value} for a number to the base 60: a time is a number of minutes, without colons")
        number: int = loader.construct_yaml_int(node)
        if abs(number) >= MOST_INT:  # which Python may refuse to write down again
            raise ConfigError(f"{path}: the number in line {node.start_mark.line + 1} is too large")
        return number

    Loader.add_constructor("tag:yaml.org,2002:int", whole)
    try:
        loader = Loader(_text_of(path))  # nothing but plain values, as safe_load
        node = loader.get_single_node()
        if (values := _values(node, {})) > EXPANDED:
            raise ConfigError(f"{path} means {values:,} values, with those that its aliases (*name) repeat; allowed are {EXPANDED:,}")
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: other bytes than text, or the 31st of February
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _text_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        near = sorted(str(item) for item in path.parent.glob("*.yaml"))
        raise unknown("sweep", path, near) if near else ConfigError(f"no sweep at {path}: give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path} is no sweep: it is larger than {LARGEST:,} bytes")
    return data.decode()


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node stands for where each alias is written out; `known` has those that were counted.

    A node that holds itself counts as too many.
    """
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = EXPANDED + 1  # as long as it is being counted
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _own(content: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """The parameters of each point's own: the grid's combinations, the last name running fastest, then the list."""
    grid, points, fixed = content.get("grid", {}), content.get("points", []), content.get("parameters", {})
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {name} in grid is {values!r}; allowed is a list of values")
    for number, point in enumerate(points, 1):
        if not isinstance(point, dict):
            raise ConfigError(f"{path}: point {number} is {point!r}; allowed is a mapping of names to values")
    twice = [name for name in fixed if any(name in own for own in (grid, *points))]
    if twice:
        raise ConfigError(f"{path}: {twice[0]} is in parameters, which are the same for all points: leave it out there")
    count = len(points) + (math.prod(map(len, grid.values())) if grid else 0)
    if not 1 <= count <= MOST:
        raise ConfigError(f"{path} has {count} points; allowed are 1 to {MOST}, in grid and points")
    if grid:
        yield from (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
    yield from points


def _point(own: dict[str, Any], fixed: Mapping[str, Any], path: Path) -> Point:
    name = point_name({str(key): value for key, value in own.items()})
    given = {**fixed, **own}
    try:
        if odd := [key for key in given if not isinstance(key, str)]:
            raise ConfigError(f"{odd[0]!r} is no name of a parameter")
        return Point(name, own, absolute(configure(**given)))
    except DeltError as error:
        raise ConfigError(f"{path}, point {name}: {error}{_hint(given, str(error))}") from None


def _hint(given: Mapping[Any, Any], message: str) -> str:
    """What helps where YAML reads a number as text."""
    for value in given.values():
        if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value) and repr(value) in message:
            return f" (YAML takes {value} for text: its numbers have a point and a signed exponent, as in 1.0e-3)"
    return ""
