"""Hostile files and names, sent through every door: no code runs, no few bytes ask for much, no name becomes markup or a path.

It crosses the package on purpose; what belongs to one module is tested beside it.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import pickle
import re
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.text import Text
from PIL import Image

import delt
from delt import lab, plots, storage
from delt.analysis.table import aligned
from delt.artifacts.foreign import read_state
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Scores
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet, file_names
from delt.artifacts.teacher import Teacher, load_weights
from delt.batch import execute, load_sweep, run_sweep, to_html
from delt.batch.board import Board
from delt.cli import main
from delt.config import DataConfig
from delt.data.load import open_set
from delt.errors import ConfigError, DataError, DeltError, IntegrityError, TeacherError, visible
from delt.lab.panel import RunPanel
from delt.results import compare, read_config, synthetic_sets
from delt.storage import Slots

# ---------------------------------------------------------------- code in files


class Trap:
    """Makes a folder where a pickle of it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@dataclass
class Evil:
    """A file with a trap in it, and the folder that appears where the trap is sprung."""

    file: Path
    canary: Path

    def spring(self) -> None:
        """Open it as careless programs do, to see that the trap works."""
        with contextlib.suppress(RuntimeError, pickle.UnpicklingError):  # an old pickle runs its code before it is found to be odd
            torch.load(self.file, weights_only=False)
        assert self.canary.is_dir()
        self.canary.rmdir()


def nested(trap: Trap) -> dict[str, Any]:
    return {"state_dict": {"stem.weight": torch.zeros(3), "more": {"inside": trap}}, "epoch": 3}


FORMS: dict[str, Callable[[Trap, Path], Any]] = {
    "zip.pth": lambda trap, path: torch.save(trap, path),
    "legacy.pth": lambda trap, path: torch.save(trap, path, _use_new_zipfile_serialization=False),
    "bare.pt": lambda trap, path: path.write_bytes(pickle.dumps(trap, 2)),
    "nested.pth": lambda trap, path: torch.save(nested(trap), path),
    "nested.pth.tar": lambda trap, path: torch.save(nested(trap), path, _use_new_zipfile_serialization=False),
}


def make_evil(form: str, folder: Path) -> Evil:
    evil = Evil(folder / form, folder / "canary")
    FORMS[form](Trap(evil.canary), evil.file)
    evil.spring()
    return evil


@pytest.fixture(params=FORMS)
def evil(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Evil]:
    """A trap that was seen to work; it must not have been sprung when the test ends."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    found = make_evil(request.param, tmp_path)
    yield found
    assert not found.canary.exists(), "code from a file was run"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Evil]:
    """One such file, for doors that look at its content alone."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    found = make_evil("bare.pt", tmp_path)
    yield found
    assert not found.canary.exists(), "code from a file was run"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command line refuses."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and len(said) == 1 and said[0].startswith("delt: "), said
    return said[0]


@pytest.mark.parametrize("command", ["squeeze", "run", "evaluate"])
def test_the_command_line_runs_no_code(command: str, evil: Evil, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "smoke", "--workers", "1", "--teacher-weights", evil.file, "--out", tmp_path / "run"]
    assert "was not opened: it holds code beside its tensors" in refusal(capsys, command, "digits", *flags)


def test_python_runs_no_code(evil: Evil) -> None:
    config = delt.configure("digits", preset="smoke", teacher_weights=str(evil.file))
    real = open_set("digits", DataConfig(), torch.device("cpu"))
    for door in (
        lambda: delt.squeeze(real, config.teacher),
        lambda: load_weights(str(evil.file), "convnet3", 8, real.info),
        lambda: Teacher.load(evil.file),
        lambda: Teacher.load(evil.file.parent),
    ):
        with pytest.raises(TeacherError, match="was not opened|has no card|no teacher at"):
            door()
    for suffix in (".safetensors", ".SAFETENSORS"):
        moved = evil.file.rename(evil.file.with_suffix(suffix))
        with pytest.raises(DeltError, match="not a readable safetensors file|no published weights"):
            load_weights(str(moved), "convnet3", 8, real.info)
        moved.rename(evil.file)


