"""What public functions are given is what they say they take; anything else is refused by name."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import delt
from delt.errors import ConfigError, DataError, DeltError
from delt.typed import typed

VERBS = ("squeeze", "rank", "recover", "relabel", "evaluate", "run", "load", "verify", "open_set", "plan")


@typed
def example(
    count: int, path: Path | str, names: Sequence[str] = (), act: Callable[[int], None] | None = None, share: float = 0.5, **more: Any
) -> tuple[Any, ...]:
    """Say what came."""
    return count, path, names, act, share, more


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("3", "a"), "count is '3'; allowed is a whole number"),
        ((3.0, "a"), "count is 3.0; allowed is a whole number"),
        ((True, "a"), "count is True; allowed is a whole number"),
        ((3, None), "path is None; allowed is a path or text"),
        ((3, delt.RunConfig()), "path is a RunConfig; allowed is a path or text"),
        ((3, "a", 5), "names is 5; allowed is a Sequence"),
        ((3, "a", [], "x"), "act is 'x'; allowed is a function or None"),
        ((3, "a", [], None, "half"), "share is 'half'; allowed is a number"),
    ],
)
def test_other_kinds_are_refused(given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}$"):
        example(*given)


def test_what_is_allowed_passes() -> None:
    assert example(np.int64(3), Path("a"), ["b"], print, 1, other={}) == (3, Path("a"), ["b"], print, 1, {"other": {}})
    with pytest.raises(TypeError, match="missing a required argument: 'path'"):
        example(3)  # type: ignore[call-arg]


def test_a_typed_function_looks_and_travels_as_it_did() -> None:
    assert example.__doc__ == "Say what came." and list(inspect.signature(example).parameters)[:2] == ["count", "path"]
    assert pickle.loads(pickle.dumps(example)) is example
    assert all(hasattr(getattr(delt, verb), "__wrapped__") for verb in VERBS)


def test_the_verbs_refuse_what_they_cannot_work_with(smoke_run: Any, tmp_path: Path) -> None:
    config, run = smoke_run.config, smoke_run
    real, teacher, synthetic = delt.open_set("digits"), run.teacher, run.synthetic
    patches = delt.rank(teacher, real, config.rank, config.ipc)
    labels = delt.relabel(teacher, synthetic, config.relabel)
    assert config.ipc != 9
    fewer, coloured = replace(patches, ipc=9), replace(patches, pixels=patches.images.expand(-1, 3, -1, -1), cut=None)  # type: ignore[union-attr]
    wrong: list[tuple[Callable[[], object], type[DeltError], str]] = [
        (lambda: delt.run("digits", tmp_path), ConfigError, "config is 'digits'; allowed is a RunConfig"),  # type: ignore[arg-type]
        (lambda: delt.run(config, None), ConfigError, "out is None; allowed is a path or text"),  # type: ignore[arg-type]
        (lambda: delt.load(None), ConfigError, "folder is None"),  # type: ignore[arg-type]
        (lambda: delt.squeeze(real, config), ConfigError, "config is a RunConfig; allowed is a TeacherConfig"),  # type: ignore[arg-type]
        (lambda: delt.rank(real, teacher, config.rank), ConfigError, "teacher is a RealSet; allowed is a Teacher"),  # type: ignore[arg-type]
        (lambda: delt.rank(teacher, real, config.rank, 0), ConfigError, "ipc is 0; at least one image per class is needed"),
        (lambda: delt.recover(patches, teacher, config.recover), ConfigError, "teacher is a Patches"),  # type: ignore[arg-type]
        (
            lambda: delt.recover(teacher, fewer, config.recover),
            DataError,
            "starting images; 9 for each of the teacher's 10 classes are needed",
        ),
        (lambda: delt.recover(teacher, coloured, config.recover), DataError, r"3, 8, 8\], the teacher's \[.*, 1, 8, 8\]: rank them with"),
        (lambda: delt.relabel(teacher, synthetic, config.relabel, recipe=config), ConfigError, "recipe is a RunConfig; allowed is text"),  # type: ignore[arg-type]
        (lambda: delt.evaluate(synthetic, labels, real, config.evaluate), ConfigError, "test is a RealSet; allowed is an Images"),  # type: ignore[arg-type]
        (lambda: delt.open_set("digits", config), ConfigError, "config is a RunConfig; allowed is a DataConfig or None"),  # type: ignore[arg-type]
        (lambda: delt.plan(config, 5), ConfigError, "iterations is a RunConfig; allowed is a whole number"),  # type: ignore[arg-type]
    ]
    for call, error, says in wrong:
        with pytest.raises(error, match=says):
            call()
    assert not list(tmp_path.iterdir())
