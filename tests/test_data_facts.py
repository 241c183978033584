"""What is measured on images, against slow references."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from delt.data.decode import BadImage
from delt.data.facts import file_fingerprint, moments, spread, survey, tensor_fingerprint
from delt.data.folders import Files, Listing
from delt.data.images import TensorImages


def images_of(pixels):
    return TensorImages(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def test_spread_is_even_ordered_and_bounded():
    assert spread(range(10), 100) == list(range(10))
    assert spread(range(1000), 4) == [0, 250, 500, 750]
    assert spread([], 3) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_those_of_all_pixels(channels):
    pixels = torch.randint(0, 256, (150, channels, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 0] //= 3
    mean, std = moments(images_of(pixels))
    flat = pixels.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(channels, -1) / 255
    assert mean == pytest.approx(flat.mean(1)) and std == pytest.approx(flat.std(1))
    assert moments(images_of(pixels), 50) == moments(images_of(pixels[::3]))


def test_a_constant_channel_can_be_divided_by():
    mean, std = moments(images_of(torch.full((4, 1, 8, 8), 51, dtype=torch.uint8)))
    assert mean == pytest.approx((0.2,)) and std == (1 / 255,)


@pytest.mark.parametrize(
    ("sides", "size"), [([(30, 40), (33, 90), (70, 35)], 32), ([(500, 375)] * 3, 224), ([(5, 6)], 8), ([(8, 8), (9, 9)], 8)]
)
def test_survey_size_is_the_median_shorter_side(tmp_path, sides, size):
    for number, side in enumerate(sides):
        Image.new("RGB", side, (9, 8, 7)).save(tmp_path / f"{number}.png")
    assert survey(sorted(map(str, tmp_path.iterdir()))) == (3, size)


def test_survey_sees_grey_in_the_pixels(tmp_path):
    Image.new("L", (8, 8), 3).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (5, 5, 5)).save(tmp_path / "b.jpg")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert survey(paths)[0] == 1
    image = Image.new("RGB", (8, 8), (5, 5, 5))
    image.putpixel((7, 7), (5, 6, 5))
    image.save(tmp_path / "c.png")
    assert survey([*paths, str(tmp_path / "c.png")])[0] == 3


def test_survey_passes_over_bad_images_where_it_may(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    Image.new("L", (24, 30), 3).save(paths[1])
    Path(paths[0]).write_bytes(b"")
    with pytest.raises(BadImage, match="a.png: the file is empty"):
        survey(paths)
    assert survey(paths, skip=True) == (1, 24)
    with pytest.raises(BadImage, match="a.png: the file is empty"):
        survey([paths[0], paths[2]], skip=True)


def test_tensor_fingerprint_sees_every_part():
    pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    base = tensor_fingerprint(("a", "b"), [(pixels, labels)])
    assert base == tensor_fingerprint(("a", "b"), [(pixels.clone(), labels.clone())]) and len(base) == 64
    changed = pixels.clone()
    changed[2, 0, 1, 1] = 1
    others = [
        tensor_fingerprint(("b", "a"), [(pixels, labels)]),
        tensor_fingerprint(("a", "b"), [(changed, labels)]),
        tensor_fingerprint(("a", "b"), [(pixels, labels.flip(0))]),
        tensor_fingerprint(("a", "b"), [(pixels.view(3, 1, 1, 4), labels)]),
        tensor_fingerprint(("a", "b"), [(pixels[:2], labels[:2]), (pixels[2:], labels[2:])]),
    ]
    assert len({base, *others}) == 6


def test_file_fingerprint_sees_paths_sizes_labels_parts_shape_and_content(tmp_path):
    for name, length in (("1.jpg", 3), ("2.jpg", 5), ("3.jpg", 5)):
        (tmp_path / name).write_bytes(b"x" * length)
    files = Files(("1.jpg", "2.jpg"), (0, 1))
    listing = Listing(tmp_path, ("a", "b"), files, None)
    base = file_fingerprint(listing, [files], 3, 8)
    assert base == file_fingerprint(listing, [Files(("2.jpg", "1.jpg"), (1, 0))], 3, 8)
    others = [
        file_fingerprint(dataclasses.replace(listing, classes=("a", "c")), [files], 3, 8),
        file_fingerprint(listing, [Files(("1.jpg", "3.jpg"), (0, 1))], 3, 8),
        file_fingerprint(listing, [Files(("1.jpg", "2.jpg"), (1, 0))], 3, 8),
        file_fingerprint(listing, [files], 1, 8),
        file_fingerprint(listing, [files], 3, 16),
    ]
    rows = (("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 1))
    for cut in (1, 2):  # the same files, of which another one is the test part's
        parts = [Files(*map(tuple, zip(*own, strict=True))) for own in (rows[:cut], rows[cut:])]
        others.append(file_fingerprint(listing, parts, 3, 8))
    for content in (b"x" * 6, b"y" * 6):
        (tmp_path / "2.jpg").write_bytes(content)
        others.append(file_fingerprint(listing, [files], 3, 8))
    assert len({base, *others}) == 10
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(BadImage, match="2.jpg: no such file"):
        file_fingerprint(listing, [files], 3, 8)
