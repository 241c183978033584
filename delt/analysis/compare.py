"""Runs side by side: what each set scored beside published values, how diverse it is, what it cost and takes to store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from delt import storage
from delt.analysis.accuracy import KINDS, Accuracy, paired
from delt.analysis.published import Published, distinct, published
from delt.analysis.table import Lines, aligned, schedule_of, where_tested
from delt.artifacts.scores import Score
from delt.artifacts.soft_labels import FILE as SOFT_LABELS
from delt.config import STAGES, RunConfig, flatten
from delt.errors import DataError
from delt.recipes import RECIPES, Recipe, recipe_of

SYNTHESIS = ("rank", "recover", "relabel")  # the stages that make a set; the teacher is shared, and often comes from the cache
FULL = "full"  # the set of all real images
# Settings without a say: the fingerprint says which images there were.
SILENT = {"device", "workers", "threads", "checkpoint_seconds", "data_root", "data_download", "data_on_bad_image", "preset"}
SILENT |= {"evaluate_controls", "evaluate_full", "recover_record_classes", "recover_record_count", "recover_record_iterations"}
NAMES = ("run", "set", "ipc")
QUALITY = (*NAMES, "recipe", "student", "epochs", "soft labels", "hard labels", "best*", "n", "LRS", "cosine", "published", "off")
COST = (*NAMES, "img-it", "saved", *STAGES)
SPACE = (*NAMES, "peak MB", "image bytes", "label bytes", "teacher bytes")
SHARED = ("recipe", "student", "epochs", "n")  # said below a table where all of its lines have them: a terminal is narrow
Records = Mapping[str, Mapping[str, Any]]  # of finished stages by name, as `RunFolder.records` gives them


class Protocol(NamedTuple):
    """How students were trained; accuracies of different protocols cannot be compared."""

    recipe: str
    student: str
    epochs: int

    def __str__(self) -> str:
        return f"{self.student}, recipe {self.recipe}, {self.epochs} epochs"


@dataclass(frozen=True)
class Entry:
    """One set of one run, under one protocol. What is not known yet is None, and `accuracy` empty.

    `accuracy` maps a label kind (soft, hard) to its students, `best` to the same students at their best epoch.
    """

    run: str  # the run folder's short name
    set: str  # the run's method, a control (random, start, one_sub_batch), or full
    own: bool  # whether it is what the run was made for
    data: str  # data set
    fingerprint: str = ""  # of its images
    hold_out: float = 0.0  # share of the training images that was tested on instead of the test images
    ipc: int | None = None  # images per class; None for all of them
    protocol: Protocol | None = None
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    best: Mapping[str, Accuracy] = field(default_factory=dict)  # chosen by the test set: only beside published values that were
    cosine: float | None = None  # intra-class, lower is more diverse
    features: str = ""  # what the cosine was measured in
    teacher: str = ""  # digest
    backbone: str = ""  # the teacher's architecture, where it was trained here
    seconds: float | None = None  # of ranking, synthesis and stored labels
    machine: str = ""  # that they were measured on
    work: int | None = None  # image-iterations of the synthesis
    saved: float | None = None  # share of the work that EarlyLate leaves out; None where nothing is optimised
    bytes: int | None = None  # of the synthetic images and the stored soft labels
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds of each finished stage, as recorded
    memory: int | None = None  # largest peak of ranking, synthesis and stored labels, in bytes
    image_bytes: int | None = None
    label_bytes: int | None = None  # of stored soft labels; 0 where the teacher makes them online
    teacher_bytes: int | None = None
    digest: str = ""  # of the synthetic images


def entries(
    run: str,
    configs: Mapping[str, RunConfig],
    records: Mapping[str, Records],
    scores: Iterable[Score],
    diversity: Mapping[str, Mapping[str, float]],
    classes: int,
    machine: str = "",
) -> list[Entry]:
    """The entries of one run, one per set and protocol: its own set first, then its controls, then all real images.

    Args:
        run: its short name.
        configs, records: by set, the run's own first; a set without records has no cost.
        scores, diversity: of all its sets; empty where they are not measured yet.
        classes: how many.
        machine: what it ran on, in words.
    """
    own, students = next(iter(configs)), list(scores)
    measured, best = _by_protocol(students), _by_protocol(replace(row, last=row.best) for row in students)
    squeezed, compared = (records.get(own, {}).get(stage, {}).get("keys", {}) for stage in ("squeeze", "diversity"))
    config = configs[own]
    about: dict[str, Any] = {"run": run, "data": data_name(config), "hold_out": config.data.hold_out, "machine": machine}
    about |= {"fingerprint": squeezed.get("data_fingerprint", "")}
    found = []
    for name, made_by in configs.items():
        entry = Entry(set=name, own=name == own, ipc=made_by.ipc, **about, **_cost(made_by, records.get(name, {}), classes))
        entry = replace(entry, cosine=diversity.get(name, {}).get("mean"), features=compared.get("features", ""))
        hows = measured.get(name, {})
        found += [replace(entry, protocol=how, accuracy=hows[how], best=best[name][how]) for how in hows] or [entry]
    real = diversity.get("real", {}).get("mean")
    reference = Entry(set=FULL, own=False, cosine=real, features=compared.get("features", ""), **about)
    return found + [replace(reference, protocol=how, accuracy=kinds) for how, kinds in measured.get(FULL, {}).items()]


def data_name(config: RunConfig) -> str:
    """The data set of a run in words, with what was asked for besides: classes, which are counted, size, and a part to test on."""
    part = f", {len(config.data.classes)} classes" if config.data.classes else ""
    size = f" at {config.data.size} px" if config.data.size else ""
    held = f", {100 * config.data.hold_out:.3g} % held out" if config.data.hold_out else ""
    return config.dataset + part + size + held


def _cost(config: RunConfig, records: Records, classes: int) -> dict[str, Any]:
    """What the making of a set took, as fields of an entry; nothing where it is not made yet."""
    if "recover" not in records:
        return {}
    images = _files(records, "recover", "synthetic/*")
    image_bytes, label_bytes = _bytes(images), _bytes(_files(records, "relabel", SOFT_LABELS))
    made = [records[stage] for stage in SYNTHESIS if stage in records]
    schedule = schedule_of(config)
    return {
        "teacher": records.get("rank", {}).get("keys", {}).get("teacher", ""),
        "backbone": config.teacher.arch if config.teacher.weights == "train" else "",
        "seconds": float(sum(record["seconds"] for record in made)),
        "work": schedule.image_iterations * classes,
        "saved": schedule.saved if schedule.iterations else None,
        "bytes": image_bytes + label_bytes,
        "stages": {stage: float(records[stage]["seconds"]) for stage in STAGES if stage in records},
        "memory": max((record["peak_memory"] for record in made), default=0),
        "image_bytes": image_bytes,
        "label_bytes": label_bytes,
        "teacher_bytes": _bytes(_files(records, "squeeze", "teachers/*.safetensors")),
        "digest": storage.sha256_bytes(storage.json_bytes(images)),
    }


def _files(records: Records, stage: str, pattern: str) -> dict[str, Mapping[str, Any]]:
    """The files of a stage whose names match."""
    return {name: entry for name, entry in records.get(stage, {}).get("files", {}).items() if fnmatchcase(name, pattern)}


def _bytes(files: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(entry["bytes"] for entry in files.values())


def _by_protocol(scores: Iterable[Score]) -> dict[str, dict[Protocol, dict[str, Accuracy]]]:
    """Set -> protocol -> label kind -> students, by seed."""
    students: dict[tuple[str, Protocol, str], list[Score]] = {}
    for row in sorted(scores):
        students.setdefault((row.set, Protocol(row.recipe, row.arch, row.epochs), row.labels), []).append(row)
    found: dict[str, dict[Protocol, dict[str, Accuracy]]] = {}
    for (name, how, kind), rows in students.items():
        found.setdefault(name, {}).setdefault(how, {})[kind] = Accuracy.of(rows)
    return found


def merged(groups: Iterable[Sequence[Entry]], controls: Sequence[str] = ("random",)) -> list[Entry]:
    """The entries of several runs as one list: own sets first, then controls, then all real images.

    A control that has the images, teacher and students of an earlier entry has its numbers too, and is left out.

    Args:
        groups: what `entries` gives, run by run.
        controls: names of the controls to keep.

    Raises:
        DataError: the runs are of different data sets.
    """
    every = [entry for group in groups for entry in group]
    if every:
        _one_data_set(every)
    kept, seen = [], set()
    for entry in sorted(every, key=lambda entry: (not entry.own) + (entry.set == FULL)):
        same = (entry.digest, entry.teacher, entry.protocol, *sorted((kind, found.values) for kind, found in entry.accuracy.items()))
        if entry.own or (entry.set in (*controls, FULL) and same not in seen):
            kept.append(entry)
        seen.add(same)
    return kept


def _one_data_set(every: Sequence[Entry]) -> None:
    """Fingerprints decide where they are known, else the names of the data: a run that has no teacher yet has no fingerprint."""
    first, *rest = sorted(every, key=lambda entry: not entry.fingerprint)  # those that are known come first
    names = {first.data}
    for other in rest:
        known = other.fingerprint != ""
        if (other.fingerprint != first.fingerprint) if known else (other.data not in names):
            what = [f"{entry.run} of {entry.data}" + (f" ({entry.fingerprint[:8]})" if known else "") for entry in (first, other)]
            raise DataError(f"run {what[0]}, run {what[1]}: only runs of one data set can be compared, leave the others out")


def usual(found: Iterable[Entry]) -> Protocol | None:
    """The protocol that most entries share, the first of equals; None where nothing is evaluated. Full data has its own."""
    counts = Counter(entry.protocol for entry in found if entry.protocol and entry.set != FULL)
    return counts.most_common(1)[0][0] if counts else None


def caveats(found: Sequence[Entry]) -> list[str]:
    """What makes numbers of these entries incomparable, a line each; empty where nothing does."""
    small = [entry for entry in found if entry.set != FULL]
    lines = []
    if waiting := sorted({entry.run for entry in small if entry.own and not entry.accuracy}):
        lines.append(f"not evaluated yet: {', '.join(waiting)}")
    protocols: dict[str, set[Protocol]] = {}
    for entry in small:
        if entry.protocol:
            protocols.setdefault(entry.run, set()).add(entry.protocol)
    if len({frozenset(how) for how in protocols.values()}) > 1:
        lines.append("students were not trained alike: compare accuracies only where recipe, student and epochs agree")
    if len({entry.teacher for entry in small if entry.accuracy}) > 1:
        lines.append("the runs have different teachers, hence different soft labels")
    if len({(entry.features, entry.teacher if entry.features == "teacher" else "") for entry in small if entry.cosine is not None}) > 1:
        lines.append("cosines were measured in the features of different networks: they cannot be compared")
    if other := sorted({entry.run for entry in small if claims(entry) and not _as_published(entry)}):
        lines.append(f"students trained otherwise than the paper's own, so off does not judge the images alone: {', '.join(other)}")
    if other := sorted({f"{entry.run} ({entry.protocol.student})" for entry in small if entry.protocol and _of_another_teacher(entry)}):
        lines.append(f"published values are of a teacher like the student, and the teacher here is another: {', '.join(other)}")
    machines = sorted({entry.machine for entry in small if entry.seconds is not None and entry.machine})
    if len(machines) > 1:
        lines.append(f"seconds are of different machines ({'; '.join(machines)}): compare image-iterations")
    return lines


def differences(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """Setting -> run -> its value, of the settings that differ between runs and have a say in what a set is worth."""
    flats = {run: flatten(config) for run, config in configs.items()}
    names = next(iter(flats.values()), {})
    values = {name: {run: flat[name] for run, flat in flats.items()} for name in names if name not in SILENT}
    return {name: by_run for name, by_run in values.items() if len(set(map(repr, by_run.values()))) > 1}


def differences_to(found: Sequence[Entry], reference: str) -> list[str]:
    """What each own set is above `reference` (a method or control) of the same size and protocol, a line each, in words.

    Its own run's reference comes first, then one with the same teacher, then any whose students can be paired with its own.
    """
    lines = [f"top-1 above {reference}, paired over seeds, mean ± standard error:"]
    for entry in found:
        others = beside(found, entry, reference)
        if not others or not entry.accuracy or entry.set in (reference, FULL):
            continue
        words = next(filter(None, (_above(entry, other) for other in others)), "")
        several = len({e.protocol for e in found if (e.run, e.set) == (entry.run, entry.set)}) > 1
        name = f"{entry.run} ({entry.protocol})" if several else entry.run
        lines.append(f"  {name}: {words or f'not known: no students of {reference} have its labels and seeds'}")
    return lines if len(lines) > 1 else []


def _above(entry: Entry, other: Entry) -> str:
    """How far an entry is above another, by kind of label; empty where no students can be paired."""
    pairs = {kind: paired(own, other.accuracy[kind]) for kind, own in entry.accuracy.items() if kind in other.accuracy}
    return ", ".join(f"{kind} {pair}" for kind in KINDS if (pair := pairs.get(kind)))


def beside(found: Sequence[Entry], entry: Entry, name: str) -> list[Entry]:
    """Sets of this name with an entry's size and protocol: its own run's first, then those with its teacher, then the rest."""
    alike = [other for other in found if other.set == name and (other.ipc, other.protocol) == (entry.ipc, entry.protocol)]
    return sorted(alike, key=lambda other: (other.run != entry.run, other.teacher != entry.teacher))


def label_robust_score(full: float, hard: float, soft: float, random: float) -> float:
    """DD-Ranking's label-robust score in % of how good images are apart from their labels (arXiv 2505.13300), weight .5.

    100 (e^a - e^-1) / (e - e^-1) with a = (soft - random) / 2 - (full - hard) / 2, all as shares. A set that is no better
    than random images and trains as well as all real ones with hard labels has 26.9.

    Args:
        full: top-1 in % of all real images with hard labels.
        hard, soft: of the set with either kind of labels.
        random: of as many random real images with soft labels.
    """
    alpha = ((soft - random) - (full - hard)) / 200
    return 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def robustness(found: Sequence[Entry], entry: Entry) -> float | None:
    """The label-robust score of an entry from the numbers beside it; None where one of them is missing."""
    random = next((e.accuracy["soft"] for e in beside(found, entry, "random") if "soft" in e.accuracy), None)
    like = (e for e in found if e.set == FULL and entry.protocol and e.protocol and e.protocol[:2] == entry.protocol[:2])
    full = next((e.accuracy["hard"] for e in sorted(like, key=lambda e: e.run != entry.run) if "hard" in e.accuracy), None)
    if full is None or random is None or not {"soft", "hard"} <= set(entry.accuracy):
        return None
    return label_robust_score(full.mean, entry.accuracy["hard"].mean, entry.accuracy["soft"].mean, random.mean)


def claims(entry: Entry) -> list[Published]:
    """What was published for an own set's method, data, size and student; empty where nothing was."""
    if not entry.own or entry.protocol is None or entry.ipc is None:
        return []
    return published(entry.set, entry.data, entry.ipc, entry.protocol.student)


