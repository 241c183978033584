"""What several runs share: trained teachers and full-data accuracies, kept once per user under a key of their causes.

The cache only saves time: whatever is wrong with it, a run does its work itself and keeps the result in its own folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from delt import storage
from delt.artifacts.scores import Score
from delt.artifacts.teacher import Teacher
from delt.errors import DeltError
from delt.storage import cache_folder

IN_MEMORY = 2**30  # bytes of images beyond which they are kept on the disk


def settle() -> None:
    """Let a relative $DELT_CACHE mean one folder in all processes that this one starts, wherever they work."""
    if own := os.environ.get("DELT_CACHE"):
        os.environ["DELT_CACHE"] = os.path.abspath(own)


def key_of(**causes: Any) -> str:
    """A short name for everything that a cached result depends on (JSON values)."""
    return storage.sha256_bytes(storage.json_bytes(causes))[:24]


@contextlib.contextmanager
def alone(key: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes of this user from making the same thing while the block runs; they wait, and find it in the cache.

    The lock is the operating system's (flock), so it dies with its holder. Where there are no locks, work may be done twice.

    Args:
        waiting: called several times a second while another process is in such a block; may raise.
    """
    with _lock_file(key) as lock:
        while lock and not _claimed(lock):
            waiting()
            time.sleep(0.2)
        yield


def _lock_file(key: str) -> contextlib.AbstractContextManager[IO[bytes] | None]:
    """The file whose lock stands for a key; None where it cannot be made. It stays: who removes one may pull it from under another."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = cache_folder() / "locks"
        storage.make_folder(folder)
        return open(folder / key, "ab")
    return contextlib.nullcontext()


def _claimed(lock: IO[bytes]) -> bool:
    """Whether the lock is ours now, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def pixels(shape: tuple[int, ...]) -> Tensor:
    """A uint8 tensor to be filled. A large one lies in a nameless file of the cache, and its pages go to the disk when memory is short.

    Raises:
        StorageError: the disk is full.
    """
    size = math.prod(shape)
    if size <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    try:
        storage.make_folder(cache_folder())
        place = str(cache_folder())
    except (OSError, RuntimeError):  # there is no home folder, or it cannot be written
        place = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=place) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is met here, not when a page is written
        except OSError as error:
            raise storage.disk_full(Path(place), size) from error
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))


def load_teacher(key: str) -> Teacher | None:
    """The cached teacher of this key; a damaged one counts as missing."""
    with contextlib.suppress(Exception):  # damage shows itself in any way
        return Teacher.load(cache_folder() / "teachers" / key / "teacher.safetensors")
    return None


def keep_teacher(key: str, teacher: Teacher) -> None:
    """Put a teacher into the cache; a cache that cannot be written is only warned of."""
    with _no_loss():
        teacher.save(cache_folder() / "teachers" / key)


def load_score(key: str) -> Score | None:
    """The cached score of this key; a damaged one counts as missing."""
    with contextlib.suppress(Exception):
        return Score(**storage.read_sealed(cache_folder() / "scores" / f"{key}.json"))
    return None


def keep_score(key: str, score: Score) -> None:
    """Put a score into the cache; a cache that cannot be written is only warned of."""
    with _no_loss():
        storage.write_sealed(cache_folder() / "scores" / f"{key}.json", asdict(score))


@contextlib.contextmanager
def _no_loss() -> Iterator[None]:
    """Turn a failure to write into a warning, so that what was computed is not lost with it."""
    try:
        yield
    except (DeltError, OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        warnings.warn(f"the cache cannot be written ({error}): results are kept in the run folder alone", stacklevel=4)
