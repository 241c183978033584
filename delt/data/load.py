"""Open a real data set by name: `open_set("digits", DataConfig(), device)` gives its images, labels and facts.

Sets under 2 GiB become uint8 tensors on the device; larger ones stay files, each decoded once and kept on disk. A part that
has to be split off, since there is no test part or to choose settings by (`hold_out`), depends on the images alone, never on
a run's seed, so every run of a set has the same.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delt.config import DataConfig
from delt.data.decode import OPAQUE
from delt.data.facts import file_fingerprint, moments, spread, survey, tensor_fingerprint
from delt.data.folders import Files, Listing, class_folders, find_parts, list_folder
from delt.data.images import DataInfo, Images, Notes, RealSet, TensorImages
from delt.data.kept import kept_in
from delt.data.specs import OWN_FOLDER, DatasetSpec, chosen, spec_of
from delt.data.stream import StreamImages, over_white, spare_workers
from delt.errors import DataError
from delt.runtime import seed_of
from delt.storage import cache_folder, user_cache
from delt.typed import typed

HELD_BYTES = 2 * 1024**3  # sets smaller than this live on the device
DIGITS_TEST = 0.25
SURVEYED = 100  # images that tell an own folder's channels and size

Labelled = tuple[Tensor, Tensor]  # uint8 [N,C,H,W], int64 [N]


@typed
def open_set(name: str, config: DataConfig | None = None, device: torch.device | str = "cpu") -> RealSet:
    """Return the real data set of this name (see `delt.data.specs.DATASETS`; or `folder:PATH`).

    Args:
        config: where it lies, and what of it; without one the whole set as it is.
        device: where sets under 2 GiB are held, and larger ones are sent batch by batch.

    Raises:
        ConfigError: no such data set, or a class that it does not have.
        DataError: its files are missing, damaged or not what the table says, or a download failed.
    """
    spec = spec_of(name)
    opener = {"digits": open_digits, "torchvision": open_torchvision, "folder": open_folder}[spec.source]
    return opener(spec, config or DataConfig(), torch.device(device))


# ---------------------------------------------------------------- the sources


def open_digits(spec: DatasetSpec, config: DataConfig, device: torch.device) -> RealSet:
    """scikit-learn's 1,797 scanned digits, 0 .. 16 scaled to 0 .. 255, a quarter of each class held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.tensor(held_out(list(range(len(labels))), labels.tolist(), DIGITS_TEST))
    return _tensor_set(spec, (pixels[~test], labels[~test]), (pixels[test], labels[test]), config, device)


def open_torchvision(spec: DatasetSpec, config: DataConfig, device: torch.device) -> RealSet:
    """CIFAR-10 or CIFAR-100 from the published files, which torchvision checks and, where it may, downloads."""
    import torchvision.datasets

    builder = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[spec.name]
    root = data_root(spec, config)
    if bad := _bad_files(builder, root):
        _download(spec, config, builder, root, bad)
    return _tensor_set(spec, _labelled(builder, root, True), _labelled(builder, root, False), config, device)


def open_folder(spec: DatasetSpec, config: DataConfig, device: torch.device) -> RealSet:
    """A folder of image files, in the layout of ImageFolder or of Tiny-ImageNet."""
    found = _listed(spec, config)
    listing, skipped = without_bad(spec, config, found) if config.on_bad_image == "skip" else (found, ())
    files = _files(listing, config)
    channels, size = _image_shape(spec, config, listing, files[0])
    train, test = (_streamed(listing, part, channels, size, device) for part in files)
    paths = [*train.paths, *test.paths]
    if _large(len(paths), channels, size):
        _keep(found, (train, test), files)
        facts = _info(spec, listing.classes, channels, size, train, test.labels)
        notes = Notes(skipped, over_white([path for path in paths if os.path.splitext(path)[1].lower() not in OPAQUE], train.workers))
        return RealSet(facts, train, test, file_fingerprint(listing, files, channels, size), notes)
    held = train.held(), test.held()
    facts = _info(spec, listing.classes, channels, size, held[0], held[1].labels)
    fingerprint = tensor_fingerprint(facts.classes, ((part.pixels, part.labels) for part in held))
    return RealSet(facts, *held, fingerprint, Notes(skipped, over_white(paths, train.workers)))


