"""A run folder opened for reading: what it gives, and that it gives nothing unchecked."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

import delt
from delt import storage
from delt.analysis.compare import table
from delt.artifacts.folder import RunFolder
from delt.artifacts.ranking import Ranking
from delt.artifacts.scores import Scores
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.synthetic import SyntheticSet
from delt.artifacts.teacher import Teacher
from delt.batch import execute
from delt.errors import ConfigError, DataError, IntegrityError, RunError
from delt.results import compare, load_all, read_config, synthetic_sets
from delt.storage import read_sealed, write_json


def test_what_is_loaded(smoke_run):
    synthetic, scores = smoke_run.synthetic, smoke_run.scores
    assert synthetic.images.shape == (50, 1, 8, 8) and len(synthetic.classes) == 10
    assert {(row.set, row.labels) for row in scores} == {
        (s, k) for s in ("delt", "random", "start", "one_sub_batch") for k in ("soft", "hard")
    }
    assert {row.seed for row in scores} == {0, 1}
    assert all(row.best >= row.last for row in scores)
    assert set(smoke_run.diversity) == {"delt", "random", "start", "one_sub_batch", "real"}
    assert smoke_run.config.recover.flip is False  # digits have no mirror images
    assert len(smoke_run.ranking) == 500
    assert smoke_run.snapshots.images.shape[1:] == (50, 1, 8, 8)
    assert "one_sub_batch" in smoke_run.table()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        delt.load(tmp_path)


def test_an_unfinished_run(tmp_path):
    config = delt.configure("digits", preset="smoke", ipc=2, iterations=8, workers=1)
    done = delt.run(config, tmp_path / "run", until="rank", listener=lambda event: None)
    assert "not finished" in done.describe() and "rank" in done.describe()
    with pytest.raises(IntegrityError, match="holds no scores.json yet"):
        _ = done.scores


def test_description(smoke_run):
    text = smoke_run.describe()
    assert "delt on digits, 5 images per class, seed 0, fixed" in text and text.count("scores.json") == text.count("synthetic.parquet") == 1


@pytest.mark.parametrize(
    "name", ["scores.json", "diversity.json", "ranking.parquet", "snapshots.safetensors", "teachers/teacher.safetensors"]
)
def test_a_changed_file_is_not_read(smoke_run, tmp_path, name):
    shutil.copytree(smoke_run.path, tmp_path / "run")
    path = tmp_path / "run" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    attribute = {"teachers/teacher": "teacher"}.get(name.split(".")[0], name.split(".")[0])
    with pytest.raises(IntegrityError, match="expected sha256"):
        getattr(delt.load(tmp_path / "run"), attribute)


def test_runs_are_named_by_what_tells_them_apart(smoke_run, tmp_path):
    folders = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "two" / "other"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(smoke_run.path / "config.json", folder)
    assert list(load_all(folders[:2])) == ["one", "two"]
    assert list(load_all([*folders, folders[0]])) == ["one/run", "two/run", "two/other"]
    assert list(load_all([f"{tmp_path}/*/run"])) == ["one", "two"]
    assert list(load_all([f"{tmp_path}/two/*"])) == ["other", "run"]
    assert list(load_all([smoke_run.path])) == ["run"] and load_all([]) == {}


def test_folders_without_runs_are_named(smoke_run, tmp_path):
    with pytest.raises(RunError, match=f"no run at {tmp_path / 'none'}"):
        load_all([smoke_run.path, tmp_path / "none"])
    with pytest.raises(RunError, match=r"no run matches .*\*: looked for folders"):
        load_all([f"{tmp_path}/*"])
    with pytest.raises(RunError, match="allowed is a list"):
        load_all("runs/a")


def test_runs_side_by_side(smoke_run, tmp_path):
    config = delt.configure("digits", preset="smoke", ipc=2, iterations=8, workers=1)
    delt.run(config, tmp_path / "late", until="recover", listener=lambda event: None)
    runs = load_all([smoke_run.path, tmp_path / "late"])
    own, late, random = compare(runs)
    assert [(entry.run, entry.set) for entry in (own, late, random)] == [("run", "delt"), ("late", "delt"), ("run", "random")]
    assert own.accuracy["soft"].values == tuple(row.last for row in smoke_run.scores if (row.set, row.labels) == ("delt", "soft"))
    assert own.cosine == smoke_run.diversity["delt"]["mean"] and own.work == 600
    assert own.bytes == sum(path.stat().st_size for path in (smoke_run.path / "synthetic").rglob("*.png"))
    assert own.seconds and random.seconds and late.seconds and not late.accuracy and late.bytes
    assert "! not evaluated yet: late" in table(compare(runs)) and len(compare(runs, ())) == 2
    assert {name: len(one) for name, one in synthetic_sets(runs).items()} == {"run": 50, "late": 20}


def test_runs_of_two_data_sets_are_not_compared(smoke_run, tmp_path):
    (tmp_path / "run").mkdir()
    other = read_sealed(smoke_run.path / "config.json") | {"dataset": "cifar10"}
    write_json(tmp_path / "run" / "config.json", other)  # as a person does: without its seal
    with pytest.raises(DataError, match="of digits, run .* of cifar10"):
        compare(load_all([smoke_run.path, tmp_path / "run"]))


def test_the_notebook_compares_run_folders(smoke_run, tmp_path):
    notebook = Path(__file__).resolve().parents[1] / "notebooks" / "04_compare.ipynb"
    done = tmp_path / "compare.ipynb"
    execute(notebook, done, {"runs": [str(smoke_run.path)], "controls": ["random", "start"]})
    outputs = [output for cell in json.loads(done.read_text())["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    texts = ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert any("one_sub_batch" not in text and "start" in text for text in texts)


def test_what_cannot_be_compared_is_refused(smoke_run):
    with pytest.raises(ConfigError, match="nope.*random"):
        compare({"a": smoke_run}, ["nope"])
    with pytest.raises(RunError, match="folders are 5; allowed is a list"):
        load_all(5)


def test_a_damaged_configuration_is_noticed_and_an_edited_copy_may_be_replayed(smoke_run, tmp_path):
    text, path = (smoke_run.path / "config.json").read_bytes(), tmp_path / "config.json"
    for place in range(0, len(text), 97):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        with pytest.raises((IntegrityError, ConfigError)):  # a flip in the word "seal" is an unknown setting
            read_config(path)
    write_json(path, read_sealed(smoke_run.path / "config.json") | {"seed": 7})
    assert read_config(path).seed == 7
    path.write_text("[]\n")
    with pytest.raises(IntegrityError, match="holds no configuration but list"):
        read_config(path)


LOADERS = {
    "config.json": lambda folder, _: read_config(folder / "config.json"),
    "manifest.json": lambda folder, _: RunFolder(folder).manifest(),
    "teachers/teacher.json": lambda folder, _: Teacher.load(folder / "teachers"),
    "teachers/teacher.safetensors": lambda folder, _: Teacher.load(folder / "teachers"),
    "ranking.parquet": lambda folder, _: Ranking.load(folder),
    "synthetic.parquet": lambda folder, _: SyntheticSet.load(folder),
    "synthetic/0003_3/00001.png": lambda folder, _: SyntheticSet.load(folder),
    "snapshots.safetensors": lambda folder, _: Snapshots.load(folder),
    "soft_labels.safetensors": lambda folder, teacher: SoftLabels.load(folder, teacher),
    "scores.json": lambda folder, _: Scores.load(folder),
    "diversity.json": lambda folder, _: storage.read_sealed(folder / "diversity.json"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_flip_or_cut_in_any_kibibyte_of_any_artefact_is_noticed_by_its_own_loader(name, smoke_run, tmp_path):
    """With no manifest to compare with; each message names the file."""
    folder = tmp_path / "run"
    shutil.copytree(smoke_run.path, folder, ignore=shutil.ignore_patterns("controls"))
    SoftLabels(smoke_run.teacher, "common", torch.randn(9, 30, 10).half(), 0, 10, "0" * 64).save(folder)
    path, draws = folder / name, random.Random(0)
    whole = path.read_bytes()
    for start in range(0, len(whole), 1024):
        at = draws.randrange(start, min(start + 1024, len(whole)))
        for data in (whole[:at] + bytes([whole[at] ^ 1 << draws.randrange(8)]) + whole[at + 1 :], whole[:at]):
            path.write_bytes(data)
            with pytest.raises(IntegrityError, match=re.escape(path.name)):
                LOADERS[name](folder, smoke_run.teacher)
    path.write_bytes(whole)
    LOADERS[name](folder, smoke_run.teacher)


def test_home_is_home_at_every_door(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_run.path, tmp_path / "own")
    assert delt.load("~/own").path == tmp_path / "own" and list(load_all(["~/ow*"])) == ["own"]
    done = delt.run(
        delt.configure("digits", preset="smoke", teacher_weights="~/own"), "~/new", until="squeeze", listener=lambda event: None
    )
    assert done.path == tmp_path / "new" and done.teacher.digest() == smoke_run.teacher.digest()
    assert not (tmp_path / "~").exists()
