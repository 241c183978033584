"""Storage: every write is all or nothing at every I/O call, and every damaged byte is noticed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from delt import storage
from delt.errors import IntegrityError

CALLS = ("open", "write", "fsync", "replace", "close", "unlink")


class Killed(BaseException):
    """Stands for SIGKILL: from here on no call of the writer reaches the disk."""


class Faulty:
    """The os calls of a writer, counted; from the `at`-th on they fail once (an errno) or for ever (killed)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: int | None) -> None:
        self.count, self.at, self.error = 0, at, error
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            due = self.count == self.at if self.error else self.count >= self.at
            if due and name == "write" and self.count == self.at:
                real(args[0], bytes(args[1])[: len(args[1]) // 2])  # a part of it reached the disk
            if due and self.error:
                if name == "close":
                    real(*args)
                raise OSError(self.error, os.strerror(self.error))
            if due:
                raise Killed
            return real(*args, **kwargs)

        return call


def faults(write: Callable[[], None], check: Callable[[bool], None], error: int | None) -> int:
    """Run `write` with the first, second, .. call failing until it passes; `check(failed)` after each."""
    for at in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            faulty = Faulty(patch, at, error)
            try:
                write()
                failed = False
            except (Killed, storage.StorageError):
                failed = True
        check(failed)
        if faulty.count < at:
            return at - 1
    raise AssertionError("never passed")


def litter(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES, None])
def test_write_bytes_is_old_or_new_at_every_call(tmp_path: Path, error: int | None) -> None:
    path, old, new = tmp_path / "file", b"old" * 100, b"new content" * 100
    path.write_bytes(old)
    seen = set()

    def check(failed: bool) -> None:
        content = path.read_bytes()
        assert content in (old, new)
        seen.add(content)
        assert failed or content == new
        assert error is None or not litter(tmp_path)
        storage.sweep(tmp_path)
        assert not litter(tmp_path)
        path.write_bytes(old)

    calls = faults(lambda: storage.write_bytes(path, new), check, error)
    assert calls >= 8  # open, write, fsync, close, replace; open, fsync, close of the folder; unlink
    assert seen == {old, new}


@pytest.mark.parametrize("error", [errno.ENOSPC, None])
def test_a_first_folder_is_whole_or_not_there(tmp_path: Path, error: int | None) -> None:
    def check(failed: bool) -> None:
        assert failed or (tmp_path / "set" / "a" / "0").read_bytes() == b"1"
        assert not (tmp_path / "set").exists() or (tmp_path / "set" / "a" / "0").read_bytes() == b"1"
        storage.sweep(tmp_path)
        assert not litter(tmp_path)
        shutil.rmtree(tmp_path / "set", ignore_errors=True)

    assert faults(lambda: storage.write_folder(tmp_path / "set", [("a/0", b"1")]), check, error) > 8


@pytest.mark.parametrize("error", [errno.ENOSPC, None])
def test_write_folder_never_mixes(tmp_path: Path, error: int | None) -> None:
    path = tmp_path / "set"
    old, new = {"a/0": b"1", "b/0": b"2"}, {"a/0": b"3", "c/0": b"4"}

    def content() -> dict[str, bytes]:
        return {item.relative_to(path).as_posix(): item.read_bytes() for item in path.rglob("*") if item.is_file()}

    def check(failed: bool) -> None:
        found = content()
        # a kill (not an error) between the two renames leaves none
        assert found in (old, new) or (found == {} and not path.exists() and error is None)
        assert failed or found == new
        # where all went well but the removal of the old folder, sweep takes it
        assert error is None or not failed or not litter(tmp_path)
        storage.sweep(tmp_path)
        assert not litter(tmp_path)
        shutil.rmtree(path, ignore_errors=True)
        storage.write_folder(path, old.items())

    storage.write_folder(path, old.items())
    assert faults(lambda: storage.write_folder(path, new.items()), check, error) > 15
    assert content() == old


@pytest.mark.parametrize("error", [errno.EACCES, None])
def test_a_folder_is_removed_whole_or_not_at_all(tmp_path: Path, error: int | None) -> None:
    """Half of one would be checkpoints without the settings that they belong to."""
    path, content = tmp_path / "work", {"keys.json": b"1", "a.ckpt": b"2"}

    def check(failed: bool) -> None:
        assert failed or not path.exists()
        assert not path.exists() or {item.name: item.read_bytes() for item in path.iterdir()} == content
        assert error is None or not failed or not litter(tmp_path)
        storage.sweep(tmp_path)
        assert not litter(tmp_path)
        storage.write_folder(path, content.items())

    storage.write_folder(path, content.items())
    assert faults(lambda: storage.remove_folder(path), check, error) > 4
    storage.remove_folder(tmp_path / "none")


def test_the_last_checkpoint_stands_alone(tmp_path: Path) -> None:
    slots = storage.Slots(tmp_path / "unit")
    for number in range(3):
        slots.save({"x": torch.tensor(number)}, {}, last=number == 2)
    found = storage.Slots(tmp_path / "unit").load()
    assert found and found[0]["x"] == 2 and len(list(tmp_path.iterdir())) == 1


def test_an_old_folder_that_cannot_come_back_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "set", [("a", b"old")])
    replace, moves = os.replace, []

    def only_once(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) > 1:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_once)
    with pytest.raises(storage.StorageError, match="Input/output error"):
        storage.write_folder(tmp_path / "set", [("a", b"new")])
    assert [(item / "a").read_bytes() for item in tmp_path.iterdir()] == [b"old"]