def test_a_sweep_runs_no_code_in_its_notebooks(trap: Evil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delt.batch.sweep.summarise", lambda folder: None)  # another notebook, which opens no weights
    parameters = {"dataset": "digits", "preset": "smoke", "workers": 1, "teacher_weights": str(trap.file)}
    (tmp_path / "evil.yaml").write_text(json.dumps({"points": [parameters]}))
    result = run_sweep(tmp_path / "evil.yaml", tmp_path / "out")
    (error,) = result.failed.values()
    assert not result.done and "TeacherError" in error and "was not opened: it holds code" in error


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"])
def test_a_sweep_file_runs_no_code(tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, canary = tmp_path / "evil.yaml", tmp_path / "canary"
    file.write_text(f"points:\n  - {{ipc: {tag} [{canary}]}}\n")
    assert "is not YAML: could not determine a constructor" in refusal(capsys, "sweep", file, "--out", tmp_path / "out")
    assert not canary.exists()


ARTEFACTS: dict[str, Callable[[Any], Any]] = {
    "teachers/teacher.safetensors": lambda run: run.teacher,
    "teachers/teacher.json": lambda run: run.classes,
    "ranking.parquet": lambda run: run.ranking,
    "synthetic.parquet": lambda run: run.synthetic,
    "synthetic/0000_0/00000.png": lambda run: run.synthetic,
    "snapshots.safetensors": lambda run: run.snapshots,
    "scores.json": lambda run: run.scores,
    "diversity.json": lambda run: run.diversity,
    "config.json": lambda run: run.config,
    "manifest.json": lambda run: run.manifest,
}


@pytest.mark.parametrize("name", ARTEFACTS)
@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "with its hash in the manifest"])
def test_a_run_folder_runs_no_code(
    name: str, forged: bool, trap: Evil, smoke_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke_run.path, folder)
    shutil.copy(trap.file, folder / name)
    if forged and name != "manifest.json":
        manifest = storage.read_sealed(folder / "manifest.json")
        manifest["files"][name]["sha256"] = storage.sha256_file(folder / name)
        storage.write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(IntegrityError, match=re.escape(Path(name).name)):
        ARTEFACTS[name](delt.load(folder))
    if not forged:
        with pytest.raises(SystemExit):
            main(["verify", str(folder)])
        assert name in "".join(capsys.readouterr())


