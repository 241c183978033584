"""What any rank can do of a stage, given its configuration and the run folder; and what a rank does that follows the first.

The first rank goes through the pipeline (delt.pipeline) and calls the others to a stage when what it needs is in the folder.
They hold no state of their own but the real images: a call says everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from delt.artifacts.ranking import Patches, Ranking
from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RunConfig, unflatten
from delt.data.given import list_given
from delt.data.images import RealSet
from delt.data.load import open_set
from delt.job import Job
from delt.pool import Pool
from delt.runtime import device_of, resolve, settings
from delt.signals import Reins, heeded
from delt.stages import rank, recover, relabel
from delt.stages.evaluate import StudentTask, full_tasks, run_students, student_tasks
from delt.stages.squeeze import backbones, make_teacher, remember
from delt.world import World

Teachers = tuple[Teacher, ...]  # the first ranks and names the classes; recover asks all of them in turn
Set = tuple[str, RunConfig, Path]  # what a synthetic set is called in the scores, its configuration, its run folder


def teachers_in(folder: Path, config: RunConfig) -> Teachers:
    """The teachers of a run folder."""
    return tuple(Teacher.load(folder / "teachers" / f"{name}.safetensors") for name in backbones(config.teacher))


def remember_all(teachers: Teachers, real: RealSet, config: RunConfig, job: Job) -> None:
    """Let the teachers remember what convolutions see, where that is matched; a control finds them remembered."""
    if config.recover.match == "bn+conv" and config.recover.iterations:
        for teacher in teachers:
            if not teacher.convolutions:
                remember(teacher, real, job)


def students_of(sets: list[Set], teachers: Teachers, real: RealSet, job: Job) -> list[StudentTask]:
    """The students of all sets, as values; those of the whole real set come last, where the first set wants them."""
    tasks = []
    for name, config, folder in sets:
        stored = config.relabel.mode == "stored"
        soft = SoftLabels.load(folder, teachers[0]) if stored else SoftLabels(teachers[0], "", others=teachers[1:])
        tasks += student_tasks(SyntheticSet.load(folder), soft, real.test, config.evaluate, job, name=name)
    evaluate = sets[0][1].evaluate
    return tasks + (full_tasks(real, SoftLabels(teachers[0], ""), evaluate, job) if evaluate.full else [])


def follow(world: World, config: RunConfig) -> None:
    """Do a share of each stage that the first rank calls for, until it calls no more.

    Raises:
        Stopped: a signal came, or the first rank ended with an error; finished units and checkpoints stand.
    """
    runtime = resolve(config.runtime)
    with heeded() as reins, settings(runtime), Pool(runtime) as pool:
        follower = Follower(world, pool, reins)
        for call in world.calls(reins.check):
            follower(call)


@dataclass
class Follower:
    """A rank that follows: `follower(call)` does its share of one stage."""

    world: World
    pool: Pool
    reins: Reins
    config: RunConfig = field(init=False, repr=False)
    folder: Path = field(init=False)

    def __call__(self, call: dict[str, Any]) -> None:
        self.config, self.folder = unflatten(call["config"]), Path(call["folder"])
        runtime = self.config.runtime
        job = Job(self.config.seed, runtime, Path(call["work"]), self.reins.guard(self.world.tell), self.pool, world=self.world)
        stages: dict[str, Callable[[Job, dict[str, Any]], None]] = {
            "squeeze": self.squeeze,
            "rank": self.rank,
            "recover": self.recover,
            "relabel": self.relabel,
            "evaluate": self.evaluate,
        }
        with settings(runtime):
            stages[call["stage"]](job, call)
        self.world.flush()

    @cached_property
    def real(self) -> RealSet:
        """The real images, which are the same for all calls of a run."""
        return open_set(self.config.dataset, self.config.data, device_of(self.config.runtime))

    @property
    def teachers(self) -> Teachers:
        return teachers_in(self.folder, self.config)

    def squeeze(self, job: Job, call: dict[str, Any]) -> None:
        make_teacher(self.real, self.config.teacher, job)

    def rank(self, job: Job, call: dict[str, Any]) -> None:
        if self.config.rank.keep not in ("noise", "given"):
            _through(rank.units_of(self.teachers[0], self.real, self.config.rank, self.config.ipc, job))

    def recover(self, job: Job, call: dict[str, Any]) -> None:
        teachers = self.teachers
        remember_all(teachers, self.real, self.config, job)
        tasks = recover.packs_of(teachers, self.config.ipc, self.config.recover, job)
        if tasks:
            _through(recover.units_of(tasks, self.patches(), job))

    def patches(self) -> Patches:
        """The starting images, as the first rank has chosen them."""
        config, count = self.config, self.config.ipc * len(self.real.info.classes)
        if config.rank.keep == "noise":
            return Patches(config.ipc, None, ["noise"] * count)
        if config.rank.keep == "given":
            given = list_given(config.rank.folder, self.real.info, config.ipc)
            return Patches(config.ipc, given.images(), list(given.paths))
        return rank.render(Ranking.load(self.folder), self.real, config.ipc)

    def relabel(self, job: Job, call: dict[str, Any]) -> None:
        if self.config.relabel.mode == "stored":
            teachers, recipe = self.teachers, self.config.evaluate.recipe
            _through(relabel.units_of(teachers[0], SyntheticSet.load(self.folder), self.config.relabel, job, recipe, teachers[1:]))

    def evaluate(self, job: Job, call: dict[str, Any]) -> None:
        sets = [(name, unflatten(config), Path(folder)) for name, config, folder in call["sets"]]
        run_students(students_of(sets, self.teachers, self.real, job), job, [Score(**row) for row in call["known"]])


def _through(units: Any) -> None:
    """Do all units of a stage; their results stay on the disk."""
    for _ in units:
        pass
