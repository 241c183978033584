"""The run folder on disk: which stages are finished, with what settings, and whether every byte still stands.

A stage is finished when its record is written, and the record is written after its files, so a run that is killed
anywhere goes on at the stage it was in. Records wait in `.work/stages/` and move into `manifest.json`, written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from delt import storage
from delt.errors import DeltError, IntegrityError, RunError
from delt.typed import typed

FORMAT = 1
LOOSE = ("config.json", "metrics.jsonl", "skipped.json")  # files of the run as a whole, hashed when it finishes
NOT_STAGES = ("stages", "lock")  # names in .work that are taken
SEALED = ("config.json", "manifest.json")  # that a folder is a run is told by our seal in one of them, or by .work
TABLES = ("ranking.parquet", "synthetic.parquet", "snapshots.safetensors", "soft_labels.safetensors", "scores.json", "diversity.json")
MADE = ("manifest.json", *LOOSE, *TABLES, "teachers", "synthetic", "controls")  # what a run writes, and replaces
T = TypeVar("T")
LOCK_BYTES = 8192  # a folder and a file in it
WORKERS_END = 10.0  # seconds that workers of a killed process may take to end
GO_ON = "give the command that started the run again: it goes on where it was"


class Busy(RunError):
    """Another process holds the run folder."""

    exit_code = 3


class RunFolder:
    """One run on disk.

    >>> with RunFolder(path).hold() as folder:
    ...     if folder.standing("rank", keys) is None:
    ...         folder.reset("rank")
    ...         ranking.save(folder.path)
    ...         folder.commit("rank", keys, [Path("ranking.parquet")], seconds, peak_memory)
    ...     folder.finish({"seed": 0})
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        self._holder = self  # a control is held with the run around it
        self.lock: int | None = None  # the open file that is the lock, while the folder is held
        self._seen: dict[Path, tuple[tuple[int, int], Any]] | None = None  # of the holder, while it holds: see _once

    def control(self, name: str) -> RunFolder:
        """The folder of a control run inside this one; who holds this one holds it too."""
        folder = RunFolder(self.path / "controls" / name)
        folder._holder = self._holder
        return folder

    # ------------------------------------------------------------------------------------------ whose it is

    def require_own(self) -> None:
        """Refuse a folder in which somebody else's files have the names of those that a run writes, and replaces.

        Raises:
            RunError: naming them.
        """
        strange = [] if self._is_run() else self._made()
        if strange:
            raise RunError(f"{self.path} is no run, and holds {', '.join(strange)}: choose another --out")

    def require_no_run(self, what: str) -> None:
        """Refuse a run's folder for something that has runs inside.

        Raises:
            RunError: it holds a run.
        """
        if self._is_run() and self._made():
            raise RunError(f"{self.path} holds a run, and {what} has run folders inside: choose another --out")

    def _is_run(self) -> bool:
        return os.path.exists(self.path / ".work") or any(storage.holds(self.path / name, b'"seal"') for name in SEALED)

    def _made(self) -> list[str]:
        """Names that a run's files have and that are taken; of a place that cannot be looked into, none: who writes there says so."""
        return [name for name in MADE if os.path.exists(self.path / name)]

    # ------------------------------------------------------------------------------------------ one writer

    @contextlib.contextmanager
    def hold(self, shared: bool = False) -> Iterator[RunFolder]:
        """Keep other processes out while the block runs; also clears away what a killed writer left, in controls too.

        The lock is the operating system's (flock), so it dies with its holder, and with worker processes that hold `lock`
        open, too. A file that was hashed in the block is not hashed in it again as long as its size and time stay.

        Args:
            shared: processes that the holder leads write units into `.work`, too, and may do so to the end of the block.

        Raises:
            Busy: another process holds the folder (exit code 3).
            RunError: the folder cannot be made or written.
        """
        new = [folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)]
        handle = self.lock = self._lock()
        self._seen = {}
        try:
            self._sweep()
            yield self
        finally:
            self._seen = self.lock = None
            with contextlib.suppress(OSError):
                if not shared:
                    self._sweep()  # what an error kept from being removed
            self._unlock(handle)
            with contextlib.suppress(OSError):  # it is of use
                for folder in new:
                    os.rmdir(folder)

    def _sweep(self) -> None:
        for folder in (self, *self._own_controls()):
            storage.sweep(folder.path, deep=False)
            for inner in (folder.path / ".work", folder.path / "teachers"):
                if not inner.is_symlink():
                    storage.sweep(inner)

    def _own_controls(self) -> list[RunFolder]:
        """Folders of the controls, without those that a link leads to."""
        found = [self.control(name) for name in self.controls()]
        return [control for control in found if not any(path.is_symlink() for path in (control.path.parent, control.path))]

    def _lock(self) -> int:
        """Open and lock `.work/lock`; returns the open file, which is the lock."""
        lock = self.path / ".work" / "lock"
        if lock.parent.is_symlink():  # it is emptied in the end
            raise RunError(f"cannot use {self.path} as a run folder: its .work is a link; choose another --out")
        try:
            storage.make_folder(self.path)
        except OSError as error:
            raise self._unusable(error, "it cannot be made: ") from error
        for _ in range(100):
            handle = self._open(lock)
            if handle is None:
                continue
            try:
                self._claim(handle)
                if _same_file(handle, lock):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"pid {os.getpid()} on {socket.gethostname()}".encode())
                    return handle
            except OSError as error:
                os.close(handle)
                raise self._unusable(error) from error
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # the last holder removed this very file: it guards nothing any more
        raise Busy(f"{self.path} is being used by many processes at once; choose another --out")

    def _open(self, lock: Path) -> int | None:
        """Open the lock file, or None where the last holder tidied up in the same moment."""
        try:
            storage.make_folder(lock.parent)
            return os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError, why: str = "") -> DeltError:
        """What is said where the folder or its lock cannot be written."""
        if error.errno in storage.FULL:
            return storage.disk_full(self.path, LOCK_BYTES)
        return RunError(f"cannot use {self.path} as a run folder: {why}{error.strerror or error}; choose another --out")

    def _claim(self, handle: int) -> None:
        """Lock an open file, or say who holds it."""
        try:
            import fcntl
        except ImportError:
            warnings.warn(f"this platform has no file locks: take care that no other process uses {self.path}", stacklevel=5)
            return
        patience = time.monotonic() + WORKERS_END
        try:
            while not _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                holder = os.pread(handle, 200, 0).decode(errors="replace")
                if not _is_gone(holder) or time.monotonic() > patience:
                    raise Busy(f"{self.path} is in use by {holder or 'another process'}: wait for it, or choose another --out")
                time.sleep(0.02)  # it was killed, and its workers, which hold the lock with it, are ending
        except OSError as error:
            warnings.warn(f"no lock on {self.path} ({error.strerror}): take care that no other process uses it", stacklevel=5)

    def _unlock(self, handle: int) -> None:
        """Let go; where no working state is left, `.work` goes too, the lock last."""
        work = self.path / ".work"
        with contextlib.suppress(OSError):
            for control in self._own_controls():
                with contextlib.suppress(OSError):  # it is not empty, or not there
                    os.rmdir(control.path / ".work")
            if os.listdir(work) == ["lock"]:
                os.unlink(work / "lock")
                os.rmdir(work)
        os.close(handle)

    # ------------------------------------------------------------------------------------------ stages

    def standing(self, stage: str, keys: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a finished stage {keys, seconds, peak_memory, extra, files}, if all of it still stands.

        None means that the stage is to be done: it never was, or a file of it is missing or damaged (a warning says
        which). `keys` are the settings that the result depends on.

        Raises:
            RunError: it was done with other settings; each is named.
            IntegrityError: the manifest is damaged, or a record names a path outside the folder.
        """
        record = self.records().get(_stage_name(stage))
        if record is None:
            return None
        self._compare(stage, record["keys"], keys)
        problems = [line for name, entry in record["files"].items() for line in self.check(name, entry)]
        for line in problems:
            warnings.warn(f"{self.path}: stage {stage} is done again, since {line}", stacklevel=2)
        return None if problems else record

    def commit(
        self,
        stage: str,
        keys: Mapping[str, Any],
        files: Sequence[Path],
        seconds: float,
        peak_memory: int,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a stage as finished. `files` (absolute, or relative to the folder) must be written by now.

        Raises:
            IntegrityError: a file is missing or lies outside the folder.
            RunError: a file belongs to another stage, whose record would no longer be true.
        """
        names = sorted({self._name(file) for file in files})
        for other, record in self.records().items():
            shared = sorted(set(names) & set(record["files"]))
            if other != stage and shared:
                raise RunError(f"{shared[0]} is a file of stage {other}; stage {stage} needs a file of its own")
        record = {
            "keys": dict(keys),
            "seconds": round(seconds, 3),
            "peak_memory": peak_memory,
            "extra": dict(extra or {}),
            "files": {name: self._entry(name) for name in names},
        }
        self._forget_seen(self.path / name for name in names)
        storage.write_sealed(self._record_path(stage), record)

    def reset(self, stage: str) -> None:
        """Forget a stage and delete the files that it recorded; its checkpoints in `.work` stay."""
        record = self.records().get(_stage_name(stage), {"files": {}})
        paths = [self.inside(name) for name in record["files"]]  # all are checked before one is deleted
        self._forget_seen(paths)
        self._forget(stage)  # first: a kill from here on leaves files without a record, never a record without files
        for path in paths:
            storage.remove(path)
        for parent in {path.parent for path in paths}:
            _prune(parent, self.path)

    def work(self, stage: str, keys: Mapping[str, Any] | None = None) -> Path:
        """The folder for checkpoints and finished units of a stage, made if it is missing.

        With `keys`, the settings are pinned when the folder is made, so that checkpoints of one configuration are
        never continued with another: work that was begun with other settings is thrown away with a warning that names
        them. Nothing finished is lost by that.
        """
        folder = self.path / ".work" / _stage_name(stage)
        storage.ensure_folder(folder)
        pinned = folder / "keys.json"
        if keys is None:
            return folder
        if pinned.exists() and (why := _unlike(pinned, keys)):
            warnings.warn(f"{self.path}: unfinished work of {stage} is thrown away, since {why}", stacklevel=2)
            storage.write_folder(folder, [])  # in one go, so that no checkpoint is left without its settings
        if not pinned.exists():
            storage.write_sealed(pinned, dict(keys))
        return folder

    def clear_work(self, stage: str) -> None:
        """Remove the checkpoints and units of a stage, whose files stand."""
        storage.remove_folder(self.path / ".work" / _stage_name(stage))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest, which completes the run, and remove the working state (all but the lock).

        On a folder that was finished before, what is new is merged in and the first `created` is kept.
        """
        records = self.records()
        before = self.manifest() or {}
        files = {name: entry for record in records.values() for name, entry in record["files"].items()}
        loose = {name: self._entry(name) for name in LOOSE if (self.path / name).exists()}
        manifest = {
            **before,
            **facts,
            "format": FORMAT,
            "complete": True,
            "created": before.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": {stage: {**record, "files": sorted(record["files"])} for stage, record in records.items()},
            "files": {**files, **loose},
            "controls": self.controls(),
        }
        self._forget_seen([self.path / "manifest.json"])
        storage.write_sealed(self.path / "manifest.json", manifest)
        for item in (self.path / ".work").glob("*"):
            if item.is_dir() and not item.is_symlink():
                storage.remove_folder(item)
            elif item.name != "lock":
                storage.remove(item)

    # ------------------------------------------------------------------------------------------ reading

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, checked against its seal; None where the run never finished.

        Raises:
            IntegrityError: it is damaged or of an unknown format.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            manifest = self._once(path, storage.read_sealed)
        except IntegrityError as error:
            raise IntegrityError(f"{error}; restore it, or delete it to have every stage done again") from error
        if manifest.get("format") != FORMAT:
            raise IntegrityError(f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT}")
        return manifest

    def records(self) -> dict[str, dict[str, Any]]:
        """Records of all finished stages by name: those of the manifest, and newer ones that wait in `.work`."""
        records = _unpack(self.manifest() or {}, self.path / "manifest.json")
        for path in sorted((self.path / ".work" / "stages").glob("*.json")):
            try:
                records[path.stem] = _checked(storage.read_sealed(path), path)
            except IntegrityError as error:
                records.pop(path.stem, None)
                warnings.warn(f"stage {path.stem} is done again: {error}", stacklevel=3)
        return records

    def controls(self) -> list[str]:
        """Names of the control runs inside this one."""
        folder = self.path / "controls"
        return sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []

    def inside(self, name: object) -> Path:
        """The path of a recorded name.

        Raises:
            IntegrityError: it is absolute, has `..`, or leads out of the folder through a link.
        """
        pure = PurePosixPath(str(name))
        plain = isinstance(name, str) and str(pure) == name and pure.parts and not set("\\\0") & set(name)
        if not plain or ".." in pure.parts or PureWindowsPath(str(name)).anchor:
            raise IntegrityError(f"{name!r} is not a path inside {self.path}: allowed are plain relative ones")
        path = self.path / str(name)
        try:
            real = path.resolve()
            within = real.is_relative_to(self.path.resolve()) and not any(part.is_symlink() for part in (real, *real.parents))
        except (OSError, RuntimeError):  # a loop of links; from Python 3.13 on it is no error, and a link is left
            within = False
        if not within:
            raise IntegrityError(f"{name!r} leads out of {self.path} through a link")
        return path

    def check(self, name: str, entry: Mapping[str, Any]) -> list[str]:
        """A line for a recorded file that is missing or not as recorded; nothing for a good one.

        Raises:
            IntegrityError: the name leads out of the folder; see `inside`.
        """
        path = self.inside(name)
        if not path.is_file():  # nor is a device read, or a pipe waited for
            return [f"{name}: missing, expected sha256 {entry['sha256']}"]
        try:
            found = self._once(path, storage.sha256_file)
        except IntegrityError as error:
            return [f"{name}: {error}"]
        if found != entry["sha256"]:
            return [f"{name}: expected sha256 {entry['sha256']}, found {found}"]
        return []

    # ------------------------------------------------------------------------------------------ inner

    def _once(self, path: Path, read: Callable[[Path], T]) -> T:
        """What `read` gives for a file; while the folder is held, read again only where the file's size or time changed."""
        seen = self._holder._seen
        if seen is None:
            return read(path)
        try:
            facts = path.stat()
        except OSError:
            return read(path)  # which says what is wrong
        stamp = facts.st_size, facts.st_mtime_ns
        if path not in seen or seen[path][0] != stamp:
            seen[path] = stamp, read(path)
        found: T = seen[path][1]
        return found

    def _forget_seen(self, paths: Iterable[Path]) -> None:
        """Read these files again when they are asked for next."""
        for path in paths:
            (self._holder._seen or {}).pop(path, None)

    def _record_path(self, stage: str) -> Path:
        return self.path / ".work" / "stages" / f"{_stage_name(stage)}.json"

    def _forget(self, stage: str) -> None:
        manifest = self.manifest()
        if manifest and stage in manifest["stages"]:
            stages = {name: record for name, record in manifest["stages"].items() if name != stage}
            gone = set(manifest["stages"][stage]["files"])
            files = {name: entry for name, entry in manifest["files"].items() if name not in gone}
            self._forget_seen([self.path / "manifest.json"])
            storage.write_sealed(self.path / "manifest.json", {**manifest, "stages": stages, "files": files, "complete": False})
        storage.remove(self._record_path(stage))

    def _name(self, file: Path) -> str:
        """The relative posix name of a file that was given as relative or absolute."""
        absolute = Path(os.path.abspath(self.path / file))
        if not absolute.is_relative_to(self.path):
            raise IntegrityError(f"{file} is not inside the run folder {self.path}")
        return absolute.relative_to(self.path).as_posix()

    def _entry(self, name: str) -> dict[str, Any]:
        path = self.inside(name)
        return {"sha256": storage.sha256_file(path), "bytes": path.stat().st_size}

    def _compare(self, stage: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if lines := _changes(was, now):
            raise RunError(f"{self.path} holds {stage} of another configuration ({lines}): choose another --out, or delete the folder")


@typed
def verify(path: Path | str) -> list[str]:
    """Hash every file of a run again: one line for each problem, and none for a good run.

    Lines begin with the file's name. Control runs inside are verified too. Notebooks are not part of the record. A folder that
    is not there, or holds no run, is one that is not finished: `delt.load` tells them apart.
    """
    folder = RunFolder(Path(path))
    try:
        manifest = folder.manifest()
        if manifest is None:
            return [f"manifest.json: missing, the run in {folder.path} is not finished: {GO_ON}"]
        finished = _unpack(manifest, folder.path / "manifest.json")
        records = folder.records()
    except IntegrityError as error:
        return [f"manifest.json: {error}"]
    files = {**manifest["files"], **{name: entry for record in records.values() for name, entry in record["files"].items()}}
    whole = manifest["complete"] is True and records == finished
    lines = [] if whole else [f"manifest.json: not complete, a stage is being done anew: {GO_ON}"]
    for name, entry in sorted(files.items()):
        try:
            lines += folder.check(name, entry)
        except IntegrityError as error:
            lines.append(f"{name}: {error}")
    lines += [f"{name}: not in the manifest" for name in _content(folder.path, "synthetic") if name not in files]
    return lines + _verify_controls(folder, manifest)


def _verify_controls(folder: RunFolder, manifest: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name in sorted({*manifest["controls"], *folder.controls()}):
        try:
            control = folder.inside(f"controls/{name}")
        except IntegrityError as error:
            lines.append(f"controls: {error}")
            continue
        if control.is_symlink() or not control.is_dir():  # links could lead in circles
            lines.append(f"controls/{name}: missing, or not a folder")
        else:
            lines += [f"controls/{name}/{line}" for line in verify(control)]
    return lines


def _content(root: Path, name: str) -> list[str]:
    """Relative names of everything but folders below `root / name`."""
    return sorted(item.relative_to(root).as_posix() for item in (root / name).rglob("*") if item.is_symlink() or not item.is_dir())


def _unpack(manifest: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The stage records in a manifest, each with the hashes of its files.

    Raises:
        IntegrityError: it is not built as `RunFolder.finish` builds it.
    """
    try:
        files = manifest.get("files", {})
        for name, entry in files.items():
            _checked({"keys": {}, "files": {name: entry}}, path)
        stages = manifest.get("stages", {}).items()
        if manifest and not (manifest["complete"] in (True, False) and all(isinstance(name, str) for name in manifest["controls"])):
            raise KeyError("complete, controls")
        return {stage: _checked({**record, "files": {name: files[name] for name in record["files"]}}, path) for stage, record in stages}
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a manifest of this program: {error!r}") from error


def _checked(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record, if it has the shape that `RunFolder.commit` gives it."""
    keys, files = record.get("keys"), record.get("files")
    entries = list(files.values()) if isinstance(keys, dict) and isinstance(files, dict) else [None]
    if all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in entries):
        return record
    raise IntegrityError(f"{path} is not a record of this program: it has no keys or no file hashes")


def _stage_name(stage: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", stage) or stage in NOT_STAGES:
        raise RunError(f"stage name {stage!r} is not allowed: lower-case letters, digits, - and _, and not {' or '.join(NOT_STAGES)}")
    return stage


def _unlike(pinned: Path, keys: Mapping[str, Any]) -> str:
    """Why work cannot go on from its pinned settings; empty where it can."""
    try:
        lines = _changes(storage.read_sealed(pinned), keys)
    except IntegrityError as error:
        return str(error)
    return f"it was begun with other settings ({lines})" if lines else ""


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Each setting that differs, with both values; empty where none does."""
    was, now = _words(was), _words(now)
    changed = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
    return "; ".join(f"{key}: was {was.get(key, 'not set')}, now {now.get(key, 'not set')}" for key in changed)


def _words(keys: Mapping[str, Any]) -> dict[str, str]:
    """Values as JSON text, so that a tuple equals the list that it became on disk."""
    return {key: json.dumps(value, sort_keys=True) for key, value in keys.items()}


def _flock(handle: int, how: int) -> bool:
    """Whether an open file is locked by us now; False where another has the lock."""
    import fcntl

    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    return True


def _is_gone(holder: str) -> bool:
    """Whether the process that wrote its name into a lock was one of this machine and is no more."""
    found = re.fullmatch(r"pid (\d{1,9}) on (.*)", holder, re.DOTALL)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _prune(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, below `root`, as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent
