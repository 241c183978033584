"""Readers hold against any bytes: they succeed, or raise an error of ours, within a second.

Files are changed at random (bits, cuts, splices, values in JSON), once as they are and once with their checksums made to fit,
which is what a reader behind the checksum would see. The number of cases per reader is DELT_FUZZ_CASES:

    DELT_FUZZ_CASES=10000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st

import delt
from delt import storage
from delt.artifacts.folder import RunFolder, verify
from delt.artifacts.foreign import read_state
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Scores
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.batch import load_sweep
from delt.config import flatten, unflatten
from delt.data.folders import list_folder
from delt.data.given import list_given
from delt.data.images import DataInfo
from delt.data.specs import spec_of
from delt.errors import DeltError
from delt.results import read_config
from delt.storage import Slots

CASES = int(os.environ.get("DELT_FUZZ_CASES", "20"))
SECONDS = 1.0
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "delt-hypothesis")  # and not beside the tests
fuzz = settings(max_examples=CASES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.timeout(max(240, CASES // 10))


@pytest.fixture(autouse=True)
def counted(record_property: Callable[[str, object], None]) -> None:
    record_property("cases", CASES)


def holds(read: Callable[[], Any]) -> None:
    """A reader succeeds or raises an error of ours, in time."""
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was passed over is said in warnings
        try:
            read()
        except DeltError as error:
            assert str(error)
    assert time.process_time() - begun < SECONDS


# ---------------------------------------------------------------- changes

EDITS = ("flip", "set", "cut", "drop", "insert", "copy")
LENGTHS = st.integers(0, 64)


@st.composite
def changed(draw: st.DrawFn, valid: bytes) -> bytes:
    """Some bytes after one to four changes."""
    data = bytearray(valid)
    for edit in draw(st.lists(st.sampled_from(EDITS), min_size=1, max_size=4)):
        at, other, length = draw(st.integers(0, len(data))), draw(st.integers(0, len(data))), draw(LENGTHS)
        if edit == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "set":
            data[at : at + 1] = draw(st.sampled_from([b"\0", b"\xff", b"[", b"{", b'"', b"-", b"9", b"e", b"&", b"*"]))
        elif edit == "cut":
            del data[at:]
        elif edit == "drop":
            del data[at : at + length]
        elif edit == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif edit == "copy":
            data[at:at] = data[other : other + length]
    return bytes(data)


def any_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    """Mostly a changed file, sometimes any bytes."""
    return st.one_of(changed(valid), changed(valid), changed(valid), st.binary(max_size=200))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, -(2**63), 10**30, 1e308, -0.0, 0.5, "", "..", "/", "../x", "\0", "é\u202e", "a" * 300, "[1]", "1e3", "9" * 30]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
DEEP = st.integers(1, 1500).map(lambda depth: json.loads("[" * min(depth, 900) + "]" * min(depth, 900)))


@st.composite
def edited(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """A JSON value with one part of it replaced, removed, added or given twice."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 4 if depth else 9)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        kind = draw(st.sampled_from(["inside", "inside", "inside", "remove", "add", "move"]))
        if kind == "inside":
            copy[key] = draw(edited(value[key], depth + 1))
        elif kind == "remove":
            del copy[key]
        elif kind == "move":
            copy[key] = value[draw(st.sampled_from(keys))]
        elif isinstance(copy, dict):
            copy[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            copy.insert(key, draw(VALUES))
        return copy
    return draw(st.one_of(VALUES, VALUES, VALUES, DEEP))


# ---------------------------------------------------------------- files that are good


@pytest.fixture(scope="module")
def good(smoke_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small file of each kind; nothing in it is changed but by its own reader's test."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("manifest.json", "config.json", "scores.json", "ranking.parquet", "snapshots.safetensors"):
        shutil.copy(smoke_run.path / name, folder / name)
    shutil.copytree(smoke_run.path / "teachers", folder / "teachers")
    images = torch.arange(4 * 16, dtype=torch.uint8).view(4, 1, 4, 4)
    depth = torch.zeros(4, dtype=torch.int64)
    SyntheticSet(images, torch.tensor([0, 0, 1, 1]), ("a", "b"), depth, depth, ["noise"] * 4, 0).save(folder)
    SoftLabels(smoke_run.teacher, "common", torch.zeros(2, 4, 10, dtype=torch.float16), 0, 2, "0" * 64).save(folder)
    slots = Slots(folder / "unit")
    for iteration in (1, 2):
        slots.save({"images": torch.zeros(2, 3)}, {"iteration": iteration, "losses": [0.5, 1]})
    torch.save({"state_dict": {"w": torch.zeros(4, 4), "b": torch.zeros(4)}, "epoch": 3}, folder / "zip.pth")
    torch.save({"w": torch.zeros(4, 4)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder


def resealed(data: bytes) -> bytes:
    """The file with its sha256 made to fit, where there is still a place for it."""
    place = storage.SEAL_PLACE.search(data)
    if place is None:
        return data
    start, stop = place.span(1)
    blank = data[:start] + storage.UNSEALED.encode() + data[stop:]
    return blank if blank.count(storage.UNSEALED.encode()) > 1 else storage.sealed(blank)


def as_it_is(data: bytes) -> bytes:
    return data


FORGED = pytest.mark.parametrize("forge", [as_it_is, resealed], ids=["as it is", "with a checksum that fits"])


def through(path: Path, forge: Callable[[bytes], bytes], read: Callable[[], Any]) -> None:
    """Send changed versions of a file through its reader, and put the good one back."""
    valid = path.read_bytes()
    holds(read)  # which loads what the reader needs

    @fuzz
    @given(any_bytes(valid))
    def check(data: bytes) -> None:
        path.write_bytes(forge(data))
        holds(read)

    try:
        check()
    finally:
        path.write_bytes(valid)


# ---------------------------------------------------------------- readers


@FORGED
@pytest.mark.parametrize("kind", ["ranking.parquet", "snapshots.safetensors", "soft_labels.safetensors", "synthetic.parquet"])
def test_artefacts(kind: str, forge: Callable[[bytes], bytes], good: Path, smoke_run: Any) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        "ranking.parquet": Ranking.load,
        "snapshots.safetensors": Snapshots.load,
        "soft_labels.safetensors": lambda folder: SoftLabels.load(folder, smoke_run.teacher),
        "synthetic.parquet": SyntheticSet.load,
    }
    through(good / kind, forge, lambda: readers[kind](good))


@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "with a checksum that fits"])
def test_checkpoints(forged: bool, good: Path) -> None:
    slots = Slots(good / "unit")

    def forge(data: bytes) -> bytes:
        body = data[storage.DIGEST_BYTES :]
        return bytes.fromhex(storage.sha256_bytes(body)) + body if forged else data

    through(slots.paths[1], forge, lambda: Slots(good / "unit").load())


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_weights_from_elsewhere(name: str, good: Path) -> None:
    through(good / name, as_it_is, lambda: read_state(good / name))


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.json"])
def test_teachers(name: str, good: Path) -> None:
    through(good / "teachers" / name, as_it_is, lambda: Teacher.load(good / "teachers"))


def test_teachers_with_a_card_that_fits(good: Path) -> None:
    file, card = good / "teachers" / "teacher.safetensors", good / "teachers" / "teacher.json"
    weights, record, written = file.read_bytes(), storage.read_sealed(card), card.read_bytes()
    names = st.one_of(st.just(record), edited(record).filter(lambda value: isinstance(value, dict)))

    @fuzz
    @given(st.one_of(st.just(weights), any_bytes(weights)), names)
    def check(data: bytes, said: dict[str, Any]) -> None:
        file.write_bytes(data)
        write_sealed(card, {**said, "sha256": storage.sha256_bytes(data)})
        holds(lambda: Teacher.load(good / "teachers"))

    try:
        check()
    finally:
        file.write_bytes(weights)
        card.write_bytes(written)


def write_sealed(path: Path, value: Any) -> None:
    """Seal a value as the program does, where it can be written at all; else it is written as it is."""
    try:
        storage.write_sealed(path, value)
    except (DeltError, RecursionError, TypeError):
        path.write_text(json.dumps(value))


@pytest.mark.parametrize("place", ["manifest.json", ".work/stages/rank.json"])
@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "with a seal that fits"])
def test_manifests_and_records(place: str, forged: bool, good: Path, tmp_path: Path) -> None:
    manifest = storage.read_sealed(good / "manifest.json")
    files = {name: manifest["files"][name] for name in manifest["stages"]["rank"]["files"]}
    value = manifest if place == "manifest.json" else {**manifest["stages"]["rank"], "files": files}
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_sealed(path, value)
    valid = path.read_bytes()

    @fuzz
    @given(edited(value) if forged else any_bytes(valid))
    def check(changed: Any) -> None:
        if forged:
            write_sealed(path, changed)
        else:
            path.write_bytes(changed)
        for read in (RunFolder(tmp_path).manifest, RunFolder(tmp_path).records, lambda: verify(tmp_path)):
            holds(read)

    check()


