"""Images from elsewhere: which folder is which class, what is refused, and what a wrong class order looks like."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from delt.config import RankConfig
from delt.data.given import best_order, check_order, count_given, list_given, require_given
from delt.data.images import DataInfo
from delt.errors import ConfigError, DataError

CLASSES, SIZE, IPC = ("cat", "dog", "elk"), 8, 4


def info(classes=CLASSES, channels=3, name="toy"):
    return DataInfo(name, tuple(classes), channels, SIZE, (0.5,) * channels, (0.25,) * channels, True, 0.0)


def draw(path: Path, seed: int, size: int = SIZE, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def folder(root: Path, names, ipc: int = IPC, **style) -> Path:
    """A folder whose image i of its n-th class has seed 100 n + i."""
    for number, name in enumerate(names):
        for index in range(ipc):
            draw(root / name / f"class{number:03d}_id{index:03d}.png", 100 * number + index, **style)
    return root


# ---------------------------------------------------------------- which folder is which class


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("cat", "dog", "elk"), True),
        (("00000", "00001", "00002"), False),
        (("new000", "new001", "new002"), False),
        (("0", "1", "2"), False),
        (("0000_cat", "0001_dog", "0002_elk"), False),
    ],
)
def test_folders_go_by_name_or_by_number(tmp_path, names, named):
    given = list_given(str(folder(tmp_path, names)), info(), IPC)
    assert given.folders == names and given.named is named
    expected = [np.array(Image.open(tmp_path / path)) for path in given.paths]
    assert torch.equal(given.images(), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)) and not given.changed()
    assert given.labels().tolist() == [label for label in range(3) for _ in range(IPC)]
    assert [path.split("/")[0] for path in given.paths] == [name for name in names for _ in range(IPC)]
    assert count_given(tmp_path) == IPC


def test_names_go_in_the_order_of_the_data_set_and_numbers_by_their_value(tmp_path):
    turned = list_given(str(folder(tmp_path / "names", CLASSES)), info(("elk", "cat", "dog")), IPC)
    assert turned.folders == ("elk", "cat", "dog")
    many = [str(number) for number in range(12)]  # "10" sorts before "2"
    assert list_given(str(folder(tmp_path / "numbers", many, 1)), info([f"c{n}" for n in many]), 1).folders == tuple(many)
    digits = list_given(str(folder(tmp_path / "digits", "012", 1)), info(("2", "0", "1")), 1)
    assert digits.folders == ("2", "0", "1")  # a class that is called 2 is meant by "2",
    assert not digits.named  # but nobody knows that it is more than a number


def test_the_fingerprint_is_of_the_content_in_class_order(tmp_path):
    first = list_given(str(folder(tmp_path / "a", CLASSES)), info(), IPC)
    numbers = list_given(str(folder(tmp_path / "b", ("00000", "00001", "00002"))), info(), IPC)
    assert first.fingerprint() == numbers.fingerprint()
    assert list_given(str(tmp_path / "a"), info(("dog", "cat", "elk")), IPC).fingerprint() != numbers.fingerprint()
    draw(tmp_path / "a" / "dog" / "class001_id002.png", 9999)
    assert first.fingerprint() != numbers.fingerprint()


def test_another_size_or_mode_is_made_the_data_sets_and_said(tmp_path):
    folder(tmp_path, CLASSES)
    draw(tmp_path / "dog" / "class001_id001.png", 5, size=20)
    draw(tmp_path / "elk" / "class002_id000.png", 6, mode="L")
    given = list_given(str(tmp_path), info(), IPC)
    assert given.images().shape == (12, 3, SIZE, SIZE)
    assert "2 of 12 images" in given.changed() and "not 8 x 8 RGB (first: dog/class001_id001.png, 20 x 20 RGB)" in given.changed()
    assert "11 of 12 images" in list_given(str(tmp_path), info(channels=1), IPC).changed()


# ---------------------------------------------------------------- what is refused


def refused(root: Path, message: str, ipc: int = IPC, error: type[Exception] = DataError, classes=CLASSES) -> None:
    with pytest.raises(error, match=message) as caught:
        list_given(str(root), info(classes), ipc).images()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dgo", "elk"), r"unknown 'dgo', missing 'dog'; name its folders as the classes, or 0 to 2 in their order"),
        (("cat", "dog"), "missing 'elk'"),
        (("cat", "dog", "elk", "fox", "gnu"), r"unknown 'fox' \(and 1 more\)"),
        (("00000", "00001"), "missing '2'"),
        (("1", "2", "3"), "unknown '3', missing '0'"),
        (("0", "1", "cat"), r"unknown '0' \(and 1 more\), missing 'dog' \(and 1 more\)"),
        (("0", "00", "1", "2"), "a number stands twice"),
    ],
)
def test_folders_that_are_not_the_classes(tmp_path, names, message):
    refused(folder(tmp_path, names), f"does not hold the 3 classes of toy: {message}")


def test_folders_that_cannot_be_used(tmp_path):
    refused(tmp_path / "nowhere", "nowhere is not a folder")
    refused(tmp_path, "holds no class folders")
    folder(tmp_path, CLASSES)
    refused(tmp_path, "has 4 images of each class, and ipc is 5: give --ipc 4", ipc=5)
    (tmp_path / "dog" / "class001_id003.png").unlink()
    refused(tmp_path, r"have 4 images each, but not 'dog' \(3\)")
    with pytest.raises(DataError, match=r"'dog' \(3\)"):
        count_given(tmp_path)
    shutil.rmtree(tmp_path / "dog")
    (tmp_path / "dog").mkdir()
    refused(tmp_path, "no images in .*dog")
    with pytest.raises(ConfigError, match="method given needs its images: --rank-folder FOLDER"):
        list_given(None, info(), IPC)


def test_a_file_that_is_no_image_is_named(tmp_path):
    folder(tmp_path, CLASSES)
    whole = (tmp_path / "elk" / "class002_id001.png").read_bytes()
    (tmp_path / "elk" / "class002_id001.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "cannot read the image .*elk/class002_id001.png")


def test_only_method_given_has_a_folder_to_check(tmp_path):
    require_given(RankConfig(), 3)
    require_given(RankConfig(keep="given", folder=str(folder(tmp_path, CLASSES))), IPC)
    with pytest.raises(DataError, match="give --ipc 4"):
        require_given(RankConfig(keep="given", folder=str(tmp_path)), 3)
    with pytest.raises(ConfigError, match="--rank-folder"):
        require_given(RankConfig(keep="given"), 3)


# ---------------------------------------------------------------- class order


def test_the_best_order_is_that_of_trying_all():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 5):
        labels, seen = (torch.randint(classes, (40,), generator=generator) for _ in range(2))
        shares = [100 * (torch.tensor(p)[labels] == seen).double().mean().item() for p in itertools.permutations(range(classes))]
        order, best = best_order(labels, seen, classes)
        assert best == pytest.approx(max(shares)) and sorted(order) == list(range(classes))


def ten(tmp_path, named: bool, ipc: int = IPC):
    names = [f"c{number}" for number in range(10)]
    return list_given(str(folder(tmp_path, names if named else [f"{n:05d}" for n in range(10)], ipc)), info(names), ipc)


@pytest.mark.parametrize("turn", [1, 3])
def test_another_class_order_is_refused_and_the_class_named(tmp_path, turn):
    given = ten(tmp_path, named=False)
    seen = (given.labels() + turn) % 10
    seen[::10] = 0  # a teacher errs
    with pytest.raises(DataError, match=r"class order: folder 0000\d looks like class 'c\d' .*\(9\d % .* best order, \d+ % as given\)"):
        check_order(given, seen)
    right = torch.where(given.labels() == 0, 0, seen)  # the first folder is right, the second the first that is not
    words = f"folder 00001 looks like class 'c{1 + turn}' and not 'c1', folder .* and 6 more .*rename the folders to the classes"
    with pytest.raises(DataError, match=words):
        check_order(given, right)


def test_two_classes_that_changed_places_are_refused_in_a_set_of_any_size(tmp_path):
    two = list_given(str(folder(tmp_path / "two", "01", 10)), info(("a", "b")), 10)
    with pytest.raises(DataError, match="folder 0 looks like class 'b'"):
        check_order(two, 1 - two.labels())
    given = ten(tmp_path / "ten", named=False)
    swap = torch.tensor([1, 0, *range(2, 10)])
    with pytest.raises(
        DataError, match="folder 00000 looks like class 'c1' and not 'c0', folder 00001 looks like class 'c0' and not 'c1' "
    ):
        check_order(given, swap[given.labels()])
    mistaken = given.labels().clone()
    mistaken[: 2 * IPC : 2] = 1 - mistaken[: 2 * IPC : 2]  # a teacher that takes half of either class for the other
    assert "90.0 % are what their folder says" in check_order(given, mistaken)


def test_with_class_names_another_order_is_only_warned_of(tmp_path):
    given = ten(tmp_path, named=True)
    assert check_order(given, (given.labels() + 1) % 10).startswith("warning: class order: folder c0 looks like class 'c1'")


@pytest.mark.parametrize("ipc", [1, 2, 10])
def test_a_teacher_that_guesses_refuses_nothing(tmp_path, ipc):
    """Few images always fit some order well: one a class has seven of ten in a guess's best order."""
    given = ten(tmp_path, named=False, ipc=ipc)
    for seed in range(40):
        seen = torch.randint(10, (10 * ipc,), generator=torch.Generator().manual_seed(seed))
        assert "are what their folder says" in check_order(given, seen)
    assert "10.0 % are" in check_order(given, torch.full((10 * ipc,), 3))
    with pytest.raises(DataError, match="class order"):
        check_order(given, given.labels().flip(0))  # and a real one is found even there