def _of_another_teacher(entry: Entry) -> bool:
    """Whether its published values are of students whose teacher was a network like them (RDED's and DELT's tables), unlike here."""
    alike = entry.set in ("delt", "rded") and bool(claims(entry))
    return alike and entry.protocol is not None and entry.backbone not in ("", entry.protocol.student)


def _as_published(entry: Entry) -> bool:
    """Whether its students were trained by its method's own recipe, for all its epochs."""
    recipe, epochs = _recipe(entry), entry.protocol.epochs if entry.protocol else 0
    return recipe is not None and recipe.name == f"paper:{entry.set}" and epochs >= recipe.epochs


def _recipe(entry: Entry) -> Recipe | None:
    """The recipe of its students, as it is for its data and size; None where there are no students, or it is not in the table."""
    name = entry.protocol.recipe if entry.protocol else ""
    return recipe_of(name, entry.data, None, entry.ipc) if name in RECIPES else None


def as_reported(entry: Entry) -> Accuracy | None:
    """Soft-label accuracy of the epoch that the recipe reports: the best under most of the papers', the last under `common`."""
    recipe = _recipe(entry)
    return (entry.best if recipe and recipe.report == "best" else entry.accuracy).get("soft")


def table(found: Sequence[Entry]) -> Lines:
    """The entries as plain tables, quality, cost and space, with what their columns mean and what cannot be compared below them."""
    robust, claimed = [robustness(found, entry) for entry in found], any(claims(entry) for entry in found)
    images = where_tested(entry.hold_out for entry in found)
    quality = [
        f"soft, hard labels: top-1 in % on {images} after the last epoch, mean ± std over n students",
        "best*: mean over the soft students' best epochs, chosen by these images themselves: to compare with published values chosen so",
    ]
    if any(entry.cosine is not None for entry in found):
        quality.append("cosine: intra-class, lower is more diverse")
    if any(score is not None for score in robust):
        quality.append("LRS: DD-Ranking's label-robust score from these numbers, without its search for learning rates; higher is better")
    if claimed:
        quality += ["published: top-1 of the same method, data, ipc and student; off: measured - published in standard deviations of both"]
        quality += _sources(found)
    cost = [
        "img-it: image-iterations of the synthesis, and the share that EarlyLate saves",
        "squeeze to evaluate: seconds; a cached teacher is only loaded, students of all sets of a run count together",
    ]
    space = [
        "peak MB: of one process in rank, recover or relabel, Python and torch included",
        "label bytes: of stored soft labels; labels made online need the teacher instead",
    ]
    sets: dict[tuple[str, str], Entry] = {}  # each once, whatever its protocols
    for entry in found:
        if entry.set != FULL and entry.stages:
            sets.setdefault((entry.run, entry.set), entry)
    parts = [_dense(QUALITY, [_quality(entry, score) for entry, score in zip(found, robust, strict=True)], quality)]
    if sets:
        parts.append(_dense(COST, [_cost_of(entry) for entry in sets.values()], cost))
        parts.append(_dense(SPACE, [_space_of(entry) for entry in sets.values()], space))
    return Lines("\n".join(["\n\n".join(parts), *(f"! {line}" for line in caveats(found))]))