def test_a_teacher_with_a_forged_card_runs_no_code(trap: Evil, smoke_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "teachers"
    shutil.copytree(smoke_run.path / "teachers", folder)
    shutil.copy(trap.file, folder / "teacher.safetensors")
    card = storage.read_sealed(folder / "teacher.json")
    storage.write_sealed(folder / "teacher.json", {**card, "sha256": storage.sha256_file(folder / "teacher.safetensors")})
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        Teacher.load(folder)


def test_artefacts_by_themselves_run_no_code(trap: Evil, smoke_run: Any, tmp_path: Path) -> None:
    loaders: dict[str, Callable[[Path], Any]] = {
        "ranking.parquet": Ranking.load,
        "soft_labels.safetensors": lambda folder: SoftLabels.load(folder, smoke_run.teacher),
        "scores.json": Scores.load,
        "snapshots.safetensors": Snapshots.load,
        "synthetic.parquet": SyntheticSet.load,
    }
    for name, load in loaders.items():
        shutil.copy(trap.file, tmp_path / name)
        with pytest.raises(IntegrityError, match=re.escape(name)):
            load(tmp_path)


def test_a_checkpoint_runs_no_code(trap: Evil, tmp_path: Path) -> None:
    slots, body = Slots(tmp_path / "group"), trap.file.read_bytes()
    slots.paths[0].write_bytes(body)
    slots.paths[1].write_bytes(bytes.fromhex(storage.sha256_bytes(body)) + body)  # with a checksum that holds
    with pytest.warns(UserWarning, match="checkpoint passed over") as said:
        assert slots.load() is None
    assert len(said) == 2


def test_a_folder_of_cifar_runs_no_code(trap: Evil, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        shutil.copy(trap.file, folder / name)
    with pytest.raises(DataError, match="7 files of cifar10 are missing or damaged"):
        open_set("cifar10", DataConfig(root=str(tmp_path), download=False), torch.device("cpu"))


def test_torchs_cache_runs_no_code(trap: Evil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    shutil.copy(trap.file, place)
    info = open_set("digits", DataConfig(size=32), torch.device("cpu")).info
    with pytest.raises(TeacherError, match="is not what was published: its sha256 begins with"):
        load_weights("IMAGENET1K_V1", "resnet18", None, info)
    monkeypatch.setattr("delt.artifacts.teacher._check_published", lambda place: None)  # as if its hash were forged
    with pytest.raises(TeacherError, match="could not be fetched"):
        load_weights("IMAGENET1K_V1", "resnet18", None, info)


# ---------------------------------------------------------------- few bytes that ask for much


@contextlib.contextmanager
def modest(seconds: float = 2.0, more: int = 256 * 1024**2) -> Iterator[None]:
    """The block has 256 MB to take, and takes a second at most on a machine that does nothing else."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    begun = time.process_time()
    try:
        yield
    finally:
        taken = time.process_time() - begun
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert taken < seconds, f"it took {taken:.2f} s"


COUNT = 7777  # elements of the tensor in the files below
HUGE = 500_000_000


def number(value: int) -> bytes:
    """A whole number in a pickle."""
    return b"M" + struct.pack("<H", value) if value < 2**16 else b"J" + struct.pack("<i", value)


def same(name: str, data: bytes) -> bytes:
    return data


def archive(path: Path, change: Callable[[str, bytes], bytes] = same, compression: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint whose entries were changed."""
    torch.save({"w": torch.zeros(COUNT)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in entries.items():
            new.writestr(name, change(name, data))
    return path


def bomb(name: str, data: bytes) -> bytes:
    return bytes(HUGE // 5) if name.endswith("data/0") else data.replace(number(COUNT), number(HUGE // 20))


def overlapping(path: Path) -> None:
    """Many entries that are the same bytes."""
    with zipfile.ZipFile(archive(path), "a") as found:
        one = next(entry for entry in found.infolist() if entry.filename.endswith("data/0"))
        found.filelist += [one] * 10_000
        found._didModify = True  # type: ignore[attr-defined]


def commented(path: Path) -> None:
    with zipfile.ZipFile(archive(path), "a") as found:
        found.comment = b"another archive could stand here"


def legacy(path: Path, change: Callable[[bytes], bytes]) -> None:
    torch.save({"w": torch.zeros(COUNT)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(change(path.read_bytes()))


def calls(path: Path, code: bytes) -> None:
    """A checkpoint whose pickle calls something that torch allows."""
    archive(path, lambda name, data: code if name.endswith("data.pkl") else data)


CALL = b"\x80\x02c__builtin__\nbytearray\n" + number(2**31 - 1) + b"\x85R."
NESTED = b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(60)) + b"K\x01s."  # {(((..), (..)), ..): 1}
TENSOR = CALL.replace(b"__builtin__\nbytearray", b"torch\nFloatTensor")
BOMBS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed": (lambda path: archive(path, bomb, zipfile.ZIP_DEFLATED), "it is compressed"),
    "bzip2": (lambda path: archive(path, bomb, zipfile.ZIP_BZIP2), "it is compressed"),
    "overlapping": (overlapping, "it declares 311,[0-9,]+ bytes and has"),
    "a comment": (commented, "stands before or after"),
    "a head": (lambda path: path.write_bytes(b"PK\x03\x04" + archive(path).read_bytes()), "stands before or after"),
    "a large storage": (lambda path: archive(path, lambda _, data: data.replace(number(COUNT), number(HUGE))), "cannot be read"),
    "a large legacy storage": (lambda path: legacy(path, lambda data: data.replace(number(COUNT), number(HUGE))), "cannot be read"),
    "a call": (lambda path: calls(path, CALL), r"it would make a __builtin__\.bytearray of any size"),
    "another call": (lambda path: calls(path, TENSOR), r"it would make a torch\.FloatTensor"),
    "a legacy call": (lambda path: legacy(path, lambda data: CALL + data), "it would make"),
    "a tuple of tuples": (lambda path: calls(path, NESTED), "shared parts counted as often as they are used"),
    "an endless pickle": (lambda path: calls(path, b"\x80\x02" + b"N0" * 1_000_000 + b"."), "more than 500,000 steps"),
    "a lone head": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "cannot be read"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_checkpoint_cannot_ask_for_more_than_it_holds(kind: str, tmp_path: Path) -> None:
    make, says = BOMBS[kind]
    make(tmp_path / "x.pth")
    with modest(), pytest.raises(TeacherError, match=says):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_an_honest_checkpoint_is_read_as_it_is(form: str, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])  # which keeps a Counter
    whole = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=form == "zip")
    found = read_state(tmp_path / "x.pth")
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_a_safetensors_header_has_a_bound(smoke_run: Any, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    with open(file, "wb") as sink:
        sink.write((90 * 1024**2).to_bytes(8, "little"))
        sink.truncate(91 * 1024**2)  # zeros that take no room
    shutil.copy(smoke_run.path / "teachers" / "teacher.json", tmp_path)
    for door in (lambda: read_state(file), lambda: Teacher.load(tmp_path)):
        with modest(), pytest.raises(IntegrityError, match="its header is to have 94,371,840 bytes; allowed are"):
            door()


LAUGHS = "\n".join(["title: &a0 [x, x, x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12))])
SWEEPS = {
    "laughs": (LAUGHS, "means [0-9,]+ values, with those that its aliases .* repeat; allowed are 20,000"),
    "itself": ("points: &a [*a]", "means [0-9,]+ values"),
    "deep": ("points: " + "[" * 60_000, "nested too deeply"),
    "deep names": ("{a: " * 500, "nested too deeply"),
    "deep, but whole": ("points: " + "[" * 40 + "]" * 40, "nested too deeply"),  # however deep Python may go
    "large": ("points: [" + "1, " * 30_000 + "]", "it is larger than 65,536 bytes"),
    "a long number": ("points: [{ipc: 0x" + "f" * 9000 + "}]", "the number in line 1 is too large"),
    "a large number": ("points: [{recover_lr: " + "9" * 400 + "}]", "the number in line 1 is too large"),
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_a_sweep_file_cannot_ask_for_more_than_it_holds(kind: str, tmp_path: Path) -> None:
    text, says = SWEEPS[kind]
    (tmp_path / "x.yaml").write_text(text)
    with modest(), pytest.raises(ConfigError, match=says):
        load_sweep(tmp_path / "x.yaml")


def test_aliases_that_repeat_little_are_welcome(tmp_path: Path) -> None:
    text = "parameters: {dataset: digits, preset: smoke}\npoints:\n"
    text += "  - &a {ipc: 2, evaluate_labels: &b [soft]}\n  - {seed: 1, evaluate_labels: *b}\nreference: *a\n"
    (tmp_path / "x.yaml").write_text(text)
    found = load_sweep(tmp_path / "x.yaml")
    assert [point.config.seed for point in found.points] == [0, 1] and found.reference is found.points[0]


CONFIGS = {
    "deep": ('{"ipc": ' + "[" * 100_000, IntegrityError, "is not valid JSON"),
    "large": ('{"dataset": "' + "x" * 5 * 1024**2 + '"}', IntegrityError, "it has 5,242,[0-9]+ bytes; allowed are"),
    "a large number": ('{"recover_lr": ' + "9" * 4000 + "}", ConfigError, "recover_lr is a number of [0-9]+ bits, which is too large"),
    "no text": ('{"dataset": "folder:\\ud800"}', ConfigError, "allowed is text"),
    "no path": ('{"dataset": "folder:\\u0000"}', ConfigError, "allowed is text"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_cannot_ask_for_more_than_it_holds(kind: str, tmp_path: Path) -> None:
    text, error, says = CONFIGS[kind]
    (tmp_path / "config.json").write_text(text)
    with modest(), pytest.raises(error, match=says):
        read_config(tmp_path / "config.json")


# ---------------------------------------------------------------- names

IMG = "<img src=x onerror=alert(1)>"
NAMES = (
    "\x1b[2Jred",
    "$(touch x) $\\frac{1}$",
    IMG,
    "<!--<script>",
    "=cmd|' _C calc'!A0",
    'a" onload="x',
    "new\nline",
    "quo'te\"\"\"s'''",
    "{{7*7}} {ipc}",
    "\u202egnp.exe",
)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on a data set whose folder and classes have such names."""
    root = tmp_path_factory.mktemp("named") / f"{IMG} $x$ {{ipc}} \x1b[2J"
    for label, name in enumerate(NAMES):
        for k in range(6):
            (root / name).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(10 * label + k).integers(0, 40, (8, 8, 3))
            Image.fromarray((20 * label + noise).astype(np.uint8)).save(root / name / f"{k}.png")
    settings = {"preset": "smoke", "workers": 1, "ipc": 2, "iterations": 4, "evaluate_seeds": 1, "evaluate_epochs": 1}
    return delt.run(delt.configure(f"folder:{root}", **settings), root.parent / "run", listener=lambda event: None)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.odd: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.odd += [name for name, _ in attrs if name.startswith("on")]


def plain(text: str, scripts: int = 0) -> bool:
    """Whether no name became an element or an attribute of it."""
    page = Page(text)
    assert page.tags, "nothing was looked at"
    return "img" not in page.tags and page.tags.count("script") == scripts and not page.odd


def test_the_judge_of_pages_sees_what_is_not_escaped() -> None:
    assert plain("<b>x</b>") and not plain(f"<b>{IMG}</b>") and not plain('<b onload="x">') and not plain("<b><script>")


def test_file_names_stay_inside_and_plain(named: Any) -> None:
    assert set(named.classes) == set(NAMES)
    folders = sorted(path.name for path in (named.path / "synthetic").iterdir())
    assert len(folders) == len(NAMES) and all(re.fullmatch(r"\d{4}_[A-Za-z0-9_.-]+", name) for name in folders)
    hostile = (*NAMES, "..", "../../x", "/etc/passwd", "C:\\x", "\0", "", ".", "CON", "a" * 300)
    for name in file_names(torch.arange(len(hostile)), hostile):
        assert re.fullmatch(r"\d{4}_[A-Za-z0-9_.-]{1,60}/00000\.png", name) and ".." not in name.split("/")
    assert SyntheticSet.load(named.path).classes == named.classes and delt.verify(named.path) == []


def test_explorers_show_names_as_text(named: Any, tmp_path: Path) -> None:
    diversity = lab.DiversityExplorer(named, perplexity=5, per_class=6).join(60)
    explorers = {
        "trajectory": lab.TrajectoryExplorer(named),
        "diversity": diversity,
        "schedule": lab.ScheduleExplorer(named.config, out=tmp_path),
    }
    for name, explorer in explorers.items():
        text = explorer.save_html(tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert plain(text, scripts=2), name  # the page's own: its data and its program
        assert html.escape(IMG) in text, name  # the data set's folder, in the title or the words about it
        assert explorer.figure().get_figwidth() > 0
    assert plain(diversity.numbers.value) and {row[1] for row in diversity.view.state["table"]} == set(NAMES)
    found = re.search(r'id="views">(.*?)</script>', (tmp_path / "trajectory.html").read_text(encoding="utf-8"), re.DOTALL)
    assert found and set(json.loads(found[1])[0]["state"]["names"].values()) == set(named.classes)


def test_panels_show_errors_as_text(tmp_path: Path) -> None:
    panel = RunPanel(delt.configure(f"folder:{tmp_path / IMG}", preset="smoke", iterations=4), tmp_path / "run")
    panel.live.start().join(60)
    panel.refresh()
    assert panel.live.status == "failed" and html.escape(IMG) in panel.words.value
    assert plain(panel.words.value) and plain(panel.heading.value)


def test_figures_draw_names_as_they_are(named: Any) -> None:
    label = int(named.snapshots.labels[0])
    figures = {
        "images": plots.images(named.synthetic, what="$\\frac$"),
        "side by side": plots.side_by_side(synthetic_sets({"$\\bad$": named})),
        "ranking": plots.ranking(named.ranking),
        "diversity": plots.diversity(named.diversity),
        "comparison": plots.comparison(compare({"$\\bad$ \x1b": named})),
        "trajectory": plots.trajectory(named.snapshots, label, name="$\\bad$ \x1b 日本"),
    }
    for name, figure in figures.items():
        assert plots.png(figure), name
        dollars = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert dollars and not any(text.get_parse_math() for text in dollars), name


HOSTILE = f'{IMG}"""\nimport os; os.mkdir("canary")\n\'\'\'\\" \\ \u202e\x1b[2J {{ipc}} {{{{7*7}}}} $x$'
CODE = ("print(ascii([ipc, names]))", "print(ipc)", "ipc", "import warnings; warnings.warn(ipc)")


def test_notebooks_take_values_as_data_and_paths_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "{{7*7}} {ipc} {ipc.__class__} 'q\" $(touch x)"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell("ipc = None\nnames = None", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(code) for code in CODE]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / "source.ipynb")
    execute(folder / "source.ipynb", folder / "target.ipynb", {"ipc": HOSTILE, "names": [HOSTILE, "\\"]}, bar=False)
    outputs = [output for cell in nbformat.read(folder / "target.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert outputs[0].text.strip() == ascii([HOSTILE, [HOSTILE, "\\"]])
    assert sorted(path.name for path in folder.iterdir()) == ["source.ipynb", "target.ipynb"]  # and no canary
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    page = to_html(folder / "target.ipynb").read_text(encoding="utf-8")
    assert page.count(html.escape(IMG)) >= 3 and IMG not in page and "img" not in Page(page).tags and "\x1b" not in page


def printable(text: str) -> bool:
    assert text
    return all(line.isprintable() for line in text.split("\n"))


def test_a_terminal_obeys_no_name(named: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teachers = named.path / "teachers"
    said = refusal(capsys, "squeeze", "digits", "--preset", "smoke", "--teacher-weights", teachers, "--out", tmp_path / "run")
    assert said.isprintable() and r"'\x1b[2Jred' in the teacher" in said
    main(["show", str(named.path)])
    printed = capsys.readouterr().out
    assert printable(printed) and r"\x1b[2J" in printed
    copy = tmp_path / "copy \x1b[2J"
    shutil.copytree(named.path, copy)
    (copy / "synthetic" / "\x1b[2J\nfine").touch()
    for arguments in (["verify", str(copy)], ["show", str(copy), str(named.path)]):
        with contextlib.suppress(SystemExit):
            main(arguments)
        printed = capsys.readouterr().out
        assert printable(printed) and r"\x1b[2J" in printed


def test_tables_and_words_are_printable() -> None:
    assert visible("\x1b[2J a\nb \u202e é 日本") == r"\x1b[2J a\nb \u202e é 日本"
    text = aligned(["a", "\x1b"], [["new\nline", "x"], ["y", "\u202e"]], ["note \x07"])
    assert printable(text) and len(text.splitlines()) == 6


def test_the_board_of_a_sweep_is_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text('title: "\\e[2J red"\npoints: [{dataset: digits, preset: smoke}]\n')
    sweep = load_sweep(file)
    board = Board(sweep, tmp_path / "out")
    board.begin([], 1)
    board.ended(sweep.points[0], "failed", 1.0, f"{NAMES[0]} {NAMES[6]}")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 and printable(printed)


def test_names_of_tensors_are_no_paths(tmp_path: Path) -> None:
    safetensors.torch.save_file({"../../x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert list(read_state(tmp_path / "x.safetensors")) == ["../../x"] and len(list(tmp_path.iterdir())) == 1
