"""Methods as rows of one table, and the rules that turn a few words of a user into a whole configuration.

What is not given is filled in this order: the fields' defaults, what suits the data set, the preset, the method, the
fidelity, then what the user said. A method is a row of settings; nothing else in the package asks for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from delt.config import FIDELITY, PRESETS, RunConfig, flatten, unflatten
from delt.data.specs import DatasetSpec, spec_of
from delt.errors import ConfigError, unknown
from delt.recipes import recipe_of
from delt.schedule import plan

Flat = dict[str, Any]
SCHEDULE = ("round_iterations", "sub_batches")  # derived from iterations and ipc where they are not given


@dataclass(frozen=True)
class Method:
    """One row: what the method is, and the settings that make it."""

    title: str
    settings: Callable[[DatasetSpec], Flat]
    locked: tuple[str, ...] = ()  # settings without which it would be another method


def _delt(spec: DatasetSpec) -> Flat:
    return {"rank_keep": "medium", "recover_grouping": "class"}


def _cda(spec: DatasetSpec) -> Flat:
    """Published settings: ImageNet-1K lr .25, bn .01, jitter 32; Tiny-ImageNet lr .4, bn .05, jitter 4 (arXiv 2311.18838)."""
    size = spec.size or 224
    jitter = 32 if size > 64 else 4 if size >= 32 else 1
    tiny = {"recover_lr": 0.4, "recover_bn_weight": 0.05} if spec.name == "tiny-imagenet" else {}
    return {"rank_keep": "noise", "recover_grouping": "mixed", "sub_batches": 1, "recover_jitter": jitter, **tiny}


def _random(spec: DatasetSpec) -> Flat:
    return {"rank_keep": "random", "rank_images": None, "rank_crops": 0, "rank_factor": 1, "iterations": 0}


METHODS: dict[str, Method] = {
    "delt": Method("EarlyLate on median real patches (DELT, CVPR 2025)", _delt),
    "cda": Method("noise, mixed-class groups, crop curriculum (CDA, TMLR 2024)", _cda, ("recover_grouping",)),
    "random": Method("randomly chosen real images: the control", _random, ("rank_keep", "rank_crops", "rank_factor", "iterations")),
}

CONTROLS: dict[str, Flat] = {
    "random": {"method": "random", **_random(spec_of("digits"))},
    "start": {"iterations": 0},
    "one_sub_batch": {"sub_batches": 1},
}


def configure(dataset: str = "digits", **given: Any) -> RunConfig:
    """Return the whole configuration of a run from flat settings; `None` means not given.

    >>> configure("digits", ipc=5, preset="demo").recover.sub_batches
    5

    Raises:
        ConfigError: an unknown name (with the nearest), a wrong type or range, or settings that do not fit together.
    """
    given = {name: value for name, value in given.items() if value is not None}
    spec, method = spec_of(dataset), given.get("method", "delt")
    preset, fidelity = given.get("preset", "paper"), given.get("fidelity", "fixed")
    for what, name, table in (("method", method, METHODS), ("preset", preset, PRESETS), ("fidelity", fidelity, FIDELITY)):
        if name not in table:
            raise unknown(what, name, table)
    row = METHODS[method]
    settings = row.settings(spec)
    for name in row.locked:
        if name in given and name in settings and given[name] != settings[name]:
            raise ConfigError(
                f"{name} is {given[name]!r}, and method {method} means {settings[name]!r}: leave it out or choose another method"
            )
    flat = {"dataset": dataset, **spec.defaults, **PRESETS[preset], **settings, **FIDELITY[fidelity], **given}
    return completed(unflatten(flat), spec)


def completed(config: RunConfig, spec: DatasetSpec) -> RunConfig:
    """Fill what follows from other settings (schedule, mirror) and check that all fit together."""
    recover = config.recover
    schedule = plan(recover.iterations, config.ipc, recover.round_iterations, recover.sub_batches if recover.iterations else None)
    if recover.iterations:
        recover = replace(recover, round_iterations=schedule.round_iterations, sub_batches=schedule.sub_batches)
    recipe_of(config.evaluate.recipe)
    flip = spec.flip if recover.flip is None else recover.flip
    return replace(config, recover=replace(recover, flip=flip))


def changed(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A configuration with some flat settings replaced; the schedule is derived anew where its numbers change.

    Raises:
        ConfigError: as `configure`.
    """
    flat = flatten(config)
    given = {name: value for name, value in given.items() if value is not None}
    if {"iterations", "ipc", *SCHEDULE} & set(given):
        flat |= dict.fromkeys(SCHEDULE)
    return completed(unflatten({**flat, **given}), spec_of(given.get("dataset", config.dataset)))


def control_of(config: RunConfig, name: str) -> RunConfig | None:
    """The configuration of a control beside a run; None where the run is that control itself."""
    overrides: Flat = {**CONTROLS[name], "evaluate_controls": [], "evaluate_full": False}
    control = changed(config, {key: value for key, value in overrides.items() if value is not None})
    if name == "random":
        control = replace(control, rank=replace(control.rank, images=None))
    return None if (control.method, control.rank, control.recover) == (config.method, config.rank, config.recover) else control
