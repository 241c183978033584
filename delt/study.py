"""Several methods on one data set under one protocol, or each under its paper's: a run each, beside random real images, and one table.

OUT/METHOD-ipcN/    a run folder each; one that stands is not done again
OUT/table.txt       all of them, with the differences that are more than noise
OUT/comparison.png  accuracy against cost and diversity
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from delt import storage
from delt.analysis.compare import Entry, differences_to, table
from delt.artifacts.folder import RunFolder
from delt.checks import check_config, check_images, check_stages
from delt.config import RunConfig
from delt.data.load import open_set
from delt.data.specs import spec_of
from delt.errors import ConfigError, DeltError
from delt.methods import METHODS, SCHEDULE, configure
from delt.pipeline import absolute, run
from delt.results import Run, compare

CONTROL = "random"
SEEDS = 5  # students per row where the number is not given: three are few for a difference
PAPER = "paper"  # the recipe that is each method's own: there is no common one, and the control stands beside each method


@dataclass(frozen=True)
class Study:
    """A study that came to its end."""

    out: Path
    runs: dict[str, Run]
    entries: list[Entry]

    def table(self) -> str:
        """All sets, and each one's difference to the random control, paired over seeds."""
        return "\n".join([table(self.entries), "", *differences_to(self.entries, CONTROL)])


def study(dataset: str, methods: Iterable[str], out: Path | str, ipcs: Iterable[int | None] = (None,), **given: Any) -> Study:
    """Do a run per method and number of images per class, the random control included, and compare them.

    Args:
        methods: names of the table; `random` comes first whether or not it is named.
        ipcs: images per class, None for the preset's.
        given: settings of all runs, as in `configure`; a schedule concerns those that optimise. The teacher is trained once.
            `evaluate_seeds` is 5 where it is not given, but with preset smoke. With `evaluate_recipe="paper"` each method has
            its own recipe, and random images are a control of each run instead of a run.

    Raises:
        DeltError: an unknown method, settings that do not fit, data that are not there: before anything starts.
    """
    from delt import plots

    folder, configs = Path(out).expanduser(), planned(dataset, methods, ipcs, given)
    RunFolder(folder).require_no_run("a comparison")
    runs: dict[str, Run] = {}
    for name, config in configs.items():
        print(f"{name} ({len(runs) + 1} of {len(configs)})", flush=True)
        runs[name] = run(config, folder / name)
    found = Study(folder, runs, compare(runs, controls=(CONTROL,) if _own_recipes(given) else ()))
    storage.write_bytes(folder / "table.txt", f"{found.table()}\n".encode())
    storage.write_bytes(folder / "comparison.png", plots.png(plots.comparison(found.entries)))
    return found


def planned(dataset: str, methods: Iterable[str], ipcs: Iterable[int | None], given: dict[str, Any]) -> dict[str, RunConfig]:
    """Name of each run -> its configuration, all of them checked."""
    for name, use in (("ipc", "ipcs=[3, 10]"), ("method", 'methods=["delt"]')):
        if given.get(name) is not None:
            raise ConfigError(f"{name} is {given[name]!r}, and a study has several: say {use}")
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise ConfigError(f'methods is {methods!r}; allowed is a list, as in ["rded", "delt"]')
    if isinstance(ipcs, str) or not isinstance(ipcs, Iterable) or not (ipcs := list(ipcs)):
        raise ConfigError(f"ipcs is {ipcs!r}; allowed is a list, as in [3, 10]")
    methods = list(methods)
    given, own = {name: value for name, value in given.items() if value is not None}, _own_recipes(given)
    names = [name for name in dict.fromkeys([CONTROL, *methods]) if not (own and name == CONTROL)]
    if not {name for name in names if name} - {CONTROL}:
        raise ConfigError(f"methods are {', '.join(methods) or 'none'}; name at least one beside {CONTROL}, which is always there")
    usual: dict[str, Any] = {"evaluate_controls": [CONTROL] if own else []}
    usual |= {} if given.get("preset") == "smoke" else {"evaluate_seeds": SEEDS}
    configs = {}
    for ipc in ipcs:
        for name in names:
            try:
                config = absolute(configure(dataset, **{**usual, **_for(name, dataset, given), "method": name, "ipc": ipc}))
                check_config(config)
            except DeltError as error:
                raise type(error)(f"method {name}: {error}") from None
            configs[f"{name}-ipc{config.ipc}"] = config
    real = open_set(config.dataset, config.data, torch.device("cpu"))  # the same for all
    for config in configs.values():
        check_images(config, real)
        check_stages(config, len(real.info.classes), real.info.channels, real.info.size)
    return configs


def _own_recipes(given: dict[str, Any]) -> bool:
    return given.get("evaluate_recipe") == PAPER


def _for(method: str, dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that concern a method: a schedule where it optimises, a folder where its images are given, more teachers where it
    has several.
    """
    row = METHODS.get(method)
    if row is None:
        return given
    settings = row.settings(spec_of(dataset))
    without = {"iterations", *SCHEDULE} if settings.get("iterations") == 0 else set()
    without |= {"rank_folder"} if settings.get("rank_keep") != "given" else set()
    without |= {"teacher_others"} if not settings.get("teacher_others") else set()
    return {name: value for name, value in given.items() if name not in without}
