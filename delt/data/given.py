"""Images from elsewhere: a folder of distilled images, FOLDER/CLASS/*, put in the class order of a data set.

Class folders go by name where they are named as the classes are, and by number in the order of the data set where they
are numbered: 3, 00003 (RDED, DELT), new003 (SRe2L), 0003_cat (this package). A wrong order is the field's most frequent
failure, so what a teacher sees in the images is compared with what their folders say.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delt.config import RankConfig
from delt.data.decode import FORMATS, MODES
from delt.data.folders import Part, and_more, read_part
from delt.data.images import DataInfo
from delt.data.stream import StreamImages, spare_workers
from delt.errors import ConfigError, DataError
from delt.runtime import stream
from delt.storage import sha256_bytes, sha256_file

NUMBERED = re.compile(r"(?:new)?(\d+)(?:_.+)?")
MARGIN, DRAWS = 20, 20  # points by which another order must be better; guesses that tell how well some order fits by chance


@dataclass(frozen=True)
class Given:
    """The files of a folder of images from elsewhere, by class."""

    root: Path
    info: DataInfo  # of the data set
    folders: tuple[str, ...]  # of each class
    named: bool  # whether the folders have the names of the classes, and no mere numbers
    paths: tuple[str, ...]  # below the root, [K * ipc]

    def labels(self) -> Tensor:
        """int64 [K * ipc], ascending."""
        return torch.arange(len(self.folders)).repeat_interleave(len(self.paths) // len(self.folders))

    def images(self) -> Tensor:
        """uint8 [K * ipc, C, H, W], on the CPU: pixels as they are where the size and mode are the data set's, else made so.

        Raises:
            DataError: a file is no image.
        """
        paths = [str(self.root / path) for path in self.paths]
        files = StreamImages(paths, self.labels(), self.info.channels, self.info.size, torch.device("cpu"), spare_workers())
        return files.held().pixels

    def changed(self) -> str:
        """A sentence about images of another size or mode than the data set's, which `images` changes; empty where none is."""
        size, mode = self.info.size, MODES[self.info.channels]
        kinds = {path: kind for path in self.paths if (kind := _kind(self.root / path)) != (size, size, mode)}
        if not kinds:
            return ""
        first, (width, height, other) = next(iter(kinds.items()))
        return (
            f"warning: {len(kinds)} of {len(self.paths)} images in {self.root} are not {size} x {size} {mode} (first: {first}, "
            f"{width} x {height} {other}): scaled, cropped and converted as the data set's own files are"
        )

    def fingerprint(self) -> str:
        """A short hash of all files in the order of the classes; the names of files and folders have no part in it."""
        return sha256_bytes("".join(sha256_file(self.root / path) for path in self.paths).encode())[:16]


def _kind(path: Path) -> tuple[int, int, str]:
    with Image.open(path, formats=FORMATS) as image:
        return image.width, image.height, image.mode


def list_given(folder: str | None, info: DataInfo, ipc: int) -> Given:
    """Find the files of each class.

    Raises:
        ConfigError: no folder is named.
        DataError: it is not there or empty, its classes are not those of the data set, or do not have `ipc` images each.
    """
    root, part = _require(folder, ipc)
    labels, named = _labels(root, list(part), info)
    folders = sorted(part, key=lambda name: labels[name])
    return Given(root, info, tuple(folders), named, tuple(path for name in folders for path in part[name]))


def require_given(config: RankConfig, ipc: int) -> None:
    """Refuse a folder of images from elsewhere that cannot be used, without reading a file of it; other methods have none.

    Raises:
        ConfigError, DataError: as `list_given`, apart from the classes' names.
    """
    if config.keep == "given":
        _require(config.folder, ipc)


def count_given(folder: str | Path) -> int:
    """Images per class of a folder of images from elsewhere.

    Raises:
        DataError: it is not there or empty, or its classes do not have the same number of images.
    """
    return _count(_read(Path(folder)), Path(folder))


def _require(folder: str | None, ipc: int) -> tuple[Path, Part]:
    if not folder:
        raise ConfigError("method given needs its images: --rank-folder FOLDER, with FOLDER/CLASS/* (or `delt evaluate --images FOLDER`)")
    root = Path(folder).expanduser()
    part = _read(root)
    if (count := _count(part, root)) != ipc:
        raise DataError(f"{root} has {count} images of each class, and ipc is {ipc}: give --ipc {count}")
    return root, part


