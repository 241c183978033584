"""The distilled images with their labels and history: PNG files in ImageFolder's layout and one table beside them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import torch
from PIL import Image
from torch import Tensor

from delt import storage
from delt.artifacts import cache
from delt.artifacts.snapshots import Snapshots
from delt.artifacts.tables import read_table, table_bytes
from delt.data.decode import MODES
from delt.errors import DataError, IntegrityError
from delt.runtime import cores

PARTIAL = "partial"  # inside a run folder: the set of a synthesis that was stopped
AT_ONCE = 64  # images that are compressed before the first of them is written
MAX_SIDE = 4096  # pixels, as the configuration's data_size; a table that declares more is not ours


@dataclass
class SyntheticSet:
    """Synthetic images, ordered by class and within a class by index (early sub-batches first).

    Raises:
        DataError: the parts do not fit together, or the images are not in the order of their classes.
    """

    images: Tensor  # uint8 [N,C,H,W], C 1 or 3
    labels: Tensor  # int64 [N], ascending
    classes: tuple[str, ...]  # names; the position is the label
    sub_batch: Tensor  # int64 [N], which one the image joined with
    iterations: Tensor  # int64 [N], pixel updates that the image had
    source: list[str]  # what started each image, such as "train/123" or "noise"
    seed: int
    complete: bool = True  # False: the synthesis was stopped; `iterations` are the updates that were made
    snapshots: Snapshots | None = field(default=None, compare=False, repr=False)  # how they came to be; a file of its own

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or self.images.shape[1] not in MODES:
            raise DataError(f"images are {self.images.dtype} {list(self.images.shape)}; allowed is uint8 [N,C,H,W] with 1 or 3 channels")
        lengths = {len(part) for part in (self.images, self.labels, self.sub_batch, self.iterations, self.source)}
        if len(lengths) != 1:
            raise DataError(f"images, labels, sub_batch, iterations and source have lengths {sorted(lengths)}; they must agree")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(f"labels go from {int(self.labels.min())} to {int(self.labels.max())}; there are {len(self.classes)} classes")
        if bool((self.labels.diff() < 0).any()):
            raise DataError("images are not ordered by class; sort them by label first")

    def __len__(self) -> int:
        return len(self.images)

    def save(self, folder: Path | str) -> list[Path]:
        """Write `synthetic/CLASS/INDEX.png` and `synthetic.parquet` into a run folder and return their paths.

        Equal sets give equal bytes. An older `synthetic/` is replaced as a whole.

        Raises:
            StorageError: the disk is full or fails.
        """
        folder, names = Path(folder), file_names(self.labels, self.classes)
        digests: list[str] = []
        storage.write_folder(folder / "synthetic", self._pngs(names, digests))
        storage.write_bytes(folder / "synthetic.parquet", self._table(names, digests))
        return [*(folder / "synthetic" / name for name in names), folder / "synthetic.parquet"]

    def _pngs(self, names: list[str], digests: list[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file; the sha256 of those that were taken goes into `digests`."""
        with ThreadPoolExecutor(writers()) as pool:
            for first in range(0, len(names), AT_ONCE):
                part = slice(first, first + AT_ONCE)
                for name, data in zip(names[part], _compressed(self.images[part], pool), strict=True):
                    digests.append(storage.sha256_bytes(data))
                    yield name, data

    def _table(self, names: list[str], digests: list[str]) -> bytes:
        table = pyarrow.table(
            {
                "file": pyarrow.array([f"synthetic/{name}" for name in names], pyarrow.string()),
                "class_index": pyarrow.array(self.labels.tolist(), pyarrow.int64()),
                "class_name": pyarrow.array([self.classes[label] for label in self.labels.tolist()], pyarrow.string()),
                "sub_batch": pyarrow.array(self.sub_batch.tolist(), pyarrow.int64()),
                "iterations": pyarrow.array(self.iterations.tolist(), pyarrow.int64()),
                "source": pyarrow.array(self.source, pyarrow.string()),
                "seed": pyarrow.array([self.seed] * len(self), pyarrow.int64()),
                "sha256": pyarrow.array(digests, pyarrow.string()),
            }
        )
        # What the rows cannot say: classes without an image, the shape and seed of an empty set.
        facts = {"classes": list(self.classes), "shape": list(self.images.shape[1:]), "seed": self.seed, "complete": self.complete}
        return table_bytes(table, {"delt": storage.json_bytes(facts)})

    @classmethod
    def load(cls, folder: Path | str) -> SyntheticSet:
        """Read what `save` wrote.

        Raises:
            IntegrityError: a file is missing, unreadable or not what the table says; it is named.
        """
        folder = Path(folder)
        path = folder / "synthetic.parquet"
        table = read_table(path)
        try:
            facts = json.loads(table.schema.metadata[b"delt"])
            columns: dict[str, list[Any]] = table.to_pydict()
            labels = torch.tensor(columns["class_index"], dtype=torch.int64)
            classes = tuple(str(name) for name in facts["classes"])
            channels, height, width = (int(side) for side in facts["shape"])
            sub_batch, iterations = (torch.tensor(columns[name], dtype=torch.int64) for name in ("sub_batch", "iterations"))
            # Names are made again, not believed: a table cannot point anywhere else.
            agree = columns["file"] == [f"synthetic/{name}" for name in file_names(labels, classes)]
            digests = [str(digest) for digest in columns["sha256"]]
            parts = (labels, classes, sub_batch, iterations, [str(source) for source in columns["source"]], int(facts["seed"]))
            complete = facts.get("complete", True) is True
        except Exception as error:  # pyarrow promises no types, and any of them means the same here
            raise IntegrityError(f"{path} is not a table of synthetic images: {error}") from error
        if not agree:
            raise IntegrityError(f"{path} is damaged: its file names are not those of its classes")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise IntegrityError(f"{path} is damaged: images of {height} x {width} pixels; allowed are 1 to {MAX_SIDE} per side")
        files = [folder / name for name in columns["file"]]
        if missing := next((file for file in files if not file.is_file()), None):  # before memory is taken for all
            raise IntegrityError(f"{missing} is missing; {path.name} lists it")
        images = cache.pixels((len(labels), channels, height, width))
        for row, file in enumerate(files):
            images[row] = read_png(file, (channels, height, width), digests[row])
        try:
            return cls(images, *parts, complete=complete)
        except DataError as error:
            raise IntegrityError(f"{path} is damaged: {error}") from error