def _files(listing: Listing, config: DataConfig) -> tuple[Files, Files]:
    """The files to train on, and those to test on."""
    train, test = (listing.train, listing.test) if listing.test else split(listing.train, config.val_fraction, listing)
    return split(train, config.hold_out, listing) if config.hold_out else (train, test)


def _streamed(listing: Listing, files: Files, channels: int, size: int, device: torch.device) -> StreamImages:
    return StreamImages(listing.full(files.paths), torch.tensor(files.labels), channels, size, device, spare_workers())


def _large(count: int, channels: int, size: int) -> bool:
    return count * channels * size**2 >= HELD_BYTES


def _keep(found: Listing, images: Sequence[StreamImages], parts: Sequence[Files]) -> None:
    """Give parts of a listing their places in the one store of all its decoded images, however it is split or thinned out."""
    paths, first = found.files.paths, images[0]
    kept = kept_in(decoded_folder(), found.root, paths, (first.channels, first.size, first.size))
    place = {path: number for number, path in enumerate(paths)}
    for one, part in zip(images, parts, strict=True):
        one.kept, one.places = kept, [place[path] for path in part.paths]


def without_bad(spec: DatasetSpec, config: DataConfig, found: Listing) -> tuple[Listing, tuple[tuple[str, str], ...]]:
    """The listing without the files that are no usable images, and these with the cause of each; every file is decoded.

    Raises:
        DataError: a class loses all its images.
    """
    files = found.files
    channels, size = _image_shape(spec, config, found, found.train)  # of nearly all: where few are bad it is that of the rest
    images = _streamed(found, files, channels, size, torch.device("cpu"))
    if _large(len(files), channels, size):
        _keep(found, [images], [files])
    bad = {files.paths[i]: cause for i, cause in images.faults().items()}
    train, test = _thinned(found, found.train, bad), found.test and _thinned(found, found.test, bad)
    skipped = tuple((path.encode(errors="replace").decode(), cause) for path, cause in sorted(bad.items()))
    return Listing(found.root, found.classes, train, test), skipped


def _thinned(listing: Listing, files: Files, bad: Mapping[str, str]) -> Files:
    """Files without the bad ones."""
    left = [i for i, path in enumerate(files.paths) if path not in bad]
    lost = sorted(set(files.labels) - {files.labels[i] for i in left})
    if lost:
        paths = [path for path, label in zip(files.paths, files.labels, strict=True) if label == lost[0]]
        more = f" (and of {len(lost) - 1} more classes)" if len(lost) > 1 else ""
        raise DataError(
            f"all {len(paths)} images of class {listing.classes[lost[0]]!r}{more} in {listing.root} are bad, first {paths[0]}: "
            f"{bad[paths[0]]}; add good ones, or choose other classes"
        )
    return _pick(files, left)


def _listed(spec: DatasetSpec, config: DataConfig) -> Listing:
    """What lies in the data set's folder, of the classes that are wanted."""
    listing = list_folder(spec, data_root(spec, config))
    classes = chosen(spec.name, listing.classes, config.classes)
    if classes == listing.classes:
        return listing
    place = [classes.index(name) if name in classes else -1 for name in listing.classes]
    test = listing.test and _of_classes(listing.test, place)
    if test is not None and not len(test):
        raise DataError(f"the test part of {listing.root} has no image of {', '.join(classes)}: add some, or choose other classes")
    return Listing(listing.root, classes, _of_classes(listing.train, place), test)


def _image_shape(spec: DatasetSpec, config: DataConfig, listing: Listing, files: Files) -> tuple[int, int]:
    """Channels and size, which an own folder's images tell where nobody else does."""
    channels, size = spec.channels, config.size or spec.size
    if channels is None or size is None:
        found = survey(listing.full(spread(files.paths, SURVEYED)), skip=config.on_bad_image == "skip")
        channels, size = channels or found[0], size or found[1]
    return channels, size