def log_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """A list that grows by "file" or the inode of a folder at each fsync, and by "rename" at each rename."""
    events: list[str | int] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        events.append(status.st_ino if stat.S_ISDIR(status.st_mode) else "file")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return events


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = log_syncs(monkeypatch)
    storage.write_bytes(tmp_path / "one" / "two" / "file", b"x")
    root, one, two = (path.stat().st_ino for path in (tmp_path, tmp_path / "one", tmp_path / "one" / "two"))
    assert set(events[:2]) == {root, one}  # the names of the new folders
    assert events[2:] == ["file", "rename", two]


def test_a_whole_folder_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = log_syncs(monkeypatch)
    storage.write_folder(tmp_path / "set", [("a/0", b"1"), ("b/0", b"2")])
    before = events[: events.index("rename")]
    assert before.count("file") == 2 and events[len(before) :] == ["rename", tmp_path.stat().st_ino]
    assert {path.stat().st_ino for path in (tmp_path / "set", tmp_path / "set" / "a", tmp_path / "set" / "b")} <= set(before)


def test_a_folder_is_written_where_python_ends_and_starts_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(storage.ThreadPoolExecutor, "submit", refused)
    storage.write_folder(tmp_path / "set", ((f"{number % 3}/{number}", b"%d" % number) for number in range(100)))
    assert {int(file.name) for file in (tmp_path / "set").glob("*/*") if file.read_bytes() == file.name.encode()} == set(range(100))


def test_files_of_a_folder_are_made_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is, few of them wait in memory."""
    written, ahead, real = list[Path](), list[int](), storage._write_synced

    def slow(path: Path, data: bytes) -> None:
        time.sleep(0.002)
        real(path, data)
        written.append(path)

    def files() -> Iterator[tuple[str, bytes]]:
        for number in range(200):
            ahead.append(number - len(written))
            yield str(number), b"x"

    monkeypatch.setattr(storage, "_write_synced", slow)
    storage.write_folder(tmp_path / "set", files())
    assert len(written) == 200 and max(ahead) <= 4 * storage.BESIDE


def test_a_removal_is_synced_before_anything_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "set", [("a", b"1")])
    events, remove = log_syncs(monkeypatch), shutil.rmtree

    def removed(*given: Any, **more: Any) -> None:
        events.append("gone")
        remove(*given, **more)

    monkeypatch.setattr(shutil, "rmtree", removed)
    storage.remove_folder(tmp_path / "set")
    assert events == ["rename", tmp_path.stat().st_ino, "gone"]


def test_interrupt_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_message_names_path_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 3, 7))
    with pytest.raises(storage.StorageError, match=r"disk full: .*/file needs 12345 bytes and 7 bytes are free"):
        storage.write_bytes(tmp_path / "file", b"x" * 12345)
    with pytest.raises(storage.StorageError, match=r"disk full: .*/set/a/0 needs 3 bytes"):
        storage.write_folder(tmp_path / "set", [("a/0", b"xyz")])
    assert list(tmp_path.iterdir()) == []


def test_a_message_comes_even_where_free_space_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(shutil, "disk_usage", fail)
    with pytest.raises(storage.StorageError, match="needs 1 bytes and an unknown number of bytes are free"):
        storage.write_bytes(tmp_path / "file", b"x")


def test_platforms_that_cannot_sync_folders_still_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECTORY")
    storage.write_bytes(tmp_path / "a" / "file", b"x")
    assert (tmp_path / "a" / "file").read_bytes() == b"x"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:7])))
    storage.write_bytes(tmp_path / "file", bytes(range(256)))
    assert (tmp_path / "file").read_bytes() == bytes(range(256))


def test_a_folder_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(storage.StorageError, match=r"cannot write .*/file/inner"):
        storage.write_bytes(tmp_path / "file" / "inner", b"x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(storage.StorageError, match=r"cannot write .*/taken: Is a directory"):
        storage.write_bytes(tmp_path / "taken", b"x")
    with pytest.raises(storage.StorageError, match=r"cannot remove .*/taken"):
        storage.remove(tmp_path / "taken")
    assert not litter(tmp_path)


def test_sweep_takes_only_its_own_names(tmp_path: Path) -> None:
    keep = [tmp_path / ".notes.tmp", tmp_path / "sub" / "x.0123456789ab.tmp", tmp_path / "sub" / ".x.0123456789ab.tmp.txt"]
    gone = [storage.temporary_of(tmp_path / "a"), storage.temporary_of(tmp_path / "sub" / "b")]
    for path in keep + gone:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folder = storage.temporary_of(tmp_path / "c")
    folder.mkdir()
    storage.temporary_of(folder / "d").write_bytes(b"")
    assert storage.sweep(tmp_path, deep=False) == sorted([gone[0], folder])
    assert set(storage.sweep(tmp_path)) == {gone[1]}
    assert all(path.exists() for path in keep) and not any(path.exists() for path in [*gone, folder])


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    storage.write_json(path, {"b": [1, 2.5, None], "a": "é<script>"})
    assert path.read_text() == '{\n  "a": "é<script>",\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    assert storage.read_json(path) == {"b": [1, 2.5, None], "a": "é<script>"}
    for bad in (float("nan"), float("inf"), {1, 2}):
        with pytest.raises(storage.StorageError, match=r"x\.json cannot be written as JSON"):
            storage.write_json(path, {"a": bad})
    assert storage.read_json(path)["a"] == "é<script>"
    for data in (b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a": NaN}', b'{"a": Infinity}', b"1" * 10_000):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"x\.json"):
            storage.read_json(path)
    with pytest.raises(IntegrityError, match=r"cannot read .*none\.json"):
        storage.read_json(tmp_path / "none.json")


def test_every_damaged_byte_of_sealed_json_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    storage.write_sealed(path, {"keys": {"ipc": 5, "lr": 0.25}, "name": "delt"})
    assert storage.read_sealed(path) == {"keys": {"ipc": 5, "lr": 0.25}, "name": "delt"}
    data = path.read_bytes()
    flips = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for damaged in flips + [data[:size] for size in range(len(data))]:
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"record\.json"):
            storage.read_sealed(path)


def test_hashes_agree_with_a_known_value(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.sha256_bytes(b"abc") == storage.sha256_file(tmp_path / "file") == known
    with pytest.raises(IntegrityError, match="none"):
        storage.sha256_file(tmp_path / "none")


def some_tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    return {
        "turned": base.permute(2, 0, 1),
        "spread": torch.tensor([1.5]).expand(3),
        "shared": base[0],
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "odd": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "flags": torch.tensor([True, False, True]),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize("meta", [None, {}, {"z": "1", "a": 'é\n"quoted"', "m": "{}"}])
def test_tensors_round_trip_exactly(tmp_path: Path, meta: dict[str, str] | None) -> None:
    tensors = some_tensors()
    storage.write_tensors(tmp_path / "t.safetensors", tensors, meta)
    found, found_meta = storage.read_tensors(tmp_path / "t.safetensors")
    assert found_meta == (meta or {}) and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        one, other = (item.detach().contiguous().view(-1).view(torch.uint8).tolist() for item in (found[name], tensor))
        assert one == other, name  # bit for bit, NaN and -0 too
    found["bytes"].zero_()  # what was read may be written to


def test_a_file_that_carries_its_seal_tells_every_flip_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    storage.write_tensors(path, {"a": torch.arange(40)}, {"note": "x"})
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in (1, 128):
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            with pytest.raises(IntegrityError, match=r"t\.safetensors is damaged: .*found [0-9a-f]{64}"):
                storage.read_tensors(path)
        path.write_bytes(data[:place])
        with pytest.raises(IntegrityError, match=r"t\.safetensors is damaged"):
            storage.read_tensors(path)
    assert safetensors.torch.load(data)["a"].tolist() == list(range(40))  # other programs read it as before


@pytest.mark.parametrize("data", [b"", b"delt_sha256:" + b"1" * 64, 2 * (b"delt_sha256:" + b"0" * 64)])
def test_there_is_one_place_for_a_seal(data: bytes) -> None:
    with pytest.raises(storage.StorageError, match="places for a seal; needed is one"):
        storage.sealed(data)


def test_lines_are_added_whole_after_one_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines"
    storage.append_line(path, "one")
    storage.append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    path.write_bytes(b"one\ntw")  # killed here
    storage.append_line(path, "three")
    assert path.read_text() == "one\ntw\nthree\n"
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.append_line(tmp_path, "x")


def test_equal_tensors_give_equal_bytes() -> None:
    meta = {name: name for name in "qwertyuiop"}
    backwards = dict(reversed(meta.items()))
    tensors = some_tensors()
    one = storage.tensors_to_bytes(tensors, meta)
    assert all(storage.tensors_to_bytes(dict(reversed(tensors.items())), backwards) == one for _ in range(5))
    assert (8 + int.from_bytes(one[:8], "little")) % 8 == 0  # tensors stay aligned


def test_damaged_tensor_files_raise_only_our_error(tmp_path: Path) -> None:
    data = storage.tensors_to_bytes({"a": torch.arange(8), "b": torch.ones(2, 3)}, {"note": "x"})
    path = tmp_path / "t.safetensors"
    bad = [data[:size] for size in range(0, len(data), 3)] + [data + b"x", b"\xff" * 64, (2**62).to_bytes(8, "little") + data[8:]]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"t\.safetensors"):
            storage.read_tensors(path)
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start * 8):  # any flip of the header is an error of ours or still a file
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with contextlib.suppress(IntegrityError):
            storage.bytes_to_tensors(bytes(damaged))


def test_slots_take_turns_and_give_the_newest(tmp_path: Path) -> None:
    slots = storage.Slots(tmp_path / "work" / "group-0.5")
    assert slots.load() is None
    for step in range(5):
        slots.save({"x": torch.full((3,), step)}, {"step": step, "names": ["a", "b"]})
        for reader in (slots, storage.Slots(tmp_path / "work" / "group-0.5")):
            loaded = reader.load()
            assert loaded is not None
            assert loaded[0]["x"].tolist() == [step] * 3 and loaded[1] == {"step": step, "names": ["a", "b"]}
    assert sorted(item.name for item in (tmp_path / "work").iterdir()) == ["group-0.5.a.ckpt", "group-0.5.b.ckpt"]
    slots.clear()
    assert slots.load() is None and list((tmp_path / "work").iterdir()) == []
    slots.clear()


def step_of(path: Path) -> int | None:
    loaded = storage.Slots(path).load()
    return None if loaded is None else int(loaded[1]["step"])


def test_a_new_writer_goes_on_over_the_older_slot(tmp_path: Path) -> None:
    for step in range(4):
        storage.Slots(tmp_path / "s").save({}, {"step": step})
        assert step_of(tmp_path / "s") == step
    newest, older = (tmp_path / "s.b.ckpt"), (tmp_path / "s.a.ckpt")
    assert storage._read_slot(newest)[2]["step"] == 3 and storage._read_slot(older)[2]["step"] == 2


def test_every_flip_and_truncation_of_a_slot_is_noticed(tmp_path: Path) -> None:
    slots = storage.Slots(tmp_path / "s")
    for step in (1, 2):
        slots.save({"x": torch.arange(16, dtype=torch.float32)}, {"step": step})
    newest = tmp_path / "s.b.ckpt"
    data = newest.read_bytes()
    flips = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for damaged in flips + [data[:size] for size in range(0, len(data), 7)]:
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"s\.b\.ckpt is damaged: expected sha256 \w*, found \w+"):
            assert step_of(tmp_path / "s") == 1


def test_the_damaged_slot_is_written_over_and_both_bad_means_none(tmp_path: Path) -> None:
    for step in (1, 2):
        storage.Slots(tmp_path / "s").save({}, {"step": step})
    (tmp_path / "s.b.ckpt").write_bytes(b"junk")
    with pytest.warns(UserWarning, match=r"s\.b\.ckpt"):
        storage.Slots(tmp_path / "s").save({}, {"step": 3})
    assert step_of(tmp_path / "s") == 3 and storage._read_slot(tmp_path / "s.a.ckpt")[2]["step"] == 1
    for letter in "ab":
        (tmp_path / f"s.{letter}.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert step_of(tmp_path / "s") is None
    assert {"s.a.ckpt" in str(item.message) for item in caught} == {True, False}


def test_a_file_of_another_kind_with_a_right_hash_is_passed_over(tmp_path: Path) -> None:
    for meta in ({}, {"slot": "[]"}, {"slot": "{"}, {"slot": '{"counter": "x", "meta": {}}'}, {"slot": '{"counter": 1, "meta": 3}'}):
        body = storage.tensors_to_bytes({"x": torch.ones(1)}, meta)
        (tmp_path / "s.a.ckpt").write_bytes(bytes.fromhex(storage.sha256_bytes(body)) + body)
        with pytest.warns(UserWarning, match=r"s\.a\.ckpt"):
            assert storage.Slots(tmp_path / "s").load() is None


@pytest.mark.parametrize("error", [errno.ENOSPC, None])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_checkpoint_stands_whatever_call_fails(tmp_path: Path, error: int | None, before: int) -> None:
    path = tmp_path / "s"

    def start() -> None:
        storage.Slots(path).clear()
        for step in range(before):
            storage.Slots(path).save({}, {"step": step})

    def check(failed: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a fault alone damages nothing
            found = step_of(path)
        assert found in ((before - 1 if before else None), before)
        assert failed or found == before
        storage.sweep(tmp_path)
        start()

    start()
    faults(lambda: storage.Slots(path).save({}, {"step": before}), check, error)


def test_slots_refuse_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="JSON"):
        storage.Slots(tmp_path / "s").save({}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- room


def test_work_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or shutil._ntuple_diskusage(10, 3, 7))
    storage.require_room(tmp_path / "run", 7)
    with pytest.raises(storage.StorageError, match=r"disk full: .*/run needs 8 bytes and 7 bytes are free"):
        storage.require_room(tmp_path / "run", 8)
    assert set(asked) == {tmp_path / "run"}  # which may be a disk of its own


def test_where_free_space_cannot_be_told_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(folder: Path) -> None:
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    storage.require_room(tmp_path, 10**18)


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    assert storage.size_of(tmp_path / "none") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"12")
    (tmp_path / "z").symlink_to(tmp_path / "gone")
    assert storage.size_of(tmp_path) == 7


def test_whether_a_file_holds_a_text(tmp_path):
    (tmp_path / "a").write_bytes(b"one two")
    assert storage.holds(tmp_path / "a", b"two") and not storage.holds(tmp_path / "a", b"three")
    assert (
        not storage.holds(tmp_path, b"two") and not storage.holds(tmp_path / "gone", b"") and not storage.holds(tmp_path / ("a" * 300), b"")
    )
