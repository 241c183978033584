"""RunFolder: finished means recorded, hashed and complete; one writer; nothing leads out of the folder."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delt import storage
from delt.artifacts.folder import MADE, Busy, RunFolder, _is_gone, verify
from delt.errors import DeltError, IntegrityError, RunError

KEYS = {"ipc": 5, "keep": "medium", "students": ("teacher",), "lr": 0.25}


def put(folder: RunFolder, name: str, data: bytes = b"content") -> Path:
    storage.write_bytes(folder.path / name, data)
    return Path(name)


def files_of(path: Path) -> dict[str, bytes]:
    return {item.relative_to(path).as_posix(): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def finished(path: Path) -> RunFolder:
    """A finished run: two stages, a file of the whole run, and a control inside."""
    folder = RunFolder(path)
    with folder.hold():
        put(folder, "config.json", b"{}")
        put(folder, "metrics.jsonl", b"")
        folder.commit("rank", KEYS, [put(folder, "ranking.parquet")], 1.5, 100, {"kept": 3})
        names = [put(folder, f"synthetic/0000_a/{index:05d}.png", bytes([index])) for index in range(3)]
        folder.commit("recover", KEYS, names, 2.0, 200)
        control = RunFolder(path / "controls" / "random")
        with control.hold():
            control.commit("rank", KEYS, [put(control, "ranking.parquet", b"other")], 1, 1)
            control.finish({"seed": 0})
        folder.finish({"seed": 0, "torch": "2"})
    return folder


def test_somebody_elses_files_are_not_replaced(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").require_own()
    put(RunFolder(tmp_path), "notes.txt")
    RunFolder(tmp_path).require_own()
    put(RunFolder(tmp_path), "synthetic/cat/1.png")
    put(RunFolder(tmp_path), "config.json", b'{"model_type": "bert"}')
    with pytest.raises(RunError, match="is no run, and holds config.json, synthetic: choose another --out"):
        RunFolder(tmp_path).require_own()
    for number, name in enumerate(MADE):
        put(RunFolder(tmp_path / str(number)), name)
        with pytest.raises(RunError, match=f"holds {name}: choose"):
            RunFolder(tmp_path / str(number)).require_own()
    finished(tmp_path / "run").require_own()
    with RunFolder(tmp_path).hold() as begun:
        begun.require_own()


def test_what_has_runs_inside_does_not_go_into_a_run(tmp_path: Path) -> None:
    for free in (RunFolder(tmp_path / "new"), RunFolder(tmp_path)):
        free.require_no_run("a sweep")
    put(RunFolder(tmp_path), "config.json", b'{"seal": "1"}')
    with pytest.raises(RunError, match="holds a run, and a sweep has run folders inside: choose another --out"):
        RunFolder(tmp_path).require_no_run("a sweep")


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_of_a_folder_that_nothing_was_put_into(there: bool, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    if there:
        place.mkdir(parents=True)
    with pytest.raises(ValueError, match="refused"), RunFolder(place).hold():
        raise ValueError("refused")
    assert place.exists() == there == (tmp_path / "a").exists()
    with RunFolder(place).hold() as folder:
        put(folder, "notes.txt")
    assert files_of(place) == {"notes.txt": b"content"}


def test_a_stage_stands_only_after_its_commit_and_with_equal_keys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.hold() as held:
        assert held is folder
        assert folder.standing("rank", KEYS) is None
        put(folder, "ranking.parquet")
        assert folder.standing("rank", KEYS) is None
        folder.commit("rank", KEYS, [folder.path / "ranking.parquet"], 1.23456, 99, {"kept": [1, 2]})
        record = folder.standing("rank", KEYS)
        assert record is not None
        assert (record["seconds"], record["peak_memory"], record["extra"]) == (1.235, 99, {"kept": [1, 2]})
        assert record["files"] == {"ranking.parquet": {"sha256": storage.sha256_bytes(b"content"), "bytes": 7}}
        assert folder.standing("rank", {**KEYS, "students": ["teacher"]}) == record  # a tuple is a list on disk
        assert folder.standing("recover", KEYS) is None


@pytest.mark.parametrize("complete", [False, True])
def test_other_keys_are_refused_and_every_one_is_named(tmp_path: Path, complete: bool) -> None:
    folder = RunFolder(tmp_path)
    with folder.hold():
        folder.commit("rank", KEYS, [], 0, 0)
        if complete:
            folder.finish({})
        now = {**KEYS, "ipc": 10, "keep": "easy", "new": None}
        del now["lr"]
        with pytest.raises(RunError) as caught:
            folder.standing("rank", now)
        for part in ("ipc: was 5, now 10", 'keep: was "medium", now "easy"', "lr: was 0.25, now not set", "new: was not set, now null"):
            assert part in str(caught.value)
        assert "students" not in str(caught.value) and "choose another --out, or delete the folder" in str(caught.value)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "folder"])
def test_a_damaged_file_is_named_and_the_stage_done_again(tmp_path: Path, complete: bool, damage: str) -> None:
    folder = RunFolder(tmp_path)
    with folder.hold():
        put(folder, "a.bin", bytes(100))
        put(folder, "b.bin", bytes(50))
        folder.commit("rank", KEYS, [Path("a.bin"), Path("b.bin")], 0, 0)
        if complete:
            folder.finish({})
        path = folder.path / "b.bin"
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "delete":
            path.write_bytes(bytes(49) if damage == "truncate" else bytes(49) + b"\1")
        with pytest.warns(UserWarning, match=rf"stage rank is done again, since b\.bin: .*{storage.sha256_bytes(bytes(50))}"):
            assert folder.standing("rank", KEYS) is None


def test_every_flip_in_a_stage_record_is_noticed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.commit("rank", KEYS, [put(folder, "a.bin")], 0, 0)
    path = tmp_path / ".work" / "stages" / "rank.json"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.warns(UserWarning, match=r"stage rank is done again: .*rank\.json"):
            assert folder.standing("rank", KEYS) is None
    with pytest.warns(UserWarning, match="done again"):
        folder.reset("rank")
    assert folder.standing("rank", KEYS) is None and not path.exists()


def test_finish_writes_the_manifest_and_removes_the_working_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.hold():
        storage.write_bytes(folder.work("recover", KEYS) / "group-0.a.ckpt", b"x")
        put(folder, ".work/note")
        put(folder, "config.json", b"{}")
        folder.commit("recover", KEYS, [put(folder, "synthetic/0000_a/00000.png")], 3, 4, {"updates": 9})
        put(folder, "experiment.ipynb")
        folder.finish({"seed": 3, "versions": {"torch": "2"}})
        assert [item.name for item in (folder.path / ".work").iterdir()] == ["lock"]
        with pytest.raises(Busy):
            RunFolder(folder.path)._lock()
    assert not (folder.path / ".work").exists()
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["format"] == 1 and manifest["complete"] is True and manifest["seed"] == 3 and manifest["versions"] == {"torch": "2"}
    assert manifest["created"].endswith("+00:00") and manifest["controls"] == []
    assert manifest["stages"] == {
        "recover": {
            "keys": {**KEYS, "students": ["teacher"]},
            "seconds": 3,
            "peak_memory": 4,
            "extra": {"updates": 9},
            "files": ["synthetic/0000_a/00000.png"],
        }
    }
    assert manifest["files"] == {
        name: {"sha256": storage.sha256_file(folder.path / name), "bytes": (folder.path / name).stat().st_size}
        for name in ("config.json", "synthetic/0000_a/00000.png")
    }
    assert verify(folder.path) == []


def test_a_finished_run_takes_more_stages(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    before = folder.manifest()
    assert before is not None
    with folder.hold():
        assert folder.standing("rank", KEYS) is not None
        folder.commit("evaluate", {"seeds": 3}, [put(folder, "scores.json", b"[]")], 1, 1)
        assert folder.standing("evaluate", {"seeds": 3}) is not None
        (line,) = verify(folder.path)
        assert line.startswith("manifest.json: not complete") and line.endswith("it goes on where it was")
        folder.finish({"seed": 0, "device": "cpu"})
    after = folder.manifest()
    assert after is not None and verify(folder.path) == []
    assert after["created"] == before["created"] and after["torch"] == "2" and after["device"] == "cpu"
    assert set(after["stages"]) == {"rank", "recover", "evaluate"} and set(after["files"]) == {*before["files"], "scores.json"}
    with folder.hold():
        folder.finish({})
    assert folder.manifest() == after and not (folder.path / ".work").exists()


@pytest.mark.parametrize("complete", [False, True])
def test_reset_forgets_the_stage_and_leaves_no_stale_file(tmp_path: Path, complete: bool) -> None:
    folder = RunFolder(tmp_path)
    with folder.hold():
        names = [put(folder, f"synthetic/{name}") for name in ("0000_a/00000.png", "0001_b/00000.png", "0001_b/00001.png")]
        folder.commit("recover", KEYS, [*names, put(folder, "synthetic.parquet")], 0, 0)
        folder.commit("rank", KEYS, [put(folder, "ranking.parquet")], 0, 0)
        checkpoint = folder.work("recover") / "x"
        checkpoint.write_bytes(b"")
        if complete:
            folder.finish({})
        else:
            (tmp_path / "synthetic" / "0001_b" / "mine.txt").write_bytes(b"")
        folder.reset("recover")
        assert folder.standing("recover", {**KEYS, "ipc": 99}) is None  # nothing is left to compare with
        assert folder.standing("rank", KEYS) is not None
        left = {name for name in files_of(tmp_path) if not name.startswith(".work") and name != "manifest.json"}
        assert left == ({"ranking.parquet"} if complete else {"ranking.parquet", "synthetic/0001_b/mine.txt"})
        assert checkpoint.exists() is not complete and (tmp_path / "synthetic").exists() is not complete
        assert any("not complete" in line or "not finished" in line for line in verify(tmp_path))
        folder.reset("recover")
        shutil.rmtree(tmp_path / "synthetic", ignore_errors=True)
        folder.commit("recover", KEYS, [put(folder, "synthetic/0000_a/00000.png")], 0, 0)
        shutil.rmtree(tmp_path / "synthetic")
        with pytest.warns(UserWarning, match="missing"):
            assert folder.standing("recover", KEYS) is None
        folder.reset("recover")  # what is gone already is no hindrance
        if complete:
            folder.finish({})
            assert verify(tmp_path) == []


def test_work_is_pinned_to_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    work = folder.work("recover", KEYS)
    assert work == tmp_path / ".work" / "recover" and work.is_dir()
    assert folder.work("recover", KEYS) == folder.work("recover") == work
    checkpoint = work / "group-0.a.ckpt"
    checkpoint.write_bytes(b"")
    assert folder.work("recover", KEYS) == work and checkpoint.exists()


def test_work_of_other_settings_is_thrown_away_with_a_warning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number, name in enumerate(("a", "b")):
        (folder.work("recover" if number else "rank", KEYS) / name).write_bytes(b"")
    (folder.work("recover") / "units").mkdir()
    now = {**KEYS, "ipc": 6}
    with pytest.warns(UserWarning, match="unfinished work of recover is thrown away.*ipc: was 5, now 6") as caught:
        work = folder.work("recover", now)
    assert len(caught) == 1 and "keep" not in str(caught[0].message)
    assert [item.name for item in work.iterdir()] == ["keys.json"] and (folder.work("rank") / "a").exists()
    (work / "b").write_bytes(b"")
    assert folder.work("recover", now) == work and (work / "b").exists()  # and now it is theirs
    (work / "keys.json").write_bytes(b"{}")
    with pytest.warns(UserWarning, match=r"thrown away, since .*keys\.json is damaged"):
        folder.work("recover", now)
    assert not (work / "b").exists() and storage.read_sealed(work / "keys.json")["ipc"] == 6


def test_a_kill_while_work_is_thrown_away_leaves_none_under_new_settings(tmp_path: Path) -> None:
    def discard(folder: RunFolder) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder.work("recover", {**KEYS, "ipc": 6})

    for at in range(1, 100):
        folder = RunFolder(tmp_path / str(at))
        (folder.work("recover", KEYS) / "old").write_bytes(b"")
        survived = survives(lambda: discard(folder), at)  # noqa: B023
        with folder.hold():
            discard(folder)
            assert not (folder.work("recover") / "old").exists()
            assert [item.name for item in (folder.path / ".work").iterdir() if item.name.endswith(".tmp")] == []
        if survived:
            assert at > 5
            return
    raise AssertionError("never passed")


@pytest.mark.parametrize("stage", ["stages", "lock", "", "..", "a/b", "A", ".x", "a\n"])
def test_stage_names_cannot_be_paths(tmp_path: Path, stage: str) -> None:
    folder = RunFolder(tmp_path)
    for call in (lambda: folder.work(stage), lambda: folder.reset(stage), lambda: folder.commit(stage, {}, [], 0, 0)):
        with pytest.raises(RunError, match="stage name"):
            call()
    with pytest.raises(RunError, match="stage name"):
        folder.standing(stage, {})


def test_a_file_belongs_to_one_stage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.commit("rank", KEYS, [put(folder, "a.bin")], 0, 0)
    folder.commit("rank", KEYS, [Path("a.bin")], 0, 0)
    with pytest.raises(RunError, match=r"a\.bin is a file of stage rank; stage recover needs a file of its own"):
        folder.commit("recover", KEYS, [Path("a.bin")], 0, 0)


def test_commit_takes_only_files_inside_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("run"))
    put(folder, "in.bin")
    (folder.path / "link").symlink_to(tmp_path / "outside")
    for bad in (Path("../outside"), tmp_path / "outside", Path("link"), Path("none"), Path("a/../../outside"), Path(".")):
        with pytest.raises(IntegrityError):
            folder.commit("rank", KEYS, [bad], 0, 0)
    folder.commit("rank", KEYS, [tmp_path / "run" / "in.bin", Path("in.bin")], 0, 0)
    record = folder.standing("rank", KEYS)
    assert record is not None and list(record["files"]) == ["in.bin"]


HOSTILE = ["../outside", "/etc/hostname", "a/../../outside", "..", ".", "", "a//b", "./a", "nul\0l", "out/x", "loop/x"]
HOSTILE += ["C:/x", "\\\\host\\x", "a\\..\\..\\b"]  # on Windows


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("complete", [False, True])
def test_hostile_records_are_refused_before_anything_is_read_or_deleted(tmp_path: Path, name: str, complete: bool) -> None:
    run = tmp_path / "run"
    (tmp_path / "outside").write_bytes(b"precious")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"precious")
    folder = RunFolder(run)
    put(folder, "good.bin")
    (run / "out").symlink_to(tmp_path / "elsewhere")
    (run / "loop").symlink_to(run / "loop")
    entry = {"sha256": storage.sha256_bytes(b"precious"), "bytes": 8}
    files = {"good.bin": entry, name: entry}
    if complete:
        stages = {"rank": {"keys": {}, "files": list(files)}}
        storage.write_sealed(run / "manifest.json", {"format": 1, "complete": True, "stages": stages, "files": files, "controls": []})
    else:
        storage.write_sealed(run / ".work" / "stages" / "rank.json", {"keys": {}, "files": files})
    for call in (lambda: folder.standing("rank", {}), lambda: folder.reset("rank")):
        with pytest.raises(IntegrityError, match=r"not a path inside|leads out of"):
            call()
    if complete:
        assert any("not a path inside" in line or "leads out of" in line for line in verify(run))
    assert (tmp_path / "outside").read_bytes() == (tmp_path / "elsewhere" / "x").read_bytes() == b"precious"
    assert (run / "good.bin").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"complete": None},
        {"stages": []},
        {"stages": {"rank": 3}},
        {"stages": {"rank": {"keys": {}, "files": ["nowhere"]}}},
        {"stages": {"rank": {"files": []}}},
        {"files": {"x": {}}},
        {"files": {"x": "y"}},
        {"files": 3},
        {"controls": [3]},
        {"controls": None},
    ],
)
def test_a_manifest_of_another_shape_gives_only_our_error(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"format": 1, "complete": True, "stages": {}, "files": {}, "controls": []}
    storage.write_sealed(tmp_path / "manifest.json", {**good, **change})
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        RunFolder(tmp_path).standing("rank", {})
    assert len(verify(tmp_path)) == 1
    storage.write_sealed(tmp_path / "manifest.json", good)
    assert verify(tmp_path) == []


def test_verify_names_each_problem(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(run)
    assert verify(run) == []
    (run / "experiment.ipynb").write_bytes(b"not ours")
    assert verify(run) == []
    (run / "ranking.parquet").write_bytes(b"Content")
    (run / "synthetic" / "0000_a" / "00001.png").unlink()
    (run / "synthetic" / "0000_a" / "stray.png").write_bytes(b"")
    (run / "controls" / "random" / "ranking.parquet").unlink()
    lines = verify(run)
    good, bad, other = (storage.sha256_bytes(data) for data in (b"content", b"Content", b"other"))
    assert lines[0] == f"ranking.parquet: expected sha256 {good}, found {bad}"
    assert lines[1].startswith("synthetic/0000_a/00001.png: missing")
    assert lines[2] == "synthetic/0000_a/stray.png: not in the manifest"
    assert lines[3] == f"controls/random/ranking.parquet: missing, expected sha256 {other}" and len(lines) == 4


def test_verify_of_folders_that_are_not_finished_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        (line,) = verify(tmp_path / name)
        assert "not finished" in line and "it goes on where it was" in line
    run = finished(tmp_path / "run").path
    shutil.rmtree(run / "controls" / "random")
    assert [line.split(",")[0] for line in verify(run)] == ["controls/random: missing"]
    (run / "controls" / "random").symlink_to(run)
    assert [line.split(",")[0] for line in verify(run)] == ["controls/random: missing"]
    (run / "controls" / "random").unlink()
    (run / "controls" / "random").symlink_to(tmp_path)
    assert len(verify(run)) == 1 and "leads out" in verify(run)[0]


def test_every_flipped_byte_of_a_finished_run_is_noticed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run").path
    for name, good in files_of(run).items():
        for at in range(0, len(good), 11):
            (run / name).write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
            lines = verify(run)
            assert lines and all(line.startswith(name) for line in lines), (name, at, lines)
        (run / name).write_bytes(good)
    assert verify(run) == []


def test_a_damaged_manifest_is_never_taken_for_an_unfinished_run(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged.*restore it, or delete it"):
        folder.standing("rank", KEYS)


HOLDER = """
import sys, time
from pathlib import Path
from delt.artifacts.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_lets_go_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for _ in range(2):
            named = rf"in use by pid {holder.pid} on \S+: wait for it, or choose another --out"
            with pytest.raises(Busy, match=named) as caught, RunFolder(tmp_path).hold():
                raise AssertionError("two holders")
        assert caught.value.exit_code == 3
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
    assert (tmp_path / ".work" / "lock").exists()
    with RunFolder(tmp_path).hold():
        pass
    assert list(tmp_path.iterdir()) == []