def _dense(heads: Sequence[str], lines: Sequence[Sequence[Any]], notes: Iterable[str]) -> str:
    """A table without the columns in which nothing is known, or that all lines share, and without the run's name where there is but one."""
    runs = {line[0] for line in lines} - {None}
    known = [place for place in range(len(heads)) if not lines or any(line[place] is not None for line in lines)]
    shared = [place for place in known if heads[place] in SHARED and len(lines) > 1 and len({line[place] for line in lines}) == 1]
    columns = [place for place in known if place not in shared and (heads[place] != "run" or len(runs) != 1)]
    cells = [["-" if line[place] is None else str(line[place]) for place in columns] for line in lines]
    said = [f"all rows: {', '.join(f'{heads[place]} {lines[0][place]}' for place in shared)}"] if shared else []
    return aligned([heads[place] for place in columns], cells, [*said, *notes])


def _sources(found: Iterable[Entry]) -> list[str]:
    """Where published values are from, as one line; none where there are none."""
    named: dict[str, dict[str, None]] = {}
    for entry in found:
        for row in claims(entry):
            named.setdefault(row.source, {})[f"{row.method} {row}"] = None
    sources = [f"{source} ({', '.join(values)})" for source, values in named.items()]
    return [f"published by: {'; '.join(sources)}"] if named else []