def _read(root: Path) -> Part:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give one of distilled images, FOLDER/CLASS/*")
    return read_part(root, root)


def _count(part: Part, root: Path) -> int:
    counts = Counter(len(paths) for paths in part.values())
    usual = counts.most_common(1)[0][0]
    odd = [f"{name!r} ({len(paths)})" for name, paths in part.items() if len(paths) != usual]
    if odd:
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise DataError(f"classes in {root} have {usual} images each, but not {', '.join(odd[:5])}{more}: give all the same number")
    return usual


def _labels(root: Path, names: list[str], info: DataInfo) -> tuple[dict[str, int], bool]:
    """Folder -> label, and whether they go by name."""
    by_name = {name: label for label, name in enumerate(info.classes)}
    if set(names) == set(by_name):
        return by_name, not all(name.isdecimal() for name in names)  # 0 to 9 may be digits, or no more than numbers
    numbers = {name: int(found[1]) for name in names if (found := NUMBERED.fullmatch(name))}
    if len(numbers) == len(names) and sorted(numbers.values()) == list(range(len(info.classes))):
        return numbers, False
    if len(numbers) == len(names) and not set(names) & set(by_name):
        unknown = [name for name in names if numbers[name] >= len(info.classes)]
        missing = [str(label) for label in range(len(info.classes)) if label not in numbers.values()]
    else:
        unknown, missing = ([name for name in some if name not in others] for some, others in ((names, by_name), (info.classes, names)))
    lines = [f"{what} {some[0]!r}{and_more(some)}" for what, some in (("unknown", unknown), ("missing", missing)) if some]
    raise DataError(
        f"{root} does not hold the {len(info.classes)} classes of {info.name}: {', '.join(lines) or 'a number stands twice'}; "
        f"name its folders as the classes, or 0 to {len(info.classes) - 1} in their order"
    )


# ---------------------------------------------------------------- class order


def check_order(given: Given, seen: Tensor) -> str:
    """Compare the folders with the classes that a teacher sees in the images, and return what is to be said about it.

    In the folders that another order would move, it must agree clearly better than the given one and than the best order of
    guessed classes, which fits few images well.

    Args:
        seen: int64 [K * ipc], the teacher's classes.

    Raises:
        DataError: numbered folders are in another order than the classes; the message names the clearest one and its class.
    """
    classes, labels = given.info.classes, given.labels()
    order, best = best_order(labels, seen, len(classes))
    agree = _percent(labels == seen)
    moved = [label for label, other in enumerate(order) if label != other]
    inside = torch.isin(labels, torch.tensor(moved, dtype=torch.long))
    own, other = _percent((labels == seen)[inside]), _percent((torch.tensor(order)[labels] == seen)[inside])
    if not moved or other < max(own + MARGIN, 2 * own, _chance(labels[inside], len(classes)) + MARGIN):
        return f"images from {given.root}: {agree:.1f} % are what their folder says, as the teacher sees them"
    hits = labels[torch.tensor(order)[labels] == seen].bincount(minlength=len(classes)).tolist()
    clearest = sorted(moved, key=lambda label: -hits[label])
    pairs = [
        f"folder {given.folders[label]} looks like class {classes[order[label]]!r} and not {classes[label]!r}" for label in clearest[:3]
    ]
    more = f", and {len(moved) - 3} more" if len(moved) > 3 else ""
    found = f"class order: {', '.join(pairs)}{more} ({best:.0f} % of the images agree in the best order, {agree:.0f} % as given)"
    if not given.named:
        raise DataError(f"{found}: rename the folders to the classes that they hold")
    return f"warning: {found}: the folders have the names of the classes, so these count"


def _chance(labels: Tensor, classes: int) -> float:
    """What the best order of guessed classes reaches at most in a few draws, in %, for images with these labels."""
    guessed = stream("given", "order")
    return max(best_order(labels, torch.randint(classes, labels.shape, generator=guessed), classes)[1] for _ in range(DRAWS))


def best_order(labels: Tensor, seen: Tensor, classes: int) -> tuple[list[int], float]:
    """The one-to-one assignment of labels to classes in which most images agree, and their share in %."""
    from scipy.optimize import linear_sum_assignment

    counts = torch.bincount(labels * classes + seen, minlength=classes**2).view(classes, classes).numpy()
    order: np.ndarray = linear_sum_assignment(counts, maximize=True)[1]
    return order.tolist(), _percent(torch.from_numpy(order)[labels] == seen)


def _percent(marks: Tensor) -> float:
    return 100 * float(marks.double().mean()) if len(marks) else 0.0