def next_handle() -> int:
    """The number that the next opened file gets; it grows when one is left open."""
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    return handle


def test_holding_alone_leaves_nothing_and_errors_let_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), folder.hold():
            assert (folder.path / ".work" / "lock").read_text().startswith(f"pid {os.getpid()} on ")
            raise ZeroDivisionError
        assert not folder.path.exists()
    with folder.hold():
        folder.work("rank")
    assert (folder.path / ".work" / "rank").is_dir()  # an unfinished run keeps its state
    before = next_handle()
    with folder.hold(), pytest.raises(Busy), folder.hold():
        pass
    assert next_handle() == before


def test_a_lock_file_that_was_removed_meanwhile_guards_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    claim, calls = folder._claim, []

    def slow(handle: int) -> None:
        calls.append(handle)
        if len(calls) < 3:  # the last holder tidies up between our open and our lock
            shutil.rmtree(tmp_path / ".work")
        claim(handle)

    monkeypatch.setattr(folder, "_claim", slow)
    with folder.hold():
        assert len(calls) == 3 and (tmp_path / ".work" / "lock").exists()
        with pytest.raises(Busy), RunFolder(tmp_path).hold():
            pass
    monkeypatch.setattr(folder, "_claim", lambda handle: shutil.rmtree(tmp_path / ".work"))
    with pytest.raises(Busy, match="many processes"), folder.hold():
        pass


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".work").symlink_to(tmp_path)
    (tmp_path / "lock" / ".work").mkdir(parents=True)
    (tmp_path / "lock" / ".work" / "lock").symlink_to(tmp_path / "file")
    for name in ("file", "linked", "lock"):
        with pytest.raises(RunError, match="cannot use .* as a run folder.*--out"), RunFolder(tmp_path / name).hold():
            pass
    assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_not_taken_for_a_busy_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = storage.make_folder, []

    def nowhere(path: Path) -> None:
        calls.append(path)
        if path == tmp_path / "run":  # as below /proc
            raise FileNotFoundError(2, "No such file or directory", str(path))
        make(path)

    monkeypatch.setattr(storage, "make_folder", nowhere)
    with pytest.raises(RunError, match=r"it cannot be made: No such file or directory; choose another --out") as caught:
        RunFolder(tmp_path / "run")._lock()
    assert not isinstance(caught.value, Busy) and len(calls) == 1


