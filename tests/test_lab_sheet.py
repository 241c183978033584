"""Sheets of tiles, decoded again and compared tile by tile with the images they were made from."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from delt.lab.sheet import LARGEST, LOSSLESS, TILE, grid, sheet


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def slopes(*shape: int) -> Tensor:
    """Images that survive compression: each another slope of colour."""
    *some, channels, height, width = shape
    ramp = torch.linspace(0, 1, height).view(-1, 1) * torch.linspace(0, 1, width)
    strength = noise(*some, channels, 1, 1).float()
    return (strength * ramp).round().to(torch.uint8)


def cut(picture: bytes, size: tuple[int, int], column: int, row: int) -> np.ndarray:
    """One tile as [H,W,C]: the slow and obvious way."""
    width, height = size
    box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).crop(box))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def upright(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "rows, columns, height, width", [(3, 4, 8, 8), (1, 1, 28, 28), (2, 3, 7, 13), (5, 1, LOSSLESS, LOSSLESS), (1, 6, 1, 1)]
)
def test_small_tiles_are_kept_exactly(channels: int, rows: int, columns: int, height: int, width: int) -> None:
    images = noise(rows, columns, channels, height, width)
    picture, size = sheet(images)
    assert size == (width, height) and Image.open(io.BytesIO(picture)).size == (columns * width, rows * height)
    for row in range(rows):
        for column in range(columns):
            assert np.array_equal(cut(picture, size, column, row), upright(images[row, column]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width, expected", [(224, 224, (112, 112)), (150, 225, (112, 75)), (80, 80, (80, 80))])
def test_large_tiles_are_reduced_and_stay_in_their_place(channels: int, height: int, width: int, expected: tuple[int, int]) -> None:
    images = slopes(2, 3, channels, height, width)
    picture, size = sheet(images)
    assert size == expected and max(size) <= TILE
    for row in range(2):
        for column in range(3):
            whole = upright(images[row, column])
            slow = np.asarray(Image.fromarray(whole.squeeze() if channels == 1 else whole).resize(expected, Image.Resampling.BILINEAR))
            found = cut(picture, size, column, row).astype(float)
            assert np.abs(found - slow.reshape(found.shape)).max() <= 12, "but for what compression changes"


def test_many_tiles_are_reduced_to_a_picture_that_browsers_can_draw() -> None:
    images = slopes(2, 500, 1, 48, 48)
    picture, size = sheet(images)
    assert size == (32, 32) and Image.open(io.BytesIO(picture)).size == (LARGEST, 64)
    assert abs(int(cut(picture, size, 499, 1)[-1, -1, 0]) - int(images[1, 499, 0, -1, -1])) <= 8


def test_a_large_sheet_of_noise_can_be_written() -> None:
    picture, size = sheet(noise(50, 60, 3, TILE, TILE))
    assert Image.open(io.BytesIO(picture)).size == (60 * TILE, 50 * TILE) and size == (TILE, TILE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count, asked, columns", [(1, 40, 1), (7, 3, 3), (6, 3, 3), (41, 40, 40), (5, 0, 1)])
def test_a_grid_goes_row_by_row(channels: int, count: int, asked: int, columns: int) -> None:
    images = noise(count, channels, 5, 9)
    picture, size, found = grid(images, asked)
    assert found == columns and size == (9, 5)
    assert Image.open(io.BytesIO(picture)).size == (columns * 9, -(-count // columns) * 5)
    for k in range(count):
        assert np.array_equal(cut(picture, size, k % columns, k // columns), upright(images[k]))


def test_the_rest_of_a_grid_is_black() -> None:
    picture, size, columns = grid(noise(3, 3, 4, 4) | 1, 2)
    assert columns == 2 and not cut(picture, size, 1, 1).any()