def test_sealed_files_of_scores(good: Path) -> None:
    through(good / "scores.json", as_it_is, lambda: Scores.load(good))
    value = storage.read_sealed(good / "scores.json")

    @fuzz
    @given(edited(value))
    def check(changed: Any) -> None:
        write_sealed(good / "scores.json", changed)
        holds(lambda: Scores.load(good))

    check()


def test_configurations(good: Path, tmp_path: Path) -> None:
    flat, path = storage.read_sealed(good / "config.json"), tmp_path / "config.json"
    plain = json.dumps(flat).encode()

    @fuzz
    @given(st.one_of(any_bytes(plain), edited(flat).map(lambda value: json.dumps(value).encode())))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        holds(lambda: read_config(path))

    check()


def test_what_is_read_as_a_configuration_comes_back() -> None:
    flat = flatten(delt.configure("digits", preset="smoke"))

    @fuzz
    @given(edited(flat).filter(lambda value: isinstance(value, dict)))
    def check(value: dict[str, Any]) -> None:
        try:
            config = unflatten(value)
        except DeltError:
            return
        assert unflatten(json.loads(storage.json_bytes(flatten(config)))) == config

    check()


SWEEP = {
    "title": "a title",
    "jobs": 2,
    "parameters": {"dataset": "digits", "preset": "smoke"},
    "grid": {"round_iterations": [2, 4], "sub_batches": [1, 2]},
    "points": [{"method": "random"}],
    "reference": {"method": "random"},
}
TEXT = "title: a\nparameters: &p {dataset: digits, preset: smoke}\ngrid:\n  ipc: [1, 2]\npoints:\n  - {seed: 1.5e3}\n  - &q {lr: [*p]}\n"