def shape_of(name: str, config: DataConfig) -> tuple[int, int, int]:
    """Classes, channels and pixels per side of a data set, without opening it: files are looked at only in an own folder.

    Raises:
        DataError: the folder is not there, or holds no classes.
    """
    spec = spec_of(name)
    size, count = config.size or spec.size, len(config.classes) or spec.count
    if count is not None and spec.channels is not None and size is not None:
        return count, spec.channels, size
    listing = _listed(spec, config)
    return len(listing.classes), *_image_shape(spec, config, listing, listing.train)


def count_images(name: str, config: DataConfig) -> tuple[int, int]:
    """Images of a data set for training and for testing: of an own folder those that are there, else the published numbers.

    Raises:
        DataError: the folder is not there, or holds no classes.
    """
    spec = spec_of(name)
    if spec.images is not None and spec.count:
        share = len(config.classes) / spec.count if config.classes else 1.0
        train, test = (round(count * share) for count in spec.images)
        held = round(train * config.hold_out)
        return (train - held, held) if config.hold_out else (train, test)
    train, test = map(len, _files(_listed(spec, config), config))
    return train, test


def require_files(name: str, config: DataConfig) -> None:
    """Refuse a data set whose folders are not here, without reading a file of them.

    Raises:
        DataError: naming what was looked for, and where to get it.
        ConfigError: a class that the data set does not have.
    """
    spec = spec_of(name)
    if spec.source == "folder":
        _, train, _ = find_parts(spec, data_root(spec, config))
        if config.classes:
            chosen(spec.name, tuple(class_folders(train)), config.classes)
    elif spec.source == "torchvision" and not config.download:
        root = data_root(spec, config)
        if not any((root / folder).is_dir() for folder in spec.folders):
            raise DataError(f"{spec.name} is not in {root}: give --data-root FOLDER that holds {spec.folders[0]}/, or allow the download")


# ---------------------------------------------------------------- where the files are


def decoded_folder() -> Path:
    """Where decoded images of large sets are kept."""
    return cache_folder() / "decoded"


def data_root(spec: DatasetSpec, config: DataConfig) -> Path:
    """The folder to look in: the path in the name, --data-root, or the cache where a download is allowed.

    Raises:
        DataError: none of these is given.
    """
    if spec.name.startswith(OWN_FOLDER):
        return Path(spec.name.removeprefix(OWN_FOLDER)).expanduser()
    if config.root is not None:
        root = Path(config.root).expanduser()
        inside = spec.source == "torchvision" and root.name in spec.folders  # the folder itself was named
        return root.parent if inside else root
    if spec.source == "torchvision" and config.download:
        return user_cache() / "data"
    holds = f" that holds {spec.folders[0]}/" if spec.folders else ""
    raise DataError(f"{spec.name} needs --data-root FOLDER{holds}; get it from {spec.hint}")


def _bad_files(builder: Any, root: Path) -> list[str]:
    """Published files that are missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    listed = [*builder.train_list, *builder.test_list, (builder.meta["filename"], builder.meta["md5"])]
    folder = root / builder.base_folder
    try:
        return [str(folder / name) for name, md5 in listed if not check_integrity(str(folder / name), md5)]
    except OSError as error:
        raise DataError(f"cannot read {folder}: {(error.strerror or str(error)).lower()}") from error


def _download(spec: DatasetSpec, config: DataConfig, builder: Any, root: Path, bad: list[str]) -> None:
    place = f"give --data-root FOLDER that holds {builder.base_folder}/, from {spec.hint}"
    missing = f"{len(bad)} files of {spec.name} are missing or damaged in {root}, first {bad[0]}"
    if not config.download:
        raise DataError(f"{missing}; {place}, or allow the download")
    new = not root.exists()
    try:
        builder(str(root), download=True)
    except Exception as error:  # the network, the disk, the archive: all end in the same advice
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        if new:
            with contextlib.suppress(OSError):  # there is something in it
                root.rmdir()
        raise DataError(f"{missing}; the download failed ({cause}); {place}") from error


def _labelled(builder: Any, root: Path, train: bool) -> Labelled:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy: the published files hold arrays of an old version
        part = builder(str(root), train=train)
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)


# ---------------------------------------------------------------- splitting


def held_out(keys: Sequence[object], labels: Sequence[int], share: float) -> list[bool]:
    """Mark `share` of each class for testing: those whose keys hash lowest, at least one, and one is left to train on.

    A key and the number of its class decide, so that the choice is the same in every version and on every machine,
    and an added image changes hardly any other.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    marked = [False] * len(labels)
    for indices in members.values():
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        for index in sorted(indices, key=lambda i: seed_of("held out", keys[i]))[:count]:
            marked[index] = True
    return marked


