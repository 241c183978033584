"""Bytes on the disk: the only file that knows about atomic writes, fsync and checksums.

Every write goes to a temporary file in the same folder, is synced and then renamed, so that a reader finds the old
content or the new one, never a mix, whenever the process or the machine stops. A killed writer leaves at most a
`.NAME.tmp` behind; `sweep` removes those. Artefacts and checkpoints carry their own sha256 (`sealed`, `write_sealed`, `Slots`),
but for images and weights, whose sha256 is in the table or card beside them; records hold that of each finished file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from delt.errors import DeltError, IntegrityError

FULL = (errno.ENOSPC, errno.EDQUOT)
BESIDE = 16  # files of a folder that are written at a time
FOLDER_BYTES = 4096  # that a new folder takes
DIGEST_BYTES = 32  # of a raw sha256
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}\.tmp", re.DOTALL)  # see temporary_of
LENGTH_BYTES = 8  # little-endian length of the header at the start of a safetensors file
SEAL = "delt_sha256"  # name under which a file's metadata hold its own sha256
UNSEALED = "0" * 64  # what stands there while it is computed
SEAL_PLACE = re.compile(SEAL.encode() + rb"[^0-9a-f]{1,4}([0-9a-f]{64})")  # the same in safetensors and parquet


class StorageError(DeltError):
    """A file could not be written; what stood there before is untouched or already complete."""


# ---------------------------------------------------------------------------------------------- whole files


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably; parent folders are made.

    Raises:
        StorageError: the disk is full (with needed and free bytes) or fails; no temporary file is left.
    """
    temporary = temporary_of(path)
    with _explained(path, len(data)):
        make_folder(path.parent)
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:  # also on Ctrl-C; after the rename there is nothing left to remove
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a whole folder of (relative posix name, content) and put it in the place of `path` in one go.

    Each file and folder is synced, many at a time, since a disk settles them together. A kill between the two renames leaves no
    folder at `path`, never a mix of old and new files.

    Raises:
        StorageError: as `write_bytes`; the old folder is then still in its place.
    """
    temporary, old = temporary_of(path), temporary_of(path)

    def write(name: str, data: bytes) -> None:
        with _explained(path / name, len(data)):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _write_synced(temporary / name, data)

    try:
        with _explained(path, 0):
            make_folder(temporary)
        _beside(write, files)
        with _explained(path, 0):
            folders = [temporary, *(item for item in temporary.rglob("*") if item.is_dir())]
            _beside(sync_folder, ((folder,) for folder in folders))
            _exchange(temporary, path, old)
    finally:
        with contextlib.suppress(OSError):  # rmtree raises a few errors that it was told to ignore
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():  # else the old folder is all there is
                shutil.rmtree(old, ignore_errors=True)


def _beside(work: Callable[..., None], given: Iterable[tuple[Any, ...]]) -> None:
    """Do the same to many things, some of them at a time: what is synced together, a disk settles together.

    Raises:
        Exception: what one of them raises.
    """
    with ThreadPoolExecutor(BESIDE) as threads:
        begun = deque[Future[None]]()
        for one in given:
            try:
                begun.append(threads.submit(work, *one))
            except RuntimeError:  # Python is ending, and starts no thread any more
                work(*one)
            if len(begun) > 2 * BESIDE:  # what waits is in memory
                begun.popleft().result()
        for rest in begun:
            rest.result()


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Move the folder `new` to `path`; what stood there goes to `old`, and comes back if the move fails."""
    standing = path.exists()
    if standing:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if standing:
            os.replace(old, path)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; one that a kill left without its end gets it first. Not synced: for histories that people read.

    Raises:
        StorageError: the disk is full or fails.
    """
    with _explained(path, len(line) + 1):
        make_folder(path.parent)
        with open(path, "a+b") as file:
            file.seek(max(0, file.tell() - 1))
            broken = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * broken + line.encode() + b"\n")


def remove(path: Path) -> None:
    """Remove a file; a missing one is fine.

    Raises:
        StorageError: it cannot be removed.
    """
    with _explained(path, 0, "remove"):
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder in one go: whenever the process or the machine stops, it is there whole or not at all. A missing one is fine.

    Raises:
        StorageError: it cannot be moved out of the way; what cannot be removed then is left for `sweep`.
    """
    with _explained(path, FOLDER_BYTES, "remove"):
        if path.exists():
            away = temporary_of(path)
            os.replace(path, away)
            try:
                sync_folder(path.parent)
            finally:
                with contextlib.suppress(OSError):  # as above
                    shutil.rmtree(away, ignore_errors=True)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        IntegrityError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror or error}") from error


def ensure_folder(path: Path) -> None:
    """Make a folder and its parents so that they outlive a power loss.

    Raises:
        StorageError: the disk is full or fails.
    """
    with _explained(path, FOLDER_BYTES, "make"):
        make_folder(path)


