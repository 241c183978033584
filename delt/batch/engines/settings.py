"""What a point asks a cluster for: the fields `slurm` and `ray` of a sweep file."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from delt.errors import ConfigError, unknown

LEAST = {"time": 1, "cpus": 1}  # of anything else 0
CLUSTERS = ("slurm", "local")
WORDS = {int: "a whole number", float: "a whole number, or a part of 1", str: "a text", dict: "a mapping of sbatch's options to values"}


@dataclass(frozen=True)
class SlurmSettings:
    """A Slurm job for each point. An empty text or 0 leaves the choice to the cluster."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: int = 60  # minutes; a run that needs more is requeued and goes on from its checkpoint
    gpus: int = 0
    cpus: int = 1
    memory: int = 0  # GB
    options: dict[str, Any] = field(default_factory=dict)  # any other of sbatch, such as {constraint: a100}
    cluster: str = "slurm"  # local: processes of this machine that stand in for jobs, to try a file without Slurm


@dataclass(frozen=True)
class RaySettings:
    """A Ray task for each point."""

    address: str = ""  # auto: the cluster that this machine belongs to; HOST:PORT: of its head; empty: a cluster of its own
    gpus: float | None = None  # a part of one, too; None: one where the cluster has GPUs
    cpus: int = 1


Kind = TypeVar("Kind", SlurmSettings, RaySettings)


def settings(kind: type[Kind], given: Mapping[str, Any], place: str) -> Kind:
    """The settings that a mapping in a sweep file means.

    Args:
        place: of the mapping, for messages.

    Raises:
        ConfigError: an unknown field or a wrong value.
    """
    kinds = typing.get_type_hints(kind)
    for name, value in given.items():
        if name not in kinds:
            raise ConfigError(f"{place}: {unknown('field', name, kinds)}")
        if problem := _problem(name, value, kinds[name]):
            raise ConfigError(f"{place}: {name} is {value!r}; allowed is {problem}")
    return kind(**given)


def _problem(name: str, value: Any, hint: Any) -> str:
    """What is allowed in the place of a value; empty where it is."""
    wanted = next(part for part in (typing.get_origin(hint) or hint, *typing.get_args(hint)) if part in WORDS)
    fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
    if name == "cluster":
        return "" if value in CLUSTERS else " or ".join(CLUSTERS)
    if wanted is dict:
        fits = fits and all(isinstance(key, str) and isinstance(item, str | int | float) for key, item in value.items())
    if wanted is float:
        fits = fits and (0 <= value <= 1 or (value > 1 and float(value).is_integer()))
    least = LEAST.get(name, 0)
    if wanted is int:
        return "" if fits and value >= least else f"{WORDS[int]} of at least {least}"
    return "" if fits else WORDS[wanted]