def split(files: Files, share: float, listing: Listing) -> tuple[Files, Files]:
    """Split the training files of a listing into files to train and to test on, class by class.

    Raises:
        DataError: a class has fewer than two images.
    """
    counts = torch.tensor(files.labels).bincount().tolist()
    if 1 in counts:
        name = listing.classes[counts.index(1)]
        raise DataError(f"class {name!r} in {listing.root} has 1 image to train on; a part to test on needs 2 of each class at least")
    marked = held_out(files.paths, files.labels, share)
    train, test = ([i for i, mark in enumerate(marked) if mark == wanted] for wanted in (False, True))
    return _pick(files, train), _pick(files, test)


def _of_classes(files: Files, place: Sequence[int]) -> Files:
    """Files by their new labels, those of -1 left out."""
    rows = [(path, place[label]) for path, label in zip(files.paths, files.labels, strict=True) if place[label] >= 0]
    rows.sort(key=lambda row: row[1])
    return Files(tuple(path for path, _ in rows), tuple(label for _, label in rows))


def _pick(files: Files, index: list[int]) -> Files:
    return Files(tuple(files.paths[i] for i in index), tuple(files.labels[i] for i in index))


# ---------------------------------------------------------------- facts


def _info(spec: DatasetSpec, classes: tuple[str, ...], channels: int, size: int, train: Images, tested: Tensor) -> DataInfo:
    """The table's facts; what it leaves open comes from the training images, and the floor is above chance for the labels to test on.

    Chance is the largest class's share. A table's floor is meant for all classes of the set, and few are easy.
    """
    mean, std = (spec.mean, spec.std) if spec.mean and spec.std else moments(train)
    chance = 100 * float(tested.bincount().max()) / len(tested)
    floor = max(spec.floor or 0.0, min(1.5 * chance, (chance + 100) / 2))
    return DataInfo(spec.name, classes, channels, size, mean, std, spec.flip, floor)


def _tensor_set(spec: DatasetSpec, train: Labelled, test: Labelled, config: DataConfig, device: torch.device) -> RealSet:
    classes, size = chosen(spec.name, spec.classes or (), config.classes), config.size or train[0].shape[-1]
    if config.hold_out:  # before classes are chosen: a class keeps its images
        marked = torch.tensor(held_out(range(len(train[1])), train[1].tolist(), config.hold_out))
        train, test = ((train[0][rows], train[1][rows]) for rows in (~marked, marked))
    parts = [(resized(pixels, size), labels) for pixels, labels in (_selected(part, spec.classes or (), classes) for part in (train, test))]
    held = [TensorImages(pixels.to(device), labels) for pixels, labels in parts]
    facts = _info(spec, classes, train[0].shape[1], size, held[0], held[1].labels)
    return RealSet(facts, held[0], held[1], tensor_fingerprint(classes, parts))


def _selected(part: Labelled, classes: tuple[str, ...], wanted: tuple[str, ...]) -> Labelled:
    """The images of the wanted classes, their labels renumbered; the same tensors where all are wanted in their order."""
    if wanted == classes:
        return part
    pixels, labels = part
    place = torch.tensor([wanted.index(name) if name in wanted else -1 for name in classes])[labels]
    return pixels[place >= 0], place[place >= 0]


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 [N,C,H,W] scaled to `size` (bilinear, antialiased, rounded); untouched where it has that size."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    scaled = [
        torch.nn.functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().to(torch.uint8)
        for part in pixels.split(1024)
    ]
    return torch.cat(scaled)


def class_counts(images: Images, classes: int) -> list[int]:
    """How many images each class has."""
    counts: list[int] = images.labels.bincount(minlength=classes).tolist()
    return counts