def _quality(entry: Entry, robust: float | None) -> tuple[Any, ...]:
    """One line of the table, in the order of `QUALITY`."""
    counts = dict.fromkeys(str(entry.accuracy[kind].n) for kind in KINDS if kind in entry.accuracy)  # one number where they agree
    values, measured = distinct(claims(entry)), as_reported(entry)
    off = [row.off(measured.mean, measured.std) for row in values] if measured else []
    best = entry.best.get("soft")
    return (
        None if entry.set == FULL else entry.run,
        entry.set,
        entry.ipc,
        *(entry.protocol or (None, None, None)),
        *(entry.accuracy.get(kind) for kind in KINDS),
        best and f"{best.mean:.2f}",
        "/".join(counts) or None,
        None if robust is None else f"{robust:.1f}",
        None if entry.cosine is None else f"{entry.cosine:.3f}",
        " / ".join(map(str, values)) or None,
        " / ".join("-" if value is None else f"{value:+.1f}" for value in off) or None,
    )


def _cost_of(entry: Entry) -> tuple[Any, ...]:
    """One line of the table, in the order of `COST`."""
    return (
        entry.run,
        entry.set,
        entry.ipc,
        None if entry.work is None else f"{entry.work:,}",
        None if entry.saved is None else f"{entry.saved:.2%}",
        *(f"{entry.stages[stage]:.2f}" if stage in entry.stages else None for stage in STAGES),
    )


def _space_of(entry: Entry) -> tuple[Any, ...]:
    """One line of the table, in the order of `SPACE`."""
    sizes = (entry.image_bytes, entry.label_bytes, entry.teacher_bytes)
    memory = None if entry.memory is None else f"{entry.memory / 1e6:,.0f}"
    return entry.run, entry.set, entry.ipc, memory, *(None if size is None else f"{size:,}" for size in sizes)
