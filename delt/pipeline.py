"""A whole run: the five stages in order, each skipped where its artefacts stand, its controls beside it.

    teacher   = squeeze(real, cfg.teacher)
    patches   = rank(teacher, real, cfg.rank)
    synthetic = recover(teacher, patches, cfg.recover)
    labels    = relabel(teacher, synthetic, cfg.relabel)
    scores    = evaluate(synthetic, labels, real.test, cfg.evaluate)

`run(configure("digits", preset="demo"), out="runs/a")` does all of it and leaves a folder that `load` opens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from delt import storage
from delt.analysis.diversity import diversity, extractor_of, same_number
from delt.analysis.table import rows, text
from delt.artifacts import cache
from delt.artifacts.folder import RunFolder
from delt.artifacts.ranking import FILE as RANKING
from delt.artifacts.ranking import Patches, Ranking
from delt.artifacts.scores import Score, Scores
from delt.artifacts.snapshots import FILE as SNAPSHOTS
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import RunConfig, flatten, unflatten
from delt.data.images import RealSet
from delt.data.load import open_set, require_images
from delt.data.specs import spec_of
from delt.errors import IntegrityError, RunError, TeacherError, unknown
from delt.methods import control_of
from delt.models.zoo import build, has_batchnorm
from delt.progress import Bars, Meter
from delt.recipes import recipe_of
from delt.runtime import Emit, Job, Pool, device_of, machine, peak_memory, resolve, settings
from delt.stages.evaluate import StudentTask, full_tasks, run_students, student_tasks
from delt.stages.rank import rank, render
from delt.stages.recover import recover
from delt.stages.relabel import relabel
from delt.stages.squeeze import check_strength, squeeze

STAGES = ("squeeze", "rank", "recover", "relabel", "evaluate")


@dataclass
class Run:
    """A run folder opened for reading; every artefact is read when asked for and checked against its recorded hash.

    >>> done = delt.load("runs/a")
    >>> done.scores.summary()
    """

    path: Path

    @cached_property
    def config(self) -> RunConfig:
        return read_config(self.path / "config.json")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return RunFolder(self.path).manifest() or {}

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher.load(self._checked("teachers/teacher.safetensors", "teachers/teacher.json").parent / "teacher.safetensors")

    @cached_property
    def ranking(self) -> Ranking | None:
        return Ranking.load(self._checked(RANKING).parent) if (self.path / RANKING).exists() else None

    @cached_property
    def synthetic(self) -> SyntheticSet:
        self._checked("synthetic.parquet", *(name for name in self._files if name.startswith("synthetic/")))
        return SyntheticSet.load(self.path)

    @cached_property
    def snapshots(self) -> Snapshots | None:
        return Snapshots.load(self._checked(SNAPSHOTS).parent) if (self.path / SNAPSHOTS).exists() else None

    @cached_property
    def scores(self) -> Scores:
        return Scores.load(self._checked("scores.json").parent)

    @cached_property
    def diversity(self) -> dict[str, dict[str, float]]:
        """Set -> {"mean": .., class: ..}: intra-class cosine similarity of the synthetic set, its controls and real images."""
        values: dict[str, dict[str, float]] = storage.read_json(self._checked("diversity.json"))
        return values

    @cached_property
    def controls(self) -> dict[str, Run]:
        return {name: Run(self.path / "controls" / name) for name in RunFolder(self.path).controls()}

    def rows(self) -> list[dict[str, Any]]:
        """The table as dicts; see `delt.analysis.table.rows`."""
        configs = {self.config.method: self.config, **{name: control.config for name, control in self.controls.items()}}
        return rows(self.scores, self.diversity, configs, len(self.synthetic.classes))

    def table(self) -> str:
        """The table as text."""
        return text(self.rows())

    def describe(self) -> str:
        """What the folder holds, as text."""
        config = self.config
        facts = [
            f"{self.path}",
            f"{config.method} on {config.dataset}, {config.ipc} images per class, seed {config.seed}, {config.fidelity}",
        ]
        done = [f"{stage} {record['seconds']:.1f} s" for stage, record in RunFolder(self.path).records().items()]
        facts.append("done: " + (", ".join(done) or "nothing yet"))
        if not self.manifest.get("complete"):
            return "\n".join([*facts, "not finished: give the command that started it again"])
        facts += [
            "",
            self.table(),
            "",
            *(
                f"  {name}"
                for name in ("config.json", "synthetic", "synthetic.parquet", *sorted(self._files))
                if not name.startswith("synthetic/")
            ),
        ]
        return "\n".join(facts)

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        records = RunFolder(self.path).records().values()
        return {name: entry for record in records for name, entry in record["files"].items()}

    def _checked(self, *names: str) -> Path:
        """The path of the first name, after all of them were compared with their recorded hashes."""
        folder = RunFolder(self.path)
        for name in names:
            if name not in self._files:
                raise IntegrityError(f"{self.path} holds no {name} yet: give the command that started the run again")
            if problems := folder.check(name, self._files[name]):
                raise IntegrityError(f"{self.path}: {problems[0]}")
        return folder.path / names[0]


def load(folder: Path | str) -> Run:
    """Open a run folder.

    Raises:
        RunError: there is no run in it.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise RunError(f"no run at {path}: looked for config.json in it")
    return Run(path)


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's config.json."""
    flat = storage.read_json(path)
    if not isinstance(flat, dict):
        raise IntegrityError(f"{path} holds no configuration but {type(flat).__name__}")
    return unflatten(flat)


