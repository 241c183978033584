"""A run folder opened for reading: what it gives, and that it gives nothing unchecked."""

from __future__ import annotations

import shutil

import pytest

import delt
from delt.errors import IntegrityError, RunError


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
