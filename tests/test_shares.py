"""A rank that follows does its share of every stage; two ranks as threads over one store make what one process makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import delt
from delt.artifacts.folder import verify
from delt.data.load import open_set
from delt.errors import Stopped
from delt.job import Job
from delt.methods import control_of
from delt.pipeline import _lead
from delt.results import Run
from delt.shares import follow, remember_all, students_of, teachers_in
from delt.stages import evaluate, rank, recover
from delt.world import World

SMALL: dict[str, Any] = {"preset": "smoke", "ipc": 4, "recover_group_size": 4, "workers": 1, "iterations": 8}
METHODS: list[dict[str, Any]] = [
    {"rank_factor": 2, "relabel_mode": "stored", "relabel_epochs": 3, "evaluate_controls": ["random", "one_sub_batch"]},
    {"method": "sre2l", "recover_group_size": 5},
    {"method": "gvbsm", "recover_group_size": 5},
]


def both(config: delt.RunConfig, out: Path, until: str = "evaluate") -> list[Any]:
    """A run by two ranks; what each of them raised."""
    store, errors = dist.HashStore(), [None, None]

    def lead(world: World) -> None:
        with world.leading():
            _lead(config, out, until, lambda event: None, False, world)

    def after(world: World) -> None:
        try:
            follow(world, config)
        finally:
            world.leave()

    def run(place: int, act: Callable[[World], None]) -> None:
        try:
            act(World(place, 2, store))
        except BaseException as error:
            errors[place] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(place, act), daemon=True) for place, act in enumerate((lead, after))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def content(out: Path) -> dict[str, bytes]:
    kinds = ("*.png", "*.parquet", "snapshots.safetensors", "soft_labels.safetensors")
    return {str(path.relative_to(out)): path.read_bytes() for kind in kinds for path in sorted(out.rglob(kind))}


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: settings.get("method", "delt"))
def test_two_ranks_make_what_one_process_makes(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = delt.configure("digits", **{**SMALL, **settings})
    alone = delt.run(config, tmp_path / "one", listener=lambda event: None)
    delt.run(config, tmp_path / "two", until="squeeze", listener=lambda event: None)  # threads cannot train together
    who: dict[str, set[int]] = {"recover_pack": set(), "train_student": set()}

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*given: Any) -> Any:
            who[name].add(threading.get_ident())
            time.sleep(0.02)
            return real(*given)

        return act

    monkeypatch.setattr(recover, "recover_pack", noted("recover_pack", recover.recover_pack))
    monkeypatch.setattr(evaluate, "train_student", noted("train_student", evaluate.train_student))
    monkeypatch.setattr(rank, "BLOCK", 1)
    assert both(config, tmp_path / "two") == [None, None]
    assert content(tmp_path / "two") == content(alone.path) and not verify(tmp_path / "two")
    students = [[row.key for row in run.scores] for run in (delt.load(tmp_path / "two"), alone)]
    assert students[0] == students[1]  # threads share torch's own random state, and students draw from it
    assert [len(threads) for threads in who.values()] == [2, 2], "both ranks have done their share"


def test_a_run_that_fails_ends_the_rank_that_follows(tmp_path: Path):
    config = delt.configure("digits", **SMALL)
    config = replace(config, teacher=replace(config.teacher, weights=str(tmp_path / "nowhere.pth")))
    leader, follower = both(config, tmp_path / "run")
    assert isinstance(leader, delt.DeltError) and "nowhere.pth" in str(leader)
    assert isinstance(follower, Stopped) and follower.exit_code == 0


def test_a_share_is_all_that_the_configuration_and_the_folder_say(smoke_run: Run):
    config = smoke_run.config
    teachers = teachers_in(smoke_run.path, config)
    assert [teacher.digest() for teacher in teachers] == [smoke_run.teacher.digest()]
    real = open_set(config.dataset, config.data, Job().device)
    remember_all(teachers, real, config, Job())
    assert not teachers[0].convolutions, "nothing is matched that would have to be remembered"
    random = control_of(config, "random")
    assert random is not None
    sets = [("delt", config, smoke_run.path), ("random", random, smoke_run.path / "controls" / "random")]
    tasks = students_of(sets, teachers, real, Job(config.seed))
    known = {row.key for row in smoke_run.scores}
    assert {task.score.key for task in tasks} <= known and {task.score.set for task in tasks} == {"delt", "random"}
    full = replace(config, evaluate=replace(config.evaluate, full=True))
    more = students_of([("delt", full, smoke_run.path), sets[1]], teachers, real, Job(config.seed))
    assert [task.score.set for task in more[len(tasks) :]] == ["full"] * config.evaluate.seeds
