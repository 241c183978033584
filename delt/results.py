"""A run folder opened for reading: `delt.load("runs/a").table()`. Every artefact is checked against its recorded hash."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from delt import storage
from delt.analysis.compare import Entry, data_name, entries, merged, table
from delt.analysis.table import Lines
from delt.artifacts.folder import RunFolder
from delt.artifacts.ranking import FILE as RANKING
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Scores
from delt.artifacts.snapshots import FILE as SNAPSHOTS
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.synthetic import PARTIAL, SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.config import STAGES, RunConfig, unflatten
from delt.errors import IntegrityError, RunError, unknown, visible
from delt.methods import CONTROLS
from delt.typed import typed

LARGEST = 4 * 1024**2  # bytes of a config.json, in which classes may be listed; a usual one has 5,000
ORDER = (*STAGES, "diversity")


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
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return tuple(storage.read_sealed(self._checked("teachers/teacher.json"))["classes"])

    @cached_property
    def synthetic(self) -> SyntheticSet:
        """The images; of a synthesis that was stopped as they were then, with `complete` False."""
        if "synthetic.parquet" not in self._files and (self.path / PARTIAL / "synthetic.parquet").exists():
            return SyntheticSet.load(self.path / PARTIAL)
        self._checked("synthetic.parquet", *(name for name in self._files if name.startswith("synthetic/")))
        return SyntheticSet.load(self.path)

    @cached_property
    def snapshots(self) -> Snapshots | None:
        """How the images came to be; None where nothing was recorded."""
        if "synthetic.parquet" not in self._files and (self.path / PARTIAL / SNAPSHOTS).exists():
            return Snapshots.load(self.path / PARTIAL)
        return Snapshots.load(self._checked(SNAPSHOTS).parent) if (self.path / SNAPSHOTS).exists() else None

    @cached_property
    def scores(self) -> Scores:
        return Scores.load(self._checked("scores.json").parent)

    @cached_property
    def diversity(self) -> dict[str, dict[str, float]]:
        """Set -> {"mean": .., "class/NAME": ..}: intra-class cosine similarity of the synthetic set, its controls and real images."""
        values: dict[str, dict[str, float]] = storage.read_sealed(self._checked("diversity.json"))
        return values

    @cached_property
    def controls(self) -> dict[str, Run]:
        return {name: Run(self.path / "controls" / name) for name in RunFolder(self.path).controls()}

    def table(self) -> Lines:
        """What its sets are worth and what they cost, as text; see `delt.analysis.compare.table`."""
        return table(compare({self.path.name: self}, controls=tuple(CONTROLS)))

    def describe(self) -> str:
        """What the folder holds, as text."""
        config = self.config
        facts = [
            visible(self.path),
            f"{config.method} on {visible(data_name(config))}, {config.ipc} images per class, seed {config.seed}, {config.fidelity}",
        ]
        records = sorted(RunFolder(self.path).records().items(), key=lambda item: ORDER.index(item[0]))
        done = [f"{stage} {record['seconds']:.1f} s" for stage, record in records]
        facts.append("done: " + (", ".join(done) or "nothing yet"))
        if not self.manifest.get("complete"):
            return "\n".join([*facts, "not finished: give the command that started it again"])
        facts += [
            "",
            self.table(),
            "",
            "  config.json",
            "  synthetic/",
            *(f"  {visible(name)}" for name in sorted(self._files) if not name.startswith("synthetic/")),
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


@typed
def load(folder: Path | str) -> Run:
    """Open a run folder.

    Raises:
        RunError: there is no run in it.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise RunError(f"no run at {path}: looked for config.json in it")
    return Run(path)


def load_all(folders: Iterable[Path | str]) -> dict[str, Run]:
    """Open several run folders, by names that are short and tell them apart: the ends of their paths.

    Args:
        folders: run folders, or patterns such as "runs/*", which stand for every run folder that they match.

    Raises:
        RunError: there is no run in a folder, or none that a pattern matches.
    """
    if isinstance(folders, (str, Path)):
        raise RunError(f"folders are {str(folders)!r}; allowed is a list of them: [{str(folders)!r}]")
    if not isinstance(folders, Iterable):
        raise RunError(f"folders are {folders!r}; allowed is a list of run folders")
    found = {path.resolve(): load(path) for folder in folders for path in _matches(folder)}
    return dict(zip(short_names([path.parts for path in found]), found.values(), strict=True))


def _matches(folder: Path | str) -> list[Path]:
    """The folder itself, or the run folders that a pattern matches, in the order of their names."""
    folder = Path(folder).expanduser()
    if folder.exists() or not glob.has_magic(str(folder)):
        return [folder]
    found = [path for name in sorted(glob.glob(str(folder))) if ((path := Path(name)) / "config.json").is_file()]
    if not found:
        raise RunError(f"no run matches {folder}: looked for folders with a config.json in them")
    return found


def short_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest ends of different paths that still differ, without an end that all share (a sweep's points are NAME/run)."""
    while len(paths) > 1 and len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    depth = next(depth for depth in count(1) if len({parts[-depth:] for parts in paths}) == len(paths))
    return ["/".join(parts[-depth:]) for parts in paths]


def compare(runs: Mapping[str, Run], controls: Sequence[str] = ("random",)) -> list[Entry]:
    """The sets of several runs side by side, for `delt.analysis.compare.table` and `delt.plots.comparison`.

    >>> done = load_all(["runs/a", "runs/b"])
    >>> print(table(compare(done)))

    Args:
        runs: by name; see `load_all`. A run that is not finished has what is known of it.
        controls: names of the controls that are to stand beside the runs' own sets.

    Raises:
        ConfigError: no such control.
        DataError: the runs are of different data sets.
        IntegrityError: a file is damaged.
    """
    for name in controls:
        if name not in CONTROLS:
            raise unknown("control", name, CONTROLS)
    return merged([_entries(name, run) for name, run in runs.items()], controls)


def _entries(name: str, run: Run) -> list[Entry]:
    sets = {run.config.method: run, **run.controls}
    scores = run.scores if "scores.json" in run._files else ()
    diversity = run.diversity if "diversity.json" in run._files else {}
    classes = len(run.classes) if "teachers/teacher.json" in run._files else 0
    records = {part: RunFolder(of.path).records() for part, of in sets.items()}
    facts = run.manifest.get("machine", {})
    machine = f"{facts['device_name']}, {facts['cores']} cores" if facts else ""
    return entries(name, {part: of.config for part, of in sets.items()}, records, scores, diversity, classes, machine)


def synthetic_sets(runs: Mapping[str, Run]) -> dict[str, SyntheticSet]:
    """The synthetic sets by run, of the runs that have made theirs."""
    return {name: run.synthetic for name, run in runs.items() if "synthetic.parquet" in run._files}


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's config.json, or in a copy that a person edited, which has no seal.

    Raises:
        IntegrityError: the file is missing, damaged, or holds something else.
        ConfigError: a setting is unknown or wrong.
    """
    if path.is_file() and (size := path.stat().st_size) > LARGEST:
        raise IntegrityError(f"{path} holds no configuration: it has {size:,} bytes; allowed are {LARGEST:,}")
    flat = storage.read_json(path)
    if not isinstance(flat, dict):
        raise IntegrityError(f"{path} holds no configuration but {type(flat).__name__}")
    if "seal" not in flat:
        return unflatten(flat)
    try:
        return unflatten(storage.read_sealed(path))
    except IntegrityError as error:
        raise IntegrityError(f"{error}; for settings of your own edit a copy, without its seal, and give it with --config") from error
