"""The ranking on disk, and which rows it keeps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from delt import storage
from delt.artifacts.ranking import COLUMNS, FILE, Patches, Ranking
from delt.errors import IntegrityError


def small(score: float = 0.5) -> Ranking:
    """Two classes of three candidates; two of each are kept, the later row first in class 1."""
    box = torch.tensor([[0, 1, 4, 5]]).expand(6, 4)
    scores = torch.tensor([0.1, score, 0.9, 0.2, 0.3, 0.4])
    place = torch.tensor([-1, 0, 1, 1, -1, 0])
    return Ranking(
        ("cat", "dog, wild"), "medium", 1, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([4, 2, 9, 1, 3, 5]), *box.unbind(1), scores, place
    )


@pytest.mark.parametrize("score", [0.5, float("nan")])
def test_what_is_saved_comes_back(score: float, tmp_path: Path):
    ranking = small(score)
    assert ranking.save(tmp_path) == [tmp_path / FILE]
    back = Ranking.load(tmp_path)
    assert (back.classes, back.keep, back.factor, len(back)) == (ranking.classes, "medium", 1, 6)
    for name in COLUMNS:
        own, other = getattr(ranking, name), getattr(back, name)
        assert own.dtype == other.dtype and torch.equal(own.nan_to_num(7), other.nan_to_num(7))


def test_equal_rankings_have_equal_bytes(tmp_path: Path):
    small().save(tmp_path)
    first = (tmp_path / FILE).read_bytes()
    small().save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == first


def test_the_table_can_be_read_without_us(tmp_path: Path):
    small().save(tmp_path)
    table = pq.read_table(tmp_path / FILE).to_pydict()
    assert table["class_name"] == ["cat"] * 3 + ["dog, wild"] * 3
    assert table["image"] == [4, 2, 9, 1, 3, 5] and table["height"] == [4] * 6


def test_kept_rows_come_in_the_order_of_their_turn():
    ranking = small()
    assert ranking.kept(0).tolist() == [1, 2]
    assert ranking.kept(1).tolist() == [5, 3]


@pytest.mark.parametrize("damage", ["cut", "other", "plain", "forged"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path):
    small().save(tmp_path)
    file = tmp_path / FILE
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "other":
        file.write_text("no parquet at all")
    elif damage == "forged":  # with a checksum that fits
        table = pq.read_table(file).drop_columns(["score"])
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, storage.SEAL.encode(): storage.UNSEALED}), sink)
        file.write_bytes(storage.sealed(sink.getvalue().to_pybytes()))
    else:  # a table of someone else
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(IntegrityError, match=FILE):
        Ranking.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(IntegrityError, match=FILE):
        Ranking.load(tmp_path)


def test_patches_are_found_by_class_and_number():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    chosen = Patches(3, images, [""] * 6).of([(1, 2), (0, 0), (1, 0)])
    assert chosen is not None and chosen[:, 0, 0, 0].tolist() == [5, 0, 3]
    assert Patches(3, None, ["noise"] * 6).of([(0, 1)]) is None


def test_starting_images_are_pixels_or_cut_or_noise():
    pixels, members = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), [(1, 0), (0, 1)]
    sources = ["train/0"] * 4
    for patches in (Patches(2, pixels, sources), Patches(2, None, sources, cut=lambda asked: pixels[[2 * c + i for c, i in asked]])):
        found = patches.of(members)
        assert found is not None and found.flatten().tolist() == [2, 1]
        assert patches.images is not None and torch.equal(patches.images, pixels)
    assert Patches(2, None, ["noise"] * 4).of(members) is None
