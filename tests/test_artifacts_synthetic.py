"""SyntheticSet: exact round trip, equal bytes for equal sets, and no name that leads out of the folder."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from delt import storage
from delt.artifacts import synthetic
from delt.artifacts.synthetic import SyntheticSet, class_folder, file_names, png_bytes, read_png
from delt.errors import DataError, IntegrityError

HOSTILE: tuple[str, ...] = ("../../etc/passwd", "/abs", "..", "", "a\\b", "<script>alert(1)</script>", "=cmd|' /C calc'!A0")
HOSTILE += ("naïve\nünï", "nul\0l", "x" * 300, "con.", ".hidden")


def make(classes: tuple[str, ...] = ("zero", "one", "two"), ipc: int = 2, channels: int = 3, seed: int = 0) -> SyntheticSet:
    count = len(classes) * ipc
    draws = torch.Generator().manual_seed(seed)
    return SyntheticSet(
        images=torch.randint(0, 256, (count, channels, 5, 7), dtype=torch.uint8, generator=draws),
        labels=torch.arange(len(classes)).repeat_interleave(ipc),
        classes=classes,
        sub_batch=torch.arange(count) % ipc,
        iterations=1000 - 10 * (torch.arange(count) % ipc),
        source=[f"train/{index}" if index % 2 else "noise" for index in range(count)],
        seed=7,
    )


def assert_same(a: SyntheticSet, b: SyntheticSet) -> None:
    for name in ("images", "labels", "sub_batch", "iterations"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other), name
    assert (a.classes, a.source, a.seed) == (b.classes, b.source, b.seed)


def content(folder: Path) -> dict[str, bytes]:
    return {item.relative_to(folder).as_posix(): item.read_bytes() for item in folder.rglob("*") if item.is_file()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [("zero", "one", "two"), HOSTILE])
def test_round_trip_is_exact_and_stays_inside(tmp_path: Path, channels: int, classes: tuple[str, ...]) -> None:
    made = make(classes, 2, channels)
    outer = tmp_path / "outer"
    paths = made.save(outer / "run")
    assert_same(SyntheticSet.load(outer / "run"), made)
    assert sorted(path.relative_to(outer / "run").as_posix() for path in paths) == sorted(content(outer / "run"))
    assert [item.name for item in tmp_path.iterdir()] == ["outer"] and [item.name for item in outer.iterdir()] == ["run"]


def test_a_channels_last_set_and_classes_without_images_survive(tmp_path: Path) -> None:
    made = make()
    made.images = made.images.contiguous(memory_format=torch.channels_last)
    made.classes = (*made.classes, "never drawn")
    made.save(tmp_path)
    assert_same(SyntheticSet.load(tmp_path), made)


def test_an_empty_set_survives(tmp_path: Path) -> None:
    made = make(ipc=0)
    assert [path.name for path in made.save(tmp_path)] == ["synthetic.parquet"]
    assert_same(SyntheticSet.load(tmp_path), made)


def test_equal_sets_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(seed=seed).save(tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_image_folder_reads_the_classes_in_order(tmp_path: Path) -> None:
    made = make(("b", "a", "..", *(f"c{index}" for index in range(9))), ipc=2)
    made.save(tmp_path)
    read = ImageFolder(str(tmp_path / "synthetic"))
    assert read.targets == made.labels.tolist()
    for index, (image, label) in enumerate(read):
        again = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(5, 7, 3).permute(2, 0, 1)
        assert torch.equal(again, made.images[index]) and label == int(made.labels[index])


def test_the_table_has_the_promised_columns(tmp_path: Path) -> None:
    make().save(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "synthetic.parquet")
    assert table.column_names == ["file", "class_index", "class_name", "sub_batch", "iterations", "source", "seed", "sha256"]
    rows = table.to_pylist()
    assert rows[3] == {
        "file": "synthetic/0001_one/00001.png",
        "class_index": 1,
        "class_name": "one",
        "sub_batch": 1,
        "iterations": 990,
        "source": "train/3",
        "seed": 7,
        "sha256": storage.sha256_file(tmp_path / "synthetic/0001_one/00001.png"),
    }
    assert all((tmp_path / row["file"]).is_file() for row in rows)


def test_saving_again_leaves_nothing_of_the_older_set(tmp_path: Path) -> None:
    make(("zero", "one", "two"), ipc=4).save(tmp_path)
    (tmp_path / "synthetic" / "0000_zero" / "stray.png").write_bytes(b"")
    paths = make(("zero", "uno"), ipc=1).save(tmp_path)
    assert sorted(content(tmp_path)) == sorted(path.relative_to(tmp_path).as_posix() for path in paths)
    assert_same(SyntheticSet.load(tmp_path), make(("zero", "uno"), ipc=1))


@pytest.mark.parametrize("count", [1, 10, 9_999, 10_000, 10_001, 123_456])
def test_class_folders_sort_in_class_order(count: int) -> None:
    indices = sorted({0, 1, 9, 10, 11, 999, 1000, 9_999, 10_000, count - 2, count - 1} & set(range(count)))
    names = [class_folder(index, "z" if index % 2 else "a", count) for index in indices]
    assert names == sorted(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", HOSTILE)
def test_class_folders_are_plain_names(name: str) -> None:
    folder = class_folder(3, name, 10)
    assert folder.startswith("0003_") and len(folder) <= 65 and len(folder) > 5
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") and not folder.endswith(".")


def test_file_names_count_within_the_class() -> None:
    assert file_names(torch.tensor([0, 0, 2]), ("a", "b", "c")) == ["0000_a/00000.png", "0000_a/00001.png", "0002_c/00000.png"]


def test_png_is_lossless_without_extra_chunks() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    data = png_bytes(image)
    assert data == png_bytes(image.clone()) and b"tIME" not in data and b"tEXt" not in data
    with Image.open(io.BytesIO(data)) as read:
        assert read.mode == "L" and read.tobytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 3, 5, 7)}, "float32"),
        ({"images": torch.zeros(6, 2, 5, 7, dtype=torch.uint8)}, "1 or 3 channels"),
        ({"source": ["noise"]}, "lengths"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "3 classes"),
        ({"labels": torch.tensor([-1, 0, 1, 1, 2, 2])}, "3 classes"),
        ({"labels": torch.tensor([0, 1, 0, 1, 2, 2])}, "ordered by class"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SyntheticSet(**{**vars(make()), **change})


def test_missing_damaged_and_swapped_images_are_named(tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "synthetic" / "0001_one" / "00000.png"
    good = path.read_bytes()
    small, gray = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (3, 3)).save(small, "PNG")
    Image.new("L", (7, 5)).save(gray, "PNG")
    jpeg = io.BytesIO()
    Image.new("RGB", (7, 5)).save(jpeg, "JPEG")
    bad = [b"", good[:40], b"<html>", jpeg.getvalue(), small.getvalue(), gray.getvalue()]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"0001_one/00000\.png"):
            SyntheticSet.load(tmp_path)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"0001_one/00000\.png"):
        SyntheticSet.load(tmp_path)


def test_no_flipped_bit_changes_a_pixel_unseen(tmp_path: Path) -> None:
    made = make()
    made.save(tmp_path)
    path = tmp_path / "synthetic" / "0001_one" / "00000.png"
    good, noticed = path.read_bytes(), 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        try:
            assert_same(SyntheticSet.load(tmp_path), made)  # a flip that the decoder never looks at
        except IntegrityError:
            noticed += 1
    assert noticed > 0.8 * len(good)  # the rest is for the manifest's hash


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    make().save(tmp_path)
    sink = io.BytesIO()
    Image.new("1", (9000, 9000)).save(sink, "PNG")
    path = tmp_path / "synthetic" / "0000_zero" / "00000.png"
    path.write_bytes(sink.getvalue())
    with pytest.raises(IntegrityError, match="9000"):
        read_png(path, (3, 8, 8), storage.sha256_file(path))
    with pytest.raises(IntegrityError, match="expected sha256 .*, found"):
        SyntheticSet.load(tmp_path)


@pytest.mark.parametrize("side", [0, -1, 10**6])
def test_a_table_that_declares_huge_images_takes_no_memory(tmp_path: Path, side: int) -> None:
    make().save(tmp_path)
    path = tmp_path / "synthetic.parquet"
    facts = {"classes": list(make().classes), "shape": [3, side, side], "seed": 0}
    write_table(pyarrow.parquet.read_table(path), path, storage.json_bytes(facts))
    with pytest.raises(IntegrityError, match="allowed are 1 to 4096 per side"):
        SyntheticSet.load(tmp_path)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / "synthetic" / "0001_one" / "00001.png").unlink()
    with pytest.raises(IntegrityError, match=r"0001_one/00001\.png is missing"):
        SyntheticSet.load(tmp_path)


def write_table(table: pyarrow.Table, path: Path, facts: bytes | None = None) -> None:
    """A table with a seal that is right, whatever its content."""
    meta = {} if facts is None else {b"delt": facts}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({**meta, storage.SEAL: storage.UNSEALED}), sink)
    path.write_bytes(storage.sealed(sink.getvalue()))


def test_a_table_that_points_elsewhere_or_is_damaged_is_refused(tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "synthetic.parquet"
    good, table = path.read_bytes(), pyarrow.parquet.read_table(path)
    (tmp_path / "secret.png").write_bytes((tmp_path / "synthetic/0000_zero/00000.png").read_bytes())
    files, facts = table["file"].to_pylist(), table.schema.metadata[b"delt"]
    for file in ("../secret.png", "secret.png", os.fspath(tmp_path / "secret.png")):
        column = pyarrow.array([file, *files[1:]])
        write_table(table.set_column(0, "file", column), path, facts)
        with pytest.raises(IntegrityError, match=r"synthetic\.parquet is damaged"):
            SyntheticSet.load(tmp_path)
    others = [(table.drop_columns([name]), facts) for name in ("iterations", "sha256")] + [(table, None), (table, b"[]")]
    others += [(table, storage.json_bytes({"classes": ["a"], "shape": [3, 5, 7], "seed": 0}))]
    for other, words in others:
        write_table(other, path, words)
        with pytest.raises(IntegrityError, match=r"synthetic\.parquet"):
            SyntheticSet.load(tmp_path)
    backwards = pyarrow.array([2, 2, 1, 1, 0, 0])
    names = pyarrow.array([f"synthetic/{name}" for name in file_names(torch.tensor(backwards.to_pylist()), make().classes)])
    moved = table.set_column(0, "file", names).set_column(1, "class_index", backwards)
    write_table(moved.set_column(7, "sha256", table["sha256"].take([4, 5, 2, 3, 0, 1])), path, facts)
    with pytest.raises(IntegrityError, match="damaged: images are not ordered by class"):
        SyntheticSet.load(tmp_path)
    for data in (b"", b"PAR1", good[:-20], good[: len(good) // 2]):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"synthetic\.parquet"):
            SyntheticSet.load(tmp_path)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"synthetic\.parquet"):
        SyntheticSet.load(tmp_path)


def test_a_file_that_is_no_png_is_named_though_its_hash_fits(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(IntegrityError, match=r"x\.png is not a readable PNG"):
        read_png(tmp_path / "x.png", (1, 4, 4), storage.sha256_bytes(b"no image"))


def test_files_are_compressed_by_threads_or_where_there_are_none_any_more_without() -> None:
    images = make().images
    expected = [png_bytes(image) for image in images]
    with ThreadPoolExecutor(2) as pool:
        assert list(synthetic._compressed(images, pool)) == expected
    assert list(synthetic._compressed(images, pool)) == expected, "the threads have ended"