def test_sweeps(tmp_path: Path) -> None:
    path, whole = tmp_path / "x.yaml", yaml.safe_dump(SWEEP).encode()

    @fuzz
    @given(st.one_of(any_bytes(whole), any_bytes(TEXT.encode()), edited(SWEEP).map(lambda value: json.dumps(value).encode())))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        holds(lambda: load_sweep(path))

    check()


NAMES = st.one_of(
    st.sampled_from(["train", "val", "test", "images", "cat", "dog", "0", "1", "new0", ".hidden", "x.png", "y.JPG", "val_annotations.txt"]),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"), min_size=1, max_size=12).filter(
        lambda name: name not in (".", "..")
    ),
)
LINES = st.lists(
    st.lists(st.one_of(NAMES, st.sampled_from(["../x.png", "/etc/passwd", "a" * 300, ""])), max_size=4).map("\t".join), max_size=4
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=8), LINES.map(lambda lines: "\n".join(lines).encode())),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def plant(folder: Path, tree: Any) -> None:
    """Make a tree of folders (dicts) and files (bytes)."""
    if isinstance(tree, dict):
        folder.mkdir()
        for name, inner in tree.items():
            plant(folder / name, inner)
    else:
        folder.write_bytes(tree)


def test_folders_of_images(tmp_path: Path) -> None:
    info = DataInfo("toy", ("cat", "dog"), 3, 8, (0.5,) * 3, (0.25,) * 3, True, 0.0)
    root = tmp_path / "data"
    specs = [spec_of(f"folder:{root}"), spec_of("tiny-imagenet"), spec_of("imagenette")]

    @fuzz
    @given(TREES)
    def check(tree: Any) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.unlink(missing_ok=True)
        plant(root, tree)
        for spec in specs:
            holds(partial(list_folder, spec, root))
        holds(lambda: list_given(str(root), info, 1))

    check()
