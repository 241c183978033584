"""The shared cache: what was kept comes back, damage counts as missing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from delt.artifacts import cache
from delt.artifacts.scores import Score
from delt.errors import Stopped
from delt.storage import StorageError

ROW = Score("full", "common", "hard", "convnet3", 0, 60, 98.5, 99.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DELT_CACHE", str(tmp_path))
    return tmp_path


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DELT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "delt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "delt"


def test_a_relative_folder_means_the_same_to_processes_that_work_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given in ("shared", str(tmp_path / "shared")):
        monkeypatch.setenv("DELT_CACHE", given)
        cache.settle()
        monkeypatch.chdir("/")
        assert cache.cache_folder() == tmp_path / "shared"
        monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DELT_CACHE")
    cache.settle()
    assert "DELT_CACHE" not in os.environ


def test_every_cause_changes_the_key():
    key = cache.key_of(data="x", epochs=3)
    assert key == cache.key_of(epochs=3, data="x")
    assert len({key, cache.key_of(data="y", epochs=3), cache.key_of(data="x", epochs=4), cache.key_of(data="x")}) == 4


def test_scores(folder):
    assert cache.load_score("k") is None
    cache.keep_score("k", ROW)
    assert cache.load_score("k") == ROW
    path = folder / "scores" / "k.json"
    path.write_text(path.read_text().replace("98.5", "99.5"))
    assert cache.load_score("k") is None


def test_teachers(folder, smoke_run):
    assert cache.load_teacher("k") is None
    cache.keep_teacher("k", smoke_run.teacher)
    assert cache.load_teacher("k").digest() == smoke_run.teacher.digest()
    path = folder / "teachers" / "k" / "teacher.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert cache.load_teacher("k") is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b"\xff", b'{"seal": "x"}', None])
@pytest.mark.parametrize("name", ["teacher.json", "teacher.safetensors"])
def test_any_damage_of_a_teacher_counts_as_missing(folder, smoke_run, name, damage):
    cache.keep_teacher("k", smoke_run.teacher)
    path = folder / "teachers" / "k" / name
    path.unlink()
    if damage is None:
        path.mkdir()
    else:
        path.write_bytes(damage)
    assert cache.load_teacher("k") is None


def test_errors_of_any_kind_count_as_missing(folder, monkeypatch):
    def broken(*_):
        raise AttributeError("'NoneType' object has no attribute 'items'")

    monkeypatch.setattr(cache.Teacher, "load", broken)
    monkeypatch.setattr(cache.storage, "read_sealed", broken)
    assert cache.load_teacher("k") is None and cache.load_score("k") is None


def test_a_cache_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch, smoke_run):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "file"))
    words = r"^the cache cannot be written \(.*file.*\): results are kept in the run folder alone$"
    with pytest.warns(UserWarning, match=words):
        cache.keep_teacher("k", smoke_run.teacher)
    with pytest.warns(UserWarning, match=words):
        cache.keep_score("k", ROW)
    assert cache.load_teacher("k") is None and cache.load_score("k") is None


def test_no_home_folder_is_no_error(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DELT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="the cache cannot be written .Could not determine home"):
        cache.keep_score("k", ROW)
    assert cache.load_score("k") is None


def hold(ready, seconds):
    """In another process: be alone for a while."""
    with cache.alone("k", lambda: None):
        ready.set()
        time.sleep(seconds)
        cache.keep_score("k", ROW)


@pytest.fixture
def holder(folder):
    context = multiprocessing.get_context("spawn")

    def start(seconds):
        ready = context.Event()
        process = context.Process(target=hold, args=(ready, seconds), daemon=True)
        process.start()
        assert ready.wait(60)
        return process

    return start


def test_who_comes_second_waits_and_finds_it(holder):
    process, said = holder(0.3), []
    with cache.alone("another", lambda: said.append("no")):
        assert not said, "only the same key waits"
    with cache.alone("k", lambda: said.append("waiting")):
        assert cache.load_score("k") == ROW
    process.join()
    assert said and set(said) == {"waiting"}


def test_a_lock_dies_with_its_holder(holder):
    process = holder(600)
    with cache.alone("k", lambda: os.kill(process.pid, signal.SIGKILL)):
        assert cache.load_score("k") is None
    process.join()


def test_who_waits_may_stop(holder):
    def stop():
        raise Stopped

    process = holder(600)
    with pytest.raises(Stopped), cache.alone("k", stop):
        pytest.fail("it is held")
    process.kill()
    process.join()


def test_without_locks_everyone_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "file"))
    with cache.alone("k", lambda: pytest.fail("nobody holds it")):
        pass


@pytest.mark.parametrize("how", ["no module", "no support"])
def test_where_there_are_no_locks_everyone_goes_on(how, folder, monkeypatch):
    def unsupported(lock, flags):
        raise OSError(95, "Operation not supported")

    if how == "no module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unsupported)
    with cache.alone("k", lambda: pytest.fail("nobody can hold it")):
        pass


def test_an_error_in_the_block_is_not_swallowed(folder):
    with pytest.raises(OSError, match="disk"), cache.alone("k", lambda: None):
        raise OSError("disk")
    with cache.alone("k", lambda: pytest.fail("it was let go")):
        pass


@pytest.mark.parametrize("writable", [True, False])
def test_a_large_set_of_images_lies_in_a_nameless_file(writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "cache"
    if not writable:
        place.write_text("a file where a folder should be")
    monkeypatch.setenv("DELT_CACHE", str(place))
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    small, large = cache.pixels((10, 10)), cache.pixels((7, 3, 8, 8))
    assert (small.shape, large.shape, small.dtype, large.dtype) == ((10, 10), (7, 3, 8, 8), torch.uint8, torch.uint8)
    large[3] = 5
    assert large.long().sum() == 5 * 3 * 64 and (not writable or list(place.iterdir()) == [])


def test_a_full_disk_is_met_before_images_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("DELT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="disk full: .* needs 1344 bytes"):
        cache.pixels((7, 3, 8, 8))