def run(config: RunConfig, out: Path | str, *, until: str = "evaluate", listener: Emit | None = None) -> Run:
    """Do what is missing of a run, up to and including a stage, and return the folder opened for reading.

    A stage whose artefacts stand and verify is skipped; one that was stopped goes on from its checkpoints.

    Args:
        config: see `delt.methods.configure`.
        out: run folder; made where it is missing.
        until: the last stage to do.
        listener: receives progress events; by default they become progress bars.

    Raises:
        DeltError: bad settings or data (before any long work), standing artefacts of another configuration, a teacher
            that is too weak.
    """
    if until not in STAGES:
        raise unknown("stage", until, STAGES)
    bars = Bars()
    config = replace(config, runtime=resolve(config.runtime))
    config = replace(config, dataset=_absolute(config.dataset))
    with settings(config.runtime), RunFolder(Path(out)).hold() as folder, Pool(config.runtime) as pool:
        try:
            Pipeline(config, folder, pool, Meter(folder.path / "metrics.jsonl", listener or bars)).go(until)
        finally:
            bars.close()
    return load(out)


def _absolute(dataset: str) -> str:
    return f"folder:{Path(dataset[7:]).expanduser().resolve()}" if dataset.startswith("folder:") else dataset


@dataclass
class Pipeline:
    """One run in progress: what `run` keeps at hand while it goes through the stages."""

    config: RunConfig
    folder: RunFolder
    pool: Pool
    emit: Emit
    name: str = ""  # of the control; "" for the run itself
    _real: RealSet | None = field(default=None, repr=False)

    def go(self, until: str) -> None:
        """Do the stages up to `until`, for the run and its controls; the manifest comes last."""
        check_names(self.config)
        stages = STAGES[: STAGES.index(until) + 1]
        self.refuse_changes()
        require_images(self.real, self.config.ipc)
        storage.write_json(self.folder.path / "config.json", flatten(self.config))
        teacher = self.teacher()
        parts = [self, *(self.controls(teacher) if "evaluate" in stages else [])]
        for part in parts:
            part.synthesis(teacher, stages)
        if "evaluate" in stages:
            self.evaluate(parts, teacher)
            self.measure_diversity(parts, teacher)
            for part in reversed(parts):  # the run's own manifest is the very last file
                part.finish()

    def refuse_changes(self) -> None:
        """Compare the settings that standing or half-done stages were made with; whatever else changed is welcome.

        Raises:
            RunError: naming the stage and every setting that differs.
        """
        flat = flatten(self.config)
        made = {stage: record["keys"] for stage, record in self.folder.records().items()}
        known = {**self.folder.pinned(), **made}
        for stage, keys in sorted(known.items(), key=lambda item: STAGES.index(item[0]) if item[0] in STAGES else len(STAGES)):
            differ = [f"{name}: was {keys[name]}, now {flat[name]}" for name in sorted(keys) if name in flat and keys[name] != flat[name]]
            if differ:
                raise RunError(
                    f"{self.folder.path} holds {stage} of another configuration ({'; '.join(differ)}): "
                    "choose another --out, or delete the folder"
                )

    @cached_property
    def real(self) -> RealSet:
        return self._real or open_set(self.config.dataset, self.config.data, device_of(self.config.runtime))

    @property
    def set_name(self) -> str:
        """What the set is called in the scores."""
        return self.name or self.config.method

    # ------------------------------------------------------------------------------------------ stages

    def teacher(self) -> Teacher:
        """Squeeze, or the standing teacher, or the cached one."""
        keys = self.keys("dataset", "data_size", "data_val_fraction", prefix="teacher_")
        keys["data_fingerprint"] = self.real.fingerprint
        if self.folder.standing("squeeze", keys):
            teacher = Teacher.load(self.folder.path / "teachers")
            check_strength(teacher.card, self.real, self.config.teacher)
            return self._said(teacher, "standing")
        with self.stage("squeeze", keys) as (job, files):
            key = cache.key_of(**keys, device=device_of(self.config.runtime).type, threads=self.config.runtime.threads)
            cached = None if self.config.teacher.weights else cache.load_teacher(key)
            teacher = cached or squeeze(self.real, self.config.teacher, job)
            check_strength(teacher.card, self.real, self.config.teacher)
            if not cached and not self.config.teacher.weights:
                cache.keep_teacher(key, teacher)
            path = teacher.save(self.folder.path / "teachers")
            files += [path, path.with_suffix(".json")]
        return self._said(teacher, "from the cache" if cached else teacher.card.source)

    def _said(self, teacher: Teacher, how: str) -> Teacher:
        card = teacher.card
        width = f" of width {card.width}" if card.width else ""
        self.emit({"message": f"teacher: {card.arch}{width} ({how}), {card.accuracy:.2f} % on the test images of {card.dataset}"})
        return teacher

    def synthesis(self, teacher: Teacher, stages: tuple[str, ...]) -> None:
        """Rank, recover and relabel, as far as they are wanted."""
        if "rank" in stages:
            patches = self.rank(teacher)
        if "recover" in stages:
            self.recover(teacher, patches)
        if "relabel" in stages:
            self.relabel(teacher)

    def rank(self, teacher: Teacher) -> Patches | None:
        """The starting images; None where neither this stage nor the next has anything to do."""
        keys = self.rank_keys(teacher)
        config, standing = self.config, self.folder.standing("rank", keys)
        if standing and self.folder.standing("recover", self.recover_keys(teacher)):
            return None
        if standing and config.rank.keep != "noise":
            return render(Ranking.load(self.folder.path), self.real, config.ipc)
        with self.stage("rank", keys) as (job, files):
            patches = rank(teacher.to(job.device), self.real, config.rank, config.ipc, job)
            files += patches.ranking.save(self.folder.path) if patches.ranking else []
        return patches

    def recover(self, teacher: Teacher, patches: Patches | None) -> None:
        keys = self.recover_keys(teacher)
        if patches is None or self.folder.standing("recover", keys):
            return
        with self.stage("recover", keys) as (job, files):
            done = recover(teacher, patches, self.config.recover, job)
            for reading in done.readings:
                self.emit({"stage": "recover", "record": reading})
            files += done.synthetic.save(self.folder.path)
            files += done.snapshots.save(self.folder.path) if done.snapshots else []

    def relabel(self, teacher: Teacher) -> None:
        keys = self.relabel_keys(teacher)
        if self.folder.standing("relabel", keys):
            return
        with self.stage("relabel", keys) as (job, files):
            config = self.config
            soft = relabel(teacher, SyntheticSet.load(self.folder.path), config.relabel, job, config.evaluate.recipe, self.real.info.flip)
            files += soft.save(self.folder.path)

    def evaluate(self, parts: list[Pipeline], teacher: Teacher) -> None:
        """Train the students of all sets together, so that no core waits for another set's turn."""
        job = self.job("evaluate", teacher)
        tasks = {part.set_name: part.students(teacher, job) for part in parts}
        tasks["full"] = full_tasks(self.real, SoftLabels(teacher, ""), self.config.evaluate, job) if self.config.evaluate.full else []
        flat = [task for group in tasks.values() for task in group]
        begun, known = time.monotonic(), self.known_scores(teacher)
        known.add(row for task in tasks["full"] if (row := cache.load_score(self._full_key(task))))
        rows = run_students(flat, job, known.rows)
        for task, row in zip(flat, rows, strict=True):
            if task.score.set == "full":
                cache.keep_score(self._full_key(task), row)
        seconds = time.monotonic() - begun
        for part in parts:
            part.keep_scores(rows if part is self else [row for row in rows if row.set == part.set_name], teacher, seconds)

    def students(self, teacher: Teacher, job: Job) -> list[StudentTask]:
        """The students of this set, as values."""
        soft = SoftLabels.load(self.folder.path, teacher) if self.config.relabel.mode == "stored" else SoftLabels(teacher, "")
        synthetic = SyntheticSet.load(self.folder.path)
        return student_tasks(synthetic, soft, self.real.test, self.config.evaluate, job, name=self.set_name, flip=self.real.info.flip)

    def known_scores(self, teacher: Teacher) -> Scores:
        """The scores that stand in the folder."""
        standing = self.folder.standing("evaluate", self.relabel_keys(teacher))
        return Scores.load(self.folder.path) if standing else Scores()

    def _full_key(self, task: StudentTask) -> str:
        recipe = recipe_of(task.recipe.name)
        return cache.key_of(data=self.real.fingerprint, student=list(task.score.key), width=task.width, recipe=repr(recipe))

    def keep_scores(self, rows: list[Score], teacher: Teacher, seconds: float) -> None:
        """Write the scores beside those that stand, which may be of other recipes, students or seeds."""
        known = self.known_scores(teacher)
        scores = Scores(list(known.rows))
        scores.add(rows)
        if scores.rows != known.rows:
            scores.save(self.folder.path)
            self.folder.commit("evaluate", self.relabel_keys(teacher), [Path("scores.json")], seconds, peak_memory(self.config.runtime))

    def measure_diversity(self, parts: list[Pipeline], teacher: Teacher) -> None:
        """Intra-class cosine similarity of every set and of as many real images."""
        keys = self.recover_keys(teacher) | {"sets": [part.set_name for part in parts]}
        record = self.folder.records().get("diversity")
        if record and record["keys"] == keys and self.folder.standing("diversity", keys):
            return
        self.folder.reset("diversity")  # cheap, and other controls are no mistake: measured anew instead of refused
        card, begun = teacher.card, time.monotonic()
        extractor = extractor_of("teacher", teacher)
        sets = {part.set_name: SyntheticSet.load(part.folder.path) for part in parts}
        chosen = {name: (value.images, value.labels) for name, value in sets.items()}
        drawn = same_number(self.real.train.labels, self.config.ipc, self.config.seed)
        chosen["real"] = self.real.train.fetch(drawn), self.real.train.labels[drawn]
        values = {
            name: {metric: round(value, 6) for metric, value in diversity(images, labels, card.classes, extractor, card.mean, card.std)}
            for name, (images, labels) in chosen.items()
        }
        storage.write_json(self.folder.path / "diversity.json", values)
        self.folder.commit("diversity", keys, [Path("diversity.json")], time.monotonic() - begun, peak_memory(self.config.runtime))

    def finish(self) -> None:
        """Write the manifest."""
        if isinstance(self.emit, Meter):
            self.emit.flush()
        self.folder.finish({"machine": machine(self.config.runtime), "seed": self.config.seed, "method": self.config.method})

    # ------------------------------------------------------------------------------------------ controls

    def controls(self, teacher: Teacher) -> list[Pipeline]:
        """The runs beside this one, each a folder of its own with the same teacher."""
        found = ((name, control_of(self.config, name)) for name in self.config.evaluate.controls)
        return [self.control(name, config, teacher) for name, config in found if config]

    def control(self, name: str, config: RunConfig, teacher: Teacher) -> Pipeline:
        folder = RunFolder(self.folder.path / "controls" / name)
        part = Pipeline(config, folder, self.pool, self.emit, name, self.real)
        keys = {"teacher": teacher.digest()}
        if not folder.standing("squeeze", keys):
            path = teacher.save(folder.path / "teachers")
            folder.commit("squeeze", keys, [path, path.with_suffix(".json")], 0.0, 0)
        storage.write_json(folder.path / "config.json", flatten(config))
        return part

    # ------------------------------------------------------------------------------------------ keys and jobs

    def keys(self, *names: str, prefix: str = "-") -> dict[str, Any]:
        """The flat settings with these names or this prefix."""
        return {name: value for name, value in flatten(self.config).items() if name in names or name.startswith(prefix)}

    def rank_keys(self, teacher: Teacher) -> dict[str, Any]:
        return self.keys("ipc", "seed", prefix="rank_") | {"teacher": teacher.digest()}

    def recover_keys(self, teacher: Teacher) -> dict[str, Any]:
        machine = self.keys("device", "threads", "precision", "memory_format", "packing")
        schedule = self.keys("iterations", "round_iterations", "sub_batches", prefix="recover_")
        return self.rank_keys(teacher) | schedule | machine

    def relabel_keys(self, teacher: Teacher) -> dict[str, Any]:
        keys = self.recover_keys(teacher) | self.keys(prefix="relabel_") | {"set": self.set_name}
        return keys | (self.keys("evaluate_recipe") if self.config.relabel.mode == "stored" else {})

    def job(self, stage: str, teacher: Teacher) -> Job:
        """What a stage gets besides its inputs."""
        return Job(self.config.seed, self.config.runtime, self.folder.work(stage, self.relabel_keys(teacher)), self._named, self.pool)

    def _named(self, event: dict[str, Any]) -> None:
        self.emit({**event, "set": self.name} if self.name else event)

    @contextmanager
    def stage(self, name: str, keys: dict[str, Any]) -> Iterator[tuple[Job, list[Path]]]:
        """Do a stage: forget an earlier attempt, and record the files that the block collects with its time and memory."""
        self.folder.reset(name)
        files: list[Path] = []
        begun = time.monotonic()
        yield Job(self.config.seed, self.config.runtime, self.folder.work(name, keys), self._named, self.pool), files
        self.folder.commit(name, keys, files, time.monotonic() - begun, peak_memory(self.config.runtime))


def check_names(config: RunConfig) -> None:
    """Refuse architectures that do not exist or cannot be teachers, before anything is loaded or trained.

    Raises:
        ConfigError: an unknown architecture (with the nearest), or one that cannot take these images.
        TeacherError: a teacher without BatchNorm layers.
    """
    spec = spec_of(config.dataset)
    classes, channels, size = spec.count or 2, spec.channels or 3, config.data.size or spec.size or 64
    for arch in config.evaluate.students:
        if arch != "teacher":
            build(arch, classes, channels, size)
    if not has_batchnorm(build(config.teacher.arch, classes, channels, size, config.teacher.width)):
        raise TeacherError(
            f"teacher_arch {config.teacher.arch} has no BatchNorm layers, whose statistics recover needs: `delt models` marks those that do"
        )
