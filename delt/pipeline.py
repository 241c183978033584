"""A whole run: the five stages in order, each skipped where its artefacts stand, its controls beside it.

    teacher   = squeeze(real, cfg.teacher)
    patches   = rank(teacher, real, cfg.rank)
    synthetic = recover(teacher, patches, cfg.recover)
    labels    = relabel(teacher, synthetic, cfg.relabel)
    scores    = evaluate(synthetic, labels, real.test, cfg.evaluate)

`run(configure("digits", preset="demo"), out="runs/a")` does all of it and leaves a folder that `delt.load` opens.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from delt import storage
from delt.analysis.diversity import diversity, extractor_of, same_number
from delt.analysis.space import Shape, needed, rooms
from delt.analysis.speed import groups_of, stand_ins
from delt.analysis.table import where_tested
from delt.artifacts import cache
from delt.artifacts.folder import RunFolder
from delt.artifacts.ranking import Patches, Ranking
from delt.artifacts.scores import Score, Scores
from delt.artifacts.synthetic import PARTIAL, SyntheticSet
from delt.artifacts.teacher import Teacher, file_of
from delt.checks import check_images, check_names, check_stages
from delt.config import STAGES, RunConfig, TeacherConfig, flatten
from delt.data.given import list_given
from delt.data.images import RealSet
from delt.data.load import open_set
from delt.data.specs import OWN_FOLDER
from delt.drift import Drift, facts_of, remembered, settings_of
from delt.engine.memory import fitted
from delt.errors import IntegrityError, RunError, Stopped, unknown
from delt.job import Job
from delt.methods import control_of
from delt.pool import Pool
from delt.progress import Bars, Meter
from delt.recipes import recipe_of
from delt.results import Run, load
from delt.runtime import Emit, device_of, machine, resolve, settings
from delt.shares import Teachers, follow, remember_all, students_of, teachers_in
from delt.signals import Reins, heeded
from delt.stages.evaluate import StudentTask, run_students
from delt.stages.rank import rank, render
from delt.stages.recover import recover
from delt.stages.relabel import relabel
from delt.stages.squeeze import backbones, check_strength, make_teacher
from delt.typed import typed
from delt.world import World, joined

MARGIN = 2**20  # bytes of the disk that a run leaves free
SHARED = ("rank", "recover", "relabel")  # stages whose whole work is done by all ranks
Keys = dict[str, Any]  # what a stage's result depends on


@typed
def run(config: RunConfig, out: Path | str, *, until: str = "evaluate", listener: Emit | None = None, watch: bool = False) -> Run:
    """Do what is missing of a run, up to and including a stage, and return the folder opened for reading.

    A stage whose artefacts stand and verify is skipped; one that was stopped goes on from its checkpoints.

    Args:
        config: see `delt.methods.configure`.
        out: run folder; made where it is missing.
        until: the last stage to do.
        listener: receives progress events (`delt.signals.Emit`); by default they become progress bars. Work in this process
            (one worker) waits while it does not return, and all work is stopped where it raises `Stopped`.
        watch: the events of recover carry the images as they are, as `frame` (delt.artifacts.snapshots.Frame).

    Raises:
        Stopped: the listener said so, or a signal came (Ctrl-C, SIGTERM); its `partial` is the unfinished SyntheticSet where
            recover was stopped, which `delt.load` opens, too.
        DeltError: bad settings or data (before any long work), standing artefacts of another configuration, a teacher
            that is too weak.
    """
    if until not in STAGES:
        raise unknown("stage", until, STAGES)
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that starts, and finds this call in the script
        raise SystemExit("a script that calls delt needs its calls under `if __name__ == '__main__':`, since its workers read it, too")
    with joined(config.runtime) as world:
        if world is None or world.leads:
            with world.leading() if world else nullcontext():
                _lead(config, out, until, listener, watch, world)
        else:
            follow(world, config)
    return load(out)


def _lead(config: RunConfig, out: Path | str, until: str, listener: Emit | None, watch: bool, world: World | None) -> None:
    """What the first rank does, or the only process."""
    bars, meter = Bars(), None
    config = absolute(replace(config, runtime=resolve(remembered(config.runtime, RunFolder(Path(out))))))
    check_names(config)  # before there is a folder
    RunFolder(Path(out)).require_own()
    with (
        heeded() as reins,
        settings(config.runtime),
        RunFolder(Path(out)).hold(shared=world is not None) as folder,
        Pool(config.runtime, folder.lock) as pool,
    ):
        try:
            meter = Meter(folder.path / "metrics.jsonl", listener or bars)
            Pipeline(config, folder, pool, meter, reins, watch=watch, world=world).go(until)
        except Stopped as stop:
            if reins.signal:
                stop.exit_code = reins.exit_code
            raise
        finally:
            if meter:
                meter.flush()
            bars.close()


def absolute(config: RunConfig) -> RunConfig:
    """The same with paths that mean the same from any folder."""
    dataset, root, weights, folder = config.dataset, config.data.root, config.teacher.weights, config.rank.folder
    if dataset.startswith(OWN_FOLDER):
        dataset = OWN_FOLDER + str(Path(dataset.removeprefix(OWN_FOLDER)).expanduser().resolve())
    if weights != "train" and (place := Path(weights).expanduser()).exists():
        weights = str(place.resolve())
    return replace(
        config,
        dataset=dataset,
        data=replace(config.data, root=root and str(Path(root).expanduser().resolve())),
        teacher=replace(config.teacher, weights=weights),
        rank=replace(config.rank, folder=folder and str(Path(folder).expanduser().resolve())),
    )


@dataclass
class Pipeline:
    """One run in progress: what `run` keeps at hand while it goes through the stages."""

    config: RunConfig
    folder: RunFolder
    pool: Pool
    listener: Emit
    reins: Reins = field(default_factory=Reins, repr=False)
    name: str = ""  # of the control; "" for the run itself
    given: RealSet | None = field(default=None, repr=False)
    watch: bool = False
    world: World | None = field(default=None, repr=False)
    drift: Drift = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.drift = Drift(self.folder, self.config.runtime.allow_drift)

    def emit(self, event: dict[str, Any]) -> None:
        """Pass an event on, between two steps of the work: here it learns that it is to stop."""
        self.listener(event)
        self.reins.check()

    def go(self, until: str) -> None:
        """Do the stages up to `until`, for the run and its controls; the manifest comes last."""
        stages = STAGES[: STAGES.index(until) + 1]
        self.refuse_changes()
        self.report_images()
        check_images(self.config, self.real)
        if self.config.rank.keep == "given" and "recover" not in self.folder.records():
            list_given(self.config.rank.folder, self.real.info, self.config.ipc).images()  # a bad file is met before the teacher is trained
        info = self.real.info
        check_stages(self.config, len(info.classes), info.channels, info.size)
        self.fit_engine()
        self.require_room(stages)
        self.write_config()
        teachers = self.squeeze()
        parts = [self, *(self.controls(teachers) if "evaluate" in stages else [])]
        for part in parts:
            part.synthesis(teachers, stages)
        if "evaluate" in stages:
            self.evaluate(parts, teachers)
            self.measure_diversity(teachers[0])
            for part in reversed(parts):  # the run's own manifest is the very last file
                part.finish()

    @cached_property
    def real(self) -> RealSet:
        return self.given or open_set(self.config.dataset, self.config.data, device_of(self.config.runtime))

    @property
    def set_name(self) -> str:
        """What the set is called in the scores."""
        return self.name or self.config.method

    def refuse_changes(self) -> None:
        """Compare the settings that standing artefacts were made with; whatever else changed is welcome.

        Raises:
            RunError: naming the stage and every setting that differs.
        """
        flat, records = flatten(self.config), self.folder.records()
        for stage in [stage for stage in STAGES if stage in records]:
            was = records[stage]["keys"]
            differ = [f"{name}: was {was[name]}, now {flat[name]}" for name in sorted(was) if name in flat and was[name] != flat[name]]
            if differ:
                raise RunError(
                    f"{self.folder.path} holds {stage} of another configuration ({'; '.join(differ)}): "
                    "choose another --out, or delete the folder"
                )

    def report_images(self) -> None:
        """Say what was left out of the real images, and what was changed; `skipped.json` holds the whole list of the former."""
        notes, listed = self.real.notes, self.folder.path / "skipped.json"
        count = len(self.real.train) + len(self.real.test) + len(notes.skipped)
        if not notes.skipped:
            storage.remove(listed)
        else:
            storage.write_json(listed, dict(notes.skipped))
            path, cause = notes.skipped[0]
            words = f"{len(notes.skipped)} of {count} images were skipped (list in {listed.name}), first {path}: {cause}"
            self.emit({"message": f"warning: {words}"})
        if notes.over_white:
            self.emit({"message": f"{notes.over_white} of {count} images have transparency, which was laid over white"})

    def fit_engine(self) -> None:
        """Choose what is still open of the machine's settings, from the memory at hand; a run that goes on has its choice from before."""
        runtime = self.config.runtime
        if runtime.packing is not None:
            return
        groups = groups_of(self.config, len(self.real.info.classes))
        for teacher in stand_ins(self.config):
            found = fitted(runtime, teacher, groups)
            least = min(found.packing or 1, runtime.packing or found.packing or 1)
            runtime = replace(found, packing=least)
        self.config = replace(self.config, runtime=runtime)

    def require_room(self, stages: tuple[str, ...]) -> None:
        """Compare what is still to be written with what is free.

        Raises:
            StorageError: with the folder, needed and free bytes.
        """
        info = self.real.info
        shape = Shape(len(info.classes), info.channels, info.size, len(self.real.train))
        controls = [(control_of(self.config, name), self.folder.control(name)) for name in self.config.evaluate.controls]
        parts = [(self.config, self.folder), *(controls if "evaluate" in stages else [])]
        wanted = [
            ({name: room for name, room in rooms(config, shape).items() if name in stages}, folder.records())
            for config, folder in parts
            if config
        ]
        if bytes_needed := needed(wanted):
            begun = sum(storage.size_of(folder.path / ".work") for _, folder in parts)
            storage.require_room(self.folder.path, max(0, bytes_needed - begun) + MARGIN)

    def write_config(self) -> None:
        """Keep the configuration for `--out` alone to go on; a finished run's is replaced when it is finished again."""
        if self.folder.manifest() is None:
            self._write_config()

    def _write_config(self) -> None:
        lasting = replace(self.config, runtime=replace(self.config.runtime, allow_drift=False))  # is said each time
        storage.write_sealed(self.folder.path / "config.json", flatten(lasting))

    # ------------------------------------------------------------------------------------------ stages

    def squeeze(self) -> Teachers:
        """The teachers, standing, cached or made; saved before they are judged, so that none is ever lost."""
        keys, wanted = self.squeeze_keys(), backbones(self.config.teacher)
        how = dict.fromkeys(wanted, "standing")
        if not self.folder.standing("squeeze", keys):
            places = {name: self.cache_key(config) for name, config in wanted.items()}
            with self.alone(places.values()), self.stage("squeeze", keys) as (job, files):
                for name, config in wanted.items():
                    teacher, how[name] = self.squeezed(config, places[name], replace(job, work=job.work and job.work / name))
                    path = teacher.save(self.folder.path / "teachers", name)
                    files += [path, path.with_suffix(".json")]
        teachers, tested = teachers_in(self.folder.path, self.config), where_tested([self.config.data.hold_out])
        for (name, config), teacher in zip(wanted.items(), teachers, strict=True):
            card = teacher.card
            width = f" of width {card.width}" if card.width else ""
            self.emit({"message": f"teacher: {card.arch}{width} ({how[name]}), {card.accuracy:.2f} % on {tested} of {card.dataset}"})
            check_strength(card, self.real, config)
            if self.config.data.hold_out and config.weights != "train":
                self.emit({"message": f"warning: {config.weights} may have been trained on the images that are held out"})
        return teachers

    def cache_key(self, config: TeacherConfig) -> str:
        """What one teacher depends on."""
        flat = flatten(replace(self.config, teacher=config))
        causes = {name: flat[name] for name in self.squeeze_keys() if name in flat and name != "teacher_others"}
        causes |= {"data_fingerprint": self.real.fingerprint}
        return cache.key_of(**causes, **settings_of(self.config.runtime), **facts_of(self.config.runtime))

    @contextmanager
    def alone(self, keys: Iterable[str]) -> Iterator[None]:
        """Keep other runs from making the same teachers; in one order for all runs, so that none waits for another in a circle."""
        said: list[dict[str, Any]] = [{"message": "another run trains the same teacher: waiting for it"}]
        with ExitStack() as stack:
            for key in sorted(keys):
                stack.enter_context(cache.alone(key, lambda: self.emit(said.pop() if said else {"stage": "squeeze", "done": 0})))
            yield

    def squeezed(self, config: TeacherConfig, key: str, job: Job) -> tuple[Teacher, str]:
        """One teacher, and where it came from."""
        if config.weights == "train" and (cached := cache.load_teacher(key)):
            return cached, "from the cache"
        if config.weights == "train":
            self.call("squeeze", job.work, replace(self.config, teacher=config))
        teacher = make_teacher(self.real, config, job)
        if config.weights == "train":
            cache.keep_teacher(key, teacher)
        return teacher, teacher.card.source

    def synthesis(self, teachers: Teachers, stages: tuple[str, ...]) -> None:
        """Rank, recover and relabel, as far as they are wanted and do not stand."""
        wanted = "recover" in stages and not self.folder.standing("recover", self.recover_keys(teachers))
        patches = self.rank(teachers[0], wanted) if "rank" in stages else None
        if wanted and patches:
            self.recover(teachers, patches)
        if "relabel" in stages:
            self.relabel(teachers)

    def rank(self, teacher: Teacher, wanted: bool) -> Patches | None:
        """The starting images, where recover wants them or they were never ranked."""
        keys, config = self.rank_keys(teacher), self.config
        standing = self.folder.standing("rank", keys)
        if standing and not wanted:
            return None
        if standing and standing["files"]:
            return render(Ranking.load(self.folder.path), self.real, config.ipc)
        with self.stage("rank", keys) as (job, files):
            patches = rank(teacher, self.real, config.rank, config.ipc, job)
            files += patches.ranking.save(self.folder.path) if patches.ranking else []
        return patches

    def recover(self, teachers: Teachers, patches: Patches) -> None:
        """Optimise the images and write them with their history."""
        with self.stage("recover", self.recover_keys(teachers)) as (job, files):
            remember_all(teachers, self.real, self.config, job)
            synthetic = recover(teachers[0], patches, self.config.recover, job, teachers[1:])
            if not synthetic.complete:
                self.keep_partial(synthetic)
                raise Stopped(partial=synthetic)
            files += synthetic.save(self.folder.path)
            if synthetic.snapshots:
                files += synthetic.snapshots.save(self.folder.path)
                for reading in synthetic.snapshots.readings:
                    self.emit({"stage": "recover", "record": reading})
        shutil.rmtree(self.folder.path / PARTIAL, ignore_errors=True)

    def keep_partial(self, synthetic: SyntheticSet) -> None:
        """Write the images as they were when the synthesis was stopped, for `delt.load`; the whole set replaces them."""
        folder = self.folder.path / PARTIAL
        storage.ensure_folder(folder)
        synthetic.save(folder)
        if synthetic.snapshots:
            synthetic.snapshots.save(folder)

    def relabel(self, teachers: Teachers) -> None:
        """Store soft labels where they are stored."""
        keys = self.identity() | self.keys(prefix="relabel_")
        keys |= self.keys("evaluate_recipe") if self.config.relabel.mode == "stored" else {}
        if self.stands("relabel", keys):
            return
        with self.stage("relabel", keys) as (job, files):
            synthetic = SyntheticSet.load(self.folder.path)
            labels = relabel(teachers[0], synthetic, self.config.relabel, job, self.config.evaluate.recipe, teachers[1:])
            files += labels.save(self.folder.path)

    def evaluate(self, parts: list[Pipeline], teachers: Teachers) -> None:
        """Train the students of all sets together, so that no core waits for another set's turn."""
        work = self.folder.work("evaluate", self.evaluate_keys())
        watch, started = Stopwatch(work / "seconds.json", self.emit), self.pool.startup
        job = Job(self.config.seed, self.config.runtime, work, watch, self.pool, world=self.world)
        sets = [(part.set_name, part.config, part.folder.path) for part in parts]
        tasks = students_of(sets, teachers, self.real, job)
        full = [task for task in tasks if task.score.set == "full"]
        self.pool.reset_peak()
        known = self.known_scores()
        if {task.score.key for task in tasks} - {row.key for row in known}:
            self.drift.settle(self.config.runtime)
        known.add(row for task in full if (row := cache.load_score(self.full_key(task))))
        self.call("evaluate", work, sets=[[name, flatten(config), str(path)] for name, config, path in sets], known=known.as_dicts())
        try:
            rows = run_students(tasks, job, known.rows)
        finally:
            watch.note()
        for task, row in zip(tasks, rows, strict=True):
            if row.set == "full":
                cache.keep_score(self.full_key(task), row)
        seconds = watch.seconds - (self.pool.startup - started)
        for part in parts:
            own = rows if part is self else [row for row in rows if row.set == part.set_name]
            part.keep_scores(own, seconds)

    def known_scores(self) -> Scores:
        """The scores that stand in the folder, or that a stopped run was about to write."""
        if self.stands("evaluate", self.evaluate_keys()):
            return Scores.load(self.folder.path)
        try:
            note = storage.read_sealed(self.folder.work("evaluate") / "scores.json")
            return Scores([Score(**row) for row in note["rows"]]) if note["keys"] == self.evaluate_keys() else Scores()
        except IntegrityError:
            return Scores()

    def keep_scores(self, rows: list[Score], seconds: float) -> None:
        """Write the scores beside those that stand, which may be of other recipes, students or seeds, and took their seconds, too."""
        known, keys = self.known_scores(), self.evaluate_keys()
        earlier = self.folder.records().get("evaluate", {}) if known.rows else {}
        scores = Scores(list(known.rows))
        scores.add(rows)
        if scores.rows == known.rows and self.stands("evaluate", keys):
            return
        note = {"keys": keys, "rows": scores.as_dicts()}  # a stop between the next two lines would forget the older rows
        storage.write_sealed(self.folder.work("evaluate") / "scores.json", note)
        scores.save(self.folder.path)
        seconds, peak = seconds + earlier.get("seconds", 0.0), max(self.pool.peak_memory(), earlier.get("peak_memory", 0))
        self.folder.commit("evaluate", keys, [Path("scores.json")], seconds, peak)

    def full_key(self, task: StudentTask) -> str:
        """What a full-data score depends on."""
        card = task.soft.teacher.card
        return cache.key_of(
            data=self.real.fingerprint,
            student=list(task.score.key),
            width=task.width,
            recipe=repr(recipe_of(task.recipe.name, card.dataset, card.size)),
            normalisation=[card.mean, card.std],
            **settings_of(self.config.runtime),
            **facts_of(self.config.runtime),
        )

    def measure_diversity(self, teacher: Teacher) -> None:
        """Intra-class cosine similarity of every set in the folder and of as many real images."""
        folders = {self.set_name: self.folder.path}
        folders |= {name: self.folder.path / "controls" / name for name in self.folder.controls()}
        keys = self.identity() | {"sets": sorted(folders), "features": self.config.evaluate.features}
        if self.stands("diversity", keys):
            return
        device, card, begun = device_of(self.config.runtime), teacher.card, time.monotonic()
        self.pool.reset_peak()
        extractor = extractor_of(self.config.evaluate.features, teacher, device)

        def measured(images: Any, labels: Any) -> dict[str, float]:
            pairs = diversity(images, labels, card.classes, extractor, card.mean, card.std, device)
            return {name: round(value, 6) for name, value in pairs}

        values = {}
        for name, path in folders.items():
            synthetic = SyntheticSet.load(path)
            values[name] = measured(synthetic.images, synthetic.labels)
        drawn = same_number(self.real.train.labels, self.config.ipc, self.config.seed)
        values["real"] = measured(self.real.train.fetch(drawn), self.real.train.labels[drawn])
        storage.write_sealed(self.folder.path / "diversity.json", values)
        self.folder.commit("diversity", keys, [Path("diversity.json")], time.monotonic() - begun, self.pool.peak_memory())

    def finish(self) -> None:
        """Write the configuration that now holds, and the manifest."""
        if isinstance(self.listener, Meter):
            self.listener.flush()
        self._write_config()
        data = {"skipped": len(self.real.notes.skipped), "over_white": self.real.notes.over_white}
        known = {"machine": machine(self.config.runtime), **self.drift.record(), "data": data}
        self.folder.finish({**known, "seed": self.config.seed, "method": self.config.method})

    # ------------------------------------------------------------------------------------------ controls

    def controls(self, teachers: Teachers) -> list[Pipeline]:
        """The runs beside this one, each a folder of its own with the same teachers."""
        found = ((name, control_of(self.config, name)) for name in self.config.evaluate.controls)
        return [self.control(name, config, teachers) for name, config in found if config]

    def control(self, name: str, config: RunConfig, teachers: Teachers) -> Pipeline:
        """The pipeline of one control, its teachers in place."""
        folder = self.folder.control(name)
        part = Pipeline(config, folder, self.pool, self.listener, self.reins, name, self.real, world=self.world)
        part.drift = self.drift  # it is the same machine
        part.refuse_changes()
        keys = {"teacher": teachers[0].digest()} | _digests(teachers[1:])
        if not folder.standing("squeeze", keys):
            named = zip(backbones(config.teacher), teachers, strict=True)
            paths = [teacher.save(folder.path / "teachers", name) for name, teacher in named]
            folder.commit("squeeze", keys, [*paths, *(path.with_suffix(".json") for path in paths)], 0.0, 0)
        part.write_config()
        return part

    # ------------------------------------------------------------------------------------------ what results depend on

    def keys(self, *names: str, prefix: str = "-") -> Keys:
        """The flat settings with these names or this prefix."""
        return {name: value for name, value in flatten(self.config).items() if name in names or name.startswith(prefix)}

    def squeeze_keys(self) -> Keys:
        keys = self.keys("dataset", "data_size", "data_val_fraction", "data_classes", "data_hold_out", prefix="teacher_")
        del keys["teacher_min_accuracy"]  # judges the teacher, does not change it
        for name in ("data_classes", "data_hold_out"):
            if not keys[name]:
                del keys[name]  # all of them, none: what teachers were made for before there was a choice
        return keys | {"data_fingerprint": self.real.fingerprint} | ({"teacher_file": self.teacher_file} if self.teacher_file else {})

    @cached_property
    def teacher_file(self) -> str:
        """sha256 of the file of weights that is the teacher; the recorded one where it is gone, since the run holds its teacher."""
        weights, records = self.config.teacher.weights, self.folder.records()
        made = records["squeeze"]["keys"] if "squeeze" in records else {}
        if made and "teacher_file" not in made and os.path.isdir(weights):
            return ""  # of a run from before folders were hashed
        if weights != "train" and os.path.exists(weights):
            return storage.sha256_file(file_of(Path(weights)))
        return str(made.get("teacher_file", ""))

    def rank_keys(self, teacher: Teacher) -> Keys:
        keys = self.keys("ipc", "seed", prefix="rank_") | {"teacher": teacher.digest()}
        del keys["rank_folder"]  # its images count, wherever they lie
        return keys | ({"given_images": self.given_images} if self.config.rank.keep == "given" else {})

    @cached_property
    def given_images(self) -> str:
        """Fingerprint of the images from elsewhere; the recorded one where their folder is gone, since the set holds its images."""
        folder, records = self.config.rank.folder, self.folder.records()
        if "rank" in records and not (folder and Path(folder).is_dir()):
            return str(records["rank"]["keys"].get("given_images"))
        return list_given(folder, self.real.info, self.config.ipc).fingerprint()

    def recover_keys(self, teachers: Teachers) -> Keys:
        own = self.keys("iterations", "round_iterations", "sub_batches", prefix="recover_")
        return self.rank_keys(teachers[0]) | _digests(teachers[1:]) | own

    def identity(self) -> Keys:
        """The standing synthetic set, by its content."""
        record = self.folder.records()["recover"]
        return {"synthetic": storage.sha256_bytes(storage.json_bytes(record["files"]))}

    def evaluate_keys(self) -> Keys:
        return self.identity() | {"set": self.set_name}

    def stands(self, stage: str, keys: Keys) -> bool:
        """Whether a stage stands; one that belongs to other images is forgotten, since it says nothing about these."""
        record = self.folder.records().get(stage)
        if record and record["keys"] != keys:
            self.folder.reset(stage)
            return False
        return self.folder.standing(stage, keys) is not None

    def named(self, event: dict[str, Any]) -> None:
        """Pass an event on under the control's name."""
        self.emit({**event, "set": self.name} if self.name else event)

    def call(self, stage: str, work: Path | None, config: RunConfig | None = None, **more: Any) -> None:
        """Where there are other ranks, let them share the work of a stage: see `delt.shares`."""
        if self.world:
            self.world.call(stage=stage, config=flatten(config or self.config), folder=str(self.folder.path), work=str(work), **more)

    @contextmanager
    def stage(self, name: str, keys: Keys) -> Iterator[tuple[Job, list[Path]]]:
        """Do a stage: forget an earlier attempt, and record the files that the block collects with its time and memory."""
        self.drift.settle(self.config.runtime)
        self.folder.reset(name)
        files: list[Path] = []
        work = self.folder.work(name, keys)
        self.pool.reset_peak()
        watch, started = Stopwatch(work / "seconds.json", self.named), self.pool.startup
        try:
            if name in SHARED:
                self.call(name, work)
            yield Job(self.config.seed, self.config.runtime, work, watch, self.pool, self.watch, self.world), files
        finally:
            watch.note()
        seconds = watch.seconds - (self.pool.startup - started)
        self.folder.commit(name, keys, files, seconds, self.pool.peak_memory())
        self.folder.clear_work(name)