def _compressed(images: Tensor, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The files of some images, by several threads: compressing takes the time, and lets others run meanwhile."""
    try:
        return pool.map(png_bytes, images)
    except RuntimeError:  # Python is ending, and starts no threads any more
        return map(png_bytes, images)


def writers() -> int:
    """Threads that compress images."""
    return min(8, cores())


def class_folder(index: int, name: str, count: int) -> str:
    """A folder name for class `index` of `count`: sorts in class order, and no name can leave the folder.

    >>> class_folder(3, "../great white shark", 10)
    '0003_great-white-shark'
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-")
    return f"{index:0{max(4, len(str(count - 1)))}d}_{slug or 'class'}"


def file_names(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """CLASS/INDEX.png for each label [N], counting from 0 within each class."""
    folders = [class_folder(index, name, len(classes)) for index, name in enumerate(classes)]
    seen = [0] * len(classes)
    names = []
    for label in labels.tolist():
        names.append(f"{folders[label]}/{seen[label]:05d}.png")
        seen[label] += 1
    return names


def png_bytes(image: Tensor) -> bytes:
    """Lossless PNG of a uint8 [C,H,W] image: equal pixels, equal bytes (for one version of Pillow and zlib)."""
    array = numpy.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    sink = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(sink, format="PNG")
    return sink.getvalue()


def read_png(path: Path, shape: tuple[int, int, int], expected: str) -> Tensor:
    """Decode a PNG that must have this [C,H,W] shape and this sha256.

    Raises:
        IntegrityError: it is missing, is not what was written, or has another shape (seen before pixels are decoded).
    """
    data = storage.read_bytes(path)
    if (found := storage.sha256_bytes(data)) != expected:
        raise IntegrityError(f"{path} is damaged: expected sha256 {expected}, found {found}")
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            kind = (image.mode, image.height, image.width)
            fits = kind == (MODES.get(channels), height, width)
            pixels = torch.from_numpy(numpy.array(image)) if fits else torch.empty(0)
    except Exception as error:  # Pillow promises no types, and any of them means the same here
        raise IntegrityError(f"{path} is not a readable PNG: {error}") from error
    if not fits:
        raise IntegrityError(f"{path} has mode, height and width {kind}; expected {(MODES.get(channels), height, width)}")
    return pixels.view(height, width, channels).permute(2, 0, 1)
