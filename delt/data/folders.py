"""Image folders to lists of files and labels, checked before anything is decoded.

Two layouts of a part (train, val, ..) are read: CLASS/**/image (as torchvision's ImageFolder; Tiny-ImageNet's training
part too), and Tiny-ImageNet's images/ beside val_annotations.txt. Classes are in sorted order. Hidden files and files
that are no images are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from delt.data.decode import EXTENSIONS
from delt.data.specs import OWN_FOLDER, DatasetSpec
from delt.errors import DataError

TESTS = ("val", "test")
ANNOTATIONS = "val_annotations.txt"
NAME_BYTES = 255  # of a file's name
Part = dict[str, list[str]]  # class -> its files, as paths below the root, sorted


@dataclass(frozen=True)
class Files:
    """Labelled files: paths below a root (with /), and the class index of each."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Listing:
    """What lies in a data set's folder."""

    root: Path
    classes: tuple[str, ...]
    train: Files
    test: Files | None  # None: the folder has no test part

    @property
    def files(self) -> Files:
        """All files, those of the test part last."""
        if self.test is None:
            return self.train
        return Files(self.train.paths + self.test.paths, self.train.labels + self.test.labels)

    def full(self, paths: Iterable[str]) -> list[str]:
        """Paths below the root as they can be opened. Text, since a `Path` for each of a million files takes minutes."""
        root = str(self.root)
        return [os.path.join(root, path) for path in paths]


def list_folder(spec: DatasetSpec, root: Path) -> Listing:
    """Find the parts of a data set below `root` and list their files.

    Raises:
        DataError: a part or a class is missing, empty, or not what the table says; the message names it.
    """
    own = spec.name.startswith(OWN_FOLDER)
    place, train, test = find_parts(spec, root)
    train_part = read_part(place, train)
    classes = tuple(train_part)
    _check_classes(spec, train, classes)
    if test is None:
        return Listing(place, classes, _files(train_part, classes), None)
    test_part = read_part(place, test)
    _check_test(train, test, classes, tuple(test_part), all_classes=not own)
    return Listing(place, classes, _files(train_part, classes), _files(test_part, classes))


def find_parts(spec: DatasetSpec, root: Path) -> tuple[Path, Path, Path | None]:
    """The data set's folder below `root`, that of its training images and that of its test images, if it has one.

    Raises:
        DataError: a part is missing.
    """
    own = spec.name.startswith(OWN_FOLDER)
    place = root if own else _published(spec, root)
    return place, *_parts(spec, place, own)


def _published(spec: DatasetSpec, root: Path) -> Path:
    """The folder that holds the training part: the data root or, inside it, a folder named as published."""
    places = [root / name for name in spec.folders] + [root]
    for place in places:
        if (place / spec.train).is_dir():
            return place
    looked = ", ".join(str(place / spec.train) for place in places)
    raise DataError(f"{spec.name} is not in {root}: looked for {looked}; give --data-root its folder, from {spec.hint}")


def _parts(spec: DatasetSpec, place: Path, own: bool) -> tuple[Path, Path | None]:
    if not place.is_dir():
        raise DataError(f"{place} is not a folder; {spec.name} needs {spec.hint}")
    test = next((place / name for name in dict.fromkeys((spec.test, *TESTS)) if (place / name).is_dir()), None)
    if (place / spec.train).is_dir():
        if test is None and not own:
            raise DataError(f"{spec.name} has no {spec.test}/ in {place}; needed are {spec.train}/ and {spec.test}/")
        return place / spec.train, test
    if test is not None:
        raise DataError(f"{place} has {test.name}/ but no {spec.train}/; {spec.name} needs {spec.hint}")
    return place, None


def read_part(root: Path, part: Path) -> Part:
    """The classes of one part and their files, as paths below `root`.

    Raises:
        DataError: it has no classes, or one without images.
    """
    found = _annotated(root, part) if (part / ANNOTATIONS).is_file() else {name: _images(root, part / name) for name in class_folders(part)}
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise DataError(f"no images in {part / empty[0]}{and_more(empty)}; add images or remove the folder")
    return found


def class_folders(part: Path) -> list[str]:
    """Names of the class folders in a part, sorted.

    Raises:
        DataError: there are none.
    """
    names = sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{part} holds no class folders; sort its images into one folder per class")
    return names


def _images(root: Path, folder: Path) -> list[str]:
    """Image files below a folder, sorted name by name along their paths."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = _below(root, parent)
        found += [f"{place}/{name}" for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS]
    return sorted(found, key=lambda path: path.split("/"))


def _below(root: Path, folder: str | Path) -> str:
    return Path(folder).relative_to(root).as_posix()


def _annotated(root: Path, part: Path) -> Part:
    """Tiny-ImageNet's validation part: one line per image, `FILE <tab> CLASS <tab> box`."""
    found: Part = {}
    place = _below(root, part / "images")
    lines = (part / ANNOTATIONS).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 2 or not _is_name(fields[0]) or not (part / "images" / fields[0]).is_file():
            raise DataError(f"{part / ANNOTATIONS}, line {number}: no image {fields[0]!r} in {part / 'images'}; unpack again")
        found.setdefault(fields[1], []).append(f"{place}/{fields[0]}")
    if not found:
        raise DataError(f"{part / ANNOTATIONS} names no image; unpack again, or remove it where {part} holds one folder per class")
    return {name: sorted(found[name]) for name in sorted(found)}


def _is_name(text: str) -> bool:
    """Whether a line's word is the name of a file and no path, which could lead out of the folder."""
    return text not in ("", ".", "..") and not set("/\\\0") & set(text) and len(os.fsencode(text)) <= NAME_BYTES


def _check_classes(spec: DatasetSpec, train: Path, classes: tuple[str, ...]) -> None:
    if spec.classes is not None and classes != spec.classes:
        missing, extra = sorted(set(spec.classes) - set(classes)), sorted(set(classes) - set(spec.classes))
        raise DataError(f"{train} does not hold the classes of {spec.name}: missing {_some(missing)}, not of it {_some(extra)}")
    if spec.count is not None and len(classes) != spec.count:
        raise DataError(f"{train} holds {len(classes)} classes; {spec.name} has {spec.count}; use folder:PATH for a part of it")
    if len(classes) < 2:
        raise DataError(f"{train} holds one class folder, {classes[0]!r}; needed are at least two")


def _check_test(train: Path, test: Path, known: tuple[str, ...], tested: tuple[str, ...], all_classes: bool) -> None:
    strange = [name for name in tested if name not in set(known)]
    if strange:
        raise DataError(f"{test} has a class that {train} lacks: {strange[0]!r}{and_more(strange)}; add it there or remove it")
    untested = [name for name in known if name not in set(tested)]
    if untested and all_classes:
        raise DataError(f"{test} lacks the class {untested[0]!r}{and_more(untested)} of {train}; unpack it again")


def _files(part: Part, classes: tuple[str, ...]) -> Files:
    rows = [(path, label) for label, name in enumerate(classes) for path in part.get(name, ())]
    return Files(tuple(path for path, _ in rows), tuple(label for _, label in rows))


def and_more(names: list[str]) -> str:
    """What follows the first of some names in a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", .." if len(names) > 3 else "") or "none"