def make_folder(path: Path) -> None:
    """As `ensure_folder`, for who tells one OSError from another."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (a rename is one); a no-op where folders cannot be opened (Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_of(path: Path) -> Path:
    """A fresh name beside `path` for what is not complete yet; two writers never share one."""
    return path.parent / f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp"


def sweep(folder: Path, deep: bool = True) -> list[Path]:
    """Remove what killed writers left in a folder (`deep`: in its subfolders too) and return it.

    Only for the holder of the folder. Nothing but names as `temporary_of` makes them is touched.
    """
    found = sorted(folder.rglob(".*.tmp") if deep else folder.glob(".*.tmp"))  # a folder comes before its content
    left = [item for item in found if TEMPORARY.fullmatch(item.name)]
    for item in left:
        with contextlib.suppress(OSError):  # what cannot be removed does no harm
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            else:
                item.unlink(missing_ok=True)
    return left


def _write_synced(path: Path, data: bytes) -> None:
    """Write a new file and sync it; refuses a name that exists."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:  # a write may be short, and always is above 2 GiB
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(path: Path, needed: int, verb: str = "write") -> Iterator[None]:
    """Turn an OSError into a message that says which file it was and what can be done."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path, needed) from error
        raise StorageError(f"cannot {verb} {path}: {error.strerror or error}") from error


def disk_full(path: Path, needed: int) -> StorageError:
    """The error of a disk without room for `needed` bytes at a path."""
    free = free_bytes(path)
    return StorageError(
        f"disk full: {path} needs {needed} bytes and {'an unknown number of' if free is None else free} bytes are free; "
        "free some space, then give the same command again: it goes on where it was"
    )


def require_room(folder: Path, needed: int) -> None:
    """Refuse work that would fill the disk, before it is begun.

    Raises:
        StorageError: fewer than `needed` bytes are free for the folder.
    """
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise disk_full(folder, needed)


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the file system that a folder is, or would be, on; None where nobody knows."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    found = 0
    for item in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it went away meanwhile
            found += item.stat().st_size if item.is_file() else 0
    return found


# ---------------------------------------------------------------------------------------------- the user's cache


def user_cache() -> Path:
    """`delt` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delt"


def cache_folder() -> Path:
    """What several runs share: $DELT_CACHE, or the user's cache."""
    return Path(os.environ.get("DELT_CACHE") or user_cache())


# ---------------------------------------------------------------------------------------------- checksums


