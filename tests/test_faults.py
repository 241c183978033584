"""A whole run against its disk: killed at every I/O call, with unsynced data lost, and with every kind of error.

The method is SQLite's: fail the first call, then the second, and so on until a run passes. Each time the same command has
to end with the bytes of a run that nothing disturbed. Here a share of the calls is tried, another one for every fault;
DELT_FAULTS=1 tries them all (`make soak`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import delt
from delt.errors import DeltError

STRIDE = int(os.environ.get("DELT_FAULTS", "29"))
CALLS = ("open", "write", "fsync", "replace", "unlink", "rmdir", "mkdir", "ftruncate")
WRITES = ("open", "write", "fsync", "replace", "mkdir", "ftruncate")
ERRORS = {"full": errno.ENOSPC, "failing": errno.EIO, "forbidden": errno.EACCES}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Killed(BaseException):
    """Stands for SIGKILL or power loss: from here on no call reaches the disk."""


class Disk:
    """The calls below a folder, counted. At the `at`-th one fails: the process is killed, the power goes, or it is an error.

    Power that goes takes what was not synced: the content of files, and renames whose folder was not.
    """

    def __init__(self, root: Path, at: int, fault: str) -> None:
        self.root, self.at, self.fault, self.count, self.dead, self.failed = os.fspath(root), at, fault, 0, False, ""
        self.real = {name: getattr(os, name) for name in (*CALLS, "close")}
        self.open: dict[int, str] = {}
        self.dirty: set[str] = set()  # files whose content was not synced
        self.moves: list[tuple[str, str, bytes | None]] = []  # renames that were not synced: from, to, what stood there

    def __enter__(self) -> Disk:
        self.patch = pytest.MonkeyPatch()
        for name in CALLS:
            self.patch.setattr(os, name, self._wrapped(name))
        self.patch.setattr(os, "close", self._close)
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()
        for handle in self.open:  # a process that dies closes its files
            os.close(handle)
        if self.dead and self.fault == "power":
            self._lose()

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(first: Any, *rest: Any, **more: Any) -> Any:
            path = self.open.get(first) if isinstance(first, int) else os.path.abspath(os.fspath(first))
            if path is None or not path.startswith(self.root) or more.get("dir_fd") is not None:
                return real(first, *rest, **more)
            self.count += 1
            if self.dead or self.count == self.at:
                self._fail(name, path, first, *rest)
            stood = self._stood(rest[0]) if name == "replace" else None
            done = real(first, *rest, **more)
            self._note(name, path, done, stood, *rest)
            return done

        return call

    def _fail(self, name: str, path: str, first: Any, *rest: Any) -> None:
        if name == "write" and not self.dead:
            self.real["write"](first, bytes(rest[0])[: len(rest[0]) // 2])  # a part of it reached the disk
        if self.fault not in ERRORS:
            self.dead = True
            raise Killed
        self.failed = f"{name} {path}"
        raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))

    def _stood(self, target: Any) -> bytes | None:
        """The content of a file that is about to be replaced."""
        return Path(target).read_bytes() if self.fault == "power" and os.path.isfile(target) else None

    def _note(self, name: str, path: str, done: Any, stood: bytes | None, *rest: Any) -> None:
        """Remember what a loss of power would take."""
        if name == "open":
            self.open[done] = path
        elif name in ("write", "ftruncate"):
            self.dirty.add(path)
        elif name == "fsync":
            self.dirty.discard(path)
            self.moves = [move for move in self.moves if os.path.dirname(move[1]) != path]
        elif name == "replace":
            target = os.path.abspath(os.fspath(rest[0]))
            self.dirty = {target + item[len(path) :] if item == path or item.startswith(path + "/") else item for item in self.dirty}
            self.moves.append((path, target, stood))

    def _close(self, handle: int) -> None:
        self.open.pop(handle, None)
        self.real["close"](handle)

    def _lose(self) -> None:
        for path in self.dirty:
            if os.path.isfile(path):
                os.truncate(path, 0)
        for source, target, stood in reversed(self.moves):
            if os.path.exists(target) and not os.path.exists(source) and os.path.isdir(os.path.dirname(source)):
                os.replace(target, source)
                if stood is not None:
                    Path(target).write_bytes(stood)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes of own images, so small that a run takes a moment."""
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draws.integers(0, 256, (8, 8), np.uint8)).save(root / part / name / f"{number}.png")
    return root


def run(images: Path, out: Path) -> None:
    given: dict[str, Any] = {"teacher_width": 2, "teacher_epochs": 1, "teacher_batch": 6, "ipc": 2, "sub_batches": 2, "iterations": 3}
    given |= {"relabel_mode": "stored", "relabel_epochs": 1, "evaluate_epochs": 1, "evaluate_seeds": 1, "evaluate_controls": []}
    given |= {"evaluate_labels": ["soft"], "recover_record_count": 2, "workers": 1, "checkpoint_seconds": 0, "group_size": 2}
    given["recover_group_size"] = given.pop("group_size")
    delt.run(delt.configure(f"folder:{images}", preset="smoke", **given), out, listener=lambda event: None)


def content(out: Path) -> str:
    """Every artefact that has no times in it."""
    names = ["scores.json", "synthetic.parquet", "ranking.parquet", "snapshots.safetensors", "soft_labels.safetensors", "diversity.json"]
    files = [out / name for name in names] + sorted((out / "synthetic").rglob("*.png")) + [out / "teachers" / "teacher.safetensors"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(images, out)
    return content(out)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", ["kill", "power", *ERRORS])
def test_whatever_the_disk_does_the_same_command_ends_with_the_same_bytes(
    fault, images, undisturbed, tmp_path, monkeypatch, record_property
):
    start = 1 + (["kill", "power", *ERRORS].index(fault) * 5) % STRIDE
    for at in range(start, 100_000, STRIDE):
        out = tmp_path / f"{at}"
        monkeypatch.setenv("DELT_CACHE", str(tmp_path / f"cache-{at}"))
        message = ""
        with Disk(out, at, fault) as disk:
            try:
                run(images, out)
            except (Killed, DeltError) as error:
                message = str(error)
        if disk.count < at:
            assert at > 100  # it was a whole run that passed
            record_property("calls", disk.count)
            return
        if fault in ERRORS:
            assert not list(tmp_path.rglob("*.tmp")), disk.failed
            assert not message or str(out) in message, (disk.failed, message)
            if fault == "full" and message:
                assert "disk full" in message and "bytes are free" in message, (disk.failed, message)
        run(images, out)
        assert content(out) == undisturbed and delt.verify(out) == [], (fault, at, disk.failed)
        assert not list(out.rglob("*.tmp")) and not (out / ".work").exists()
        shutil.rmtree(out)