def test_a_work_folder_that_vanishes_between_two_calls_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = storage.make_folder, []

    def made_and_gone(path: Path) -> None:
        make(path)
        if path.name == ".work":
            calls.append(path)
            if len(calls) < 3:
                path.rmdir()

    monkeypatch.setattr(storage, "make_folder", made_and_gone)
    with RunFolder(tmp_path).hold():
        assert len(calls) == 3


def test_a_file_that_cannot_be_read_counts_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path)

    def failing(path: Path) -> str:
        raise IntegrityError(f"cannot read {path}: Input/output error")

    monkeypatch.setattr(storage, "sha256_file", failing)
    assert len(verify(tmp_path)) == 7 and all("Input/output error" in line for line in verify(tmp_path))
    with pytest.warns(UserWarning, match="stage rank is done again, since .*Input/output error"):
        assert folder.standing("rank", KEYS) is None


@pytest.mark.parametrize("how", ["no module", "no support"])
def test_without_file_locks_a_warning_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def unsupported(handle: int, flags: int) -> None:
        raise OSError(95, "Operation not supported")

    if how == "no module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="take care that no other process"), RunFolder(tmp_path).hold():
        pass


def test_holding_clears_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    names = ("manifest.json", ".work/recover/g.a.ckpt", "teachers/a.json")
    left = [storage.temporary_of(tmp_path / part / name) for part in (".", "controls/random") for name in names]
    kept = [tmp_path / ".cache.tmp", storage.temporary_of(tmp_path / "mine" / "x"), storage.temporary_of(tmp_path / "controls" / "x")]
    outside = storage.temporary_of(tmp_path.parent / f"{tmp_path.name}-outside" / "x")
    kept_outside = [outside, storage.temporary_of(outside.parent / ".work" / "x")]
    (tmp_path / "controls").mkdir()
    (tmp_path / "controls" / "linked").symlink_to(outside.parent)
    (tmp_path / "controls" / "second").mkdir()
    (tmp_path / "controls" / "second" / "teachers").symlink_to(outside.parent)
    for path in left + kept + kept_outside:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for folder in (tmp_path, tmp_path / "controls" / "random"):
        storage.write_bytes(storage.temporary_of(folder / "synthetic") / "0000_a" / "00000.png", b"")
    with RunFolder(tmp_path).hold():
        assert set(files_of(tmp_path)) == {path.relative_to(tmp_path).as_posix() for path in kept} | {".work/lock"}
        assert all(path.exists() for path in kept_outside)


