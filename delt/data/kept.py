"""Decoded images on disk: each is decoded once, whenever it is first asked for, and read back from then on.

Two plain files: uint8 pixels, one image after another, and a checksum per image that is written after it. What is missing,
half written or damaged is decoded again, so any number of processes may share them and be stopped at any time.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from delt import storage

SPARE = 1.2  # times the space that is needed has to be free


class Kept:
    """Decoded images of one shape in a file. It travels to worker processes as its path."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape = path, shape
        self.bytes = shape[0] * shape[1] * shape[2]
        self._files: tuple[int, int] | None = None  # pixels, checksums: of this process
        self._works = True

    def __getstate__(self) -> tuple[Path, tuple[int, int, int]]:
        return self.path, self.shape

    def __setstate__(self, state: tuple[Path, tuple[int, int, int]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __del__(self) -> None:
        for file in self._files or ():
            os.close(file)

    def get(self, number: int, decode: Callable[[], Tensor]) -> Tensor:
        """Image `number`, uint8 [C,H,W]: read, or decoded and kept."""
        if (found := self._read(number)) is not None:
            return found
        image = decode()
        self._write(number, image)
        return image

    def holds(self, number: int) -> bool:
        """Whether image `number` was decoded and kept once, which says that its file is good; its pixels are not read."""
        try:
            return self._works and any(os.pread(self._opened()[1], 4, 4 * number))
        except (OSError, storage.StorageError):
            self._works = False
            return False

    def _opened(self) -> tuple[int, int]:
        if self._files is None:
            storage.make_folder(self.path.parent)
            pixels, sums = (os.open(self.path.with_suffix(end), os.O_RDWR | os.O_CREAT, 0o644) for end in (".u8", ".sum"))
            self._files = pixels, sums
        return self._files

    def _read(self, number: int) -> Tensor | None:
        if not self._works:
            return None
        try:
            pixels, sums = self._opened()
            data, expected = os.pread(pixels, self.bytes, number * self.bytes), os.pread(sums, 4, 4 * number)
        except (OSError, storage.StorageError):
            self._works = False
            return None
        if len(data) < self.bytes or _sum(data) != expected:
            return None
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(self.shape)

    def _write(self, number: int, image: Tensor) -> None:
        if not self._works:
            return
        data = image.contiguous().numpy().tobytes()
        try:
            pixels, sums = self._opened()
            if os.pwrite(pixels, data, number * self.bytes) == len(data):
                os.pwrite(sums, _sum(data), 4 * number)
        except (OSError, storage.StorageError):  # a full disk: the images stay files that are decoded
            self._works = False


def _sum(data: bytes) -> bytes:
    """Four bytes, never all zero, which is what a hole in a file reads as."""
    return (zlib.crc32(data) or 1).to_bytes(4, "little")


def kept_in(folder: Path, root: Path, paths: Sequence[str], shape: tuple[int, int, int]) -> Kept | None:
    """The place in a folder for these files' images; None where the disk has no room for them, with a warning.

    Another size, time or order of the files is another place.
    """
    facts = [(path, *_facts(os.path.join(root, path))) for path in paths]
    key = storage.sha256_bytes(repr((shape, facts)).encode())[:24]
    needed = len(paths) * shape[0] * shape[1] * shape[2]
    try:
        storage.make_folder(folder)
        there = sum(file.stat().st_blocks * 512 for file in folder.glob(f"{key}.u8"))
        free = shutil.disk_usage(folder).free
    except (OSError, storage.StorageError):
        return None
    if free + there < SPARE * needed:
        warnings.warn(
            f"{needed / 2**30:.0f} GiB of decoded images do not fit into {folder} ({free / 2**30:.0f} GiB free): "
            "files are decoded each time; set DELT_CACHE to a folder with more room",
            stacklevel=2,
        )
        return None
    return Kept(folder / key, shape)


def _facts(path: str) -> tuple[int, ...]:
    """Size and time of a file; nothing of one that is not there, which is for the decoder to say."""
    try:
        facts = os.stat(path)
    except OSError:
        return ()
    return facts.st_size, facts.st_mtime_ns