def sha256_bytes(data: bytes) -> str:
    """sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def holds(path: Path, text: bytes) -> bool:
    """Whether a file can be read and has a text somewhere."""
    try:
        return text in path.read_bytes()
    except OSError:
        return False


def sha256_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal, without holding the file in memory.

    Raises:
        IntegrityError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror or error}") from error


def sealed(data: bytes) -> bytes:
    """The same file with its own sha256 in its metadata, where `{SEAL: UNSEALED}` stands; any other program still reads it.

    Raises:
        StorageError: there is no such place, or more than one.
    """
    places = [found for found in SEAL_PLACE.finditer(data) if found[1] == UNSEALED.encode()]
    if len(places) != 1:
        raise StorageError(f"{len(places)} places for a seal; needed is one")
    start, stop = places[0].span(1)
    return b"".join([data[:start], sha256_bytes(data).encode(), memoryview(data)[stop:]])


def check_seal(data: bytes, path: Path | str) -> None:
    """Compare a file's content with the sha256 that `sealed` put into it.

    Raises:
        IntegrityError: it is not byte for byte what was written, or carries no sha256.
    """
    place = SEAL_PLACE.search(data)
    if place is None:
        raise IntegrityError(f"{path} is damaged: its sha256 is not in it, found {sha256_bytes(data)}")
    start, stop = place.span(1)
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(UNSEALED.encode())
    digest.update(memoryview(data)[stop:])
    expected, found = place[1].decode(), digest.hexdigest()
    if found != expected:
        raise IntegrityError(f"{path} is damaged: expected sha256 {expected}, found {found}")


# ---------------------------------------------------------------------------------------------- JSON


def json_bytes(obj: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal content, equal bytes.

    Raises:
        StorageError: it holds NaN or infinity, or something that JSON has no word for.
    """
    try:
        return (json.dumps(obj, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (ValueError, TypeError) as error:
        raise StorageError(f"cannot be written as JSON: {error}") from error


def parse_json(data: bytes | str, path: Path | str) -> Any:
    """Parse JSON that came from `path`.

    Raises:
        IntegrityError: it does not parse, or holds NaN or infinity.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a JSON number")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # undecodable bytes and oversized integers are ValueErrors
        raise IntegrityError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically; see `json_bytes` and `write_bytes` for what is refused."""
    try:
        data = json_bytes(obj)
    except StorageError as error:
        raise StorageError(f"{path} {error}") from error
    write_bytes(path, data)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        IntegrityError: the file is missing or does not parse.
    """
    return parse_json(read_bytes(path), path)


def write_sealed(path: Path, obj: dict[str, Any]) -> None:
    """Write a JSON object with a `seal`, the sha256 of the rest, so that a later change of any byte is noticed."""
    write_json(path, {**obj, "seal": sha256_bytes(json_bytes(obj))})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the seal.

    Raises:
        IntegrityError: the file is missing, does not parse, or is not byte for byte what was written.
    """
    data = read_bytes(path)
    sealed = parse_json(data, path)
    if not isinstance(sealed, dict) or "seal" not in sealed:
        raise IntegrityError(f"{path} is damaged: it is not a sealed JSON object")
    rest = {key: value for key, value in sealed.items() if key != "seal"}
    found = sha256_bytes(json_bytes(rest))
    if sealed["seal"] != found:
        raise IntegrityError(f"{path} is damaged: expected sha256 {sealed['seal']}, found {found}")
    if json_bytes(sealed) != data:
        raise IntegrityError(f"{path} is damaged: its text is not as it was written")
    return rest


# ---------------------------------------------------------------------------------------------- tensors


def tensors_to_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> bytes:
    """The safetensors form of named tensors (any device, layout or sharing): equal content, equal bytes."""
    copies = {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    data = safetensors.torch.save(copies)
    if not meta:
        return data
    # The library writes metadata in an order that changes from process to process; here it is sorted.
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    entries = json.loads(data[LENGTH_BYTES:start])
    header = json.dumps({"__metadata__": dict(sorted(meta.items())), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors aligned
    return b"".join([len(header).to_bytes(LENGTH_BYTES, "little"), header, memoryview(data)[start:]])


def bytes_to_tensors(data: bytes, path: Path | str = "tensors") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors (on the CPU) and metadata out of their safetensors form; `path` is for the message.

    Raises:
        IntegrityError: it is not a whole safetensors file. Flipped data bits pass: compare the sha256 first.
    """
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        meta = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length]).get("__metadata__", {})
    except Exception as error:  # the library promises no types, and any of them means the same here
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors, meta


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Write named tensors and text metadata as a safetensors file that carries its sha256, atomically."""
    write_bytes(path, sealed(tensors_to_bytes(tensors, {**(meta or {}), SEAL: UNSEALED})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote.

    Raises:
        IntegrityError: the file is missing, or not byte for byte what was written.
    """
    data = read_bytes(path)
    check_seal(data, path)
    tensors, meta = bytes_to_tensors(data, path)
    del meta[SEAL]
    return tensors, meta


# ---------------------------------------------------------------------------------------------- checkpoints


class Slots:
    """A checkpoint in two files that take turns, `NAME.a.ckpt` and `NAME.b.ckpt`: one good one always stands.

    Each file is its own sha256 (32 raw bytes) followed by a safetensors file whose metadata hold a counter and the
    JSON of `meta`. One object at a time may write a checkpoint.

    >>> slots = Slots(work / "group-0003")
    >>> slots.save({"images": images}, {"iteration": 500})
    >>> tensors, meta = slots.load()
    """

    def __init__(self, path_without_suffix: Path) -> None:
        base = path_without_suffix
        self.paths = tuple(base.parent / f"{base.name}.{letter}.ckpt" for letter in "ab")
        self._newest: tuple[int, int] | None = None  # (counter, index of the slot), once known

    def save(self, tensors: Mapping[str, Tensor], meta: dict[str, Any], last: bool = False) -> None:
        """Write a checkpoint over the older slot (or the damaged one); after the `last` one the other is removed.

        Raises:
            StorageError: it cannot be written; the newest checkpoint still stands.
        """
        if self._newest is None:
            self.load()
        counter, index = self._newest or (0, 1)
        counter, index = counter + 1, 1 - index
        body = tensors_to_bytes(tensors, {"slot": json_bytes({"counter": counter, "meta": meta}).decode()})
        write_bytes(self.paths[index], hashlib.sha256(body).digest() + body)
        self._newest = counter, index
        if last:
            remove(self.paths[1 - index])

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None; a damaged one is named in a warning and passed over."""
        self._newest, best = None, None
        for index, path in enumerate(self.paths):
            if not path.exists():
                continue
            try:
                counter, tensors, meta = _read_slot(path)
            except IntegrityError as error:
                warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
                continue
            if self._newest is None or counter > self._newest[0]:
                self._newest, best = (counter, index), (tensors, meta)
        return best

    def clear(self) -> None:
        """Remove both files."""
        self._newest = None
        for path in self.paths:
            remove(path)


def _read_slot(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    data = read_bytes(path)
    expected, body = data[:DIGEST_BYTES].hex(), data[DIGEST_BYTES:]
    found = sha256_bytes(body)
    if found != expected:
        raise IntegrityError(f"{path} is damaged: expected sha256 {expected}, found {found}")
    tensors, text = bytes_to_tensors(body, path)
    try:
        slot = parse_json(text["slot"], path)
        return int(slot["counter"]), tensors, dict(slot["meta"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not a checkpoint of this program: {error!r}") from error