def test_controls_keep_no_empty_working_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).hold() as folder:
        done, half = (folder.control(name) for name in ("done", "half"))
        done.commit("rank", KEYS, [put(done, "ranking.parquet")], 0, 0)
        done.finish({})
        half.commit("rank", KEYS, [put(half, "ranking.parquet")], 0, 0)
    assert set(files_of(tmp_path / "controls" / "done")) == {"manifest.json", "ranking.parquet"}
    assert not (done.path / ".work").exists() and (half.path / ".work" / "stages" / "rank.json").exists()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, and of the sealed ones that are read, from now on."""
    read: list[str] = []
    hashed, sealed = storage.sha256_file, storage.read_sealed

    def note(real: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda path: (read.append(path.as_posix()), real(path))[1]

    monkeypatch.setattr(storage, "sha256_file", note(hashed))
    monkeypatch.setattr(storage, "read_sealed", note(sealed))
    return read


def test_while_it_is_held_every_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = finished(tmp_path), counted(monkeypatch)

    def ask(folder: RunFolder) -> None:
        for _ in range(3):
            assert folder.standing("rank", KEYS) and folder.standing("recover", KEYS)
            assert folder.control("random").standing("rank", KEYS)

    with folder.hold():
        ask(folder)
        assert len(read) == len(set(read)) == 7  # five files and two manifests
    read.clear()
    ask(folder)  # not held: another process may have changed anything
    assert len(read) > 7
    read.clear()
    with folder.hold():
        ask(folder)
        assert len(read) == 7  # nothing is carried from one hold into the next


def test_what_changes_while_it_is_held_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = finished(tmp_path), counted(monkeypatch)
    with folder.hold():
        assert folder.standing("rank", KEYS) and folder.standing("recover", KEYS)
        path = tmp_path / "ranking.parquet"
        path.write_bytes(b"Content")  # of the same size
        os.utime(path, ns=(0, 0))
        with pytest.warns(UserWarning, match=r"ranking\.parquet: expected"):
            assert folder.standing("rank", KEYS) is None
        with pytest.warns(UserWarning, match=r"ranking\.parquet: expected"):
            assert folder.standing("rank", KEYS) is None  # a bad one stays bad
        folder.reset("rank")
        assert folder.standing("rank", KEYS) is None and not path.exists()
        put(folder, "ranking.parquet", b"renewed")
        os.utime(path, ns=(0, 0))  # the size and the time of what was hashed before
        folder.commit("rank", KEYS, [path], 0, 0)
        read.clear()
        assert folder.standing("rank", KEYS) and folder.standing("recover", KEYS)
        assert [name for name in read if not name.endswith(".json")] == [path.as_posix()]
        folder.finish({"seed": 9})
        manifest = folder.manifest()
        assert manifest is not None and manifest["seed"] == 9 and manifest["complete"] is True


class Killed(BaseException):
    """Stands for SIGKILL: from here on no call reaches the disk."""


def survives(call: Callable[[], None], at: int) -> bool:
    """Run `call` with its `at`-th and all later writing os calls cut off; whether it came to its end before."""
    counter = itertools.count(1)

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(counter) >= at:
                raise Killed
            return real(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "fsync", "replace", "close", "unlink", "rmdir"):
            patch.setattr(os, name, cut(getattr(os, name)))
        try:
            call()
        except Killed:
            return False
    return True


def test_a_kill_at_any_call_of_finish_can_be_gone_on_from(tmp_path: Path) -> None:
    for at in range(1, 100):
        folder = RunFolder(tmp_path / str(at))
        folder.commit("rank", KEYS, [put(folder, "a.bin")], 0, 0)
        folder.commit("recover", KEYS, [put(folder, "b.bin")], 0, 0)
        survived = survives(lambda: folder.finish({"seed": 0}), at)  # noqa: B023
        with warnings.catch_warnings(), folder.hold():
            warnings.simplefilter("error")
            assert folder.standing("rank", KEYS) is not None and folder.standing("recover", KEYS) is not None
            problems = verify(folder.path)
            assert problems == [] if (folder.path / "manifest.json").exists() else "not finished" in problems[0]
            folder.finish({"seed": 0})
        assert verify(folder.path) == [] and set(files_of(folder.path)) == {"a.bin", "b.bin", "manifest.json"}
        if survived:
            assert at > 10
            return
    raise AssertionError("never passed")


def test_a_kill_at_any_call_of_reset_leaves_no_record_of_what_is_gone(tmp_path: Path) -> None:
    for at in range(1, 100):
        folder = finished(tmp_path / str(at))
        survived = survives(lambda: folder.reset("recover"), at)  # noqa: B023
        with warnings.catch_warnings(), folder.hold():
            warnings.simplefilter("error")
            stands = folder.standing("recover", KEYS) is not None
            gone = not all((folder.path / f"synthetic/0000_a/{index:05d}.png").exists() for index in range(3))
            assert not (stands and gone) and not (survived and stands) and folder.standing("rank", KEYS) is not None
        if survived:
            assert gone and at > 5
            return
    raise AssertionError("never passed")


@pytest.mark.parametrize("call", ["open", "write"])
@pytest.mark.parametrize(
    ("number", "says"), [(28, "disk full: .* needs [0-9]+ bytes"), (30, "as a run folder: Read-only file system; choose")]
)
def test_a_lock_that_cannot_be_written_is_explained(
    number: int, says: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = getattr(os, call), next_handle()

    def failing(place: Any, *more: Any) -> Any:
        if call == "write" or place == tmp_path / ".work" / "lock":
            raise OSError(number, os.strerror(number))
        return real(place, *more)

    with monkeypatch.context() as patch, pytest.raises(DeltError, match=says):
        patch.setattr(os, call, failing)
        RunFolder(tmp_path)._lock()
    assert next_handle() == before


def test_who_comes_waits_for_the_workers_of_a_killed_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock = tmp_path / ".work" / "lock"
    lock.parent.mkdir()
    lock.write_text(f"pid {gone.pid} on {socket.gethostname()}")
    with open(lock) as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", lambda seconds: worker.close())  # it ends meanwhile
        with RunFolder(tmp_path).hold():
            assert worker.closed


def test_a_holder_is_gone_only_where_this_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = socket.gethostname()
    assert _is_gone(f"pid {process.pid} on {here}")
    assert not _is_gone(f"pid {os.getpid()} on {here}") and not _is_gone(f"pid {process.pid} on {here}-2") and not _is_gone("")

    def forbidden(number: int, how: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    assert not _is_gone(f"pid {process.pid} on {here}")


def test_a_file_that_vanishes_while_it_is_looked_at_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.hold(), pytest.raises(IntegrityError, match="cannot read .*gone.*: No such file"):
        folder._once(tmp_path / "gone", storage.sha256_file)


def test_who_shares_a_folder_leaves_at_the_end_what_others_are_writing(tmp_path: Path) -> None:
    other = storage.temporary_of(tmp_path / ".work" / "recover" / "g.a.ckpt")
    for shared in (True, False):
        with RunFolder(tmp_path).hold(shared):
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(b"")
        assert other.exists() == shared