def _digests(others: Teachers) -> Keys:
    """The teachers beside the first, by their content; nothing where there are none."""
    return {"others": [teacher.digest() for teacher in others]} if others else {}


class Stopwatch:
    """Passes events on and counts the seconds of a stage over all its attempts; the listener's own time does not count.

    They are written down every few seconds, so that a run that was killed and went on is not thought cheap.
    """

    every = 2.0  # seconds between two notes

    def __init__(self, path: Path, emit: Emit) -> None:
        self.path, self.emit = path, emit
        self.before, self.begun = self._noted(), time.monotonic()
        self.written = self.begun

    @property
    def seconds(self) -> float:
        """Of this attempt and those before it."""
        return self.before + time.monotonic() - self.begun

    def __call__(self, event: dict[str, Any]) -> None:
        if time.monotonic() - self.written > self.every:
            self.note()
        called = time.monotonic()
        try:
            self.emit(event)
        finally:
            self.begun += time.monotonic() - called

    def note(self) -> None:
        """Write the seconds down; where that fails, the stage's own files will, too, and say so."""
        self.written = time.monotonic()
        with suppress(storage.StorageError):
            storage.write_json(self.path, {"seconds": round(self.seconds, 3)})

    def _noted(self) -> float:
        try:
            return float(storage.read_json(self.path)["seconds"])
        except (IntegrityError, KeyError, TypeError, ValueError):
            return 0.0
