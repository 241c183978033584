"""Decoded images on disk: decoded once, shared by processes, and decoded again where anything is wrong with them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from delt.config import DataConfig
from delt.data import kept as module
from delt.data import load, stream
from delt.data.decode import decode
from delt.data.kept import Kept, kept_in
from delt.data.load import open_set
from delt.data.stream import StreamImages
from delt.errors import DataError

CPU, SHAPE, N = torch.device("cpu"), (3, 8, 8), 90


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def files(tmp_path: Path, pixels: Tensor) -> list[str]:
    (tmp_path / "files").mkdir()
    names = [str(tmp_path / "files" / f"{i}.png") for i in range(N)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))).save(name)
    return names


def images(files: list[str], folder: Path, workers: int = 0) -> StreamImages:
    return StreamImages(files, torch.arange(len(files)) % 5, 3, 8, CPU, workers, kept_in(folder, Path("/"), files, SHAPE))


def no_decoding(path: str, *_: Any) -> Tensor:
    raise DataError(f"{path} was decoded again")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_decoded_once(
    workers: int, files: list[str], pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert torch.equal(images(files, tmp_path / "kept", workers).fetch(index[:70]), pixels[index[:70]])
    monkeypatch.setattr(stream, "decode", no_decoding)
    again = images(files, tmp_path / "kept")
    assert torch.equal(again.fetch(index[:70]), pixels[index[:70]])
    with pytest.raises(DataError, match="was decoded again"):
        again.fetch(index[70:71])
    assert {file.suffix for file in (tmp_path / "kept").iterdir()} == {".u8", ".sum"}


@pytest.mark.parametrize("end", [".u8", ".sum"])
def test_what_is_damaged_or_cut_off_is_decoded_again(end: str, files: list[str], pixels: Tensor, tmp_path: Path) -> None:
    everything = torch.arange(N)
    images(files, tmp_path / "kept").fetch(everything)
    (file,) = (tmp_path / "kept").glob(f"*{end}")
    whole = file.read_bytes()
    for spoilt in (whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole[: len(whole) // 2], b""):
        file.write_bytes(spoilt)
        assert torch.equal(images(files, tmp_path / "kept").fetch(everything), pixels)
        assert file.read_bytes() == whole


def test_it_holds_what_was_kept_and_nothing_else(tmp_path: Path, pixels: Tensor) -> None:
    place = Kept(tmp_path / "place", SHAPE)
    assert not place.holds(0)
    place.get(3, lambda: pixels[3])
    assert [number for number in range(6) if place.holds(number)] == [3] and Kept(tmp_path / "place", SHAPE).holds(3)
    (tmp_path / "file").write_bytes(b"")
    assert not Kept(tmp_path / "file" / "below", SHAPE).holds(0)


def test_looking_for_bad_files_decodes_each_once_and_keeps_it(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(files[7]).write_bytes(b"")
    assert images(files, tmp_path / "kept").faults() == {7: "the file is empty"}
    asked: list[str] = []
    monkeypatch.setattr(stream, "decode", lambda path, *shape: asked.append(path) or decode(path, *shape))
    assert images(files, tmp_path / "kept").faults() == {7: "the file is empty"} and asked == [files[7]]


def test_a_set_keeps_its_images_in_one_place_however_it_is_split(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "HELD_BYTES", 1)
    for k, name in enumerate(files[:20]):
        place = tmp_path / "set" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)
    (tmp_path / "set" / "a" / "0.jpg").write_bytes(b"")

    def opened(share: float) -> Tensor:
        found = open_set(f"folder:{tmp_path / 'set'}", DataConfig(size=8, val_fraction=share, on_bad_image="skip"), CPU)
        assert found.notes.skipped == (("a/0.jpg", "the file is empty"),)
        parts = [part.fetch(torch.arange(len(part))) for part in (found.train, found.test)]
        return torch.cat(parts).flatten(1).sum(1).sort().values

    asked: list[str] = []
    monkeypatch.setattr(stream, "decode", lambda path, *shape: asked.append(path) or decode(path, *shape))
    assert torch.equal(opened(0.2), opened(0.6))
    assert sorted(asked) == sorted([str(path) for path in (tmp_path / "set").rglob("*.png")] + [str(tmp_path / "set" / "a" / "0.jpg")] * 2)


def test_other_files_and_other_sizes_have_places_of_their_own(files: list[str], tmp_path: Path) -> None:
    place = kept_in(tmp_path, Path("/"), files, SHAPE)
    assert place is not None

    def differs(*given: Any) -> bool:
        other = kept_in(tmp_path, Path("/"), *given)
        return other is not None and other.path != place.path

    assert not differs(files, SHAPE)
    assert differs(files, (3, 9, 9)) and differs(files[::-1], SHAPE) and differs(files[:-1], SHAPE)
    os.utime(files[0], ns=(1, 1))
    assert differs(files, SHAPE)


def test_a_full_disk_is_said_and_nothing_is_kept(files: list[str], pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=N * 3 * 8 * 8))
    with pytest.warns(UserWarning, match="do not fit into .* files are decoded each time; set DELT_CACHE"):
        found = images(files, tmp_path / "kept")
    assert found.kept is None and torch.equal(found.fetch(torch.arange(3)), pixels[:3])


def test_a_disk_that_fills_up_while_writing_costs_nothing_but_time(
    files: list[str], pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    assert torch.equal(images(files, tmp_path / "kept").fetch(torch.arange(N)), pixels)


def test_an_image_that_was_written_in_part_is_decoded_again(
    files: list[str], pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "pwrite", lambda handle, data, place: write(handle, data[:-1], place))
        images(files, tmp_path / "kept").fetch(torch.arange(N))
    assert torch.equal(images(files, tmp_path / "kept").fetch(torch.arange(N)), pixels)


def test_a_folder_that_cannot_be_made_is_done_without(files: list[str], pixels: Tensor, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    assert kept_in(tmp_path / "kept", Path("/"), files, SHAPE) is None
    broken = Kept(tmp_path / "kept" / "below", SHAPE)
    assert torch.equal(broken.get(0, lambda: pixels[0]), pixels[0]) and torch.equal(broken.get(0, lambda: pixels[1]), pixels[1])


def test_it_travels_as_its_path(tmp_path: Path, pixels: Tensor) -> None:
    one = Kept(tmp_path / "place", SHAPE)
    one.get(3, lambda: pixels[3])
    two = pickle.loads(pickle.dumps(one))
    assert torch.equal(two.get(3, lambda: pixels[0]), pixels[3])


def test_a_large_set_keeps_its_images_and_a_small_one_does_not(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "cache"))
    for k, name in enumerate(files[:12]):
        place = tmp_path / "set" / ("train" if k < 8 else "val") / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)
    small = open_set(f"folder:{tmp_path / 'set'}", DataConfig(size=8), CPU)
    assert not (tmp_path / "cache" / "decoded").exists()
    monkeypatch.setattr(load, "HELD_BYTES", 1)
    for _ in range(2):
        large = open_set(f"folder:{tmp_path / 'set'}", DataConfig(size=8), CPU)
        assert torch.equal(large.test.fetch(torch.arange(4)), small.test.fetch(torch.arange(4)))
        monkeypatch.setattr(stream, "decode", no_decoding)
